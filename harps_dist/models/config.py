"""What a model and its loss are: frozen, validated objects.

purpose: what a model does, in words. reads, draws: whether it says something of a spectrum, and whether it makes one.
variational: whether its nodes are drawn in training. unknown: how many of its nodes are no label.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harps_dist.frozen import Frozen
from harps_dist.spectra.labels import SEVEN

Init = Literal["paper", "on_scale"]


class Encoder(Frozen):
    """Spectrum to labels: the encoder of Table B.1 and a linear layer.

    width scales all channel numbers. init: "paper" for the framework's default, "on_scale" for weights that
    keep the signal's scale and a head that starts at the mean label. The input is (s - input_centre)
    input_scale; lines are small against the continuum, so centred and scaled input learns much faster.
    uncertainty: also predict how far each label may be off, under a Gaussian or a Laplace likelihood, which then is the
    label loss; "none" as the paper.
    """

    kind: Literal["encoder"] = "encoder"
    purpose: ClassVar[str] = "reads labels off a spectrum"
    reads: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    variational: ClassVar[bool] = False
    unknown: ClassVar[int] = 0
    uncertainty: Literal["none", "gaussian", "laplace"] = "none"
    labels: tuple[str, ...] = SEVEN
    width: float = Field(1.0, gt=0)
    init: Init = "paper"
    input_centre: float = 0.0
    input_scale: float = 1.0


class Decoder(Frozen):
    """Labels to spectrum: the CNN of Table B.2, or the ResNet of Table B.3 (block "public" has the paper's count)."""

    kind: Literal["decoder"] = "decoder"
    purpose: ClassVar[str] = "draws a spectrum from labels"
    reads: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    variational: ClassVar[bool] = False
    unknown: ClassVar[int] = 0
    architecture: Literal["cnn", "resnet"] = "resnet"
    block: Literal["public", "appendix_b"] = "public"
    labels: tuple[str, ...] = tuple(name for name in SEVEN if name != "berv")
    width: float = Field(1.0, gt=0)
    init: Init = "paper"


class Autoencoder(Frozen):
    """Spectrum to latent to spectrum; the first latent nodes are the labels, the others unknown factors.

    width scales the encoder's channels, decoder_width the decoder's. variational: draw the nodes from a Gaussian in
    training (beta-VAE, InfoVAE). Without labels the bottleneck is unsupervised.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    purpose: ClassVar[str] = "reads labels and unknown factors off a spectrum and draws the spectrum again from them"
    reads: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    labels: tuple[str, ...] = SEVEN
    bottleneck: int = Field(9, ge=1)
    variational: bool = False
    architecture: Literal["cnn", "resnet"] = "resnet"
    block: Literal["public", "appendix_b"] = "public"
    width: float = Field(1.0, gt=0)
    decoder_width: float = Field(1.0, gt=0)
    init: Init = "paper"
    input_centre: float = 0.0
    input_scale: float = 1.0

    @model_validator(mode="after")
    def _room_for_labels(self) -> Autoencoder:
        if self.bottleneck < len(self.labels):
            raise ValueError(
                f"a bottleneck of {self.bottleneck} cannot hold {len(self.labels)} labels; give it at least as many."
            )
        return self

    @property
    def unknown(self) -> int:
        """Nodes of the bottleneck that are no label."""
        return self.bottleneck - len(self.labels)


Model = Annotated[Encoder | Decoder | Autoencoder, Field(discriminator="kind")]


class Loss(Frozen):
    """Weights of the loss parts (Eqs. 3-11) and the shape of their errors.

    unknown_penalty: weight of supervising unknown factors of simulated spectra towards zero (Sect. 3.2).
    kl: weight of the mean over the batch of the divergence summed over nodes, so that it means the same at any batch
    size. mmd: weight of the maximum-mean discrepancy between nodes and prior; its mean over pairs depends on the batch
    size (at 32 it narrows 32 nodes by 0.4 of their variance), so it is made that of batches of `mmd_batch_size`.
    label_below, reconstruction_below: the errors are absolute as in the paper, but quadratic below this, in standard
    deviations of the label and in medians of the flux. Under the plain absolute error a decoder that draws no line
    at all is a strong attractor, since most pixels are continuum; a quadratic error pulls it out.
    """

    label: float = Field(1.0, ge=0)
    reconstruction: float = Field(1.0, ge=0)
    unknown_penalty: float = Field(1.0, ge=0)
    kl: float = Field(0.0, ge=0)
    mmd: float = Field(0.0, ge=0)
    mmd_batch_size: int = Field(32, ge=1)
    label_below: float = Field(0.0, ge=0)
    reconstruction_below: float = Field(0.0, ge=0)
