"""Encoders, decoders and autoencoders: counts, shapes, the exact rewrite, precision, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from harps_dist.errors import ConfigError
from harps_dist.models.autoencoder import Autoencoder, Latent
from harps_dist.models.decoder import ConvDecoder, PreActTransResNetBlock, ResNetDecoder
from harps_dist.models.encoder import ConvEncoder, LabelEncoder
from harps_dist.models.layers import (
    ConvTranspose1d,
    Float32Conv1d,
    Float32Linear,
    InstanceNorm1d,
    scaled_channels,
    stride_two_stages,
)

FULL = 327_680
LENGTHS = (32_768, 20_480, 4_096)
DECODERS = {
    "conv": ConvDecoder,
    "resnet": ResNetDecoder,
    "appendix_b": lambda *args, **kwargs: ResNetDecoder(*args, block="appendix_b", **kwargs),
}


def small_autoencoder(
    length: int = 4096, log_variance_head: bool = True, init: str = "on_scale", decoder: str = "resnet"
) -> Autoencoder:
    torch.manual_seed(0)
    encoder = ConvEncoder(length, width=0.125, input_centre=1.0, input_scale=5.0, init=init)
    return Autoencoder(encoder, DECODERS[decoder](length, 9, width=0.125, init=init), 9, log_variance_head, init=init)


def spectra(batch: int, length: int = 4096) -> torch.Tensor:
    return 1 + 0.1 * torch.randn(batch, length, generator=torch.Generator().manual_seed(1))


# Table 9 of the paper, to the last digit


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: LabelEncoder(FULL, 6), 1_505_350),
        (lambda: ConvDecoder(FULL, 6), 1_732_117),
        (lambda: ResNetDecoder(FULL, 6), 11_636_225),
        (lambda: ResNetDecoder(FULL, 6, block="appendix_b"), 6_566_641),
        (lambda: Autoencoder(ConvEncoder(FULL), ResNetDecoder(FULL, 9), 9), 13_295_187),
        (lambda: Autoencoder(ConvEncoder(FULL), ResNetDecoder(FULL, 32), 32), 14_001_793),
        (lambda: Autoencoder(ConvEncoder(FULL), ConvDecoder(FULL, 128), 128), 7_046_997),
    ],
)
def test_parameter_counts_are_the_papers(build, count):
    assert sum(parameter.numel() for parameter in build().parameters()) == count


# shapes and lengths


def test_full_grid_shapes():
    encoder = ConvEncoder(FULL)
    assert encoder.features == 10_240
    with torch.no_grad():
        assert encoder(spectra(1, FULL)).shape == (1, 10_240)
        for build in DECODERS.values():
            assert build(FULL, 6, width=0.125)(torch.randn(1, 6)).shape == (1, FULL)


@pytest.mark.parametrize("length", LENGTHS)
def test_shorter_grids(length):
    encoder = LabelEncoder(length, 6, width=0.125)
    assert encoder(spectra(2, length)).shape == (2, 6)
    assert encoder.encoder(spectra(2, length)).shape == (2, encoder.encoder.features)
    for build in DECODERS.values():
        assert build(length, 6, width=0.125)(torch.randn(2, 6)).shape == (2, length)


def test_stages_keep_enough_pixels_innermost():
    stages = {length: stride_two_stages(length) for length in (FULL, 2 * FULL, *LENGTHS)}
    assert stages == {FULL: 14, 2 * FULL: 14, 32_768: 11, 20_480: 10, 4_096: 8}


def test_innermost_layers_lose_their_stride():
    encoder, decoder = ConvEncoder(4096, width=0.125), ConvDecoder(4096, 6, width=0.125)
    convolutions = [layer for layer in encoder.layers if isinstance(layer, torch.nn.Conv1d)]
    assert [layer.stride[0] for layer in convolutions] == [2] * 8 + [1] * 7
    transposed = [layer for layer in decoder.layers if isinstance(layer, ConvTranspose1d)]
    assert [layer.stride[0] for layer in transposed] == [1] * 7 + [2] * 8
    assert [layer.kernel_size[0] for layer in transposed] == [3] * 7 + [4] * 8


@pytest.mark.parametrize("length", [312_501, 4095, 128, 2048, 4096 + 128])
def test_impossible_lengths_are_refused(length):
    for build in (LabelEncoder, ConvDecoder, ResNetDecoder):
        with pytest.raises(ConfigError, match=rf"{length} pixels .* multiple of 256"):
            build(length, 6)


def test_width_multiplier():
    assert [scaled_channels(c, 0.25) for c in (16, 64, 512)] == [4, 16, 128]
    assert scaled_channels(16, 0.01) == 4
    assert scaled_channels(100, 0.33) == 32
    assert ConvEncoder(4096, width=0.25).features == 128 * 16


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match="init 'zeros'"):
        ConvEncoder(4096, width=0.125, init="zeros")
    with pytest.raises(ConfigError, match="block 'public_b'"):
        ResNetDecoder(4096, 6, width=0.125, block="public_b")


def test_encoder_refuses_spectra_of_another_grid():
    with pytest.raises(ConfigError, match="4096 pixels and was given 8192"):
        ConvEncoder(4096, width=0.125)(torch.ones(1, 8192))


def test_input_is_centred_and_scaled():
    torch.manual_seed(0)
    plain = ConvEncoder(4096, width=0.25, init="on_scale")
    shifted = ConvEncoder(4096, width=0.25, input_centre=1.0, input_scale=5.0)
    shifted.load_state_dict(plain.state_dict())
    flux = spectra(2)
    torch.testing.assert_close(shifted(flux), plain((flux - 1) * 5))


# the transposed convolution


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding"),
    [(5, 2, 2, 1), (4, 2, 1, 0), (3, 2, 1, 1), (1, 2, 0, 1), (5, 1, 2, 0), (3, 1, 1, 0), (1, 1, 0, 0)],
)
def test_rewritten_transposed_convolution_is_exact(kernel, stride, padding, output_padding):
    torch.manual_seed(0)
    layer = ConvTranspose1d(3, 5, kernel, stride).double()
    plain = torch.nn.ConvTranspose1d(3, 5, kernel, stride, padding, output_padding).double()
    plain.load_state_dict(layer.state_dict())  # strict: same names and shapes
    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(x), plain(x)
    assert ours.shape == (2, 5, 11 * stride)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    our_gradients = torch.autograd.grad(ours, (x, layer.weight, layer.bias), weight)
    their_gradients = torch.autograd.grad(theirs, (x, plain.weight, plain.bias), weight)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-12, atol=1e-12)


def test_kernel_too_long_for_the_stride_is_refused():
    with pytest.raises(ConfigError, match="kernel 4 and stride 1"):
        ConvTranspose1d(3, 5, 4, 1)


# blocks


@pytest.mark.parametrize(("c_in", "c_mid", "c_out", "kernel", "stride"), [(4, 3, 3, 5, 2), (3, 3, 3, 3, 1)])
def test_resnet_block_is_the_printed_one(c_in, c_mid, c_out, kernel, stride):
    """Against the block spelt out with torch's own functions; gradients against finite differences."""
    torch.manual_seed(0)
    block = PreActTransResNetBlock(c_in, c_mid, c_out, kernel, stride).double()
    x = torch.randn(2, c_in, 6, dtype=torch.float64, requires_grad=True)

    def transposed(x, layer):
        return F.conv_transpose1d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding)

    hidden = transposed(F.relu(F.instance_norm(x)), block.conv1)
    expected = transposed(F.relu(F.instance_norm(hidden)), block.conv2)
    expected = expected + (transposed(F.relu(F.instance_norm(x)), block.skip) if stride == 2 else x)
    assert (block.skip is None) == (stride == 1)
    torch.testing.assert_close(block(x), expected)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize("length", [4096, 32_768])
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_passes_its_inputs_on(decoder, length):
    """Every input moves the flux, and smoothly: with two pixels innermost the slopes are in the hundreds."""
    torch.manual_seed(0)
    model = DECODERS[decoder](length, 3, width=0.125, init="on_scale").double()
    inputs = torch.randn(16, 1, 3, dtype=torch.float64)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        up, down = (model((inputs + sign * step).flatten(0, 1)) for sign in (1, -1))
    slopes = ((up - down) / 2e-6).square().mean(1).sqrt()
    assert slopes.min() > 0.005  # of a flux that varies by about 0.1
    assert slopes.median() < 50


