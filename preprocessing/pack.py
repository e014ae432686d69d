"""From the archive to a release: shuffled, split by star, standardised, in shards named by their content."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from harps_dist.data.keyed import key_of, permutation
from harps_dist.data.manifest import (
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    GridSpec,
    Kind,
    LabelStatistics,
    Manifest,
    Shard,
)
from harps_dist.data.split import PAPER_FRACTIONS, split_of
from harps_dist.errors import ArchiveError
from harps_dist.files import publish_folder
from harps_dist.spectra.labels import LABEL, NAMES
from harps_dist.spectra.standardise import standardise
from preprocessing.archive import Archive

SHARD_BYTES = 256 * 2**20
_TAIL = {"real": "flux", "simulated": "sed", "response": "response", "generative": "sed"}


class Sample(NamedTuple):
    """One sample on its way into a shard: its index row, without where its bytes lie, and how to get its array."""

    row: dict[str, Any]
    read: Callable[[], tuple[np.ndarray, float]]


def pack(
    archive_path: Path,
    release: Path,
    fractions: tuple[float, float, float] = PAPER_FRACTIONS,
    keep_out_of_range: bool = False,
    description: str = "",
    genuine: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a release of everything in the archive that may be trained on.

    fractions: of stars in train, validation and test. keep_out_of_range: keep spectra with a label outside the
    paper's ranges, which are left out and counted otherwise, as are flagged ones always. genuine: False
    where no telescope was involved, which every report then says. progress is told (samples done, samples in all).
    The folder appears when it is whole; a release that stood there is replaced. Raises ArchiveError where the
    archive has nothing to pack.
    """
    archive = Archive(archive_path)
    left_out: Counter[str] = Counter()
    samples: dict[Kind, list[Sample]] = {
        "real": list(_real(archive, fractions, keep_out_of_range, left_out)),
        "simulated": list(_simulated(archive, fractions)),
        "response": list(_responses(archive)),
        "generative": list(_generative(archive)),
    }
    total = sum(map(len, samples.values()))
    if not total:
        raise ArchiveError(
            f"{archive_path} holds nothing to pack ({dict(left_out)}). Ingest spectra or ETC runs first."
        )
    release.parent.mkdir(parents=True, exist_ok=True)
    with publish_folder(release) as aside:
        index: list[dict[str, Any]] = []
        writers: list[_ShardWriter] = []
        for kind, of_kind in samples.items():
            for number in permutation(len(of_kind), "pack", kind):
                sample = of_kind[number]
                if not writers or writers[-1].kind != kind or writers[-1].size > shard_bytes:
                    writers.append(_ShardWriter(aside, kind, len(writers)))
                index.append(writers[-1].add(sample))
                progress(len(index), total)
        shards = [writer.close() for writer in writers]
        for row in index:
            row["shard"] = shards[row["shard"]].name
        table = _index_table(index)
        manifest = Manifest(
            description=description,
            genuine=genuine,
            grid=GridSpec(name=archive.grid.name, start=archive.grid.start, length=archive.grid.length),
            source_margin=archive.grid.start - archive.source_grid.start,
            split_fractions=fractions,
            label_statistics=_label_statistics(index),
            counts={kind: len(of_kind) for kind, of_kind in samples.items()},
            left_out=dict(sorted(left_out.items())),
            shards=tuple(shards),
            index_sha256=hashlib.sha256(table).hexdigest(),
        )
        (aside / INDEX).write_bytes(table)
        content = {"digest": manifest.digest, **manifest.model_dump(mode="json")}
        (aside / MANIFEST).write_text(json.dumps(content, indent=1))
    return manifest


def _real(
    archive: Archive, fractions: tuple[float, float, float], keep_out_of_range: bool, left_out: Counter[str]
) -> Iterator[Sample]:
    columns = _columns(
        archive, "real", "key", "target", "object", "flag", "snr", "berv", "airmass", "rv", "teff", "mh", "logg"
    )
    for number, values in enumerate(columns):
        if values["flag"]:
            left_out[values["flag"]] += 1
            continue
        outside = [name for name in ("teff", "mh", "logg") if _outside(name, values[name])]
        if outside and not keep_out_of_range:
            left_out[f"{outside[0]} outside {LABEL[outside[0]].training[0]:g}..{LABEL[outside[0]].training[1]:g}"] += 1
            continue
        labels = {name: values.get(name, np.nan) for name in NAMES}
        if _outside("airmass", labels["airmass"]):
            labels["airmass"] = np.nan
        row = {
            "key": f"real-{values['key']}",
            "star": values["target"],
            "split": split_of(values["target"], fractions),
            "object": values["object"],
            "response": "",
            "snr": values["snr"],
            **labels,
        }
        yield Sample(row, partial(_standardised, archive, number))


