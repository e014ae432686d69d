"""Loss parts as sums and counts, so that a mean can be taken over all ranks and over what is not missing."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harps_dist.config import Loss
from harps_dist.data.batches import Batch
from harps_dist.models.supervised import Output, SpectrumModel


class Part(NamedTuple):
    """One part of the loss over the samples at hand: its weight, the sum of its terms, and how many there are."""

    weight: float
    total: Tensor
    terms: Tensor


def loss_parts(model: SpectrumModel, output: Output, batch: Batch, valid: Tensor, config: Loss) -> dict[str, Part]:
    """The parts of Eqs. 3-7 for one batch, in float32.

    label: |l - l_hat| over labels that are not missing (Eq. 3). reconstruction: |s - s_hat| over the valid
    pixels (Eq. 5), valid: (valid pixel,) their numbers. unknown: |u| of simulated spectra (Sect. 3.2).
    """
    parts = {}
    if output.labels is not None:
        truth = model.normalise(batch.labels)
        present = torch.isfinite(truth)
        residual = torch.where(present, output.labels.float() - truth, 0.0)
        parts["label"] = Part(config.label, _error(residual, config.label_below).sum(), present.sum())
    if output.reconstruction is not None:
        residual = output.reconstruction.float()[:, valid] - batch.flux[:, valid]
        terms = torch.tensor(residual.numel(), device=residual.device)
        parts["reconstruction"] = Part(
            config.reconstruction, _error(residual, config.reconstruction_below).sum(), terms
        )
    if output.unknown is not None and output.unknown.shape[1] and config.unknown_penalty:
        unknown = output.unknown.float() * batch.simulated[:, None]
        terms = batch.simulated.sum() * unknown.shape[1]
        parts["unknown"] = Part(config.unknown_penalty, unknown.abs().sum(), terms)
    return parts


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
