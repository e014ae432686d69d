"""Inference is measured in a process of its own, on one thread; no test asserts a time."""

from __future__ import annotations

import json

import pytest
import torch

from harps_dist.benchmarks import inference_speed
from harps_dist.benchmarks.inference_speed import inference_speeds, read_speeds, speed_table, write_speeds
from harps_dist.benchmarks.model_costs import model_costs
from harps_dist.errors import ConfigError, OutputError
from harps_dist.models.build import build_model
from harps_dist.recipes import find_recipe
from harps_dist.spectra.grid import named_grid


def test_speeds_are_measured_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what the environment asks for does not count
    names = ["ae-mix", "cnn-mix", "cnn-dec-etc"]
    found = inference_speeds("tiny", names, batch=2, seconds=0)
    assert [(speed.recipe, speed.precision, speed.convolutions) for speed in found] == [
        ("ae-mix", "fp32", "torch"),  # as the paper's code computes
        ("ae-mix", "fp32", "channels-last"),  # as predict does
        ("cnn-mix", "fp32", "torch"),
        ("cnn-mix", "fp32", "channels-last"),
        ("cnn-dec-etc", "fp32", "torch"),
    ]
    costs = {name: cost.parameters for cost in model_costs(named_grid("tiny"), names) for name in cost.recipes}
    for speed in found:
        assert speed.parameters == costs[speed.recipe]
        assert (speed.threads, speed.batch, speed.repeats) == (1, 2, 3)
        assert 0 < speed.ms_q25 <= speed.ms <= speed.ms_q75
    assert found[0].peak_memory_mib > found[2].peak_memory_mib > 0  # an autoencoder holds an encoder, and more
    write_speeds(found, tmp_path / "speed.json")
    assert read_speeds(tmp_path / "speed.json") == found
    assert speed_table(found).row_count == 5


def test_speeds_of_before_are_read_as_those_of_pytorchs_layers_in_fp32(tmp_path):
    measured = {"recipe": "cnn-mix", "legend": "CNN (mix)", "grid": "harps", "device": "cpu", "device_name": "a CPU"}
    measured |= {"threads": 1, "torch": "2", "batch": 32, "parameters": 1, "ms": 40.0, "ms_q25": 39.0, "ms_q75": 41.0}
    content = {"convention": "", "speeds": [measured | {"repeats": 3, "peak_memory_mib": 700.0}]}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    (speed,) = read_speeds(tmp_path / "speed.json")
    assert (speed.precision, speed.convolutions) == ("fp32", "torch")


def test_what_is_measured_is_what_predict_calls(monkeypatch):
    """The model's own `read`, in each precision that is asked for."""
    model = build_model(find_recipe("cnn-mix").model, named_grid("tiny")).eval()
    read = []
    monkeypatch.setattr(type(model), "read", lambda self, flux: read.append(flux.shape))
    inference_speed._inference(model, named_grid("tiny"), 2, torch.device("cpu"))()
    assert read == [(2, 4096)]
    (_, speed) = inference_speeds("tiny", ["cnn-mix"], batch=1, seconds=0, precisions=["bf16"])
    assert (speed.precision, speed.convolutions) == ("bf16", "channels-last")


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recipe"):
        inference_speeds("tiny", ["no-such"])
    with pytest.raises(OutputError, match="there is no folder"):
        write_speeds([], tmp_path / "nowhere/speed.json")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            inference_speeds("tiny", ["cnn-mix"], device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_too():
    speed, *_ = inference_speeds("tiny", ["cnn-mix"], device="cuda", seconds=0.1)
    assert speed.device_name == torch.cuda.get_device_name()
    assert speed.peak_memory_mib * 2**20 > 4 * speed.parameters
