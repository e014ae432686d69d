"""The record of an evaluation: what was evaluated, when, on what, and how the run came about. No torch is needed to
read one.

Tested in tests/integration/test_evaluation_page.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from harps_dist.data.split import SplitName
from harps_dist.errors import ConfigError
from harps_dist.files import atomic_write
from harps_dist.frozen import Frozen
from harps_dist.runs.identity import ReleaseIdentity, TrainedModel
from harps_dist.sealed import unsealed
from harps_dist.text import sealed_json

MOST_LINES = 500  # of a log that a record keeps


class Sample(Frozen):
    """How many spectra of how many stars a release has of one kind and split. origin: in words, as its files say."""

    kind: str
    split: str
    origin: str
    spectra: int
    stars: int


class Training(Frozen):
    """How a run was trained, up to the step that was evaluated.

    recipe: the resolved one. start_from: run whose weights it began with. not_genuine: why the real spectra of its
    release may not be called so, '' where they may, None where nobody noted it. log: its lines, at most about
    `MOST_LINES`. damaged: lines that were damaged and are left out. seconds: that its steps took, by the whole log.
    """

    recipe: dict[str, Any]
    start_from: str | None
    not_genuine: str | None
    python: str | None
    versions: dict[str, str | None] | None
    log: list[dict[str, Any]]
    damaged: int
    seconds: float | None
    devices: tuple[str, ...] = ()


class Record(Frozen):
    """One evaluation. Those of version 0.1 say no more than step and release.

    date: when it ended, UTC. git, version: of the code that evaluated. seconds, device, ranks: what it took. samples:
    what the release holds that it was evaluated on.
    """

    step: int
    release_digest: str
    date: str | None = None
    git: str | None = None
    version: str | None = None
    seconds: float | None = None
    device: str | None = None
    ranks: int | None = None
    model: TrainedModel | None = None
    release: ReleaseIdentity | None = None
    grid: str | None = None
    samples: tuple[Sample, ...] = ()
    training: Training | None = None

    def write(self, out: Path, split: str) -> None:
        """Write it as SPLIT.json into the folder of an evaluation."""
        with atomic_write(out / f"{split}.json") as aside:
            aside.write_text(sealed_json(self.model_dump(mode="json")), encoding="utf-8")


def read_record(out: Path, split: str) -> Record | None:
    """The record of a split in the folder of an evaluation, None where there is none. Raises ConfigError where it is
    damaged."""
    path = out / f"{split}.json"
    try:
        return Record.model_validate(unsealed(json.loads(path.read_text(encoding="utf-8")), required=False))
    except FileNotFoundError:
        return None
    except ValueError as error:  # pydantic's are such
        raise ConfigError(f"{path} is damaged: {error}. Evaluate the run again.") from None


def read_records(out: Path) -> dict[str, Record]:
    """All records in the folder of an evaluation, by split."""
    found = {split: read_record(out, split) for split in (*get_args(SplitName), "all")}
    return {split: record for split, record in found.items() if record}


def seconds_of(lines: Sequence[dict[str, Any]], batch_size: int) -> float | None:
    """How long the steps of a log took, without validating and saving in between; None where it does not say."""
    seconds, before = 0.0, 0
    for line in lines:
        rate = line.get("spectra_per_s")
        if not rate:
            return None
        seconds += (line["step"] - before) * batch_size / rate
        before = line["step"]
    return seconds if lines else None


def thinned(lines: Sequence[dict[str, Any]], most: int = MOST_LINES) -> list[dict[str, Any]]:
    """Every k-th line of a log, counted from the last one, and those with a validation; single numbers alone."""
    stride = -(-len(lines) // most)
    return [
        {key: value for key, value in line.items() if isinstance(value, int | float)}
        for place, line in enumerate(lines)
        if (len(lines) - 1 - place) % stride == 0 or "validation_loss" in line
    ]
