"""Format-true demo inputs: ESO-like spectra, a catalogue, ETC runs and SEDs. All SIMULATED, nothing from ESO.

The spectra come from the packaged SED grid through the simulated instrument (`preprocessing.simulator.instrument`),
with microturbulence, rotation and macroturbulence, errors of the line list, wiggles of the continuum and cosmic hits,
which catalogues do not tell. Their catalogue is exact, but has the gaps of the paper's Table 1. The same seed makes the
same bytes on every machine: only what IEEE 754 rounds in one way lies between them (`harps_dist.spectra.exact`).

Tested in tests/unit/test_simulator.py.
"""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from harps_dist.data.split import SplitName
from harps_dist.files import atomic_write
from harps_dist.formats.sed import VMIC_RANGE_KMS, SedGrid, write_sed
from harps_dist.progress import Progress, silent
from harps_dist.spectra.exact import arcsin, exp, log, mean, sin_cos
from harps_dist.spectra.instrument import HARPS
from harps_dist.spectra.microturbulence import SCATTER_KMS, realistic_vmic
from harps_dist.spectra.quantities import C_KMS
from harps_dist.spectra.spline import cubic_spline
from preprocessing.simulator.design import DESIGN, write_design
from preprocessing.simulator.draws import exponentials, normals, uniform
from preprocessing.simulator.etc_files import EtcSettings, write_etc
from preprocessing.simulator.instrument import ORDERS, OrderOutput, observe, orders_covering
from preprocessing.simulator.phase3 import write_phase3
from preprocessing.simulator.stellar import stellar_flux
from preprocessing.simulator.visits import Star, Visit

LOW_AA, HIGH_AA = 5987.0, 6321.0  # what the SED grid still fills at 70 km/s
CONAD = 1.42  # electrons per ADU
AVAILABLE = {"teff": 0.631, "logg": 0.544, "mh": 0.450, "rv": 0.535}  # of the spectra (paper, Table 1)
GAP_CORRELATION = 0.68  # of the gaps of a star's labels: all four are known for 28.8 % of the spectra
BATCH = 32  # stars whose fluxes are held at a time
THREADS = 4  # flushing a file to disk takes as long as making its content
GENERATIVE_VALUES = 7  # of the label that varies within a core (paper, Sect. 3.1)
LINE_LIST_SEED = 0  # the line list is wrong in the same way for every star of every demo


