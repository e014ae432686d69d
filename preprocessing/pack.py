"""From the archive to a release: shuffled, split by star, standardised, quantised, in shards named by their content.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from harps_dist.data.codec import STEP
from harps_dist.data.keyed import permutation
from harps_dist.data.manifest import (
    BOUND,
    ERRORS,
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    SCHEMA,
    Codec,
    CodecName,
    Index,
    Manifest,
    SampleKind,
    Shard,
    with_errors,
)
from harps_dist.data.reader import Release
from harps_dist.data.split import PAPER_FRACTIONS
from harps_dist.errors import ArchiveError, ReleaseError
from harps_dist.files import publish_folder
from harps_dist.formats.archive import Archive
from harps_dist.formats.standing import standing
from harps_dist.ownership import OutputKind, check, claimed
from harps_dist.progress import Progress, silent
from harps_dist.spectra.grid_spec import GridSpec
from preprocessing.fitted import Fitted, with_fits
from preprocessing.index_facts import counted, label_statistics, largest_errors
from preprocessing.rows import OTHER_FORM, REAL, Row, Wanted, real_rows, source_digest
from preprocessing.samples import (
    Coding,
    Encoded,
    Sample,
    basis_samples,
    generative_samples,
    real_sample,
    response_samples,
    simulated_samples,
)
from preprocessing.shards import ShardWriter
from preprocessing.verify import shard_problems

if TYPE_CHECKING:
    import pyarrow as pa

    from harps_dist.formats.fit_tables import FitLabels

SHARD_BYTES = 256 * 2**20

_NAMES = re.compile(
    rf"({'|'.join(get_args(SampleKind))})-\d{{6}}-[0-9a-f]{{12}}\.(tar|idx)|{re.escape(MANIFEST)}|{re.escape(INDEX)}"
)


def _is_release(folder: Path) -> bool:
    """A manifest with a digest, or a damaged one beside shards by our names."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError:
        return any(name.endswith(".tar") and _NAMES.fullmatch(name) for name in os.listdir(folder))
    return {"digest", "schema_version", "shards", "grid"} <= manifest.keys()


RELEASE = OutputKind("release", "--release", _is_release, "folder", _NAMES)


class Settings(NamedTuple):
    """How a release is made of an archive.

    fractions: of stars in train, validation and test. keep_out_of_range: keep spectra with a label outside the
    paper's ranges, which are left out and counted otherwise, as are flagged ones always. genuine: whether all spectra
    came from a telescope. The files decide: None takes them at their word, False says it of files that do not say that
    they are simulated, True is an error where one does. codec: of real spectra. bound: largest error of a sample in
    standard deviations of its own photon noise; what exceeds it is left out and counted.
    """

    fractions: tuple[float, float, float] = PAPER_FRACTIONS
    keep_out_of_range: bool = False
    description: str = ""
    genuine: bool | None = None
    codec: CodecName = "noise"
    bound: float = BOUND


class Contents(NamedTuple):
    """What an archive offers a release: samples by kind, a count of what is left out and why; `Manifest` says more.
    fitted: where labels of fits are among them."""

    samples: dict[SampleKind, list[Sample]]
    left_out: Counter[str]
    withdrawn: dict[str, str]
    other_forms: dict[str, str]
    source: str
    fitted: Fitted | None = None


class Taken(NamedTuple):
    """What a release takes over from the one it grows from: rows of its index, the shards that these lie in, the number
    of blocks before; the digests of its ancestors and of itself."""

    folder: Path
    rows: pa.Table
    shards: tuple[Shard, ...]
    blocks: int
    lineage: tuple[str, ...]


def pack(
    archive_path: Path,
    release: Path,
    settings: Settings = Settings(),  # noqa: B008
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
    fits: FitLabels | None = None,
) -> Manifest:
    """Write a release of everything in the archive that may be trained on.

    workers: threads that encode. progress: counts samples. fits: that give labels where the archive has none, see
    `fitted.with_fits`. The folder appears when it is whole;
    a release that stood there is replaced, unless it is the very same; `replaced_because` says why. Raises ArchiveError
    where there is nothing to pack, or spectra are said to be genuine whose files say otherwise; OutputError where
    something else stands there or another process is writing it.
    """
    check(release, RELEASE)
    archive = Archive(archive_path)
    with claimed(release, RELEASE):
        return _pack(archive, release, settings, workers, shard_bytes, progress, fits)


