"""Checkpoints are whole or not chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harps_dist.errors import ResumeError
from harps_dist.training.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((5, 4), float(step))).square().mean().backward()
        optimizer.step()
    return model, optimizer


def save(folder, step: int, keep: int = 9):
    return save_checkpoint(folder, *trained(step), {"step": step, "recipe_digest": "r", "release_digest": "d"}, keep)


def test_restored_training_goes_on_bit_for_bit(tmp_path):
    save(tmp_path, 3)
    model, optimizer = trained(0)
    checkpoint, _ = newest_checkpoint(tmp_path)
    checkpoint.load_model(model)
    checkpoint.load_optimizer(model, optimizer)
    for step in (3, 4):
        optimizer.zero_grad()
        model(torch.full((5, 4), float(step))).square().mean().backward()
        optimizer.step()
    for name, value in trained(5)[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_only_the_last_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(tmp_path, file, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2).path / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2 if file != "state.json" else 0] ^= 4
    elif damage == "cut":
        content = content[: len(content) // 2]
    path.unlink() if damage == "remove" else path.write_bytes(content)
    with pytest.raises(ResumeError):
        read_checkpoint(path.parent)
    checkpoint, passed_over = newest_checkpoint(tmp_path)
    assert checkpoint.step == 1
    assert len(passed_over) == 1
    assert "step-00000002" in passed_over[0]


def test_a_half_written_checkpoint_is_not_seen(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr("harps_dist.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
