"""The three ways of training: spectrum to labels, labels to spectrum, and both at once through a bottleneck.

They share one interface, so that losses, the loop and the evaluation need not know which one they hold.

Tested in tests/unit/test_losses.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harps_dist.kernels.availability import check_kernels
from harps_dist.models.autoencoder import Autoencoder as Network
from harps_dist.models.autoencoder import Latent
from harps_dist.models.decoder import ConvDecoder, ResNetDecoder
from harps_dist.models.encoder import ConvEncoder, LabelEncoder
from harps_dist.models.refine import Free
from harps_dist.models.rescale import in_scale
from harps_dist.spectra.labels import NAMES
from harps_dist.spectra.noise import keyed_normals

if TYPE_CHECKING:
    from harps_dist.data.observer import Batch
    from harps_dist.data.reader import Release
    from harps_dist.models.config import Autoencoder, Decoder, Encoder, PhysicalAutoencoder
    from harps_dist.spectra.grid import Grid

LATENT_DRAWS = 0x6C6174656E74  # keeps these draws apart from the photon noise of the same sample
LOG_SCALE_LIMIT = 10.0
UNNAMED_NODES = 8  # of a model without labels, that stand for them


class Output(NamedTuple):
    """What a model says of a batch; None where it does not.

    labels: (batch, K) normalised labels. reconstruction: (batch, pixel) standardised flux. nodes: (batch, bottleneck)
    that were decoded, the labels first. latent: the distribution they were drawn from, where they were drawn, and
    prior: as many standard normal draws, (batch, bottleneck), to compare them with. log_scale: (batch, K) natural
    logarithm of the labels' uncertainty, normalised as they are. found: (batch, K) normalised labels that were looked
    for on what the decoder draws, NaN where they were not.
    """

    labels: Tensor | None = None
    reconstruction: Tensor | None = None
    nodes: Tensor | None = None
    latent: Latent | None = None
    prior: Tensor | None = None
    log_scale: Tensor | None = None
    found: Tensor | None = None


class Reading(NamedTuple):
    """What a model reads off spectra.

    labels: (batch, K) normalised. log_scale: (batch, K) natural logarithm of their scales, None where it predicts none.
    nodes: (batch, bottleneck) latent means, without columns where there is no bottleneck. features: (batch, channel) of
    the encoder, averaged along the spectrum.
    """

    labels: Tensor
    log_scale: Tensor | None
    nodes: Tensor
    features: Tensor


class SpectrumModel(nn.Module):
    """A model with its labels and their scale: buffers, so that they travel with the weights (Eq. 1).

    reads: whether it says something of a spectrum, so that `read` works. draws: whether it makes a spectrum, so that
    `decode` works. nodes: of its bottleneck, 0 where there is none. variational: whether the nodes are drawn in
    training. search: weight of the errors of what is looked for on what it draws, see `Output.found`.
    """

    label_mean: Tensor
    label_std: Tensor
    uncertainty: Literal["none", "gaussian", "laplace"] = "none"
    nodes: int = 0
    variational: bool = False
    search: float = 0.0
    reads: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __init__(self, labels: tuple[str, ...]):
        super().__init__()
        self.labels = labels
        self.columns = [NAMES.index(name) for name in labels]
        self.register_buffer("label_mean", torch.zeros(len(labels), dtype=torch.float64))
        self.register_buffer("label_std", torch.ones(len(labels), dtype=torch.float64))

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of labels beyond which it draws what it draws there."""
        return {}

    @property
    def model_spectra(self) -> dict[str, tuple[float, float]]:
        """Least and largest value of the labels of model spectra that it draws from, without any where it draws from
        none."""
        return {}

    def sought(self, flux: Tensor, nodes: Tensor) -> Tensor | None:
        """(batch, 2) rv and berv [km/s] that are looked for on flux (batch, pixel), far from what nodes say; None for a
        model that cannot."""
        return None

    @property
    def free(self) -> Free:
        """Nodes that a refinement frees beside the labels; see `models.refine`."""
        return Free()

    @property
    def inputs(self) -> int:
        """How many numbers a spectrum is drawn from: bottleneck nodes, or labels where there is no bottleneck."""
        return self.nodes or len(self.labels)

    @property
    def encoder(self) -> ConvEncoder:
        """The encoder; raises NotImplementedError for a model that reads no spectra."""
        raise NotImplementedError(f"{type(self).__name__} reads no spectra; use a LabelPredictor or a SemiSupervised.")

    def use_kernels(self, number_format: torch.dtype | None) -> None:
        """Compute convolutions by the kernels of `harps_dist.kernels`, None: by PyTorch's, which is how a model begins.

        number_format: of the activations, float32, bfloat16 or float16; weights, gradients and names stay as they are.
        Raises ConfigError where the kernels cannot run.
        """
        if number_format is not None:
            check_kernels("triton")
        for module in self.modules():
            if isinstance(module, ConvEncoder | ConvDecoder | ResNetDecoder):
                module.kernel_format = number_format

    def set_label_scale(self, mean: dict[str, float], std: dict[str, float]) -> None:
        self.label_mean.copy_(torch.tensor([mean[name] for name in self.labels], dtype=torch.float64))
        self.label_std.copy_(torch.tensor([std[name] for name in self.labels], dtype=torch.float64))

    def own(self, labels: Tensor) -> Tensor:
        """(batch, len(NAMES)) labels to the (batch, K) that are the model's."""
        return torch.stack([labels[:, column] for column in self.columns], dim=1) if self.columns else labels[:, :0]

    def normalise(self, labels: Tensor) -> Tensor:
        """(batch, len(NAMES)) physical labels to (batch, K) normalised ones in the format of the weights; NaN stays NaN
        (Eq. 1)."""
        normalised = (self.own(labels).double() - self.label_mean) / self.label_std
        return normalised.to(next(self.parameters()).dtype)

    def physical(self, normalised: Tensor) -> Tensor:
        """(…, K) normalised labels to physical units, float64."""
        return normalised.double() * self.label_std + self.label_mean

    def begin(self, release: Release) -> None:
        """Take what the model is to know of a release before it is trained there; most begin from nothing.

        The main rank alone does it, and shares the model with the others.
        """

    def adopt(self, weights: dict[str, Tensor], labels: tuple[str, ...]) -> list[str]:
        """Take over weights of another model that this one has under the same name and shape; returns their names.

        An encoder so goes on inside an autoencoder. labels: those of the other model. The label scale stays, and what
        is taken over is expressed in it, so that predictions do not jump where the other's was another.
        """
        own, weights = self.state_dict(), self._placed(self._in_own_scale(weights, labels), labels)
        fitting = {
            name: tensor
            for name, tensor in weights.items()
            if name.startswith("network.") and name in own and own[name].shape == tensor.shape
        }
        self.load_state_dict(fitting, strict=False)
        return sorted(fitting)

    def _in_own_scale(self, weights: dict[str, Tensor], labels: tuple[str, ...]) -> dict[str, Tensor]:
        scale = zip(self.label_mean.tolist(), self.label_std.tolist(), strict=True)
        return in_scale(weights, labels, dict(zip(self.labels, scale, strict=True)))

    def _placed(self, weights: dict[str, Tensor], labels: tuple[str, ...]) -> dict[str, Tensor]:
        """Another model's weights under the names that they have in this one."""
        return weights

    def passed(self, inputs: Tensor) -> object:
        """All that a forward pass computes of flux (batch, pixel), or of labels (batch, K) where it reads no flux."""
        return self.get_submodule("network")(inputs)

    def forward(self, batch: Batch) -> Output:
        raise NotImplementedError(f"{type(self).__name__} says nothing of a batch; give it a forward.")

    def read(self, flux: Tensor) -> Reading:
        """What the model reads off (batch, pixel) standardised flux; raises NotImplementedError where it reads none."""
        return self.reading(self.encoder(flux))

    def reading(self, features: Tensor) -> Reading:
        """What the model makes of what its encoder says, (batch, features); raises NotImplementedError as `read`."""
        raise NotImplementedError(f"{type(self).__name__} reads no spectra; use a LabelPredictor or a SemiSupervised.")

    @property
    def readout(self) -> Tensor:
        """(K, features) weights by which labels, or some nodes where there are none, follow from features.

        Raises NotImplementedError for a model that reads no spectra.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no spectra; use a LabelPredictor or a SemiSupervised.")

    def encode(self, flux: Tensor) -> Latent:
        """(batch, pixel) standardised flux to the latent's mean and log-variance, (batch, bottleneck) each.

        Raises NotImplementedError for a model without a bottleneck.
        """
        raise NotImplementedError(f"{type(self).__name__} has no bottleneck to encode into; use a SemiSupervised.")

    def decode(self, nodes: Tensor) -> Tensor:
        """(batch, input) normalised labels or bottleneck nodes to (batch, pixel) standardised flux.

        Raises NotImplementedError for a model without a decoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder; use a SpectrumSimulator or a SemiSupervised.")


