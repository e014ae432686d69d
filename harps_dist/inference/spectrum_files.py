"""Simulated spectra as files, one a spectrum: FITS in the form of ESO Phase 3, tables, a figure.

Tested in tests/unit/test_simulate.py.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist import __version__
from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.inference.simulated import Simulated
from harps_dist.ownership import (
    KEY,
    OutputKind,
    check,
    claimed,
    ecsv_meta,
    first_line,
    json_file,
    parquet_meta,
    png_file,
)
from harps_dist.spectra.labels import LABEL

if TYPE_CHECKING:
    from astropy.table import Table

ENDINGS = (".fits", ".png", ".csv", ".ecsv", ".parquet")
CONAD = 1.42  # electrons per ADU
UNNOISY_MEDIAN_ADU = 10_000.0  # of a spectrum without noise; with noise it is what the S/N takes


_SIMULATED = "drawn by a neural network"
_HEADERS = ("wave_aa,flux", "wave_aa,flux,sigma")  # of CSV
NOTES = json_file("description of a simulated spectrum", "-o", parents=True)
FIGURE = png_file("figure of a simulated spectrum", "-o")


def _is_spectrum(path: Path) -> bool:
    ending = path.suffix.lower()
    if ending == ".png":
        return FIGURE.ours(path)
    if ending == ".csv":
        return first_line(path) in _HEADERS and NOTES.ours(_notes_path(path))
    if ending == ".fits":
        from astropy.io import fits

        header = fits.getheader(path)
        return header["ORIGIN"] == "SIMULATED" and "SIM MODEL ID" in header
    meta = ecsv_meta(path) if ending == ".ecsv" else json.loads(parquet_meta(path)[KEY])
    return meta["simulated"].startswith(_SIMULATED) and "model_id" in meta


SPECTRUM = OutputKind("simulated spectrum", "-o", _is_spectrum)


def outputs_of(path: Path) -> list[tuple[Path, OutputKind]]:
    """All that is written for a spectrum."""
    return [(path, SPECTRUM), *([(_notes_path(path), NOTES)] if path.suffix.lower() == ".csv" else [])]


def check_spectrum(path: Path) -> None:
    """Raises ConfigError or OutputError where no spectrum can be written there."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"expected a name that ends in one of {', '.join(ENDINGS)}, got {path.name!r}.")
    for output in outputs_of(path):
        check(*output)


def _notes_path(path: Path) -> Path:
    """What a CSV has no room for."""
    return path.with_name(f"{path.name}.json")


def write_spectrum(path: Path, simulated: Simulated, row: int = 0) -> None:
    """Write one spectrum in the form that the name's ending says, one of ENDINGS.

    CSV has no room for what it is: that goes into a file beside it that ends in .csv.json. Raises ConfigError for
    another ending, OutputError where something else is there, or another process writes it.
    """
    check_spectrum(path)
    writers = {".fits": write_fits, ".png": _write_figure, ".csv": _write_csv, ".ecsv": _write_ecsv}
    writers[".parquet"] = _write_parquet
    first, *beside = outputs_of(path)
    with claimed(*first, *beside):
        writers[path.suffix.lower()](path, simulated, row)


def write_fits(path: Path, simulated: Simulated, row: int = 0) -> None:
    """Write one spectrum as an ESO Phase 3 product of HARPS, which our readers and `specutils` read.

    Flux is in ADU, with the median that photon noise of the given S/N takes; ERR holds the noise where there is some,
    and NaN as HARPS otherwise. The detector gap is zero as in the products. The header says what it is, and by which
    model.
    """
    from harps_dist.formats.write_product import write_product

    facts, flux = simulated.facts(row), simulated.flux[row]
    noisy = np.isfinite(facts["snr"])
    median = facts["snr"] ** 2 / CONAD if noisy else UNNOISY_MEDIAN_ADU
    known = np.flatnonzero(np.isfinite(flux))
    inside = slice(known[0], known[-1] + 1)
    wave_aa, adu = simulated.wave_aa[inside], np.nan_to_num(flux[inside] * median)
    table = {
        "VOCLASS": ("SPECTRUM v1.0", "VO Data Model"),
        "TITLE": f"{ascii_text(facts['object'])}_simulated",
        "OBJECT": (ascii_text(facts["object"]), "Object"),
        "NELEM": (wave_aa.size, "Length of the data arrays"),
        "TUTYP1": "Spectrum.Data.SpectralAxis.Value",
        "TUCD1": "em.wl;obs.atmos",
        "TUNIT1": "Angstrom",
        "TDMIN1": float(wave_aa[0]),
        "TDMAX1": float(wave_aa[-1]),
        "TUTYP2": "Spectrum.Data.FluxAxis.Value",
        "TUCD2": "phot.flux.density;em.wl;stat.uncalib",
        "TUNIT2": "adu",
        "TUTYP3": "Spectrum.Data.FluxAxis.Accuracy.StatError",
        "TUCD3": "stat.error;phot.flux.density;em.wl;stat.uncalib",
        "TUNIT3": "adu",
    }
    err = simulated.sigma[row][inside] * median
    write_product(path, _primary_cards(facts, wave_aa, median), table, wave_aa, adu, err, facts["model_id"][:12])


