"""Tables of labels from which spectra are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from harps_dist.errors import ConfigError
from harps_dist.inference.label_table import read_request
from tests.made_up_decoder import simulator


def request_of(tmp_path: Path, text: str, name: str = "t.csv", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_request(tmp_path / name, simulator(), **options)


def test_a_table_gives_one_spectrum_a_row(tmp_path):
    text = "Object,TEFF,u2,snr,seed\nα Cen É,5000,0.5,100,11\nB,6000,-1,inf,12\n"
    request = request_of(tmp_path, text, fixed={"rv": 7.0})
    np.testing.assert_allclose(request.labels, [[7, 5000, 4.3, 1.5], [7, 6000, 4.3, 1.5]])
    np.testing.assert_allclose(request.unknown, [[0, 0.5], [0, -1]])
    assert request.snr.tolist() == [100.0, np.inf]
    assert request.seed.tolist() == [11, 12]
    assert request.names.tolist() == ["α Cen É", "B"]
    assert "logg" in request.notes[0]
    assert request_of(tmp_path, "teff\n5000\n5001\n", seed=4).seed.tolist() == [4, 5]


@pytest.mark.parametrize("ending", ["ecsv", "fits", "parquet", "vot"])
def test_other_forms_of_the_table_and_other_units(ending, tmp_path):
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"object": ["a", "b"], "rv": [-20.0, 30.0]}), path)
    else:
        table = Table({"object": ["a", "b"], "rv": [-20_000.0, 30_000.0]})
        table["rv"].unit = "m/s"
        table.write(path, format={"ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable"}[ending])
    request = read_request(path, simulator())
    np.testing.assert_allclose(request.labels[:, 0], [-20, 30])
    assert request.names.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teff,rv\n", "has no rows"),
        ("", r"cannot be read as \.csv|has no rows"),
        ("teff\n5000\nhot\n", r"t\.csv, row 2: teff is 'hot', expected a number"),
        ("teff,rv\n5000,1\n,2\n", "row 2: teff is nothing"),
        ("teff\n5000\nnan\n", "row 2: teff is nan"),
        ("teff\n5000\ninf\n", "row 2: teff is inf"),
        ("teff,snr\n5000,nan\n", "row 1: snr is nan"),
        (
            "teff,temperature,größe\n5000,1,2\n",
            "columns temperature, größe mean nothing to drawn, which knows rv, teff",
        ),
        ("teff,u3\n5000,1\n", "columns u3 mean nothing"),
        ("teff,seed\n5000,1.5\n", "seeds are whole numbers"),
        ("teff\n5000\n9000\n", r"teff = 9000 K \(row 2\) lies outside"),
        ("rv\n10\n", "rv is given for all rows, and table of labels .* has it too"),
    ],
)
def test_tables_that_cannot_be_used_say_why(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        request_of(tmp_path, text, fixed={"rv": 7.0})


def test_a_unit_that_is_none_of_the_labels_and_a_missing_table_are_refused(tmp_path):
    table = Table({"rv": [1.0]})
    table["rv"].unit = "K"
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    with pytest.raises(ConfigError, match="rv is in K, expected km/s"):
        read_request(tmp_path / "t.ecsv", simulator())
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_request(tmp_path / "none.csv", simulator())
    with pytest.raises(ConfigError, match="u is given for all rows"):
        request_of(tmp_path, "teff,u1\n5000,1\n", unknown="prior")
