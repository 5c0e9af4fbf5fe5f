"""Every table of the paper, and every figure, from attempts, metrics and samples files only.

    python -m paper.tables show FILE... --k 1 2 4         # what attempts files say, as evaluate.py prints it
    python -m paper.tables table 8 RUN...                 # RUN: runs/NAME and its stages; NAME-seedN for each seed
    python -m paper.tables table 12 RUN... --problem ID   # two methods' attempts at one problem, side by side
    python -m paper.tables figure 5 RUN... --out FILE     # needs matplotlib

Tables: 1, 4 to 8 and 12 to 20 of the paper. Its own figures stand in columns marked (paper), or (paper, APPS)
where it measured on APPS alone, beside the model of the same name or the one that --paper-model names; what is
absent prints `-`. A cell is mean ± standard deviation over training seeds; of an inference-only method, or of
one seed, mean [95 % bootstrap interval over problems]. Where a world makes posteriors known, pass@K is the
posterior-averaged one (--realised: that of the verdicts) and the ceilings stand with it. A * marks CPPO above
the strongest other method, p < 0.05, paired bootstrap.
"""

import argparse
import itertools
import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import metrics
from paper import numbers as paper
from paper.attempts import TOKENS_PER, Evaluation, decoded, has, load, majority, outcomes, passed, posterior, render, scores, solved, texts, tuple_scores, tuples

SYSTEMS = {     # row of the tables -> stage of the run that the model comes from / method of evaluate.py
    "Direct Solve": "base/direct", "Plan-and-Solve": "base/plan-and-solve", "PlanSearch": "base/plansearch",
    "Sketch-then-Solve": "base/sketch", "Self-Consistency": "base/self-consistency",
    "Fixed-Strategy Ensemble": "base/fixed", "GRPO": "grpo/direct", "Pass@K Training": "passk/direct",
    "PKPO": "pkpo/direct", "UpSkill": "upskill/skills", "Tuple Planner SFT": "sft/tuple",
    "+ RM warm-up": "warmup/tuple", "CPPO": "cppo/tuple", "CPPO, shuffled": "cppo/tuple-shuffled"}
STAGES = ("Direct Solve", "Tuple Planner SFT", "+ RM warm-up", "CPPO")      # Table 5
VARIANTS = {"CPPO (J R_out)": "cppo/tuple", "without J (R_out)": "cppo-outcome/tuple",
            "J alone": "cppo-gate/tuple", "M = 4": "cppo-m4/tuple", "M = 2": "cppo-m2/tuple",
            "M = 1": "cppo-m1/tuple"}                                       # Table 6
SWEEP = (1, 2, 4, 8, 16, 20, 24)                                            # Table 20
BENCHMARKS = {"apps": "APPS", "cc": "CodeContests", "lcb": "LCBv6", "apps-500": "APPS-500", "lcb-500": "LCBv6-500"}
NOT_APPS = ("CodeContests", "LCBv6", "LCBv6-500", "execution", "test-output")
CEILINGS = ("constant", "independent", "coordinated")
SAMPLED_BY = ("num_strategies", "temperature", "top_k", "top_p", "max_plan_tokens", "max_solve_tokens", "prompts_sha256")

Values = Callable[[Evaluation], np.ndarray]     # one number for each problem, or each tuple, of an evaluation


# ------------------------------------------------------------------------------------------ runs

