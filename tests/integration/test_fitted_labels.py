"""Labels of fits: from a table to an archive that lacks them, to a release, to batches, to the loss."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from harps_dist.data.augment import Augment
from harps_dist.data.batches import EvaluationBatches, TrainingBatches
from harps_dist.data.manifest import Index
from harps_dist.data.observer import Observer
from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError
from harps_dist.fitting.files import fit_files
from harps_dist.fitting.fitter import Fitter
from harps_dist.formats.archive import Archive
from harps_dist.formats.fit_tables import FitLabels, read_fits
from harps_dist.formats.sed import MODEL_ERRORS
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.log import read_log
from harps_dist.runs.run import Run
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import CATALOGUED, NAMES
from harps_dist.training.loop import train_run
from preprocessing.difference import compare_releases, difference_tables
from preprocessing.growth import grow
from preprocessing.index_facts import label_statistics
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import Settings, pack
from preprocessing.verify import verify
from tests.archives import remade
from tests.commands import command, run
from tests.made_up_fits import write_fits

TEFF, RV, LOGG, AIRMASS = (NAMES.index(name) for name in ("teff", "rv", "logg", "airmass"))
SETTINGS = Settings(fractions=(0.6, 0.2, 0.2))
UNKNOWN = dict.fromkeys(CATALOGUED, np.nan)
FIT = {"teff": (5200.0, 20.0), "rv": (12.5, 0.02), "logg": (4.4, 0.03)}


@pytest.fixture(scope="module")
def silent(tiny_demo, tmp_path_factory) -> Path:
    """The demo's archive without a label of any catalogue, but for every fourth spectrum. Read only."""
    count = Archive(tiny_demo / "archive.zarr").count("real")
    changes = {("real", row): UNKNOWN for row in range(count) if row % 4}
    return remade(tiny_demo / "archive.zarr", tmp_path_factory.mktemp("silent") / "a.zarr", changes)


@pytest.fixture(scope="module")
def unlabelled(silent, tmp_path_factory) -> Path:
    """A release of it. Read only."""
    folder = tmp_path_factory.mktemp("unlabelled") / "R"
    pack(silent, folder, SETTINGS)
    return folder


def products(index, split, known: bool) -> list[str]:
    """Data products whose star's temperature the catalogue knows, or not."""
    rows = [row for row in index.rows("real", split) if np.isfinite(index["teff"][row]) == known]
    return [index["key"][row].removeprefix("real-") for row in rows]


def at(index, product: str) -> int:
    return index["key"].tolist().index(f"real-{product}")


@pytest.fixture(scope="module")
def fits(unlabelled, tmp_path_factory) -> Path:
    """Fits of all spectra, one of them flagged, one with a radial velocity alone, and one of another archive."""
    index = Release(unlabelled).index
    every = [key.removeprefix("real-") for key in index["key"][index.rows("real")]]
    first, second, third, *_ = products(index, "train", known=False)
    fitted = dict.fromkeys([*every, "elsewhere"], FIT) | {second: {"rv": (3.0, 0.1)}}
    fitted[third] = FIT | {"logg": (5.3, 0.1), "airmass": (1.5, 0.01)}
    return write_fits(tmp_path_factory.mktemp("fits") / "fits.ecsv", fitted, {first: "at_edge"})


@pytest.fixture(scope="module")
def labelled(silent, fits, tmp_path_factory) -> Path:
    """A release of the archive with labels of these fits. Read only."""
    folder = tmp_path_factory.mktemp("labelled") / "R"
    pack(silent, folder, SETTINGS, fits=read_fits(fits))
    return folder


