"""FITS files as their raw headers promise them, looked at before astropy makes anything of these promises.

The one way into astropy for FITS files of others. A header that asks for a billion columns, or for more data than the
file holds, is refused by its own cards.

Tested in tests/unit/test_hostile_fits.py.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from harps_dist.errors import Interrupted
from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.intake import named

BEGINS = b"SIMPLE  ="
MAX_CARDS = 20_000  # of one header; genuine ones have 3,050 at most
MAX_AXES = 9
MAX_COLUMNS = 999  # the FITS standard's limit
MAX_PIXELS = 10_000_000
PIXEL_BYTES = 16

_BLOCK, _CARD = 2880, 80
_END = b"END".ljust(_CARD)
_WHOLE_NUMBER = re.compile(rb"[+-]?\d{1,18}")
_STRUCTURE = (b"BITPIX  ", b"NAXIS   ", b"PCOUNT  ", b"GCOUNT  ", b"TFIELDS ")
_AXIS = re.compile(rb"NAXIS([1-9]\d{0,2}) *")


@contextmanager
def open_hdus(raw: bytes, count: int = 2, most: int = MAX_PIXELS) -> Iterator[Any]:
    """Open the first HDUs of a FITS file as an astropy HDUList, whose other HDUs are not to be touched.

    raw: the whole file, unpacked. count: HDUs that are looked at, or as many as there are. most: pixels of an image; a
    table may have `PIXEL_BYTES` for each. Raises RefusedError where a header is damaged or promises what cannot be, and
    for whatever astropy raises inside.
    """
    from astropy.io import fits

    check_headers(raw, count, most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns where it mends; what matters is checked
        try:
            with fits.open(BytesIO(raw), memmap=False, lazy_load_hdus=True, disable_image_compression=True) as hdus:
                yield hdus
        except (RefusedError, MemoryError, Interrupted):
            raise
        except Exception as error:  # a damaged header makes astropy raise nearly anything
            raise RefusedError(Reason.UNREADABLE, f"expected a readable FITS file, got {named(error)}") from None


def check_headers(raw: bytes, count: int = 2, most: int = MAX_PIXELS) -> None:
    """Look at the raw headers of the first HDUs; raises RefusedError as `open_hdus`."""
    place = 0
    for number in range(count):
        if place >= len(raw):
            return
        place = _end_of_hdu(raw, place, number, most)
        detail = f"the header of HDU {number} promises data up to byte {place}, the file ends at {len(raw)}"
        require(len(raw) >= place, Reason.TRUNCATED, detail)


def _end_of_hdu(raw: bytes, place: int, number: int, most: int) -> int:
    """Where the data of the HDU that begins at `place` end, with their padding."""
    facts, data = _structure(raw, place, number)
    where = f"the header of HDU {number}"
    for key in ("BITPIX", "NAXIS"):
        require(key in facts, Reason.UNREADABLE, f"{where} has no {key}")
    bits, axes = facts["BITPIX"], facts["NAXIS"]
    require(bits in (8, 16, 32, 64, -32, -64), Reason.UNREADABLE, f"{where} has BITPIX = {bits}, which FITS does not")
    require(0 <= axes <= MAX_AXES, Reason.UNREADABLE, f"{where} has NAXIS = {axes}, expected 0..{MAX_AXES}")
    lengths = [facts.get(f"NAXIS{axis + 1}", -1) for axis in range(axes)]
    require(min(lengths, default=0) >= 0, Reason.UNREADABLE, f"{where} has axes of {lengths} pixels")
    extra, groups, columns = facts.get("PCOUNT", 0), facts.get("GCOUNT", 1), facts.get("TFIELDS", 0)
    require(extra >= 0 and groups >= 0, Reason.UNREADABLE, f"{where} has PCOUNT = {extra} and GCOUNT = {groups}")
    detail = f"{where} has TFIELDS = {columns}, expected 0..{MAX_COLUMNS}"
    require(0 <= columns <= MAX_COLUMNS, Reason.TOO_LARGE, detail)
    pixels = math.prod(lengths) if axes else 0
    promised = groups * (extra + pixels)
    unit, most = ("bytes of rows", most * PIXEL_BYTES) if "TFIELDS" in facts else ("pixels", most)
    require(promised <= most, Reason.TOO_LARGE, f"expected at most {most} {unit}, {where} promises {promised}")
    size = abs(bits) // 8 * promised
    return data + -(-size // _BLOCK) * _BLOCK


def _structure(raw: bytes, place: int, number: int) -> tuple[dict[str, int], int]:
    """What the cards of a header say of the size of its data, and where these begin."""
    facts: dict[str, int] = {}
    for card in range(place, min(place + MAX_CARDS * _CARD, len(raw)), _CARD):
        key = raw[card : card + 8]
        if key == b"END     ":
            require(raw[card : card + _CARD] == _END, Reason.UNREADABLE, f"HDU {number} has a damaged END card")
            return facts, place + -(-(card + _CARD - place) // _BLOCK) * _BLOCK
        if key in _STRUCTURE or (key.startswith(b"NAXIS") and _AXIS.fullmatch(key)):
            name, value = key.decode().strip(), raw[card + 8 : card + _CARD].partition(b"/")[0]
            text = value.removeprefix(b"=").strip()
            detail = f"HDU {number} has {name} = {text[:40].decode('latin-1')!r}, expected a whole number"
            require(_WHOLE_NUMBER.fullmatch(text), Reason.UNREADABLE, detail)
            detail = f"HDU {number} has {name} = {facts.get(name)} and {name} = {int(text)}"
            require(facts.setdefault(name, int(text)) == int(text), Reason.UNREADABLE, detail)
    if place + MAX_CARDS * _CARD < len(raw):
        raise RefusedError(Reason.TOO_LARGE, f"the header of HDU {number} has more than {MAX_CARDS} cards")
    raise RefusedError(Reason.TRUNCATED, f"the file ends in the header of HDU {number}, at byte {len(raw)}")