def write_demo(
    folder: Path,
    stars: int,
    visits: float,
    seds: int,
    etc_runs: int,
    cores: int,
    seed: int,
    progress: Progress = silent,
) -> None:
    """Write spectra, catalog.csv, sed, etc and the generative set into `folder`, the same for the same seed.

    visits: mean number of spectra a star, 1..6. seds: all SED files, those of the ETC runs among them.
    etc_runs: half of either JSON generation. cores: of the generative set, half for validation, half for test.
    progress: called with what is written, how many are done, and how many there will be.
    """
    folder = Path(folder)
    for name in ("spectra", "sed", "etc", "generative"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    grid = SedGrid.packaged()
    population = _population(grid, stars, seed)
    _write_catalogue(folder / "catalog.csv", population)
    _write_seds(folder / "sed", grid, seds, seed, progress)
    _write_etc_runs(folder / "etc", grid, seds, etc_runs, seed, progress)
    _write_generative(folder / "generative", grid, cores, etc_runs, seed, progress)
    nights = [_visits(star, i, visits, seed) for i, star in enumerate(population)]
    _write_spectra(folder / "spectra", grid, population, nights, seed, progress)


def write_delivery(
    folder: Path, stars: int, seed: int, number: int, new_stars: int, new_visits: int, progress: Progress = silent
) -> None:
    """Write what a demo of so many stars and this seed has gained since: spectra and a catalog.csv of all its stars.

    number: of the delivery, from 1; each has other stars. new_visits: to stars of the demo, one each.
    """
    folder = Path(folder)
    (folder / "spectra").mkdir(parents=True, exist_ok=True)
    grid = SedGrid.packaged()
    old, new = _population(grid, stars, seed), _population(grid, new_stars, seed + 1000 * number)
    _write_catalogue(folder / "catalog.csv", [*old, *new])
    visited = np.random.default_rng([seed, 7, number]).permutation(stars)[:new_visits]
    again = [
        [_visit(old[i], np.random.default_rng([seed, 8, number, i]))] if i in visited else [] for i in range(stars)
    ]
    _write_spectra(folder / "spectra", grid, old, again, seed, progress)
    nights = [_visits(star, i, 1.0, seed + 1000 * number) for i, star in enumerate(new)]
    _write_spectra(folder / "spectra", grid, new, nights, seed + 1000 * number, progress)


# --- stars and their catalogue


def _population(grid: SedGrid, count: int, seed: int) -> list[Star]:
    """Stars over the whole grid, half of them near the solar main sequence, as in the archive."""
    from scipy.special import ndtri

    rng = np.random.default_rng([seed, 1])
    (teff_low, teff_high), (logg_low, logg_high), (mh_low, mh_high) = grid.ranges.values()
    solar_like = rng.random(count) < 0.5
    teff = np.where(solar_like, 5600 + 450 * normals(rng, count), uniform(rng, teff_low, teff_high, count))
    dwarf_logg = 4.6 - np.clip((teff - 5000) / 1000, 0, 1.5) * 0.3 + 0.07 * normals(rng, count)
    logg = np.where(solar_like, dwarf_logg, uniform(rng, logg_low, logg_high, count))
    mh = np.where(solar_like, -0.05 + 0.2 * normals(rng, count), uniform(rng, mh_low, mh_high, count))
    # Rounded as catalogues are, so what they print is the truth.
    teff = np.clip(teff, teff_low, teff_high).round()
    logg, mh = np.clip(logg, logg_low, logg_high).round(2), np.clip(mh, mh_low, mh_high).round(2)
    rv = uniform(rng, -70, 70, count).round(2)

    # A star is well known or not: a shared factor, evenly spread so that small demos keep the rates. What ndtri's last
    # bit makes of a score is compared alone, so that it tells with a probability of 1e-16 a star.
    shared = ndtri((rng.permutation(count) + 0.5) / count)
    own = normals(rng, len(AVAILABLE) * count).reshape(len(AVAILABLE), count)
    score = np.sqrt(GAP_CORRELATION) * shared + np.sqrt(1 - GAP_CORRELATION) * own
    known = score < ndtri(np.array(list(AVAILABLE.values())))[:, None]

    tic = rng.choice(400_000_000, count, replace=False) + 1_000_000
    hd = rng.choice(220_000, count, replace=False) + 1_000 if count <= 220_000 else np.arange(count) + 1_000
    ra = uniform(rng, 0, 360, count).round(6)
    dec = np.degrees(arcsin(uniform(rng, -0.98, 0.42, count))).round(6)  # as seen from La Silla
    return [
        Star(
            int(tic[i]), int(hd[i]), float(ra[i]), float(dec[i]), float(teff[i]), float(logg[i]),
            float(mh[i]), float(rv[i]),
            frozenset(name for name, has in zip(AVAILABLE, known[:, i], strict=True) if has),
        )
        for i in range(count)
    ]  # fmt: skip


def _write_catalogue(path: Path, population: list[Star]) -> None:
    """One row a star in the manner of the TESS Input Catalog; an empty cell is an unknown label."""
    with atomic_write(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["TIC", "name", "ra", "dec", "Teff", "logg", "MH", "RV"])
        for star in population:
            values = {"teff": f"{star.teff_k:.0f}", "logg": star.logg, "mh": star.mh, "rv": star.rv_kms}
            labels = [value if name in star.known else "" for name, value in values.items()]
            writer.writerow([star.tic, f"HD {star.hd}", star.ra_deg, star.dec_deg, *labels])


# --- SEDs and ETC runs


def _vmic_kms(rng: np.random.Generator, teff_k: float, logg: float, mh: float) -> float:
    """Microturbulence about that of stars with these labels, within what the grid holds."""
    drawn = realistic_vmic(teff_k, logg, mh) + SCATTER_KMS * float(normals(rng, 1)[0])
    return round(float(np.clip(drawn, *VMIC_RANGE_KMS)), 3)


def _sed_labels(grid: SedGrid, index: int, seed: int) -> tuple[float, float, float, float]:
    """teff_k, logg, mh and vmic_kms of a simulated SED, the first three uniform over the grid."""
    rng = np.random.default_rng([seed, 2, index])
    teff, logg, mh = (float(uniform(rng, low, high)) for low, high in grid.ranges.values())
    teff, logg, mh = round(teff, 1), round(logg, 3), round(mh, 3)
    return teff, logg, mh, _vmic_kms(rng, teff, logg, mh)


def _sed_name(index: int) -> str:
    return f"sed_{index:05d}.fits"


def _write_seds(folder: Path, grid: SedGrid, count: int, seed: int, progress: Progress) -> None:
    def write(i: int, labels: tuple[float, float, float, float], flux: np.ndarray) -> None:
        write_sed(folder / _sed_name(i), grid.wave_aa, flux, *labels)

    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, count, 100):
            indices = range(first, min(first + 100, count))
            labels = [_sed_labels(grid, i, seed) for i in indices]
            for _ in pool.map(write, indices, labels, grid.sample(*np.transpose(labels))):
                done += 1
                progress("SEDs", done, count)


