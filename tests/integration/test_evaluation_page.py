"""The page of an evaluation: all scores in words, all figures within it, nothing fetched, nothing from outside run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, OutputError
from harps_dist.evaluation.drawing import redraw
from harps_dist.evaluation.evaluate import evaluate_run, is_evaluated
from harps_dist.evaluation.measures import measure_of
from harps_dist.evaluation.record import read_record, seconds_of, thinned
from harps_dist.ranks.world import World
from harps_dist.runs.log import read_log
from harps_dist.sealed import digest_of, sealed, sha256_of
from harps_dist.spectra.labels import LABEL
from harps_dist.text import format_pair, number
from tests.pages import Page

HOSTILE = r"""</td><script>alert(1)</script> & "HD" $\frac{1' onload=x"""


@pytest.fixture(scope="module")
def evaluated(tiny_runs, tiny_release, tmp_path_factory) -> Path:
    """A folder of runs that were evaluated on the test split. Read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name in ("demo-ae-mix", "demo-cnn-mix-laplace"):
        shutil.copytree(tiny_runs / name, folder / name)
        out = folder / name / "evaluation"
        evaluate_run(folder / name, Release(tiny_release), "test", out, World.alone(), Console(quiet=True))
    return folder


def read(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["demo-ae-mix", "demo-cnn-mix-laplace"])
def test_the_page_holds_every_score_with_its_unit_and_words(evaluated, name):
    out = evaluated / name / "evaluation"
    page, reports = read(out), sorted(out.glob("*/scores.json"))
    assert len(reports) == (3 if name == "demo-ae-mix" else 2)
    for report in reports:
        scores = json.loads(report.read_text())
        for score in scores["labels"]:
            shown = format_pair(number(score["mae"]), number(score["standard_error"]))
            assert f"{score['name']} {score['unit'] or 1} {shown}" in page.text
            assert LABEL[score["name"]].meaning in page.text
        for score in scores["measures"]:
            measure, _ = measure_of(score["name"])
            assert measure is not None, score["name"]
            shown = format_pair(number(score["value"]), number(score["standard_error"]))
            assert f"{score['name']} {measure.unit or 1} {shown}" in page.text
            assert measure.meaning in page.text
        for calibration in scores["calibrations"]:
            for at in calibration["coverage"]:
                assert f"{at['level']:.0%} {format_pair(at['raw'], number(at['error']))}" in page.text
        assert f"{scores['spectra']} observed-like" in page.text or scores["origin"] != "observed-like"


def test_the_page_says_how_the_run_came_about(evaluated, tiny_release):
    run = evaluated / "demo-ae-mix"
    page, record = read(run / "evaluation"), read_record(run / "evaluation", "test")
    assert record is not None
    assert record.model is not None
    manifest, last = Release(tiny_release).manifest, read_log(run)[-1]
    said = (
        *(manifest.digest, manifest.not_genuine, manifest.description, manifest.grid.name),
        *(
            *record.training.devices,
            record.date,
            record.git or "not noted",
            record.model.weights_sha256,
            record.model.recipe_digest,
        ),
        *("training.learning_rate", "model.decoder_width 0.125", "data.mix.real"),
        *(f"spectra learned from {last['samples']}", f"step {last['step']}", f"1 × {record.device}"),
        *("waiting for the next batch", "spectra a second", "most memory of the main rank", "validation weighted sum"),
    )
    for words in said:
        assert words in page.text, words
    index = Release(tiny_release).index
    rows = index.rows("real", "train")
    stars = len(set(index["star"][rows]))
    assert f"real train observed-like spectra ({manifest.not_genuine}) {len(rows)} {stars}" in page.text


@pytest.mark.parametrize("name", ["demo-ae-mix", "demo-cnn-mix-laplace"])
def test_every_figure_is_in_the_page_with_a_pdf_beside_and_nothing_is_fetched(evaluated, name):
    out = evaluated / name / "evaluation"
    page, pictures = read(out), list(out.rglob("*.png"))
    assert page.tags["img"] == page.tags["figcaption"] == len(pictures) > 3
    assert all(address.startswith("data:image/png;base64,") for address in page.fetched)
    assert len(page.fetched) == len(pictures)
    assert "script" not in page.tags
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= page.anchors
    pdfs = {path.with_suffix(".pdf").relative_to(out).as_posix() for path in pictures}
    assert {link for link in page.links if not link.startswith("#")} == pdfs
    assert all((out / pdf).is_file() for pdf in pdfs)


def test_the_page_is_made_again_to_the_byte_without_the_run(evaluated, tmp_path):
    out = shutil.copytree(evaluated / "demo-ae-mix/evaluation", tmp_path / "alone")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".html", ".png", ".pdf")}
    for path in before:
        path.unlink()
    assert redraw(out)[-1] == f"Page: {out / 'index.html'}"
    assert {path: path.read_bytes() for path in out.rglob("*") if path in before} == before


def test_what_comes_from_outside_is_shown_and_not_run(evaluated, tmp_path):
    """A star and a release that are named so as to break out of a page, or of a figure."""
    out = shutil.copytree(evaluated / "demo-ae-mix/evaluation", tmp_path / "hostile")
    folder = out / "test-real"
    table = pq.read_table(folder / "predictions.parquet")
    named = pa.array([HOSTILE] * len(table), table["object"].type)
    column = table.column_names.index("object")
    pq.write_table(table.set_column(column, "object", named), folder / "predictions.parquet")
    scores = json.loads((folder / "scores.json").read_text())
    scores["sha256"]["predictions.parquet"] = sha256_of(folder / "predictions.parquet")
    scores |= {"run": HOSTILE, "not_genuine": HOSTILE, "notes": [HOSTILE]}
    (folder / "scores.json").write_text(json.dumps(sealed(scores)))
    record = json.loads((out / "test.json").read_text())
    record["release"]["description"] = record["training"]["recipe"]["data"]["release"] = HOSTILE
    (out / "test.json").write_text(json.dumps(sealed(record)))
    tags = read(out).tags
    redraw(out)
    page = read(out)
    assert page.tags == tags
    assert page.text.count(" ".join(HOSTILE.split())) >= 5
    assert "<script" not in (out / "index.html").read_text()


def test_a_record_that_was_changed_is_refused(evaluated, tiny_release, tmp_path):
    run = shutil.copytree(evaluated / "demo-ae-mix", tmp_path / "run")
    path = run / "evaluation/test.json"
    assert is_evaluated(run, Release(tiny_release), "test")
    path.write_text(path.read_text().replace('"ranks": 1', '"ranks": 9'))
    assert not is_evaluated(run, Release(tiny_release), "test")
    with pytest.raises(ConfigError, match=r"test.json is damaged: .*Evaluate the run again"):
        redraw(run / "evaluation")


def test_a_page_of_others_is_not_replaced(evaluated, tmp_path):
    out = shutil.copytree(evaluated / "demo-ae-mix/evaluation", tmp_path / "out")
    (out / "index.html").write_text("<!DOCTYPE html><title>mine</title>")
    with pytest.raises(OutputError, match=r"index.html is there and is no page of an evaluation"):
        redraw(out)
    assert "mine" in (out / "index.html").read_text()


def test_a_record_keeps_what_shows_the_course_of_a_long_log():
    log = [{"step": step, "spectra_per_s": 8.0, "node_mean": [0.0]} for step in range(10, 10_010, 10)]
    log[3]["validation_loss"] = 1.0
    kept = thinned(log, most=100)
    assert kept[-1]["step"] == log[-1]["step"]
    assert [line["step"] for line in kept if "validation_loss" in line] == [40]
    assert len(kept) == 101
    assert not any("node_mean" in line for line in kept)
    assert seconds_of(log, batch_size=4) == 10_000 * 4 / 8.0
    assert seconds_of([{"step": 1}], 4) is None
    assert digest_of(thinned(log[:2])) == digest_of([{"step": s, "spectra_per_s": 8.0} for s in (10, 20)])
