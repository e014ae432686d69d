"""The label table: what a spectrum can be labelled with, in which unit and range, and where from.

Tested in tests/integration/test_adding.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """One label.

    training: range kept for training (paper, Sect. 3.1; airmass: public code). physical: values outside are
    taken for errors of the catalogue and left missing. paper_mad: the divisor of the printed tables' NMAE.
    columns: what catalogues call it, in lower case and order of preference; none for a label that no catalogue gives.
    """

    name: str
    symbol: str
    unit: str
    training: tuple[float, float]
    physical: tuple[float, float]
    paper_mad: float | None
    meaning: str
    columns: tuple[str, ...] = ()


_INF = float("inf")
# Catalogues' columns are ours, then those of TIC, Gaia, VizieR, SWEET-Cat, GR8, the NASA Exoplanet Archive, SIMBAD. GR8
# has four temperature scales. Its `_paws` values come from one homogeneous analysis of high-resolution spectra; Gaia's
# and the SED's have other zero points, so a star without a `_paws` value stays without one.
LABELS = (  # stored in this order: a new label is the last
    Label(
        "rv", r"$v_\mathrm{rad}$", "km/s", (-_INF, _INF), (-1000.0, 1000.0), 15.64, "radial velocity",
        ("rv_kms", "rv", "radial_velocity", "rvel", "rvz_radvel", "st_radv"),
    ),
    Label("berv", "BERV", "km/s", (-_INF, _INF), (-35.0, 35.0), 11.26, "barycentric velocity of the Earth"),
    Label(
        "teff", r"$T_\mathrm{eff}$", "K", (3000.0, 11000.0), (1000.0, 100000.0), 401.2, "effective temperature",
        ("teff", "teff_k", "teff_paws", "st_teff", "mesfe_h.teff", "fe_h_teff", "teff_gspphot", "teff_gspspec"),
    ),
    Label(
        "mh", "[M/H]", "dex", (-1.2, 0.4), (-6.0, 2.0), 0.1855, "metallicity",
        (
            *("mh", "[m/h]", "m_h", "feh", "[fe/h]", "fe_h", "feh_paws", "st_met", "mesfe_h.fe_h", "fe_h_fe_h"),
            *("mh_gspphot", "mh_gspspec"),
        ),
    ),
    Label(
        "logg", r"$\log g$", "dex", (3.5, 5.0), (-2.0, 10.0), 0.1325, "surface gravity (cgs)",
        ("logg", "logg_paws", "log_g", "st_logg", "mesfe_h.log_g", "fe_h_log_g", "logg_gspphot", "logg_gspspec"),
    ),
    Label("airmass", "airmass", "", (1.0, 2.9), (1.0, 40.0), 0.1374, "airmass, mean over the exposure"),
    Label("pwv", "PWV", "mm", (-_INF, _INF), (0.0, 100.0), None, "precipitable water vapour"),
    Label("vmic", r"$v_\mathrm{mic}$", "km/s", (-_INF, _INF), (0.0, 50.0), None, "microturbulence"),
)  # fmt: skip
LABEL = {label.name: label for label in LABELS}
NAMES = tuple(LABEL)
SEVEN = ("rv", "berv", "teff", "mh", "logg", "airmass", "pwv")  # of the paper
SIX = ("rv", "berv", "teff", "mh", "logg", "airmass")
INTRINSIC = ("teff", "mh", "logg")
EXTRINSIC = ("rv", "berv", "airmass")
CATALOGUED = tuple(label.name for label in LABELS if label.columns)
