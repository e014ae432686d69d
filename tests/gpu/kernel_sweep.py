"""Tile sizes of the kernels, tried one after the other on a GPU."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import torch
from kernel_cases import (
    PASSES,
    BlockCase,
    Case,
    OutputCase,
    timed,
)

from harps_dist.kernels import output_convolution as outputs
from harps_dist.kernels import tiles as tiles_of
from harps_dist.kernels.taps import Convolution
from harps_dist.kernels.tiles import Tile, Tiles, padded


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
    """Compile one pass of KINDS in a process of its own."""
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
