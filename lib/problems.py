"""Problems: one record for every corpus and world."""

import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.files import read_lines, save_lines

KINDS = ("code", "execution", "test_output")


COMPARISONS = ("lines", "tokens")


@dataclass
class Problem:
    """One task. `tests` are graded and hidden; only `public_tests` may ever reach a prompt.

    Call-based problems (`fn_name`) have one encoding of a test, whatever the corpus used: `input`
    is a JSON list of the positional arguments, `output` a JSON value. All others: the text of
    standard input, and of standard output.
    """
    id: str                                 # unique over corpora and splits, e.g. "cc/train/17"
    statement: str
    source: str = ""
    kind: str = "code"                      # "code" | "execution" | "test_output"
    tests: list[dict[str, str]] = field(default_factory=list)       # {"input", "output"}
    public_tests: list[dict[str, str]] = field(default_factory=list)
    fn_name: str | None = None
    starter_code: str = ""
    time_limit: float | None = None         # seconds, as the corpus states it; used on request only
    compare: str = "lines"                  # "lines" | "tokens"
    float_tolerance: float | None = None
    ids: dict[str, str] = field(default_factory=dict)       # official identifiers, {"codeforces": "1549/A"}
    classes: dict[str, float] | None = None     # of worlds: outcome hash -> probability given the statement
    code: str | None = None                 # output prediction: a function,
    call: str | None = None                 # a call of it,
    answer: str | None = None               # and what the call gives, as a Python literal


FIELDS = tuple(f.name for f in dataclasses.fields(Problem))


def problem_from_json(row: Any) -> Problem:
    """A decoded JSON line -> Problem, without the keys that no Problem has. ValueError says what
    is wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    for key in ("id", "statement"):
        if key not in row:
            raise ValueError(f"key {key!r} is missing")
    problem = Problem(**{key: value for key, value in row.items() if key in FIELDS})

    def wrong(key: str, needed: str) -> ValueError:
        found = getattr(problem, key)
        return ValueError(f"problem {problem.id!r}: {key!r} must be {needed}, found {found!r:.60}")

    for key in ("id", "statement", "source", "kind", "starter_code", "compare"):
        if not isinstance(getattr(problem, key), str):
            raise wrong(key, "text")
    for key in ("fn_name", "code", "call", "answer"):
        if not isinstance(getattr(problem, key), str | None):
            raise wrong(key, "text or null")
    for key in ("time_limit", "float_tolerance"):
        value = getattr(problem, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)
                                  or not 0 < value < math.inf):
            raise wrong(key, "a positive number or null")
    for key in ("id", "statement"):
        if not getattr(problem, key).strip():
            raise wrong(key, "more than white space")
    for key, known in (("kind", KINDS), ("compare", COMPARISONS)):
        if getattr(problem, key) not in known:
            raise wrong(key, f"one of {', '.join(known)}")
    if not isinstance(problem.ids, dict) or not all(isinstance(x, str) for x in problem.ids.values()):
        raise wrong("ids", "an object of texts")
    if not isinstance(problem.classes, dict | None):
        raise wrong("classes", "an object or null")
    for key in ("tests", "public_tests"):
        tests = getattr(problem, key)
        if not isinstance(tests, list) or not all(
                isinstance(t, dict) and isinstance(t.get("input"), str) and isinstance(t.get("output"), str)
                for t in tests):
            raise wrong(key, "a list of objects with the texts 'input' and 'output'")
        setattr(problem, key, [{"input": t["input"], "output": t["output"]} for t in tests])
    if problem.kind == "code" and not problem.tests:
        raise wrong("tests", "there: without any, nothing could be judged right")
    if problem.kind != "code" and problem.answer is None:
        raise wrong("answer", f"there in a problem of kind {problem.kind}")
    return problem


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Problem -> a JSON object without the fields that hold their defaults."""
    default = Problem("", "")
    return {name: value for name in FIELDS
            if (value := getattr(problem, name)) != getattr(default, name) or name in ("id", "statement")}


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Read a pool. Raises ValueError "FILE line N: ..." for the first line that is not a usable
    problem."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no problem file at {path}: make the pools by `python -m prepare.corpora build`, or "
                                f"pass a file")
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    unknown: set[str] = set()
    for number, row in read_lines(path):
        try:
            problem = problem_from_json(row)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        if problem.id in first_line:
            raise ValueError(f"{path} line {number}: id {problem.id!r} stands in line "
                             f"{first_line[problem.id]} too")
        first_line[problem.id] = number
        unknown |= {key for key in row if key not in FIELDS and not key.startswith("_")}
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path} holds no problems")
    if unknown:
        warnings.warn(f"{path}: keys that no problem has are ignored: {', '.join(sorted(unknown))}",
                      stacklevel=2)
    return problems


def save_problems(path: str | os.PathLike, problems: Iterable[Problem]) -> None:
    """Write a pool as JSON lines, defaults left out. The file appears whole or not at all."""
    save_lines(path, map(problem_to_json, problems))


def verifier_item(problem: Problem, code: str | None, want_outputs: bool = False,
                  official_limits: bool = False) -> dict[str, Any]:
    """The judge format of verifier.py for one program. The problem's own time limit counts on
    request only: the paper gives every test 10 s, which is the verifier's default."""
    if problem.kind != "code":
        raise ValueError(f"problem {problem.id!r} is of kind {problem.kind!r}: answers are compared, not run")
    item: dict[str, Any] = {"code": code or "", "tests": problem.tests, "compare": problem.compare}
    if problem.fn_name is not None:
        item["fn_name"] = problem.fn_name
    if problem.float_tolerance is not None:
        item["float_tolerance"] = problem.float_tolerance
    if official_limits and problem.time_limit is not None:
        item["time_limit"] = problem.time_limit
    if want_outputs:
        item["want_outputs"] = True
    return item


def outcome_hash(outputs: list[str | None]) -> str:
    """Hash of a program's outputs on all tests, each normalised as comparison `lines` does; None
    (no normal end) stays None. Programs with one hash are one outcome class."""
    normal = [None if o is None else [line.strip() for line in o.strip().split("\n")] for o in outputs]
    return hashlib.sha256(json.dumps(normal).encode()).hexdigest()[:16]
