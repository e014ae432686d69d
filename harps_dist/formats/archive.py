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

Every byte is vouched for: chunks carry a CRC32C, every chunk exists, the committed metadata carry their own sha256, and
column `content` has a hash of every row's array. An archive of schema 3 has that of arrays of data alone; it is read as
it is, and brought to schema 4 by the first writer, in one step too.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.errors import ArchiveError
from harps_dist.files import publish_folder, remove
from harps_dist.formats.columns import DATA, LABEL_COLUMNS, RESPONSE_TERMS, SCHEMAS, content_of
from harps_dist.formats.committed import ROOT, Committed
from harps_dist.formats.matches import MATCHES, matches_path
from harps_dist.formats.quarantine import QUARANTINE, quarantine_path
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.spectra.grid import MARGIN, Grid
from harps_dist.spectra.grid_spec import GridSpec

if TYPE_CHECKING:
    import zarr
    from specutils import Spectrum

SCHEMA = 4
OLDEST = 3  # schema that is still read
ROWS_PER_SHARD = 16
ROWS_PER_COLUMN_CHUNK = 4096
WAVE = "wave"
_FLAT: dict[str, Any] = {"name": "default", "separator": "."}  # c.0; those of schema 3 lie in c/
_COMPLETE = {"write_empty_chunks": True}  # so that a chunk that is not there is a fault, and no fill value


def _is_archive(folder: Path) -> bool:
    return "harps_dist_schema" in json.loads((folder / "zarr.json").read_text())["attributes"]


ARCHIVE = OutputKind("archive", "--archive", _is_archive, "home", apart=True)


