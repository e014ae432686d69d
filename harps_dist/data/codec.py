"""How spectra lie in shards: small integers whose error is small against the noise, or floats that lose nothing.

Bytes become codes on the CPU; codes become flux on the device. Entropy coding is numcodecs'.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from harps_dist.data.manifest import CodecName
from harps_dist.spectra.noise import NOISE_CHUNK, NOISE_FLOOR, photon_noise

Content = bytes | np.ndarray  # the bytes of a member, or (byte,) uint8
STEP = 0.25  # of the noise's standard deviation: 0.5 % more variance

_LEVEL = 1  # of zstd: what is left after prediction has no repetitions to look for
_NPY_PREFIX = struct.Struct("<8sH")  # of version 1.0: magic and version, length of what follows
_HEADER = struct.Struct("<III")  # order of prediction, chunks, exceptions
_GROUP = 16  # of NOISE_CHUNK rows
_ROOT = 2 * math.sqrt(NOISE_FLOOR)


class Coded(NamedTuple):
    """A spectrum on its way to the device.

    codes: int16 (NOISE_CHUNK, chunk) of "noise", int16 (pixel,) of "u16", float32 (pixel,) of "lossless".
    scale: float32 (chunk,), (2,) scale and zero, or (0,).
    """

    codes: np.ndarray
    scale: np.ndarray


class FluxCodec(Protocol):
    """The flux of real spectra at valid pixels, float32 (pixel,), to bytes and back. tail: of the shard's member."""

    name: CodecName
    tail: str

    def encode(self, flux: np.ndarray) -> bytes: ...

    def decode(self, content: Content) -> Coded: ...

    def restore(self, codes: Tensor, scale: Tensor, pixels: int) -> Tensor:
        """(batch, pixels) flux of stacked codes and scales."""
        ...


