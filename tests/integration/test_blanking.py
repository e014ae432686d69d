"""Predictions by blanking: the same whatever a spectrum comes with, calibrated, refused where they mislead."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import QTable
from rich.console import Console

import harps_dist
from harps_dist.columns import read_columns
from harps_dist.data.augment import NUISANCES
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.evaluation.evaluate import evaluate_run
from harps_dist.evaluation.measures import LEVELS
from harps_dist.evaluation.predicting import Evaluator
from harps_dist.evaluation.scoring import BLANKED
from harps_dist.inference.description import CARD
from harps_dist.inference.export import export_run
from harps_dist.inference.model import Exported
from harps_dist.models.blanking import read_blanked
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import Run
from harps_dist.spectra import nuisance
from harps_dist.training.loop import train_run
from tests.commands import run

SAMPLES = 4


@pytest.fixture(scope="module")
def folder(tiny_release, tmp_path_factory) -> Path:
    """The export of an encoder that saw blanked pieces."""
    folder, recipe = tmp_path_factory.mktemp("blanked"), find_recipe("demo-cnn-mix").model_copy(update={"parent": None})
    augment = recipe.data.augment.model_copy(update={"nuisance": NUISANCES["rich"]})
    training = {"steps": 30, "batch_size": 8, "warmup_steps": 0}
    data = {"release": str(tiny_release), "augment": augment}
    recipe = recipe.changed(model={"width": 0.125}, training=training, data=data)
    train_run(recipe, "rich", Release(tiny_release), folder / "run", World.alone())
    return export_run(folder / "run", folder / "model", Release(tiny_release))


@pytest.fixture(scope="module")
def exported(folder) -> Exported:
    return harps_dist.load(folder)


@pytest.fixture(scope="module")
def flux(tiny_release) -> np.ndarray:
    release = Release(tiny_release)
    return np.stack([release.array(int(row)) for row in release.index.rows("real")[:5]])


def test_labels_are_the_median_over_blankings_and_their_spread_joins_sigma(exported, flux):
    found, plain = exported.predict_flux(flux, samples=SAMPLES), exported.predict_flux(flux)
    seen: list[torch.Tensor] = []
    read = exported.model.read

    def watched(spectra: torch.Tensor):
        seen.append(spectra)
        return read(spectra)

    exported.model.read = watched  # type: ignore[method-assign]
    try:
        exported.predict_flux(flux, samples=SAMPLES)
    finally:
        del exported.model.read
    assert len(seen) == SAMPLES
    said = torch.stack([exported.model.physical(read(spectra).labels) for spectra in seen]).numpy()
    np.testing.assert_allclose(found.labels, np.median(said, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.sigma, np.sqrt(plain.sigma**2 + said.var(axis=0, ddof=1)), rtol=1e-6)
    assert (found.sigma > plain.sigma).all()
    pieces = torch.stack(seen).unflatten(2, (-1, nuisance.BLANKED_PIECE))
    share = float((pieces == nuisance.BLANK).all(dim=3).float().mean())
    assert 0.05 < share < 0.3  # 0.15 of 64 pieces, four times
    np.testing.assert_array_equal(found.anomaly, plain.anomaly)


def test_labels_do_not_depend_on_the_batch(exported, flux):
    together = exported.predict_flux(flux, samples=SAMPLES)
    alone = [exported.predict_flux(one, samples=SAMPLES) for one in flux[::-1]]
    np.testing.assert_allclose(
        np.concatenate([one.labels for one in alone])[::-1], together.labels, rtol=1e-5, atol=1e-4
    )
    np.testing.assert_array_equal(exported.predict_flux(flux, samples=SAMPLES).labels, together.labels)


def test_intervals_have_factors_of_their_own(exported, flux):
    facts = exported.description.labels
    assert all(len(fact.sampled_factors) == len(LEVELS) for fact in facts)
    assert [fact.sampled_factors for fact in facts] != [fact.factors for fact in facts]
    found = exported.predict_flux(flux, samples=SAMPLES)
    factors = np.array([fact.sampled_factors for fact in facts])
    np.testing.assert_allclose(found.half_width, found.sigma[:, :, None] * factors)


def test_the_card_says_whether_it_saw_blanked_pieces(folder, tiny_exports):
    card = " ".join((folder / CARD).read_text(encoding="utf-8").split())
    assert "Trained with up to 30% of the pieces of a spectrum blanked" in card
    assert "on genuine spectra they promise nothing" in card
    other = " ".join((tiny_exports / "demo-cnn-mix-laplace" / CARD).read_text(encoding="utf-8").split())
    assert "cannot predict by blanking" in other


def test_what_would_mislead_is_refused(exported, flux, tiny_exports):
    with pytest.raises(ConfigError, match=r"never saw blanked pieces .* train with --data\.augment\.nuisance rich"):
        harps_dist.load(tiny_exports / "demo-cnn-mix-laplace").predict_flux(flux, samples=SAMPLES)
    with pytest.raises(ConfigError, match="at least 2 blankings, got --samples 1"):
        exported.predict_flux(flux, samples=1)


def test_files_are_predicted_by_blanking(folder, tiny_demo, tiny_exports, tmp_path):
    spectra, table, tables = tiny_demo / "files/spectra", tmp_path / "t.ecsv", []
    for samples in (0, SAMPLES, 0):
        words = "harps_dist", "predict", folder, spectra, "-o", table, "--samples", samples
        run([sys.executable, "-m", *map(str, words)], tmp_path, expect=None)
        tables.append(QTable.read(table))
    plain, sampled, again = tables
    assert sampled.meta["samples"] == str(SAMPLES)
    assert "samples" not in plain.meta
    assert (plain["teff"] != sampled["teff"]).all()
    assert (plain["teff"] == again["teff"]).all()
    assert (sampled["teff_sigma"] > plain["teff_sigma"]).all()
    words = "harps_dist", "predict", tiny_exports / "demo-ae-mix", spectra, "-o", tmp_path / "a.ecsv", "--samples", 4
    said = run([sys.executable, "-m", *map(str, words)], tmp_path, expect=None)
    assert "never saw blanked pieces" in " ".join(said.split())
    assert not list(tmp_path.glob("a.*"))


def test_an_evaluation_reads_labels_by_the_same_blankings(folder, tiny_release, tiny_runs, tmp_path):
    """And says so; a model that never saw blanked pieces is refused before anything is written."""
    run_, release = folder.parent / "run", Release(tiny_release)
    (report, *_) = evaluate_run(
        run_, release, "test", tmp_path / "e", World.alone(), Console(quiet=True), samples=4
    ).values()
    assert BLANKED.format(4) in report.notes
    found = read_columns(tmp_path / "e/test-real/predictions.parquet")
    rows = release.index.rows("real", "test")
    flux = torch.from_numpy(np.stack([release.array(int(row)) for row in rows]))
    model = Run(run_).model("newest", release.manifest).eval()
    expected = read_blanked(model, flux, 0.3, 4).labels.numpy()
    for column, name in zip(expected.T, model.labels, strict=True):
        np.testing.assert_allclose(found[name], column, rtol=1e-4, atol=1e-3)
    for name, message in (("demo-ae-mix", "never saw blanked pieces"), ("demo-cnn-dec-etc", "models that read labels")):
        with pytest.raises(ConfigError, match=message):
            evaluate_run(tiny_runs / name, release, "test", tmp_path / "o", World.alone(), Console(), samples=4)
    assert not (tmp_path / "o").exists()


def test_the_spread_over_blankings_joins_what_an_evaluated_model_states(tiny_runs, tiny_release):
    run_, release = Run(tiny_runs / "demo-cnn-mix-laplace"), Release(tiny_release)
    nuisance_ = run_.recipe.data.augment.nuisance.model_copy(update={"blanked": 0.3})
    augment = run_.recipe.data.augment.model_copy(update={"nuisance": nuisance_})
    recipe = run_.recipe.changed(data={"augment": augment})
    rows = release.index.rows("real", "test")
    plain, sampled = (
        Evaluator(run_.model("newest", release.manifest), recipe, release, World.alone(), samples=samples).predict(rows)
        for samples in (0, SAMPLES)
    )
    flux = torch.from_numpy(np.stack([release.array(int(row)) for row in rows]))
    model = run_.model("newest", release.manifest).eval()
    variance = read_blanked(model, flux, 0.3, SAMPLES).variance.numpy()
    teff = model.labels.index("teff")
    expected = np.sqrt(plain.scores["teff_sigma"] ** 2 + variance[:, teff])
    np.testing.assert_allclose(sampled.scores["teff_sigma"], expected, rtol=1e-4)
    assert (sampled.scores["teff_sigma"] > plain.scores["teff_sigma"]).all()
