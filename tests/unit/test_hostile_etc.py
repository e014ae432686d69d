"""ETC runs with a number, a name or a structure that cannot be: each refused in one sentence, in time."""

from __future__ import annotations

import copy
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harps_dist.formats.archive import Archive
from harps_dist.formats.etc import EtcRecord, read_etc
from harps_dist.formats.records import Reason, Refusal
from harps_dist.formats.sed import SedGrid, write_sed
from harps_dist.spectra.grid import named_grid
from preprocessing.etc import ingest_etc
from preprocessing.simulator.etc_files import EtcSettings, write_etc
from preprocessing.simulator.instrument import observe

SETTINGS = EtcSettings("star.fits", airmass=1.4, pwv_mm=6.5, mag=7.25, exptime_s=600.0)
GENERATIONS = ("2023", "2026")
PIXELS = 24  # kept of an order, so that a document is small
SECONDS = 10.0  # of the processor

ODD: dict[str, Any] = {
    "NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf"), "1e308": 1e308, "400 digits": 10**400,
    "-400 digits": -(10**400), "true": True, "text": "12", "empty": "", "null": None, "list": [1.0], "object": {},
    "none": [], "-1": -1, "0": 0, "letters": "x" * 5000,
}  # fmt: skip
NUMBERS = {  # paths to numbers, and which of the odd ones these may be
    "2023": {
        ("input", "sky", "airmass"): (), ("input", "sky", "pwv"): ("0",),
        ("input", "target", "brightness", "params", "mag"): ("0", "-1"),
        ("input", "timesnr", "DET1.WIN1.UIT1"): (), ("input", "timesnr", "SEQ.NEXPO"): (),
    },
    "2026": {
        ("request", "sky", "airmass"): (), ("request", "sky", "waterVapour"): ("0",),
        ("request", "target", "brightness", "mag"): ("0", "-1"),
        ("request", "timesnr", "DET1.WIN1.UIT1"): (), ("request", "timesnr", "SEQ.NEXPO"): (),
    },
}  # fmt: skip
NOISE = {"nspat": (), "nspec": (), "ndit": (), "dit": (), "dark": ("0",), "ron2": ("0",)}
FIRST = {"2023": ("data", "orders", 0), "2026": ("data", "plots", "spectra", 0)}
DETECTOR = {"2023": (*FIRST["2023"], "detectors", 0, "data"), "2026": FIRST["2026"]}
ARRAYS = {
    "2023": [("wavelength", "wavelength", "data"), ("sed", "target", "data"), ("signals", "obstarget", "data"),
             ("signals", "obssky", "data"), ("throughput", "blaze", "data"), ("dispersion", "dispersion", "data")],
    "2026": [("wavelength",), ("noise_components", "target"), ("noise_components", "sky"),
             ("plots", "throughput", "blaze")],
}  # fmt: skip
for generation in GENERATIONS:
    noise = ("snr", "noise_components", "noise_info") if generation == "2023" else ("noise_components", "noise_info")
    for name, allowed in NOISE.items():
        NUMBERS[generation][(*DETECTOR[generation], *noise, name)] = allowed
PLACES = [(generation, path) for generation in GENERATIONS for path in NUMBERS[generation]]
LISTS = [(generation, (*DETECTOR[generation], *path)) for generation in GENERATIONS for path in ARRAYS[generation]]


