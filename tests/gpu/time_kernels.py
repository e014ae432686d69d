# ruff: noqa: B023, B905, E501
"""Check and time the kernels of `harps_dist/kernels/` on one GPU: python tests/gpu/time_kernels.py --out OUT.json."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from kernel_cases import (
    ENCODER,
    LENGTH,
    OUTPUT,
    RESNET,
    SLOPE,
    Case,
    OutputCase,
    Report,
    error,
    layer_of,
    timed,
)
from kernel_sweep import (
    sweep,
    sweep_parts,
)
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
from harps_dist.models.autoencoder import Autoencoder
from harps_dist.models.decoder import PreActTransResNetBlock, ResNetDecoder
from harps_dist.models.encoder import ConvEncoder, LabelEncoder
from harps_dist.models.layers import ConvTranspose1d


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
    """The module as the public code runs it: PyTorch's own transposed convolutions."""
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
