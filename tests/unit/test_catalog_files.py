"""Catalogues as services and people write them: what is used, and that every other cell is counted with its reason."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import QTable

from preprocessing.catalog import Catalog
from preprocessing.catalog_files import CatalogError, column_lines, parse_columns
from tests.unit.test_catalog import named, placed


def catalog_of(tmp_path, text, name="c.csv", **options) -> Catalog:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Catalog.read(tmp_path / name, **options)


def counted(catalog: Catalog) -> dict[str, int]:
    return {why: count for why, count in catalog.counts.items() if count}


GTO = "# Name, RA, Dec, N_exp, SNR, Teff, logg, [M/H]\nHD30698,86.8,-51.1,5.0,640.0,5817.0,4.17,0.07\n"


@pytest.mark.parametrize("name", ["c.csv", "c.txt", "c.dat"])
def test_a_header_behind_a_hash_names_the_columns(name, tmp_path):
    text = GTO if name != "c.dat" else GTO.replace(", ", " ").replace(",", " ")
    catalog = catalog_of(tmp_path, text, name)
    assert catalog.match(named("HD 30698")).labels == {"teff": 5817.0, "logg": 4.17, "mh": 0.07}
    assert catalog.unused == ("N_exp", "SNR")


CDS_ABOVE = """Title: Parameters of stars
Table: Parameters
================================================================================
Byte-by-byte Description of file: table1.dat
--------------------------------------------------------------------------------
   Bytes Format Units   Label   Explanations
