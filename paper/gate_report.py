"""Section 4.4: what the gate accepts, beside what the judge and the solver made of the same tuples.

    python -m paper.gate_report runs/NAME

Reads what a run has written: its gate's held-out labels, samples of stage 5, evaluations with
--gate. Prints for each file the AUCs, and per tau a ROC point (judge) and the joint table (solver).
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gate import TAU, acceptance, auc
from lib import errors, flags
from lib.errors import UserError
from paper.attempts import read, render

TAUS = (0.02, 0.05, 0.1, TAU, 0.3, 0.5, 0.7, 0.9)
WRITTEN = ("gate/final/labels_val.jsonl", "cppo*/samples.jsonl", "*/eval/*-tuple.jsonl*",
           "*/eval/*-tuple-seed*.jsonl*")

# p(Pass) of each tuple, None where the plan does not parse; and 1 if it is valid, or solved
Decisions = list[tuple[float | None, int]]


# --------------------------------------------------------------------------------------------------
# Files

def read_decisions(path: Path) -> tuple[Decisions, Decisions]:
    """p(Pass) beside the judge's label of each tuple (1 valid), and beside the solver's outcome
    (1 solved).

    Of a gate's held-out labels, of stage 5's samples.jsonl, or of attempts from `evaluate.py
    --gate`. UserError for any other file.
    """
    judged: Decisions = []
    solved: Decisions = []
    attempts: dict[tuple, tuple[float | None, int]] = {}        # one entry per tuple
    with errors.user_input():
        lines = read(path).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "label" in row:
                judged.append((row.get("p_pass"), int(row["label"])))
            elif "R_plan" in row:
                add_sample(row, judged, solved)
            else:
                add_attempt(row, attempts)
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path} line {number} is no gate label, no tuple of samples.jsonl and "
                            f"no attempt at a tuple") from None
    return judged, solved + list(attempts.values())


def add_sample(row: dict, judged: Decisions, solved: Decisions) -> None:
    if row["faults"] is not None:
        judged.append((row["p_pass"], int(not row["faults"])))
    if row["R_out"] is not None:
        solved.append((row["p_pass"], int(row["R_out"] > 0)))


def add_attempt(row: dict, attempts: dict[tuple, tuple[float | None, int]]) -> None:
    """A tuple is solved if any of its attempts is accepted."""
    key = row["problem_id"], row["seed"], row["tuple"]
    _, solved = attempts.get(key, (None, 0))
    p = None if row["strategy"] is None else row.get("gate")
    attempts[key] = p, int(solved or row["status"] == "accepted")


# --------------------------------------------------------------------------------------------------
# The report

def joint_table(p: list[float], solved: list[int], tau: float) -> dict[str, float | None]:
    """Section 4.4, Figure 3b: gate decision x solver outcome. Only "accepted, solved" has a nonzero
    R_plan.

    Four shares of all tuples, and the solve rate among the accepted and among the rejected (None
    where there are none).
    """
    count = Counter((x >= tau, bool(r)) for x, r in zip(p, solved, strict=True))
    table: dict[str, float | None] = {}
    for accepted, decision in ((True, "accepted"), (False, "rejected")):
        table[f"{decision}, solved"] = count[accepted, True] / len(p)
        table[f"{decision}, failed"] = count[accepted, False] / len(p)
    for accepted, decision in ((True, "accepted"), (False, "rejected")):
        tuples = count[accepted, True] + count[accepted, False]
        table[f"solved | {decision}"] = count[accepted, True] / tuples if tuples else None
    return table


def summary(decisions: Decisions, by: str, what: str) -> str:
    """A line: AUC and counts. A plan that does not parse was not shown to the gate: no AUC counts
    it."""
    p = [p for p, _ in decisions if p is not None]
    outcomes = [outcome for p, outcome in decisions if p is not None]
    area = "no AUC, for all are alike"
    if 0 < sum(outcomes) < len(outcomes):
        area = f"AUC {auc(p, outcomes):.3f}"
    text = f"against the {by}: {area}; {sum(outcomes)} of {len(outcomes)} tuples are {what}"
    unparsed = len(decisions) - len(p)
    return f"{text}, {unparsed} more do not parse" if unparsed else text


def has_gate(decisions: Decisions) -> bool:
    return any(p is not None for p, _ in decisions)


def row_at(tau: float, judged: Decisions, solved: Decisions) -> dict:
    """One line of the table. In the joint table a plan that does not parse is rejected."""
    row = {"tau": tau}
    parsed = [(p, valid) for p, valid in judged if p is not None]
    valid = [valid for _, valid in parsed]
    if 0 < sum(valid) < len(valid):
        metrics = acceptance([p for p, _ in parsed], valid, tau)
        row |= {"valid accepted": metrics["recall"], "faulty accepted": 1 - metrics["specificity"]}
    if has_gate(solved):
        p = [-1.0 if p is None else p for p, _ in solved]
        row |= joint_table(p, [outcome for _, outcome in solved], tau)
    return row


def report(path: Path, taus: Sequence[float] = TAUS) -> str:
    """Section 4.4 of one file."""
    judged, solved = read_decisions(path)
    if not has_gate(judged) and not has_gate(solved):
        return (f"{path}: no p(Pass) in it; train_rm.py, train_cppo.py and `evaluate.py --gate` "
                f"write one")
    lines = [str(path)]
    if has_gate(judged):
        lines.append(summary(judged, "judge", "valid"))
    if has_gate(solved):
        lines.append(summary(solved, "solver", "solved"))
    return "\n".join([*lines, render([row_at(tau, judged, solved) for tau in taus])])


def files_of(path: Path) -> list[Path]:
    """The files of a run's folder that hold gate decisions; a file is itself."""
    if not path.is_dir():
        return [path]
    found = set()
    for pattern in WRITTEN:
        found |= set(path.glob(pattern))
    if not found:
        raise UserError(f"{path} holds none of {', '.join(WRITTEN)}: pass a run's folder, as in "
                        f"runs/NAME")
    return sorted(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser("Section 4.4: what the gate accepts, beside the judge and the solver.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|FILE",
                        help="a run's folder, or one file with gate decisions")
    parser.add_argument("--tau", type=flags.share, nargs="+", default=TAUS, metavar="T",
                        help="thresholds to report")
    args = parser.parse_args(argv)
    with errors.one_line():
        for path in args.paths:
            for file in files_of(path):
                print(report(file, args.tau), end="\n\n")


if __name__ == "__main__":
    main()
