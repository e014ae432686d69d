"""Where spectra to be predicted come from: FITS files, folders, patterns, an archive or a release.

The one module outside preprocessing that reads what preprocessing does: FITS files and archives.

Tested in tests/integration/test_predict_files.py.
"""

from __future__ import annotations

import glob
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from harps_dist.data.manifest import MANIFEST
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, HarpsDistError
from harps_dist.inference.spectra import LEAST_COVERAGE
from harps_dist.inference.table import OBSERVED
from harps_dist.intake import open_regular
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.noise import photon_noise, photon_sigma
from harps_dist.text import printable

if TYPE_CHECKING:
    from harps_dist.formats.archive import Archive
    from harps_dist.formats.prepare import Prepared
    from harps_dist.formats.records import Refusal

ZARR = "zarr.json"
_PATTERN = set("*?[")


class Item(NamedTuple):
    """One spectrum that was asked for.

    where: its file, or the archive or release that holds it in `row`. identity: another one where its content may be
    another: path, size and time of a file, key in an archive or release.
    """

    where: str
    identity: str
    row: int | None = None

    @property
    def name(self) -> str:
        """For people, on one line, and for tables."""
        where = printable(self.where)
        return where if self.row is None else f"{where}, row {self.row}"


class Observed(NamedTuple):
    """A spectrum on the model's grid. columns: what is known of it, by the names of `table.OBSERVED`.

    flux: (pixel,) float32 standardised. coverage: share of valid pixels with data. noise: (chunk,), `photon_noise`.
    broken: whether the file is numerically broken, more of it than the grid shows. sigma: (pixel,) float32 standard
    deviation of the noise in medians, the file's errors where it has them, NaN where it has no data; None where nobody
    asked for it.
    """

    columns: dict[str, Any]
    flux: np.ndarray
    coverage: float
    noise: np.ndarray
    broken: bool
    sigma: np.ndarray | None = None


def find_items(inputs: Sequence[str | Path]) -> tuple[list[Item], list[Refusal]]:
    """The spectra of all inputs, each once, in a fixed order; and folders that bear the name of a FITS file.

    Raises ConfigError for an input that is not there or holds no spectrum, ReleaseError or ArchiveError for a release
    or archive that cannot be opened.
    """
    items: dict[str, Item] = {}
    refused: list[Refusal] = []
    for given in map(str, inputs):
        before = len(items), len(refused)
        for found in _expanded(given):
            if isinstance(found, Item):
                items.setdefault(found.identity, found)
            else:
                refused.append(found)
        if not items and (len(items), len(refused)) == before:
            line = not_looked_at([given], [])
            raise ConfigError(
                f"{printable(given)} holds no spectrum: no file ends in .fits (packed or not) or .tar"
                f"{f' ({line})' if line else ''}. Check the path."
            )
    return list(items.values()), refused


def not_looked_at(inputs: Sequence[str | Path], items: Sequence[Item]) -> str:
    """What lies in the folders among the inputs and is none of the items, by ending, in one line; '' for nothing."""
    from harps_dist.formats.folders import passed_over, passed_over_line

    taken, counts = [Path(item.where) for item in items], Counter[str]()
    for folder in {Path(given) for given in map(str, inputs) if os.path.isdir(given)}:
        if not any((folder / name).is_file() for name in (MANIFEST, ZARR)):
            counts += passed_over(folder, taken)
    return passed_over_line(counts)


def _expanded(given: str) -> Iterator[Item | Refusal]:
    path = Path(given)
    if "://" in given or (path / MANIFEST).is_file():
        yield from _of_release(given)
    elif (path / ZARR).is_file():
        yield from _of_archive(given)
    elif os.path.lexists(path):
        yield from _of_folder(path)
    elif _PATTERN & set(given):
        matches = sorted(glob.glob(os.path.expanduser(given), recursive=True))
        if not matches:
            raise ConfigError(f"no file or folder matches {printable(given)}. Check the pattern.")
        for match in matches:
            yield from _expanded(match)
    else:
        raise ConfigError(
            f"there is nothing at {printable(given)}. Give FITS files, folders, patterns, an archive or a release."
        )


