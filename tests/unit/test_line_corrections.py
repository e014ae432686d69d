"""Corrections of line depths: learned from made-up stars whose lines are known to be otherwise, written and read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from harps_dist.errors import ConfigError, OutputError
from harps_dist.fitting.fitter import Fitter, Held
from harps_dist.fitting.lines import Learned, learn_lines
from harps_dist.fitting.solve import Settings
from harps_dist.fitting.stellar import CorrectedModel, PackagedModel, with_lines
from harps_dist.formats.line_corrections import (
    SHALLOW,
    UNIT,
    About,
    LineCorrections,
    check_corrections,
    read_corrections,
    write_corrections,
)
from harps_dist.spectra.grid import Grid

SMALL = Grid("small", 233_500, 8192)  # 6120.00-6201.91 Å, without tellurics
AIR = {"airmass": 1.2, "pwv": 2.0}
SETTINGS = Settings(continuum=4)
CALIBRATOR = {"teff": 5207.0, "logg": 4.53, "mh": 0.24, "vmic": 0.9}
JUDGE = {"teff": 5060.0, "logg": 4.6, "mh": 0.0, "vmic": 0.85}
VISITS = [(-22.9, 18.0), (-22.9, 11.0), (-22.8, -3.0), (-22.7, -16.0)]  # rv and BERV


@pytest.fixture(scope="module")
def model() -> PackagedModel:
    return PackagedModel()


@pytest.fixture(scope="module")
def truth(model) -> CorrectedModel:
    """Stars whose lines are up to half deeper or weaker than the model's, with some that no list has."""
    draw = np.random.default_rng(3)
    wave_aa = model.grid.wave_aa
    knots = np.arange(wave_aa[0], wave_aa[-1] + 0.3, 0.3)
    factor = np.interp(wave_aa, knots, draw.normal(0, 0.2, len(knots)).clip(-0.5, 0.5))
    added = np.zeros_like(wave_aa)
    for centre in draw.uniform(6115, 6207, 60):
        added += draw.uniform(0.02, 0.3) * np.exp(-(((wave_aa - centre) / 0.04) ** 2) / 2)
    return CorrectedModel(model, factor, added)


def observed(truth, labels: dict[str, float], visits: list[tuple[float, float]], snr: float, seed: int):
    """Flux and sigma (visit, pixel) in medians, and BERV [km/s] of every visit."""
    sky = Fitter(SMALL, truth).observation
    asked = [[*labels.values(), 3.0, rv, berv, *AIR.values()] for rv, berv in visits]
    flux = sky.render(torch.tensor(asked, dtype=torch.float64), derivatives=False).flux.double().numpy()
    flux /= np.median(flux, axis=1, keepdims=True)
    sigma = np.sqrt(flux) / snr
    return flux + sigma * np.random.default_rng(seed).normal(size=flux.shape), sigma, [berv for _, berv in visits]


@pytest.fixture(scope="module")
def calibrator(truth):
    flux, sigma, berv = observed(truth, CALIBRATOR, VISITS, 250.0, 0)
    for row, hits in enumerate(np.random.default_rng(1).choice(SMALL.length, (len(VISITS), 20), replace=False)):
        flux[row, hits] += 0.8  # cosmics
    return flux, sigma, berv


@pytest.fixture(scope="module")
def learned(calibrator) -> Learned:
    return learn_lines(*calibrator, CALIBRATOR | AIR, "HD 1", ("a", "b"), SMALL, settings=SETTINGS)


def fit(model, flux, sigma, berv):
    return Fitter(SMALL, model, Held(AIR), SETTINGS).fit(flux, sigma, berv)


def left(fitted, flux, sigma) -> float:
    """Robust standard deviation of what is left beyond the noise, clipped pixels among it."""
    off = (flux - fitted.solution.model.numpy())[0]
    robust = 1.4826 * np.median(np.abs(off))
    return float(np.sqrt(max(0.0, robust**2 - np.median(sigma[0]) ** 2)))


def test_what_is_learned_from_one_star_mends_another(truth, model, learned):
    flux, sigma, berv = observed(truth, JUDGE, [(12.0, 5.0)], 250.0, 7)
    before, after = (fit(one, flux, sigma, berv) for one in (None, CorrectedModel.of(model, learned.corrections)))
    assert left(before, flux, sigma) > 0.005
    assert left(after, flux, sigma) < left(before, flux, sigma) / 4
    off = [np.abs(each.solution.parameters[0].numpy()[:3] - list(JUDGE.values())[:3]) for each in (before, after)]
    assert (off[1] < [15, 0.04, 0.015]).all()
    assert off[0][0] > 30
    assert off[0][2] > 0.03


