"""The course of training: means of what was logged, or what checkpoints reach on held-out problems.

    python -m miniature.curve RUN... [--parts 6]        # RUN: runs/NAME; its stages 3 and 5
    python -m miniature.curve STAGE... --heldout FILE [--every 60] [--picture curve.png]

The second form takes folders of stages (runs/NAME/cppo-marginal) whose checkpoints are there
(`train_cppo.py --keep 0`). It evaluates every 60th step once, into STAGE/curve/step_NNNNNN.jsonl,
and prints pass@4, strategy use, equal outcomes, and what is left to the coordinated ceiling,
divided between planner and solver (gap.py). Stages of one name are runs of one recipe: a second
table and the picture show their mean.
"""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from lib import checkpoints, errors, files, flags, metrics
from lib.errors import UserError
from lib.problems import Problem, load_problems
from miniature import gap
from paper import attempts
from paper.attempts import render
from paper.runs import mean_std

COLUMNS = {"R_out": "R_out", "J": "J", "duplicate_judged": "repeats (judge)",
           "valid_judged": "valid (judge)", "pass_rate": "pass", "strategy_use": "strategy use",
           "plan/kl": "KL plan", "solve/kl": "KL solve"}
WITHOUT_REWARDS = ("sft", "gate")       # stages whose logs hold none of these
K = 4
DRAWN = ("pass@4", "strategy use", "equal outcomes")    # a panel each


# --------------------------------------------------------------------------------------------------
# From the logs

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


def print_logs(runs: list[Path], n: int) -> None:
    logs = []
    for run in runs:
        logs += [path for path in sorted(run.glob("*/metrics.jsonl"))
                 if path.parent.name not in WITHOUT_REWARDS]
    if not logs:
        raise UserError(f"no metrics.jsonl of stages 3 and 5 in {', '.join(map(str, runs))}")
    for path in logs:
        steps = [step for _, step in files.read_lines(path)]
        print(f"\n{path.parent}\n{render(parts(steps, n))}")


# --------------------------------------------------------------------------------------------------
# From the checkpoints

def steps_of(stage: Path, every: int) -> dict[int, Path]:
    """Step -> checkpoint, of every so many steps. UserError without any."""
    found = {}
    for path in checkpoints.complete(stage):
        step = int(path.name.removeprefix("step_"))
        if step % every == 0:
            found[step] = path
    if not found:
        raise UserError(f"{stage} holds no checkpoint of every {every}th step: train with --keep 0 "
                        f"and a --save-every that divides {every}")
    return found


def evaluate(checkpoint: Path, heldout: Path, sampling: list[str]) -> attempts.Evaluation:
    """The attempts of a checkpoint, made unless they are there: STAGE/curve/step_NNNNNN.jsonl."""
    out = checkpoint.parent / "curve" / f"{checkpoint.name}.jsonl"
    if not out.exists():
        step = int(checkpoint.name.removeprefix("step_"))
        command = ["evaluate.py", "--method", "tuple", "--model", checkpoint.parent, "--step", step,
                   "--problems", heldout, "--workers", 1, *sampling, "--out", out]
        print(f"evaluating {checkpoint}", file=sys.stderr, flush=True)
        ran = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                             check=False)
        if ran.returncode:
            raise UserError(f"evaluate.py failed on {checkpoint}: {ran.stderr.strip()[-500:]}")
    return attempts.load(out)


def logged(stage: Path, step: int, every: int, name: str) -> float | None:
    """The mean of a metric over the `every` steps up to `step`."""
    values = []
    for _, row in files.read_lines(stage / "metrics.jsonl"):
        if step - every < row["step"] <= step and row.get(name) is not None:
            values.append(row[name])
    return float(np.mean(values)) if values else None


