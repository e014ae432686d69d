"""Line depths learned from genuine spectra of alpha Cen B and applied to HD189733: files in, corrections out."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import QTable

from harps_dist.fitting.files import fit_files
from harps_dist.fitting.fitter import Fitter
from harps_dist.fitting.lines import learn_from_files
from harps_dist.fitting.stellar import with_lines
from harps_dist.inference.sources import find_items, read_items

ALPHA_CEN_B = {"teff": 5207.0, "logg": 4.53, "mh": 0.24}


def beyond_noise(fitter: Fitter, files: list) -> np.ndarray:
    """(spectrum, 2) robust and plain rms of what is left where no telluric line absorbs, beyond the noise."""
    found = list(read_items(find_items(files)[0], fitter.grid, 0, errors=True))
    flux, sigma = (np.stack([getattr(one, name) for one in found]) for name in ("flux", "sigma"))
    level = np.median(flux, axis=1, keepdims=True)
    flux, sigma = flux / level, sigma / level
    fitted = fitter.fit(flux, sigma, [one.columns["berv_header"] for one in found])
    air = [fitted.solution.parameters[:, fitted.names.index(name)] for name in ("berv", "airmass", "pwv")]
    seen = fitter.observation.transmission(*air, False)[0].numpy()
    rows = []
    for off, noise, clear in zip(flux - fitted.solution.model.numpy(), sigma, seen > 0.995, strict=True):
        good = clear & np.isfinite(noise)
        robust = 1.4826 * np.median(np.abs(off[good])), np.median(noise[good])
        plain = np.sqrt(np.mean(off[good] ** 2)), np.sqrt(np.mean(noise[good] ** 2))
        rows.append([max(0.0, left**2 - of_noise**2) ** 0.5 for left, of_noise in (robust, plain)])
    return np.array(rows)


@pytest.fixture(scope="module")
def lines(genuine_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("genuine") / "lines.npz"
    report = learn_from_files([genuine_data / "harps/HARPS.2012*"], ALPHA_CEN_B, path)
    assert report.objects == ("HD128621",)
    assert report.learned.before > 0.01
    assert report.learned.after < 0.002
    assert path.stat().st_size < 70_000
    return path


def test_another_star_is_fitted_twice_as_well_and_read_right(lines, genuine_data, tmp_path):
    corrected, plain = Fitter(model=with_lines(None, lines)), Fitter()
    best = [genuine_data / "harps/HARPS.2006-09-08T02:12:38.604_s1d_A.fits.gz"]  # the visit of S/N 170
    before, after = (beyond_noise(fitter, best)[0] for fitter in (plain, corrected))
    assert (after < before / [2, 4]).all()
    fit_files(corrected, [genuine_data / "harps/HARPS.200[67]*"], tmp_path / "t.ecsv")
    table = QTable.read(tmp_path / "t.ecsv")
    assert set(table["object"]) == {"HD189733"}
    assert len(table) == 4
    assert (table["teff"].value > 5020).all()  # the literature: 5040 to 5108
    assert (table["teff"].value < 5110).all()
    assert (np.abs(table["mh"].value - 0.01) < 0.05).all()
    assert (np.abs(table["rv"].value + 2.0) < 0.1).all()
    assert table.meta["stellar_model"] == "PackagedModel"
    assert "HD128621, teff 5207 K" in table.meta["lines"]
