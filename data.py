"""Problems: one record, five corpora, the splits of Tables 3 and 9, and the audit of who saw what.

    python data.py build --out corpora      # from the hub; --local CORPUS=FOLDER where there is none
    python data.py audit                    # Tables 9 and 10; status 1 if anything saw an evaluation problem

    problems = data.load_problems("corpora/joint.jsonl")
    verifier.judge([data.verifier_item(p, program) for p in problems])

`build` writes one JSON-lines file a pool; `manifest.json`: ids and hashes of every pool, what was refused or
removed and why, revisions, seed; `held_out.jsonl`: every statement that nothing may be trained on;
`boilerplate.npy`: the n-grams that say nothing. It streams the corpora and keeps the decoded rows in an
unnamed file under --out until the pools are chosen: about 20 GB of disk for all five.

Departures from the paper, and what it leaves open:
 1. Training pools are cleaned against the whole of every benchmark that was read, not only against the
    problems drawn from it, so that another slice may be drawn later. They are disjoint from one another.
 2. Table 9's 333 planner problems are those that survive the teacher's funnel, and 1110 + 278 are labels, not
    problems. The pools `sft` and `gate` are what the teacher is offered: 700 problems each, ours.
 3. "LCBv6 held-out" is the newest 300 problems of release_v6 (1055) by date: the slice called v6 has only
    175. CodeContests `valid` has 117 problems, of which 100 are drawn; this and every other slice by a seeded
    hash of ids.
 4. C.3 gives no n and no threshold for n-grams: see decontaminate.py.
 5. Table 10's qualitative examples come from CodeContests test: the pool `show`, which no figure uses.
 6. All official tests are used, public, private and generated; the checker cannot know of other valid
    answers.
"""

import argparse
import base64
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pickletools
import re
import sys
import tempfile
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decontaminate import BOILERPLATE, CONTAINMENT, NGRAM, Overlap, canonical, find_overlaps, statement_hash

KINDS = ("code", "execution", "test_output")
COMPARISONS = ("lines", "tokens")


# ------------------------------------------------------------------------------------------------- the record

@dataclass
class Problem:
    """One task. `tests` are graded and hidden; only `public_tests` may ever reach a prompt.

    Call-based problems (`fn_name`) have one encoding of a test, whatever the corpus used: `input` is a JSON
    list of the positional arguments, `output` a JSON value. All others: the text of standard input, and of
    standard output.
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
    """A decoded JSON line -> Problem, without the keys that no Problem has. ValueError says what is wrong."""
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


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(line number, value) of JSON lines, blank ones left out. Raises ValueError "FILE line N: ..."."""
    number = 0
    with open(path, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with long_integers():
                        value = json.loads(line)
                    yield number, value
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} after line {number}: not UTF-8 text ({error.reason})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: not JSON ({error})") from None


def save_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write JSON lines. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(aside, path)


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Read a pool. Raises ValueError "FILE line N: ..." for the first line that is not a usable problem."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no problem file at {path}: make the pools by `python data.py build`, or "
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
    """The judge format of verifier.py for one program. The problem's own time limit counts on request only:
    the paper gives every test 10 s, which is the verifier's default."""
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
    """Hash of a program's outputs on all tests, each normalised as comparison `lines` does; None (no normal
    end) stays None. Programs with one hash are one outcome class."""
    normal = [None if o is None else [line.strip() for line in o.strip().split("\n")] for o in outputs]
    return hashlib.sha256(json.dumps(normal).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------- rows of the corpora

REASONS = {
    "no_statement": "the statement is empty, or images alone",
    "no_tests": "there is no test at all",
    "one_sided": "inputs and outputs do not come in pairs",
    "no_outputs": "every expected output is empty, so an empty program would pass",
    "file_io": "it reads or writes named files",
    "interactive": "it talks to an interactor",
    "not_text": "a test is not text, or its text cannot be encoded",
    "undecodable": "the tests cannot be decoded",
    "too_large": "the tests are larger than can be decoded safely",
    "bad_arguments": "the arguments of a call are not a list",
    "integer_keys": "an argument or a result is a dictionary with integer keys, which JSON does not have",
    "mixed_tests": "some tests call a function and some do not",
}
MAX_TEST_BYTES = 512 << 20      # of one row's unpacked private tests; what unpacks a thousandfold stops here
MAX_DIGITS = 100_000  # of one integer in a call; APPS has some of 9,131, and Python's own limit is 4,300
# The data set's ClassLabel counts without gaps; the protobuf it came from has ATCODER = 6 and AIZU = 7.
CODE_CONTESTS_SOURCES = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "atcoder", "aizu")


