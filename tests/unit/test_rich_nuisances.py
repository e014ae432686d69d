"""Nuisances that act in velocity space or on the detector, against closed forms and direct sums in float64."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from harps_dist.benchmarks.nuisance_costs import draw_effects, nuisance_effects
from harps_dist.benchmarks.sensitivity import sensitivity, sensitivity_tables, write_sensitivity
from harps_dist.commands.train import parse
from harps_dist.config import Recipe
from harps_dist.data.augment import NUISANCES, Augment, Nuisance
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import LEVEL, LEVELS, Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.spectra import nuisance as disturbances
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import HARPS, MARGIN, Grid, named_grid
from harps_dist.spectra.noise import keyed_uniforms

CPU = torch.device("cpu")
FULL = HARPS.widened(MARGIN)
RICH = Augment(rv_kms=70, berv_kms=30, nuisance=NUISANCES["rich"])
NEW = tuple(name for name in Nuisance.model_fields if name in LEVEL)


def lines(grid: Grid, seed: int = 0) -> np.ndarray:
    """(pixel,) float64 flux with a line of 2 km/s and a depth of 0.8 every 60 km/s or so."""
    draw = np.random.default_rng(seed)
    velocity = C_KMS * np.log(grid.wave_aa / grid.wave_aa[0])
    centres = np.arange(30, velocity[-1], 60) + draw.uniform(-20, 20, len(np.arange(30, velocity[-1], 60)))
    nearest = centres[np.abs(np.searchsorted(centres, velocity) - 1).clip(0, len(centres) - 2)]
    after = centres[np.searchsorted(centres, velocity).clip(0, len(centres) - 1)]
    return 1 - 0.8 * sum(np.exp(-(((velocity - centre) / 2) ** 2) / 2) for centre in (nearest, after))


def profile(velocity: np.ndarray, sigma: float, rotation: float, zeta: float) -> np.ndarray:
    """(velocity,) kernel on an even grid of velocities [km/s], by direct sums over the disc; sum 1."""
    step = velocity[1] - velocity[0]

    def normal(width: float) -> np.ndarray:
        return np.exp(-((velocity / width) ** 2) / 2) if width else (np.abs(velocity) < step / 2).astype(float)

    kernel = normal(sigma)
    if rotation:
        x = (velocity / rotation).clip(-1, 1)
        height = np.sqrt(1 - x**2)  # of the chord; the disc's brightness 1 - 0.6 (1 - mu), integrated along it
        along = (np.arange(400) + 0.5) / 400 * height[:, None]
        mu = np.sqrt((1 - x[:, None] ** 2 - along**2).clip(0))
        kernel = np.convolve(kernel, (1 - 0.6 * (1 - mu)).mean(axis=1) * height, "same")
    if zeta:
        cosines = np.sqrt((np.arange(4000) + 0.5) / 4000)  # an even disc
        rings = [
            normal(zeta * part / math.sqrt(2)) for part in np.concatenate([cosines[::8], np.sqrt(1 - cosines**2)[::8]])
        ]
        kernel = np.convolve(kernel, sum(ring / ring.sum() for ring in rings), "same")
    return kernel / kernel.sum()


def directly(flux: np.ndarray, grid: Grid, pixels: np.ndarray, *widths: float) -> np.ndarray:
    """Flux at some pixels, convolved in velocity by a sum in float64, the flux between pixels by a cubic spline."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(grid.length), flux)
    velocity = np.arange(-90, 90.01, 0.05)
    kernel = profile(velocity, *widths)
    wave = grid.wave_aa[pixels][:, None] * (1 + velocity / C_KMS)
    return (spline((wave - grid.wave0_aa) / grid.step_aa) * kernel).sum(axis=1)