def put(document: dict, path: tuple, value: Any) -> dict:
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def get(document: dict, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.fixture(scope="module")
def seds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seds")
    grid = SedGrid.packaged()
    write_sed(folder / "star.fits", grid.wave_aa, grid.sample(5000.0, 4.5, 0.0)[0], 5000.0, 4.5, 0.0, 2.0)
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> dict[str, dict]:
    """A run of either generation, of three orders and few pixels."""
    folder, grid = tmp_path_factory.mktemp("etc"), SedGrid.packaged()
    outputs = observe(grid.wave_aa, grid.sample(5000.0, 4.5, 0.0)[0], 1.4, 6.5, 7.25, 600.0, orders=(101, 100, 99))
    found = {}
    for generation in GENERATIONS:
        write_etc(folder / "x.json", outputs, SETTINGS, generation)
        found[generation] = _thinned(json.loads((folder / "x.json").read_text()))
    return found


def _thinned(node: Any) -> Any:
    if isinstance(node, list) and len(node) > 1000:
        return node[:: len(node) // PIXELS]
    if isinstance(node, dict):
        return {key: _thinned(value) for key, value in node.items()}
    return [_thinned(value) for value in node] if isinstance(node, list) else node


def read(tmp_path: Path, document: Any, seds: Path | None, name: str = "x.json") -> EtcRecord | Refusal:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    (tmp_path / name).write_bytes(content)
    begun = time.process_time()
    found = read_etc(tmp_path / name, seds)
    assert time.process_time() - begun < SECONDS
    if isinstance(found, Refusal):
        assert found.detail
        assert found.detail.isprintable()
        assert len(found.detail) <= 500
        assert found.reason != Reason.UNEXPECTED, found
    return found


def test_the_documents_are_good_as_they_are(documents, seds, tmp_path):
    for document in documents.values():
        assert isinstance(read(tmp_path, document, seds), EtcRecord)


@pytest.mark.parametrize(("generation", "path"), PLACES)
def test_a_number_that_cannot_be_is_refused(generation, path, documents, seds, tmp_path):
    for name, value in ODD.items():
        found = read(tmp_path, put(documents[generation], path, value), seds)
        good = name in NUMBERS[generation][path]
        assert isinstance(found, EtcRecord if good else Refusal), (name, found)
    text = json.dumps(put(documents[generation], path, "HERE")).replace('"HERE"', "1e400").encode()
    assert isinstance(read(tmp_path, text, seds), Refusal)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_order_that_cannot_be_is_refused(generation, documents, seds, tmp_path):
    path = (*FIRST[generation], "order")
    for name, value in (ODD | {"half": 101.5, "wide": "１０１", "signed": "+101", "many": "1" * 4000}).items():
        assert isinstance(read(tmp_path, put(documents[generation], path, value), seds), Refusal), name
    for value in (101, 101.0, "101"):
        assert isinstance(read(tmp_path, put(documents[generation], path, value), seds), EtcRecord)


@pytest.mark.parametrize(("generation", "path"), LISTS)
def test_an_array_with_a_value_that_cannot_be_is_refused(generation, path, documents, seds, tmp_path):
    good = get(documents[generation], path)
    for name, value in ODD.items():
        found = read(tmp_path, put(documents[generation], path, value), seds)
        told_otherwise = name == "null" and path[-2] in ("target", "dispersion")  # by the file, by the wavelengths
        assert isinstance(found, EtcRecord if told_otherwise else Refusal), (name, found)
        with_it = [*good[:5], value, *good[6:]]
        found = read(tmp_path, put(documents[generation], path, with_it), seds)
        dark = name == "0" and {"obstarget", "obssky", "blaze", "target", "sky"} & set(path) and "sed" not in path
        assert isinstance(found, EtcRecord if dark else Refusal), (name, found)
    for values in (good[:-1], [], [good], good * 5000):
        assert isinstance(read(tmp_path, put(documents[generation], path, values), seds), Refusal)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_any_part_of_another_kind_is_refused(generation, documents, seds, tmp_path):
    paths = [path[:length] for path in (*NUMBERS[generation], FIRST[generation]) for length in range(1, len(path))]
    for path in sorted(set(paths), key=str):
        for name, value in ODD.items():
            found = read(tmp_path, put(documents[generation], path, value), seds)
            assert isinstance(found, Refusal), (path, name)


SED_NAMES = (
    "x" * 5000,
    "../star.fits",
    "/etc/passwd",
    "a\0.fits",
    "..",
    ".",
    "",
    "\ud800.fits",
    "\x1b[2J.fits",
    "/" * 99,
)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_names_of_seds_lead_nowhere(generation, documents, seds, tmp_path):
    top = "input" if generation == "2023" else "request"
    path = (top, "target", "sed", "spectrum", "params", "filename")
    inner = seds / "inner"
    inner.mkdir(exist_ok=True)
    for name in SED_NAMES:
        found = read(tmp_path, put(documents[generation], path, name), inner)
        if generation == "2023":  # its output holds an SED
            assert isinstance(found, EtcRecord)
            assert np.isnan(found.sed.teff_k)
        else:
            assert found.reason == Reason.NO_SED
    names = ["nowhere.fits"] * 10_000
    assert isinstance(read(tmp_path, put(documents[generation], path, names), inner), Refusal)
    nested: Any = "nowhere.fits"
    for _ in range(300):
        nested = [nested]
    read(tmp_path, put(documents[generation], path, nested), inner)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b'{"data":{"orders":' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"data": {"plots": {"spectra": [' + b"{}," * 200_000 + b"{}]}}, " + b'"request": {}}',
        b'{"a": ' + b"9" * 10**6 + b"}",
        b'{"a": [' + b"0," * (25 * 10**6) + b"0]}",
        b"null",
        b"NaN",
        b'"' + b"x" * 10**6 + b'"',
        gzip.compress(bytes(300 * 2**20), 1),
        gzip.compress(b"{" + b" " * (300 * 2**20), 1),
    ],
    ids=["lists", "objects", "deep orders", "many orders", "digits", "array", "null", "NaN", "text", "zeros", "blanks"],
)
def test_structures_that_cannot_be_are_refused_in_time(content, seds, tmp_path):
    assert isinstance(read(tmp_path, content, seds), Refusal)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_raise(data, documents, seds, tmp_path):
    raw = bytearray(json.dumps(documents[data.draw(st.sampled_from(GENERATIONS))]).encode())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)):
        raw[place] = data.draw(st.sampled_from(b'0129.eE+-"[]{},: xN') | st.integers(0, 255))
    read(tmp_path, bytes(raw), seds)


