"""What a model has to show before it may replace another: lines, each of which passes or says by how much not.

A line allows a mean error to grow by so much. The growth is measured star by star, so it has a 95 % interval, and
`judge_by` says which end of it is held against the limit:

    lower   fails a model that is shown to be worse than allowed. The default: with few stars the interval is wide, and
            a model as good as the old one is still let through.
    mean    fails a model that looks worse than allowed, whether by chance or not.
    upper   fails a model that is not shown to be as good as allowed. Wants many stars.

The default gate asks for no `lower` beyond 10 % and no `mean` beyond 50 %. What cannot be judged fails.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from harps_dist.errors import ConfigError
from harps_dist.evaluation.measures import GIS_TRUE, MAE, RVIS_TRUE, is_coverage, label_measure
from harps_dist.frozen import Frozen, Number
from harps_dist.intake import read_text
from harps_dist.promotion.comparison import (
    COVERAGES,
    MEASURES,
    OF_LABELS,
    By,
    Comparison,
    Entry,
    Population,
    SpectraKind,
    Surprise,
    bin_names,
)
from harps_dist.spectra.labels import NAMES
from harps_dist.text import NAN, printable

if TYPE_CHECKING:
    from rich.table import Table

LABELS = "labels"  # each that either model has
EACH = "each"  # bin
BY_CHANCE = 0.01
MAX_DEPTH = 20  # of a gate's YAML; a gate has 3
FAMILIES = {LABELS: NAMES} | {
    family: tuple(label_measure(family, name) for name in NAMES) for family in (*OF_LABELS, *COVERAGES)
}
ENDS = {"lower": "lower end of its interval", "mean": "on average", "upper": "upper end of its interval"}
Status = Literal["passed", "failed", "not judged"]


class Judged(Frozen):
    """One line's verdict on one entry. excess: how far `value` lies beyond `limit`, negative where it does not."""

    line: str
    status: Status
    value: Number = NAN
    limit: Number = NAN
    excess: Number = NAN
    reason: str = ""

    @property
    def sentence(self) -> str:
        figures = "" if math.isnan(self.value) else f": {self.value:.4g}, limit {self.limit:.4g}"
        beyond = f", {self.excess:.4g} beyond" if self.excess > 0 else ""
        return f"{self.line}{figures}{beyond}" + (f" ({self.reason})" if self.reason else "")


