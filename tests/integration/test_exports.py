"""What an export promises: factors of its own validation split, a light load, one table from any kind of input."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy import units

import harps_dist
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, ExportError, OutputError
from harps_dist.evaluation.calibration import conformal_factor
from harps_dist.evaluation.measures import LEVELS
from harps_dist.evaluation.predicting import Evaluator
from harps_dist.inference.description import CONFIG, WEIGHTS
from harps_dist.inference.export import EXPORT, export_run, exported_run, is_exported
from harps_dist.inference.precision import EAGER, compute_by
from harps_dist.ranks.world import World
from harps_dist.runs.run import Run
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.medium import air_to_vacuum
from preprocessing.pack import Settings, pack
from tests.commands import environment
from tests.integration.conftest import STEPS

CNN, AE, VAE, DECODER, PHYS = STEPS
PRECISIONS = ("fp32", "bf16")


def spectra(release: Path, count: int = 3) -> np.ndarray:
    opened = Release(release)
    flux = np.stack([opened.array(int(row)) for row in opened.index.rows("real")[:count]])
    return flux / np.median(flux, axis=1, keepdims=True)  # quantised, they are off a median of 1


@pytest.mark.parametrize("name", [CNN, AE])
def test_the_factors_are_those_of_the_validation_split(name, tiny_runs, tiny_exports, tiny_release):
    """Computed again from what evaluation predicts."""
    release = Release(tiny_release)
    opened = Run(tiny_runs / name)
    recipe, model = opened.recipe, opened.model("best", on=release.manifest)
    tried, checked = Evaluator(model, recipe, release, World.alone()), 0
    exported, index = harps_dist.load(tiny_exports / name), release.index
    for label in exported.description.labels:
        kind = "simulated" if label.calibrated_on == "simulated" else "real"
        held_out, column = tried.predict(index.rows(kind, "validation")), NAMES.index(label.name)
        truth, stars = held_out.truth[:, column], index["star"][held_out.rows]
        known = ~np.isnan(truth)
        assert (known.sum(), len(set(stars[known]))) == (label.spectra, label.stars)
        residual = np.abs(held_out.labels[known, column] - truth[known])
        if name == CNN:
            assert np.isnan(label.scale)
            sigma = held_out.scores[f"{label.name}_sigma"][known]
        else:
            np.testing.assert_allclose(label.scale, np.sqrt(np.mean(residual**2)), rtol=1e-3)
            sigma = label.scale
        expected = [conformal_factor(residual / sigma, stars[known], level) for level in LEVELS]
        np.testing.assert_allclose(label.factors, expected, rtol=1e-3)
        checked += np.isfinite(label.factors).sum()
    assert checked >= 6
    one = exported.predict_flux(spectra(tiny_release, 1))
    factors = np.array([label.factors for label in exported.description.labels])
    np.testing.assert_allclose(one.half_width[0], one.sigma[0][:, None] * factors)


def test_the_spread_of_a_variational_model_is_that_of_its_label_nodes(tiny_exports, tiny_release):
    exported, flux = harps_dist.load(tiny_exports / VAE), spectra(tiny_release)
    log_variance = exported.model.encode(torch.from_numpy(flux)).log_variance
    expected = torch.exp(log_variance[:, :7] / 2).double() * exported.model.label_std
    np.testing.assert_allclose(exported.predict_flux(flux).sigma, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", [CNN, AE, VAE])
def test_labels_in_any_precision_are_those_of_float64_far_within_their_uncertainty(name, tiny_exports, tiny_release):
    """Labels, and whether a spectrum is strange, as float32 calibrated them."""
    plain, flux = harps_dist.load(tiny_exports / name, precision="fp32"), spectra(tiny_release, 16)
    compute_by(plain.model, EAGER)
    labels, _, _, features = copy.deepcopy(plain.model).double().read(torch.from_numpy(flux).double())
    exact = plain.model.physical(labels).numpy()
    distance = plain.reference.gaussian.distance(features).numpy()
    sigma = plain.predict_flux(flux).sigma
    with torch.autocast("cpu", torch.bfloat16):
        eager = plain.predict_flux(flux)

    def off(labels: np.ndarray) -> float:
        """Root mean square error in standard deviations."""
        return float(np.sqrt(np.mean(((labels - exact) / sigma) ** 2)))

    float32, bfloat16 = (harps_dist.load(tiny_exports / name, precision=key).predict_flux(flux) for key in PRECISIONS)
    assert off(float32.labels) < 1e-4
    np.testing.assert_allclose(float32.distance, distance, rtol=1e-3)
    assert 1e-4 < off(bfloat16.labels) < min(0.1, 1.5 * off(eager.labels))
    np.testing.assert_allclose(bfloat16.sigma, sigma, rtol=0.05)
    np.testing.assert_allclose(bfloat16.distance, distance, rtol=0.05)


def test_a_table_says_its_precision_and_auto_is_what_calibrates_on_a_cpu(tiny_exports, tiny_release):
    flux = spectra(tiny_release, 1)
    said = {
        key: harps_dist.load(tiny_exports / CNN, precision=key).predict(flux).meta["precision"] for key in PRECISIONS
    }
    assert said == {"fp32": "fp32", "bf16": "bf16"}
    assert harps_dist.load(tiny_exports / CNN).computing.precision == "fp32"


def test_loading_computes_no_weights_and_imports_no_compiler(tiny_exports):
    """Drawing weights that a file replaces, on tensors without memory, makes torch import its compiler for seconds."""
    code = (
        "import sys, torch, harps_dist; before = torch.get_rng_state()\n"
        f"for name in {tuple(STEPS)}: harps_dist.load({str(tiny_exports)!r} + '/' + name)\n"
        "print('torch._dynamo' in sys.modules, bool((torch.get_rng_state() == before).all()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.split() == ["False", "True"]


def test_arrays_on_and_off_the_grid_and_spectra_give_one_table(tiny_exports, tiny_release):
    exported, flux = harps_dist.load(tiny_exports / CNN), spectra(tiny_release)
    exact, teff_at = exported.predict_flux(flux), exported.labels.index("teff")
    table = exported.predict(flux * np.array([[3.0], [1e6], [1e-3]], np.float32))  # any unit of the flux
    assert table["teff"].unit == units.K
    assert table["rv"].unit == units.km / units.s
    teff = exact.labels[:, teff_at]
    np.testing.assert_allclose(table["teff"].value, teff, rtol=1e-4)
    wave_aa = exported.grid.wave_aa
    vacuum = air_to_vacuum(wave_aa) * units.AA
    for again in (
        exported.predict(wave_aa, flux),
        exported.predict((wave_aa, flux)),
        exported.predict(wave_aa[::-1], flux[:, ::-1]),
        exported.predict(SimpleNamespace(spectral_axis=wave_aa / 10 * units.nm, flux=flux * units.adu)),
        exported.predict(SimpleNamespace(spectral_axis=vacuum, flux=flux, meta={"medium": "vacuum"}), medium="vacuum"),
    ):
        np.testing.assert_allclose(again["teff"].value, teff, rtol=1e-3)
    for meta in ({"medium": "vacuum"}, {"header": {"CTYPE1": "WAVE"}}, {"AIRORVAC": "vac"}):
        with pytest.raises(ConfigError, match="wavelengths are in vacuum"):
            exported.predict(SimpleNamespace(spectral_axis=vacuum, flux=flux, meta=meta))


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"kind": "encoder"}},
        {"model": {"kind": ["autoencoder"]}},
        {"grid": {"length": 4097}},
        {"grid": {"length": 2**62}},
        {"grid": {"step_aa": 0.02}},
        {"labels": []},
        {"format": 0},
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(change, tiny_exports, tmp_path):
    copy = Path(shutil.copytree(tiny_exports / AE, tmp_path / "copy"))
    content = json.loads((copy / CONFIG).read_text())
    for key, fields in change.items():
        content[key] = content[key] | fields if isinstance(fields, dict) else fields
    (copy / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ExportError):
        harps_dist.load(copy)


def test_an_export_is_made_once_and_replaces_nothing_else(tiny_runs, tiny_release, tmp_path):
    run, release = Path(shutil.copytree(tiny_runs / VAE, tmp_path / "run")), Release(tiny_release)
    assert not is_exported(Run(run))
    first = exported_run(Run(run), release)
    stamp = (run / EXPORT / CONFIG).stat().st_mtime_ns
    assert exported_run(Run(run), release).digest == first.digest
    assert (run / EXPORT / CONFIG).stat().st_mtime_ns == stamp
    content = json.loads((run / EXPORT / CONFIG).read_text())
    content["sha256"][WEIGHTS] = "0" * 64  # as of a checkpoint that is not the best any more
    (run / EXPORT / CONFIG).write_text(json.dumps(content))
    assert exported_run(Run(run), release).digest == first.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there and is no export, so it is not replaced"):
        export_run(run, tmp_path / "mine", release)
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"


def test_a_release_that_splits_stars_otherwise_calibrates_nothing(tiny_runs, tiny_demo, tmp_path):
    pack(tiny_demo / "archive.zarr", tmp_path / "other", Settings(fractions=(0.4, 0.3, 0.3), genuine=False))
    with pytest.raises(ConfigError, match="stars it has seen would calibrate it"):
        exported_run(Run(shutil.copytree(tiny_runs / CNN, tmp_path / "run")), Release(tmp_path / "other"))
