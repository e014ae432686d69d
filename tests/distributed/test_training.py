"""Training as users start it: any number of ranks sees the same batches, and a kill -9 changes no bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from harps_dist.training.log import read_log
from tests.commands import TINY, command, kill_when, run


def test_any_number_of_ranks_sees_the_same_global_batches(tiny_release, tmp_path):
    found = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}.json"
        run(command("tests/distributed/worker_batches.py", tiny_release, out, ranks=ranks), tmp_path)
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 6
    assert len(found[0][0][0]) == 10


@pytest.mark.parametrize("recipe", ["demo-cnn-mix", "demo-infovae-mix"])
def test_two_ranks_learn_what_one_learns(tiny_release, tmp_path, recipe):
    for ranks in (1, 2):
        arguments = (
            recipe, "--data.release", tiny_release, "--out", f"run{ranks}", "--training.steps", 6,
            "--training.learning-rate", 1e-5, *TINY,
        )  # fmt: skip
        run(command("launch/train.py", *arguments, ranks=ranks), tmp_path)
    one, two = (read_log(tmp_path / f"run{ranks}") for ranks in (1, 2))
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    for key in [key for key in one[0] if key.startswith("loss")] + ["validation_label"]:
        curves = [[line[key] for line in lines if key in line] for lines in (one, two)]
        np.testing.assert_allclose(*curves, rtol=1e-5, err_msg=key)
    weights = [load_file(tmp_path / f"run{ranks}/checkpoints/step-00000006/model.safetensors") for ranks in (1, 2)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=1.5e-5, err_msg=name)  # 6 steps of Adam


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
    volatile = {"spectra_per_s", "data_wait", "peak_memory_gb"}
    logs = [
        [{k: v for k, v in line.items() if k not in volatile} for line in read_log(run_)]
        for run_ in (undisturbed, disturbed)
    ]
    assert logs[0] == logs[1]


def test_another_recipe_or_release_is_not_resumed(tiny_release, tmp_path):
    arguments = ("demo-cnn-mix", "--data.release", tiny_release, "--out", "run", "--training.steps", 2, *TINY)
    run(command("launch/train.py", *arguments), tmp_path)
    assert "trained already" in run(command("launch/train.py", *arguments), tmp_path)
    printed = run(command("launch/train.py", *arguments, "--training.learning-rate", "0.5"), tmp_path, expect=1)
    assert "ResumeError" in printed
    assert "--out" in printed
