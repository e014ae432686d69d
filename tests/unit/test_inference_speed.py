"""Inference is measured in a process of its own, on one thread; no test asserts a time."""

from __future__ import annotations

import pytest
import torch

from harps_dist.benchmarks.inference_speed import inference_speeds, read_speeds, speed_table, write_speeds
from harps_dist.benchmarks.model_costs import model_costs
from harps_dist.errors import ConfigError, OutputError
from harps_dist.spectra.grid import named_grid


def test_speeds_are_measured_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what the environment asks for does not count
    names = ["ae-mix", "cnn-mix", "cnn-dec-etc"]
    found = inference_speeds("tiny", names, batch=2, seconds=0)
    assert [speed.recipe for speed in found] == names
    costs = {name: cost.parameters for cost in model_costs(named_grid("tiny"), names) for name in cost.recipes}
    for speed in found:
        assert speed.parameters == costs[speed.recipe]
        assert (speed.threads, speed.batch, speed.repeats) == (1, 2, 3)
        assert 0 < speed.ms_q25 <= speed.ms <= speed.ms_q75
    assert found[0].peak_memory_mib > found[1].peak_memory_mib > 0  # an autoencoder holds an encoder, and more
    write_speeds(found, tmp_path / "speed.json")
    assert read_speeds(tmp_path / "speed.json") == found
    assert speed_table(found).row_count == 3


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
    (speed,) = inference_speeds("tiny", ["cnn-mix"], device="cuda", seconds=0.1)
    assert speed.device_name == torch.cuda.get_device_name()
    assert speed.peak_memory_mib * 2**20 > 4 * speed.parameters
