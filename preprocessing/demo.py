"""The embedded demo: format-true simulated files, ingested and packed like genuine ones, built on first use.

Tested in tests/integration/test_preprocessing.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from harps_dist.data.manifest import MANIFEST
from harps_dist.frozen import Frozen
from harps_dist.ownership import OutputKind, check, claimed, first_line, home
from harps_dist.progress import Progress
from harps_dist.spectra.grid import named_grid

DESCRIPTION = (
    "Demo: stars simulated by this project from ATLAS9 model atmospheres and observed through a simulated "
    "HARPS; no genuine spectrum among them."
)
HOME = "HARPS_DIST_DEMO"
COMPLETE = "complete"  # in a folder of files, once they are all there


def _was_complete(folder: Path) -> bool:
    return (folder / COMPLETE).exists() and first_line(folder / "catalog.csv").startswith("TIC,name,ra,dec,Teff,")


FILES = home("folder of the demo's files", "--folder", _was_complete)


def _is_demo(folder: Path) -> bool:
    return any(FILES.ours(place) for place in (folder / "files", *folder.glob("delivery-*")) if place.is_dir())


DEMO = OutputKind("demo", "--folder", _is_demo, "home")


class DemoSize(Frozen):
    """How large the demo is."""

    stars: int = Field(200, ge=1)
    """Stars that are observed."""
    visits: float = Field(3.0, ge=1)
    """Mean number of spectra of a star."""
    seds: int = Field(1500, ge=1)
    """Model spectra that stars are simulated from."""
    etc_runs: int = Field(24, ge=2)
    """Outputs of the Exposure Time Calculator."""
    cores: int = Field(20, ge=0)
    """Cores of the generative set, each of which interventions vary."""
    grid: str = "demo"
    """Grid of wavelengths: harps, demo or tiny."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of stars for train, validation and test."""
    seed: int = 1
    """Seed of all that is drawn."""


def demo_home() -> Path:
    """The folder of the demo: $HARPS_DIST_DEMO, or `demo` in the working directory."""
    return Path(os.environ.get(HOME, "demo"))


def is_built(folder: Path) -> bool:
    """Whether the demo's release is there."""
    from preprocessing.pack import RELEASE

    release = folder / "release"
    return (release / MANIFEST).exists() and RELEASE.ours(release)


def build_demo(folder: Path, size: DemoSize, progress: Progress) -> Path:
    """Write, ingest and pack the demo; returns its release. What is there already is not made again.

    Raises OutputError where something else stands there, or another process is at it.
    """
    from harps_dist.formats.archive import ARCHIVE
    from preprocessing.pack import RELEASE
    from preprocessing.simulator.demo_files import write_demo

    release, archive = folder / "release", folder / "archive.zarr"
    if is_built(folder):
        return release
    files = folder / "files"
    for output in ((folder, DEMO), (files, FILES), (archive, ARCHIVE), (release, RELEASE)):
        check(*output)
    with claimed(folder, DEMO), claimed(files, FILES):
        if not (files / COMPLETE).exists():
            write_demo(files, size.stars, size.visits, size.seds, size.etc_runs, size.cores, size.seed, progress)
            (files / COMPLETE).touch()
        _pack_demo(files, archive, release, size, progress)
    return release


def _pack_demo(files: Path, archive: Path, release: Path, size: DemoSize, progress: Progress) -> None:
    from preprocessing.catalog import Catalog
    from preprocessing.etc import ingest_etc
    from preprocessing.generative import ingest_generative
    from preprocessing.ingest import ingest_spectra
    from preprocessing.pack import Settings, pack
    from preprocessing.simulator.design import DESIGN

    catalog, grid = Catalog.read(files / "catalog.csv"), named_grid(size.grid)

    ingest_spectra(files / "spectra", archive, grid, catalog, progress=progress)
    ingest_etc(files / "etc", archive, grid, files / "sed", progress=progress)
    ingest_generative(files / "generative" / DESIGN, archive, grid, progress)
    settings = Settings(fractions=size.split, description=DESCRIPTION)
    pack(archive, release, settings, progress=progress)


def build_delivery(folder: Path, size: DemoSize, number: int, progress: Progress) -> Path:
    """Write spectra and a catalogue by which the demo may grow by 5 % of its stars, and visits to as many old ones."""
    from preprocessing.simulator.demo_files import write_delivery

    delivery, share = folder / f"delivery-{number}", -(-size.stars // 20)
    check(folder, DEMO)
    with claimed(delivery, FILES):
        if not (delivery / COMPLETE).exists():
            write_delivery(delivery, size.stars, size.seed, number, share, share, progress)
            (delivery / COMPLETE).touch()
    return delivery


def resolve_release(release: str) -> str | Path:
    """Where a release is: a path, a URL, or "demo" for the embedded one, which is built where it is missing."""
    if release != "demo":
        return release
    from harps_dist.progress import progress_bars

    with progress_bars() as progress:
        return build_demo(demo_home(), DemoSize(), progress)
