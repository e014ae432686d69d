"""The forms that many simulated spectra are written in, each block by block and whole or not at all.

Tested in tests/unit/test_simulate_many.py.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.inference.simulated import Request, Simulated
from harps_dist.inference.simulator import Simulator
from harps_dist.inference.spectrum_files import ascii_text, write_fits
from harps_dist.ownership import OutputKind, check
from harps_dist.sealed import find_sealed, sealed_write, unsealed
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.labels import LABEL

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

IDENTITY = "simulation.json"
LABELS = "labels.ecsv"
CHUNK_BYTES = 2**20  # what is read for one spectrum, at least
THREADS = 4  # flushing a file to disk takes as long as making its content


def parts_path(out: Path) -> Path:
    """Where blocks are kept until they are put together."""
    return out.with_name(f"{out.name}.parts")


class Sink:
    """Where the spectra of a request go.

    out: the result. parts: folder of the blocks that are done, until they all are. rows: of a block. form: of the
    result, see `ownership.OutputKind`.
    """

    form: Literal["file", "folder", "home"] = "file"

    def __init__(self, out: Path, simulator: Simulator, request: Request, identity: dict[str, Any], rows: int):
        self.out, self.simulator, self.request, self.identity, self._rows = out, simulator, request, identity, rows
        self.parts = parts_path(out)
        self.blocks = -(-len(request) // rows)

    def rows(self, block: int) -> slice:
        return slice(block * self._rows, min((block + 1) * self._rows, len(self.request)))

    def count(self, block: int) -> int:
        """Spectra of a block."""
        rows = self.rows(block)
        return rows.stop - rows.start

    @classmethod
    def kind(cls) -> OutputKind:
        """What the result is."""
        return OutputKind(
            "simulation", "-o", lambda out: "request_sha256" in cls.read_identity(out), cls.form, apart=True
        )

    def identity_of_result(self) -> dict[str, Any] | None:
        """What the result says of itself, None where there is none yet."""
        there = self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir()))
        return self.read_identity(self.out) if there else None

    def begin(self) -> None:
        """Make what blocks are written into; again, where it was killed meanwhile."""

    def has(self, block: int) -> bool:
        """Whether a block is there and whole; one that is damaged is told of, and made again."""
        return find_sealed(self._file(block)) is not None

    def write(self, block: int, simulated: Simulated) -> None:
        raise NotImplementedError(f"{type(self).__name__} writes no blocks; give it a write.")

    def finish(self) -> None:
        """Put the blocks together, in one step, and remove them."""
        raise NotImplementedError(f"{type(self).__name__} puts nothing together; give it a finish.")

    def _file(self, block: int) -> Path:
        """What a block is written to, under the sealed name of its content."""
        return self.parts / f"{block:06d}"

    def _block(self, block: int) -> Path:
        """The file of a block, checked again; raises ConfigError where it was changed since it was written."""
        found = find_sealed(self._file(block))
        if found is None:
            raise ConfigError(f"block {block} in {self.parts} was damaged meanwhile. Give the same command again.")
        return found

    @classmethod
    def read_identity(cls, out: Path) -> dict[str, Any]:
        """What a result says of itself; raises nearly anything where it is none."""
        raise NotImplementedError(f"{cls.__name__} has no identity; give it one.")


class ZarrGroup(Sink):
    """A Zarr v3 group: flux in chunks of a megabyte, a shard a block."""

    form = "folder"

    @property
    def _group(self) -> Path:
        return self.parts / "group"

    def begin(self) -> None:
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        (self.parts / "done").mkdir(exist_ok=True)
        if self._group.exists():
            return
        aside = self.parts / ".group.new"
        shape = (len(self.request), self.simulator.grid.length)
        root = zarr.open_group(aside, mode="w", zarr_format=3)
        root.attrs.update({"harps_dist": self.identity})
        root.create_array(
            "flux",
            shape=shape,
            chunks=(min(self._rows, rows_within(CHUNK_BYTES, self.simulator.grid)), shape[1]),
            shards=(self._rows, shape[1]),
            dtype="f4",
            fill_value=np.nan,
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
            dimension_names=["spectrum", "wave"],
        )
        wave = root.create_array("wave", data=self.simulator.grid.wave_aa, dimension_names=["wave"])
        wave.attrs.update({"units": "Angstrom", "medium": "air", "frame": "barycentric"})
        for name, values in columns_of(self.request, self.simulator).items():
            if values.dtype == object:
                array = root.create_array(name, shape=values.shape, dtype=str, dimension_names=["spectrum"])
                array[:] = values
            else:
                array = root.create_array(name, data=values, dimension_names=["spectrum"])
            array.attrs["units"] = LABEL[name].unit if name in LABEL else ""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(aside)
        os.replace(aside, self._group)

    def write(self, block: int, simulated: Simulated) -> None:
        import zarr

        shard = self._group / "flux" / "c" / str(block) / "0"
        shard.unlink(missing_ok=True)  # half of it, of a process that was killed
        flux = zarr.open_group(self._group, mode="r+")["flux"]
        assert isinstance(flux, zarr.Array)
        flux[self.rows(block)] = simulated.flux
        with shard.open("rb") as file:
            os.fsync(file.fileno())
        with atomic_write(self._file(block)) as aside:
            aside.touch()

    def has(self, block: int) -> bool:
        return self._file(block).exists()  # its shard has a checksum

    def finish(self) -> None:
        check(self.out, self.kind())
        os.replace(self._group, self.out)
        shutil.rmtree(self.parts)

    def _file(self, block: int) -> Path:
        return self.parts / "done" / f"{block:06d}"

    @classmethod
    def read_identity(cls, out: Path) -> dict[str, Any]:
        import zarr

        found = zarr.open_group(out, mode="r").attrs["harps_dist"]
        assert isinstance(found, dict)
        return found


class ParquetRows(Sink):
    """A Parquet file, one row a spectrum, one row group a block."""

    def write(self, block: int, simulated: Simulated) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = dict(columns_of(simulated.request, self.simulator))
        flat = pa.array(simulated.flux.ravel())
        columns["flux"] = pa.FixedSizeListArray.from_arrays(flat, simulated.flux.shape[1])
        with sealed_write(self._file(block)) as aside:
            pq.write_table(pa.table(columns), aside, row_group_size=len(simulated), compression="zstd")

    def finish(self) -> None:
        import pyarrow.parquet as pq

        schema: pa.Schema = pq.read_schema(self._block(0))
        grid = self.simulator.grid
        notes = self.identity | {"wave0_aa": round(grid.wave0_aa, 2), "step_aa": grid.step_aa}
        schema = schema.with_metadata({"harps_dist": json.dumps(notes, ensure_ascii=False).encode()})
        with atomic_write(self.out) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            for block in range(self.blocks):
                part = pq.ParquetFile(self._block(block), pre_buffer=False).read(use_threads=False)
                writer.write_table(part.cast(schema), row_group_size=len(part))
        shutil.rmtree(self.parts)

    def _file(self, block: int) -> Path:
        return self.parts / f"{block:06d}.parquet"

    @classmethod
    def read_identity(cls, out: Path) -> dict[str, Any]:
        import pyarrow.parquet as pq

        return json.loads(pq.read_schema(out).metadata[b"harps_dist"])


class FitsImage(Sink):
    """A FITS file: an image of one row a spectrum with a wavelength axis in air, and a table of the labels."""

    def write(self, block: int, simulated: Simulated) -> None:
        with sealed_write(self._file(block)) as aside, aside.open("wb") as file:
            np.save(file, simulated.flux)

    def finish(self) -> None:
        from astropy.io import fits

        grid = self.simulator.grid
        header = fits.Header()
        header["SIMPLE"], header["BITPIX"], header["NAXIS"] = True, -32, 2
        header["NAXIS1"], header["NAXIS2"], header["EXTEND"] = grid.length, len(self.request), True
        header["ORIGIN"] = ("SIMULATED", "drawn by a neural network")
        header["CTYPE1"], header["CUNIT1"] = ("AWAV", "in air"), "Angstrom"
        header["CRPIX1"], header["CRVAL1"], header["CDELT1"] = 1.0, round(grid.wave0_aa, 2), grid.step_aa
        header["SPECSYS"], header["BUNIT"] = "BARYCENT", ("", "in medians of the flux; NaN where there is none")
        header["SIMULATN"] = json.dumps(self.identity)  # escaped, so in ASCII
        with atomic_write(self.out) as aside:
            image = fits.StreamingHDU(str(aside), header)
            for block in range(self.blocks):
                image.write(np.load(self._block(block), allow_pickle=False))
            image.close()
            with fits.open(aside, mode="append") as hdus:
                hdus.append(fits.table_to_hdu(labels_table(self.request, self.simulator, ascii_only=True)))
                hdus[-1].name = "LABELS"
        shutil.rmtree(self.parts)

    def _file(self, block: int) -> Path:
        return self.parts / f"{block:06d}.npy"

    @classmethod
    def read_identity(cls, out: Path) -> dict[str, Any]:
        from astropy.io import fits

        return json.loads(fits.getheader(out)["SIMULATN"])


class FitsFolder(Sink):
    """A folder of ESO Phase 3 files, 000000.fits and so on, and a table that says what each is."""

    form = "home"

    def __init__(self, out: Path, simulator: Simulator, request: Request, identity: dict[str, Any], rows: int):
        super().__init__(out, simulator, request, identity, rows)
        self.parts = out
        self._there = {path.name for path in out.glob("*.fits")} if out.is_dir() else set()

    def has(self, block: int) -> bool:
        return all(self.name(row) in self._there for row in range(*self.rows(block).indices(len(self.request))))

    def write(self, block: int, simulated: Simulated) -> None:
        first = self.rows(block).start
        with ThreadPoolExecutor(THREADS) as pool:
            done = [
                pool.submit(write_fits, self.out / self.name(first + row), simulated, row)
                for row in range(len(simulated))
            ]
        for one in done:
            one.result()

    def finish(self) -> None:
        table = labels_table(self.request, self.simulator)
        table.add_column([self.name(row) for row in range(len(table))], name="file", index=0)
        with atomic_write(self.out / LABELS) as aside:
            table.write(aside, format="ascii.ecsv")

    @staticmethod
    def name(row: int) -> str:
        return f"{row:06d}.fits"

    @classmethod
    def read_identity(cls, out: Path) -> dict[str, Any]:
        return unsealed(json.loads((out / IDENTITY).read_text(encoding="utf-8")), required=False)

    def identity_of_result(self) -> dict[str, Any] | None:
        return super().identity_of_result() if (self.out / LABELS).exists() else None


def rows_within(size: int, grid: Grid) -> int:
    """How many spectra so many bytes hold: a power of two, so that chunks fill a block, and one at least."""
    return 2 ** (max(1, size // (4 * grid.length)).bit_length() - 1)


def columns_of(request: Request, simulator: Simulator) -> dict[str, np.ndarray]:
    """Object (n,) text, labels, unknown factors, S/N (infinite without noise) and seed of every row."""
    values = np.concatenate([request.labels, request.unknown], axis=1)
    columns = dict(zip(simulator.nodes, values.T, strict=True))
    snr, seed = np.asarray(request.snr, np.float64), np.asarray(request.seed)
    return {"object": np.asarray(request.names, object), **columns, "snr": snr, "seed": seed}


def labels_table(request: Request, simulator: Simulator, ascii_only: bool = False) -> Table:
    """The labels asked for as an astropy table with units; ascii_only: object names that FITS can hold."""
    from astropy.table import Table

    columns = columns_of(request, simulator)
    columns["object"] = np.array([ascii_text(name) if ascii_only else str(name) for name in request.names])
    table = Table(columns)
    for name in simulator.labels:
        if LABEL[name].unit and not (ascii_only and LABEL[name].unit == "dex"):  # which FITS does not know
            table[name].unit = LABEL[name].unit
    return table
