"""The order of samples: a pure function of (release digest, mix, seed, epoch), without a buffer.

Epochs follow one another without a seam: global batch s holds the samples at positions s B .. (s+1) B - 1 of
their concatenation, and a rank takes its slice of it. So a resume is a step number, and any number of ranks
sees the same global batches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from harps_dist.data.keyed import key_of, permutation, raw_bits, uniforms
from harps_dist.data.manifest import Index
from harps_dist.errors import ConfigError, ResumeError
from harps_dist.frozen import Frozen


class Mix(Frozen):
    """How an epoch is mixed from real and simulated samples.

    Each batch holds both kinds in their shares, to within one sample.
    """

    real: float = 1.0
    """Share of real samples in an epoch, on any scale; 0 leaves them out."""
    simulated: float = 1.0
    """Share of simulated samples in an epoch, on the same scale; 0 leaves them out."""
    star_weighting: bool = True
    """Draw real spectra with replacement, each with probability 1 / (spectra of its star), as the paper's public code.
    Else each is seen once an epoch.
    """
    sequential: bool = False
    """See all simulated samples of an epoch first, then the real ones, in pure batches, as the paper's public code."""
    pool: int = Field(4096, ge=1)
    """Samples that are shuffled together; from the number of samples of the release on, the shuffle is complete.
    An epoch takes blocks of the shards, of some megabytes each, in random order.
    It shuffles the samples of so many of them that they fill a pool.
    Reads stay nearly sequential as long as a pool's blocks (2.7 GB of SEDs) stay in the page cache.
    """
    replay: float | None = Field(None, ge=0, le=1)
    """Share of the real samples that is drawn from what the release held in generation `known`, the rest from newer.
    Without it all are drawn alike.
    """
    known: int = Field(0, ge=0)
    """Generation of the release whose real samples count as known to `replay`."""

    @model_validator(mode="after")
    def _replay_is_weighted(self) -> Mix:
        if self.replay is not None and not self.star_weighting:
            raise ValueError("replay draws real spectra by weight; leave data.mix.star_weighting on.")
        return self


class GlobalBatch(NamedTuple):
    """Row numbers in the index, (size,) int64, and the epoch that each is drawn in, (size,) int64."""

    rows: np.ndarray
    epochs: np.ndarray


class OrderState(Frozen):
    """Where in the order a run is: five values that fit in a line of JSON.

    release: its digest; mix: the digest of its settings; sample: how many of the epoch's samples were seen.
    """

    release: str
    mix: str
    seed: int
    epoch: int
    sample: int


