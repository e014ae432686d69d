"""The recipes by name: Table 4(a) of the paper, and what came after it.

`RECIPES` keeps the paper's settings. `demo-…` are the same rows at a scale that two cores train in minutes: centred
input, initialised on scale, narrow decoders, a higher learning rate with cosine decay, errors that are quadratic where
small, BERV labelled on simulated spectra too, and their nuisances simulated.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

from difflib import get_close_matches

from harps_dist.config import Data, Recipe, Training
from harps_dist.data.augment import NUISANCES, Augment
from harps_dist.data.order import Mix
from harps_dist.errors import ConfigError
from harps_dist.models.config import Autoencoder, Decoder, Encoder, Loss, PhysicalAutoencoder
from harps_dist.spectra.labels import SEVEN, SIX

REAL = Data(mix=Mix(real=1, simulated=0))
ETC = Data(mix=Mix(real=0, simulated=1))
MIX = Data(mix=Mix(real=1, simulated=1))


def one_percent(data: Data) -> Data:
    """This data with 1 % of the real labels (Table 5)."""
    return data.model_copy(update={"label_fraction": 0.01})


# The printed lambda_KL = 1e-5 weighs a sum over a batch of 32; these weigh the mean, hence the factor (Sect. 3.7).
KL = 32 * 1e-5
BETA = Loss(kl=KL)
BETA_U = Loss(kl=KL, unknown_penalty=0)
INFO = Loss(kl=KL, mmd=(1 - 1e-5) + 100 - 1)  # lambda_MI + lambda_MMD - 1, Eq. 10
INFO_U = Loss(kl=KL, mmd=(1 - 1e-5) + 100 - 1, unknown_penalty=0)

AE = Autoencoder(bottleneck=9)
VAE = Autoencoder(bottleneck=32, variational=True)
VAE_U = Autoencoder(bottleneck=128, variational=True, labels=())
VAE_CNN_U = Autoencoder(bottleneck=128, variational=True, labels=(), architecture="cnn")

PHYS = PhysicalAutoencoder()
PHYS_U = PhysicalAutoencoder(taught=0, search=1)
PHYS_LOSS = Loss(reconstruction=10, unknown_penalty=0.01)
PHYS_LOSS_U = PHYS_LOSS.model_copy(update={"label": 0.0})
PHYS_INFO = PHYS_LOSS.model_copy(update={"kl": INFO.kl, "mmd": INFO.mmd})

# fmt: off
RECIPES = {
    # Table 4: learning paradigms and architectures
    "beta-vae-cnn-u":  Recipe(model=VAE_CNN_U,                    data=REAL, loss=BETA_U, parent="cnn-dec-etc"),
    "cnn-mix":         Recipe(model=Encoder(labels=SIX),          data=MIX),
    "ae-real":         Recipe(model=AE,                           data=REAL, parent="resnet-etc"),
    "ae-mix":          Recipe(model=AE,                           data=MIX,  parent="resnet-etc"),
    "infovae-mix":     Recipe(model=VAE,                          data=MIX,  loss=INFO, parent="resnet-etc"),
    "cnn-etc":         Recipe(model=Encoder(labels=SEVEN),        data=ETC),
    # Table 5: fewer labels
    "cnn-real":        Recipe(model=Encoder(labels=SIX),          data=REAL),
    "cnn-real-1pct":   Recipe(model=Encoder(labels=SIX),          data=one_percent(REAL)),
    "cnn-mix-1pct":    Recipe(model=Encoder(labels=SIX),          data=one_percent(MIX)),
    "ae-real-1pct":    Recipe(model=AE,                           data=one_percent(REAL), parent="resnet-etc"),
    "ae-mix-1pct":     Recipe(model=AE,                           data=one_percent(MIX), parent="resnet-etc"),
    # Table 6: unsupervised, labels by least squares from the latent means
    "beta-vae-u":      Recipe(model=VAE_U,                        data=REAL, loss=BETA_U, parent="resnet-etc"),
    "infovae-u":       Recipe(model=VAE_U,                        data=REAL, loss=INFO_U, parent="resnet-etc"),
    "beta-vae-mix-u":  Recipe(model=VAE_U,                        data=MIX,  loss=BETA_U, parent="resnet-etc"),
    "infovae-mix-u":   Recipe(model=VAE_U,                        data=MIX,  loss=INFO_U, parent="resnet-etc"),
    # Table 7: decoders
    "cnn-dec-etc":     Recipe(model=Decoder(architecture="cnn"),  data=ETC),
    "resnet-etc":      Recipe(model=Decoder(),                    data=ETC,  training=Training(learning_rate=1e-3)),
    # Not tabulated: labels with uncertainties, the supervised beta-VAE of Sect. 3.7, the block as Appendix B prints it
        "cnn-mix-laplace": Recipe(model=Encoder(labels=SIX, uncertainty="laplace"), data=MIX),
    "beta-vae-mix":  Recipe(model=VAE,                          data=MIX,  loss=BETA, parent="resnet-etc"),
    "resnet-b-etc":    Recipe(model=Decoder(block="appendix_b"),  data=ETC,  training=Training(learning_rate=1e-3)),
    # Not of the paper: a decoder that shifts a star at rest and the sky; without labels it finds them by drawing
    "ae-phys":         Recipe(model=PHYS,                         data=MIX,  loss=PHYS_LOSS),
    "ae-phys-1pct":    Recipe(model=PHYS,                         data=one_percent(MIX), loss=PHYS_LOSS),
    "ae-phys-real":    Recipe(model=PHYS,                         data=REAL, loss=PHYS_LOSS),
    "ae-phys-u":       Recipe(model=PHYS_U, data=REAL, loss=PHYS_LOSS_U),
    "infovae-phys":    Recipe(model=PhysicalAutoencoder(variational=True), data=MIX, loss=PHYS_INFO),
}
# fmt: on

# Fig. 2: bottleneck 7..20, with and without supervising the unknown factors of simulated spectra towards zero
for _suffix, _loss in (("", Loss()), ("-free", Loss(unknown_penalty=0))):
    RECIPES |= {
        f"fig2-b{size}{_suffix}": Recipe(model=Autoencoder(bottleneck=size), data=MIX, loss=_loss, parent="resnet-etc")
        for size in range(7, 21)
    }
# Fig. D.1: the weight of the label loss
RECIPES |= {
    f"figd1-lab{weight:g}": Recipe(model=AE, data=MIX, loss=Loss(label=weight), parent="resnet-etc")
    for weight in (0.01, 0.1, 1, 10, 20, 100)
}

_DEMO_AUGMENT = Augment(rv_kms=70, berv_kms=30, shift="linear", nuisance=NUISANCES["plain"])
_DEMO_STEPS = {"encoder": 800, "autoencoder": 400, "physical-autoencoder": 400, "decoder": 400}


def at_demo_scale(recipe: Recipe) -> Recipe:
    """A row of the paper at a scale that learns within minutes.

    A ResNet decoder does not, pretrained or not, so a CNN takes its place in autoencoders, and what they start from
    is an encoder.
    """
    model, parent = recipe.model.model_copy(update={"init": "on_scale"}), None
    loss = recipe.loss.model_copy(update={"label_below": 0.1})
    if not isinstance(model, Decoder):
        model = model.model_copy(update={"input_centre": 0.93, "input_scale": 8.0})
    if isinstance(model, PhysicalAutoencoder):
        parent = "demo-cnn-mix" if loss.label else None  # what is to be found without labels begins without them
    else:
        loss = loss.model_copy(update={"reconstruction": 3.0, "reconstruction_below": 0.3})
    if isinstance(model, Autoencoder):
        model = model.model_copy(update={"architecture": "cnn", "decoder_width": 0.5})
        parent = "demo-cnn-mix"
    if isinstance(model, Decoder):
        model = model.model_copy(update={"width": 0.25})
    return Recipe(
        model=model,
        parent=parent,
        data=recipe.data.model_copy(update={"augment": _DEMO_AUGMENT}),
        loss=loss,
        training=Training(
            steps=_DEMO_STEPS[model.kind], learning_rate=1e-3, schedule="cosine", warmup_steps=20, clip_norm=1.0
        ),
        log=recipe.log.model_copy(update={"validate_every": 250, "save_every": 100}),
    )


RECIPES |= {f"demo-{name}": at_demo_scale(recipe) for name, recipe in RECIPES.items()}
DEFAULT = "demo-cnn-mix"


def families() -> dict[str, list[str]]:
    """Names of the paper's recipes by what their models do, and of the sweeps behind its figures."""
    found: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        sweep = {"fig2": "Fig. 2", "figd1": "Fig. D.1"}.get(name.split("-")[0])
        if not name.startswith("demo-"):
            found.setdefault(sweep or f"{recipe.model.kind}s", []).append(name)
    return found


def overview() -> str:
    """All names in few lines, for people; of a long sweep the first and the last."""
    lines = [
        f"  {family}: {', '.join(names if len(names) < 20 else (names[0], '…', names[-1]))}"
        for family, names in families().items()
    ]
    return "\n".join(["Recipes:", *lines, "  each also as demo-…, at a scale that two cores train in minutes."])


def find_recipe(name: str) -> Recipe:
    """A recipe by name; raises ConfigError with the nearest names."""
    try:
        return RECIPES[name]
    except KeyError:
        near = get_close_matches(name, RECIPES, n=3)
        meant = f"Did you mean {', '.join(near)}? " if near else ""
        raise ConfigError(f"there is no recipe {name!r}. {meant}`harps-dist train --help` lists them.") from None
