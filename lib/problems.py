"""Problems: one record for every corpus and world.

    problems = load_problems("corpora/joint.jsonl")
    verdicts = verifier.judge([verifier_item(problem, program) for problem in problems])
"""

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import verifier
from lib.errors import UserError
from lib.files import read_lines, save_lines


@dataclass
class Problem:
    """One task. `tests` are graded and hidden; only `public_tests` may ever reach a prompt.

    Call-based problems (`fn_name`) have one encoding of a test, whatever the corpus used: `input`
    is a JSON list of the positional arguments, `output` a JSON value. All others: the text of
    standard input, and of standard output.
    """
    id: str                     # unique over corpora and splits, e.g. "cc/train/17"
    statement: str
    source: str = ""
    kind: str = "code"          # "code" | "execution" | "test_output"
    tests: list[dict[str, str]] = field(default_factory=list)           # {"input", "output"}
    public_tests: list[dict[str, str]] = field(default_factory=list)
    fn_name: str | None = None
    starter_code: str = ""
    # seconds per test and MiB, as the corpus states them; used on request only
    time_limit: float | None = None
    memory_limit: float | None = None
    compare: str = "lines"              # "lines" | "tokens"
    float_tolerance: float | None = None
    # seconds for all tests of a program; what programs have without importing it ("lcb"); installed
    # packages that they may import, beside numpy
    program_seconds: float | None = None
    prelude: str | None = None
    packages: list[str] | None = None
    ids: dict[str, str] = field(default_factory=dict)   # official ids, {"codeforces": "1549/A"}
    # of worlds: outcome hash -> probability given the statement
    classes: dict[str, float] | None = None
    # output prediction: a function, a call of it, and its value as a Python literal
    code: str | None = None
    call: str | None = None
    answer: str | None = None


FIELDS = tuple(f.name for f in dataclasses.fields(Problem))

# ----------------------------------------------------------------------------------------------
# The format of a problem. What the verifier needs too (tests, function, limits, comparison) is
# checked by the verifier.

KINDS = ("code", "execution", "test_output")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def is_filled(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def is_object_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def is_test_list(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(test, dict) and is_text(test.get("input")) and is_text(test.get("output"))
               for test in value)


TESTS = (is_test_list, "a list of objects with the texts 'input' and 'output'")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (is_filled, "text that is not blank"),
    "statement": (is_filled, "text that is not blank"),
    "source": (is_text, "text"),
    "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "tests": TESTS,
    "public_tests": TESTS,
    "starter_code": (is_text, "text"),
    "memory_limit": (lambda value: value is None or isinstance(value, int | float),
                     "a number or null"),
    "ids": (is_object_of_texts, "an object of texts"),
    "classes": (lambda value: value is None or isinstance(value, dict), "an object or null"),
    "code": (is_text_or_null, "text or null"),
    "call": (is_text_or_null, "text or null"),
    "answer": (is_text_or_null, "text or null"),
}


def problem_from_json(row: Any) -> Problem:
    """A decoded JSON line -> Problem, without the keys that no Problem has. ValueError says what
    is wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    for key in ("id", "statement"):
        if key not in row:
            raise ValueError(f"key {key!r} is missing")
    problem = Problem(**{key: value for key, value in row.items() if key in FIELDS})
    check_problem(problem)
    problem.tests = without_notes(problem.tests)
    problem.public_tests = without_notes(problem.public_tests)
    return problem


def check_problem(problem: Problem) -> None:
    """ValueError if a field does not hold what it should, or if the verifier would refuse it."""
    for name, (holds, needed) in CHECKS.items():
        value = getattr(problem, name)
        if not holds(value):
            raise ValueError(f"{name!r} must be {needed}, found {value!r:.60}")
    if problem.kind == "code":
        verifier.check_item(verifier_item(problem, "", official_limits=True))
        check_starter_code(problem)
        if problem.public_tests:
            on_public = dataclasses.replace(problem, tests=problem.public_tests)
            verifier.check_item(verifier_item(on_public, ""))
    elif problem.answer is None:
        raise ValueError(f"a problem of kind {problem.kind} needs an 'answer'")


def check_starter_code(problem: Problem) -> None:
    """A function that the starter code lacks would fail every attempt."""
    name, code = problem.fn_name, problem.starter_code
    if name and code and not re.search(rf"\b{name}\b", code):
        raise ValueError(f"'starter_code' has no function {name!r}")


def without_notes(tests: list[dict[str, str]]) -> list[dict[str, str]]:
    """Tests without the keys that a corpus may have added."""
    return [{"input": test["input"], "output": test["output"]} for test in tests]


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Problem -> a JSON object without the fields that hold their defaults."""
    default = Problem("", "")
    row = {"id": problem.id, "statement": problem.statement}
    for name in FIELDS:
        value = getattr(problem, name)
        if value != getattr(default, name):
            row[name] = value
    return row


