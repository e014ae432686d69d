"""A chain of jobs: each after the one before, none twice, what it was begun with; SLURM is one that writes down."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from harps_dist.cluster.chain import Chain, job_name, settle, stages_of, submit_chain
from harps_dist.errors import ConfigError

NAMES = ["ingest", "merge", "pack", "verify", "diff", "train", "evaluate", "compare", "gate"]


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """sbatch that puts down its arguments, and squeue that lists the names of what it was given."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    log.touch()
    (programs / "sbatch").write_text(
        f"#!{sys.executable}\nimport json, sys\nlog = open({str(log)!r}, 'a+')\nlog.seek(0)\n"
        "print(100 + len(log.readlines()))\nlog.write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    (programs / "squeue").write_text(
        f"#!{sys.executable}\nimport json\nfor number, line in enumerate(open({str(log)!r})):\n"
        "    names = [word[11:] for word in json.loads(line) if word.startswith('--job-name=')]\n"
        "    print(100 + number, *names)\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def chain(tiny_release, tmp_path) -> Chain:
    """All that a chain begins with, the registry's current model being one called `one`."""
    (tmp_path / "models/one").mkdir(parents=True)
    (tmp_path / "models/current").symlink_to("one")
    (tmp_path / "night").mkdir()
    return Chain(
        spectra=tmp_path / "night", archive=tmp_path / "A.zarr", parent=tiny_release, registry=tmp_path / "models",
        parts=3, jobs="--time=5", ranks="--gres=none --time=9",
    )  # fmt: skip


def test_every_job_waits_for_the_one_before(chain, queue, tmp_path):
    folder = tmp_path / "chain"
    chain = settle(folder, chain)
    stages = stages_of(folder, chain, ["--training.steps", "7"])
    assert [stage.name for stage in stages] == NAMES
    jobs = submit_chain(folder, chain, stages)
    assert list(jobs.values()) == [str(100 + number) for number in range(9)]
    for number, (name, words) in enumerate(zip(NAMES, queue(), strict=True)):
        waits = [word for word in words if word.startswith("--dependency")]
        assert waits == ([f"--dependency=afterok:{99 + number}"] if number else [])
        assert "--kill-on-invalid-dep=yes" in words
        assert f"--job-name={job_name(folder, stages[number])}" in words
        assert ("--gres=none" in words) == (name in ("train", "evaluate", "compare"))
    ingest, train = queue()[0], queue()[5]
    assert "--array=0-2" in ingest
    assert ingest[-2:] == ["--grid", "tiny"]
    assert train[-2:] == ["--training.steps", "7"]
    assert str(tmp_path / "models/one") in train


def test_ingest_is_told_of_the_catalogue_and_its_columns(chain, tmp_path):
    catalog = tmp_path / "stars.csv"
    catalog.write_text("Name,Teff_spec\n")
    chain = settle(tmp_path / "chain", chain.model_copy(update={"catalog": catalog, "columns": "teff=Teff_spec"}))
    ingest = stages_of(tmp_path / "chain", chain)[0]
    assert ingest.arguments[2:6] == ("--catalog", str(catalog), "--columns", "teff=Teff_spec")
    plain = stages_of(tmp_path / "chain", chain.model_copy(update={"catalog": None, "columns": ""}))[0]
    assert not {"--catalog", "--columns"} & set(plain.arguments)


def test_what_waits_or_runs_is_not_submitted_again(chain, queue, tmp_path):
    folder = tmp_path / "chain"
    chain = settle(folder, chain)
    stages = stages_of(folder, chain)
    submit_chain(folder, chain, stages[:4])  # killed then
    jobs = submit_chain(folder, chain, stages)
    assert [jobs[name] for name in NAMES] == [str(100 + number) for number in range(9)]
    assert len(queue()) == 9
    submit_chain(folder, chain, stages)
    assert len(queue()) == 9
    submit_chain(tmp_path / "other/chain", chain, stages)  # another chain of that name
    assert len(queue()) == 18


def test_a_chain_stays_what_it_was_begun_with(chain, queue, tiny_release, tmp_path):
    folder = tmp_path / "chain"
    begun = settle(folder, chain)
    submit_chain(folder, begun, stages_of(folder, begun)[:1])
    (tmp_path / "models/two").mkdir()
    (tmp_path / "models/current").unlink()
    (tmp_path / "models/current").symlink_to("two")
    again = settle(folder, chain)
    assert again == begun
    assert again.model == tmp_path / "models/one"
    with pytest.raises(ConfigError, match="begun with another policy"):
        settle(folder, chain.model_copy(update={"policy": "scratch"}))
    shutil.copytree(tiny_release, folder / "release")  # packed: what came since stays out of this chain
    assert [stage.name for stage in stages_of(folder, begun)] == NAMES[3:]


def test_what_is_missing_is_said_before_anything_is_submitted(chain, queue, tmp_path):
    for name, what in (("spectra", "spectra"), ("parent", "a release to grow"), ("catalog", "a catalogue")):
        with pytest.raises(ConfigError, match=what):
            settle(tmp_path / "chain", chain.model_copy(update={name: tmp_path / "nowhere"}))
    (tmp_path / "models/current").unlink()
    with pytest.raises(ConfigError, match="a model to go on from"):
        settle(tmp_path / "chain", chain)
    assert queue() == []


def test_without_slurm_it_says_so(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no squeue here"):
        submit_chain(tmp_path / "chain", chain, [])
