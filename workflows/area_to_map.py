"""From an area and labels to a map, in one go. Safe to run twice: it resumes.

    python workflows/area_to_map.py --config my.yaml --output zurich --labels labels.geojson --column class --max-usd 20

Last tuned 2026-11-21 on the simulated sample (26 km2, 4 periods, nano, patch 4): under a minute on two CPU cores.
Expected for anything else: what ``plan`` prints before the work starts.
"""

from __future__ import annotations

import argparse
import sys

import pipeline
from pipeline.config import load
from pipeline.errors import EarthpressError
from pipeline.run.heads import fit_probe, map_store


def main() -> int:
    """Plan, check the price, run, fit, map; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--config", required=True, help="settings: area, dates, model, catalogue")
    parser.add_argument("--output", required=True)
    parser.add_argument("--labels", required=True, help="labelled points or polygons")
    parser.add_argument("--column", required=True, help="column that holds the class")
    parser.add_argument("--max-usd", type=float, help="do not start when the plan is dearer")
    args = parser.parse_args()

    # 1. Price the work.
    plan = pipeline.plan(load(args.config, values={"output": args.output}))
    usd = plan.estimate.usd
    print(
        f"{len(plan.tasks)} tiles, {plan.estimate.device_s:.0f} device seconds, USD {'unknown' if usd is None else usd}"
    )
    if args.max_usd is not None and (usd is None or usd > args.max_usd):
        print(f"not started: the price is above {args.max_usd} USD or unknown", file=sys.stderr)
        return 75

    # 2. Do it, or what is left of it.
    outcome = pipeline.run(plan)
    print(outcome.text())
    if outcome.exit_code:
        return outcome.exit_code

    # 3. Teach it the classes and map them.
    _, report, head = fit_probe(args.output, args.labels, column=args.column)
    print(report.headline())
    for line in map_store(args.output, head).lines():
        print(line)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EarthpressError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
