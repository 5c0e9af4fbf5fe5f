"""Every method of the miniature world beside CPPO, its ceilings and the paper.

    python -m miniature.results RUN...      # RUN: runs/NAME-seedN, or its archive in results/

paper/tables.py makes the paper's tables from the same attempts. Here are the tables that only a
world with known posteriors allows: every method beside its ceilings; the paper's comparisons with
an interval each; the gap to the coordinated ceiling in its parts. sentences.py says what they show.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lib import errors, metrics
from lib.problems import outcome_hash
from miniature import gap, world
from paper import attempts, numbers
from paper.attempts import Evaluation
from paper.runs import (
    CREDITS,
    READINGS,
    SYSTEMS,
    VARIANTS,
    Runs,
    algorithmic,
    find,
    interval_over_runs,
    mean_std,
    semantic,
    surface,
)

K = 4
PAPER_MODEL = "Qwen3.5-2B"
PAPER_BENCHMARKS = ("APPS", "CodeContests", "LCBv6")
IID = {f"{row}, {reading}": SYSTEMS[row].replace("tuple", inference)
       for row in ("Tuple Planner SFT", *CREDITS) for reading, inference in READINGS.items()}
# Methods whose attempts at a problem are identically distributed: none can pass the independent
# ceiling.
IDENTICAL = ("Direct Solve", "Plan-and-Solve", "Sketch-then-Solve", "Self-Consistency", "GRPO",
             "MaxRL", "Pass@K Training", "PKPO", "PKPO, leave-one-out", *IID)
ALL_SYSTEMS = SYSTEMS | VARIANTS | IID
# Appendix G of the paper: pass@2 by which two of four attempts count.
SELECTED = {"first": "0.518 ±0.048", "last": "0.514 ±0.049", "random": "0.516 ±0.048"}

# (problem id, value) of each problem of an evaluation, or of each of its tuples
Measure = Callable[[Evaluation], Iterable[tuple[str, float]]]


# --------------------------------------------------------------------------------------------------
# Measures

def passing(k: int = K, rule: str = "first") -> Measure:
    """pass@k averaged over the posterior."""
    def measure(evaluation: Evaluation) -> Iterable[tuple[str, float]]:
        solved = attempts.outcomes(evaluation, k, rule, score=attempts.posterior)
        return zip(evaluation.problems, solved, strict=True)
    return measure


def repeats(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """Whether a tuple repeats a method: by the world's rule, never by the gate's."""
    for group in attempts.tuples(evaluation):
        strategies = [a["strategy"] for a in group if a["strategy"]]
        yield group[0]["problem_id"], float(world.duplicates(strategies) > 0)


def per_tuple(of_tuples: Callable[[Evaluation], np.ndarray]) -> Measure:
    """A diversity of paper/runs.py, of the tuples that have one."""
    def measure(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
        values = of_tuples(evaluation)
        for group, value in zip(attempts.tuples(evaluation), values, strict=True):
            if not np.isnan(value):
                yield group[0]["problem_id"], value
    return measure


DIVERSITY = {"D_surf": per_tuple(surface), "D_sem": per_tuple(semantic),
             "D_alg": per_tuple(algorithmic)}


# --------------------------------------------------------------------------------------------------
# The paper's comparisons

def printed(table: dict, row: str, column: str) -> float | None:
    """A number of the paper, or None where it printed none."""
    text = table.get((row, PAPER_MODEL), {}).get(column)
    return float(text.split()[0]) if text else None


def printed_difference(table: dict, row: str, other: str, column: str) -> float | None:
    a, b = printed(table, row, column), printed(table, other, column)
    return None if a is None or b is None else a - b


def printed_gain(row: str) -> float | None:
    """CPPO minus a method at pass@4, mean of the paper's benchmarks."""
    gains = [printed_difference(numbers.MAIN, "CPPO", row, name) for name in PAPER_BENCHMARKS]
    return None if None in gains else float(np.mean(gains))


