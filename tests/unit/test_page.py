"""The page of the reproduced tables, read and opened in a headless browser; and what pages have in common."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harps_dist.evaluation.printed import PAPER_ROWS
from harps_dist.evaluation.templates import page_kind, render
from harps_dist.paper.evaluations import Evaluations
from harps_dist.paper.figures import draw_paper_figures
from harps_dist.paper.reproduce import Reproduction, page
from harps_dist.paper.tables import paper_tables
from tests.made_up_runs import index_of, write_run
from tests.pages import Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made_of(folder: Path, genuine: bool, left_out: str = "") -> Reproduction:
    """Every table and nearly every figure of a folder of made-up runs. left_out: a row that is not run."""
    for name in (*PAPER_ROWS, "cnn-dec-etc", "resnet-etc", "fig2-b7", "figd1-lab1"):
        if name != left_out:
            write_run(folder, name, 60)
    found = Evaluations(folder, demo=False)
    return Reproduction(
        data="stars <of> somewhere & elsewhere",
        genuine=genuine,
        digest="0" * 64,
        tables=paper_tables(found),
        figures=draw_paper_figures(found, index_of(30), folder / "figures"),
    )


def test_the_page_says_how_many_rows_were_trained_and_on_what_each_number_rests(tmp_path):
    made = made_of(tmp_path, genuine=False, left_out="infovae-u")
    seen = Page(page(made, tmp_path))
    rows = [row for table in made.tables if table.of_runs for row in table.rows]
    missing = [row for row in rows if row.step is None]
    assert missing
    assert f"{len(rows) - len(missing)} of {len(rows)} rows trained" in seen.text
    assert seen.tags["img"] == len(made.figures) == len(list(tmp_path.glob("figures/*.png")))
    assert all(address.startswith("data:image/png;base64,") for address in seen.fetched)
    pdfs = {f"figures/{path.name}" for path in tmp_path.glob("figures/*.pdf")}
    assert pdfs == {link for link in seen.links if not link.startswith("#")}
    assert {link[1:] for link in seen.links if link.startswith("#")} <= seen.anchors
    assert "0.0200 ± 0.0010" in seen.text
    assert "± 0.0030 60 / 9" in seen.text  # by star, and the sample
    assert all(figure.caption in seen.text for figure in made.figures)


def test_a_page_is_known_by_its_generator(tmp_path):
    """Only its own kind, and what an older version wrote."""
    kind = page_kind("page of mine", "--out", "harps_dist: mine", "<title>Mine</title>")
    path = tmp_path / "index.html"
    for text, ours in (
        (render("harps_dist.evaluation", "base.html.j2", "harps_dist: mine"), True),
        (render("harps_dist.evaluation", "base.html.j2", "harps_dist: another"), False),
        ("<title>Mine</title>", True),
        ("<p>harps_dist: mine</p>", False),
    ):
        path.write_text(text)
        assert kind.ours(path) == ours


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, to open the page in")
@pytest.mark.parametrize("genuine", [True, False])
def test_the_page_shows_all_and_needs_nothing_else(genuine, tmp_path):
    """All pictures are decoded, nothing is fetched or wider than the window, the data are named."""
    made = made_of(tmp_path, genuine)
    assert (len(made.tables), len(made.figures)) == (10, 9)
    probe = tmp_path / "probe.html"
    report = (
        "<script>onload = () => document.title = JSON.stringify({"
        "pictures: [...document.images].filter(i => i.complete && i.naturalWidth > 100).length,"
        "tables: document.querySelectorAll('table').length,"
        "fetched: performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length,"
        "width: document.documentElement.scrollWidth, banner: document.querySelector('.data').innerText,"
        "deadLinks: [...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
        "})</script>"
    )
    probe.write_text(page(made, tmp_path) + report)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000", "--dump-dom"]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120)
    probe.unlink()
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    seen = json.loads(html.unescape(title[1]))
    assert (seen["pictures"], seen["tables"], seen["fetched"], seen["deadLinks"]) == (9, 10, 0, 0)
    assert seen["width"] <= 1200
    assert "Data: stars <of> somewhere & elsewhere" in seen["banner"]
    assert done.stdout.count("Not genuine spectra.") == (0 if genuine else 9)
