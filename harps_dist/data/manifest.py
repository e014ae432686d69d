"""What a release is: a manifest, an index with one row a sample, and tar shards named by their content.

    release/
      manifest.json          grid, label statistics, codec, split, shards with sha256, digest, parent
      index.parquet          one row a sample: key, kind, star, split, labels, and where its bytes lie
      real-000000-<sha>.tar  WebDataset shards: KEY.json, KEY.flux.*, valid pixels only
      simulated-…            KEY.json, KEY.sed.npy: B-spline coefficients of an SED; it may make many samples
      response-…             KEY.json, KEY.residual.npy; before them the basis that all responses are combinations of
      generative-…           KEY.json, KEY.sed.npy: simulated samples that differ in one label, for GIS (Eq. 17)
      <shard>.idx            where each member lies, in the format of NVIDIA DALI's WebDataset reader

Stock `webdataset` reads the shards; the index makes every sample one byte range away.

Tested in tests/integration/test_release_content.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from harps_dist.data.split import PAPER_FRACTIONS, SALT, SplitName
from harps_dist.errors import ReleaseError
from harps_dist.frozen import Frozen
from harps_dist.spectra.grid_spec import GridSpec
from harps_dist.spectra.labels import NAMES, SEVEN
from harps_dist.text import NAN

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from harps_dist.data.stores import Store

SCHEMA = 5
OLDEST = 4  # schema that is still read
MANIFEST = "manifest.json"
INDEX = "index.parquet"

CodecName = Literal["noise", "u16", "lossless"]
MOST_BLOCKS = 10**7  # of a release and all that it grew from: 80 TB
BOUND = 0.1  # of a sample's error, in standard deviations of its own photon noise

SampleKind = Literal["real", "simulated", "response", "generative", "basis"]
KINDS_WITH_LABELS: tuple[Literal["real", "simulated"], ...] = ("real", "simulated")
INDEX_COLUMNS = (
    *("key", "kind", "star", "split", "object", "shard", "block", "offset", "bytes", "crc32c"),
    *("scale", "zero", "response", "coefficients", "snr", "median", "error", "varied", *NAMES),
    *("mjd", "ra", "dec", "pipeline", "catalogue_id", "generation"),
    *("origin", "simulated", "content"),
)
ERRORS = tuple(f"{name}_error" for name in NAMES)  # of the index of a release with labels of fits
SINCE_5 = ("origin", "simulated", "content")  # of the index; texts, '' where the release is older


class Codec(Frozen):
    """How samples are stored, and how well.

    real: "noise", "u16" or "lossless". step: of "noise", in standard deviations of the photon noise. bound: no sample
    is off by more, as root mean square over its valid pixels in standard deviations of its own photon noise; largest:
    by how much the worst of each kind is. response_terms: vectors of the basis for log R, log R2 / R and log V0.
    response_pixels: where each of these vectors is met exactly.
    """

    real: CodecName
    step: float
    bound: float
    largest: dict[str, float]
    response_terms: tuple[int, int, int]
    response_pixels: tuple[int, ...]


class Shard(Frozen):
    """One tar file; `samples` counts its members' keys. index_sha256: of the .idx beside it. name: a plain one, since
    files are read and linked by it."""

    name: str
    sha256: str
    bytes: int = Field(ge=0)
    samples: int = Field(ge=0)
    index_sha256: str

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar", name, re.ASCII):
            raise ValueError(f"{name!r} is no plain name of a tar file")
        return name

    @property
    def listing(self) -> str:
        """Name of the .idx."""
        return f"{self.name.removesuffix('.tar')}.idx"


class LabelStatistics(Frozen):
    """Mean and standard deviation of a label over the labelled samples of the training split."""

    mean: float
    std: float
    count: int


class FittedLabels(Frozen):
    """Labels that fits gave real spectra of the training split, where the catalogue has none.

    fits: digest of the fits, their labels and errors. counts: how many spectra got each label. passed_over: how many
    fits gave none, and why.
    """

    fits: str
    counts: dict[str, int]
    passed_over: dict[str, int]


class Manifest(Frozen):
    """The release's table of contents. `digest` identifies it: equal digest, equal bytes of data.

    genuine: whether all samples called real came from a telescope, as far as their files say. origins: how many of them
    have which ORIGIN in their headers, '' where it is not known. simulated: of how many the header says that no
    telescope took them, by what it says; the release is not genuine then. ancestors: digests of the releases that this
    one grew from, the first one first. source: digest of what the archive held. withdrawn: data products that no
    release takes any more, and why; their bytes may still lie in shards of older generations, as those of superseded
    versions do, but no row of the index leads there. other_forms: data products that are another form of an exposure,
    each with the product that stands for it. counts: samples of each kind. fitted: labels of fits, where there are any.
    """

    schema_version: int = SCHEMA
    description: str
    genuine: bool
    origins: dict[str, int] = Field(default_factory=dict)
    simulated: dict[str, int] = Field(default_factory=dict)
    ancestors: tuple[str, ...] = ()
    source: str
    keep_out_of_range: bool = False
    grid: GridSpec
    source_margin: int
    split_fractions: tuple[float, float, float] = PAPER_FRACTIONS
    split_salt: str = SALT
    label_statistics: dict[str, LabelStatistics]
    codec: Codec
    counts: dict[str, int]
    left_out: dict[str, int]
    withdrawn: dict[str, str]
    other_forms: dict[str, str] = Field(default_factory=dict)
    fitted: FittedLabels | None = None
    shards: tuple[Shard, ...]
    index_sha256: str

    @model_validator(mode="after")
    def _files_decide(self) -> Manifest:
        if self.genuine and self.simulated:
            raise ValueError(f"it calls spectra genuine whose files say {', '.join(self.simulated)}")
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            raise ValueError("it names a shard twice")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A release without other forms, or labels of fits, has the file and the digest that it had before these were
        noted."""
        later = ("other_forms", "fitted")
        return {key: value for key, value in handler(self).items() if value or key not in later}

    @property
    def not_genuine(self) -> str:
        """Why its real spectra may not be called so, in a few words; '' where they may."""
        if self.genuine:
            return ""
        said, of = ", ".join(sorted(self.simulated)[:3]), sum(self.simulated.values())
        if not of:
            return "not genuine"
        every = self.counts.get("real", 0)
        return f"{said}; not genuine" if of == every else f"{said} in {of:,} of {every:,}; not genuine as a whole"

    @property
    def genuine_spectra(self) -> int:
        """How many real spectra may be called so."""
        every, said = self.counts.get("real", 0), sum(self.simulated.values())
        return every if self.genuine else every - said if said else 0

    @property
    def parent(self) -> str | None:
        """Digest of the release that this one grew from, None for one that was packed from an archive alone."""
        return self.ancestors[-1] if self.ancestors else None

    @property
    def generation(self) -> int:
        """How often it grew: the generation of what came last."""
        return len(self.ancestors)

    @property
    def digest(self) -> str:
        """sha256 over everything above but the index, which only says where the shards' bytes lie."""
        later: dict[str, Any] = {"origins": True, "simulated": True, "grid": {"instrument"}}
        content = self.model_dump(
            mode="json", exclude={"index_sha256": True} | (later if self.schema_version < 5 else {})
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(store: Store, location: str | Path) -> Manifest:
    """Read a release's manifest; raises ReleaseError where it is missing, newer than this code or damaged."""
    path = f"{location}/{MANIFEST}"
    content = store.whole(
        MANIFEST,
        f"{location} is not a release. Make one with `python -m preprocessing pack --archive ARCHIVE "
        f"--release {location}`.",
    )
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise ReleaseError(f"{path} is damaged ({error}). Pack the release again.") from None
    schema = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or not OLDEST <= schema <= SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ReleaseError(
            f"{path} has schema version {schema}, this code knows {OLDEST} to {SCHEMA}. "
            f"{'Update harps_dist.' if newer else 'Pack the release again.'}"
        )
    stated = raw.pop("digest", None)
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise ReleaseError(f"{path} is damaged: {error}. Pack the release again.") from None
    if stated != manifest.digest:
        raise ReleaseError(
            f"{path} states digest {str(stated)[:12]}, but its content has {manifest.digest[:12]}. "
            f"It was edited or damaged: pack the release again."
        )
    return manifest


class Index:
    """The samples of a release, one row each, as columns in memory.

    Numeric columns are NumPy arrays, text columns arrays of object. labels: (row, len(NAMES)) float64, NaN where
    missing. errors: of those that a fit gave, likewise, as standard deviations; NaN for a catalogue's.
    """

    def __init__(self, table: pa.Table):
        table = with_later_columns(table)
        missing = set(INDEX_COLUMNS) - set(table.column_names)
        if missing:
            raise ReleaseError(f"the index lacks columns {sorted(missing)}. Pack the release again.")
        self._columns = {name: table[name].to_numpy(zero_copy_only=False) for name in INDEX_COLUMNS}
        self.labels = np.stack([self._columns[name] for name in NAMES], axis=1)
        self.errors = np.full(self.labels.shape, np.nan)
        for column, name in enumerate(ERRORS):
            if name in table.column_names:
                self.errors[:, column] = table[name].to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column]

    @property
    def truths(self) -> np.ndarray:
        """The labels without those of fits, which nothing is judged by."""
        return np.where(np.isnan(self.errors), self.labels, np.nan)

    def rows(self, kind: SampleKind, split: SplitName | Literal["all"] = "all") -> np.ndarray:
        """Row numbers of one kind and split, in the release's order."""
        chosen = self["kind"] == kind
        if split != "all":
            chosen &= self["split"] == split
        return np.flatnonzero(chosen)

    def shared(self, label: str) -> float:
        """The value of a label that all simulated spectra have, NaN where they differ, or one does not tell."""
        values = self.labels[self.rows("simulated"), NAMES.index(label)]
        return float(values[0]) if len(values) and (values == values[0]).all() else NAN

    def check(self, manifest: Manifest) -> None:
        """Raises ReleaseError where a row leads elsewhere than into a shard of the manifest."""
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        size = np.array([sizes.get(name, -1) for name in self["shard"].tolist()], np.int64)
        offset, length = self["offset"].astype(np.int64), self["bytes"].astype(np.int64)
        block = self["block"].astype(np.int64)
        astray = (size < 0) | (offset < 0) | (length < 0) | (length > size - offset)
        astray |= (block < 0) | (block >= MOST_BLOCKS)
        if astray.any():
            row = int(np.flatnonzero(astray)[0])
            raise ReleaseError(
                f"{INDEX} says that sample {self['key'][row]!r} lies in {self['shard'][row]!r} at bytes "
                f"{offset[row]}+{length[row]}, where no shard of the manifest is. Pack the release again."
            )