def test_fits_label_what_the_catalogue_does_not_in_the_training_split_alone(unlabelled, labelled):
    before, after = Release(unlabelled).index, Release(labelled).index
    first, second, third, *others = products(before, "train", known=False)
    assert len(others) > 2
    for product in others:
        row, known = at(after, product), before.labels[at(before, product)]
        assert after.labels[row, [TEFF, RV, LOGG]].tolist() == [5200.0, 12.5, 4.4]
        assert after.errors[row, [TEFF, RV, LOGG]].tolist() == [20.0, 0.02, 0.03]
        assert after.labels[row, AIRMASS] == known[AIRMASS]  # the header's
        assert np.isnan(after.errors[row, AIRMASS])
    assert np.isnan(after.labels[at(after, first), [TEFF, RV, LOGG]]).all()  # flagged
    assert np.isnan(after.labels[at(after, second), TEFF])
    assert after.labels[at(after, second), RV] == 3.0
    assert np.isnan(after.labels[at(after, third), LOGG])  # beyond the paper's range
    assert after.labels[at(after, third), AIRMASS] == before.labels[at(before, third), AIRMASS]
    for product in products(before, "train", known=True):
        known = np.isfinite(before.labels[at(before, product)])
        np.testing.assert_array_equal(
            after.labels[at(after, product)][known], before.labels[at(before, product)][known]
        )
        assert np.isnan(after.errors[at(after, product)][known]).all()
    for split in ("validation", "test"):
        rows = after.rows("real", split)
        assert np.isnan(after.errors[rows]).all()
        held = [at(before, key.removeprefix("real-")) for key in after["key"][rows]]
        np.testing.assert_array_equal(after.labels[rows], before.labels[held])


def test_the_manifest_counts_them_and_the_scale_of_labels_stays(unlabelled, labelled, fits):
    before, after = Release(unlabelled), Release(labelled)
    fitted = after.manifest.fitted
    assert before.manifest.fitted is None
    assert "fitted" not in before.manifest.model_dump()
    assert not {"teff_error"} & set((unlabelled / "index.parquet").read_bytes().split(b"\0"))
    assert before.digest != after.digest
    assert fitted.fits == read_fits(fits).digest
    silent_ones = len(products(before.index, "train", known=False))
    assert fitted.counts["teff"] == silent_ones - 2
    assert fitted.counts["rv"] >= silent_ones - 1
    held = sum(len(before.index.rows("real", split)) for split in ("validation", "test"))
    told = fitted.passed_over
    assert (told["of a held-out star"], told["of no spectrum of the release"], told["flagged at_edge"]) == (held, 1, 1)
    assert told["logg outside 3.5..5"] == 1
    assert before.manifest.label_statistics == after.manifest.label_statistics
    assert verify(labelled) == []
    difference = compare_releases(before, after)
    assert difference.fitted == ({}, fitted.counts)
    assert len(difference.relabelled) >= silent_ones - 1
    words = [cell for table in difference_tables(difference) for column in table.columns for cell in column._cells]
    assert f"0 to {fitted.counts['teff']}" in words


def test_the_command_tells_and_knows_what_it_wrote(silent, fits, labelled, tmp_path):
    words = ("pack", "--archive", silent, "--release", tmp_path / "R", "--split", 0.6, 0.2, 0.2)
    told = [run(command("preprocessing/__main__.py", *words, "--labels-from", fits), tmp_path) for _ in range(2)]
    assert Release(tmp_path / "R").digest == Release(labelled).digest
    assert "it is just what was there before" in told[1]
    for said in told:
        flat = " ".join(said.split())
        assert "labels of fits, where the catalogue has none (training split): rv " in flat
        assert "fits without effect: " in flat
        assert "of no spectrum of the release 1" in flat
    assert "the labels of fits differ" in " ".join(run(command("preprocessing/__main__.py", *words), tmp_path).split())
    assert Release(tmp_path / "R").manifest.fitted is None


def test_without_simulations_and_catalogue_fits_say_what_scale_labels_have(labelled):
    table = pq.read_table(labelled / "index.parquet")
    fitted = table.filter(pc.is_finite(table["teff_error"]))
    statistics = label_statistics(Index(fitted))
    assert (statistics["teff"].mean, statistics["teff"].std, statistics["teff"].count) == (5200.0, 0.0, len(fitted))