def row_of(stage: Path, step: int, evaluation: attempts.Evaluation, every: int,
           problems: dict[str, Problem]) -> dict[str, object]:
    """A checkpoint's numbers. "left" is the coordinated ceiling less pass@4, the three columns
    after it its parts."""
    by_problem = attempts.outcomes(evaluation, K, score=attempts.posterior)
    low, high = metrics.bootstrap_interval(by_problem)
    split = gap.split(evaluation, problems)
    return {"stage": str(stage), "step": step, "pass@4": by_problem.mean(),
            "interval": f"[{low:.3f}, {high:.3f}]",
            "strategy use": logged(stage, step, every, "strategy_use"),
            "equal outcomes": attempts.tuple_scores(evaluation)["equal outcomes"],
            "obeys": split["obeys"], "left": split["ceiling"] - split["pass"],
            "planner: wasted": split["wasted"], "planner: choice": split["choice"],
            "solver": split["ignored"] - split["luck"]}


def pooled(rows: list[dict]) -> list[dict]:
    """Mean ± std over the runs of a recipe: rows of equal step and stage name."""
    groups = defaultdict(list)
    for row in rows:
        groups[Path(row["stage"]).name, row["step"]].append(row)
    lines = []
    for (name, step), members in sorted(groups.items()):
        line = {"stage": name, "step": step, "runs": len(members)}
        for column in members[0]:
            values = [row[column] for row in members
                      if isinstance(row[column], float) and not np.isnan(row[column])]
            if values:
                line[column] = mean_std(values)
        lines.append(line)
    return lines


def draw(rows: list[dict], out: Path) -> None:
    """Three panels over the step: thin lines for runs, a thick one for the mean of a recipe."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("--picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(DRAWN), figsize=(12, 3.6), layout="constrained")
    recipes = sorted({Path(row["stage"]).name for row in rows})
    for axis, column in zip(axes, DRAWN, strict=True):
        for color, recipe in enumerate(recipes):
            lines, by_step = defaultdict(dict), defaultdict(list)
            for row in rows:
                if Path(row["stage"]).name == recipe and row[column] is not None:
                    lines[row["stage"]][row["step"]] = row[column]
                    by_step[row["step"]].append(row[column])
            for line in lines.values():
                axis.plot(list(line), list(line.values()), color=f"C{color}", linewidth=0.6)
            steps = sorted(by_step)
            axis.plot(steps, [np.mean(by_step[step]) for step in steps], color=f"C{color}",
                      linewidth=2, label=recipe)
        axis.set(xlabel="step", title=column)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def print_checkpoints(stages: list[Path], heldout: Path, every: int, sampling: list[str],
                      picture: Path | None) -> None:
    with errors.user_input():
        problems = {problem.id: problem for problem in load_problems(heldout)}
    rows = []
    for stage in stages:
        for step, checkpoint in steps_of(stage, every).items():
            rows.append(row_of(stage, step, evaluate(checkpoint, heldout, sampling), every,
                               problems))
    print(render(rows))
    print(f"\nmean ± standard deviation over runs\n{render(pooled(rows))}")
    if picture:
        draw(rows, picture)
        print(f"written: {picture}")


@errors.one_line()
def main() -> None:
    parser = flags.Parser("The course of training runs: means of logs, or what checkpoints reach.")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="runs/NAME; with --heldout a stage's "
        "folder, runs/NAME/cppo")
    add("--parts", type=flags.count, default=6, help="of each stage's log")
    add("--heldout", type=Path, metavar="FILE", help="evaluate checkpoints on these problems")
    add("--every", type=flags.count, default=60, metavar="STEPS", help="between two checkpoints")
    add("--picture", type=Path, metavar="FILE", help="draw the curves, too")
    args = parser.parse_args()
    if not args.heldout:
        print_logs(args.runs, args.parts)
        return
    from miniature.reproduce import PROMPTS, settings
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sampling = ["--prompts", PROMPTS, *settings()["SAMPLING"]]
    print_checkpoints(args.runs, args.heldout, args.every, sampling, args.picture)


if __name__ == "__main__":
    main()
