"""The training loop: one for every recipe, any number of ranks, resumed at a step as if never interrupted.

Tested in tests/integration/test_runs.py.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path

import torch

from harps_dist.config import Engine, Recipe, recipe_changes
from harps_dist.console import console_for
from harps_dist.data.ledger import LedgerFile, read_ledger
from harps_dist.data.order import Order, OrderState
from harps_dist.data.reader import Release
from harps_dist.errors import Interrupted, ResumeError, TrainingError
from harps_dist.files import remove_leftovers
from harps_dist.models.cost import TRAINING, forward_cost
from harps_dist.models.supervised import SpectrumModel
from harps_dist.ownership import check, claimed
from harps_dist.ranks.world import World
from harps_dist.recipes import find_recipe
from harps_dist.runs.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    best_checkpoint,
    newest_checkpoint,
    remove_unfinished,
)
from harps_dist.runs.lines import LINES, keep_lines
from harps_dist.runs.log import LOG, RunLog
from harps_dist.runs.run import CHECKPOINTS, LEDGER, RECIPE, RUN, Run, save_recipe
from harps_dist.training.automatic import settle_here
from harps_dist.training.learner import Learner
from harps_dist.training.peaks import measured_peaks
from harps_dist.training.progress import TrainingProgress, validation_words
from harps_dist.training.schedule import learning_rate
from harps_dist.training.stream import training_stream
from harps_dist.training.validation import validate

_NAMED = 8  # changes of a recipe that an error names


def train_run(
    recipe: Recipe,
    name: str,
    release: Release,
    run: Path,
    world: World,
    start_from: Path | None = None,
    engine: Engine = Engine(),  # noqa: B008
) -> None:
    """Train a recipe into the folder `run`, or go on with it; its parent, beside it, is found or trained first.

    A parent that was begun there with other settings than its recipe's keeps them.

    start_from: a run to begin with in the parent's place. Raises OutputError where the folder is something else than a
    run, or another process trains into it.
    """
    world.of_main(lambda: check(run, RUN))
    begun = any((run / CHECKPOINTS).glob("step-*"))
    if recipe.parent and not start_from and not begun:
        start_from = run.parent / recipe.parent
        parent = Run(start_from).recipe if (start_from / RECIPE).exists() else find_recipe(recipe.parent)
        parent = parent.changed(data={"release": recipe.data.release, "workers": recipe.data.workers})
        world.barrier()  # all have looked before the first writes
        train_run(parent, recipe.parent, release, start_from, world, None, engine.model_copy(update={"resume": "auto"}))
    with alone_in(run, world):
        Trainer(recipe, name, release, run, world, start_from, engine).train()


@contextmanager
def alone_in(run: Path, world: World) -> Iterator[None]:
    """Around training: no other process trains into the folder meanwhile. Raises OutputError where one does."""
    with world.claiming(lambda: claimed(run, RUN)):
        for name in (RECIPE, LOG, LEDGER, LINES) if world.is_main else ():
            remove_leftovers(run / name)
        yield


class Trainer:
    """One run of one recipe on one release, on this rank.

    start_from: another run, whose fitting weights a new run begins with.
    Raises ConfigError for settings that cannot work, ResumeError where the run's folder holds another run.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        release: Release,
        run: Path,
        world: World,
        start_from: Path | None = None,
        engine: Engine = Engine(),  # noqa: B008
    ):
        config = recipe.training
        self.console = console_for(quiet=not world.is_main)
        self.order = Order(release.index, recipe.data.mix, config.seed, release.digest)
        begun = Run(run).recipe if any((run / CHECKPOINTS).glob("step-*")) else None
        recipe = world.of_main(lambda: keep_lines(recipe, run, begun))
        settings = settle_here(recipe, engine, release, self.order, world, begun)
        recipe, engine, self._loading = settings.recipe, settings.engine, settings.loading
        self.recipe, self.release, self.run, self.world, self.engine = recipe, release, run, world, engine
        self.steps = config.steps or math.ceil(config.epochs * self.order.epoch_length / config.batch_size)
        checkpoint = self._checkpoint()

        def begin(model: SpectrumModel) -> None:
            if checkpoint:
                checkpoint.load_model(model)
                return
            world.of_main(lambda: model.begin(release))
            if start_from:
                self._start_from(start_from, model)

        self.learner = Learner(recipe, release, world, engine, begin, self.console.print)
        self.model, self.strategy, self.clock = self.learner.model, self.learner.strategy, self.learner.clock
        self.step = 0
        self._unfinished: dict | None = None
        self._validated: dict = {}  # line of the last validation
        if checkpoint:
            self._resume(checkpoint)
        elif world.is_main:  # a resumed run keeps what it was begun with
            save_recipe(run, recipe, release, name, start_from)
        if settings.chosen and (self.step < self.steps or self._unfinished):
            where = torch.cuda.get_device_name() if world.device.type == "cuda" else "this CPU"
            self.console.print(f"chosen for {where}: {settings.line}", soft_wrap=True)
        self._saved: tuple[int, bool] | None = (self.step, self._unfinished is None) if checkpoint else None

    def _checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint of the run's folder, if there is one, and it is of this run."""
        folder = self.run / CHECKPOINTS
        checkpoint, passed_over = newest_checkpoint(folder)
        self.world.barrier()  # all have looked before the main rank tidies up
        if self.world.is_main:
            remove_unfinished(folder)
        for reason in passed_over:
            self.console.print(f"passed over a checkpoint: {reason}", soft_wrap=True)
        if checkpoint is None and passed_over:
            raise ResumeError(
                f"{self.run} has checkpoints, but none is whole: {' '.join(passed_over)} Restore one from a copy, or "
                f"remove {folder} to begin anew."
            )
        if checkpoint is None:
            return None
        if self.engine.resume == "never":
            raise ResumeError(
                f"{self.run} holds {checkpoint.path.name}. Choose another folder with --out, or --resume auto."
            )
        saved, now = checkpoint.state["release_digest"], self.release.digest
        if saved != now:
            raise ResumeError(
                f"checkpoint {checkpoint.path} was written for release {saved[:12]}, but the release is {now[:12]}. "
                f"Resume on the old release, or start a new run in another folder with --out."
            )
        saved, now = checkpoint.state["recipe_digest"], self.recipe.digest
        if saved != now:
            changes = recipe_changes(checkpoint.state["recipe"], self.recipe.model_dump(mode="json"))
            more = f"; and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
            raise ResumeError(
                f"checkpoint {checkpoint.path} was written for another recipe: {'; '.join(changes[:_NAMED])}{more}. "
                f"Give the same settings (those of {self.run / RECIPE}), or another folder with --out."
            )
        return checkpoint

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Take over all of a checkpoint but its weights."""
        self.strategy.restore(checkpoint.moments())
        self.learner.restore(checkpoint.state)
        samples = self.order.samples_before(OrderState(**checkpoint.state["order"]))
        size = self.recipe.training.batch_size
        if samples != checkpoint.step * size:
            raise ResumeError(
                f"checkpoint {checkpoint.path} is damaged: it is behind {samples} samples of the order, expected "
                f"{checkpoint.step} batches of {size}. Remove its folder, and the one before is gone on with."
            )
        self.step = checkpoint.step
        self._unfinished = checkpoint.state["unfinished"]
        if self.step < self.steps or self._unfinished:
            self.console.print(
                f"resuming {self.run} at step {self.step} of {self.steps} from {checkpoint.path.name}, the newest "
                f"whole checkpoint",
                soft_wrap=True,
            )

    def _start_from(self, run: Path, model: SpectrumModel) -> None:
        """Take over the weights of another run's newest checkpoint that fit the model."""
        checkpoint = Run(run).checkpoint()
        if self.recipe.training.label_scale == "kept":
            checkpoint.lend_label_scale(model)
        taken = checkpoint.lend(model)
        if not taken:
            raise ResumeError(
                f"cannot start from {run}: none of its weights fits this model. Give a run with the same encoder or "
                f"decoder, width and grid."
            )
        self.console.print(f"starting from {len(taken)} of the weights of {checkpoint.path}", soft_wrap=True)

    def train(self) -> None:
        """Train from the current step to the last, saving and validating on the way.

        Asked to stop, all ranks save and raise Interrupted.
        """
        if self.step >= self.steps and not self._unfinished:
            self.console.print(f"{self.run} is trained already: {self.step} of {self.steps} steps")
            return
        config, world = self.recipe, self.world
        settings = config.model_dump(mode="json")
        device = f"{world.size} × {world.device_name}"
        self._log = None
        if world.is_main:
            self._log = RunLog(self.run, config.log, settings, self.step, device, self.console)
        self._writer = CheckpointWriter(self.run / CHECKPOINTS, config.log.keep)
        best, damaged = best_checkpoint(self.run / CHECKPOINTS)
        for reason in damaged:
            self.console.print(f"passed over for the least validation loss: {reason}", soft_wrap=True)
        self._least = self.world.gather(best.validation_loss if best else None)[0]
        self._ledger = self._open_ledger()
        search = self.model.search
        shown = TrainingProgress(self.console, self.run.name, self.step, self.steps, config.loss, search=search)
        with world.stop.at_ctrl_c():
            try:
                with self._profiler() as self._profile, shown as self._shown:
                    self._steps()
            except Interrupted as error:
                self.save()
                error.progress = f"{self.run} at step {self.step} of {self.steps}, saved"
                raise
            finally:
                self._writer.close()
                if self._log:
                    self._log.close()
        if world.is_main:
            self._check_ledger()
            observed = "observed-like" if self.release.manifest.not_genuine else "real"
            if words := validation_words(self._validated, observed):
                self.console.print(words, highlight=False, soft_wrap=True)
        world.barrier()  # what the main rank saved is there for all

    def _steps(self) -> None:
        config = self.recipe
        if self._unfinished:
            self._conclude(self._unfinished)
        self._restart_timing()
        left = range(self.step, self.steps)
        stream = training_stream(self.recipe, self.release, self.order, self.world, left, self._loading)
        while self.step < self.steps:
            with self.clock("data"):
                raw = next(stream)
            rate = learning_rate(self.step, self.steps, config.training)
            figures = self.learner.learn(raw, rate)
            if config.log.ledger:
                self._seen.append((self.step, raw.rows.tolist(), raw.epochs.tolist()))
            self.step += 1
            self._shown.step(self.step)
            if self._profile:
                self._profile.step()
            if self.step % config.log.every == 0 or self.step == self.steps:
                self._conclude(self._line(self.world.sum(figures)))
                self._restart_timing()
            elif self.step % config.log.save_every == 0:
                self.save()

    def _conclude(self, line: dict) -> None:
        """Validate and save where it is time to, and log a step's figures.

        Interrupted in between, a checkpoint keeps the line, and the resumed run begins with concluding it.
        """
        config, last = self.recipe.log, self.step == self.steps
        self._unfinished, improved = line, False
        if self.step % config.validate_every == 0 or last:
            model = self.strategy.evaluated()
            observer, valid = self.learner.observer, self.learner.valid
            line = line | validate(model, self.recipe, self.release, observer, valid, self.world)
            found = line.get("validation_loss")
            improved = found is not None and (self._least is None or found < self._least)
            self._least = found if improved else self._least
        self._unfinished = None
        if self._log:
            self._log.write(line)
        self._shown.figures(line)
        self._validated = line if "validation_loss" in line else self._validated
        if self.step % config.save_every == 0 or last or improved:
            self.save(line.get("validation_loss"))

    def _open_ledger(self) -> LedgerFile | None:
        self._seen: list[tuple[int, list[int], list[int]]] = []
        wanted = self.recipe.log.ledger and self.world.is_main
        return LedgerFile(self.run / LEDGER, self.step) if wanted else None

    def _write_ledger(self) -> None:
        """Write down what all ranks saw since the last time, before the checkpoint that counts it as seen."""
        if not self.recipe.log.ledger:
            return
        parts, self._seen = self.world.gather(self._seen), []
        if self._ledger:
            for ranks in zip(*parts, strict=True):
                rows, epochs = (list(chain.from_iterable(part[k] for part in ranks)) for k in (1, 2))
                self._ledger.write([{"step": ranks[0][0], "rows": rows, "epochs": epochs}])

    def _check_ledger(self) -> None:
        if self.recipe.log.ledger:
            samples = self.steps * self.recipe.training.batch_size
            found = read_ledger(self.run / LEDGER, len(self.release.index)).differences(self.order, samples)
            if found:
                raise TrainingError(f"{self.run / LEDGER} is not what the order prescribes: {'; '.join(found)}.")
            self.console.print(f"ledger: {samples:,} samples, each seen exactly as often as the order says")

    def _restart_timing(self) -> None:
        self.clock.drain()
        self._started, self._since = time.perf_counter(), self.step

    def _line(self, figures: torch.Tensor) -> dict:
        """The figures of the current step, and where the time went since the last line. All ranks call it together."""
        self.learner.settle()
        config, steps = self.recipe.training, self.step - self._since
        elapsed, seconds = time.perf_counter() - self._started, self.clock.drain()
        means = (figures[0] / figures[1].clamp(min=1)).tolist()
        memory = (
            torch.cuda.max_memory_allocated()
            if self.world.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        rate = steps * config.batch_size / elapsed
        return {
            "step": self.step,
            "epoch": round(self.step * config.batch_size / self.order.epoch_length, 3),
            "samples": self.step * config.batch_size,
            **{f"loss_{name}": mean for name, mean in zip(self.learner.names, means, strict=True)},
            "learning_rate": learning_rate(self.step - 1, self.steps, config),
            "skipped": self.learner.skipped,
            "spectra_per_s": rate,
            "data_wait": seconds["data"] / elapsed,
            **{f"ms_{part}": 1e3 * value / steps for part, value in seconds.items()},
            "peak_memory_gb": memory / 2**30,
            **self._utilisation(rate / self.world.size),
        }

    def _utilisation(self, spectra_per_s: float) -> dict[str, float]:
        """What share of the device's measured peaks the model's arithmetic and its unfused memory traffic are."""
        if not self.world.is_main:
            return {}
        if not hasattr(self, "_cost"):
            self._cost = forward_cost(self.recipe.model, self.release.grid)
        peaks = measured_peaks(self.world.device, self.recipe.training.known_precision)
        return {
            "flop_utilisation": TRAINING * self._cost.flops * spectra_per_s / peaks.flops,
            "traffic_over_bandwidth": TRAINING * self._cost.bytes * spectra_per_s / peaks.bytes,
        }

    def save(self, validation_loss: float | None = None) -> None:
        """Begin to write a checkpoint of the current step, unless it is there; all ranks call it together."""
        content = (self.step, self._unfinished is None)
        if content == self._saved:
            return
        self.learner.settle()
        self._saved = content
        self._write_ledger()
        snapshot = self.strategy.snapshot()
        if snapshot is None:
            return
        state = {
            "step": self.step,
            "order": self.order.state(self.step * self.recipe.training.batch_size).model_dump(),
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_digest": self.recipe.digest,
            "release_digest": self.release.digest,
            "labels": list(self.model.labels),
            "label_mean": self.model.label_mean.tolist(),
            "label_std": self.model.label_std.tolist(),
            "validation_loss": validation_loss,
            "unfinished": self._unfinished,
            **self.learner.state(),
        }
        self._writer.write(snapshot, state)

    def _profiler(self):
        """Records the first steps but two, of which the first ones are not like the others."""
        count, trace = self.engine.profile, self.run / f"trace-rank{self.world.rank}.json"
        if not count:
            return nullcontext()
        return torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=count, repeat=1),
            on_trace_ready=lambda profile: profile.export_chrome_trace(str(trace)),
        )
