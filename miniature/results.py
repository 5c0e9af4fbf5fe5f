"""Every method of the miniature world beside CPPO, its ceilings and the paper.

    python -m miniature.results RUN...      # RUN: runs/NAME-seedN, or its archive in results/

paper/tables.py makes the paper's tables from the same attempts. Here are the tables that only a
world with known posteriors allows: every method beside its ceilings; the paper's comparisons with
an interval each; the gap to the coordinated ceiling in its parts. `summary` says in sentences what
the tables show.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lib import errors, metrics
from lib.problems import outcome_hash
from miniature import world
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
    """a minus b: the paper's difference, and ours over problems with seeds averaged."""
    quantity: str
    a: str
    b: str
    paper: float | None
    here: metrics.Comparison

    @property
    def agrees(self) -> str | None:
        """Whether our difference has the paper's sign, as far as the 95 % interval tells."""
        if self.paper is None:
            return None
        if self.here.low <= 0 <= self.here.high:
            return "open"
        return "yes" if self.here.gain * self.paper > 0 else "NO"

    def __str__(self) -> str:
        return (f"{self.quantity}, {self.a} minus {self.b} "
                f"({self.here.gain:+.3f}, the paper {self.paper:+.3f})")


def with_interval(difference: metrics.Comparison) -> str:
    return f"{difference.gain:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def planned_comparisons() -> Iterator[tuple]:
    """What is compared: (quantity, a, b, the paper's difference, measure)."""
    for row in SYSTEMS:
        if not row.startswith("CPPO"):
            yield "pass@4", "CPPO", row, printed_gain(row), passing()
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

    def __init__(self, runs: Runs):
        self.runs = runs
        self.place = next(runs.places())
        self.known = {problem.id: problem for problem in world.problems("heldout")}
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
            difference = self.difference(a, b, measure)
            if difference:
                self.comparisons.append(Comparison(quantity, a, b, theirs, difference))

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

    def difference(self, a: str, b: str, measure: Measure) -> metrics.Comparison | None:
        """a minus b over the problems that both have, or None without any."""
        ours, other = self.by_problem(a, measure), self.by_problem(b, measure)
        both = [name for name in ours if name in other]
        if not both:
            return None
        return metrics.paired_bootstrap([ours[name] for name in both],
                                        [other[name] for name in both])

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
# In sentences

def summary(ours: Results) -> list[str]:
    lines = [f"Best possible pass@{K}: constant {ours.constant:.3f}, independent "
             f"{ours.independent.mean():.3f}, coordinated {ours.coordinated.mean():.3f}."]
    if ours.seeds("CPPO"):
        lines += cppo_lines(ours)
    rivals = [gain for row, gain in ours.gains().items() if row in SYSTEMS]
    if rivals:
        closest = min(rivals, key=lambda comparison: comparison.here.gain)
        lines.append(f"The strongest rival is {closest.b}: CPPO minus it "
                     f"{with_interval(closest.here)}, p = {closest.here.p:.3f}.")
    if any(ours.seeds(row) for row in IDENTICAL):
        lines.append(identical_line(ours))
    return lines + agreement_lines(ours)


def cppo_lines(ours: Results) -> list[str]:
    cppo = ours.passed("CPPO")
    by_seed = [attempts.outcomes(evaluation, K, score=attempts.posterior).mean()
               for evaluation in ours.seeds("CPPO")]
    listed = ", ".join(f"{value:.3f}" for value in by_seed)
    lines = [f"CPPO reaches {cppo.mean():.3f} (by seed {listed})."]
    limits = {"independent ceiling": ours.independent,
              "best constant tuple": np.full_like(cppo, ours.constant)}
    for name, limit in limits.items():
        difference = metrics.paired_bootstrap(cppo, limit)
        where = "above, but not surely,"
        if difference.low > 0:
            where = "above"
        elif difference.gain <= 0:
            where = "NOT above"
        lines.append(f"CPPO is {where} the {name}: {with_interval(difference)}, "
                     f"p = {difference.p:.3f}.")
    return lines


def identical_line(ours: Results) -> str:
    """Does any method stand above a ceiling that it cannot pass? Then something is wrong."""
    standing = {row: ours.above_independent(row) for row in IDENTICAL if ours.seeds(row)}
    above = [row for row, (_, in_errors) in standing.items() if in_errors > 2]
    highest = max(standing, key=lambda row: standing[row][1])
    gain, in_errors = standing[highest]
    verdict = f"{', '.join(above)} STAND ABOVE" if above else "none stands above"
    return (f"Of {len(standing)} identically distributed methods {verdict} the independent ceiling "
            f"by more than two standard errors; the highest is {highest}, {gain:+.3f}, "
            f"{in_errors:+.1f} standard errors.")