def _pack(
    archive: Archive,
    release: Path,
    settings: Settings,
    workers: int,
    shard_bytes: int,
    progress: Progress,
    fits: FitLabels | None,
) -> Manifest:
    rows, withdrawn, other_forms = standing(archive)
    source, left_out = source_digest(archive, rows, withdrawn, other_forms), Counter[str]()
    if other_forms:
        left_out[OTHER_FORM] = len(other_forms)
    spectra = list(real_rows(archive, Wanted(settings.fractions, settings.keep_out_of_range, rows), left_out))
    fitted = None if fits is None else Fitted(fits, Counter())
    if fitted:
        spectra = list(with_fits(spectra, fitted.fits, other_forms, settings.keep_out_of_range, fitted.passed_over))
    settings = settings._replace(genuine=is_genuine(settings.genuine, [row for _, row in spectra]))
    if (there := same_release(release, settings, source, (), fits)) is not None:
        return there
    coding = Coding.of(archive, settings.codec)
    samples: dict[SampleKind, list[Sample]] = {
        "real": [real_sample(coding, number, row) for number, row in spectra],
        "simulated": list(simulated_samples(coding, settings.fractions)),
        "basis": list(basis_samples(coding)),
        "response": list(response_samples(coding)),
        "generative": list(generative_samples(coding)),
    }
    if not any(samples.values()):
        raise ArchiveError(
            f"{archive.path} holds nothing to pack ({dict(left_out)}). Ingest spectra or ETC runs first."
        )
    contents = Contents(samples, left_out, withdrawn, other_forms, source, fitted)
    return write_release(release, coding, contents, settings, None, workers, shard_bytes, progress)


def is_genuine(asked: bool | None, rows: Sequence[Row]) -> bool:
    """Whether real spectra with these rows of the index may be called genuine, given what was asked for.

    Raises ArchiveError where that is more than their files say.
    """
    said = [row for row in rows if row["simulated"]]
    if said and asked:
        raise ArchiveError(
            f"{len(said):,} of {len(rows):,} spectra are not genuine, as their files say (such as "
            f"{said[0]['key'].removeprefix(REAL)}: {said[0]['simulated']}). Leave --genuine out."
        )
    return asked is not False and not said


def replaced_because(before: Manifest, after: Manifest) -> str:
    """Why a release takes the place of another, '' where it is the very same."""
    if before.digest == after.digest:
        return ""
    if before.schema_version != after.schema_version:
        return f"it was of schema {before.schema_version}"
    if before.ancestors != after.ancestors:
        return "it grew from another one"
    if before.source != after.source:
        return "the archive's content differs"
    if before.fitted != after.fitted:
        return "the labels of fits differ"
    names = ("split_fractions", "keep_out_of_range", "description", "genuine", "codec")
    differing = [name for name in names if getattr(before, name) != getattr(after, name)]
    return f"its {' and '.join(differing) or 'shards'} differ"


def manifest_of(release: Path) -> Manifest | None:
    """The manifest of the release that stands there; None where there is none that can be read."""
    try:
        return Release(release).manifest if (release / MANIFEST).exists() else None
    except ReleaseError:
        return None


def same_release(
    release: Path, settings: Settings, source: str, lineage: tuple[str, ...], fits: FitLabels | None
) -> Manifest | None:
    """The manifest of the release that stands there, if it is what would be written, and its shards are whole."""
    there = manifest_of(release)
    if there is None:
        return None
    made = Settings(
        there.split_fractions, there.keep_out_of_range, there.description, there.genuine, there.codec.real,
        there.codec.bound,
    )  # fmt: skip
    if (made, there.source, there.ancestors, there.schema_version) != (settings, source, lineage, SCHEMA):
        return None
    if (there.fitted and there.fitted.fits) != (fits and fits.digest):
        return None
    return None if any(shard_problems(release, there.shards)) else there


