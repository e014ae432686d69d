"""Handing rows to SLURM: which jobs, in which order, with which arguments; sbatch is one that writes down."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from harps_dist.cluster.submit import ROOT, SCRIPT, submit_rows
from harps_dist.errors import ConfigError


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """A list of the arguments of every sbatch, filled as they come; their job ids are 100, 101, …"""
    log, fake = tmp_path / "log", tmp_path / "sbatch"
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"log = open({str(log)!r}, 'a+')\nlog.seek(0)\nprint(f'{{100 + len(log.readlines())}};cluster')\n"
        f"log.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"sys.exit('no such partition' if '--partition=none' in sys.argv else 0)\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_parents_go_first_and_the_report_last(submitted, tmp_path):
    rows = ["resnet-etc", "cnn-mix", "ae-mix", "ae-real"]
    jobs = submit_rows(rows, tmp_path / "runs", {"scale": "paper", "steps": 5}, "--gres=gpu:4 --time=2-00")
    assert jobs == ["100", "101", "102"]
    first, second, report = submitted()
    settings = [str(tmp_path / "runs"), "--scale", "paper", "--steps", "5"]
    logs = f"--output={tmp_path}/runs/%x-%A_%a.log"
    options = [logs, "--gres=gpu:4", "--time=2-00", SCRIPT]
    assert first == ["--parsable", "--array=0-1", *options, "resnet-etc cnn-mix", *settings]
    assert second == ["--parsable", "--dependency=afterok:100", "--array=0-1", *options, "ae-mix ae-real", *settings]
    assert report[:2] == ["--parsable", "--dependency=afterany:100:101"]
    assert f"--output={tmp_path}/runs/%x-%j.log" in report
    assert shlex.split(report[-1]) == [sys.executable, "launch/reproduce.py", *settings]
    assert (ROOT / SCRIPT).exists()


def test_nothing_missing_is_a_report_alone(submitted, tmp_path):
    assert submit_rows([], tmp_path, {}, "") == ["100"]
    assert not any(argument.startswith("--dependency") for argument in submitted()[0])


def test_what_sbatch_says_is_passed_on(submitted, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no such partition"):
        submit_rows(["cnn-mix"], tmp_path, {}, "--partition=none")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no sbatch here"):
        submit_rows(["cnn-mix"], tmp_path, {}, "")
