"""What the versions cost in our encoder: v1.2 against v1, and three patch embeddings on v1's band sets.

    python benchmarks/versions.py [--seconds 10] [--sizes nano,tiny] [--precision fp32] [--compile] [--device cpu]

Every pair runs in one process, pass after pass, each at the batch that a run would choose; ratios are per image.

1. v1 against v1.2 on the same imagery, operations and time side by side. Published for the change to one band set: 2.9
   times fewer multiply-adds in Sentinel-2 tasks (OlmoEarth v1.1, arXiv 2605.20804; attention left out).
2. v1's own convolution, run three ways on its three band sets: as torch's convolution (as the reference does), as one
   matrix product over the same samples (as this package does, same numbers), and v1.1's linear embedding with its layer
   per pixel, which is a different model. Published: 1.23 times for linear over convolution, in training.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.bench import device as devices
from pipeline.bench import encoder, timing
from pipeline.bench.rows import Case, Request
from pipeline.encode import untrained
from pipeline.encode.checkpoint import Checkpoint, load, patch_stem
from pipeline.encode.layout import default_sensors, parameters
from pipeline.encode.patch import KERNEL_PX
from pipeline.plan.flops import Work, window_work

if TYPE_CHECKING:
    from pipeline.encode.olmoearth import Encoder

PUBLISHED_VERSIONS, PUBLISHED_EMBEDDING = 2.9, 1.23
SHAPES = "T1x128/8,T12x64/8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="time per pair")
    parser.add_argument("--sizes", default="nano,tiny")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    place = devices.pick(args.device)
    options = {
        "sizes": args.sizes,
        "precisions": args.precision,
        "compiled": "on" if args.compile else "off",
        "shapes": args.shapes,
        "attention": "auto",
    }
    print(
        f"{devices.name_of(place)}, torch {torch.__version__}, {devices.commit()}, {args.precision}, {devices.now()}\n"
    )
    old, new = (cases(Request.parse(versions=version, **options), place) for version in ("v1", "v1.2"))
    with encoder.threads_of(1):
        versions(old, new, place, seconds=args.seconds)
        embeddings(old, place, seconds=args.seconds)


def cases(request: Request, place: torch.device) -> dict[str, Case]:
    """The cases of one version by size and shape."""
    found = encoder.cases(request, place, threads=1)
    return {f"{c.size} T{c.periods}x{c.window_px}/{c.patch_px}": c for c in found}


def versions(old: dict[str, Case], new: dict[str, Case], place: torch.device, *, seconds: float) -> None:
    print("| size, shape | v1 / v1.2 GFLOP, attention counted | without attention | time | published (MACs) |")
    print("|---|---|---|---|---|")
    for name in [name for name in old if name in new]:
        timing.forget(place)
        pair = [(case, load(case.model)) for case in (new[name], old[name])]
        works = [window_work(model.card, case.grid, case.periods) for case, model in pair]
        (first, _), (second, _) = pair
        built = [encoder.build_encoder(case, place, model) for case, model in pair]
        ratio = compare(built[0], built[1], place, seconds=seconds, batches=(first.batch, second.batch))
        whole, plain = (counts(works[1]) / counts(works[0]) for counts in (total, without_attention))
        print(f"| {name} | {whole:.2f} | {plain:.2f} | {spread(ratio)} | {PUBLISHED_VERSIONS} |", flush=True)


def embeddings(old: dict[str, Case], place: torch.device, *, seconds: float) -> None:
    print(
        "\n| size, shape | convolution / product: time | embedding alone | difference | per-pixel layer / product: ",
        end="",
    )
    print("time | GFLOP | published (training) |")
    print("|---|---|---|---|---|---|---|")
    for name, case in old.items():
        if case.patch_px != KERNEL_PX:  # at other patches the window is resized first
            continue
        timing.forget(place)
        model, linear = load(case.model), with_pixel_layer(case.size)
        product = encoder.build_encoder(case, place, model)
        convolved = encoder.build_encoder(
            case, place, model, alter=lambda built, model=model: by_convolution(built, model)
        )
        batches = (case.batch, case.batch)
        slower = compare(product, convolved, place, seconds=seconds, batches=batches)
        apart = float((product.run() - convolved.run()).norm() / product.run().norm())
        alone = compare(*embeddings_alone(case, place, model), place, seconds=seconds / 3, batches=batches)
        pixelwise = encoder.build_encoder(case, place, linear)
        other = compare(product, pixelwise, place, seconds=seconds, batches=batches)
        work = [total(window_work(each.card, case.grid, case.periods)) for each in (model, linear)]
        print(
            f"| {name} | {spread(slower)} | {spread(alone)} | {apart:.0e} | {spread(other)} | {work[1] / work[0]:.2f} "
            f"| {PUBLISHED_EMBEDDING} |",
            flush=True,
        )


def compare(
    first: encoder.Built, second: encoder.Built, place: torch.device, *, seconds: float, batches: tuple[int, int]
) -> timing.Spread:
    """How many times longer an image takes in the second, quartiles of the pairs."""
    for built in (first, second):
        timing.warm(built.run, place)
    ratio, scale = timing.duel(first.run, second.run, place, seconds=seconds).ratio, batches[0] / batches[1]
    return replace(ratio, low=ratio.low * scale, median=ratio.median * scale, high=ratio.high * scale)


def embeddings_alone(case: Case, place: torch.device, model: Checkpoint) -> tuple[encoder.Built, encoder.Built]:
    """The patch embedding without the blocks: as one product, and as torch's convolution."""
    return tuple(
        encoder.build_encoder(case, place, model, alter=lambda built, alter=alter: Alone(alter(built)))
        for alter in (lambda built: built, lambda built: by_convolution(built, model))
    )


