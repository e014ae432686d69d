"""Whose spectrum a file holds: an instrument that is known, its fibre A, a star. What cannot be shown is refused.

Neighbours look alike: CORALIE's s1d has the same form and no INSTRUME, ESPRESSO runs the same pipeline, and
fibre B holds sky or lamp. So a missing card is not agreement: without INSTRUME the pipeline or the exposure's name
must name the instrument, and nothing may name another.

Tested in tests/unit/test_belonging.py.
"""

from __future__ import annotations

import re

from harps_dist.formats.headers import Header
from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.spectra.instrument import EGGS, HARPS, INSTRUMENTS, Instrument, instrument_of

NEIGHBOURS = ("CORALIE", "ELODIE", "ESPRE", "ESPRESSO", "FEROS", "HARPN", "NIRPS", "SOPHIE", "UVES", "XSHOO")

_EXPOSURE = re.compile(r"(?:^|r\.|ADP\.)([A-Z][A-Z0-9]{3,})\.\d{4}-\d\d-\d\d")  # 'r.HARPS.2018-09-02T03_29_21.872…'
_VERSION = re.compile(r"([A-Z]+)_\d")  # 'CORALIE_3.3'
_FIBRE_B = re.compile(r"(?:s1d|s2d|e2ds|ccf|bis|blaze|wave|loco)\w*?_b(?![a-z0-9])", re.IGNORECASE)
_FIBRE_A = re.compile(r"(?:s1d|blaze)\w*?_a(?![a-z0-9])", re.IGNORECASE)
_NAME_ENDS_IN_B = re.compile(r"_B(?:\.[a-z]+)*$")
_OF_FIBRE = ("ESO DRS BLAZE FILE", "ESO DRS CAL LOC FILE", "ESO DRS CAL TH FILE", "ESO PRO CATG", "ORIGFILE", "TITLE")
_STARS = ("STAR", "OBJECT", "STD", "FLUX", "SUN", "SCIENCE")  # how ESO DPR TYPE begins, of fibre A
_NO_STARS = {"SKY", "DARK", "BIAS", "FLAT", "LAMP", "WAVE", "THAR", "TUN", "FP", "LFC", "ORDERDEF", "CONTAM", "LED"}
_TELESCOPES = {"HARPS": ("ESO-3.6", "ESO-3P6", "ESO 3.6", "3.6"), "HARPN": ("TNG",)}  # by INSTRUME, as spelt


def belonging(header: Header, source: str) -> Instrument:
    """Whose spectrum of a star the file holds.

    header: of HDU 0. source: the file's name. Raises RefusedError, which names what else it is, or what does not show
    it.
    """
    instrument = _instrument(header, source)
    category, kind = header.text("ESO DPR CATG"), header.text("ESO DPR TYPE")
    require(category in ("", "SCIENCE"), Reason.NOT_SCIENCE, f"expected ESO DPR CATG = 'SCIENCE', got {category!r}")
    known = " or ".join(_STARS)
    detail = f"expected a star in fibre A, ESO DPR TYPE = {known}, got {kind!r}"
    require(not kind or _first_word(kind) in _STARS, Reason.NOT_SCIENCE, detail)
    for key in ("OBJECT", "ESO OBS TARG NAME"):
        name = header.text(key)
        require(_first_word(name) not in _NO_STARS, Reason.NOT_SCIENCE, f"expected a star, got {key} = {name!r}")
    says = {key: header.text(key) for key in _OF_FIBRE}
    shown_a = any(_FIBRE_A.search(value) for value in says.values())  # then 'alpha_Cen_B.fits' is a star's name
    says["its name"] = "" if shown_a and not _FIBRE_B.search(source) else source
    for where, value in says.items():
        detail = f"expected fibre A (the star), got fibre B (sky or lamp) by {where}, {value!r}"
        require(not is_fibre_b(value), Reason.WRONG_FIBRE, detail)
    return instrument


def is_fibre_b(name: str) -> bool:
    """Whether the name of a file, or of a kind of product, says that it is of the fibre on sky or lamp."""
    return bool(_FIBRE_B.search(name) or _NAME_ENDS_IN_B.search(name))


def _instrument(header: Header, source: str) -> Instrument:
    keyword = header.text("INSTRUME")
    says = {"INSTRUME": keyword, "ESO OBS INSTRUMENT": header.text("ESO OBS INSTRUMENT")}
    for key in ("ESO DRS VERSION", "PROCSOFT"):
        says[key] = _of_version(header.text(key))
    for key in ("ORIGFILE", "ARCFILE", "PROV1"):
        says[key] = _of_exposure(header.text(key))
    says["the file's name"] = _of_exposure(source)
    if header.has_prefix("TNG "):
        says["keywords of the TNG"] = "HARPN"
    known = " or ".join(repr(one) for one in dict.fromkeys(one.keyword for one in INSTRUMENTS.values()))
    for where, name in says.items():
        detail = f"expected {where} = {known}, got {name!r}"
        require(not name or instrument_of(name), Reason.WRONG_INSTRUMENT, detail)
    names = {where: name for where, name in says.items() if name}
    detail = f"expected a spectrum that is shown to be of {known}, got no INSTRUME, no pipeline and no exposure of it"
    require(names, Reason.WRONG_INSTRUMENT, detail)
    different = "; ".join(f"{where}: {name}" for where, name in names.items())
    require(len(set(names.values())) == 1, Reason.WRONG_INSTRUMENT, f"expected one instrument, got {different}")
    instrument = instrument_of(next(iter(names.values())))
    if instrument is None:
        raise RefusedError(Reason.WRONG_INSTRUMENT, f"expected {known}, got {different}")
    telescope, places = header.text("TELESCOP").upper(), _TELESCOPES.get(instrument.keyword, ("",))
    detail = f"expected TELESCOP = {places[0]!r}, where {instrument.keyword} stands, got {telescope!r}"
    require(not telescope or telescope.startswith(places), Reason.WRONG_INSTRUMENT, detail)
    if instrument is not HARPS:
        return instrument
    mode, made_by = header.text("ESO INS MODE"), header.text("ESO DRS VERSION", "PROCSOFT")
    coarse = header.number("SPEC_RES") < (EGGS.resolution + HARPS.resolution) / 2  # of Phase 3
    return EGGS if coarse or mode.upper().startswith("EGGS") or made_by.startswith("EGGS_") else HARPS


def _of_version(version: str) -> str:
    """The instrument whose DRS made a product, '' where its version does not say."""
    found = _VERSION.match(version)
    return HARPS.keyword if found and found[1] == "EGGS" else _known(found[1] if found else "")


def _of_exposure(name: str) -> str:
    """The instrument in the name of an exposure's file, '' where it is none."""
    found = _EXPOSURE.search(name)
    return _known(found[1] if found else "")


def _known(name: str) -> str:
    """A name that is an instrument's, else ''; files are called by anything."""
    return name if name in NEIGHBOURS or instrument_of(name) else ""


def _first_word(text: str) -> str:
    return text.partition(",")[0].strip().upper()