@dataclass
class Runs:
    """Evaluations, one for each seed, by (model, benchmark, system)."""
    found: dict[tuple[str, str, str], list[Evaluation]]
    realised: bool = False
    paper_model: str | None = None
    labels: str | None = None       # file of annotators' labels, which may validate D_alg

    def places(self, of_programs: bool = True) -> Iterator[tuple[str, str, dict]]:
        """Every model on every benchmark, and the cells that say so. Benchmarks whose outputs are predicted are for
        majority votes alone (Table 7): pass@K is of programs."""
        predicted = {key[:2] for key, found in self.found.items() if has(found[0], "answer") and not has(found[0], "program")}
        for model, benchmark in dict.fromkeys((model, benchmark) for model, benchmark, _ in self.found):
            if not (of_programs and (model, benchmark) in predicted):
                yield model, benchmark, {"model": model, "benchmark": benchmark}

    def get(self, model: str, benchmark: str, row: str, k: int = 1) -> list[Evaluation]:
        """Evaluations with K attempts or more, of a row of the tables, or of a system by its own name."""
        return [e for e in self.found.get((model, benchmark, SYSTEMS.get(row, row)), []) if e.made >= k]

    def passing(self, k: int) -> Values:
        """pass@K, posterior-averaged where that is known."""
        def of(evaluation: Evaluation) -> np.ndarray:
            averaged = not self.realised and has(evaluation, "posterior")
            return outcomes(evaluation, k, score=posterior if averaged else solved)
        return of

    def pass_cell(self, model: str, benchmark: str, row: str, k: int = 4) -> str | None:
        return cell(self.get(model, benchmark, row, k), self.passing(k), is_trained(row))

    def ceiling(self, model: str, benchmark: str, k: int, name: str) -> float | None:
        cards = [e.card for key, found in self.found.items() if key[:2] == (model, benchmark) for e in found]
        known = [card["ceilings"] for card in cards if str(k) in (card.get("ceilings") or {})]
        return known[0][str(k)][name] if known else None

    def ceilings(self, model: str, benchmark: str, k: int) -> dict[str, float | None]:
        return {f"ceiling: {name}": self.ceiling(model, benchmark, k, name) for name in CEILINGS}

    def printed(self, table: dict, row: str, model: str) -> dict[str, str]:
        """The paper's cells of a row, under names of their own."""
        cells = table.get((row, model)) or table.get((row, self.paper_model)) or {}
        return {f"{name} (paper)": text for name, text in cells.items()}

    def printed_of_apps(self, table: dict, row: str, model: str, benchmark: str) -> dict[str, str]:
        """The same of a table that is about APPS: nothing beside the paper's other benchmarks."""
        cells = {} if benchmark in NOT_APPS else self.printed(table, row, model)
        return {name.replace("(paper)", "(paper, APPS)"): text for name, text in cells.items()}

    def d_alg(self) -> str:
        """Its name in tables: marked until a label file clears F.2's bar."""
        found = reliability(self.labels) if self.labels else {"kappa": float("nan"), "macro-F1": float("nan")}
        return "D_alg" if metrics.is_validated(found["kappa"], found["macro-F1"]) else "D_alg (unvalidated)"


def find(runs: Iterable[str], realised: bool = False, paper_model: str | None = None, labels: str | None = None) -> Runs:
    """The evaluations under runs/NAME/eval (of the base model) and runs/NAME/STAGE/eval."""
    found = defaultdict(list)
    for run in map(Path, runs):
        paths = sorted(p for p in run.rglob("eval/*") if p.name.endswith((".jsonl", ".jsonl.gz")))
        if not paths:
            raise ValueError(f"{run} holds no attempts (eval/*.jsonl): evaluate.py writes them")
        for path in paths:
            evaluation = load(path)
            if not evaluation.setting:
                raise ValueError(f"{path} is there without the .json that evaluate.py writes beside it")
            stage, setting = path.parent.parent.relative_to(run).as_posix(), evaluation.setting
            system = f"{'base' if stage == '.' else stage}/{setting['method']}"
            system += "-shuffled" * setting["shuffle_strategies"]
            benchmark = BENCHMARKS.get(setting["benchmark"], setting["benchmark"])
            seeds = found[re.sub(r"-seed\d+$", "", run.name), benchmark, system]
            if seeds and seeds[0].problems.keys() != evaluation.problems.keys():
                raise ValueError(f"{path} and {seeds[0].path} are seeds of one method on different problems")
            other = [name for name in SAMPLED_BY if seeds and seeds[0].setting.get(name) != setting.get(name)]
            if other:
                raise ValueError(f"{path} and {seeds[0].path} are seeds of one method with another {other[0]}")
            evaluation.problems = dict(sorted(evaluation.problems.items()))
            seeds.append(evaluation)
    return Runs(dict(found), realised, paper_model, labels)


# ------------------------------------------------------------------------------------------ cells

