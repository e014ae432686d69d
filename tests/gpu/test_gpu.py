"""The same on a GPU: spectra, training in every precision, resuming, all of a machine's GPUs, the step benchmark."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from harps_dist.benchmarks.step_speed import step_speeds
from harps_dist.config import Engine
from harps_dist.data.augment import NUISANCES, Augment, Nuisance
from harps_dist.data.batches import EvaluationBatches
from harps_dist.data.observer import Observer
from harps_dist.data.reader import Release
from harps_dist.kernels.availability import available
from harps_dist.ranks.world import World
from harps_dist.runs.log import read_log
from harps_dist.runs.run import Run
from tests.commands import TINY, command, kill_when, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
PLAIN = (
    "--training.precision", "fp32", "--data.compile", False, "--data.resident", "no", "--data.workers", 0,
    "--kernels", "torch", "--compile", False, "--graph", False,
)  # fmt: skip
LOSSES = ("loss_label", "loss_reconstruction", "loss_unknown")


@pytest.fixture
def train(tiny_release, tmp_path):
    def train(out: str, *more: object, ranks: int = 1, gpu: bool = True) -> np.ndarray:
        """(step, part) losses of a new or resumed run."""
        arguments = (
            "demo-ae-mix",
            "--data.release",
            tiny_release,
            "--out",
            out,
            "--training.steps",
            8,
            *TINY,
            *PLAIN,
            *more,
        )
        run(command("launch/train.py", *arguments, ranks=ranks), tmp_path, gpu=gpu)
        return np.array([[line[name] for name in LOSSES] for line in read_log(tmp_path / out)])

    return train


@pytest.mark.parametrize("compile", [False, True])
def test_spectra_are_those_of_the_cpu(tiny_release, compile):
    release, gpu = Release(tiny_release), torch.device("cuda")
    rows = np.concatenate([release.index.rows("real")[:3], release.index.rows("simulated")[:5]])
    nuisance = Nuisance(broadening_kms=5, line_error=0.2, continuum=0.1)
    rich = Augment(berv_kms=30, nuisance=NUISANCES["rich"])
    for augment in (Augment(), Augment(berv_kms=30, nuisance=nuisance), Augment(shift="linear"), rich):
        raw = EvaluationBatches(release, [rows], augment, 0)[0]
        expected = Observer(release.decoding, augment, torch.device("cpu"))(raw).flux
        found = Observer(release.decoding, augment, gpu, compile)(raw.to(gpu)).flux
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-5), ("fp32", 1e-3), ("tf32", 0.02), ("bf16", 0.1), ("fp16", 0.1)]
)
def test_training_follows_that_on_the_cpu(train, precision, tolerance):
    chosen = ("--training.precision", precision)
    expected = train("cpu", "--training.precision", "fp64" if precision == "fp64" else "fp32", gpu=False)
    np.testing.assert_allclose(train("gpu", *chosen), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "chosen",
    [
        ("--compile", True),
        ("--data.compile", True),
        ("--data.resident", "device"),
        ("--data.workers", 2),
        ("--kernels", "triton"),
        ("--graph", True),
        ("--graph", True, "--kernels", "triton", "--data.workers", 2),
        ("--graph", True, "--training.accumulate", 2, "--training.clip-norm", 1),
    ],
)
def test_what_is_there_for_speed_learns_the_same(train, chosen):
    plain = chosen[2:] if "--training.accumulate" in chosen else ()
    np.testing.assert_allclose(train("fast", *chosen), train("plain", *plain), rtol=1e-3, atol=1e-4)


def test_the_step_is_one_graph_where_that_is_asked_for(tiny_release, tmp_path):
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 8, *TINY, *PLAIN)
    printed = run(command("launch/train.py", *arguments, "--graph", True), tmp_path, gpu=True)
    assert "cannot be one CUDA graph" not in printed
    lines = read_log(tmp_path / "run")
    assert lines[-1]["ms_step"] > 0
    assert lines[-1]["ms_forward"] == 0


def test_settings_that_are_left_alone_learn_the_same_to_their_precision(tiny_release, train, tmp_path):
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "auto", "--training.steps", 8, *TINY)
    printed = run(command("launch/train.py", *arguments), tmp_path, gpu=True)
    assert f"chosen for {torch.cuda.get_device_name()}: precision bf16" in printed
    found = np.array([[line[name] for name in LOSSES] for line in read_log(tmp_path / "auto")])
    np.testing.assert_allclose(found, train("plain"), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_learns_what_ddp_learns(train, zero):
    chosen = ("--strategy", "deepspeed", "--zero", zero)
    np.testing.assert_allclose(train("zero", *chosen), train("ddp"), rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on(tiny_release, train, tmp_path):
    """To rounding: some of a GPU's backward passes add up in no fixed order."""
    undisturbed = train("undisturbed", "--log.save-every", 1)
    arguments = ("demo-ae-mix", "--data.release", tiny_release, "--out", "killed", "--training.steps", 8, *TINY)
    started = command("launch/train.py", *arguments, "--log.save-every", 1)
    assert kill_when(started, tmp_path, lambda: len(read_log(tmp_path / "killed")) > 2, gpu=True) == -9
    np.testing.assert_allclose(train("killed", "--log.save-every", 1), undisturbed, rtol=1e-3, atol=1e-4)
    weights = load_file(tmp_path / "killed/checkpoints/step-00000008/model.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs, which NCCL connects")
