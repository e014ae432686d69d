"""A decoder with physics against the simulator that it knows: shifts, sky, what is learned, what it refuses."""

import numpy as np
import pytest
import torch

from harps_dist.data.augment import Augment
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.evaluation.sed_error import sed_error
from harps_dist.models.build import build_model
from harps_dist.models.config import PhysicalAutoencoder
from harps_dist.models.physical import CONTINUUM_UNIT, Factors, PhysicalDecoder
from harps_dist.models.release_physics import fitting
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import initial_model
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import MARGIN
from harps_dist.spectra.labels import NAMES, SEVEN
from harps_dist.spectra.microturbulence import SCATTER_KMS

CPU = torch.device("cpu")
CLEAN = Augment(rv_kms=70, berv_kms=30, noise=False)
STILL = -30.0  # a node that broadens nothing


@pytest.fixture(scope="module")
def release(tiny_release) -> Release:
    return Release(tiny_release)


@pytest.fixture(scope="module")
def model(release):
    recipe = find_recipe("demo-ae-phys").changed(model={"width": 0.125})
    made = initial_model(recipe, release.manifest)
    made.begin(release)
    return made.eval()


@pytest.fixture(scope="module")
def batch(release):
    return observed(release, "train")


def observed(release, split, count=6, **velocities):
    rows = release.index.rows("simulated", split)[:count]
    raw = EvaluationBatches(release, [rows], CLEAN, seed=5)[0]
    changed = {name: getattr(raw, name) + value for name, value in velocities.items()}
    return Observer(release.decoding, CLEAN, CPU)(raw._replace(**changed))


def nodes_of(model, batch, **labels):
    """The nodes that say the true labels and nothing else, with some labels changed."""
    truth = model.normalise(batch.labels)
    for name, change in labels.items():
        number = model.labels.index(name)
        truth[:, number] += change / model.label_std[number]
    unknown = torch.zeros(len(truth), model.nodes - len(model.labels))
    unknown[:, 0] = STILL
    if number := NAMES.index("vmic"):
        usual = model.decoder.vmic_kms(model.physical(truth), unknown[:, :0])
        unknown[:, 1] = (batch.labels[:, number] - usual) / SCATTER_KMS
    return torch.cat([truth, unknown], 1)


@torch.no_grad()
def test_true_labels_draw_the_simulated_spectrum(model, release, batch):
    valid = torch.from_numpy(release.grid.valid)
    error = (model.decode(nodes_of(model, batch)) - batch.flux)[:, valid].abs().mean(1)
    flat = (batch.flux[:, valid] - 1).abs().mean(1)
    assert float((error / flat).max()) < 0.05


@torch.no_grad()
def test_an_intervention_on_rv_moves_what_it_should(model, release, batch):
    due = observed(release, "train", rv_kms=20.0).flux - batch.flux
    drawn = model.decode(nodes_of(model, batch, rv=20.0)) - model.decode(nodes_of(model, batch))
    share = (drawn * due).sum(1) / due.square().sum(1)
    torch.testing.assert_close(share, torch.ones_like(share), rtol=0, atol=0.03)
    assert float((drawn - due).square().mean() / due.square().mean()) < 0.01


@torch.no_grad()
def test_an_intervention_on_berv_moves_the_sky(model, release, batch):
    """Hardly a telluric line lies on this grid: the sky is given some."""
    kept = model.decoder.response.clone()
    try:
        lines = torch.zeros_like(kept[0])
        lines[600:-600:150] = -0.5
        model.decoder.response[0] += lines
        before = model.parts(nodes_of(model, batch))
        after = model.parts(nodes_of(model, batch, berv=20.0))
    finally:
        model.decoder.response.copy_(kept)
    assert torch.equal(before["star"], after["star"])
    berv = batch.labels[:, NAMES.index("berv")]
    pixel_kms = C_KMS * release.grid.step_aa / float(release.grid.wave_aa.mean())
    for place, sky in ((berv, before["sky"]), (berv + 20, after["sky"])):
        deepest = sky[:, 200:3800].argmin(1) + 200
        expected = (deepest - (600 - MARGIN)) - place.double() / pixel_kms
        off = (expected + 75) % 150 - 75
        assert float(off.abs().max()) < 3, off