def values(seeds: list[Evaluation], of: Values) -> np.ndarray:
    """(seeds, problems)"""
    return np.array([of(evaluation) for evaluation in seeds])


def mean(seeds: list[Evaluation], of: Values) -> float | None:
    return float(np.mean([of(evaluation).mean() for evaluation in seeds])) if seeds else None


def cell(seeds: list[Evaluation], of: Values, trained: bool = True) -> str | None:
    """Mean with its spread: over training seeds, or over problems."""
    if not seeds:
        return None
    if trained and len(seeds) > 1:
        return mean_std([of(evaluation).mean() for evaluation in seeds])
    low, high = metrics.bootstrap_interval(values(seeds, of))
    return f"{mean(seeds, of):.3f} [{low:.3f}, {high:.3f}]"


def mean_std(numbers: list[float]) -> str | None:
    if len(numbers) < 2:
        return f"{numbers[0]:.3f}" if numbers else None
    return "{:.3f} ±{:.3f}".format(*metrics.seed_mean_std(numbers))


def is_trained(row: str) -> bool:
    return not SYSTEMS.get(row, row).startswith("base/")


def difference(a: float | None, b: float | None) -> str | None:
    return None if a is None or b is None else f"{a - b:+.3f}"


# ------------------------------------------------------------------------------------------ tables

def main_table(runs: Runs, rows: Iterable[str] = SYSTEMS, k: int = 4) -> list[dict]:
    """Tables 1, 5, 8, 19: pass@4 of every method on every benchmark."""
    lines: dict[tuple, dict] = {}
    for model, benchmark, _ in runs.places():
        for row in rows:
            found = runs.pass_cell(model, benchmark, row, k)
            if row == "CPPO" and found and is_best(runs, model, benchmark, k):
                found += " *"
            lines.setdefault((model, row), {"method": row, "model": model})[benchmark] = found
        for name, value in runs.ceilings(model, benchmark, k).items():
            lines.setdefault((model, name), {"method": name, "model": model})[benchmark] = value
    for (model, row), line in lines.items():
        line |= runs.printed(paper.MAIN, row, model)
    return [line for line in lines.values() if any(list(line.values())[2:])]


def is_best(runs: Runs, model: str, benchmark: str, k: int) -> bool:
    """CPPO above the strongest other method at p < 0.05, training seeds held fixed (4.3)."""
    of, ours = runs.passing(k), runs.get(model, benchmark, "CPPO", k)
    rivals = [runs.get(model, benchmark, row, k) for row in SYSTEMS if not row.startswith("CPPO")]
    rivals = [seeds for seeds in rivals if seeds and seeds[0].problems.keys() == ours[0].problems.keys()]
    if not rivals:
        return False
    strongest = max(rivals, key=lambda seeds: mean(seeds, of))
    return metrics.paired_bootstrap(values(ours, of), values(strongest, of)).p < 0.05


def token_table(runs: Runs, k: int = 4) -> list[dict]:
    """Tables 4 and 18: decoded tokens a problem, planner and solver apart, and pass@4 for 10,000 of them."""
    lines = []
    for model, benchmark, place in runs.places():
        for row in SYSTEMS:
            seeds, ours = runs.get(model, benchmark, row, k), {}
            if seeds:
                planner, solver = np.mean([decoded(evaluation, k) for evaluation in seeds], axis=0)
                solved, total = mean(seeds, runs.passing(k)), planner + solver
                ours = {"planner tok": planner, "solver tok": solver, "tokens": total, f"pass@{k}": solved,
                        "per 10k": solved / total * TOKENS_PER if total else None}
            known = paper.TOKENS.get(benchmark.removesuffix("-500"))       # the paper's slices
            theirs = (runs.printed(known, row, model) if known else
                      runs.printed_of_apps(paper.TOKENS["APPS"], row, model, benchmark))
            if ours or theirs:
                lines.append({"method": row} | place | ours | theirs)
    return lines


