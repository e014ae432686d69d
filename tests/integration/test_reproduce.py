"""The paper's tables from runs, trained where they are missing."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harps_dist.benchmarks.genuine import GenuineScores, write_genuine
from harps_dist.benchmarks.inference_speed import InferenceSpeed
from harps_dist.benchmarks.visits import method_score, star_score
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.evaluation.printed import LABEL_TABLES, PAPER_ROWS
from harps_dist.paper import reproduce, tables
from harps_dist.paper.evaluations import Evaluations
from harps_dist.recipes import RECIPES, find_recipe
from harps_dist.runs.log import read_log
from harps_dist.runs.run import read_run
from harps_dist.text import NAN


@pytest.mark.parametrize("demo", [False, True])
def test_every_row_has_a_recipe_and_parents_come_first(demo):
    names = reproduce.table_recipes(demo, sweeps=True)
    assert len(names) == len(set(names)) == 17 + 28 + 6  # Tables 4-7, Figs. 2 and D.1
    for place, name in enumerate(names):
        assert find_recipe(name).parent in (None, *names[:place])
    assert {row for table in LABEL_TABLES.values() for row in table.rows} == PAPER_ROWS.keys() <= RECIPES.keys()


@pytest.mark.slow
def test_missing_rows_are_trained_evaluated_and_tabulated(tiny_release, tmp_path, monkeypatch, capsys):
    """Two rows, one the other's parent; a second call finds both, and what was not run says so."""
    script = importlib.import_module("harps_dist.commands.reproduce")
    monkeypatch.setattr(reproduce, "table_recipes", lambda demo, sweeps=False: ["demo-cnn-mix", "demo-ae-real"])
    call = ["reproduce.py", str(tmp_path), "--scale", "demo", "--release", str(tiny_release), "--train", "missing"]
    monkeypatch.setattr("sys.argv", [*call, "--steps", "2"])
    assert script.main() == 0
    written = {"demo-cnn-mix", "demo-ae-real", "figures", "index.html", "tables.md", "tables.json"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert read_run(tmp_path / "demo-ae-real").recipe.training.steps == 2
    first = (tmp_path / "tables.json").read_text()
    content = json.loads(first)["tables"]
    table_4, table_5 = content[1:3]
    scores = json.loads((tmp_path / "demo-ae-real/evaluation/test-real/scores.json").read_text())
    mae = {score["name"]: [score["mae"], score["standard_error"]] for score in scores["labels"]}
    groups = {score["name"]: [score["nmae_paper"], score["standard_error_paper"]] for score in scores["groups"]}
    printed_order = [*(mae[name] for name in ("teff", "mh", "logg")), groups["intrinsic"]]
    printed_order += [*(mae[name] for name in ("rv", "berv", "airmass")), groups["extrinsic"]]
    row = {row["legend"]: row for row in table_4["rows"]}
    cells = row["AE (real)"]["cells"]
    assert [[cell["value"], cell["error"]] for cell in cells] == printed_order
    counts = {score["name"]: [score["count"], score["stars"]] for score in scores["labels"]}
    assert [cells[0]["spectra"], cells[0]["stars"]] == counts["teff"]
    assert [cells[3]["spectra"], cells[3]["stars"]] == min(counts[name] for name in ("teff", "mh", "logg"))
    assert row["AE (real)"]["step"] == 2
    assert cells[0]["printed"] == [50.32, 0.83]
    generative = json.loads((tmp_path / "demo-ae-real/evaluation/test-generative/scores.json").read_text())
    gis = {score["name"]: score["value"] for score in generative["measures"] if score["name"].startswith("GIS ")}
    table_8 = next(table for table in content if table["title"] == "Table 8: interventions on labels")
    assert [cell["value"] for cell in table_8["rows"][1]["cells"]][1:] == [
        gis[f"GIS {n}"] for n in ("teff", "mh", "logg")
    ]
    assert row["AE (mix)"]["step"] is None
    assert {row["legend"] for row in table_5["rows"] if row["step"]} == {"CNN (mix)", "AE (real)"}
    page = (tmp_path / "tables.md").read_text()
    assert "observed-like spectra (ORIGIN = SIMULATED; not genuine)" in page
    assert "not run" in page
    assert script.main() == 0
    assert (tmp_path / "tables.json").read_text() == first
    other = Evaluations(tmp_path, demo=True, release_digest="f" * 64)
    assert other.scores("cnn-mix", "real") is other.predictions("cnn-mix", "real") is None
    assert reproduce.missing_rows(tmp_path, Release(tiny_release), demo=True) == []
    marker = tmp_path / "demo-ae-real/evaluation/test.json"
    marker.write_text(marker.read_text().replace('"step": 2', '"step": 1'))
    assert reproduce.missing_rows(tmp_path, Release(tiny_release), demo=True) == ["demo-ae-real"]
    assert [line["step"] for line in read_log(tmp_path / "demo-ae-real")] == [2]
    capsys.readouterr()


def test_bold_by_spectrum_and_a_star_where_stars_agree(tmp_path):
    """Two models on 60 spectra, one better in teff and mh: first of 60 stars, then of four, which prove nothing."""
    draw = np.random.default_rng(0)
    for name, teff_error, mh_error in (("cnn-mix", 100.0, 0.1), ("ae-mix", 10.0, 0.01)):
        folder = tmp_path / name / "evaluation/test-real"
        folder.mkdir(parents=True)
        labels = {label: np.zeros(60) for label in ("teff", "mh", "logg", "rv", "berv", "airmass")}
        truth = {f"{label}_true": value for label, value in labels.items()}
        predicted = {label: draw.normal(0, 1, 60) for label in labels}
        predicted |= {"teff": teff_error * draw.uniform(1, 2, 60), "mh": mh_error * draw.uniform(1, 2, 60)}
        stars = [f"star {number}" for number in range(60)]
        pq.write_table(pa.table(predicted | truth | {"star": stars}), folder / "predictions.parquet")
        scores = [{"name": "teff", "mae": teff_error, "standard_error": 1.0}]
        content = {"labels": scores, "groups": [], "measures": [], "spectra": 60, "stars": 60, "step": 1}
        (folder / "scores.json").write_text(json.dumps(content))
    assert marks(tmp_path, "AE (mix)") == ["stars", "stars", "", "", "", "", "", ""]
    assert marks(tmp_path, "CNN (mix)") == [""] * 8
    cell = tables.paper_tables(Evaluations(tmp_path, demo=False))[1].rows[3].cells[0]
    assert cell.measured == "**10.0 ± 1.0** ★"
    for name in ("cnn-mix", "ae-mix"):
        path = tmp_path / name / "evaluation/test-real/predictions.parquet"
        few = pa.array([f"star {min(number, 3)}" for number in range(60)])
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index("star"), "star", few), path)
    assert marks(tmp_path, "AE (mix)") == ["spectra", "spectra", "", "", "", "", "", ""]


