"""Reading samples and turning them into batches: shapes, physics, keyed randomness, damaged bytes."""

from __future__ import annotations

import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.ndimage import spline_filter1d
from torch import Tensor

from harps_dist.config import Data
from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.batches import BERV, RV, EvaluationBatches, RawBatch, TrainingBatches, assemble
from harps_dist.data.codec import NoiseCodec, quantised
from harps_dist.data.keyed import key_of
from harps_dist.data.observer import Observer
from harps_dist.data.order import Mix, Order
from harps_dist.data.reader import Decoding, Release
from harps_dist.data.resident import ResidentCodes
from harps_dist.data.scarcity import scarce_labels
from harps_dist.errors import ConfigError, ReleaseError
from harps_dist.spectra.doppler import C_KMS, bspline_coefficients, doppler_shift
from harps_dist.spectra.grid import MARGIN, named_grid
from harps_dist.spectra.labels import NAMES
from preprocessing.pack import Settings, pack

CPU = torch.device("cpu")
EVERYTHING = Augment(rv_kms=70, berv_kms=30, nuisance=Nuisance(broadening_kms=5, line_error=0.2, continuum=0.02))


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


def observed(release: Release, augment: Augment, rows: np.ndarray, epoch: int = 0):
    batches = EvaluationBatches(release, [rows], augment, seed=5)
    batches.EPOCH = epoch
    raw = batches[0]
    return raw, Observer(release.decoding, augment, CPU)(raw)


