"""The archive of record: Zarr v3, lossless, append-only, one row a spectrum.

    A.zarr/
      real/      flux (spectrum, wave) and what the headers and the catalogue say of each spectrum
      sed/       flux (spectrum, wave) of stars at rest, on a grid wider by the source margin
      response/  response (spectrum, term, wave): what lies between an SED of unit median and the counts
      generative/  flux (spectrum, wave) of stars at rest that differ in one label within each core
      withdrawn/  which spectra of `real` no release takes any more, and why

Rows are committed in blocks: chunks and columns are written first, then the consolidated metadata in the root
`zarr.json` is replaced in one step. Readers go by it, so they see whole blocks only, and a killed writer leaves
at most rows that nobody sees and the next writer overwrites.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harps_dist.errors import ArchiveError
from harps_dist.files import publish_folder, remove
from harps_dist.ownership import OutputKind, check, claimed, first_line
from harps_dist.spectra.doppler import MARGIN
from harps_dist.spectra.grid import Grid

if TYPE_CHECKING:
    import zarr

SCHEMA = 3
ROWS_PER_SHARD = 16
ROWS_PER_COLUMN_CHUNK = 4096


class Column(NamedTuple):
    """A value per row. dtype: "f8" (NaN where missing) or "str" ("" where missing)."""

    dtype: str
    unit: str = ""
    note: str = ""


LABEL_COLUMNS = {
    "rv": Column("f8", "km/s", "radial velocity, catalogue"),
    "teff": Column("f8", "K", "effective temperature, catalogue"),
    "mh": Column("f8", "dex", "metallicity, catalogue"),
    "logg": Column("f8", "dex", "surface gravity (cgs), catalogue"),
}
SCHEMAS: dict[str, dict[str, Column]] = {
    "real": {
        "key": Column("str", note="data product id"),
        "source": Column("str", note="file, relative to the ingested folder"),
        "stamp": Column("str", note="size and time of the file, by which a changed one is noticed"),
        "product": Column("str", note="ADP or s1d"),
        "object": Column("str"),
        "names": Column("str", note="normalised names of the star in the header"),
        "target": Column("str", note="resolved target id, one per star"),
        "catalogue_id": Column("str", note="the star's id in the catalogue of its ingest"),
        "matched_by": Column("str", note="how the catalogue row was found"),
        "prog_id": Column("str"),
        "pipeline": Column("str", note="version; the newest of a data product supersedes the others"),
        "ra": Column("f8", "deg"),
        "dec": Column("f8", "deg"),
        "mjd": Column("f8", "d"),
        "exptime": Column("f8", "s"),
        "snr": Column("f8"),
        "flag": Column("str", note="why no release takes the spectrum, '' where one may"),
        "berv": Column("f8", "km/s", "header"),
        "airmass": Column("f8", "", "header, mean over the exposure"),
        **LABEL_COLUMNS,
    },
    "sed": {
        "key": Column("str", note="id of the SED"),
        "source": Column("str"),
        "teff": Column("f8", "K"),
        "mh": Column("f8", "dex"),
        "logg": Column("f8", "dex"),
        "vmic": Column("f8", "km/s"),
    },
    "response": {
        "key": Column("str", note="id of the ETC run"),
        "source": Column("str"),
        "sed": Column("str", note="id of the SED the ETC was run with"),
        "airmass": Column("f8"),
        "pwv": Column("f8", "mm"),
        "mag": Column("f8", "mag"),
        "exptime": Column("f8", "s"),
        "snr": Column("f8", "", "median per pixel for its own SED"),
    },
    "generative": {
        "key": Column("str", note="id of the SED"),
        "source": Column("str", note="file, relative to the design"),
        "core": Column("str", note="what it varies from: all of a core shares response, velocities and noise"),
        "varied": Column("str", note="the label that varies"),
        "split": Column("str", note="validation or test"),
        "etc_run": Column("str", note="id of the ETC run it is seen through"),
        "teff": Column("f8", "K"),
        "mh": Column("f8", "dex"),
        "logg": Column("f8", "dex"),
        "vmic": Column("f8", "km/s"),
    },
    "withdrawn": {
        "key": Column("str", note="data product id"),
        "pipeline": Column("str", note="version that is withdrawn, with all older ones"),
        "reason": Column("str"),
    },
}
DATA = {"real": "flux", "sed": "flux", "response": "response", "generative": "flux"}
RESPONSE_TERMS = ("mean", "variance", "floor")


def _is_archive(folder: Path) -> bool:
    return "harps_dist_schema" in json.loads((folder / "zarr.json").read_text())["attributes"]


ARCHIVE = OutputKind("archive", "--archive", _is_archive, "home", apart=True)
REFUSED = ("source", "reason", "detail")  # columns of the list of what was not taken in
QUARANTINE = OutputKind("list of quarantined files", "--archive", lambda path: first_line(path) == ",".join(REFUSED))


def quarantine_path(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.quarantine.csv")


class Archive:
    """An archive opened for reading or, through `Archive.writing`, for appending."""

    def __init__(self, path: Path, *, consolidated: bool = True):
        import zarr
        import zarr.errors

        self.path = Path(path)
        try:
            self._root = zarr.open_group(self.path, mode="r" if consolidated else "r+", use_consolidated=consolidated)
            attributes: dict[str, Any] = self._root.attrs.asdict()
            self.grid = Grid(**attributes["grid"])
            schema = attributes["harps_dist_schema"]
        except (FileNotFoundError, KeyError, ValueError, TypeError, zarr.errors.BaseZarrError) as error:
            raise ArchiveError(
                f"{path} is not an archive of harps_dist ({type(error).__name__}: {error}). "
                f"Make one with `python -m preprocessing ingest`, or check the path."
            ) from None
        if schema != SCHEMA:
            raise ArchiveError(
                f"{path} has schema {schema}, this code knows {SCHEMA}. "
                f"{'Update harps_dist.' if schema > SCHEMA else 'Ingest the files into a new archive.'}"
            )
        self.source_grid = self.grid.widened(attributes["source_margin"])

    @classmethod
    @contextmanager
    def writing(cls, path: Path, grid: Grid) -> Iterator[Archive]:
        """Open for appending, alone: created where absent, cut back to its last commit where a writer was killed.

        Raises ArchiveError where the archive has another grid, OutputError where something else stands there or another
        process is writing to it.
        """
        path = Path(path)
        with claimed(path, ARCHIVE, (quarantine_path(path), QUARANTINE)):
            remove(path.with_name(f".{path.name}.new"))  # as older versions left it
            if not (path / "zarr.json").exists():
                cls._create(path, grid)
            archive = cls(path, consolidated=False)
            if archive.grid != grid:
                raise ArchiveError(
                    f"{path} is on grid {archive.grid.name}, asked for {grid.name}. "
                    f"Use --grid {archive.grid.name}, or another archive."
                )
            archive._roll_back()
            yield archive

    @classmethod
    def _create(cls, path: Path, grid: Grid) -> None:
        path = path.resolve()
        with publish_folder(path, lambda: check(path, ARCHIVE)) as aside:
            cls._fill(aside, grid)

    @classmethod
    def _fill(cls, folder: Path, grid: Grid) -> None:
        import zarr

        root = zarr.open_group(folder, mode="w", zarr_format=3)
        root.attrs.update(
            {
                "harps_dist_schema": SCHEMA,
                "grid": {"name": grid.name, "start": grid.start, "length": grid.length},
                "source_margin": MARGIN,
            }
        )
        source_grid = grid.widened(MARGIN)
        for name, columns in SCHEMAS.items():
            group = root.create_group(name)
            if name in DATA:
                cls._create_data(group, name, grid if name == "real" else source_grid)
            for column, (dtype, unit, note) in columns.items():
                array = group.create_array(
                    column,
                    shape=(0,),
                    chunks=(ROWS_PER_COLUMN_CHUNK,),
                    dtype=str if dtype == "str" else dtype,
                    dimension_names=["spectrum"],
                )
                array.attrs.update({"units": unit, "long_name": note} if note else {"units": unit})
        _consolidate(folder)

    @staticmethod
    def _create_data(group: zarr.Group, name: str, grid: Grid) -> None:
        from zarr.codecs import BloscCodec, Crc32cCodec

        shape = (grid.length,) if name != "response" else (len(RESPONSE_TERMS), grid.length)
        dimensions = ("wave",) if name != "response" else ("term", "wave")
        group.create_array(
            DATA[name],
            shape=(0, *shape),
            chunks=(1, *shape),
            shards=(ROWS_PER_SHARD, *shape),
            dtype="f4",
            fill_value=np.nan,
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
            dimension_names=["spectrum", *dimensions],
        )
        wave = group.create_array("wave", data=grid.wave_aa, dimension_names=["wave"])
        wave.attrs.update({"units": "Angstrom", "medium": "air", "frame": "barycentric"})

    def _roll_back(self) -> None:
        """Cut arrays back to the last commit, where a killed writer left them longer."""
        committed = Archive(self.path)
        for name in SCHEMAS:
            rows = committed.count(name)
            for array in self._arrays(name).values():
                if array.shape[0] != rows:
                    array.resize((rows, *array.shape[1:]))

    def count(self, group: str) -> int:
        """Number of rows."""
        return self._array(group, "key").shape[0]

    def column(self, group: str, name: str) -> np.ndarray:
        """(row,) values of one column, float64 or object."""
        values = np.asarray(self._array(group, name)[:])
        return values if values.dtype == np.float64 else np.asarray(values, dtype=object)

    def rows(self, group: str, *names: str) -> list[dict[str, Any]]:
        """Every row as a dictionary of the named columns, of all where none is named."""
        names = names or tuple(SCHEMAS[group])
        columns = [self.column(group, name) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def data(self, group: str, row: int) -> np.ndarray:
        """One row's float32 array: (pixel,) or, for a response, (3, source pixel).

        Raises ArchiveError where its checksum fails.
        """
        try:
            return np.asarray(self._array(group, DATA[group])[row])
        except Exception as error:  # codecs raise errors of their own kinds
            raise ArchiveError(
                f"row {row} of {group} in {self.path} cannot be read ({error}). Restore its shard from a copy."
            ) from error

    def append(self, group: str, rows: Sequence[tuple[Mapping[str, Any], np.ndarray | None]]) -> None:
        """Add rows of (columns, array) and commit them together; no array where the group has none."""
        if not rows:
            return
        first = self.count(group)
        arrays = self._arrays(group)
        for array in arrays.values():
            array.resize((first + len(rows), *array.shape[1:]))
        if group in DATA:
            arrays[DATA[group]][first:] = np.stack([np.asarray(data) for _, data in rows]).astype(np.float32)
        for name, column in SCHEMAS[group].items():
            values = [columns[name] for columns, _ in rows]
            arrays[name][first:] = np.array(values, dtype=object if column.dtype == "str" else np.float64)
        _consolidate(self.path)

    def _arrays(self, group: str) -> dict[str, zarr.Array]:
        return {name: self._array(group, name) for name in (*SCHEMAS[group], *([DATA[group]] if group in DATA else []))}

    def _array(self, group: str, name: str) -> zarr.Array:
        import zarr

        array = self._root[f"{group}/{name}"]
        if not isinstance(array, zarr.Array):
            raise ArchiveError(f"{group}/{name} in {self.path} is a group, expected an array. Restore it from a copy.")
        return array


def _consolidate(path: Path) -> None:
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)
