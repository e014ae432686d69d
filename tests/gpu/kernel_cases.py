"""Layers at their full size, timed and checked: what `kernels_gpu` and `kernel_sweep` share."""

from __future__ import annotations

import itertools
import json
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch import nn

from harps_dist.kernels import output_convolution as outputs
from harps_dist.kernels import resnet_blocks as resnet
from harps_dist.kernels import tiles as tiles_of
from harps_dist.kernels.conv_leaky import conv_leaky
from harps_dist.kernels.taps import Convolution
from harps_dist.models.decoder import PreActTransResNetBlock
from harps_dist.models.layers import ConvTranspose1d

SLOPE = 0.1


LENGTH = 327680


CHANNELS = (1, 16, 16, 16, 32, 32, 32, 64, 64)


ENCODER = [  # c_in, c_out, kernel, stride, transposed, pixels of input
    (c_in, c_out, (7, 5, 5, 3, 3, 3, 3, 3)[i], 2, False, 327680 >> i)
    for i, (c_in, c_out) in enumerate(itertools.pairwise(CHANNELS))
]


RESNET = [  # c_in, c_mid, c_out, kernel, stride, pixels of input
    (64, 32, 32, 5, 2, 10240),
    (32, 32, 32, 5, 2, 20480),
    (32, 16, 16, 5, 2, 40960),
    (16, 16, 16, 5, 2, 81920),
    (16, 16, 16, 5, 2, 163840),
]


OUTPUT = [(16, 327680)]


PASSES = ("forward1", "forward2", "backward1", "backward2")


class Report:
    """What was found, written after each part."""

    def __init__(self, out: str, seconds: float, parts=None):
        self.out, self.end, self.parts = out, time.time() + seconds, parts
        self.found: dict = {"parts": {}}

    def left(self) -> float:
        return self.end - time.time()

    def part(self, name, work, needs=5.0):
        """Run one part; what it raises is noted and the next part goes on."""
        started = time.time()
        if self.parts and name != "machine" and not name.startswith(tuple(self.parts)):
            return
        if self.left() < needs:
            self.found["parts"][name] = {"skipped": f"{self.left():.0f} s left"}
        else:
            rows: dict = {}
            self.found["parts"][name] = rows
            try:
                work(rows)
            except Exception:
                rows["error"] = traceback.format_exc()[-3000:]
                print(name, rows["error"], flush=True)
            rows["seconds"] = time.time() - started
        self.write()
        print(f"-- {name}: {time.time() - started:.1f} s, {self.left():.0f} s left", flush=True)

    def write(self):
        Path(self.out).write_text(json.dumps(self.found, indent=1, default=str))


def error(found, expected) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def timed(work, calls=4, replays=3) -> float:
    """Milliseconds of one call on the GPU, replayed from a graph, so that launching does not count."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        for _ in range(calls):
            work()
    finally:
        graph.capture_end()
    return replayed(graph, replays) / calls


def replayed(graph, replays) -> float:
    graph.replay()
    found = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return sorted(found)[len(found) // 2]


def layer_of(c_in, c_out, kernel, stride, transposed):
    if transposed:
        return ConvTranspose1d(c_in, c_out, kernel, stride).cuda()
    return nn.Conv1d(c_in, c_out, kernel, stride, (kernel - 1) // 2).cuda()


class Case:
    """One layer at its full size with given tiles."""

    def __init__(self, shape, batch, tiles, dtype=torch.bfloat16):
        c_in, c_out, kernel, stride, transposed, pixels = shape
        self.convolution = Convolution(kernel, stride, transposed)
        self.layer = layer_of(c_in, c_out, kernel, stride, transposed)
        self.x = torch.randn(batch, pixels, c_in, device="cuda", dtype=dtype).requires_grad_(c_in > 1)
        self.tiles = tiles
        self.wanted = [t for t in (self.x, self.layer.weight, self.layer.bias) if t.requires_grad]

    def forward(self):
        return conv_leaky(self.x, self.layer.weight, self.layer.bias, self.convolution, SLOPE, self.tiles)

    def both(self):
        y = self.forward()
        dy = torch.randn_like(y)
        return y, lambda: torch.autograd.grad(y, self.wanted, dy, retain_graph=True)


class BlockCase:
    """One residual block at its full size, its four kernels apart."""

    def __init__(self, shape, batch, tiles, dtype=torch.bfloat16):
        c_in, c_mid, c_out, kernel, stride, pixels = shape
        self.tiles = tiles
        first, second = (tiles, tiles) if tiles else tiles_of.tiles_for_block(shape[:3], kernel, stride, dtype)
        self.block = resnet.Block(kernel, stride, first, second)
        self.convolutions = self.block.convolutions(pixels)
        of = PreActTransResNetBlock(c_in, c_mid, c_out, kernel, stride).cuda()
        parts = of.conv1, of.conv2, of.skip
        self.matrices = [c.matrices(p.weight.detach(), dtype) for c, p in zip(self.convolutions, parts, strict=True)]
        self.bias = [p.bias.detach() for p in parts]

        def norm(length, channels):
            values = torch.randn(batch, length, channels, device="cuda", dtype=dtype)
            return resnet._Norm(values, torch.rand(batch, 2, channels, device="cuda") + 0.5)

        self.x, self.z = norm(pixels, c_in), norm(pixels * stride, c_mid)
        self.y = norm(pixels * stride, c_out)
        self.dy, self.dz = (
            resnet._Gradient(torch.randn_like(n.values), n, torch.randn_like(n.statistics)) for n in (self.y, self.z)
        )
        sizes = [2 * n.values.numel() for n in (self.x, self.z, self.y)]
        x, z, y = sizes
        self.bytes = {
            "forward1": x + z, "forward2": z + x + y, "backward1": x + 2 * z + 2 * y + x, "backward2": 2 * y + 2 * z,
        }  # fmt: skip

    def runner(self, which):
        first, second, skip = self.convolutions
        m1, m2, ms = self.matrices
        b1, b2, _ = self.bias
        tiles = self.block.first if which.endswith("1") else self.block.second
        return {
            "forward1": lambda: resnet._convolve(self.x, first, m1, b1, tiles, None, True),
            "forward2": lambda: resnet._convolve(self.z, second, m2, b2, tiles, (self.x, skip, ms), True),
            "backward1": lambda: resnet._convolve_backward(self.x, first, m1, self.dz, tiles, (self.dy, skip, ms)),
            "backward2": lambda: resnet._convolve_backward(self.z, second, m2, self.dy, tiles, None),
        }[which]


class OutputCase:
    """The output convolution at its full size."""

    def __init__(self, shape, batch, tiles):
        channels, pixels = shape
        self.x = torch.randn(batch, pixels, channels, device="cuda", dtype=torch.bfloat16).requires_grad_()
        self.layer = nn.Conv1d(channels, 1, 3, padding=1).cuda()
        if tiles:
            outputs.OUTPUT = tiles
        self.dy = torch.randn(batch, pixels, device="cuda")
        size, small = 2 * self.x.numel(), 4 * self.dy.numel()
        self.bytes = {"forward": size + small, "backward": 2 * size + small}

    def runner(self, which):
        def forward():
            return outputs.output_convolution(self.x, self.layer.weight, self.layer.bias)

        if which == "forward":
            return torch.no_grad()(forward)
        y = forward()
        wanted = [self.x, *self.layer.parameters()]
        return lambda: torch.autograd.grad(y, wanted, self.dy, retain_graph=True)