class Refused(ValueError):
    """A row that cannot become a problem. `reason` is a name in REASONS; `build` counts them."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {REASONS[reason]}{f' ({detail:.120})' if detail else ''}")
        self.reason = reason


def from_code_contests(row: dict, split: str = "", index: int | None = None) -> Problem:
    """A row of deepmind/code_contests: standard input, token comparison.

    `index` is the row's place in its split, for names are not unique; without it, the id is source and name.
    """
    _need(row, "code_contests", name=str, description=str, public_tests=object, private_tests=object,
          generated_tests=object)
    _may(row, "code_contests", source=int, time_limit=dict, cf_tags=list, cf_contest_id=int, cf_index=str)
    if row.get("input_file") or row.get("output_file"):
        raise Refused("file_io", f"{row.get('input_file')!r} {row.get('output_file')!r}")
    if "interactive" in (row.get("cf_tags") or ()):
        raise Refused("interactive")
    source = dict(enumerate(CODE_CONTESTS_SOURCES)).get(row.get("source"), "unknown")
    ids = {}
    if source == "codeforces":
        named = re.match(r"(\d+)_([A-Z]\d?)\.", row["name"])
        if row.get("cf_contest_id") and row.get("cf_index"):
            ids["codeforces"] = f"{row['cf_contest_id']}/{row['cf_index']}".upper()
        elif named:
            ids["codeforces"] = f"{named[1]}/{named[2]}"
    elif source == "codechef":
        ids["codechef"] = row["name"].upper()
    limit = row.get("time_limit") or {}
    _may(limit, "code_contests", seconds=int, nanos=int)
    nanos = (limit.get("seconds") or 0) * 10 ** 9 + (limit.get("nanos") or 0)
    public = _pairs(row["public_tests"])
    tests = public + _pairs(row["private_tests"]) + _pairs(row["generated_tests"])
    name = f"{source}-{row['name'].strip()}" if index is None else str(index)
    return _checked(Problem(
        "/".join(x for x in ("cc", split, name) if x), row["description"], f"code_contests/{source}",
        tests=tests, public_tests=public, compare="tokens", ids=ids,
        time_limit=nanos / 1e9 if 0 < nanos < 10 ** 12 else None))      # an absurd one is none


def from_apps(row: dict, split: str = "") -> Problem:
    """A row of codeparrot/apps. Its number is `id` in the raw files, `problem_id` in converted ones, and
    starts anew in each split."""
    _need(row, "apps", question=str, input_output=str | dict)
    _may(row, "apps", url=str, starter_code=str)
    key = "id" if row.get("problem_id") is None else "problem_id"
    _need(row, "apps", **{key: int | str})
    number = f"{split}/{row[key]}".lstrip("/")
    given = row["input_output"]
    if isinstance(given, str):
        given = _json(given) if given.strip() else {}
    inputs, outputs = (given.get(side) or [] if isinstance(given, dict) else None
                       for side in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Refused("undecodable", "input_output is not an object with two lists")
    if len(inputs) != len(outputs):
        raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
    fn_name = _fn_name(given.get("fn_name"))
    if fn_name:
        # A result is wrapped in a list of one, but not in every problem: unwrapped where all of them are.
        wrapped = all(isinstance(o, list) and len(o) == 1 for o in outputs)
        tests = [_call(args, o[0] if wrapped else o) for args, o in zip(inputs, outputs, strict=True)]
    else:
        tests = _pairs({"input": [_joined(x) for x in inputs], "output": [_joined(x) for x in outputs]})
    return _checked(Problem(
        f"apps/{number}", row["question"], "apps", tests=tests, fn_name=fn_name,
        starter_code=(row.get("starter_code") or "") if fn_name else "",
        ids={"apps": number} | _ids_of_url(row.get("url") or "")))


def from_livecodebench(row: dict) -> Problem:
    """A row of livecodebench/code_generation_lite: graded on public and private tests, in that order."""
    _need(row, "livecodebench", question_id=int | str, question_content=str, public_test_cases=str | None,
          private_test_cases=str | None, metadata=str | None)
    _may(row, "livecodebench", starter_code=str)
    metadata = _json(row["metadata"] or "{}")
    fn_name = _fn_name(metadata.get("func_name") if isinstance(metadata, dict) else None)
    public = _livecodebench_tests(_json(row["public_test_cases"] or "[]"), fn_name)
    tests = public + _livecodebench_tests(_private_tests(row["private_test_cases"] or "[]"), fn_name)
    name, platform = str(row["question_id"]), str(row.get("platform") or "")
    ids = {"livecodebench": name}
    if platform == "codeforces" and "_" in name:
        ids["codeforces"] = name.replace("_", "/").upper()
    elif platform == "atcoder":
        ids["atcoder"] = name
    elif platform == "leetcode" and row.get("question_title"):
        ids["leetcode"] = re.sub(r"[^a-z0-9]+", "-", str(row["question_title"]).lower()).strip("-")
    return _checked(Problem(
        f"lcb/{name}", row["question_content"], f"livecodebench/{platform}", tests=tests, public_tests=public,
        fn_name=fn_name, starter_code=(row.get("starter_code") or "") if fn_name else "", ids=ids))


def from_execution(row: dict) -> Problem:
    """A row of livecodebench/execution-v2: what does this call of this function give?"""
    _need(row, "execution", id=int | str, code=str, input=str, output=str)
    return _checked(Problem(
        f"lcb-execution/{row['id']}", f"What does `{row['input']}` return?\n\n```python\n{row['code']}\n```",
        "livecodebench/execution", kind="execution", code=row["code"], call=row["input"],
        answer=row["output"],
        ids={"livecodebench": str(row["question_id"])} if row.get("question_id") else {}))


def from_test_generation(row: dict) -> Problem:
    """A row of livecodebench/test_generation: what does a right solution give for this call?"""
    _need(row, "test_generation", question_id=int | str, test_id=int | str, question_content=str,
          function_name=str, test=str)
    _may(row, "test_generation", starter_code=str)
    tests = _livecodebench_tests(_json(row["test"]), row["function_name"])
    if len(tests) != 1:
        raise Refused("undecodable", f"{len(tests)} tests instead of one")
    with long_integers():
        call = f"{row['function_name']}({', '.join(map(repr, json.loads(tests[0]['input'])))})"
        answer = repr(json.loads(tests[0]["output"]))
    return _checked(Problem(
        f"lcb-test-output/{row['question_id']}/{row['test_id']}", row["question_content"],
        "livecodebench/test_generation", kind="test_output", starter_code=row.get("starter_code") or "",
        call=call, answer=answer, ids={"livecodebench": str(row["question_id"])}))


def contest_day(row: dict) -> str:
    """A row's contest date as YYYY-MM-DD. Raw files hold ISO text, the hub's JSON reader makes a datetime."""
    return str(row.get("contest_date") or "")[:10]


def _need(row: dict, corpus: str, **columns: Any) -> None:
    """A missing column, or one of another type, is a changed schema: an error and not a refusal."""
    if not isinstance(row, dict):
        raise ValueError(f"a row of {corpus} is an object of the schema's columns, not {row!r:.60}")
    for name, kind in columns.items():
        if name not in row or not isinstance(row[name], kind):
            found = f"{name!r} holds {type(row[name]).__name__}" if name in row else f"no column {name!r}"
            raise ValueError(f"a row of {corpus} has another schema ({found}): use the pinned revision "
                             f"{CORPORA[corpus].revision} of {CORPORA[corpus].repo}")


def _may(row: dict, corpus: str, **columns: Any) -> None:
    """The same for columns that may be absent or null."""
    _need(row, corpus, **{name: kind for name, kind in columns.items() if row.get(name) is not None})


def _fn_name(name: Any) -> str | None:
    if not isinstance(name, str | None):
        raise Refused("undecodable", f"{name!r:.60} is no function's name")
    return name or None


@contextmanager
def long_integers() -> Iterator[None]:
    """Inside, integers of up to MAX_DIGITS digits can be converted (which takes quadratic time)."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _json(text: str) -> Any:
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")
    try:
        with long_integers():
            return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None


