"""The report of an evaluation: report.md to read, scores.csv for a spreadsheet, scores.json for programs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from harps_dist.errors import ConfigError
from harps_dist.evaluation.measures import Measured
from harps_dist.evaluation.metrics import GroupScore, LabelScore
from harps_dist.evaluation.printed import PAPER_ROWS, PaperRow
from harps_dist.files import atomic_write
from harps_dist.ownership import home
from harps_dist.sealed import sha256_of, unsealed
from harps_dist.text import NAN, Shown, format_pair, format_value, markdown_table, sealed_json

if TYPE_CHECKING:
    from harps_dist.evaluation.calibration import Calibration

SCORES = "scores.json"
FORMAT, FORMATS = 2, (1, 2)  # of scores.json; the first carries neither its number nor digests
Origin = Literal["real", "observed-like", "simulated", "generative", "mixed"]
OLD_ORIGINS = {"demo": "observed-like"}  # as version 0.1 called them
ORIGIN_WORDS = {
    "real": "real HARPS spectra",
    "observed-like": "observed-like spectra (not genuine)",
    "simulated": "simulated spectra (no telescope was involved)",
    "generative": "simulated spectra of the generative set (no telescope was involved)",
    "mixed": "real and simulated spectra together",
}


def origin_words(origin: Origin, not_genuine: str) -> str:
    """What reports call spectra of an origin. not_genuine: why observed-like ones are not real, in a few words."""
    return f"observed-like spectra ({not_genuine})" if origin == "observed-like" else ORIGIN_WORDS[origin]


def origin_name(origin: Origin, not_genuine: str) -> str:
    """An origin in as few words as a figure's title or a cell of a table has room for."""
    return f"{origin} ({not_genuine})" if origin == "observed-like" else origin


LABEL_LEGEND = (
    "MAE ± standard error, every spectrum counted as independent; *by star* is the same error with the star as the "
    "independent unit, the one to trust where stars were observed repeatedly. NMAE divides by the standard deviation "
    "in the training split; *paper* divides as the printed tables do. Bias and scatter are mean and standard deviation "
    "of predicted - true."
)
CALIBRATION_LEGEND = (
    "Share of truths within the central interval that is predicted, and after a split-conformal correction on the "
    "validation split, in which every star counts once; factor: half-width of the corrected interval in predicted σ, ∞ "
    "where too few stars correct it. PIT distance: the largest one of its distribution from the uniform "
    "(Kolmogorov-Smirnov)."
)


def printed_legend(paper: PaperRow) -> str:
    """What the printed values beside are."""
    return (
        f"Printed: {paper.legend}, Tables 4-6 of the paper, measured on its own test split of real HARPS spectra. "
        "Other spectra were used here, so a difference is not only the model's."
    )


