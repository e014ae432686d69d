"""What the size of a batch does to the parts of the loss that compare a batch with the prior.

Tested in tests/integration/test_benchmark.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harps_dist.config import Recipe
from harps_dist.data.batches import TrainingBatches
from harps_dist.data.observer import Observer
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.models.losses import kl_divergence, mmd_terms
from harps_dist.runs.run import initial_model

if TYPE_CHECKING:
    from rich.table import Table

_SHUFFLES = 16
_AT_A_TIME = 16  # spectra
METHOD = (
    "Means over batches that a set of training spectra is shuffled and cut into, ± their standard errors. Nodes are "
    "those of a new model, each brought to mean 0 and deviation 1 over the set, where training leads; drawn anew each "
    "time. Pull: relative to the growth of all nodes' deviation."
)


class Effect(NamedTuple):
    """Value and pull on the spread, mean and standard error each, of a part of the loss at a size of batches."""

    part: str
    size: int
    value: tuple[float, float]
    pull: tuple[float, float]


def batch_size_effects(recipe: Recipe, release: Release, sizes: Iterable[int], spectra: int = 512) -> list[Effect]:
    """KL and MMD of batches of several sizes, cut from so many spectra; "mmd as printed" is the plain mean over pairs.

    Raises ConfigError where the recipe's model has no variational bottleneck.
    """
    if not getattr(recipe.model, "variational", False):
        raise ConfigError(f"a {recipe.model.kind} has neither KL nor MMD. Name a recipe with a variational bottleneck.")
    mean, log_variance = _latents(recipe, release, spectra)
    generator, found = torch.Generator().manual_seed(recipe.training.seed), []
    for size in sizes:
        seen: dict[str, list[tuple[float, float]]] = {"kl": [], "mmd": [], "mmd as printed": []}
        for _ in range(_SHUFFLES):
            for rows in torch.randperm(len(mean), generator=generator).split(size):
                if len(rows) < size:
                    continue
                drawn, prior = torch.randn(2, size, mean.shape[1], generator=generator, dtype=mean.dtype)
                spread = torch.ones((), dtype=mean.dtype, requires_grad=True)
                nodes = spread * (mean[rows] + drawn * (log_variance[rows] / 2).exp())
                parts = {
                    "kl": kl_divergence(spread * mean[rows], log_variance[rows] + 2 * spread.log()).sum(1).mean(),
                    "mmd": mmd_terms(nodes, prior, nodes.detach(), prior, recipe.loss.mmd_batch_size).mean(),
                    "mmd as printed": mmd_terms(nodes, prior, nodes.detach(), prior, size).mean(),
                }
                for name, part in parts.items():
                    (pull,) = torch.autograd.grad(part, spread, retain_graph=True)
                    seen[name].append((part.item(), pull.item()))
        for name, pairs in seen.items():
            means = np.mean(pairs, axis=0).tolist()
            errors = (np.std(pairs, axis=0) / len(pairs) ** 0.5).tolist()
            found.append(Effect(name, size, (means[0], errors[0]), (means[1], errors[1])))
    return found


@torch.no_grad()
def _latents(recipe: Recipe, release: Release, spectra: int) -> tuple[Tensor, Tensor]:
    """(spectrum, node) mean and log variance, float64, of the first spectra of the order; all together normal nodes."""
    cpu = torch.device("cpu")
    model, data, seed = initial_model(recipe, release.manifest), recipe.data, recipe.training.seed
    observer = Observer(release.decoding, data.augment, cpu)
    order = Order(release.index, data.mix, seed, release.digest)
    batches = TrainingBatches(release, order, data, seed, _AT_A_TIME)
    latents = [model.encode(observer(batches[step]).flux) for step in range(-(-spectra // _AT_A_TIME))]
    mean, log_variance = (torch.cat(parts)[:spectra].double() for parts in zip(*latents, strict=True))
    variance = mean.var(0, correction=0) + log_variance.exp().mean(0)
    return (mean - mean.mean(0)) / variance.sqrt(), log_variance - variance.log()


def batch_size_table(effects: Iterable[Effect]) -> Table:
    """The effects as a rich table, the method in its caption."""
    from rich.table import Table

    table = Table(title="KL and MMD by the size of a batch", caption=METHOD)
    for header in ("part", "batch", "value", "pull on the spread"):
        table.add_column(header, justify="left" if header == "part" else "right")
    for one in sorted(effects, key=lambda one: one.part):
        figures = (f"{mean:.5f} ± {error:.5f}" for mean, error in (one.value, one.pull))
        table.add_row(one.part, str(one.size), *figures)
    return table
