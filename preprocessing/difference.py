"""What changed from one release to another: spectra, stars, labels and their distributions, and that splits held.

Tested in tests/integration/test_growth.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import asdict, dataclass, fields
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from harps_dist.data.manifest import Index
from harps_dist.data.reader import Release
from harps_dist.formats.standing import exposures
from harps_dist.ownership import json_file
from harps_dist.spectra.labels import NAMES
from preprocessing.catalog import telling_name
from preprocessing.identity import RADIUS_ARCSEC
from preprocessing.rows import same
from preprocessing.sky import unit_vectors

if TYPE_CHECKING:
    from rich.table import Table

OF_SPECTRA = tuple(name for name in NAMES if name not in ("pwv", "vmic"))  # labels that observed ones may have
DRIFT_COLUMNS = (*OF_SPECTRA, "snr")
DESCRIBED = ("object", "snr", "mjd", "ra", "dec", "catalogue_id")
SECONDS_A_DAY = 86400.0
FEW = 5  # that a table names one by one


@dataclass(frozen=True)
class Coverage:
    """Share of the real spectra that have a label."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Drift:
    """How far the distribution of a quantity in the new real spectra lies from that of all real spectra before.

    ks, p_value: two-sample Kolmogorov-Smirnov, each star once (the mean over its spectra). median_before, median_new:
    of the spectra; NaN where there is none.
    """

    name: str
    median_before: float
    median_new: float
    ks: float
    p_value: float
    stars_before: int
    stars_new: int


@dataclass(frozen=True)
class Difference:
    """Release B against release A, of which it need not be a descendant.

    fitted: how many spectra of either have each label from a fit. not_genuine: why the real spectra of either may not
    be called so, '' where they may. replaced: spectra of A, each with the other form of its exposure that stands in B;
    one that is new there is not among the added. other_forms: data products in B's archive that stand in neither, each
    with the form that stands in B. relabelled: spectra that both have, with other labels; redescribed: with another
    position, time, S/N or name.
    Every list holds keys or stars, sorted. moved: stars that both have, in different splits. within: stars of B that
    lie in more than one split. aliases: pairs of stars of B in different splits that are one star by an id in a
    catalogue, or by a name or a place (within 5 arcsec) that no catalogue tells apart. twice: exposures of B that more
    than one of its spectra shows (same star, same start).
    """

    before: str
    after: str
    descends: bool
    counts: dict[str, tuple[int, int]]
    fitted: tuple[dict[str, int], dict[str, int]]
    not_genuine: tuple[str, str]
    added: list[str]
    superseded: list[str]
    withdrawn: dict[str, str]
    gone: list[str]
    replaced: dict[str, str]
    other_forms: dict[str, str]
    relabelled: list[str]
    redescribed: list[str]
    stars_added: list[str]
    stars_gone: list[str]
    new_visits: dict[str, int]
    coverage: list[Coverage]
    drift: list[Drift]
    shared_stars: int
    moved: list[str]
    within: list[str]
    aliases: list[tuple[str, str]]
    twice: list[tuple[str, str]]

    @property
    def sound(self) -> bool:
        """Whether no star changed its split, lies in two, or leaks from one into another under another name."""
        return not (self.moved or self.within or self.aliases)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


_UNMARKED = {"sound", *(field.name for field in fields(Difference))} - {"fitted"}
DIFFERENCE = json_file("difference of two releases", "--json", _UNMARKED)


def compare_releases(before: Release, after: Release) -> Difference:
    """Compare what two releases hold; reads their manifests and indices alone."""
    a, b = _Real(before.index), _Real(after.index)
    both = a.rows.keys() & b.rows.keys()
    gone = a.rows.keys() - b.rows.keys()
    replaced = _replaced(a, b, gone)
    added = sorted(b.rows.keys() - a.rows.keys() - set(replaced.values()))
    withdrawn = {key: after.manifest.withdrawn[key] for key in sorted(gone) if key in after.manifest.withdrawn}
    splits_a, splits_b = a.splits(), b.splits()
    shared = splits_a.keys() & splits_b.keys()
    visits = Counter(b.star(key) for key in added if b.star(key) in splits_a)
    return Difference(
        before=before.digest,
        after=after.digest,
        descends=after.manifest.parent == before.digest,
        counts={
            kind: (before.manifest.counts.get(kind, 0), after.manifest.counts.get(kind, 0))
            for kind in sorted(before.manifest.counts.keys() | after.manifest.counts.keys())
        },
        fitted=(_fitted(before), _fitted(after)),
        not_genuine=(before.manifest.not_genuine, after.manifest.not_genuine),
        added=added,
        superseded=sorted(key for key in both if a.value("pipeline", key) != b.value("pipeline", key)),
        withdrawn=withdrawn,
        gone=sorted(gone - withdrawn.keys() - replaced.keys()),
        replaced=replaced,
        other_forms={key: form for key, form in after.manifest.other_forms.items() if key not in a.rows},
        relabelled=sorted(key for key in both if not np.array_equal(a.labels(key), b.labels(key), equal_nan=True)),
        redescribed=sorted(
            key for key in both if any(not same(a.value(name, key), b.value(name, key)) for name in DESCRIBED)
        ),
        stars_added=sorted(splits_b.keys() - splits_a.keys()),
        stars_gone=sorted(splits_a.keys() - splits_b.keys()),
        new_visits=dict(sorted(visits.items())),
        coverage=[Coverage(name, a.covered(name), b.covered(name)) for name in OF_SPECTRA],
        drift=[_drift(name, a, b, added) for name in DRIFT_COLUMNS],
        shared_stars=len(shared),
        moved=sorted(star for star in shared if splits_a[star] != splits_b[star]),
        within=sorted(star for star, split in splits_b.items() if len(split) > 1),
        aliases=_aliases(b),
        twice=_twice(b),
    )


