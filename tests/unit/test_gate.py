"""A gate's lines, each passed and failed by numbers that can be done by hand."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from harps_dist.errors import ConfigError
from harps_dist.promotion.comparison import Comparison, read_comparison
from harps_dist.promotion.gate import Gate, Line, Verdict, read_gate, say
from tests.made_up_models import comparison, entry, write_model

NAN = float("nan")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return write_model(folder / "new", 2), write_model(folder / "old", 1)


def judged(runs, line: Line, *entries, **fields) -> Verdict:
    return Gate(lines=(line,)).judge(comparison(*runs, *entries, **fields))


@pytest.mark.parametrize(
    ("limits", "passes", "excess"),
    [
        ({"relative": 0.10}, True, -3.0),  # 7 - 5 = 2 K, of 5 K allowed
        ({"relative": 0.02}, False, 1.0),
        ({"relative": 0.10, "judge_by": "mean"}, False, 2.0),
        ({"relative": 0.10, "judge_by": "upper"}, False, 7.0),
        ({"absolute": 12.0, "judge_by": "upper"}, True, 0.0),
        ({"relative": 0.30, "absolute": 1.0, "judge_by": "upper"}, True, -3.0),  # the larger is allowed
        ({"relative": 0.01, "absolute": 11.5, "judge_by": "upper"}, False, 0.5),
        ({"most": 57.0}, True, 0.0),
        ({"most": 56.0}, False, 1.0),
        ({"least": 57.5}, False, 0.5),
        ({"least": 50.0}, True, -7.0),
    ],
)
def test_a_line_says_by_how_much(runs, limits, passes, excess):
    """teff gets worse from 50 by 7 ± 5 K."""
    verdict = judged(runs, Line(measure="teff", **limits), entry(change=7.0))
    assert verdict.passed is passes
    line = verdict.lines[-1]
    assert line.status == ("passed" if passes else "failed")
    assert line.excess == pytest.approx(excess)
    if not passes:
        sentence = say(verdict.failures)
        assert "real, frozen, teff" in sentence
        assert f"{excess:.4g} beyond" in sentence


def test_each_label_and_each_bin_is_judged(runs):
    entries = [entry("teff"), entry("logg", 0.1, 0.2, 0.01, unit="dex")]
    bins = [entry(by="era", bin=name, change=change) for name, change in (("before", 0.0), ("after", 30.0))]
    verdict = judged(runs, Line(measure="labels", relative=0.1), *entries)
    assert [line.status for line in verdict.lines[-2:]] == ["passed", "failed"]
    verdict = judged(runs, Line(measure="teff", by="era", relative=0.1), *entries, *bins)
    assert [line.status for line in verdict.lines[-2:]] == ["passed", "failed"]
    assert "era after" in say(verdict.failures)
    assert judged(runs, Line(measure="teff", by="era", bin="before", relative=0.1), *entries, *bins).passed
    scores = [entry("GIS-true teff", 0.01, 0.02, 0.001, kind="generative"), entry("GIS teff", 0.01, kind="generative")]
    assert not judged(runs, Line(kind="generative", measure="GIS-true", relative=0.1), *entries, *scores).passed
    assert judged(runs, Line(kind="generative", measure="GIS", relative=0.1), *entries, *scores).passed


def test_what_cannot_be_judged_fails(runs):
    line = Line(measure="teff", relative=0.1)
    few = entry(stars=3, low=NAN, high=NAN)
    enough = entry("logg", stars=30)  # for the gate's own wish for stars
    for entries, reason in (
        ([enough], "no such figure"),
        ([few, enough], "3 stars, of which 5 are wanted"),
        ([entry(low=NAN), enough], "not a number"),
        ([entry(new=NAN, failed_new=2), enough], "2 of 30 predictions"),
        ([entry(population="new"), enough], "no such figure"),
    ):
        verdict = judged(runs, line, *entries)
        assert not verdict.passed
        assert reason in say(verdict.failures), reason


def test_an_optional_line_does_without_figures_and_stars_but_not_without_predictions(runs):
    line, enough = Line(measure="teff", relative=0.1, optional=True), entry("logg", stars=30)
    for entries in ([enough], [entry(stars=3, low=NAN), enough]):
        verdict = judged(runs, line, *entries)
        assert verdict.passed
        assert verdict.lines[-1].status == "not judged"
    gate = Gate(lines=(line,), failed_predictions=99)
    assert not gate.judge(comparison(*runs, entry(new=NAN, failed_new=30), enough)).passed


def test_a_lost_label_and_a_failed_prediction_never_pass(runs):
    """Though no line asks for them."""
    line, lost = Line(measure="teff", relative=0.1), entry("mh", 0.1, new=NAN, failed_new=30, difference=NAN)
    verdict = judged(runs, line, entry(), lost)
    assert not verdict.passed
    assert "failed predictions: 30, limit 0, 30 beyond (real, all, mh)" in say(verdict.failures)


def test_a_label_that_the_old_model_lacks_is_not_judged_against_it(runs):
    gained = entry("mh", NAN, new=0.05, difference=NAN, low=NAN, high=NAN, failed_old=30)
    verdict = judged(runs, Line(measure="labels", relative=0.1), entry(), gained)
    assert verdict.passed
    assert [line.status for line in verdict.lines[-2:]] == ["passed", "not judged"]
    assert not judged(runs, Line(measure="mh", relative=0.1, most=0.04), entry(), gained).passed


def test_the_first_model_is_held_against_limits_of_its_own(runs):
    alone = {"old": NAN, "reference": NAN, "difference": NAN, "low": NAN, "high": NAN}
    first = comparison(runs[0], None, entry(new=80.0, **{k: v for k, v in alone.items() if k != "old"}))
    assert Gate().judge(first).passed
    assert Gate(lines=(Line(measure="teff", relative=0.1, most=90),)).judge(first).passed
    verdict = Gate(lines=(Line(measure="teff", relative=0.1, most=70),)).judge(first)
    assert [line.status for line in verdict.lines[-2:]] == ["failed", "not judged"]
    assert not Gate(least_stars=11).judge(first).passed
    assert not Gate().judge(comparison(runs[0], None)).passed  # of nothing


def test_a_slow_model_fails(runs):
    line = Line(measure="teff", relative=0.1)
    assert judged(runs, line, entry(), ratio=1.9).passed
    assert "time of inference" in say(judged(runs, line, entry(), ratio=2.1).failures)
    assert not judged(runs, line, entry(), ratio=NAN).passed
    assert Gate(lines=(line,), slower=None).judge(comparison(*runs, entry(), ratio=9)).passed


def test_coverage_is_held_within_limits(runs):
    covered = entry("coverage 90% teff", 0.9, -0.15, unit="")
    line = Line(measure="coverage 90%", least=0.8, most=0.97)
    verdict = judged(runs, line, entry(), covered)
    assert [line.status for line in verdict.lines[-2:]] == ["failed", "passed"]
    assert verdict.failures[0].excess == pytest.approx(0.05)


def test_the_default_gate_lets_an_equal_model_through_and_no_worse_one(runs):
    labels = [entry(name, 1.0, 0.02, 0.1) for name in ("teff", "logg", "mh", "rv", "berv", "airmass")]
    assert Gate().judge(comparison(*runs, *labels)).passed
    shown = [*labels[:-1], entry("airmass", 1.0, 0.3, 0.15)]
    assert "10%" in say(Gate().judge(comparison(*runs, *shown)).failures)
    unsure = [*labels[:-1], entry("airmass", 1.0, 0.6, 0.7)]
    assert "50%" in say(Gate().judge(comparison(*runs, *unsure)).failures)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lines: [{measure: tefff, relative: 0.1}]", "no measure 'tefff'"),
        ("lines: [{measure: teff, relativ: 0.1}]", "relativ"),
        ("lines: [{measure: teff}]", "no limit"),
        ("lines: [{measure: teff, by: era, bin: middle, relative: 1}]", "no bin 'middle'"),
        ("lines: [{measure: 'coverage 90% teff', relative: 0.1}]", "least and most"),
        ("linse: []", "linse"),
        ("lines: [{measure: teff, relative: 0.1, population: old}]", "population"),
        ("{", "cannot be used"),
    ],
)
def test_a_gate_that_says_what_is_unknown_is_refused(tmp_path, text, says):
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_gate(tmp_path / "gate.yaml")


def test_a_gate_is_read_from_yaml_and_json(tmp_path):
    (tmp_path / "gate.yaml").write_text("least_stars: 3\nlines:\n- {measure: labels, relative: 0.2, judge_by: upper}\n")
    gate = read_gate(tmp_path / "gate.yaml")
    assert gate == Gate(least_stars=3, lines=(Line(measure="labels", relative=0.2, judge_by="upper"),))
    (tmp_path / "gate.json").write_text(gate.model_dump_json())
    assert read_gate(tmp_path / "gate.json").digest == gate.digest != Gate().digest
    assert read_gate(None) == Gate()
    with pytest.raises(ConfigError, match="there is no gate"):
        read_gate(tmp_path / "none.yaml")
    with pytest.raises(ValidationError):
        Line(measure="teff", relative=-0.1)


def test_a_comparison_comes_back_from_disk(tmp_path, runs):
    made = comparison(*runs, entry(low=NAN))
    made.write(tmp_path)
    back = read_comparison(tmp_path)
    assert math.isnan(back.entries[0].low)
    assert back.model_dump_json() == made.model_dump_json()
    assert isinstance(back, Comparison)
    path = tmp_path / "comparison.json"
    for damage, says in ((path.read_text()[:-20], "is damaged"), ('{"format": 9}', "format 9"), ("[]", "format None")):
        path.write_text(damage)
        with pytest.raises(ConfigError, match=says):
            read_comparison(tmp_path)
