"""Training with corrections of line depths: what they do to spectra, and runs that keep them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harps_dist.commands.train import parse
from harps_dist.config import Recipe
from harps_dist.data.augment import NUISANCES, Augment, Nuisance
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.evaluation.predicting import Evaluator
from harps_dist.formats.line_corrections import UNIT, About, LineCorrections, read_corrections, write_corrections
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import Run
from harps_dist.sealed import sealed_name
from harps_dist.spectra import nuisance as disturbances
from harps_dist.training.loop import train_run
from tests.integration.test_nothing_replaced import run_command

CPU, WORLD = torch.device("cpu"), World.alone()
FIRST_AA, KNOTS = 6110.0, 600  # 6110.00-6121.98 Å, of the tiny grid's 6095.00-6135.95 Å


def made_up(seed: int = 0) -> LineCorrections:
    about = About(
        star="HD 1", teff=5207, logg=4.53, mh=0.24, vmic=0.9, files=("a",), models="m", wave0_aa=FIRST_AA,
        step_aa=0.02, made_by="test",
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    parts = (draw.normal(0, 0.3, KNOTS).clip(-0.9, 1.9), draw.uniform(0, 0.1, KNOTS))
    return LineCorrections(about, *(np.round(part / UNIT).astype(np.int16) for part in parts))


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corrections") / "mine.npz"
    write_corrections(path, made_up())
    return path


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


def counts(release: Release, nuisance: Nuisance, dtype: torch.dtype = torch.float64, rv: float = 0.0) -> np.ndarray:
    """(4, pixel) counts of simulated spectra without noise, at one velocity."""
    augment = Augment(rv_kms=0, noise=False, nuisance=nuisance)
    raw = EvaluationBatches(release, [release.index.rows("simulated")[:4]], augment, seed=5)[0]
    raw = raw._replace(rv_kms=torch.full_like(raw.rv_kms, rv))
    return Observer(release.decoding, augment, CPU, dtype=dtype).simulate(raw).double().numpy()


def test_lines_are_corrected_as_the_file_says_and_nothing_beyond_it(release, lines):
    plain = counts(release, Nuisance())
    found = counts(release, Nuisance(lines=str(lines), lines_scatter=0.0))
    wave_aa = release.grid.wave_aa
    beyond = (wave_aa < FIRST_AA - 0.1) | (wave_aa > FIRST_AA + 0.02 * KNOTS + 0.1)
    np.testing.assert_allclose(found[:, beyond], plain[:, beyond], rtol=1e-9)
    row = release.index.rows("simulated")[0]
    sed = torch.from_numpy(release.array(row)).double()[None]
    factor, added = made_up().at(release.source_grid.wave_aa)
    depth = torch.log(disturbances.pseudo_continuum(sed) / sed)[0].numpy()
    expected = np.exp(-factor * depth - added)[release.grid.within(release.source_grid)]
    np.testing.assert_allclose((found / plain)[0], expected, atol=2e-4)
    assert np.ptp(expected) > 0.1


def test_they_move_with_the_star(release, lines):
    ratio = [
        counts(release, Nuisance(lines=str(lines), lines_scatter=0.0), rv=rv) / counts(release, Nuisance(), rv=rv)
        for rv in (0.0, 49.0)  # one Å
    ]
    still, moved = (1 - each[0] for each in ratio)
    lag = np.correlate(moved, still, "full").argmax() - (len(still) - 1)
    assert lag == pytest.approx(100, abs=1)


def test_lines_get_shares_of_them_that_scatter_about_one(release, lines):
    plain, whole, drawn = (
        np.log(counts(release, nuisance))
        for nuisance in (
            Nuisance(),
            Nuisance(lines=str(lines), lines_scatter=0.0),
            Nuisance(lines=str(lines), lines_scatter=0.4),
        )
    )
    changed = np.abs(whole - plain) > 0.02
    share = ((drawn - plain) / np.where(changed, whole - plain, 1))[changed]
    assert share.mean() == pytest.approx(1.0, abs=0.15)
    assert 0.2 < share.std() < 0.5
    assert not np.array_equal((drawn - plain)[0], (drawn - plain)[1])
    both = Nuisance(lines=str(lines), lines_scatter=0.4, scattered_light=1e-9)
    np.testing.assert_allclose(np.log(counts(release, both)), drawn, atol=1e-6)  # draws of their own
    near = counts(release, Nuisance(lines=str(lines), lines_scatter=0.4), torch.float32)
    np.testing.assert_allclose(np.log(near), drawn, atol=2e-4)


def test_settings_without_them_are_saved_as_before_and_with_them_by_the_name():
    assert not Nuisance().on
    assert Nuisance(lines="x").on
    assert not Nuisance(lines="x").only("blanked").on
    assert "lines" not in NUISANCES["rich"].model_dump()
    assert "lines_scatter" not in NUISANCES["rich"].model_dump()
    option = "--data.augment.nuisance"
    given = parse(["demo-cnn-etc", option, "rich", f"{option}.lines", "a.npz", f"{option}.lines-scatter", "0.2"])[1]
    asked = NUISANCES["rich"].model_copy(update={"lines": "a.npz", "lines_scatter": 0.2})
    assert given.data.augment.nuisance == asked
    kept = Nuisance(lines="a/lines-1.npz", lines_scatter=0.0)
    assert Nuisance.model_validate(kept.model_dump()) == Nuisance(lines="lines-1.npz", lines_scatter=0.0)


def recipe_with(lines: Path, release: Path, steps: int = 2) -> Recipe:
    nuisance = Nuisance(lines=str(lines))
    recipe = find_recipe("demo-cnn-mix").model_copy(update={"parent": None})
    augment = recipe.data.augment.model_copy(update={"nuisance": nuisance})
    return recipe.changed(
        model={"width": 0.125},
        training={"steps": steps, "batch_size": 8, "warmup_steps": 0},
        data={"release": str(release), "augment": augment},
    )


@pytest.fixture(scope="module")
def trained(tiny_release, release, lines, tmp_path_factory) -> Path:
    """A run whose file of corrections is gone since."""
    folder = tmp_path_factory.mktemp("trained")
    given = shutil.copy(lines, folder / "given.npz")
    train_run(recipe_with(given, tiny_release), "corrected", release, folder / "run", WORLD)
    given.unlink()
    return folder / "run"


def test_a_run_keeps_the_file_and_is_evaluated_by_it(trained, lines, release):
    (copy,) = trained.glob("lines-*.npz")
    assert copy == sealed_name(trained / "lines.npz", lines)
    run = Run(trained)
    assert run.recipe.data.augment.nuisance.lines == str(copy)
    assert run.recipe.digest == run.saved.recipe_digest
    evaluator = Evaluator(run.model(), run.recipe, release, WORLD)
    predicted = evaluator.predict(release.index.rows("simulated", "test"))
    assert np.isfinite(predicted.labels[:, : len(run.recipe.model.labels)]).all()
    moved = trained.rename(trained.with_name("moved"))
    assert Path(Run(moved).recipe.data.augment.nuisance.lines).parent == moved
    moved.rename(trained)


def test_it_is_exported(trained, tiny_release, tmp_path, capsys, monkeypatch):
    arguments = f"{trained} {tmp_path / 'model'} --release {tiny_release} --spectra 8"
    code, said = run_command("export", arguments, capsys, monkeypatch)
    assert code == 0, said


def test_it_goes_on_without_the_file_but_not_with_another(trained, tiny_release, release, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    train_run(recipe_with(trained.parent / "given.npz", tiny_release), "corrected", release, run, WORLD)
    write_corrections(tmp_path / "other.npz", made_up(1))
    before = sorted(run.rglob("*"))
    with pytest.raises(ResumeError, match=r"data\.augment\.nuisance\.lines was lines-\w+\.npz, is lines-"):
        train_run(recipe_with(tmp_path / "other.npz", tiny_release), "corrected", release, run, WORLD)
    assert sorted(run.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"--data\.augment\.nuisance\.lines: there is no file"):
        train_run(recipe_with(tmp_path / "none.npz", tiny_release), "x", release, tmp_path / "new", WORLD)


def test_another_run_learns_by_the_copy(trained, tiny_release, release, tmp_path):
    """As a retraining does, which takes the recipe of the run before."""
    recipe = Run(trained).recipe
    train_run(recipe, "next", release, tmp_path / "next", WORLD)
    after = Run(tmp_path / "next").recipe
    assert after.digest == recipe.digest
    assert read_corrections(Path(after.data.augment.nuisance.lines), "x").id == made_up().id
    assert Path(after.data.augment.nuisance.lines).parent == tmp_path / "next"


def test_a_damaged_copy_is_refused(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (copy,) = run.glob("lines-*.npz")
    write_corrections(tmp_path / "other.npz", made_up(1))
    shutil.copy(tmp_path / "other.npz", copy)
    with pytest.raises(ConfigError, match=r"the content of .* is not what its name says"):
        Run(run).recipe  # noqa: B018
    copy.unlink()
    assert Run(run).recipe  # which says who asks for the file


def test_a_registry_has_the_copy_too(trained, tmp_path):
    from harps_dist.promotion.registry import Registry

    run = Run(trained)
    registry = Registry(tmp_path / "models")
    registry.folder.mkdir()
    registry._store(trained, run.identity(), run.checkpoint().path)
    stored = Run(registry.folder / run.identity().folder_name).recipe.data.augment.nuisance.lines
    assert Path(stored).is_file()
