"""What computes in which precision: one rule for a device, and nothing of a model but its encoder."""

from __future__ import annotations

import pytest
import torch

from harps_dist.errors import ConfigError
from harps_dist.inference import precision
from harps_dist.inference.precision import EAGER, Computing, compute_by, computing
from harps_dist.models.build import build_model
from harps_dist.models.config import Autoencoder, Decoder
from harps_dist.spectra.grid import named_grid

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_computes_in_float32_unless_it_is_asked_not_to():
    assert computing("auto", CPU) == computing("fp32", CPU) == Computing("fp32", "channels-last")
    assert computing("bf16", CPU) == Computing("bf16", "channels-last")


def test_a_gpu_takes_the_kernels_where_they_run(monkeypatch):
    monkeypatch.setattr(precision, "available", lambda: True)
    assert computing("bf16", GPU) == Computing("bf16", "triton")
    assert computing("auto", GPU) == computing("fp32", GPU) == EAGER
    monkeypatch.setattr(precision, "available", lambda: False)
    assert computing("auto", GPU) == computing("fp32", GPU) == EAGER
    with pytest.raises(ConfigError, match="Choose precision auto or fp32"):
        computing("bf16", GPU)


def test_an_encoder_changes_its_way_and_a_decoder_keeps_it():
    grid = named_grid("tiny")
    model = build_model(Autoencoder(width=0.125, decoder_width=0.125), grid)
    for how, formats in {
        Computing("bf16", "channels-last"): (None, torch.bfloat16),
        Computing("fp32", "channels-last"): (None, torch.float32),
        Computing("bf16", "triton"): (torch.bfloat16, None),
        EAGER: (None, None),
    }.items():
        compute_by(model, how)
        assert (model.encoder.kernel_format, model.encoder.cpu_format) == formats
        assert model.network.decoder.kernel_format is None
    compute_by(build_model(Decoder(width=0.125), grid), Computing("bf16", "channels-last"))
