"""What a spectrum may be packed in: gzip, bzip2, a tar that holds one, an image packed by fpack.

Tested in tests/unit/test_packing.py.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from typing import IO, Any

from harps_dist.formats.belonging import is_fibre_b
from harps_dist.formats.hdus import BEGINS, MAX_PIXELS, open_hdus
from harps_dist.formats.records import Reason, RefusedError, require
from harps_dist.intake import named, read_stream

PLAIN = (".fits", ".fit")
PACKED = tuple(
    plain + packing for plain in PLAIN for packing in ("", ".gz", ".bz2", ".fz", ".z")
)  # .Z in small letters
SUFFIXES = (*PACKED, ".tar")
MAX_BYTES = 128 * 2**20  # unpacked; twenty-five times the largest HARPS product
MAX_MEMBERS = 1_000  # of a tar

_TAR, _TAR_PLACE = b"ustar", 257
_TILES = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS")


@contextmanager
def unpacked_hdus(stream: IO[bytes], source: str) -> Iterator[tuple[Any, str]]:
    """The first HDUs of a FITS file, whatever it is packed in, and its own name: a member's where it stands in a tar.

    stream: binary, at its beginning. source: the file's name. Raises RefusedError or IntakeError where it is no FITS
    file, too large, damaged, or packed in a way that cannot be unpacked here.
    """
    start = stream.tell()
    head = stream.read(_TAR_PLACE + len(_TAR))
    stream.seek(start)
    if head[_TAR_PLACE:] == _TAR and not head.startswith(BEGINS):
        raw, source = _of_tar(stream)
    else:
        raw = read_stream(stream, MAX_BYTES, BEGINS)
    with open_hdus(raw) as hdus:
        yield _image_of_tiles(hdus, raw) if _in_tiles(hdus) else hdus, source


def _of_tar(stream: IO[bytes]) -> tuple[bytes, str]:
    """The one spectrum in a tar, and its name: fibre A's s1d, else the only FITS file."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            members = [one for one in islice(tar, MAX_MEMBERS) if one.isreg() and one.name.lower().endswith(PACKED)]
            names = {one.name.rpartition("/")[2]: one for one in members}
            spectra = [name for name in names if "s1d" in name.lower() and not is_fibre_b(name)] or list(names)
            detail = f"expected one spectrum in the tar, got {len(spectra)} of {len(names)} FITS files: unpack it"
            require(len(spectra) == 1 and len(names) == len(members), Reason.NO_SPECTRUM, detail)
            file = tar.extractfile(names[spectra[0]])
            assert file is not None  # it is a regular member
            return read_stream(file, MAX_BYTES, BEGINS), spectra[0]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise RefusedError(Reason.UNREADABLE, f"expected a readable tar, got {named(error)}") from None


def _in_tiles(hdus: Any) -> bool:
    """Whether HDU 1 is an image that fpack has packed; raises RefusedError for a table, which astropy cannot unpack."""
    try:
        cards = hdus[1].header
    except IndexError:
        return False
    detail = "expected an image packed by fpack, got a table: unpack it by funpack"
    require(cards.get("ZTABLE") is not True, Reason.UNREADABLE, detail)
    return cards.get("ZIMAGE") is True


def _image_of_tiles(hdus: Any, raw: bytes) -> Any:
    """The packed image as HDU 0, as it was before. What its cards promise is looked at before anything is unpacked."""
    from astropy.io import fits

    cards = hdus[1].header
    axes = cards.get("ZNAXIS")
    require(axes in (1, 2), Reason.NO_SPECTRUM, f"expected a packed image of 1 axis, got {axes!r} axes")
    lengths = [cards.get(f"{key}{axis + 1}", 1) for key in ("ZNAXIS", "ZTILE") for axis in range(axes)]
    whole = all(isinstance(one, int) and one > 0 for one in lengths)
    detail = f"expected at most {MAX_PIXELS} pixels, the packed image promises {lengths}"
    require(whole and max(math.prod(lengths[:axes]), math.prod(lengths[axes:])) <= MAX_PIXELS, Reason.TOO_LARGE, detail)
    kind = cards.get("ZCMPTYPE")
    require(kind in _TILES, Reason.UNREADABLE, f"expected an image packed by {', '.join(_TILES)}, got {kind!r}")
    detail = "the data of HDU 1 do not add up to the header's DATASUM"
    require(hdus[1].verify_datasum() != 0, Reason.CHECKSUM, detail)
    with fits.open(BytesIO(raw), memmap=False, lazy_load_hdus=True) as tiles:
        return fits.HDUList([fits.PrimaryHDU(tiles[1].data, tiles[1].header)])