class Order:
    """The endless sequence of training samples.

    `epoch_length` samples make an epoch: every simulated sample once (or, without simulated ones, as many
    draws as there are real samples), and real ones to fill their share.
    """

    def __init__(self, index: Index, mix: Mix, seed: int, digest: str):
        self._index, self._mix = index, mix
        self._identity = {"release": digest, "mix": f"{key_of(mix.model_dump_json()):016x}", "seed": seed}
        self._names = (digest, mix.model_dump_json(), seed)
        self._real = index.rows("real", "train") if mix.real > 0 else np.empty(0, np.int64)
        self._simulated = index.rows("simulated", "train") if mix.simulated > 0 else np.empty(0, np.int64)
        for kind, share, rows in (
            ("real", mix.real, self._real),
            ("simulated", mix.simulated, self._simulated),
        ):
            if share > 0 and not len(rows):
                raise ConfigError(
                    f"the mix asks for {kind} samples (share {share:g}), but the training split of the release has "
                    f"none. Set --data.mix.{kind} 0, or pack a release with {kind} samples."
                )
        self._real_share = mix.real / (mix.real + mix.simulated) if mix.real + mix.simulated > 0 else 0.0
        if len(self._simulated):
            self.epoch_length = round(len(self._simulated) / (1 - self._real_share))
        else:
            self.epoch_length = len(self._real)
        if not self.epoch_length:
            raise ConfigError("the mix leaves out both real and simulated samples. Give one a positive share.")
        if mix.star_weighting and len(self._real):
            _, star, visits = np.unique(index["star"][self._real], return_inverse=True, return_counts=True)
            weight = np.cumsum(self._replayed(1 / visits[star]))
            self._cumulative = weight / weight[-1]
        self._last: tuple[int, np.ndarray] | None = None

    def _replayed(self, weight: np.ndarray) -> np.ndarray:
        """The weights (real sample,) with those of the known ones adding up to the share that is replayed."""
        replay = self._mix.replay
        if replay is None:
            return weight
        known = self._index["generation"][self._real] <= self._mix.known
        if known.all() or not known.any():
            raise ConfigError(
                f"the mix replays {replay:g} of what was known in generation {self._mix.known} beside what came since, "
                f"but the training split of the release has {int(known.sum())} real spectra of the one and "
                f"{int((~known).sum())} of the other. Leave out --data.mix.replay, or take a release that grew since."
            )
        share = np.where(known, replay / weight[known].sum(), (1 - replay) / weight[~known].sum())
        return weight * share

    @property
    def rows(self) -> np.ndarray:
        """All rows that samples are drawn from, real ones first."""
        return np.concatenate([self._real, self._simulated])

    def state(self, samples: int) -> OrderState:
        """The state after so many samples."""
        epoch, sample = divmod(samples, self.epoch_length)
        return OrderState(**self._identity, epoch=epoch, sample=sample)

    def samples_before(self, state: OrderState) -> int:
        """How many samples a state is behind; raises ResumeError where it is of another order."""
        for name, now in self._identity.items():
            if (saved := getattr(state, name)) != now:
                raise ResumeError(
                    f"the saved position is in the order of {name} {saved}, but {name} is {now} now. Go on with the "
                    f"same {name}, or start a new run in another folder with --out."
                )
        return state.epoch * self.epoch_length + state.sample

    def epoch(self, epoch: int) -> np.ndarray:
        """(epoch_length,) row numbers of one epoch."""
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._draw(epoch)
        return self._last[1]

    def _draw(self, epoch: int) -> np.ndarray:
        position = np.arange(self.epoch_length + 1)
        real_before = np.floor(position * self._real_share + 1e-9).astype(np.int64)
        is_real = np.diff(real_before) == 1
        if self._mix.sequential:
            is_real.sort()
        rows = np.empty(self.epoch_length, np.int64)
        rows[is_real] = self._in_pools(self._draw_real(int(is_real.sum()), epoch), epoch, "real")
        count = int((~is_real).sum())
        simulated = self._simulated[permutation(len(self._simulated), *self._names, epoch, "simulated")][:count]
        rows[~is_real] = self._in_pools(simulated, epoch, "simulated")
        return rows

    def _in_pools(self, drawn: np.ndarray, epoch: int, kind: str) -> np.ndarray:
        """These rows in random order, those of a block within one pool."""
        if len(drawn) <= self._mix.pool:
            return drawn
        names = (*self._names, epoch, kind)
        block = self._index["block"]
        blockwise = drawn[np.argsort(permutation(int(block.max()) + 1, *names, "blocks")[block[drawn]], kind="stable")]
        pool = np.arange(len(drawn)) // self._mix.pool
        return blockwise[np.lexsort((raw_bits(len(drawn), *names, "pools"), pool))]

    def _draw_real(self, count: int, epoch: int) -> np.ndarray:
        if not count:
            return np.empty(0, np.int64)
        if self._mix.star_weighting:
            drawn = np.searchsorted(self._cumulative, uniforms(count, *self._names, epoch, "real"), side="right")
            return self._real[drawn]
        passes = -(-count // len(self._real))
        shuffled = [permutation(len(self._real), *self._names, epoch, "real", p) for p in range(passes)]
        return self._real[np.concatenate(shuffled)[:count]]

    def batch(self, step: int, size: int) -> GlobalBatch:
        """The global batch of one step."""
        position = np.arange(step * size, (step + 1) * size)
        epochs, within = np.divmod(position, self.epoch_length)
        rows = [self.epoch(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return GlobalBatch(np.concatenate(rows), epochs)


def rank_slice(size: int, rank: int, world: int) -> slice:
    """The contiguous part of a global batch of `size` that a rank takes; parts differ by at most one sample."""
    return slice(size * rank // world, size * (rank + 1) // world)
