"""Models in use: what is promoted, refused and gone back to, and that neither kills nor haste leave it torn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from harps_dist.config import recipe_digest
from harps_dist.errors import ConfigError, PromotionError, ResumeError
from harps_dist.promotion import registry as module
from harps_dist.promotion.comparison import read_comparison
from harps_dist.promotion.gate import Gate, Line, Verdict
from harps_dist.promotion.registry import Registry
from harps_dist.runs.checkpoint import MODEL, read_checkpoint
from harps_dist.runs.run import Run, git_revision, read_run
from harps_dist.sealed import sealed
from tests.commands import command, run
from tests.made_up_models import RELEASE, write_comparison, write_model

GATE = Gate(lines=(Line(measure="teff", relative=0.10),))


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [write_model(tmp_path / f"run-{number}", number) for number in range(4)]


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "models")


def promoted(registry: Registry, run: Path, old: Path | None, change: float = 0.0):
    """Promote a run that was compared with the current model."""
    folder = run.parent / f"comparison-{time.monotonic_ns()}"
    return registry.promote(run, write_comparison(folder, run, old, change), GATE)


def history(registry: Registry) -> list[tuple[str, str]]:
    return [(event.event, event.model.id) for event in registry.events()]


def linked(registry: Registry) -> str | None:
    """Where the link leads, whatever the index says."""
    link = registry.folder / "current"
    return link.readlink().as_posix() if link.is_symlink() else None


def test_a_promoted_model_is_a_run_with_its_record(registry, runs):
    event = promoted(registry, runs[0], None)
    opened = Run(runs[0])
    model, checkpoint = opened.identity(), opened.checkpoint()
    folder = registry.folder / f"demo-cnn-mix-{model.id}"
    assert linked(registry) == folder.name
    assert registry.current() == model
    assert read_run(registry.folder / "current").name == "demo-cnn-mix"
    copied = Run(registry.folder / "current").checkpoint()
    assert (copied.path / MODEL).read_bytes() == (checkpoint.path / MODEL).read_bytes()
    assert Run(registry.folder / "current").identity().id == model.id
    record = registry.folder / event.record
    assert read_comparison(record).new == model
    assert Verdict.model_validate_json((record / "verdict.json").read_text()).passed
    assert (record / "comparison.md").exists()
    assert not os.stat(copied.path / MODEL).st_mode & 0o222  # nobody writes there by mistake
    saved = json.loads((registry.folder / "index.json").read_text())["events"][0]
    assert saved["release"]["digest"] == RELEASE.digest
    assert saved["release"]["parent"] == RELEASE.parent
    assert saved["model"]["recipe_digest"] == read_run(runs[0]).recipe.digest
    assert saved["model"]["git"] == git_revision() == saved["code"]
    assert saved["verdict"]["lines"]
    assert saved["replaced"] is None


def test_a_model_that_got_worse_is_refused_and_that_is_on_record(registry, runs):
    promoted(registry, runs[0], None)
    with pytest.raises(PromotionError, match=r"teff worse by at most 10%.*: 15, limit 5, 10 beyond"):
        promoted(registry, runs[1], runs[0], change=20.0)
    assert linked(registry) == Run(runs[0]).identity().folder_name
    assert [event.event for event in registry.events()] == ["promoted", "refused"]
    refused = registry.events()[-1]
    assert refused.verdict.failures[0].excess == pytest.approx(10)
    assert refused.model.id == Run(runs[1]).identity().id
    assert not (registry.folder / refused.model.folder_name).exists()


def test_the_same_refusal_twice_is_one_event(registry, runs, tmp_path):
    promoted(registry, runs[0], None)
    folder = write_comparison(tmp_path / "worse", runs[1], runs[0], change=20.0)
    for _ in range(2):
        with pytest.raises(PromotionError):
            registry.promote(runs[1], folder, GATE)
    assert len(registry.events()) == 2
    with pytest.raises(PromotionError):
        registry.promote(runs[1], folder, Gate(lines=(Line(measure="teff", relative=0.2),)))  # another gate
    assert len(registry.events()) == 3


def test_the_current_model_is_not_promoted_again(registry, runs):
    promoted(registry, runs[0], None)
    before = (registry.folder / "index.json").read_bytes()
    assert registry.promote(runs[0], None, GATE) is None
    assert registry.promote(registry.folder / "current", None, GATE) is None
    assert (registry.folder / "index.json").read_bytes() == before


def test_rollback_goes_back_one_by_one(registry, runs):
    with pytest.raises(PromotionError, match="no model was promoted"):
        registry.rollback()
    for run_, old in zip(runs[:3], (None, *runs[:2]), strict=True):
        promoted(registry, run_, old)
    names = [Run(run).identity().folder_name for run in runs]
    assert registry.rollback("it draws no lines").reason == "it draws no lines"
    assert linked(registry) == names[1]
    promoted(registry, runs[3], runs[1])
    assert linked(registry) == names[3]
    for expected in (names[1], names[0]):
        registry.rollback()
        assert linked(registry) == expected
    with pytest.raises(PromotionError, match=f"only {names[0]} was promoted"):
        registry.rollback()
    assert linked(registry) == names[0]
    assert [event.event for event in registry.events()] == [*["promoted"] * 3, "rolled back", "promoted"] + [
        "rolled back"
    ] * 2


def test_what_was_rolled_back_can_be_promoted_again(registry, runs):
    promoted(registry, runs[0], None)
    first = promoted(registry, runs[1], runs[0])
    registry.rollback()
    again = promoted(registry, runs[1], runs[0], change=1.0)
    assert linked(registry) == first.model.folder_name
    assert again.record != first.record
    for event in (first, again):
        assert (registry.folder / event.record / "comparison.json").exists()


def test_a_stale_comparison_is_refused(registry, runs, tmp_path):
    first = write_comparison(tmp_path / "first", runs[0], None)
    against_none = write_comparison(tmp_path / "none", runs[1], None)
    against_0 = write_comparison(tmp_path / "0", runs[1], runs[0])
    with pytest.raises(PromotionError, match="has no comparison"):
        registry.promote(runs[0], None, GATE)
    with pytest.raises(PromotionError, match="but no model is current"):
        registry.promote(runs[1], against_0, GATE)
    registry.promote(runs[0], first, GATE)
    with pytest.raises(PromotionError, match=r"against no model, but \w+ is current"):
        registry.promote(runs[1], against_none, GATE)
    with pytest.raises(PromotionError, match=r"the comparison is of \w+ \(step 10\)"):
        registry.promote(runs[2], against_0, GATE)
    write_model(runs[1], seed=7, step=20)  # it was trained further
    with pytest.raises(PromotionError, match=r"newest checkpoint is \w+ \(step 20\)"):
        registry.promote(runs[1], against_0, GATE)
    assert [event.event for event in registry.events()] == ["refused", "promoted", *["refused"] * 3]
    with pytest.raises(ConfigError, match="is no comparison"):
        registry.promote(runs[1], tmp_path, GATE)


def test_a_checkpoint_that_was_tampered_with_is_refused(registry, runs, tmp_path):
    promoted(registry, runs[0], None)
    compared = write_comparison(tmp_path / "compared", runs[1], runs[0])
    path = runs[1] / "checkpoints/step-00000010" / MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResumeError, match="is damaged"):
        registry.promote(runs[1], compared, GATE)
    shutil.copytree(path.parent, path.parents[1] / "step-00000020")  # an older, whole one does not take its place
    path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    with pytest.raises(ResumeError, match="newest checkpoint"):
        registry.promote(runs[1], compared, GATE)
    assert linked(registry) == Run(runs[0]).identity().folder_name


def test_a_recipe_that_was_edited_is_not_promoted(registry, runs, tmp_path):
    compared = write_comparison(tmp_path / "compared", runs[0], None)
    path = runs[0] / "recipe.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["recipe"]["training"]["seed"] = 5
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match="it states digest"):
        registry.promote(runs[0], compared, GATE)
    saved["recipe_digest"] = recipe_digest(saved["recipe"])
    path.write_text(yaml.safe_dump(sealed(saved)))  # by someone who knows how
    with pytest.raises(ResumeError, match="they are not of the same run"):
        registry.promote(runs[0], compared, GATE)


def test_a_kept_model_that_was_damaged_is_not_gone_back_to(registry, runs):
    promoted(registry, runs[0], None)
    event = promoted(registry, runs[1], runs[0])
    path = registry.folder / Run(runs[0]).identity().folder_name / "checkpoints/step-00000010" / MODEL
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ResumeError, match="damaged"):
        registry.rollback()
    assert linked(registry) == event.model.folder_name
    damaged = registry.folder / event.model.folder_name / "checkpoints/step-00000010" / MODEL
    damaged.unlink()
    assert registry.promote(runs[1], None, GATE) is None  # puts the current one back in order
    read_checkpoint(damaged.parent)


def test_a_link_that_leads_elsewhere_is_set_right(registry, runs):
    promoted(registry, runs[0], None)
    promoted(registry, runs[1], runs[0])
    link, wanted = registry.folder / "current", linked(registry)
    link.unlink()
    assert registry.settle()[-1].model.folder_name == wanted == linked(registry)
    module.atomic_link(link, Path("nowhere"))
    registry.settle()
    assert linked(registry) == wanted


def test_a_damaged_index_is_said_and_kept(registry, runs):
    promoted(registry, runs[0], None)
    path = registry.folder / "index.json"
    for content in ("{", "[]", '{"format": 1}', '{"format": 1, "events": [{"number": 1}]}', '{"format": 2}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"is damaged|has format 2"):
            registry.rollback()
        assert path.read_text() == content


CALLS = ("replace", "fsync", "symlink", "mkdir")


def killed_at(call: int, work) -> bool:
    """Do the work in a child that is killed before its n-th call to write, rename or link; whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        count = 0

        def counted(function):
            def call_or_die(*arguments, **named):
                nonlocal count
                count += 1
                if count > call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)

            return call_or_die

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        work()
    finally:
        os._exit(0)