@dataclass(frozen=True)
class Report:
    """What was evaluated, on which data, and how it went.

    run, step: name of the run and optimiser step of its checkpoint. release_digest: sha256 of the release's
    manifest. split: train, validation or test. origin: where the spectra come from, said at the top. not_genuine: why
    they may not be called real, for observed-like ones.
    spectra, stars: how many were evaluated. paper_row: key of PAPER_ROWS to print beside, or None. figures:
    caption to path. notes: sentences for the reader. Raises ConfigError for an unknown origin or row.
    """

    run: str
    step: int
    release_digest: str
    split: str
    origin: Origin
    spectra: int
    stars: int
    labels: Sequence[LabelScore]
    groups: Sequence[GroupScore] = ()
    measures: Sequence[Measured] = ()
    calibrations: Sequence[Calibration] = ()
    paper_row: str | None = None
    figures: Mapping[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    not_genuine: str = "not genuine"

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise ConfigError(f"report origin is {self.origin!r}; say one of {', '.join(get_args(Origin))}.")
        if self.paper_row is not None and self.paper_row not in PAPER_ROWS:
            raise ConfigError(
                f"the paper has no row {self.paper_row!r}; choose one of {', '.join(PAPER_ROWS)}, or none."
            )

    @classmethod
    def of(cls, folder: Path, scores: Mapping[str, Any]) -> Report:
        """The report in a folder, whose scores.json says `scores`; see `read_scores`."""
        from harps_dist.evaluation.calibration import Calibration

        content = {column.name: scores[column.name] for column in fields(cls) if column.name in scores}
        parts = {"labels": LabelScore, "groups": GroupScore, "measures": Measured}
        for name, kind in parts.items():
            content[name] = [
                kind(**{key: NAN if value is None else value for key, value in part.items()})
                for part in scores.get(name, ())
            ]
        content["origin"] = OLD_ORIGINS.get(content["origin"], content["origin"])
        content["calibrations"] = [Calibration.of(part) for part in scores.get("calibrations", ())]
        content["figures"] = {caption: folder / link for caption, link in scores.get("figures", {}).items()}
        return cls(**content)

    @property
    def paper(self) -> PaperRow | None:
        """The printed row to stand beside, if one was asked for."""
        return PAPER_ROWS[self.paper_row] if self.paper_row else None

    @property
    def data_line(self) -> str:
        """The data in one sentence: how many, of what origin, which split of which release."""
        words = origin_words(self.origin, self.not_genuine)
        which = f"{self.split} split of release {self.release_digest[:12]}"
        return f"{self.spectra:,} {words} of {self.stars:,} stars, {which}"

    def write(self, folder: Path) -> None:
        """Write report.md, scores.csv and scores.json into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "report.md") as aside:
            aside.write_text(self.markdown(folder), encoding="utf-8")
        with (
            atomic_write(folder / "scores.csv") as aside,
            aside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, [column.name for column in fields(LabelScore)])
            writer.writeheader()
            writer.writerows(asdict(score) for score in self.labels)
        with atomic_write(folder / SCORES) as aside:
            aside.write_text(self.json(folder), encoding="utf-8")

    def json(self, folder: Path) -> str:
        """The report as strict JSON: NaN becomes null, figure paths are relative to `folder`; with sha256 of the tables
        there, and a digest of all of it."""
        content = asdict(self) | {"format": FORMAT, "figures": self._figure_links(folder)}
        content["sha256"] = {path.name: sha256_of(path) for path in sorted(Path(folder).glob("*.parquet"))}
        if self.paper:
            content["paper"] = self.paper._asdict()
        return sealed_json(content)

    def markdown(self, folder: Path) -> str:
        """The report as Markdown; figure links are relative to `folder`."""
        parts = [
            f"# {self.run}, step {self.step:,}",
            f"**Data: {self.data_line}.** Manifest sha256 `{self.release_digest}`.",
            "## Label errors",
            markdown_table(*label_table(self)),
            LABEL_LEGEND,
        ]
        if self.paper:
            parts.append(printed_legend(self.paper))
        if self.groups:
            parts += ["## Groups of labels", markdown_table(*group_table(self))]
        if self.measures:
            parts += ["## Reconstruction and interventions", markdown_table(*measure_table(self))]
        if self.calibrations:
            from harps_dist.evaluation.calibration_report import calibration_tables

            parts += ["## Calibration", CALIBRATION_LEGEND, calibration_tables(self.calibrations)]
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes)]
        if self.figures:
            links = self._figure_links(folder)
            parts += ["## Figures", *(f"![{caption}]({link})" for caption, link in links.items())]
        return "\n\n".join(parts) + "\n"

    def _figure_links(self, folder: Path) -> dict[str, str]:
        return {caption: Path(os.path.relpath(path, folder)).as_posix() for caption, path in self.figures.items()}


def read_scores(folder: Path, tables: Sequence[str] = ()) -> dict[str, Any]:
    """What scores.json in a folder says; NaN is None there.

    tables: names of tables beside it that must be as they were when it was written. Raises ConfigError where it, or one
    of these tables, is damaged.
    """
    path = folder / SCORES
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        form = scores.get("format", 1)
        if form not in FORMATS:
            raise ValueError(f"format {form!r}, this code knows {FORMAT}")
        scores = unsealed(scores, required=form > 1)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Evaluate the run again.") from None
    for name in tables:
        check_table(folder / name, scores)
    return scores


def check_table(path: Path, scores: Mapping[str, Any]) -> None:
    """Raises ConfigError where a table is not the one that scores.json beside it was written with.

    A table that neither is there nor is stated passes. Reports of format 1 state none: nothing is checked.
    """
    if "sha256" not in scores:
        return
    expected = scores["sha256"].get(path.name)
    actual = sha256_of(path) if path.is_file() else None
    if actual == expected:
        return
    if actual is None:
        wrong = f"is missing: {SCORES} expects it with sha256 {expected[:12]}"
    elif expected is None:
        wrong = f"is not part of this evaluation: {SCORES} does not name it"
    else:
        wrong = f"is damaged: {SCORES} expects sha256 {expected[:12]}, it has {actual[:12]}"
    raise ConfigError(f"{path} {wrong}. Evaluate the run again.")


def label_table(report: Report) -> Shown:
    """Errors of every label."""
    header = [
        "label",
        "unit",
        "MAE",
        "± by star",
        "NMAE",
        "NMAE (paper)",
        "bias",
        "scatter",
        "spectra",
        "stars",
    ]
    paper = report.paper
    if paper:
        header.insert(4, f"printed, {paper.legend}")
    rows = []
    for score in report.labels:
        relative = score.standard_error / score.mae if score.mae else NAN
        row = [
            score.name,
            score.unit,
            format_pair(score.mae, score.standard_error),
            format_value(score.standard_error_stars, score.standard_error_stars),
            format_value(score.nmae, relative * score.nmae),
            format_value(score.nmae_paper, relative * score.nmae_paper),
            format_value(score.bias, score.standard_error),
            format_value(score.scatter, score.standard_error),
            f"{score.count:,}",
            f"{score.stars:,}",
        ]
        if paper:
            row.insert(4, format_pair(*paper.labels.get(score.name, (NAN, NAN))))
        rows.append(row)
    return header, rows


def group_table(report: Report) -> Shown:
    """Errors of groups of labels."""
    header = ["group", "labels", "NMAE", "± by star", "NMAE (paper)"]
    if report.paper:
        header.append(f"printed, {report.paper.legend}")
    rows = []
    for group in report.groups:
        row = [
            group.name,
            " ".join(group.labels),
            format_pair(group.nmae, group.standard_error),
            format_value(group.standard_error_stars, group.standard_error_stars),
            format_pair(group.nmae_paper, group.standard_error_paper),
        ]
        if report.paper:
            row.append(format_pair(*report.paper.groups[group.name]))
        rows.append(row)
    return header, rows


def measure_table(report: Report) -> Shown:
    """Every other measure."""
    return ["", "value", "± by star", "spectra", "stars", ""], [_measure_row(measure) for measure in report.measures]


def _measure_row(measure: Measured) -> list[str]:
    return [
        measure.name,
        format_pair(measure.value, measure.standard_error),
        format_value(measure.standard_error_stars, measure.standard_error_stars),
        f"{measure.count:,}",
        f"{measure.stars:,}",
        measure.note,
    ]


RIDGE_RUN = "ridge regression"  # what the name of a run begins with, in whose place ridge regression was tried


def _has_reports(folder: Path, of_ridge: bool = False) -> bool:
    scores = [json.loads(path.read_text()) for path in folder.glob(f"*/{SCORES}")]
    ours = {"run", "step", "release_digest", "split", "origin"}
    return bool(scores) and all(ours <= one.keys() and one["run"].startswith(RIDGE_RUN) == of_ridge for one in scores)


EVALUATED = home("evaluation", "--out", _has_reports)


RIDGE = home("evaluation of ridge regression", "--out", lambda folder: _has_reports(folder, of_ridge=True))
