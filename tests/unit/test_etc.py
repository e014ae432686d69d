"""Both generations of ETC output give the same record; whatever is wrong with a file is a refusal."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harps_dist.formats.etc import EtcRecord, read_etc
from harps_dist.formats.etc_json import parse_quickly
from harps_dist.formats.records import Reason, Refusal
from harps_dist.formats.sed import SedGrid
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.observation import fold_response
from harps_dist.spectra.regrid import regrid
from harps_dist.spectra.spline import cubic_spline
from preprocessing.etc import etc_response
from preprocessing.simulator.etc_files import write_etc
from preprocessing.simulator.instrument import observe
from tests.etc_runs import GENERATIONS, ORDERS, SETTINGS, edited, first_data, same, write_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with one run in both generations and its SED."""
    folder = tmp_path_factory.mktemp("etc")
    write_runs(folder)
    return folder


def refused(path: Path, reason: Reason, seds: Path | None = None) -> Refusal:
    got = read_etc(path, seds)
    assert isinstance(got, Refusal), got
    assert got.source == path.name
    assert got.reason == reason, got
    return got


@pytest.mark.parametrize("generation", GENERATIONS)
def test_record_is_what_was_simulated(run: Path, generation: str):
    record = read_etc(run / f"{generation}.json", run)
    assert isinstance(record, EtcRecord), record
    assert (record.etc_id, record.generation) == (generation, generation)
    assert (record.airmass, record.pwv_mm, record.mag, record.exptime_s) == (1.4, 6.5, 7.25, 600.0)
    assert (record.sed.teff_k, record.sed.logg, record.sed.mh, record.sed.vmic_kms) == (
        5432.0,
        4.3,
        -0.2,
        2.0,
    )
    grid = SedGrid.packaged()
    outputs = observe(grid.wave_aa, record.sed.flux, 1.4, 6.5, 7.25, 600.0, orders=ORDERS, fli=0.5, ndit=2)
    assert [order.order for order in record.orders] == list(ORDERS)
    for read, made in zip(record.orders, outputs, strict=True):
        for name in ("wave_aa", "target", "sky", "blaze", "dispersion_m_per_px"):
            np.testing.assert_allclose(getattr(read, name), getattr(made, name), rtol=1e-6, err_msg=name)
        scale = np.median(read.sed / made.sed)
        np.testing.assert_allclose(read.sed, scale * made.sed, rtol=1e-6)
        assert (read.detector, read.ron2, read.ndit, read.dit_s) == ("red", 36.0, 2, 300.0)
        assert read.readout_variance == pytest.approx(4 * 2 * (300 * made.dark + 36))


def test_both_generations_give_the_same_record(run: Path):
    old, new = (read_etc(run / f"{generation}.json", run) for generation in GENERATIONS)
    for a, b in zip(old.orders, new.orders, strict=True):
        for field in fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, str):
                assert x == y
            else:
                np.testing.assert_allclose(x, y, rtol=1e-6, err_msg=field.name)
    np.testing.assert_array_equal(old.sed.flux, new.sed.flux)
    assert (old.airmass, old.pwv_mm, old.mag, old.exptime_s) == (
        new.airmass,
        new.pwv_mm,
        new.mag,
        new.exptime_s,
    )


def test_throughput_divides_the_lines_out(run: Path):
    """T = target / sed is smooth where the atmosphere is, though the spectrum is full of lines."""
    for generation in GENERATIONS:
        order = read_etc(run / f"{generation}.json", run).orders[2]
        throughput = order.target / order.sed / order.blaze
        inside = (order.wave_aa > 6150) & (order.wave_aa < 6200)
        assert np.abs(np.diff(order.sed[inside])).max() / order.sed.max() > 0.01
        assert np.abs(np.diff(throughput[inside])).max() / throughput.max() < 2e-4


def test_gzip_and_file_stem(run: Path, tmp_path: Path):
    path = tmp_path / "run.v1.json.gz"
    path.write_bytes(gzip.compress((run / "2023.json").read_bytes()))
    record = read_etc(path, run)
    assert record.etc_id == "run.v1"
    np.testing.assert_array_equal(record.orders[0].target, read_etc(run / "2023.json", run).orders[0].target)


def test_older_run_keeps_its_own_sed_without_the_file(run: Path):
    record = read_etc(run / "2023.json")
    assert np.isnan(record.sed.teff_k)
    assert (np.diff(record.sed.wave_aa) > 0).all()
    assert record.sed.wave_aa[0] == pytest.approx(record.orders[0].wave_aa[0])
    assert record.sed.wave_aa[-1] == pytest.approx(record.orders[-1].wave_aa[-1])


def test_orders_come_sorted(run: Path, tmp_path: Path):
    path = edited(run, "2026", tmp_path, lambda document, orders: orders.reverse())
    assert [order.order for order in read_etc(path, run).orders] == list(ORDERS)


# --- refusals


def test_genuine_output_of_another_instrument(genuine_data):
    refusal = refused(genuine_data / "etc" / "crires2_output1.json.gz", Reason.WRONG_INSTRUMENT)
    assert "crires" in refusal.detail.lower()