def test_a_promotion_that_is_killed_anywhere_leaves_old_or_new(registry, runs, tmp_path):
    """And, given again, is done."""
    promoted(registry, runs[0], None)
    compared = write_comparison(tmp_path / "compared", runs[1], runs[0])
    old, new = (Run(run).identity() for run in runs[:2])
    seen = set()
    for call in range(200):
        tried = Registry(tmp_path / f"models-{call}")
        shutil.copytree(registry.folder, tried.folder, symlinks=True)
        killed = killed_at(call, lambda tried=tried: tried.promote(runs[1], compared, GATE))
        current = tried.current()  # the index can be read
        seen.add((current.id == new.id, linked(tried) == new.folder_name))
        assert Run(tried.folder / "current").identity().id in (old.id, new.id)
        assert tried.settle()[-1].model == current
        assert linked(tried) == current.folder_name
        assert not list(tried.folder.glob("**/.*.tmp"))
        assert (tried.promote(runs[1], compared, GATE) is None) is (current.id == new.id)
        assert history(tried) == [("promoted", old.id), ("promoted", new.id)]
        assert linked(tried) == new.folder_name
        assert Run(tried.folder / "current").identity().id == new.id
        if not killed:
            break
    assert call > 20
    assert seen == {(False, False), (True, False), (True, True)}  # folders, then index, then link