def _of_folder(path: Path) -> Iterator[Item | Refusal]:
    from harps_dist.formats.packing import SUFFIXES
    from harps_dist.formats.readers import find_spectra
    from harps_dist.formats.records import Reason, Refusal

    found = find_spectra(path) if path.is_dir() else [path]
    for file in found:
        try:
            state = file.stat()
            version = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:  # a link that leads nowhere or in a circle: reading it says so
            version = "unreadable"
        yield Item(str(file), f"{printable(os.path.realpath(file))} {version}")
    misnamed = [Path(top, name) for top, names, _ in os.walk(path) for name in names if name.lower().endswith(SUFFIXES)]
    for folder in [path, *misnamed] if path.name.lower().endswith(SUFFIXES) and path.is_dir() else misnamed:
        if not any(folder in file.parents for file in found):
            yield Refusal(printable(folder), Reason.NOT_FITS, "expected a file, got a directory")


def _of_archive(given: str) -> Iterator[Item]:
    from harps_dist.formats.standing import standing

    archive = _archive(given)
    keys, pipelines = (archive.column("real", name) for name in ("key", "pipeline"))
    for row in standing(archive).rows:
        yield Item(given, f"{os.path.realpath(given)} {keys[row]} {pipelines[row]}", int(row))


def _of_release(given: str) -> Iterator[Item]:
    release = _release(given)
    for row in release.index.rows("real"):
        index = release.index
        yield Item(given, f"{os.path.abspath(given)} {index['key'][row]} {index['pipeline'][row]}", int(row))


@lru_cache(4)
def _archive(path: str) -> Archive:
    from harps_dist.formats.archive import Archive

    return Archive(Path(path))


@lru_cache(4)
def _release(location: str) -> Release:
    return Release(location)


@cache
def _column(path: str, name: str) -> np.ndarray:
    return _archive(path).column("real", name)


def read_item(item: Item, grid: Grid, errors: bool = False) -> Observed | Refusal:
    """Read a spectrum, with the errors of its pixels or without, and bring it onto the grid; a Refusal where it cannot
    be used, whatever is wrong with it."""
    from harps_dist.formats.records import Reason, refusing

    return refusing(item.name, Reason.NOT_FITS, lambda: _read_item(item, grid, errors))


def _read_item(item: Item, grid: Grid, errors: bool) -> Observed | Refusal:
    from harps_dist.formats.records import Refusal

    found = _read(item, grid, errors)
    if isinstance(found, Refusal):
        return found
    columns, prepared = found
    if isinstance(prepared, Refusal):
        return Refusal(item.name, prepared.reason, prepared.detail)
    noise = photon_noise(prepared.standardised[grid.valid])
    sigma = _sigma(prepared, grid) if errors else None
    return Observed(columns, prepared.standardised, prepared.coverage, noise, prepared.broken, sigma)


def _sigma(prepared: Prepared, grid: Grid) -> np.ndarray:
    """Errors of a spectrum as `Observed.sigma` has them: those of its file, else what its own noise shows."""
    sigma = np.full(grid.length, np.nan, np.float32)
    sigma[grid.valid] = photon_sigma(prepared.standardised[grid.valid])
    if prepared.sigma is not None:
        known = np.isfinite(prepared.sigma) & (prepared.sigma > 0)
        sigma = np.where(known, prepared.sigma / np.nanmedian(prepared.flux), sigma)
    return np.where(np.isfinite(prepared.flux), sigma, np.float32(np.nan))


