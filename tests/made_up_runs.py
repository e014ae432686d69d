"""Made-up evaluations, for what is drawn and tabulated from them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harps_dist.data.manifest import INDEX_COLUMNS, Index
from harps_dist.spectra.labels import EXTRINSIC, INTRINSIC


def write_run(runs, recipe: str, spectra: int) -> None:
    """Made-up evaluations of a run, as many columns as any has."""
    draw = np.random.default_rng(len(recipe))
    labels = (*INTRINSIC, *EXTRINSIC)
    for kind in ("real", "simulated", "generative"):
        folder = runs / recipe / "evaluation" / f"test-{kind}"
        folder.mkdir(parents=True)
        truth = {f"{name}_true": draw.uniform(4000, 6000, spectra) for name in labels}
        columns = {name: truth[f"{name}_true"] + draw.normal(0, 50, spectra) for name in labels}
        scores = {name: draw.gamma(2, 0.01, spectra) for name in ("MAE'", "RVIS", "GIS")}
        varied = np.resize(INTRINSIC, spectra) if kind == "generative" else np.full(spectra, "")
        star = [f"star {number // 3}" for number in range(spectra)]
        pq.write_table(
            pa.table(truth | columns | scores | {"varied": varied, "star": star}), folder / "predictions.parquet"
        )
        groups = [
            {"name": name, "nmae_paper": draw.uniform(), "standard_error_paper": 0.1}
            for name in ("intrinsic", "extrinsic")
        ]
        measures = [
            {"name": name, "value": 0.02, "standard_error": 0.001, "standard_error_stars": 0.003} for name in scores
        ]
        measures = [measure | {"count": spectra, "stars": 9} for measure in measures]
        content = {"labels": [], "groups": groups, "measures": measures, "spectra": spectra, "stars": 9, "step": 1}
        (folder / "scores.json").write_text(json.dumps(content))
        wave = np.linspace(6110, 6140, 400)
        spectrum = {"wave_aa": wave, "observed": 1 - np.exp(-((wave - 6122) ** 2)), "reconstructed": np.ones(400)}
        pq.write_table(pa.table(spectrum), folder / "spectrum.parquet")


def index_of(stars: int) -> Index:
    draw = np.random.default_rng(1)
    columns = {name: np.zeros(stars) for name in INDEX_COLUMNS}
    columns |= {"kind": np.full(stars, "real"), "star": np.arange(stars).astype(str), "split": np.full(stars, "train")}
    columns |= {
        "teff": draw.normal(5500, 500, stars),
        "logg": draw.normal(4.4, 0.2, stars),
        "mh": draw.normal(0, 0.2, stars),
    }
    columns["mh"][::2] = np.nan
    return Index(pa.table(columns))
