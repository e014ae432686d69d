"""What "auto" becomes: from device, memory, release and the run that is gone on with."""

from __future__ import annotations

import pytest

from harps_dist.config import Engine
from harps_dist.data.order import Order
from harps_dist.data.reader import Release
from harps_dist.data.resident import resident_bytes
from harps_dist.errors import ConfigError
from harps_dist.ranks.world import World
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.run import Run
from harps_dist.training import automatic
from harps_dist.training.automatic import Machine, settle, settle_here
from tests.commands import TINY, command, run

H100 = Machine(cores=16, gpu="H100", bf16=True, kernels=True, compiler=True)
V100 = Machine(cores=16, gpu="V100", compiler=True)
CPU = Machine(cores=2)


def test_what_every_machine_takes():
    encoder, decoder = find_recipe("cnn-etc"), find_recipe("resnet-etc")
    on_cpu = settle(encoder, Engine(), CPU, 1)
    assert on_cpu.chosen == {
        "precision": "fp32", "data.compile": False, "kernels": "torch", "compile": False, "graph": False, "workers": 0,
        "resident": "no",
    }  # fmt: skip
    best = settle(encoder, Engine(), H100, 1, "device")
    assert (best.recipe.training.precision, best.engine.kernels, best.engine.compile) == ("bf16", "triton", False)
    assert (best.engine.graph, best.recipe.data.compile, *best.loading) == (True, True, 8, "device")
    assert settle(decoder, Engine(), H100, 1).engine.kernels == "torch"
    older = settle(encoder, Engine(), V100, 1)
    assert (older.recipe.training.precision, older.engine.kernels, older.engine.compile) == ("fp32", "torch", True)
    assert not settle(encoder, Engine(), H100, 2).engine.graph
    assert settle(encoder, Engine(strategy="deepspeed"), H100, 1).engine.kernels == "torch"


def test_what_is_given_stays_and_what_follows_from_it_follows():
    encoder = find_recipe("cnn-etc")
    asked = encoder.changed(training={"precision": "fp64"}, data={"workers": 3, "compile": False, "resident": "host"})
    found = settle(asked, Engine(compile=True, graph=False), H100, 1, "device")
    assert found.recipe == asked
    assert found.loading == (3, "host")
    assert found.engine == Engine(compile=True, graph=False, kernels="torch")
    assert found.line == "kernels torch"
    with pytest.raises(ConfigError, match="--graph True needs a GPU"):
        settle(encoder, Engine(graph=True), CPU, 1)


def test_no_recipe_asks_for_more_than_auto():
    for name, recipe in RECIPES.items():
        assert recipe.training.precision == "auto", name
        with pytest.raises(ValueError, match="precision is auto"):
            _ = recipe.training.known_precision


def test_a_run_that_is_gone_on_with_keeps_what_it_learned_in(tiny_release, tmp_path):
    """Begun in bf16, the plain command goes on in bf16; a recipe keeps what a machine chose only where it matters."""
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", *TINY)
    run(command("launch/train.py", *arguments, "--training.steps", 4, "--training.precision", "bf16",
                "--max-minutes", 1e-6), tmp_path, expect=75)  # fmt: skip
    printed = run(command("launch/train.py", *arguments, "--training.steps", 4), tmp_path)
    assert "chosen for this CPU: precision bf16" in printed
    saved = Run(tmp_path / "run").recipe
    assert (saved.training.precision, saved.data.compile) == ("bf16", False)
    assert (saved.data.workers, saved.data.resident) == ("auto", "auto")


def test_codes_stay_in_memory_that_has_room_for_them(tiny_release, monkeypatch):
    release, world = Release(tiny_release), World.alone()
    recipe = find_recipe("cnn-mix").changed(training={"steps": 1000})
    order = Order(release.index, recipe.data.mix, 0, release.digest)
    assert settle_here(recipe, Engine(), release, order, world).loading.resident == "no"  # on a CPU
    needed = resident_bytes(release, order, 1)
    assert needed == 2 * resident_bytes(release, order, 2) > 0

    class OnGpu(World):
        pass

    gpu = OnGpu(0, 1, type("Device", (), {"type": "cuda"})())
    for free, expected in (
        ({"cuda": 4 * needed, "cpu": 0}, "device"),
        ({"cuda": 4 * needed - 1, "cpu": 4 * needed}, "host"),
        ({"cuda": 0, "cpu": 0}, "no"),
    ):
        monkeypatch.setattr(automatic, "free_bytes", lambda memory, free=free: free[memory.type])
        assert automatic._resident(recipe, release, order, gpu) == expected
    once = recipe.changed(training={"steps": 1, "batch_size": 2})
    monkeypatch.setattr(automatic, "free_bytes", lambda memory: 1e18)
    assert automatic._resident(once, release, order, gpu) == "no"  # read once, they need not stay
