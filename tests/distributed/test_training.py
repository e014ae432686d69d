"""Training as users start it: any number of ranks sees the same batches, and a kill -9 changes no bit."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

from harps_dist.data.ledger import Ledger
from harps_dist.data.order import Mix, Order, OrderState
from harps_dist.data.reader import Release
from harps_dist.runs.log import lasting, read_log
from tests.commands import TINY, command, kill_when, run


def global_batches(release, folder, ranks: int, steps: tuple[int, int] = (0, 6), resident: str = "streamed") -> dict:
    """The batches of some steps; each field sorted, for a rank puts its real spectra first."""
    out = folder / f"{ranks}-{steps[0]}-{resident}.json"
    run(command("tests/distributed/worker_batches.py", release, out, *steps, resident, ranks=ranks), folder)
    return json.loads(out.read_text())


def as_sets(found: dict) -> list:
    return [[sorted(field) for field in batch] for batch in found["batches"]]


def test_any_number_of_ranks_sees_the_same_global_batches(tiny_release, tmp_path):
    found = [as_sets(global_batches(tiny_release, tmp_path, ranks)) for ranks in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 6
    assert len(found[0][0][0]) == 10


@pytest.mark.parametrize("ranks", [1, 3])
def test_resident_codes_are_those_of_the_shards(tiny_release, tmp_path, ranks):
    streamed, resident = (
        global_batches(tiny_release, tmp_path, ranks, (0, 9), how) for how in ("streamed", "resident")
    )
    assert streamed == resident  # sample by sample, in the same place of the same rank
    assert all(streamed["batches"][0][field] for field in range(6))


@pytest.mark.slow
def test_four_two_three_one_ranks_see_every_sample_exactly_once(tiny_release, tmp_path):
    """Two epochs of mixed batches, the number of ranks changed three times in the middle of an epoch."""
    release = Release(tiny_release)
    order = Order(release.index, Mix(star_weighting=False, pool=16), 0, release.digest)
    steps = -(-2 * order.epoch_length // 10)
    bounds = [0, steps // 5, steps // 2, steps - 2, steps]
    undisturbed = as_sets(global_batches(tiny_release, tmp_path, 1, (0, steps)))
    ledger, batches = Ledger(len(release.index)), []
    for ranks, part in zip((4, 2, 3, 1), pairwise(bounds), strict=True):
        found = global_batches(tiny_release, tmp_path, ranks, part)
        assert order.samples_before(OrderState(**found["order"])) == part[0] * 10
        batches += as_sets(found)
        for rows, epochs, *_ in found["batches"]:
            ledger.add(rows, epochs)
    assert batches == undisturbed
    assert ledger.differences(order, steps * 10) == []
    assert ledger.differences(order, steps * 10 - 1)  # one sample too many would be noticed
    ledger.add([int(order.epoch(0)[0])], [0])
    assert "seen 2 times, expected 1" in ledger.differences(order, steps * 10)[0]


@pytest.mark.slow
def test_ranks_may_change_whenever_a_run_is_killed(tiny_release, tmp_path):
    """Training itself on 4, 2, 3 and 1 ranks, killed without warning each time; the ledger of what it saw is exact."""
    arguments = (
        "demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 100, "--log.ledger",
        "--log.save-every", 4, *TINY
    )  # fmt: skip
    for ranks, lines in ((4, 6), (2, 30), (3, 55)):
        started = command("launch/train.py", *arguments, ranks=ranks)
        code = kill_when(started, tmp_path, lambda lines=lines: len(read_log(tmp_path / "run")) >= lines)
        assert code == -9, "the run ended before it could be killed"
    printed = run(command("launch/train.py", *arguments), tmp_path)
    assert "each seen exactly as often as the order says" in printed
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/ledger.jsonl").read_text().splitlines()]
    assert steps == list(range(100))
    state = json.loads((tmp_path / "run/checkpoints/step-00000100/state.json").read_text())
    assert set(state["order"]) == {"release", "mix", "seed", "epoch", "sample"}


@pytest.mark.slow
def test_resident_training_learns_the_same_bits(tiny_release, tmp_path):
    for resident in ("no", "host"):
        arguments = (
            "demo-cnn-mix", "--data.release", tiny_release, "--out", resident, "--training.steps", 6,
            "--data.resident", resident, *TINY,
        )  # fmt: skip
        run(command("launch/train.py", *arguments, ranks=2), tmp_path)
    weights = [tmp_path / f"{how}/checkpoints/step-00000006/model.safetensors" for how in ("no", "host")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_two_ranks_learn_what_one_learns(tiny_release, tmp_path):
    """In float64, where they agree to 1e-14; in float32 Adam enlarges rounding, and losses say nothing of the ranks."""
    for ranks in (1, 2):
        arguments = (
            "demo-cnn-mix", "--data.release", tiny_release, "--out", f"run{ranks}", "--training.steps", 6,
            "--training.precision", "fp64", *TINY,
        )  # fmt: skip
        run(command("launch/train.py", *arguments, ranks=ranks), tmp_path)
    one, two = (read_log(tmp_path / f"run{ranks}") for ranks in (1, 2))
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    for key in [key for key in one[0] if key.startswith("loss")] + ["validation_label"]:
        curves = [[line[key] for line in lines if key in line] for lines in (one, two)]
        np.testing.assert_allclose(*curves, rtol=1e-9, err_msg=key)
    weights = [load_file(tmp_path / f"run{ranks}/checkpoints/step-00000006/model.safetensors") for ranks in (1, 2)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_ends_with_the_same_bits(tiny_release, tmp_path, ranks):
    arguments = (
        "demo-ae-mix", "--data.release", tiny_release, "--training.steps", 40, "--log.save-every", 4, *TINY
    )  # fmt: skip
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run(command("launch/train.py", *arguments, "--out", undisturbed, ranks=ranks), tmp_path)
    resumed = command("launch/train.py", *arguments, "--out", disturbed, ranks=ranks)
    for lines in (6, 21):
        code = kill_when(resumed, tmp_path, lambda lines=lines: len(read_log(disturbed)) >= lines)
        assert code == -9, "the run ended before it could be killed"
    printed = run(resumed, tmp_path)
    assert "resuming" in printed
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected = (undisturbed / "checkpoints/step-00000040" / name).read_bytes()
        assert (disturbed / "checkpoints/step-00000040" / name).read_bytes() == expected
    assert lasting(undisturbed) == lasting(disturbed)


def test_another_recipe_or_release_is_not_resumed(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 2, *TINY)
    run(command("launch/train.py", *arguments), tmp_path)
    assert "trained already" in run(command("launch/train.py", *arguments), tmp_path)
    other = ("--training.lr", "0.5", "--data.augment.shift", "cubic", "--log.every", "2")
    printed = run(command("launch/train.py", *arguments, *other), tmp_path, expect=1)
    assert "ResumeError" in printed
    assert (
        "another recipe: data.augment.shift was linear, is cubic; training.learning_rate was 0.001, is 0.5. " in printed
    )
    assert "--out" in printed
