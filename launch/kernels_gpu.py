"""Check and time the kernels of `harps_dist/kernels/` on one GPU: python launch/kernels_gpu.py --out OUT.json."""

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

from harps_dist.kernels import tiles as tiles_of
from harps_dist.kernels.availability import available
from harps_dist.kernels.channels_last import conv_channels_last
from harps_dist.kernels.conv_leaky import conv_leaky, padded
from harps_dist.kernels.encoder import encode
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tile, Tiles
from harps_dist.models.encoder import LabelEncoder
from harps_dist.models.layers import ConvTranspose1d

SLOPE = 0.1
LENGTH = 327680
CHANNELS = (1, 16, 16, 16, 32, 32, 32, 64, 64)
ENCODER = [  # c_in, c_out, kernel, stride, transposed, pixels of input
    (c_in, c_out, (7, 5, 5, 3, 3, 3, 3, 3)[i], 2, False, 327680 >> i)
    for i, (c_in, c_out) in enumerate(itertools.pairwise(CHANNELS))
]


class Report:
    """What was found, written after each part."""

    def __init__(self, out: str, seconds: float):
        self.out, self.end = out, time.time() + seconds
        self.found: dict = {"parts": {}}

    def left(self) -> float:
        return self.end - time.time()

    def part(self, name, work, needs=5.0):
        """Run one part; what it raises is noted and the next part goes on."""
        started = time.time()
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
        if not tiles_of.fused(327680, c_in, c_out, dtype):
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
        workers = max(1, min(14, (os.cpu_count() or 2) - 2))
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        ready = pool.map(compile_one, jobs)
        refused, compiled = {}, []
        try:
            for job in jobs:
                problem = next(ready) if time.time() < end - 0.3 * seconds else "not compiled in time"
                if problem:
                    refused[str(job)] = problem
                else:
                    compiled.append(job)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        rows["compiled"], rows["refused"] = len(compiled), list(refused.items())[:40]
        print(f"{len(compiled)} of {len(jobs)} compiled in {time.time() - end + seconds:.0f} s", flush=True)
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sweep", type=float, default=90, help="seconds; 0: none")
    chosen = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are captured from it, autograd stays on it
    report, batch = Report(chosen.out, chosen.seconds), chosen.batch
    report.part("machine", machine)
    copy_speed = report.found["parts"]["machine"].get("copy_tb_per_s", 2.9) * 1e9  # bytes per ms
    report.part("correctness", correctness)
    if chosen.sweep:
        report.part("encoder sweep", sweep(report, batch, ENCODER, chosen.sweep), 60)
    report.part("encoder layers", layers(batch, ENCODER, copy_speed))
    flux, labels = torch.randn(batch, LENGTH, device="cuda"), torch.randn(batch, 6, device="cuda")
    report.part("encoder steps", steps(Encoder, flux, labels, batch))
    report.write()


if __name__ == "__main__":
    main()