def changed(fits: FitLabels, rows: slice) -> FitLabels:
    """Some of the fits, 100 K hotter."""
    hotter = fits.values[rows] + np.where(np.arange(len(NAMES)) == TEFF, 100.0, 0.0)
    return FitLabels(fits.products[rows], hotter, fits.errors[rows], {}, {})


def test_a_release_that_grows_keeps_them_until_something_better_is_known(
    silent, tiny_demo, labelled, unlabelled, fits, tmp_path
):
    old = Release(labelled)
    with pytest.raises(ArchiveError, match="has nothing that release"):
        grow(silent, labelled, tmp_path / "same")
    with pytest.raises(ArchiveError, match="has nothing that release"):
        grow(silent, labelled, tmp_path / "same", fits=read_fits(fits))
    # fits for a release that had none
    grow(silent, unlabelled, tmp_path / "late", fits=read_fits(fits))
    late = Release(tmp_path / "late")
    assert late.manifest.fitted == old.manifest.fitted
    for product in products(Release(unlabelled).index, "train", known=False):
        for found, expected in ((late.index.labels, old.index.labels), (late.index.errors, old.index.errors)):
            np.testing.assert_array_equal(found[at(late.index, product)], expected[at(old.index, product)])
    assert verify(tmp_path / "late") == []
    # the catalogue speaks of a star, and another fit of others
    index, archive = Release(unlabelled).index, Archive(silent)
    *_, known, other, last = products(index, "train", known=False)
    number = archive.column("real", "key").tolist().index(known)
    told = remade(silent, tmp_path / "told.zarr", {("real", number): {"teff": 6000.0}})
    newer = read_fits(fits)
    row = newer.row(other)
    grow(told, labelled, tmp_path / "grown", fits=changed(newer, slice(row, row + 1)))
    grown = Release(tmp_path / "grown").index
    teff = {name: (grown.labels[at(grown, name), TEFF], grown.errors[at(grown, name), TEFF]) for name in (other, last)}
    assert teff == {other: (5300.0, 20.0), last: (5200.0, 20.0)}
    assert grown.labels[at(grown, known), TEFF] == 6000.0
    assert np.isnan(grown.errors[at(grown, known), TEFF])
    assert grown.errors[at(grown, known), RV] == 0.02
    assert verify(tmp_path / "grown") == []
    assert len(compare_releases(old, Release(tmp_path / "grown")).relabelled) == 2
    # the same fits with other errors
    grow(silent, labelled, tmp_path / "vaguer", fits=replace(newer, errors=2 * newer.errors))
    vaguer = Release(tmp_path / "vaguer").index
    assert (vaguer.labels[at(vaguer, last), TEFF], vaguer.errors[at(vaguer, last), TEFF]) == (5200.0, 40.0)
    assert last in compare_releases(old, Release(tmp_path / "vaguer")).relabelled


def test_training_sees_them_with_their_errors_and_nothing_is_judged_by_them(labelled):
    release = Release(labelled)
    recipe = find_recipe("demo-cnn-mix")
    order = Order(release.index, Mix(real=1.0, simulated=1.0), 0, release.digest)
    batches = TrainingBatches(release, order, recipe.data, seed=0, size=64)
    raw = batches[0]
    index = release.index
    errors = index.errors[raw.rows.numpy()]
    assert np.isfinite(errors[:, TEFF]).sum() > 2
    np.testing.assert_array_equal(raw.label_errors.numpy(), np.nan_to_num(errors))
    np.testing.assert_array_equal(raw.labels[:, TEFF].numpy(), index.labels[raw.rows.numpy(), TEFF])
    batch = Observer(release.decoding, Augment(), torch.device("cpu"))(raw)
    assert torch.equal(batch.label_errors, raw.label_errors)
    train = index.rows("real", "train")
    judged = EvaluationBatches(release, [train], Augment(), seed=0)[0].labels.numpy()
    np.testing.assert_array_equal(np.isnan(judged[:, TEFF]), np.isnan(index.truths[train, TEFF]))
    assert np.isnan(judged[np.isfinite(index.errors[train])]).all()


