"""The table of a comparison in a terminal."""

from __future__ import annotations

import io
from itertools import product

from rich.console import Console

from harps_dist.promotion.comparison_report import comparison_table
from harps_dist.spectra.labels import NAMES
from tests.made_up_models import comparison, entry, write_model


def test_it_keeps_the_result_in_80_columns(tmp_path):
    new, old = write_model(tmp_path / "new", 2, 20), write_model(tmp_path / "old", 1, 10)
    entries = [
        entry(name, 1234.5, 56.78, 5.0, kind=kind, unit="km/s", spectra=12_345, stars=1_234, p_value=0.00012)
        for kind, name in product(("real", "simulated"), NAMES)
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(comparison(new, old, *entries), "frozen"))
    text = console.export_text()
    assert "…" not in text
    assert text.count("1234.5") == text.count("1291.3") == len(entries), text
    assert text.count("worse") == len(entries)
    assert max(map(len, text.splitlines())) <= 80
