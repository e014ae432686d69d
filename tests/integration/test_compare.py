"""Two tiny models from a release and the one that grew from it: compared, promoted, gone back to, refused."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, Interrupted, PromotionError
from harps_dist.evaluation.evaluate import evaluate
from harps_dist.evaluation.predicting import Evaluator
from harps_dist.formats.archive import Archive
from harps_dist.promotion import compare
from harps_dist.promotion.compare import compare_runs
from harps_dist.promotion.comparison import Comparison, read_comparison
from harps_dist.promotion.gate import Gate, Line
from harps_dist.promotion.registry import Registry
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.checkpoint import MODEL, Snapshot, save_checkpoint
from harps_dist.runs.run import Run
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import INTRINSIC, NAMES, SEVEN
from harps_dist.training.loop import train_run
from preprocessing.growth import grow
from preprocessing.pack import Settings, pack
from tests.commands import command, run
from tests.integration.test_runs import at_tiny_scale

ALONE = World.alone()
QUIET = Console(quiet=True)
GATE = Gate(slower=None, surprise=None, lines=(Line(measure="labels", relative=0.10),))


@pytest.fixture(scope="module")
def grown(tiny_demo, tmp_path_factory) -> Path:
    """The tiny release, grown by two visits to each of six new stars and of two old ones."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(tiny_demo / "archive.zarr", folder / "a.zarr")
    with Archive.writing(folder / "a.zarr", named_grid("tiny")) as writer:
        flux, there = writer.data("real", 0), writer.rows("real")
        stars = [*(f"star {number}" for number in range(6)), *sorted({row["target"] for row in there})[:2]]
        for star, day in product(stars, range(2)):
            key = f"{star}-{day}"
            row = there[0] | {"key": key, "source": key, "target": star, "mjd": 60_000.0 + day}
            writer.append("real", [(row, flux)])
    grow(folder / "a.zarr", tiny_demo / "release", folder / "release", genuine=False)
    return folder / "release"


