"""A step that is recorded, with a device that only pretends; and that nothing in a step waits for the device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harps_dist.config import Engine
from harps_dist.data.batches import TrainingBatches
from harps_dist.data.observer import Batch
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.training import graph
from harps_dist.training.clock import StepClock
from harps_dist.training.graph import WARM_STEPS, CapturedStep
from harps_dist.training.learner import Learner

CPU = torch.device("cpu")


class Recording:
    """Stands for torch.cuda: while it records, what a step does is kept and played again by `replay`."""

    def __init__(self, fails: bool = False):
        self.fails, self.recording, self.replays = fails, False, 0

    def Stream(self, device):
        return SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self):
        return self.Stream(CPU)

    def stream(self, stream):
        return contextlib.nullcontext()

    def CUDAGraph(self):
        return self

    def replay(self):
        self.replays += 1
        self.again()

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"  # loader threads pin memory meanwhile
        self.recording = True
        yield
        self.recording = False
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nlong story")


def batch_of(value: float) -> Batch:
    rows = torch.zeros(2, dtype=torch.int64)
    return Batch(
        torch.full((2, 3), value), torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool), rows, rows, torch.zeros(2, 1)
    )


@pytest.mark.parametrize("fails", [False, True])
def test_every_call_is_one_step(fails, monkeypatch):
    device, total, said, forgotten = Recording(fails), torch.zeros(()), [], []
    monkeypatch.setattr(graph.torch, "cuda", device)
    out = torch.zeros(())

    def step(batch: Batch) -> tuple[torch.Tensor]:
        def do() -> None:
            total.add_(batch.flux.sum())
            out.copy_(total)

        if device.recording:
            device.again = do
        else:
            do()
        return (out,)

    taken = CapturedStep(step, CPU, StepClock(CPU), lambda: forgotten.append(1), said.append)
    seen = [taken(batch_of(float(number)))[0].clone() for number in range(1, 8)]
    assert [float(one) for one in seen] == [6.0 * sum(range(1, number + 1)) for number in range(1, 8)]
    assert device.replays == (0 if fails else 7 - WARM_STEPS)
    assert len(forgotten) == len(said) == fails
    if fails:
        assert "operation not permitted when stream is capturing)" in said[0]


class Waits(TorchDispatchMode):
    """Refuses what would wait for a GPU: numbers read on the host, shapes that follow from values, copies to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert not any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")), name
        if name == "aten::index.Tensor":
            assert all(part is None or part.dtype != torch.bool for part in args[1]), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("demo-cnn-mix", {}),
        ("demo-cnn-mix-laplace", {"clip_norm": 1.0, "precision": "bf16"}),
        ("demo-resnet-etc", {"accumulate": 2}),
        ("demo-infovae-mix", {"precision": "fp16"}),
        ("demo-infovae-mix", {"accumulate": 2}),
        ("demo-ae-mix", {}),
    ],
)
def test_nothing_in_a_step_waits_for_the_device(recipe, more, tiny_release):
    release, world = Release(tiny_release), World.alone()
    chosen = find_recipe(recipe).changed(training={"batch_size": 4, "precision": "fp32", **more})
    learner = Learner(chosen, release, world, Engine())
    order = Order(release.index, chosen.data.mix, 0, release.digest)
    batches = TrainingBatches(release, order, chosen.data, 0, 4)
    learner.learn(batches[0], 1e-4)  # moments are made
    batch = learner.observer(batches[1])
    with Waits():
        figures, report = learner.take(batch)
    assert torch.isfinite(figures).all()
    assert report.tolist() == [0, 0]


def test_what_waits_is_noticed():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        bool(torch.ones(()).sum() > 0)
    with pytest.raises(AssertionError, match="lift_fresh"), Waits():
        torch.tensor(1.0)