def _read(item: Item, grid: Grid, errors: bool) -> tuple[dict[str, Any], Prepared | Refusal] | Refusal:
    """What is known of a spectrum, and the spectrum on the grid."""
    from harps_dist.formats.prepare import prepare_flux
    from harps_dist.formats.records import Reason, Refusal

    if item.row is None:
        return _read_file(item, grid, errors)
    try:
        if "://" in item.where or (Path(item.where) / MANIFEST).is_file():
            release, broken = _release(item.where), False  # which none that is broken is in
            columns, flux, wider = _release_row(release, item.row), release.array(item.row), release.grid
        else:
            archive, broken = _archive(item.where), bool(_column(item.where, "flag")[item.row])
            columns, flux = _archive_row(item.where, item.row), archive.data("real", item.row)
            wider = archive.grid
    except HarpsDistError as error:  # of one damaged row
        return Refusal(item.name, Reason.CHECKSUM, str(error))
    return columns, prepare_flux(flux[grid.within(wider)], grid, item.name, LEAST_COVERAGE, broken)


def _read_file(item: Item, grid: Grid, errors: bool) -> tuple[dict[str, Any], Prepared | Refusal] | Refusal:
    from harps_dist.formats.prepare import prepare
    from harps_dist.formats.readers import read_spectrum
    from harps_dist.formats.records import Refusal

    record = read_spectrum(Path(item.where))
    if isinstance(record, Refusal):
        return Refusal(item.name, record.reason, record.detail)
    with open_regular(Path(item.where)) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    columns = {
        "dp_id": record.dp_id,
        "object": record.object,
        "ra": record.ra_deg,
        "dec": record.dec_deg,
        "mjd": record.mjd_obs,
        "exptime": record.exptime_s,
        "snr": record.snr,
        "berv_header": record.berv_kms,
        "airmass_header": record.airmass,
        "prog_id": record.prog_id,
        "origin": record.origin,
        "simulated": record.simulated,
        "sha256": sha256,
    }
    return columns, prepare(record, grid, LEAST_COVERAGE, errors=errors)


def _archive_row(path: str, row: int) -> dict[str, Any]:
    same = ("object", "ra", "dec", "mjd", "exptime", "snr", "prog_id", "origin", "simulated")
    names = {"dp_id": "key", "berv_header": "berv", "airmass_header": "airmass"} | {name: name for name in same}
    return {name: _column(path, of_archive)[row] for name, of_archive in names.items()} | {"sha256": ""}


def _release_row(release: Release, row: int) -> dict[str, Any]:
    """A release knows less of a spectrum than its archive; what it does not know is missing."""
    index = release.index
    columns: dict[str, Any] = {name: np.nan if OBSERVED[name].unit else "" for name in OBSERVED if name != "file"}
    columns |= {"dp_id": index["key"][row].removeprefix("real-")}
    columns |= {name: index[name][row] for name in ("object", "origin", "simulated")}
    columns |= {name: float(index[name][row]) for name in ("ra", "dec", "mjd")}
    return columns | {
        "snr": float(index["snr"][row]),
        "berv_header": float(index["berv"][row]),
        "airmass_header": float(index["airmass"][row]),
    }


def duplicate(item: Item, dp_id: str, first: str) -> Refusal:
    """Why a spectrum has no row that was met before."""
    from harps_dist.formats.records import Reason, Refusal

    return Refusal(item.name, Reason.DUPLICATE, f"data product {dp_id} has a row already, from {first}")


class _Items(Dataset):
    def __init__(self, items: Sequence[Item], grid: Grid, errors: bool):
        self._items, self._grid, self._errors = items, grid, errors

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Observed | Refusal:
        return read_item(self._items[number], self._grid, self._errors)


def _as_it_is(sample: Any) -> Any:
    return sample


def read_items(items: Sequence[Item], grid: Grid, workers: int, errors: bool = False) -> Iterator[Observed | Refusal]:
    """Read spectra in their order, ahead by so many processes (0: in this one); errors: as for `read_item`."""
    loader: DataLoader = DataLoader(
        _Items(items, grid, errors),
        batch_size=None,
        shuffle=False,
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    return _started(loader)


def _started(loader: DataLoader) -> Iterator:
    """Start a loader's processes deaf to SIGUSR1, which asks all processes of a job to stop: the parent answers it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # what is blocked here stays so in children
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
