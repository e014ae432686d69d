"""What harps_dist/README.md says of adding a label, an instrument and a nuisance, done to a copy of the code."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests.commands import ROOT, environment

pytestmark = pytest.mark.slow
TOUR = ROOT / "harps_dist/README.md"
PLACE = re.compile(r"# in (\S+), before the line: (.+)")


def blocks() -> list[tuple[str, str, str, str]]:
    """Of every block of code: the section it stands in, its file, the line that it goes before, and what goes there."""
    found = []
    for section in re.split(r"^## ", TOUR.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        for code in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
            parts = PLACE.split(code)[1:]
            for file, line, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
                found.append((section.split("\n")[0], file, line, text.removeprefix("\n")))
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """The code with all that the tour adds."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("harps_dist", "preprocessing", "launch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for _, file, line, text in blocks():
        before = (folder / file).read_text(encoding="utf-8")
        assert before.count(f"\n{line}\n") == 1, f"{file} should have one line {line!r}"
        (folder / file).write_text(before.replace(f"\n{line}\n", f"\n{text}{line}\n"), encoding="utf-8")
    return folder


def run(house: Path, *words: object, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=house,
        env=environment() | {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


TRAIN = ("--training.steps", 2, "--training.batch-size", 4, "--log.validate-every", 2)


def test_an_addition_touches_three_files_at_most():
    files: dict[str, set[str]] = {}
    for section, file, _, _ in blocks():
        files.setdefault(section, set()).add(file)
    assert files.keys() == {"A label", "An instrument", "A nuisance"}
    assert all(len(touched) <= 3 for touched in files.values()), files


def test_a_label_goes_from_the_catalogue_to_the_report(house, tiny_demo, tmp_path):
    source = tiny_demo / "files/catalog.csv"
    with source.open(newline="") as file:
        stars = list(csv.DictReader(file))
    for number, star in enumerate(stars):
        star["VSINI"] = f"{2 + number}"
    with (tmp_path / "stars.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, stars[0].keys())
        writer.writeheader()
        writer.writerows(stars)
    archive, release, trained = (tmp_path / name for name in ("A.zarr", "R", "run"))
    options = ("--archive", archive, "--catalog", tmp_path / "stars.csv", "--grid", "tiny")
    said = run(house, "-m", "preprocessing", "ingest", "--spectra", tiny_demo / "files/spectra", *options)
    assert "with vsini" in said
    run(house, "-m", "preprocessing", "pack", "--archive", archive, "--release", release, "--split", 0.6, 0.2, 0.2)
    labels = ("--model.labels", "rv", "berv", "teff", "mh", "logg", "airmass", "vsini")
    run(house, "launch/train.py", "cnn-real", "--data.release", release, "--out", trained, *TRAIN, *labels)
    assert "vsini" in run(house, "launch/evaluate.py", trained, "--split", "train")
    code = (
        "import sys; from harps_dist.data.reader import Release; release = Release(sys.argv[1]); "
        "print(release.manifest.label_statistics['vsini'].count)"
    )
    assert int(run(house, "-c", code, release)) > 5


def test_an_archive_and_a_release_older_than_a_label_miss_it(house, tiny_demo, tmp_path):
    archive = tmp_path / "A.zarr"
    shutil.copytree(tiny_demo / "archive.zarr", archive)
    code = (
        "import sys, numpy as np; from harps_dist.formats.archive import Archive; "
        "from harps_dist.data.reader import Release; from harps_dist.spectra.labels import NAMES; "
        "missing = Archive(sys.argv[1]).column('real', 'vsini'), Release(sys.argv[2]).index.labels[:, -1]; "
        "print(NAMES[-1], *(bool(np.isnan(values).all()) for values in missing))"
    )
    assert run(house, "-c", code, archive, tiny_demo / "release").split() == ["vsini", "True", "True"]
    words = ("--spectra", tiny_demo / "files/spectra", "--archive", archive, "--grid", "tiny")
    assert not (archive / "real/vsini").exists()
    run(house, "-m", "preprocessing", "ingest", *words)
    assert (archive / "real/vsini").exists()
    run(house, "-m", "preprocessing", "verify", archive)


def write_image(path: Path, wave_aa: np.ndarray, seed: int) -> None:
    """An s1d of the other instrument: a continuum with lines at fixed wavelengths."""
    draw, lines = np.random.default_rng(seed), np.random.default_rng(0).uniform(wave_aa[0], wave_aa[-1], 60)
    flux = 1 - sum(0.5 * np.exp(-(((wave_aa - line) / 0.06) ** 2)) for line in lines)
    header = fits.Header({"INSTRUME": "YOURS", "OBJECT": f"HD{seed}", "CTYPE1": "AWAV", "CUNIT1": "Angstrom"})
    header.update({"CRVAL1": wave_aa[0], "CDELT1": 0.02, "MJD-OBS": 58000.0 + seed, "ORIGIN": "YOURS"})
    header["HIERARCH ESO DRS BERV"] = float(draw.uniform(-20, 20))
    header["HIERARCH ESO DRS SPE EXT SN50"] = 100.0
    header["HIERARCH ESO TEL AIRM START"] = header["HIERARCH ESO TEL AIRM END"] = float(draw.uniform(1, 2))
    noisy = flux * 1e4 + draw.normal(0, 100, len(flux))
    fits.PrimaryHDU(noisy.astype(np.float32), header).writeto(path)


def test_another_instrument_goes_from_its_files_to_a_trained_model(house, tmp_path):
    """Another lattice, and no gap."""
    spectra, archive, release = (tmp_path / name for name in ("spectra", "Y.zarr", "R"))
    spectra.mkdir()
    wave_aa = 5130.0 + 0.02 * np.arange(4_700)
    for seed in range(12):
        write_image(spectra / f"yours-{seed}.fits", wave_aa, seed)
    said = run(house, "-m", "preprocessing", "ingest", "--spectra", spectra, "--archive", archive, "--grid", "yours-mg")
    assert "12" in said
    run(house, "-m", "preprocessing", "pack", "--archive", archive, "--release", release, "--split", 0.6, 0.2, 0.2)
    run(house, "-m", "preprocessing", "verify", release)
    code = (
        "import sys; from harps_dist.data.reader import Release; grid = Release(sys.argv[1]).grid; "
        "print(grid.instrument.name, grid.step_aa, round(grid.wave0_aa, 6), bool(grid.valid.all()))"
    )
    assert run(house, "-c", code, release).split() == ["yours", "0.02", "5140.0", "True"]
    words = ("cnn-real", "--data.release", release, "--out", tmp_path / "run", "--model.labels", "berv", "airmass")
    run(house, "launch/train.py", *words, *TRAIN)
    assert "airmass" in run(house, "launch/evaluate.py", tmp_path / "run", "--split", "train")
    labels = tmp_path / "labels.csv"
    run(house, "launch/export.py", tmp_path / "run", tmp_path / "model", "--release", release)
    run(house, "launch/predict.py", tmp_path / "model", spectra, "-o", labels)
    assert len(labels.read_text().splitlines()) == 13


def test_spectra_of_another_instrument_are_refused(house, tmp_path):
    write_image(tmp_path / "yours.fits", 5990.0 + 0.02 * np.arange(16_500), 0)
    words = ("--spectra", tmp_path, "--archive", tmp_path / "A.zarr", "--grid", "demo")
    assert "wrong_instrument" in run(house, "-m", "preprocessing", "ingest", *words, expect=1)


def test_a_nuisance_is_drawn(house, tiny_demo, tmp_path):
    words = ("demo-cnn-etc", "--data.release", tiny_demo / "release", *TRAIN)
    run(house, "launch/train.py", *words, "--out", tmp_path / "plain")
    run(house, "launch/train.py", *words, "--out", tmp_path / "veiled", "--data.augment.nuisance.veiling", 0.3)
    code = (
        "import sys, torch; from harps_dist.runs.run import Run; from pathlib import Path; "
        "states = [Run(Path(run)).model().state_dict() for run in sys.argv[1:]]; "
        "print(all(torch.equal(states[0][name], states[1][name]) for name in states[0]))"
    )
    assert run(house, "-c", code, tmp_path / "plain", tmp_path / "veiled").strip() == "False"
