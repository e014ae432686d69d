"""The file of line corrections that a run is trained with: a copy in its folder, named after its content.

So a recipe says by the name which corrections they are, and a run needs no file that lies elsewhere.

Tested in tests/integration/test_corrected_training.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from harps_dist.config import Recipe
from harps_dist.formats.line_corrections import read_corrections
from harps_dist.sealed import sealed_name, sealed_write

LINES = "lines.npz"


def keep_lines(recipe: Recipe, run: Path, begun: Recipe | None) -> Recipe:
    """The recipe with its file of line corrections, if it names one, copied into the run's folder.

    begun: what the run has learned by already. The file that was given then may be gone, and another one is not copied.
    Raises ConfigError for a file that is none.
    """
    given = recipe.data.augment.nuisance.lines
    if not given:
        return recipe
    before = Path(begun.data.augment.nuisance.lines) if begun and begun.data.augment.nuisance.lines else None
    if before and before.is_file() and not Path(given).is_file():
        return _with_lines(recipe, before)
    read_corrections(Path(given), "--data.augment.nuisance.lines")
    kept = sealed_name(run / LINES, Path(given))
    if not kept.exists() and (begun is None or before == kept):
        run.mkdir(parents=True, exist_ok=True)
        with sealed_write(run / LINES) as aside:
            shutil.copyfile(given, aside)
    return _with_lines(recipe, kept)


def with_kept_lines(recipe: Recipe, run: Path) -> Recipe:
    """A recipe as it is saved, its file of line corrections found in the run's folder.

    Raises ValueError where the file's content is not what its name says.
    """
    name = recipe.data.augment.nuisance.lines
    if not name:
        return recipe
    kept = run / Path(name).name
    if kept.is_file() and sealed_name(run / LINES, kept) != kept:
        raise ValueError(f"the content of {kept} is not what its name says")
    return _with_lines(recipe, kept)


def copy_lines(run: Path, recipe: Recipe, to: Path) -> None:
    """Copy what a run keeps of line corrections, if anything, to another folder."""
    if name := recipe.data.augment.nuisance.lines:
        shutil.copy(run / Path(name).name, to)


def _with_lines(recipe: Recipe, path: Path) -> Recipe:
    nuisance = recipe.data.augment.nuisance.model_copy(update={"lines": str(path)})
    return recipe.changed(data={"augment": recipe.data.augment.model_copy(update={"nuisance": nuisance})})