def write_release(
    release: Path,
    coding: Coding,
    contents: Contents,
    settings: Settings,
    taken: Taken | None,
    workers: int,
    shard_bytes: int,
    progress: Progress,
) -> Manifest:
    """Write a release of what an archive offers, besides what it takes over from another, where `RELEASE` is claimed;
    arguments as for `pack`."""
    import pyarrow as pa

    archive, (samples, left_out, withdrawn, other_forms, source, fitted) = coding.archive, contents
    done, total = 0, sum(map(len, samples.values()))
    before, blocks, lineage = (taken.shards, taken.blocks, taken.lineage) if taken else ((), 0, ())
    with publish_folder(release, lambda: check(release, RELEASE)) as aside:
        index: list[Row] = []
        writers: list[ShardWriter] = []
        for kind, of_kind in samples.items():
            shuffled = [of_kind[number] for number in permutation(len(of_kind), "pack", kind)]
            for sample, (tail, content, rows) in zip(shuffled, _encoded(shuffled, workers), strict=True):
                kept = [row | {"generation": row.get("generation", len(lineage))} for row in rows]
                kept = [row for row in kept if not row["error"] > settings.bound]
                if len(kept) < len(rows):
                    left_out[f"{kind} with an error above {settings.bound:g} of its noise"] += len(rows) - len(kept)
                done += 1
                progress("pack", done, total)
                if not kept:
                    continue
                if not writers or writers[-1].kind != kind or writers[-1].size > shard_bytes:
                    number = len(before) + len(writers)
                    writers.append(ShardWriter(aside, kind, number, writers[-1].blocks if writers else blocks))
                where = writers[-1].add(sample.key, {"key": sample.key, "samples": kept}, tail, content)
                index += [{"kind": kind, "shard": len(writers) - 1} | where | row for row in kept]
        shards = [writer.close() for writer in writers]
        for row in index:
            row["shard"] = shards[row["shard"]].name
        table = _index_table(index)
        if taken:
            _link_shards(taken, aside)
            rows = taken.rows
            if {ERRORS[0]} & {*rows.column_names, *table.column_names}:
                rows, table = with_errors(rows), with_errors(table)
            table = pa.concat_tables([rows, table.select(rows.column_names).cast(rows.schema)])
        content = _parquet(table)
        columns = Index(table)
        real = columns.rows("real")
        manifest = Manifest(
            description=settings.description,
            genuine=bool(settings.genuine),
            origins=counted(columns["origin"][real]),
            simulated=counted(columns["simulated"][real][columns["simulated"][real] != ""]),
            ancestors=lineage,
            source=source,
            keep_out_of_range=settings.keep_out_of_range,
            grid=GridSpec.of(archive.grid),
            source_margin=archive.grid.start - archive.source_grid.start,
            split_fractions=settings.fractions,
            label_statistics=label_statistics(columns),
            codec=Codec(
                real=settings.codec,
                step=STEP,
                bound=settings.bound,
                largest=largest_errors(columns),
                response_terms=coding.basis.counts,
                response_pixels=tuple(int(pixel) for term in coding.basis.terms for pixel in term.pixels),
            ),
            counts=dict(Counter(kind for kind in columns["kind"].tolist() if kind != "basis")),
            left_out=dict(sorted(left_out.items())),
            withdrawn=dict(sorted(withdrawn.items())),
            other_forms=dict(sorted(other_forms.items())),
            fitted=fitted.manifest(columns) if fitted else None,
            shards=(*before, *shards),
            index_sha256=hashlib.sha256(content).hexdigest(),
        )
        (aside / INDEX).write_bytes(content)
        content_of = {"digest": manifest.digest, **manifest.model_dump(mode="json")}
        (aside / MANIFEST).write_text(json.dumps(content_of, indent=1))
    return manifest


def _link_shards(taken: Taken, aside: Path) -> None:
    """Put the shards of another release beside the new ones, sharing its bytes where the file system can.

    Raises ReleaseError where one is missing or damaged.
    """
    for shard in taken.shards:
        for name in (shard.name, shard.listing):
            try:
                os.link(taken.folder / name, aside / name)
            except FileNotFoundError:
                raise ReleaseError(
                    f"{taken.folder / name} is missing, so nothing can grow from this release. Restore it from a copy."
                ) from None
            except OSError:  # another file system, or one without links
                shutil.copy2(taken.folder / name, aside / name)
    if damage := next(shard_problems(aside, taken.shards), None):
        problem = damage.replace(str(aside), str(taken.folder))
        raise ReleaseError(f"nothing can grow from {taken.folder}: {problem} Restore it from a copy.")


def _encoded(samples: Sequence[Sample], workers: int) -> Iterator[Encoded]:
    """The samples encoded by so many threads, in their order, a few ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Encoded]] = deque()
        for sample in samples:
            ahead.append(pool.submit(sample.encode))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)


def _index_table(index: list[Row]) -> pa.Table:
    import pyarrow as pa

    columns = {name: [row[name] for row in index] for name in INDEX_COLUMNS}
    if any(name in row for row in index for name in ERRORS):
        columns |= {name: [row.get(name, math.nan) for row in index] for name in ERRORS}
    columns["coefficients"] = pa.array(columns["coefficients"], pa.list_(pa.float32()))
    return pa.table(columns)


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()
