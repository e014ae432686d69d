"""Time 32 simulated full-grid spectra on one GPU, by PyTorch and by the kernels: python tests/gpu/time_spectra.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from kernel_cases import timed

from harps_dist.data.augment import NUISANCES as NAMED
from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.observer import Observer
from harps_dist.kernels.nuisances import disturbed, prefiltered
from harps_dist.kernels.spectra import SpectrumKernels
from harps_dist.spectra.grid import HARPS
from tests.unit.test_observer_by_kernels import NUISANCES, made_up

SPECTRA = 32
RICH = NAMED["rich"]


def main() -> None:
    device = torch.device("cuda")
    decoding, raw = made_up(HARPS, 0, SPECTRA, residuals=False)
    raw = raw.to(device)
    for shift in ("cubic", "linear"):
        for berv_kms in (0.0, 30.0):
            sets = ("no nuisance", Nuisance()), ("plain ones", NUISANCES), ("rich ones", RICH)
            for name, nuisance in sets:
                augment = Augment(shift=shift, berv_kms=berv_kms, nuisance=nuisance)
                ways = {way: Observer(decoding, augment, device, kernels=way) for way in ("torch", "triton")}
                ms = {way: timed(lambda observer=observer: observer(raw)) for way, observer in ways.items()}
                print(shift, berv_kms, name, " ".join(f"{way} {value:.3f} ms" for way, value in ms.items()))
    parts(decoding, raw, device)


def parts(decoding, raw, device: torch.device) -> None:
    """Each step of the kernels alone."""
    for berv in (False, True):
        kernels = SpectrumKernels(
            decoding.grid, decoding.source_grid, decoding.basis, decoding.terms, True, berv, 0, device
        )
        given = raw.rv_kms, raw.berv_kms, raw.response, raw.residual, raw.residual_of, raw.key
        counts = kernels.counts(raw.sed, raw.sed_scale, *given)
        flux = torch.empty_like(counts)
        ms = timed(lambda make=kernels.counts, given=given: make(raw.sed, raw.sed_scale, *given))
        print(f"counts, BERV {berv}: {ms:.3f} ms")
    print(f"median, division, filling: {timed(lambda: kernels.standardise(counts, flux)):.3f} ms")
    errors, ripples = torch.randn(SPECTRA, 6575, device=device) / 10, torch.randn(SPECTRA, 8, device=device) / 10
    print(f"lines, ripple: {timed(lambda: disturbed(raw.sed, raw.sed_scale, errors, None, ripples)):.3f} ms")
    samples = disturbed(raw.sed, raw.sed_scale, errors, None, ripples)
    print(f"prefilter: {timed(lambda: prefiltered(samples)):.3f} ms")


if __name__ == "__main__":
    main()