def test_batches_are_standardised_and_labelled(release):
    index = release.index
    rows = np.concatenate([index.rows("real", "train")[:3], index.rows("simulated", "train")[:4]])
    raw, batch = observed(release, EVERYTHING, rows)
    assert batch.flux.shape == (7, release.grid.length)
    assert batch.flux.dtype == torch.float32
    assert batch.simulated.tolist() == [False] * 3 + [True] * 4
    torch.testing.assert_close(batch.flux.median(dim=1).values, torch.ones(7), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(batch.labels[:3], index.labels[rows[:3]])
    for name in ("teff", "mh", "logg", "airmass", "pwv"):
        column = NAMES.index(name)
        np.testing.assert_array_equal(batch.labels[3:, column], index.labels[rows[3:], column])
    np.testing.assert_array_equal(batch.labels[3:, RV], raw.rv_kms)
    assert batch.labels[3:, RV].abs().max() <= 70
    assert batch.labels[3:, BERV].abs().max() <= 30
    assert len(set(batch.labels[3:, RV].tolist())) == 4


def test_without_berv_augmentation_berv_is_missing_as_in_the_paper(release):
    rows = release.index.rows("simulated", "train")[:2]
    _, batch = observed(release, Augment(), rows)
    assert torch.isnan(batch.labels[:, BERV]).all()


def test_draws_are_keyed_to_seed_epoch_and_sample_not_to_the_batch(release):
    rows = release.index.rows("simulated", "train")[:4]
    _, together = observed(release, EVERYTHING, rows)
    for number, row in enumerate(rows):
        _, alone = observed(release, EVERYTHING, np.array([row]))
        torch.testing.assert_close(alone.flux[0], together.flux[number], rtol=0, atol=2e-6)
        assert alone.labels[0, RV] == together.labels[number, RV]
    _, later = observed(release, EVERYTHING, rows, epoch=1)
    assert not torch.equal(later.labels[:, RV], together.labels[:, RV])


def poor_release(tiny_demo, folder, monkeypatch) -> Release:
    """A release whose basis has vectors from one ETC run alone, so that the others need residuals."""
    monkeypatch.setattr("preprocessing.samples.TRAINING_RUNS", 1)
    pack(tiny_demo / "archive.zarr", folder / "release", Settings((0.6, 0.2, 0.2)))
    return Release(folder / "release")


def sample_by_sample(release: Release, rows: np.ndarray, epochs: np.ndarray, augment: Augment, seed: int) -> dict:
    """A raw batch, each sample by itself as the words of `RawBatch` and `assemble` say."""
    index, found = release.index, defaultdict(list)
    order = sorted(range(len(rows)), key=lambda place: index["kind"][rows[place]] != "real")
    for place in order:
        row, epoch = int(rows[place]), int(epochs[place])
        names = seed, epoch, index["star" if index["kind"][row] == "generative" else "key"][row]
        codes, scale = release.coded(row)
        labels = index.labels[row].copy()
        if index["kind"][row] == "real":
            found["flux"].append(codes)
            found["flux_scale"].append(scale)
        else:
            philox = np.random.Philox(key=key_of("velocity", *names))
            rv, berv = np.random.Generator(philox).uniform(-1, 1, 2) * (augment.rv_kms, augment.berv_kms)
            labels[[RV, BERV]] = rv, berv if augment.berv_kms else np.nan
            response = response_row(release, row)
            if index["bytes"][response]:
                found["residual"].append(release.residual(response))
                found["residual_of"].append(len(found["sed"]))
            found["sed"].append(codes)
            found["sed_scale"].append(scale)
            found["response"].append(index["coefficients"][response])
            found["rv_kms"].append(rv)
            found["berv_kms"].append(berv)
        found["key"].append(key_of("device", *names) // 2)
        found["labels"].append(labels)
        found["label_errors"].append(np.zeros(len(NAMES)))  # which labels of fits alone have
        found["rows"].append(row)
        found["epochs"].append(epoch)
    return found


@pytest.mark.parametrize("augment", [EVERYTHING, Augment()])
def test_a_batch_is_its_samples_one_by_one(tiny_demo, tmp_path, monkeypatch, augment):
    poor = poor_release(tiny_demo, tmp_path, monkeypatch)
    rows = {kind: poor.index.rows(kind) for kind in ("real", "simulated", "generative")}
    rng = np.random.default_rng(1)
    chosen = rng.permutation(np.concatenate([rows["real"][:4], rows["simulated"][:16], rows["generative"][:6]]))
    for batch in (chosen, rows["real"][:3], rows["simulated"][:5], rows["simulated"][:1]):
        epochs = rng.integers(0, 3, len(batch))
        raw = assemble(poor, batch, epochs, poor.index.labels, augment, 5)._asdict()
        expected = sample_by_sample(poor, batch, epochs, augment, 5)
        for name, tensor in raw.items():
            assert len(tensor) == len(expected[name]), name
            if len(tensor):
                parts = np.stack(expected[name])
                assert tensor.numpy().dtype == parts.dtype, name
                np.testing.assert_array_equal(tensor.numpy(), parts, err_msg=name)
        if batch is chosen:
            assert 0 < len(raw["residual_of"]) < len(raw["sed"])


def test_a_simulated_sample_without_its_response_is_refused(tiny_release):
    release = Release(tiny_release)
    row = release.index.rows("simulated")[2]
    release.index["response"][row] = "nowhere"
    with pytest.raises(ReleaseError, match=rf"{release.index['key'][row]}.*'nowhere', which is no response"):
        release.coefficients(release.index.rows("simulated")[:1])


def test_ranks_share_a_global_batch(release):
    order = Order(release.index, Mix(), 0, release.digest)
    whole = TrainingBatches(release, order, Data(augment=EVERYTHING), 0, 10)[3]
    parts = [TrainingBatches(release, order, Data(augment=EVERYTHING), 0, 10, rank, 3)[3] for rank in range(3)]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == sorted(whole.rows.tolist())
    keys = torch.cat([part.key for part in parts])
    assert sorted(keys.tolist()) == sorted(whole.key.tolist())


@pytest.mark.parametrize("by", ["per_spectrum", "per_star"])
def test_scarce_labels_hide_real_labels_alone(release, by):
    index = release.index
    real, simulated = index.rows("real"), index.rows("simulated")
    scarce = scarce_labels(index, 0.3, by, seed=1)
    np.testing.assert_array_equal(scarce[simulated], index.labels[simulated])
    kept = np.isfinite(scarce[real]).sum() / np.isfinite(index.labels[real]).sum()
    assert 0.15 < kept < 0.45
    shown = np.isfinite(scarce)
    np.testing.assert_array_equal(scarce[shown], index.labels[shown])
    np.testing.assert_array_equal(scarce, scarce_labels(index, 0.3, by, seed=1))
    berv = shown[:, BERV]  # every real spectrum has one
    whole_stars = all(len(set(berv[index["star"] == star])) == 1 for star in set(index["star"][real]))
    assert whole_stars == (by == "per_star")
    np.testing.assert_array_equal(scarce_labels(index, 1.0, by, seed=1), index.labels)


def response_row(release: Release, row: int) -> int:
    return release.index["key"].tolist().index(release.index["response"][row])


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(shift="linear", berv_kms=30),
        Augment(berv_kms=30, nuisance=Nuisance(broadening_kms=5, line_error=0.2, continuum=0.1)),
    ],
)
def test_spectra_in_float64_are_those_in_float32_and_do_not_depend_on_their_neighbours(tiny_release, augment):
    release = Release(tiny_release)
    rows = np.concatenate([release.index.rows("real")[:2], release.index.rows("simulated")[:3]])
    exactly = Observer(release.decoding, augment, CPU, dtype=torch.float64)
    raw = EvaluationBatches(release, [rows], augment, 0)[0]
    flux = exactly(raw).flux
    assert flux.dtype == torch.float64
    torch.testing.assert_close(Observer(release.decoding, augment, CPU)(raw).flux.double(), flux, rtol=0, atol=2e-4)
    alone = [exactly(one).flux for one in EvaluationBatches(release, [rows[[k]] for k in range(5)], augment, 0)]
    torch.testing.assert_close(torch.cat(alone), flux, rtol=0, atol=1e-12)