@dataclass
class Comparison:
    """a minus b: the paper's difference; ours over problems, with runs averaged; and run by run."""
    quantity: str
    a: str
    b: str
    paper: float | None
    here: metrics.Comparison
    problems: int                   # that both have a value for
    by_run: list[float]             # of the runs that have both

    @property
    def over_runs(self) -> tuple[float, float]:
        """95 % interval over runs; one run says nothing about others."""
        return interval_over_runs(self.by_run)

    @property
    def is_open(self) -> bool:
        """Whether the sign may be another one on other problems, or in other runs."""
        low, high = self.over_runs
        return self.here.low <= 0 <= self.here.high or low <= 0 <= high

    @property
    def agrees(self) -> str | None:
        """Whether our difference has the paper's sign, as far as both 95 % intervals tell."""
        if self.paper is None:
            return None
        if self.is_open:
            return "open"
        return "yes" if self.here.gain * self.paper > 0 else "NO"

    def cells(self) -> dict[str, str]:
        return {"here [over problems]": with_interval(self.here),
                "over runs": runs_interval(self.by_run)}

    def __str__(self) -> str:
        theirs = "" if self.paper is None else f"; the paper {self.paper:+.3f}"
        return (f"{self.quantity}, {self.a} minus {self.b} ({with_interval(self.here)}, over runs "
                f"{runs_interval(self.by_run)}{theirs})")


def with_interval(difference: metrics.Comparison) -> str:
    return f"{difference.gain:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def runs_interval(by_run: list[float]) -> str:
    low, high = interval_over_runs(by_run)
    return "one run" if len(by_run) < 2 else f"[{low:+.3f}, {high:+.3f}], {len(by_run)} runs"


def planned_comparisons() -> Iterator[tuple]:
    """What is compared: (quantity, a, b, the paper's difference, measure)."""
    for row in SYSTEMS:
        if not row.startswith("CPPO"):
            yield "pass@4", "CPPO", row, printed_gain(row), passing()
    for ours in CREDITS[1:]:
        yield "pass@4", ours, "CPPO", None, passing()
        yield "pass@1", ours, "CPPO", None, passing(1)
    full, ungated = "CPPO (J R_out)", "without J (R_out)"
    pairs = ((full, ungated), (full, "J alone"), (full, "M = 4"), ("M = 4", "M = 2"),
             ("M = 2", "M = 1"))
    for a, b in pairs:
        yield "pass@4", a, b, printed_difference(numbers.ABLATION, a, b, "pass@4"), passing()
    theirs = printed_difference(numbers.ABLATION, full, ungated, "duplicates")
    yield "tuples with a repeat", full, ungated, theirs, repeats
    for row, reading in itertools.product(("Tuple Planner SFT", "CPPO"), READINGS):
        theirs = printed(numbers.INFERENCE, row, "difference")
        yield "pass@4", row, f"{row}, {reading}", theirs, passing()
        theirs = printed(numbers.INFERENCE_DIVERSITY, row, "difference")
        yield "D_alg", row, f"{row}, {reading}", theirs, DIVERSITY["D_alg"]
    for name, measure in DIVERSITY.items():
        for row in ("Tuple Planner SFT", "PKPO", "Direct Solve"):
            theirs = printed_difference(numbers.DIVERSITY, "CPPO", row, name)
            yield name, "CPPO", row, theirs, measure


# --------------------------------------------------------------------------------------------------
# Results