def ablation_table(runs: Runs) -> list[dict]:
    """Table 6, upper blocks: the planner's reward and the number of tuples M."""
    lines = []
    for model, benchmark, place in runs.places():
        for row, system in VARIANTS.items():
            seeds = runs.get(model, benchmark, system)
            judged = [e.card["faults"]["duplicate"] for e in seeds if e.card.get("faults")]
            ours = {"pass@4": runs.pass_cell(model, benchmark, system),
                    "literal duplicates": cell(seeds, duplicates), "judged duplicates": mean_std(judged)}
            theirs = runs.printed_of_apps(paper.ABLATION, row, model, benchmark)
            if any(ours.values()) or theirs:
                lines.append({"variant": row} | place | ours | theirs)
    return lines


def sweep_table(runs: Runs) -> list[dict]:
    """Table 6, lower block: the budget K."""
    lines = []
    for model, benchmark, place in runs.places():
        for k in (2, 4, 8):
            ours = {row: runs.pass_cell(model, benchmark, row, k) for row in ("Direct Solve", "CPPO")}
            theirs = runs.printed_of_apps(paper.BUDGET, str(k), model, benchmark)
            best = {name: value for name, value in runs.ceilings(model, benchmark, k).items() if value is not None}
            if any(ours.values()) or theirs:
                lines.append({"K": k} | place | ours | best | theirs)
    return lines


def duplicates(evaluation: Evaluation) -> np.ndarray:
    return np.array([float(metrics.is_literal_duplicate(texts(evaluation, group))) for group in tuples(evaluation)])


def majority_table(runs: Runs, k: int = 4) -> list[dict]:
    """Table 7: maj@4 where attempts carry answers, and its mean over the benchmarks whose outputs are predicted."""
    lines: dict[tuple, dict] = {}
    means = defaultdict(list)

    def right(evaluation: Evaluation) -> np.ndarray:
        return outcomes(evaluation, k, score=majority)

    with_programs = list(runs.places())
    for place in runs.places(of_programs=False):
        model, benchmark, _ = place
        for row in SYSTEMS:
            seeds = [e for e in runs.get(model, benchmark, row, k) if has(e, "answer")]
            line = lines.setdefault((model, row), {"method": row, "model": model})
            line[benchmark] = cell(seeds, right, is_trained(row))
            means[model, row] += [mean(seeds, right)] if seeds and place not in with_programs else []
    for (model, row), line in lines.items():
        average = float(np.mean(means[model, row])) if means[model, row] else None
        line |= {"average": average} | runs.printed(paper.MAJORITY, row, model)
    return [line for line in lines.values() if any(list(line.values())[2:])]


def side_by_side(runs: Runs, name: str | None, left: str = "CPPO", right: str = "Direct Solve",
                 k: int = 4) -> str:
    """Table 12: two methods' attempts at one problem. Without a name: the first that only the left solves."""
    for model, benchmark, _ in runs.places(of_programs=False):
        a, b = (runs.get(model, benchmark, row) for row in (left, right))
        for problem in (p for p in a[0].problems if p in b[0].problems) if a and b else ():
            one, two = a[0].problems[problem][:k], b[0].problems[problem][:k]
            if problem == name or not name and any(passed(one)) and not any(passed(two)):
                lines = [f"{problem} of {benchmark}, {model} (+ passes, - fails)", f"{left:<52}| {right}"]
                for pair in zip(one, two, strict=False):
                    both = itertools.zip_longest(*map(column_of, pair), fillvalue="")
                    lines += ["-" * 104, *(f"{x:<52}| {y}" for x, y in both)]
                return "\n".join(lines)
    raise ValueError(f"no problem {name!r} that {left} and {right} have both attempted" if name else
                     f"no problem that {left} solves and {right} does not: name one by --problem")


def column_of(attempt: dict) -> list[str]:
    """A strategy, or a program, wrapped for one side of the page."""
    text = attempt["strategy"] or attempt["program"] or attempt["answer"] or "(nothing)"
    lines = [piece for line in text.splitlines() for piece in textwrap.wrap(line, 48, drop_whitespace=False)]
    return [f"{'+' if passed([attempt])[0] else '-'} {lines[0]}", *(f"  {line}" for line in lines[1:])]