def _write_etc_runs(folder: Path, grid: SedGrid, seds: int, count: int, seed: int, progress: Progress) -> None:
    orders = orders_covering(LOW_AA, HIGH_AA)
    uses = np.random.default_rng([seed, 3]).permutation(seds)
    for i in range(count):
        rng = np.random.default_rng([seed, 3, i])
        index = int(uses[i % seds])
        settings = EtcSettings(
            sed_name=_sed_name(index),
            airmass=round(float(uniform(rng, 1.0, 2.9)), 3),
            pwv_mm=round(float(uniform(rng, 0.5, 20.0)), 2),
            mag=round(float(uniform(rng, 6.7, 10.3)), 2),  # S/N about 30 to 300
            exptime_s=float(rng.choice([300, 600, 900, 1800])),
            fli=round(rng.random(), 2),
        )
        flux = grid.sample(*_sed_labels(grid, index, seed))[0]
        asked = (settings.airmass, settings.pwv_mm, settings.mag, settings.exptime_s)
        outputs = observe(grid.wave_aa, flux, *asked, orders=orders, fli=settings.fli)
        write_etc(folder / f"{_etc_run(i)}.json", outputs, settings, "2023" if i % 2 == 0 else "2026")
        progress("ETC runs", i + 1, count)


def _etc_run(index: int) -> str:
    return f"harps_{index:05d}"


def _write_generative(folder: Path, grid: SedGrid, cores: int, etc_runs: int, seed: int, progress: Progress) -> None:
    """Cores with each label varied in turn over the grid's range (paper, Sect. 3.1), and their design."""
    design: list[tuple[str, str, str, SplitName, str]] = []
    for core in range(cores):
        rng = np.random.default_rng([seed, 7, core])
        baseline = {name: float(uniform(rng, *limits)) for name, limits in grid.ranges.items()}
        vmic = _vmic_kms(np.random.default_rng([seed, 9, core]), *baseline.values())  # of the whole core
        split: SplitName = "validation" if core % 2 else "test"
        for varied, limits in grid.ranges.items():
            for number, value in enumerate(uniform(rng, *limits, GENERATIVE_VALUES)):
                values = (baseline | {varied: value}).values()
                teff, logg, mh = (round(float(v), digits) for v, digits in zip(values, (1, 3, 3), strict=True))
                label = varied.removesuffix("_k")
                name = f"core{core:03d}_{label}_{number}.fits"
                flux = grid.sample(teff, logg, mh, vmic)[0]
                write_sed(folder / name, grid.wave_aa, flux, teff, logg, mh, vmic)
                design.append((name, f"{core:03d}", label, split, _etc_run(core % etc_runs)))
        progress("generative set", core + 1, cores)
    write_design(folder / DESIGN, design)


# --- spectra


