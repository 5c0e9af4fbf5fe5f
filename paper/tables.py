"""Every table and figure of the paper, from attempts, metrics and samples files alone.

    python -m paper.tables show FILE... --k 1 2 4         # scores of files, as evaluate.py prints
    python -m paper.tables table 8 RUN...                 # RUN: runs/NAME; NAME-seedN per seed
    python -m paper.tables table 12 RUN... --problem ID   # two methods' attempts at one problem
    python -m paper.tables table 13 LABELS                # annotators' labels, see diversity.py
    python -m paper.tables figure 5 RUN... --out FILE     # needs matplotlib

RUN is a folder or a .zip archive of one. Tables: 1, 4 to 8 and 12 to 20 of the paper. The paper's
own numbers stand in columns marked (paper), or (paper, APPS) where it measured on APPS alone,
beside the model of the same name or the one that --paper-model names. What is absent prints `-`.

A cell is mean ± standard deviation over runs [95 % bootstrap interval over problems]; one run has
no ±, and runs of an untrained method differ in the seed of sampling alone. Where a world makes
posteriors known, pass@K is posterior-averaged (--realised: of the verdicts) and the ceilings stand
with it. A * marks CPPO above the strongest other method, p < 0.05, paired bootstrap over problems.

iid inference stands in both readings that Appendix G leaves open: `iid, first` takes the first
strategy of each plan, `iid, any` a random one of the K of each of four plans (from runs that have
drawn as many).
"""

import argparse
import itertools
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from lib import errors, flags, metrics
from lib.errors import UserError
from paper import attempts, numbers
from paper.attempts import SWEEP, TOKENS_PER, Evaluation, render
from paper.runs import (
    CEILINGS,
    CREDITS,
    READINGS,
    SYSTEMS,
    VARIANTS,
    Measure,
    Place,
    Runs,
    algorithmic,
    cell,
    difference,
    duplicates,
    find,
    having,
    mean,
    mean_std,
    reliability,
    semantic,
    surface,
    values,
)

K = 4                                                                   # attempts that count
# Table 5
STAGES = ("Direct Solve", "Tuple Planner SFT", "+ RM warm-up", *CREDITS)
BUDGETS = (2, 4, 8)                                                     # Table 6
WIDTH = 48                                                              # Table 12: of a column

Row = dict[str, object]     # cells by column


def add_row(rows: list[Row], names: Row, ours: Row, theirs: Row) -> None:
    """Append a row, unless neither we nor the paper have a number for it."""
    if theirs or any(value is not None for value in ours.values()):
        rows.append(names | ours | theirs)


# ----------------------------------------------------------------------------------------------
# pass@4

def main_table(runs: Runs, methods: Iterable[str] = SYSTEMS) -> list[Row]:
    """Tables 1, 8, 19: pass@4 of every method, and pass@1 beside it: the first attempt."""
    cells: dict[tuple[str, str], Row] = defaultdict(dict)       # (model, method) -> its columns
    for place in runs.places():
        for method in methods:
            text = runs.pass_cell(place, method)
            if method in CREDITS and text and is_best(runs, place, method):
                text += " *"
            cells[place.model, method][place.benchmark] = text
            first = runs.pass_cell(place, method, 1)
            cells[place.model, method][f"{place.benchmark} pass@1"] = first
        for kind in CEILINGS:
            name = f"ceiling: {kind}"
            cells[place.model, name][place.benchmark] = runs.ceiling(place, K, kind)
            cells[place.model, name][f"{place.benchmark} pass@1"] = runs.ceiling(place, 1, kind)
    rows = []
    for (model, method), ours in cells.items():
        theirs = runs.paper_cells(numbers.MAIN, method, model)
        add_row(rows, {"method": method, "model": model}, ours, theirs)
    return rows


def stage_table(runs: Runs) -> list[Row]:
    """Table 5."""
    return main_table(runs, STAGES)


def is_best(runs: Runs, place: Place, ours_by: str = "CPPO") -> bool:
    """CPPO above the strongest other method at p < 0.05, training seeds held fixed (4.3)."""
    measure = runs.passing(K)
    ours = runs.get(place, ours_by, K)
    others = []
    for method in SYSTEMS:
        seeds = runs.get(place, method, K)
        if method.startswith("CPPO") or not seeds:
            continue
        if seeds[0].problems.keys() == ours[0].problems.keys():
            others.append(seeds)
    if not others:
        return False
    strongest = max(others, key=lambda seeds: mean(seeds, measure))
    return metrics.paired_bootstrap(values(ours, measure), values(strongest, measure)).p < 0.05


