"""How runs learned, from their logs."""

from __future__ import annotations

import csv
import json

import pytest

from harps_dist.benchmarks.curves import draw_curves
from harps_dist.errors import ConfigError


def test_curves_are_those_of_the_logs(tmp_path):
    points = {"paper": [(20, 7.0), (40, 3.0)], "on_scale": [(20, 0.2), (40, 0.1)]}
    for name, curve in points.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "loss_reconstruction": loss}) for step, loss in curve]
        (tmp_path / name / "log.jsonl").write_text("\n".join(lines))
    draw_curves([tmp_path / name for name in points], tmp_path / "curves.png", "reconstruction")
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    read = {
        name: [(int(r["step"]), float(r["loss_reconstruction"])) for r in rows if r["run"] == name] for name in points
    }
    assert read == points
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no kl loss; it has reconstruction"):
        draw_curves([tmp_path / "paper"], tmp_path / "x.png", "kl")