--------------------------------------------------------------------------------
"""
CDS_RULE = "-" * 80 + "\n"
CDS = f"""{CDS_ABOVE}   1-  8 A8     ---     Name    Name of the star
  10- 17 F8.4   deg     RAdeg   Right ascension
  19- 26 F8.4   deg     DEdeg   Declination
  28- 31 I4     K       Teff    ?=-999 Effective temperature
  33- 36 F4.2   [cm/s2] logg    ? Surface gravity
  38- 42 F5.2   [-]     [Fe/H]  Metallicity
  44- 51 F8.1   m/s     RV      ? Radial velocity
{CDS_RULE}HD 1461    4.6742  -8.0530 5765 4.38  0.19 -10086.0
HD 2071    6.1000 -53.9800 -999      -0.09
"""


@pytest.mark.parametrize("name", ["table1.txt", "table1.dat", "table1.csv"])
def test_a_table_of_cds_is_read_by_its_description(name, tmp_path):
    catalog = catalog_of(tmp_path, CDS, name)
    labels = catalog.match(named("HD 1461")).labels
    assert labels == {"teff": 5765.0, "logg": 4.38, "mh": 0.19, "rv": pytest.approx(-10.086)}
    assert catalog.match(named("HD 2071")).labels == {"mh": -0.09}
    assert catalog.match(placed(4.6742, -8.0530)).target_id == catalog.match(named("HD 1461")).target_id


def test_zeros_for_unknown_are_no_labels_and_are_counted(tmp_path):
    text = "Name,Teff,logg,[M/H],rv\nA 1,0.0,0.0,0.0,0.0\nB 2,5800,4.4,0.0,0.0\nC 3,5000,0.0,0.0,12\nD 4,0,4.1,0.1,7\n"
    catalog = catalog_of(tmp_path, text)
    assert catalog.match(named("A 1")).labels == {}
    assert catalog.match(named("B 2")).labels == {"teff": 5800, "logg": 4.4, "mh": 0, "rv": 0}
    assert catalog.match(named("C 3")).labels == {"teff": 5000, "rv": 12}
    assert catalog.match(named("D 4")).labels == {"rv": 7}
    zeros = "beside a temperature or gravity of 0, which stands for unknown"
    assert counted(catalog) == {
        "catalogue's teff out of physical range": 2,
        f"catalogue's logg {zeros}": 3,
        f"catalogue's mh {zeros}": 3,
        f"catalogue's rv {zeros}": 1,
    }


def test_marks_of_missing_are_no_labels_and_are_counted(tmp_path):
    text = (
        "name,teff,logg,mh,rv\n"
        "A 1,-9999,-9.99,-999,-999\nB 2,9999,4.4,99.9,99.9\nC 3,9999,n/a,,99.9\nD 4,6000,x,--,-99\n"
    )
    catalog = catalog_of(tmp_path, text)
    assert [catalog.match(named(name)).labels for name in ("A 1", "B 2", "C 3", "D 4")] == [
        {}, {"logg": 4.4}, {}, {"teff": 6000, "rv": -99},
    ]  # fmt: skip
    assert counted(catalog) == {
        "catalogue's logg no number": 1,
        "catalogue's teff out of physical range": 1,
        "catalogue's teff a mark of missing, such as -999": 2,
        "catalogue's logg out of physical range": 1,
        "catalogue's mh out of physical range": 2,
        "catalogue's rv a mark of missing, such as -999": 3,
    }
    assert catalog_of(tmp_path, "name,teff\nA 1,9999\nB 2,5000\n").match(named("A 1")).labels == {"teff": 9999}


def test_units_in_the_name_of_a_column_and_units_that_are_none(tmp_path):
    catalog = catalog_of(tmp_path, "Name,Teff [K],RV (m/s),[Fe/H]\nA 1,5000,200,-0.1\n")
    assert catalog.match(named("A 1")).labels == {"teff": 5000, "rv": pytest.approx(0.2), "mh": -0.1}
    catalog = catalog_of(tmp_path, "Name,Teff [mag],RV\nA 1,5000,3\nB 2,,4\n")
    assert catalog.match(named("A 1")).labels == {"rv": 3}
    assert counted(catalog) == {"catalogue's teff in mag, expected K": 1}
    QTable({"name": ["A 1"], "teff": [5000] * u.K, "rv": [200] * u.m / u.s}).write(tmp_path / "q.ecsv")
    assert Catalog.read(tmp_path / "q.ecsv").match(named("A 1")).labels["rv"] == pytest.approx(0.2)
    fields = [pa.field("name", pa.string()), pa.field("rv", pa.float64(), metadata={"unit": "m/s"})]
    pq.write_table(pa.table([["A 1"], [200.0]], schema=pa.schema(fields)), tmp_path / "q.parquet")
    assert Catalog.read(tmp_path / "q.parquet").match(named("A 1")).labels == {"rv": pytest.approx(0.2)}
    columns = {
        "object": ["A 1", "B 2"],
        "teff": np.ma.masked_array([5000.0, 1.0], [False, True]),
        "rv": [1, 2] * u.m / u.s,
    }
    assert Catalog(columns).match(named("A 1")).labels == {"teff": 5000, "rv": 0.001}
    assert Catalog(columns).match(named("B 2")).labels == {"rv": 0.002}


def test_vizier_s_separated_values(tmp_path):
    text = (
        "#\n#   VizieR Astronomical Server\n#Column\t_RAJ2000\t(F9.5)\t[ucd=pos.eq.ra]\n\n"
        "_RAJ2000\t_DEJ2000\tName\tTeff\tlogg\tRV\n"
        "\"h:m:s\"\t\"d:m:s\"\t \tK\t[cm/s2]\tm/s\n------\t------\t----\t-----\t----\t---\n"
        "12 20 43.02\t+17 47 34.33\t11 Com\t4824\t2.53\t43000\n00 00 01.0\t-00 30 00.0\tX 1\t\t\t\n"
    )  # fmt: skip
    catalog = catalog_of(tmp_path, text, "v.tsv")
    match = catalog.match(placed(185.17925, 17.79287))
    assert (match.target_id, match.labels) == ("11COM", {"teff": 4824, "logg": 2.53, "rv": pytest.approx(43)})
    assert catalog.match(placed(1 / 240, -0.5)).target_id == "X1"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("blank", ["", " ", "   "])
def test_an_empty_cell_shifts_no_other(mark, blank, tmp_path):
    rows = (
        ("Name", "Teff", "logg", "[Fe/H]", "RV"),
        ("HD 1", blank, "4.5", blank, "12.0"),
        ("HD 2", "5800", blank, blank, "13.0"),
        ("HD 3", blank, blank, "0.1", blank),
        ("HD 4", "5700"),  # a line that ends early
    )
    catalog = catalog_of(tmp_path, "\n".join(mark.join(row) for row in rows), "c.tsv")
    assert catalog.match(named("HD 1")).labels == {"logg": 4.5, "rv": 12.0}
    assert catalog.match(named("HD 2")).labels == {"teff": 5800.0, "rv": 13.0}
    assert catalog.match(named("HD 3")).labels == {"mh": 0.1}
    assert catalog.match(named("HD 4")).labels == {"teff": 5700.0}


def test_positions_in_hours_minutes_seconds_and_decimal_commas(tmp_path):
    text = (
        "Name;RA;Dec;Teff;[Fe/H]\n11 Com;12h20m43,02s;+17d47m34,33s;4824,5;-0,26\nB 2;12:20:43.02;-0:30:00;5000;0,1\n"
    )
    catalog = catalog_of(tmp_path, text)
    match = catalog.match(placed(185.17925, 17.79287))
    assert (match.target_id, match.labels) == ("11COM", {"teff": 4824.5, "mh": -0.26})
    assert catalog.match(placed(185.17925, -0.5)).target_id == "B2"
    catalog = catalog_of(tmp_path, "Name,ra [h],dec [deg],Teff\nA 1,12.0,5.0,5000\n")
    assert catalog.match(placed(180.0, 5.0)).target_id == "A1"


GAIA = (
    "source_id,ra,dec,ref_epoch,pmra,pmdec,radial_velocity,teff_gspphot,logg_gspphot,mh_gspphot,"
    "teff_gspspec,logg_gspspec,mh_gspspec,flags_gspspec\n"
    f"1000001,10,5,2016.0,1,1,3.5,5700,4.4,0.1,5750,4.5,0.2,{'0' * 13}{'9' * 28}\n"
    f"1000002,20,5,2016.0,1,1,,5701,4.41,0.11,5751,4.51,0.21,0009{'0' * 9}{'9' * 28}\n"
    "1000003,30,5,2016.0,1,1,,5702,4.42,0.12,,,,\n"
)


PARTS = """#\tVizieR
#
Name\tRAh\tRAm\tRAs\tDE-\tDEd\tDEm\tDEs\tTeff
 \th\tmin\ts\t \tdeg\tarcmin\tarcsec\tK
