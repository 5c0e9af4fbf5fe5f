"""Is a problem file of your own in order? Read it, run its solutions, print what is in it.

    python -m prepare.check FILE.jsonl
    python -m prepare.check FILE.jsonl --solutions SOLUTIONS.jsonl --keep GOOD.jsonl
    python -m prepare.check FILE.jsonl --attempts A.jsonl --pass-rate 0.05 0.95 --keep GOOD.jsonl
    python -m prepare.check FILE.jsonl --own        # no build knows it: acknowledged

Solutions are lines {"problem_id", "program"}, as for `evaluate.py --method file`. Status 1 if one
fails, unless --keep writes the problems whose solutions all pass, and of which a model has solved
the share --pass-rate of its --attempts (a file of evaluate.py). --own writes FILE.own.json: the
training scripts then do not warn that nobody knows whether the file holds evaluation problems, as
long as its content stays the same.
"""

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import prompts
from lib import errors, flags
from lib.errors import UserError
from lib.files import read_lines, save_lines, tree_hash, write_file
from lib.problems import Problem, load_problems, problem_to_json, verifier_item
from prepare.exposure import acknowledgement
from prepare.screen import pass_rates
from verifier import Verdict, Verifier

SHOWN = 10          # failed solutions that are printed


def load_solutions(path: Path, problems: list[Problem]) -> list[tuple[Problem, str]]:
    by_id = {problem.id: problem for problem in problems}
    solutions = []
    for number, row in read_lines(path):
        name = row.get("problem_id") if isinstance(row, dict) else None
        if name not in by_id or not isinstance(row.get("program"), str):
            raise UserError(f'{path} line {number}: a solution is {{"problem_id", "program"}} of a '
                            f"problem in the file, not {row!r:.60}")
        if by_id[name].kind != "code":
            raise UserError(f"{path} line {number}: {name!r} asks for a value, not for a program")
        solutions.append((by_id[name], row["program"]))
    return solutions


def judge(solutions: list[tuple[Problem, str]], workers: int | None) -> list[Verdict]:
    with errors.user_input():
        verifier = Verifier(workers)
    with verifier:
        return verifier.judge([verifier_item(problem, code) for problem, code in solutions])


def summary(problems: list[Problem]) -> list[str]:
    """What is in the file, and what is allowed but often a mistake."""
    kinds = Counter()
    for problem in problems:
        on_input = "calls of a function" if problem.fn_name else "programs on standard input"
        kinds[on_input if problem.kind == "code" else problem.kind] += 1
    lines = [f"{count:6} {kind}" for kind, count in kinds.items()]
    code = [problem for problem in problems if problem.kind == "code"]
    if code:
        tests = [len(problem.tests) for problem in code]
        lines.append(f"       hidden tests: {min(tests)} to {max(tests)}, median "
                     f"{statistics.median(tests):g}")
        public = sum(bool(problem.public_tests) for problem in code)
        lines.append(f"{public:6} have public tests (shown if the template `problem` says so)")
    doubts = {
        "expect floats without float_tolerance": [p for p in code if expects_floats(p)],
        "grade on a public test": [p for p in code if leaks(p)],
        "share a statement with another": repeated(problems)}
    for what, found in doubts.items():
        if found:
            lines.append(f"{len(found):6} {what}, the first {found[0].id!r}")
    return lines


def expects_floats(problem: Problem) -> bool:
    if problem.float_tolerance is not None or problem.compare == "tokens":
        return False
    for test in problem.tests:
        for word in test["output"].replace(",", " ").split():
            head, dot, tail = word.strip("[]{}").partition(".")
            if dot and head.lstrip("-").isdigit() and tail.isdigit():
                return True
    return False


def leaks(problem: Problem) -> bool:
    return any(test in problem.public_tests for test in problem.tests)


def repeated(problems: list[Problem]) -> list[Problem]:
    seen, again = set(), []
    for problem in problems:
        words = " ".join(problem.statement.split())
        if words in seen:
            again.append(problem)
        seen.add(words)
    return again


def failed(problems: list[Problem], solutions: list[tuple[Problem, str]],
           verdicts: list[Verdict]) -> dict[str, list[Verdict]]:
    """Problem id -> the verdicts of its solutions that fail. Prints what became of them."""
    fails = defaultdict(list)
    for (problem, _), verdict in zip(solutions, verdicts, strict=True):
        if not verdict.passed:
            fails[problem.id].append(verdict)
    print(f"{len(solutions):6} solutions ran, {sum(v.passed for v in verdicts)} are accepted")
    without = len(problems) - len({problem.id for problem, _ in solutions})
    if without:
        print(f"{without:6} problems have no solution here")
    for name in list(fails)[:SHOWN]:
        verdict = fails[name][0]
        print(f"       {name}: {verdict.status}: {' '.join(verdict.message.split())[:120]}")
    if len(fails) > SHOWN:
        print(f"       and {len(fails) - SHOWN} more problems")
    return fails


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Check a problem file of your own, and its reference solutions.")
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl")
    add("--solutions", type=Path, metavar="FILE", help="lines of problem_id, program")
    add("--keep", type=Path, metavar="FILE", help="write the problems whose solutions all pass")
    add("--attempts", type=Path, metavar="FILE", help="attempts of a model, by evaluate.py")
    add("--pass-rate", type=float, nargs=2, default=(0.02, 0.9), metavar=("LEAST", "MOST"),
        help="with --attempts: share of accepted attempts of a kept problem")
    add("--workers", type=flags.count, metavar="N", help="programs that run at a time")
    add("--show", action="store_true", help="print the prompts of the first problem")
    add("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    add("--own", action="store_true",
        help="acknowledge that no build knows whether the file holds evaluation problems")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> int:
    if args.keep and not (args.solutions or args.attempts):
        raise UserError("--keep writes problems that --solutions or --attempts speak for: name one")
    with errors.user_input():
        if args.prompts:
            prompts.load(args.prompts)
        problems = load_problems(args.file)
        solutions = load_solutions(args.solutions, problems) if args.solutions else []
    print(f"{len(problems):6} problems in {args.file}")
    print("\n".join(summary(problems)))
    fails = {}
    if args.solutions:
        fails = failed(problems, solutions, judge(solutions, args.workers))
    if args.keep:
        kept = [problem for problem in problems if problem.id not in fails]
        if args.solutions:
            solved = {problem.id for problem, _ in solutions}
            kept = [problem for problem in kept if problem.id in solved]
        if args.attempts:
            least, most = args.pass_rate
            rates = pass_rates(args.attempts)
            kept = [problem for problem in kept if least <= rates.get(problem.id, -1) <= most]
        save_lines(args.keep, map(problem_to_json, kept))
        print(f"{len(kept):6} problems in {args.keep}")
    if args.show:
        for name, text in (("direct", prompts.direct(problems[0])),
                           ("plan", prompts.plan(problems[0]))):
            print(f"\n---- {name} prompt of {problems[0].id}\n{text}")
    if args.own:
        mine = acknowledgement(args.keep or args.file)
        write_file(mine, json.dumps({"sha256": tree_hash(args.keep or args.file)}) + "\n")
        print(f"       acknowledged in {mine}: no warning about a missing manifest")
    return 1 if fails and not args.keep else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
