"""Parameters and FLOPs of the paper's models, from the command line."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from harps_dist.benchmarks.batch_sizes import batch_size_effects
from harps_dist.benchmarks.etc_speed import etc_costs
from harps_dist.benchmarks.ingest_speed import FORMS, ingest_costs, ingest_table
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.recipes import find_recipe
from tests.commands import command, run

PARAMETERS = {"cnn-mix": 1_505_350, "resnet-etc": 11_636_225, "ae-mix": 13_295_187, "cnn-dec-etc": 1_732_117}
PIXELS = 327_680


def encoder_gflop() -> float:
    """Table B.1 by hand: 2 FLOPs per weight and output pixel."""
    channels = (1, 16, 16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 256, 512, 512)
    kernels = (7, 5, 5, *[3] * 12)
    lengths = [PIXELS >> stage for stage in (*range(1, 15), 14)]
    layers = zip(pairwise(channels), kernels, lengths, strict=True)
    return 2e-9 * (sum(a * b * kernel * length for (a, b), kernel, length in layers) + 10_240 * 6)


def cnn_decoder_gflop() -> float:
    """Table B.2 by hand: 2 FLOPs per weight and input pixel of a transposed convolution."""
    channels = (512, 512, 256, 128, 128, 128, 64, 64, 64, 32, 32, 32, 16, 16, 16, 1)
    kernels = (3, *[4] * 14)
    lengths = [20, *(20 << stage for stage in range(14))]
    layers = zip(pairwise(channels), kernels, lengths, strict=True)
    return 2e-9 * (sum(a * b * kernel * length for (a, b), kernel, length in layers) + 10_240 * 6 + 3 * PIXELS)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> tuple[str, dict]:
    """What `benchmark.py models` prints and writes."""
    folder = tmp_path_factory.mktemp("benchmark")
    printed = run(command("launch/benchmark.py", "models", "--json", "models.json"), folder)
    assert [path.name for path in folder.iterdir()] == ["models.json"]
    return printed, json.loads((folder / "models.json").read_text())


def test_parameters_are_those_of_the_paper(benchmark):
    printed, written = benchmark
    assert written["grid"] == "harps"
    rows = {name: row for row in written["models"] for name in row["recipes"]}
    assert {name: rows[name]["parameters"] for name in PARAMETERS} == PARAMETERS
    for count in PARAMETERS.values():
        assert f"{count:,}" in printed
    assert (rows["ae-mix"]["kind"], rows["ae-mix"]["architecture"]) == ("autoencoder", "resnet")
    assert (rows["ae-mix"]["bottleneck"], rows["ae-mix"]["labels"]) == (9, 7)
    assert (rows["cnn-mix"]["bottleneck"], rows["cnn-mix"]["labels"]) == (None, 6)


def test_every_distinct_model_once(benchmark):
    _, written = benchmark
    names = [name for row in written["models"] for name in row["recipes"]]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("demo-")]
    assert any({"ae-real", "ae-mix"} <= set(row["recipes"]) for row in written["models"])


def test_flops(benchmark):
    """A multiply-add is 2 FLOPs; the faster road for transposed convolutions executes a few more."""
    _, written = benchmark
    rows = {name: row for row in written["models"] for name in row["recipes"]}
    assert rows["cnn-mix"]["gflop"] == pytest.approx(encoder_gflop(), rel=1e-9)
    assert rows["cnn-mix"]["gflop_executed"] == rows["cnn-mix"]["gflop"]
    assert rows["cnn-dec-etc"]["gflop"] == pytest.approx(cnn_decoder_gflop(), rel=1e-9)
    assert rows["resnet-etc"]["gflop"] == pytest.approx(7.75, abs=0.005)
    for name in ("cnn-dec-etc", "resnet-etc"):  # at stride 2, 6 taps for 4 or 5 weights
        assert 1.0 < rows[name]["gflop_executed"] / rows[name]["gflop"] < 1.5


def test_named_recipes_on_another_grid(tmp_path):
    arguments = ("models", "demo-cnn-dec-etc", "cnn-dec-etc", "--grid", "tiny", "--json", "f")
    printed = run(command("launch/benchmark.py", *arguments), tmp_path)
    assert "4,096 pixels" in printed
    rows = json.loads((tmp_path / "f").read_text())["models"]
    assert [row["recipes"] for row in rows] == [["demo-cnn-dec-etc"], ["cnn-dec-etc"]]
    assert rows[0]["gflop"] < rows[1]["gflop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-recipe",), "there is no recipe 'no-such-recipe'"),
        (("cnn-mix", "--grid", "huge"), "unknown grid 'huge'"),
        (("cnn-mix", "--grid", "tiny", "--json", "nowhere/f"), "there is no folder nowhere"),
    ],
)
def test_wrong_commands_say_what_is_wrong(tmp_path, arguments, message):
    printed = run(command("launch/benchmark.py", "models", *arguments), tmp_path, expect=1)
    assert message in printed
    assert "Traceback" not in printed


def test_two_ranks_are_measured_against_one(tiny_release, tmp_path):
    arguments = ("ranks", "demo-cnn-mix", "--release", tiny_release, "--spectra", 2, "--seconds", 0.02, "--json", "f")
    printed = run(command("launch/benchmark.py", *arguments, ranks=2), tmp_path)
    assert "weak-scaling efficiency" in printed
    assert "the slowest included" in " ".join(printed.split())
    found = json.loads((tmp_path / "f").read_text())
    assert found["ranks"] == 2
    assert found["one_alone_ms"] > 0
    assert found["efficiency"] == pytest.approx(found["one_alone_ms"] / found["together_ms"])
    together = (1 + found["contention"]) * (1 + found["communication"]) * found["one_alone_ms"]
    assert together == pytest.approx(found["together_ms"])


def test_batch_sizes_leave_kl_and_mmd_as_they_are(tiny_release):
    release = Release(tiny_release)
    effects = batch_size_effects(find_recipe("demo-infovae-mix"), release, (2, 32), 64)
    found = {(one.part, one.size): one for one in effects}
    for part in ("kl", "mmd"):
        for figure in ("value", "pull"):
            (small, small_error), (large, large_error) = (getattr(found[part, size], figure) for size in (2, 32))
            # The larger's error, of two batches, may come out near nothing: 8 of 32 batches' is 1e-8 by chance.
            assert abs(small - large) < 8 * (small_error + large_error), (part, figure)
    printed = [found["mmd as printed", size] for size in (2, 32)]
    assert printed[1] == found["mmd", 32]._replace(part="mmd as printed")  # the paper's batches
    assert printed[0].pull[0] > 3 * printed[1].pull[0]
    with pytest.raises(ConfigError, match="variational"):
        batch_size_effects(find_recipe("demo-ae-mix"), release, (2,), 4)


def test_costs_of_spectra(tiny_demo):
    """Every file of each form came in; a folder of others is measured as it is."""
    found = ingest_costs(2, "tiny")
    assert [(cost.form, cost.files) for cost in found] == [(form, 2) for form in FORMS]
    for cost in found:
        assert 0 <= cost.bytes_s < cost.ingest_s
        assert cost.astropy_s > 0
        assert 1 < cost.megabytes < cost.peak_mb
    assert ingest_table(found).row_count == len(FORMS)
    (own,) = ingest_costs(0, "tiny", tiny_demo / "files/spectra")
    assert own.files == len(list((tiny_demo / "files/spectra").rglob("*.fits")))


def test_costs_of_etc_runs():
    """Of a few orders on a small grid: each run came in, and parsing is a part of it."""
    found = etc_costs(2, orders=(102, 101, 100, 99, 98), grid="tiny")
    assert [(cost.generation, cost.runs) for cost in found] == [("2023", 2), ("2026", 2)]
    for cost in found:
        assert 0 < cost.parse_s < cost.cpu_s
        assert 0 < cost.megabytes < cost.peak_mb
