"""Our encoder beside the reference package, a short version of ``earthpress bench encoder --vs-reference``.

    python benchmarks/encoder.py [--seconds 8] [--sizes nano,tiny] [--output benchmarks/results]

float32, eager, one thread: what every machine can run. The command itself has everything else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from pipeline.bench import encoder, rival, show
from pipeline.bench.rows import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="time per row")
    parser.add_argument("--sizes", default="nano,tiny")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    request = Request.parse(
        versions="v1.2", sizes=args.sizes, precisions="fp32", compiled="off", shapes="T1x64/8,T1x64/4,T1x128/8,T12x64/8"
    )
    console = Console(width=200)
    options = {"seconds": args.seconds, "folder": args.output, "device": "cpu", "note": console.print}
    console.print(show.encoder_table(encoder.bench(request, **options)))
    console.print(show.duel_table(rival.bench(request, rival_compiled=(False,), **options)))


if __name__ == "__main__":
    main()
