"""One step of training: from a raw batch to changed weights, the same for every strategy and number of ranks.

Tested in tests/distributed/test_strategies.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harps_dist.config import Engine, Recipe
from harps_dist.data.batches import RawBatch
from harps_dist.data.observer import Batch, Observer
from harps_dist.data.order import rank_slice
from harps_dist.data.reader import Release
from harps_dist.errors import ConfigError, TrainingError
from harps_dist.models.layers import at_least_float32
from harps_dist.models.losses import global_loss, loss_parts, part_names, part_terms
from harps_dist.models.supervised import Output, SpectrumModel
from harps_dist.ranks.world import World
from harps_dist.runs.run import initial_model
from harps_dist.training.clock import StepClock
from harps_dist.training.graph import CapturedStep, Step
from harps_dist.training.precision import LossScale, activation_format, prepare, weight_format
from harps_dist.training.strategies.choose import make_strategy
from harps_dist.training.validation import totals

MOST_SKIPPED = 5  # steps in a row


class Learner:
    """Learns from one global batch after the other, in step with the other ranks; no setting is "auto" any more.

    A step with a gradient that is not finite changes nothing but the count of those skipped. begin: what to do with the
    new model before a strategy shares it out. say: told what a user should know. take: what a step does on the device
    with standardised spectra.
    Raises ConfigError for settings that cannot work.
    """

    def __init__(
        self,
        recipe: Recipe,
        release: Release,
        world: World,
        engine: Engine,
        begin: Callable[[SpectrumModel], None] | None = None,
        say: Callable[[str], None] = print,
    ):
        check_batch_size(recipe, world.size)
        self._recipe, self._release, self._world = recipe, release, world
        training, augment = recipe.training, recipe.data.augment
        self.model = initial_model(recipe, release.manifest)
        prepare(self.model, training.known_precision)
        if begin:
            begin(self.model)
        self.model.to(world.device)
        world.share(self.model.state_dict().values())  # what the main rank alone may have learned of the release
        if engine.kernels == "triton":
            if engine.compile:
                raise ConfigError("--kernels triton and --compile True exclude each other. Choose one.")
            self.model.use_kernels(activation_format(training.known_precision))
        self.clock = StepClock(world.device)
        self.strategy = make_strategy(self.model, training, engine, world, self.clock, say)
        self.observer = Observer(
            release.decoding,
            augment,
            world.device,
            recipe.data.compile is True,
            weight_format(training.known_precision),
            "triton" if engine.kernels == "triton" else "torch",
        )
        self.valid = torch.from_numpy(release.grid.valid).to(world.device).nonzero()[:, 0]
        self.names = part_names(recipe.model, recipe.loss)
        self.loss_scale = LossScale(training.known_precision, world.device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=world.device)  # skipped, skipped in a row
        exact = torch.float64 if world.device.type == "cpu" else torch.float32
        self._rate = torch.zeros((), dtype=exact, device=world.device)
        self._asked = torch.zeros(1, dtype=torch.float64, device=world.device)
        slices = [rank_slice(training.batch_size, rank, world.size) for rank in range(world.size)]
        self._sizes = [part.stop - part.start for part in slices]  # spectra of each rank
        self._taken: deque[_Taken] = deque()
        self._behind = int(world.device.type == "cuda")  # steps that a GPU still has to take when the next is launched
        self._told_to_stop = False
        self.take: Step = self._step
        if engine.graph is True:
            self.take = CapturedStep(self._step, world.device, self.clock, self.model.zero_grad, say)

    @property
    def skipped(self) -> int:
        """Steps whose gradients were not finite; waits for the device."""
        return int(self._counts[0])

    def state(self) -> dict[str, object]:
        """What a resumed run needs besides weights and moments."""
        skipped, in_a_row = self._counts.tolist()
        return {"loss_scale": self.loss_scale.state(), "skipped": skipped, "skipped_in_a_row": in_a_row}

    def restore(self, state: dict) -> None:
        self.loss_scale.restore(state["loss_scale"])
        self._counts.copy_(torch.tensor([state["skipped"], state["skipped_in_a_row"]]))

    def learn(self, raw: RawBatch, learning_rate: float) -> Tensor:
        """Take one optimiser step; returns (2, part) totals and counts of the loss parts, of this rank alone.

        Nothing waits for the device: what a step found out is read while the next one runs. Raises Interrupted on all
        ranks, before anything is changed, where one was known to be asked to stop; TrainingError after a few steps in a
        row without finite gradients.
        """
        self._read_reports(self._behind)
        if self._told_to_stop or (self._world.size == 1 and self._world.stop.reason is not None):
            self._world.interrupt()
        with self.clock("augment"):
            batch = self.observer(raw)
        self._rate.fill_(learning_rate)
        self._asked.fill_(self._world.stop.reason is not None)
        figures, report = self.take(batch)
        self._taken.append(_Taken(raw, figures, _Report(report)))
        return figures

    def settle(self) -> None:
        """Wait for what all steps so far found out; all ranks call it together.

        Raises TrainingError where a few in a row had no finite gradients.
        """
        self._read_reports(0)

    def _read_reports(self, but: int) -> None:
        """Read what all steps but the last few found out."""
        while len(self._taken) > but:
            taken = self._taken.popleft()
            asked, skipped_in_a_row = taken.report.read()
            self._told_to_stop |= asked > 0
            if skipped_in_a_row >= MOST_SKIPPED:
                self._explain(taken)

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """All that a step does on the device: the figures, and (2,) how many were asked to stop, how many skipped."""
        clock, world = self.clock, self._world
        terms = torch.stack([part_terms(name, self.model, batch, self.valid).double() for name in self.names])
        terms, asked = world.sum(torch.cat([terms, self._asked])).split([len(terms), 1])
        fields = [part.tensor_split(self._recipe.training.accumulate) for part in batch]
        pieces = [Batch(*piece) for piece in zip(*fields, strict=True)]
        figures = torch.zeros(2, len(self.names), dtype=torch.float64, device=world.device)
        everyone = self._stacked(pieces) if "mmd" in self.names and len(pieces) > 1 else None
        for number, piece in enumerate(pieces):
            with self.strategy.accumulating(number == len(pieces) - 1):
                with clock("forward"):
                    output = self.strategy.forward(piece)
                    if "mmd" in self.names and len(pieces) == 1:
                        everyone = self._stacked_rows([output])
                    parts = loss_parts(self.model, output, piece, self.valid, self._recipe.loss, everyone)
                    loss = global_loss(parts, terms, world.size)
                    figures += totals(parts)
                with clock("backward"):  # a loss that is not finite may yet have a finite gradient
                    poison = torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
                    self.strategy.backward(loss * poison, self.loss_scale)
        with clock("optimizer"):
            finite = self.strategy.update(self._rate, self.loss_scale)
            self._count(finite)
        return figures, torch.cat([asked, self._counts[1:].double()])

    def _count(self, finite: Tensor) -> None:
        """Note whether the gradients were finite; a step that a smaller loss scale may help is not one of the row."""
        failed = ~finite
        hopeless = failed & (self.loss_scale.value <= 1)
        self.loss_scale.update(finite)
        self._counts.add_(torch.stack([failed, hopeless]))
        self._counts[1:].mul_(failed)

    @torch.no_grad()
    def _stacked(self, pieces: list[Batch]) -> tuple[Tensor, Tensor]:
        """Nodes and prior draws of the whole global batch, before any part of it is learned from."""
        with self.clock("forward"):
            return self._stacked_rows([self.strategy.forward(piece) for piece in pieces])

    def _stacked_rows(self, outputs: list[Output]) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([output.nodes for output in outputs if output.nodes is not None])
        prior = torch.cat([output.prior for output in outputs if output.prior is not None])
        stacked = self._world.stack_rows(at_least_float32(nodes), self._sizes)
        return stacked, self._world.stack_rows(prior, self._sizes)

    def _explain(self, taken: _Taken) -> None:
        """Raise TrainingError with what is known of the step that was one too many."""
        raw, figures, _ = taken
        sums, counts = self._world.sum(figures).tolist()
        losses = {name: total / max(n, 1) for name, total, n in zip(self.names, sums, counts, strict=True)}
        flux = self.observer(raw).flux
        broken = raw.rows[~torch.isfinite(flux).all(dim=1).cpu()].tolist()
        samples = [self._release.index["key"][row] for of_rank in self._world.gather(broken) for row in of_rank]
        blame = f"spectra {samples[:5]} hold values that are not finite" if samples else "the spectra are finite"
        raise TrainingError(
            f"{MOST_SKIPPED} steps in a row had gradients that are not finite; loss parts {losses}; {blame}. "
            f"Lower --training.learning-rate, set --training.clip-norm 1, or use --training.precision fp32; the run "
            f"goes on from its newest checkpoint."
        )


class _Report:
    """A few numbers on their way from the device to the host, which reads them when it wants to."""

    def __init__(self, values: Tensor):
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived:
            self._arrived.synchronize()
        return self._values.tolist()


class _Taken(NamedTuple):
    """A step that was taken: of which batch, its figures, what it found out."""

    raw: RawBatch
    figures: Tensor
    report: _Report


def check_batch_size(recipe: Recipe, ranks: int) -> None:
    """Raises ConfigError where the global batch has fewer spectra than there are ranks and parts to share it."""
    training = recipe.training
    if training.batch_size < ranks * training.accumulate:
        raise ConfigError(
            f"{ranks} ranks that accumulate {training.accumulate} parts each cannot share a global batch of "
            f"{training.batch_size} spectra. Start fewer ranks, lower --training.accumulate, or set "
            f"--training.batch-size to at least {ranks * training.accumulate}."
        )
