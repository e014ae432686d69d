"""The page of results, opened in a headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from harps_dist.evaluation.printed import PAPER_ROWS
from harps_dist.paper.evaluations import Evaluations
from harps_dist.paper.figures import draw_paper_figures
from harps_dist.paper.reproduce import Reproduction, page
from harps_dist.paper.tables import paper_tables
from tests.made_up_runs import index_of, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, to open the page in")
@pytest.mark.parametrize("genuine", [True, False])
def test_the_page_shows_all_and_needs_nothing_else(genuine, tmp_path):
    """All pictures are decoded, nothing is fetched or wider than the window, the data are named."""
    for name in (*PAPER_ROWS, "cnn-dec-etc", "resnet-etc", "fig2-b7", "figd1-lab1"):
        write_run(tmp_path, name, 60)
    found = Evaluations(tmp_path, demo=False)
    made = Reproduction(
        data="stars <of> somewhere & elsewhere",
        genuine=genuine,
        digest="0" * 64,
        tables=paper_tables(found),
        figures=draw_paper_figures(found, index_of(30), tmp_path / "figures"),
    )
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
    probe.write_text(page(made) + report)
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
