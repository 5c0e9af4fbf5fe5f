"""Leave out problems of a pool that cannot be judged: run the corpus's own solutions.

    python -m prepare.screen joint                          # -> corpora/joint-screened.jsonl
    python -m prepare.screen joint --attempts runs/X/eval/joint-direct.jsonl --pass-rate 0.02 0.9

A right solution with a wrong answer shows a problem that accepts several answers or has an
interactor; an accepted wrong solution shows tests that are too weak. CodeContests has both kinds of
solutions, APPS right ones alone. `--attempts` also leaves out problems that a model solves too
rarely or too often to learn from. Counts and reasons go into the manifest.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lib import errors, flags
from lib.errors import UserError
from lib.files import read_lines, save_lines, tree_hash, write_file
from lib.problems import Problem, load_problems, problem_to_json, verifier_item
from lib.progress import progress
from prepare import sources
from prepare.corpora import MANIFEST, read_manifest
from prepare.decontaminate import statement_hash
from prepare.readers import row_id
from verifier import Verdict, Verifier

SOLUTIONS = 5               # right ones, and wrong ones, that are run per problem
PYTHON3 = 3                 # in CodeContests' column language
COLUMNS = {"code_contests": ("solutions", "incorrect_solutions"), "apps": ()}


def labelled_programs(corpus: str, row: dict) -> tuple[list[str], list[str]]:
    """(right, wrong) Python 3 programs of a row, at most SOLUTIONS each."""
    if corpus == "apps":
        return json.loads(row.get("solutions") or "[]")[:SOLUTIONS], []
    programs = []
    for column in COLUMNS[corpus]:
        labelled = row.get(column) or {"language": [], "solution": []}
        pairs = zip(labelled["language"], labelled["solution"], strict=True)
        programs.append([code for language, code in pairs if language == PYTHON3][:SOLUTIONS])
    return programs[0], programs[1]


def reason_to_drop(right: Sequence[Verdict], wrong: Sequence[Verdict]) -> str:
    """Why a problem goes, "" to keep it. A right solution that fails otherwise than by a wrong
    answer says nothing: it may be Python 2, or too slow here."""
    if any(verdict.status == "wrong_answer" for verdict in right):
        return "right_fails"
    return "wrong_passes" if any(verdict.passed for verdict in wrong) else ""


def judge_solutions(verifier: Verifier, problem: Problem, right: list[str],
                    wrong: list[str]) -> str:
    verdicts = verifier.judge([verifier_item(problem, code) for code in right + wrong])
    return reason_to_drop(verdicts[:len(right)], verdicts[len(right):])


def rows_of(problems: dict[str, Problem], corpus: str, split: str,
            origin: dict) -> Iterator[tuple[Problem, dict]]:
    """The raw rows of these problems, with their solutions."""
    rows = sources.rows(corpus, split, origin.get("local"), origin.get("revision"),
                        COLUMNS[corpus])
    for index, row in enumerate(rows):
        name = row_id(corpus, split, index, row)
        if name in problems:
            yield problems[name], row


def pass_rates(path: Path) -> dict[str, float]:
    """Problem id -> share of accepted attempts, of a file of evaluate.py."""
    outcomes = defaultdict(list)
    for number, row in read_lines(path):
        if not isinstance(row, dict) or "problem_id" not in row or "status" not in row:
            raise UserError(f"{path} line {number}: an attempt has 'problem_id' and 'status'")
        outcomes[row["problem_id"]].append(row["status"] == "accepted")
    return {name: sum(passed) / len(passed) for name, passed in outcomes.items()}


def screen(corpora: Path, pool: str, verifier: Verifier, rates: dict[str, float] | None = None,
           between: tuple[float, float] = (0.0, 1.0)) -> dict:
    """Write POOL-screened.jsonl and its entry in the manifest; return the entry."""
    manifest = read_manifest(corpora)
    entry = manifest["pools"].get(pool)
    corpus, split = entry["split"].split() if entry else ("", "")
    if corpus not in COLUMNS:
        known = [name for name, e in manifest["pools"].items() if e["split"].split()[0] in COLUMNS]
        raise UserError(f"{pool!r} has no solutions to run: one of {', '.join(known)}")
    problems = load_problems(corpora / entry["file"])
    by_id = {problem.id: problem for problem in problems}
    dropped: dict[str, str] = {}
    rows = rows_of(by_id, corpus, split, manifest["sources"][corpus])
    for problem, row in progress(rows, "screening", len(problems)):
        reason = judge_solutions(verifier, problem, *labelled_programs(corpus, row))
        if rates is not None and not reason:
            rate = rates.get(problem.id)
            if rate is None or not between[0] <= rate <= between[1]:
                reason = "pass_rate"
        if reason:
            dropped[problem.id] = reason
    kept = [problem for problem in problems if problem.id not in dropped]
    path = corpora / f"{pool}-screened.jsonl"
    save_lines(path, map(problem_to_json, kept))
    screened = entry | {
        "file": path.name, "stage": f"{entry['stage']}, screened", "problems": len(kept),
        "sha256": tree_hash(path), "ids": [p.id for p in kept],
        "hashes": [statement_hash(p.statement) for p in kept], "dropped": dropped}
    manifest["pools"][f"{pool}-screened"] = screened
    write_file(corpora / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return screened


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Leave out problems that the corpus's own solutions show to be broken.")
    parser.add_argument("pool", help="its name, e.g. joint")
    parser.add_argument("--corpora", type=Path, default="corpora", metavar="FOLDER")
    parser.add_argument("--workers", type=flags.count, metavar="N",
                        help="programs judged at a time; by default one per processor")
    parser.add_argument("--attempts", type=Path, metavar="FILE",
                        help="attempts of a model, as evaluate.py writes them")
    parser.add_argument("--pass-rate", type=float, nargs=2, default=(0.02, 0.9),
                        metavar=("LEAST", "MOST"),
                        help="with --attempts: share of accepted attempts of a kept problem")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> None:
    rates = pass_rates(args.attempts) if args.attempts else None
    with Verifier(args.workers) as verifier:
        entry = screen(args.corpora, args.pool, verifier, rates, tuple(args.pass_rate))
    print(f"{entry['problems']} problems kept in {args.corpora / entry['file']}")
    for reason in sorted(set(entry["dropped"].values())):
        count = sum(other == reason for other in entry["dropped"].values())
        print(f"{count:8}  {reason}")


if __name__ == "__main__":
    main(parse_args())
