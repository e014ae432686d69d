"""Tables in every form that people keep them in: names, units, masks and comments."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, QTable, Table, meta, serialize
from astropy.utils.data_info import serialize_context_as

from harps_dist.errors import ConfigError
from harps_dist.formats.tables import read_table
from harps_dist.formats.text_tables import COMMENTS
from harps_dist.inference.label_table import read_request
from tests.made_up_decoder import simulator


def read(path, text=None):
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return read_table(path, "table", ConfigError)


def astropy_parquet(table, path) -> None:
    """What `table.write(path)` writes where pandas is installed: units and what is masked in a header of its own."""
    with serialize_context_as("parquet"):
        plain = serialize.represent_mixins_as_columns(table)
    header = "\n".join(meta.get_yaml_from_table(plain))
    columns = pa.table({name: np.asarray(plain[name]) for name in plain.colnames})
    pq.write_table(columns.replace_schema_metadata({"table_meta_yaml": header}), path)


@pytest.mark.parametrize("key", ["unit", "units"])
def test_parquet_keeps_units_in_the_metadata_of_its_columns(key, tmp_path):
    field = pa.field("rv", pa.float64(), metadata={key: "m/s"})
    pq.write_table(pa.table([pa.array([-20_000.0, None])], schema=pa.schema([field])), tmp_path / "t.parquet")
    table = read(tmp_path / "t.parquet")
    assert table["rv"].unit == u.m / u.s
    assert table["rv"].mask.tolist() == [False, True]


def test_parquet_keeps_units_and_masks_as_astropy_writes_them(tmp_path):
    quantity = QTable({"object": ["a", "b"], "rv": [-20_000.0, 30_000.0] * u.m / u.s})
    astropy_parquet(quantity, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["rv"].unit == u.m / u.s
    np.testing.assert_allclose(read_request(tmp_path / "t.parquet", simulator()).labels[:, 0], [-20, 30])
    hidden = Table({"object": ["a", "b"], "rv": MaskedColumn([1.0, 2.0], mask=[False, True], unit="m/s")})
    astropy_parquet(hidden, tmp_path / "m.parquet")
    table = read(tmp_path / "m.parquet")
    assert table.colnames == ["object", "rv"]
    assert (table["rv"].unit, table["rv"].mask.tolist()) == (u.m / u.s, [False, True])
    with pytest.raises(ConfigError, match="row 2: rv is nothing"):
        read_request(tmp_path / "m.parquet", simulator())


def test_labels_to_simulate_keep_the_unit_of_a_field(tmp_path):
    field = pa.field("rv", pa.float64(), metadata={"unit": "m/s"})
    pq.write_table(pa.table([pa.array([-20_000.0])], schema=pa.schema([field])), tmp_path / "t.parquet")
    assert read_request(tmp_path / "t.parquet", simulator()).labels[0, 0] == -20


@pytest.mark.parametrize("ending", ["ecsv", "fits", "vot"])
def test_other_formats_keep_units_and_masks(ending, tmp_path):
    table = Table({"rv": MaskedColumn([1.0, 2.0], mask=[False, True], unit="m/s")})
    table.write(tmp_path / f"t.{ending}", format={"ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable"}[ending])
    found = read(tmp_path / f"t.{ending}")["rv"]
    assert (found.unit, np.ma.getmaskarray(found).tolist()) == (u.m / u.s, [False, True])


@pytest.mark.parametrize(
    "text",
    [
        "# Name, RA, Teff\nHD 1,86.8,5817.0\nHD 2,1,6000\n",
        "# made by hand\n# Name, RA, Teff\nHD 1,86.8,5817.0\nHD 2,1,6000\n",
        "# made, by, hand\nName,RA,Teff\nHD 1,86.8,5817.0\nHD 2,1,6000\n",
        "#COLUMN Name: of the star\n#\n\nName,RA,Teff\nHD 1,86.8,5817.0\n# HD 9,1,1\nHD 2,1,6000\n",
        "Name;RA;Teff\nHD 1;86,8;5817,0\nHD 2;1;6000\n",
        "Name\tRA\tTeff\r\nHD 1\t86.8\t5817.0\r\nHD 2\t1\t6000\r\n",
        "#Name\tRA\tTeff\nHD 1\t86.8\t5817.0\nHD 2\t1\t6000\n",
        "#INFO x\n\nName\tRA\tTeff\n \tdeg\tK\n----\t----\t----\nHD 1\t86.8\t5817.0\nHD 2\t1\t6000\n\n",
        "Name;RA;Teff\n ;deg;K\n----;----;----\nHD 1;86.8;5817.0\nHD 2;1;6000\n",
    ],
)
def test_texts_with_comments_headers_and_any_separator(text, tmp_path):
    table = read(tmp_path / "t.csv", text)
    assert table.colnames == ["Name", "RA", "Teff"]
    assert table["Name"].tolist() == ["HD 1", "HD 2"]
    assert [str(value).replace(",", ".") for value in table["RA"]] in (["86.8", "1.0"], ["86.8", "1"])
    assert table.meta[COMMENTS] == text.count("# HD 9")
    assert (table["Teff"].unit == u.K) == ("---" in text)


def test_several_tables_below_each_other_are_refused(tmp_path):
    one = "Name\tTeff\n \tK\n----\t----\nHD 1\t5817.0\n"
    with pytest.raises(ConfigError, match="expected one table"):
        read(tmp_path / "t.tsv", one + one)


def test_a_table_of_one_column_stays_one(tmp_path):
    assert read(tmp_path / "t.csv", "teff\n5000\n5100\n")["teff"].tolist() == [5000, 5100]