@pytest.mark.parametrize(("sigma", "rotation", "zeta"), [(5.0, 0.0, 0.0), (0.5, 20.0, 0.0), (0.5, 0.0, 8.0), (3, 8, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_have_one_width_in_velocity_from_end_to_end_of_the_full_grid(sigma, rotation, zeta, dtype):
    flux = lines(FULL)
    found = disturbances.broaden(
        torch.from_numpy(flux)[None].to(dtype), FULL, *(torch.tensor([kms]) for kms in (sigma, rotation, zeta))
    )[0]
    assert found.dtype == dtype
    ends = [np.arange(first, first + 4096, 3) for first in (600, FULL.length // 2, FULL.length - 4700)]
    for pixels in ends:
        expected = directly(flux, FULL, pixels, sigma, rotation, zeta)
        assert np.abs(found.numpy()[pixels] - expected).max() < 9e-4
        assert np.abs(flux[pixels] - expected).max() > 0.3


def test_a_window_is_broadened_as_ever_to_the_bit():
    """The arithmetic that recipes were trained by."""
    grid = named_grid("demo").widened(MARGIN)
    flux, sigma_kms = torch.from_numpy(lines(grid)).float()[None].repeat(2, 1), torch.tensor([0.3, 4.7])
    sigma = (sigma_kms / C_KMS * (grid.wave0_aa + grid.step_aa * grid.length / 2) / grid.step_aa)[:, None]
    padded = torch.nn.functional.pad(flux[:, None], (256, 256), mode="reflect")[:, 0]
    length = disturbances._fast_length(padded.shape[-1])
    transfer = torch.exp(-2 * (torch.pi * sigma * torch.fft.rfftfreq(length)) ** 2)
    blurred = torch.fft.irfft(torch.fft.rfft(padded, n=length).mul_(transfer), n=length)[:, 256:-256][:, : grid.length]
    assert torch.equal(disturbances.broaden(flux, grid, sigma_kms), blurred)


def test_no_width_leaves_the_flux_as_it_is():
    flux, nothing = torch.from_numpy(lines(FULL))[None], torch.zeros(1)
    torch.testing.assert_close(disturbances.broaden(flux, FULL, nothing, nothing, nothing), flux, rtol=0, atol=1e-12)


def test_scales_of_line_depths_are_velocities_at_both_ends():
    """Errors of depths are as alike over 5 km/s in the blue as in the red, and have the variance that is asked for."""
    knots = disturbances.knots_in_velocity(FULL, CPU, torch.float64)
    normals = torch.randn(40, sum(disturbances.line_knots(knots.size)), dtype=torch.float64)
    factor = disturbances.depth_factors(normals, torch.full((40, 1), 0.1, dtype=torch.float64), knots.size)
    error = knots.at_pixels(factor - 1)
    velocity = C_KMS * np.log(FULL.wave_aa / FULL.wave0_aa)
    alike = []
    for first in (1000, FULL.length - 30_000):
        later = np.searchsorted(velocity, velocity[first : first + 20_000] + 10.0)
        one, other = error[:, first : first + 20_000], error[:, torch.from_numpy(later)]
        alike.append(float((one * other).mean() / one.square().mean()))
        assert 0.07 < float(one.std()) < 0.1  # linear between knots, where noise is less
    assert abs(alike[0] - alike[1]) < 0.03
    assert 0.35 < alike[0] < 0.75


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


def observed(release: Release, augment: Augment, rows: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    raw = EvaluationBatches(release, [rows], augment, seed=5)[0]
    return Observer(release.decoding, augment, CPU, dtype=dtype)(raw).flux


def simulated(release: Release, count: int) -> np.ndarray:
    return release.index.rows("simulated", "train")[:count]


@pytest.mark.parametrize("name", NEW)
def test_each_changes_the_spectrum_by_its_own_draws(release, name):
    rows, quiet = simulated(release, 8), Augment(noise=False)
    rich = NUISANCES["rich"].only(name)
    assert rich.on
    plain = observed(release, quiet, rows)
    changed = observed(release, quiet.model_copy(update={"nuisance": rich}), rows)
    assert ((plain - changed).abs().amax(dim=1) > 1e-4).sum() >= (1 if name == "cosmic_hits" else 6)
    other = "blanked" if name == "scattered_light" else "scattered_light"
    both = quiet.model_copy(update={"nuisance": rich.model_copy(update={other: 1e-9})})
    torch.testing.assert_close(observed(release, both, rows), changed, rtol=0, atol=1e-6)


def test_rich_spectra_do_not_depend_on_batch_or_precision(release):
    rows = np.concatenate([release.index.rows("real")[:2], simulated(release, 3)])
    exact = observed(release, RICH, rows, torch.float64)
    near = (observed(release, RICH, rows).double() - exact).abs()
    assert near.max() < 5e-4
    alone = torch.cat([observed(release, RICH, row[None], torch.float64) for row in rows])
    torch.testing.assert_close(alone, exact, rtol=0, atol=1e-11)
    quiet = observed(release, Augment(), rows[:2])
    assert torch.equal(observed(release, RICH, rows[:2]), quiet)  # observed spectra stay as they are


def test_blanked_pieces_lie_at_the_continuum_and_are_as_many_as_said(release):
    rows = simulated(release, 16)
    augment = Augment(nuisance=Nuisance(blanked=0.5))
    raw = EvaluationBatches(release, [rows], augment, seed=5)[0]
    flux = Observer(release.decoding, augment, CPU)(raw).flux
    whole = (flux.unflatten(1, (-1, disturbances.BLANKED_PIECE)) == 1).all(dim=2)
    level = keyed_uniforms(raw.key, len(LEVEL), LEVELS)[:, LEVEL.index("blanked")]
    share = whole.float().mean(dim=1)
    assert ((share - 0.5 * level).abs() < 0.25).all()  # of 64 pieces
    assert 0.1 < share.mean() < 0.4


def test_scattered_light_fills_lines_and_keeps_the_median(release):
    rows, quiet = simulated(release, 16), Augment(noise=False)
    plain = observed(release, quiet, rows)
    lit = observed(release, Augment(noise=False, nuisance=Nuisance(scattered_light=0.3)), rows)
    light = (lit - plain).mean(dim=1) / (1 - lit).mean(dim=1)
    torch.testing.assert_close(lit, (plain + light[:, None]) / (1 + light[:, None]), rtol=0, atol=1e-5)
    assert light.min() > -0.1001
    assert light.max() < 0.3001
    assert light.max() > 0.1
    torch.testing.assert_close(lit.median(dim=1).values, torch.ones(16), rtol=0, atol=1e-3)


def test_a_draw_that_rounds_to_one_hits_the_last_pixel_of_its_cell():
    """One in 2**24 uniforms does."""
    cells = 3
    draws = torch.cat([torch.zeros(1, cells), torch.ones(1, 2 * cells)], dim=1)  # all hit, at the end, with full height
    light = disturbances.cosmic_hits(draws, torch.full((1, 1), 1e-3), cells * disturbances.HIT_CELL)
    last = torch.arange(1, cells + 1) * disturbances.HIT_CELL - 1
    assert (light[0, last] == disturbances.HIT_HEIGHT).all()


def test_cosmic_hits_are_as_many_as_said_and_three_pixels_wide():
    draws = torch.rand(200, 3 * 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    light = disturbances.cosmic_hits(draws, torch.full((200, 1), 2e-3, dtype=torch.float64), 32_768)
    share = float((light > 0).double().mean())
    assert share == pytest.approx(3 * 2e-3, rel=0.05)
    assert 1.0 < light.max() < 2 * disturbances.HIT_HEIGHT
    assert not disturbances.cosmic_hits(draws, torch.zeros(200, 1, dtype=torch.float64), 32_768).any()


def test_lines_go_and_come():
    flux = torch.from_numpy(lines(named_grid("demo")))[None]
    factor, added = torch.zeros_like(flux), torch.zeros_like(flux)
    gone = disturbances.change_lines(flux, factor, added)
    torch.testing.assert_close(gone, disturbances.pseudo_continuum(flux))
    torch.testing.assert_close(disturbances.change_lines(flux, factor + 1, added), flux)
    torch.testing.assert_close(disturbances.change_lines(flux, factor + 1, added + math.log(2)), flux / 2)


def test_a_set_is_named_and_its_fields_still_override_it():
    def nuisance(*words: str) -> Nuisance:
        return parse(["demo-cnn-etc", *words])[1].data.augment.nuisance

    option = "--data.augment.nuisance"
    assert nuisance() == NUISANCES["plain"]
    assert nuisance(option, "rich") == nuisance(f"{option}=rich") == NUISANCES["rich"]
    assert nuisance(option, "none") == Nuisance()
    assert nuisance(f"{option}.blanked", "0", option, "rich") == NUISANCES["rich"].model_copy(update={"blanked": 0.0})
    with pytest.raises(ConfigError, match="no nuisances 'richer'; known are none, plain, rich"):
        nuisance(option, "richer")
    assert Augment(nuisance="rich").nuisance == NUISANCES["rich"]
    with pytest.raises(ValueError, match="known are none, plain, rich"):
        Augment(nuisance="poor")


def test_what_is_on_and_what_is_left_of_it():
    rich = NUISANCES["rich"].model_copy(update={"lines": "lines.npz"})
    assert rich.on == [*NUISANCES["rich"].on, "lines"]
    assert rich.only("lines").on == ["lines"]
    assert rich.only("continuum").on == ["continuum"]
    assert rich.only("continuum").continuum_knots == 16  # of how, not of whether
    assert not Nuisance(line_scale_aa=2.0, lines_scatter=1.0).on


def test_recipes_are_known_by_what_they_were_known_by():
    """The digest of a recipe from before there were these fields, and a recipe as it is saved and read again."""
    saved = find_recipe("demo-cnn-mix").model_dump(mode="json")
    assert saved["data"]["augment"]["nuisance"].keys() == {
        *("broadening_kms", "line_error", "line_scale_aa", "continuum", "continuum_knots")
    }
    rich = RECIPES["cnn-mix"].changed(data={"augment": RICH})
    assert Recipe.model_validate(rich.model_dump(mode="json")) == rich
    assert rich.digest != RECIPES["cnn-mix"].digest


def test_the_figure_has_a_panel_of_each(release, tmp_path):
    effects = nuisance_effects(release, NUISANCES["rich"], CPU)
    on = [name for name, value in NUISANCES["rich"] if value and Nuisance.model_fields[name].default == 0]
    assert [effect.name for effect in effects] == [*on, "all"]
    assert all(effect.change > 1e-4 for effect in effects)
    draw_effects(effects, release, tmp_path / "nuisances.png")
    assert (tmp_path / "nuisances.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        draw_effects(effects, release, tmp_path / "nuisances.pdf")


class DepthReader:
    """A network, as the benchmark of sensitivity asks for it, whose temperature [K] is how much light lines take."""

    device, id = CPU, "depth"

    def __init__(self, grid: Grid):
        self.grid = grid
        names = ("rv", "teff")
        self.description = SimpleNamespace(name="depth", labels=tuple(SimpleNamespace(name=name) for name in names))

    def check_reads(self) -> None:
        pass

    def predict_flux(self, flux: np.ndarray, chi2: bool) -> SimpleNamespace:
        depth = 1 - flux.astype(np.float64).mean(axis=1)
        return SimpleNamespace(labels=np.stack([0 * depth, 1000 * depth], axis=1))


@pytest.fixture(scope="module")
def shifts(release):
    return sensitivity(release, DepthReader(release.grid), NUISANCES["rich"], spectra=24)


def test_each_nuisance_alone_moves_labels_as_it_takes_or_gives_light(shifts):
    assert {shift.stars for shift in shifts} == {"below 5000 K", "5000 to 6000 K", "from 6000 K"}
    for stars in ("below 5000 K", "5000 to 6000 K", "from 6000 K"):
        found = {shift.nuisance: shift for shift in shifts if (shift.label, shift.stars) == ("teff", stars)}
        assert list(found) == ["none", *NUISANCES["rich"].on, "all"]
        assert -8000 < found["none"].shift < -3500  # a star's temperature, as what is read is some tens
        assert found["missing_lines"].shift < 0 < found["unlisted_lines"].shift
        assert found["cosmic_hits"].shift < 0
        assert all(shift.error == pytest.approx(shift.scatter / shift.spectra**0.5) for shift in found.values())


def test_pairs_share_star_and_velocities_and_differ_in_the_nuisance_alone(release, shifts):
    alone = sensitivity(release, DepthReader(release.grid), NUISANCES["rich"].only("cosmic_hits"), spectra=24)
    hits = [shift for shift in shifts if shift.nuisance in ("none", "cosmic_hits")]
    assert [shift for shift in alone if shift.nuisance != "all"] == hits
    assert [shift.shift for shift in alone[-6:]] == [shift.shift for shift in hits[-6:]]  # all is that one
    assert all(shift.shift == 0 for shift in shifts if shift.label == "rv" and shift.nuisance != "none")
    without = [shift for shift in shifts if shift.label == "rv" and shift.nuisance == "none"]
    assert all(abs(shift.shift) < 30 and 5 < shift.scatter < 30 for shift in without)  # what it reads, 0, off the truth


def test_tables_and_file_of_shifts(shifts, release, tmp_path):
    teff, rv = sensitivity_tables(shifts).split("\n\n")
    assert teff.startswith("| teff [K]")
    assert "below 5000 K" in rv.splitlines()[0]
    assert len(teff.splitlines()) == 2 + len(NUISANCES["rich"].on) + 2
    write_sensitivity(shifts, "a command", DepthReader(release.grid), tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["command"] == "a command"
    assert len(found["shifts"]) == len(shifts)


def test_what_sensitivity_cannot_be_measured_on(release):
    with pytest.raises(ConfigError, match="expected that of depth, harps"):
        sensitivity(release, DepthReader(named_grid("harps")), NUISANCES["rich"])
    with pytest.raises(ConfigError, match="0 simulated spectra of 9000 to inf K, expected at least 4"):
        sensitivity(release, DepthReader(release.grid), NUISANCES["rich"], edges_k=(9000,))
