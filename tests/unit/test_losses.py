"""Loss parts against arithmetic written out, and means over ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harps_dist.config import Data, Recipe
from harps_dist.data.observer import Batch
from harps_dist.data.order import Mix
from harps_dist.models.autoencoder import Latent
from harps_dist.models.build import build_model
from harps_dist.models.config import Autoencoder, Decoder, Encoder, Loss
from harps_dist.models.losses import global_loss, label_weight, loss_parts, mmd_terms, with_errors
from harps_dist.models.supervised import Output
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import NAMES

NAN = float("nan")


@pytest.fixture(scope="module")
def model():
    """Two labels, teff with mean 5000 and deviation 500, logg with 4 and 0.5."""
    model = build_model(Encoder(labels=("teff", "logg"), width=0.25), named_grid("tiny"))
    model.set_label_scale({"teff": 5000.0, "logg": 4.0}, {"teff": 500.0, "logg": 0.5})
    return model


def batch_of(teff: list[float], logg: list[float], simulated: list[bool]) -> Batch:
    labels = torch.full((len(teff), len(NAMES)), NAN, dtype=torch.float64)
    labels[:, NAMES.index("teff")] = torch.tensor(teff)
    labels[:, NAMES.index("logg")] = torch.tensor(logg)
    flux = torch.tensor([[1.0, 2.0, 9.0]] * len(teff))
    return Batch(flux, labels, torch.tensor(simulated), *[torch.arange(len(teff))] * 2, torch.zeros_like(labels))


def test_label_loss_leaves_missing_labels_out(model):
    batch = batch_of([5500.0, NAN, 4500.0], [4.5, 3.0, NAN], [True, False, False])
    predicted = torch.tensor([[0.0, 0.0], [7.0, 0.0], [0.0, 7.0]])
    part = loss_parts(model, Output(labels=predicted), batch, torch.tensor([0, 1]), Loss())["label"]
    # normalised truths (1, 1), (-, -2), (-1, -): errors 1, 1, 2, 1
    assert part.total.item() == pytest.approx(5.0)
    assert part.terms.item() == 4


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        ("gaussian", 0.5 * (1.0 / 2.0) ** 2 + math.log(2.0) + 0.5 * (2.0 / 0.5) ** 2 + math.log(0.5)),
        ("laplace", 1.0 / 2.0 + math.log(2.0) + 2.0 / 0.5 + math.log(0.5)),
    ],
)
def test_heteroscedastic_loss_is_a_masked_likelihood(likelihood, expected):
    """Residuals 1 and 2 with scales 2 and 1/2; what is missing counts for nothing, whatever its scale."""
    model = build_model(Encoder(labels=("teff", "logg"), width=0.25, uncertainty=likelihood), named_grid("tiny"))
    model.set_label_scale({"teff": 5000.0, "logg": 4.0}, {"teff": 500.0, "logg": 0.5})
    batch = batch_of([5500.0, NAN], [NAN, 3.0], [False, False])
    log_scale = torch.tensor([[math.log(2.0), 9.0], [-9.0, math.log(0.5)]])
    output = Output(labels=torch.zeros(2, 2), log_scale=log_scale)
    part = loss_parts(model, output, batch, torch.tensor([0]), Loss())["label"]
    assert part.terms.item() == 2
    assert part.total.item() == pytest.approx(expected)
    predicted = model(batch._replace(flux=torch.ones(2, named_grid("tiny").length)))
    assert predicted.labels.shape == predicted.log_scale.shape == (2, 2)


def test_smooth_label_loss_is_quadratic_below_and_linear_above(model):
    batch = batch_of([5500.0], [4.0], [True])
    predicted = torch.tensor([[0.95, 1.0]])
    part = loss_parts(
        model,
        Output(labels=predicted),
        batch,
        torch.tensor([0]),
        Loss(label_below=0.1),
    )["label"]
    assert part.total.item() == pytest.approx(0.05**2 / (2 * 0.1) + (1.0 - 0.05), rel=1e-5)


def test_reconstruction_counts_valid_pixels_only(model):
    batch = batch_of([5000.0] * 2, [4.0] * 2, [True, False])
    output = Output(reconstruction=torch.tensor([[1.5, 2.0, 0.0], [1.0, 1.0, 0.0]]))
    part = loss_parts(model, output, batch, torch.tensor([0, 1]), Loss())["reconstruction"]
    assert part.total.item() == pytest.approx(0.5 + 1.0)
    assert part.terms.item() == 4
    smooth = loss_parts(model, output, batch, torch.tensor([0, 1]), Loss(reconstruction_below=0.8))["reconstruction"]
    assert smooth.total.item() == pytest.approx(0.5**2 / (2 * 0.8) + (1.0 - 0.4))


def test_unknown_factors_are_penalised_on_simulated_spectra_alone(model):
    batch = batch_of([5000.0] * 3, [4.0] * 3, [True, False, True])
    output = Output(nodes=torch.tensor([[9.0, 9.0, 1.0, -2.0], [9.0, 9.0, 5.0, 5.0], [9.0, 9.0, 0.5, 0.0]]))
    part = loss_parts(model, output, batch, torch.tensor([0]), Loss(unknown_penalty=0.3))["unknown"]
    assert (part.weight, part.total.item(), part.terms.item()) == (0.3, pytest.approx(3.5), 4)
    assert "unknown" not in loss_parts(model, output, batch, torch.tensor([0]), Loss(unknown_penalty=0.0))


def test_kl_is_that_of_two_gaussians(model):
    """KL(N(1, e) || N(0, 1)) = (1 + e - 1 - 1) / 2, zero for the prior; summed over nodes, mean over spectra."""
    latent = Latent(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    batch = batch_of([5000.0] * 2, [4.0] * 2, [False, False])
    output = Output(nodes=latent.mean, latent=latent)
    part = loss_parts(model, output, batch, torch.tensor([0]), Loss(kl=0.5, unknown_penalty=0))["kl"]
    assert (part.weight, part.terms.item()) == (0.5, 2)
    assert part.total.item() == pytest.approx((math.e - 1) / 2)
    assert loss_parts(model, output, batch, torch.tensor([0]), Loss(unknown_penalty=0)) == {}


def test_mmd_against_the_double_sum_written_out():
    generator = torch.Generator().manual_seed(0)
    nodes, prior = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = 0.0
    for node in range(3):
        x, y = nodes[:, node].tolist(), prior[:, node].tolist()

        def mean_kernel(a: list[float], b: list[float]) -> float:
            return sum(math.exp(-((p - q) ** 2) / 3) for p in a for q in b) / (len(a) * len(b))

        expected += (mean_kernel(y, y) - 2 * mean_kernel(y, x) + mean_kernel(x, x)) / 3
    assert mmd_terms(nodes, prior, nodes, prior, 5).mean().item() == pytest.approx(expected, rel=1e-12)
    assert mmd_terms(prior, prior, prior, prior, 5).mean().item() == pytest.approx(0.0, abs=1e-12)


def test_mmd_and_its_pull_on_the_spread_are_those_of_batches_of_32_whatever_the_batch():
    """Normal nodes of deviation s: E k = (1 + 2 v / d)^(-1/2) for a difference of variance v, d the bottleneck."""
    generator, d, s = torch.Generator().manual_seed(2), 8, 0.8

    def expected_kernel(v: float) -> float:
        return (1 + 2 * v / d) ** -0.5

    def discrepancy(s: float) -> float:
        within = [(1 - 1 / 32) * expected_kernel(v) + 1 / 32 for v in (2 * s**2, 2.0)]
        return sum(within) - 2 * expected_kernel(1 + s**2)

    value, pull = discrepancy(s), (discrepancy(s + 1e-4) - discrepancy(s - 1e-4)) / 2e-4
    for size in (4, 8, 32, 128):
        found, printed = [], []
        for _ in range(16384 // size):
            drawn, prior = torch.randn(2, size, d, generator=generator, dtype=torch.float64)
            spread = torch.tensor(s, dtype=torch.float64, requires_grad=True)
            nodes = spread * drawn
            loss = mmd_terms(nodes, prior, nodes.detach(), prior, 32).mean()
            found.append([loss.item(), torch.autograd.grad(loss, spread)[0].item()])
            printed.append(mmd_terms(nodes, prior, nodes, prior, size).mean().item())
        mean, error = np.mean(found, axis=0), np.std(found, axis=0) / len(found) ** 0.5
        assert (abs(mean - [value, pull]) < 6 * error).all(), size  # chance: 2e-7 with the fewest, 128 batches
        assert size >= 32 or abs(np.mean(printed) - value) > 10 * error[0]  # the mean over all pairs would not pass
    nodes = torch.randn(1, d, generator=generator)
    assert torch.isfinite(mmd_terms(nodes, nodes + 1, nodes, nodes + 1, 32)).all()


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_mmd_and_its_gradient_do_not_depend_on_how_ranks_cut_the_batch(cut):
    generator = torch.Generator().manual_seed(1)
    nodes, prior = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)

    def plain(x: torch.Tensor) -> torch.Tensor:
        def mean_kernel(a, b):
            return torch.exp(-((a[:, None] - b[None]) ** 2) / 4).mean(dim=(0, 1))

        return (mean_kernel(x, x) - 2 * mean_kernel(prior, x) + mean_kernel(prior, prior)).mean()

    whole = nodes.clone().requires_grad_()
    expected = plain(whole)
    expected.backward()
    value, gradient = 0.0, []
    for rows in (slice(0, cut), slice(cut, 7)):
        mine = nodes[rows].clone().requires_grad_()
        terms = mmd_terms(mine, prior[rows], nodes, prior, 7)  # what every rank receives
        (terms.sum() / 7).backward()
        value += terms.sum().item() / 7
        gradient.append(mine.grad)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat(gradient), whole.grad)
    assert torch.autograd.gradcheck(plain, (nodes.clone().requires_grad_(),))


def test_a_variational_bottleneck_draws_in_training_and_not_in_evaluation():
    model = build_model(
        Autoencoder(
            labels=("teff",), bottleneck=3, variational=True, architecture="cnn", width=0.25, decoder_width=0.25
        ),
        named_grid("tiny"),
    )
    flux = torch.rand(2, named_grid("tiny").length)
    batch = batch_of([5000.0] * 2, [4.0] * 2, [False, True])._replace(flux=flux)
    first, again = model(batch), model(batch)
    torch.testing.assert_close(first.nodes, again.nodes)  # keyed, not streamed
    assert not torch.equal(first.nodes, first.latent.mean)
    noise = (first.nodes - first.latent.mean) / torch.exp(0.5 * first.latent.log_variance)
    assert not torch.allclose(noise, first.prior)
    swapped = model(batch._replace(key=batch.key.flip(0), flux=flux.flip(0)))
    torch.testing.assert_close(swapped.nodes.flip(0), first.nodes, rtol=1e-4, atol=1e-5)
    still = model.eval()(batch)
    assert torch.equal(still.nodes, still.latent.mean)
    assert still.prior is None


def test_loss_over_ranks_is_the_loss_of_the_whole_batch(model):
    """Ranks with unequal numbers of labels: averaged over ranks, their shares make the one global mean."""
    teff, logg = [5500.0, NAN, 4500.0, NAN], [4.5, 3.0, NAN, NAN]
    predicted = torch.tensor([[0.3, 0.1], [7.0, 0.5], [0.2, 7.0], [1.0, 1.0]])

    def parts_of(rows: slice):
        batch = batch_of(teff[rows], logg[rows], [True] * len(teff[rows]))
        return loss_parts(model, Output(labels=predicted[rows]), batch, torch.tensor([0]), Loss(label=2.0))

    whole = parts_of(slice(0, 4))
    expected = global_loss(whole, whole["label"].terms[None], world=1)
    ranks = [parts_of(slice(0, 1)), parts_of(slice(1, 4))]
    counts = sum(parts["label"].terms for parts in ranks)[None]
    mean_over_ranks = sum(global_loss(parts, counts, world=2) for parts in ranks) / 2
    torch.testing.assert_close(mean_over_ranks, expected)
    assert expected.item() == pytest.approx(2.0 * (0.7 + 0.9 + 2.5 + 1.2) / 4)


def test_a_batch_without_labels_costs_nothing_and_is_finite(model):
    batch = batch_of([NAN], [NAN], [False])
    predicted = torch.zeros(1, 2, requires_grad=True)
    parts = loss_parts(model, Output(labels=predicted), batch, torch.tensor([0]), Loss())
    loss = global_loss(parts, parts["label"].terms[None], 1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(predicted.grad).all()


def test_physical_labels_invert_normalised_ones(model):
    batch = batch_of([5730.0], [4.44], [False])
    torch.testing.assert_close(
        model.physical(model.normalise(batch.labels)),
        torch.tensor([[5730.0, 4.44]], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_being_saved(name):
    recipe = find_recipe(name)
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert again.digest == recipe.digest


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="cannot hold 7 labels"):
        Autoencoder(bottleneck=5)
    with pytest.raises(ValidationError, match=r"data\.mix\.real 0"):
        Recipe(model=Decoder(), data=Data(mix=Mix()))
    with pytest.raises(ValidationError, match="needs a weight for kl or mmd"):
        Recipe(model=Autoencoder(variational=True))
    with pytest.raises(ValidationError, match="unknown labels"):
        Recipe(model=Encoder(labels=("teff", "mass")))
    with pytest.raises(ValidationError, match="Extra inputs"):
        Encoder(depth=3)
    with pytest.raises(ValidationError, match="frozen"):
        RECIPES["cnn-mix"].training.seed = 3


def test_a_pretrained_decoder_keeps_its_first_layer_inside_an_autoencoder():
    """Fed the same labels, whatever the other nodes, the autoencoder draws what the decoder alone drew."""
    grid = named_grid("tiny")
    alone = build_model(Decoder(architecture="cnn", width=0.25), grid).eval()
    inside = build_model(Autoencoder(architecture="cnn", width=0.25, decoder_width=0.25), grid).eval()
    taken = inside.adopt(alone.state_dict(), alone.labels)
    assert "network.decoder.seed.weight" in taken
    labels = torch.randn(3, len(alone.labels))
    nodes = torch.randn(3, 9)  # BERV and two unknown nodes: anything
    for column, name in enumerate(alone.labels):
        nodes[:, inside.labels.index(name)] = labels[:, column]
    torch.testing.assert_close(inside.decode(nodes), alone.decode(labels))
    assert not any(name.startswith("network.encoder") for name in taken)


@pytest.mark.parametrize("uncertainty", ["none", "gaussian", "laplace"])
@pytest.mark.parametrize("below", [0.0, 0.3])
def test_gradients_of_the_whole_loss(uncertainty, below):
    """Every part at once, labels missing, by finite differences in float64."""
    model = build_model(Encoder(labels=("teff", "logg"), width=0.25, uncertainty=uncertainty), named_grid("tiny"))
    batch = batch_of([0.5, NAN, -1.0, 2.0], [NAN, 0.1, 0.7, -0.4], [True, True, False, False])
    config = Loss(label=2.0, unknown_penalty=0.7, kl=0.3, mmd=5.0, label_below=below, reconstruction_below=below)
    draw = torch.Generator().manual_seed(0)
    nodes, log_scale, log_variance = torch.randn(3, 4, 2, generator=draw, dtype=torch.float64)
    unknown, reconstruction = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
    prior = torch.randn(4, 5, generator=draw, dtype=torch.float64)

    def loss(labels, log_scale, reconstruction, unknown, log_variance):
        latent = Latent(labels, log_variance)
        everything = torch.cat([labels, unknown], dim=1)
        seen = None if uncertainty == "none" else log_scale
        output = Output(labels, reconstruction, everything, latent, prior, seen)
        parts = loss_parts(model, output, batch, torch.tensor([0, 2]), config)
        assert parts.keys() == {"label", "reconstruction", "unknown", "kl", "mmd"}
        return global_loss(parts, torch.stack([part.terms for part in parts.values()]), 1)

    inputs = [x.requires_grad_() for x in (nodes, log_scale, reconstruction, unknown, log_variance)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_a_label_counts_by_the_inverse_of_its_variance():
    torch.testing.assert_close(label_weight(torch.tensor([0.0, 0.1, 0.3]), 0.1), torch.tensor([1.0, 0.5, 0.1]))


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
def test_the_error_of_a_label_adds_to_the_scatter_that_a_head_states(likelihood):
    """In variances; and where there is none, to the bit nothing changes."""
    variance_of = {"gaussian": 1.0, "laplace": 2.0}[likelihood]
    log_scale = torch.tensor([-3.0, -3.0, 0.7], requires_grad=True)
    errors = torch.tensor([0.0, 0.2, 0.5])
    both = with_errors(log_scale, errors, likelihood)
    assert both[0] == log_scale[0]
    torch.testing.assert_close(variance_of * (2 * both).exp(), variance_of * (2 * log_scale).exp() + errors**2)
    both.sum().backward()
    assert log_scale.grad[0] == 1
    assert (log_scale.grad[1:] > 0).all()


@pytest.mark.parametrize("uncertainty", ["none", "gaussian"])
def test_labels_of_fits_pull_less(uncertainty):
    """The same residual of one label with an error and of one without."""
    model = build_model(Encoder(width=0.0625, uncertainty=uncertainty, labels=("teff",)), named_grid("tiny"))
    model.set_label_scale({"teff": 5000.0}, {"teff": 500.0})
    batch = batch_of([5500.0, 5500.0], [NAN, NAN], [False, False])
    errors = torch.zeros_like(batch.labels)
    errors[1, NAMES.index("teff")] = 50.0  # a tenth of the deviation
    said = torch.zeros(2, 1, requires_grad=True)
    scale = None if uncertainty == "none" else torch.full((2, 1), math.log(0.1))
    output, batch = Output(labels=said, log_scale=scale), batch._replace(label_errors=errors)
    part = loss_parts(model, output, batch, torch.tensor([0]), Loss())["label"]
    part.total.backward()
    assert part.terms == 2
    assert said.grad[1] / said.grad[0] == pytest.approx(0.5)


def test_a_recipe_is_known_as_it_was_before_labels_had_errors():
    assert "label_scatter" not in Loss().model_dump()
    assert Loss.model_validate(Loss(label_scatter=0.2).model_dump()).label_scatter == 0.2
