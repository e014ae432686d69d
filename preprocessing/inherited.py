"""Whether what a release holds is still what its archive holds: spectrum by spectrum, before the release is grown.

Tested in tests/integration/test_release_content.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harps_dist.data.codec import restored
from harps_dist.data.manifest import ERRORS, Index
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError
from harps_dist.formats.archive import Archive
from harps_dist.spectra.labels import NAMES, SEVEN
from harps_dist.spectra.noise import photon_sigma
from harps_dist.spectra.standardise import standardise
from preprocessing.factorise import misses, terms_of
from preprocessing.rows import OTHER_FORM, REAL, RESPONSE, Fractions, Row, Simulations, same

NOTED = ("split", "object", "snr", *NAMES, "mjd", "ra", "dec", "catalogue_id")  # of a spectrum, and may change
SAID = ("origin", "simulated")  # the same, where the release knows it
FIXED = ("star", "split", "object", "response", "varied", "snr", *NAMES)  # of all else
_GRAIN = 1.01  # rounding on other machines
_LEAST = 1e-4  # of an error in standard deviations that counts


class Inherited(NamedTuple):
    """What a release takes over from its parent, and what comes anew.

    stays: (row,) bool of the parent's index. fresh: spectra to be written, with their rows of the archive: new ones,
    reprocessed ones, and those of which the archive says something else now. known: what the archive says of those that
    stay, for columns that the parent's index has not. changes: how many of which kind, for people.
    """

    stays: np.ndarray
    fresh: list[tuple[int, Row]]
    known: dict[str, Row]
    changes: Counter[str]


def inherited(
    old: Release,
    archive: Archive,
    offered: Mapping[str, tuple[int, Row]],
    withdrawn: Mapping[str, str],
    other_forms: Mapping[str, str],
) -> Inherited:
    """Compare a release with its archive. offered: what the archive's spectra make, by key, with their rows there.
    withdrawn, other_forms: see `Standing`.

    Raises ArchiveError where the release is not of this archive, or what its splits and samples stand on has changed.
    """
    index, has_content = old.index, old.manifest.schema_version >= 5
    held = set(archive.column("real", "key"))
    stays, changes, wrong = np.ones(len(index), bool), Counter[str](), Conflicts(archive.path, old.location)
    known: dict[str, Row] = {}
    fresh: dict[str, tuple[int, Row]] = dict(offered)
    compared = (*NOTED, *SAID) if has_content else NOTED
    for place in index.rows("real"):
        key = index["key"][place]
        if key not in offered:
            stays[place], product = False, key.removeprefix(REAL)
            if product not in held:
                wrong.add("not in the archive", product)
            why = "withdrawn" if product in withdrawn else OTHER_FORM if product in other_forms else "left out now"
            changes[why] += 1
            continue
        number, row = offered[key]
        if index["star"][place] != row["star"]:
            wrong.add("of another star than before, which may lie in another split", key.removeprefix(REAL))
        elif index["pipeline"][place] != row["pipeline"]:
            changes["reprocessed"] += 1
            stays[place] = False
        elif (
            (index["content"][place] != row["content"]) if has_content else _is_other_flux(old, archive, place, number)
        ):
            wrong.add("of other flux in the same version", key.removeprefix(REAL))
        elif differing := [
            *(name for name in compared if not same(index[name][place], row[name])),
            *(
                name
                for column, name in enumerate(ERRORS)
                if not same(index.errors[place, column], row.get(name, np.nan))
            ),
        ]:
            changes["with other labels" if {*NAMES, *ERRORS} & set(differing) else "otherwise described"] += 1
            stays[place] = False
        else:
            known[key] = fresh.pop(key)[1]
    changes["new"] = len(offered.keys() - set(index["key"].tolist()))
    known |= _simulations(old, archive, wrong)
    wrong.raise_any()
    return Inherited(stays, list(fresh.values()), known, +changes)


def _simulations(old: Release, archive: Archive, wrong: Conflicts) -> dict[str, Row]:
    """What the archive says of the SEDs, ETC runs and generative set of a release, which must be as they were."""
    index, now, known = old.index, Simulations(archive), {}
    has_content = old.manifest.schema_version >= 5
    younger = {name for name in set(NAMES) - set(SEVEN) if np.isnan(index[name]).all()}  # labels than the release
    names = [name for name in (*FIXED, *(["content"] * has_content)) if name not in younger]
    for place, row, number, group in _expected(index, now, old.manifest.split_fractions, wrong):
        what = f"{group} entries"
        if any(not same(index[name][place], row[name]) for name in names):
            wrong.add(f"{what} that say or hold something else now", index["key"][place])
        elif not has_content and _is_other_simulation(old, archive, place, number, group):
            wrong.add(f"{what} that hold something else now", index["key"][place])
        known[index["key"][place]] = row
    return known


def _expected(
    index: Index, now: Simulations, fractions: Fractions, wrong: Conflicts
) -> Iterator[tuple[int, Row, int, str]]:
    """For each simulated row of an index its place there, the row as the archive would make it, and of what it is
    made: row and group of the archive."""
    for place in np.flatnonzero(np.isin(index["kind"].astype(str), ("simulated", "response", "generative"))):
        kind, key, name = (index[column][place] for column in ("kind", "key", "object"))
        try:
            if kind == "simulated":
                row, values = (
                    now.simulated_row(name, index["response"][place].removeprefix(RESPONSE), fractions),
                    now.seds,
                )
            elif kind == "generative":
                row, values = now.generative_row(name), now.generative
            else:
                name = key.removeprefix(RESPONSE)
                row, values = now.response_row(name), now.runs
        except KeyError:
            wrong.add("not in the archive", key)
            continue
        yield int(place), row, values[name]["number"], "sed" if kind == "simulated" else kind


class Conflicts:
    """What keeps a release from being grown by an archive."""

    def __init__(self, archive: Path, parent: str | Path):
        self._archive, self._parent, self._found = archive, parent, dict[str, list[str]]()

    def add(self, what: str, key: str) -> None:
        self._found.setdefault(what, []).append(key)

    def raise_any(self) -> None:
        """Raises ArchiveError that says what and how many."""
        if self._found:
            found = "; ".join(f"{len(keys):,} {what} (such as {keys[0]})" for what, keys in self._found.items())
            raise ArchiveError(
                f"release {self._parent} cannot grow by {self._archive}, for it is not of this archive: "
                f"{found}. Give the archive that it was packed from, or pack without --grow."
            )


def _is_other_flux(old: Release, archive: Archive, place: int, number: int) -> bool:
    """Whether a spectrum in a release is not that of the archive: farther from it than it was when it was packed."""
    index, grid = old.index, archive.grid
    flux, median = standardise(archive.data("real", number), grid)
    if not np.isclose(median, index["median"][place], rtol=1e-6):
        return True
    flux = flux[grid.valid]
    off = restored(old.codec, old.content(place), len(flux)).astype(np.float64) - flux
    error = float(np.sqrt(np.mean((off / photon_sigma(flux)) ** 2)))
    return bool(error > index["error"][place] * _GRAIN + _LEAST)


def _is_other_simulation(old: Release, archive: Archive, place: int, number: int, group: str) -> bool:
    """Whether an SED differs by more than its stored grain, or a response by more than its basis's tolerances."""
    index, stored, data = old.index, old.array(place), archive.data(group, number)
    if group == "response":
        terms = terms_of(data)
        level = np.isclose(terms.level, index["median"][place], rtol=1e-6)
        return bool(not level or misses(terms.values, stored, _GRAIN))
    return bool(np.abs(stored[2:-2] - data[2:-2]).max() > 2 * abs(index["scale"][place]))
