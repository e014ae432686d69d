"""Photon noise: how much a spectrum has, and draws of it that are keyed to the sample.

A draw is a function of (key, pixel) alone, by integer arithmetic that is the same on every device, so that a whole
batch is drawn in one operation and any part of it can be drawn again.

Tested in tests/unit/test_codec.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

NOISE_CHUNK = 128  # pixels that share an estimate of the noise
NOISE_FLOOR = 0.002  # flux, in medians, whose photon noise stands for the read-out noise
_REACH = 6  # pixels the filter looks ahead and behind
_SMOOTHED_OVER = 65  # chunks
_SIXTH_DIFFERENCE = np.array([1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0]) / math.sqrt(924.0)


def photon_noise(flux: np.ndarray) -> np.ndarray:
    """Variance per flux of every chunk of 128 pixels: sigma^2 = variance (|flux| + NOISE_FLOOR).

    flux: (pixel,) standardised, valid pixels only. Returns (chunk,) float64, the last chunk may be cut short.
    The sixth difference of every other pixel passes a quarter of the sampling frequency, where lines that HARPS
    resolves have no power left and the resampled noise still has nearly all of its own: on 14 genuine spectra sigma is
    0.91-1.14 of 1 / (S/N of the header). Medians over a chunk and over 65 chunks keep hits and lines out.
    """
    chunks = -(-len(flux) // NOISE_CHUNK)
    size, fill = chunks * NOISE_CHUNK, chunks * NOISE_CHUNK - len(flux)
    ahead = np.pad(np.asarray(flux, np.float64), (_REACH, _REACH + fill), mode="reflect")
    passed = sum(weight * ahead[2 * k : 2 * k + size] for k, weight in enumerate(_SIXTH_DIFFERENCE))
    sigma = 1.4826 * np.median(np.abs(np.reshape(passed, (chunks, NOISE_CHUNK))), axis=1)
    level = np.median(np.pad(np.abs(flux), (0, fill), mode="reflect").reshape(chunks, NOISE_CHUNK), axis=1)
    variance = _running_median(sigma**2 / (level + NOISE_FLOOR), min(_SMOOTHED_OVER, chunks))
    return np.maximum(variance, max(1e-2 * float(np.median(variance)), 1e-10))


def _running_median(values: np.ndarray, size: int) -> np.ndarray:
    """Median over `size` neighbours, the ends held; scipy.ndimage.median_filter, which a trained model does without."""
    held = np.pad(values, (size // 2, (size - 1) // 2), mode="edge")
    return np.partition(np.lib.stride_tricks.sliding_window_view(held, size), size // 2, axis=1)[:, size // 2]


def photon_sigma(flux: np.ndarray) -> np.ndarray:
    """(pixel,) float64 standard deviation of every pixel's photon noise; flux as in `photon_noise`."""
    variance = np.repeat(photon_noise(flux), NOISE_CHUNK)[: len(flux)]
    return np.sqrt(variance * (np.abs(flux) + NOISE_FLOOR))


def _mixed(bits: Tensor) -> Tensor:
    """Hash int32 to int32, every bit depending on every other (Mueller's and Wellons' multiply-xorshift)."""
    bits = (bits >> 16).bitwise_and_(0xFFFF).bitwise_xor_(bits).mul_(0x7FEB352D)
    bits = (bits >> 15).bitwise_and_(0x1FFFF).bitwise_xor_(bits).mul_(0x846CA68B - 2**32)
    return (bits >> 16).bitwise_and_(0xFFFF).bitwise_xor_(bits)


def keyed_bits(key: Tensor, count: int, purpose: int = 0) -> Tensor:
    """(batch, count) int32 random bits. key: (batch,) int64; purposes draw independently of each other."""
    low, high = key.to(torch.int32)[:, None], (key >> 32).to(torch.int32)[:, None]
    purpose = (purpose * 0x9E3779B1 + 2**31) % 2**32 - 2**31
    counter = torch.arange(count, dtype=torch.int32, device=key.device) * (0x9E3779B9 - 2**32)
    return _mixed(_mixed(_mixed(counter + low) ^ high) + purpose)


def keyed_uniforms(key: Tensor, count: int, purpose: int = 0) -> Tensor:
    """(batch, count) float32 uniform draws above 0 and up to 1, to which one in 2**24 rounds; as `keyed_bits`."""
    return _uniform(keyed_bits(key, count, purpose))


def _uniform(bits: Tensor) -> Tensor:
    return (bits >> 8).bitwise_and_(0xFFFFFF).float().add_(0.5).mul_(2.0**-24)


def keyed_normals(key: Tensor, count: int, purpose: int = 0) -> Tensor:
    """(batch, count) float32 standard normal draws, up to 5.9; as `keyed_bits`."""
    return torch.cat(normal_halves(key, count, purpose), dim=1)


def normal_halves(key: Tensor, count: int, purpose: int = 0) -> tuple[Tensor, Tensor]:
    """The first, larger half of `keyed_normals` and the second, which Box and Muller's method makes in pairs."""
    half = -(-count // 2)
    bits = keyed_bits(key, half, purpose)
    radius = _uniform(bits).log_().mul_(-2).sqrt_()
    angle = _mixed(bits + 0x5851F42D).float().mul_(math.pi * 2.0**-31)
    return torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)[:, : count - half]