class Results:
    """The evaluations of runs on the held-out problems, with what the world knows about them."""

    def __init__(self, runs: Runs, setting: str = "open"):
        self.runs, self.setting = runs, setting
        self.place = next(runs.places())
        self.known = {problem.id: problem for problem in world.problems("heldout", setting)}
        evaluations = next(iter(runs.evaluations.values()))
        self.names = list(evaluations[0].problems)
        unknown = set(self.names) - self.known.keys()
        if unknown:
            raise errors.UserError(f"{min(unknown)} is no held-out problem of the miniature world")
        posteriors = [list(self.known[name].classes.values()) for name in self.names]
        # (problems,) each
        self.independent = np.array([metrics.independent_ceiling(p, K) for p in posteriors])
        self.coordinated = np.array([metrics.coordinated_ceiling(p, K) for p in posteriors])
        self.constant = runs.ceiling(self.place, K, "constant")
        self.comparisons = []
        for quantity, a, b, theirs, measure in planned_comparisons():
            made = self.compare(quantity, a, b, theirs, measure)
            if made:
                self.comparisons.append(made)

    def seeds(self, row: str) -> list[Evaluation]:
        return self.runs.get(self.place, ALL_SYSTEMS.get(row, row), K)

    def by_problem(self, row: str, measure: Measure) -> dict[str, float]:
        """The mean over tuples and seeds of each problem."""
        values: dict[str, list[float]] = {}
        for evaluation in self.seeds(row):
            for name, value in measure(evaluation):
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(v)) for name, v in values.items()}

    def passed(self, row: str) -> np.ndarray:
        """(problems,): pass@4."""
        values = self.by_problem(row, passing())
        return np.array([values[name] for name in self.names])

    def by_run(self, row: str, measure: Measure) -> dict[str, float]:
        """The mean over problems of each run."""
        means = {}
        for evaluation in self.seeds(row):
            values = [value for _, value in measure(evaluation)]
            if values:
                means[evaluation.run] = float(np.mean(values))
        return means

    def compare(self, quantity: str, a: str, b: str, theirs: float | None,
                measure: Measure) -> Comparison | None:
        """a minus b over the problems that both have, or None without any."""
        ours, other = self.by_problem(a, measure), self.by_problem(b, measure)
        both = [name for name in ours if name in other]
        if not both:
            return None
        here = metrics.paired_bootstrap([ours[name] for name in both],
                                        [other[name] for name in both])
        first, second = self.by_run(a, measure), self.by_run(b, measure)
        differences = [first[run] - second[run] for run in first if run in second]
        return Comparison(quantity, a, b, theirs, here, len(both), differences)

    def above_independent(self, row: str) -> tuple[float, float]:
        """pass@4 minus the independent ceiling: the mean over problems, and the same in standard
        errors."""
        above = self.passed(row) - self.independent
        standard_error = above.std(ddof=1) / len(above) ** 0.5
        return above.mean(), above.mean() / standard_error

    def gains(self) -> dict[str, Comparison]:
        """CPPO minus each method at pass@4, by the method's name."""
        return {c.b: c for c in self.comparisons if (c.quantity, c.a) == ("pass@4", "CPPO")}


# --------------------------------------------------------------------------------------------------
# Tables

def methods_table(ours: Results) -> list[dict]:
    """Every method: pass@4, beside the independent ceiling, beside CPPO, and the paper's gain."""
    gains, lines = ours.gains(), []
    for row in (*SYSTEMS, *IID):
        if not ours.seeds(row):
            continue
        above, in_errors = ours.above_independent(row)
        system = ALL_SYSTEMS[row]
        line = {"method": row, "runs": len(ours.seeds(row)),
                "pass@1": ours.runs.pass_cell(ours.place, system, 1),
                "pass@4": ours.runs.pass_cell(ours.place, system, K),
                "minus the independent ceiling": f"{above:+.3f}, {in_errors:+.1f} se"}
        if row in gains:
            theirs = gains[row].paper
            line["CPPO minus it"] = with_interval(gains[row].here)
            line["over runs"] = runs_interval(gains[row].by_run)
            line["paper"] = None if theirs is None else f"{theirs:+.3f}"
            line["as in the paper"] = gains[row].agrees
        lines.append(line)
    best = {"constant": ours.constant, "independent": ours.independent.mean(),
            "coordinated": ours.coordinated.mean()}
    for name, value in best.items():
        first = ours.runs.ceiling(ours.place, 1, name)
        lines.append({"method": f"ceiling: {name}", "pass@4": f"{value:.3f}",
                      "pass@1": None if first is None else f"{first:.3f}"})
    return lines