class NoiseCodec:
    """Steps of `step` standard deviations of the photon noise: square-root companded, predicted, zstd.

    With sigma^2 = a (|F| + b) and v = sign(F) (sqrt(|F| + b) - sqrt(b)), equal steps of v are equal shares of sigma;
    F = v (|v| + 2 sqrt(b)). a is that of the chunk, b NOISE_FLOOR. A chunk whose flux leaves 16 bits has coarser steps.
    Codes are differenced along the chunk, twice where that is smaller; those beyond a byte lie apart.
    """

    name: CodecName = "noise"
    tail = "flux.zst"

    def __init__(self, step: float = STEP):
        self.step = step

    def encode(self, flux: np.ndarray) -> bytes:
        from numcodecs import Zstd

        chunks = -(-len(flux) // NOISE_CHUNK)
        padded = np.pad(np.asarray(flux, np.float64), (0, chunks * NOISE_CHUNK - len(flux)), mode="edge")
        magnitude = np.sqrt(np.abs(padded) + NOISE_FLOOR) - math.sqrt(NOISE_FLOOR)
        companded = np.copysign(magnitude, padded).reshape(chunks, NOISE_CHUNK)
        needed = np.abs(companded).max(axis=1) / 32767
        scale = np.maximum(self.step / 2 * np.sqrt(photon_noise(flux)), needed).astype(np.float32)
        codes = np.rint(companded / scale[:, None]).clip(-32767, 32767).astype(np.int16).T
        once, twice = (bytes(Zstd(_LEVEL).encode(self._packed(codes, scale, order))) for order in (1, 2))
        return twice if len(twice) < 0.97 * len(once) else once  # the second sum costs a third of the decoding

    @staticmethod
    def _packed(codes: np.ndarray, scale: np.ndarray, order: int) -> bytes:
        difference, heads = codes, []
        for _ in range(order):
            heads.append(difference[0])
            difference = np.diff(difference, axis=0)  # modulo 2^16, as the sums that undo it
        large = np.abs(difference.astype(np.int32)) > 127
        where, values = np.flatnonzero(large).astype("<u4"), difference[large].astype("<i2")
        body = np.where(large, 0, difference).astype("<i1")
        parts = (scale.astype("<f4"), np.array(heads, "<i2"), where, values, body)
        return _HEADER.pack(order, codes.shape[1], len(where)) + b"".join(part.tobytes() for part in parts)

    def decode(self, content: Content) -> Coded:
        from numcodecs import Zstd

        raw = Zstd().decode(content)
        order, chunks, exceptions = _HEADER.unpack_from(raw)
        parts, offset = [], _HEADER.size
        for dtype, count in (
            ("<f4", chunks),
            ("<i2", order * chunks),
            ("<u4", exceptions),
            ("<i2", exceptions),
            ("<i1", (NOISE_CHUNK - order) * chunks),
        ):
            parts.append(np.frombuffer(raw, dtype, count, offset))
            offset += parts[-1].nbytes
        scale, heads, where, values, body = parts
        codes = np.empty((NOISE_CHUNK, chunks), np.int16)
        codes[order:] = body.reshape(-1, chunks)
        codes[order:].reshape(-1)[where] = values
        for number, head in reversed(list(enumerate(heads.reshape(order, chunks)))):
            codes[:number], codes[number] = 0, head
            _sum_up(codes)
        return Coded(codes, scale)

    def restore(self, codes: Tensor, scale: Tensor, pixels: int) -> Tensor:
        in_order = codes.transpose(1, 2).contiguous()
        companded = (in_order * scale[:, :, None]).flatten(1)[:, :pixels]
        return companded * (companded.abs() + _ROOT)


def _sum_up(rows: np.ndarray) -> None:
    """Turn rows (NOISE_CHUNK, n) into their running sums, in place.

    First within groups of rows, then from group to group: in few and large steps, between which threads ask for
    Python's lock, and faster than np.add.accumulate goes along rows.
    """
    groups = rows.reshape(-1, _GROUP, rows.shape[1])
    for row in range(1, _GROUP):
        groups[:, row] += groups[:, row - 1]
    for group in range(1, len(groups)):
        groups[group] += groups[group - 1, -1]


class LinearCodec:
    """65,535 equal steps from the smallest to the largest value: scale and zero, then a .npy of int16."""

    name: CodecName = "u16"
    tail = "flux.u16"

    def encode(self, flux: np.ndarray) -> bytes:
        codes, scale = quantised(flux)
        return scale.astype("<f4").tobytes() + npy_bytes(codes)

    def decode(self, content: Content) -> Coded:
        return Coded(npy_array(content[8:]), np.frombuffer(content, "<f4", 2))

    def restore(self, codes: Tensor, scale: Tensor, pixels: int) -> Tensor:
        return codes * scale[:, :1] + scale[:, 1:]


class LosslessCodec:
    """Every bit of the float32: shuffled bits, zstd."""

    name: CodecName = "lossless"
    tail = "flux.blosc"

    def encode(self, flux: np.ndarray) -> bytes:
        from numcodecs import Blosc

        return bytes(Blosc("zstd", 3, Blosc.BITSHUFFLE).encode(np.ascontiguousarray(flux, "<f4")))

    def decode(self, content: Content) -> Coded:
        from numcodecs import Blosc

        return Coded(np.frombuffer(Blosc().decode(content), "<f4"), np.empty(0, np.float32))

    def restore(self, codes: Tensor, scale: Tensor, pixels: int) -> Tensor:
        return codes


CODECS: dict[CodecName, type[NoiseCodec] | type[LinearCodec] | type[LosslessCodec]] = {
    codec.name: codec for codec in (NoiseCodec, LinearCodec, LosslessCodec)
}


def codec_of(name: CodecName, step: float = STEP) -> FluxCodec:
    """The codec of that name; step: of "noise", in standard deviations of the photon noise."""
    return NoiseCodec(step) if name == "noise" else CODECS[name]()


def restored(codec: FluxCodec, content: Content, pixels: int) -> np.ndarray:
    """(pixels,) float32 flux of one encoded spectrum, as the device computes it."""
    codes, scale = (torch.tensor(part)[None] for part in codec.decode(content))
    return codec.restore(codes, scale, pixels)[0].numpy()


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 codes of (n,) values, and (scale, zero), float32: value = scale code + zero to half a step."""
    low, high = float(values.min()), float(values.max())
    scale = np.array([max((high - low) / 65534, np.finfo(np.float32).tiny), (high + low) / 2], np.float32)
    codes = np.rint((np.asarray(values, np.float64) - scale[1]) / scale[0])
    return codes.clip(-32768, 32767).astype(np.int16), scale


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the content of a .npy file."""
    stream = BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0))
    return stream.getvalue()


def npy_array(content: Content) -> np.ndarray:
    """The array in the content of a .npy file, without a copy."""
    start = _NPY_PREFIX.size + _NPY_PREFIX.unpack(bytes(content[: _NPY_PREFIX.size]))[1]
    shape, dtype = npy_header(bytes(content[:start]))
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


@lru_cache
def npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array after a .npy header of version 1.0. Python parses it, once for all of its kind."""
    stream = BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype
