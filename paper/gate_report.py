"""Section 4.4: what the gate accepts, beside the judge and the solver."""

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from gate import TAU, acceptance, auc, joint_table
from lib import errors
from paper.attempts import render

TAUS = (0.02, 0.05, 0.1, TAU, 0.3, 0.5, 0.7, 0.9)
WRITTEN = ("gate/final/labels_val.jsonl", "cppo*/samples.jsonl", "*/eval/*-tuple.jsonl*", "*/eval/*-tuple-seed*.jsonl*")
Decisions = list[tuple[float | None, int]]      # p(Pass) of a tuple, None of a plan that does not parse; and a verdict on it


def read_decisions(path: Path) -> tuple[Decisions, Decisions]:
    """p(Pass) beside what the judge said of each tuple (1 valid), and beside what the solver made of it (1 solved).

    Of the held-out labels in a gate's folder, of samples.jsonl of stage 5, or of attempts of `evaluate.py --gate`.
    """
    judged: Decisions = []
    solved: Decisions = []
    tuples: dict[tuple, tuple[float | None, int]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if "label" in row:
                    judged.append((row.get("p_pass"), int(row["label"])))
                elif "R_plan" in row:
                    judged += [(row["p_pass"], int(not row["faults"]))] if row["faults"] is not None else []
                    solved += [(row["p_pass"], int(row["R_out"] > 0))] if row["R_out"] is not None else []
                else:
                    mark = row["problem_id"], row["seed"], row["tuple"]
                    right = row["status"] == "accepted" or tuples.get(mark, (None, 0))[1]
                    tuples[mark] = row.get("gate") if row["strategy"] is not None else None, int(right)
            except (ValueError, LookupError, TypeError):
                raise ValueError(f"{path} line {number} is no gate label, no tuple of samples.jsonl and no attempt "
                                 f"at a tuple") from None
    return judged, solved + list(tuples.values())


def diagnose(path: Path, taus: Sequence[float] = TAUS) -> str:
    """Section 4.4 of one file as text: AUCs, and a line a tau with its ROC point (judge) and the joint table (solver).

    A plan that does not parse is rejected in the joint table; the gate was not asked about it, so no AUC counts it.
    """

    judged, solved = read_decisions(path)
    lines, rows = [str(path)], [{"tau": tau} for tau in taus]
    for who, pairs in (("judge", judged), ("solver", solved)):
        p, z = [p for p, _ in pairs if p is not None], [z for p, z in pairs if p is not None]
        if p:
            area = f"AUC {auc(p, z):.3f}" if 0 < sum(z) < len(z) else "no AUC, for all are alike"
            lines.append(f"against the {who}: {area}; {sum(z)} of {len(z)} tuples are {'valid' if who == 'judge' else 'solved'}"
                         + (f", {len(pairs) - len(z)} more do not parse" if len(z) < len(pairs) else ""))
        for row in rows if p else ():
            if who == "solver":
                table = joint_table([-1.0 if p is None else p for p, _ in pairs], [z for _, z in pairs], row["tau"])
                row |= {name.replace("_given_", " | ").replace("_", ", "): x for name, x in table.items() if name != "tuples"}
            elif 0 < sum(z) < len(z):
                figures = acceptance(p, z, row["tau"])
                row |= {"valid accepted": figures["recall"], "faulty accepted": 1 - figures["specificity"]}
    if len(lines) == 1:
        return f"{path}: no p(Pass) in it; train_rm.py, train_cppo.py and `evaluate.py --gate` write one"
    return "\n".join([*lines, render(rows)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Section 4.4: what the gate accepts, beside the judge and the solver.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN|FILE", help="a run's folder (its gate's held-out labels, "
                        "samples of stage 5, evaluations with --gate), or such a file")
    parser.add_argument("--tau", type=float, nargs="+", default=TAUS, metavar="T", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    with errors.explain():
        for path in args.paths:
            files = sorted({f for pattern in WRITTEN for f in path.glob(pattern)}) if path.is_dir() else [path]
            if not files:
                raise ValueError(f"{path} holds none of {', '.join(WRITTEN)}: pass a run's folder, as in runs/NAME")
            print(*(diagnose(f, args.tau) for f in files), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
