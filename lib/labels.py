"""Labels of plans, on which the gate is trained and measured: read, written, split, balanced.

Files are JSON lines {"problem_id", "statement", "plan", "label", "kind"}; `python -m
prepare.teacher labels` makes them.
"""

import hashlib
import os
import random
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field

from lib import files
from lib.errors import UserError

POSITIVE = "positive"                       # the `kind` of a label that is 1
HELD_OUT = 0.2                              # share of the problems that `split` holds out


@dataclass
class Label:
    """One judged plan. It has the fields that prompts need, so it can replace a Problem."""
    problem_id: str
    statement: str
    plan: str
    label: int                              # 1 Pass, 0 Fail
    kind: str = ""                          # "positive", or the fault: duplicate, leak, vague, ...
    starter_code: str = ""
    fn_name: str | None = None
    public_tests: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self):
        self.kind = self.kind or (POSITIVE if self.label else "negative")


# --------------------------------------------------------------------------------------------------
# Files

def load_labels(path: str | os.PathLike, problems: dict | None = None) -> list[Label]:
    """The labels of a file. A line without a statement takes it from `problems`, by id. UserError
    names file and line of the first that is no label."""
    labels = []
    for number, row in files.read_lines(path):
        try:
            labels.append(read_label(row, problems or {}))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
    if not labels:
        raise UserError(f"{path} holds no gate labels")
    return labels


def read_label(row: dict, problems: dict) -> Label:
    plan = row.get("plan") if isinstance(row, dict) else None
    if not isinstance(plan, str) or "problem_id" not in row:
        raise UserError('a gate label is an object with "problem_id", "plan" and "label"')
    if row.get("label") not in (0, 1):
        raise UserError(f'"label" must be 1 (Pass) or 0 (Fail), not {row.get("label")!r}')
    problem_id, label = str(row["problem_id"]), int(row["label"])
    if problem_id in problems:
        problem = problems[problem_id]
        given = {name: value for name, value in row.items() if value}
        row = {"statement": problem.statement, "starter_code": problem.starter_code,
               "fn_name": problem.fn_name, "public_tests": problem.public_tests} | given
    if not row.get("statement"):
        raise UserError(f'it has no "statement", and no problem {problem_id!r} is known to '
                        f"take it from; pass the problem file by --problems")
    if not isinstance(row["statement"], str):
        raise UserError(f'"statement" must be text, not {row["statement"]!r:.60}')
    return Label(problem_id, row["statement"], plan, label, row.get("kind") or "",
                 row.get("starter_code") or "", row.get("fn_name"),
                 row.get("public_tests") or [])


def save_labels(path: str | os.PathLike, labels: list[Label],
                p_pass: list[float] | None = None) -> None:
    """Write labels, with a gate's p(Pass) of each if given. The file appears whole or not at
    all."""
    rows = []
    for i, label in enumerate(labels):
        row = {name: value for name, value in asdict(label).items() if value not in ("", None, [])}
        if p_pass:
            row["p_pass"] = p_pass[i]
        rows.append(row)
    files.save_lines(path, rows)


# --------------------------------------------------------------------------------------------------
# Split and balance

def split(labels: list[Label], seed: int = 0) -> tuple[list[Label], list[Label]]:
    """Training and held-out labels, no problem in both. Appendix D holds out 278 of 1,388.

    A problem's side follows from its statement and the seed alone: a pool that grows moves nothing
    to the other side, and one statement under two ids is one problem.
    """
    train, held_out = [], []
    for label in labels:
        words = " ".join(label.statement.split())
        digest = hashlib.sha256(f"{seed}:{words}".encode()).digest()
        if int.from_bytes(digest[:8]) < HELD_OUT * 2 ** 64:
            held_out.append(label)
        else:
            train.append(label)
    return train, held_out


def balance(labels: list[Label], seed: int = 0) -> list[Label]:
    """As many Pass as Fail, problem by problem (Appendix D), with the kinds of fault as even as the
    pool allows.

    A problem that has both gives as many of one as of the other, so that its statement says nothing
    about the label. Problems that have only Pass or only Fail are matched with each other: one
    label from each, then a second from each, until either side has no more.
    """
    rng = random.Random(f"{seed}:balance")
    only_fail, only_pass = [], []           # the labels of a problem that has nothing else
    kinds = Counter()                       # faults taken so far
    chosen = []
    for fails, passes in by_problem(labels, rng):
        if fails and passes:
            pairs = min(len(fails), len(passes))
            chosen += take(fails, pairs, kinds) + take(passes, pairs, kinds)
        elif fails:
            only_fail.append(fails)
        else:
            only_pass.append(passes)
    matched = min(sum(map(len, only_fail)), sum(map(len, only_pass)))
    for groups in (only_fail, only_pass):
        for group in in_rounds(groups)[:matched]:
            chosen += take(group, 1, kinds)
    if not chosen:
        raise UserError(f"cannot balance {len(labels)} gate labels: both Pass and Fail are needed")
    rng.shuffle(chosen)
    return chosen


def by_problem(labels: list[Label], rng: random.Random) -> list[tuple[list[Label], list[Label]]]:
    """The (Fail, Pass) labels of each problem, everything shuffled."""
    groups: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for label in labels:
        groups[label.problem_id][label.label].append(label)
    order = sorted(groups)
    rng.shuffle(order)
    for problem_id in order:
        for side in groups[problem_id]:
            rng.shuffle(side)
    return [groups[problem_id] for problem_id in order]


def take(side: list[Label], n: int, kinds: Counter) -> list[Label]:
    """Remove n labels from one side of a problem, each time of the fault that `kinds` has least
    of, and count them there."""
    taken = []
    for _ in range(n):
        rarest = min(side, key=lambda label: kinds[label.kind])
        if not rarest.label:
            kinds[rarest.kind] += 1
        side.remove(rarest)
        taken.append(rarest)
    return taken


def in_rounds(groups: list[list[Label]]) -> list[list[Label]]:
    """Each group once, then again those of two and more labels, and so on."""
    turns = []
    for turn in range(max(map(len, groups), default=0)):
        turns += [group for group in groups if len(group) > turn]
    return turns