def token_table(runs: Runs) -> list[Row]:
    """Tables 4 and 18: decoded tokens per problem, of planner and solver, and pass@4 per 10,000."""
    rows = []
    for place in runs.places():
        for method in SYSTEMS:
            seeds = runs.get(place, method, K)
            ours = token_cells(seeds, runs.passing(K)) if seeds else {}
            # the paper has two such tables; its slices of 500 problems stand beside the whole
            table = numbers.TOKENS.get(place.benchmark.removesuffix("-500"))
            if table:
                theirs = runs.paper_cells(table, method, place.model)
            else:
                theirs = runs.paper_apps_cells(numbers.TOKENS["APPS"], method, place)
            add_row(rows, {"method": method} | place._asdict(), ours, theirs)
    return rows


def token_cells(seeds: list[Evaluation], passing: Measure) -> Row:
    counts = [attempts.decoded(evaluation, K) for evaluation in seeds]
    planner, solver = np.mean(counts, axis=0)
    total = planner + solver
    passed = mean(seeds, passing)
    return {"planner tok": planner, "solver tok": solver, "tokens": total,
            f"pass@{K}": cell(seeds, passing),
            "per 10k": passed / total * TOKENS_PER if total else None}


def ablation_table(runs: Runs) -> list[Row]:
    """Table 6, upper blocks: the planner's reward and the number of tuples M."""
    rows = []
    for place in runs.places():
        for variant, system in VARIANTS.items():
            seeds = runs.get(place, system)
            judged = [seed.card["faults"]["duplicate"] for seed in seeds if seed.card.get("faults")]
            ours = {"pass@4": runs.pass_cell(place, system),
                    "literal duplicates": cell(seeds, duplicates),
                    "judged duplicates": mean_std(judged)}
            theirs = runs.paper_apps_cells(numbers.ABLATION, variant, place)
            add_row(rows, {"variant": variant} | place._asdict(), ours, theirs)
    return rows


def sweep_table(runs: Runs) -> list[Row]:
    """Table 6, lower block: the budget K."""
    rows = []
    for place in runs.places():
        for k in BUDGETS:
            ours = {method: runs.pass_cell(place, method, k)
                    for method in ("Direct Solve", *CREDITS)}
            theirs = runs.paper_apps_cells(numbers.BUDGET, str(k), place)
            if theirs or any(ours.values()):
                ceilings = runs.ceilings(place, k)
                known = {name: value for name, value in ceilings.items() if value is not None}
                rows.append({"K": k} | place._asdict() | ours | known | theirs)
    return rows


def budget_table(runs: Runs) -> list[Row]:
    """Table 20: what K attempts are made up of, and what every method that made them reaches."""
    rows = [{"method": "CPPO's rollout"} | {f"K={k}": rollout_of(k) for k in SWEEP}]
    for place in runs.places():
        for method in SYSTEMS:
            cells = {f"K={k}": runs.pass_cell(place, method, k) for k in SWEEP}
            add_row(rows, {"method": method} | place._asdict(), cells, {})
        for name in CEILINGS:
            cells = {f"K={k}": runs.ceiling(place, k, name) for k in SWEEP}
            add_row(rows, {"method": f"ceiling: {name}"} | place._asdict(), cells, {})
    return rows


def rollout_of(k: int) -> str:
    if k < 4:
        return f"first {k} of a 4-tuple"
    return "1 4-tuple" if k == 4 else f"{k // 4} 4-tuples"


# ----------------------------------------------------------------------------------------------
# Majority votes, diversity, inference

def majority_table(runs: Runs) -> list[Row]:
    """Table 7: maj@4 where attempts have answers, and its mean over the benchmarks whose outputs
    are predicted."""
    cells: dict[tuple[str, str], Row] = defaultdict(dict)       # (model, method) -> its columns
    averaged = defaultdict(list)
    of_programs = list(runs.places())
    for place in runs.places(of_programs=False):
        for method in SYSTEMS:
            seeds = [seed for seed in runs.get(place, method, K) if attempts.has(seed, "answer")]
            text = cell(seeds, majorities)
            cells[place.model, method][place.benchmark] = text
            if seeds and place not in of_programs:
                averaged[place.model, method].append(mean(seeds, majorities))
    rows = []
    for (model, method), ours in cells.items():
        means = averaged[model, method]
        ours["average"] = float(np.mean(means)) if means else None
        theirs = runs.paper_cells(numbers.MAJORITY, method, model)
        add_row(rows, {"method": method, "model": model}, ours, theirs)
    return rows


def majorities(evaluation: Evaluation) -> np.ndarray:
    return attempts.outcomes(evaluation, K, score=attempts.majority)


