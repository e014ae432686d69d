"""The label table: what a spectrum can be labelled with, in which unit and range, and where from."""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """One label.

    training: range kept for training (paper, Sect. 3.1; airmass: public code). physical: values outside are
    taken for errors of the catalogue and left missing. paper_mad: the divisor of the printed tables' NMAE.
    """

    name: str
    symbol: str
    unit: str
    training: tuple[float, float]
    physical: tuple[float, float]
    paper_mad: float | None
    source: str


_INF = float("inf")
LABELS = (
    Label("rv", r"$v_\mathrm{rad}$", "km/s", (-_INF, _INF), (-1000.0, 1000.0), 15.64, "catalogue; drawn for ETC"),
    Label("berv", "BERV", "km/s", (-_INF, _INF), (-35.0, 35.0), 11.26, "header"),
    Label("teff", r"$T_\mathrm{eff}$", "K", (3000.0, 11000.0), (1000.0, 100000.0), 401.2, "catalogue; SED"),
    Label("mh", "[M/H]", "dex", (-1.2, 0.4), (-6.0, 2.0), 0.1855, "catalogue; SED"),
    Label("logg", r"$\log g$", "dex", (3.5, 5.0), (-2.0, 10.0), 0.1325, "catalogue; SED"),
    Label("airmass", "airmass", "", (1.0, 2.9), (1.0, 40.0), 0.1374, "header; ETC request"),
    Label("pwv", "PWV", "mm", (-_INF, _INF), (0.0, 100.0), None, "ETC request"),
)
LABEL = {label.name: label for label in LABELS}
NAMES = tuple(LABEL)
SEVEN = NAMES
SIX = NAMES[:6]
INTRINSIC = ("teff", "mh", "logg")
EXTRINSIC = ("rv", "berv", "airmass")
