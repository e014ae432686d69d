"""The shipped scripts, unchanged, on a real SLURM: interrupted, requeued, moved to another node, out of time."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from harps_dist.runs.log import lasting, read_log
from harps_dist.spectra.grid import named_grid
from tests.commands import TINY, command, run
from tests.slurm.cluster import CPU_ONLY, Cluster, until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
STEPS = 60
LAST = f"checkpoints/step-{STEPS:08d}"


@pytest.fixture(scope="module")
def training(tiny_release) -> tuple[object, ...]:
    return (
        "demo-ae-mix", "--data.release", tiny_release, "--training.steps", STEPS, "--log.save-every", 5,
        "--log.validate-every", 4, *TINY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(training, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(command("launch/train.py", *training, "--out", folder / "run", ranks=2), folder)
    return folder / "run"


def same(one: Path, other: Path) -> bool:
    files = ("model.safetensors", "optimizer.safetensors")
    equal = [(one / LAST / name).read_bytes() == (other / LAST / name).read_bytes() for name in files]
    return all(equal) and lasting(one) == lasting(other)


def output(slurm: Cluster, job: str) -> str:
    return "".join(path.read_text() for path in slurm.folder.glob(f"*-{job}*.log"))


def submit(slurm: Cluster, script: str, *arguments: object, options: tuple[object, ...] = CPU_ONLY, **settings) -> str:
    logs = f"--output={slurm.folder}/%x-%j.log"
    return slurm.submit(*options, logs, f"slurm/{script}.sbatch", *arguments, **settings)


def test_asked_to_stop_in_training_saving_and_validation_it_ends_with_the_same_bits(
    slurm, training, undisturbed, tmp_path
):
    """At three steps: anywhere in the loop; while a checkpoint is written; right after a step that is validated."""
    out = tmp_path / "run"
    job = submit(slurm, "train", *training, "--out", out)
    until(lambda: len(read_log(out)) >= 6)
    slurm.signal(job)
    slurm.wait(job, lambda state: state.get("Restarts") == "1")
    slurm.wait(job, lambda state: state["JobState"] == "RUNNING")
    until(lambda: len(read_log(out)) >= 12 and list(out.glob("checkpoints/.step-*.tmp")))
    slurm.signal(job)
    slurm.wait(job, lambda state: state.get("Restarts") == "2")
    slurm.wait(job, lambda state: state["JobState"] == "RUNNING")
    until(lambda: len(read_log(out)) % 4 == 3 and len(read_log(out)) > 20)
    slurm.signal(job)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert same(out, undisturbed)
    said = output(slurm, job)
    assert said.count("back into the queue") >= 2
    assert "restart 2" in said  # one log for all restarts


def test_asked_to_stop_before_it_listens_it_starts_again(slurm, training, undisturbed, tmp_path):
    """The signal meets Python's start-up, which dies of it."""
    job = submit(slurm, "train", *training, "--out", tmp_path / "run")
    until(lambda: "restart 0" in output(slurm, job))
    time.sleep(0.5)  # srun has started the tasks, which import for seconds
    slurm.signal(job)
    assert slurm.wait(job)["JobState"] == "COMPLETED", output(slurm, job)
    assert slurm.state(job)["Restarts"] == "1"
    assert "stopped at 'its start'" in output(slurm, job)
    assert same(tmp_path / "run", undisturbed)


def test_an_evaluation_that_is_requeued_ends_with_the_same_bits(slurm, undisturbed, tmp_path):
    run(command("launch/evaluate.py", undisturbed, "--split", "all", "--out", tmp_path / "a", ranks=2), tmp_path)
    job = submit(slurm, "evaluate", undisturbed, "--split", "all", "--out", tmp_path / "b")
    until(lambda: (tmp_path / "b/all-real/report.md").exists())
    slurm.signal(job)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert slurm.state(job)["Restarts"] == "1"
    for kind in ("real", "simulated", "generative"):
        for name in ("predictions.parquet", "scores.json"):
            one, other = (tmp_path / folder / f"all-{kind}" / name for folder in "ab")
            assert one.read_bytes() == other.read_bytes()


def test_two_nodes_learn_what_one_node_learns(slurm, training, undisturbed, tmp_path):
    options = ("--nodes=2", "--ntasks-per-node=1", "--gres=none", "--cpus-per-task=1")
    job = submit(slurm, "train_multinode", *training, "--out", tmp_path / "run", options=options)
    assert slurm.wait(job)["JobState"] == "COMPLETED", output(slurm, job)
    assert slurm.state(job)["NodeList"] == "n[1-2]"
    assert same(tmp_path / "run", undisturbed)


def test_a_node_that_goes_down_costs_steps_but_no_bit(slurm, training, undisturbed, tmp_path):
    out = tmp_path / "run"
    job = submit(slurm, "train", *training, "--out", out)
    until(lambda: len(read_log(out)) >= 8)
    node = slurm.state(job)["NodeList"]
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        state = slurm.wait(job)
        assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1")
    finally:
        with contextlib.suppress(AssertionError):  # it may have come back by itself
            slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert same(out, undisturbed)