def with_later_columns(table: pa.Table) -> pa.Table:
    """An index with the columns that younger schemas and labels added since have, empty where it has them not."""
    import pyarrow as pa

    for name in set(NAMES) - set(SEVEN) - set(table.column_names):
        table = table.append_column(name, pa.array([NAN] * len(table), pa.float64()))
    for name in SINCE_5:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([""] * len(table), pa.string()))
    return table


def with_errors(table: pa.Table) -> pa.Table:
    """An index with the columns of labels of fits, empty where it has them not."""
    import pyarrow as pa

    for name in ERRORS:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([NAN] * len(table), pa.float64()))
    return table.select([*INDEX_COLUMNS, *ERRORS])


def read_index(store: Store, manifest: Manifest) -> Index:
    """Read and check the index; raises ReleaseError where its sha256 is not the manifest's, or it leads out of it."""
    index = Index(read_index_table(store, manifest))
    index.check(manifest)
    return index


def read_index_table(store: Store, manifest: Manifest) -> pa.Table:
    """The index as it is stored; raises ReleaseError where its sha256 is not the manifest's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = store.whole(INDEX, "Copy it to where the manifest lies, or pack the release again.")
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.index_sha256:
        raise ReleaseError(
            f"{INDEX} is damaged: sha256 {found[:12]}, {MANIFEST} says {manifest.index_sha256[:12]}. "
            f"Pack the release again or copy it anew."
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        return file.read(use_threads=False)  # Arrow's threads may abort a process that ends soon after
    except (pa.ArrowException, OSError) as error:
        raise ReleaseError(f"{INDEX} is no Parquet file ({error}). Pack the release again.") from None
