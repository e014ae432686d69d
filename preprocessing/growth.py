"""A release that grows: what an archive has that the release before does not, and nothing written twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harps_dist.data.manifest import (
    ERRORS,
    INDEX_COLUMNS,
    SINCE_5,
    Manifest,
    SampleKind,
    read_index_table,
    with_errors,
    with_later_columns,
)
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, ReleaseError
from harps_dist.formats.archive import Archive
from harps_dist.formats.standing import standing
from harps_dist.ownership import check, claimed
from harps_dist.progress import Progress, silent
from harps_dist.spectra.labels import NAMES, SEVEN
from harps_dist.spectra.observation import of_terms
from preprocessing.factorise import ResponseBasis, TermBasis
from preprocessing.fitted import Fitted, fits_of, joined, with_fits
from preprocessing.inherited import inherited
from preprocessing.pack import (
    RELEASE,
    SHARD_BYTES,
    Contents,
    Settings,
    Taken,
    is_genuine,
    same_release,
    write_release,
)
from preprocessing.rows import OTHER_FORM, Row, Wanted, real_rows, source_digest
from preprocessing.samples import (
    Coding,
    Sample,
    basis_samples,
    generative_samples,
    real_sample,
    response_samples,
    simulated_samples,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from harps_dist.formats.fit_tables import FitLabels


def grow(
    archive_path: Path,
    parent: Path,
    release: Path,
    description: str | None = None,
    genuine: bool | None = None,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
    changes: Counter[str] | None = None,
    fits: FitLabels | None = None,
) -> Manifest:
    """Write a release that is its parent and what the archive has gained since; only that is written, in new shards.

    Split fractions, codec and bound are the parent's, whose shards lie in the new folder too, sharing their bytes where
    the file system can link. A spectrum that was reprocessed, or of which the archive says something else by now, is
    written anew; superseded versions, withdrawn spectra and those that are left out now are not in the index any more.
    description: default is the parent's. genuine: as for `pack`; what grows from a release that is not is none either.
    changes: is filled with how many spectra changed in which way. fits: as for `pack`; labels that fits gave the parent
    stay where neither the catalogue nor another fit says something else. Other arguments as for `pack`.
    Raises ReleaseError where the parent is not in a folder here, or damaged; ArchiveError where it is not of this
    archive, what it holds has changed under it, or the archive has nothing that the parent has not; OutputError as
    `pack`.
    """
    check(release, RELEASE)
    if release.resolve() == parent.resolve():
        raise ReleaseError(f"{release} cannot grow from itself: old runs replay from it. Give another --release.")
    old, archive = Release(parent), Archive(archive_path)
    with claimed(release, RELEASE):
        return _grow(archive, old, parent, release, description, genuine, workers, shard_bytes, progress, changes, fits)


def _grow(
    archive: Archive,
    old: Release,
    parent: Path,
    release: Path,
    description: str | None,
    genuine: bool | None,
    workers: int,
    shard_bytes: int,
    progress: Progress,
    changes: Counter[str] | None,
    fits: FitLabels | None,
) -> Manifest:
    manifest = old.manifest
    _check_lattice(archive, old)
    rows, withdrawn, other_forms = standing(archive)
    left_out = Counter({OTHER_FORM: len(other_forms)} if other_forms else {})
    wanted = Wanted(manifest.split_fractions, manifest.keep_out_of_range, rows)
    spectra, fitted = real_rows(archive, wanted, left_out), None
    if fits or manifest.fitted:
        fitted = Fitted(joined(fits_of(old.index), fits), Counter())
        spectra = with_fits(spectra, fitted.fits, other_forms, wanted.keep_out_of_range, fitted.passed_over)
    offered = {row["key"]: (number, row) for number, row in spectra}
    settings = Settings(
        manifest.split_fractions,
        manifest.keep_out_of_range,
        manifest.description if description is None else description,
        is_genuine(genuine, [row for _, row in offered.values()]) and manifest.genuine,
        manifest.codec.real,
        manifest.codec.bound,
    )
    lineage = (*manifest.ancestors, old.digest)
    source = source_digest(archive, rows, withdrawn, other_forms)
    if (there := same_release(release, settings, source, lineage, fitted and fitted.fits)) is not None:
        return there
    nothing = ArchiveError(f"{archive.path} has nothing that release {parent} has not. Ingest first.")
    if source == manifest.source and fits is None:
        raise nothing
    found = inherited(old, archive, offered, withdrawn, other_forms)
    if changes is not None:
        changes.update(found.changes)
    coding = Coding.of(archive, settings.codec, _basis(old))
    generations = dict(zip(old.index["key"], old.index["generation"].tolist(), strict=True))
    known = set(old.index["key"])
    stars = set(old.index["star"][old.index["kind"] == "simulated"])
    samples: dict[SampleKind, list[Sample]] = {
        "real": [_since(real_sample(coding, number, row), generations) for number, row in found.fresh],
        "simulated": list(simulated_samples(coding, settings.fractions, known, stars)),
        "basis": [sample for sample in basis_samples(coding) if sample.key not in known],
        "response": [sample for sample in response_samples(coding) if sample.key not in known],
        "generative": [sample for sample in generative_samples(coding) if sample.key not in known],
    }
    noted = dict(left_out), withdrawn, other_forms
    as_before = found.stays.all() and noted == (manifest.left_out, manifest.withdrawn, manifest.other_forms)
    if as_before and not any(samples.values()):
        raise nothing
    shards = set(old.index["shard"][found.stays])
    taken = Taken(
        parent,
        _with_known(read_index_table(old.store, manifest).filter(found.stays), found.known),
        tuple(shard for shard in manifest.shards if shard.name in shards),
        int(old.index["block"].max(initial=-1)) + 1,
        lineage,
    )
    contents = Contents(samples, left_out, withdrawn, other_forms, source, fitted)
    return write_release(release, coding, contents, settings, taken, workers, shard_bytes, progress)


def _check_lattice(archive: Archive, parent: Release) -> None:
    """Raises ArchiveError where the archive is on another grid, or its SEDs on another margin, than the release."""
    found, expected = (
        (grid.instrument.name, grid.start, grid.length, grid.start - source.start)
        for grid, source in ((holder.grid, holder.source_grid) for holder in (archive, parent))
    )
    if found != expected:
        raise ArchiveError(
            f"{archive.path} is on grid {archive.grid.name} (instrument, first pixel, pixels, margin {found}), release "
            f"{parent.location} on {parent.grid.name} {expected}. Give the archive that the release was packed from."
        )


def _with_known(table: pa.Table, known: Mapping[str, Row]) -> pa.Table:
    """An index with the columns that an older one has not, filled with what the archive says of its rows."""
    import pyarrow as pa

    keys = table["key"].to_pylist()
    for name in set(SINCE_5) - set(table.column_names):
        table = table.append_column(name, pa.array([known.get(key, {}).get(name, "") for key in keys], pa.string()))
    for name in set(NAMES) - set(SEVEN) - set(table.column_names):
        values = [known.get(key, {}).get(name, np.nan) for key in keys]
        table = table.append_column(name, pa.array(values, pa.float64()))
    errors = set(ERRORS) & set(table.column_names)
    return with_errors(with_later_columns(table)) if errors else with_later_columns(table).select(INDEX_COLUMNS)


def _since(sample: Sample, generations: Mapping[str, int]) -> Sample:
    """A spectrum that is written anew keeps the generation that it first came with."""
    if sample.key not in generations:
        return sample
    generation = {"generation": generations[sample.key]}

    def encode() -> tuple[str, bytes | None, list[Row]]:
        tail, content, rows = sample.encode()
        return tail, content, [row | generation for row in rows]

    return Sample(sample.key, encode)


def _basis(release: Release) -> ResponseBasis | None:
    """The basis of a release's responses; None where it has none."""
    decoding = release.decoding
    if not len(decoding.basis):
        return None
    pixels = np.array(release.manifest.codec.response_pixels, np.int64)
    parts = zip(of_terms(decoding.basis, decoding.terms), of_terms(pixels, decoding.terms), strict=True)
    first, second, third = (TermBasis(vectors, of_term) for vectors, of_term in parts)
    return ResponseBasis((first, second, third))