def reliability_table(path: str | None) -> list[dict]:
    """Table 13."""
    ours = reliability(path) if path else {}
    return [{"quantity": name, "value": ours.get(name), "value (paper)": text}
            for name, text in paper.RELIABILITY.items()]


def reliability(path: str) -> dict[str, float]:
    """Agreement of two annotators, and the classifier against what they agree on (F.2)."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        first, second, predicted = ([row[name] for row in rows] for name in ("first", "second", "predicted"))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: each line needs first, second and predicted ({error})") from None
    agreed = [(a, guess) for a, b, guess in zip(first, second, predicted, strict=True) if a == b]
    if not agreed:
        raise ValueError(f"{path}: the annotators agree on no line, so there is nothing to measure against")
    consensus, guesses = map(list, zip(*agreed, strict=True))
    return {"kappa": metrics.cohen_kappa(first, second), "accuracy": metrics.accuracy(consensus, guesses),
            "macro-F1": metrics.macro_f1(consensus, guesses)}


def surface(evaluation: Evaluation) -> np.ndarray:
    groups = (texts(evaluation, group) for group in tuples(evaluation))
    return np.array([metrics.d_surf(group) for group in groups if len(group) > 1])


def recorded(name: str) -> Values:
    """D_sem or D_alg of each tuple, as diversity.py wrote it beside the attempts."""
    def of(evaluation: Evaluation) -> np.ndarray:
        groups = (evaluation.diversity or {}).get("groups", [])
        return np.array([group[name] for group in groups if group.get(name) is not None])
    return of


def diversity_cell(seeds: list[Evaluation], of: Values, trained: bool) -> str | None:
    """Averaged over tuples, then over seeds (F.3)."""
    return cell([evaluation for evaluation in seeds if len(of(evaluation))], of, trained)


def diversity_table(runs: Runs) -> list[dict]:
    """Table 14."""
    figures_of, lines = {"D_surf": surface, "D_sem": recorded("D_sem"), runs.d_alg(): recorded("D_alg")}, []
    for model, benchmark, place in runs.places():
        for row in SYSTEMS:
            seeds = runs.get(model, benchmark, row)
            ours = {name: diversity_cell(seeds, of, is_trained(row)) for name, of in figures_of.items()}
            theirs = runs.printed_of_apps(paper.DIVERSITY, row, model, benchmark)
            if any(ours.values()) or theirs:
                lines.append({"method": row} | place | ours | theirs)
    return lines


def inference_table(runs: Runs, of: Values | None = None, printed: dict = paper.INFERENCE) -> list[dict]:
    """Table 15: pass@4 of one checkpoint with joint and with iid inference. Table 16: their D_alg."""
    what, of, lines = runs.d_alg() if of else "pass@4", of or runs.passing(4), []
    for model, benchmark, place in runs.places():
        for row, stage in (("Tuple Planner SFT", "sft"), ("CPPO", "cppo")):
            joint, iid = ([e for e in runs.get(model, benchmark, f"{stage}/{method}", 4) if len(of(e))]
                          for method in ("tuple", "tuple-iid"))
            ours = {"joint": cell(joint, of), "iid": cell(iid, of),
                    "difference": difference(mean(joint, of), mean(iid, of))}
            theirs = runs.printed_of_apps(printed, row, model, benchmark)
            if any(ours.values()) or theirs:
                lines.append({"checkpoint": row} | place | {"of": what} | ours | theirs)
    return lines


def decomposition_table(runs: Runs) -> list[dict]:
    """Table 17: CPPO's gain over direct solving: what survives iid inference, what joint inference adds."""
    lines = []
    for model, benchmark, place in runs.places():
        direct, iid, joint = (mean(runs.get(model, benchmark, row, 4), runs.passing(4))
                              for row in ("Direct Solve", "cppo/tuple-iid", "CPPO"))
        known = None not in (direct, iid, joint) and joint != direct
        ours = {"total gain": difference(joint, direct), "training share": difference(iid, direct),
                "joint-inference share": difference(joint, iid),
                "inference %": f"{(joint - iid) / (joint - direct):.0%}" if known else None}
        theirs = runs.printed_of_apps(paper.DECOMPOSITION, "CPPO", model, benchmark)
        if any(ours.values()) or theirs:
            lines.append(place | ours | theirs)
    return lines


