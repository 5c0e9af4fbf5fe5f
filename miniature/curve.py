"""The course of training runs in numbers: means over successive parts of each stage's metrics.jsonl.

    python -m miniature.curve RUN... [--parts 6]        # RUN: runs/NAME; its stages 3 and 5 are found
"""

import argparse
import json
import os
import sys
from pathlib import Path

from lib import errors
from paper.attempts import render

SHOWN = {"R_out": "R_out", "J": "J", "duplicate_judged": "repeats (judge)", "valid_judged": "valid (judge)", "pass_rate": "pass",
         "strategy_use": "strategy use", "plan/kl": "KL plan", "solve/kl": "KL solve"}


def parts(steps: list[dict], n: int) -> list[dict]:
    """One row for each of n successive parts of about equal length: its steps, and the means of SHOWN where they exist."""
    rows = []
    for part in (steps[i * len(steps) // n:(i + 1) * len(steps) // n] for i in range(n)):
        row: dict = {"steps": f"{part[0]['step']}-{part[-1]['step']}"} if part else {}
        for name, title in SHOWN.items():
            values = [step[name] for step in part if step.get(name) is not None]
            row |= {title: sum(values) / len(values)} if values else {}
        rows += [row] if row else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Means of the metrics of training runs over successive parts.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--parts", type=int, default=6, help="of each stage (default: %(default)s)")
    args = parser.parse_args()
    with errors.explain():
        found = sorted(file for run in args.runs for file in run.glob("*/metrics.jsonl") if file.parent.name not in ("sft", "gate"))
        if not found or args.parts < 1:
            raise ValueError(f"no metrics.jsonl of stages 3 and 5 in {', '.join(map(str, args.runs))}" if not found
                             else f"--parts {args.parts}: must be at least 1")
        for file in found:
            with open(file, encoding="utf-8") as lines:
                steps = [json.loads(line) for line in lines]
            print(f"\n{file.parent}\n{render(parts(steps, args.parts))}")


if __name__ == "__main__":
    main()
