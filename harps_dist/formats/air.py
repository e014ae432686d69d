"""Whether a spectrum's wavelengths are in air. It is never guessed: in vacuum they are 83 km/s off.

Evidence is what a file says of its wavelengths; else the pipeline that made it, for the HARPS DRS works in air and the
newer pipeline in vacuum; else where the gap between the detectors lies.
"""

from __future__ import annotations

import math

import numpy as np

from harps_dist.formats.headers import Header
from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.instrument import Instrument

GAP_VACUUM_SHIFT_AA = 1.48  # redward, at HARPS's gap; a missing BERV moves it by 0.57 Å at most
_EXPECTED = "expected wavelengths that are shown to be in air"


def require_air(
    instrument: Instrument,
    primary: Header,
    ucd: str,
    kind: str,
    wave_aa: np.ndarray,
    flux: np.ndarray,
    berv_kms: float,
) -> None:
    """Refuse a spectrum unless its wavelengths are shown to be in air.

    instrument: whose file it is. primary: header of HDU 0. ucd: of the column of wavelengths, '' for an image. kind:
    CTYPE1 of an image, '' for a table. wave_aa, flux: (n,). Raises RefusedError with Reason.VACUUM.
    """
    gap = instrument.gap_edges_aa
    shift_aa = _gap_shift(gap, wave_aa, flux, berv_kms) if gap else math.nan
    gap_in_air = abs(shift_aa) < GAP_VACUUM_SHIFT_AA / 2  # not where there is no gap
    if gap and abs(shift_aa - GAP_VACUUM_SHIFT_AA) <= GAP_VACUUM_SHIFT_AA / 2:
        where = f"got it {shift_aa:.2f} Angstrom redward"
        raise RefusedError(Reason.VACUUM, f"expected the detector gap at {gap[0]} Angstrom (air), {where}")
    ucd, kind, medium = ucd.lower(), kind.upper(), primary.text("AIRORVAC").lower()
    says_vacuum = kind.startswith(("WAVE", "VAC")) or medium.startswith("vac")
    require(not says_vacuum, Reason.VACUUM, f"{_EXPECTED}, got CTYPE1 = {kind!r}, AIRORVAC = {medium!r} (vacuum)")
    if "obs.atmos" in ucd or kind.startswith("AWAV") or medium == "air":
        return
    # ESO's rule is 'em.wl' for vacuum and 'em.wl;obs.atmos' for air, but products of the HARPS DRS, whose
    # s1d is in air, carry a bare 'em.wl'. 'em.wl;meta.main' is the newer pipeline's vacuum.
    require(ucd in ("", "em.wl"), Reason.VACUUM, f"{_EXPECTED}, got UCD {ucd!r}, which is not 'em.wl;obs.atmos'")
    known = instrument.pipelines_in_air
    made_by = primary.text("ESO DRS VERSION", "PROCSOFT")
    newer = primary.text("ESO PRO REC1 PIPE ID", "ESO PRO REC2 PIPE ID")
    detail = f"{_EXPECTED}, got a product of {newer!r}, whose wavelengths are in vacuum unless it says otherwise"
    require(not newer or newer.startswith(known), Reason.VACUUM, detail)
    detail = (
        f"{_EXPECTED}, got no UCD 'em.wl;obs.atmos', no CTYPE1 = 'AWAV', no detector gap to tell it from, and a "
        f"product of {made_by or 'no pipeline'!r}, which is not the {instrument.keyword} DRS"
    )
    require(made_by.startswith(known) or gap_in_air, Reason.VACUUM, detail)


def _gap_shift(gap_aa: tuple[float, float], wave_aa: np.ndarray, flux: np.ndarray, berv_kms: float) -> float:
    """How far redward of its place in air the detector gap begins [Å]; NaN where it is filled or cut out."""
    empty = ~(np.abs(flux) > 0) & (wave_aa > gap_aa[0] - 10) & (wave_aa < gap_aa[1] + 10)
    index = np.flatnonzero(empty)
    gap = max(np.split(index, np.flatnonzero(np.diff(index) > 1) + 1), key=len)
    width_aa = wave_aa[gap[-1]] - wave_aa[gap[0]] if len(gap) else 0.0
    if abs(width_aa - (gap_aa[1] - gap_aa[0])) > 0.2:
        return float("nan")
    doppler = 1.0 + (berv_kms if np.isfinite(berv_kms) else 0.0) / C_KMS
    return float(wave_aa[gap[0]] / doppler - gap_aa[0])
