"""The evaluations of a folder of runs, each run named as its recipe.

Tested in tests/integration/test_reproduce.py.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.columns import read_columns
from harps_dist.errors import ConfigError
from harps_dist.evaluation.report import FORMAT, FORMATS
from harps_dist.sealed import sha256_of, unsealed

if TYPE_CHECKING:
    from harps_dist.data.split import SplitName
    from harps_dist.evaluation.evaluate import Spectra


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

    def folder(self, recipe: str, kind: Spectra) -> Path:
        return self.run(recipe) / "evaluation" / f"{self.split}-{kind}"

    def _scores(self, recipe: str, kind: Spectra) -> dict[str, Any] | None:
        """scores.json of a report."""
        path = self.folder(recipe, kind) / "scores.json"
        if not path.exists():
            return None
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
            form = scores.get("format", 1)
            if form not in FORMATS:
                raise ValueError(f"format {form!r}, this code knows {FORMAT}")
            scores = unsealed(scores, required=form > 1)
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}. Evaluate the run again.") from None
        return scores if self.release_digest in (None, scores.get("release_digest")) else None

    def _predictions(self, recipe: str, kind: Spectra) -> dict[str, np.ndarray] | None:
        """Columns of predictions.parquet, one value a spectrum."""
        return self.table(recipe, kind, "predictions.parquet")

    def table(self, recipe: str, kind: Spectra, name: str) -> dict[str, np.ndarray] | None:
        """Columns of a table that lies beside scores.json, checked against the sha256 there; None where there is none.

        Raises ConfigError where it is damaged.
        """
        scores, path = self.scores(recipe, kind), self.folder(recipe, kind) / name
        if scores is None or not path.exists():
            return None
        stated, found = scores.get("sha256", {}), sha256_of(path)
        if "sha256" in scores and stated.get(name) != found:
            raise ConfigError(
                f"{path} is damaged: sha256 {found[:12]}, scores.json says {str(stated.get(name))[:12]}. Evaluate the "
                f"run again."
            )
        return read_columns(path)

    def column(self, recipe: str, kind: Spectra, name: str) -> np.ndarray:
        """One column of the predictions, empty where there is none."""
        return (self.predictions(recipe, kind) or {}).get(name, np.empty(0))

    def residuals(self, recipe: str, label: str) -> np.ndarray:
        """(n,) predicted - true of a label on observed spectra, NaN where either is missing."""
        return self.column(recipe, "real", label) - self.column(recipe, "real", f"{label}_true")

    def measure(self, recipe: str, kind: Spectra, name: str) -> dict[str, Any]:
        """A score that is no label's error: value, standard errors, counts; empty where it was not measured."""
        measures = (self.scores(recipe, kind) or {"measures": []})["measures"]
        return next((of_name for of_name in measures if of_name["name"] == name), {})
