"""The evaluations of a folder of runs, each run named as its recipe.

Tested in tests/integration/test_reproduce.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.evaluation.report import SCORES, check_table, read_scores

if TYPE_CHECKING:
    from harps_dist.data.split import SplitName
    from harps_dist.evaluation.measures import SpectraKind


class Evaluations:
    """What `launch/evaluate.py` wrote of the runs in a folder, by the paper's recipes.

    demo: whether the runs are those of the recipes at demo scale. release_digest: of the release that must have been
    evaluated on, so that no table mixes data; None for any. A run or an evaluation that is not there is None, or
    an array without values.
    """

    def __init__(self, runs: Path, demo: bool, release_digest: str | None = None, split: SplitName = "test"):
        self.runs, self.demo, self.release_digest, self.split = Path(runs), demo, release_digest, split
        self.scores = cache(self._scores)
        self.predictions = cache(self._predictions)

    def run(self, recipe: str) -> Path:
        """The folder of a recipe's run."""
        return self.runs / (f"demo-{recipe}" if self.demo else recipe)

    def folder(self, recipe: str, kind: SpectraKind) -> Path:
        return self.run(recipe) / "evaluation" / f"{self.split}-{kind}"

    def _scores(self, recipe: str, kind: SpectraKind) -> dict[str, Any] | None:
        """scores.json of a report."""
        folder = self.folder(recipe, kind)
        if not (folder / SCORES).exists():
            return None
        scores = read_scores(folder)
        return scores if self.release_digest in (None, scores.get("release_digest")) else None

    def _predictions(self, recipe: str, kind: SpectraKind) -> dict[str, np.ndarray] | None:
        """Columns of predictions.parquet, one value a spectrum."""
        return self.table(recipe, kind, "predictions.parquet")

    def table(self, recipe: str, kind: SpectraKind, name: str) -> dict[str, np.ndarray] | None:
        """Columns of a table that lies beside scores.json, checked against the sha256 there; None where there is none.

        Raises ConfigError where it is damaged.
        """
        scores, path = self.scores(recipe, kind), self.folder(recipe, kind) / name
        if scores is None or not path.exists():
            return None
        check_table(path, scores)
        return read_columns(path)

    def column(self, recipe: str, kind: SpectraKind, name: str) -> np.ndarray:
        """One column of the predictions, empty where there is none."""
        return (self.predictions(recipe, kind) or {}).get(name, np.empty(0))

    def residuals(self, recipe: str, label: str) -> np.ndarray:
        """(n,) predicted - true of a label on observed spectra, NaN where either is missing."""
        return self.column(recipe, "real", label) - self.column(recipe, "real", f"{label}_true")

    def measure(self, recipe: str, kind: SpectraKind, name: str) -> dict[str, Any]:
        """A score that is no label's error: value, standard errors, counts; empty where it was not measured."""
        measures = (self.scores(recipe, kind) or {"measures": []})["measures"]
        return next((of_name for of_name in measures if of_name["name"] == name), {})