def comparisons_table(ours: Results) -> list[dict]:
    """The comparisons that methods_table does not show."""
    lines = []
    for c in ours.comparisons:
        if (c.quantity, c.a) == ("pass@4", "CPPO") and c.b not in IID:
            continue
        lines.append({"of": c.quantity, "difference": f"{c.a} minus {c.b}"} | c.cells() |
                     {"problems": c.problems,
                      "paper": None if c.paper is None else f"{c.paper:+.3f}",
                      "as in the paper": c.agrees})
    return lines


def selection_table(ours: Results) -> list[dict]:
    """Appendix G: does it matter which two of a tuple's four attempts count?"""
    solved = {rule: list(ours.by_problem("CPPO", passing(2, rule)).values()) for rule in SELECTED}
    if not solved["first"]:
        return []
    lines = []
    first = list(ours.by_run("CPPO", passing(2)).values())
    for rule, values in solved.items():
        difference = metrics.paired_bootstrap(values, solved["first"])
        by_run = list(ours.by_run("CPPO", passing(2, rule)).values())
        differences = [a - b for a, b in zip(by_run, first, strict=True)]
        lines.append({"CPPO, pass@2": f"{rule} 2 of 4", "here": mean_std(by_run),
                      "minus first": with_interval(difference),
                      "over runs": runs_interval(differences), "paper": SELECTED[rule]})
    for name, value in ours.runs.ceilings(ours.place, 2).items():
        lines.append({"CPPO, pass@2": name, "here": value})
    return lines


def contents_table(ours: Results) -> list[dict]:
    """What the strategies of a tuple differ in: the reading, or only the word that they open
    with."""
    lines = []
    for row in ("Tuple Planner SFT", "+ RM warm-up", *CREDITS, "without J (R_out)", *IID):
        by_run = [contents(evaluation) for evaluation in ours.seeds(row)]
        by_run = [found for found in by_run if found]
        if by_run:
            names = ("readings per tuple", "first words per tuple",
                     "share of the commonest first word")
            lines.append({"method": row} | {name: mean_std([run[i] for run in by_run])
                                            for i, name in enumerate(names)})
    return lines


def contents(evaluation: Evaluation) -> tuple[float, float, float] | None:
    """Of one run: readings and first words per tuple that parsed, share of the commonest word.
    None if no tuple did."""
    readings, openings, words = [], [], []
    for group in attempts.tuples(evaluation):
        strategies = [a["strategy"] for a in group]
        if None in strategies:
            continue
        opening = [strategy.split()[0] for strategy in strategies]
        readings.append(len({world.read_strategy(s) for s in strategies} - {None}))
        openings.append(len(set(opening)))
        words += opening
    if not words:
        return None
    commonest = max(words.count(word) for word in set(words))
    return np.mean(readings), np.mean(openings), commonest / len(words)


def strategies_alone(ours: Results, row: str) -> float | None:
    """What a method's strategies would reach if each were carried out to the letter; None for a
    method without strategies."""
    evaluations = ours.seeds(row)
    if evaluations[0].method not in attempts.PLANNED:
        return None
    masses = []
    for evaluation in evaluations:
        for name in ours.names:
            counted = attempts.chosen(evaluation, name, K)
            combos = {world.read_strategy(a["strategy"]) for a in counted if a["strategy"]}
            hit = {outcome_hash(list(world.outcome(combo))) for combo in combos - {None}}
            masses.append(metrics.posterior_pass(list(hit), ours.known[name].classes))
    return float(np.mean(masses))


