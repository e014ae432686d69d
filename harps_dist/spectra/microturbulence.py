"""Microturbulence of dwarfs and subgiants as their other labels tell it.

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

SCATTER_KMS = 0.2  # of stars about the relation
TOO_HIGH_KMS = 2.0  # for dwarfs; what libraries of model spectra often have throughout
BIAS = "such lines make Sun-like stars up to 400 K too hot"
COLDEST_K = 5000.0  # colder stars have the microturbulence of such a one


def realistic_vmic(teff_k: float, logg: float, mh: float) -> float:
    """Microturbulence [km/s] by the relation of the Gaia-ESO survey (iDR1), as iSpec has it for dwarfs and subgiants
    (Blanco-Cuaresma et al. 2014, A&A 569, A111), without its term of [M/H] squared.

    teff_k [K], logg [dex, cm/s²], mh [dex]. Stars scatter about it by `SCATTER_KMS`.
    """
    warmer, lighter = max(teff_k, COLDEST_K) - 5500.0, logg - 4.0
    return 1.05 + 2.51e-4 * warmer + 1.5e-7 * warmer * warmer - 0.14 * lighter - 0.005 * lighter * lighter + 0.05 * mh
