"""Reports, figures and the way both are written: whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harps_dist.console import console_for
from harps_dist.errors import ConfigError
from harps_dist.evaluation import figures
from harps_dist.evaluation.measures import Measured
from harps_dist.evaluation.metrics import GROUPS, group_scores, label_scores
from harps_dist.evaluation.report import PAPER_ROWS, Report
from harps_dist.evaluation.terminal import console_table
from harps_dist.files import atomic_write
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.text import format_pair, format_value, markdown_table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def report(tmp_path):
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(60, len(NAMES))) * 100
    predicted = truth + rng.normal(size=truth.shape)
    truth[:, NAMES.index("berv")] = np.nan
    stars, sigma = rng.integers(20, size=60), dict.fromkeys(NAMES, 100.0)
    return Report(
        run="ae-mix-7",
        step=120_000,
        release_digest="0123456789abcdef" * 4,
        split="test",
        origin="simulated",
        spectra=60,
        stars=20,
        labels=label_scores(truth, predicted, NAMES, sigma, stars),
        groups=group_scores(truth, predicted, NAMES, sigma, stars),
        measures=[Measured.of("RVIS", np.array([0.02, 0.03, 0.025]), np.array([1, 2, 2]), "flux / median")],
        paper_row="ae-mix",
        figures={"residuals": tmp_path / "plots" / "residuals.png"},
        notes=["BERV is not known for simulated spectra."],
    )


def test_atomic_write_replaces_in_one_step(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with atomic_write(path) as aside:
        aside.write_text("new")
        assert aside.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_that_fails_leaves_the_old_and_nothing_else(tmp_path, error):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def interrupted():
        with atomic_write(path) as aside:
            aside.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_atomic_write_flushes_the_file_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    path, calls = tmp_path / "scores.json", []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *pair: calls.append("rename") or rename(*pair))
    with atomic_write(path) as aside:
        aside.write_text("new")
    assert calls == [str(aside), "rename", str(tmp_path)]


@pytest.mark.parametrize(
    ("value", "error", "printed"),
    [
        (49.7431, 0.7712, "49.74 ± 0.77"),
        (978.04, 13.2, "978 ± 13"),
        (1234.6, 123.4, "1230 ± 120"),
        (0.022917, 0.000551, "0.02292 ± 0.00055"),
        (1.5, 0.0996, "1.50 ± 0.10"),
        (-0.00012, 0.01, "-0.000 ± 0.010"),
        (0.5, float("nan"), "0.5"),
        (0.123456, 0.0, "0.1235 ± 0"),
        (float("nan"), 1.0, "–"),
    ],
)
def test_two_digits_of_the_error(value, error, printed):
    assert format_pair(value, error) == printed


def test_format_value_without_error_keeps_four_digits():
    assert format_value(12.345678, float("nan")) == "12.35"


def test_markdown_table():
    table = markdown_table(["label", "a|b"], [["teff", "1"], ["rv", "12345"]])
    assert table.splitlines() == [
        "| label |  a\\|b |",
        "| ----- | ----: |",
        "| teff  |     1 |",
        "| rv    | 12345 |",
    ]


def test_paper_rows_reproduce_their_printed_group_columns():
    """Each printed "All" is the mean of the row's MAE over the divisors: a check of both by one another."""
    for row in PAPER_ROWS.values():
        for group, members in GROUPS.items():
            nmae = np.nanmean([row.labels[name][0] / LABEL[name].paper_mad for name in members])
            assert nmae == pytest.approx(row.groups[group][0], rel=2e-3), (row.legend, group)


def test_markdown_says_what_was_evaluated_first(report, tmp_path):
    text = report.markdown(tmp_path)
    assert text.startswith("# ae-mix-7, step 120,000\n\n**Data: 60 simulated spectra (no telescope was involved)")
    assert "20 stars, test split of release 0123456789ab." in text.splitlines()[2]
    observed = replace(report, origin="observed-like", not_genuine="ORIGIN = SIMULATED; not genuine")
    assert "60 observed-like spectra (ORIGIN = SIMULATED; not genuine) of" in observed.markdown(tmp_path)
    assert "real HARPS spectra" in replace(report, origin="real").markdown(tmp_path).splitlines()[2]
    teff = next(line for line in text.splitlines() if line.startswith("| teff"))
    score = report.labels[NAMES.index("teff")]
    assert format_pair(score.mae, score.standard_error) in teff
    assert "49.74 ± 0.77" in teff
    assert teff.rstrip("| ").endswith(str(score.stars))
    berv = next(line for line in text.splitlines() if line.startswith("| berv"))
    assert "nan" not in text
    assert "–" in berv
    assert "0.1867 ± 0.0021" in text
    assert "0.0250 ± 0.0029" in text
    assert "![residuals](plots/residuals.png)" in text


