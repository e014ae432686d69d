"""The small parts of the training engine: stops, launchers, learning rates, clocks, peaks, plans, the lock."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from harps_dist.config import Training
from harps_dist.console import EXIT_INTERRUPTED, PROGRESS
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, Interrupted
from harps_dist.files import exclusive
from harps_dist.ranks.preemption import StopRequest
from harps_dist.ranks.world import World, join_world, rank_environment
from harps_dist.training.clock import PARTS, StepClock
from harps_dist.training.peaks import measured_peaks
from harps_dist.training.precision import LossScale
from harps_dist.training.schedule import learning_rate
from harps_dist.training.strategies.base import clip
from tests.commands import TINY, command, environment, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_answered_between_steps_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    taken = []

    def loop() -> None:
        with join_world() as world:
            for item in world.in_step(range(5), 5):
                taken.append(item)
                if item == 2:
                    os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=number.name):
        loop()
    assert taken == [0, 1, 2]
    assert signal.getsignal(number) is before


def test_the_time_limit_is_a_reason_to_stop():
    assert StopRequest().reason is None
    stop = StopRequest(max_minutes=0.05 / 60)
    assert stop.reason is None
    time.sleep(0.06)
    assert stop.reason == "the time limit"
    assert list(World(0, 1, CPU).in_step(iter("abc"), 5)) == ["a", "b", "c"]


def test_an_interrupted_command_says_how_far_it_is(tmp_path):
    code = "from harps_dist.console import end_with; from harps_dist.errors import Interrupted\n"
    code += "def main(): raise Interrupted('stopped by x.', 'run at step 3 of 9')\nend_with(main)"
    variables = environment() | {PROGRESS: str(tmp_path / "progress")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_INTERRUPTED == 75
    assert (tmp_path / "progress").read_text() == "run at step 3 of 9\n"
    assert done.stderr == "stopped by x. (run at step 3 of 9)\n"


def test_ranks_are_those_of_the_launcher_or_of_the_step(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$2" = hostnames ] && echo "a7 a8" || echo "NodeName=$3 NodeAddr=10.0.0.7 x=y"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    step = {
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "a[7-8]", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "123456",
    }  # fmt: skip
    expected = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "23456"}
    assert rank_environment(step) == expected
    assert rank_environment(step | {"MASTER_PORT": "99"})["MASTER_PORT"] == "99"
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    assert rank_environment(step | torchrun) == torchrun
    assert rank_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == {}  # in a batch script, outside srun
    scontrol.unlink()
    with pytest.raises(ConfigError, match="torchrun"):
        rank_environment(step | {"PATH": ""})


def test_learning_rates_grow_with_the_batch_as_asked():
    def at(step: int, scaling: str, **more) -> float:
        return learning_rate(step, 100, Training(learning_rate=1e-4, batch_size=128, lr_scaling=scaling, **more))

    assert at(50, "none") == 1e-4
    assert at(50, "sqrt") == pytest.approx(2e-4)
    assert at(50, "linear") == pytest.approx(4e-4)
    assert at(0, "linear", warmup_steps=4) == pytest.approx(1e-4)
    assert at(50, "linear", lr_batch_size=64) == pytest.approx(2e-4)


def test_the_loss_scale_halves_and_doubles():
    finite, failed = torch.tensor(True), torch.tensor(False)
    scale = LossScale("fp16", CPU)
    scale.update(failed)
    assert scale.state() == {"value": 2.0**15, "finite_steps": 0}
    for _ in range(2000):
        scale.update(finite)
    assert scale.state() == {"value": 2.0**16, "finite_steps": 2000}
    restored = LossScale("fp16", CPU)
    restored.restore(json.loads(json.dumps(scale.state())))
    assert restored.state() == scale.state()
    restored.restore({"value": 1.0, "finite_steps": 9})
    restored.update(failed)
    assert restored.state() == {"value": 1.0, "finite_steps": 0}
    still = LossScale("bf16", CPU)
    still.update(failed)
    assert still.state() == {"value": 1.0, "finite_steps": 0}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("clip_norm", "expected"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_gradients_are_brought_back_to_scale_and_clipped(precision, clip_norm, expected):
    """A gradient of norm 5, multiplied by the loss scale, keeps its direction and becomes no longer than allowed."""
    model, scale = torch.nn.Linear(2, 1, bias=False), LossScale(precision, CPU)
    model.weight.grad = torch.tensor([[3.0, 4.0]]) * scale.value
    assert clip(model, clip_norm, scale)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]) * expected)
    model.weight.grad[0, 0] = float("inf")
    assert not clip(model, clip_norm, scale)


def test_the_clock_adds_up_parts_and_counts_overlapping_journeys_once():
    clock = StepClock(CPU)
    with clock("forward"):
        time.sleep(0.02)
    clock.depart()
    clock.depart()
    time.sleep(0.02)
    clock.arrive()
    clock.arrive()
    found = clock.drain()
    assert set(found) == set(PARTS)
    assert 0.02 <= found["forward"] < 0.2
    assert 0.02 <= found["comm"] < 0.2
    assert set(clock.drain().values()) == {0.0}


def test_peaks_are_measured():
    peaks = measured_peaks(CPU, "fp32")
    assert 1e9 < peaks.flops < 1e13
    assert 1e8 < peaks.bytes < 1e12


def test_a_file_is_locked_by_one_process(tmp_path):
    code = f"""
