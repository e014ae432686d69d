"""Models in use: copies of runs that passed a gate, a history of what was done, and which one is current.

    models/
      index.json            events in their order, never changed: promoted, refused, rolled back. What is current
                            follows from it alone
      current               link to the folder of the current model; set right by whatever is done here next
      NAME-ID/              a run: recipe.yaml and one checkpoint, read-only; everything that takes a run takes it
        promotion-SHA/      the comparison that it passed, with the gate and its verdict

Folders are written first, then the index, then the link, each whole or not at all. One process at a time does so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harps_dist.errors import ConfigError, OutputError, PromotionError, ResumeError
from harps_dist.files import ASIDE, atomic_link, atomic_write, exclusive, publish_folder, remove
from harps_dist.frozen import Frozen
from harps_dist.ownership import check, home, set_mark
from harps_dist.promotion.comparison import COMPARISON, read_comparison
from harps_dist.promotion.gate import Gate, Verdict, say
from harps_dist.runs.identity import ID_LENGTH, ReleaseIdentity, TrainedModel
from harps_dist.sealed import unsealed
from harps_dist.text import sealed_json, strict_json

if TYPE_CHECKING:
    from rich.table import Table

    from harps_dist.promotion.comparison import Comparison

FORMAT, FORMATS = 2, (1, 2)  # of index.json; the first carries no digest of its content
INDEX, CURRENT, LOCK, VERDICT = "index.json", "current", ".lock", "verdict.json"
PATIENCE_S = 60.0


def _has_index(folder: Path) -> bool:
    return {"format", "events"} == json.loads((folder / INDEX).read_text()).keys()


REGISTRY = home("registry of models", "--registry", _has_index)


class Event(Frozen):
    """One thing that was done, or refused.

    model: the one that was promoted, refused or gone back to. replaced: id of the one that was current before. record:
    folder of its comparison and verdict within the registry. code: commit of the code that judged.
    """

    number: int
    event: Literal["promoted", "refused", "rolled back"]
    time: str
    model: TrainedModel
    replaced: str | None
    release: ReleaseIdentity | None = None
    comparison_sha256: str | None = None
    record: str | None = None
    verdict: Verdict | None = None
    reason: str = ""
    code: str | None = None


class Registry:
    """A folder of promoted models; made where it is missing."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def events(self) -> list[Event]:
        """Everything that was done, oldest first; raises ConfigError where the index is damaged."""
        path = self.folder / INDEX
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (form := content["format"]) not in FORMATS:
                raise ConfigError(
                    f"{path} has format {form}, this code knows {FORMAT}. Update it, or restore the file."
                )
            content = unsealed(content, required=form > 1)
            return [Event.model_validate(event) for event in content["events"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
            raise ConfigError(f"{path} is damaged: {error!r}. Restore it from a backup.") from None

    def promoted(self) -> list[TrainedModel]:
        """The models that rollbacks would go through, the current one last."""
        return _standing(self.events())

    def current(self) -> TrainedModel | None:
        """The model in use, as the index has it."""
        return next(reversed(self.promoted()), None)

    def promote(self, run: Path, comparison: Path | None, gate: Gate) -> Event | None:
        """Make a run's checkpoint the current model, if it passes; None where it is that already.

        comparison: folder that launch/compare.py wrote: of this checkpoint against the current model, or against none
        where there is none yet. Raises PromotionError, with every failed line, where it may not be promoted; that is on
        record then. Raises ConfigError or ResumeError where run or comparison cannot be read.
        """
        from harps_dist.runs.run import Run

        with self._alone():
            events = self.events()
            standing = _standing(events)
            current = standing[-1] if standing else None
            which = "newest" if comparison is None else read_comparison(comparison).new.checkpoint
            opened = Run(run)
            model, checkpoint = opened.identity(which), opened.checkpoint(which)
            if current and model.id == current.id:
                self._store(run, model, checkpoint.path)
                self._point(events)
                return None
            if comparison is None:
                raise PromotionError(
                    f"{run} has no comparison to be judged by. Make one with "
                    f"`launch/compare.py {run}{f' {self.folder / CURRENT}' if current else ''}` "
                    f"and give its folder as --comparison."
                )
            judged_by = read_comparison(comparison)
            sha256 = _sha256(comparison / COMPARISON)
            stale = _stale(judged_by, model, current, self.folder)
            verdict = None if stale else gate.judge(judged_by)
            event = Event(
                number=len(events) + 1,
                event="promoted" if verdict and verdict.passed else "refused",
                time=_now(),
                model=model,
                replaced=current.id if current else None,
                release=judged_by.release,
                comparison_sha256=sha256,
                verdict=verdict,
                reason=stale,
                code=_code(),
            )
            if verdict is None or not verdict.passed:
                if not _same(events, event):
                    self._append(events, event)
                self._point(events)
                reason = stale if verdict is None else say(verdict.failures)
                raise PromotionError(f"{run} (step {model.step:,}, {model.id}) is not promoted: {reason}")
            self._store(run, model, checkpoint.path)
            record = self._keep(comparison, sha256, model, verdict)
            event = event.model_copy(update={"record": record})
            self._append(events, event)
            self._point([*events, event])
            return event

    def rollback(self, reason: str = "") -> Event:
        """Go back to the model that was current before; raises PromotionError where there is none."""
        from harps_dist.runs.run import Run

        if not self.folder.exists():
            raise PromotionError(
                f"{self.folder} has nothing to go back to: no model was promoted there. Check the path, or promote one."
            )
        with self._alone():
            events = self.events()
            standing = _standing(events)
            if len(standing) < 2:
                there = f"only {standing[-1].folder_name} was promoted" if standing else "no model was promoted"
                raise PromotionError(
                    f"{self.folder} has nothing to go back to: {there}. Promote another model instead."
                )
            back = standing[-2]
            whole = Run(self.folder / back.folder_name).identity()
            if whole.id != back.id:
                raise PromotionError(
                    f"{self.folder / back.folder_name} holds {whole.id}, but {back.id} was promoted: it was changed. "
                    f"Restore it from a backup, or promote another model."
                )
            event = Event(
                number=len(events) + 1,
                event="rolled back",
                time=_now(),
                model=back,
                replaced=standing[-1].id,
                reason=reason,
                code=_code(),
            )
            self._append(events, event)
            self._point([*events, event])
            return event

    def settle(self) -> list[Event]:
        """Everything that was done, with the link set right and what killed processes left removed."""
        if not (self.folder / INDEX).exists():
            return []
        with self._alone():
            events = self.events()
            self._point(events)
            return events

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process changes the registry meanwhile; waits for one that does. Leftovers of a kill go.

        Raises OutputError where the folder is something else.
        """
        check(self.folder, REGISTRY)
        self._check_link()
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with exclusive(self.folder / LOCK) as free:
                if free:
                    for left in (*self.folder.glob(".*.tmp"), *self.folder.glob("*/.*.tmp")):
                        if ASIDE.fullmatch(left.name):
                            remove(left)
                    set_mark(self.folder, REGISTRY)
                    yield
                    return
            if time.monotonic() > deadline:
                raise ConfigError(f"another process has changed {self.folder} for {PATIENCE_S:.0f} s. Try again later.")
            time.sleep(0.1)

    def _check_link(self) -> None:
        link = self.folder / CURRENT
        if os.path.lexists(link) and not (link.is_symlink() and len(link.readlink().parts) == 1):
            raise OutputError(
                f"{link} is there and is no link to a model beside it, so it is not replaced. Give another --registry, "
                f"or remove it."
            )

    def _store(self, run: Path, model: TrainedModel, checkpoint: Path) -> None:
        """Copy recipe and checkpoint, unless they are there and whole; the copy is checked before it gets its name."""
        from harps_dist.runs.lines import copy_lines
        from harps_dist.runs.run import CHECKPOINTS, RECIPE, Run

        path = self.folder / model.folder_name
        try:
            if Run(path).identity().id == model.id:
                return
        except (ConfigError, ResumeError):  # not there, or damaged
            pass
        records = sorted(path.glob("promotion-*"))
        with publish_folder(path) as aside:
            shutil.copy(run / RECIPE, aside / RECIPE)
            copy_lines(run, Run(run).recipe, aside)
            shutil.copytree(checkpoint, aside / CHECKPOINTS / checkpoint.name)
            for record in records:
                shutil.copytree(record, aside / record.name)
            if (copied := Run(aside).identity().id) != model.id:
                raise ResumeError(f"{run} changed while it was copied: {model.id} became {copied}. Give it again.")
            for file in (path for path in aside.rglob("*") if path.is_file()):
                file.chmod(0o444)

    def _keep(self, comparison: Path, sha256: str, model: TrainedModel, verdict: Verdict) -> str:
        """Copy the comparison beside the model, with the gate and its verdict; returns where, within the registry."""
        name = hashlib.sha256(f"{sha256} {verdict.gate.digest}".encode()).hexdigest()[:ID_LENGTH]
        record = Path(model.folder_name) / f"promotion-{name}"
        if not (self.folder / record).exists():
            with publish_folder(self.folder / record) as aside:
                for file in sorted(comparison.iterdir()):
                    if file.suffix in (".json", ".md", ".png"):
                        shutil.copy(file, aside / file.name)
                if _sha256(aside / COMPARISON) != sha256:
                    raise ConfigError(f"{comparison} changed while it was copied. Give the same command again.")
                with atomic_write(aside / VERDICT) as file:
                    file.write_text(strict_json(verdict.model_dump()), encoding="utf-8")
        return record.as_posix()

    def _append(self, events: list[Event], event: Event) -> None:
        content = {"format": FORMAT, "events": [known.model_dump() for known in (*events, event)]}
        with atomic_write(self.folder / INDEX) as aside:
            aside.write_text(sealed_json(content), encoding="utf-8")

    def _point(self, events: list[Event]) -> None:
        """Let the link lead where the index says."""
        link, standing = self.folder / CURRENT, _standing(events)
        wanted = Path(standing[-1].folder_name) if standing else None
        if wanted is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or link.readlink() != wanted:
            atomic_link(link, wanted)


def history_table(events: list[Event], folder: Path) -> Table:
    """Everything that was done, as a rich table."""
    from rich.table import Table

    table = Table(title=str(folder), caption=f"current: {_name_of_current(events)}")
    for header in ("", "what", "when", "model", "step", "replaced", "trained on", "by commit", "reason"):
        table.add_column(header, justify="right" if header in ("", "step") else "left")
    for event in events:
        failures = say(event.verdict.failures) if event.verdict else ""
        model = event.model
        row = (f"{event.number}", event.event, event.time, model.folder_name, f"{model.step:,}", event.replaced or "")
        last = (model.release_digest[:12], (model.git or "")[:12], event.reason or failures)
        table.add_row(*row, *last)
    return table


def _name_of_current(events: list[Event]) -> str:
    standing = _standing(events)
    return standing[-1].folder_name if standing else "none"


def _standing(events: list[Event]) -> list[TrainedModel]:
    """The models that are current or can be gone back to, oldest first: what is promoted comes on top, a rollback takes
    the top away."""
    standing: list[TrainedModel] = []
    for event in events:
        if event.event == "promoted":
            standing.append(event.model)
        elif event.event == "rolled back":
            standing.pop()
    return standing


def _stale(comparison: Comparison, model: TrainedModel, current: TrainedModel | None, folder: Path) -> str:
    """Why a comparison is not the one that is asked for; empty where it is."""
    again = "Compare again with launch/compare.py."
    if comparison.new.id != model.id:
        return (
            f"the comparison is of {comparison.new.id} (step {comparison.new.step:,}), but the run's "
            f"{model.checkpoint} checkpoint is {model.id} (step {model.step:,}). {again}"
        )
    compared = comparison.old.id if comparison.old else None
    wanted = current.id if current else None
    if compared != wanted:
        return (
            f"the comparison is against {compared or 'no model'}, but {wanted or 'no model'} is current in {folder}. "
            f"{again}"
        )
    return ""


def _same(events: list[Event], event: Event) -> bool:
    """Whether the newest event says the same but for its number and time."""
    if not events:
        return False
    return events[-1].model_copy(update={"number": event.number, "time": event.time, "code": event.code}) == event


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _code() -> str | None:
    from harps_dist.runs.run import git_revision

    return git_revision()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
