"""The course of training runs in numbers: means over successive parts of each metrics.jsonl.

    python -m miniature.curve RUN... [--parts 6]        # RUN: runs/NAME; its stages 3 and 5
"""

from pathlib import Path

from lib import errors, files, flags
from paper.attempts import render

COLUMNS = {"R_out": "R_out", "J": "J", "duplicate_judged": "repeats (judge)",
           "valid_judged": "valid (judge)", "pass_rate": "pass", "strategy_use": "strategy use",
           "plan/kl": "KL plan", "solve/kl": "KL solve"}
WITHOUT_REWARDS = ("sft", "gate")       # stages whose logs hold none of these


def parts(steps: list[dict], n: int) -> list[dict]:
    """A row per part, of n parts of about equal length: its steps, and the means of COLUMNS where
    they exist."""
    rows = []
    for i in range(n):
        part = steps[i * len(steps) // n:(i + 1) * len(steps) // n]
        if not part:
            continue
        row: dict = {"steps": f"{part[0]['step']}-{part[-1]['step']}"}
        for name, title in COLUMNS.items():
            values = [step[name] for step in part if step.get(name) is not None]
            if values:
                row[title] = sum(values) / len(values)
        rows.append(row)
    return rows


@errors.one_line()
def main() -> None:
    parser = flags.Parser("Means of the metrics of training runs over successive parts.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--parts", type=flags.count, default=6, help="of each stage")
    args = parser.parse_args()
    logs = []
    for run in args.runs:
        logs += [path for path in sorted(run.glob("*/metrics.jsonl"))
                 if path.parent.name not in WITHOUT_REWARDS]
    if not logs:
        raise errors.UserError(f"no metrics.jsonl of stages 3 and 5 in "
                               f"{', '.join(map(str, args.runs))}")
    for path in logs:
        steps = [step for _, step in files.read_lines(path)]
        print(f"\n{path.parent}\n{render(parts(steps, args.parts))}")


if __name__ == "__main__":
    main()