# ----------------------------------------------------------------------------------------------
# Pools

def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Read a pool. UserError "FILE line N: ..." for the first line that is not a usable problem."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no problem file at {path}: make the pools with "
                        f"`python -m prepare.corpora`, or pass a file (docs/own_problems.md)")
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    unknown: set[str] = set()
    for number, row in read_lines(path):
        try:
            problem = problem_from_json(row)
        except ValueError as error:
            name = f" (id {row['id']!r})" if isinstance(row, dict) and "id" in row else ""
            raise UserError(f"{path} line {number}{name}: {error}") from None
        if problem.id in first_line:
            raise UserError(f"{path} line {number}: line {first_line[problem.id]} has the same id "
                            f"{problem.id!r}")
        first_line[problem.id] = number
        # a key that begins with an underscore is a note, and no typing error
        unknown |= {key for key in row if key not in FIELDS and not key.startswith("_")}
        problems.append(problem)
    if not problems:
        raise UserError(f"{path} holds no problems")
    if unknown:
        warnings.warn(f"{path}: ignored unknown keys: {', '.join(sorted(unknown))}", stacklevel=2)
    return problems


def save_problems(path: str | os.PathLike, problems: Iterable[Problem]) -> None:
    """Write a pool as JSON lines, defaults left out. The file appears whole or not at all."""
    save_lines(path, map(problem_to_json, problems))


LEAST_MEMORY_MB = 256       # Table 11: an interpreter needs more than the 64 MiB of C++ problems


def verifier_item(problem: Problem, code: str | None, want_outputs: bool = False,
                  official_limits: bool = False) -> dict[str, Any]:
    """The judge format of verifier.py for one program. The problem's own limits count on request
    only: the paper gives every test 10 s and 256 MiB, which are the verifier's defaults."""
    if problem.kind != "code":
        raise ValueError(f"problem {problem.id!r} is of kind {problem.kind!r}: its answers are "
                         f"compared, not run")
    item: dict[str, Any] = {"code": code or "", "tests": problem.tests, "compare": problem.compare}
    if problem.fn_name is not None:
        item["fn_name"] = problem.fn_name
    for name in ("float_tolerance", "program_seconds", "prelude", "packages"):
        if getattr(problem, name) is not None:
            item[name] = getattr(problem, name)
    if official_limits and problem.time_limit is not None:
        item["time_limit"] = problem.time_limit
    if official_limits and problem.memory_limit is not None:
        item["memory_mb"] = max(problem.memory_limit, LEAST_MEMORY_MB)
    if want_outputs:
        item["want_outputs"] = True
    return item


def outcome_hash(outputs: list[str | None]) -> str:
    """Hash of a program's outputs on all tests, each normalised as comparison `lines` does; None
    (no normal end) stays None. Programs with one hash are one outcome class."""
    normal = []
    for output in outputs:
        if output is None:
            normal.append(None)
        else:
            normal.append([line.strip() for line in output.strip().split("\n")])
    return hashlib.sha256(json.dumps(normal).encode()).hexdigest()[:16]