def _simulated(archive: Archive, fractions: tuple[float, float, float]) -> Iterator[Sample]:
    """Every SED seen through one response: that of its own ETC run, else one chosen by the hash of its id."""
    responses = sorted(_columns(archive, "response", "key", "sed", "airmass", "pwv", "snr"), key=lambda r: r["key"])
    if not responses:
        return
    own = {response["sed"]: response for response in responses}
    for number, values in enumerate(_columns(archive, "sed", "key", "teff", "mh", "logg")):
        response = own.get(values["key"]) or responses[key_of("response of", values["key"]) % len(responses)]
        labels = dict.fromkeys(NAMES, np.nan) | {name: values[name] for name in ("teff", "mh", "logg")}
        row = {
            "key": f"sed-{values['key']}",
            "star": f"sed-{values['key']}",
            "split": split_of(f"sed-{values['key']}", fractions),
            "object": values["key"],
            "response": f"response-{response['key']}",
            "snr": response["snr"],
            **labels,
            "airmass": response["airmass"],
            "pwv": response["pwv"],
        }
        yield Sample(row, partial(_stored, archive, "sed", number))


def _responses(archive: Archive) -> Iterator[Sample]:
    for number, values in enumerate(_columns(archive, "response", "key", "sed", "airmass", "pwv", "snr")):
        row = {
            "key": f"response-{values['key']}",
            "star": "",
            "split": "",
            "object": values["sed"],
            "response": "",
            "snr": values["snr"],
            **dict.fromkeys(NAMES, np.nan),
            "airmass": values["airmass"],
            "pwv": values["pwv"],
        }
        yield Sample(row, partial(_stored, archive, "response", number))


def _generative(archive: Archive) -> Iterator[Sample]:
    """SEDs that differ in one label within a core; a core stands in the place of a star."""
    names = ("key", "core", "varied", "split", "etc_run", "teff", "mh", "logg")
    responses = {r["key"]: r for r in _columns(archive, "response", "key", "airmass", "pwv", "snr")}
    for number, values in enumerate(_columns(archive, "generative", *names)):
        response = responses[values["etc_run"]]
        row = {
            "key": f"generative-{values['key']}",
            "star": f"core-{values['core']}",
            "split": values["split"],
            "object": values["key"],
            "response": f"response-{response['key']}",
            "snr": response["snr"],
            "varied": values["varied"],
            **dict.fromkeys(NAMES, np.nan),
            **{name: values[name] for name in ("teff", "mh", "logg")},
            "airmass": response["airmass"],
            "pwv": response["pwv"],
        }
        yield Sample(row, partial(_stored, archive, "generative", number))


def _standardised(archive: Archive, number: int) -> tuple[np.ndarray, float]:
    return standardise(archive.data("real", number), archive.grid)


def _stored(archive: Archive, group: str, number: int) -> tuple[np.ndarray, float]:
    return archive.data(group, number), 1.0


def _columns(archive: Archive, group: str, *names: str) -> list[dict[str, Any]]:
    columns = [archive.column(group, name) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _outside(name: str, value: float) -> bool:
    low, high = LABEL[name].training
    return bool(np.isfinite(value) and not low <= value <= high)


class _ShardWriter:
    """One tar shard: adjacent members, fixed times and owners, so equal samples make equal bytes."""

    def __init__(self, folder: Path, kind: Kind, number: int):
        self.kind, self._number = kind, number
        self._path = folder / f"{kind}-{number:06d}.tar"
        self._file = self._path.open("wb")
        self._samples = 0

    @property
    def size(self) -> int:
        return self._file.tell()

    def add(self, sample: Sample) -> dict[str, Any]:
        """Write a sample; returns its index row."""
        array, median = sample.read()
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(array, np.float32), version=(1, 0))
        content = stream.getvalue()
        row = {"kind": self.kind, "median": median, "varied": "", **sample.row}
        described = {name: None if value != value else value for name, value in row.items()}  # NaN is no JSON
        member = member_name(row["key"])
        self._member(f"{member}.json", json.dumps(described, sort_keys=True).encode())
        offset = self._member(f"{member}.{_TAIL[self.kind]}.npy", content)
        self._samples += 1
        where = {"shard": self._number, "offset": offset, "bytes": len(content), "crc32": zlib.crc32(content)}
        return row | where

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._file.write(info.tobuf(tarfile.GNU_FORMAT))
        offset = self._file.tell()
        self._file.write(content)
        self._file.write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> Shard:
        """Finish the tar and rename it after its content."""
        self._file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        size = self.size
        self._file.close()
        with self._path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{self._path.stem}-{sha256[:12]}.tar"
        shutil.move(self._path, self._path.with_name(name))
        return Shard(name=name, sha256=sha256, bytes=size, samples=self._samples)


def member_name(key: str) -> str:
    """A key as a tar member's stem: WebDataset cuts at the first dot, and ESO ids hold dots and colons."""
    return quote(key, safe="").replace(".", "%2E")


def _label_statistics(index: list[dict[str, Any]]) -> dict[str, LabelStatistics]:
    """Mean and deviation per label over the training split: real spectra's where they have it, else simulated."""
    statistics = {}
    for name in NAMES:
        for kind in ("real", "simulated"):
            values = np.array(
                [
                    row[name]
                    for row in index
                    if row["kind"] == kind and row["split"] == "train" and row[name] == row[name]
                ]
            )
            if len(values) > 1:
                statistics[name] = LabelStatistics(
                    mean=float(values.mean()), std=float(values.std()), count=len(values)
                )
                break
    return statistics


def _index_table(index: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({name: [row[name] for row in index] for name in INDEX_COLUMNS}), stream)
    return stream.getvalue()
