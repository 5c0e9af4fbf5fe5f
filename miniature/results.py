"""RESULTS.md and results/ of the paper in miniature, from what reproduce.py's queue has made so far.

Attempts go compressed to results/, which is all that the paper's tables are made from: they are what tables.py prints. Three
tables are our own: what must hold here, the paper's comparisons with ours beside them, and the gap to the coordinated ceiling
in its three parts. What stands in RESULTS.md below the line MARK was written by hand and stays there.

    python miniature/results.py runs/miniature-seed{0,1,2}      # two of our own tables for any runs in the world
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # when run as a script

import numpy as np

import attempts
import common
import data
import metrics
import paper
import tables
from miniature import world

K = 4
PAPER_MODEL = "Qwen3.5-2B"
IDENTICAL = ("Direct Solve", "Plan-and-Solve", "Sketch-then-Solve", "Self-Consistency", "GRPO", "Pass@K Training", "PKPO")
IID = {"Tuple Planner SFT, iid": "sft/tuple-iid", "CPPO, iid": "cppo/tuple-iid"}
MARK = "<!-- what follows was written by hand -->"


def best_lr(name: str, stage: str) -> str:
    """The learning rate of the sweep with the highest pass@4 on the dev problems, the lowest of equal ones."""
    found = {path.parent.parent.name.removeprefix(f"{name}-lr"): dev_pass(path)
             for path in Path("runs").glob(f"{name}-lr*/dev/{stage}.jsonl")}
    return min(found, key=lambda lr: (-found[lr], float(lr)))


def dev_pass(path: Path) -> float:
    return float(attempts.outcomes(attempts.load(path), K, of=attempts.posterior).mean())


def pack(name: str, out: Path) -> list[Path]:
    """Copy attempts files, compressed, with what stands beside them -> the folders of the runs in `out`."""
    packed = []
    for run in sorted(Path("runs").glob(f"{name}-seed*")):
        for path in sorted(run.rglob("eval/*.json*")):
            to = out / path.relative_to("runs")
            if path.suffix == ".jsonl":
                to.parent.mkdir(parents=True, exist_ok=True)
                to.with_name(to.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            elif path.name.endswith(".json") and path.with_name(path.name.replace(".diversity", "") + "l").exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
        if (out / run.name).exists():
            packed.append(out / run.name)
    return packed


def said(argv: list[str]) -> str:
    """What `python tables.py ...` prints, an error included."""
    text = io.StringIO()
    args = tables.parse_args(argv)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        tables.main(args)
    return re.sub("^error: (.*)", r"- (\1)", text.getvalue().rstrip())


def signed(found: metrics.Comparison) -> str:
    return f"{found.gain:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


class Report:
    """Tables of our own, from the same evaluations as the paper's tables."""

    def __init__(self, runs: tables.Runs, problems: list[data.Problem]):
        self.runs, self.of = runs, runs.passing(K)
        self.model, self.benchmark = next((m, b) for m, b, _ in runs.places())
        known = {p.id: p for p in problems}
        names = next(iter(runs.found.values()))[0].problems
        self.classes = [list(known[name].classes.values()) for name in names]
        self.known = known

    def seeds(self, row: str) -> list[attempts.Evaluation]:
        return self.runs.get(self.model, self.benchmark, row)

    def values(self, row: str) -> np.ndarray | None:
        """(problems,): pass@4 averaged over posterior and seeds."""
        return tables.values(self.seeds(row), self.of).mean(0) if self.seeds(row) else None

    def ceiling(self, row: str) -> np.ndarray:
        """(problems,): the best of the policy class that a method belongs to."""
        independent = row in IDENTICAL or row in IID
        return np.array([(metrics.independent_ceiling if independent else metrics.coordinated_ceiling)(p, K) for p in self.classes])

    def planned(self, row: str) -> np.ndarray | None:
        """(problems,): what the strategies alone would reach, were each carried out to the letter."""
        if not self.seeds(row) or self.seeds(row)[0].setting["method"] not in attempts.PLANNED:
            return None

        def mass(evaluation: attempts.Evaluation) -> np.ndarray:
            return np.array([self.mass(name, made[:K]) for name, made in evaluation.problems.items()])
        return tables.values(self.seeds(row), mass).mean(0)

    def mass(self, name: str, made: list[dict]) -> float:
        combos = {world.read(a["strategy"]) for a in made if a["strategy"]} - {None}
        hit = {data.outcome_hash(list(world.outcome(combo))) for combo in combos}
        return metrics.posterior_pass(list(hit), self.known[name].classes)

    def gap(self) -> list[dict]:
        """coordinated ceiling - pass@4 = policy class + optimisation + solver noise, mean over problems and seeds."""
        lines = []
        for row, system in (tables.SYSTEMS | IID).items():
            reached, planned, best = self.values(system), self.planned(system), self.ceiling(row)
            if reached is None or row == "CPPO, shuffled":
                continue
            top = np.array([metrics.coordinated_ceiling(p, K) for p in self.classes]).mean()
            lines.append({"method": row, "pass@4": reached.mean(), "ceiling of its class": best.mean(),
                          "coordinated ceiling": top, "gap": top - reached.mean(), "policy class": top - best.mean(),
                          "optimisation": best.mean() - (reached if planned is None else planned).mean(),
                          "solver noise": None if planned is None else planned.mean() - reached.mean()})
        return [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]

    def demands(self) -> list[dict]:
        """What must hold in the miniature world, and whether it does."""
        lines, cppo = [], self.values("CPPO")
        independent = np.array([metrics.independent_ceiling(p, K) for p in self.classes])
        constant = self.runs.ceiling(self.model, self.benchmark, K, "constant")
        for name, limit in (("independent ceiling", independent), ("best constant tuple", np.full_like(independent, constant))):
            if cppo is not None:
                found = metrics.paired_bootstrap(cppo, limit)
                lines.append({"demand": f"CPPO above the {name}", "difference": signed(found), "p": found.p,
                              "holds": "yes" if found.gain > 0 else "NO"})
        for row in IDENTICAL:
            reached = self.values(row)
            if reached is not None:
                above = reached - independent
                error = above.std(ddof=1) / len(above) ** 0.5
                lines.append({"demand": f"{row} not above the independent ceiling", "difference":
                              f"{above.mean():+.3f}, {above.mean() / error:+.1f} standard errors",
                              "holds": "yes" if above.mean() <= 2 * error else "NO"})
        return lines

    def directions(self) -> list[dict]:
        """The paper's comparisons: its difference beside ours, with a paired bootstrap interval over problems."""
        def printed(table: dict, row: str, column: str) -> float | None:
            text = table.get((row, PAPER_MODEL), {}).get(column)
            return float(text.split()[0]) if text else None

        def per_problem(row: str, of) -> dict[str, float]:
            made: dict[str, list[float]] = {}
            for evaluation in self.seeds(row):
                for name, value in of(evaluation):
                    made.setdefault(name, []).append(value)
            return {name: float(np.mean(values)) for name, values in made.items()}

        def repeats(evaluation) -> Iterator[tuple[str, float]]:
            for group in attempts.tuples(evaluation):
                strategies = [a["strategy"] for a in group if a["strategy"]]
                yield group[0]["problem_id"], float(world.duplicates("", strategies) > 0)

        def algorithms(evaluation) -> Iterator[tuple[str, float]]:
            for group in (evaluation.diversity or {}).get("groups", []):
                yield group["problem_id"], group["D_alg"]

        def passing(evaluation) -> Iterator[tuple[str, float]]:
            yield from zip(evaluation.problems, self.of(evaluation), strict=True)

        columns = ("APPS", "CodeContests", "LCBv6")
        theirs = {row: np.mean([printed(paper.MAIN, "CPPO", c) - printed(paper.MAIN, row, c) for c in columns])
                  for row in tables.SYSTEMS if (row, PAPER_MODEL) in paper.MAIN and row != "CPPO"}
        ablated = {row: printed(paper.ABLATION, row, "pass@4") for row in tables.VARIANTS}
        wanted = [("pass@4", "CPPO", row, theirs.get(row), passing) for row in tables.SYSTEMS if not row.startswith("CPPO")]
        wanted += [("pass@4", a, b, ablated[a] - ablated[b], passing) for a, b in
                   (("CPPO (J R_out)", "without J (R_out)"), ("CPPO (J R_out)", "J alone"), ("CPPO (J R_out)", "M = 4"),
                    ("M = 4", "M = 2"), ("M = 2", "M = 1"))]
        wanted += [("tuples with a repeat", "CPPO (J R_out)", "without J (R_out)", 0.08 - 0.32, repeats)]
        wanted += [("pass@4", f"{name}, joint", f"{name}, iid", printed(paper.INFERENCE, name, "difference"), passing)
                   for name in ("Tuple Planner SFT", "CPPO")]
        wanted += [("D_alg", "CPPO", row, printed(paper.DIVERSITY, "CPPO", "D_alg") - printed(paper.DIVERSITY, row, "D_alg"),
                    algorithms) for row in ("Tuple Planner SFT", "PKPO", "Direct Solve")]
        system = tables.VARIANTS | IID | {"Tuple Planner SFT, joint": "sft/tuple", "CPPO, joint": "cppo/tuple"}
        lines = []
        for what, a, b, known, of in wanted:
            line = {"of": what, "difference": f"{a} less {b}", "paper": None if known is None else f"{known:+.3f}"}
            ours, rival = (per_problem(system.get(row, row), of) for row in (a, b))
            both = [name for name in ours if name in rival]
            if both:
                found = metrics.paired_bootstrap([ours[name] for name in both], [rival[name] for name in both])
                decided = found.low > 0 or found.high < 0
                line |= {"here": signed(found), "as in the paper": None if known is None else "open" if not decided else
                         "yes" if (found.gain > 0) == (known > 0) else "NO"}
            lines.append(line)
        return lines


