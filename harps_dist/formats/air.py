"""A spectrum's wavelengths in air. Their medium is never guessed: in vacuum they are 83 km/s off.

What a file says of its wavelengths (column, UCD, keyword, the pipeline that made it) and where the gap between the
detectors lies must agree. Where nothing is said, telluric lines decide, if they do so without doubt; where something is
said, they must not contradict it.

Tested in tests/unit/test_air.py.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from harps_dist.formats.headers import Header
from harps_dist.formats.layouts import LINEAR, Axis
from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.formats.telluric import ACCURACY_KMS, MEDIUM_KMS, telluric_shift
from harps_dist.spectra.instrument import Instrument
from harps_dist.spectra.medium import vacuum_to_air
from harps_dist.spectra.quantities import C_KMS

Medium = Literal["air", "vacuum"]
GAP_VACUUM_SHIFT_AA = 1.48  # redward, at HARPS's gap; a missing BERV moves it by 0.57 Å at most
FORMULA_KMS = 5.0  # by which formulae of the refractive index, and roundings of it, may differ
LARGEST_BERV_KMS = 33.0
_EXPECTED = "expected wavelengths that are shown to be in air or in vacuum"


def in_air(
    instrument: Instrument, primary: Header, axes: tuple[Axis, ...], flux: np.ndarray, berv_kms: float
) -> np.ndarray:
    """The wavelengths (n,) [Å] of a spectrum in air, float64.

    Those of its air column where there is one, else those that are in air, else vacuum ones brought to air by
    `vacuum_to_air` (Birch & Downs 1994). instrument: whose file it is. primary: header of HDU 0. axes: its
    wavelengths, of air and vacuum columns those in air last. flux: (n,). berv_kms: NaN where not known.
    Raises RefusedError with Reason.VACUUM where the medium is not shown or what shows it disagrees, and with
    Reason.WRONG_FRAME where telluric lines stand still.
    """
    axis = axes[-1]
    if len(axes) == 2:
        apart = float(np.nanmax(np.abs(axis.wave_aa / vacuum_to_air(axes[0].wave_aa) - 1)) * C_KMS)
        detail = f"expected {axes[0].name} in vacuum and {axis.name} in air, got them {apart:.3g} km/s from that"
        require(apart < FORMULA_KMS, Reason.VACUUM, detail)
    if axis.kind == LINEAR:
        medium = _of_rewritten(primary, axis.wave_aa, flux, berv_kms)
        return axis.wave_aa if medium == "air" else vacuum_to_air(axis.wave_aa)
    said = _said(instrument, primary, axis, alone=len(axes) == 1)
    said |= _gap_says(instrument, axis.wave_aa, flux, berv_kms)
    media = set(said.values())
    words = ", ".join(f"{what} ({medium})" for what, medium in said.items())
    if len(media) > 1:
        raise RefusedError(Reason.VACUUM, f"expected wavelengths in one medium, air or vacuum, got {words}")
    medium = _by_tellurics(axis.wave_aa, flux, berv_kms, media.pop() if media else None, words)
    return axis.wave_aa if medium == "air" else vacuum_to_air(axis.wave_aa)


def _said(instrument: Instrument, primary: Header, axis: Axis, alone: bool) -> dict[str, Medium]:
    """What a file says of the medium: by what, and which. alone: whether it has no other wavelengths."""
    said: dict[str, Medium] = {}
    name, ucd, kind, keyword = axis.name, axis.ucd.lower(), axis.kind, primary.text("AIRORVAC").lower()
    known = instrument.pipelines_in_air
    newer = primary.text("ESO PRO REC1 PIPE ID", "ESO PRO REC2 PIPE ID")
    newer = "" if newer.startswith(known) else newer
    made_by = primary.text("ESO DRS VERSION", "PROCSOFT")
    if name.endswith("_AIR"):
        said[f"column {name}"] = "air"
    elif "VAC" in name or (name == "WAVELENGTH" and newer):  # 'wavelength' of S1D_A is the newer pipeline's vacuum
        said[f"column {name}"] = "vacuum"
    if "obs.atmos" in ucd:
        said[f"UCD {ucd!r}"] = "air"
    elif ucd == "em.wl;meta.main" or (ucd == "em.wl" and newer):
        # ESO's rule is 'em.wl' for vacuum, but products of the HARPS DRS, whose s1d is in air, carry it too
        said[f"UCD {ucd!r}"] = "vacuum"
    require(ucd.startswith("em.wl") or not ucd, Reason.VACUUM, f"{_EXPECTED}, got UCD {ucd!r}, which is not 'em.wl'")
    if kind.startswith(("AWAV", "WAVE", "VAC")):
        said[f"CTYPE1 {kind!r}"] = "air" if kind.startswith("AWAV") else "vacuum"
    if alone and keyword.startswith(("air", "vac")):
        said[f"AIRORVAC {keyword!r}"] = "air" if keyword.startswith("air") else "vacuum"
    if alone and not newer and made_by.startswith(known):
        said[f"pipeline {made_by!r}"] = "air"
    return said


def _gap_says(instrument: Instrument, wave_aa: np.ndarray, flux: np.ndarray, berv_kms: float) -> dict[str, Medium]:
    gap = instrument.gap_edges_aa
    shift_aa = _gap_shift(gap, wave_aa, flux, berv_kms) if gap else math.nan
    if gap and abs(shift_aa) < GAP_VACUUM_SHIFT_AA / 2:
        return {f"the detector gap at {gap[0]} Angstrom": "air"}
    if gap and abs(shift_aa - GAP_VACUUM_SHIFT_AA) <= GAP_VACUUM_SHIFT_AA / 2:
        return {f"the detector gap {shift_aa:.2f} Angstrom redward of its {gap[0]} in air": "vacuum"}
    return {}


def _by_tellurics(wave_aa: np.ndarray, flux: np.ndarray, berv_kms: float, said: Medium | None, words: str) -> Medium:
    """The medium that is said, if telluric lines do not contradict it, else the one that they show without doubt."""
    shift = telluric_shift(wave_aa, flux)
    if math.isnan(shift):
        detail = f"{_EXPECTED}, got no column, UCD or keyword that says so, no detector gap and no telluric lines"
        return _or_refused(said, f"{detail} to tell it from")
    places: dict[Medium, float] = {"air": 0.0, "vacuum": MEDIUM_KMS}
    seen = f"telluric lines {shift:.1f} km/s redward of their places in air, with a BERV of {berv_kms:.1f} km/s"
    if math.isnan(berv_kms):
        near = [medium for medium, place in places.items() if abs(shift - place) <= LARGEST_BERV_KMS]
        detail = f"expected wavelengths in one medium, got {words}, but {seen}"
        require(not said or not near or said in near, Reason.VACUUM, detail)
        return _or_refused(said, f"{_EXPECTED}, got {seen}: without it they do not tell for certain")
    # a line at rest in the observer's frame stands redward by BERV in the barycentric one
    for medium, place in places.items():
        if abs(shift - place - berv_kms) <= ACCURACY_KMS:
            detail = f"expected wavelengths in one medium, got {words}, but {seen}, as in {medium}"
            require(said in (None, medium), Reason.VACUUM, detail)
            return medium
    if said and abs(shift - places[said] - berv_kms) <= 2 * ACCURACY_KMS:
        return said
    for medium, place in places.items():
        detail = f"expected barycentric wavelengths, got {seen}, as in the observer's frame ({medium})"
        require(abs(shift - place) > ACCURACY_KMS, Reason.WRONG_FRAME, detail)
    if said:  # a drawn spectrum carries the lines along where a velocity is asked for
        return said
    detail = f"expected barycentric wavelengths, got {seen}, as in a frame that is neither, such as the star's"
    raise RefusedError(Reason.WRONG_FRAME, detail)


def _of_rewritten(primary: Header, wave_aa: np.ndarray, flux: np.ndarray, berv_kms: float) -> Medium:
    """The medium of an image that IRAF rewrote, whose cards may be left over from before: telluric lines must show
    it, and the barycentric frame.

    A shift to rest could imitate the other medium, so this is that of the pipeline, unless AIRORVAC names another.
    """
    keyword = primary.text("AIRORVAC").lower()
    newer = "/" in primary.text("ESO PRO REC1 PIPE ID", "ESO DRS VERSION", "PROCSOFT")
    expected: Medium = "vacuum" if keyword.startswith("vac") or (newer and not keyword.startswith("air")) else "air"
    what, remedy = "an image that IRAF or its kin rewrote (CTYPE1 = 'LINEAR')", "Give the file as the archive has it"
    shift = telluric_shift(wave_aa, flux)
    detail = f"expected telluric lines and a BERV that show the frame of {what}, got"
    require(not math.isnan(shift), Reason.WRONG_FRAME, f"{detail} no such lines. {remedy}")
    require(not math.isnan(berv_kms), Reason.WRONG_FRAME, f"{detail} no BERV. {remedy}")
    places: dict[Medium, float] = {"air": 0.0, "vacuum": MEDIUM_KMS}
    frame_kms = shift - places[expected]
    if abs(frame_kms - berv_kms) > ACCURACY_KMS:
        still = abs(frame_kms) <= ACCURACY_KMS
        other = next((medium for medium, place in places.items() if abs(shift - place - berv_kms) <= ACCURACY_KMS), "")
        got = f"another medium ({other})" if other else "the observer's frame" if still else "the star's rest frame"
        seen = f"telluric lines {shift:.1f} km/s redward of their places in air, with a BERV of {berv_kms:.1f} km/s"
        detail = f"expected barycentric wavelengths in {expected}, got {what} with {seen}, as in {got}. {remedy}"
        raise RefusedError(Reason.WRONG_FRAME, detail)
    return expected


def _or_refused(said: Medium | None, detail: str) -> Medium:
    if said is None:
        raise RefusedError(Reason.VACUUM, detail)
    return said


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