def test_markdown_tables_are_rectangular(report, tmp_path):
    for shown in (report, replace(report, paper_row=None)):
        lines = shown.markdown(tmp_path).splitlines()
        for above, below in pairwise(lines):
            if above.startswith("|") and below.startswith("|"):
                assert len(above) == len(below)
                assert above.count("|") == below.count("|")
    assert "printed, " not in replace(report, paper_row=None).markdown(tmp_path)


def test_files_carry_full_precision(report, tmp_path):
    folder = tmp_path / "out" / "evaluation"
    report.write(folder)
    assert sorted(os.listdir(folder)) == ["report.md", "scores.csv", "scores.json"]
    assert (folder / "report.md").read_text() == report.markdown(folder)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((folder / "scores.json").read_text(), parse_constant=refuse)
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    for score, row, entry in zip(report.labels, rows, content["labels"], strict=True):
        assert row["name"] == entry["name"] == score.name
        if score.count:
            assert float(row["mae"]) == entry["mae"] == score.mae
            assert float(row["standard_error_stars"]) == entry["standard_error_stars"] == score.standard_error_stars
    assert content["labels"][NAMES.index("berv")]["mae"] is None
    assert content["origin"] == "simulated"
    assert content["figures"] == {"residuals": "../../plots/residuals.png"}
    assert content["paper"]["labels"]["teff"] == [49.74, 0.77]
    assert content["measures"][0]["value"] == pytest.approx(0.025)


def test_console_table(report):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(console_table([report]))
    text = console.export_text()
    assert "60 simulated spectra" in text
    assert re.search(r"teff \[K\] ", text)


def test_the_table_of_a_terminal_keeps_the_result_in_80_columns(report):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    leakage = Measured("do(berv) leakage", -0.00046, 0.00097, 0.00097, 210_000, 100_000)
    of_label = Measured("GIS teff", 0.5, 0.1, 0.1, 210, 10)
    more = replace(report, origin="observed-like", measures=[leakage, of_label])
    console.print(console_table([report, more]))
    text = console.export_text()
    assert "…" not in text
    for words in ("MAE", "± by star", "bias", "scatter", "stars", "simulated", "observed-like", "do(berv) leakage"):
        assert words in text
    assert "GIS" not in text
    score = report.labels[0]
    for value, error in ((score.mae, score.standard_error), (leakage.value, leakage.standard_error)):
        assert format_pair(value, error) in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_number_of_a_table_is_cut_in_a_narrow_terminal(monkeypatch, capsys):
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")  # so that it counts as a terminal
    table = Table()
    for name in ("recipe", "spectra/s", "ms a spectrum", "floor", "ratio"):
        table.add_column(name, justify="right")
    table.add_row("demo-cnn-mix", "12345.678", "0.123456", "0.0123", "45.6")
    console_for().print(table)
    printed = capsys.readouterr().out
    assert "…" not in printed


def test_unknown_origin_and_row_are_refused(report):
    with pytest.raises(
        ConfigError, match="origin is 'fake'; say one of real, observed-like, simulated, generative, mixed"
    ):
        replace(report, origin="fake")
    with pytest.raises(ConfigError, match="no row 'ae'; choose one of beta-vae-cnn-u, cnn-mix"):
        replace(report, paper_row="ae")


@pytest.fixture
def spectrum(genuine_data):
    """Wavelength [Å] and flux over median of a synthesised solar-type star, 5985-6323 Å."""
    sed = np.load(genuine_data / "sed_grid_5985_6323.npz")
    components = sed["components_i16"] * sed["component_scale"][:, None]
    flux = np.exp(sed["log_flux_mean"] + sed["coefficients"][7, 2, 3] @ components)
    return sed["wave0_aa"] + sed["step_aa"] * np.arange(len(flux)), flux / np.median(flux)