def diversity_table(runs: Runs) -> list[Row]:
    """Table 14: averaged over tuples, then over seeds (F.3). D_surf and D_sem are of the tuples
    with two texts or more, whose number stands beside them; D_alg is of all."""
    measures = {"D_surf": surface, "D_sem": semantic, runs.d_alg(): algorithmic}
    rows = []
    for place in runs.places():
        for method in SYSTEMS:
            ours = {}
            for name, measure in measures.items():
                ours[name] = cell(having(runs.get(place, method), measure), measure)
            ours["tuples with two texts"] = counts(runs.get(place, method))
            theirs = runs.paper_apps_cells(numbers.DIVERSITY, method, place)
            add_row(rows, {"method": method} | place._asdict(), ours, theirs)
    return rows


def counts(seeds: list[Evaluation]) -> str | None:
    """Tuples that have a D_surf, of how many, over all runs."""
    if not seeds:
        return None
    found = np.concatenate([surface(evaluation) for evaluation in seeds])
    return f"{np.count_nonzero(~np.isnan(found)):,} of {len(found):,}"


def inference_table(runs: Runs) -> list[Row]:
    """Table 15: pass@4 of one checkpoint with joint and with iid inference."""
    return joint_and_iid(runs, "pass@4", runs.passing(K), numbers.INFERENCE)


def inference_diversity_table(runs: Runs) -> list[Row]:
    """Table 16: D_alg of one checkpoint with joint and with iid inference."""
    return joint_and_iid(runs, runs.d_alg(), algorithmic, numbers.INFERENCE_DIVERSITY)


# Tables 15 to 17: checkpoint -> its stage
CHECKPOINTS = {name: SYSTEMS[name].removesuffix("/tuple")
               for name in ("Tuple Planner SFT", *CREDITS)}


def joint_and_iid(runs: Runs, name: str, measure: Measure, table: dict) -> list[Row]:
    rows = []
    for place in runs.places():
        for method, stage in CHECKPOINTS.items():
            joint = having(runs.get(place, f"{stage}/tuple", K), measure)
            ours = {"joint": cell(joint, measure)}
            for reading, inference in READINGS.items():
                iid = having(runs.get(place, f"{stage}/{inference}", K), measure)
                ours[reading] = cell(iid, measure)
                ours[f"joint - {reading}"] = difference(joint, iid, measure)
            theirs = runs.paper_apps_cells(table, method, place)
            names = {"checkpoint": method} | place._asdict() | {"of": name}
            add_row(rows, names, ours, theirs)
    return rows


def decomposition_table(runs: Runs) -> list[Row]:
    """Table 17: CPPO's gain over direct solving: what iid inference keeps, what joint inference
    adds. A row per reading of iid inference."""
    rows = []
    measure = runs.passing(K)
    for place in runs.places():
        direct = runs.get(place, "Direct Solve", K)
        for method, stage in CHECKPOINTS.items():
            if method == "Tuple Planner SFT":
                continue
            joint = runs.get(place, method, K)
            for reading, inference in READINGS.items():
                iid = runs.get(place, f"{stage}/{inference}", K)
                share = None
                if direct and iid and joint:
                    gain = mean(joint, measure) - mean(direct, measure)
                    kept = mean(joint, measure) - mean(iid, measure)
                    share = f"{kept / gain:.0%}" if gain else None
                ours = {"total gain": difference(joint, direct, measure) if iid else None,
                        "training share": difference(iid, direct, measure),
                        "joint-inference share": difference(joint, iid, measure),
                        "inference %": share}
                theirs = runs.paper_apps_cells(numbers.DECOMPOSITION, method, place)
                names = {"checkpoint": method, "reading": reading} | place._asdict()
                add_row(rows, names, ours, theirs)
    return rows


def reliability_table(path: str) -> list[Row]:
    """Table 13."""
    ours = reliability(path)
    return [{"quantity": name, "value": ours[name], "value (paper)": text}
            for name, text in numbers.RELIABILITY.items()]


# ----------------------------------------------------------------------------------------------
# Table 12

def side_by_side(runs: Runs, wanted: str | None) -> str:
    """Attempts of CPPO and of direct solving at one problem; by default at the first that CPPO
    alone solves."""
    for place in runs.places(of_programs=False):
        ours, theirs = runs.get(place, "CPPO"), runs.get(place, "Direct Solve")
        if not ours or not theirs:
            continue
        for problem in ours[0].problems:
            if problem not in theirs[0].problems:
                continue
            left, right = ours[0].problems[problem][:K], theirs[0].problems[problem][:K]
            alone = attempts.solved(left) and not attempts.solved(right)
            if problem == wanted or (alone and not wanted):
                title = f"{problem} of {place.benchmark}, {place.model} (+ passes, - fails)"
                return "\n".join([title, *two_columns(left, right)])
    if wanted:
        raise UserError(f"no problem {wanted!r} that CPPO and Direct Solve have both attempted")
    raise UserError("no problem that CPPO solves and Direct Solve does not: name one by --problem")