@pytest.fixture(scope="module")
def models(tiny_release, grown, tmp_path_factory) -> dict[str, Path]:
    """Autoencoders and encoders with uncertainties, of a few steps: old ones, and new ones on the grown release."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    laplace = find_recipe("demo-cnn-mix-laplace")
    for name, release in (("old", tiny_release), ("new", grown)):
        for kind, recipe in (("ae", find_recipe("demo-ae-mix")), ("cnn", laplace)):
            made[f"{name}-{kind}"] = folder / f"{name}-{kind}"
            recipe = at_tiny_scale(recipe).changed(training={"steps": 6, "seed": len(made)})
            train_run(recipe, f"demo-{kind}", Release(release), made[f"{name}-{kind}"], ALONE)
    return made


def compared(new: Path, old: Path | None, release: Path, out: Path, split="all") -> Comparison:
    return compare_runs(new, old, Release(release), split, out, ALONE, QUIET)


@pytest.fixture
def no_report(monkeypatch):
    """Figures take longer than tiny models."""
    monkeypatch.setattr(compare, "write_report", lambda made, out: out.mkdir(parents=True, exist_ok=True))


@pytest.mark.slow
def test_two_autoencoders_on_two_ranks_or_one(models, grown, tmp_path, no_report):
    arguments = (models["new-ae"], models["old-ae"], "--release", grown, "--split", "all", "-o", "two")
    printed = run(command("launch/compare.py", *arguments, ranks=2), tmp_path)
    assert "demo-ae" in printed
    two, one = read_comparison(tmp_path / "two"), compared(models["new-ae"], models["old-ae"], grown, tmp_path / "one")
    assert len(one.entries) == len(two.entries)
    for entry, other in zip(one.entries, two.entries, strict=True):
        assert entry.place == other.place
        np.testing.assert_allclose(
            [entry.old, entry.new, entry.low, entry.high], [other.old, other.new, other.low, other.high], rtol=1e-3,
            atol=1e-3 * abs(entry.old),
        )  # fmt: skip
    counts = {
        entry.population: (entry.spectra, entry.stars) for entry in one.find("real", "all") if entry.measure == "berv"
    }
    counts |= {
        who: (e.spectra, e.stars) for who in ("frozen", "new") for e in one.find("real", who) if e.measure == "berv"
    }
    visits = len(Release(grown).index.rows("real"))
    assert counts == {"all": (visits, 22), "frozen": (visits - 12, 16), "new": (12, 6)}
    measures = {
        kind: {entry.measure for entry in one.find(kind, "all")} for kind in ("real", "simulated", "generative")
    }
    assert measures["real"] == {*NAMES[:6], "MAE'", "RVIS"}
    assert measures["simulated"] >= {*SEVEN, "MAE'", "RVIS", "RVIS-true", "|RV sensitivity - 1|", "|do(rv) leakage|"}
    assert measures["generative"] >= {f"{score} {name}" for score in ("GIS", "GIS-true") for name in INTRINSIC}
    assert {entry.by for entry in one.entries} == {"overall", "teff", "logg", "mh", "snr", "era"}
    assert {entry.bin for entry in one.find("real", "all", "era")} == {"before", "after"}
    assert not any(entry.failed_new or entry.failed_old for entry in one.entries)
    assert one.release.parent == one.old.release_digest != one.new.release_digest == one.release.digest
    assert min(one.speed.new_ms, one.speed.old_ms) > 0
    assert 0 < one.speed.ratio_q25 <= one.speed.ratio <= one.speed.ratio_q75
    report = (tmp_path / "two/comparison.md").read_text()
    for figure in ("comparison.png", "comparison_bins.png"):
        assert figure in report
        assert (tmp_path / "two" / figure).stat().st_size > 10_000
    before = (tmp_path / "one/comparison.json").stat().st_mtime_ns
    compared(models["new-ae"], models["old-ae"], grown, tmp_path / "one")
    assert (tmp_path / "one/comparison.json").stat().st_mtime_ns == before  # it is there already
    compared(models["new-ae"], None, grown, tmp_path / "one")
    assert read_comparison(tmp_path / "one").old is None  # that one is not


def test_a_comparison_agrees_with_an_evaluation(models, grown, tmp_path, no_report):
    """Spectra counted one by one, under the new model's draws."""
    release = Release(grown)
    opened = Run(models["new-ae"])
    name, recipe, model, step = opened.name, opened.recipe, opened.model(on=release.manifest), opened.checkpoint().step
    report = evaluate(
        Evaluator(model, recipe, release, ALONE), name, step, "simulated", "test", tmp_path / "evaluation"
    )
    found = compared(models["new-ae"], models["old-ae"], grown, tmp_path / "comparison", "test").find(
        "simulated", "all"
    )
    of_measure = {entry.measure: entry.by_spectrum_new for entry in found}
    for score in report.labels:
        assert of_measure[score.name] == pytest.approx(score.mae, rel=1e-5), score.name
    for measure in report.measures:
        if measure.name in of_measure:
            assert of_measure[measure.name] == pytest.approx(measure.value, rel=1e-5), measure.name


def test_an_interrupted_comparison_keeps_what_was_predicted(models, grown, tmp_path, monkeypatch, no_report):
    predict, calls = Evaluator.predict, []

    def counted(self, rows, what="samples"):
        calls.append(what)
        if len(calls) == 4:
            raise Interrupted("stopped")
        return predict(self, rows, what)

    monkeypatch.setattr(Evaluator, "predict", counted)
    arguments = (models["new-cnn"], models["old-cnn"], grown, tmp_path / "c", "test")
    with pytest.raises(Interrupted):
        compared(*arguments)
    assert not (tmp_path / "c/comparison.json").exists()
    compared(*arguments)
    assert len(calls) == 4 + 9 - 3  # two models, kinds and splits each, and what has arrived; three are there
    arguments = (models["new-cnn"], "--release", grown, "--max-minutes", 0, "-o", "x")
    assert "Give the same command again" in run(command("launch/compare.py", *arguments), tmp_path, expect=75)