def _pairs(tests: Any) -> list[dict[str, str]]:
    """Parallel lists {"input": [...], "output": [...]}, or a list of pairs, -> a list of tests."""
    if isinstance(tests, dict):
        inputs, outputs = (tests.get(side) or [] for side in ("input", "output"))
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise Refused("undecodable", f"{tests!r:.60} are no tests")
        if len(inputs) != len(outputs):
            raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
        tests = [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    if not isinstance(tests, list | None) or not all(isinstance(t, dict) for t in tests or []):
        raise Refused("undecodable", f"{tests!r:.60} are no tests")
    for test in tests or []:
        if test.get("input") is None or test.get("output") is None:
            raise Refused("one_sided", f"{test!r:.60}")
        if not isinstance(test["input"], str) or not isinstance(test["output"], str):
            raise Refused("not_text", f"{test!r:.60}")
    return [{"input": t["input"], "output": t["output"]} for t in tests or []]


def _joined(text: Any) -> Any:
    """APPS gives a text, or the list of its lines."""
    whole = isinstance(text, list) and all(isinstance(line, str) for line in text)
    return "\n".join(text) if whole else text


def _call(arguments: Any, result: Any) -> dict[str, str]:
    if not isinstance(arguments, list):
        raise Refused("bad_arguments", f"{arguments!r:.60}")
    try:
        with long_integers():
            test = {"input": json.dumps(arguments, allow_nan=False), "output": json.dumps(result, allow_nan=False)}
        keyed = _integer_keys([arguments, result])
    except (ValueError, RecursionError) as error:
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None
    if keyed:
        raise Refused("integer_keys", test["input"])
    return test


def _integer_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(re.fullmatch(r"-?\d+", key) for key in value) or _integer_keys([*value.values()])
    return isinstance(value, list) and any(map(_integer_keys, value))


def _livecodebench_tests(tests: Any, fn_name: str | None) -> list[dict[str, str]]:
    """[{"input", "output", "testtype"}] -> tests. A functional input holds one argument a line, as JSON."""
    if not isinstance(tests, list):
        raise Refused("undecodable", "the tests are not a list")
    for t in tests:
        if not isinstance(t, dict) or not all(isinstance(t.get(side), str) for side in ("input", "output")):
            raise Refused("not_text", f"{t!r:.60}")
        if (t.get("testtype") == "functional") != bool(fn_name):
            raise Refused("mixed_tests", f"testtype {t.get('testtype')!r}, function {fn_name!r}")
    if not fn_name:
        return [{"input": t["input"], "output": t["output"]} for t in tests]
    calls = []
    for t in tests:
        lines = [line.strip() for line in t["input"].split("\n") if line.strip()]
        for value in (*lines, t["output"]):
            _json(value)
        calls.append({"input": f"[{', '.join(lines)}]", "output": t["output"].strip()})  # as it was written
    return calls


PICKLED_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PICKLE_FRAME = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


def _private_tests(text: str) -> Any:
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickled JSON text.

    Nothing is unpickled. A pickled text is one opcode that carries it, among some that only frame it; the
    opcodes are read as data, and any other is a refusal. So nothing can be called, and no stored length
    allocates anything.
    """
    if text.lstrip().startswith("["):   # base64 holds no bracket
        return _json(text)
    unpacker = zlib.decompressobj()
    try:
        pickled = unpacker.decompress(base64.b64decode(text), MAX_TEST_BYTES)
        if not unpacker.eof and len(pickled) >= MAX_TEST_BYTES:
            raise Refused("too_large", f"more than {MAX_TEST_BYTES >> 20} MiB")
        opcodes = [(code.name, value) for code, value, _ in pickletools.genops(pickled)]
    except Refused:
        raise
    except Exception as error:  # a damaged stream raises whatever it likes, and all of it means one thing
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None
    strings = [value for name, value in opcodes if name in PICKLED_TEXT]
    stray = [name for name, _ in opcodes if name not in PICKLED_TEXT | PICKLE_FRAME]
    if stray or len(strings) != 1:
        raise Refused("undecodable", f"the pickle is not one text ({', '.join(stray[:1]) or 'no text'})")
    return _json(strings[0])


def _ids_of_url(url: str) -> dict[str, str]:
    """The official identifier that a problem's web address holds."""
    for site, pattern in (
            ("codeforces",
             r"codeforces\.com/(?:problemset/problem|contest|gym)/(\d+)/(?:problem/)?([A-Z]\d?)\b"),
            ("codechef", r"codechef\.com/(?:\w+/)?problems/(\w+)"),
            ("atcoder", r"atcoder\.jp/contests/[^/]+/tasks/(\w+)"),
            ("leetcode", r"leetcode\.com/problems/([\w-]+)")):
        if found := re.search(pattern, url, re.IGNORECASE):
            name = "/".join(found.groups())
            return {site: name.lower() if site in ("atcoder", "leetcode") else name.upper()}
    return {}


def _checked(problem: Problem) -> Problem:
    """The refusals that every corpus shares."""
    if not re.search(r"\w", canonical(problem.statement)):
        raise Refused("no_statement")
    if problem.kind == "code" and not problem.tests:
        raise Refused("no_tests")
    outputs = [problem.answer or ""] if problem.kind != "code" else (t["output"] for t in problem.tests)
    if not any(map(str.strip, outputs)):
        raise Refused("no_outputs")
    try:
        for text in (problem.id, problem.statement, problem.starter_code, problem.code, problem.call, problem.answer,
                     *(x for t in problem.tests for x in t.values())):
            (text or "").encode()
    except UnicodeEncodeError:
        raise Refused("not_text", "a lone surrogate") from None
    return problem_from_json(problem_to_json(problem))


# ----------------------------------------------------------------------------------- where the rows come from

@dataclass(frozen=True)
class Corpus:
    repo: str
    revision: str
    files: dict[str, tuple[str, ...]]       # split -> files of the repository (patterns allowed), in order
    columns: tuple[str, ...] | None = None  # of parquet files; all if None


# Explicit file addresses at pinned revisions, because two of the repositories hold a loading script and
# `datasets` refuses those whole. Of execution-v2 no commit is known to us: its branch is resolved to one when
# it is read.
CORPORA = {
    "code_contests": Corpus(
        "deepmind/code_contests", "802411c3010cb00d1b05bad57ca77365a3c699d6",
        {split: (f"data/{split}-*.parquet",) for split in ("train", "valid", "test")},
        # without the solutions, which are most of the bytes
        ("name", "description", "public_tests", "private_tests", "generated_tests", "source", "cf_contest_id",
         "cf_index", "cf_tags", "time_limit", "input_file", "output_file")),
    "apps": Corpus(
        "codeparrot/apps", "21e74ddf8de1a21436da12e3e653065c5213e9d1",
        {"train": ("train.jsonl",), "test": ("test.jsonl",)}),
    "livecodebench": Corpus(                # release_v6 is all six files
        "livecodebench/code_generation_lite", "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        {"test": ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))}),
    "execution": Corpus("livecodebench/execution-v2", "main", {"test": ("data/test-*.parquet",)}),
    "test_generation": Corpus(
        "livecodebench/test_generation", "6f3ac40bbecf81eba15899139d279b077f2816fd",
        {"test": ("test.parquet",)}),
}


def rows(corpus: str, split: str, local: str | os.PathLike | None = None,
         revision: str | None = None) -> Iterator[dict]:
    """The raw rows of a split, streamed from the hub, or of the parquet and JSON-lines files of a local
    folder (or of one file). Of a folder, every file below it whose name begins with the split's name is read,
    in their order."""
    known = _known(corpus)
    if split not in known.files:
        raise ValueError(f"{corpus} has no split {split!r}: one of {', '.join(known.files)}")
    if local is None:
        base = f"hf://datasets/{known.repo}@{revision or known.revision}"
        return _stream([f"{base}/{name}" for name in known.files[split]], corpus)
    path = Path(local)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: --local {corpus}= takes a folder with copies of the "
                                f"files of {known.repo}, or one such file")
    found = [path] if path.is_file() else sorted(
        (p for p in path.rglob("*") if p.name.startswith(split) and p.suffix in (".parquet", ".jsonl")),
        key=lambda p: (str(p.parent), [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", p.stem)]))
    if not found:
        raise FileNotFoundError(f"{path} holds no {split}*.parquet and no {split}*.jsonl: copy "
                                f"{', '.join(known.files[split])} of {known.repo} into it")
    readers = (_stream([str(p)], corpus) if p.suffix == ".parquet" else _json_rows(p) for p in found)
    return itertools.chain.from_iterable(readers)


def _known(corpus: str) -> Corpus:
    if corpus not in CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}: one of {', '.join(CORPORA)}")
    return CORPORA[corpus]


def _json_rows(path: Path) -> Iterator[dict]:
    for number, row in read_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
        yield row


def _stream(urls: list[str], corpus: str) -> Iterator[dict]:
    import datasets

    kind = "parquet" if urls[0].endswith(".parquet") else "json"
    known = CORPORA[corpus].columns if kind == "parquet" else None
    columns = {"columns": list(known)} if known else {}
    try:
        yield from datasets.load_dataset(kind, data_files={"rows": urls}, split="rows", streaming=True,
                                         **columns)
    except Exception as error:  # the hub's client, its file system and the readers have errors of their own
        raise _unreadable(corpus, urls[0], error) from error


def _unreadable(corpus: str, what: str, error: Exception) -> OSError:
    known, said = CORPORA[corpus], " ".join(str(error).split())[:160]
    mend = (f"try again with a network, or build from copies by `python data.py build --local "
            f"{corpus}=FOLDER`, or without, by --skip {corpus}" if what.startswith("hf://")
            else f"it must be a copy of a file of {known.repo} at revision {known.revision}")
    return OSError(f"cannot read {what} ({type(error).__name__}: {said}): {mend}")


def resolved_revision(corpus: str) -> str:
    """The commit that a corpus is read at: the pinned one, or what the branch points to now."""
    known = _known(corpus)
    if re.fullmatch("[0-9a-f]{40}", known.revision):
        return known.revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(known.repo, revision=known.revision).sha
    except Exception as error:          # as in _stream
        raise _unreadable(corpus, f"hf://datasets/{known.repo}", error) from error


# -------------------------------------------------------------------------------------- build: Tables 3 and 9

@dataclass(frozen=True)
class Pool:
    name: str                   # its file is NAME.jsonl
    corpus: str
    split: str
    use: str                    # "train" and "dev" are cleaned; "eval" and "show" are held out
    size: int                   # default
    stage: str                  # as Table 9 calls it
    newest: bool = False        # drawn by date, not by the seeded hash


POOLS = (
    Pool("sft", "code_contests", "train", "train", 700, "Planner SFT: offered to the teacher"),
    Pool("gate", "code_contests", "train", "train", 700, "Reward model: offered to the teacher"),
    Pool("warmup", "apps", "train", "train", 500, "Planner warm-up"),
    Pool("joint", "code_contests", "train", "train", 300, "Joint CPPO rollout pool"),
    Pool("dev", "code_contests", "train", "dev", 100, "Sweeps, early stopping (dev subset)"),
    Pool("apps", "apps", "test", "eval", 200, "Held-out eval: APPS"),
    Pool("cc", "code_contests", "valid", "eval", 100, "Held-out eval: CodeContests"),
    Pool("lcb", "livecodebench", "test", "eval", 300, "Held-out eval: LCBv6", newest=True),
    Pool("apps-500", "apps", "test", "eval", 500, "Diagnostic slice: APPS"),
    Pool("lcb-500", "livecodebench", "test", "eval", 500, "Diagnostic slice: LiveCodeBench"),
    Pool("execution", "execution", "test", "eval", 479, "Held-out eval: code execution"),
    Pool("test-output", "test_generation", "test", "eval", 442, "Held-out eval: test output"),
    Pool("show", "code_contests", "test", "show", 20, "Qualitative examples"),
)
MANIFEST, HELD_OUT, BOILERPLATE_FILE = "manifest.json", "held_out.jsonl", "boilerplate.npy"
READERS: dict[str, Callable[..., Problem]] = {
    "code_contests": from_code_contests, "apps": from_apps, "livecodebench": from_livecodebench,
    "execution": from_execution, "test_generation": from_test_generation}
# Problems that the benchmark's own errata list as having several right answers, an interactor or wrong tests.
# They stay where they were drawn, and the manifest says which were.
LIVECODEBENCH_ERRATA = frozenset(
    "abc311_c abc326_d abc327_b abc333_e abc343_e abc362_c abc343_a arc185_c abc337_e abc355_e abc350_c "
    "arc189_a apply-operations-to-make-string-empty most-frequent-ids "
    "find-words-containing-character find-the-peaks generate-binary-strings-without-adjacent-zeros".split())


def read_split(corpus: str, split: str, local: str | None, revision: str | None,
               keep: Callable[[Problem, dict], None]) -> dict:
    """Hand every problem of a split to `keep`, and return the counts for the manifest. Of APPS only the
    introductory problems are read: the paper uses no others."""
    refused: dict[str, list[str]] = defaultdict(list)
    number = other = loaded = 0
    for number, row in enumerate(rows(corpus, split, local, revision), 1):
        if corpus == "apps" and row.get("difficulty") != "introductory":
            other += 1
            continue
        place = {"code_contests": (split, number - 1), "apps": (split,)}.get(corpus, ())
        try:
            problem = READERS[corpus](row, *place)
        except Refused as error:
            refused[error.reason].append(f"row {number - 1}")
            continue
        except ValueError as error:
            raise ValueError(f"{corpus} {split}, row {number - 1}: {error}") from None
        loaded += 1
        keep(problem, row)
    return {"rows": number, "not_introductory": other, "loaded": loaded,
            "refused": dict(sorted(refused.items()))}


def deduplicate(problems: Sequence[Problem]) -> dict[str, str]:
    """Id of each problem that repeats an earlier one, by official identifier or hash -> that one's id."""
    first: dict[tuple[str, str], str] = {}
    repeats: dict[str, str] = {}
    for p in problems:
        marks = [*p.ids.items(), ("hash", statement_hash(p.statement))]
        met = [first[mark] for mark in marks if mark in first]
        if met:
            repeats[p.id] = met[0]
        for mark in marks:
            first.setdefault(mark, met[0] if met else p.id)
    return repeats


def draw_order(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """A random order by seed and ids alone: problems that come or go do not reshuffle the others."""
    return sorted(problems, key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())


def build(out: str | os.PathLike, sizes: dict[str, int] | None = None, seed: int = 0,
          local: dict[str, str] | None = None, skip: Iterable[str] = (),
          say: Callable[[str], None] = print) -> dict:
    """Write the pools and the manifest, and return it. `sizes` replaces Pool.size by name, 0 leaves one out.

    A pool that comes out short is said, and stands in the manifest. A folder that holds this very build is
    left alone; another build there is an error, for evaluation slices are fixed before any run.
    """
    out, local, skip = Path(out), dict(local or {}), sorted(set(skip))
    for name in (*local, *skip):
        _known(name)
    wanted = {pool.name: pool.size for pool in POOLS} | dict(sizes or {})
    for name, size in wanted.items():
        if name not in {pool.name for pool in POOLS} or size < 0:
            raise ValueError(f"--{name} {size}: pools are {', '.join(p.name for p in POOLS)}, and a size is "
                             f"0 or more")
    asked = {"seed": seed, "sizes": wanted, "local": local, "skip": skip}
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        for key, value in asked.items():
            if manifest["asked"][key] != value:
                raise ValueError(f"{out} holds a build with another {key} ({manifest['asked'][key]}): choose "
                                 f"another --out, or delete that folder")
        say(f"{out} holds this build already")
        return manifest
    pools = [pool for pool in POOLS if wanted[pool.name] > 0 and pool.corpus not in skip]
    splits = sorted({(pool.corpus, pool.split) for pool in pools})
    trained = sorted({(pool.corpus, pool.split) for pool in pools if pool.use in ("train", "dev")})
    if not pools:
        raise ValueError("nothing to build: every corpus is skipped, or every size is 0")
    unread = sorted({f"{pool.corpus} {pool.split}" for pool in POOLS
                     if (pool.corpus, pool.split) not in splits})
    if unread:
        say(f"not read: {', '.join(unread)}; training pools are NOT cleaned against them")

    # ---- read: whole problems to disk; identifiers and statements, all that choosing needs, to memory
    sources = {corpus: {"local": local[corpus]} if corpus in local else
               {"repo": CORPORA[corpus].repo, "revision": resolved_revision(corpus)} for corpus, _ in splits}
    out.mkdir(parents=True, exist_ok=True)
    cards: dict[tuple[str, str], list[Problem]] = {}
    place: dict[str, int] = {}
    day: dict[str, str] = {}
    counts: dict[str, dict] = {}
    with tempfile.TemporaryFile(dir=out) as spool:
        for corpus, split in splits:
            cards[corpus, split] = []

            def keep(problem: Problem, row: dict, cards: list[Problem] = cards[corpus, split]) -> None:
                if problem.id in place:
                    raise ValueError(f"two rows have the id {problem.id!r}")
                place[problem.id], day[problem.id] = spool.tell(), contest_day(row)
                spool.write(json.dumps(problem_to_json(problem)).encode() + b"\n")
                cards.append(Problem(problem.id, problem.statement, ids=problem.ids))

            found = read_split(corpus, split, local.get(corpus), sources[corpus].get("revision"), keep)
            counts[f"{corpus}/{split}"] = found
            refused = ", ".join(f"{len(which)} {reason}" for reason, which in found["refused"].items())
            say(f"{corpus} {split}: {found['loaded']} problems{f'; refused: {refused}' if refused else ''}")

        # ---- clean: each split of its own repeats, then training of everything held out, be it a repeat
        held_out = [p for key in splits if key not in trained for p in cards[key]]
        for key in splits:
            several_a_statement = key[0] in ("execution", "test_generation")
            repeats = {} if several_a_statement else deduplicate(cards[key])
            counts["/".join(key)]["repeats"] = repeats
            cards[key] = [p for p in cards[key] if p.id not in repeats]
        overlaps, common = find_overlaps([p for key in trained for p in cards[key]], held_out)
        for key in trained:
            removed = {p.id: dataclasses.asdict(overlaps[p.id]) for p in cards[key] if p.id in overlaps}
            counts["/".join(key)]["removed"] = removed
            cards[key] = [p for p in cards[key] if p.id not in overlaps]
            say(f"{' '.join(key)}: {len(removed)} removed as held out, {len(cards[key])} left")

        # ---- draw
        taken: set[str] = set()
        entries: dict[str, dict] = {}
        for pool in pools:
            candidates = [p for p in draw_order(cards[pool.corpus, pool.split], seed) if p.id not in taken]
            if pool.newest:
                candidates.sort(key=lambda p: (day[p.id], p.id), reverse=True)
            chosen = candidates[:wanted[pool.name]]
            if not chosen:
                raise ValueError(f"pool {pool.name}: no problem of {pool.corpus} {pool.split} is left; lower "
                                 f"the sizes, or leave it out by --{pool.name} 0")
            if len(chosen) < wanted[pool.name]:
                say(f"{pool.name}: only {len(chosen)} of {wanted[pool.name]} problems")
            if pool.use in ("train", "dev"):
                taken |= {p.id for p in chosen}
            path = out / f"{pool.name}.jsonl"
            save_lines(path, (json.loads(_line_at(spool, place[p.id])) for p in chosen))
            entries[pool.name] = {
                "file": path.name, "use": pool.use, "stage": pool.stage,
                "split": f"{pool.corpus} {pool.split}",
                "rule": "newest by contest date" if pool.newest else "sha256 of 'seed:id'",
                "wanted": wanted[pool.name], "problems": len(chosen), "sha256": _sha256(path),
                "errata": [p.id for p in chosen if LIVECODEBENCH_ERRATA & set(p.ids.values())],
                "ids": [p.id for p in chosen], "hashes": [statement_hash(p.statement) for p in chosen]}
    save_lines(out / HELD_OUT, ({"id": p.id, "statement": p.statement, "ids": p.ids} for p in held_out))
    np.save(out / BOILERPLATE_FILE, common)
    manifest = {"asked": asked, "sources": sources, "splits": counts, "pools": entries,
                "held_out": len(held_out),
                "rules": {"ngram": NGRAM, "containment": CONTAINMENT, "boilerplate": BOILERPLATE}}
    aside = out / (MANIFEST + ".part")
    aside.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, out / MANIFEST)           # last: a folder without it is no build
    return manifest


def _line_at(spool, offset: int) -> bytes:
    spool.seek(offset)
    return spool.readline()


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: make it by `python data.py build --out {folder}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest["pools"], dict):
            raise TypeError
        return manifest
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is no manifest of `data.py build`: delete {folder} and build it again") from None


def default_pool(name: str, corpora: str | os.PathLike = "corpora") -> Path:
    """The file of a pool. On first use the corpora are built, by the defaults: call it on one rank first."""
    if not (Path(corpora) / MANIFEST).exists():
        print(f"{corpora} is not built yet: building it", file=sys.stderr)
        build(corpora, say=lambda line: print(line, file=sys.stderr))
    entry = read_manifest(corpora)["pools"].get(name)
    if entry is None:
        raise ValueError(f"{corpora} was built without the pool {name!r}: build it with that, or pass "
                         f"--problems FILE")
    return Path(corpora) / entry["file"]


# ------------------------------------------------------------------------------------- audit: Tables 9 and 10

def load_held_out(corpora: str | os.PathLike) -> tuple[list[Problem], np.ndarray]:
    """What nothing may be trained on, and the boilerplate grams, as `build` left them."""
    lines = read_lines(Path(corpora) / HELD_OUT)
    try:
        problems = [Problem(row["id"], row["statement"], ids=row["ids"]) for _, row in lines]
        return problems, np.load(Path(corpora) / BOILERPLATE_FILE)
    except (LookupError, TypeError, EOFError):
        raise ValueError(f"{corpora} holds a damaged build: delete it and build it again") from None


def exposures(path: str | os.PathLike, held_out: Sequence[Problem],
              boilerplate: np.ndarray) -> tuple[list[str], dict[str, Overlap]]:
    """Ids of the problems that a file speaks of (problems, gold tuples or gate labels), and which of them are
    held out as what."""
    problems: dict[str, Problem] = {}
    for number, row in read_lines(path):
        name = row.get("problem_id", row.get("id")) if isinstance(row, dict) else None
        if name is None:
            raise ValueError(f"{path} line {number}: neither 'id' nor 'problem_id', so it cannot be audited")
        statement, ids = row.get("statement") or "", row.get("ids") or {}
        if not isinstance(ids, dict) or not all(isinstance(x, str) for x in (statement, *ids.values())):
            raise ValueError(f"{path} line {number}: 'statement' must be text and 'ids' an object of texts")
        problem = Problem(str(name), statement, ids=ids)
        problems.setdefault(problem.id, problem)
    return list(problems), find_overlaps(list(problems.values()), held_out, boilerplate)[0]


def audit_pool(path: str | os.PathLike, corpora: str | os.PathLike = "corpora") -> str:
    """Check a training file (problems, gold tuples or gate labels) before it is used. Raises ValueError where
    `audit` would fail, for an evaluation problem in it or a change after the build; else returns what is to be said
    and written into the run's config, "" if all is known and well."""
    path = Path(path)
    folder = next((f for f in (path.parent, Path(corpora)) if (f / MANIFEST).exists()), None)
    if folder is None:
        return f"{path} has no manifest: whether it shares problems with the evaluation sets is not known"
    names, found = exposures(path, *load_held_out(folder))
    if found:
        name, overlap = next(iter(found.items()))
        raise ValueError(f"{path} holds {len(found)} evaluation problem(s) among {len(names)}, the first "
                         f"{name!r} (held out as {overlap.held_out!r}, found by {overlap.rule}): use what "
                         f"`python data.py build` made")
    for entry in read_manifest(folder)["pools"].values():
        if path.resolve() == (folder / entry["file"]).resolve() and _sha256(path) != entry["sha256"]:
            raise ValueError(f"{path} is not what {folder / MANIFEST} describes: it was changed after the build; build it "
                             f"again, or keep your own pool in a file of another name")
    return ""


def audit_pools(*paths: str | os.PathLike | None) -> str:
    """`audit_pool` of each file that there is: what is to be said of them, one after the other."""
    return "; ".join(said for path in paths if path and (said := audit_pool(path)))


# Table 10: component, its files under corpora/, the stage of the runs that belong to it, notes
COMPONENTS = (
    ("Teacher", ("sft.jsonl", "gate.jsonl", "gold.jsonl"), "", "candidate generation"),
    ("LLM judge for plan validity", ("sft.jsonl", "gate.jsonl"), "", "candidates and plans"),
    ("Planner SFT", ("gold.jsonl",), "sft", ""),
    ("RM training labels", ("labels_train.jsonl",), "gate", "balanced pass/fail"),
    ("RM val (acceptance, threshold)", ("labels_val.jsonl",), "", "disjoint from RM train"),
    ("Planner warm-up", ("warmup.jsonl",), "warmup", ""),
    ("Joint CPPO rollout, RM refresh", ("joint.jsonl",), "cppo", ""),
    ("Hyperparameter sweep, early stopping", ("dev.jsonl",), "", "dev disjoint from eval"),
)
MADE_BY_TEACHER = (("gold.jsonl", "Planner SFT: gold tuples", "sft"),
                   ("labels_train.jsonl", "Reward model: labels, train", "gate"),
                   ("labels_val.jsonl", "Reward model: labels, val", "gate"))


def audit(corpora: str | os.PathLike = "corpora", runs: str | os.PathLike = "runs") -> tuple[str, list[str]]:
    """Tables 9 and 10 as text, from the manifest and every run's config.json; and a list of what is wrong."""
    corpora, manifest = Path(corpora), read_manifest(corpora)
    held_out, boilerplate = load_held_out(corpora)
    split_of = {entry["file"]: entry["split"] for entry in manifest["pools"].values()}
    split_of |= {name: split_of.get(f"{pool}.jsonl", "?") for name, _, pool in MADE_BY_TEACHER}
    wrong: list[str] = []
    checked: dict[Path, tuple[list[str], dict[str, Overlap]]] = {}

    def line(component: str, path: Path, note: str = "") -> str:
        if not path.exists():
            return f"{component:38} {'unknown':10} {path} is gone"
        if path not in checked:
            checked[path] = exposures(path, held_out, boilerplate)
            wrong.extend(f"{path}: {name} is held out as {overlap.held_out} (by {overlap.rule})"
                         for name, overlap in checked[path][1].items())
        seen = f"YES, {len(checked[path][1])}" if checked[path][1] else "no"
        source = split_of.get(path.name, "?") if path.parent == corpora else "by flag"
        return f"{component:38} {seen:10} {source:20} {path}{f' ({note})' if note else ''}"

    lines = ["Table 9: splits", f"{'stage':38} {'problems':>10} source split"]
    for entry in manifest["pools"].values():
        short = f" ({entry['wanted']} were asked for)" if entry["problems"] < entry["wanted"] else ""
        lines.append(f"{entry['stage']:38} {entry['problems']:10} {entry['split']}{short}")
        if _sha256(corpora / entry["file"]) != entry["sha256"]:
            wrong.append(f"{corpora / entry['file']} was changed after the build")
    lines += [f"{stage:38} {sum(1 for _ in read_lines(corpora / name)):10} {split_of[name]}"
              for name, stage, _ in MADE_BY_TEACHER if (corpora / name).exists()]
    for name, split in manifest["splits"].items():
        rules = Counter(x["rule"] for x in split.get("removed", {}).values())
        lines.append(f"  {name}: {split['rows']} rows, {split['loaded']} loaded, "
                     f"{sum(map(len, split['refused'].values()))} refused, {len(split['repeats'])} repeats, "
                     f"{sum(rules.values())} removed as held out"
                     + "".join(f", {n} by {r}" for r, n in rules.items()))

    lines += ["", "Table 10: exposure", f"{'component':38} {'held-out?':10} {'source split':20} file"]
    given = run_files(Path(runs), corpora)
    for component, names, stage, note in COMPONENTS:
        files = [corpora / name for name in names if (corpora / name).exists()]
        files += sorted({path for found, path in given if found == stage} - set(files))
        lines += [line(component, path, note) for path in files] or [f"{component:38} not run"]
    others = sorted((found, path) for found, path in given
                    if found not in {stage for *_, stage, _ in COMPONENTS})
    lines += [line(f"stage {found}", path) for found, path in others]
    if "show" in manifest["pools"]:
        lines.append(f"{'Qualitative examples':38} {'no':10} {split_of['show.jsonl']:20} "
                     f"{corpora / 'show.jsonl'}")
    lines.append(f"{'Final evaluation':38} {'N/A':10} {'held out':20} no parameter updates")
    train, val = (checked.get(corpora / f"labels_{side}.jsonl", ([], {}))[0] for side in ("train", "val"))
    if both := set(train) & set(val):
        wrong.append(f"{len(both)} problems have gate labels on both sides, training and validation, like "
                     f"{min(both)}")
    return "\n".join(lines), wrong


def run_files(runs: Path, corpora: Path) -> set[tuple[str, Path]]:
    """(stage, file) of every JSON-lines file that a flag of a training run names."""
    found = set()
    for config_path in runs.rglob("config.json"):
        try:
            flags = json.loads(config_path.read_text(encoding="utf-8")).get("flags")
        except (ValueError, AttributeError):
            raise ValueError(f"{config_path} is not a run's config: mend or remove it, for it cannot be "
                             f"audited") from None
        if "eval" in config_path.relative_to(runs).parts or not isinstance(flags, dict):
            continue                # an evaluation, or the config of a checkpoint
        for value in flags.values():
            if isinstance(value, str) and value.endswith(".jsonl"):
                own = Path(value).resolve().parent == corpora.resolve()
                found.add((config_path.parent.name, corpora / Path(value).name if own else Path(value)))
    return found


# --------------------------------------------------------------------------------------------------- commands

def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the paper's splits; audit what saw what.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="read the corpora, clean them, write the pools and the manifest")
    make.add_argument("--out", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of every draw by hash (default %(default)s)")
    make.add_argument("--local", action="append", default=[], metavar="CORPUS=PATH",
                      help="read a corpus from a folder with copies of its files, or from one file, and not "
                           f"from the hub; corpora: {', '.join(CORPORA)}")
    make.add_argument("--skip", action="append", default=[], metavar="CORPUS",
                      help="leave a corpus and its pools out")
    sizes = make.add_argument_group("sizes, in problems (0 leaves the pool out)")
    for pool in POOLS:
        sizes.add_argument(f"--{pool.name}", type=int, default=pool.size, metavar="N",
                           help=f"{pool.stage}; {pool.corpus} {pool.split} (default %(default)s)")
    check = commands.add_parser("audit",
                                help="print Tables 9 and 10; status 1 if an evaluation problem was seen")
    check.add_argument("--corpora", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    check.add_argument("--runs", default="runs", metavar="FOLDER", help="(default %(default)s)")
    args = parser.parse_args(argv)

    import common               # here, so that reading problems needs no torch

    with common.explain():
        if args.command == "build":
            if malformed := [x for x in args.local if "=" not in x]:
                raise ValueError(f"--local {malformed[0]}: write CORPUS=PATH, as in --local apps=copies/apps")
            chosen = {pool.name: getattr(args, pool.name.replace("-", "_")) for pool in POOLS}
            build(args.out, chosen, args.seed, dict(x.split("=", 1) for x in args.local), args.skip)
            print(f"written to {args.out}")
        else:
            tables, wrong = audit(args.corpora, args.runs)
            print(tables)
            for problem in wrong:
                print(f"WRONG: {problem}", file=sys.stderr)
            raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
