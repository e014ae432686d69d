"""Catalogues: formats, names, positions, and which labels a spectrum gets."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import example, given
from hypothesis import strategies as st

from harps_dist.formats.readers import find_spectra, read_spectrum
from harps_dist.formats.records import SpectrumRecord
from preprocessing.catalog import Catalog, normalise_name, resolve_target
from preprocessing.catalog_files import CatalogError

NAN = float("nan")
NAMELESS = SpectrumRecord(
    dp_id="ADP.x",
    instrument="harps",
    product="ADP",
    source="ADP.x.fits",
    object="",
    target_name="",
    ra_deg=NAN,
    dec_deg=NAN,
    mjd_obs=NAN,
    exptime_s=NAN,
    snr=NAN,
    berv_kms=NAN,
    airmass=NAN,
    prog_id="",
    origin="ESO",
    simulated="",
    pipeline="",
    radvel_guess_kms=NAN,
    wave_aa=np.arange(2.0),
    flux=np.ones(2, np.float32),
)


def named(name: str, target_name: str = "") -> SpectrumRecord:
    return replace(NAMELESS, object=name, target_name=target_name)


def placed(ra_deg: float, dec_deg: float, name: str = "") -> SpectrumRecord:
    return replace(NAMELESS, object=name, ra_deg=ra_deg, dec_deg=dec_deg)


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "spellings"),
    [
        ("HD128621", ["HD128621", "HD 128621", "HD-128621", "hd_128621", "HD  0128621", " HD128621 "]),
        ("GJ581", ["GJ 581", "Gl581", "GL581", "Gliese 581", "GJ-581", "gj_0581"]),
        (
            "ALFCENB",
            [
                "alf Cen B",
                "alpha Cen B",
                "Alpha-Cen-B",
                "alphaCenB",
                "* alf Cen B",
                "\u03b1 Cen B",
                "alp_cen_b",
            ],
        ),
        ("PI1ORI", ["* pi.01 Ori", "pi1 Ori", "PI 01 ORI"]),
        ("MUCAS", ["mu.Cas", "* mu. Cas", "\u00b5 Cas", "\u03bc Cas"]),
        ("BD+062932", ["BD+062932", "BD+06 2932", "BD+6 2932", "BD +06  2932", "BD+06_2932", "BD+06-2932"]),
        ("BD-01184", ["BD-010184", "BD-01 184", "BD\u22121 0184"]),
        ("CD-4512460", ["CD-4512460", "CoD-45 12460"]),
        ("101TAU", ["101Tau", "*  101 Tau", "101 tau"]),
        ("V645CEN", ["V* V645 Cen", "V645Cen"]),
        ("K2-55", ["K2-55", "K2 55", "k2_055"]),
        ("2MASSJ00123456-0123456", ["2MASS J00123456-0123456", "2massJ00123456-0123456"]),
        ("GJ876.1", ["GJ 876.1", "Gl 876.1"]),
        ("", ["", "  ", "***", "-_-"]),
    ],
)
def test_spellings_of_one_star(expected, spellings):
    assert {normalise_name(spelling) for spelling in spellings} == {expected}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("K2-55", "K25-5"),
        ("HD 26965A", "HD 26965B"),
        ("BD+06 2932", "BD-06 2932"),
        ("BD+01 11", "BD+11 1"),
        ("alf Cen A", "alf Cen B"),
        ("J0012+0034", "J012+00034"),
        ("HD 10", "HD 100"),
        ("GJ 876.1", "GJ 8761"),
        ("eta Cas", "tet Cas"),
    ],
)
def test_names_of_different_stars_stay_different(one, other):
    assert normalise_name(one) != normalise_name(other)


@given(st.text(max_size=20) | st.text(alphabet="BDCPGLJalphcen019 +-_.*", max_size=14))
@example("BD +- 06 2")
@example("B D+01 2")
@example("BD+006 2")
def test_normalising_twice_changes_nothing(name):
    once = normalise_name(name)
    assert normalise_name(once) == once


@given(st.text(alphabet="abdeghjlpTXZ0189 +-_.", max_size=16), st.data())
def test_case_does_not_count(name, data):
    flips = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    flipped = "".join(letter.swapcase() if flip else letter for letter, flip in zip(name, flips, strict=True))
    assert normalise_name(flipped) == normalise_name(name)


@given(
    st.sampled_from(["HD", "HIP", "GJ", "Gl", "HR", "WASP", "TOI", "Kepler", "TIC", "NGC", "EPIC"]),
    st.integers(1, 999_999),
    st.sampled_from(["", "A", "B"]),
    st.lists(st.text(alphabet=" _-", max_size=3), min_size=2, max_size=2),
    st.integers(0, 3),
)
def test_spaces_and_leading_zeros_do_not_count(survey, number, component, gaps, zeros):
    spelt = f"{survey}{gaps[0]}{'0' * zeros}{number}{gaps[1]}{component}"
    assert normalise_name(f" {spelt} ") == normalise_name(f"{survey}{number}{component}")


# --- genuine catalogues ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(genuine_data) -> list[SpectrumRecord]:
    return [read_spectrum(path) for path in find_spectra(genuine_data / "harps")]


def test_every_genuine_spectrum_gets_its_labels_and_gaps_stay_gaps(genuine_data, records):
    catalog = Catalog.read(genuine_data / "labels.csv")
    rows = {row["object"]: row for row in csv.DictReader((genuine_data / "labels.csv").open())}
    assert len(records) == 15
    for record in records:
        match = catalog.match(record)
        row = rows[record.object]
        expected = {"teff": row["teff"], "logg": row["logg"], "mh": row["mh"], "rv": row["rv_kms"]}
        assert match.labels == {name: float(value) for name, value in expected.items() if value}
        assert (match.by, match.out_of_range) == ("name", ())
    targets = {record.object: resolve_target(record, catalog.match(record)) for record in records}
    assert targets == {
        "HD128621": "HD128621",
        "HD189733": "TIC 256364928",
        "IC4651No9122": "IC4651NO9122",
        "Gl581": "GJ581",
        "Gl273": "GJ273",
    }
    assert "logg" not in catalog.match(named("Gl581")).labels
    assert catalog.match(named("alpha Cen B")).target_id == catalog.match(named("HIP 71681")).target_id == "HD128621"


def test_gr8_uses_its_spectroscopic_scale_and_knows_no_star_zero(genuine_data):
    catalog = Catalog.read(genuine_data / "catalogs" / "gr8.csv.gz")
    assert len(catalog) == 2858
    by_name = catalog.match(named("HD 189733"))
    assert by_name.labels == pytest.approx({"teff": 5108.0, "logg": 4.56, "mh": 0.06, "rv": -2.531722})
    for same in (named("TIC 256364928"), named("HIP98505"), placed(300.18213, 22.710854 + 4 / 3600)):
        assert catalog.match(same).target_id == by_name.target_id == "TIC 256364928"
    unknown = catalog.match(named("mu. Cas"))  # TIC number 0 in the file
    assert unknown.target_id == "MUCAS"
    assert catalog.match(named("70 Oph A")).target_id == "70OPHA"
    sed = Catalog.read(genuine_data / "catalogs" / "gr8.csv.gz", mapping={"teff": "teff_sed"})
    assert sed.match(named("HD 189733")).labels["teff"] == 5060.0


def test_gr8_matches_the_genuine_spectra_by_position_too(genuine_data, records):
    catalog = Catalog.read(genuine_data / "catalogs" / "gr8.csv.gz")
    found = [catalog.match(replace(record, object="", target_name="")) for record in records]
    assert [match.target_id if match else None for match in found] == [
        "TIC 256364928" if record.object == "HD189733" else None for record in records
    ]
    assert {match.by for match in found if match} == {"position"}


def test_gto_list_without_a_header(genuine_data):
    catalog = Catalog.read(genuine_data / "catalogs" / "harps_gto_star_list_1111.dat")
    assert len(catalog) == 1112
    assert catalog.match(named("BD+6 2932")).labels == {"teff": 5272.0, "logg": 4.43, "mh": -0.84}
    assert catalog.match(named("HIP 99606 B")).labels == {"teff": 5764.0, "logg": 4.19, "mh": -0.41}


def test_sweet_cat_with_sexagesimal_positions(genuine_data):
    catalog = Catalog.read(genuine_data / "catalogs" / "SWEETCAT_Dataframe.csv.gz")
    match = catalog.match(placed(185.17925, 17.79287))  # 12 20 43.02 +17 47 34.33
    assert (match.target_id, match.by) == ("11COM", "position")
    assert match.labels == {"teff": 4824.0, "logg": 2.53, "mh": -0.26}
    assert catalog.match(named("HD 107383")).target_id == "11COM"
    assert catalog.match(named("Gl 581")).labels == {"teff": 3367.0, "mh": -0.25}


# --- formats -----------------------------------------------------------------------------------------


def small_table() -> Table:
    return Table(
        {
            "ID": np.array([123, 456, 789]),
            "HIP": MaskedColumn([71681, 0, 98505], mask=[False, True, False]),
            "ra": [10.0, 20.0, 30.0],
            "dec": [-5.0, 0.0, 60.0],
            "Teff": MaskedColumn([5207.0, 0.0, 5108.0], mask=[False, True, False]),
            "logg": [4.53, 4.0, np.nan],
            "MH": [0.24, 0.1, 0.06],
        }
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tic.csv", {"format": "ascii.csv"}),
        ("tic.fits", {"format": "fits"}),
        ("tic.vot", {"format": "votable"}),
        ("tic.parquet", {}),
    ],
)
def test_a_tic_table_reads_the_same_from_every_format(tmp_path, name, options):
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        table = small_table()
        columns = {column: table[column].tolist() for column in table.colnames}  # None where masked
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
    else:
        small_table().write(tmp_path / name, **options)
    catalog = Catalog.read(tmp_path / name)
    assert catalog.target_ids == ["TIC 123", "TIC 456", "TIC 789"]
    first = catalog.match(named("HIP 71681"))
    assert (first.target_id, first.labels) == ("TIC 123", {"teff": 5207.0, "logg": 4.53, "mh": 0.24})
    second = catalog.match(named("tic-456"))
    assert (second.by, second.labels) == ("tic", {"logg": 4.0, "mh": 0.1})
    third = catalog.match(placed(30.0, 60.0))
    assert (third.by, third.labels) == ("position", {"teff": 5108.0, "mh": 0.06})


def test_names_survive_every_format(tmp_path):
    table = Table({"object": ["Gl 581", "HD 1"], "aliases": ["HO Lib;Wolf 562", ""], "rv": [-9200.0, 10.0]})
    table["rv"].unit = "m/s"
    table.write(tmp_path / "x.fits")
    table.write(tmp_path / "x.vot", format="votable")
    for path in (tmp_path / "x.fits", tmp_path / "x.vot"):
        match = Catalog.read(path).match(named("wolf562"))
        assert (match.target_id, match.labels) == ("GJ581", {"rv": pytest.approx(-9.2)})


def test_positions_of_2000_go_before_those_of_the_catalogues_epoch(tmp_path):
    (tmp_path / "x.csv").write_text("primary,teff,ra,dec,ra_j2000,dec_j2000\nHD1,5000,10.1,0.1,10,0\n")
    catalog = Catalog.read(tmp_path / "x.csv")
    assert catalog.match(placed(10.0, 0.0)).by == "position"
    assert catalog.match(placed(10.1, 0.1)) is None


def test_a_header_line_in_a_dat_file(tmp_path):
    (tmp_path / "x.dat").write_text("# by hand\nname teff logg\nHD1 5000 4.5\nHD2 6000 4.0\n")
    assert Catalog.read(tmp_path / "x.dat").match(named("HD 2")).labels == {"teff": 6000.0, "logg": 4.0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "colour,size\nred,1\n", "at least one of rv, teff"),
        ("x.csv", "object,size\nHD1,1\n", "at least one of rv, teff"),
        ("x.csv", "teff,logg\n5000,4\n", "expected names"),
        ("x.dat", "HD1 5000 4.5\n", "no header line"),
        ("x.fits", "no table", "cannot be read"),
        ("x.vot", "no table", "cannot be read"),
        ("x.parquet", "no table", "cannot be read"),
        ("x.xlsx", "", "ends in one of"),
    ],
)
def test_an_unusable_catalogue_says_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CatalogError, match=message):
        Catalog.read(tmp_path / name)


def test_absent_files_and_wrong_mappings_say_what_is_wrong(tmp_path):
    with pytest.raises(CatalogError, match="cannot be read"):
        Catalog.read(tmp_path / "absent.csv")
    (tmp_path / "x.csv").write_text("object,teff\nHD1,5000\n")
    with pytest.raises(CatalogError, match="temperature"):
        Catalog.read(tmp_path / "x.csv", mapping={"teff": "temperature"})
    with pytest.raises(CatalogError, match="gravity"):
        Catalog.read(tmp_path / "x.csv", mapping={"gravity": "teff"})


# --- matching ----------------------------------------------------------------------------------------


def test_order_is_tic_then_name_then_position():
    catalog = Catalog(
        {
            "object": ["HD 1", "HD 2", "HD 3"],
            "tic": ["11", "", "33"],
            "ra_deg": [29.98, 29.99, 30.0],  # near enough that no name contradicts the place
            "dec_deg": [0.0, 0.0, 0.0],
            "teff": [1001.0, 1002.0, 1003.0],
        }
    )
    everything = replace(NAMELESS, object="TIC 11", target_name="HD 2", ra_deg=30.0, dec_deg=0.0)
    matches = [
        catalog.match(record)
        for record in (
            everything,
            replace(everything, object="x 9"),
            replace(everything, object="", target_name=""),
        )
    ]
    assert [(match.by, match.target_id) for match in matches] == [
        ("tic", "TIC 11"),
        ("name", "HD2"),
        ("position", "TIC 33"),
    ]
    assert catalog.match(named("x 9")) is None


def test_position_takes_the_nearer_of_two_within_the_radius():
    columns = {
        "object": ["A 1", "B 2", "C 3"],
        "ra_deg": [180.0, 180.0, 0.0],
        "dec_deg": [0.0, 4 / 3600, 89.99999],
    }
    catalog = Catalog(columns)
    assert catalog.match(placed(180.0, 1.9 / 3600)).target_id == "A1"
    assert catalog.match(placed(180.0, 2.1 / 3600)).target_id == "B2"
    assert catalog.match(placed(180.0, -4.9 / 3600)).target_id == "A1"
    assert catalog.match(placed(180.0, -5.1 / 3600)) is None
    assert Catalog(columns, radius_arcsec=6.0).match(placed(180.0, -5.1 / 3600)).target_id == "A1"
    assert catalog.match(placed(180.0, 89.99999)).target_id == "C3"  # across the pole


def test_right_ascension_wraps():
    catalog = Catalog({"object": ["A 1"], "ra_deg": [359.9999], "dec_deg": [0.0]})
    assert catalog.match(placed(0.0001, 0.0)).target_id == "A1"


def test_unphysical_labels_are_left_missing_and_named():
    catalog = Catalog(
        {
            "object": ["HD 1"],
            "teff": [5.7],
            "logg": [-9999.0],
            "mh": [NAN],
            "rv": [2.5],
            "ra_deg": [NAN],
            "dec_deg": [NAN],
        }
    )
    match = catalog.match(named("HD 1"))
    assert match.labels == {"rv": 2.5}
    assert match.out_of_range == ("teff", "logg")


def test_a_name_two_stars_share_is_no_match_but_a_primary_name_beats_an_alias():
    catalog = Catalog(
        {"object": ["HD 1", "HD 2", "HD 3"], "aliases": ["HIP 9;HD 3", "HIP 9", ""], "teff": [1e3, 2e3, 3e3]}
    )
    assert catalog.match(named("HIP 9")) is None
    assert catalog.match(named("HD 3")).target_id == "HD3"


def test_extra_aliases():
    catalog = Catalog({"object": ["HD 128621"], "teff": [5207.0]}, aliases={"Toliman B": "HD128621", "x": "HD 7"})
    assert catalog.match(named("TOLIMAN_B")).target_id == "HD128621"
    assert catalog.match(named("x")) is None


def test_generic_names_match_nothing():
    catalog = Catalog({"object": ["STAR", "OBJECT 1", "12"], "teff": [5e3, 5e3, 5e3]})
    assert [catalog.match(named(name)) for name in ("Star", "object_1", "12", "")] == [None] * 4


def test_targets_without_a_match():
    assert resolve_target(named("hd 7", "other"), None) == "HD7"
    assert resolve_target(named("STAR", "Gl 9"), None) == "GJ9"
    assert resolve_target(named("TIC-0042"), None) == "TIC 42"
    assert resolve_target(placed(300.18213, 22.71085, "OBJECT"), None) == "J200044+224240"
    assert resolve_target(placed(300.18210, 22.71090), None) == "J200044+224240"
    assert resolve_target(placed(0.0, -0.5), None) == "J000000-003000"
    assert resolve_target(placed(359.9999, -60.99999), None) == "J000000-610000"
    assert resolve_target(NAMELESS, None) == "ADP.x"