-----\t--\t--\t-----\t-\t--\t--\t----\t----
Alpha\t14\t39\t36.50\t-\t60\t50\t02.3\t5800
Beta\t00\t18\t41.9\t-\t00\t03\t10.9\t5700
Gamma\t20\t40\t02.6\t+\t29\t48\t00.0\t5600
Delta\t20\t40\t \t+\t29\t48\t00.0\t5500
Eps\t20\t61\t02.6\t+\t29\t48\t60.0\t5400
"""


def test_positions_in_columns_of_hours_minutes_and_seconds(tmp_path):
    """Also south of the equator by less than a degree, where the sign stands in a column of its own alone."""
    catalog = catalog_of(tmp_path, PARTS, "v.tsv")
    for ra_deg, dec_deg, teff in (
        (15 * (14 + 39 / 60 + 36.5 / 3600), -(60 + 50 / 60 + 2.3 / 3600), 5800.0),
        (15 * (18 / 60 + 41.9 / 3600), -(3 / 60 + 10.9 / 3600), 5700.0),
        (15 * (20 + 40 / 60 + 2.6 / 3600), 29.8, 5600.0),
    ):
        assert catalog.match(placed(ra_deg, dec_deg)).labels == {"teff": teff}
    assert catalog.match(placed(310.0, 29.8)) is None
    assert counted(catalog) == {
        "catalogue's RAh RAm RAs impossible": 1,
        "catalogue's DEd DEm DEs impossible": 1,
    }
    assert catalog.unused == ()


@pytest.mark.parametrize(
    ("parts", "dec_deg"),
    [
        ("-00\t12\t30", None),  # the whole numbers of a column have no sign of 0
        ("-01\t12\t30", -(1 + 12.5 / 60)),
        ("-00.0\t12\t30", -12.5 / 60),
        ("01\t12\t30", 1 + 12.5 / 60),
    ],
)
def test_the_sign_of_positions_that_have_no_column_of_signs(tmp_path, parts, dec_deg):
    catalog = catalog_of(
        tmp_path, f"Name\tRAh\tRAm\tRAs\tDEd\tDEm\tDEs\tTeff\nAlpha\t10\t0\t0\t{parts}\t5800\n", "v.tsv"
    )
    found = [catalog.match(placed(150.0, at)) for at in (-12.5 / 60, 12.5 / 60, -1 - 12.5 / 60, 1 + 12.5 / 60)]
    assert [match is not None for match in found] == [
        dec_deg is not None and np.isclose(dec_deg, at) for at in (-12.5 / 60, 12.5 / 60, -1 - 12.5 / 60, 1 + 12.5 / 60)
    ]
    assert counted(catalog) == ({} if dec_deg else {"catalogue's DEd DEm DEs 0 without a sign": 1})


@pytest.mark.parametrize(
    "parts",
    [
        "-01\t2\t3\t+\t5\t0\t0",
        "24\t0\t1\t+\t5\t0\t0",
        "1.5\t2\t3\t+\t5\t0\t0",
        "1\t2.5\t3\t+\t5\t0\t0",
        "1\t2\t60\t+\t5\t0\t0",
        "1\t2\t3\t+\t90\t0\t1",
        "1\t2\t3\t-\t5.5\t3\t0",
        "1\t2\t3\t+\t5\t-1\t0",
    ],
)
def test_impossible_parts_of_positions_are_counted_and_give_none(tmp_path, parts):
    names = "Name\tRAh\tRAm\tRAs\tDE-\tDEd\tDEm\tDEs\tTeff"
    catalog = catalog_of(tmp_path, f"{names}\nAlpha\t{parts}\t5800\nBeta\t1\t2\t3\t+\t90\t0\t0\t5700\n", "v.tsv")
    assert sum(counted(catalog).values()) == 1
    assert catalog.match(placed(15 * (1 + 2 / 60 + 3 / 3600), 90.0)).labels == {"teff": 5700.0}


CDS_PARTS = f"""{CDS_ABOVE}   1-  2 I2     h       RAh     Hour of right ascension (J2000)
   4-  9 F6.3   min     RAm     Minute of right ascension (J2000)
      11 A1     ---     DE-     Sign of the declination (J2000)
  12- 13 I2     deg     DEd     Degree of declination (J2000)
  15- 18 F4.1   arcmin  DEm     Arcminute of declination (J2000)
  20- 23 I4     K       Teff    Effective temperature
{CDS_RULE}14 39.608 -60 50.0 5800
00 18.698 -00 03.2 5700
20 40.043 +29 48.0 5600
"""


def test_a_table_of_cds_with_decimals_of_minutes(tmp_path):
    catalog = catalog_of(tmp_path, CDS_PARTS, "table1.dat")
    assert catalog.match(placed(15 * (14 + 39.608 / 60), -(60 + 50 / 60))).labels == {"teff": 5800.0}
    assert catalog.match(placed(15 * 18.698 / 60, -3.2 / 60)).labels == {"teff": 5700.0}
    assert catalog.match(placed(15 * (20 + 40.043 / 60), 29.8)).labels == {"teff": 5600.0}
    assert not counted(catalog)


def test_gaia_takes_a_star_s_labels_from_one_analysis_and_heeds_flags(tmp_path):
    catalog = catalog_of(tmp_path, GAIA)
    assert catalog.match(named("Gaia DR3 1000001")).labels == {"teff": 5750, "logg": 4.5, "mh": 0.2, "rv": 3.5}
    assert catalog.match(placed(20, 5)).labels == {"teff": 5701, "logg": 4.41, "mh": 0.11}
    assert catalog.match(placed(30, 5)).labels == {"teff": 5702, "logg": 4.42, "mh": 0.12}
    for name in ("teff", "logg", "mh"):
        assert catalog.counts[f"catalogue's {name}_gspspec flagged by flags_gspspec"] == 1
        assert catalog.counts[f"catalogue's {name}_gspphot of a star that has GSP-Spec's"] == 1
    asked = catalog_of(tmp_path, GAIA, mapping={"teff": "teff_gspphot"})
    assert asked.match(placed(10, 5)).labels["teff"] == 5700


@pytest.mark.parametrize(
    ("text", "name", "labels"),
    [
        ("main_id,ra,dec,pmra,pmdec,rvz_radvel,rvz_type,ids,mesfe_h.teff,mesfe_h.log_g,mesfe_h.fe_h\n"
         "* 11 Com,185.18,17.79,1,1,43.3,v,HD 107383|HIP 60202,4824,2.5,-0.2\n", "HIP 60202",
         {"teff": 4824, "logg": 2.5, "mh": -0.2, "rv": 43.3}),
        ("main_id,ra,dec,rvz_radvel,rvz_type,fe_h.teff,teff\nA 1,1,1,0.02,z,1,5000\n", "A 1", {"teff": 5000}),
        ("# This file was produced by the NASA Exoplanet Archive\n# COLUMN pl_name: Planet\npl_name,hostname,hd_name,"
         "default_flag,st_teff,st_met,st_logg,st_radv\nA b,11 Com,HD 107383,0,1111,1,1,1\n"
         "A b,11 Com,HD 107383,1,4824,-0.2,2.5,43\n", "HD 107383", {"teff": 4824, "logg": 2.5, "mh": -0.2, "rv": 43}),
        ("ID,ra,dec,HIP,GAIA,pmRA,pmDEC,Teff,e_Teff,logg,MH\n7,1,1,60202,12,0,0,4824,10,2.5,\n", "TIC 7",
         {"teff": 4824, "logg": 2.5}),
    ],
)  # fmt: skip
def test_simbad_nasa_and_tic(text, name, labels, tmp_path):
    assert catalog_of(tmp_path, text).match(named(name)).labels == labels


def test_columns_that_names_do_not_tell_are_mapped(tmp_path):
    text = "Star,Teff_spec,g\nA 1,5000,4\n"
    with pytest.raises(CatalogError, match="--columns teff=YOURS"):
        catalog_of(tmp_path, text)
    catalog = catalog_of(tmp_path, text, mapping=parse_columns("teff=Teff_spec, logg=g"))
    assert catalog.match(named("A 1")).labels == {"teff": 5000, "logg": 4}
    assert column_lines(catalog.used, catalog.unused) == [
        "catalogue: object from Star, teff from Teff_spec, logg from g"
    ]
    with pytest.raises(CatalogError, match="Correct --columns"):
        catalog_of(tmp_path, text, mapping=parse_columns("teff=Teff"))
    with pytest.raises(CatalogError, match="given as teff=YOURS"):
        parse_columns("teff")
    nameless = catalog_of(tmp_path, "ra,dec,who,teff\n1,2,A 1,5000\n")
    assert "no column of names" in column_lines(nameless.used, nameless.unused)[1]
    assert parse_columns("ra=X")["ra_deg"] == "X"


@pytest.mark.parametrize(
    ("header", "values", "errors"),
    [
        ("Name,teff,e_teff,logg,mh,rv_kms", "5207,80,4.5,0.2,-23", {"teff": 80.0}),
        ("Name,Teff,eTeff,Logg,eLogg,[Fe/H],e[Fe/H]", "5207,80,4.5,0.1,0.2,0.05",
         {"teff": 80.0, "logg": 0.1, "mh": 0.05}),
        ("primary,teff_paws,teff_error_paws,e_teff,radial_velocity,radial_velocity_error", "5207,80,9,-23,0.2",
         {"teff": 80.0, "rv": 0.2}),
        ("primary,teff_paws,e_teff,mh", "5207,80,0", {}),
        ("Name,rv_kms,e_rv", "-23,0.3", {"rv": 0.3}),
        ("Name,RV [m/s],e_RV [m/s],Teff [K],e_Teff", "-23000,300,5207,80", {"rv": 0.3, "teff": 80.0}),
        ("hostname,st_teff,st_tefferr1,st_tefferr2,st_met,st_meterr1", "5207,80,-80,0.2,", {"teff": 80.0}),
        ("Name,teff,e_teff,logg,e_logg,mh,e_mh", "5207,0,4.5,-0.1,0.2,?", {}),
    ],
)  # fmt: skip
def test_errors_of_labels_are_known_by_the_names_of_their_columns(header, values, errors, tmp_path):
    """What is not positive is no error; that of another scale is not taken."""
    catalog = catalog_of(tmp_path, f"{header}\nHD 1,{values}\n")
    found = catalog.match(named("HD 1"))
    assert found.errors == pytest.approx(errors)
    assert found.labels["rv" if "teff" not in found.labels else "teff"] in (5207, -23)


def test_errors_go_with_their_star(tmp_path):
    """Where rows are put into another order, and where a label cannot be."""
    text = "hostname,st_teff,st_tefferr1,default_flag\nHD 1,5000,50,0\nHD 1,5100,60,1\nHD 2,5,70,1\n"
    catalog = catalog_of(tmp_path, text)
    assert catalog.match(named("HD 1")).errors == {"teff": 60.0}
    assert catalog.match(named("HD 2")).errors == {}


@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_a_quote_without_an_end_swallows_no_rows(tmp_path, mark):
    rows = [f"S{row}{mark}{5000 + row}{mark}x" for row in range(6)]
    rows[1], rows[4] = f'S1{mark}5001{mark}"odd', f'S4{mark}5004{mark}odd"'
    with pytest.raises(CatalogError, match="expected 6 rows, one a line, got 3: a quote has no end"):
        catalog_of(tmp_path, "\n".join([f"name{mark}teff{mark}note", *rows]) + "\n")
