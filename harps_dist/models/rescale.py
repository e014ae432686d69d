"""A model re-expressed in labels of another scale: what it predicts and draws does not change."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN_HEADS = ("network.head", "network.mean_head")
LOG_VARIANCE_HEAD = "network.log_variance_head"
SEEDS = ("network.seed", "network.decoder.seed")


def in_scale(
    weights: dict[str, Tensor], labels: tuple[str, ...], scale: dict[str, tuple[float, float]]
) -> dict[str, Tensor]:
    """Weights of a model with these labels, for labels that are normalised by other means and deviations (Eq. 1).

    weights: its state, with the `label_mean` and `label_std` that it was trained under. scale: mean and deviation by
    label; one that is not in it keeps its own. With l = mean + std n for every label, the linear layers that nodes come
    from and go into are changed by just what n changes; all is computed in float64.
    """
    changed = dict(weights)
    mean, std = weights["label_mean"].double(), weights["label_std"].double()
    pairs = [scale.get(name, (float(m), float(s))) for name, m, s in zip(labels, mean, std, strict=True)]
    new_mean, new_std = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T
    changed |= {"label_mean": new_mean, "label_std": new_std}
    if torch.equal(mean, new_mean) and torch.equal(std, new_std):
        return changed
    ratio, shift, K = std / new_std, (mean - new_mean) / new_std, len(labels)

    def put(name: str, values: Tensor) -> None:
        changed[name] = values.to(weights[name].dtype)

    for head in MEAN_HEADS:
        if f"{head}.weight" in weights:
            weight, bias = (weights[f"{head}.{part}"].double().clone() for part in ("weight", "bias"))
            weight[:K] *= ratio[:, None]
            bias[:K] = bias[:K] * ratio + shift
            if head == "network.head":  # after the labels the logarithms of their uncertainties, if it has them
                bias[K : 2 * K] += torch.log(ratio)[: len(bias) - K]
            put(f"{head}.weight", weight)
            put(f"{head}.bias", bias)
    if f"{LOG_VARIANCE_HEAD}.bias" in weights:
        bias = weights[f"{LOG_VARIANCE_HEAD}.bias"].double().clone()
        bias[:K] += 2 * torch.log(ratio)
        put(f"{LOG_VARIANCE_HEAD}.bias", bias)
    for seed in SEEDS:
        if f"{seed}.weight" in weights:
            weight, bias = (weights[f"{seed}.{part}"].double().clone() for part in ("weight", "bias"))
            bias -= weight[:, :K] @ (shift / ratio)
            weight[:, :K] /= ratio
            put(f"{seed}.weight", weight)
            put(f"{seed}.bias", bias)
    return changed
