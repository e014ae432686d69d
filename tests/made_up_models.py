"""Made-up trained models and comparisons of them, for what judges and keeps them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from harps_dist.benchmarks.speed_ratio import SpeedRatio
from harps_dist.data.split import PAPER_FRACTIONS, SALT
from harps_dist.promotion.comparison import Comparison, Entry
from harps_dist.recipes import find_recipe
from harps_dist.runs.checkpoint import Snapshot, save_checkpoint
from harps_dist.runs.identity import ReleaseIdentity
from harps_dist.runs.run import Run, save_recipe
from harps_dist.spectra.grid_spec import GridSpec
from tests.made_up_runs import index_of

RELEASE = ReleaseIdentity(digest="d1" * 32, parent="d0" * 32, genuine=True, description="made up")


def write_model(run: Path, seed: int, step: int = 10) -> Path:
    """A run with a checkpoint of a few numbers that follow from the seed; with another step, one more checkpoint."""
    grid = GridSpec(name="tiny", start=0, length=10)
    facts = {"digest": RELEASE.digest, "not_genuine": "", "split_fractions": PAPER_FRACTIONS, "split_salt": SALT}
    manifest = SimpleNamespace(**facts, grid=grid)
    release = SimpleNamespace(manifest=manifest, index=index_of(10))
    save_recipe(run, find_recipe("demo-cnn-mix"), release, "demo-cnn-mix")
    snapshot = Snapshot({"w": torch.full((3,), float(seed))}, {})
    state = {"step": step, "recipe_digest": find_recipe("demo-cnn-mix").digest, "release_digest": RELEASE.digest}
    save_checkpoint(run / "checkpoints", snapshot, state, keep=2)
    return run


def entry(measure: str = "teff", old: float = 50.0, change: float = 0.0, spread: float = 5.0, **fields) -> Entry:
    """teff of 30 real spectra of 10 frozen stars, if nothing else is said; the interval is change ± spread."""
    given = {"kind": "real", "population": "frozen", "spectra": 30, "stars": 10, "unit": "K", "reference": old}
    given |= {"new": old + change, "difference": change, "low": change - spread, "high": change + spread}
    return Entry(measure=measure, old=old, **(given | fields))


def comparison(new: Path, old: Path | None, *entries: Entry, ratio: float = 1.0) -> Comparison:
    """Of two runs, with entries as given and what a gate wants besides."""
    speed = dict.fromkeys(("old_ms", "new_ms", "ratio_q25", "ratio_q75"), 1.0)
    everything = [one.model_copy(update={"population": "all"}) for one in entries if one.population == "frozen"]
    return Comparison(
        new=Run(new).identity(),
        old=Run(old).identity() if old else None,
        release=RELEASE,
        split="test",
        conditions={},
        entries=(*entries, *everything),
        speed=SpeedRatio(device="cpu", threads=1, batch=4, repeats=5, ratio=ratio, **speed),
    )


def write_comparison(folder: Path, new: Path, old: Path | None, change: float = 0.0) -> Path:
    """A comparison of two runs on disk, in which teff gets worse by `change` of 50 K, ± 5 K."""
    folder.mkdir(parents=True)
    comparison(new, old, entry(change=change)).write(folder)
    (folder / "comparison.md").write_text("# made up\n")
    return folder
