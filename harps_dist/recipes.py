"""The recipes by name: Table 4(a) of the paper, and what came after it.

`RECIPES` keeps the paper's settings. `demo-…` are the same rows at a scale that two cores train in minutes: centred
input, initialised on scale, narrow decoders, a higher learning rate with cosine decay, errors that are quadratic where
small, BERV labelled on simulated spectra too, and their nuisances simulated.
"""

from __future__ import annotations

from harps_dist.config import Autoencoder, Data, Decoder, Encoder, Loss, Recipe, Training
from harps_dist.data.augment import Augment, Nuisance
from harps_dist.data.order import Mix
from harps_dist.errors import ConfigError
from harps_dist.spectra.labels import SEVEN, SIX

REAL = Data(mix=Mix(real=1, simulated=0))
ETC = Data(mix=Mix(real=0, simulated=1))
MIXED = Data(mix=Mix(real=1, simulated=1))

RECIPES = {
    "cnn-mix":     Recipe(model=Encoder(labels=SIX),           data=MIXED),
    "cnn-real":    Recipe(model=Encoder(labels=SIX),           data=REAL),
    "cnn-etc":     Recipe(model=Encoder(labels=SEVEN),         data=ETC),
    "ae-real":     Recipe(model=Autoencoder(bottleneck=9),     data=REAL),
    "ae-mix":      Recipe(model=Autoencoder(bottleneck=9),     data=MIXED),
    "resnet-etc":  Recipe(model=Decoder(architecture="resnet"), data=ETC, training=Training(learning_rate=1e-3)),
    "cnn-dec-etc": Recipe(model=Decoder(architecture="cnn"),   data=ETC),
}  # fmt: skip

_DEMO_AUGMENT = Augment(rv_kms=70, berv_kms=30, nuisance=Nuisance(broadening_kms=5, line_error=0.1, continuum=0.01))
_DEMO_STEPS = {"encoder": 500, "autoencoder": 350, "decoder": 350}


def at_demo_scale(recipe: Recipe) -> Recipe:
    """The same row at a scale that learns within minutes; a ResNet decoder does not, so a CNN takes its place."""
    model = recipe.model.model_copy(update={"init": "on_scale"})
    if isinstance(model, Encoder | Autoencoder):
        model = model.model_copy(update={"input_centre": 0.93, "input_scale": 8.0})
    if isinstance(model, Autoencoder):
        model = model.model_copy(update={"architecture": "cnn", "decoder_width": 0.5})
    if isinstance(model, Decoder):
        model = model.model_copy(update={"width": 0.25})
    return Recipe(
        model=model,
        data=recipe.data.model_copy(update={"augment": _DEMO_AUGMENT}),
        loss=Loss(label_below=0.1, reconstruction=3.0, reconstruction_below=0.3),
        training=Training(
            steps=_DEMO_STEPS[model.kind], learning_rate=1e-3, schedule="cosine", warmup_steps=20, clip_norm=1.0
        ),
        log=recipe.log.model_copy(update={"validate_every": 250, "save_every": 100}),
    )


RECIPES |= {f"demo-{name}": at_demo_scale(recipe) for name, recipe in RECIPES.items()}
DEFAULT = "demo-cnn-mix"


def find_recipe(name: str) -> Recipe:
    """A recipe by name; raises ConfigError with the known names."""
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"there is no recipe {name!r}. Known: {', '.join(RECIPES)}.") from None
