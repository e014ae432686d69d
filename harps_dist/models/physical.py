"""A decoder that knows what moves: the star's spectrum at rest, Doppler shifts, the sky, a smooth continuum.

    s(λ) = C(λ) · T(λ / (1 + berv/c); airmass, pwv) · [SED(·; teff, logg, mh, vmic) * broadening](λ / (1 + rv/c))

The SED is an emulator's (`models.emulator`) with a network's correction on top; T is what the release's responses have
in common, a linear function of airmass and airmass · pwv in its logarithm, with what is learned besides.

Tested in tests/unit/test_physical.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harps_dist.errors import ConfigError
from harps_dist.models.emulator import SedEmulator, decomposed
from harps_dist.spectra.doppler import bspline_coefficients, spline_samples
from harps_dist.spectra.grid import MARGIN, Grid
from harps_dist.spectra.labels import INTRINSIC
from harps_dist.spectra.microturbulence import SCATTER_KMS, realistic_vmic
from harps_dist.spectra.noise import keyed_uniforms
from harps_dist.spectra.shift import broadened_coefficients, shifted

BROADENING_KMS = 4.0  # a node of 0 broadens by 2.8 km/s, large negative ones not at all
MOST_BROADENING_KMS = 20.0
MOST_KMS = 200.0  # velocities beyond count as this: model spectra reach no further
CONTINUUM_UNIT = 0.02  # change of flux that a node of the continuum stands for
SKY_UNIT = 0.1  # change of the logarithm of transmission where a learned vector is 1
BLUR_KMS, COARSE_KMS, FINE_KMS = 5.0, 10.0, 2.0  # of lines that are looked for first, and steps of the search
MOST_RV_KMS, MOST_BERV_KMS = 150.0, 32.0  # of the search
SEARCH = 0x736561726368  # keeps its draws apart from others of the same sample
HIDDEN = 128  # channels of the correction's network
AIRMASS, PWV = (0.5, 5.0), (0.0, 30.0)  # limits of what the sky is drawn for


class Nodes(NamedTuple):
    """The unknown factors of a batch, (batch, number) each; see `Factors`."""

    broadening: Tensor
    vmic: Tensor
    responses: Tensor
    sky: Tensor
    continuum: Tensor
    star: Tensor


class Factors(NamedTuple):
    """How many unknown factors of each kind a spectrum is drawn from, in the order of their nodes.

    broadening: of the star's lines. vmic: of their microturbulence beside that of such stars. responses: what the
    release's responses differ in besides airmass and water vapour. sky: learned changes of the transmission. continuum:
    terms of the smooth continuum. star: what differs from star to star besides its labels.
    """

    broadening: int = 1
    vmic: int = 1
    responses: int = 2
    sky: int = 1
    continuum: int = 12
    star: int = 2

    def split(self, nodes: Tensor) -> Nodes:
        """Nodes (batch, sum of all) by the kind of their factors."""
        return Nodes(*nodes.split(list(self), dim=1))


class PhysicalDecoder(nn.Module):
    """Labels in their units, and unknown factors, to a spectrum on `grid`.

    labels: names of the label columns, teff, logg, mh, rv, berv, airmass and pwv among them. vectors, nodes: of the
    emulator. Not yet fitted to a release it draws flat spectra; see `release_physics.fit`.
    """

    valid: Tensor
    terms: Tensor
    response: Tensor

    def __init__(self, grid: Grid, labels: tuple[str, ...], factors: Factors, vectors: int, nodes: int) -> None:
        super().__init__()
        needed = {*INTRINSIC, "rv", "berv", "airmass", "pwv"}
        if needed - set(labels):
            raise ConfigError(
                f"a decoder with physics needs the labels {', '.join(sorted(needed))}; {', '.join(labels)} lack "
                f"{', '.join(sorted(needed - set(labels)))}. Leave --model.labels as it is."
            )
        self.grid, self.source_grid = grid, grid.widened(MARGIN)
        self.length, self.inputs = grid.length, len(labels) + sum(factors)
        self.factors = factors
        self.column = {name: number for number, name in enumerate(labels)}
        pixels = self.source_grid.length
        self.emulator = SedEmulator(pixels, vectors, nodes)
        known = len(self.emulator.labels)
        last = nn.Linear(HIDDEN, vectors)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(
            nn.Linear(known + factors.star, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), last
        )
        self.star_vectors = nn.Parameter(torch.zeros(factors.star, pixels))
        self.sky_vectors = nn.Parameter(torch.zeros(factors.sky, pixels))
        self.register_buffer("response", torch.zeros(3 + factors.responses, pixels))
        across = np.linspace(-1, 1, grid.length)
        terms = np.polynomial.chebyshev.chebvander(across, max(factors.continuum - 1, 0)).T[1:]
        self.register_buffer("terms", torch.from_numpy(terms.astype(np.float32)), persistent=False)
        self.register_buffer("valid", torch.from_numpy(np.flatnonzero(grid.valid)), persistent=False)

    def forward(self, labels: Tensor, nodes: Tensor) -> Tensor:
        """(batch, label) labels in their units and (batch, factor) nodes to (batch, pixel) flux in medians of it."""
        with torch.autocast(labels.device.type, enabled=False):
            labels, factors = labels.to(self.terms), self.factors.split(nodes.to(self.terms))
            star = self.star(labels, factors)
            flux = shifted(star, self._of(labels, "rv", (-MOST_KMS, MOST_KMS)), self.source_grid, self.grid)
            flux = flux * self.sky(labels, factors) * self.continuum(factors.continuum)
            level = CONTINUUM_UNIT * factors.continuum[:, :1].sum(1, keepdim=True)
            return flux / self._median(flux) * torch.exp(level)

    def parts(self, labels: Tensor, nodes: Tensor) -> dict[str, Tensor]:
        """What `forward` multiplies, (batch, pixel) each: the star at rest, the sky where it is seen, the continuum."""
        labels, factors = labels.to(self.terms), self.factors.split(nodes.to(self.terms))
        star = spline_samples(self.star(labels, factors))
        return {
            "star": star[:, self.grid.within(self.source_grid)],
            "sky": self.sky(labels, factors),
            "continuum": self.continuum(factors.continuum),
        }

    def sed(self, labels: Tensor, vmic_kms: Tensor, star: Tensor | None = None) -> Tensor:
        """(batch, source pixel) logarithm of the flux of stars at rest, in medians of it, as B-spline coefficients.

        labels: (batch, label) in their units; vmic_kms: (batch,) microturbulence; star: (batch, factor) nodes of what
        else differs between stars, None for the emulator's spectra without the correction.
        """
        of_star = [vmic_kms if name == "vmic" else labels[:, self.column[name]] for name in self.emulator.labels]
        known = torch.stack(of_star, dim=1)
        coefficients = self.emulator.coefficients(known)
        if star is None:
            return self.emulator.log_flux(coefficients)
        low, high = self.emulator.low, self.emulator.high
        place = ((known - low) / (high - low).clamp(min=1e-6) * 2 - 1).clamp(-1.5, 1.5)
        coefficients = coefficients + self.correction(torch.cat([place, star], 1)) * self.emulator.spread
        return self.emulator.log_flux(coefficients) + star @ self.star_vectors

    def star(self, labels: Tensor, factors: Nodes) -> Tensor:
        """(batch, source pixel) flux of stars at rest, in medians of it, as cubic B-spline coefficients."""
        log_flux = self.sed(labels, self.vmic_kms(labels, factors.vmic), factors.star)
        flux = torch.exp(spline_samples(log_flux).clamp(max=5.0))
        if not factors.broadening.shape[1]:
            return bspline_coefficients(flux)
        return broadened_coefficients(flux, self.broadening_kms(factors.broadening[:, 0]), self.source_grid)

    def vmic_kms(self, labels: Tensor, nodes: Tensor) -> Tensor:
        """(batch,) microturbulence: a label where it is one, else that of such stars and what the nodes say beside."""
        if "vmic" in self.column:
            return labels[:, self.column["vmic"]]
        usual = realistic_vmic(*(self._of_star(labels, name) for name in ("teff", "logg", "mh")))
        return usual + SCATTER_KMS * nodes.sum(dim=1)

    def sky(self, labels: Tensor, factors: Nodes) -> Tensor:
        """(batch, pixel) response of sky and instrument in the observer's frame, seen from the barycentre."""
        berv = self._of(labels, "berv", (-MOST_KMS, MOST_KMS))
        return torch.exp(shifted(self._log_response(labels, factors), berv, self.source_grid, self.grid))

    def _log_response(self, labels: Tensor, factors: Nodes) -> Tensor:
        airmass, pwv = self._of(labels, "airmass", AIRMASS), self._of(labels, "pwv", PWV)
        shares = torch.stack([torch.ones_like(airmass), airmass, airmass * pwv], dim=1)
        log_response = torch.cat([shares, factors.responses], 1) @ self.response
        return log_response + SKY_UNIT * (factors.sky @ self.sky_vectors)

    @torch.no_grad()
    def velocities(self, flux: Tensor, labels: Tensor, nodes: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """rv and berv, (batch,) [km/s] each, at which what is drawn is nearest to flux (batch, pixel).

        labels, nodes: as of `forward`, but for the velocities. Looked for on blurred lines first, then on sharp ones;
        key: (batch,) of the sample, by which the lattice of velocities is shifted, so that its step leaves no mark.
        """
        with torch.autocast(labels.device.type, enabled=False):
            labels, factors = labels.to(self.terms), self.factors.split(nodes.to(self.terms))
            observed, offset = flux.to(self.terms), keyed_uniforms(key, 2, SEARCH).to(self.terms) - 0.5
            star, response = self.star(labels, factors), self._log_response(labels, factors)
            blurred = broadened_coefficients(
                spline_samples(star), star.new_full((len(star),), BLUR_KMS), self.source_grid
            )
            bent = self.continuum(factors.continuum)
            rest = self.sky(labels, factors) * bent
            rv = offset[:, 0] * COARSE_KMS
            rv = self._nearest(observed, rv, MOST_RV_KMS, COARSE_KMS, lambda kms: self._moved(blurred, kms) * rest)
            rv = self._nearest(observed, rv, COARSE_KMS, FINE_KMS, lambda kms: self._moved(star, kms) * rest)
            drawn, berv = self._moved(star, rv) * bent, offset[:, 1] * FINE_KMS
            berv = self._nearest(
                observed, berv, MOST_BERV_KMS, FINE_KMS, lambda kms: torch.exp(self._moved(response, kms)) * drawn
            )
        return rv, berv

    def _moved(self, coefficients: Tensor, kms: Tensor) -> Tensor:
        return shifted(coefficients, kms, self.source_grid, self.grid)

    def _nearest(
        self, flux: Tensor, around: Tensor, reach: float, step: float, draw: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(batch,) velocities within `reach` of some (batch,), in steps, whose drawn spectra are nearest to flux."""
        best, nearest = torch.full_like(around, torch.inf), around
        kept = flux.index_select(1, self.valid)
        for kms in np.arange(-reach, reach + step / 2, step):
            tried = around + float(kms)
            drawn = draw(tried).index_select(1, self.valid)
            error = (kept - drawn * (kept.mean(1) / drawn.mean(1))[:, None]).abs().mean(1)
            nearest = torch.where(error < best, tried, nearest)
            best = torch.minimum(best, error)
        return nearest

    def continuum(self, nodes: Tensor) -> Tensor:
        """(batch, pixel) smooth changes of the flux: Chebyshev polynomials from the first on in its logarithm.

        The first node is the level of a spectrum whose noise moved its median, and changes no shape.
        """
        return torch.exp(CONTINUUM_UNIT * (nodes[:, 1:] @ self.terms))

    @staticmethod
    def broadening_kms(node: Tensor) -> Tensor:
        """Gaussian widths of stars' lines in velocity, standard deviations, from their nodes."""
        return (BROADENING_KMS * F.softplus(node)).clamp(max=MOST_BROADENING_KMS)

    def _of_star(self, labels: Tensor, name: str) -> Tensor:
        number = self.emulator.labels.index(name)
        return labels[:, self.column[name]].clamp(self.emulator.low[number], self.emulator.high[number])

    def _of(self, labels: Tensor, name: str, limits: tuple[float, float]) -> Tensor:
        return labels[:, self.column[name]].clamp(*limits)

    @torch.no_grad()
    def _median(self, flux: Tensor) -> Tensor:
        return flux.index_select(1, self.valid).median(dim=1, keepdim=True).values.clamp(min=1e-6)

    def fit_response(self, log_responses: np.ndarray, airmass: np.ndarray, pwv_mm: np.ndarray) -> None:
        """Fit the responses of a release: log_responses (n, source pixel), with airmass and water vapour (n,) of each.

        What they differ in besides goes into as many vectors as there are factors for it, in standard deviations.
        """
        shares = np.stack([np.ones(len(airmass)), airmass, airmass * pwv_mm], axis=1)
        fitted, *_ = np.linalg.lstsq(shares, log_responses, rcond=1e-6)
        found = decomposed(log_responses - shares @ fitted, self.factors.responses)
        spread = found.coefficients.std(axis=0)
        vectors = np.zeros((3 + self.factors.responses, log_responses.shape[1]))
        vectors[:3], vectors[3 : 3 + len(spread)] = fitted, spread[:, None] * found.vectors
        self.response.copy_(bspline_coefficients(torch.from_numpy(vectors).float()))
