"""What people see of a training: a bar, or a line now and then, and what comes next."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harps_dist.models.config import Loss
from harps_dist.training.progress import TrainingProgress, duration, next_command, total_loss, validation_words

LINE = {"loss_label": 0.5, "loss_unknown": 0.29, "spectra_per_s": 76.3, "data_wait": 0.12, "learning_rate": 1e-3}
VALIDATED = {"step": 100, "validation_label": 0.4, "validation_loss": 0.5, "loss_label": 0.3}


def shown(terminal: bool, steps: range, seconds_a_step: float) -> str:
    """What is printed of a run of 100 steps that begins at step 0 and logs at `steps`."""
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    with TrainingProgress(console, "run", 0, 100, Loss(unknown_penalty=0.5), lambda: now[0]) as progress:
        for step in steps:
            now[0] = step * seconds_a_step
            progress.step(step)
            progress.figures(LINE | {"step": step})
    return console.file.getvalue()


def test_without_a_terminal_the_first_and_last_line_and_one_every_half_minute():
    lines = shown(False, range(20, 101, 20), 0.36).splitlines()
    assert lines == [
        "step 20/100  loss 0.645  lr 1.0e-3  76.3 spectra/s  29 s left",
        "step 100/100  loss 0.645  lr 1.0e-3  76.3 spectra/s  0 s left",
    ]
    steps = [line.split()[1] for line in shown(False, range(10, 101, 10), 1.5).splitlines()]
    assert steps == ["10/100", "30/100", "50/100", "70/100", "90/100", "100/100"]


def test_on_a_terminal_a_bar_of_one_line():
    printed = shown(True, range(20, 61, 20), 0.36)
    last = printed.replace("\r", "\n").strip().splitlines()[-2]  # what follows shows the cursor again
    for part in ("run", "60/100", "loss 0.645", "76.3 spectra/s", "12% waiting", "14 s left"):
        assert part in last, printed
    assert max(map(len, printed.replace("\r", "\n").splitlines())) <= 80 + len("\x1b[2K\x1b[?25l")


def test_the_loss_is_the_weighted_sum_of_its_parts():
    assert total_loss(LINE, Loss(label=2.0, unknown_penalty=0.5)) == pytest.approx(1.145)
    assert total_loss(LINE | {"loss_found": 0.1}, Loss(label=2.0, unknown_penalty=0.5), 3.0) == pytest.approx(1.445)


def test_the_last_validation_in_words():
    assert validation_words(VALIDATED, "real") == "validation at step 100: loss 0.5 (label 0.4)"
    assert validation_words({"step": 3}, "real") == ""
    errors = {"mae_real_teff": 61.93, "mae_real_airmass": 0.0214, "mae_simulated_teff": 18.0}
    assert validation_words(VALIDATED | errors, "observed-like").splitlines()[1:] == [
        "mean errors, observed-like spectra: teff 61.9 K, airmass 0.0214",
        "mean errors, simulated spectra: teff 18 K",
    ]


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("harps-dist train", "next: harps-dist evaluate 'runs/my run'"),
        ("launch/train.py", "next: python launch/evaluate.py 'runs/my run'"),
    ],
)
def test_the_next_command_is_of_the_form_that_was_called(called, expected):
    assert next_command("evaluate", "runs/my run", called) == expected


def test_durations():
    assert [duration(seconds) for seconds in (0.2, 29, 61, 7500)] == ["0 s", "29 s", "1 min 01 s", "2 h 05 min"]