def test_coverage_of_uncertainties_is_compared(models, grown, tmp_path):
    found = compared(models["new-cnn"], models["old-cnn"], grown, tmp_path / "c", "test")
    simulated = {entry.measure: entry for entry in found.find("simulated", "all")}
    for name in NAMES[:6]:
        shares = [simulated[f"coverage {level} {name}"].by_spectrum_new for level in ("68%", "90%", "95%")]
        assert 0 <= shares[0] <= shares[1] <= shares[2] <= 1
    assert "coverage 90% teff" in (tmp_path / "c/comparison.md").read_text()


def test_a_model_that_lost_its_decoder_and_uncertainties_shows(models, grown, tmp_path):
    found = compared(models["new-cnn"], models["old-ae"], grown, tmp_path / "c", "test")
    lost = {(entry.kind, entry.measure) for entry in found.entries if entry.failed_new == entry.spectra}
    assert {("simulated", "RVIS"), ("simulated", "pwv"), ("real", "MAE'"), ("generative", "GIS teff")} <= lost
    assert "does not have it" in (tmp_path / "c/comparison.md").read_text()
    verdict = GATE.judge(found)
    assert "failed predictions" in verdict.failures[0].line


def poisoned(source: Path, folder: Path) -> Path:
    """The same run, but its teff is off by 3 standard deviations: as if labels had been wrong."""
    folder.mkdir()
    shutil.copy(source / "recipe.yaml", folder)
    checkpoint = Run(source).checkpoint()
    weights = load_file(checkpoint.path / MODEL)
    teff = find_recipe("demo-cnn-mix-laplace").model.labels.index("teff")
    weights["label_mean"][teff] += 3 * weights["label_std"][teff]
    save_checkpoint(folder / "checkpoints", Snapshot(weights, {}), checkpoint.state, 2)
    return folder


def test_from_the_first_model_to_a_refusal(models, grown, tmp_path, no_report):
    registry, current = Registry(tmp_path / "models"), tmp_path / "models/current"
    compared(models["old-cnn"], None, grown, tmp_path / "first")
    registry.promote(models["old-cnn"], tmp_path / "first", GATE)
    compared(models["new-cnn"], current, grown, tmp_path / "second")
    (tmp_path / "gate.yaml").write_text("slower: null\nsurprise: null\nlines: [{measure: labels, relative: 3}]\n")
    arguments = ("promote", models["new-cnn"], "--comparison", "second", "--gate", "gate.yaml")
    assert "promoted demo-cnn-" in run(command("launch/promote.py", *arguments), tmp_path)
    opened = Run(current)
    model, step = opened.model(on=Release(grown).manifest), opened.checkpoint().step
    assert (step, model.labels[0]) == (6, "rv")
    wrong = poisoned(models["new-cnn"], tmp_path / "wrong")
    compared(wrong, current, grown, tmp_path / "third")
    with pytest.raises(PromotionError, match=r"real, frozen, teff worse by at most 10%.* beyond"):
        registry.promote(wrong, tmp_path / "third", GATE)
    failed = {line.line.split(",")[2].split()[0] for line in registry.events()[-1].verdict.failures}
    assert failed == {"teff"}
    registry.rollback()
    assert [event.event for event in registry.events()] == ["promoted", "promoted", "refused", "rolled back"]
    compared(models["old-cnn"], current, grown, tmp_path / "itself")  # the copy is the same model
    assert {entry.difference for entry in read_comparison(tmp_path / "itself").find("real", "all")} == {0.0}


def test_another_split_is_refused(models, tiny_demo, tmp_path, no_report):
    pack(tiny_demo / "archive.zarr", tmp_path / "other", Settings((0.5, 0.25, 0.25), genuine=False))
    with pytest.raises(ConfigError, match="may have been trained on stars of the test split"):
        compared(models["old-cnn"], None, tmp_path / "other", tmp_path / "c", "test")
