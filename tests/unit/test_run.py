"""What a run's folder says of it."""

from __future__ import annotations

import pytest
import yaml

from harps_dist.errors import ConfigError
from harps_dist.recipes import find_recipe
from harps_dist.runs.run import RECIPE, read_run
from harps_dist.spectra.grid import named_grid
from harps_dist.spectra.grid_spec import GridSpec


@pytest.fixture
def content() -> dict:
    return {
        "name": "made up",
        "recipe": find_recipe("demo-cnn-mix").model_dump(mode="json"),
        "grid": GridSpec.of(named_grid("tiny")).model_dump(),
        "release_digest": "d0" * 32,
        "split": [[0.6, 0.2, 0.2], "salt"],
        "label_ranges": {"teff": [4000.0, 7000.0]},
    }


def test_a_recipe_file_reads_back(content, tmp_path):
    (tmp_path / RECIPE).write_text(yaml.safe_dump(content))
    saved = read_run(tmp_path)
    assert saved.recipe == find_recipe("demo-cnn-mix")
    assert saved.grid.grid() == named_grid("tiny")
    assert saved.split == ((0.6, 0.2, 0.2), "salt")
    assert saved.label_ranges == {"teff": (4000.0, 7000.0)}


@pytest.mark.parametrize("missing", ["name", "recipe", "grid", "release_digest", "split"])
def test_what_an_older_version_did_not_write_is_named(missing, content, tmp_path):
    del content[missing]
    (tmp_path / RECIPE).write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"recipe.yaml is not what this version writes: no '{missing}'"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "just words", "recipe: {model: 3}\nsplit: [[1, 0, 0], s]\nname: n\n"])
def test_a_recipe_file_that_is_damaged_says_so(text, tmp_path):
    (tmp_path / RECIPE).write_text(text)
    with pytest.raises(ConfigError, match="is not what this version writes"):
        read_run(tmp_path)


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(ConfigError, match="is not a run"):
        read_run(tmp_path)
