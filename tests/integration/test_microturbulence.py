"""Microturbulence from SED files to releases."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.data.reader import Release
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import NAMES
from preprocessing.etc import ingest_etc
from tests.commands import command, run

TINY = named_grid("tiny")
PREPROCESSING = "preprocessing/__main__.py"


@pytest.mark.parametrize("others", [2.0, 1.1])
def test_a_microturbulence_that_all_seds_share_is_said_and_kept(tiny_demo, tmp_path, others):
    shutil.copytree(tiny_demo / "files/sed", tmp_path / "sed")
    for number, path in enumerate(sorted((tmp_path / "sed").iterdir())):
        fits.setval(path, "VMIC", value=others if number else 2.0, ext=1)
    ingest_etc(tiny_demo / "files/etc", tmp_path / "a.zarr", TINY, tmp_path / "sed")
    words = command(PREPROCESSING, "pack", "--archive", tmp_path / "a.zarr", "--release", tmp_path / "R")
    told = "all simulated stars have a microturbulence of 2 km/s" in run(words, tmp_path)
    index = Release(tmp_path / "R").index
    vmic = index.labels[index.rows("simulated"), NAMES.index("vmic")]
    assert set(vmic.tolist()) == {2.0, others}
    assert (told, index.shared("vmic") == 2.0) == ((True, True) if others == 2.0 else (False, False))


def test_microturbulence_can_be_learned(tiny_release):
    release = Release(tiny_release)
    statistics, generative = release.manifest.label_statistics["vmic"], release.index.rows("generative")
    assert 0.5 < statistics.mean - statistics.std < statistics.mean < 2.5
    vmic = release.index["vmic"]
    assert np.isfinite(vmic[generative]).all()
    assert np.isnan(vmic[release.index.rows("real")]).all()
