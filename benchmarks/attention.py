"""Attention back ends on one thread, interleaved: milliseconds per call and GFLOP/s of scores and values.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--seconds 1.5] [--dtypes float32,bfloat16] [--tokens 64,256,768]
        [--kinds own,sdpa] [--device cpu]

Every column starts from the fused projection (window, token, 3, head, head_dim) with rotary positions and ends with
(window, token, width), as a block of the encoder needs it; ``pairs`` is torch's attention after rotating interleaved
pairs, the form of eager float32. Head widths are those of nano (8 x 16) and tiny (3 x 64), about 1024 tokens per call.
Ratios are medians of paired passes, own against the best of the others.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.encode import attention, rope

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS = ((8, 16), (3, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="time per row")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", default="64,256,768,1024,3072")
    parser.add_argument("--kinds", default="own,sdpa")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    kinds = [kind for kind in args.kinds.split(",") if kind != "own" or attention.use_own()]
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, {datetime.now(UTC):%Y-%m-%d}"
    )
    print(
        f"dtype     heads   tokens windows {''.join(f'{kind:>19}' for kind in (*kinds, '(pairs)'))}  best other / own"
    )
    with torch.inference_mode():
        for dtype in args.dtypes.split(","):
            for heads, dim in HEADS:
                for tokens in (int(text) for text in args.tokens.split(",")):
                    device = torch.device(args.device)
                    calls = calls_of(kinds, getattr(torch, dtype), heads=heads, dim=dim, tokens=tokens, device=device)
                    flops = 4 * tokens * tokens * heads * dim * windows_of(tokens)
                    text = row(calls, flops=flops, seconds=args.seconds, device=device)
                    print(f"{dtype:9} {heads:2} x{dim:3} {tokens:6} {windows_of(tokens):7} {text}", flush=True)


def windows_of(tokens: int) -> int:
    return max(1, 1024 // tokens)


def calls_of(
    kinds: list[str], dtype: torch.dtype, *, heads: int, dim: int, tokens: int, device: torch.device
) -> dict[str, Callable[[], torch.Tensor]]:
    qkv = torch.randn(windows_of(tokens), tokens, 3, heads, dim).to(device, dtype)
    angles = torch.randn(tokens, heads, dim // 2).to(device)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.complex(cos, sin).flatten(1).unsqueeze(1)
    calls = {kind: lambda kind=kind: attention.attend(kind, qkv, cos, sin, None) for kind in kinds}

    def pairs() -> torch.Tensor:
        q, k = rope.rotate_pairs(qkv[:, :, :2], turns).unbind(2)
        mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, qkv[:, :, 2])))
        return mixed.transpose(1, 2).flatten(2)

    return calls | ({"pairs": pairs} if dtype == torch.float32 else {})


def row(calls: dict[str, Callable[[], torch.Tensor]], *, flops: int, seconds: float, device: torch.device) -> str:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        timed(call, device)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            times[name].append(timed(call, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    text = "".join(f"{1e3 * s:>9.2f} ms {flops / s / 1e9:>5.0f} GF" for s in medians.values())
    others = [values for name, values in times.items() if name != "own"]
    if "own" not in times or not others:
        return text
    best = [min(values) for values in zip(*others, strict=True)]
    ratio = statistics.median(b / a for a, b in zip(times["own"], best, strict=True))
    return f"{text}  {ratio:.2f}x"


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