def trained(release: Path, out: Path, **loss: float) -> tuple[float, torch.Tensor]:
    """The label loss of the last steps of a training on real spectra, and the weights of its head."""
    recipe = find_recipe("demo-cnn-mix").model_copy(update={"parent": None})
    settings = {"steps": 6, "batch_size": 8, "warmup_steps": 0}
    data = {"release": str(release), "mix": Mix(real=1.0, simulated=0.0)}
    recipe = recipe.changed(
        model={"width": 0.0625, "labels": ("teff", "logg")}, training=settings, data=data, loss=loss
    )
    recipe = recipe.changed(log={"every": 1})
    train_run(recipe, "demo-cnn-mix", Release(release), out, World.alone())
    losses = [line["loss_label"] for line in read_log(out) if "loss_label" in line]
    return float(np.mean(losses)), Run(out).model().state_dict()["network.head.weight"]


def test_labels_of_fits_are_learned_and_their_errors_weigh(tiny_demo, tmp_path):
    """Of an archive without any label."""
    rows = Archive(tiny_demo / "archive.zarr").rows("real")
    silent = remade(tiny_demo / "archive.zarr", tmp_path / "a.zarr", {("real", n): UNKNOWN for n in range(len(rows))})
    found = {}
    for name, error in (("none", None), ("sharp", 1.0), ("vague", 5000.0)):
        labels = {row["key"]: {"teff": (5200.0, error), "rv": (-22.9, 0.01)} for row in rows} if error else {}
        table = write_fits(tmp_path / f"{name}.ecsv", labels or {"elsewhere": FIT})
        manifest = pack(silent, tmp_path / name, SETTINGS, fits=read_fits(table))
        assert "rv" not in manifest.label_statistics  # so that training takes the range that it draws from
        found[name] = trained(tmp_path / name, tmp_path / f"run-{name}")
    assert found["none"][0] == 0
    assert found["sharp"][0] > 0.05
    assert 0 < found["vague"][0] < 0.01 * found["sharp"][0]
    assert not torch.equal(found["none"][1], found["sharp"][1])
    assert trained(tmp_path / "vague", tmp_path / "run-wide", label_scatter=1e6)[0] > 0.9 * found["sharp"][0]


def test_genuine_spectra_without_a_catalogue_are_labelled_by_their_fits(genuine_data, tmp_path):
    """Two visits of alpha Cen B, and an M dwarf, which the fit does not read."""
    (tmp_path / "spectra").mkdir()
    for name in ("HARPS.2012-03-24", "HARPS.2012-04-15", "HARPS.2010-09-18"):
        (path,) = (genuine_data / "harps").glob(f"{name}*")
        shutil.copy(path, tmp_path / "spectra")
    archive = tmp_path / "a.zarr"
    ingest_spectra(tmp_path / "spectra", archive, named_grid("demo"))
    fit_files(Fitter(), [archive], tmp_path / "fits.ecsv")
    manifest = pack(
        archive, tmp_path / "R", Settings(fractions=(1.0, 0.0, 0.0)), fits=read_fits(tmp_path / "fits.ecsv")
    )
    assert manifest.genuine
    assert {name: manifest.fitted.counts[name] for name in ("teff", "logg", "mh", "rv")} == dict.fromkeys(
        ("teff", "logg", "mh", "rv"), 2
    )
    assert [why for why in manifest.fitted.passed_over if why.startswith("flagged")] == ["flagged at_edge,poor"]
    index = Release(tmp_path / "R").index
    visits = np.flatnonzero(index["object"] == "HD128621")
    assert len(visits) == 2
    assert np.abs(index.labels[visits, TEFF] - 5207).max() < 180
    errors = index.errors[visits, TEFF]  # of the fit, and of the model spectra
    assert ((errors > MODEL_ERRORS["teff"]) & (errors < MODEL_ERRORS["teff"] + 20)).all()
    assert np.isnan(index.errors[visits, NAMES.index("berv")]).all()  # the header's, which the fit held
