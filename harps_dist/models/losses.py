"""Loss parts as sums and counts, so that a mean can be taken over all ranks and over what is not missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.data.observer import Batch
from harps_dist.models.config import Loss, Model, PhysicalAutoencoder
from harps_dist.models.layers import at_least_float32
from harps_dist.models.refine import VELOCITIES
from harps_dist.models.supervised import Output, SpectrumModel


class Part(NamedTuple):
    """One part of the loss over the samples at hand: its weight, the sum of its terms, and how many there are."""

    weight: float
    total: Tensor
    terms: Tensor


def loss_parts(
    model: SpectrumModel,
    output: Output,
    batch: Batch,
    valid: Tensor,
    config: Loss,
    everyone: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Part]:
    """The parts of Eqs. 3-11 for one batch, in float32 or better.

    label: |l - l_hat| over labels that are not missing (Eq. 3), on the nodes drawn (Eq. 9), or the likelihood of a
    heteroscedastic head. A label that a fit gave counts by its error, see `label_weight` and `with_errors`.
    reconstruction: |s - s_hat| over the valid pixels (Eq. 5), valid: (valid pixel,) their numbers. found: |v - v_hat|
    of velocities that were looked for on what a decoder draws. unknown: |u| of simulated spectra (Sect. 3.2). kl: of
    the latent distribution from the prior, summed over nodes, mean over spectra (Eq. 8); the minus sign printed before
    it is an ELBO's, so it is added. mmd: between nodes and prior (Eq. C.4); everyone: those of the whole global batch,
    where this is not it.
    """
    parts = {}
    if output.labels is not None:
        truth = model.normalise(batch.labels)
        present = torch.isfinite(truth)
        residual = torch.where(present, at_least_float32(output.labels) - truth, 0.0)
        stated = (model.own(batch.label_errors) / model.label_std).to(residual)
        if output.log_scale is not None:
            log_scale = with_errors(at_least_float32(output.log_scale), stated, model.uncertainty)
            error = negative_log_likelihood(residual, log_scale, model.uncertainty) * present
        else:
            error = _error(residual, config.label_below) * label_weight(stated, config.label_scatter)
        parts["label"] = Part(config.label, error.sum(), present.sum())
    if output.reconstruction is not None:
        residual = at_least_float32(output.reconstruction).index_select(1, valid) - batch.flux.index_select(1, valid)
        error = _error(residual, config.reconstruction_below)
        parts["reconstruction"] = Part(config.reconstruction, error.sum(), _count(residual))
    if output.found is not None and output.labels is not None:
        sought = torch.isfinite(output.found)
        residual = torch.where(sought, at_least_float32(output.labels) - output.found, 0.0)
        parts["found"] = Part(model.search, _error(residual, config.label_below).sum(), sought.sum())
    if output.nodes is not None and config.unknown_penalty and output.nodes.shape[1] > len(model.labels):
        unknown = at_least_float32(output.nodes)[:, len(model.labels) :] * batch.simulated[:, None]
        terms = batch.simulated.sum() * unknown.shape[1]
        parts["unknown"] = Part(config.unknown_penalty, unknown.abs().sum(), terms)
    if output.latent is not None and output.latent.log_variance is not None and config.kl:
        divergence = kl_divergence(output.latent.mean, output.latent.log_variance)
        parts["kl"] = Part(config.kl, divergence.sum(), _count(divergence[:, 0]))
    if output.prior is not None and output.nodes is not None and config.mmd:
        nodes = at_least_float32(output.nodes)
        everyone = everyone or (nodes.detach(), output.prior)
        discrepancy = mmd_terms(nodes, output.prior, *everyone, config.mmd_batch_size)
        parts["mmd"] = Part(config.mmd, discrepancy.sum(), _count(discrepancy))
    return parts


def label_weight(errors: Tensor, scatter: float) -> Tensor:
    """Weights of labels with these standard deviations: 1 without an error, 1/2 where it equals the scatter.

    Inverse variances: labels without an error scatter by `scatter` about what the model says, the others by both.
    """
    return 1 / (1 + (errors / scatter).square())


def with_errors(log_scale: Tensor, errors: Tensor, likelihood: str) -> Tensor:
    """Logarithms of the scales by which labels with these standard deviations scatter about what a model says.

    Variances add: its own of scale exp(log_scale), and the label's. What has no error stays as it is.
    """
    scale = errors if likelihood == "gaussian" else errors * 0.5**0.5  # a Laplacian's variance is 2 scale²
    both = 0.5 * torch.log(torch.exp(2 * log_scale) + scale.square())
    return torch.where(errors > 0, both, log_scale)


def negative_log_likelihood(residual: Tensor, log_scale: Tensor, likelihood: str) -> Tensor:
    """-log p(residual) up to a constant, for a Gaussian of deviation or a Laplacian of scale exp(log_scale)."""
    if likelihood == "gaussian":
        return 0.5 * (residual * torch.exp(-log_scale)).square() + log_scale
    return residual.abs() * torch.exp(-log_scale) + log_scale


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(batch, node) divergence of N(mean, exp(log_variance)) from N(0, 1): (mean^2 + var - 1 - log var) / 2."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def part_names(model: Model, config: Loss) -> tuple[str, ...]:
    """The parts that `loss_parts` finds in training, in its order."""
    there = {
        "label": model.reads and bool(model.labels),
        "reconstruction": model.draws,
        "found": isinstance(model, PhysicalAutoencoder) and model.search > 0,
        "unknown": model.unknown > 0 and config.unknown_penalty > 0,
        "kl": model.variational and config.kl > 0,
        "mmd": model.variational and config.mmd > 0,
    }
    return tuple(name for name, is_there in there.items() if is_there)


def part_terms(name: str, model: SpectrumModel, batch: Batch, valid: Tensor) -> Tensor:
    """How many terms a part of `loss_parts` has, before the model has seen the batch."""
    spectra = _number(len(batch.flux), batch.flux.device)
    if name == "label":
        return torch.isfinite(model.own(batch.labels)).sum()
    if name == "reconstruction":
        return spectra * len(valid)
    if name == "found":
        return spectra * len(VELOCITIES)
    return batch.simulated.sum() * (model.nodes - len(model.labels)) if name == "unknown" else spectra


def mmd_terms(nodes: Tensor, prior: Tensor, all_nodes: Tensor, all_prior: Tensor, batch_size: int) -> Tensor:
    """(batch,) terms whose mean over the global batch is the maximum-mean discrepancy of Eq. C.4.

    nodes, prior: (batch, node); all_nodes, all_prior: those of the global batch, without gradient. Per node, with the
    kernel exp(-(x - y)^2 / bottleneck), mean over all pairs, then over nodes. Pairs of a value and itself count as in a
    batch of `batch_size`, whose mean this is in expectation for a global batch of any size. All pairs enter with one
    side held constant; doubling that gradient makes it whole, as the kernel is symmetric.
    """
    prior, all_prior = prior.to(nodes.dtype), all_prior.to(nodes.dtype)
    within = _within(nodes, all_nodes, batch_size)
    within = 2 * within - within.detach()
    across = _kernel(nodes, all_prior).mean(dim=1)
    return (within - 2 * across + _within(prior, all_prior, batch_size)).mean(dim=1)


def _within(x: Tensor, everyone: Tensor, batch_size: int) -> Tensor:
    """(batch, node) mean kernel of rows that are among `everyone` with all of them, as in a batch of `batch_size`."""
    others = (_kernel(x, everyone).sum(dim=1) - 1) / max(1, len(everyone) - 1)
    return others + (1 - others) / batch_size


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(row of x, row of y, node): exp(-(x - y)^2 / nodes)."""
    return torch.exp(-(x[:, None] - y[None]).square() / x.shape[1])


def _count(tensor: Tensor) -> Tensor:
    return _number(tensor.numel(), tensor.device)


def _number(value: int, device: torch.device) -> Tensor:
    """A number that the device writes down by itself; copied there, it would have to be waited for."""
    return torch.full((), value, dtype=torch.int64, device=device)


def _error(residual: Tensor, below: float) -> Tensor:
    """Absolute error, or, quadratic below `below`, one that meets it there with the same slope."""
    return F.smooth_l1_loss(residual, torch.zeros_like(residual), beta=below, reduction="none")


def global_loss(parts: dict[str, Part], terms: Tensor, world: int) -> Tensor:
    """The weighted sum of means over all ranks' samples, as this rank's share of it.

    terms: (part,) numbers of terms summed over ranks. Multiplied by `world` because data-parallel training averages
    gradients over ranks. A part that no sample has counts as zero.
    """
    shares = [part.weight * part.total / count.clamp(min=1) for part, count in zip(parts.values(), terms, strict=True)]
    return world * torch.stack(shares).sum()