class Line(Frozen):
    """At most how much worse than the old model, or within which limits, the new one may be in some measure.

    measure: a label's mean absolute error, "labels" for each label that either model has, or one of `MEASURES`; GIS,
    GIS-true and coverages without a label stand for each. bin: of what `by` names, "each" for all that hold spectra.
    relative, absolute: allowed growth, as a share of the old model's value and in the measure's unit; where both are
    given, the larger is allowed. least, most: limits of the new model's own value. least_stars: fewer cannot be judged.
    optional: do not fail where neither model has the measure, or stars are too few. A measure only the new
    model has is not judged. A measure the new model lost fails.
    """

    kind: SpectraKind = "real"
    population: Population = "frozen"
    measure: str
    by: By = "overall"
    bin: str = EACH
    relative: float | None = Field(None, ge=0, allow_inf_nan=False)
    absolute: float | None = Field(None, ge=0, allow_inf_nan=False)
    judge_by: Literal["lower", "mean", "upper"] = "lower"
    least: float | None = Field(None, allow_inf_nan=False)
    most: float | None = Field(None, allow_inf_nan=False)
    least_stars: int = Field(5, ge=1)
    optional: bool = False

    @model_validator(mode="after")
    def _can_be_judged(self) -> Line:
        known = (*FAMILIES, *MEASURES)
        if self.measure not in known:
            raise ValueError(f"there is no measure {self.measure!r}; there are {', '.join(known)}.")
        if self.bin not in (EACH, *bin_names(self.by)):
            raise ValueError(
                f"there is no bin {self.bin!r} of {self.by}; there are {', '.join((EACH, *bin_names(self.by)))}."
            )
        if self.relative is self.absolute is self.least is self.most is None:
            raise ValueError(f"the line of {self.measure} has no limit; give relative, absolute, least or most.")
        if is_coverage(self.measure) and (self.relative, self.absolute) != (None, None):
            raise ValueError(f"{self.measure} is not better for being smaller; give least and most.")
        return self

    def judge(self, comparison: Comparison) -> list[Judged]:
        """One verdict for each entry and limit; one that says why where there is no entry."""
        names = FAMILIES.get(self.measure, (self.measure,))
        entries = [
            entry
            for entry in comparison.find(self.kind, self.population, self.by)
            if entry.measure in names and self.bin in (EACH, entry.bin)
        ]
        if not entries:
            where = f", {self.by} {self.bin}" if self.by != "overall" else ""
            place = f"{self.kind}, {self.population}{where}, {self.measure}"
            return [self._unjudged(place, "the comparison has no such figure", fails=not self.optional)]
        return [judged for entry in entries for judged in self._judge(entry, comparison.old is not None)]

    def _judge(self, entry: Entry, compared: bool) -> list[Judged]:
        if entry.failed_new or math.isnan(entry.new):
            missing = f"{entry.failed_new:,} of {entry.spectra:,} predictions are missing or not finite"
            return [self._unjudged(entry.place, missing, fails=True)]
        if entry.stars < self.least_stars:
            few = f"{entry.stars:,} stars, of which {self.least_stars:,} are wanted"
            return [self._unjudged(entry.place, few, fails=not self.optional)]
        judged = []
        if self.least is not None:
            judged.append(_held(f"{entry.place} at least {self.least:g}", -entry.new, -self.least, sign=-1))
        if self.most is not None:
            judged.append(_held(f"{entry.place} at most {self.most:g}", entry.new, self.most))
        if (self.relative, self.absolute) == (None, None):
            return judged
        relative = "" if self.relative is None else f"{self.relative:.0%}"
        absolute = "" if self.absolute is None else f"{self.absolute:g} {entry.unit}".strip()
        allowed = " or ".join(filter(None, (relative, absolute)))
        line = f"{entry.place} worse by at most {allowed}, {ENDS[self.judge_by]}"
        if not compared:
            judged.append(self._unjudged(line, "there is no old model", fails=False))
        elif math.isnan(entry.reference):
            judged.append(self._unjudged(line, "the old model has no value", fails=False))
        else:
            value = {"lower": entry.low, "mean": entry.difference, "upper": entry.high}[self.judge_by]
            judged.append(_held(line, value, max((self.relative or 0.0) * entry.reference, self.absolute or 0.0)))
        return judged

    @staticmethod
    def _unjudged(line: str, reason: str, fails: bool) -> Judged:
        return Judged(line=line, status="failed" if fails else "not judged", reason=reason)


def _held(line: str, value: float, limit: float, sign: int = 1) -> Judged:
    """Whether value <= limit; NaN is not. sign: -1 where both were turned around."""
    reason = "it is not a number" if math.isnan(value) else ""
    status: Status = "passed" if value <= limit else "failed"
    return Judged(line=line, status=status, value=sign * value, limit=sign * limit, excess=value - limit, reason=reason)


def _default_lines() -> tuple[Line, ...]:
    lines = [
        Line(measure=LABELS, relative=0.10),
        Line(measure=LABELS, relative=0.50, judge_by="mean"),
        Line(measure=LABELS, population="new", relative=0.25, optional=True),
    ]
    lines += [Line(measure=LABELS, by=by, relative=0.50, least_stars=10, optional=True) for by in ("teff", "era")]
    scores: tuple[tuple[SpectraKind, str], ...] = (
        ("real", MAE.name),
        ("simulated", MAE.name),
        ("simulated", RVIS_TRUE.name),
        ("generative", GIS_TRUE.name),
    )
    lines += [Line(kind=kind, measure=measure, relative=0.10, optional=True) for kind, measure in scores]
    return tuple(lines)