def test_noise_scatters_as_the_model_says(release):
    row = release.index.rows("simulated", "train")[:1]
    quiet = Augment(rv_kms=0, noise=False)
    _, truth = observed(release, quiet, row)
    noisy = torch.stack([observed(release, Augment(rv_kms=0), row, epoch)[1].flux[0] for epoch in range(200)])
    window = release.grid.within(release.source_grid)
    log_mean, log_ratio, log_floor = torch.from_numpy(release.array(response_row(release, row[0]))[:, window])
    sed = torch.from_numpy(release.array(row[0])[window])
    signal = torch.exp(log_mean) * sed
    expected = torch.sqrt(torch.exp(log_ratio) * signal + torch.exp(log_floor)) / signal
    measured = (noisy / truth.flux).std(dim=0)
    assert (measured / expected).mean().item() == pytest.approx(1.0, abs=0.01)
    halves = (noisy / truth.flux - 1).reshape(-1, 2, release.grid.length // 2)  # drawn in pairs
    assert abs(np.corrcoef(halves[:, 0].flatten(), halves[:, 1].flatten())[0, 1]) < 0.01


@pytest.mark.parametrize("shift", ["linear", "cubic"])
def test_counts_are_the_shifted_sed_times_the_response(release, shift):
    """In counts, not only after standardisation: flux density is diluted by 1 + rv/c."""
    rows = release.index.rows("simulated")[:4]
    raw = EvaluationBatches(release, [rows], Augment(shift=shift), 0)[0]._replace(
        rv_kms=torch.tensor([-100.0, 0.0, 50.0, 100.0]).double()
    )
    counts = Observer(release.decoding, Augment(noise=False, shift=shift), CPU).simulate(raw)
    sed = torch.from_numpy(np.stack([release.array(row) for row in rows])).double()
    source = bspline_coefficients(sed) if shift == "cubic" else sed
    shifted = doppler_shift(source, raw.rv_kms, release.source_grid, release.grid, shift)
    window = release.grid.within(release.source_grid)
    log_mean = np.stack([release.array(response_row(release, row))[0, window] for row in rows])
    torch.testing.assert_close(counts.double(), torch.exp(torch.from_numpy(log_mean)) * shifted, rtol=2e-5, atol=0)


@pytest.mark.parametrize("shift", ["linear", "cubic"])
def test_berv_moves_tellurics_and_rv_moves_the_star(shift):
    """One stellar and one telluric line must land where their own velocity puts them, and nowhere else."""
    grid = named_grid("tiny")
    source_grid = grid.widened(MARGIN)
    wave = torch.from_numpy(source_grid.wave_aa)
    stellar_aa, telluric_aa = 6105.0, 6125.0
    rv_kms, berv_kms = torch.tensor([-61.0, 33.0]).double(), torch.tensor([28.0, -17.0]).double()

    def line(centre_aa: float) -> Tensor:
        return (1 - 0.5 * torch.exp(-0.5 * ((wave - centre_aa) / 0.03) ** 2)).float()

    basis = torch.log(torch.stack([line(telluric_aa), torch.ones(len(wave)), torch.ones(len(wave))])).numpy()
    codes, scale = quantised(spline_filter1d(line(stellar_aa).numpy(), mode="mirror"))
    raw = RawBatch(
        flux=torch.empty(0, 0),
        flux_scale=torch.empty(0, 0),
        sed=torch.from_numpy(codes).expand(2, -1),
        sed_scale=torch.from_numpy(scale).expand(2, -1),
        response=torch.tensor([[1.0, 0.0, 0.0]]).expand(2, -1),
        residual=torch.empty(0, 3, 0),
        residual_of=torch.empty(0, dtype=torch.int64),
        rv_kms=rv_kms,
        berv_kms=berv_kms,
        key=torch.zeros(2, dtype=torch.int64),
        labels=torch.zeros(2, len(NAMES)),
        label_errors=torch.zeros(2, len(NAMES)),
        rows=torch.arange(2),
        epochs=torch.zeros(2, dtype=torch.int64),
    )
    decoding = Decoding(grid, source_grid, NoiseCodec(), basis, (1, 1, 1))
    flux = Observer(decoding, Augment(berv_kms=30, noise=False, shift=shift), CPU)(raw).flux
    for number in range(2):
        for centre_aa, velocity in ((stellar_aa, rv_kms), (telluric_aa, berv_kms)):
            expected = centre_aa * (1 + velocity[number].item() / C_KMS)
            near = np.abs(grid.wave_aa - expected) < 0.2
            depth = 1 - flux[number].numpy()[near]
            assert (grid.wave_aa[near] * depth).sum() / depth.sum() == pytest.approx(expected, abs=1e-3)
            assert depth.max() == pytest.approx(0.5, abs=0.01)
            assert np.abs(1 - flux[number].numpy()[np.abs(grid.wave_aa - centre_aa) < 0.1]).max() < 1e-3


@pytest.mark.parametrize("nuisance", [Nuisance(broadening_kms=5), Nuisance(line_error=0.2), Nuisance(continuum=0.02)])
def test_each_nuisance_changes_the_spectrum_but_no_label(release, nuisance):
    rows = release.index.rows("simulated", "train")[:3]
    _, plain = observed(release, Augment(noise=False), rows)
    _, changed = observed(release, Augment(noise=False, nuisance=nuisance), rows)
    assert ((plain.flux - changed.flux).abs().mean(dim=1) > 1e-4).all()
    torch.testing.assert_close(plain.labels, changed.labels, equal_nan=True)


def test_a_release_survives_pickling(release):
    row = int(release.index.rows("real")[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(release)).array(row), release.array(row))


def test_what_does_not_fit_in_memory_is_refused(release, monkeypatch):
    order = Order(release.index, Mix(), 0, release.digest)
    held = ResidentCodes(release, order, 0, 1, CPU, 0, lambda *_: torch.empty(0))
    needed = sum(part.nbytes for kind in (held._flux, held._sed) for part in (kind.codes, kind.scale))
    for free, world, fits in (
        (needed / 0.8 + 1, 1, True),
        (needed, 1, False),
        (needed, 2, True),
        (0.6 * needed, 2, False),
    ):
        monkeypatch.setattr("harps_dist.data.resident.free_bytes", lambda memory, free=free: free)
        if fits:
            ResidentCodes(release, order, 0, world, CPU, 0, lambda *_: torch.empty(0))
        else:
            with pytest.raises(ConfigError, match=r"Start more ranks, or set --data\.resident no"):
                ResidentCodes(release, order, 0, world, CPU, 0, lambda *_: torch.empty(0))


@pytest.mark.parametrize("augment", [Augment(), Augment(berv_kms=30), Augment(berv_kms=30, shift="linear")])
def test_what_the_basis_misses_is_added_again(tiny_demo, release, tmp_path, monkeypatch, augment):
    """With vectors from one ETC run alone the others need residuals, and the spectra are the same."""
    poor = poor_release(tiny_demo, tmp_path, monkeypatch)
    responses = poor.index.rows("response")
    assert 0 < (poor.index["bytes"][responses] > 0).sum() < len(responses)
    quiet = augment.model_copy(update={"noise": False})
    spectra = {}
    for name, opened in (("poor", poor), ("rich", release)):
        index = opened.index
        rows = index.rows("simulated")
        rows = rows[np.argsort(index["key"][rows].astype(str))][:12]
        raw, batch = observed(opened, quiet, rows)
        spectra[name] = batch.flux[:, 300:-300]
        if name == "poor":
            assert 0 < len(raw.residual_of) < len(rows)
            without = Observer(opened.decoding, quiet, CPU)(raw._replace(residual_of=raw.residual_of[:0]))
            changed = (without.flux[:, 300:-300] - spectra[name]).abs().max(dim=1).values > 0
            assert changed.nonzero()[:, 0].tolist() == raw.residual_of.tolist()
    np.testing.assert_allclose(spectra["poor"], spectra["rich"], atol=1e-4)
    assert (spectra["poor"] - spectra["rich"]).std() < 5e-5
