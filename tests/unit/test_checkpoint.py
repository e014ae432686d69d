"""Checkpoints are whole or not chosen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harps_dist.errors import ResumeError
from harps_dist.runs.checkpoint import (
    CheckpointWriter,
    Snapshot,
    best_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from harps_dist.training.strategies.base import copied, plain_moments, restore_plain


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


def save(folder, step: int, keep: int = 9, validation_loss: float | None = None):
    model, optimizer = trained(step)
    snapshot = Snapshot(copied(model.state_dict()), plain_moments(model, optimizer))
    return save_checkpoint(folder, snapshot, {"step": step, "validation_loss": validation_loss}, keep)


def test_restored_training_goes_on_bit_for_bit(tmp_path):
    save(tmp_path, 3)
    model, optimizer = trained(0)
    checkpoint, _ = newest_checkpoint(tmp_path)
    checkpoint.load_model(model)
    restore_plain(model, optimizer, checkpoint.moments())
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


def test_the_best_is_kept_besides(tmp_path):
    for step, loss in enumerate([None, 0.5, 0.3, 0.4, 0.3, None, 0.6]):
        save(tmp_path, step, keep=2, validation_loss=loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (2, 5, 6)]
    best, passed_over = best_checkpoint(tmp_path)
    assert (best.step, passed_over) == (2, [])
    (best.path / "model.safetensors").write_bytes(b"broken")
    best, passed_over = best_checkpoint(tmp_path)
    assert best.step == 6
    assert "step-00000002" in passed_over[0]


def test_checkpoints_are_written_in_order_and_errors_are_not_lost(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, 9)
    model, optimizer = trained(1)
    for step in (1, 2, 3):
        snapshot = Snapshot(copied(model.state_dict()), plain_moments(model, optimizer))
        writer.write(snapshot, {"step": step})
        with torch.no_grad():  # the snapshot is a copy
            model[0].weight.add_(1.0)
    writer.wait()
    first, _, third = (load_file(tmp_path / f"step-0000000{step}/model.safetensors")["0.weight"] for step in (1, 2, 3))
    torch.testing.assert_close(third - first, torch.full_like(first, 2.0))
    monkeypatch.setattr("harps_dist.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    writer.write(snapshot, {"step": 4})
    with pytest.raises(OSError, match="disk full"):
        writer.close()


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
    left = tmp_path / ".step-00000002.abcd1234.tmp"  # by a writer that was killed
    left.mkdir()
    assert newest_checkpoint(tmp_path)[0].step == 1
    remove_unfinished(tmp_path)
    assert not left.exists()