def drawn(monkeypatch, draw) -> list:
    """The texts of the figure that `draw()` saves: titles, axis labels, legends."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        if kwargs["format"] == "png":  # the PDF is of the same figure
            texts.extend(text.get_text() for text in figure.findobj(Text) if text.get_text())

    monkeypatch.setattr(Figure, "savefig", keep)
    draw()
    return texts


def assert_png(path: Path) -> None:
    """A PNG, and the same as PDF beside it, with fonts in it."""
    pdf = path.with_suffix(".pdf")
    assert path.read_bytes().startswith(PNG)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"/FontFile2" in pdf.read_bytes()
    assert b"CreationDate" not in pdf.read_bytes()
    assert sorted(os.listdir(path.parent)) == sorted([path.name, pdf.name])


def test_spectrum_figure_zooms_where_it_can(tmp_path, monkeypatch, spectrum):
    wave_aa, flux = spectrum
    path = tmp_path / "spectrum.png"
    gappy = np.where((wave_aa > 6100) & (wave_aa < 6105), np.nan, flux)
    title = r"<HD 1> $\frac{, simulated"  # a name from outside is no formula
    texts = drawn(monkeypatch, lambda: figures.spectrum_figure(path, wave_aa, gappy, 0.99 * flux, title))
    assert_png(path)
    assert {"Ca I 6122", "Ca I 6162", "telluric O$_2$ γ", "air wavelength [Å]", title} <= set(texts)
    narrow = (wave_aa > 6100) & (wave_aa < 6140)
    texts = drawn(monkeypatch, lambda: figures.spectrum_figure(path, wave_aa[narrow], flux[narrow], flux[narrow], ""))
    assert "Ca I 6122" in texts
    assert "Ca I 6162" not in texts
    figures.spectrum_figure(path, wave_aa[:500], flux[:500], flux[:500], "no zoom in range")
    assert_png(path)


def test_residual_figure_says_what_it_leaves_out(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    truth = rng.normal(5500, 300, size=(500, 4))
    predicted = truth + rng.uniform(-10, 10, size=truth.shape)
    truth[:100, 0] = np.nan
    predicted[100:103, 0] += 1e6
    predicted[103:105, 0] = np.nan, np.inf
    truth[:, 1] = np.nan
    predicted[:, 2] = np.nan
    truth[:, 3] = predicted[:, 3] = 5777.0
    path = tmp_path / "residuals.png"
    names, stars = ["teff", "mh", "logg", "airmass"], np.repeat(np.arange(250), 2)
    draw = partial(figures.residual_figure, path, truth, predicted, names, stars, "simulated spectra")
    texts = drawn(monkeypatch, draw)
    assert_png(path)
    (title,) = (text for text in texts if text.startswith("MAE") and " K " in text)
    outside = int(re.search(r"n = 398, (\d+) outside, 2 failed", title)[1])
    assert 3 <= outside <= 20
    assert texts.count("no label to compare") == 2
    assert texts.count("running median") == 1
    assert texts.count("mean of a star's visits") == 1
    assert "simulated spectra" in texts
    assert r"true $T_\mathrm{eff}$ [K]" in texts
    assert "true airmass" in texts


def test_stars_with_several_visits_have_a_mean():
    stars = np.array(["b", "a", "b", "c", "b", "c"], object)
    x, y = figures.means_by_star(np.arange(6.0), np.array([1.0, 9.0, 2.0, -1.0, 6.0, 2.0]), stars)
    np.testing.assert_allclose(x, [2.0, 4.0])
    np.testing.assert_allclose(y, [3.0, 0.5])
    assert figures.means_by_star(np.arange(2.0), np.arange(2.0), np.array(["a", "b"]))[0].size == 0


def test_intervention_figure_states_the_error(tmp_path, monkeypatch, spectrum):
    wave_aa, flux = (array[13_000:14_000] for array in spectrum)
    path = tmp_path / "intervention.png"
    curves = {20.0: (flux + 0.25, flux), -40.0: (flux, flux)}
    texts = drawn(monkeypatch, lambda: figures.intervention_figure(path, wave_aa, flux, curves, "rv", "km/s"))
    assert_png(path)
    titles = [text for text in texts if text.startswith("do(")]
    assert [title.split("    ")[0] for title in titles] == [
        r"do($v_\mathrm{rad}$ −40 km/s)",
        r"do($v_\mathrm{rad}$ +20 km/s)",
    ]
    assert titles[1].endswith("= 0.25")


def test_figures_leave_no_global_state(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises
    wave_aa, flux = np.linspace(6110.0, 6111.0, 101), np.ones(101)
    figures.intervention_figure(tmp_path / "rv.png", wave_aa, flux, {20.0: (flux, flux)}, "rv", "km/s")
    changed = [key for key in figures.STYLE if matplotlib.rcParams[key] != matplotlib.rcParamsDefault[key]]
    assert changed == []
