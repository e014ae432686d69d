# ruff: noqa: B023, B905, E501

# ruff: noqa: B023
from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch import nn
from torch.nn import functional as F

from harps_dist.kernels import output_convolution as outputs
from harps_dist.kernels import resnet_blocks as resnet
from harps_dist.kernels import tiles as tiles_of
from harps_dist.kernels.availability import available
from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.conv_leaky import conv_leaky
from harps_dist.kernels.decoder import decode
from harps_dist.kernels.encoder import encode
from harps_dist.kernels.norm_relu import norm_relu
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tile, Tiles, padded
from harps_dist.models.autoencoder import Autoencoder
from harps_dist.models.decoder import PreActTransResNetBlock, ResNetDecoder
from harps_dist.models.encoder import ConvEncoder, LabelEncoder
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


def machine(rows):
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = timed(lambda: target.copy_(source))
    rows |= {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_tb_per_s": 2 * 4 * 2**28 / ms / 1e9,
    }
    rows["available"] = available()
    print(rows)


def layer_of(c_in, c_out, kernel, stride, transposed):
    if transposed:
        return ConvTranspose1d(c_in, c_out, kernel, stride).cuda()
    return nn.Conv1d(c_in, c_out, kernel, stride, (kernel - 1) // 2).cuda()


CORRECTNESS = [
    *((*layer[:5], 4097) for layer in ENCODER),
    (16, 16, 4, 2, True, 2049),
    (64, 64, 3, 1, False, 1001),
    (12, 20, 5, 2, False, 1001),
]


def correctness(rows):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for dtype, (*shape, pixels) in itertools.product((torch.float32, torch.bfloat16, torch.float16), CORRECTNESS):
        c_in, c_out, kernel, stride, transposed = shape
        if not tiles_of.fused(327680, c_in, c_out, Convolution(kernel, stride, transposed), dtype):
            continue
        name = f"{str(dtype)[6:]} {shape} {pixels}"
        try:
            layer = layer_of(*shape)
            exact = layer_of(*shape).double()
            exact.load_state_dict(layer.state_dict())
            with torch.no_grad():  # what the kernel is given
                exact.weight.copy_(layer.weight.to(dtype))
            x = torch.randn(3, pixels, c_in, device="cuda").to(dtype).requires_grad_()
            double = x.detach().double().requires_grad_()
            y = conv_leaky(x, layer.weight, layer.bias, Convolution(kernel, stride, transposed), SLOPE)
            expected = F.leaky_relu(exact(double.transpose(1, 2)), SLOPE).transpose(1, 2)
            dy = torch.randn_like(y)
            found = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
            gradients = torch.autograd.grad(expected, [double, exact.weight, exact.bias], dy.double())
            errors = [error(y, expected), *(error(a, b) for a, b in zip(found, gradients, strict=True))]
        except Exception as problem:
            errors = [repr(problem)[-600:]]
        rows[name] = errors
        bound = 2e-6 if dtype == torch.float32 else 1e-2
        good = all(isinstance(e, float) and e < bound for e in errors)
        print("good" if good else "BAD ", name, [e if isinstance(e, str) else f"{e:.1e}" for e in errors], flush=True)


def block_correctness(rows):
    """Two blocks, a norm and the output convolution against float64, beside what plain torch makes in that precision."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    shapes = [((16, 16, 16), 5, 4097), ((32, 32, 16), 5, 2048), ((64, 32, 16), 5, 1000), ((16, 8, 8), 3, 999)]
    for dtype, (channels, kernel, pixels) in itertools.product((torch.float32, torch.bfloat16, torch.float16), shapes):
        name = f"{str(dtype)[6:]} {channels} {kernel} {pixels}"
        try:
            if not tiles_of.fused_block(10**6, channels, dtype):
                continue
            middles = channels[1:] if kernel == 5 else channels[:-1]
            net = nn.Sequential(
                *(PreActTransResNetBlock(a, m, b, kernel, 2) for a, m, b in zip(channels, middles, channels[1:]))
            ).cuda()
            exact = nn.Sequential(
                *(PreActTransResNetBlock(a, m, b, kernel, 2) for a, m, b in zip(channels, middles, channels[1:]))
            )
            exact.load_state_dict({k: v.to(dtype).double() for k, v in net.state_dict().items()})
            exact.double().cuda()
            blocks = [
                resnet.Block(kernel, 2, *tiles_of.tiles_for_block((a, m, b), kernel, 2, dtype))
                for a, m, b in zip(channels, middles, channels[1:])
            ]
            parameters = [p for m in net for c in (m.conv1, m.conv2, m.skip) for p in c.parameters()]
            x = (torch.randn(3, pixels, channels[0], device="cuda") + 0.5).to(dtype).requires_grad_()
            double = x.detach().double().requires_grad_()
            y = resnet.resnet_blocks(x, blocks, parameters)
            dy = torch.randn_like(y)
            found = [y, *torch.autograd.grad(y, [x, *parameters], dy)]
            plain = x.detach().requires_grad_()
            y = net.to(dtype)(plain.transpose(1, 2)).transpose(1, 2)
            plain = [y, *torch.autograd.grad(y, [plain, *net.parameters()], dy)]
            y = exact(double.transpose(1, 2)).transpose(1, 2)
            expected = [y, *torch.autograd.grad(y, [double, *exact.parameters()], dy.double())]
            scale = max(float(e.norm()) for e in expected[2:])
            check = [i for i, e in enumerate(expected) if e.norm() > 1e-6 * scale]  # not biases that a norm takes away
            errors = [error(found[i], expected[i]) for i in check]
            of_plain = [error(plain[i], expected[i]) for i in check]
            good = max(errors) < 2 * max(of_plain) + 1e-6
            rows[name] = {"ours": errors, "plain": of_plain}
            print("good" if good else "BAD ", name, f"ours {max(errors):.1e} plain {max(of_plain):.1e}", flush=True)
        except Exception as problem:
            rows[name] = repr(problem)[-600:]
            print("BAD ", name, rows[name], flush=True)
    for dtype, (pixels, channels) in itertools.product(
        (torch.float32, torch.bfloat16), ((20, 512), (5001, 64), (327680, 16))
    ):
        x = (torch.randn(2, pixels, channels, device="cuda") * 0.1 + 100 * (dtype == torch.float32)).to(dtype)
        x.requires_grad_()
        y = norm_relu(x)
        dy = torch.randn_like(y)
        double = x.detach().double().requires_grad_()
        expected = torch.relu(F.instance_norm(double.transpose(1, 2)).transpose(1, 2))
        (found,), (gradient,) = torch.autograd.grad(y, [x], dy), torch.autograd.grad(expected, [double], dy.double())
        rows[f"norm {dtype} {pixels} {channels}"] = errors = [error(y, expected), error(found, gradient)]
        print("norm", dtype, pixels, channels, [f"{e:.1e}" for e in errors], flush=True)
    case = OutputCase((16, 5001), 2, None)
    parameters = [case.x, *case.layer.parameters()]
    y = outputs.output_convolution(case.x, case.layer.weight, case.layer.bias)
    found = [y, *torch.autograd.grad(y, parameters, case.dy)]
    layer, double = nn.Conv1d(16, 1, 3, padding=1).double().cuda(), case.x.detach().double().requires_grad_()
    layer.load_state_dict(case.layer.state_dict())
    y = layer(double.transpose(1, 2)).squeeze(1)
    expected = [y, *torch.autograd.grad(y, [double, *layer.parameters()], case.dy.double())]
    rows["output"] = errors = [error(a, b) for a, b in zip(found, expected, strict=True)]
    print("output", [f"{e:.1e}" for e in errors], flush=True)


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


def block_choices(shape, which):
    wide = max(shape[:3]) > 16
    if which.startswith("forward"):
        for (rows, warps), chunk in itertools.product(((32, 4), (64, 4), (128, 4), (128, 8), (256, 8)), (32, 64)):
            if rows * shape[2] * shape[4] <= 4096 * warps:
                tile = Tile(rows, warps, 1)
                yield Tiles(forward=tile, chunk=chunk)
        return
    cuts = ((32, 4), (32, 8), (64, 4), (64, 8)) if wide else ((32, 4), (64, 4), (128, 4), (128, 8))
    for (rows, warps), stages, programs in itertools.product(cuts, (1, 2), (528, 1056)):
        yield Tiles(backward=Tile(rows, warps, stages), programs=programs)


def output_choices(shape, which):
    for rows, warps in ((64, 4), (128, 4), (256, 4), (512, 4), (512, 8)):
        if which == "forward":
            yield Tiles(forward=Tile(rows, warps, 1))
        else:
            for programs in (1056, 2112):
                yield Tiles(backward=Tile(rows, warps, 1), programs=programs)


KINDS = {"block": (BlockCase, block_choices, PASSES), "output": (OutputCase, output_choices, ("forward", "backward"))}


def compile_part(arguments):
    """As `compile_one`, for the passes of KINDS."""
    kind, shape, batch, tiles, which = arguments
    torch.cuda.empty_cache()
    try:
        KINDS[kind][0](shape, batch, tiles).runner(which)()
        torch.cuda.synchronize()
        return ""
    except Exception as problem:
        return repr(problem)[:200]


def sweep_parts(report, batch, kinds, seconds, copy_speed):
    """Best tiles of each pass of residual blocks and of the output convolution."""

    def work(rows):
        end = time.time() + min(seconds, report.left() - 40)
        jobs = [(kind, shape, batch, tiles, which) for kind, shapes in kinds.items() for shape in shapes[::-1]
                for which in KINDS[kind][2] for tiles in KINDS[kind][1](shape, which)]  # fmt: skip
        compiled, refused = compiled_of(compile_part, jobs, end - 0.3 * seconds)
        rows["compiled"], rows["refused"] = len(compiled), list(refused.items())[:40]
        for kind, shape in dict.fromkeys(job[:2] for job in jobs):
            torch.cuda.empty_cache()
            best = {}
            for which in KINDS[kind][2]:
                found = []
                for _, _, _, tiles, _ in (job for job in compiled if job[:2] == (kind, shape) and job[4] == which):
                    if time.time() > end + 20:
                        break
                    try:
                        found.append((timed(KINDS[kind][0](shape, batch, tiles).runner(which), 3), tiles))
                    except Exception as problem:
                        refused[str((shape, which, tiles))] = repr(problem)[:200]
                found.sort(key=lambda f: f[0])
                floor = KINDS[kind][0](shape, batch, None).bytes[which] / copy_speed
                rows[f"{kind} {shape} {which}"] = {"floor": floor, "found": [(ms, asdict(t)) for ms, t in found[:12]]}
                if found:
                    best[which] = found[0][1]
                    print(f"{kind} {shape} {which}: {found[0][0]:.3f} ms, floor {floor:.3f}", flush=True)
            if len(best) < len(KINDS[kind][2]):
                continue
            if kind == "output":
                backward = best["backward"]
                chosen = replace(best["forward"], backward=backward.backward, programs=backward.programs)
                outputs.OUTPUT = chosen
                print(f"    OUTPUT = {chosen}", flush=True)
            else:
                chosen = tuple(
                    replace(
                        best[f"forward{n}"],
                        backward=best[f"backward{n}"].backward,
                        programs=best[f"backward{n}"].programs,
                    )
                    for n in (1, 2)
                )
                tiles_of.MEASURED_BLOCKS[shape[:3], *shape[3:5]] = chosen
                print(f"    {(shape[:3], *shape[3:5])}: {chosen},", flush=True)
            rows[f"{kind} {shape}"] = repr(chosen)

    return work


def compiled_of(work, jobs, end):
    """Jobs that compiled, in processes side by side, and what the others said."""
    started = time.time()
    pool = ProcessPoolExecutor(max(1, min(14, (os.cpu_count() or 2) - 2)), multiprocessing.get_context("spawn"))
    ready = pool.map(work, jobs)
    refused, compiled = {}, []
    try:
        for job in jobs:
            try:
                problem = ready.__next__() if time.time() < end else "not compiled in time"
            except Exception as broken:
                problem = repr(broken)[:200]
            if problem:
                refused[str(job)] = problem
            else:
                compiled.append(job)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    print(
        f"{len(compiled)} of {len(jobs)} compiled in {time.time() - started:.0f} s",
        list(refused.items())[:3],
        flush=True,
    )
    return compiled, refused


def compile_one(arguments):
    """In a process of its own: whatever it compiles is in Triton's cache afterwards."""
    shape, batch, tiles, which = arguments
    torch.cuda.empty_cache()
    try:
        case = Case(shape, batch, tiles)
        if which == "forward":
            with torch.no_grad():
                case.forward()
        else:
            case.both()[1]()
        torch.cuda.synchronize()
        return ""
    except Exception as problem:
        return repr(problem)[:200]


def forward_choices(shape):
    c_in, c_out, kernel, stride, transposed, _ = shape
    if shape[:5] in tiles_of.MEASURED:
        return
    if c_in > 1:
        for (rows, warps), chunk in itertools.product(((64, 4), (128, 4), (128, 8)), (32, 64)):
            yield Tiles(forward=Tile(rows, warps), chunk=chunk)
        return
    for group, (rows, warps), chunk in itertools.product(
        (1, 2, 4, 8), ((32, 4), (64, 2), (64, 4), (128, 4), (256, 4), (256, 8), (512, 8)), (32, 64, 128)
    ):
        over = Convolution(kernel, stride, transposed, group).rows(c_in, c_out)
        if over.row_out > 128 or not 2048 <= rows * over.row_out <= 16384 * warps // 4:
            continue
        if chunk > max(32, padded(over.taps * over.row_in)) or (c_in == 1) != (group > 2) or over.row_in > 128:
            continue
        yield Tiles(group=group, forward=Tile(rows, warps, 2), chunk=chunk)


def backward_choices(shape):
    c_in, c_out, kernel, stride, transposed, _ = shape
    if shape[:5] in tiles_of.MEASURED:
        return
    if c_in > 1:
        for (rows, warps), stages, programs in itertools.product(((32, 4), (64, 4), (64, 8)), (1, 2), (132, 264, 528)):
            yield Tiles(backward=Tile(rows, warps, stages), programs=programs)
        return
    for group, (rows, warps), stages, programs in itertools.product(
        (1, 2, 4, 8), ((32, 4), (64, 4), (128, 4), (128, 8), (256, 8)), (1, 2, 3), (528, 1056)
    ):
        over = Convolution(kernel, stride, transposed, group).rows(c_in, c_out)
        window = padded(over.taps * over.row_in)
        if over.row_out > 128 or over.row_in > 128 or window * over.row_out > 8192 * warps // 2:
            continue
        shared = 2 * rows * (window + 2 * over.row_out * (over.taps + 1)) * (stages if stages > 1 else 0.5)
        if (c_in == 1) != (group > 2) or rows * max(over.row_in, over.row_out) > 16384 or shared > 225e3:
            continue
        yield Tiles(group=group, backward=Tile(rows, warps, stages), programs=programs)


def sweep(report, batch, shapes, seconds):
    """Best tiles of each layer; forward and backward apart, then the better group of both together."""

    def work(rows):
        end = time.time() + min(seconds, report.left() - 60)
        jobs = [(shape, batch, tiles, which) for shape in shapes for which, choices in
                (("forward", forward_choices), ("backward", backward_choices)) for tiles in choices(shape)]  # fmt: skip
        compiled, refused = compiled_of(compile_one, jobs, end - 0.3 * seconds)
        rows["compiled"], rows["refused"] = len(compiled), list(refused.items())[:40]
        for shape in shapes:
            torch.cuda.empty_cache()
            found: dict = {"forward": [], "backward": []}
            for _, _, tiles, which in (job for job in compiled if job[0] == shape):
                try:
                    case = Case(shape, batch, tiles)
                    if which == "forward":
                        with torch.no_grad():
                            ms = timed(case.forward, 3)
                    else:
                        ms = timed(case.both()[1], 3)
                    found[which].append((ms, tiles))
                except Exception as problem:
                    refused[str((shape, tiles))] = repr(problem)[:200]
                if time.time() > end + 20:
                    break
            best = None
            for group in {tiles.group for _, tiles in found["forward"]} & {
                tiles.group for _, tiles in found["backward"]
            }:
                of_group = [min((f for f in found[w] if f[1].group == group), key=lambda f: f[0]) for w in found]
                total = of_group[0][0] + of_group[1][0]
                if best is None or total < best[0]:
                    forward, backward = of_group[0][1], of_group[1][1]
                    best = total, replace(forward, backward=backward.backward, programs=backward.programs)
            for which in found:
                found[which].sort(key=lambda f: f[0])
            rows[str(shape)] = {which: [(ms, asdict(t)) for ms, t in found[which][:12]] for which in found}
            if best:
                tiles_of.MEASURED[shape[:5]] = best[1]
                rows[str(shape)]["best"] = repr(best[1])
                print(f"    {shape[:5]}: {best[1]},", f"# {best[0]:.3f} ms", flush=True)

    return work


def layers(batch, shapes, copy_speed):
    """Times of one layer: ours, cuDNN's in NCL and in channels-last, and the floor."""

    def work(rows):
        torch.backends.cudnn.benchmark = True
        for shape in shapes:
            row: dict = {}
            rows[str(shape)] = row
            case = Case(shape, batch, None)
            y, backward = case.both()
            size_x, size_y = 2 * case.x.numel(), 2 * y.numel()
            row["floor"] = (
                (size_x + size_y) / copy_speed,
                (size_x * (1 + case.x.requires_grad) + 2 * size_y) / copy_speed,
            )
            with torch.no_grad():
                forward_ms = timed(case.forward)
            row["ours"] = forward_ms, timed(backward)
            first, second = backward(), backward()
            row["equal_bits"] = bool(
                torch.equal(y, case.forward()) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            )
            del backward, first, second
            layer = case.layer.to(torch.bfloat16)
            ncl = case.x.detach().transpose(1, 2).contiguous().requires_grad_(case.x.requires_grad)
            kinds = {
                "ncl": (ncl, lambda x: F.leaky_relu(layer(x), SLOPE)),
                "channels_last": (
                    case.x,
                    lambda x: F.leaky_relu(conv_channels_last(x, layer.weight, layer.bias, case.convolution), SLOPE),
                ),
            }
            for kind, (x, run) in kinds.items():
                try:
                    with torch.no_grad():
                        forward_ms = timed(functools.partial(run, x))
                    out = run(x)
                    dy = torch.randn_like(out)
                    wanted = [t for t in (x, layer.weight, layer.bias) if t.requires_grad]
                    row[kind] = forward_ms, timed(lambda: torch.autograd.grad(out, wanted, dy, retain_graph=True))
                except Exception as problem:
                    row[kind] = repr(problem)[:300]
            print(
                shape, {k: [round(t, 3) for t in v] if isinstance(v, tuple) else v for k, v in row.items()}, flush=True
            )

    return work


class Encoder(nn.Module):
    """The label encoder by torch or by the kernels."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.network = LabelEncoder(LENGTH, 6)

    def forward(self, flux):
        if self.kind != "triton":
            return self.network(flux)
        return self.network.head(encode(self.network.encoder.layers, flux, torch.bfloat16))


class Decoder(nn.Module):
    """The ResNet decoder by torch or by the kernels."""

    def __init__(self, kind, inputs=6):
        super().__init__()
        self.kind = kind
        self.network = ResNetDecoder(LENGTH, inputs)

    def forward(self, given):
        if self.kind != "triton":
            return self.network(given)
        seed = self.network.seed(given).unflatten(1, (self.network.seed_channels, -1))
        return decode(self.network.layers, self.network.output, seed, torch.bfloat16)


class Both(nn.Module):
    """The autoencoder with a bottleneck of 9 nodes by torch or by the kernels."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        decoder = Decoder(kind, 9)
        self.network = Autoencoder(ConvEncoder(LENGTH), decoder.network, 9)
        self.decoder = decoder

    def forward(self, flux):
        if self.kind != "triton":
            return self.network.decode(self.network.mean_head(self.network.encoder(flux)))
        return self.decoder(self.network.mean_head(encode(self.network.encoder.layers, flux, torch.bfloat16)))


def public(module):
    """As the public code runs it: PyTorch's own transposed convolutions."""
    for layer in module.modules():
        if isinstance(layer, ConvTranspose1d):
            layer.forward = functools.partial(nn.ConvTranspose1d.forward, layer)
    return module


def step_of(model, kind, given, target, graph=False):
    fast = kind != "public"
    optimiser = torch.optim.Adam(model.parameters(), 1e-4, **({"fused": True, "capturable": graph} if fast else {}))
    amp = torch.autocast("cuda", torch.bfloat16, enabled=kind == "torch")

    def step():
        optimiser.zero_grad(set_to_none=True)
        with amp:
            out = model(given)
        (out.float() - target).abs().mean().backward()
        optimiser.step()

    return step


def steps(make, given, target, batch):
    """Whole steps of one network: public, torch, triton, triton in a CUDA graph; times, memory and loss."""

    def work(rows):
        for kind, graphed in (("triton", False), ("triton", True), ("torch", False), ("public", False)):
            name = kind + (" graph" if graphed else "")
            try:
                torch.cuda.empty_cache()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                torch.backends.cudnn.benchmark = kind != "public"
                torch.backends.cudnn.allow_tf32 = True
                torch.manual_seed(0)
                model = make(kind).cuda()
                step = step_of(public(model) if kind == "public" else model, kind, given, target, graphed)
                if graphed:
                    ms = timed(step, 1, 10)
                else:
                    for _ in range(3):
                        step()
                    found = []
                    for _ in range(5):
                        torch.cuda.synchronize()
                        started = time.time()
                        step()
                        torch.cuda.synchronize()
                        found.append(1e3 * (time.time() - started))
                    ms = sorted(found)[2]
                with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=kind == "torch"):
                    loss = float((model(given).float() - target).abs().mean())
                peak = torch.cuda.max_memory_allocated() / 2**30
                rows[name] = {"ms": ms, "per_s": batch / ms * 1e3, "peak_gib": peak, "loss": loss}
                del model, step
            except Exception:
                rows[name] = {"error": traceback.format_exc()[-1500:]}
            print(name, rows[name], flush=True)

    return work


