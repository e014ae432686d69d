"""What it costs to take spectra into an archive, beside reading the same files with astropy alone, and their bytes.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harps_dist.errors import ConfigError
from harps_dist.formats.readers import find_spectra
from harps_dist.formats.write_product import write_product
from harps_dist.ownership import json_file, write_json
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.medium import vacuum_to_air
from harps_dist.spectra.quantities import C_KMS
from preprocessing.ingest import ingest_spectra

if TYPE_CHECKING:
    from rich.table import Table

_EVEN_AA = np.round(3781.75 + 0.01 * np.arange(313_100), 2)  # of the HARPS DRS, in air
_VACUUM_AA = 3781.0 * np.exp(np.arange(221_700) * 0.819028 / C_KMS)  # of the newer pipeline, in equal steps of velocity


@dataclass(frozen=True)
class IngestCost:
    """form: of the files; files: how many were taken in; megabytes: of one. ingest_s: seconds of one core from a file
    to its row in the archive; astropy_s: to read its header and arrays with astropy alone; bytes_s: to read its bytes;
    peak_mb: most memory of the process."""

    form: str
    files: int
    megabytes: float
    ingest_s: float
    astropy_s: float
    bytes_s: float
    peak_mb: float


def ingest_costs(files: int, grid: str = "harps", spectra: Path | None = None) -> list[IngestCost]:
    """Measure so many made-up files of each form, or those in and below a folder, one core, in a folder that goes away.

    Raises ConfigError where none of the files came in.
    """
    costs = []
    with tempfile.TemporaryDirectory() as name:
        folders = {str(spectra): spectra} if spectra else {form: Path(name) / form for form in FORMS}
        for form, folder in folders.items():
            if not spectra:
                folder.mkdir()
                for number in range(files):
                    FORMS[form](
                        folder / f"HARPS.2020-01-01T00:{number // 60:02}:{number % 60:02}.000_{form}.fits", number
                    )
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:  # whose memory is that of this alone
                costs.append(alone.submit(_measured, folder, form, grid).result())
    return costs


def _cards(number: int) -> dict[str, object]:
    cards = {"INSTRUME": "HARPS", "OBJECT": f"HD {number + 1}", "MJD-OBS": 58849.0 + number, "EXPTIME": 600.0}
    return cards | {"RA": number % 360 + 0.5, "DEC": -20.0, "SNR": 100.0, "SPECSYS": "BARYCENT"}


def _flux(number: int, pixels: int) -> np.ndarray:
    return np.random.default_rng(number).normal(1e4, 1e2, pixels).astype(np.float32)


def _write_adp(path: Path, number: int) -> None:
    primary = _cards(number) | {"PROCSOFT": "HARPS_3.5", "PRODCATG": "SCIENCE.SPECTRUM"}
    table = {"TUCD1": "em.wl;obs.atmos", "TUNIT1": "Angstrom"}
    write_product(path, primary, table, _EVEN_AA, _flux(number, len(_EVEN_AA)), stamp="none")


def _write_s1d(path: Path, number: int) -> None:
    from astropy.io import fits

    image = fits.PrimaryHDU(_flux(number, len(_EVEN_AA)))
    image.header.update(_cards(number) | {"CRVAL1": _EVEN_AA[0], "CDELT1": 0.01, "CRPIX1": 1.0, "CTYPE1": "Angstrom"})
    image.header["HIERARCH ESO DRS VERSION"] = "HARPS_3.5"
    image.writeto(path)


def _write_newer(path: Path, number: int) -> None:
    from astropy.io import fits

    flux = _flux(number, len(_VACUUM_AA))
    values = {"wavelength": _VACUUM_AA, "wavelength_air": vacuum_to_air(_VACUUM_AA), "flux": flux, "error": flux / 100}
    columns = [fits.Column(name, "D", array=value) for name, value in values.items()]
    columns.append(fits.Column("quality", "J", array=np.zeros(len(flux), np.int32)))
    primary = fits.PrimaryHDU()
    primary.header.update(_cards(number))
    primary.header["HIERARCH ESO PRO REC1 PIPE ID"] = "espdr/3.2.5"
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)]).writeto(path)


FORMS: dict[str, Callable[[Path, int], None]] = {"ADP": _write_adp, "s1d_A": _write_s1d, "S1D_A": _write_newer}


def _measured(folder: Path, form: str, grid: str) -> IngestCost:
    paths = find_spectra(folder)
    with tempfile.TemporaryDirectory() as name:
        ingest_spectra(paths[0], Path(name) / "first.zarr", named_grid(grid))  # imports what it needs
        _read_by_astropy(paths[0])
        started = time.process_time()
        report = ingest_spectra(folder, Path(name) / "A.zarr", named_grid(grid))
        taken_in = time.process_time()
    if not report.added:
        raise ConfigError(f"none of {len(paths)} files in {folder} came in: {report.refused[:1]}. Give good spectra.")
    for path in paths:
        _read_by_astropy(path)
    read = time.process_time()
    size = sum(len(path.read_bytes()) for path in paths)
    ended = time.process_time()
    ingest_s, astropy_s, bytes_s = (
        (after - before) / len(paths) for before, after in ((started, taken_in), (taken_in, read), (read, ended))
    )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return IngestCost(form, report.added, size / len(paths) / 1e6, ingest_s, astropy_s, bytes_s, peak_mb)


def _read_by_astropy(path: Path) -> None:
    """Header and arrays of the first two HDUs, as float64 and float32 in the machine's order of bytes."""
    from astropy.io import fits

    with fits.open(path, memmap=False) as hdus:
        dict(hdus[0].header)
        if hdus[0].data is not None:
            np.ascontiguousarray(hdus[0].data, np.float32)
            return
        table = hdus[1].data
        for column in table.names:
            np.ascontiguousarray(table[column], np.float64 if "wave" in column.lower() else np.float32)


COSTS = json_file("costs of taking in spectra", "--json")


def write_costs(costs: Sequence[IngestCost], grid: str, path: Path | None) -> None:
    write_json(path, COSTS, {"grid": grid, "costs": [asdict(cost) for cost in costs]})


def ingest_table(costs: Sequence[IngestCost]) -> Table:
    """Costs of a file as a table for the console."""
    from rich.table import Table

    table = Table("form", "files", "a file", "ingest", "astropy alone", "ratio", "the bytes alone", "memory")
    for cost in costs:
        rates = [f"{1 / max(seconds, 1e-9):,.0f}/s" for seconds in (cost.ingest_s, cost.astropy_s, cost.bytes_s)]
        ratio = f"{cost.ingest_s / max(cost.astropy_s, 1e-9):.1f}"
        values = (cost.form, f"{cost.files}", f"{cost.megabytes:.1f} MB", rates[0], rates[1], ratio, rates[2])
        table.add_row(*values, f"{cost.peak_mb:,.0f} MB")
    table.caption = "files a second and core"
    return table