def test_the_calibrator_itself_is_left_by_noise_alone(learned, calibrator, model):
    assert learned.before > 0.005
    assert learned.after < learned.before / 6
    flux, sigma, berv = calibrator
    found = fit(CorrectedModel.of(model, learned.corrections), flux, sigma, berv).solution.parameters.numpy()
    np.testing.assert_allclose(found[:, 0], CALIBRATOR["teff"], atol=12)
    np.testing.assert_allclose(found[:, 5], [rv for rv, _ in VISITS], atol=0.02)


def test_cosmics_of_single_visits_are_not_learned(learned, truth, calibrator):
    """With them as without: three visits of four outvote each."""
    quiet, sigma, berv = observed(truth, CALIBRATOR, VISITS, 250.0, 0)
    clean = learn_lines(quiet, sigma, berv, CALIBRATOR | AIR, "HD 1", ("a", "b"), SMALL, settings=SETTINGS)
    for name in ("factor", "added"):
        one, other = (getattr(each.corrections, name) * UNIT for each in (learned, clean))
        assert np.abs(one - other).mean() < 3e-3


def test_where_the_air_absorbs_nothing_is_learned(model):
    """Errors of telluric lines that stand still in all visits of a night are no lines of the star."""
    band = Grid("band", 245_000, 8192)  # 6235.00-6316.91 Å: oxygen from 6276 Å on
    sky = Fitter(band, model).observation
    asked = torch.tensor([[*CALIBRATOR.values(), 3.0, -22.9, 10.0, *AIR.values()]] * 4, dtype=torch.float64)
    flux = sky.render(asked, derivatives=False).flux.double().numpy()
    absorbed = sky.transmission(*asked[:1, 6:].unbind(1), derivatives=False)[0][0].numpy() < 0.97
    flux = flux / np.median(flux) + np.where(absorbed, 0.15, 0.0)
    sigma = np.full(flux.shape, 1 / 250)
    flux += sigma * np.random.default_rng(4).normal(size=flux.shape)
    made = learn_lines(flux, sigma, [10.0] * 4, CALIBRATOR | AIR, "HD 1", (), band, settings=SETTINGS).corrections
    factor, added = made.at(band.wave_aa[absorbed] / (1 - 22.9 / 299_792.458))
    assert absorbed.sum() > 100
    assert np.abs(added).mean() < 5e-3
    assert np.abs(factor).mean() < 0.1


def test_where_no_visit_looks_nothing_is_corrected(learned):
    about, wave_aa = learned.corrections.about, learned.corrections.wave_aa
    assert (about.star, about.files, about.models) == ("HD 1", ("a", "b"), PackagedModel().id)
    assert about.vmic == CALIBRATOR["vmic"]
    beyond = (wave_aa < 6119) | (wave_aa > 6203)
    assert not learned.corrections.factor[beyond].any()
    assert not learned.corrections.added[beyond].any()
    assert learned.corrections.factor[~beyond].any()


def test_without_a_microturbulence_the_fitted_one_is_held(calibrator):
    flux, sigma, berv = (part[:2] for part in calibrator)
    labels = {name: value for name, value in CALIBRATOR.items() if name != "vmic"} | AIR
    about = learn_lines(flux, sigma, berv, labels, "HD 1", (), SMALL, settings=SETTINGS).corrections.about
    assert 0.5 <= about.vmic < 1.8
    assert about.vmic != CALIBRATOR["vmic"]


def test_a_correction_multiplies_lines_and_adds_where_there_is_none():
    about = learned_about()
    depth = np.array([0.0, SHALLOW, 0.5, 0.5, 1e-3, 0.5])
    deeper = np.array([0.1, 0.01, 0.1, 0.0, 0.2, -0.6])
    made = LineCorrections.of(about, deeper, depth)
    factor, added = made.factor * UNIT, made.added * UNIT
    np.testing.assert_allclose(factor * depth + added, deeper, atol=2 * UNIT)  # of the star itself it is exact
    assert factor[0] == 0
    assert factor[1] == pytest.approx(0.25)  # half of it
    assert factor[2] == pytest.approx(0.2, rel=0.01)
    assert factor[3] == added[3] == 0
    assert factor[4] < 0.6  # a weak line does not get to be 200 times as deep
    assert factor[5] == pytest.approx(-0.95)


def learned_about() -> About:
    return About(
        star="HD 1", teff=5207, logg=4.53, mh=0.24, vmic=0.9, files=("a",), models="m", wave0_aa=6000.0, step_aa=0.02,
        made_by="test",
    )  # fmt: skip


