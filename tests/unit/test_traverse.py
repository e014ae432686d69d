"""Traversals of a latent space and interventions on observed spectra."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from harps_dist.errors import ConfigError
from harps_dist.inference.traverse import nodes_of_file, traverse
from harps_dist.spectra.doppler import C_KMS
from tests.made_up_decoder import SMALL, TINY, node_of, simulator


def test_a_traversal_varies_one_node_and_holds_the_others(tmp_path):
    request = simulator().request({"teff": 5100.0}, unknown=[0.0, 1.0])
    found = traverse(simulator(), "logg", request, "a star", points=4)
    np.testing.assert_allclose(found.values, [3.5, 4.0, 4.5, 5.0])
    np.testing.assert_allclose(node_of(found.flux, "logg"), (found.values - 4.3) / 0.4, atol=1e-5)
    np.testing.assert_allclose(node_of(found.flux, "teff"), -0.5, atol=1e-5)
    np.testing.assert_allclose(node_of(found.flux, "u2"), 1.0, atol=1e-5)
    assert found.base_value == pytest.approx(4.3)
    assert found.expected is None
    table = found.write(tmp_path / "new/t.png")
    assert (tmp_path / "new/t.png").stat().st_size > 10_000
    read = np.genfromtxt(table, delimiter=",", skip_header=1)
    header = table.read_text().splitlines()[0].split(",")
    assert header == ["wave_aa", "base logg=4.3", "logg=3.5", "logg=4", "logg=4.5", "logg=5"]
    np.testing.assert_allclose(read[:, 2:].T, found.flux, atol=1e-6)


def test_unknown_factors_run_over_their_prior_or_a_given_span():
    request = simulator().request()
    np.testing.assert_allclose(traverse(simulator(), "u1", request, "", points=3).values, [-2, 0, 2])
    found = traverse(simulator(), "u2", request, "", points=2, span=(0.0, 3.0))
    np.testing.assert_allclose(node_of(found.flux, "u2"), [0, 3], atol=1e-5)


def test_the_velocitys_node_is_held_against_an_exact_shift():
    """This decoder's lines do not move at all: what it misses is all that is due."""
    found = traverse(simulator(), "rv", simulator().request({"rv": 10.0}), "a star", points=3)
    rest = SMALL.wave_aa / ((1 + 40 / C_KMS) / (1 + 10 / C_KMS))
    line = 1 - 0.5 * np.exp(-0.5 * ((rest - 6097.5) / 0.05) ** 2)
    near = np.abs(SMALL.wave_aa - 6097.5) < 1
    np.testing.assert_allclose(found.expected[2][near], line[near], atol=2e-5)
    assert np.abs(found.flux - found.base)[:, near].max() < 1e-6
    assert "dotted: shifted exactly" in found.headline
    assert found.columns().keys() >= {"expected rv=40", "rv=40", "base rv=10"}


def test_an_intervention_on_an_observed_spectrum_starts_from_its_own_nodes(tiny_demo):
    path = sorted((tiny_demo / "files/spectra").glob("*.fits"))[0]
    drawing = simulator(TINY)
    nodes, name = nodes_of_file(drawing, path)
    assert name == fits.getheader(path)["OBJECT"]
    found = traverse(drawing, "teff", nodes, name, points=2)
    np.testing.assert_allclose(node_of(found.base, "u1"), nodes[4], atol=1e-4)
    np.testing.assert_allclose(node_of(found.flux, "u1"), nodes[4], atol=1e-4)
    np.testing.assert_allclose(node_of(found.flux, "teff"), (np.array([4000, 7000]) - 5500) / 800, atol=1e-4)


def test_traversals_that_cannot_be_say_why(tmp_path):
    request = simulator().request()
    with pytest.raises(ConfigError, match="no node 'pwv'; it has rv, teff, logg, airmass, u1, u2"):
        traverse(simulator(), "pwv", request, "")
    with pytest.raises(ConfigError, match="at least 2 points"):
        traverse(simulator(), "rv", request, "", points=1)
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        traverse(simulator(), "rv", request, "").write(tmp_path / "a.pdf")
