"""Spectra by the kernels are those by PyTorch: the same draws, values to rounding, for every setting."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from harps_dist.data import observer
from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.batches import RawBatch
from harps_dist.data.codec import NoiseCodec, quantised
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Decoding
from harps_dist.errors import ConfigError
from harps_dist.kernels import median, spectra
from harps_dist.spectra.doppler import BLOCK
from harps_dist.spectra.grid import MARGIN, Grid
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.noise import keyed_normals
from tests.kernels import SHARED_BYTES, compiled_launches, interpreted

CPU = torch.device("cpu")
TERMS = (3, 1, 2)
VALUES = 3e-5  # in medians; float32 differs from float64 by as much
NUISANCES = Nuisance(broadening_kms=3, line_error=0.2, continuum=0.05)
assert HARPS.gap
GRIDS = (
    Grid("window", 231_000, 2_048),
    Grid("blue end", -300, 1_500),  # a pad; no whole number of blocks
    Grid("gap", HARPS.gap[0] - 200, HARPS.gap[1] - HARPS.gap[0] + 500),
)


def made_up(grid: Grid, real: int, simulated: int, residuals: bool) -> tuple[Decoding, RawBatch]:
    """Spectra with lines, a response with terms of every kind, and velocities of either sign."""
    random = np.random.default_rng(0)
    source_grid, codec = grid.widened(MARGIN), NoiseCodec()
    width, pixels = source_grid.length, int(grid.valid.sum())

    def smooth(scale: float, spread: float = 3.0) -> np.ndarray:
        kernel = np.exp(-0.5 * (np.arange(-15, 16) / spread) ** 2)
        return scale * np.convolve(random.normal(size=width), kernel / np.linalg.norm(kernel), mode="same")

    basis = np.stack([smooth(0.1) for _ in range(sum(TERMS))]).astype(np.float32)
    basis[[0, TERMS[0], TERMS[0] + TERMS[1]]] += np.array([[3.0], [-1.0], [2.0]], np.float32)
    sed = [quantised(1.5 * np.exp(smooth(0.3))) for _ in range(simulated)]
    coded = [codec.decode(codec.encode(1 + 0.1 * random.normal(size=pixels))) for _ in range(real)]
    missed = np.stack([[smooth(0.05) for _ in range(3)] for _ in range(2)]).astype(np.float16)
    response = 1 + 0.2 * random.normal(size=(simulated, sum(TERMS)))
    raw = RawBatch(
        flux=torch.from_numpy(np.stack([c.codes for c in coded])) if real else torch.empty(0, 0),
        flux_scale=torch.from_numpy(np.stack([c.scale for c in coded])) if real else torch.empty(0, 0),
        sed=torch.from_numpy(np.stack([codes for codes, _ in sed])),
        sed_scale=torch.from_numpy(np.stack([scale for _, scale in sed])),
        response=torch.from_numpy(response.astype(np.float32)),
        residual=torch.from_numpy(missed) if residuals else torch.empty(0, 3, 0),
        residual_of=torch.tensor([2, 0] if residuals else [], dtype=torch.int64),
        rv_kms=torch.linspace(-100, 93, simulated).double(),
        berv_kms=torch.linspace(31, -28, simulated).double(),
        key=torch.from_numpy(random.integers(0, 2**63, real + simulated)),
        labels=torch.zeros(real + simulated, len(NAMES)),
        label_errors=torch.zeros(real + simulated, len(NAMES)),
        rows=torch.arange(real + simulated),
        epochs=torch.zeros(real + simulated, dtype=torch.int64),
    )
    return Decoding(grid, source_grid, codec, basis, TERMS), raw


@interpreted
def test_spectra_are_those_of_float64_and_float32_for_every_setting():
    settings = product(("cubic", "linear"), (0.0, 30.0), (True, False), (Nuisance(), NUISANCES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "check_kernels", lambda kernels: None)  # the interpreter needs no GPU
        patch.setattr(median, "BLOCK", 1024)
        patch.setattr(spectra, "BLOCKS", 8)
        for number, (shift, berv_kms, noise, nuisance) in enumerate(settings):
            augment = Augment(shift=shift, berv_kms=berv_kms, noise=noise, nuisance=nuisance)
            grid, real = GRIDS[number % 3], number % 2
            patch.setattr(spectra, "SPECTRA", 1 + number % 2)
            decoding, raw = made_up(grid, real, 3, residuals=number % 4 < 2)
            fused = Observer(decoding, augment, CPU, kernels="triton")
            counts = fused.simulate(raw)
            patch.setattr(fused, "simulate", lambda raw, counts=counts: counts)  # once is slow enough
            found = fused(raw)
            for dtype in (torch.float64, torch.float32):
                plain = Observer(decoding, augment, CPU, dtype=dtype)
                case = f"{augment} {grid.name} {dtype}"
                expected, right = plain(raw), plain.simulate(raw)
                assert found.simulated.tolist() == expected.simulated.tolist(), case
                assert (found.flux - expected.flux).abs().max() < VALUES, case
                assert (counts - right).abs().max() < VALUES * right.abs().median(), case


@interpreted
def test_draws_are_those_by_pytorch():
    """Without light, and with a floor of 1, counts are the draws, of which one wrong bit changes all."""
    grid = Grid("odd", 231_000, 1_100)
    decoding, raw = made_up(grid, 0, 2, residuals=False)
    raw = raw._replace(sed=0 * raw.sed, sed_scale=torch.tensor([[1.0, 0.0]]).expand(2, 2), response=0 * raw.response)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "check_kernels", lambda kernels: None)
        drawn = Observer(decoding, Augment(), CPU, kernels="triton").simulate(raw)
    pairs = 5 * BLOCK
    expected = keyed_normals(raw.key, 2 * pairs, observer.NOISE)
    torch.testing.assert_close(drawn, expected[:, : grid.length], rtol=0, atol=2e-6)


def test_where_the_kernels_cannot_run_a_sentence_says_so():
    decoding, _ = made_up(GRIDS[0], 0, 1, residuals=False)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="Choose kernels torch"):
            Observer(decoding, Augment(), CPU, kernels="triton")


def test_what_the_kernels_do_not_know_pytorch_does(monkeypatch):
    """In float64 all of it, and every nuisance where there is one more."""

    class More(Nuisance):
        veiling: float = 0.0

    monkeypatch.setattr(observer, "check_kernels", lambda kernels: None)
    decoding, raw = made_up(GRIDS[0], 0, 1, residuals=False)
    exactly = Observer(decoding, Augment(), CPU, dtype=torch.float64, kernels="triton")
    torch.testing.assert_close(exactly(raw).flux, Observer(decoding, Augment(), CPU, dtype=torch.float64)(raw).flux)
    for nuisance, known in ((NUISANCES, True), (More(veiling=0.1), False), (More(line_error=0.1), True)):
        augment = Augment(nuisance=nuisance)
        assert Observer(decoding, augment, CPU, kernels="triton")._disturbs_by_kernels == known


@pytest.mark.parametrize("architecture", SHARED_BYTES)
@pytest.mark.parametrize(
    ("shift", "berv_kms", "noise", "nuisance"),
    [
        ("cubic", 30.0, True, Nuisance()),
        ("cubic", 0.0, True, NUISANCES),
        ("linear", 30.0, False, Nuisance()),
        ("linear", 0.0, True, NUISANCES),
    ],
)
def test_compiles_without_spills(monkeypatch, architecture, shift, berv_kms, noise, nuisance):
    monkeypatch.setattr(observer, "check_kernels", lambda kernels: None)
    of_median = compiled_launches(monkeypatch, architecture, "triton_median", "count_digit", "write_medians")
    kernels = ("block_maxima", "disturb_samples", "prefilter")
    compiled_launches(monkeypatch, architecture, "triton_nuisances", *kernels)
    launches = compiled_launches(monkeypatch, architecture, "triton_spectra", "simulate_counts", "divide_and_fill")
    augment = Augment(shift=shift, berv_kms=berv_kms, noise=noise, nuisance=nuisance)
    for residuals in (False, True):
        decoding, raw = made_up(GRIDS[0], 0, 3, residuals)
        Observer(decoding, augment, CPU, kernels="triton")(raw)
    assert [launch.kernel for launch in launches] == 2 * ["simulate_counts", "divide_and_fill"]
    assert len(of_median) == 10
    for launch in launches:
        assert launch.stack == 0
        assert launch.shared <= SHARED_BYTES[architecture]
        assert not launch.atomics