from pathlib import Path
from harps_dist.files import exclusive
with exclusive(Path({str(tmp_path / "lock")!r})) as free: print(free)"""
    with exclusive(tmp_path / "lock") as free:
        assert free
        assert run([sys.executable, "-c", code], tmp_path).strip() == "False"
    assert run([sys.executable, "-c", code], tmp_path).strip() == "True"


def test_a_plan_says_what_a_run_takes_and_trains_nothing(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 1000, *TINY)
    printed = run(command("launch/train.py", *arguments, "--plan", "--max-minutes", 0.001), tmp_path)
    order = Release(tiny_release).index
    assert f"{len(order.rows('real', 'train')) + len(order.rows('simulated', 'train'))}, " in printed
    assert "1,000 of 12 spectra" in printed
    assert "shards a reader" in printed
    assert not (tmp_path / "run").exists()
    refused = run(command("launch/train.py", *arguments, "--plan", "--training.accumulate", 13), tmp_path, expect=1)
    assert "lower --training.accumulate" in refused


def test_a_plan_in_a_job_knows_its_time_limit(tiny_release, tmp_path, monkeypatch):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 1000, *TINY)
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1000")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1003")
    restarts = re.search(
        r"restarts\W+(\d+), after 0.05 minutes each", run(command("launch/train.py", *arguments, "--plan"), tmp_path)
    )
    assert restarts
    assert int(restarts[1]) >= 1


def test_a_profile_is_a_trace_of_the_steps(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 5, *TINY)
    run(command("launch/train.py", *arguments, "--profile", 2), tmp_path)
    events = json.loads((tmp_path / "run/trace-rank0.json").read_text())["traceEvents"]
    assert sum("ProfilerStep" in event.get("name", "") for event in events) == 2


def test_compilation_that_fails_leaves_the_model_as_it_is(tiny_release, tmp_path, monkeypatch):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--training.steps", 2, *TINY)
    run(command("launch/train.py", *arguments, "--out", "plain"), tmp_path)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    printed = run(command("launch/train.py", *arguments, "--out", "compiled", "--compile", True), tmp_path, fresh=True)
    assert "the model runs uncompiled" in printed
    weights = [tmp_path / f"{name}/checkpoints/step-00000002/model.safetensors" for name in ("plain", "compiled")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_traffic_and_arithmetic_of_a_convolution_by_hand():
    from torch import nn

    from harps_dist.models.cost import _Traffic, forward_flops

    network, inputs = nn.Conv1d(2, 4, 3, bias=False), torch.zeros(1, 2, 10)
    assert forward_flops(network, inputs) == 2 * 4 * 8 * 2 * 3
    with torch.no_grad(), _Traffic({id(parameter) for parameter in network.parameters()}) as traffic:
        network(inputs)
    assert traffic.bytes == 4 * (2 * 10 + 4 * 8)
    assert traffic.outputs == 4 * 8
