"""The training loop: one for every recipe, any number of ranks, resumed at a step as if never interrupted."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.parallel import DistributedDataParallel

from harps_dist.config import Recipe
from harps_dist.console import console_for
from harps_dist.data.batches import (
    EvaluationBatches,
    RawBatch,
    TrainingBatches,
    in_batches,
    load,
    no_codes,
    read_codes,
)
from harps_dist.data.ledger import LedgerFile, read_ledger
from harps_dist.data.observer import Observer
from harps_dist.data.order import Order, OrderState
from harps_dist.data.reader import Release
from harps_dist.data.resident import ResidentCodes
from harps_dist.errors import ConfigError, ResumeError, TrainingError
from harps_dist.models.losses import global_loss, loss_parts
from harps_dist.recipes import find_recipe
from harps_dist.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from harps_dist.training.distributed import World
from harps_dist.training.log import RunLog
from harps_dist.training.run import CHECKPOINTS, LEDGER, RECIPE, build_model, read_run, save_recipe
from harps_dist.training.schedule import learning_rate


def train_run(
    recipe: Recipe, name: str, release: Release, run: Path, world: World, start_from: Path | None = None
) -> None:
    """Train a recipe into the folder `run`, or go on with it; its parent, beside it, is found or trained first.

    A parent that was begun there with other settings than its recipe's keeps them.

    start_from: a run to begin with in the parent's place.
    """
    begun = newest_checkpoint(run / CHECKPOINTS)[0] is not None
    if recipe.parent and not start_from and not begun:
        start_from = run.parent / recipe.parent
        parent = read_run(start_from).recipe if (start_from / RECIPE).exists() else find_recipe(recipe.parent)
        parent = parent.changed(data={"release": recipe.data.release, "workers": recipe.data.workers})
        world.barrier()  # all have looked before the first writes
        train_run(parent, recipe.parent, release, start_from, world)
    Trainer(recipe, name, release, run, world, start_from).train()


class Trainer:
    """One run of one recipe on one release, on this rank.

    start_from: another run, whose fitting weights a new run begins with.
    Raises ConfigError for settings that cannot work, ResumeError where the run's folder holds another run.
    """

    def __init__(
        self, recipe: Recipe, name: str, release: Release, run: Path, world: World, start_from: Path | None = None
    ):
        config = recipe.training
        if config.batch_size < world.size:
            raise ConfigError(
                f"{world.size} ranks cannot share a global batch of {config.batch_size} spectra. "
                f"Start fewer ranks or set --training.batch-size to at least {world.size}."
            )
        self.recipe, self.release, self.run, self.world = recipe, release, run, world
        self.order = Order(release.index, recipe.data.mix, config.seed, release.digest)
        self.steps = config.steps or math.ceil(config.epochs * self.order.epoch_length / config.batch_size)
        self.observer = Observer(release.instrument, recipe.data.augment, world.device, recipe.data.compile)
        self.valid = torch.from_numpy(release.grid.valid).to(world.device).nonzero()[:, 0]
        self.model = build_model(recipe, release.manifest).to(world.device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=config.betas)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.console = console_for(quiet=not world.is_main)
        self.step = self._resume() or self._start_from(start_from)
        if world.is_main and not self.step:  # a resumed run keeps what it was begun with
            save_recipe(run, recipe, release.manifest, name, start_from)
        self.wrapped = (
            DistributedDataParallel(self.model, gradient_as_bucket_view=True) if world.size > 1 else self.model
        )

    def _resume(self) -> int:
        """Continue the newest whole checkpoint of the run's folder, if there is one; returns its step."""
        checkpoint, passed_over = newest_checkpoint(self.run / CHECKPOINTS)
        for reason in passed_over:
            self.console.print(f"passed over a checkpoint: {reason}")
        if checkpoint is None:
            return 0
        saved, now = checkpoint.state["release_digest"], self.release.digest
        if saved != now:
            raise ResumeError(
                f"checkpoint {checkpoint.path} was written for release {saved[:12]}, but the release is {now[:12]}. "
                f"Resume on the old release, or start a new run in another folder with --out."
            )
        saved, now = checkpoint.state["recipe_digest"], self.recipe.digest
        if saved != now:
            raise ResumeError(
                f"checkpoint {checkpoint.path} was written for recipe {saved[:12]}, but the settings now "
                f"make {now[:12]} (compare {self.run / 'recipe.yaml'}). "
                f"Give the same settings, or another folder with --out."
            )
        checkpoint.load_model(self.model)
        checkpoint.load_optimizer(self.model, self.optimizer)
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.console.print(f"resuming {self.run} at step {checkpoint.step} of {self.steps} from {checkpoint.path.name}")
        return self.order.samples_before(OrderState(**checkpoint.state["order"])) // self.recipe.training.batch_size

    def _start_from(self, run: Path | None) -> int:
        """Take over the weights of another run's newest checkpoint that fit this model; returns step 0."""
        if run is None:
            return 0
        checkpoint, passed_over = newest_checkpoint(run / CHECKPOINTS)
        if checkpoint is None:
            reasons = " ".join(passed_over) or "none was written."
            raise ResumeError(f"cannot start from {run}: it has no whole checkpoint: {reasons} Train it first.")
        taken = checkpoint.lend(self.model)
        if not taken:
            raise ResumeError(
                f"cannot start from {run}: none of its weights fits this model. Give a run with the same encoder or "
                f"decoder, width and grid."
            )
        self.console.print(f"starting from {len(taken)} of the weights of {checkpoint.path}", soft_wrap=True)
        return 0

    def train(self) -> None:
        """Train from the current step to the last, saving and validating on the way."""
        if self.step >= self.steps:
            self.console.print(f"{self.run} is trained already: {self.step} of {self.steps} steps")
            return
        config, world = self.recipe, self.world
        log = (
            RunLog(self.run, config.log, config.model_dump(mode="json"), self.step, self.console)
            if world.is_main
            else None
        )
        ledger = self._ledger()
        stream = self._stream()
        started, waited, since = time.perf_counter(), 0.0, self.step
        with self._progress() as progress:
            bar = progress.add_task(self.run.name, total=self.steps, completed=self.step)
            while self.step < self.steps:
                before = time.perf_counter()
                raw = next(stream)
                waited += time.perf_counter() - before
                if config.log.ledger:
                    self._seen.append((self.step, raw.rows.tolist(), raw.epochs.tolist()))
                figures = self._train_step(raw)
                self.step += 1
                progress.update(bar, completed=self.step)
                last = self.step == self.steps
                if self.step % config.log.every == 0 or last:
                    elapsed = time.perf_counter() - started
                    line = self._line(figures, elapsed, waited, self.step - since)
                    started, waited, since = time.perf_counter(), 0.0, self.step
                    if self.step % config.log.validate_every == 0 or last:
                        line |= self.validate()
                        started = time.perf_counter()
                    if log:
                        log.write(line)
                if self.step % config.log.save_every == 0 or last:
                    self._write_ledger(ledger)
                    self.save()
        if log:
            log.close()
            self._check_ledger()
        world.barrier()  # what the main rank saved is there for all

    def _stream(self) -> Iterator[RawBatch]:
        """This rank's raw batches on the device, from the current step to the last."""
        config, world, steps = self.recipe, self.world, range(self.step, self.steps)
        size, data = config.training.batch_size, config.data
        batches = TrainingBatches(
            self.release,
            self.order,
            data,
            config.training.seed,
            size,
            world.rank,
            world.size,
            read_codes if data.resident == "no" else no_codes,
        )
        if data.resident == "no":
            return load(batches, steps, data.workers, world.device)
        memory = world.device if data.resident == "device" else torch.device("cpu")
        codes = ResidentCodes(self.release, self.order, world.rank, world.size, memory, data.workers, world.exchange)
        return codes.complete(load(batches, steps, data.workers, world.device), steps, size)

    def _ledger(self) -> LedgerFile | None:
        self._seen: list[tuple[int, list[int], list[int]]] = []
        wanted = self.recipe.log.ledger and self.world.is_main
        return LedgerFile(self.run / LEDGER, self.step) if wanted else None

    def _write_ledger(self, ledger: LedgerFile | None) -> None:
        """Write down what all ranks saw since the last time, before the checkpoint that counts it as seen."""
        if not self.recipe.log.ledger:
            return
        parts, self._seen = self.world.gather(self._seen), []
        if ledger:
            for ranks in zip(*parts, strict=True):
                rows, epochs = (list(chain.from_iterable(part[k] for part in ranks)) for k in (1, 2))
                ledger.write([{"step": ranks[0][0], "rows": rows, "epochs": epochs}])

    def _check_ledger(self) -> None:
        if self.recipe.log.ledger:
            samples = self.steps * self.recipe.training.batch_size
            found = read_ledger(self.run / LEDGER, len(self.release.index)).differences(self.order, samples)
            if found:
                raise TrainingError(f"{self.run / LEDGER} is not what the order prescribes: {'; '.join(found)}.")
            self.console.print(f"ledger: {samples:,} samples, each seen exactly as often as the order says")

    def _train_step(self, raw) -> torch.Tensor:
        """One optimiser step; returns (2, part) totals and counts of the loss parts over all ranks."""
        config = self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, config)
        batch = self.observer(raw)
        with self._autocast():
            output = self.wrapped(batch)
        parts = loss_parts(self.model, output, batch, self.valid, self.recipe.loss, self.world.stack_rows)
        figures = self.world.sum(_totals(parts))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(global_loss(parts, figures[1], self.world.size)).backward()
        if config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._names = tuple(parts)
        return figures

    def _line(self, figures: torch.Tensor, elapsed: float, waited: float, steps: int) -> dict:
        config = self.recipe.training
        means = (figures[0] / figures[1].clamp(min=1)).tolist()
        if not all(map(math.isfinite, means)):
            raise TrainingError(
                f"the loss is not finite at step {self.step}: {dict(zip(self._names, means, strict=True))}. "
                f"Lower --training.learning-rate, set --training.clip-norm 1, or use --training.precision fp32; "
                f"the run continues from its newest checkpoint."
            )
        memory = (
            torch.cuda.max_memory_allocated()
            if self.world.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "step": self.step,
            "epoch": round(self.step * config.batch_size / self.order.epoch_length, 3),
            "samples": self.step * config.batch_size,
            **{f"loss_{name}": mean for name, mean in zip(self._names, means, strict=True)},
            "learning_rate": learning_rate(self.step - 1, self.steps, config),
            "spectra_per_s": steps * config.batch_size / elapsed,
            "data_wait": waited / elapsed,
            "peak_memory_gb": memory / 2**30,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """Mean loss parts over the validation split, each sample once whatever the number of ranks.

        Of a variational model also mean and deviation of every node, 0 and 1 in the prior: with many nodes the kernel
        of the MMD hardly sees a wrong variance.
        """
        mix = self.recipe.data.mix
        figures: list[torch.Tensor] = []
        moments = torch.zeros(3, getattr(self.recipe.model, "bottleneck", 0), dtype=torch.float64)
        moments = moments.to(self.world.device)
        names: tuple[str, ...] = ()
        self.model.eval()
        for kind in ("real", "simulated"):
            if not getattr(mix, kind):
                continue
            rows = self.release.index.rows(kind, "validation")[self.world.rank :: self.world.size]
            augment, seed = self.recipe.data.augment, self.recipe.training.seed
            batches = EvaluationBatches(self.release, in_batches(rows, 16), augment, seed)
            for raw in load(batches, range(len(batches)), 0, self.world.device):
                batch = self.observer(raw)
                with self._autocast():
                    output = self.model(batch)
                parts = loss_parts(self.model, output, batch, self.valid, self.recipe.loss)
                figures.append(_totals(parts))
                names = tuple(parts)
                if output.latent is not None:
                    mean, variance = output.latent.mean.double(), output.latent.log_variance.double().exp()
                    moments += torch.stack([torch.ones_like(mean), mean, mean**2 + variance]).sum(1)
        self.model.train()
        names = next((found for found in self.world.gather(names) if found), ())
        zeros = torch.zeros(2, len(names), dtype=torch.float64, device=self.world.device)
        totals, counts = self.world.sum(sum(figures, zeros)).tolist()
        line = {f"validation_{name}": t / n for name, t, n in zip(names, totals, counts, strict=True) if n > 0}
        if getattr(self.recipe.model, "variational", False) and counts:
            seen, first, second = self.world.sum(moments)
            deviation = (second / seen - (first / seen) ** 2).sqrt()
            line |= {"node_mean": (first / seen).tolist(), "node_deviation": deviation.tolist()}
        return line

    def save(self) -> Checkpoint | None:
        """Write a checkpoint on the main rank."""
        if not self.world.is_main:
            return None
        state = {
            "step": self.step,
            "order": self.order.state(self.step * self.recipe.training.batch_size).model_dump(),
            "recipe_digest": self.recipe.digest,
            "release_digest": self.release.digest,
            "labels": list(self.model.labels),
            "scaler": self.scaler.state_dict(),
        }
        return save_checkpoint(self.run / CHECKPOINTS, self.model, self.optimizer, state, self.recipe.log.keep)

    def _autocast(self) -> AbstractContextManager:
        return autocast(self.recipe.training.precision, self.world.device)

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.console, disable=not self.world.is_main)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def _totals(parts: dict) -> torch.Tensor:
    """(2, part) float64 totals and counts of loss parts."""
    return torch.stack(
        [torch.stack([part.total.detach().double(), part.terms.double()]) for part in parts.values()], dim=1
    )
