"""Your own tasks of the shape "prompt, function, asserts" (MBPP and many others) -> a problem file.

    python -m prepare.convert mbpp.jsonl corpora/functions.jsonl --ids 601 974
    python -m prepare.check corpora/functions.jsonl --solutions corpora/functions.solutions.jsonl

A line of the source is an object with a prompt, a list of asserts `f(arguments) == value`, perhaps
a reference solution and an id; flags name the keys. The first assert becomes a public test, which
prompts may show, the others are the hidden ones.

Arguments are what JSON has. A set is refused with a sentence, and so is a tuple among the
arguments: the program would get a list in its place. --tuples-as-lists takes them as lists, after
which `prepare.check` says which reference solutions no longer pass. An expected tuple may be a
list: a returned tuple counts as equal to one.
"""

import argparse
import ast
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib import errors, flags
from lib.errors import UserError
from lib.files import read_lines, save_lines
from lib.problems import Problem, check_problem, problem_to_json

FLOAT_TOLERANCE = 1e-6      # where an expected value is a float, as for APPS and LiveCodeBench


def from_asserts(name: str, prompt: str, asserts: list[str], solution: str = "", public: int = 1,
                 tuples: bool = False) -> Problem:
    """One task -> a call-based problem, its first `public` asserts public. ValueError says why
    not."""
    calls = [read_assert(line) for line in asserts]
    functions = {function for function, _, _ in calls}
    if len(functions) != 1 or len(calls) <= public:
        raise ValueError(f"asserts call {len(functions)} functions, {len(calls)} times: one "
                         f"function and more than {public} calls are needed")
    tests = [{"input": to_json(arguments, tuples), "output": to_json(value, tuples=True)}
             for _, arguments, value in calls]
    [function] = functions
    problem = Problem(name, prompt, tests=tests[public:], public_tests=tests[:public],
                      fn_name=function, starter_code=stub(solution, function))
    if any(holds_float(value) for _, _, value in calls):
        problem.float_tolerance = FLOAT_TOLERANCE
    check_problem(problem)
    return problem


def read_assert(line: str) -> tuple[str, list, Any]:
    """`assert f(1, [2]) == 3` -> ("f", [1, [2]], 3)"""
    try:
        [node] = ast.parse(line.strip()).body
        call, value = node.test.left, node.test.comparators[0]
        plain = isinstance(node.test.ops[0], ast.Eq) and not call.keywords
        function, arguments = call.func.id, [ast.literal_eval(a) for a in call.args]
        expected = ast.literal_eval(value)
    except (SyntaxError, ValueError, AttributeError, TypeError):
        plain = False
    if not plain or len(node.test.ops) > 1:
        raise ValueError("an assert is not f(values) == value")
    return function, arguments, expected


def to_json(value: Any, tuples: bool) -> str:
    check_value(value, tuples)
    return json.dumps(value, allow_nan=False)


def check_value(value: Any, tuples: bool) -> None:
    """ValueError for what JSON does not have. tuples: take them as lists."""
    if isinstance(value, tuple) and not tuples:
        raise ValueError("a tuple is among the arguments, which JSON does not have")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a dict has keys that are no text, which JSON does not have")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for element in value:
            check_value(element, tuples)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__} is among the values, which JSON does not have")


def holds_float(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(holds_float, value))
    return isinstance(value, float)


def stub(solution: str, function: str) -> str:
    """The header of the function in a reference solution, "" if it is not there."""
    try:
        nodes = ast.parse(solution).body
    except SyntaxError:
        return ""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return f"def {function}({ast.unparse(node.args)}):\n    ..."
    return ""


# ----------------------------------------------------------------------------------------------
# The command

def read_tasks(args: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """(id, row) of each line that is asked for."""
    for number, row in read_lines(args.source):
        if not isinstance(row, dict):
            raise UserError(f"{args.source} line {number}: not a JSON object")
        missing = [key for key in (args.prompt_key, args.asserts_key) if key not in row]
        if missing:
            raise UserError(f"{args.source} line {number}: no key {missing[0]!r} among "
                            f"{', '.join(row)}; --prompt-key and --asserts-key name them")
        name = row.get(args.id_key, number)
        if args.ids and not (isinstance(name, int) and args.ids[0] <= name <= args.ids[1]):
            continue
        yield f"{args.name or args.source.stem}/{name}", row


def convert(args: argparse.Namespace) -> tuple[list[Problem], list[dict], Counter]:
    """Problems, their solutions, and how many tasks were refused for which reason."""
    problems, solutions, refused = [], [], Counter()
    for name, row in read_tasks(args):
        solution = str(row.get(args.solution_key) or "").replace("\r\n", "\n")
        try:
            if row.get("test_setup_code"):
                raise ValueError("its tests need set-up code")
            problem = from_asserts(name, row[args.prompt_key], row[args.asserts_key], solution,
                                   args.public, args.tuples_as_lists)
        except ValueError as error:
            refused[str(error)] += 1
            continue
        problems.append(problem)
        if solution:
            solutions.append({"problem_id": name, "index": 0, "program": solution})
    return problems, solutions, refused


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser('Turn tasks of the shape "prompt, function, asserts" into problems.')
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE.jsonl")
    add("out", type=Path, metavar="OUT.jsonl")
    add("--name", help="first part of the problems' ids; by default the source's name")
    add("--ids", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only tasks with these ids")
    add("--public", type=flags.at_least(0), default=1, metavar="N",
        help="asserts that become public tests")
    add("--tuples-as-lists", action="store_true", help="take tuples among arguments as lists")
    add("--prompt-key", default="text")
    add("--asserts-key", default="test_list")
    add("--solution-key", default="code")
    add("--id-key", default="task_id")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> None:
    with errors.user_input():
        problems, solutions, refused = convert(args)
    if not problems:
        raise UserError(f"{args.source}: no task could be converted: {dict(refused)}")
    save_lines(args.out, map(problem_to_json, problems))
    print(f"{len(problems)} problems in {args.out}")
    if solutions:
        path = args.out.with_suffix(".solutions.jsonl")
        save_lines(path, solutions)
        print(f"{len(solutions)} solutions in {path}")
    for reason, count in refused.most_common():
        print(f"{count:6} refused: {reason}")


if __name__ == "__main__":
    main(parse_args())