def test_bad_runs_are_a_line_each_and_a_second_ingest_says_the_same(tiny_demo, tmp_path):
    """Beside good runs, in both generations, with names that no terminal should see."""
    runs, archive, grid = tmp_path / "etc", tmp_path / "a.zarr", named_grid("tiny")
    runs.mkdir()
    good = sorted((tiny_demo / "files/etc").glob("*.json"))
    for path in good:
        os.link(path, runs / path.name)
    bad = {
        "order.json": b'{"order": 1}',
        "esc\x1b[2J[bold].json": b"{",
        "new\nline.json": b"",
        os.fsdecode(b"\xff.json"): b"[" * 10**5,
        "zeros.json.gz": gzip.compress(bytes(10**6)),
    }
    for name, content in bad.items():
        (runs / name).write_bytes(content)
    os.mkfifo(runs / "pipe.json")
    (runs / "dangling.json").symlink_to("nowhere")
    (runs / "folder.json").mkdir()
    document = json.loads(good[0].read_text())
    airmass = ("input", "sky", "airmass")
    (runs / "airmass.json").write_text(json.dumps(put(document, airmass, 10**400)))
    blaze = (*DETECTOR["2023"], "throughput", "blaze", "data")
    faint = [1e-5 * value for value in get(document, blaze)]
    (runs / "faint.json").write_text(json.dumps(put(document, blaze, faint)))
    first = ingest_etc(runs, archive, grid, tiny_demo / "files/sed")
    lines = (tmp_path / "a.zarr.quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(first.refused)
    assert all(line.isprintable() for line in lines)
    assert "esc\\x1b[2J[bold].json" in "".join(lines)
    assert {refusal.source for refusal in first.refused} >= {"pipe.json", "dangling.json", "airmass.json", "\\xff.json"}
    again = ingest_etc(runs, archive, grid, tiny_demo / "files/sed")
    assert sorted(map(str, again.refused)) == sorted(map(str, first.refused))
    assert again.added == 0
    found = Archive(archive)
    assert set(found.column("response", "key")) >= {path.stem for path in good}
    for row in range(found.count("response")):
        terms = found.data("response", row)
        assert np.isfinite(terms).all()
        assert (terms > 0).all()
