"""Autoencoders: an encoder, a bottleneck that may be drawn from a Gaussian, and a decoder.

Tested in tests/unit/test_models.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from harps_dist.errors import ConfigError
from harps_dist.models.encoder import ConvEncoder
from harps_dist.models.layers import Float32Linear, Init, check_init

LOG_VARIANCE_LIMIT = 20.0
START_MEAN_STD = 0.3
START_LOG_VARIANCE = -6.0


class Latent(NamedTuple):
    """What the encoder says of a batch: (batch, bottleneck) float32 mean and natural log of the variance.

    log_variance is None for an autoencoder without that head.
    """

    mean: Tensor
    log_variance: Tensor | None


class Autoencoder(nn.Module):
    """Encoder, linear bottleneck heads and decoder (paper, Sects. 2.5.3-2.5.5).

    encoder: features come from here. decoder: ConvDecoder or ResNetDecoder with `bottleneck` inputs.
    bottleneck: number of nodes, the supervised ones first.
    log_variance_head: whether to predict a variance beside the mean (VAE, InfoVAE; the public AE does, too).
    init: "paper" leaves the heads at PyTorch's default. "on_scale" starts the mean small on the scale of
    normalised labels and the log-variance at -6 everywhere: a noise of exp(-3) = 0.05, small beside labels of
    deviation 1, so that labels and decoder learn from the first step, and the KL term widens what need not
    be sharp.

    Raises ConfigError where encoder, decoder and bottleneck do not fit together, or for an unknown init.
    """

    def __init__(
        self,
        encoder: ConvEncoder,
        decoder: nn.Module,
        bottleneck: int,
        log_variance_head: bool = True,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        check_init(init)
        if decoder.inputs != bottleneck or decoder.length != encoder.length:
            raise ConfigError(
                f"a bottleneck of {bottleneck} nodes and spectra of {encoder.length} pixels need a decoder "
                f"for the same, but it takes {decoder.inputs} inputs and gives {decoder.length} pixels. "
                f"Build it with length={encoder.length}, inputs={bottleneck}."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.mean_head = Float32Linear(encoder.features, bottleneck)
        self.log_variance_head = Float32Linear(encoder.features, bottleneck) if log_variance_head else None
        if init == "on_scale":
            nn.init.normal_(self.mean_head.weight, std=START_MEAN_STD * encoder.features**-0.5)
            nn.init.zeros_(self.mean_head.bias)
            if self.log_variance_head is not None:
                nn.init.zeros_(self.log_variance_head.weight)
                nn.init.constant_(self.log_variance_head.bias, START_LOG_VARIANCE)

    def encode(self, flux: Tensor) -> Latent:
        """(batch, length) standardised flux -> Latent; log-variance clamped to ±20."""
        return self.latent_of(self.encoder(flux))

    def latent_of(self, features: Tensor) -> Latent:
        """(batch, features) of the encoder -> Latent."""
        if self.log_variance_head is None:
            return Latent(self.mean_head(features), None)
        log_variance = self.log_variance_head(features).clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return Latent(self.mean_head(features), log_variance)

    def decode(self, latent: Tensor) -> Tensor:
        """(batch, bottleneck) mean, sample or intervened nodes -> (batch, length) float32 flux."""
        return self.decoder(latent)

    def sample(self, latent: Latent, noise: Tensor) -> Tensor:
        """mean + noise · exp(½ log-variance), for (batch, bottleneck) standard-normal noise.

        Raises ConfigError where there is no log-variance.
        """
        if latent.log_variance is None:
            raise ConfigError(
                "this autoencoder has no log-variance head, so its bottleneck cannot be sampled. "
                "Pass no noise, or build it with log_variance_head=True."
            )
        return latent.mean + noise * torch.exp(0.5 * latent.log_variance)

    def forward(self, flux: Tensor, noise: Tensor | None = None) -> tuple[Latent, Tensor, Tensor]:
        """(batch, length) flux -> latent, (batch, bottleneck) nodes that were decoded, (batch, length) flux.

        noise: (batch, bottleneck) standard normal; None decodes the mean (paper, Eq. 5).
        """
        latent = self.encode(flux)
        nodes = latent.mean if noise is None else self.sample(latent, noise)
        return latent, nodes, self.decode(nodes)
