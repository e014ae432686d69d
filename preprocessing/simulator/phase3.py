"""Write a simulated spectrum in the form of an ESO Phase 3 product (ADP) of HARPS, with its keywords.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harps_dist.formats.write_product import write_product

if TYPE_CHECKING:
    from preprocessing.simulator.visits import Visit

MJD_ZERO = datetime(1858, 11, 17)


def write_phase3(
    path: Path, visit: Visit, wave_aa: np.ndarray, flux_adu: np.ndarray, order_snr: dict[int, float]
) -> None:
    """Write one simulated exposure; `write_product` with the keywords of a visit.

    order_snr: S/N by index of the order on the detectors, 0..71 from blue to red.
    """
    primary, table = _primary_cards(visit, wave_aa, order_snr), _table_cards(visit, wave_aa, flux_adu)
    write_product(path, primary, table, wave_aa, flux_adu, stamp=visit.dp_id)


def _mjd(when: datetime) -> float:
    return round((when - MJD_ZERO) / timedelta(days=1), 8)


def _primary_cards(visit: Visit, wave_aa: np.ndarray, order_snr: dict[int, float]) -> dict:
    start = visit.start.isoformat(timespec="milliseconds")
    begin = max(1.0, round(visit.airmass - 0.004, 4))  # the two ends of the exposure, their mean is exact
    cards = {
        "DATE": (start, "Date this file was written"),
        "INSTRUME": ("HARPS", "Instrument used"),
        "RA": (visit.star.ra_deg, "[deg] RA (J2000) pointing"),
        "DEC": (visit.star.dec_deg, "[deg] DEC (J2000) pointing"),
        "EQUINOX": (2000.0, "Standard FK5 (years)"),
        "RADECSYS": ("FK5", "Coordinate reference frame"),
        "EXPTIME": (visit.exptime_s, "Total integration time"),
        "MJD-OBS": (_mjd(visit.start), f"MJD start ({start})"),
        "MJD-END": (_mjd(visit.start + timedelta(seconds=visit.exptime_s)), "[d] End of observation"),
        "DATE-OBS": (start, "Date of observation"),
        "AIRMASS": (visit.airmass, "Averaged air mass"),
        "ORIGIN": ("SIMULATED", "harps_dist simulator; form of an ESO product"),
        "TELESCOP": ("ESO-3.6", "ESO Telescope Name"),
        "SINGLEXP": (True, "T if resulting from single exposure"),
        "PRODLVL": (2, "Product level: 2-science grade"),
        "DISPELEM": ("HARPS Echelle", "Dispersive element name"),
        "SPECSYS": ("BARYCENT", "Reference frame"),
        "OBJECT": (visit.object, "Object"),
        "TEXPTIME": (visit.exptime_s, "[s] Total integration time of all exposures"),
        "PROG_ID": ("000.C-0000(A)", "ESO Programme ID; none, simulated"),
        "PROCSOFT": "HARPS_3.5",
        "OBSTECH": ("ECHELLE", "Observation technique"),
        "PRODCATG": ("SCIENCE.SPECTRUM", "Data product category"),
        "FLUXCAL": ("UNCALIBRATED", "Type of flux calibration"),
        "CONTNORM": (False, "T if normalised to the continuum"),
        "WAVELMIN": (wave_aa[0] / 10, "[nm] Minimum wavelength"),
        "WAVELMAX": (wave_aa[-1] / 10, "[nm] Maximum wavelength"),
        "SPEC_BIN": (0.001, "[nm] Wavelength bin size"),
        "SNR": (round(visit.snr, 3), "Median signal to noise"),
        "SPEC_RES": (115000.0, "Reference spectral resolving power"),
        "GAIN": (1.42, "Conversion from electrons to ADU"),
        "DETRON": (6.0, "Readout noise per output (e-)"),
        "ARCFILE": (f"{visit.dp_id}.fits", "Archive File Name"),
        "ORIGFILE": f"HARPS.{start}_s1d_A_DRS_HARPS_3.5_ESOSDP.fits",
        "PROV1": (f"HARPS.{start}.fits", "Originating file name"),
        "HIERARCH ESO OBS TARG NAME": (visit.object, "OB target name"),
        "HIERARCH ESO DPR CATG": ("SCIENCE", "Observation category"),
        "HIERARCH ESO DPR TYPE": ("STAR,DARK,G2", "Observation type"),
        "HIERARCH ESO TEL AIRM START": (begin, "Airmass at start"),
        "HIERARCH ESO TEL AIRM END": (2 * visit.airmass - begin, "Airmass at end"),
        "HIERARCH ESO TEL TARG RADVEL": (visit.radvel_guess_kms, "Radial velocity"),
        "HIERARCH ESO DRS VERSION": ("HARPS_3.5", "DRS version"),
        "HIERARCH ESO DRS BERV": (visit.berv_kms, "Barycentric Earth Radial Velocity"),
        "HIERARCH ESO DRS CCD CONAD": (1.42, "CCD conv factor [e-/ADU]"),
    }
    for index, snr in order_snr.items():
        cards[f"HIERARCH ESO DRS SPE EXT SN{index}"] = (round(snr, 1), f"S_N order center{index}")
    return cards


def _table_cards(visit: Visit, wave_aa: np.ndarray, flux_adu: np.ndarray) -> dict:
    start = visit.start.isoformat(timespec="milliseconds")
    return {
        "VOCLASS": ("SPECTRUM v1.0", "VO Data Model"),
        "TITLE": f"{visit.object}_HARPS.{start}_s1d_A",
        "OBJECT": (visit.object, "Object"),
        "RA": (visit.star.ra_deg, "[deg] Right ascension"),
        "DEC": (visit.star.dec_deg, "[deg] Declination"),
        "NELEM": (wave_aa.size, "Length of the data arrays"),
        "TUTYP1": "Spectrum.Data.SpectralAxis.Value",
        "TUCD1": "em.wl",  # air all the same: so do the genuine products of the HARPS pipeline
        "TUNIT1": "Angstrom",
        "TDMIN1": float(wave_aa[0]),
        "TDMAX1": float(wave_aa[-1]),
        "TUTYP2": "Spectrum.Data.FluxAxis.Value",
        "TUCD2": "phot.flux.density;em.wl;stat.uncalib",
        "TUNIT2": "adu",
        "TDMIN2": float(np.min(flux_adu)),
        "TDMAX2": float(np.max(flux_adu)),
        "TUTYP3": "Spectrum.Data.FluxAxis.Accuracy.StatError",
        "TUCD3": "stat.error;phot.flux.density;em.wl;stat.uncalib",
        "TUNIT3": "adu",
        "TCOMM3": "Error spectrum not available, filled with NaN",
    }