def sweep_table(name: str) -> list[dict]:
    """What every trained method was given, and what it came to on the dev problems."""
    lines = []
    for path in sorted(Path("runs").glob(f"{name}-lr*/dev/*.jsonl"), key=lambda path: (path.name, str(path))):
        stage, folder = path.stem, path.parent.parent / path.stem
        with open(folder / "samples.jsonl", encoding="utf-8") as rows:
            samples = sum(len(json.loads(row)["branches"]) for row in rows)
        steps = [json.loads(row) for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lr = path.parent.parent.name.removeprefix(f"{name}-lr")
        lines.append({"method": stage, "learning rate": lr, "steps": len(steps), "solver attempts": samples,
                      "decoded tokens": f"{sum(m['tokens_sampled'] for m in steps):,}", "dev pass@4": f"{dev_pass(path):.3f}",
                      "taken": "*" if lr == best_lr(name, stage) else None})
    return lines


TITLES = {
    8: "pass@4 of every method (Tables 1, 8, 19)", 5: "the stages", 4: "decoded tokens (Tables 4, 18)",
    6: "ablations and budgets", 7: "majority votes", 14: "diversity", 15: "joint and iid inference", 16: "their diversity",
    13: "reliability of the classifier (nobody annotated; in this world it is exact)", 17: "where the gain comes from",
    20: "budgets K", 12: "side by side"}
FIGURES = {"2": "pass@K over K (Figures 2, 5, 6)", "3": "the gate", "4": "gain against diversity",
           "7": "pass@K as bars", "8": "PKPO's training", "9": "UpSkill's training", "cost": "pass@4 against its cost"}


def report(name: str, out: Path, marks: list[dict], missing: list[str]) -> Path:
    """RESULTS.md and results/ under `out`, from what there is; marks: the queue's, of jobs that are done; missing: the others."""
    packed = pack(name, out / "results")
    if not packed:
        raise ValueError(f"runs/{name}-seed* hold no attempts yet: run the queue first")
    folders = [str(path) for path in packed]
    runs = tables.find(folders, paper_model=PAPER_MODEL)
    made = [evaluation for found in runs.found.values() for evaluation in found]
    commits = ", ".join(sorted({e.card.get("commit", "unknown")[:10] for e in made}))
    ours = Report(runs, data.load_problems(f"runs/{name}-world/heldout.jsonl"))
    hours = sum(mark["cpu_seconds"] for mark in marks) / 3600
    short = f"{out}/results/{name}-seed*".removeprefix("./")
    command = "bash miniature/reproduce.sh"

    def block(title: str, text: str, how: str) -> str:
        beside = f"\n{best}" if "pass@" in text.replace("dev pass@", "") else ""      # dev has others
        return f"### {title}\n\nCommit {commits}: `{how}`\n{beside}\n```\n{text}\n```\n"

    ceilings = {n: runs.ceiling(ours.model, ours.benchmark, K, n) for n in ("constant", "independent", "coordinated")}
    best = f"Best possible pass@{K}: " + ", ".join(f"{n} {v:.3f}" for n, v in ceilings.items()) + ".\n"
    parts = [
        "# Results of the miniature world\n",
        f"Written by `{command}`; {len(folders)} seed(s), {len(ours.classes)} held-out problems, "
        f"{len(marks)} of {len(marks) + len(missing)} jobs, "
        f"{hours:.1f} CPU hours, attempts made at commit {commits}. pass@K is averaged over the posterior of each statement; "
        "brackets are 95 % bootstrap intervals over problems, ± is the standard deviation over training seeds. Columns marked "
        "(paper) are the "
        f"paper's own figures for {PAPER_MODEL}, on real benchmarks: only their directions can be compared.\n",
        "The best that a policy can reach: constant, four programs that never read the statement; independent, four draws from one "
        f"distribution; coordinated, four different programs. {best}"]
    if missing:
        parts.append(f"NOT DONE: {', '.join(missing)}.\n")
    parts += ["## What must hold\n", block("Demands", attempts.render(ours.demands()), f"{command} --report"),
              block("The paper's directions", attempts.render(ours.directions()), f"{command} --report"),
              block("The gap to the coordinated ceiling", attempts.render(ours.gap()), f"{command} --report"),
              "A method's class is independent draws or coordinated tuples. Solver noise is what its strategies would reach, "
              "carried out to the letter, less what its programs reach; without strategies it is part of the optimisation.\n",
              block("The sweep of learning rates, on seed 0", attempts.render(sweep_table(name)), f"{command} --report"),
              "## Tables\n"]
    for number, title in TITLES.items():
        paper_model = [] if number in (12, 13) else ["--paper-model", PAPER_MODEL]
        printed = said(["table", str(number), *folders, *paper_model])
        parts.append(block(f"Table {number}: {title}", printed, shlex.join(["python", "tables.py", "table", str(number), short,
                                                                           *paper_model]).replace("'", "")))
    parts.append("## Figures\n")
    for number, title in FIGURES.items():
        picture, trained = out / "results" / f"figure-{number}.png", number in "389"     # those read the logs of training
        given = [f"runs/{Path(folder).name}" for folder in folders] if trained else folders
        told = said(["figure", number, *given, "--out", str(picture)])
        how = f"python tables.py figure {number} {f'runs/{name}-seed*' if trained else short}"
        parts.append(f"### Figure {number}: {title}\n\nCommit {commits}: `{how}`\n\n"
                     + (f"![]({picture.relative_to(out)})\n" if told == str(picture) else f"{told}\n"))
    path = out / "RESULTS.md"
    by_hand = path.read_text(encoding="utf-8").partition(MARK)[2] if path.exists() else "\n"
    path.write_text("\n".join(parts) + f"\n{MARK}{by_hand}", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="What must hold in the miniature world, and where the gap to its ceiling goes.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs/NAME-seedN")
    parser.add_argument("--problems", default="runs/miniature-world/heldout.jsonl", help="evaluated (default: %(default)s)")
    args = parser.parse_args()
    with common.explain():
        ours = Report(tables.find(args.runs), data.load_problems(args.problems))
        print(attempts.render(ours.demands()), attempts.render(ours.gap()), sep="\n\n")


if __name__ == "__main__":
    main()
