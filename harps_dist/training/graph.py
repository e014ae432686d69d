"""A step as one CUDA graph, so that a GPU does not wait for the launches of a step's hundreds of kernels.

Tested in tests/unit/test_graph.py and, on a GPU, in tests/gpu/test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harps_dist.data.observer import Batch
from harps_dist.training.clock import StepClock

WARM_STEPS = 3  # until libraries have chosen their kernels and the optimiser has its moments
Step = Callable[[Batch], tuple[Tensor, ...]]


class CapturedStep:
    """A step that is recorded once it is warm, and played again from then on; every call is a step like any other.

    step: works on the device alone and waits for nothing; its batches have one shape. forget: drops what a recording
    that failed left behind; steps then stay as they are. clock: told of "step". say: told what a user should know.
    """

    def __init__(
        self, step: Step, device: torch.device, clock: StepClock, forget: Callable[[], None], say: Callable[[str], None]
    ):
        self._step, self._clock, self._forget, self._say = step, clock, forget, say
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._before_recording = WARM_STEPS
        self._records = True

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        if self._graph is None and self._records and not self._before_recording:
            self._record(batch)
        if self._graph is None:
            self._before_recording -= self._before_recording > 0
            return self._on_its_stream(batch)
        with self._clock("step"):
            for held, part in zip(self._held, batch, strict=True):
                held.copy_(part)
            self._graph.replay()
            return tuple(part.clone() for part in self._found)

    def _on_its_stream(self, batch: Batch) -> tuple[Tensor, ...]:
        """One operation after the other, on the stream that is recorded later."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = self._step(batch)
        current.wait_stream(self._stream)
        return found

    def _record(self, batch: Batch) -> None:
        """Record the step without taking it. Threads that read ahead may pin memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        self._held = Batch(*(part.clone() for part in batch))
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._found = self._step(self._held)
        except RuntimeError as error:
            self._records = False
            self._forget()
            reason = str(error).strip().splitlines()[0]
            self._say(f"the step cannot be one CUDA graph ({reason}); its kernels are launched one by one.")
            return
        self._graph = graph
