"""Problems: the one record that everything else reads, and how it is stored.

    from data import Problem, load_problems, save_problems
    problems = load_problems("corpora/joint.jsonl")
    verifier.judge([data.verifier_item(p, program) for p in problems])
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable

KINDS = ("code", "execution", "test_output")
COMPARISONS = ("lines", "tokens")


@dataclass
class Problem:
    """One task. `tests` are graded and hidden; only `public_tests` may ever reach a prompt.

    Call-based problems (`fn_name`) have one encoding of a test whatever the corpus used: `input` is a JSON list of
    the positional arguments, `output` a JSON value. All others: the text of standard input and of standard output.
    """

    id: str  # unique over corpora and splits, e.g. "cc/train/17"
    statement: str
    source: str = ""
    kind: str = "code"  # "code" | "execution" | "test_output"
    tests: list[dict[str, str]] = field(default_factory=list)  # {"input", "output"}
    public_tests: list[dict[str, str]] = field(default_factory=list)
    fn_name: str | None = None
    starter_code: str = ""
    time_limit: float | None = None  # seconds, as the corpus states it; used with --official-limits only
    compare: str = "lines"  # "lines" | "tokens"
    float_tolerance: float | None = None
    ids: dict[str, str] = field(default_factory=dict)  # official identifiers, {"codeforces": "1549/A", ...}
    classes: dict[str, float] | None = None  # worlds only: outcome hash -> posterior probability given the statement
    code: str | None = None  # the output-prediction kinds: a function, the call of it, and what the call gives
    call: str | None = None
    answer: str | None = None


FIELDS = {f.name: f for f in dataclasses.fields(Problem)}


def problem_from_json(row: Any) -> Problem:
    """One decoded JSON line -> Problem. Raises ValueError with what is wrong. Keys that no Problem has are left out."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    for key in ("id", "statement"):
        if key not in row:
            raise ValueError(f"key {key!r} is missing")
    problem = Problem(**{key: value for key, value in row.items() if key in FIELDS})
    where = f"problem {problem.id!r}: "
    for key in ("id", "statement", "source", "kind", "starter_code", "compare"):
        if not isinstance(getattr(problem, key), str):
            raise ValueError(f"{where}{key!r} must be text, found {getattr(problem, key)!r:.60}")
    for key in ("fn_name", "code", "call", "answer"):
        if not isinstance(getattr(problem, key), (str, type(None))):
            raise ValueError(f"{where}{key!r} must be text or null, found {getattr(problem, key)!r:.60}")
    for key in ("time_limit", "float_tolerance"):
        value = getattr(problem, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise ValueError(f"{where}{key!r} must be a positive number or null, found {value!r:.60}")
    if not problem.id or not problem.statement.strip():
        raise ValueError(f"{where}the {'id' if not problem.id else 'statement'} is empty")
    if problem.kind not in KINDS:
        raise ValueError(f"{where}unknown kind {problem.kind!r}, one of {', '.join(KINDS)}")
    if problem.compare not in COMPARISONS:
        raise ValueError(f"{where}unknown comparison {problem.compare!r}, one of {', '.join(COMPARISONS)}")
    if not isinstance(problem.ids, dict) or not isinstance(problem.classes, (dict, type(None))):
        raise ValueError(f"{where}'ids' and 'classes' must be JSON objects")
    for key in ("tests", "public_tests"):
        tests = getattr(problem, key)
        if not isinstance(tests, list):
            raise ValueError(f"{where}{key!r} must be a list, found {tests!r:.60}")
        for i, test in enumerate(tests):
            if not isinstance(test, dict) or not all(isinstance(test.get(k), str) for k in ("input", "output")):
                raise ValueError(f"{where}{key}[{i}] must hold the texts 'input' and 'output', found {test!r:.60}")
        setattr(problem, key, [{"input": t["input"], "output": t["output"]} for t in tests])
    if problem.kind == "code" and not problem.tests:
        raise ValueError(f"{where}no tests: nothing could ever be judged right")
    if problem.kind != "code" and problem.answer is None:
        raise ValueError(f"{where}a problem of kind {problem.kind!r} needs an 'answer'")
    return problem


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Problem -> a JSON object without the fields that hold their defaults."""
    default = Problem("", "")
    return {
        name: value
        for name in FIELDS
        if (value := getattr(problem, name)) != getattr(default, name) or name in ("id", "statement")
    }


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Read a pool. Raises ValueError "FILE line N: ..." for the first line that is not a usable problem."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no problem file at {path}: build the pools with `python data.py build` or pass a file")
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    unknown: set[str] = set()
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                problem = problem_from_json(row)
            except ValueError as error:  # JSONDecodeError is one
                raise ValueError(f"{path} line {number}: {error}") from None
            if problem.id in first_line:
                raise ValueError(f"{path} line {number}: id {problem.id!r} stands in line {first_line[problem.id]} too")
            first_line[problem.id] = number
            unknown |= {key for key in row if key not in FIELDS and not key.startswith("_")}
            problems.append(problem)
    if not problems:
        raise ValueError(f"{path} holds no problems")
    if unknown:
        warnings.warn(f"{path}: keys that no problem has are ignored: {', '.join(sorted(unknown))}", stacklevel=2)
    return problems


def save_problems(path: str | os.PathLike, problems: Iterable[Problem]) -> None:
    """Write a pool as JSON lines, defaults left out. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as out:
        for problem in problems:
            out.write(json.dumps(problem_to_json(problem)) + "\n")
    os.replace(aside, path)


def verifier_item(
    problem: Problem, code: str | None, want_outputs: bool = False, official_limits: bool = False
) -> dict[str, Any]:
    """The judge format of verifier.py for one program. The problem's own time limit counts on request only: the
    paper gives every test 10 s, which is the verifier's default."""
    if problem.kind != "code":
        raise ValueError(f"problem {problem.id!r} is of kind {problem.kind!r}: its answers are compared, not run")
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
    """Hash of a program's outputs on all tests, each normalised as comparison `lines` does; None (no normal end)
    stays None. Programs with one hash are one outcome class."""
    normal = [None if o is None else [line.strip() for line in o.strip().split("\n")] for o in outputs]
    return hashlib.sha256(json.dumps(normal).encode()).hexdigest()[:16]