def budget_table(runs: Runs) -> list[dict]:
    """Table 20: what K attempts are made up of, and what every method that made as many reaches."""
    lines = [{"method": "CPPO's rollout"} | {f"K={k}": f"first {k} of a 4-tuple" if k < 4 else
                                              f"{k // 4} 4-tuple{'s' * (k > 4)}" for k in SWEEP}]
    for model, benchmark, place in runs.places():
        for row in SYSTEMS:
            cells = {f"K={k}": runs.pass_cell(model, benchmark, row, k) for k in SWEEP}
            lines += [{"method": row} | place | cells] if any(cells.values()) else []
        for name in CEILINGS:
            cells = {f"K={k}": runs.ceiling(model, benchmark, k, name) for k in SWEEP}
            lines += [{"method": f"ceiling: {name}"} | place | cells] if any(cells.values()) else []
    return lines


TABLES = {1: [main_table], 4: [token_table], 5: [lambda runs: main_table(runs, STAGES)],
          6: [ablation_table, sweep_table], 7: [majority_table], 8: [main_table], 14: [diversity_table], 15: [inference_table],
          16: [lambda runs: inference_table(runs, recorded("D_alg"), paper.INFERENCE_DIVERSITY)],
          17: [decomposition_table], 18: [token_table], 19: [main_table], 20: [budget_table]}


# ------------------------------------------------------------------------------------------ the script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what attempts files say")
    show.add_argument("files", nargs="+", metavar="FILE")
    show.add_argument("--k", type=int, nargs="+", default=[4], metavar="K", help="attempts that count (4)")
    show.add_argument("--select", choices=("first", "last", "random"), default="first", help="which count")
    table = commands.add_parser("table", help="a table of the paper")
    table.add_argument("number", type=int, choices=sorted([*TABLES, 12, 13]))
    table.add_argument("--paper-model", metavar="NAME", help="stands beside models that it does not have")
    table.add_argument("--problem", metavar="ID", help="table 12 (default: one that CPPO alone solves)")
    figure = commands.add_parser("figure", help="a figure of the paper, or `cost`")
    figure.add_argument("number", choices=["2", "3", "4", "5", "6", "7", "8", "9", "cost"])
    figure.add_argument("--out", metavar="FILE", help="the picture (default: figure-N.png)")
    for command in (table, figure):
        command.add_argument("runs", nargs="*", metavar="RUN", help="run folders, a NAME-seedN for each seed")
        command.add_argument("--realised", action="store_true", help="verdicts even if posteriors are known")
        command.add_argument("--labels", metavar="FILE", help="of annotators and the classifier of D_alg: table 13; without "
                             "it, or below F.2's bar, D_alg is marked unvalidated")
    args, rest = parser.parse_known_args(argv)      # argparse takes no RUN behind a flag
    if rest and (args.command == "show" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.runs += rest
    return args


def main(args: argparse.Namespace) -> int:
    try:
        if args.command == "show":
            files = [load(path) for path in args.files]
            print(render([{"file": str(e.path), "K": k} | scores(e, k, args.select)
                          for e in files for k in args.k]))
            print(render([{"file": str(e.path)} | tuple_scores(e) for e in files]))
            return 0
        if args.command == "table" and args.number == 13:
            print(render(reliability_table(args.labels)))
            return 0
        if not args.runs:
            raise ValueError("no RUN given: name run folders, e.g. runs/Qwen3.5-2B runs/Qwen3.5-2B-seed1")
        if args.command == "figure":
            from paper import figures  # matplotlib is optional
            figures.draw(args.number, find(args.runs, args.realised, labels=args.labels), args.runs, args.out)
            return 0
        runs = find(args.runs, args.realised, args.paper_model, args.labels)
        if args.number == 12:
            print(side_by_side(runs, args.problem))
            return 0
        for place, block in enumerate(TABLES[args.number]):
            lines = block(runs)
            print("\n" * bool(place) + (render(lines) if lines else "these runs hold nothing of this table"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
