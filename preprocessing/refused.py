"""What an ingest says of the files that it refused: one line a reason, and what to try.

Tested in tests/integration/test_first_ingest.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from harps_dist.formats.records import Reason, Refusal
from harps_dist.spectra.grid import grid_within
from harps_dist.spectra.standardise import MINIMUM_COVERAGE


def refusal_lines(refused: Sequence[Refusal], files: int, made: bool) -> list[str]:
    """A line for every reason, the most frequent first. files: how many were looked at. made: whether there is an
    archive to add to."""
    by_reason: dict[Reason, list[Refusal]] = {}
    for refusal in refused:
        by_reason.setdefault(refusal.reason, []).append(refusal)
    return [_line(alike, files, made) for alike in sorted(by_reason.values(), key=len, reverse=True)]


def _line(refused: Sequence[Refusal], files: int, made: bool) -> str:
    first, others = refused[0], len(refused) - 1
    which = f"{first.source} and {others:,} more" if others else first.source
    line = f"{len(refused):,} of {files:,}: {first.detail.removesuffix('.')} ({first.reason}; {which})."
    return line + (_other_grid(refused, made) if first.reason is Reason.COVERAGE else "")


def _other_grid(refused: Sequence[Refusal], made: bool) -> str:
    """Where files that cover too little of a grid have their wavelengths, and the grid that fits them."""
    spans = [refusal.span_aa for refusal in refused if refusal.span_aa]
    low, high = max((low for low, _ in spans), default=0.0), min((high for _, high in spans), default=0.0)
    if low >= high:
        return ""
    grid = grid_within(low, high, MINIMUM_COVERAGE, refused[0].grid or "harps")
    apart = " and another --archive" if made else ""
    advice = f"try --grid {grid.name}{apart}" if grid else "no named grid lies within"
    return f" These files span {low:.0f}-{high:.0f} Å: {advice}."