def test_another_echelle_without_a_name(run: Path, tmp_path: Path):
    def edit(document, orders):
        document.pop("instrumentName")
        document["request"].pop("instrumentName")
        for entry in orders:
            entry["order"] += 20

    refused(edited(run, "2026", tmp_path, edit), Reason.WRONG_INSTRUMENT, run)


@pytest.mark.parametrize("text", ["", "{", "not json", "[1, 2]", "\xff\xfe"])
def test_not_json(tmp_path: Path, text: str):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    refused(path, Reason.NOT_JSON)


def test_unreadable(run: Path, tmp_path: Path):
    refused(tmp_path / "absent.json", Reason.UNREADABLE)
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress((run / "2023.json").read_bytes())[:5000])
    refused(path, Reason.TRUNCATED)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_missing_order(run: Path, tmp_path: Path, generation: str):
    refusal = refused(
        edited(run, generation, tmp_path, lambda document, orders: orders.pop(1)), Reason.MISSING_ORDER, run
    )
    assert "100" in refusal.detail


def test_no_order_at_all(run: Path, tmp_path: Path):
    refused(edited(run, "2026", tmp_path, lambda d, orders: orders.clear()), Reason.MISSING_ORDER, run)


def test_order_115_may_be_missing(tmp_path: Path):
    wave = np.arange(5200.0, 5450.0, 0.01)
    outputs = observe(wave, np.ones_like(wave), 1.4, 6.5, 7.25, 600.0, orders=(116, 114))
    write_etc(tmp_path / "gap.json", outputs, SETTINGS, "2023")
    record = read_etc(tmp_path / "gap.json")
    assert [(order.order, order.detector) for order in record.orders] == [(116, "blue"), (114, "red")]


def test_same_order_twice(run: Path, tmp_path: Path):
    refused(edited(run, "2026", tmp_path, lambda d, orders: orders.append(orders[0])), Reason.DUPLICATE, run)


@pytest.mark.parametrize("value", [0.0, -1e-12])
def test_zero_or_negative_dispersion(run: Path, tmp_path: Path, value: float):
    def edit(document, orders):
        first_data(orders)["dispersion"]["dispersion"]["data"][7] = value

    refused(edited(run, "2023", tmp_path, edit), Reason.ZERO_DISPERSION, run)


def test_newer_run_with_standing_wavelengths_has_zero_dispersion(run: Path, tmp_path: Path):
    def edit(document, orders):
        orders[0]["wavelength"][7:10] = [orders[0]["wavelength"][8]] * 3

    refused(edited(run, "2026", tmp_path, edit), Reason.ZERO_DISPERSION, run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "x"])
def test_array_with_a_value_that_is_no_number(run: Path, tmp_path: Path, value):
    def edit(document, orders):
        first_data(orders)["signals"]["obstarget"]["data"][7] = value

    refusal = refused(edited(run, "2023", tmp_path, edit), Reason.MISSING_FIELD, run)
    assert "target of order 101" in refusal.detail


@pytest.mark.parametrize(
    ("generation", "where"),
    [
        ("2023", "input"),
        ("2023", "input sky airmass"),
        ("2023", "input sky pwv"),
        ("2023", "input target brightness params mag"),
        ("2023", "input timesnr DET1.WIN1.UIT1"),
        ("2023", "data orders"),
        ("2023", "data orders 0 order"),
        ("2023", "data orders 0 detectors"),
        ("2023", "data orders 0 detectors 0 name"),
        ("2023", "data orders 0 detectors 0 data wavelength wavelength data"),
        ("2023", "data orders 0 detectors 0 data signals obssky"),
        ("2023", "data orders 0 detectors 0 data throughput blaze"),
        ("2023", "data orders 0 detectors 0 data dispersion"),
        ("2023", "data orders 0 detectors 0 data snr noise_components noise_info ron2"),
        ("2026", "request"),
        ("2026", "request sky waterVapour"),
        ("2026", "request target brightness mag"),
        ("2026", "data plots spectra"),
        ("2026", "data plots spectra 0 order"),
        ("2026", "data plots spectra 0 wavelength"),
        ("2026", "data plots spectra 0 noise_components target"),
        ("2026", "data plots spectra 0 noise_components noise_info nspat"),
        ("2026", "data plots spectra 0 plots throughput blaze"),
    ],
)
def test_missing_field(run: Path, tmp_path: Path, generation: str, where: str):
    *parents, last = where.split()

    def edit(document, orders):
        node = document
        for key in parents:
            node = node[int(key) if isinstance(node, list) else key]
        del node[last]

    refused(edited(run, generation, tmp_path, edit), Reason.MISSING_FIELD, run)


def test_arrays_of_other_lengths(run: Path, tmp_path: Path):
    path = edited(run, "2026", tmp_path, lambda d, orders: orders[1]["noise_components"]["sky"].pop())
    refused(path, Reason.LENGTH_MISMATCH, run)


