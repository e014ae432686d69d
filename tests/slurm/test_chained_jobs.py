"""The whole chain of a retraining on a real SLURM, with a kill in each of its jobs, and once more when it is done."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harps_dist.cluster.chain import Stage, job_name
from harps_dist.data.reader import Release
from harps_dist.formats.archive import Archive
from preprocessing.demo import DemoSize, build_delivery
from preprocessing.difference import compare_releases
from tests.commands import TINY, command, run
from tests.slurm.cluster import CPU_ONLY, Cluster, until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
GATE = """failed_predictions: 0
least_stars: 1
slower: null
surprise: null
lines:
- {measure: labels, relative: 5.0, least_stars: 1, judge_by: mean}
"""


@pytest.fixture
def world(tiny_demo, tmp_path, slurm) -> Path:
    """Folder with archive A.zarr, release R, a model trained on it and promoted, and a delivery."""
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "A.zarr")
    shutil.copytree(tiny_demo / "release", tmp_path / "R")
    (tmp_path / "gate.yaml").write_text(GATE)
    size = DemoSize(stars=16, visits=2.0, seds=40, etc_runs=4, cores=4, grid="tiny", split=(0.6, 0.2, 0.2), seed=3)
    build_delivery(tmp_path / "gained", size, 1, lambda *_: None)
    run(command("launch/train.py", "demo-cnn-mix", "--data.release", tmp_path / "R", "--out", "first",
                "--training.steps", 20, *TINY), tmp_path)  # fmt: skip
    run(command("launch/compare.py", "first", "-o", "alone"), tmp_path)
    promote = ("promote", "first", "--comparison", "alone", "--gate", "gate.yaml", "--registry", "models")
    run(command("launch/promote.py", *promote), tmp_path)
    return tmp_path


def chain(world: Path, name: str) -> tuple[object, ...]:
    delivery = world / "gained" / "delivery-1"
    return (
        world / name, "--spectra", delivery / "spectra", "--catalog", delivery / "catalog.csv", "--archive",
        world / "A.zarr", "--parent", world / "R", "--registry", world / "models", "--gate", world / "gate.yaml",
        "--parts", "2", "--no-genuine", "--jobs=--time=5 --cpus-per-task=1", f"--ranks={' '.join(CPU_ONLY)}",
        "--training.steps", "6", "--log.save-every", "2",
    )  # fmt: skip


def submit(slurm: Cluster, world: Path, name: str) -> None:
    """From a job, as a site would."""
    logs = f"--output={slurm.folder}/%x-%j.log"
    job = slurm.submit("--time=5", logs, "slurm/retrain.sbatch", *chain(world, name))
    state = slurm.wait(job)["JobState"]
    assert state == "COMPLETED", (slurm.folder / f"retrain-{job}.log").read_text()


def drained(slurm: Cluster) -> None:
    until(lambda: not slurm.run("squeue", "-h"), 300)


def said(world: Path, name: str) -> str:
    return "\n".join(path.read_text() for path in sorted((world / name / "logs").glob("*.log")))


def history(world: Path) -> list[str]:
    return [event["event"] for event in json.loads((world / "models/index.json").read_text())["events"]]


def check(world: Path, name: str) -> None:
    """Whatever happened on the way: everything came in once, the model was trained on it and promoted."""
    assert history(world) == ["promoted", "promoted"], said(world, name)
    release = Release(world / name / "release")
    found = compare_releases(Release(world / "R"), release)
    assert (
        len(found.added) == Archive(world / "A.zarr").count("real") - Release(world / "R").manifest.counts["real"] > 0
    )
    assert found.sound
    assert json.loads((world / name / "diff.json").read_text())["added"] == found.added
    current = (world / "models/current").resolve()
    weights = [
        load_file(max(path.glob("checkpoints/step-*/model.safetensors"))) for path in (current, world / name / "run")
    ]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


@pytest.mark.timeout(1800)
def test_a_chain_that_is_killed_in_each_of_its_jobs_promotes_the_model_once(slurm, world):
    dry = run(command("launch/chain.py", *chain(world, "chain"), "--dry-run"), world)
    assert "slurm/preprocess_array.sbatch" in dry
    folder = world / "chain"
    assert not folder.exists()
    killed = []
    for stage in ("ingest", "merge", "pack", "verify", "diff", "train", "evaluate", "compare", "gate"):
        submit(slurm, world, "chain")
        name = job_name(folder, Stage(stage, "", (), ()))

        def running(name: str = name) -> list[str]:
            return slurm.run("squeue", "-h", "-t", "RUNNING", "-n", name, "-o", "%A").split()

        deadline = time.monotonic() + 200
        while not (jobs := running()):
            assert time.monotonic() < deadline, said(world, "chain")
            time.sleep(0.05)
        time.sleep(1.0)  # into its start-up, or its work
        slurm.run("scancel", "--full", "--signal=KILL", *jobs)
        killed.append(stage)
        drained(slurm)
        assert "promoted" in history(world)
    assert len(killed) == 9
    submit(slurm, world, "chain")
    submit(slurm, world, "chain")  # while it is under way: nothing is submitted twice
    assert len(set(slurm.run("squeue", "-h", "-o", "%F").split())) <= 9
    drained(slurm)
    check(world, "chain")
    submit(slurm, world, "chain")
    drained(slurm)
    check(world, "chain")
    assert "is the current model" in said(world, "chain")