class Gate(Frozen):
    """All lines that a model has to pass.

    failed_predictions: at most so many over all kinds of spectra, a label or score that the old model had and the new
    one lacks counting as failed everywhere. least_stars: of every kind of spectra but the generative set, at least.
    slower: at most so many times the old model's time of inference, None for any. surprise: the old model's error of
    a label on what has arrived is at most so many times that on stars that it was tested on before, or more by chance
    alone (p above 0.01); else the new labels or spectra are wrong, whatever the new model has learned from them. None
    for any.
    """

    failed_predictions: int = Field(0, ge=0)
    least_stars: int = Field(5, ge=1)
    slower: float | None = Field(2.0, gt=0, allow_inf_nan=False)
    surprise: float | None = Field(2.0, gt=0, allow_inf_nan=False)
    lines: tuple[Line, ...] = Field(default_factory=_default_lines)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def judge(self, comparison: Comparison) -> Verdict:
        """Every line's verdict; the model passes where none failed. Lines against an old model are not judged where
        there is none."""
        lines = [*self._sanity(comparison), *(judged for line in self.lines for judged in line.judge(comparison))]
        return Verdict(passed=all(judged.status != "failed" for judged in lines), gate=self, lines=tuple(lines))

    def _sanity(self, comparison: Comparison) -> list[Judged]:
        overall = [entry for entry in comparison.entries if (entry.population, entry.by) == ("all", "overall")]
        failed = sum(entry.failed_new for entry in overall)
        worst = sorted({entry.place for entry in overall if entry.failed_new})
        judged = _held("failed predictions", float(failed), float(self.failed_predictions))
        lines = [judged.model_copy(update={"reason": "; ".join(worst[:5])})]
        kinds = {entry.kind for entry in overall} - {"generative"}
        for kind in sorted(kinds):
            stars = max(entry.stars for entry in overall if entry.kind == kind)
            lines.append(_held(f"{kind}, all, stars at least {self.least_stars}", -stars, -self.least_stars, sign=-1))
        if not kinds:
            lines.append(Judged(line="spectra to judge by", status="failed", reason="the comparison has none"))
        if self.slower is not None and comparison.old is not None:
            ratio = comparison.speed.ratio if comparison.speed else NAN
            lines.append(_held("time of inference over the old model's", ratio, self.slower))
        if self.surprise is not None:
            lines += [_unsurprising(surprise, self.surprise) for surprise in comparison.surprises]
        return lines


def _unsurprising(surprise: Surprise, limit: float) -> Judged:
    line = f"{surprise.label} of what has arrived, the old model's error over that on stars tested before"
    judged = _held(line, surprise.arrived / surprise.frozen, limit)
    reason = (
        f"{surprise.arrived:.4g} {surprise.unit} on {surprise.stars_arrived} stars, {surprise.frozen:.4g} before, "
        f"p = {surprise.p_value:.2g}"
    )
    by_chance = judged.status == "failed" and surprise.p_value > BY_CHANCE
    return judged.model_copy(update={"reason": reason} | ({"status": "passed"} if by_chance else {}))


class Verdict(Frozen):
    """What a gate made of a comparison."""

    passed: bool
    gate: Gate
    lines: tuple[Judged, ...]

    @property
    def failures(self) -> list[Judged]:
        return [judged for judged in self.lines if judged.status == "failed"]

    def table(self) -> Table:
        """The verdict as a rich table, what failed first."""
        from rich.table import Table

        counts = {status: sum(line.status == status for line in self.lines) for status in ("passed", "failed")}
        table = Table(title=f"gate: {counts['passed']} lines passed, {counts['failed']} failed")
        for header in ("", "line", "value", "limit", "reason"):
            table.add_column(header, justify="right" if header in ("value", "limit") else "left")
        for judged in sorted(self.lines, key=lambda line: line.status != "failed"):
            figures = ["" if math.isnan(value) else f"{value:.4g}" for value in (judged.value, judged.limit)]
            table.add_row(judged.status, judged.line, *figures, judged.reason)
        return table


def read_gate(path: Path | None) -> Gate:
    """A gate from YAML or JSON, the default one without a file; raises ConfigError saying which key is wrong."""
    import yaml

    if path is None:
        return Gate()
    try:
        text = read_text(path, "gate")
        _require_plain(text)
        return Gate.model_validate(yaml.safe_load(text) or {})
    except FileNotFoundError:
        raise ConfigError(f"there is no gate {printable(path)}. Give a YAML file with the lines of a gate.") from None
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:  # pydantic's is a ValueError
        raise ConfigError(f"gate {printable(path)} cannot be used: {error}") from None


def _require_plain(text: str) -> None:
    """Refuse YAML of which a few lines are billions, or that is nested so deep that reading it takes minutes."""
    import yaml

    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases (*name); write out what they stand for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def say(failures: Sequence[Judged]) -> str:
    """Failed lines as sentences."""
    return "; ".join(judged.sentence for judged in failures)