def test_no_sed(run: Path, tmp_path: Path):
    refused(run / "2026.json", Reason.NO_SED)
    refused(run / "2026.json", Reason.NO_SED, tmp_path)  # a folder without the file
    path = edited(run, "2023", tmp_path, lambda d, orders: first_data(orders).pop("sed"))
    refused(path, Reason.NO_SED)
    assert isinstance(read_etc(path, run), EtcRecord)  # the file makes good for it


def test_damaged_sed_file(run: Path, tmp_path: Path):
    (tmp_path / "star.fits").write_text("not a FITS file")
    refusal = refused(run / "2026.json", Reason.NO_SED, tmp_path)
    assert "star.fits" in refusal.detail


def test_upload_name_never_leaves_the_folder(run: Path, tmp_path: Path):
    def edit(document, orders):
        document["request"]["target"]["sed"]["spectrum"]["params"]["filename"] = "../star.fits"

    path = edited(run, "2026", tmp_path, edit)
    (tmp_path / "inner").mkdir()
    (tmp_path / "star.fits").write_bytes((run / "star.fits").read_bytes())
    refused(path, Reason.NO_SED, tmp_path / "inner")


# --- the parser


def text_of(run: Path, edit=lambda document: None) -> str:
    document = json.loads((run / "2023.json").read_bytes())
    edit(document)
    return json.dumps(document)


def nan_in_what_is_not_read(document: dict) -> None:
    first_data(document["data"]["orders"])["snr"]["snr"]["data"][3] = float("nan")


def test_what_is_not_strictly_json_is_read_as_before(run: Path, tmp_path: Path):
    """NaN in a quantity that nobody reads, a byte order mark, UTF-16, a lone surrogate."""
    expected = read_etc(run / "2023.json", run)
    contents = {
        "nan": text_of(run, nan_in_what_is_not_read).encode(),
        "mark": text_of(run).encode("utf-8-sig"),
        "utf-16": text_of(run).encode("utf-16"),
        "surrogate": text_of(run, lambda document: document.update(note="\ud800")).encode(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_bytes(content)
        found = read_etc(tmp_path / f"{name}.json", run)
        assert isinstance(found, EtcRecord), (name, found)
        assert same(found, expected)


def test_of_a_key_that_stands_twice_the_last_counts(run: Path, tmp_path: Path):
    text = text_of(run).replace('"airmass": 1.4', '"airmass": 9.0, "airmass": 1.4')
    (tmp_path / "x.json").write_text(text)
    assert read_etc(tmp_path / "x.json", run).airmass == 1.4


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30), min_size=1))
def test_numbers_are_read_to_the_bit(numbers: list[float]):
    for text in (json.dumps(numbers), f"[{','.join(f'{float(number):.25e}' for number in numbers)}]"):
        expected, found = (np.array(load(text), np.float64) for load in (json.loads, orjson.loads))
        assert expected.tobytes() == found.tobytes()
        quick = parse_quickly(f'{{"data": {text}}}'.encode())
        assert quick is None or quick["data"].tobytes() == expected.tobytes()


def test_what_is_refused_as_json_is_said_in_the_same_words(tmp_path: Path):
    for name, text in {"cut": '{"a": [1, 2', "word": '{"a": nul}', "deep": "[" * 5000}.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises((ValueError, RecursionError)) as expected:
            json.loads(text)
        assert str(expected.value).rstrip(".") in refused(tmp_path / f"{name}.json", Reason.NOT_JSON).detail


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_spline_of_an_sed_is_made_once(run: Path, generation: str, monkeypatch):
    """It has hundreds of thousands of samples, and a full run 72 orders."""
    made = []

    def counted(*given):
        made.append(len(given[0]))
        return cubic_spline(*given)

    monkeypatch.setattr("harps_dist.formats.sed.repeated_spline", counted)
    assert isinstance(read_etc(run / f"{generation}.json", run), EtcRecord)
    assert len(made) == 1


@pytest.mark.parametrize("dark", [(), (1, 40, 41), range(2000)])
def test_an_order_is_folded_as_its_quantities_one_by_one(run: Path, dark):
    """Also where the blaze lets no light through, and the other quantities are there."""
    record, grid = read_etc(run / "2023.json", run), named_grid("demo")
    orders = list(record.orders)
    blaze = orders[1].blaze.copy()
    blaze[list(dark)] = 0.0
    orders[1] = replace(orders[1], blaze=blaze)
    record = replace(record, orders=tuple(orders))
    widest = max(order.dispersion_m_per_px.max() for order in orders)
    arrays = np.full((4, 2, grid.length), np.nan)
    for order in orders:
        light = np.where(order.blaze > 1e-6, order.blaze, np.nan) * order.dispersion_m_per_px / widest
        readout = np.full(order.wave_aa.size, order.readout_variance)
        for array, values in zip(arrays, (order.target / order.sed, light, order.sky, readout), strict=True):
            on_grid = regrid(order.wave_aa, values, grid)
            array[order.order % 2] = np.where(np.isfinite(on_grid), on_grid, array[order.order % 2])
    expected, found = fold_response(*((even, odd) for even, odd in arrays)), etc_response(record, grid)
    for name in ("mean", "variance", "floor"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