def gap_table(ours: Results) -> list[dict]:
    """coordinated ceiling - pass@4 = policy class + optimization + solver noise, mean over problems
    and seeds."""
    lines, top = [], ours.coordinated.mean()
    for row in (*SYSTEMS, *VARIANTS, *IID):
        if not ours.seeds(row) or row in ("CPPO, shuffled", "CPPO (J R_out)"):
            continue
        reached, alone = ours.passed(row).mean(), strategies_alone(ours, row)
        best = (ours.independent if row in IDENTICAL else ours.coordinated).mean()
        noise = None if alone is None else alone - reached
        line = {"pass@4": reached, "ceiling of its class": best, "coordinated ceiling": top,
                "gap": top - reached, "policy class": top - best,
                "optimization": best - reached - (noise or 0), "solver noise": noise}
        cells = {name: None if v is None else f"{v:.3f}" for name, v in line.items()}
        cells["pass@4"] = mean_std(list(ours.by_run(row, passing()).values()))
        lines.append({"method": row} | cells)
    return lines


def left_table(ours: Results) -> list[dict]:
    """What separates tuples from the coordinated ceiling, by gap.py: means over runs."""
    lines = []
    for row in ("Tuple Planner SFT", "+ RM warm-up", *CREDITS, *VARIANTS):
        seeds = ours.seeds(row)
        if not seeds or row == "CPPO (J R_out)":
            continue
        split = [gap.split(evaluation, ours.known) for evaluation in seeds]
        left = [part["ceiling"] - part["pass"] for part in split]
        solver = [part["ignored"] - part["luck"] for part in split]
        lines.append({"method": row, "left": mean_std(left),
                      "planner: wasted": mean_std([part["wasted"] for part in split]),
                      "planner: choice": mean_std([part["choice"] for part in split]),
                      "solver": mean_std(solver),
                      "obeys": mean_std([part["obeys"] for part in split
                                         if not math.isnan(part["obeys"])])})
    return lines


# title -> (table, what to know about it)
TABLES = {
    "Every method": (methods_table, (
        "se: standard errors over problems. ± and the intervals over runs (Student's t) are of "
        "runs that share a base model; [ ] without a word are over problems. pass@1: the first "
        "attempt. iid, first and iid, any: Appendix G does not say which strategy of a plan iid "
        "inference takes. paper: CPPO's difference there, mean of its three benchmarks. The last "
        "column is open where either interval contains 0.")),
    "The paper's other comparisons": (comparisons_table, (
        "M = 4, 2, 1 take 1/2, 1/4, 1/8 of CPPO's attempts per step, for as many steps. D_surf, "
        "D_sem and D_alg are of strategies, or of programs where there are none; D_alg uses the "
        "world's own rule, not a model.")),
    "Which two of four attempts count (Appendix G)": (selection_table, ""),
    "What a tuple's strategies differ in": (contents_table, (
        "Of four strategies: different readings, which can solve more; different first words, "
        "which D_surf sees.")),
    "The gap to the coordinated ceiling": (gap_table, (
        "gap = policy class + optimization + solver noise. A method's class is independent draws "
        "or coordinated tuples. Solver noise is what its strategies would reach, carried out to "
        "the letter, minus what its programs reach; without strategies it is part of the "
        "optimization.")),
    "What is left to the coordinated ceiling": (left_table, (
        "Of all tuples that were drawn. left = planner: wasted (strategies that name no reading of "
        "the statement, or one named already) + planner: choice (not the likeliest readings) + "
        "solver (readings named and not carried out, less those carried out and not named). Obeys: "
        "share of programs that do what their strategy says.")),
}


def blocks(ours: Results) -> Iterator[tuple[str, str, str]]:
    """(title, table, what to know about it) of each table that has rows."""
    for title, (table, note) in TABLES.items():
        rows = table(ours)
        if rows:
            yield title, attempts.render(rows), note


@errors.one_line()
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Every method of the miniature world beside CPPO, its ceilings and the paper.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="runs/NAME-seedN, or its archive in results/")
    parser.add_argument("--setting", choices=world.SETTINGS, default="open",
                        help="of the world that the runs are from")
    args = parser.parse_args()
    from miniature import sentences  # which reads what is here
    ours = Results(find(args.runs), args.setting)
    print("\n".join(sentences.summary(ours)))
    for title, table, note in blocks(ours):
        print(f"\n{title}\n{table}\n{note}".rstrip())


if __name__ == "__main__":
    main()
