"""An attempts file and the numbers in it. evaluate.py writes it and prints them, tables.py compares.

    evaluation = attempts.load("runs/mini/cppo/eval/heldout-tuple.jsonl")
    attempts.outcomes(evaluation, k=4)               # pass@4 of each problem
    print(attempts.render([attempts.figures(evaluation, 4)]))
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import metrics

# attempts at a problem are independent draws of one distribution: pass@k has an unbiased estimate
INDEPENDENT = ("direct", "plan-and-solve", "sketch", "self-consistency", "tuple-iid")
PLANNED = ("tuple", "tuple-iid", "sketch", "plansearch")  # each attempt has a strategy that the model wrote
TOKENS_PER = 10_000  # Table 4: pass@4 per so many decoded tokens


@dataclass
class Evaluation:
    """An attempts file. Attempts of a problem are in order: a smaller K counts the first of them."""
    path: Path
    card: dict  # setting, ceilings, command, commit
    problems: dict[str, list[dict]]
    diversity: dict | None = None  # what diversity.py found for its groups of attempts

    @property
    def setting(self) -> dict:
        return self.card["setting"]

    @property
    def method(self) -> str | None:
        return self.setting.get("method")

    @property
    def made(self) -> int:
        """Attempts at every problem."""
        return min(map(len, self.problems.values()))


def read(path: Path) -> str:
    """A text file, compressed or not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return file.read()


def load(path: str | Path) -> Evaluation:
    """An attempts file (.jsonl or .jsonl.gz) and what stands beside it: its card, and what diversity.py wrote."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no attempts at {path}: evaluate.py writes them")
    problems = defaultdict(list)
    for number, line in enumerate(read(path).removesuffix("\n").split("\n"), 1):
        try:
            attempt = json.loads(line)
            problems[attempt["problem_id"]].append(attempt)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} line {number} is no attempt") from None
    for attempts in problems.values():
        attempts.sort(key=lambda attempt: (attempt["tuple"], attempt["index"]))
    card, diversity = (next((json.loads(read(file)) for file in (beside(path, ending), beside(path, f"{ending}.gz"))
                             if file.exists()), None) for ending in (".json", ".diversity.json"))
    return Evaluation(path, card or {"setting": {}}, dict(problems), diversity)


def beside(path: Path, ending: str) -> Path:
    """The file of an attempts file that ends in .json, .diversity.json ..."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ending)


# ---------------------------------------------------------------------------------------------- numbers