def _primary_cards(facts: dict[str, Any], wave_aa: np.ndarray, median: float) -> dict[str, Any]:
    cards: dict[str, Any] = {
        "ORIGIN": ("SIMULATED", "drawn by a neural network"),
        "INSTRUME": (facts["instrument"], "Instrument that is simulated"),
        "OBJECT": (ascii_text(facts["object"]), "Object"),
        "SPECSYS": ("BARYCENT", "Reference frame"),
        "PROCSOFT": (f"harps_dist {__version__}", "Software that made this"),
        "PRODCATG": ("SCIENCE.SPECTRUM", "Data product category"),
        "FLUXCAL": ("UNCALIBRATED", "Type of flux calibration"),
        "CONTNORM": (False, "T if normalised to the continuum"),
        "WAVELMIN": (wave_aa[0] / 10, "[nm] Minimum wavelength"),
        "WAVELMAX": (wave_aa[-1] / 10, "[nm] Maximum wavelength"),
        "SPEC_BIN": (round(float(wave_aa[1] - wave_aa[0]), 9) / 10, "[nm] Wavelength bin size"),
        "HIERARCH ESO DPR CATG": ("SCIENCE", "Category of what is simulated"),
    }
    if np.isfinite(facts["snr"]):
        cards["SNR"] = (facts["snr"], "Signal to noise at the median flux")
    if "berv" in facts:
        cards["HIERARCH ESO DRS BERV"] = (facts["berv"], "Barycentric Earth Radial Velocity")
    if "airmass" in facts:
        cards |= {f"HIERARCH ESO TEL AIRM {end}": (facts["airmass"], f"Airmass at {end}") for end in ("START", "END")}
    made_of = {name: value for name, value in facts.items() if name in LABEL or name[1:].isdigit()}
    for name, value in made_of.items():
        unit = f"[{LABEL[name].unit}] " if name in LABEL and LABEL[name].unit else ""
        what = "label" if name in LABEL else "unknown factor, in standard deviations"
        cards[f"HIERARCH SIM {name.upper()}"] = (value, f"{unit}{what}")
    return cards | {
        "HIERARCH SIM MODEL": (ascii_text(facts["model"]), "Model that drew it"),
        "HIERARCH SIM MODEL ID": (facts["model_id"][:32], "sha256"),
        "HIERARCH SIM SEED": (facts["seed"], "Seed of what was drawn"),
        "HIERARCH SIM MEDIAN": (median, "[adu] FLUX over this is in medians"),
    }


def ascii_text(text: str) -> str:
    """Text as FITS can hold it: accents dropped, Greek letters spelt out, other characters a question mark."""
    plain = unicodedata.normalize("NFKD", "".join(map(_spelt, unicodedata.normalize("NFC", text))))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in plain)


def _spelt(letter: str) -> str:
    greek = re.match(r"GREEK (?:SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)", unicodedata.name(letter, ""))
    return greek[1].lower() if greek else letter


def _table(simulated: Simulated, row: int) -> Table:
    """Wavelength and flux with their units, and what they are in `meta`."""
    from astropy import units
    from astropy.table import Table

    table = Table({"wave_aa": np.round(simulated.wave_aa, 2), "flux": simulated.flux[row]})
    table["wave_aa"].unit = units.AA
    if np.isfinite(simulated.sigma[row]).any():
        table["sigma"] = simulated.sigma[row]
    table.meta = simulated.facts(row) | {
        "medium": "air",
        "frame": "barycentric",
        "flux": "in medians of the flux",
        "simulated": f"{_SIMULATED}, harps_dist {__version__}; not an observation",
    }
    return table


def _write_csv(path: Path, simulated: Simulated, row: int) -> None:
    table = _table(simulated, row)
    with atomic_write(_notes_path(path)) as aside:
        notes = {KEY: NOTES.name, **table.meta}
        aside.write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(path) as aside:
        table.write(aside, format="ascii.csv")


def _write_ecsv(path: Path, simulated: Simulated, row: int) -> None:
    with atomic_write(path) as aside:
        _table(simulated, row).write(aside, format="ascii.ecsv")


def _write_parquet(path: Path, simulated: Simulated, row: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _table(simulated, row)
    columns = pa.table({name: np.asarray(table[name]) for name in table.colnames})
    notes = json.dumps(dict(table.meta), ensure_ascii=False).encode()
    with atomic_write(path) as aside:
        pq.write_table(columns.replace_schema_metadata({"harps_dist": notes}), aside)


def _write_figure(path: Path, simulated: Simulated, row: int) -> None:
    from harps_dist.inference.figures import simulated_figure

    facts = simulated.facts(row)
    labels = ", ".join(f"{name} {facts[name]:.4g} {LABEL[name].unit}".rstrip() for name in simulated.label_names)
    noise = f"S/N {facts['snr']:.0f}" if np.isfinite(facts["snr"]) else "without noise"
    title = f"{facts['object'] or 'simulated'} by {facts['model']}: {labels}; {noise}"
    simulated_figure(path, simulated.wave_aa, simulated.flux[row], title, FIGURE)
