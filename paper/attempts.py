"""An attempts file and the scores in it. evaluate.py writes it and prints them, tables.py compares.

    evaluation = attempts.load("runs/mini/cppo/eval/heldout-tuple.jsonl")
    attempts.outcomes(evaluation, k=4)              # pass@4 per problem
    print(attempts.render([attempts.scores(evaluation, 4)]))

A file may be compressed (.gz), or a member of an archive:
results/reproduce-seed0.zip/sft/eval/heldout-tuple.jsonl.
"""

import gzip
import json
import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import prompts
from lib import metrics
from lib.errors import UserError

# attempts at a problem are independent draws of one distribution: pass@k has an unbiased estimate
INDEPENDENT = ("direct", "plan-and-solve", "sketch", "self-consistency", "tuple-iid")
PLANNED = ("tuple", "tuple-iid", "sketch", "plansearch")    # the model writes strategies
SWEEP = (1, 2, 4, 8, 16, 20, 24)    # Table 20: the values of K
TOKENS_PER = 10_000                 # Table 4: pass@4 per so many decoded tokens

Score = Callable[[list[dict]], float]       # of the K attempts at a problem


@dataclass(eq=False)
class Evaluation:
    """An attempts file. Attempts of a problem are in order: a smaller K counts the first of
    them."""
    path: Path
    card: dict                          # setting, ceilings, command, commit
    problems: dict[str, list[dict]]     # attempts per problem id
    diversity: dict | None = None       # what diversity.py wrote about its groups of attempts
    run: str = ""                       # NAME of runs/NAME or NAME.zip, where it was found by run

    @property
    def setting(self) -> dict:
        return self.card["setting"]

    @property
    def method(self) -> str | None:
        return self.setting.get("method")

    @property
    def made(self) -> int:
        """Attempts at every problem."""
        return min(len(attempts) for attempts in self.problems.values())


# ----------------------------------------------------------------------------------------------
# Reading

def locate(path: Path) -> Path | zipfile.Path:
    """The file itself, or the member of an archive that ARCHIVE.zip/MEMBER names."""
    for parent in path.parents:
        if parent.suffix == ".zip" and parent.is_file():
            return zipfile.Path(parent, path.relative_to(parent).as_posix())
    return path


def read(path: Path) -> str:
    """A text file, compressed or not. UserError if it is binary."""
    data = locate(path).read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


