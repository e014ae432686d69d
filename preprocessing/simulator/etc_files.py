"""Write simulated exposures in the two JSON generations of ESO's ETC 2.0, as `harps_dist.formats.etc` reads them.

No genuine HARPS output could be had; the nesting follows the generations' public descriptions and the genuine
request forms. The files say that they are simulated.

Tested in tests/unit/test_etc.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from harps_dist.files import atomic_write
from preprocessing.simulator.instrument import OrderOutput

Generation = Literal["2023", "2026"]
_LOWEST_POWER = -290
_POWERS = np.array([float(f"1e{power}") for power in range(_LOWEST_POWER, 301)])  # correctly rounded
ORIGIN = "harps_dist simulator, format of ESO ETC 2.0; not an ESO product"


@dataclass(frozen=True)
class EtcSettings:
    """What was asked of the calculator. sed_name: file name of the uploaded SED, e.g. 'sed_00012.fits'."""

    sed_name: str
    airmass: float
    pwv_mm: float
    mag: float
    exptime_s: float
    fli: float = 0.0


def write_etc(path: Path, outputs: Sequence[OrderOutput], settings: EtcSettings, generation: Generation) -> None:
    """Write one run; `path` may end in .json or .json.gz. Values are rounded to 8 significant digits."""
    document = _older(outputs, settings) if generation == "2023" else _newer(outputs, settings)
    text = json.dumps(document, separators=(",", ":")).encode()
    path = Path(path)
    if path.suffix == ".gz":
        text = gzip.compress(text, compresslevel=5, mtime=0)  # no time stamp: same run, same bytes
    with atomic_write(path) as aside:
        aside.write_bytes(text)


def _numbers(values: np.ndarray, digits: int = 8) -> list[float]:
    """Rounded to significant digits, far quicker than formatting each value."""
    values = np.asarray(values, np.float64)
    magnitude = np.searchsorted(_POWERS, np.where(values == 0, 1.0, np.abs(values)), side="right") - 1 + _LOWEST_POWER
    # Powers of ten up to 1e22 are exact, so divide by them rather than multiply by an inexact 1e-k.
    power = digits - 1 - magnitude
    scale = _POWERS[np.abs(power) - _LOWEST_POWER]
    up = np.round(np.where(power >= 0, values * scale, values / scale))
    return np.where(power >= 0, up / scale, up * scale).tolist()


def _series(values: np.ndarray, digits: int = 8) -> dict:
    return {"arraylength": len(values), "data": _numbers(values, digits)}


def _noise_info(output: OrderOutput) -> dict:
    return {
        "nspat": output.nspat,
        "nspec": output.nspec,
        "ndit": output.ndit,
        "dit": output.dit_s,
        "dark": output.dark,
        "ron2": output.ron * output.ron,
    }


def _timing(outputs: Sequence[OrderOutput]) -> dict:
    return {"mode": "nexp", "DET1.WIN1.UIT1": outputs[0].dit_s, "SEQ.NEXPO": outputs[0].ndit}


def _sed_request(settings: EtcSettings) -> dict:
    spectrum = {"spectrumtype": "upload", "params": {"filename": settings.sed_name}}
    return {"sedtype": "spectrum", "spectrum": spectrum, "extinctionav": 0}


def _older(outputs: Sequence[OrderOutput], settings: EtcSettings) -> dict:
    """Orders hold detectors hold named quantities, each with its data; the request is echoed as `input`."""
    orders = []
    for output in outputs:
        data = {
            "wavelength": {"wavelength": _series(output.wave_aa * 1e-10, digits=12)},
            "sed": {"target": _series(output.sed)},
            "signals": {"obstarget": _series(output.target), "obssky": _series(output.sky)},
            "throughput": {
                "blaze": _series(output.blaze),
                "atmosphere": _series(output.atmosphere),
                "fibinj": _series(output.fibinj),
                "totalinclsky": _series(output.throughput_total),
            },
            "dispersion": {"dispersion": _series(output.dispersion_m_per_px)},
            "snr": {
                "snr": _series(output.snr),
                "noise_components": {"noise_info": _noise_info(output)},
            },
        }
        detectors = [{"name": output.detector, "data": data}]
        orders.append({"order": str(output.order), "detectors": detectors})
    request = {
        "application": {"version": "P112", "instrument": "harps"},
        "target": {
            "morphology": {"morphologytype": "point"},
            "sed": _sed_request(settings),
            "brightness": {
                "brightnesstype": "mag",
                "params": {"magband": "V", "mag": settings.mag, "magsys": "vega"},
            },
        },
        "timesnr": _timing(outputs),
        "sky": {"airmass": settings.airmass, "moon_fli": settings.fli, "pwv": settings.pwv_mm},
        "instrument": {
            "harps": {"mode": "ham", "order": [output.order for output in outputs], "isActive": True},
            "driver": "harps",
        },
    }
    application = {"app": "Harps", "module": "Harps", "version": "P112", "origin": ORIGIN}
    return {"application": application, "success": True, "input": request, "data": {"orders": orders}}


def _newer(outputs: Sequence[OrderOutput], settings: EtcSettings) -> dict:
    """A flat list of spectra, without SED and dispersion; the request is echoed as `request`."""
    spectra = []
    for output in outputs:
        info = _noise_info(output)
        pixels = info["nspat"] * info["nspec"] * info["ndit"]
        spectra.append(
            {
                "order": output.order,
                "detector_name": output.detector,
                # In full: their difference is all that tells the dispersion.
                "wavelength": (output.wave_aa * 1e-10).tolist(),
                "noise_components": {
                    "target": _numbers(output.target),
                    "sky": _numbers(output.sky),
                    "noise_terms": {
                        "ron": pixels * info["ron2"],
                        "dark": pixels * info["dit"] * info["dark"],
                    },
                    "noise_info": info,
                },
                "plots": {
                    "throughput": {
                        "blaze": _numbers(output.blaze),
                        "atmosphere": _numbers(output.atmosphere),
                        "fibinj": _numbers(output.fibinj),
                        "totalinclsky": _numbers(output.throughput_total),
                    },
                    "snr": _numbers(output.snr),
                    "maxsignals": {
                        "maxpixeltarget": float(output.target.max()),
                        "maxpixelsky": float(output.sky.max()),
                    },
                },
            }
        )
    request = {
        "formatVersion": 1,
        "instrumentName": "harps",
        "target": {
            "morphology": {"morphologytype": "point"},
            "sed": _sed_request(settings),
            "brightness": {"brightnesstype": "mag", "magband": "V", "mag": settings.mag, "magsys": "vega"},
        },
        "sky": {"airmass": settings.airmass, "fli": settings.fli, "waterVapour": settings.pwv_mm},
        "instrument": {"ins_configuration": "ham", "orders_list": [output.order for output in outputs]},
        "timesnr": _timing(outputs),
    }
    return {
        "instrumentName": "harps",
        "origin": ORIGIN,
        "request": request,
        "data": {"plots": {"spectra": spectra}},
    }
