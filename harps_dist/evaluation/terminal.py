"""What a terminal shows of an evaluation: one table of 80 columns at most. Report and page have the rest.

Tested in tests/unit/test_report.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harps_dist.evaluation.measures import COMPARABLE, measure_of
from harps_dist.evaluation.report import Report
from harps_dist.text import format_pair, format_value

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("MAE or score", "± by star", "bias", "scatter", "stars")


def console_table(reports: Sequence[Report]) -> Table:
    """Label errors, and scores that are of no single label, with a section for every report; the data in the caption.

    reports: of one checkpoint, one at least.
    """
    from rich import box
    from rich.table import Table

    first = reports[0]
    table = Table(
        title=f"{first.run}, step {first.step:,}",
        caption="\n".join(f"{report.data_line}." for report in reports),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(report.origin, style="bold")
        for row in _rows(report):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(report: Report) -> list[tuple[str, str, str, str, str, str]]:
    labels = [
        (
            f"  {score.name} [{score.unit}]" if score.unit else f"  {score.name}",
            format_pair(score.mae, score.standard_error),
            format_value(score.standard_error_stars, score.standard_error_stars),
            format_value(score.bias, score.standard_error),
            format_value(score.scatter, score.standard_error),
            f"{score.stars:,}",
        )
        for score in report.labels
    ]
    scores = [
        (
            f"  {score.name}",
            format_pair(score.value, score.standard_error),
            format_value(score.standard_error_stars, score.standard_error_stars),
            "",
            "",
            f"{score.stars:,}",
        )
        for score in report.measures
        if not measure_of(score.name)[1] and score.name != COMPARABLE.name
    ]
    return labels + scores
