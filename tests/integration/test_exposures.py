"""One exposure comes in several forms; one of them stands."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from rich.console import Console

from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.formats.standing import exposures, standing
from harps_dist.spectra.grid import named_grid
from preprocessing.catalog import Catalog
from preprocessing.difference import compare_releases, difference_tables
from preprocessing.growth import grow
from preprocessing.ingest import ingest_spectra
from preprocessing.pack import pack
from preprocessing.rows import OTHER_FORM
from preprocessing.withdraw import withdraw_spectra

TINY = named_grid("tiny")


def another_form(source: Path, folder: Path, key: str, version: str, **cards: object) -> None:
    """The exposure of a Phase 3 file again, under another id and by another version of the pipeline."""
    folder.mkdir(exist_ok=True)
    with fits.open(source) as hdus:
        hdus[0].header.update({"ARCFILE": f"{key}.fits", "HIERARCH ESO DRS VERSION": version} | cards)
        for name in ("CHECKSUM", "DATASUM"):
            for hdu in hdus:
                hdu.header.remove(name, ignore_missing=True)
        hdus.writeto(folder / f"{key}.fits")


def as_image(source: Path, folder: Path) -> str:
    """The image that a Phase 3 product was made from; returns its id."""
    folder.mkdir(exist_ok=True)
    with fits.open(source) as hdus:
        header, rows = hdus[0].header, hdus[1].data
        wave, flux = np.asarray(rows["WAVE"][0], float), np.asarray(rows["FLUX"][0], float)
        key = header["ORIGFILE"].split("_DRS")[0]
        even = np.arange(wave[0], wave[-1], 0.01)
        image = fits.PrimaryHDU(np.interp(even, wave, flux).astype("f4"))
        kept = ("INSTRUME", "OBJECT", "RA", "DEC", "MJD-OBS", "DATE-OBS", "EXPTIME", "ORIGIN", "SNR")
        for card in header.cards:
            if card.keyword in kept:
                image.header.append(card, end=True)
            elif card.keyword.startswith("ESO "):
                image.header[f"HIERARCH {card.keyword}"] = card.value
        image.header.update({"CRVAL1": even[0], "CDELT1": 0.01, "CRPIX1": 1.0, "CTYPE1": "Angstrom"})
        image.writeto(folder / f"{key}.fits")
    return key


@pytest.fixture
def archive(tiny_demo, tmp_path) -> Path:
    """A copy of the demo's archive; beside it there may be made a folder `new`."""
    shutil.copytree(tiny_demo / "archive.zarr", tmp_path / "A.zarr")
    return tmp_path / "A.zarr"


@pytest.fixture
def files(tiny_demo) -> list[Path]:
    return sorted((tiny_demo / "files/spectra").glob("*.fits"))


def ingest(archive: Path, tiny_demo: Path) -> None:
    report = ingest_spectra(archive.parent / "new", archive, TINY, Catalog.read(tiny_demo / "files/catalog.csv"))
    assert not report.refused, report.refused


def standing_keys(archive: Path) -> set[str]:
    opened = Archive(archive)
    return set(opened.column("real", "key")[standing(opened).rows].tolist())


def test_an_exposure_is_a_start_of_a_star():
    second = 1 / 86_400
    targets = np.array(["b", "a", "a", "b", "a", "a", "a"], object)
    starts = np.array([1.0, 1.0, 1 + 0.4 * second, 1 + 0.3 * second, 1 + 30 * second, np.nan, np.nan])
    numbers = exposures(targets, starts)
    assert numbers[0] == numbers[3] != numbers[1] == numbers[2]
    assert len(set(numbers.tolist())) == 5
    assert exposures(targets[:0], starts[:0]).shape == (0,)


def test_the_newest_form_stands_and_the_others_are_told_of(archive, files, tiny_demo):
    everything = standing_keys(archive)
    image = as_image(files[0], archive.parent / "new")
    another_form(files[0], archive.parent / "new", "ADP.2001-01-01T00:00:00.001", "HARPS_3.4")
    ingest(archive, tiny_demo)
    found = standing(Archive(archive))
    assert standing_keys(archive) == everything  # the newest pipeline, then Phase 3
    assert found.other_forms == dict.fromkeys(("ADP.2001-01-01T00:00:00.001", image), files[0].stem)
    another_form(files[0], archive.parent / "new", "ADP.2030-01-01T00:00:00.001", "HARPS_3.10")
    ingest(archive, tiny_demo)
    assert standing_keys(archive) == everything - {files[0].stem} | {"ADP.2030-01-01T00:00:00.001"}
    manifest = pack(archive, archive.parent / "R")
    assert manifest.left_out[OTHER_FORM] == 3
    assert manifest.other_forms == standing(Archive(archive)).other_forms
    assert len(manifest.other_forms) == 3
    assert manifest.digest != manifest.model_copy(update={"other_forms": {}}).digest


def test_forms_that_never_stood_are_listed_by_diff(archive, files, tiny_demo):
    image = as_image(files[0], archive.parent / "new")
    ingest(archive, tiny_demo)
    grow(archive, tiny_demo / "release", archive.parent / "R", genuine=False)
    before, after = Release(tiny_demo / "release"), Release(archive.parent / "R")
    found = compare_releases(before, after)
    assert (found.added, found.replaced, found.other_forms) == ([], {}, {image: files[0].stem})
    said = io.StringIO()
    Console(file=said, width=200).print(*difference_tables(found))
    assert f"{image} of {files[0].stem}" in said.getvalue()
    with pytest.raises(ArchiveError, match="has nothing"):
        grow(archive, archive.parent / "R", archive.parent / "R2", genuine=False)


def test_visits_of_a_night_are_exposures_of_their_own(archive, files, tiny_demo):
    start = fits.getval(files[0], "MJD-OBS")
    another_form(
        files[0], archive.parent / "new", "ADP.2030-01-01T00:00:00.001", "HARPS_3.5", **{"MJD-OBS": start + 2e-4}
    )
    ingest(archive, tiny_demo)
    assert {files[0].stem, "ADP.2030-01-01T00:00:00.001"} <= standing_keys(archive)
    assert standing(Archive(archive)).other_forms == {}


def test_a_release_grows_by_the_newer_form_in_place_of_the_older(archive, files, tiny_demo):
    before = Release(tiny_demo / "release")
    another_form(files[0], archive.parent / "new", "ADP.2030-01-01T00:00:00.001", "HARPS_3.10")
    ingest(archive, tiny_demo)
    grow(archive, tiny_demo / "release", archive.parent / "R", genuine=False)
    after = Release(archive.parent / "R")
    found = compare_releases(before, after)
    assert found.replaced == {files[0].stem: "ADP.2030-01-01T00:00:00.001"}
    assert (found.added, found.gone, found.twice, found.sound) == ([], [], [], True)
    assert after.manifest.counts["real"] == before.manifest.counts["real"]


def test_who_withdraws_a_product_withdraws_its_exposure(archive, files, tiny_demo):
    image = as_image(files[0], archive.parent / "new")
    ingest(archive, tiny_demo)
    withdraw_spectra(archive, [files[0].stem], "another star in the slit")
    found = standing(Archive(archive))
    assert not {files[0].stem, image} & standing_keys(archive)
    assert found.withdrawn == dict.fromkeys((files[0].stem, image), "another star in the slit")
    another_form(files[0], archive.parent / "new", "ADP.2030-01-01T00:00:00.001", "HARPS_3.10")
    ingest(archive, tiny_demo)
    assert "ADP.2030-01-01T00:00:00.001" in standing_keys(archive)
