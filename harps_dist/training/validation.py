"""The loss over the validation split, each sample once whatever the number of ranks.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harps_dist.config import Recipe
from harps_dist.data.batches import EvaluationBatches, in_batches, load
from harps_dist.data.manifest import KINDS_WITH_LABELS
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.models.losses import Part, loss_parts
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.training.precision import autocast

_BATCH = 16


@torch.no_grad()
def validate(
    model: SpectrumModel, recipe: Recipe, release: Release, observer: Observer, valid: Tensor, world: World
) -> dict[str, float | list[float]]:
    """Mean loss parts over the validation split, and "validation_loss", their weighted sum.

    Of a model that reads labels also their mean absolute errors, in their units, as "mae_real_teff" and the like.
    Of a variational model also mean and deviation of every node, 0 and 1 in the prior: with many nodes the kernel of
    the MMD hardly sees a wrong variance. Raises Interrupted on all ranks where one was asked to stop.
    """
    figures: list[Tensor] = []
    moments = torch.zeros(3, model.nodes, dtype=torch.float64, device=world.device)
    errors = torch.zeros(len(KINDS_WITH_LABELS), 2, len(model.labels), dtype=torch.float64, device=world.device)
    weights: dict[str, float] = {}
    model.eval()
    try:
        for kind, of_kind in zip(KINDS_WITH_LABELS, errors, strict=True):
            if not getattr(recipe.data.mix, kind):
                continue
            rows = release.index.rows(kind, "validation")
            parts_of_ranks = [in_batches(rows[rank :: world.size], _BATCH) for rank in range(world.size)]
            batches = EvaluationBatches(release, parts_of_ranks[world.rank], recipe.data.augment, recipe.training.seed)
            stream = load(batches, range(len(batches)), 0, world.device)
            for raw in world.in_step(stream, len(parts_of_ranks[0])):
                batch = observer(raw)
                with autocast(recipe.training.known_precision, world.device):
                    output = model(batch)
                parts = loss_parts(model, output, batch, valid, recipe.loss)
                figures.append(totals(parts))
                weights = {name: part.weight for name, part in parts.items()}
                if output.labels is not None:
                    error = (
                        output.labels.double() * model.label_std + model.label_mean - model.own(batch.labels)
                    ).abs()
                    present = torch.isfinite(error)
                    of_kind += torch.stack([torch.where(present, error, 0.0).sum(0), present.sum(0)])
                if output.latent is not None:
                    mean, variance = output.latent.mean.double(), output.latent.log_variance.double().exp()
                    moments += torch.stack([torch.ones_like(mean), mean, mean**2 + variance]).sum(1)
    finally:
        model.train()
    weights = next((found for found in world.gather(weights) if found), {})
    zeros = torch.zeros(2, len(weights), dtype=torch.float64, device=world.device)
    sums, counts = world.sum(sum(figures, zeros)).tolist()
    means = {name: total / n for name, total, n in zip(weights, sums, counts, strict=True) if n > 0}
    line: dict[str, float | list[float]] = {f"validation_{name}": mean for name, mean in means.items()}
    if means:
        line["validation_loss"] = sum(weights[name] * mean for name, mean in means.items())
    for kind, (total, n) in zip(KINDS_WITH_LABELS, world.sum(errors).tolist(), strict=True):
        labels = zip(model.labels, total, n, strict=True)
        line |= {f"mae_{kind}_{label}": sum_of / count for label, sum_of, count in labels if count > 0}
    if getattr(recipe.model, "variational", False) and means:
        seen, first, second = world.sum(moments)
        deviation = (second / seen - (first / seen) ** 2).sqrt()
        line |= {"node_mean": (first / seen).tolist(), "node_deviation": deviation.tolist()}
    return line


def totals(parts: dict[str, Part]) -> Tensor:
    """(2, part) float64 totals and counts of loss parts."""
    return torch.stack(
        [torch.stack([part.total.detach().double(), part.terms.double()]) for part in parts.values()], dim=1
    )
