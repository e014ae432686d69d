"""Read every byte of an archive or a release and say what is wrong with it.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from harps_dist.data.manifest import MANIFEST, Shard
from harps_dist.data.reader import Release
from harps_dist.errors import ArchiveError, HarpsDistError, ReleaseError
from harps_dist.formats.archive import Archive
from harps_dist.formats.columns import DATA, SCHEMAS, content_of
from harps_dist.progress import Progress, silent


def verify(path: Path, progress: Progress = silent) -> list[str]:
    """Problems found in an archive or a release, none where it is whole; told by what the folder holds.

    Raises ArchiveError where it is neither.
    """
    try:
        if (path / MANIFEST).exists():
            return list(_release_problems(path, progress))
        if (path / "zarr.json").exists():
            return list(_archive_problems(Archive(path), progress))
    except HarpsDistError as error:
        return [str(error)]
    raise ArchiveError(f"{path} is neither an archive (zarr.json) nor a release ({MANIFEST}). Check the path.")


def _archive_problems(archive: Archive, progress: Progress) -> Iterator[str]:
    yield from archive.problems()
    counts = {group: archive.count(group) for group in SCHEMAS}
    done, total = 0, sum(counts.values())
    for group, rows in counts.items():
        columns: dict[str, np.ndarray] = {}
        for name in SCHEMAS[group]:
            try:
                columns[name] = archive.column(group, name)
            except ArchiveError as error:
                yield str(error)
                continue
            if len(columns[name]) != rows:
                yield f"column {group}/{name} has {len(columns[name])} rows, {group}/key has {rows}."
        keys, contents = (columns.get(name, np.full(rows, "", object)) for name in ("key", "content"))
        versions = zip(keys, columns.get("pipeline", keys), strict=False)
        yield from (f"{group} holds {key} {n} times." for (key, _), n in Counter(versions).items() if key and n > 1)
        for row in range(rows) if group in DATA else ():
            try:
                data = archive.data(group, row)
                if not np.isfinite(data).any():
                    yield f"row {row} of {group} ({keys[row]}) has no finite value: its chunk is missing."
                elif contents[row] and contents[row] != content_of(data):
                    yield f"row {row} of {group} ({keys[row]}) is not what was appended: its hash is another."
            except ArchiveError as error:
                yield str(error)
            done += 1
            progress("verify", done, total)


def _release_problems(path: Path, progress: Progress) -> Iterator[str]:
    release = Release(path)
    index, manifest = release.index, release.manifest
    yield from shard_problems(path, manifest.shards)
    keys = set(index["key"])
    if len(keys) != len(index):
        yield "a key occurs more than once in the index."
    for key in manifest.withdrawn:
        if f"real-{key}" in keys:
            yield f"sample real-{key} is in the index, though it is withdrawn."
    splits: dict[str, str] = {}
    for star, split in zip(index["star"], index["split"], strict=True):
        if star and splits.setdefault(star, split) != split:
            yield f"star {star} lies in splits {splits[star]} and {split}."
    for row in range(len(index)):
        try:
            if not np.isfinite(release.array(row)).all():
                yield f"sample {index['key'][row]} has values that are not finite."
        except ReleaseError as error:
            yield str(error)
        progress("verify", row + 1, len(index))
    release.close()


def shard_problems(path: Path, shards: Iterable[Shard]) -> Iterator[str]:
    """What is wrong with shards of a release, and with what lists their members."""
    for shard in shards:
        try:
            with (path / shard.name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"shard {path / shard.name} is missing."
            continue
        if found != shard.sha256:
            yield f"shard {path / shard.name} has sha256 {found[:12]}, the manifest says {shard.sha256[:12]}."
        beside = path / shard.listing
        listed = hashlib.sha256(beside.read_bytes()).hexdigest() if beside.exists() else "none"
        if listed != shard.index_sha256:
            yield f"{beside} has sha256 {listed[:12]}, the manifest says {shard.index_sha256[:12]}."