def _fitted(release: Release) -> dict[str, int]:
    return release.manifest.fitted.counts if release.manifest.fitted else {}


class _Real:
    """The real spectra of an index, by the id of their data product."""

    def __init__(self, index: Index):
        self.index, self.all = index, index.rows("real")
        self.rows = {index["key"][row].removeprefix("real-"): int(row) for row in self.all}

    def value(self, column: str, key: str) -> Any:
        return self.index[column][self.rows[key]]

    def star(self, key: str) -> str:
        return self.value("star", key)

    def labels(self, key: str) -> np.ndarray:
        """(2, label) values, and errors of those from fits."""
        return np.stack([self.index.labels[self.rows[key]], self.index.errors[self.rows[key]]])

    def splits(self) -> dict[str, frozenset[str]]:
        """The splits that the spectra of every star lie in: one, if all is well."""
        found: dict[str, set[str]] = {}
        for row in self.all:
            found.setdefault(self.index["star"][row], set()).add(self.index["split"][row])
        return {star: frozenset(splits) for star, splits in found.items()}

    def covered(self, name: str) -> float:
        values = self.index[name][self.all]
        return float(np.isfinite(values).mean()) if len(values) else float("nan")

    def by_star(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(star,) means over each star's spectra of what is known of a quantity."""
        values = self.index[name][rows]
        known = np.isfinite(values)
        _, star, count = np.unique(self.index["star"][rows][known].astype(str), return_inverse=True, return_counts=True)
        return np.bincount(star, values[known]) / count


def _drift(name: str, a: _Real, b: _Real, added: list[str]) -> Drift:
    from scipy.stats import ks_2samp

    new = np.array([b.rows[key] for key in added], np.int64)
    old_stars, new_stars = a.by_star(name, a.all), b.by_star(name, new)
    if min(len(old_stars), len(new_stars)) > 1:
        test = ks_2samp(old_stars, new_stars)
        ks, p_value = float(test.statistic), float(test.pvalue)
    else:
        ks = p_value = float("nan")
    old, fresh = (values[np.isfinite(values)] for values in (a.index[name][a.all], b.index[name][new]))
    median_old, median_new = (float(np.median(values)) if len(values) else float("nan") for values in (old, fresh))
    return Drift(name, median_old, median_new, ks, p_value, len(old_stars), len(new_stars))


def _aliases(b: _Real) -> list[tuple[str, str]]:
    """Pairs of stars in different splits that share an id in a catalogue, or a name or a place that no catalogue tells
    apart."""
    by_id: dict[str, set[int]] = {}
    by_name: dict[str, set[int]] = {}
    seen: dict[tuple[str, str], int] = {}
    for row in b.all:
        star, catalogued = b.index["star"][row], b.index["catalogue_id"][row]
        first = seen.setdefault((star, catalogued), int(row))
        for names, name in ((by_id, catalogued), (by_name, telling_name(b.index["object"][row]))):
            if name:
                names.setdefault(name, set()).add(first)
    pairs = {pair for rows in by_id.values() for pair in combinations(sorted(rows), 2)}
    near = {pair for rows in by_name.values() for pair in combinations(sorted(rows), 2)} | _close(b)
    pairs |= {pair for pair in near if not all(b.index["catalogue_id"][list(pair)])}
    star, split = b.index["star"], b.index["split"]
    leaks = {(star[i], star[j]) for i, j in pairs if star[i] != star[j] and split[i] != split[j]}
    return sorted({(min(pair), max(pair)) for pair in leaks})


def _close(b: _Real) -> set[tuple[int, int]]:
    """Pairs of rows of different stars less than 5 arcsec apart; of a star's spectra at one place the first alone."""
    from scipy.spatial import cKDTree

    known = b.all[np.isfinite(b.index["ra"][b.all]) & np.isfinite(b.index["dec"][b.all])]
    places = {(b.index["star"][row], b.index["ra"][row], b.index["dec"][row]): int(row) for row in known[::-1]}
    rows = np.array(list(places.values()), np.int64)
    if not len(rows):
        return set()
    tree = cKDTree(unit_vectors(b.index["ra"][rows].astype(float), b.index["dec"][rows].astype(float)))
    pairs = tree.query_pairs(2 * np.sin(np.radians(RADIUS_ARCSEC / 3600) / 2))
    return {(int(rows[i]), int(rows[j])) for i, j in pairs if b.index["star"][rows[i]] != b.index["star"][rows[j]]}


def _replaced(a: _Real, b: _Real, gone: Set[str]) -> dict[str, str]:
    """Spectra that B lacks, each with the one of B that shows its exposure."""
    keys = [*sorted(gone), *sorted(b.rows)]
    places = [(a if place < len(gone) else b, key) for place, key in enumerate(keys)]
    targets = np.array([real.star(key) for real, key in places], object)
    starts = np.array([real.value("mjd", key) for real, key in places], float)
    numbers = exposures(targets, starts).tolist()
    standing = dict(zip(numbers[len(gone) :], keys[len(gone) :], strict=True))
    return {
        key: standing[number] for key, number in zip(keys[: len(gone)], numbers, strict=False) if number in standing
    }


def _twice(b: _Real) -> list[tuple[str, str]]:
    """Pairs of spectra of one star that begin within a second of each other."""
    by_start = sorted((b.star(key), float(b.value("mjd", key)), key) for key in b.rows)
    return [
        (one[2], other[2])
        for one, other in pairwise(by_start)
        if one[0] == other[0] and (other[1] - one[1]) * SECONDS_A_DAY < 1
    ]


def difference_tables(difference: Difference) -> list[Table]:
    """What a reader wants to see of it, as tables for the console."""
    from rich.table import Table

    d = difference
    changes = Table(title=f"{d.before[:12]} to {d.after[:12]}", show_header=False)
    facts: dict[str, Any] = {
        "after grew from before": d.descends,
        "real spectra": " to ".join(f"observed-like ({why})" if why else "genuine" for why in d.not_genuine),
        **{f"{kind} samples": f"{old:,} to {new:,}" for kind, (old, new) in d.counts.items()},
        **{
            f"spectra with {name} from a fit": f"{d.fitted[0].get(name, 0):,} to {d.fitted[1].get(name, 0):,}"
            for name in NAMES
            if name in d.fitted[0] | d.fitted[1]
        },
        "spectra added": f"{len(d.added):,}, {sum(d.new_visits.values()):,} of {len(d.new_visits):,} known stars",
        "spectra superseded": f"{len(d.superseded):,}",
        "exposures that stand in another form": _pairs(d.replaced, "by"),
        "other forms, which never stood": _pairs(d.other_forms, "of"),
        "spectra withdrawn": ", ".join(f"{n} {why or '(no reason given)'}" for why, n in _counted(d.withdrawn)) or "0",
        "spectra gone otherwise": f"{len(d.gone):,}",
        "spectra with other labels": f"{len(d.relabelled):,}",
        "spectra otherwise described": f"{len(d.redescribed):,}",
        "stars added, gone": f"{len(d.stars_added):,}, {len(d.stars_gone):,}",
        "exposures there twice": f"{len(d.twice):,}",
    }
    for what, value in facts.items():
        changes.add_row(what, str(value))
    labels = Table(
        "", "labelled before", "after", "median before", "of the new", "KS distance", "p", "stars", title="Labels"
    )
    covered = {coverage.name: coverage for coverage in d.coverage}
    for drift in d.drift:
        shares = (
            (f"{covered[drift.name].before:.1%}", f"{covered[drift.name].after:.1%}")
            if drift.name in covered
            else ("", "")
        )
        values = (f"{drift.median_before:.4g}", f"{drift.median_new:.4g}", f"{drift.ks:.3f}", f"{drift.p_value:.2g}")
        labels.add_row(drift.name, *shares, *values, f"{drift.stars_before} / {drift.stars_new}")
    splits = Table(title="Splits", show_header=False)
    splits.add_row("stars in both", f"{d.shared_stars:,}")
    splits.add_row("of these in another split now", _some(d.moved))
    splits.add_row("stars in more than one split", _some(d.within))
    splits.add_row("stars in two splits under two names", _some([" = ".join(pair) for pair in d.aliases]))
    splits.add_row("", "sound" if d.sound else "NOT SOUND")
    return [changes, labels, splits]


def _counted(reasons: dict[str, str]) -> list[tuple[str, int]]:
    return sorted(Counter(reasons.values()).items())


def _pairs(forms: dict[str, str], word: str) -> str:
    named = [f"{one} {word} {other}" for one, other in list(forms.items())[:FEW]]
    rest = [f"and {len(forms) - FEW:,} more"] if len(forms) > FEW else []
    return ", ".join([*named, *rest]) or "0"


def _some(names: list[str]) -> str:
    return f"{len(names)}{': ' + ', '.join(names[:5]) if names else ''}{' …' if len(names) > 5 else ''}"
