"""What a model and its loss are: frozen, validated objects.

purpose: what a model does, in words. reads, draws: whether it says something of a spectrum, and whether it makes one.
variational: whether its nodes are drawn in training. unknown: how many of its nodes are no label.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harps_dist.frozen import Frozen
from harps_dist.spectra.labels import SEVEN

Init = Literal["paper", "on_scale"]


class Encoder(Frozen):
    """Spectrum to labels: the encoder of Table B.1 and a linear layer."""

    kind: Literal["encoder"] = "encoder"
    """Kind of the model, which its recipe fixes."""
    purpose: ClassVar[str] = "reads labels off a spectrum"
    reads: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    variational: ClassVar[bool] = False
    unknown: ClassVar[int] = 0
    uncertainty: Literal["none", "gaussian", "laplace"] = "none"
    """Likelihood by which the model also predicts how far each label may be off; it then is the label loss.
    With none, as in the paper, it does not.
    """
    labels: tuple[str, ...] = SEVEN
    """Names of the labels that are read."""
    width: float = Field(1.0, gt=0)
    """Factor of all numbers of channels."""
    init: Init = "paper"
    """Initial weights: the framework's default (paper), or such that keep the signal's scale (on_scale).
    On scale, the head starts at the mean label.
    """
    input_centre: float = 0.0
    """Flux that is subtracted from the input; lines are small against the continuum, so centred input learns faster."""
    input_scale: float = 1.0
    """Factor of the centred input."""


class Decoder(Frozen):
    """Labels to spectrum: the CNN of Table B.2, or the ResNet of Table B.3."""

    kind: Literal["decoder"] = "decoder"
    """Kind of the model, which its recipe fixes."""
    purpose: ClassVar[str] = "draws a spectrum from labels"
    reads: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    variational: ClassVar[bool] = False
    unknown: ClassVar[int] = 0
    architecture: Literal["cnn", "resnet"] = "resnet"
    """Decoder: the CNN of Table B.2 or the ResNet of Table B.3."""
    block: Literal["public", "appendix_b"] = "public"
    """Block of the ResNet: as in the paper's public code, which has the paper's count, or as Appendix B prints it."""
    labels: tuple[str, ...] = tuple(name for name in SEVEN if name != "berv")
    """Names of the labels that are decoded."""
    width: float = Field(1.0, gt=0)
    """Factor of all numbers of channels."""
    init: Init = "paper"
    """Initial weights: the framework's default (paper), or such that keep the signal's scale (on_scale)."""


class Autoencoder(Frozen):
    """Spectrum to latent to spectrum; the first latent nodes are the labels, the others unknown factors.

    Without labels the bottleneck is unsupervised.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    """Kind of the model, which its recipe fixes."""
    purpose: ClassVar[str] = "reads labels and unknown factors off a spectrum and draws the spectrum again from them"
    reads: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    labels: tuple[str, ...] = SEVEN
    """Names of the labels, which the first latent nodes hold."""
    bottleneck: int = Field(9, ge=1)
    """Latent nodes: labels and unknown factors."""
    variational: bool = False
    """Draw the nodes from a Gaussian in training (beta-VAE, InfoVAE)."""
    architecture: Literal["cnn", "resnet"] = "resnet"
    """Decoder: the CNN of Table B.2 or the ResNet of Table B.3."""
    block: Literal["public", "appendix_b"] = "public"
    """Block of the ResNet: as in the paper's public code, which has the paper's count, or as Appendix B prints it."""
    width: float = Field(1.0, gt=0)
    """Factor of the encoder's numbers of channels."""
    decoder_width: float = Field(1.0, gt=0)
    """Factor of the decoder's numbers of channels."""
    init: Init = "paper"
    """Initial weights: the framework's default (paper), or such that keep the signal's scale (on_scale).
    On scale, the head starts at the mean label.
    """
    input_centre: float = 0.0
    """Flux that is subtracted from the input; lines are small against the continuum, so centred input learns faster."""
    input_scale: float = 1.0
    """Factor of the centred input."""

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