def equal_bits(rows, batch):
    model = Decoder("triton").cuda()
    given = torch.randn(batch, 6, device="cuda")
    runs = []
    for _ in range(2):
        y = model(given)
        runs.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    rows["equal"] = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    print("decoder: equal bits", rows["equal"], flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", nargs="*", help="parts to run, all if none are named: by how their names begin")
    parser.add_argument("--sweep", type=float, default=90, help="seconds; 0: none")
    chosen = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are captured from it, autograd stays on it
    report, batch = Report(chosen.out, chosen.seconds, chosen.parts), chosen.batch
    report.part("machine", machine)
    copy_speed = report.found["parts"]["machine"].get("copy_tb_per_s", 2.9) * 1e9  # bytes per ms
    report.part("correctness", correctness)
    if chosen.sweep:
        report.part("encoder sweep", sweep(report, batch, ENCODER, chosen.sweep), 60)
    report.part("encoder layers", layers(batch, ENCODER, copy_speed))
    flux, labels = torch.randn(batch, LENGTH, device="cuda"), torch.randn(batch, 6, device="cuda")
    report.part("encoder steps", steps(Encoder, flux, labels, batch))
    report.part("block correctness", block_correctness)
    if chosen.sweep:
        kinds = {"output": OUTPUT, "block": RESNET}
        report.part("block sweep", sweep_parts(report, batch, kinds, chosen.sweep, copy_speed), 60)
    report.part("equal bits of the decoder", functools.partial(equal_bits, batch=batch))
    report.part("decoder steps", steps(Decoder, labels, flux, batch), 20)
    report.part("autoencoder steps", steps(Both, flux, flux, batch), 20)
    report.write()


if __name__ == "__main__":
    main()
