"""Tables, lists and settings that users give: whatever is wrong with them is a sentence, in time."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harps_dist.config import Engine, Training
from harps_dist.errors import ArchiveError, ConfigError, HarpsDistError
from harps_dist.formats.quarantine import FIELDS as QUARANTINE_FIELDS
from harps_dist.formats.quarantine import Quarantine, quarantine_path
from harps_dist.formats.records import Reason, Refusal, SpectrumRecord
from harps_dist.formats.tables import read_table
from harps_dist.inference.label_table import read_request
from harps_dist.promotion.gate import Gate, read_gate
from harps_dist.ranks.world import World
from harps_dist.spectra.quantities import in_range
from harps_dist.training.strategies.deepspeed import deepspeed_config
from preprocessing.catalog import Catalog
from preprocessing.catalog_files import CatalogError
from preprocessing.generative import ingest_generative, read_design
from preprocessing.ingest import _real_columns
from preprocessing.simulator.design import DESIGN, FIELDS
from preprocessing.withdraw import read_listed
from tests.made_up_decoder import simulator

DIGITS = "9" * 400
TEXTS = ("nan", "inf", "-inf", "1e308", "1e400", "-1e5", DIGITS, f"-{DIGITS}", "", "hot", "True", "--", "'", "1e999999")
SECONDS = 20.0  # of the processor


def record(**known) -> SpectrumRecord:
    nan = math.nan
    empty = np.empty(0, np.float32)
    found = dict.fromkeys(("mjd_obs", "exptime_s", "snr", "berv_kms", "airmass", "radvel_guess_kms"), nan)
    texts = dict.fromkeys(("dp_id", "product", "source", "object", "target_name", "prog_id", "pipeline"), "x")
    whole = {
        **texts,
        **found,
        "instrument": "harps",
        "ra_deg": nan,
        "dec_deg": nan,
        "wave_aa": empty,
        "flux": empty,
    } | known
    return SpectrumRecord(**whole)


# --- catalogue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["teff", "logg", "mh", "rv"])
@pytest.mark.parametrize("text", [*TEXTS, "0"])
def test_a_label_of_a_catalogue_is_in_range_or_missing_and_counted(label, text, tmp_path):
    (tmp_path / "c.csv").write_text(f"name,{label}\nHD 1,{text}\nHD 2,0.5\n")
    columns, counts = _real_columns(record(object="HD 1"), "x", Catalog.read(tmp_path / "c.csv"))
    assert math.isnan(columns[label]) or in_range(label, columns[label])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    lies_outside = not math.isnan(value) and not in_range(label, value)
    assert counts[f"{label} out of physical range"] == lies_outside
    assert counts[f"with {label}"] == (not math.isnan(columns[label]))


@pytest.mark.parametrize("axis", ["ra", "dec"])
@pytest.mark.parametrize("text", [*TEXTS, "-91", "361", "25:61:61", "1:2:" + DIGITS])
def test_a_position_of_a_catalogue_is_on_the_sky_or_missing_and_counted(axis, text, tmp_path):
    other = {"ra": "dec", "dec": "ra"}[axis]
    (tmp_path / "c.csv").write_text(f"{axis},{other},teff\n{text},10,5000\n20,20,5001\n")
    catalog = Catalog.read(tmp_path / "c.csv")
    assert catalog.match(record(object="", target_name="", ra_deg=20.0, dec_deg=20.0)).labels == {"teff": 5001.0}
    assert catalog.match(record(object="", target_name="", ra_deg=10.0, dec_deg=80.0)) is None
    try:
        lies_outside = not math.isnan(float(text)) and not in_range(axis, float(text))
    except ValueError:
        return  # no number, or sexagesimal
    assert catalog.counts[f"catalogue's {axis} out of physical range"] == lies_outside


HOSTILE = {
    "latin.csv": "größe,teff\nHD 1,5\n".encode("latin-1"),
    "columns.csv": b"a," * 5000 + b"b\n" + b"1," * 5000 + b"1\n",
    "zeros.csv.gz": gzip.compress(bytes(10**7)),
    "cut.csv.gz": gzip.compress(os.urandom(9999))[:500],
    "empty.csv": b"",
    "empty.fits": b"",
    "text.fits": b"name,teff\n",
    "text.parquet": b"name,teff\n",
    "magic.parquet": b"PAR1" + bytes(50) + b"PAR1",
    "text.vot": b"name,teff\n",
    "open.vot": b"<VOTABLE>" * 2000,
    "laughs.vot": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + k, b"&%c;" % (97 + k) * 10) for k in range(12))
    + b"]><VOTABLE><DESCRIPTION>&m;</DESCRIPTION></VOTABLE>",
    "rows.vot": b'<VOTABLE version="1.3"><RESOURCE><TABLE nrows="99999999999999"><FIELD name="teff" datatype="double" '
    b'arraysize="99999999999"/><DATA><TABLEDATA><TR><TD>1</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>',
    "text.ecsv": b"# %ECSV 1.0\n# ---\n# datatype: *nothing\nteff\n1\n",
    "type.ecsv": b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: teff, datatype: object}\nteff\n1\n",
    "ragged.dat": b"name teff\nHD1 5 6 7\n",
    "other.xlsx": b"PK",
}


@pytest.mark.parametrize(
    "name", [*HOSTILE, "pipe.csv", "folder.fits", "absent.csv", "\udcff\x1b[2J.csv", "x" * 300 + ".csv"]
)
@pytest.mark.timeout(60)
def test_a_table_that_cannot_be_used_is_a_sentence(name, tmp_path):
    if name in HOSTILE:
        (tmp_path / name).write_bytes(HOSTILE[name])
    elif name == "pipe.csv":
        os.mkfifo(tmp_path / name)
    elif name == "folder.fits":
        (tmp_path / name).mkdir()
    begun = time.process_time()
    with pytest.raises(CatalogError) as found:
        Catalog.read(tmp_path / name)
    with pytest.raises(ConfigError):
        read_request(tmp_path / name, simulator())
    assert time.process_time() - begun < SECONDS
    assert str(found.value).isprintable()


def test_a_parquet_table_that_unpacks_to_a_lot_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harps_dist.formats.tables.MAX_BYTES", 10**6)
    same = pa.array(["x" * 1000] * 10_000).dictionary_encode()
    pq.write_table(pa.table({"name": same.cast(pa.string())}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10**5
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        read_table(tmp_path / "t.parquet", "table", ConfigError)
    (tmp_path / "t.csv").write_bytes(b"teff\n" + b"1\n" * 10**6)
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        read_table(tmp_path / "t.csv", "table", ConfigError)


@pytest.mark.parametrize("name", [b"HD\x001", b"x" * 300_000, b'"HD 1', b"\x1b[2J"])
def test_odd_names_in_a_catalogue_harm_nobody(name, tmp_path):
    (tmp_path / "c.csv").write_bytes(b"name,teff\n" + name + b",5000\nHD 2,5001\nHD 3,5002\n")
    with contextlib.suppress(CatalogError):
        assert all(found.isprintable() for found in Catalog.read(tmp_path / "c.csv").target_ids)


def test_columns_of_several_values_a_row_are_refused(tmp_path):
    Table({"name": ["a"], "teff": [[1.0, 2.0]]}).write(tmp_path / "t.fits")
    with pytest.raises(CatalogError, match="one value a row"):
        Catalog.read(tmp_path / "t.fits")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300), ending=st.sampled_from(["csv", "ecsv", "fits", "vot", "parquet", "dat", "csv.gz"])
)
def test_any_bytes_make_a_catalogue_or_a_sentence(tmp_path, content, ending):
    (tmp_path / f"c.{ending}").write_bytes(b"name,teff\n" + content if ending == "csv" else content)
    with contextlib.suppress(CatalogError):
        Catalog.read(tmp_path / f"c.{ending}")


# --- labels to simulate ------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["teff", "rv", "logg", "u1", "snr", "seed"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_row_that_cannot_be_simulated_is_named(column, text, tmp_path):
    good = {"teff": "5000", "rv": "0", "logg": "4.3", "u1": "0", "snr": "100", "seed": "1"}[column]
    (tmp_path / "t.csv").write_text(f"{column},airmass\n{good},1.5\n{text},1.5\n")
    if (column, text) == ("seed", "-1e5") or (column == "snr" and text in ("inf", "1e400", "1e999999", DIGITS)):
        return  # a seed, and no noise
    with pytest.raises(ConfigError, match=r"row 2|seeds are whole numbers|mean nothing"):
        read_request(tmp_path / "t.csv", simulator(), extrapolate=True)


def test_objects_of_a_table_are_cleaned(tmp_path):
    (tmp_path / "t.csv").write_text('teff,object\n5000,"\x1b[2J[bold]"\n5000,' + "x" * 5000 + "\n")
    one, two = read_request(tmp_path / "t.csv", simulator()).names
    assert one == "\\x1b[2J[bold]"
    assert len(two) == 100


@pytest.mark.parametrize("given", [{"seed": 10**400}, {"seed": 1.5}, {"snr": 1e308}, {"unknown": [1e308, 0]}])
def test_what_is_given_for_all_rows_is_checked_too(given):
    with pytest.raises(ConfigError):
        simulator().request({"teff": 5000.0}, **given)


# --- designs, lists, quarantine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"sed,core\nx,y\n",
        "größe".encode("latin-1"),
        (",".join(FIELDS) + "\n").encode() + b'"' + b"x" * 200_000 + b'",a,teff,test,r\n',
        b"\0" * 100,
    ],
    ids=["empty", "columns", "latin", "field", "zeros"],
)
def test_a_design_that_is_none_is_a_sentence(content, tmp_path):
    (tmp_path / DESIGN).write_bytes(content)
    with pytest.raises(ArchiveError, match="design"):
        read_design(tmp_path / DESIGN)


@pytest.mark.parametrize("sed", ["../star.fits", "/etc/passwd", "", ".", "a/../../b.fits", "a\0b.fits", "x" * 9999])
def test_a_designs_seds_lie_below_it(sed, tiny_demo, tmp_path):
    import shutil

    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "a.zarr")
    (tmp_path / "inner").mkdir()
    shutil.copy(next((tiny_demo / "files/generative").glob("*.fits")), tmp_path / "star.fits")
    design = tmp_path / "inner" / DESIGN
    design.write_text(",".join(FIELDS) + f"\n{sed},000,teff,test,harps_00000\nshort\n,,,,,,,\n")
    from harps_dist.formats.archive import Archive

    report = ingest_generative(design, tmp_path / "a.zarr", Archive(tmp_path / "a.zarr").grid)
    assert (report.added, len(report.refused)) == (0, 3)
    assert report.refused[0].reason == Reason.NO_SED


@pytest.mark.parametrize(
    "content",
    [
        b"source,reason\nx,vacuum\n",
        b"source,reason,detail\nx,no_such_reason,y\n",
        b"source,reason,detail\nx\n",
        b"source,reason,detail\nx,vacuum,y,z\n",
        b"\xff\xfe\x00",
        b'source,reason,detail\n"' + b"x" * 200_000 + b'",vacuum,y\n',
        b"",
    ],
)
def test_a_quarantine_list_of_others_is_a_sentence(content, tmp_path):
    archive = tmp_path / "a.zarr"
    quarantine_path(archive).write_bytes(content)
    with pytest.raises(ArchiveError, match=r"quarantine list.* (Move it away|Give a text file)"):
        Quarantine(archive)


def test_a_quarantine_list_holds_any_name_on_one_line(tmp_path):
    listed = Quarantine(tmp_path / "a.zarr")
    listed.update(
        [Refusal('a,"b"', Reason.VACUUM, "one\ntwo\x1b[2J"), Refusal("[bold]", Reason.UNEXPECTED, "x" * 9999)]
    )
    assert QUARANTINE_FIELDS == ("source", "reason", "detail")
    assert len(listed.path.read_text().splitlines()) == 3
    assert {refusal.source for refusal in Quarantine(tmp_path / "a.zarr").refused} == {'a,"b"', "[bold]"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "read", [read_gate, read_listed, lambda path: settings_of(path)], ids=["gate", "list", "engine"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "absent", "latin", "large", "device"])
def test_settings_that_are_no_text_are_a_sentence(read, kind, tmp_path):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind != "absent":
        path.write_bytes("größe".encode("latin-1") if kind == "latin" else b" " * 2**27)
    with pytest.raises(HarpsDistError, match=r"Give|Write"):
        read(path)


def settings_of(path: Path) -> dict:
    engine = Engine(strategy="deepspeed", deepspeed_config=str(path))
    return deepspeed_config(torch.nn.Linear(2, 2), Training(), engine, World.alone())


@pytest.mark.parametrize(
    "text",
    ["[]", "1", '"x"', "{", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e400}', f'{{"a": [{DIGITS}]}}', "[" * 10**5,
     '{"a": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_settings_of_deepspeed_that_cannot_be_are_a_sentence(text, tmp_path):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ConfigError, match=r"d\.json"):
        settings_of(tmp_path / "d.json")
    (tmp_path / "d.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "x": 1}))
    assert settings_of(tmp_path / "d.json")["zero_optimization"]["stage"] == 2


BOMB = "a: &a [x, x]\n" + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{f'*{chr(97 + k)}, ' * 9}]\n" for k in range(20))


@pytest.mark.parametrize(
    "text",
    ["slower: .inf", "slower: .nan", f"slower: {DIGITS}", "slower: -1", "slower: 1e400", "slower: x", "[1, 2]", "x",
     "lines: [{measure: teff, relative: .inf}]", "lines: [{measure: teff, most: .nan}]", "lines: 5", "1: 2", "\0",
     "[" * 5000, "slower: 2001-99-99", "failed_predictions: .nan", BOMB, "!!python/object:os.system x"],
    ids=range(18),
)  # fmt: skip
def test_a_gate_that_cannot_be_is_a_sentence(text, tmp_path):
    (tmp_path / "gate.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(ConfigError, match=r"gate .*gate\.yaml"):
        read_gate(tmp_path / "gate.yaml")
    assert time.process_time() - begun < SECONDS
    assert isinstance(read_gate(None), Gate)