def beside(path: Path, ending: str) -> Path:
    """The file of an attempts file that ends in .json, .diversity.json ..."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ending)


def read_beside(path: Path, ending: str) -> dict | None:
    for file in (beside(path, ending), beside(path, f"{ending}.gz")):
        if locate(file).exists():
            return json.loads(read(file))
    return None


def load(path: str | Path) -> Evaluation:
    """An attempts file, its card, and what diversity.py wrote about it. UserError if it is none."""
    path = Path(path)
    if not locate(path).exists():
        raise UserError(f"no attempts at {path}: evaluate.py writes them")
    problems = defaultdict(list)
    for number, line in enumerate(read(path).removesuffix("\n").split("\n"), 1):
        try:
            attempt = json.loads(line)
            problems[attempt["problem_id"]].append(attempt)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{path} line {number} is no attempt") from None
    for attempts in problems.values():
        attempts.sort(key=lambda attempt: (attempt["tuple"], attempt["index"]))
    card = read_beside(path, ".json") or {"setting": {}}
    return Evaluation(path, card, dict(problems), read_beside(path, ".diversity.json"))


def paths(run: Path) -> list[Path]:
    """The attempts files of a run: a folder, or an archive of one (RUN.zip)."""
    if run.suffix == ".zip" and run.is_file():
        with zipfile.ZipFile(run) as archive:
            files = [run / name for name in archive.namelist() if "eval/" in name]
    else:
        files = list(run.rglob("eval/*"))
    return sorted(file for file in files if file.name.endswith((".jsonl", ".jsonl.gz")))


# ----------------------------------------------------------------------------------------------
# The attempts that count

def chosen(evaluation: Evaluation, name: str, k: int, rule: str = "first") -> list[dict]:
    """The K attempts at a problem that count.

    Tuples are pooled whole (Table 20), so the last or random K are of the first K / size tuples,
    rounded up: for a small K, of one (Appendix G). Programs from elsewhere may be fewer: missing
    ones count as failed.
    """
    attempts = evaluation.problems[name]
    if len(attempts) < k and evaluation.method != "file":
        raise UserError(f"{evaluation.path} holds {len(attempts)} attempts at {name}, not {k}: "
                        f"evaluate with more")
    size = sum(attempt["tuple"] == attempts[0]["tuple"] for attempt in attempts)
    pool = attempts
    if size > 1:
        pool = attempts[:math.ceil(k / size) * size]
    # by problem: the same attempts count whatever file they are compared with
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    places = metrics.choose(len(pool), min(k, len(pool)), rule, rng)
    return [pool[place] for place in places]


def tuples(evaluation: Evaluation) -> Iterable[list[dict]]:
    """Attempts in groups of K: the tuples of a tuple method, K in a row of any other."""
    size = evaluation.setting.get("num_strategies", 4)
    for attempts in evaluation.problems.values():
        for start in range(0, len(attempts) - size + 1, size):
            yield attempts[start:start + size]


def num_tuples(evaluation: Evaluation) -> int:
    """Plans that were drawn for every problem."""
    return min(len({attempt["tuple"] for attempt in attempts})
               for attempts in evaluation.problems.values())


def any_label(evaluation: Evaluation) -> Evaluation:
    """iid inference in its other reading: of each independent plan of a tuple method the attempt
    at a random place. `evaluate.py --method tuple-iid` takes the first.

    A plan counts with all its tokens. The categories that diversity.py found stay.
    """
    rng = np.random.default_rng(0)
    found = {(record["problem_id"], record["tuple"]): record.get("categories", [])
             for record in (evaluation.diversity or {}).get("groups", [])}
    problems, categories = {}, {}
    for name, attempts in evaluation.problems.items():
        plans = defaultdict(list)
        for attempt in attempts:
            plans[attempt["tuple"]].append(attempt)
        problems[name] = []
        for number, branches in plans.items():
            place = rng.integers(len(branches))
            tokens = sum(attempt["planner_tokens"] for attempt in branches)
            problems[name].append(branches[place] | {"index": 0, "planner_tokens": tokens})
            if len(found.get((name, number), [])) == len(branches):
                categories[name, number] = found[name, number][place]
    card = evaluation.card | {"setting": evaluation.setting | {"method": "tuple-iid"}}
    iid = Evaluation(evaluation.path, card, problems, run=evaluation.run)
    records = []
    for group in tuples(iid):
        keys = [(attempt["problem_id"], attempt["tuple"]) for attempt in group]
        records.append({"problem_id": keys[0][0], "tuple": keys[0][1],
                        "categories": [categories[key] for key in keys if key in categories]})
    if categories:
        iid.diversity = {"groups": records}
    return iid


def texts(evaluation: Evaluation, group: list[dict]) -> list[str]:
    """What diversity is measured on: strategies if the model wrote them, else programs (F.1)."""
    field = "strategy" if evaluation.method in PLANNED else "program"
    return [attempt[field] for attempt in group if attempt[field]]


def has(evaluation: Evaluation, field: str) -> bool:
    """Whether any attempt has this optional field."""
    for attempts in evaluation.problems.values():
        if any(attempt.get(field) is not None for attempt in attempts):
            return True
    return False


# ----------------------------------------------------------------------------------------------
# Scores of K attempts at a problem

def passed(attempts: list[dict]) -> list[bool]:
    return [attempt["status"] == "accepted" for attempt in attempts]


def solved(attempts: list[dict]) -> float:
    """Eq. 1: does any of the K attempts pass?"""
    return float(any(passed(attempts)))


def posterior(attempts: list[dict]) -> float:
    """Posterior mass of the distinct classes that the attempts hit."""
    masses = {attempt["outcome"]: attempt["posterior"] for attempt in attempts}
    return metrics.posterior_pass(list(masses), masses)


def majority(attempts: list[dict]) -> float:
    """maj@K, section 4.6: is the most frequent answer right?"""
    winner = metrics.majority([attempt["answer"] for attempt in attempts])
    return float(winner is not None and passed(attempts)[winner])


def outcomes(evaluation: Evaluation, k: int, rule: str = "first",
             score: Score = solved) -> np.ndarray:
    """(problems,) the score of each problem's K attempts, in the file's order; pass@K by
    default."""
    return np.array([score(chosen(evaluation, name, k, rule)) for name in evaluation.problems])


# ----------------------------------------------------------------------------------------------
# Scores of a file

def decoded(evaluation: Evaluation, k: int, rule: str = "first") -> tuple[float, float]:
    """(planner, solver) tokens per problem. A plan counts as a whole if any attempt of it does."""
    planner = solver = 0
    for name, attempts in evaluation.problems.items():
        counted = chosen(evaluation, name, k, rule)
        draws = {attempt["tuple"] for attempt in counted}
        # written at the first attempt of a draw, which need not be among those that count
        planner += sum(attempt["planner_tokens"] for attempt in attempts
                       if attempt["tuple"] in draws)
        solver += sum(attempt["solver_tokens"] for attempt in counted)
    return planner / len(evaluation.problems), solver / len(evaluation.problems)


def scores(evaluation: Evaluation, k: int, rule: str = "first") -> dict[str, float]:
    """All scores of an attempts file at one K, by the names under which `show` prints them."""
    solves = outcomes(evaluation, k, rule)
    low, high = metrics.bootstrap_interval(solves)
    row = {"pass@K": solves.mean(), "low": low, "high": high}
    if evaluation.method in INDEPENDENT and evaluation.made > k:
        row["unbiased"] = unbiased_pass(evaluation, k)
    if has(evaluation, "posterior"):
        row["posterior"] = outcomes(evaluation, k, rule, posterior).mean()
        ceilings = evaluation.card.get("ceilings") or {}
        row |= ceilings.get(str(k), {})
    if has(evaluation, "answer"):
        row["maj@K"] = outcomes(evaluation, k, rule, majority).mean()
    planner, solver = decoded(evaluation, k, rule)
    row["planner tok"], row["solver tok"] = planner, solver
    if planner + solver:
        row["pass/10k tok"] = solves.mean() / (planner + solver) * TOKENS_PER
    return {name: float(value) for name, value in row.items()}


def unbiased_pass(evaluation: Evaluation, k: int) -> float:
    """pass@k from all attempts, which must be independent draws."""
    estimates = []
    for attempts in evaluation.problems.values():
        right = sum(passed(attempts))
        estimates.append(metrics.pass_at_k(len(attempts), right, k))
    return float(np.mean(estimates))


def tuple_scores(evaluation: Evaluation) -> dict[str, float]:
    """Shares of tuples: with a strategy (or program) that stands twice, with two programs of one
    outcome, with the faults that a judge named, accepted by the gate, unparsed."""
    groups = list(tuples(evaluation))
    if not groups:
        return {}
    row = {"literal duplicates": np.mean(
        [metrics.is_literal_duplicate(texts(evaluation, group)) for group in groups])}
    if has(evaluation, "outcome"):
        row["equal outcomes"] = np.mean([has_equal_outcomes(group) for group in groups])
    for name, share in (evaluation.card.get("faults") or {}).items():
        row[f"judged {name}"] = share
    if has(evaluation, "gate"):
        tau = evaluation.card["tau"]
        row["accepted"] = np.mean([group[0]["gate"] >= tau for group in groups])
    if evaluation.method in PLANNED:
        row["unparsed"] = np.mean([is_unparsed(group) for group in groups])
    return {name: float(value) for name, value in row.items()}


def reply_scores(evaluation: Evaluation) -> dict[str, float]:
    """Shares, as training logs them: of solver replies with several code blocks, and that end
    inside one; of plans that do not parse but have all K labels in other marks."""
    replies, plans = [], []
    for attempts in evaluation.problems.values():
        replies += [attempt["reply"] for attempt in attempts if attempt.get("reply") is not None]
        plans += [plan for attempt in attempts for plan in attempt.get("plans") or ()]
    row = {}
    if replies:
        found = [prompts.find_blocks(reply) for reply in replies]
        row["several blocks"] = np.mean([len(blocks) > 1 for blocks, _ in found])
        row["block cut"] = np.mean([cut for _, cut in found])
    if plans and evaluation.method == "tuple":
        k = evaluation.setting.get("num_strategies", 4)
        row["plan near miss"] = np.mean([is_near_miss(plan, k) for plan in plans])
    return {name: float(value) for name, value in row.items()}


def is_near_miss(plan: str, k: int) -> bool:
    try:
        prompts.parse_plan(plan, k)
    except prompts.PlanError as error:
        return bool(error.near_miss)
    return False


def without(evaluation: Evaluation, names: Collection[str]) -> Evaluation:
    """The evaluation of the other problems."""
    left = {name: made for name, made in evaluation.problems.items() if name not in names}
    return replace(evaluation, problems=left)


def has_equal_outcomes(group: list[dict]) -> bool:
    """Whether two attempts did the same, whatever their texts."""
    outcomes = [attempt["outcome"] for attempt in group if attempt["outcome"]]
    return len(set(outcomes)) < len(outcomes)


def is_unparsed(group: list[dict]) -> bool:
    return any(attempt["strategy"] is None for attempt in group)


def compare(a: Evaluation, b: Evaluation, k: int, rule: str = "first") -> dict[str, object]:
    """Paired bootstrap over the problems of both, posterior-averaged where both have that."""
    one_sided = a.problems.keys() ^ b.problems.keys()
    if one_sided:
        raise UserError(f"{a.path} and {b.path} are not of the same problems: one lacks "
                        f"{min(one_sided)!r}")
    averaged = has(a, "posterior") and has(b, "posterior")
    score = posterior if averaged else solved
    # the problems in the order of a
    b = Evaluation(b.path, b.card, {name: b.problems[name] for name in a.problems})
    result = metrics.paired_bootstrap(outcomes(a, k, rule, score), outcomes(b, k, rule, score))
    row = {"against": str(b.path), "K": k, "of": "posterior" if averaged else "pass@K"}
    return row | result._asdict()


# ----------------------------------------------------------------------------------------------
# Printing

def render(rows: list[dict[str, object]]) -> str:
    """Rows under the union of their column names; an absent cell is `-`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names]
    for row in rows:
        cells.append([render_cell(row.get(name)) for name in names])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0] = line[0].ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def render_cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return str(value)
