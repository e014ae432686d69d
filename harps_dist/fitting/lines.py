"""Corrections of line depths from spectra of one star whose labels are known.

The star's visits are fitted with its labels held, and what is left of them is brought to the star's rest frame. There
its lines stand still, while tellurics, cosmic hits and noise move or come once, so that the median over visits is what
the model's lines lack. Corrections are applied before lines are broadened; so a few rounds are made, each of which
learns what the one before left.

Tested in tests/unit/test_line_corrections.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from harps_dist import __version__
from harps_dist.data.batches import in_batches
from harps_dist.errors import ConfigError
from harps_dist.fitting.fitter import GRID, Fitted, Fitter, Held
from harps_dist.fitting.solve import OF_MAD, Settings
from harps_dist.fitting.stellar import CorrectedModel, PackagedModel, StellarModel
from harps_dist.formats.line_corrections import KNOT_AA, About, LineCorrections, check_corrections, write_corrections
from harps_dist.formats.records import Reason, Refusal
from harps_dist.inference.sources import Observed, find_items, read_items
from harps_dist.progress import Progress, silent
from harps_dist.spectra.doppler import C_KMS
from harps_dist.spectra.grid import Grid
from harps_dist.spectra.nuisance import pseudo_continuum

ROUNDS = 3
BATCH = 8  # visits that are fitted at once
ABSORBED = 0.01  # by the air, from which on a pixel says nothing of the star
LEAST_VISITS = 3  # that see a wavelength, where there are as many: one that is off is outvoted
DARK = 0.05  # of the median, below which the logarithm of a flux is noise
NEAR = 9  # pixels over which the power of corrections is compared with that of noise
OF_MEDIAN = (np.pi / 2) ** 0.5  # standard deviation of a median of many in that of their mean


class Learned(NamedTuple):
    """What was learned of a star. before, after: robust standard deviation of what is left of its visits beyond their
    noise, in medians of the flux, by the model as it is and corrected."""

    corrections: LineCorrections
    before: float
    after: float


class LinesReport(NamedTuple):
    """What learning from files did. path: of the corrections. objects: names of the star in the files, the commonest
    first. failed: what could not be used, and why."""

    path: Path
    learned: Learned
    objects: tuple[str, ...]
    failed: list[Refusal]

    def lines(self) -> Iterator[str]:
        """What to tell a user."""
        learned = self.learned
        about = learned.corrections.about
        yield (
            f"lines of {about.star} from {len(about.files)} spectra, microturbulence {about.vmic:.2f} km/s: beyond the "
            f"noise {learned.before:.2%} of the flux was left of them, {learned.after:.2%} is: {self.path}"
        )
        if len(self.objects) > 1:
            yield f"their headers call the star {', '.join(self.objects)}; all were taken for one"
        for refusal in self.failed:
            yield f"not used: {refusal}"


class _AtRest(NamedTuple):
    """Depth by which a star's lines exceed the model's, and standard deviation of its noise, (visit, pixel) each, NaN
    where a visit does not tell."""

    deeper: np.ndarray
    noise: np.ndarray


def learn_lines(
    flux: np.ndarray,
    sigma: np.ndarray,
    berv_kms: Sequence[float],
    labels: Mapping[str, float],
    star: str,
    files: Sequence[str] = (),
    grid: Grid = GRID,
    model: StellarModel | None = None,
    settings: Settings = Settings(),  # noqa: B008
    device: torch.device | str = "cpu",
) -> Learned:
    """Learn corrections of line depths from visits of one star.

    flux, sigma: (visit, pixel) in medians on the grid; sigma NaN where there are no data. berv_kms: (visit,) of
    headers, NaN where not known. labels: teff, logg and mh of the star; without vmic, what fits its visits is held;
    other parameters of a fit that are given are held too. star, files: what the corrections say of themselves. Raises
    ConfigError for no visit, and for labels that are missing or out of the model's range.
    """
    model = model if model is not None else PackagedModel(device)
    missing = [name for name in model.labels if name not in labels and name != "vmic"]
    if missing or not len(flux):
        raise ConfigError(
            f"corrections of lines are learned from spectra of a star whose labels are known, but "
            f"{f'{missing[0]} is missing' if missing else 'there is no spectrum'}. Give both."
        )
    held, deeper, corrected = dict(labels), np.zeros(model.grid.length), model
    before = 0.0
    for number in range(ROUNDS):
        fitter = Fitter(grid, corrected, Held(held), settings, device)
        fits = _fits(fitter, flux, sigma, berv_kms)
        if not number:
            before = _left(fitter, fits, flux, sigma)
            held |= {name: float(np.median(_values(fitter, fits, name))) for name in model.labels}
        rest = _at_rest(fitter, fits, flux, sigma, model.grid)
        seen = np.isfinite(rest.deeper).sum(axis=0)
        enough = seen >= min(LEAST_VISITS, len(flux))
        deeper[enough] += np.nanmedian(rest.deeper[:, enough], axis=0)
        corrected = CorrectedModel(model, np.zeros_like(deeper), deeper)
    noise = np.zeros_like(deeper)
    noise[enough] = np.sqrt(np.nanmean(rest.noise[:, enough] ** 2, axis=0) / seen[enough]) * OF_MEDIAN
    deeper *= _share_beyond(deeper, noise)
    every = round(KNOT_AA / model.grid.step_aa)
    about = About(
        star=star,
        **{name: held[name] for name in ("teff", "logg", "mh", "vmic")},
        files=tuple(files),
        models=model.id,
        wave0_aa=float(model.grid.wave_aa[0]),
        step_aa=every * model.grid.step_aa,
        made_by=f"harps_dist {__version__}",
    )
    corrections = LineCorrections.of(about, deeper[::every], _depth(model, held)[::every])
    fitter = Fitter(grid, CorrectedModel.of(model, corrections), Held(held), settings, device)
    return Learned(corrections, before, _left(fitter, _fits(fitter, flux, sigma, berv_kms), flux, sigma))


def learn_from_files(
    inputs: Sequence[str | Path],
    labels: Mapping[str, float],
    path: Path,
    settings: Settings = Settings(),  # noqa: B008
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> LinesReport:
    """Learn corrections from files of one star, and write them to `path`.

    inputs: files, folders, patterns, an archive or a release. labels: as for `learn_lines`, and so are errors; raises
    OutputError where something else stands at `path`, ConfigError where no file can be used.
    """
    check_corrections(path)
    items, failed = find_items(inputs)
    good: list[Observed] = []
    for number, (item, found) in enumerate(zip(items, read_items(items, GRID, workers, errors=True), strict=True)):
        progress("read", number + 1, len(items))
        if isinstance(found, Refusal):
            failed.append(found)
        elif found.broken:
            failed.append(Refusal(item.name, Reason.OUT_OF_RANGE, "too many of its pixels lie beyond all reason"))
        else:
            good.append(found)
    if not good:
        raise ConfigError(f"none of {len(items)} spectra can be used: {failed[0]}. Give spectra of one star.")
    flux, sigma = (np.stack([getattr(one, name) for one in good]) for name in ("flux", "sigma"))
    level = np.median(flux, axis=1, keepdims=True)
    objects = Counter(str(one.columns["object"]).strip() for one in good)
    named = tuple(name for name, _ in objects.most_common())
    learned = learn_lines(
        flux / level,
        sigma / level,
        [one.columns["berv_header"] for one in good],
        labels,
        named[0],
        [str(one.columns["dp_id"]) for one in good],
        settings=settings,
        device=device,
    )
    write_corrections(path, learned.corrections)
    return LinesReport(path, learned, named, failed)


def _fits(fitter: Fitter, flux: np.ndarray, sigma: np.ndarray, berv_kms: Sequence[float]) -> list[Fitted]:
    berv = np.asarray(berv_kms, np.float64)
    return [
        fitter.fit(flux[rows], sigma[rows], berv[rows].tolist()) for rows in in_batches(np.arange(len(flux)), BATCH)
    ]


def _values(fitter: Fitter, fits: list[Fitted], name: str) -> np.ndarray:
    """(visit,) values of a parameter."""
    number = fitter.names.index(name)
    return torch.cat([fit.solution.parameters[:, number] for fit in fits]).cpu().numpy()


def _models(fits: list[Fitted]) -> np.ndarray:
    """(visit, pixel) what fits the visits, with continuum, in medians."""
    return torch.cat([fit.solution.model for fit in fits]).double().cpu().numpy()


def _clear(fitter: Fitter, fits: list[Fitted], sigma: np.ndarray) -> np.ndarray:
    """(visit, pixel) bool, where there are data that no telluric line absorbs."""
    berv, airmass, pwv = (
        torch.as_tensor(_values(fitter, fits, name), device=fitter.device) for name in ("berv", "airmass", "pwv")
    )
    seen = fitter.observation.transmission(berv, airmass, pwv, derivatives=False)[0].cpu().numpy()
    return np.isfinite(sigma) & (sigma > 0) & (seen > 1 - ABSORBED) & fitter.grid.valid


def _left(fitter: Fitter, fits: list[Fitted], flux: np.ndarray, sigma: np.ndarray) -> float:
    """Robust standard deviation of what is left of visits beyond their noise, the median of them, in medians."""
    clear, models = _clear(fitter, fits, sigma), _models(fits)
    beyond = []
    for row, good in enumerate(clear):
        left = OF_MAD * np.median(np.abs(flux[row] - models[row])[good])
        beyond.append(max(0.0, left**2 - float(np.median(sigma[row][good])) ** 2) ** 0.5)
    return float(np.median(beyond))


def _at_rest(fitter: Fitter, fits: list[Fitted], flux: np.ndarray, sigma: np.ndarray, source: Grid) -> _AtRest:
    """What visits say of a star's lines at the pixels of the model's grid."""
    models, rv = _models(fits), _values(fitter, fits, "rv")
    clear = _clear(fitter, fits, sigma) & (flux > DARK) & (models > DARK)
    deeper = np.full((len(flux), source.length), np.nan)
    noise = deeper.copy()
    for row, good in enumerate(clear):
        at_aa = source.wave_aa * (1 + rv[row] / C_KMS)
        whole = np.interp(at_aa, fitter.grid.wave_aa, good.astype(np.float64), 0, 0) == 1  # both neighbours are good
        excess = np.log(np.where(good, models[row], 1.0) / np.where(good, flux[row], 1.0))
        excess -= np.median(excess[good])
        deeper[row, whole] = np.interp(at_aa[whole], fitter.grid.wave_aa, excess)
        relative = np.where(good, sigma[row] / flux[row].clip(DARK), 0.0)
        noise[row, whole] = np.interp(at_aa[whole], fitter.grid.wave_aa, relative)
    return _AtRest(deeper, noise)


def _share_beyond(deeper: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(pixel,) Wiener's share of corrections that is no noise, by their power over NEAR pixels."""
    power, of_noise = (np.convolve(values**2, np.full(NEAR, 1 / NEAR), "same") for values in (deeper, noise))
    return np.clip(1 - of_noise / power.clip(1e-12), 0, 1)


def _depth(model: StellarModel, labels: Mapping[str, float]) -> np.ndarray:
    """(pixel,) depths of a star's lines in the model."""
    asked = torch.tensor([[labels[name] for name in model.labels]], dtype=torch.float64)
    flux = torch.exp(model.log_flux(asked).double())
    return torch.log(pseudo_continuum(flux) / flux)[0].cpu().numpy()
