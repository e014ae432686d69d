"""config.json: what is written is read again, and what is wrong in it is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from harps_dist.errors import ExportError
from harps_dist.inference.description import (
    FORMAT,
    AnomalyFacts,
    Description,
    GridFacts,
    LabelFacts,
    from_json,
    to_json,
)
from harps_dist.sealed import sealed

LABEL = LabelFacts("teff", "K", 5500.0, 700.0, 4000.0, 8000.0, math.inf, (1.0, 2.5, math.inf), "demo", 18, 40)
ANOMALY = AnomalyFacts(9, 500, 1.7, (102, 101), 2.5, math.inf, 0.01, "demo and simulated", 30, 60)
WHOLE = Description(
    format=FORMAT,
    name="ae",
    step=7,
    model={"kind": "autoencoder", "labels": ["teff"], "width": 0.5},
    grid=GridFacts("tiny", 231_000, 4096, 6095.0, 0.01, "air", "barycentric", "harps"),
    labels=(LABEL,),
    levels=(0.68, 0.9, 0.95),
    uncertainty="residuals",
    likelihood="gaussian",
    anomaly=ANOMALY,
    snr_low=-math.inf,
    recipe_digest="r",
    release_digest="d",
    calibrated_on="d",
    provenance={"git": None, "versions": {"torch": "2"}},
    sha256={"model.safetensors": "0"},
)


def test_what_is_written_is_read_again():
    text = to_json(WHOLE)
    assert "Infinity" not in text  # strict JSON
    assert from_json(text, "x") == WHOLE
    assert from_json(to_json(replace(WHOLE, anomaly=None)), "x").anomaly is None
    missing = from_json(to_json(replace(WHOLE, snr_low=math.nan)), "x").snr_low
    assert math.isnan(missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this code knows {FORMAT}"),
        ({"step": "7"}, "x: step should be a whole number, got '7'"),
        ({"step": True}, "x: step should be a whole number"),
        ({"grid": {"name": "tiny"}}, "x: grid should be an object with"),
        ({"labels": {}}, "x: labels should be a list"),
        ({"labels": [{}]}, r"x: labels\[0\] should be an object with"),
        ({"uncertainty": "guess"}, "x: uncertainty should be one of head, spread, residuals, none"),
        ({"snr_low": "many"}, "x: snr_low should be a number"),
        ({"sha256": {"model.safetensors": 5}}, "x: sha256: model.safetensors should be a text"),
        ({"more": 1}, "x should be an object with"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ExportError, match=message):
        from_json(json.dumps(sealed(json.loads(to_json(WHOLE)) | change)), "x")


def test_what_was_edited_is_refused():
    content = json.loads(to_json(WHOLE))
    content["labels"][0]["high"] = 9000.0
    with pytest.raises(ExportError, match="x was edited or damaged: it states digest"):
        from_json(json.dumps(content), "x")
    del content["digest"]
    old_grid = {key: value for key, value in content["grid"].items() if key != "instrument"}
    with pytest.raises(ExportError, match="x was edited or damaged: it has no digest"):
        from_json(json.dumps(content), "x")
    assert (
        from_json(json.dumps(content | {"format": 1, "grid": old_grid}), "x").labels[0].high == 9000.0
    )  # as version 0.1 wrote it


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1', "[" * 100_000, '"' + "9" * 10_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ExportError, match="x"):
        from_json(text, "x")
