"""What methods read of genuine stars, beside the paper's encoder that was trained on simulations alone.

Tested in tests/integration/test_reproduce.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from harps_dist.benchmarks.genuine import READ, GenuineScores
from harps_dist.evaluation.printed import PAPER_ROWS
from harps_dist.paper.tables import Cell, PaperTable, Row, label_title

PRINTED = PAPER_ROWS["cnn-etc"]


def genuine_table(measured: Sequence[GenuineScores]) -> PaperTable | None:
    """Mean errors over stars of every method, a row each, then what is printed of CNN (ETC); None where nothing was
    measured.

    measured: by `benchmark genuine`, with one network or another. Stars count of which a method leaves a visit
    unflagged.
    """
    if not measured:
        return None
    rows = [Row(_legend(scores, method), _cells(scores, method)) for scores in measured for method in scores.methods]
    rows.append(Row(f"{PRINTED.legend}, printed", [Cell(*PRINTED.labels[label]) for label in READ]))
    note = (
        "Mean of |error| over stars, of the median over a star's visits, ± its standard error. Visits that a method "
        "flags are left out, and stars of which it flags all. Printed is the mean over spectra of the paper's test "
        f"split. Read: {'; '.join(map(_data, measured))}."
    )
    title = "Genuine spectra" if not any(scores.simulated for scores in measured) else "Spectra of known stars"
    columns = list(map(label_title, READ))
    return PaperTable(f"{title}: errors over stars", columns, rows, note, printed=False, of_runs=False)


def _legend(scores: GenuineScores, method: str) -> str:
    return f"{method} ({scores.model})" if scores.model and "network" in method else method


def _data(scores: GenuineScores) -> str:
    return f"{scores.title}, by {scores.model or 'fits alone'}, on {scores.device}"


def _cells(scores: GenuineScores, method: str) -> list[Cell]:
    chosen = (score for score in scores.of_methods if (score.method, score.sample) == (method, "unflagged"))
    found = {score.label: score for score in chosen}
    return [
        Cell(one.mae, one.mae_error, one.mae_error, spectra=one.spectra, stars=one.stars) if one else Cell()
        for one in map(found.get, READ)
    ]
