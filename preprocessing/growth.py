"""A release that grows: what an archive has that the release before does not, and nothing written twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harps_dist.data.manifest import Index, Kind, Manifest, read_index_table
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, ReleaseError
from harps_dist.ownership import check, claimed
from preprocessing.archive import Archive
from preprocessing.factorise import ResponseBasis, TermBasis
from preprocessing.pack import (
    RELEASE,
    SHARD_BYTES,
    Contents,
    Progress,
    Settings,
    Taken,
    same_release,
    source_digest,
    write_release,
)
from preprocessing.samples import (
    REAL,
    Coding,
    Row,
    Sample,
    Wanted,
    basis_samples,
    generative_samples,
    real_samples,
    response_samples,
    simulated_samples,
)
from preprocessing.withdraw import standing


def grow(
    archive_path: Path,
    parent: Path,
    release: Path,
    description: str | None = None,
    genuine: bool = True,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Write a release that is its parent and what the archive has gained since; only that is written, in new shards.

    Split fractions, codec and bound are the parent's, whose shards lie in the new folder too, sharing their bytes where
    the file system can link. Superseded versions and withdrawn spectra are not in the index any more. description:
    default is the parent's. genuine: whether the new spectra came from a telescope. Other arguments as for `pack`.
    Raises ReleaseError where the parent is not in a folder here, ArchiveError where it is not of this archive, or the
    archive has nothing that the parent has not, OutputError as `pack`.
    """
    check(release, RELEASE)
    if release.resolve() == parent.resolve():
        raise ReleaseError(f"{release} cannot grow from itself: old runs replay from it. Give another --release.")
    old, archive = Release(parent), Archive(archive_path)
    with claimed(release, RELEASE):
        return _grow(archive, old, parent, release, description, genuine, workers, shard_bytes, progress)


def _grow(
    archive: Archive,
    old: Release,
    parent: Path,
    release: Path,
    description: str | None,
    genuine: bool,
    workers: int,
    shard_bytes: int,
    progress: Progress,
) -> Manifest:
    manifest = old.manifest
    settings = Settings(
        manifest.split_fractions,
        manifest.keep_out_of_range,
        manifest.description if description is None else description,
        manifest.genuine and genuine,
        manifest.codec.real,
        manifest.codec.bound,
    )
    lineage = (*manifest.ancestors, old.digest)
    rows, withdrawn = standing(archive)
    source = source_digest(archive, rows, withdrawn)
    if (there := same_release(release, settings, source, lineage)) is not None:
        return there
    if source == manifest.source:
        raise ArchiveError(f"{archive.path} has nothing that release {parent} has not. Ingest first.")
    table = read_index_table(old.store, manifest)
    stays, fresh, first_seen = _compared(archive, rows, old.index, archive.path, parent)
    taken_rows = table.filter(stays)
    shards = set(old.index["shard"][stays])
    taken = Taken(
        parent,
        taken_rows,
        tuple(shard for shard in manifest.shards if shard.name in shards),
        int(old.index["block"].max(initial=-1)) + 1,
        lineage,
    )
    left_out: Counter[str] = Counter()
    coding = Coding.of(archive, settings.codec, _basis(old))
    known = set(old.index["key"])
    stars = set(old.index["star"][old.index["kind"] == "simulated"])
    samples: dict[Kind, list[Sample]] = {
        "real": [
            _since(sample, first_seen)
            for sample in real_samples(coding, Wanted(settings.fractions, settings.keep_out_of_range, fresh), left_out)
        ],
        "simulated": list(simulated_samples(coding, settings.fractions, known, stars)),
        "basis": [sample for sample in basis_samples(coding) if sample.key not in known],
        "response": [sample for sample in response_samples(coding) if sample.key not in known],
        "generative": [sample for sample in generative_samples(coding) if sample.key not in known],
    }
    contents = Contents(samples, left_out, withdrawn, source)
    return write_release(release, coding, contents, settings, taken, workers, shard_bytes, progress)


def _compared(
    archive: Archive, rows: np.ndarray, index: Index, archive_path: Path, parent: Path
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Which rows (n,) bool of the parent's index stay, which (m,) of the archive are new or reprocessed, and the
    generation that every spectrum of the parent first came with."""
    real = index["kind"] == "real"
    there = {
        key: (pipeline, int(generation))
        for key, pipeline, generation in zip(
            index["key"][real], index["pipeline"][real], index["generation"][real], strict=True
        )
    }
    keys, pipelines = (archive.column("real", name) for name in ("key", "pipeline"))
    now = {f"{REAL}{keys[row]}": (pipelines[row], int(row)) for row in rows}
    held = {f"{REAL}{key}" for key in keys}
    strangers = [key for key in there if key not in held]
    if strangers:
        raise ArchiveError(
            f"{archive_path} does not hold {len(strangers)} of the spectra of release {parent} (such as "
            f"{strangers[0].removeprefix(REAL)}), so the release is not of this archive. Give the archive that it was "
            f"packed from, or pack without --grow."
        )
    stays = np.array(
        [
            not is_real or (key in now and now[key][0] == there[key][0])
            for key, is_real in zip(index["key"], real, strict=True)
        ],
        dtype=bool,
    )
    fresh = [row for key, (pipeline, row) in now.items() if key not in there or there[key][0] != pipeline]
    first_seen = {key: generation for key, (_, generation) in there.items()}
    return stays, np.array(fresh, np.int64), first_seen


def _since(sample: Sample, first_seen: Mapping[str, int]) -> Sample:
    """A reprocessed spectrum keeps the generation that it first came with."""
    if sample.key not in first_seen:
        return sample
    generation = {"generation": first_seen[sample.key]}

    def encode() -> tuple[str, bytes | None, list[Row]]:
        tail, content, rows = sample.encode()
        return tail, content, [row | generation for row in rows]

    return Sample(sample.key, encode)


def _basis(release: Release) -> ResponseBasis | None:
    """The basis of a release's responses; None where it has none."""
    instrument = release.instrument
    if not len(instrument.basis):
        return None
    pixels = np.array(release.manifest.codec.response_pixels, np.int64)
    cuts = np.cumsum(instrument.terms)[:2]
    first, second, third = (
        TermBasis(vectors, of_term)
        for vectors, of_term in zip(np.split(instrument.basis, cuts), np.split(pixels, cuts), strict=True)
    )
    return ResponseBasis((first, second, third))
