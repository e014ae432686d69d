"""Packed files are read, or refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.formats.readers import find_spectra, read_spectrum, read_stream
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord

N = 4000
NAME = "HARPS.2012-03-24T08:37:45.581_s1d_A"


def image(data: np.ndarray | None = None) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU(np.linspace(100, 200, N, dtype=np.float32) if data is None else data)
    hdu.header.update({"INSTRUME": "HARPS", "CRVAL1": 6100.0, "CDELT1": 0.01, "CTYPE1": "Angstrom", "OBJECT": "HD1"})
    hdu.header["HIERARCH ESO DRS VERSION"] = "HARPS_3.8"
    return hdu


def raw(hdus) -> bytes:
    written = io.BytesIO()
    hdus.writeto(written, checksum=True)
    return written.getvalue()


def tar(**members: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as packed:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def fpacked(data: np.ndarray | None = None, kind: str = "GZIP_1") -> bytes:
    plain = image(data)
    return raw(fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(plain.data, plain.header, compression_type=kind)]))


PLAIN = raw(image())
PROMISE = b"ZNAXIS1 =                 4000"
OTHER = raw(fits.PrimaryHDU(np.ones(9)))


def read(path, content: bytes):
    path.write_bytes(content)
    return read_spectrum(path)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("fits.gz", gzip.compress(PLAIN)),
        ("fits.bz2", bz2.compress(PLAIN)),
        ("fits", bz2.compress(PLAIN)),  # the content says it
        ("fits.bz2", bz2.compress(PLAIN[:2880]) + bz2.compress(PLAIN[2880:])),
        ("tar", tar(**{f"{NAME}.fits": PLAIN})),
        ("tar", tar(**{f"data/{NAME}.fits": PLAIN, "data/notes.txt": b"abc"})),
        ("tar", tar(**{f"{NAME}.fits.gz": gzip.compress(PLAIN)})),
        ("tar", tar(**{f"{NAME[:-1]}B.fits": OTHER, f"{NAME}.fits": PLAIN, "HARPS.2012_ccf_G2_A.fits": OTHER})),
        ("fits.fz", fpacked()),
    ],
)
def test_a_packed_spectrum_is_the_spectrum(ending, content, tmp_path):
    found = read(tmp_path / f"{NAME}.{ending}", content)
    assert isinstance(found, SpectrumRecord), found
    assert (found.dp_id, found.object) == (NAME, "HD1")
    np.testing.assert_allclose(found.wave_aa, 6100.0 + 0.01 * np.arange(N), atol=1e-9)
    np.testing.assert_allclose(found.flux, np.linspace(100, 200, N), rtol=1e-3)
    assert isinstance(read_stream(io.BytesIO(content), f"{NAME}.{ending}"), SpectrumRecord)


def test_whole_numbers_in_tiles_are_the_same_to_the_bit(tmp_path):
    data = np.arange(1, N + 1, dtype=np.int32)
    found = read(tmp_path / "x_s1d_A.fits.fz", fpacked(data, "RICE_1"))
    assert isinstance(found, SpectrumRecord), found
    np.testing.assert_array_equal(found.flux, data)


def changed(content: bytes, before: bytes, after: bytes) -> bytes:
    assert content.count(before) == 1
    return content.replace(before, after)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("ending", "content", "reason", "word"),
    [
        ("fits.Z", b"\x1f\x9d\x90" + bytes(100), Reason.UNREADABLE, "uncompress"),
        ("fits.bz2", bz2.compress(PLAIN)[:-20], Reason.TRUNCATED, "end mark"),
        ("fits.bz2", flipped(bz2.compress(PLAIN), 10), Reason.CHECKSUM, "bzip2"),
        ("fits.bz2", bz2.compress(b"no FITS"), Reason.NOT_FITS, "SIMPLE"),
        ("tar", tar(**{"a.fits": PLAIN, "b.fits": PLAIN}), Reason.NO_SPECTRUM, "unpack"),
        ("tar", tar(**{"notes.txt": b"abc"}), Reason.NO_SPECTRUM, "unpack"),
        ("tar", tar(**{f"{NAME[:-1]}B.fits": PLAIN}), Reason.WRONG_FIBRE, "fibre B"),
        ("tar", tar(**{f"{NAME}.fits": PLAIN})[:4096], Reason.UNREADABLE, "end of data"),
        ("fits.fz", fpacked(np.ones((3, N), np.float32)), Reason.NO_SPECTRUM, "axes"),
        ("fits.fz", changed(fpacked(), b"'GZIP_1  '", b"'HUFFMAN '"), Reason.UNREADABLE, "HUFFMAN"),
        (
            "fits.fz",
            changed(fpacked(), b"ZNAXIS1 =                 4000", b"ZNAXIS1 =         999999999999"),
            Reason.TOO_LARGE,
            "",
        ),
        ("fits.fz", flipped(fpacked(), len(fpacked()) - 2880 + 5), Reason.CHECKSUM, "DATASUM"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_with_its_reason(ending, content, reason, word, tmp_path):
    found = read(tmp_path / f"{NAME}.{ending}", content)
    assert isinstance(found, Refusal)
    assert found.reason == reason, found
    assert word in found.detail


def test_a_packed_table_is_refused(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("COMPRESSED_DATA1", "J", array=[1])])
    table.header["ZTABLE"] = True
    found = read(tmp_path / "x.fits.fz", raw(fits.HDUList([fits.PrimaryHDU(), table])))
    assert isinstance(found, Refusal)
    assert "funpack" in found.detail


def test_a_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("harps_dist.formats.packing.MAX_BYTES", 10**6)
    for number, content in enumerate((bz2.compress(PLAIN + bytes(2 * 10**6)), tar(x=b""))):
        found = read(tmp_path / f"{number}.fits", content)
        assert isinstance(found, Refusal)
    big = tar(**{"x_s1d_A.fits": PLAIN + bytes(2 * 10**6)})
    found = read(tmp_path / "big.tar", big)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.TOO_LARGE


def test_packed_files_are_found_in_folders(tmp_path):
    names = ["a.fits.Z", "b.fits.bz2", "c.fits.fz", "d.tar", "e.fit.gz", "f.FITS"]
    for name in [*names, "g.txt", "h.Z", "i.tar.xz"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_spectra(tmp_path)] == names