def agreement_lines(ours: Results) -> list[str]:
    by_verdict = {"yes": [], "NO": [], "open": []}
    for comparison in ours.comparisons:
        if comparison.agrees:
            by_verdict[comparison.agrees].append(str(comparison))
    made = sum(len(group) for group in by_verdict.values())
    lines = [f"Of the paper's {made} comparisons made here, {len(by_verdict['yes'])} have the "
             f"paper's sign."]
    if by_verdict["NO"]:
        lines.append(f"The opposite sign: {'; '.join(by_verdict['NO'])}.")
    if by_verdict["open"]:
        lines.append(f"Open, their intervals contain 0: {'; '.join(by_verdict['open'])}.")
    return lines


# --------------------------------------------------------------------------------------------------
# Tables

def methods_table(ours: Results) -> list[dict]:
    """Every method: pass@4, beside the independent ceiling, beside CPPO, and the paper's gain."""
    gains, lines = ours.gains(), []
    for row in (*SYSTEMS, *IID):
        if not ours.seeds(row):
            continue
        above, in_errors = ours.above_independent(row)
        line = {"method": row,
                "pass@4": ours.runs.pass_cell(ours.place, ALL_SYSTEMS[row], K),
                "minus the independent ceiling": f"{above:+.3f}, {in_errors:+.1f} se"}
        if row in gains:
            theirs = gains[row].paper
            line["CPPO minus it"] = with_interval(gains[row].here)
            line["paper"] = None if theirs is None else f"{theirs:+.3f}"
            line["as in the paper"] = gains[row].agrees
        lines.append(line)
    best = {"constant": ours.constant, "independent": ours.independent.mean(),
            "coordinated": ours.coordinated.mean()}
    for name, value in best.items():
        lines.append({"method": f"ceiling: {name}", "pass@4": f"{value:.3f}"})
    return lines


def comparisons_table(ours: Results) -> list[dict]:
    """The comparisons that methods_table does not show."""
    lines = []
    for c in ours.comparisons:
        if (c.quantity, c.a) == ("pass@4", "CPPO") and c.b not in IID:
            continue
        lines.append({"of": c.quantity, "difference": f"{c.a} minus {c.b}",
                      "here": with_interval(c.here),
                      "paper": None if c.paper is None else f"{c.paper:+.3f}",
                      "as in the paper": c.agrees})
    return lines


def selection_table(ours: Results) -> list[dict]:
    """Appendix G: does it matter which two of a tuple's four attempts count?"""
    solved = {rule: list(ours.by_problem("CPPO", passing(2, rule)).values()) for rule in SELECTED}
    if not solved["first"]:
        return []
    lines = []
    for rule, values in solved.items():
        difference = metrics.paired_bootstrap(values, solved["first"])
        lines.append({"CPPO, pass@2": f"{rule} 2 of 4", "here": f"{np.mean(values):.3f}",
                      "minus first": with_interval(difference), "paper": SELECTED[rule]})
    for name, value in ours.runs.ceilings(ours.place, 2).items():
        lines.append({"CPPO, pass@2": name, "here": value})
    return lines


def contents_table(ours: Results) -> list[dict]:
    """What the strategies of a tuple differ in: the reading, or only the word that they open
    with."""
    lines = []
    for row in ("Tuple Planner SFT", "+ RM warm-up", "CPPO", "without J (R_out)", *IID):
        readings, openings, words = [], [], []
        for evaluation in ours.seeds(row):
            for group in attempts.tuples(evaluation):
                strategies = [a["strategy"] for a in group]
                if None in strategies:          # the plan did not parse
                    continue
                opening = [strategy.split()[0] for strategy in strategies]
                readings.append(len({world.read_strategy(s) for s in strategies} - {None}))
                openings.append(len(set(opening)))
                words += opening
        if words:
            commonest = max(words.count(word) for word in set(words))
            lines.append({"method": row, "readings per tuple": f"{np.mean(readings):.2f}",
                          "first words per tuple": f"{np.mean(openings):.2f}",
                          "share of the commonest first word": f"{commonest / len(words):.2f}"})
    return lines


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
        lines.append({"method": row} | cells)
    return lines


# title -> (table, what to know about it)
TABLES = {
    "Every method": (methods_table, (
        "se: standard errors over problems. paper: CPPO's difference there, mean of its three "
        "benchmarks.")),
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
    args = parser.parse_args()
    ours = Results(find(args.runs))
    print("\n".join(summary(ours)))
    for title, table, note in blocks(ours):
        print(f"\n{title}\n{table}\n{note}".rstrip())


if __name__ == "__main__":
    main()
