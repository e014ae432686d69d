"""The network of an export, from its description and its weights.

Tested in tests/integration/test_exports.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harps_dist.errors import ExportError, HarpsDistError
from harps_dist.inference.description import CONFIG, WEIGHTS, Description
from harps_dist.models.build import KINDS
from harps_dist.models.supervised import SpectrumModel
from harps_dist.spectra.labels import LABEL


class _NothingDrawn(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them: a file does, and on the meta device a draw
    would import torch's compiler, for seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def build(description: Description, weights: dict[str, Tensor], folder: Path) -> SpectrumModel:
    """The network that the description names, with the weights. No memory is taken before all shapes fit."""
    fields, grid = dict(description.model), description.grid
    names = tuple(label.name for label in description.labels)
    kind = str(fields.get("kind"))
    if (
        kind not in KINDS
        or fields.get("labels") != list(names)
        or not set(names) <= set(LABEL)
        or (grid.step_aa, grid.wave0_aa) != (grid.grid().step_aa, grid.grid().wave0_aa)
    ):
        raise ExportError(
            f"{folder / CONFIG} describes a {kind!r} of labels {fields.get('labels')} on steps of {grid.step_aa} Å "
            f"from {grid.wave0_aa} Å; expected one of {', '.join(KINDS)} of {list(names)} on {grid.grid().step_aa} Å "
            f"from {grid.grid().wave0_aa} Å. Export the run again."
        )
    weights = {
        name: tensor if name in ("label_mean", "label_std") else tensor.float() for name, tensor in weights.items()
    }
    try:
        with torch.device("meta"), _NothingDrawn():
            plain = SimpleNamespace(**fields | {"labels": names, "init": "paper"})  # which computes nothing
            model = KINDS[kind](plain, grid.grid())
        model.load_state_dict(weights, assign=True)
    except (HarpsDistError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ExportError(
            f"{folder / WEIGHTS} does not hold the weights of the model in {CONFIG}: {reason}. Export the run again."
        ) from None
    return model