@torch.no_grad()
def test_parts_multiply_to_the_spectrum_of_a_star_at_rest(model, batch):
    nodes = nodes_of(model, batch)
    nodes[:, model.labels.index("rv")] = model.normalise(torch.zeros_like(batch.labels))[:, model.labels.index("rv")]
    parts = model.parts(nodes)
    product = parts["star"] * parts["sky"] * parts["continuum"]
    drawn = model.decode(nodes)
    ratio = product / drawn
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)


@torch.no_grad()
def test_broadening_and_continuum_do_what_their_nodes_say(model, batch):
    nodes, known = nodes_of(model, batch), len(model.labels)
    factors = model.decoder.factors
    wide = nodes.clone()
    wide[:, known] = 2.0
    assert (model.decode(wide).std(1) < 0.95 * model.decode(nodes).std(1)).all()
    first = known + factors.broadening + factors.vmic + factors.responses + factors.sky
    level, slope = nodes.clone(), nodes.clone()
    level[:, first] = 1.0
    ratio = model.decode(level) / model.decode(nodes)
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(np.exp(CONTINUUM_UNIT))), rtol=1e-5, atol=0)
    slope[:, first + 1] = 1.0
    ratio = torch.log(model.decode(slope) / model.decode(nodes)) / CONTINUUM_UNIT
    line = torch.linspace(-1, 1, ratio.shape[1]).expand_as(ratio)  # and the level, since medians stay
    torch.testing.assert_close(ratio - ratio.mean(1, keepdim=True), line, rtol=0, atol=1e-3)


def test_true_labels_are_taught_where_they_are_known(model, batch):
    labels = batch.labels.clone()
    labels[0] = torch.nan
    batch, nodes = batch._replace(labels=labels), torch.zeros(len(labels), model.nodes)
    try:
        model.train()
        taught = model._decoded(nodes, batch)
    finally:
        model.eval()
    truth = model.normalise(labels)
    of_truth = (taught[:, : len(model.labels)] == truth).all(1)
    untouched = (taught == 0).all(1)
    assert untouched[0]
    assert (of_truth | untouched).all()
    many = batch._replace(
        key=torch.arange(4000) * 7919, labels=labels[1:2].expand(4000, -1), flux=batch.flux[:1].expand(4000, -1)
    )
    try:
        model.train()
        share = (model._decoded(torch.zeros(4000, model.nodes), many)[:, 0] != 0).double().mean()
    finally:
        model.eval()
    assert abs(float(share) - 0.5) < 6 * 0.5 / 4000**0.5  # six deviations
    assert torch.equal(model._decoded(nodes, batch), nodes)  # not in evaluation


def test_velocities_are_found_by_drawing(model, batch):
    """From the wrong velocities of a mean star, to the steps of the search."""
    nodes = nodes_of(model, batch)
    started = nodes.clone()
    started[:, [model.labels.index(name) for name in ("rv", "berv")]] = 0.3
    try:
        model.train()
        model.search = 1.0
        found = model._found(started, batch)
        assert model.eval()._found(started, batch) is None
    finally:
        model.eval()
        model.search = 0.0
    number = model.labels.index("rv")
    error = (found[:, number] - nodes[:, number]) * model.label_std[number]
    assert (error.abs() < 1.5).all()
    others = [column for column, name in enumerate(model.labels) if name not in ("rv", "berv")]
    assert torch.isnan(found[:, others]).all()
    assert torch.isfinite(found[:, model.labels.index("berv")]).all()