def two_columns(left: list[dict], right: list[dict]) -> list[str]:
    width = WIDTH + 4           # the mark, and a gap
    lines = [f"{'CPPO':<{width}}| Direct Solve"]
    for ours, theirs in zip(left, right, strict=False):
        lines.append("-" * 2 * width)
        for a, b in itertools.zip_longest(column_of(ours), column_of(theirs), fillvalue=""):
            lines.append(f"{a:<{width}}| {b}")
    return lines


def column_of(attempt: dict) -> list[str]:
    """The lines of a strategy, or of a program, wrapped for one side of the page."""
    text = attempt["strategy"] or attempt["program"] or attempt["answer"] or "(nothing)"
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, WIDTH, drop_whitespace=False)
    mark = "+" if attempts.solved([attempt]) else "-"
    return [f"{mark} {lines[0]}", *(f"  {line}" for line in lines[1:])]


# ----------------------------------------------------------------------------------------------
# The script

TABLES: dict[int, list[Callable[[Runs], list[Row]]]] = {
    1: [main_table], 4: [token_table], 5: [stage_table], 6: [ablation_table, sweep_table],
    7: [majority_table], 8: [main_table], 14: [diversity_table], 15: [inference_table],
    16: [inference_diversity_table], 17: [decomposition_table], 18: [token_table],
    19: [main_table], 20: [budget_table]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser(__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", description="what attempts files say")
    show.add_argument("files", nargs="+", metavar="FILE", help="attempts files")
    show.add_argument("--k", type=flags.count, nargs="+", default=[K], metavar="K",
                      help="attempts that count")
    show.add_argument("--select", choices=("first", "last", "random"), default="first",
                      help="which attempts count")
    table = commands.add_parser("table", description="a table of the paper")
    table.add_argument("number", type=int, choices=sorted([*TABLES, 12, 13]))
    table.add_argument("--paper-model", metavar="NAME",
                       help="stands beside models that the paper does not have")
    table.add_argument("--problem", metavar="ID", help="table 12; by default one that CPPO alone "
                       "solves")
    figure = commands.add_parser("figure", description="a figure of the paper, or `cost`")
    figure.add_argument("number", choices=["1", "2", "3", "4", "5", "6", "7", "8", "9", "cost"])
    figure.add_argument("--out", metavar="FILE", help="the picture; by default figure-N.png")
    for command in (table, figure):
        command.add_argument("runs", nargs="+", metavar="RUN", help="run folders or archives, "
                             "NAME-seedN per seed; for table 13 the file of labels")
        command.add_argument("--realised", action="store_true",
                             help="count verdicts even if posteriors are known")
        command.add_argument("--labels", metavar="FILE", help="labels of annotators and the "
                             "classifier; without them, or below F.2's bar, D_alg is marked "
                             "unvalidated")
    return parser.parse_args(argv)


def table_text(number: int, runs: Runs, problem: str | None = None) -> str:
    """A table as it prints; 12: the attempts at `problem`."""
    if number == 12:
        return side_by_side(runs, problem)
    blocks = []
    for table in TABLES[number]:
        rows = table(runs)
        blocks.append(render(rows) if rows else "no data for this table in these runs")
    return "\n\n".join(blocks)


def show(paths: list[str], ks: list[int], rule: str) -> None:
    evaluations = [attempts.load(path) for path in paths]
    rows, tuple_rows = [], []
    for evaluation in evaluations:
        name = {"file": str(evaluation.path)}
        tuple_rows.append(name | attempts.tuple_scores(evaluation))
        for k in ks:
            rows.append(name | {"K": k} | attempts.scores(evaluation, k, rule))
    print(render(rows))
    print(render(tuple_rows))


def draw(args: argparse.Namespace) -> None:
    try:
        from paper import figures  # matplotlib is optional
    except ImportError:
        raise UserError("figures need matplotlib: pip install matplotlib") from None
    runs = find(args.runs, args.realised, labels=args.labels)
    print(figures.draw(args.number, runs, args.runs, args.out or f"figure-{args.number}.png"))


def main(args: argparse.Namespace) -> int:
    with errors.one_line():
        if args.command == "show":
            show(args.files, args.k, args.select)
        elif args.command == "figure":
            draw(args)
        elif args.number == 13:
            with errors.user_input():       # a file that is not there
                print(render(reliability_table(args.runs[0])))
        else:
            runs = find(args.runs, args.realised, args.paper_model, args.labels)
            print(table_text(args.number, runs, args.problem))
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