@pytest.fixture
def corrections() -> LineCorrections:
    draw = np.random.default_rng(2)
    return LineCorrections.of(learned_about(), draw.normal(0, 0.1, 400), draw.uniform(0, 0.5, 400))


def test_knots_are_met_between_them_is_a_spline_and_beyond_them_nothing(corrections):
    factor, added = corrections.at(corrections.wave_aa)
    np.testing.assert_allclose(factor, corrections.factor * UNIT, atol=1e-12)
    np.testing.assert_allclose(added, corrections.added * UNIT, atol=1e-12)
    beyond = np.array([5999.9, 6000 + 0.02 * 399 + 0.01])
    assert not np.any(corrections.at(beyond))


def test_a_file_holds_all_that_they_are(corrections, tmp_path):
    path = tmp_path / "lines.npz"
    for _ in range(2):  # over itself too
        write_corrections(path, corrections)
    found = read_corrections(path, "--lines")
    assert found.about == corrections.about
    assert found.id == corrections.id
    np.testing.assert_array_equal(found.factor, corrections.factor)
    other = LineCorrections(corrections.about, corrections.factor, corrections.added + np.int16(1))
    assert other.id != corrections.id
    with np.load(path, allow_pickle=False) as plain:  # which any program reads
        assert json.loads(str(plain["about"]))["star"] == "HD 1"


def test_of_others_nothing_is_replaced(corrections, tmp_path):
    np.savez(tmp_path / "mine.npz", a=np.arange(3))
    with pytest.raises(OutputError, match="is no file of line corrections, so it is not replaced"):
        write_corrections(tmp_path / "mine.npz", corrections)
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        check_corrections(tmp_path / "lines.ecsv")


def damaged(change):
    def write(path, corrections):
        write_corrections(path, corrections)
        with np.load(path) as plain:
            arrays = {name: plain[name] for name in plain.files}
        change(arrays)
        np.savez_compressed(path, **arrays)

    return write


def no_star(arrays):
    about = json.loads(str(arrays["about"]))
    del about["star"]
    arrays["about"] = np.array(json.dumps(about))


def warm(arrays):
    arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | {"teff": 1e9}))


def metres(arrays):
    arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | {"wave0_aa": 6e-7}))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path, _: None, "there is no file"),
        (lambda path, _: path.write_text("no npz"), "holds no line corrections"),
        (lambda path, _: np.savez(path, a=np.arange(3)), "no array about, factor, added"),
        (damaged(lambda arrays: arrays.update(about=np.array("{}"))), "does not say that it holds line corrections"),
        (damaged(lambda arrays: arrays.update(about=np.array("no json"))), "what it says of itself cannot be read"),
        (damaged(no_star), "what it says of itself cannot be read.*star"),
        (damaged(warm), "teff is 1e.09, expected"),
        (damaged(metres), "expected wavelengths of"),
        (damaged(lambda arrays: arrays.update(added=arrays["added"][:-1])), "expected as many knots"),
        (damaged(lambda arrays: arrays.update(factor=arrays["factor"].astype(float))), "expected int16"),
        (damaged(lambda arrays: arrays.update(factor=arrays["factor"] + np.int16(30_000))), "factors of"),
    ],
)
def test_what_is_no_such_file_is_said(write, said, corrections, tmp_path):
    write(tmp_path / "lines.npz", corrections)
    with pytest.raises(ConfigError, match=said):
        read_corrections(tmp_path / "lines.npz", "--lines")


def test_corrections_of_other_model_spectra_are_refused(corrections, tmp_path):
    write_corrections(tmp_path / "lines.npz", corrections)
    with pytest.raises(ConfigError, match=r"learned for model spectra m, expected .* `harps-dist lines`"):
        with_lines(None, tmp_path / "lines.npz")
    assert isinstance(with_lines(None, None), PackagedModel)


def test_a_star_without_labels_or_spectra_is_an_error(calibrator):
    flux, sigma, berv = calibrator
    with pytest.raises(ConfigError, match="logg is missing"):
        learn_lines(flux, sigma, berv, {"teff": 5000.0, "mh": 0.0}, "HD 1", grid=SMALL)
    with pytest.raises(ConfigError, match="there is no spectrum"):
        learn_lines(flux[:0], sigma[:0], [], CALIBRATOR, "HD 1", grid=SMALL)
    with pytest.raises(ConfigError, match="teff is held at 3300"):
        learn_lines(flux, sigma, berv, CALIBRATOR | {"teff": 3300.0}, "HD 1", grid=SMALL)