class LabelPredictor(SpectrumModel):
    """Spectrum to labels (Eq. 3), with the logarithm of each one's scale where the head is heteroscedastic."""

    reads = True

    def __init__(self, config: Encoder, grid: Grid):
        super().__init__(config.labels)
        self.uncertainty = config.uncertainty
        self.network = LabelEncoder(
            grid.length,
            len(config.labels) * (1 if config.uncertainty == "none" else 2),
            width=config.width,
            input_centre=config.input_centre,
            input_scale=config.input_scale,
            init=config.init,
        )

    def forward(self, batch: Batch) -> Output:
        labels, log_scale = self._split(self.network(batch.flux))
        return Output(labels=labels, log_scale=log_scale)

    @property
    def encoder(self) -> ConvEncoder:
        return self.network.encoder

    def reading(self, features: Tensor) -> Reading:
        labels, log_scale = self._split(self.network.head(features))
        return Reading(labels, log_scale, features[:, :0], self.encoder.pooled(features))

    @property
    def readout(self) -> Tensor:
        return self.network.head.weight[: len(self.labels)]

    def _split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the head says as normalised labels (batch, K) and the logarithm of their scales, if it says that."""
        if self.uncertainty == "none":
            return predicted, None
        labels, log_scale = predicted.chunk(2, dim=1)
        return labels, log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)


class SpectrumSimulator(SpectrumModel):
    """Labels to spectrum (Eq. 4). A label that is missing makes the simulated spectrum NaN."""

    draws = True

    def __init__(self, config: Decoder, grid: Grid):
        super().__init__(config.labels)
        self.network = build_decoder(config, grid, len(config.labels), config.width)

    def forward(self, batch: Batch) -> Output:
        return Output(reconstruction=self.decode(self.normalise(batch.labels)))

    def decode(self, nodes: Tensor) -> Tensor:
        """(batch, K) normalised labels to (batch, pixel) standardised flux."""
        return self.network(nodes)


class SemiSupervised(SpectrumModel):
    """Spectrum to latent nodes to spectrum; the first K nodes are the labels (Eqs. 5-11).

    A variational one draws its nodes from the latent distribution in training, and takes the mean in evaluation,
    where the public code draws too. A deterministic one is so as Eq. 5 says, though the public one draws; the
    log-variance head is there, as in that model and its printed count, but takes no part.
    """

    reads = draws = True

    def __init__(self, config: Autoencoder | PhysicalAutoencoder, grid: Grid):
        super().__init__(config.labels)
        encoder = ConvEncoder(
            grid.length,
            width=config.width,
            input_centre=config.input_centre,
            input_scale=config.input_scale,
            init=config.init,
        )
        decoder = self._decoder(config, grid)
        self.network = Network(encoder, decoder, decoder.inputs, init=config.init)
        self.variational, self.nodes = config.variational, decoder.inputs
        self.network.get_submodule("log_variance_head").requires_grad_(config.variational)

    def _decoder(self, config: Any, grid: Grid) -> Any:
        return build_decoder(config, grid, config.bottleneck, config.decoder_width)

    def forward(self, batch: Batch) -> Output:
        latent, prior = self.encode(batch.flux), None
        nodes = latent.mean
        if self.variational and self.training:
            noise, prior = self._normal_draws(batch.key, nodes.shape[1])
            nodes = self.network.sample(latent, noise)
        labels = nodes[:, : len(self.labels)] if self.labels else None
        decoded = self.decode(self._decoded(nodes, batch))
        return Output(
            labels, decoded, nodes, latent if self.variational else None, prior, found=self._found(nodes, batch)
        )

    def _found(self, nodes: Tensor, batch: Batch) -> Tensor | None:
        """Labels that can be looked for on what is drawn, as `Output` has them."""
        return None

    def _decoded(self, nodes: Tensor, batch: Batch) -> Tensor:
        """The nodes that a batch is decoded from, where the encoder says nodes (batch, bottleneck)."""
        return nodes

    def _placed(self, weights: dict[str, Tensor], labels: tuple[str, ...]) -> dict[str, Tensor]:
        """A decoder pretrained alone keeps its first layer, each column under its own label (the public code loses that
        layer).

        Nodes that the other decoder did not have start without effect, so the first spectra are the ones it drew.
        """
        seed = "network.seed.weight"
        if seed not in weights:
            return weights
        weights = {f"network.decoder.{name.removeprefix('network.')}": value for name, value in weights.items()}
        name = f"network.decoder.{seed.removeprefix('network.')}"
        columns = weights[name].new_zeros(len(weights[name]), self.network.mean_head.out_features)
        for node, label in enumerate(self.labels):
            if label in labels:
                columns[:, node] = weights[name][:, labels.index(label)]
        return weights | {name: columns}

    @staticmethod
    def _normal_draws(key: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """Two independent (batch, nodes) standard normal draws, each sample's from its own key."""
        noise, prior = keyed_normals(key, 2 * nodes, LATENT_DRAWS).split(nodes, dim=1)
        return noise, prior

    @property
    def encoder(self) -> ConvEncoder:
        return self.network.encoder

    @property
    def readout(self) -> Tensor:
        return self.network.mean_head.weight[: len(self.labels) or UNNAMED_NODES]

    def reading(self, features: Tensor) -> Reading:
        known = len(self.labels)
        mean, log_variance = self.network.latent_of(features)
        log_scale = log_variance[:, :known] / 2 if self.variational and log_variance is not None else None
        return Reading(mean[:, :known], log_scale, mean, self.encoder.pooled(features))

    def encode(self, flux: Tensor) -> Latent:
        """(batch, pixel) standardised flux to the latent's mean and log-variance, (batch, bottleneck) each."""
        return self.network.encode(flux)

    def decode(self, nodes: Tensor) -> Tensor:
        """(batch, bottleneck) nodes to (batch, pixel) standardised flux."""
        return self.network.decode(nodes)


def build_decoder(config: Decoder | Autoencoder, grid: Grid, inputs: int, width: float) -> nn.Module:
    """The decoder that a configuration names."""
    if config.architecture == "cnn":
        return ConvDecoder(grid.length, inputs, width=width, init=config.init)
    return ResNetDecoder(grid.length, inputs, width=width, block=config.block, init=config.init)