def test_a_job_that_reaches_its_time_limit_is_requeued_in_time(slurm, training, tmp_path):
    """SLURM's own signal, sent by its own clock, well before a limit of a minute; maybe before training can listen."""
    long = [100_000 if word == STEPS else word for word in training]
    options = (*CPU_ONLY[:-1], "--time=1", "--signal=B:USR1@50")
    job = submit(slurm, "train", *long, "--out", tmp_path / "run", options=options)
    slurm.wait(job, lambda state: state.get("Restarts") == "1")
    slurm.run("scancel", job)
    assert "back into the queue" in output(slurm, job)
    if "stopped by SIGUSR1" in output(slurm, job):
        saved = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
        state = json.loads((saved / "state.json").read_text())
        kept = state["unfinished"] is not None  # stopped in a validation, whose line the checkpoint keeps
        assert state["step"] == len(read_log(tmp_path / "run")) + kept


def test_restarts_without_progress_come_to_an_end(slurm, undisturbed, tmp_path):
    job = submit(slurm, "evaluate", undisturbed, "--max-minutes", 0.001, "--out", tmp_path / "out", MAX_RESTARTS="1")
    assert slurm.wait(job)["JobState"] == "FAILED"
    assert slurm.state(job)["Restarts"] == "1"
    assert "stopped 2 times" in output(slurm, job)


def test_an_array_with_a_failing_task_is_mended_and_merged(slurm, tiny_demo, tmp_path):
    """One part cannot be written; the merge names it; run again alone, the merged archive is that of one ingest."""
    from harps_dist.formats.archive import Archive
    from preprocessing.merge import Part

    spectra, whole, single = tmp_path / "spectra", tmp_path / "A.zarr", tmp_path / "single.zarr"
    files = sorted((tiny_demo / "files/spectra").glob("*.fits"))[:12]
    for file in files:
        spectra.mkdir(exist_ok=True)
        shutil.copy(file, spectra)
    (spectra / "broken.fits").write_bytes(b"not FITS")
    ingest = ("-m", "preprocessing", "ingest", "--spectra", spectra, "--grid", "tiny")
    run([slurm.environment["PYTHON"], *map(str, ingest), "--archive", str(single)], tmp_path)
    in_the_way = Part(1, 3).archive(whole)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder should be")
    options = ("--array=0-2", "--cpus-per-task=1")
    job = submit(slurm, "preprocess_array", spectra, whole, "--grid", "tiny", options=options)
    until(lambda: not slurm.run("squeue", "-h", "-j", job))
    states = [slurm.state(f"{job}_{task}")["JobState"] for task in range(3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"]
    merge = submit(slurm, "preprocess_merge", whole, 3, options=("--time=5",))
    assert slurm.wait(merge)["JobState"] == "FAILED"
    assert "parts 1 of 3" in output(slurm, merge)
    in_the_way.unlink()
    job = submit(
        slurm, "preprocess_array", spectra, whole, "--grid", "tiny", options=("--array=1", *options[1:]), PARTS="3"
    )
    until(lambda: not slurm.run("squeue", "-h", "-j", job))
    for _ in range(2):  # merging again adds nothing
        merge = submit(slurm, "preprocess_merge", whole, 3, options=("--time=5",))
        assert slurm.wait(merge)["JobState"] == "COMPLETED", output(slurm, merge)
    one, other = Archive(single), Archive(whole)
    assert one.count("real") == other.count("real") == len(files)
    assert one.column("real", "key").tolist() == other.column("real", "key").tolist()
    for row in range(len(files)):
        np.testing.assert_array_equal(one.data("real", row), other.data("real", row))
    quarantines = [path.with_name(f"{path.name}.quarantine.csv").read_text() for path in (single, whole)]
    assert quarantines[0] == quarantines[1]


def test_an_array_of_etc_runs_makes_the_archive_of_one_ingest(slurm, tiny_demo, tmp_path):
    from preprocessing.etc import ingest_etc
    from preprocessing.verify import verify

    runs, seds, whole = tiny_demo / "files/etc", tiny_demo / "files/sed", tmp_path / "A.zarr"
    single = tmp_path / "single.zarr"
    ingest_etc(runs, single, named_grid("tiny"), seds)
    options = ("--array=0-1", "--cpus-per-task=1")
    job = submit(slurm, "preprocess_etc_array", runs, whole, "--seds", seds, "--grid", "tiny", options=options)
    until(lambda: not slurm.run("squeue", "-h", "-j", job))
    assert [slurm.state(f"{job}_{task}")["JobState"] for task in range(2)] == ["COMPLETED"] * 2, output(slurm, job)
    merge = submit(slurm, "preprocess_merge", whole, 2, options=("--time=5",))
    assert slurm.wait(merge)["JobState"] == "COMPLETED", output(slurm, merge)
    files = sorted(path.relative_to(single) for path in single.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert all((single / name).read_bytes() == (whole / name).read_bytes() for name in files)
    assert verify(whole) == []
