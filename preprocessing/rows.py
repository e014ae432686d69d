"""Which rows of a release's index an archive's spectra, SEDs and ETC runs make, before any of them is encoded.

Tested in tests/integration/test_release_content.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from harps_dist.data.split import split_of
from harps_dist.formats.archive import Archive
from harps_dist.spectra.grid_spec import GridSpec
from harps_dist.spectra.labels import CATALOGUED, INTRINSIC, LABEL, NAMES

REAL = "real-"
OTHER_FORM = "other form of an exposure"  # why a spectrum is left out
RESPONSE = "response-"
OBSERVED = ("mjd", "ra", "dec", "pipeline", "catalogue_id", "origin", "simulated")
MADE_OF = {  # the columns of an archive that enter a release, or decide what enters it
    "real": ("key", "target", "object", "flag", "snr", "berv", "airmass", *CATALOGUED, *OBSERVED),
    "sed": ("key", *INTRINSIC, "vmic"),
    "response": ("key", "sed", "airmass", "pwv", "mag", "exptime", "snr"),
    "generative": ("key", "core", "varied", "split", "etc_run", *INTRINSIC, "vmic"),
}

Row = dict[str, Any]  # of the index
Fractions = tuple[float, float, float]


def source_digest(
    archive: Archive, rows: np.ndarray, withdrawn: Mapping[str, str], other_forms: Mapping[str, str] | None = None
) -> str:
    """sha256 of everything in an archive that a release is made of: its grid, the columns and arrays of the spectra in
    rows (n,) of `real`, of all SEDs, ETC runs and of the generative set, what is withdrawn and what is another form.

    The order of rows and the schema of the archive do not matter.
    """
    content = hashlib.sha256()

    def add(part: Any) -> None:
        content.update(json.dumps(part, sort_keys=True).encode() + b"\n")

    add([GridSpec.of(archive.grid).model_dump(), archive.source_grid.start, withdrawn])
    if other_forms:
        add(["other forms", other_forms])
    for group, names in MADE_OF.items():
        chosen = rows if group == "real" else np.arange(archive.count(group))
        columns = {name: archive.column(group, name)[chosen] for name in names}
        columns["content"] = archive.contents(group, chosen)
        order = np.lexsort((columns["content"].astype(str), columns["key"].astype(str)))
        for name, values in columns.items():
            add([group, name, len(order)])
            in_order = values[order]
            if in_order.dtype == object:
                add(in_order.tolist())
            else:
                content.update(np.where(np.isnan(in_order), np.nan, in_order).astype("<f8").tobytes())
    return content.hexdigest()


class Wanted(NamedTuple):
    """What of the archive's real spectra goes into a release.

    fractions: of stars in train, validation and test. keep_out_of_range: those with a label outside the paper's ranges
    too. rows (n,): of the archive; those that stand.
    """

    fractions: Fractions
    keep_out_of_range: bool
    rows: np.ndarray


def real_rows(archive: Archive, wanted: Wanted, left_out: Counter[str]) -> Iterator[tuple[int, Row]]:
    """Spectra of stars, each with its row of the archive; those that are flagged, or have a label out of range, are
    counted in left_out."""
    columns = {name: archive.column("real", name)[wanted.rows] for name in MADE_OF["real"]}
    columns["content"] = archive.contents("real", wanted.rows)
    for number, row_values in zip(wanted.rows, zip(*columns.values(), strict=True), strict=True):
        values = dict(zip(columns, row_values, strict=True))
        if values["flag"]:
            left_out[values["flag"]] += 1
            continue
        outside = [name for name in CATALOGUED if is_outside(name, values[name])]
        if outside and not wanted.keep_out_of_range:
            left_out[f"{outside[0]} outside {LABEL[outside[0]].training[0]:g}..{LABEL[outside[0]].training[1]:g}"] += 1
            continue
        labels = {name: values.get(name, np.nan) for name in NAMES}
        if is_outside("airmass", labels["airmass"]):
            labels["airmass"] = np.nan
        yield (
            int(number),
            index_row(
                key=f"{REAL}{values['key']}",
                star=values["target"],
                split=split_of(values["target"], wanted.fractions),
                **{name: values[name] for name in ("object", "snr", "content", *OBSERVED)},
                **labels,
            ),
        )


class Simulations:
    """An archive's SEDs, ETC runs and generative set by their keys: columns, `number` of the row, hash of `content`."""

    def __init__(self, archive: Archive):
        self.seds, self.runs, self.generative = (_by_key(archive, group) for group in ("sed", "response", "generative"))

    def simulated_row(self, sed: str, run: str, fractions: Fractions) -> Row:
        """The index row of a star that is seen through an ETC run; raises KeyError where either is not there."""
        values, star = self.seds[sed], f"sed-{sed}"
        return index_row(
            key=f"{star}@{run}",
            star=star,
            split=split_of(star, fractions),
            object=sed,
            content=values["content"],
            **_seen_through(self.runs[run]),
            **_intrinsic(values),
        )

    def generative_row(self, key: str) -> Row:
        """The index row of a member of the generative set; a core stands in the place of a star."""
        values = self.generative[key]
        return index_row(
            key=f"generative-{key}",
            star=f"core-{values['core']}",
            split=values["split"],
            object=key,
            varied=values["varied"],
            content=values["content"],
            **_seen_through(self.runs[values["etc_run"]]),
            **_intrinsic(values),
        )

    def response_row(self, key: str) -> Row:
        """The index row of an ETC run itself."""
        values = self.runs[key]
        seen_through = _seen_through(values) | {"response": ""}
        return index_row(key=f"{RESPONSE}{key}", object=values["sed"], content=values["content"], **seen_through)


def index_row(**columns: Any) -> Row:
    """A row of the index, without where its bytes lie; what is not given is '' or missing."""
    names = ("key", "star", "split", "object", "response", "varied", "pipeline", "catalogue_id")
    texts = dict.fromkeys((*names, "origin", "simulated", "content"), "")
    numbers = dict.fromkeys(("scale", "zero", "snr", "median", "error", "mjd", "ra", "dec", *NAMES), np.nan)
    return texts | numbers | {"coefficients": []} | columns


def same(one: object, other: object) -> bool:
    """Whether two values are equal, or both missing."""
    return one == other or (one != one and other != other)


def _by_key(archive: Archive, group: str) -> dict[str, Row]:
    rows = archive.rows(group, *MADE_OF[group])
    contents = archive.contents(group, np.arange(len(rows)))
    numbered = enumerate(zip(rows, contents, strict=True))
    return {row["key"]: row | {"number": number, "content": content} for number, (row, content) in numbered}


def _seen_through(run: Row) -> Row:
    return {"response": f"{RESPONSE}{run['key']}", **{name: run[name] for name in ("snr", "airmass", "pwv")}}


def _intrinsic(values: Row) -> Row:
    return {name: values[name] for name in (*INTRINSIC, "vmic")}


def is_outside(name: str, value: float) -> bool:
    """Whether a label lies outside what is kept for training (paper, Sect. 3.1)."""
    low, high = LABEL[name].training
    return bool(np.isfinite(value) and not low <= value <= high)