class PhysicalAutoencoder(Frozen):
    """Spectrum to latent to spectrum, by a decoder that shifts a star at rest and the sky by their velocities.

    The first latent nodes are the labels, in the order of `labels`; the others are the factors that are counted here.
    """

    kind: Literal["physical-autoencoder"] = "physical-autoencoder"
    """Kind of the model, which its recipe fixes."""
    purpose: ClassVar[str] = (
        "reads labels and unknown factors off a spectrum and draws it again, a shifted star seen through a shifted sky"
    )
    reads: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    labels: tuple[str, ...] = SEVEN
    """Names of the labels, which the first latent nodes hold."""
    broadening: bool = True
    """Whether the lines of stars differ in width."""
    microturbulence: bool = True
    """Whether stars differ in microturbulence from others of their labels."""
    response_factors: int = Field(2, ge=0)
    """Nodes for what the release's responses differ in besides airmass and water vapour."""
    sky_factors: int = Field(1, ge=0)
    """Nodes for changes of the sky's transmission that are learned."""
    continuum_terms: int = Field(12, ge=0)
    """Nodes for terms of the smooth continuum."""
    star_factors: int = Field(2, ge=0)
    """Nodes for what stars differ in besides their labels, which is learned."""
    vectors: int = Field(64, ge=1)
    """Vectors that model spectra at rest are combined from."""
    model_spectra: int = Field(1024, ge=8)
    """Model spectra of the release that the spectrum at rest is learned from before the training, at most."""
    taught: float = Field(0.5, ge=0, le=1)
    """Share of the spectra that are decoded from their true labels in training, where these are known."""
    search: float = Field(0.0, ge=0)
    """Weight of the errors of rv and berv against those that are looked for in training on what the decoder draws.
    They are found so where no label tells them; with 0 nothing is looked for.
    """
    variational: bool = False
    """Draw the nodes from a Gaussian in training (InfoVAE)."""
    width: float = Field(1.0, gt=0)
    """Factor of the encoder's numbers of channels."""
    init: Init = "paper"
    """Initial weights: the framework's default (paper), or such that keep the signal's scale (on_scale).
    On scale, the head starts at the mean label.
    """
    input_centre: float = 0.0
    """Flux that is subtracted from the input; lines are small against the continuum, so centred input learns faster."""
    input_scale: float = 1.0
    """Factor of the centred input."""

    @property
    def unknown(self) -> int:
        """Nodes of the bottleneck that are no label."""
        counted = self.response_factors + self.sky_factors + self.continuum_terms + self.star_factors
        return self.broadening + self.microturbulence + counted

    @property
    def bottleneck(self) -> int:
        """Latent nodes: labels and unknown factors."""
        return len(self.labels) + self.unknown


Model = Annotated[Encoder | Decoder | Autoencoder | PhysicalAutoencoder, Field(discriminator="kind")]


class Loss(Frozen):
    """Weights of the loss parts (Eqs. 3-11) and the shape of their errors.

    Under the plain absolute error a decoder that draws no line at all is a strong attractor, since most pixels are
    continuum; an error that is quadratic where it is small pulls it out.
    """

    label: float = Field(1.0, ge=0)
    """Weight of the errors of labels."""
    reconstruction: float = Field(1.0, ge=0)
    """Weight of the errors of the decoded spectrum."""
    unknown_penalty: float = Field(1.0, ge=0)
    """Weight of supervising unknown factors of simulated spectra towards zero (Sect. 3.2)."""
    kl: float = Field(0.0, ge=0)
    """Weight of the divergence of nodes from the prior, summed over nodes and averaged over the batch."""
    mmd: float = Field(0.0, ge=0)
    """Weight of the maximum-mean discrepancy between nodes and prior."""
    mmd_batch_size: int = Field(32, ge=1)
    """Batch size whose maximum-mean discrepancy is taken, since its mean over pairs depends on it.
    At 32 it narrows 32 nodes by 0.4 of their variance.
    """
    label_below: float = Field(0.0, ge=0)
    """Error of a label below which the loss is quadratic instead of absolute [standard deviations of the label]."""
    reconstruction_below: float = Field(0.0, ge=0)
    """Error of a pixel below which the loss is quadratic instead of absolute [medians of the flux]."""
    label_scatter: float = Field(0.1, gt=0)
    """Error with which a label of a fit counts half of one without an error [standard deviations of the label].
    A head that states its own uncertainty adds the error to that instead.
    """

    @model_serializer(mode="wrap")
    def _saved(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The newer field only where it is another than by default: recipes are known as they were before."""
        content = whole(self)
        return {name: value for name, value in content.items() if name != "label_scatter" or value != 0.1}