def _write_spectra(
    folder: Path, grid: SedGrid, population: list[Star], nights: list[list[Visit]], seed: int, progress: Progress
) -> None:
    """nights: the visits of each star."""
    total, done = sum(map(len, nights)), 0

    def write(i: int, k: int, flux: np.ndarray) -> None:
        visit = nights[i][k]
        wave_aa, adu, order_snr = expose(grid.wave_aa, flux, visit, np.random.default_rng([seed, 5, i, k]))
        write_phase3(folder / f"{visit.dp_id}.fits", visit, wave_aa, adu, order_snr)

    with ThreadPoolExecutor(THREADS) as pool:
        observed = [i for i, visits in enumerate(nights) if visits]
        for first in range(0, len(observed), BATCH):
            batch = observed[first : first + BATCH]
            fluxes = _stellar_fluxes(grid, population, batch, seed)
            tasks = [(i, k, flux) for i, flux in zip(batch, fluxes, strict=True) for k in range(len(nights[i]))]
            for _ in pool.map(write, *zip(*tasks, strict=True)):
                done += 1
                progress("spectra", done, total)


def _stellar_fluxes(grid: SedGrid, population: list[Star], numbers: list[int], seed: int) -> np.ndarray:
    """Surface flux at rest of the numbered stars, (star, pixels) float32, with what labels do not tell."""
    px_per_kms = grid.wave_aa[grid.wave_aa.size // 2] / C_KMS / HARPS.step_aa
    line_knots = round(grid.wave_aa.size * HARPS.step_aa / 0.5)
    line_list_error = 0.20 * uniform(np.random.default_rng(LINE_LIST_SEED), -1, 1, line_knots)
    fluxes = grid.sample(*np.transpose([_star_labels(population[i], i, seed) for i in numbers]))
    for i, flux in zip(numbers, fluxes, strict=True):
        rng = np.random.default_rng([seed, 4, i])
        sigma_px = 8 * rng.random() * px_per_kms
        own_error = 0.05 * uniform(rng, -1, 1, line_knots)
        flux[:] = stellar_flux(flux, sigma_px, line_list_error + own_error, 0.02 * normals(rng, 12))
    return fluxes


def _star_labels(star: Star, index: int, seed: int) -> tuple[float, float, float, float]:
    """teff_k, logg, mh and vmic_kms of a star; no catalogue has the last."""
    of_star = star.teff_k, star.logg, star.mh
    return *of_star, _vmic_kms(np.random.default_rng([seed, 10, index]), *of_star)


def _visits(star: Star, index: int, mean: float, seed: int) -> list[Visit]:
    rng = np.random.default_rng([seed, 6, index])
    count = 1 + rng.binomial(5, (np.clip(mean, 1, 6) - 1) / 5)
    return [_visit(star, rng) for _ in range(count)]


def _visit(star: Star, rng: np.random.Generator) -> Visit:
    while True:  # a night when the star stands more than 60 degrees from the Sun
        start = datetime(2004, 1, 1) + timedelta(days=int(rng.integers(365 * 18)), hours=10 * rng.random())
        berv_kms, elongation = barycentric_velocity(star.ra_deg, star.dec_deg, start)
        if elongation > 60:
            break
    start = start.replace(microsecond=start.microsecond // 1000 * 1000)
    archived = start + timedelta(days=float(uniform(rng, 20, 700)))
    drawn = rng.random()
    spellings = [
        f"HD{star.hd}", f"HD{star.hd}", f"HD {star.hd}", f"HD-{star.hd}", f"hd{star.hd:06d}",
        f"TIC-{star.tic}", f"TIC {star.tic}", f"OBJ-{star.hd % 97:02d}",
    ]  # fmt: skip
    return Visit(
        star=star,
        dp_id=f"ADP.{archived.isoformat(timespec='milliseconds')}",
        object=str(rng.choice(spellings)),
        start=start,
        berv_kms=berv_kms,
        airmass=1.0 + 1.9 * drawn * drawn,
        pwv_mm=float(exp(uniform(rng, 0.0, float(log(12.0))))),
        snr=float(exp(uniform(rng, float(log(30.0)), float(log(300.0))))),
        exptime_s=float(rng.choice([60, 300, 600, 900, 1800])),
        radvel_guess_kms=round(star.rv_kms, 1) if rng.random() < 0.6 else -99999.0,
    )


def barycentric_velocity(ra_deg: float, dec_deg: float, when: datetime) -> tuple[float, float]:
    """BERV [km/s] for a circular orbit of the Earth, and the star's angle from the Sun [deg].

    Good to 1 km/s: the demo defines its own truth. A star that the Earth approaches has a positive BERV.
    """
    days = (when - datetime(2000, 3, 20, 7, 35)).total_seconds() / 86400
    longitude = 2 * np.pi * days / 365.2422
    ahead = longitude - np.pi / 2  # the Earth moves towards 90 degrees behind the Sun
    sine, cosine = sin_cos([*np.radians([23.439, ra_deg, dec_deg]), longitude, ahead])
    x, y, z = cosine[2] * cosine[1], cosine[2] * sine[1], sine[2]  # of the star, equatorial

    def towards(sin_longitude: float, cos_longitude: float) -> float:
        """Cosine of the star's angle from a point of the ecliptic."""
        return x * cos_longitude + y * sin_longitude * cosine[0] + z * sin_longitude * sine[0]

    # The angle is compared alone, so that its last bit tells with a probability of 1e-16 a night.
    elongation = np.degrees(np.arccos(np.clip(towards(sine[3], cosine[3]), -1, 1)))
    return float(29.785 * towards(sine[4], cosine[4])), float(elongation)


def expose(
    rest_aa: np.ndarray, flux: np.ndarray, visit: Visit, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Take one spectrum and reduce it as the DRS does: deblazed, on the barycentric lattice, orders merged.

    rest_aa, flux: (k,) the star at rest. Returns wavelengths [Å, air, barycentric] and flux [ADU], (n,) each,
    and the S/N at the centre of each order by its index on the detectors, blue to red.
    """
    motion = (1 + visit.star.rv_kms / C_KMS) / (1 + visit.berv_kms / C_KMS)
    orders = observe(
        rest_aa * motion,
        flux,
        visit.airmass,
        visit.pwv_mm,
        mag=8.0,
        exptime_s=visit.exptime_s,
        orders=orders_covering(LOW_AA, HIGH_AA),
    )
    brightness = _brightness_for(visit.snr, orders)
    widest_m = max(order.dispersion_m_per_px.max() for order in orders)
    wave_aa = LOW_AA + HARPS.step_aa * np.arange(round((HIGH_AA - LOW_AA) / HARPS.step_aa) + 1)
    total, covering = np.zeros(wave_aa.size), np.zeros(wave_aa.size)
    order_snr = {}
    for order in orders:
        signal = brightness * order.target
        sigma = np.sqrt(signal + order.sky + _readout_variance(order))
        order_snr[ORDERS.index(order.order)] = float(np.median((signal / sigma)[1948:2148]))
        electrons = signal + sigma * normals(rng, signal.size)
        hits = rng.integers(0, signal.size, rng.poisson(visit.exptime_s / 1800))
        electrons[hits] += mean(signal) * 0.5 * exponentials(rng, hits.size)
        deblazed = electrons / (order.blaze * order.dispersion_m_per_px / widest_m)
        inside, values = _on_lattice(order.wave_aa * (1 + visit.berv_kms / C_KMS), deblazed, wave_aa)
        total[inside] += values
        covering[inside] += 1
    return wave_aa, total / covering / CONAD, order_snr


def _readout_variance(order: OrderOutput) -> float:
    return order.nspat * order.nspec * order.ndit * (order.dit_s * order.dark + order.ron * order.ron)


def _brightness_for(snr: float, orders: list[OrderOutput]) -> float:
    """Factor on the target's signal that gives a median S/N per extracted pixel."""
    signal = np.median([order.target for order in orders])
    other = np.median([order.sky + _readout_variance(order) for order in orders])
    square = snr * snr
    return (square + np.sqrt(square * square + 4 * square * other)) / (2 * signal)


def _on_lattice(source_aa: np.ndarray, values: np.ndarray, wave_aa: np.ndarray) -> tuple[slice, np.ndarray]:
    """Spline an order onto the lattice pixels it covers."""
    first, end = np.searchsorted(wave_aa, [source_aa[0], source_aa[-1]])
    inside = slice(int(first), int(end))
    return inside, cubic_spline(source_aa, values, wave_aa[inside])
