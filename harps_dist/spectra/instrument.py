"""What is particular to a spectrograph: its lattice of wavelengths, what of it carries no light, its echelle orders.

Everything else asks these objects. A further instrument is one more of them, and a reader of its files.

Tested in tests/unit/test_grid.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harps_dist.errors import GridError


@dataclass(frozen=True)
class Instrument:
    """A spectrograph, as its reduced spectra show it.

    name: as it stands in archives and releases.
    keyword: INSTRUME of its files.
    origin_aa, step_aa: air wavelength of lattice pixel 0, and width of a pixel [Å]. All grids are runs of this lattice.
    data_pixels: pixels, from 0 on, that carry data.
    order_centre_aa: central wavelength of an echelle order times its number [Å].
    orders: numbers of the orders from blue to red.
    resolution: λ/Δλ.
    gap: lattice pixels [first, end) without data between the detectors, None where there are none.
    gap_edges_aa: first and last air wavelength [Å] of the zeros that files have in the gap, in the detector's frame.
    windows: named runs of the lattice, first pixel and length.
    changes_mjd: when the instrument became another one, such as by new fibres.
    pipelines_in_air: how the versions of pipelines begin whose wavelengths are in air, whatever the files say.
    """

    name: str
    keyword: str
    origin_aa: float
    step_aa: float
    data_pixels: int
    order_centre_aa: float
    orders: tuple[int, ...]
    resolution: float
    gap: tuple[int, int] | None = None
    gap_edges_aa: tuple[float, float] | None = None
    windows: dict[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    changes_mjd: tuple[float, ...] = ()
    pipelines_in_air: tuple[str, ...] = ()

    @property
    def origin_steps(self) -> int | float:
        """Wavelength of lattice pixel 0 in steps; a whole number where it is one to a millionth of a pixel."""
        steps = self.origin_aa / self.step_aa
        return round(steps) if abs(steps - round(steps)) < 1e-6 else steps

    def wave_aa(self, pixel: float) -> float:
        """Air wavelength of a lattice pixel [Å]."""
        return self.origin_aa + self.step_aa * pixel


HARPS = Instrument(
    name="harps",
    keyword="HARPS",
    origin_aa=3785.00,
    step_aa=0.01,
    data_pixels=312_501,  # 3785.00 .. 6910.00 Å
    order_centre_aa=611_400.0,
    orders=tuple(number for number in range(161, 88, -1) if number != 115),  # fibre A; 115 falls into the gap
    resolution=115_000.0,
    gap=(151_864, 155_305),  # 5303.64 .. 5338.04 Å, wide enough for any barycentric velocity
    gap_edges_aa=(5304.32, 5337.26),  # constant to 0.01 Å over 2003-2012
    windows={
        "harps": (-7_589, 327_680),
        "demo": (220_500, 32_768),  # 5990.00-6317.67 Å: RVIS range, Ca I 6122 and 6162, telluric O2 gamma
        "tiny": (231_000, 4_096),  # 6095.00-6135.95 Å: Ca I 6102 and 6122, for smoke tests
    },
    changes_mjd=(57171.0,),  # 2015-05-29, when the fibres were changed
    pipelines_in_air=("HARPS_", "EGGS_"),  # EGGS_3.5: the same pipeline's mode of lower resolution
)
# The mode of higher throughput: the same detectors and lattice, a wider fibre. Its spectra never mix with HARPS's.
EGGS = replace(HARPS, name="harps-eggs", resolution=80_000.0, windows={"eggs": HARPS.windows["harps"]})
# HARPS's twin at the TNG: one detector, so no gap and no order missing. Source: Cosentino et al. 2012.
HARPN = Instrument(
    name="harpn",
    keyword="HARPN",
    origin_aa=3835.00,
    step_aa=0.01,
    data_pixels=309_001,  # 3835.00 .. 6925.00 Å
    order_centre_aa=611_400.0,
    orders=tuple(range(157, 88, -1)),  # fibre A
    resolution=115_000.0,
    windows={"harpn": (-9_339, 327_680), "harpn-demo": (215_500, 32_768)},  # the second: 5990.00-6317.67 Å
    pipelines_in_air=("HARPN_",),
)
INSTRUMENTS = {instrument.name: instrument for instrument in (HARPS, EGGS, HARPN)}


def named_instrument(name: str) -> Instrument:
    """Look an instrument up by name; raises GridError with the known names."""
    try:
        return INSTRUMENTS[name]
    except KeyError:
        raise GridError(
            f"unknown instrument {name!r}; known are {', '.join(INSTRUMENTS)}. Update harps_dist."
        ) from None


def instrument_of(keyword: str) -> Instrument | None:
    """The instrument whose files have this INSTRUME, in its usual mode; None for one that is not known."""
    return next((instrument for instrument in INSTRUMENTS.values() if instrument.keyword == keyword), None)
