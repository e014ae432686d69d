"""Whether the best model of a column is significantly better than the others (paper, notes of Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEVEL = 0.01


@dataclass(frozen=True)
class BestModel:
    """The model of least mean error against every other.

    best: its name. p_values: two-sided Mann-Whitney U against each other model, adjusted by Holm-Bonferroni over
    these comparisons.
    """

    best: str
    p_values: dict[str, float]

    def significant(self, level: float = LEVEL) -> bool:
        """Whether it outperforms all others at this level; False where there is none to outperform."""
        return bool(self.p_values) and max(self.p_values.values()) < level


def compare(errors: Mapping[str, np.ndarray]) -> BestModel | None:
    """Compare models by their absolute errors, (n,) each, NaN left out; None where no model has one.

    Mann-Whitney takes the errors as independent, which repeated visits to a star are not: see `mean_by_star`.
    """
    from scipy.stats import mannwhitneyu

    known = {name: values[np.isfinite(values)] for name, values in errors.items()}
    known = {name: values for name, values in known.items() if len(values)}
    if not known:
        return None
    best = min(known, key=lambda name: known[name].mean())
    others = [name for name in known if name != best]
    p_values = np.array([mannwhitneyu(known[best], known[other]).pvalue for other in others])
    return BestModel(best, dict(zip(others, holm(p_values).tolist(), strict=True)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """(m,) p-values adjusted for m comparisons by Holm (1979): the k-th smallest times m - k + 1, never decreasing."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def mean_by_star(errors: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """(stars,) mean error of each star's spectra, NaN left out: independent values, in the order of sorted names."""
    names, number = np.unique(stars, return_inverse=True)
    known = np.isfinite(errors)
    total = np.bincount(number[known], errors[known], len(names))
    count = np.bincount(number[known], minlength=len(names))
    return np.divide(total, count, out=np.full(len(names), np.nan), where=count > 0)
