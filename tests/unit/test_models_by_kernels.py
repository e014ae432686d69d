"""Whole models by the kernels: outputs and gradients are those by PyTorch's layers, under names that stay."""

from __future__ import annotations

import pytest
import torch

from harps_dist.config import Engine
from harps_dist.data.observer import Batch
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError
from harps_dist.kernels import tiles
from harps_dist.models import supervised
from harps_dist.models.build import build_model
from harps_dist.models.config import Autoencoder, Encoder
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.labels import NAMES
from harps_dist.training.learner import Learner
from harps_dist.training.precision import activation_format
from tests.kernels import error, interpreted

WIDTH = 0.25


def batch(size: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(0)
    grid = named_grid("tiny")
    flux = 1 + 0.1 * torch.randn(size, grid.length, generator=draw)
    labels = torch.randn(size, len(NAMES), generator=draw, dtype=torch.float64)
    rows = torch.arange(size)
    return Batch(flux, labels, rows == 0, rows, rows, torch.zeros_like(labels))


@pytest.mark.slow
@interpreted
def test_an_encoder_and_an_autoencoder_are_those_of_pytorch():
    encoder = Encoder(width=WIDTH, input_centre=0.9, input_scale=4.0)
    autoencoder = Autoencoder(width=WIDTH, decoder_width=WIDTH, architecture="resnet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "LEAST_PIXELS", 1024)  # some layers in Triton, others in PyTorch
        patch.setattr(supervised, "check_kernels", lambda kernels: None)  # the interpreter needs no GPU
        for config in (encoder, autoencoder):
            torch.manual_seed(0)
            model = build_model(config, named_grid("tiny"))
            found = []
            for number_format in (None, torch.float32):
                model.use_kernels(number_format)
                output = model(batch())
                loss = output.labels.square().sum()
                loss = loss if output.reconstruction is None else loss + output.reconstruction.square().mean()
                parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                found.append((output, dict(zip(parameters, gradients, strict=True))))
            (plain, expected), (output, gradients) = found
            assert error(output.labels, plain.labels) < 1e-4
            if plain.reconstruction is not None:
                assert error(output.reconstruction, plain.reconstruction) < 1e-4
            largest = max(float(gradient.norm()) for gradient in expected.values() if gradient is not None)
            for name, gradient in gradients.items():
                if gradient is not None:  # a bias before a norm has a gradient of rounding alone
                    off = float((gradient - expected[name]).norm())
                    assert off < 1e-3 * float(expected[name].norm()) + 1e-5 * largest, name


def test_where_the_kernels_cannot_run_a_sentence_says_so(tiny_release):
    model = build_model(Encoder(width=WIDTH), named_grid("tiny"))
    names = list(model.state_dict())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"kernels triton need .* Choose kernels torch"):
            model.use_kernels(torch.bfloat16)
    model.use_kernels(None)
    assert list(model.state_dict()) == names
    recipe, release = find_recipe("demo-cnn-mix").changed(training={"precision": "fp32"}), Release(tiny_release)
    with pytest.raises(ConfigError, match="exclude each other"):
        Learner(recipe, release, World.alone(), Engine(kernels="triton", compile=True))
    with pytest.raises(ConfigError, match="do not compute in fp64"):
        activation_format("fp64")
    assert [activation_format(name) for name in ("bf16", "fp16", "tf32")] == [
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ]
