"""The bytes that a step by our kernels moves, counted from their launches: python -m tests.gpu.count_bytes --out FILE.

No GPU is needed: every launch is replaced by one that adds up the tensors it is given. What PyTorch does besides
(partial sums, labels, losses) is left out. The floor is every output of a convolution written, read twice, its gradient
written and read, once each.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import tyro

from harps_dist.kernels import availability
from harps_dist.models.build import build_model
from harps_dist.models.cost import forward_cost
from harps_dist.recipes import find_recipe
from harps_dist.spectra.grid import named_grid

MODULES = ("triton_convolution", "triton_norm", "triton_output", "triton_resnet")
COPY = 2.95e12  # bytes/s of a large copy on an H100
RECIPES = ("cnn-etc", "resnet-etc", "ae-mix")


class Counted:
    """Stands for a kernel: a launch adds up the bytes of its tensors, each once."""

    def __init__(self, name: str, found: Counter):
        self.name, self.found = name, found

    def __getitem__(self, grid):
        def launch(*arguments, **settings):
            tensors = {part.data_ptr(): part.nbytes for part in arguments if isinstance(part, torch.Tensor)}
            self.found[self.name] += sum(tensors.values())

        return launch


@contextmanager
def counting() -> Iterator[Counter]:
    """While it runs, kernels count instead of computing."""
    import triton

    found, before = Counter(), []
    for name in MODULES:
        module = importlib.import_module(f"harps_dist.kernels.{name}")
        for kernel, held in list(vars(module).items()):
            if isinstance(held, triton.runtime.jit.KernelInterface):
                before.append((module, kernel, held))
                setattr(module, kernel, Counted(kernel, found))
    available, availability.available = availability.available, lambda: True
    try:
        yield found
    finally:
        availability.available = available
        for module, kernel, held in before:
            setattr(module, kernel, held)


def step_bytes(recipe: str, grid: str, batch: int) -> dict[str, object]:
    """Bytes a spectrum of a step in bf16, by kernel and in all, beside the floor."""
    config, chosen = find_recipe(recipe).model, named_grid(grid)
    model = build_model(config, chosen)
    with counting() as found:
        model.use_kernels(torch.bfloat16)
        inputs = torch.zeros(batch, chosen.length if config.reads else len(config.labels))
        made = model.network(inputs)
        parts = made if isinstance(made, tuple) else (made,)
        sum(part.float().sum() for part in parts if isinstance(part, torch.Tensor) and part.requires_grad).backward()
    moved, floor = sum(found.values()) / batch, 5 * 2 * forward_cost(config, chosen).outputs
    return {
        "mb": {name: round(count / batch / 1e6, 2) for name, count in found.items()},
        "mb_in_all": round(moved / 1e6, 2),
        "mb_floor": round(floor / 1e6, 2),
        "over_floor": round(moved / floor, 2),
        "spectra_per_s_at_copy_speed": round(COPY / moved),
        "spectra_per_s_of_floor": round(COPY / floor),
    }


def main(out: Path, grid: str = "harps", batch: int = 4) -> None:
    content = {recipe: step_bytes(recipe, grid, batch) for recipe in RECIPES}
    text = json.dumps({"what": __doc__.split("\n\n")[1], "copy_bytes_per_s": COPY, "steps": content}, indent=1)
    out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
