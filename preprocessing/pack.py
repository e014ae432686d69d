"""From the archive to a release: shuffled, split by star, standardised, quantised, in shards named by their content."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from harps_dist.data.codec import STEP
from harps_dist.data.keyed import permutation
from harps_dist.data.manifest import (
    BOUND,
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    Codec,
    CodecName,
    GridSpec,
    Kind,
    LabelStatistics,
    Manifest,
)
from harps_dist.data.split import PAPER_FRACTIONS
from harps_dist.errors import ArchiveError
from harps_dist.files import publish_folder
from harps_dist.spectra.labels import NAMES
from preprocessing.archive import Archive
from preprocessing.samples import (
    Coding,
    Encoded,
    Row,
    Sample,
    basis_samples,
    generative_samples,
    real_samples,
    response_samples,
    simulated_samples,
)
from preprocessing.shards import ShardWriter

SHARD_BYTES = 256 * 2**20


def pack(
    archive_path: Path,
    release: Path,
    fractions: tuple[float, float, float] = PAPER_FRACTIONS,
    keep_out_of_range: bool = False,
    description: str = "",
    genuine: bool = True,
    real_codec: CodecName = "noise",
    bound: float = BOUND,
    parent: str | None = None,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a release of everything in the archive that may be trained on.

    fractions: of stars in train, validation and test. keep_out_of_range: keep spectra with a label outside the
    paper's ranges, which are left out and counted otherwise, as are flagged ones always. genuine: False
    where no telescope was involved, which every report then says. real_codec: of real spectra. bound: largest error
    of a sample in standard deviations of its own photon noise; what exceeds it is left out and counted. parent: digest
    of the release before. workers: threads that encode. progress is told (samples done, samples in all).
    The folder appears when it is whole; a release that stood there is replaced. Raises ArchiveError where the
    archive has nothing to pack.
    """
    archive = Archive(archive_path)
    left_out: Counter[str] = Counter()
    coding = Coding.of(archive, real_codec)
    samples: dict[Kind, list[Sample]] = {
        "real": list(real_samples(coding, fractions, keep_out_of_range, left_out)),
        "simulated": list(simulated_samples(coding, fractions)),
        "basis": list(basis_samples(coding)),
        "response": list(response_samples(coding)),
        "generative": list(generative_samples(coding)),
    }
    done, total = 0, sum(map(len, samples.values()))
    if not total:
        raise ArchiveError(
            f"{archive_path} holds nothing to pack ({dict(left_out)}). Ingest spectra or ETC runs first."
        )
    release.parent.mkdir(parents=True, exist_ok=True)
    with publish_folder(release) as aside:
        index: list[Row] = []
        writers: list[ShardWriter] = []
        for kind, of_kind in samples.items():
            shuffled = [of_kind[number] for number in permutation(len(of_kind), "pack", kind)]
            for sample, (tail, content, rows) in zip(shuffled, _encoded(shuffled, workers), strict=True):
                kept = [row for row in rows if not row["error"] > bound]
                if len(kept) < len(rows):
                    left_out[f"{kind} with an error above {bound:g} of its noise"] += len(rows) - len(kept)
                done += 1
                progress(done, total)
                if not kept:
                    continue
                if not writers or writers[-1].kind != kind or writers[-1].size > shard_bytes:
                    writers.append(ShardWriter(aside, kind, len(writers), writers[-1].blocks if writers else 0))
                where = writers[-1].add(sample.key, {"key": sample.key, "samples": kept}, tail, content)
                index += [{"kind": kind, "shard": len(writers) - 1} | where | row for row in kept]
        shards = [writer.close() for writer in writers]
        for row in index:
            row["shard"] = shards[row["shard"]].name
        table = _index_table(index)
        manifest = Manifest(
            description=description,
            genuine=genuine,
            parent=parent,
            grid=GridSpec(name=archive.grid.name, start=archive.grid.start, length=archive.grid.length),
            source_margin=archive.grid.start - archive.source_grid.start,
            split_fractions=fractions,
            label_statistics=_label_statistics(index),
            codec=Codec(
                real=real_codec,
                step=STEP,
                bound=bound,
                largest=_largest_errors(index),
                response_terms=coding.basis.counts,
            ),
            counts=dict(Counter(row["kind"] for row in index if row["kind"] != "basis")),
            left_out=dict(sorted(left_out.items())),
            shards=tuple(shards),
            index_sha256=hashlib.sha256(table).hexdigest(),
        )
        (aside / INDEX).write_bytes(table)
        content_of = {"digest": manifest.digest, **manifest.model_dump(mode="json")}
        (aside / MANIFEST).write_text(json.dumps(content_of, indent=1))
    return manifest


def _encoded(samples: Sequence[Sample], workers: int) -> Iterator[Encoded]:
    """The samples encoded by so many threads, in their order, a few ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Encoded]] = deque()
        for sample in samples:
            ahead.append(pool.submit(sample.encode))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        yield from (future.result() for future in ahead)


def _largest_errors(index: list[Row]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for row in index:
        if row["error"] == row["error"]:
            largest[row["kind"]] = max(largest.get(row["kind"], 0.0), row["error"])
    return largest


def _label_statistics(index: list[Row]) -> dict[str, LabelStatistics]:
    """Mean and deviation per label over the training split: real spectra's where they have it, else simulated.

    Sums are rounded once, so that they are the same on every machine.
    """
    statistics = {}
    for name in NAMES:
        for kind in ("real", "simulated"):
            rows = (row for row in index if row["kind"] == kind and row["split"] == "train")
            values = [float(row[name]) for row in rows if row[name] == row[name]]
            if len(values) > 1:
                mean = math.fsum(values) / len(values)
                variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
                statistics[name] = LabelStatistics(mean=mean, std=math.sqrt(variance), count=len(values))
                break
    return statistics


def _index_table(index: list[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    columns = {name: [row[name] for row in index] for name in INDEX_COLUMNS}
    columns["coefficients"] = pa.array(columns["coefficients"], pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()