@pytest.mark.parametrize("init", ["paper", "on_scale"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradients_are_finite_and_reach_every_parameter(decoder, init):
    model = small_autoencoder(decoder=decoder, init=init)
    latent, nodes, reconstruction = model(spectra(2), torch.randn(2, 9))
    loss = (reconstruction - 1).square().mean() + nodes.square().mean() + latent.log_variance.mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.encoder.layers[0].weight.grad.abs().max() > 0


# precision


@pytest.mark.parametrize(("decoder", "tolerance"), [("conv", 0.1), ("resnet", 0.35), ("appendix_b", 0.35)])
def test_autocast_answers_in_float32_close_to_float32(decoder, tolerance):
    """An untrained ResNet decoder amplifies rounding: each norm and ReLU stretches differences by 1.2."""
    model = small_autoencoder(decoder=decoder)
    labels = LabelEncoder(4096, 6, width=0.125, input_centre=1.0, input_scale=5.0)
    flux = spectra(4)
    with torch.no_grad():
        latent = model.encode(flux)
        nodes = torch.randn(4, 9)
        reconstruction = model.decode(nodes)
        predicted = labels(flux)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.encoder(flux).dtype == torch.bfloat16  # autocast is at work
            latent16 = model.encode(flux)
            reconstruction16 = model.decode(nodes)
            predicted16 = labels(flux)
    for tensor in (*latent16, reconstruction16, predicted16):
        assert tensor.dtype == torch.float32
    assert (latent16.mean - latent.mean).std() < 0.05 * latent.mean.std()
    assert (predicted16 - predicted).abs().max() < 0.03 * predicted.abs().max()
    assert (reconstruction16 - reconstruction).std() < tolerance * reconstruction.std()


def test_sensitive_layers_ignore_autocast():
    """Exactly the float32 result, not merely its dtype; bfloat16 weights included."""
    torch.manual_seed(0)
    linear, conv = Float32Linear(40, 3), Float32Conv1d(4, 1)
    features, x = torch.randn(2, 40), torch.randn(2, 4, 30) + 30
    expected = linear(features), conv(x), F.instance_norm(x.bfloat16().float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear(features), conv(x), InstanceNorm1d()(x.bfloat16())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert linear.bfloat16()(features.bfloat16()).dtype == torch.float32
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.float32


# initialisation


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("length", "width"),
    [(4096, 0.125), (4096, 0.25), (4096, 0.5), (4096, 1.0), (20_480, 0.25), (32_768, 0.25)],
)
def test_on_scale_decoder_starts_near_the_mean_spectrum(decoder, length, width):
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            flux = DECODERS[decoder](length, 7, width=width, init="on_scale")(torch.randn(16, 7))
        assert flux.mean().item() == pytest.approx(1, abs=0.05)
        assert 0.05 < flux.std().item() < 0.3
        assert flux.std(0).mean() > 0.5 * flux.std()  # and it differs from input to input, not only by pixel


def test_paper_initialisation_of_the_resnet_is_far_off_scale():
    """Why there is another: the public code starts at an output deviation of 7.2 for targets near 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        flux = ResNetDecoder(4096, 7)(torch.randn(16, 7))
    assert 4 < flux.std().item() < 11


def test_on_scale_encoder_keeps_the_scale_of_its_input():
    for width in (0.25, 1.0):
        torch.manual_seed(0)
        encoder = ConvEncoder(4096, width=width, input_centre=1.0, input_scale=10.0, init="on_scale")
        with torch.no_grad():
            mean_square = encoder(spectra(8)).square().mean().item()
            plain = ConvEncoder(4096, width=width, input_centre=1.0, input_scale=10.0)(spectra(8))
        assert 0.1 < mean_square < 1.5
        assert plain.var(0).mean() < 1e-6  # PyTorch's default: spectra can hardly be told apart


def test_on_scale_heads():
    torch.manual_seed(0)
    assert LabelEncoder(4096, 6, width=0.125, init="on_scale")(spectra(3)).abs().max() == 0
    assert LabelEncoder(4096, 6, width=0.125)(spectra(3)).abs().max() > 0
    encoder = ConvEncoder(4096, width=0.25, input_centre=1.0, input_scale=10.0, init="on_scale")
    model = Autoencoder(encoder, ConvDecoder(4096, 9, width=0.25), 9, init="on_scale")
    with torch.no_grad():
        latent = model.encode(spectra(16))
    assert 0.1 < latent.mean.std() < 1.5
    assert (latent.log_variance == -6).all()


# the autoencoder


def test_noise_none_decodes_the_mean():
    model = small_autoencoder(init="paper")
    with torch.no_grad():
        latent, nodes, reconstruction = model(spectra(2))
        assert torch.equal(nodes, latent.mean)
        assert torch.equal(reconstruction, model.decode(latent.mean))


def test_noise_is_scaled_by_the_deviation():
    model = small_autoencoder()
    latent = Latent(torch.tensor([[1.0, 2.0]]), torch.log(torch.tensor([[4.0, 0.25]])))
    drawn = model.sample(latent, torch.tensor([[0.5, -2.0]]))
    torch.testing.assert_close(drawn, torch.tensor([[2.0, 1.0]]))
    noise = torch.randn(2, 9)
    with torch.no_grad():
        latent, nodes, reconstruction = model(spectra(2), noise)
        torch.testing.assert_close(nodes, latent.mean + noise * torch.exp(latent.log_variance / 2))
        torch.testing.assert_close(reconstruction, model.decode(nodes))


def test_log_variance_is_clamped():
    model = small_autoencoder()
    with torch.no_grad():
        for extreme in (-1000.0, 1000.0):
            model.log_variance_head.bias.fill_(extreme)
            assert (model.encode(spectra(1)).log_variance == (20 if extreme > 0 else -20)).all()


def test_without_log_variance_head():
    model = small_autoencoder(log_variance_head=False)
    with torch.no_grad():
        latent, _, _ = model(spectra(2))
        assert latent.log_variance is None
        with pytest.raises(ConfigError, match="no log-variance head"):
            model(spectra(2), torch.randn(2, 9))


def test_parts_that_do_not_fit_are_refused():
    encoder = ConvEncoder(4096, width=0.125)
    with pytest.raises(ConfigError, match="takes 7 inputs"):
        Autoencoder(encoder, ConvDecoder(4096, 7, width=0.125), 9)
    with pytest.raises(ConfigError, match="gives 8192 pixels"):
        Autoencoder(encoder, ConvDecoder(8192, 9, width=0.125), 9)
