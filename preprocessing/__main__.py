"""`python -m preprocessing COMMAND`: from files to an archive to a release that grows, and what changed.

Example: `harps-dist pack --archive A.zarr --release R1`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import tyro

from harps_dist.console import console_for, end_with, say
from harps_dist.data.manifest import CodecName
from harps_dist.errors import ConfigError
from harps_dist.ownership import check, write_json
from harps_dist.progress import progress_bars
from harps_dist.spectra.grid import Grid, named_grid
from preprocessing.demo import DEMO, DemoSize, build_delivery, build_demo, demo_home, is_built
from preprocessing.taken_in import counted, say_report, taken_in


def fetch(
    spectra: Path,
    programme: tuple[str, ...] = (),
    since: str | None = None,
    objects: Path | None = None,
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False,
    every_form: tyro.conf.FlagCreatePairsOff[bool] = False,
    connections: int = 4,
    service: str = "https://archive.eso.org/tap_obs",
    collection: str = "HARPS",
    token_hosts: tuple[str, ...] = ("archive.eso.org", "dataportal.eso.org"),
) -> int:
    """Fetch spectra from an archive on the web into a folder, as many as are missing there.

    What is asked for has to hold together: a programme, and since then, and of these objects.

    Example: `harps-dist fetch --spectra night --programme 072.C-0488 --since 2026-11-01`.

    Args:
        spectra: Folder that the files go to and that ingest reads; made where it is missing.
        programme: Observing programmes with all their runs, as 072.C-0488, or runs, as 072.C-0488(E).
        since: Day from which on spectra were taken, as 2026-11-01; or last, for what the archive has gained since the
            last such fetch into this folder.
        objects: List of stars with names, or with ra and dec in degrees: CSV, FITS, VOTable, Parquet, or .txt of names.
        dry_run: Say how many there are and how large, and write nothing.
        every_form: Fetch all products of an exposure, not the newest alone.
        connections: Files that are fetched at a time.
        service: Address of the archive's TAP service, which has a table ivoa.ObsCore.
        collection: Name of the collection in that table.
        token_hosts: Servers that get the token in the environment variable HARPS_DIST_TOKEN; no other does.
    """
    from preprocessing.fetch import FETCHED, Fetch, Request, lines_of

    check(spectra, FETCHED)
    request = Request(service, collection, programme, since, objects, every_form, connections, token_hosts)
    asked = Fetch(spectra, request)
    plan = asked.plan()
    console_for().print(plan.table())
    with progress_bars(quiet=dry_run) as progress:
        done = None if dry_run else asked.run(plan, progress)
    for line in lines_of(spectra, plan, done):
        say(line)
    return 1 if done and done.failed else 0


def ingest(
    spectra: Path,
    archive: Path,
    catalog: Path | None = None,
    grid: str | None = None,
    workers: int = 1,
    part: str | None = None,
    columns: str | None = None,
) -> int:
    """Add ESO Phase 3 (ADP) and DRS s1d spectra to an archive.

    Example: `harps-dist ingest --spectra spectra --catalog labels.csv --archive A.zarr`.

    Args:
        spectra: Folder (searched recursively) or single file; .fits, .fits.gz, .bz2, .fz, or a .tar that holds one.
        archive: Zarr archive, made where it is missing.
        catalog: Stellar labels: CSV, TSV, ECSV, FITS, VOTable or Parquet.
        grid: Grid of wavelengths, harps, demo or tiny; default is the archive's own, or harps for a new one.
        workers: Processes that read files.
        part: Part of the files that alone is ingested, as 3/16, into an archive in ARCHIVE.parts, to be merged.
        columns: Columns of the catalogue that names do not tell, as teff=Teff_spec,logg=g_spec.
    """
    from harps_dist.formats.archive import ARCHIVE
    from preprocessing.catalog import Catalog
    from preprocessing.catalog_files import column_lines, parse_columns
    from preprocessing.ingest import ingest_spectra
    from preprocessing.merge import Part

    check(archive, ARCHIVE)
    share, mapping = Part.parse(part) if part else None, parse_columns(columns) if columns else None
    known = Catalog.read(catalog, mapping=mapping) if catalog else None
    for line in column_lines(known.used, known.unused) if known else ():
        say(line)
    return taken_in(
        archive,
        share,
        (spectra,),
        lambda into, wanted, progress: ingest_spectra(
            spectra, into, _grid(into, grid), known, workers, progress, wanted
        ),
    )


def merge(archive: Path, parts: int) -> int:
    """Put the parts of an archive together, in the order in which one ingest would have added them.

    Example: `harps-dist merge --archive A.zarr --parts 16`.

    Args:
        archive: Zarr archive whose parts lie in ARCHIVE.parts; made where it is missing.
        parts: Number of the parts.
    """
    from preprocessing.merge import merge as merge_parts

    with progress_bars() as progress:
        report = merge_parts(archive, parts, progress)
    return say_report(report, archive)


def etc(
    json: Path,
    archive: Path,
    seds: Path | None = None,
    grid: str | None = None,
    workers: int = 1,
    part: str | None = None,
) -> int:
    """Add Exposure Time Calculator 2.0 outputs, of either JSON generation, with their SEDs to an archive.

    Example: `harps-dist etc --json etc --seds sed --archive A.zarr --workers 4`.

    Args:
        json: Folder of .json or .json.gz outputs, searched recursively.
        archive: Zarr archive, made where it is missing.
        seds: Folder of SED files (.fits or .npz): those that requests name, and any others to simulate stars from.
        grid: Grid of wavelengths, harps, demo or tiny; default is the archive's own, or harps for a new one.
        workers: Processes that read files; the archive is the same.
        part: Part of the files that alone is taken, as 3/16, into an archive in ARCHIVE.parts, to be merged.
    """
    from preprocessing.etc import ingest_etc
    from preprocessing.merge import Part

    share = Part.parse(part, "etc-") if part else None
    return taken_in(
        archive,
        share,
        (json, *([seds] if seds else [])),
        lambda into, wanted, progress: ingest_etc(json, into, _grid(into, grid), seds, progress, workers, wanted),
    )


def generative(design: Path, archive: Path, grid: str | None = None) -> int:
    """Add the generative set, on which intervention scores are measured, to an archive that has its ETC runs.

    Example: `harps-dist generative --design generative/design.csv --archive A.zarr`.

    Args:
        design: CSV with columns sed, core, varied, split, etc_run, beside the SED files.
        archive: Zarr archive to add to.
        grid: Grid of wavelengths, harps, demo or tiny; default is the archive's own.
    """
    from preprocessing.generative import ingest_generative

    with progress_bars() as progress:
        report = ingest_generative(design, archive, _grid(archive, grid), progress)
    return say_report(report, archive)


def withdraw(
    archive: tyro.conf.Positional[Path],
    keys: tyro.conf.Positional[tuple[str, ...]] = (),
    reason: str = "",
    listed: Path | None = None,
) -> int:
    """Withdraw spectra from all releases to come; the archive keeps them, and old releases too.

    Example: `harps-dist withdraw A.zarr ADP.2014-09-16T11:05:45.500 --reason "wrong star"`.

    Args:
        archive: Zarr archive that has them.
        keys: Data product ids of the spectra.
        reason: Why they are withdrawn; releases repeat it.
        listed: File with one id a line, besides.
    """
    from preprocessing.withdraw import read_listed, withdraw_spectra

    lines = read_listed(listed) if listed else []
    named = (*keys, *filter(None, map(str.strip, lines)))
    fresh = withdraw_spectra(archive, named, reason)
    say(f"{archive}: withdrew {fresh} spectra, {len(set(named)) - fresh} were withdrawn already")
    return 0


def pack(
    archive: Path,
    release: Path,
    split: tuple[float, float, float] | None = None,
    keep_out_of_range: bool | None = None,
    description: str | None = None,
    genuine: tyro.conf.FlagCreatePairsOff[bool] = False,
    no_genuine: tyro.conf.FlagCreatePairsOff[bool] = False,
    codec: CodecName | None = None,
    bound: float | None = None,
    grow: Path | None = None,
    labels_from: Path | None = None,
    workers: int = 1,
) -> int:
    """Write a release, what training streams, from an archive.

    Example: `harps-dist pack --archive A.zarr --release R1 --workers 4`.

    Args:
        archive: Zarr archive that is packed.
        release: Folder to write; replaced in one step where it exists.
        split: Fractions of stars for train, validation and test; default 0.9 0.05 0.05.
        keep_out_of_range: Keep spectra with a label outside the paper's training ranges.
        description: A sentence about the data that evaluation reports repeat.
        genuine: Insist that all spectra came from a telescope: an error where a file says that it is simulated.
        no_genuine: Say that they did not, of files that do not say so themselves. Else the files decide.
        codec: How real spectra are stored: noise (steps of a quarter of the photon noise), u16 or lossless.
        bound: Largest error of a sample, in standard deviations of its own photon noise; others are left out.
        grow: Release to grow from: only what the archive has gained since is written; how it is split and stored is
            that release's matter.
        labels_from: Table that `harps-dist fit` wrote: labels with errors for spectra of the training split, where the
            catalogue has none.
        workers: Threads that encode samples; the release is the same.
    """
    from harps_dist.data.reader import Release
    from harps_dist.formats.fit_tables import read_fits
    from harps_dist.spectra.microturbulence import BIAS, TOO_HIGH_KMS
    from preprocessing.fitted import lines_of
    from preprocessing.growth import grow as grow_release
    from preprocessing.pack import Settings, manifest_of, replaced_because
    from preprocessing.pack import pack as write_release
    from preprocessing.splits import shortages, split_table, splits_of

    named = {"fractions": split, "keep_out_of_range": keep_out_of_range, "codec": codec, "bound": bound}
    chosen: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if genuine and no_genuine:
        raise ConfigError("--genuine and --no-genuine contradict each other. Give one, or neither: the files decide.")
    asked, before = (True if genuine else False if no_genuine else None), manifest_of(release)
    changes = Counter[str]()
    fits = read_fits(labels_from) if labels_from else None
    with progress_bars() as progress:
        if grow is None:
            settings = Settings(description=description or "", genuine=asked)._replace(**chosen)
            manifest = write_release(archive, release, settings, workers, progress=progress, fits=fits)
        elif chosen:
            raise ConfigError(
                f"a release that grows is split and stored as the one it grows from, so {', '.join(chosen)} cannot be "
                f"chosen with --grow. Leave it out, or pack a new release without --grow."
            )
        else:
            manifest = grow_release(
                archive, grow, release, description, asked, workers, progress=progress, changes=changes, fits=fits
            )
    say(f"release {release}: digest {manifest.digest}, generation {manifest.generation}")
    if before and (reason := replaced_because(before, manifest)):
        say(f"in place of release {before.digest[:12]} there: {reason}")
    elif before:
        say("it is just what was there before")
    if changes:
        say(f"spectra of the parent and new ones: {counted(changes)}")
    if manifest.not_genuine:
        say(f"the real spectra are called observed-like ({manifest.not_genuine})")
    say(f"samples: {counted(manifest.counts)}; left out: {counted(manifest.left_out) or 'none'}")
    for line in lines_of(manifest.fitted) if manifest.fitted else ():
        say(line)
    index = Release(release).index
    if index.shared("vmic") == TOO_HIGH_KMS:
        say(f"all simulated stars have a microturbulence of {TOO_HIGH_KMS:g} km/s: {BIAS}")
    splits = splits_of(index)
    if any(split.spectra for split in splits):
        console_for().print(split_table(splits))
    for sentence in shortages(splits):
        say(sentence)
    worst = ", ".join(f"{kind} {error:.3f}" for kind, error in manifest.codec.largest.items())
    say(f"largest error in standard deviations of a sample's photon noise: {worst} (bound {manifest.codec.bound:g})")
    return 0


def verify(path: tyro.conf.Positional[Path]) -> int:
    """Read every byte of an archive or a release; exit code 1 where something is wrong.

    Example: `harps-dist verify R1`.

    Args:
        path: Archive or release to read.
    """
    from preprocessing.verify import verify as problems_of

    with progress_bars() as progress:
        problems = problems_of(path, progress)
    for problem in problems:
        say(problem)
    say(f"{path}: {f'{len(problems)} problems' if problems else 'whole'}")
    return 1 if problems else 0


def diff(before: tyro.conf.Positional[Path], after: tyro.conf.Positional[Path], json: Path | None = None) -> int:
    """Say what changed from one release to another; exit code 1 where a star changed its split or lies in two.

    Example: `harps-dist diff R1 R2 --json diff.json`.

    Args:
        before: Release before.
        after: Release after, grown from the first or not.
        json: File to write all of it to, with every key.
    """
    from harps_dist.data.reader import Release
    from preprocessing.difference import DIFFERENCE, compare_releases, difference_tables

    check(json, DIFFERENCE)
    found = compare_releases(Release(before), Release(after))
    if json:
        write_json(json, DIFFERENCE, found.as_json())
    console_for().print(*difference_tables(found))
    return 0 if found.sound else 1


def demo(folder: Path | None = None, size: DemoSize = DemoSize(), delivery: int | None = None) -> int:  # noqa: B008
    """Build the demo: format-true simulated files, ingested and packed.

    Example: `harps-dist demo --folder demo --size.stars 20`.

    Args:
        folder: Folder of the demo; default is $HARPS_DIST_DEMO or ./demo.
        size: How large the demo is.
        delivery: Write files instead, into FOLDER/delivery-N, by which the demo may grow: new spectra of a twentieth of
            its stars, and spectra of as many new stars.
    """
    folder = folder or demo_home()
    if delivery is None and is_built(folder):
        say(f"{folder / 'release'} is there already")
        return 0
    check(folder, DEMO)
    with progress_bars() as progress:
        if delivery is not None:
            say(f"delivery: {build_delivery(folder, size, delivery, progress)}")
        else:
            say(f"demo release: {build_demo(folder, size, progress)}")
    return 0


def _grid(archive: Path, name: str | None) -> Grid:
    from harps_dist.formats.archive import ARCHIVE, Archive

    check(archive, ARCHIVE)
    if name is None and (archive / "zarr.json").exists():
        return Archive(archive).grid
    return named_grid(name or "harps")


def main() -> int:
    return tyro.extras.subcommand_cli_from_dict(
        {made.__name__: made for made in (fetch, ingest, merge, etc, generative, withdraw, pack, verify, diff, demo)},
        prog="python -m preprocessing" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name,
        description=__doc__,
    )


if __name__ == "__main__":
    end_with(main)