class Archive:
    """An archive opened for reading or, through `Archive.writing`, for appending."""

    def __init__(self, path: Path, *, writable: bool = False):
        self.path = Path(path)
        self._committed, self._root = self._opened(writable)
        attributes = self._committed.attributes
        self.schema = int(attributes["harps_dist_schema"])
        if not OLDEST <= self.schema <= SCHEMA:
            raise ArchiveError(
                f"{path} has schema {self.schema}, this code knows {OLDEST} to {SCHEMA}. "
                f"{'Update harps_dist.' if self.schema > SCHEMA else 'Ingest the files into a new archive.'}"
            )
        try:
            self.grid = GridSpec(**attributes["grid"]).grid()
            self.source_grid = self.grid.widened(int(attributes["source_margin"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArchiveError(
                f"{path / ROOT} says nothing of its grid ({error}). Restore it from a copy of the archive."
            ) from None
        self._arrays: dict[str, zarr.Array] = {}
        self._contents: dict[str, np.ndarray] = {}

    def _opened(self, writable: bool) -> tuple[Committed, zarr.Group]:
        """The committed metadata, and the same as Zarr reads them."""
        import zarr
        import zarr.errors

        while True:
            committed = Committed.read(self.path)
            try:
                mode, consolidated = ("r+", False) if writable else ("r", True)
                root = zarr.open_group(self.path, mode=mode, use_consolidated=consolidated)  # type: ignore[arg-type]
            except (OSError, KeyError, ValueError, TypeError, zarr.errors.BaseZarrError) as error:
                raise ArchiveError(
                    f"{self.path} cannot be opened ({type(error).__name__}: {error}). Restore its {ROOT} from a copy."
                ) from None
            if Committed.read(self.path).attributes == committed.attributes:  # no commit came between the two
                return committed, root

    @classmethod
    @contextmanager
    def writing(cls, path: Path, grid: Grid) -> Iterator[Archive]:
        """Open for appending, alone: created where absent, cut back to its last commit where a writer was killed, and
        brought to this schema.

        One that nothing was added to does not stay, so that a first ingest that failed fixes no grid.
        Raises ArchiveError where the archive has another grid, OutputError where something else stands there or another
        process is writing to it.
        """
        path = Path(path)
        with claimed(path, ARCHIVE, (quarantine_path(path), QUARANTINE), (matches_path(path), MATCHES)):
            remove(path.with_name(f".{path.name}.new"))  # as older versions left it
            if not (path / ROOT).exists():
                cls._create(path, grid)
            committed = cls(path)
            if committed.grid != grid and committed._is_blank:  # of a first ingest that was killed
                cls._create(path, grid)
                committed = cls(path)
            if committed.grid != grid:
                raise ArchiveError(
                    f"{path} is on grid {committed.grid.name}, asked for {grid.name}. "
                    f"Use --grid {committed.grid.name}, or another archive."
                )
            committed._committed.restore()
            committed._committed.drop_strays()
            if committed.schema < SCHEMA or not committed._has_all_labels:
                committed._upgrade()
            archive = cls(path, writable=True)
            archive._complete_contents()
            try:
                yield archive
            finally:
                if archive._is_blank:
                    shutil.rmtree(path.resolve())

    @classmethod
    def _create(cls, path: Path, grid: Grid) -> None:
        path = path.resolve()
        with publish_folder(path, lambda: check(path, ARCHIVE)) as aside:
            cls._fill(aside, grid, MARGIN)

    @classmethod
    def _fill(cls, folder: Path, grid: Grid, margin: int) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        root = zarr.open_group(folder, mode="w", zarr_format=3)
        root.attrs.update(
            {
                "harps_dist_schema": SCHEMA,
                "grid": GridSpec.of(grid).model_dump(),
                "source_margin": margin,
            }
        )
        source_grid = grid.widened(margin)
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
                    fill_value="" if dtype == "str" else np.nan,
                    compressors=[ZstdCodec(), Crc32cCodec()],
                    chunk_key_encoding=_FLAT,
                    dimension_names=["spectrum"],
                )
                array.attrs.update({"units": unit, "long_name": note} if note else {"units": unit})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(folder)
        Committed.read(folder, sealed=False).write()

    @staticmethod
    def _create_data(group: zarr.Group, name: str, grid: Grid) -> None:
        from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

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
        wave = group.create_array(
            WAVE,
            data=grid.wave_aa,
            chunks=(grid.length,),
            compressors=[ZstdCodec(), Crc32cCodec()],
            chunk_key_encoding=_FLAT,
            dimension_names=["wave"],
        )
        wave.attrs.update({"units": "Angstrom", "medium": "air", "frame": "barycentric"})

    def _upgrade(self) -> None:
        """Bring an archive of an older schema, or older than a label, to this one.

        Columns are written anew, with checksums, beside the old ones, then comes one commit.
        Arrays of data stay as they are. Killed, it has changed nothing that anybody reads; what the old columns leave
        behind goes at the next opening, for a reader may be at it.
        """
        aside = self.path.with_name(f".{self.path.name}.new")
        self._fill(aside, self.grid, self._committed.attributes["source_margin"])
        new = Archive(aside, writable=True)
        for group, columns in SCHEMAS.items():
            new._write(group, {name: self.column(group, name) for name in columns}, first=0)
        committed, data = new._committed, {f"{group}/{name}" for group, name in DATA.items()}
        for member in data:
            committed.members[member] = self._committed.members[member]
        for member in committed.arrays() - data:
            (self.path / member).mkdir(exist_ok=True)
            for file in committed.chunk_files(member):
                os.replace(file, self.path / file.relative_to(aside))
        committed.path = self.path
        committed.write()
        committed.restore()
        shutil.rmtree(aside)

    def _complete_contents(self) -> None:
        """Hash the arrays of rows that came without, block by block: those of an older schema, once. What cannot be
        read keeps none, and is told of by whoever reads it."""
        columns = {group: self.column(group, "content") for group in DATA}
        if total := sum(int((contents == "").sum()) for contents in columns.values()):
            note = f"{self.path} is of an older schema: its {total:,} arrays are read once, to note what they hold."
            warnings.warn(note, stacklevel=4)
        for group, contents in columns.items():
            missing = contents == ""
            for first in range(0, len(contents), ROWS_PER_COLUMN_CHUNK):
                block = slice(first, first + ROWS_PER_COLUMN_CHUNK)
                for row in np.flatnonzero(missing[block]) + first:
                    with suppress(ArchiveError):
                        contents[row] = content_of(self.data(group, int(row)))
                if missing[block].any():
                    self._array(group, "content")[block] = contents[block]

    @property
    def _is_blank(self) -> bool:
        """Whether there is no row, nor a file of someone else."""
        return not any(map(self.count, SCHEMAS)) and set(os.listdir(self.path)) <= {ROOT, *SCHEMAS}

    @property
    def _has_all_labels(self) -> bool:
        return {f"real/{name}" for name in LABEL_COLUMNS} <= self._committed.members.keys()

    def count(self, group: str) -> int:
        """Number of rows."""
        return self._committed.rows(f"{group}/key")

    def column(self, group: str, name: str) -> np.ndarray:
        """(row,) values of one column, float64 or object; all missing where an older schema has no such column, or an
        archive is older than a label.

        Raises ArchiveError where it is damaged.
        """
        text = SCHEMAS[group][name].dtype == "str"
        since = self.schema < SCHEMA or name in LABEL_COLUMNS
        if f"{group}/{name}" not in self._committed.members and since:
            return np.full(self.count(group), "" if text else np.nan, object if text else np.float64)
        missing = [file for file in self._committed.chunk_files(f"{group}/{name}") if not file.is_file()]
        if missing and self.schema == SCHEMA:  # before, a chunk of missing values alone was not written
            raise ArchiveError(f"{missing[0]} is missing. Restore it from a copy of the archive.")
        try:
            values = np.asarray(self._array(group, name)[:])
        except Exception as error:  # codecs raise errors of their own kinds
            raise ArchiveError(
                f"column {group}/{name} in {self.path} cannot be read ({error}). Restore its chunks from a copy."
            ) from error
        return np.asarray(values, dtype=object if text else np.float64)

    def rows(self, group: str, *names: str) -> list[dict[str, Any]]:
        """Every row as a dictionary of the named columns, of all where none is named."""
        names = names or tuple(SCHEMAS[group])
        columns = [self.column(group, name) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def data(self, group: str, row: int) -> np.ndarray:
        """One row's float32 array: (pixel,) or, for a response, (3, source pixel).

        Raises ArchiveError where it is missing or its checksum fails.
        """
        member = f"{group}/{DATA[group]}"
        file = self._committed.chunk_file(member, row // self._committed.chunk_rows(member))
        try:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing")
            return np.asarray(self._array(group, DATA[group])[row])
        except Exception as error:  # codecs raise errors of their own kinds
            raise ArchiveError(
                f"row {row} of {group} in {self.path} cannot be read ({error}). Restore its shard from a copy."
            ) from error

    def __getitem__(self, key: str) -> Spectrum:
        """The spectrum of a data product id as a specutils Spectrum, flux as delivered; `meta` has its columns.

        Raises KeyError for an id that is not there.
        """
        from astropy import units
        from specutils import Spectrum

        (found,) = np.nonzero(self.column("real", "key") == key)
        if not len(found):
            raise KeyError(f"{self.path} holds no spectrum {key!r}. Its ids are Archive(…).keys().")
        row = int(found[-1])
        flux, meta = self.data("real", row), {name: self.column("real", name)[row] for name in SCHEMAS["real"]}
        return Spectrum(
            flux=flux * units.dimensionless_unscaled,
            spectral_axis=self.grid.wave_aa * units.AA,
            mask=~np.isfinite(flux),
            meta=meta | {"medium": "air", "frame": "barycentric"},
        )

    def keys(self) -> list[str]:
        """The ids of all spectra, in the order in which they came."""
        return list(self.column("real", "key"))

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(group):,} {group}" for group in SCHEMAS if self.count(group))
        return f"<archive {self.path}: grid {self.grid.name}; {counts or 'empty'}>"

    def contents(self, group: str, rows: np.ndarray) -> np.ndarray:
        """(n,) `content_of` the arrays of the given rows, from column `content`, or from the arrays where it has none.

        Raises ArchiveError where such an array cannot be read.
        """
        if group not in self._contents:
            self._contents[group] = self.column(group, "content")
        found = self._contents[group]
        for row in np.unique(rows[found[rows] == ""]):
            found[row] = content_of(self.data(group, int(row)))
        return found[rows]

    def problems(self) -> Iterator[str]:
        """What is wrong with the committed metadata's copies and with the wavelengths; data and columns say so when
        they are read."""
        for member in self._committed.differing():
            yield f"{self.path / member / ROOT} is not what was committed; the next ingest sets it right."
        for group in DATA:
            grid = self.grid if group == "real" else self.source_grid
            try:
                whole = np.array_equal(self._array(group, WAVE)[:], grid.wave_aa)
            except Exception as error:  # codecs raise errors of their own kinds
                yield f"the wavelengths of {group} in {self.path} cannot be read ({error})."
            else:
                if not whole:
                    yield f"the wavelengths of {group} in {self.path} are not those of grid {grid.name}."

    def append(self, group: str, rows: Sequence[tuple[Mapping[str, Any], np.ndarray | None]]) -> None:
        """Add rows of (columns, array) and commit them together; no array where the group has none.

        Column `content` is made of the array, whatever the row says.
        """
        if not rows:
            return
        first, columns = self.count(group), [dict(columns) for columns, _ in rows]
        if group in DATA:
            data = np.stack([np.asarray(data) for _, data in rows], dtype=np.float32)
            array = self._array(group, DATA[group])
            array.resize((first + len(rows), *array.shape[1:]))
            array[first:] = data
            self._committed.resize(f"{group}/{DATA[group]}", first + len(rows))
            for row, values in zip(columns, data, strict=True):
                row["content"] = content_of(values)
        self._write(group, {name: [row[name] for row in columns] for name in SCHEMAS[group]}, first)
        self._committed.write()

    def _write(self, group: str, columns: Mapping[str, Sequence[Any] | np.ndarray], first: int) -> None:
        """Put values into columns behind the first rows; not committed yet."""
        for name, values in columns.items():
            array = self._array(group, name)
            array.resize((first + len(values),))
            array[first:] = np.array(values, dtype=object if SCHEMAS[group][name].dtype == "str" else np.float64)
            self._committed.resize(f"{group}/{name}", first + len(values))

    def _array(self, group: str, name: str) -> zarr.Array:
        import zarr

        member = f"{group}/{name}"
        if member not in self._arrays:
            array = self._root[member]
            if not isinstance(array, zarr.Array):
                raise ArchiveError(f"{member} in {self.path} is a group, expected an array. Restore it from a copy.")
            self._arrays[member] = array.with_config(_COMPLETE)  # type: ignore[call-overload]
        return self._arrays[member]