def test_a_rollback_that_is_killed_anywhere_leaves_old_or_new(registry, runs, tmp_path):
    promoted(registry, runs[0], None)
    promoted(registry, runs[1], runs[0])
    old, new = (Run(run).identity() for run in runs[:2])
    seen = set()
    for call in range(20):
        tried = Registry(tmp_path / f"models-{call}")
        shutil.copytree(registry.folder, tried.folder, symlinks=True)
        killed = killed_at(call, tried.rollback)
        current = tried.current()
        seen.add((current.id == old.id, linked(tried) == old.folder_name))
        tried.settle()
        assert linked(tried) == current.folder_name
        assert len(tried.events()) == (3 if current.id == old.id else 2)
        if not killed:
            break
    assert new.id != old.id
    assert seen == {(False, False), (True, False), (True, True)}


def test_two_promotions_at_once_follow_one_another(registry, runs, tmp_path, monkeypatch):
    """Both were compared with the same model: the second finds that another has come in its place."""
    promoted(registry, runs[0], None)
    compared = [write_comparison(tmp_path / f"c{number}", runs[number], runs[0]) for number in (1, 2)]
    store = Registry._store

    def slowly(self, *arguments):
        time.sleep(0.5)
        store(self, *arguments)

    monkeypatch.setattr(Registry, "_store", slowly)
    children = []
    for number in (1, 2):
        children.append(os.fork())
        if not children[-1]:
            try:
                registry.promote(runs[number], compared[number - 1], GATE)
                os._exit(0)
            except PromotionError:
                os._exit(1)
            finally:
                os._exit(2)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 1]
    events = registry.events()
    assert [event.event for event in events] == ["promoted", "promoted", "refused"]
    assert "is current" in events[-1].reason
    assert linked(registry) == events[1].model.folder_name


def test_a_registry_that_stays_busy_is_given_up(registry, runs, monkeypatch):
    promoted(registry, runs[0], None)
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    with registry._alone(), pytest.raises(ConfigError, match="another process"):
        registry.rollback()


def test_the_commands(runs, tmp_path):
    first = write_comparison(tmp_path / "first", runs[0], None)
    worse = write_comparison(tmp_path / "worse", runs[1], runs[0], change=20.0)

    def promote(*arguments, expect=0):
        return run(command("launch/promote.py", *arguments), tmp_path, expect)

    assert "promoted demo-cnn-mix-" in promote("promote", runs[0], "--comparison", first)
    printed = promote("promote", runs[1], "--comparison", worse, expect=1)
    assert "teff worse by at most 10%" in printed
    assert "Traceback" not in printed
    assert "nothing to go back to" in promote("rollback", "--reason", "a try", expect=1)
    printed = promote("list")
    assert [word in printed for word in ("promoted", "refused", "15, limit 5", "current: demo")] == [True] * 4


def test_nothing_heavy_is_imported_to_list_models(runs, tmp_path):
    code = (
        "import sys; from pathlib import Path; from harps_dist.promotion.registry import Registry, history_table; "
        "history_table(Registry(Path('models')).settle(), Path('models')); "
        "print([name for name in ('torch', 'scipy', 'matplotlib', 'pyarrow', 'astropy') if name in sys.modules])"
    )
    promoted(Registry(tmp_path / "models"), runs[0], None)
    assert run([sys.executable, "-c", code], tmp_path).strip() == "[]"