def test_every_parameter_of_the_decoder_learns(model, batch):
    made = model.train()
    try:
        for parameter in made.decoder.parameters():
            parameter.grad = None
        nodes = torch.randn(len(batch.flux), made.nodes, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.no_grad():
            for parameter in (made.decoder.star_vectors, made.decoder.sky_vectors):
                parameter.normal_(std=1e-3, generator=torch.Generator().manual_seed(1))
            made.decoder.correction[-1].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        (made.decode(nodes) - batch.flux).square().mean().backward()
        assert (nodes.grad.abs().amax(0) > 0).all(), nodes.grad.abs().amax(0)
        for name, parameter in made.decoder.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name
    finally:
        with torch.no_grad():
            for parameter in (*made.decoder.parameters(),):
                parameter.grad = None
            made.decoder.star_vectors.zero_()
            made.decoder.sky_vectors.zero_()
            made.decoder.correction[-1].weight.zero_()
        made.eval()


def test_bfloat16_leaves_the_physics_in_float32(model, batch):
    nodes = nodes_of(model, batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        drawn = model.decode(nodes)
    with torch.no_grad():
        assert torch.equal(drawn, model.decode(nodes))


def test_the_error_of_stars_at_rest_is_that_of_the_emulator(model, release):
    rows = release.index.rows("simulated", "train")[:5]
    raw = EvaluationBatches(release, [rows], CLEAN, seed=5)[0]
    error = sed_error(model, raw, Observer(release.decoding, CLEAN, CPU)(raw), release.source_grid)
    assert (error < 2e-3).all()  # of spectra that it was fitted to
    raw = raw._replace(sed=raw.sed.flip(0), sed_scale=raw.sed_scale.flip(0))
    swapped = sed_error(model, raw, Observer(release.decoding, CLEAN, CPU)(raw), release.source_grid)
    assert (np.delete(swapped, 2) > 5 * np.delete(error, 2)).all()


def test_another_models_stars_are_taken_over_as_a_whole_or_not_at_all(release, model):
    recipe = find_recipe("demo-ae-phys").changed(model={"width": 0.125})
    weights = {name: value + 1e-3 for name, value in model.state_dict().items()}
    basis, low = "network.decoder.emulator.basis", "network.decoder.emulator.low"
    weights |= {low: model.state_dict()[low], f"{low[:-3]}high": model.state_dict()[f"{low[:-3]}high"]}
    for change, taken in (
        ({}, True),
        ({low: weights[low] + torch.tensor([100.0, 0, 0, 0])}, False),  # it lacks this release's coolest stars
        ({"network.decoder.emulator.nodes": weights["network.decoder.emulator.nodes"][:-1]}, False),
    ):
        fresh = initial_model(recipe, release.manifest)
        fresh.begin(release)
        own = fresh.state_dict()[basis].clone()
        names = fresh.adopt(weights | change, model.labels)
        assert (basis in names) == ("network.decoder.correction.0.weight" in names) == taken
        assert torch.equal(fresh.state_dict()[basis], own) != taken
        assert "network.encoder.layers.0.weight" in names


def test_samples_of_one_model_spectrum_are_learned_once(release):
    doubled = Release(release.location)
    rows = doubled.index.rows("simulated", "train")
    for name in ("teff", "mh", "logg", "vmic"):
        doubled.index._columns[name] = doubled.index[name].copy()
        doubled.index._columns[name][rows[1::2]] = doubled.index[name][rows[::2]][: len(rows[1::2])]
    made = initial_model(find_recipe("demo-ae-phys").changed(model={"width": 0.125}), release.manifest)
    made.begin(doubled)
    assert int((made.decoder.emulator.weights != 0).any(1).sum()) == len(rows[::2])


def test_what_it_refuses(release, tmp_path):
    with pytest.raises(ConfigError, match="lack airmass, berv"):
        PhysicalDecoder(release.grid, ("rv", "teff", "mh", "logg", "pwv"), Factors(), 8, 32)
    with pytest.raises(ConfigError, match="Pack the release again"):
        fitting(np.zeros((1, 10)), release.grid, release.source_grid)
    model = build_model(PhysicalAutoencoder(width=0.125), release.grid)
    no_simulation = Release(release.location)
    no_simulation.index._columns["kind"] = np.where(
        no_simulation.index["kind"] == "simulated", "generative", no_simulation.index["kind"]
    )
    with pytest.raises(ConfigError, match="has 0 with all of"):
        model.begin(no_simulation)


def test_factors_count_the_nodes():
    config = PhysicalAutoencoder(
        broadening=False, microturbulence=False, star_factors=3, continuum_terms=0, sky_factors=0, response_factors=1
    )
    assert config.unknown == 4
    assert config.bottleneck == len(SEVEN) + 4