def chosen(evaluation: Evaluation, name: str, k: int, rule: str = "first") -> list[dict]:
    """The K attempts at a problem that count. Tuples are pooled whole (Table 20), so the last or random K are of the first
    K / size tuples, rounded up: for a small K, of one (Appendix G). Programs from elsewhere may be fewer: what is missing
    has failed."""
    attempts = evaluation.problems[name]
    if len(attempts) < k and evaluation.method != "file":
        raise ValueError(f"{evaluation.path} holds {len(attempts)} attempts at {name}, not {k}: evaluate with more")
    size = sum(attempt["tuple"] == attempts[0]["tuple"] for attempt in attempts)
    pool = attempts[: -(-k // size) * size] if size > 1 else attempts
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [pool[i] for i in metrics.choose(len(pool), min(k, len(pool)), rule, rng)]


def passed(attempts: list[dict]) -> list[bool]:
    return [attempt["status"] == "accepted" for attempt in attempts]


def posterior(attempts: list[dict]) -> float:
    """Posterior mass of the distinct classes that the attempts hit."""
    masses = {attempt["outcome"]: attempt["posterior"] for attempt in attempts}
    return metrics.posterior_pass(list(masses), masses)


def majority(attempts: list[dict]) -> float:
    """maj@K, section 4.6: is the most frequent answer right?"""
    winner = metrics.majority([attempt["answer"] for attempt in attempts])
    return float(winner is not None and passed(attempts)[winner])


def outcomes(evaluation: Evaluation, k: int, rule: str = "first", of: Callable | None = None) -> np.ndarray:
    """(problems,) of what `of` makes of each problem's K attempts, in the file's order; None: pass@K."""
    of = of or (lambda attempts: float(any(passed(attempts))))
    return np.array([of(chosen(evaluation, name, k, rule)) for name in evaluation.problems])


def has(evaluation: Evaluation, field: str) -> bool:
    """Whether any attempt carries this optional figure."""
    return any(a.get(field) is not None for attempts in evaluation.problems.values() for a in attempts)


def decoded(evaluation: Evaluation, k: int, rule: str = "first") -> tuple[float, float]:
    """(planner, solver) tokens a problem. A plan of which any attempt counts is paid for as a whole."""
    planner = solver = 0
    for name, attempts in evaluation.problems.items():
        used = chosen(evaluation, name, k, rule)
        draws = {attempt["tuple"] for attempt in used}
        planner += sum(attempt["planner_tokens"] for attempt in attempts if attempt["tuple"] in draws)
        solver += sum(attempt["solver_tokens"] for attempt in used)
    return planner / len(evaluation.problems), solver / len(evaluation.problems)


def tuples(evaluation: Evaluation) -> Iterable[list[dict]]:
    """Attempts in groups of K: the tuples of a tuple method, as many attempts in a row of any other."""
    size = evaluation.setting.get("num_strategies", 4)
    for attempts in evaluation.problems.values():
        yield from (attempts[i: i + size] for i in range(0, len(attempts) - size + 1, size))


def texts(evaluation: Evaluation, group: list[dict]) -> list[str]:
    """What diversity is measured on: the strategies that a planner wrote; programs where there is none (F.1)."""
    what = "strategy" if evaluation.method in PLANNED else "program"
    return [attempt[what] for attempt in group if attempt[what]]


def tuple_figures(evaluation: Evaluation) -> dict[str, float]:
    """Shares of tuples: with a strategy (or program) that stands twice, with two programs of one outcome,
    with the faults that a judge named, accepted by the gate, unparsed."""
    groups = list(tuples(evaluation))
    if not groups:
        return {}
    row = {"literal duplicates": np.mean([metrics.is_literal_duplicate(texts(evaluation, group)) for group in groups])}
    if has(evaluation, "outcome"):      # two attempts did the same, whatever their texts
        seen = ([attempt["outcome"] for attempt in group if attempt["outcome"]] for group in groups)
        row["equal outcomes"] = np.mean([len(set(found)) < len(found) for found in seen])
    row |= {f"judged {name}": share for name, share in (evaluation.card.get("faults") or {}).items()}
    if has(evaluation, "gate"):
        row["accepted"] = np.mean([group[0]["gate"] >= evaluation.card["tau"] for group in groups])
    if evaluation.method in PLANNED:
        row["unparsed"] = np.mean([None in [attempt["strategy"] for attempt in group] for group in groups])
    return {name: float(value) for name, value in row.items()}


def figures(evaluation: Evaluation, k: int, rule: str = "first") -> dict[str, float]:
    """All that one attempts file says at one K, by the name under which `show` prints it."""
    solved = outcomes(evaluation, k, rule)
    low, high = metrics.bootstrap_interval(solved)
    row = {"pass@K": solved.mean(), "low": low, "high": high}
    if evaluation.method in INDEPENDENT and evaluation.made > k:
        verdicts = map(passed, evaluation.problems.values())
        row["unbiased"] = np.mean([metrics.pass_at_k(len(right), sum(right), k) for right in verdicts])
    if has(evaluation, "posterior"):
        row["posterior"] = outcomes(evaluation, k, rule, posterior).mean()
        row |= (evaluation.card.get("ceilings") or {}).get(str(k), {})
    if has(evaluation, "answer"):
        row["maj@K"] = outcomes(evaluation, k, rule, majority).mean()
    planner, solver = decoded(evaluation, k, rule)
    row |= {"planner tok": planner, "solver tok": solver}
    if planner + solver:
        row["pass/10k tok"] = solved.mean() / (planner + solver) * TOKENS_PER
    return {name: float(value) for name, value in row.items()}


# ---------------------------------------------------------------------------------------------- printing

def render(rows: list[dict[str, object]]) -> str:
    """Rows under the union of their column names; an absent cell is `-`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                       for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cell(value: object) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return str(value)


def compare(a: Evaluation, b: Evaluation, k: int, rule: str = "first") -> dict[str, object]:
    """Paired bootstrap over the problems of both, on the posterior-averaged figure where both have it."""
    if one_sided := a.problems.keys() ^ b.problems.keys():
        raise ValueError(f"{a.path} and {b.path} are not of the same problems: one lacks {min(one_sided)!r}")
    averaged = has(a, "posterior") and has(b, "posterior")
    b = Evaluation(b.path, b.card, {name: b.problems[name] for name in a.problems})
    of = posterior if averaged else None
    found = metrics.paired_bootstrap(outcomes(a, k, rule, of), outcomes(b, k, rule, of))
    return {"against": str(b.path), "K": k, "of": "posterior" if averaged else "pass@K"} | found._asdict()