def test_all_gpus_of_a_machine_learn_what_one_learns(train):
    ranks = min(4, torch.cuda.device_count())
    np.testing.assert_allclose(train("many", ranks=ranks), train("one"), rtol=1e-3, atol=1e-4)


def test_a_step_is_timed_in_parts_and_measured_beside_its_floors(tiny_release, train, tmp_path):
    train("run", "--training.precision", "bf16")
    line = read_log(tmp_path / "run")[-1]
    for part in ("augment", "forward", "backward", "optimizer"):
        assert line[f"ms_{part}"] > 0
    assert 0 < line["flop_utilisation"] < 1
    world = World.alone("cuda")
    for graph in (False, True):
        found = step_speeds(
            Release(tiny_release), ["demo-cnn-mix", "demo-resnet-etc"], world, Engine(graph=graph, compile=False), (4,),
            ("fp32", "bf16"), 0.1,
        )  # fmt: skip
        assert all(one.ms > 0 for one in found)
        assert all(one.peak_memory_mib > 0 for one in found if one.part == "training")
    printed = run(command("launch/benchmark.py", "step", "demo-cnn-mix", "--release", tiny_release, "--seconds", 0.1,
                          "--json", "f"), tmp_path, gpu=True)  # fmt: skip
    assert torch.cuda.get_device_name() in printed
    assert json.loads((tmp_path / "f").read_text())["device"] == torch.cuda.get_device_name()


@pytest.mark.skipif(not available(), reason="needs Triton and a GPU of compute capability 8.0")
def test_labels_by_kernels_in_bf16_are_as_near_to_fp64_as_those_of_pytorch(tiny_release, train, tmp_path):
    """Root mean square over the test spectra, in standard deviations of the labels."""
    train("run", "--training.precision", "bf16", "--kernels", "triton", "--graph", True)
    release, loaded, gpu = Release(tiny_release), Run(tmp_path / "run"), torch.device("cuda")
    rows = np.concatenate([release.index.rows(kind, "test") for kind in ("real", "simulated")])
    raw = EvaluationBatches(release, [rows], Augment(), 0)[0].to(gpu)
    flux = Observer(release.decoding, Augment(), gpu)(raw).flux
    model = loaded.model(on=release.manifest).to(gpu).eval()
    with torch.no_grad():
        exact = copy.deepcopy(model).double().read(flux.double()).labels
        with torch.autocast("cuda", dtype=torch.bfloat16):
            eager = model.read(flux).labels.double()
        model.use_kernels(torch.bfloat16)
        ours = model.read(flux).labels.double()
    apart = [float((found - exact).square().mean().sqrt()) for found in (ours, eager)]
    assert apart[0] < 1.5 * apart[1] + 1e-4