def marks(runs, legend: str) -> list[str]:
    """What each cell of a row of Table 4 is marked with."""
    (row,) = (row for row in tables.paper_tables(Evaluations(runs, demo=False))[1].rows if row.legend == legend)
    return [cell.outperforms for cell in row.cells]


def test_speeds_stand_in_table_9_by_device(tmp_path):
    speed = InferenceSpeed(
        recipe="cnn-mix", legend="CNN (mix)", grid="harps", device="cpu", device_name="a CPU", threads=1, torch="2",
        batch=32, parameters=1_505_350, ms=40.0, ms_q25=39.0, ms_q75=41.0, repeats=3, peak_memory_mib=700.0,
    )  # fmt: skip
    gpu = replace(speed, device="cuda", device_name="a GPU", ms=0.2, peak_memory_mib=900.0)
    faster = [replace(one, ms=0.01, convolutions="channels-last", precision="bf16") for one in (speed, gpu)]
    table = tables.paper_tables(Evaluations(tmp_path, demo=False), [speed, gpu, *faster])[-1]
    (row,) = (row for row in table.rows if row.legend == "CNN (mix)")
    assert [cell.value for cell in row.cells] == pytest.approx([0.2, 40.0, 1.505350, 700.0, 900.0], abs=1e-9)
    assert [cell.printed[0] for cell in row.cells[:3]] == [0.190, 38.4, 1.5]
    assert "a CPU" in table.note
    assert "a GPU" in table.note
    assert [row.legend for row in table.rows if not np.isnan(row.cells[0].value)] == ["CNN (mix)"]


def of_known_stars(model: str, simulated: int) -> GenuineScores:
    """Two methods, three stars, of which the network flags one."""
    bias = {"network": (100.0, -50.0, 900.0), "fit": (20.0, -40.0, 30.0)}
    none = np.full(1, NAN)
    of_stars = tuple(
        star_score(f"TIC {star}", f"HD {star}", method, "teff", (5000.0, NAN), np.array([5000.0 + off]), none,
                   np.array([method == "network" and star == 2]), none)
        for method in bias for star, off in enumerate(bias[method])
    )  # fmt: skip
    of_methods = [method_score(of_stars, method, "teff", sample) for method in bias for sample in ("unflagged", "all")]
    return GenuineScores(
        command="", model=model, model_id="", stars="PackagedModel", grid="demo", device="a CPU", versions={},
        spectra=3, simulated=simulated, left_out={}, of_stars=of_stars, of_methods=tuple(of_methods),
    )  # fmt: skip


@pytest.mark.parametrize(("simulated", "title"), [(0, "Genuine spectra"), (3, "Spectra of known stars")])
def test_genuine_stars_stand_beside_the_printed_row(simulated, title, tiny_release, tmp_path):
    """Where a file of theirs lies among the runs; what is simulated is not called genuine."""
    release = Release(tiny_release)
    assert len(reproduce.reproduce(tmp_path, True, release).tables) == 10
    write_genuine(of_known_stars("cnn-mix", simulated), tmp_path / "genuine.json")
    made = reproduce.reproduce(tmp_path, True, release)
    table = made.tables[-1]
    assert (len(made.tables), table.title) == (11, f"{title}: errors over stars")
    assert table.columns == ["Teff [K]", "log g [dex]", "[M/H] [dex]", "rv [km/s]"]
    assert [row.legend for row in table.rows] == ["network (cnn-mix)", "fit", "CNN (ETC), printed"]
    network, fit, printed = (row.cells for row in table.rows)
    assert (network[0].value, network[0].spectra, network[0].stars) == (75.0, 2, 2)
    assert network[0].error == pytest.approx(25.0)
    assert (fit[0].value, fit[0].stars) == (30.0, 3)
    assert np.isnan(fit[1].value)
    assert [cell.value for cell in printed] == [273.1, 0.4994, 0.1222, 25.43]
    shown = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f'<a href="#{table.anchor}">{title}</a>' in shown
    assert "273.1 ± 4.2" in shown
    assert "3 spectra of 3 stars, " + ("simulated" if simulated else "genuine") in (tmp_path / "tables.md").read_text()
    (tmp_path / "genuine.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"genuine\.json is damaged"):
        reproduce.reproduce(tmp_path, True, release)