class Alone(nn.Module):
    """The patch embedding of an encoder of one sensor."""

    def __init__(self, built: Encoder) -> None:
        super().__init__()
        self.embed = built.embeds[0]

    def forward(self, pixels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.embed(pixels[0])


class ByConvolution(nn.Module):
    """v1's patch embedding at patch 8 with torch's convolution, one per band set."""

    def __init__(self, embed: nn.Module, model: Checkpoint, sensor: str) -> None:
        super().__init__()
        self.sizes = embed.sizes
        self.register_buffer("bias", embed.bias)
        dtype = embed.sets[0].weight.dtype
        for i in range(len(self.sizes)):
            weight = model.tensors[f"{patch_stem(sensor, i)}.proj.weight"]
            self.register_buffer(f"weight{i}", weight.to(dtype))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        groups = pixels.flatten(0, 1).split(self.sizes, dim=1)  # (w t, band, row, col) each
        weights = [getattr(self, f"weight{i}") for i in range(len(self.sizes))]
        parts = [F.conv2d(g.to(w.dtype), w, stride=w.shape[-1]) for g, w in zip(groups, weights, strict=True)]
        x = torch.stack(parts, dim=-1).permute(0, 2, 3, 4, 1)  # (w t, gh, gw, band set, dim)
        return (x.unflatten(0, pixels.shape[:2]) + self.bias).flatten(1, 4)


def by_convolution(built: Encoder, model: Checkpoint) -> Encoder:
    """The same encoder with torch's convolution."""
    built.embeds = nn.ModuleList(
        ByConvolution(embed, model, sensor) for embed, sensor in zip(built.embeds, built.sensors, strict=True)
    )
    return built


def with_pixel_layer(size: str) -> Checkpoint:
    """v1's three band sets and blocks with the linear embedding of v1.1: no released model, for timing only."""
    hidden = untrained.random_config("v1.1", size if size != "large" else "base").hidden
    config = replace(untrained.random_config("v1", size), version="v1.1", hidden=hidden, sensors=default_sensors("v1"))
    tensors, digest = untrained.random_tensors(config, seed=0)
    card = replace(
        load(f"random:v1-{size}:0").card,
        version="v1.1",
        hidden=hidden,
        sha256=digest,
        parameters=parameters(config),
    )
    return Checkpoint(card=card, config=config, tensors=tensors)


def total(work: Work) -> float:
    return work.total


def without_attention(work: Work) -> float:
    return work.total - work.attention - work.pooler_attention


def spread(found: timing.Spread) -> str:
    return f"**{found.median:.2f}** ({found.low:.2f}-{found.high:.2f} of {found.count})"


if __name__ == "__main__":
    main()
