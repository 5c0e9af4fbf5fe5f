"""Problems: one record, five corpora, the splits of Tables 3 and 9, and the proof that no evaluation problem was trained on.

    python data.py build --out corpora                          # needs the hub, or:
    python data.py build --local code_contests=FOLDER --local apps=FOLDER ... --skip execution
    python data.py audit                                        # Tables 9 and 10; exit 1 if anything saw an evaluation problem

    problems = data.load_problems("corpora/joint.jsonl")
    verifier.judge([data.verifier_item(p, program) for p in problems])

`build` writes one JSON-lines file a pool, `manifest.json` (ids and hashes of every pool, what was removed or refused and why,
revisions, seed), `held_out.jsonl` (the statements that nothing may be trained on) and `boilerplate.npy` (see below). It streams,
and keeps the decoded rows in OUT/rows.part until the pools are chosen: about 20 GB of disk for the full corpora.

Departures from the paper, and what it leaves open:
 1. Training pools are cleaned against the whole of every benchmark that was read, not only against the problems drawn for
    evaluation, so that another slice may be drawn later. They are disjoint from one another.
 2. Table 9's 333 planner problems are those that survive the teacher's funnel, and 1110 + 278 are labels, not problems. The
    pools `sft` and `gate` are what the teacher is offered: 700 problems each, ours.
 3. "LCBv6 held-out" is the newest 300 problems of release_v6 (1055) by date, the 175 of the slice v6 being too few. CodeContests
    `valid` has 117 problems, of which 100 are drawn, like every other slice, by a seeded hash of the id.
 4. C.3 gives no n and no threshold for its n-gram rule: 13 words, and a tenth of the shorter text's grams. Grams that stand in
    more than five statements are left out (boilerplate: "the first line contains a single integer t, the number of ...").
 5. Table 10's qualitative examples come from CodeContests test: the pool `show`, which nothing trains on and no figure uses.

Test texts are texts: no integer in them is ever converted, except to check that a call-based test is JSON.
"""

import argparse
import base64
import dataclasses
import hashlib
import json
import math
import os
import pickletools
import re
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decontaminate import BOILERPLATE, CONTAINMENT, NGRAM, Overlap, find_overlaps, statement_hash

KINDS = ("code", "execution", "test_output")
COMPARISONS = ("lines", "tokens")


# ------------------------------------------------------------------------------------------------ the record

@dataclass
class Problem:
    """One task. `tests` are graded and hidden; only `public_tests` may ever reach a prompt.

    Call-based problems (`fn_name`) have one encoding of a test whatever the corpus used: `input` is a JSON list of
    the positional arguments, `output` a JSON value. All others: the text of standard input and of standard output.
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
    ids: dict[str, str] = field(default_factory=dict)               # official identifiers, {"codeforces": "1549/A"}
    classes: dict[str, float] | None = None     # worlds only: outcome hash -> posterior probability given the statement
    code: str | None = None                 # output prediction: a function, a call of it, and what the call gives
    call: str | None = None
    answer: str | None = None               # a Python literal


FIELDS = tuple(f.name for f in dataclasses.fields(Problem))


def problem_from_json(row: Any) -> Problem:
    """One decoded JSON line -> Problem. Raises ValueError that says what is wrong. Keys that no Problem has are left out."""
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
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf):
            raise ValueError(f"{where}{key!r} must be a positive number or null, found {value!r:.60}")
    for key in ("id", "statement"):
        if not getattr(problem, key).strip():
            raise ValueError(f"{where}the {key} is empty")
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
    return {name: value for name in FIELDS
            if (value := getattr(problem, name)) != getattr(default, name) or name in ("id", "statement")}


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(line number, decoded value) of a JSON-lines file, blank lines left out. Raises ValueError "FILE line N: ..."."""
    with open(path, encoding="utf-8") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: not JSON ({error})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} after line {number}: not UTF-8 text ({error.reason})") from None


def load_problems(path: str | os.PathLike) -> list[Problem]:
    """Read a pool. Raises ValueError "FILE line N: ..." for the first line that is not a usable problem."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no problem file at {path}: make the pools by `python data.py build`, or pass a file")
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    unknown: set[str] = set()
    for number, row in read_lines(path):
        try:
            problem = problem_from_json(row)
        except ValueError as error:
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


def save_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write JSON lines. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(aside, path)


def save_problems(path: str | os.PathLike, problems: Iterable[Problem]) -> None:
    """Write a pool as JSON lines, defaults left out. The file appears whole or not at all."""
    save_lines(path, map(problem_to_json, problems))


def verifier_item(problem: Problem, code: str | None, want_outputs: bool = False, official_limits: bool = False) -> dict:
    """The judge format of verifier.py for one program. The problem's own time limit counts on request only: the paper
    gives every test 10 s, which is the verifier's default."""
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
    """Hash of a program's outputs on all tests, each normalised as comparison `lines` does; None (no normal end) stays
    None. Programs with one hash are one outcome class."""
    normal = [None if o is None else [line.strip() for line in o.strip().split("\n")] for o in outputs]
    return hashlib.sha256(json.dumps(normal).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ rows of the corpora

class Refused(ValueError):
    """A row that cannot become a problem. `reason` is one of the names in REASONS; `build` counts them."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS
        super().__init__(f"{reason}: {REASONS[reason]}{f' ({detail})' if detail else ''}")
        self.reason = reason


REASONS = {
    "no_statement": "the statement is empty",
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
MAX_TEST_BYTES = 512 << 20      # of one row's decoded private tests; what compresses a thousandfold stops here
MAX_DIGITS = 100_000            # of one integer in a call-based test; APPS has some of 9,131, Python's own limit is 4,300
CC_SOURCES = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "atcoder", "aizu")
# The index of the data set's ClassLabel, which has no gaps; the original protobuf has ATCODER = 6 and AIZU = 7.


def from_code_contests(row: dict, split: str = "", index: int | None = None) -> Problem:
    """A row of deepmind/code_contests: standard input, all official tests (public, private, generated), token comparison.

    `index` is the row's place in its split: names are not unique. Without it the id is made of source and name.
    """
    _need(row, "code_contests", "name", "description", "public_tests", "private_tests", "generated_tests")
    if row.get("input_file") or row.get("output_file"):
        raise Refused("file_io", f"{row.get('input_file')!r} {row.get('output_file')!r}")
    if "interactive" in (row.get("cf_tags") or ()):
        raise Refused("interactive")
    number = row.get("source")
    source = CC_SOURCES[number] if isinstance(number, int) and 0 <= number < len(CC_SOURCES) else "unknown"
    ids = {}
    if source == "codeforces":
        named = re.match(r"(\d+)_([A-Z]\d?)\.", row["name"])
        contest, letter = (row.get("cf_contest_id"), row.get("cf_index")) if row.get("cf_contest_id") else (
            named.groups() if named else (None, None))
        if contest and letter:
            ids["codeforces"] = f"{contest}/{letter}".upper()
    elif source == "codechef":
        ids["codechef"] = row["name"].upper()
    limit = row.get("time_limit")
    seconds = (limit.get("seconds") or 0) + (limit.get("nanos") or 0) / 1e9 if limit else 0
    public = _pairs(row["public_tests"])
    tests = public + _pairs(row["private_tests"]) + _pairs(row["generated_tests"])
    name = str(index) if index is not None else f"{source}-{row['name'].strip()}"
    return _checked(Problem("/".join(x for x in ("cc", split, name) if x), row["description"], f"code_contests/{source}",
                            tests=tests, public_tests=public, time_limit=seconds or None, compare="tokens", ids=ids))


def from_apps(row: dict, split: str = "") -> Problem:
    """A row of codeparrot/apps. The raw files call the id `id`, the converted ones `problem_id`; it starts anew in each split."""
    _need(row, "apps", "question", "input_output")
    if row.get("problem_id", row.get("id")) is None:
        raise ValueError("a row of apps has neither 'problem_id' nor 'id': its schema has changed; pin another revision")
    number = f"{split}/{row.get('problem_id', row.get('id'))}".lstrip("/")
    given = row["input_output"]
    if isinstance(given, str):
        given = _json(given) if given.strip() else {}
    if not isinstance(given, dict):
        raise Refused("undecodable", "input_output is not an object")
    inputs, outputs = given.get("inputs") or [], given.get("outputs") or []
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Refused("undecodable", "inputs and outputs are not lists")
    if len(inputs) != len(outputs):
        raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
    fn_name = given.get("fn_name")
    if fn_name:
        # A result is wrapped in a list of one, but not in every problem: it is taken off where all of a problem's are.
        wrapped = all(isinstance(o, list) and len(o) == 1 for o in outputs)
        tests = [_call(args, result[0] if wrapped else result) for args, result in zip(inputs, outputs, strict=True)]
    else:
        tests = _pairs({"input": [_joined(x) for x in inputs], "output": [_joined(x) for x in outputs]})
    ids = {"apps": number} | _ids_of_url(row.get("url") or "")
    return _checked(Problem(f"apps/{number}", row["question"], "apps", tests=tests, fn_name=fn_name or None,
                            starter_code=(row.get("starter_code") or "") if fn_name else "", ids=ids))


def from_livecodebench(row: dict) -> Problem:
    """A row of livecodebench/code_generation_lite: graded on public and private tests, in that order."""
    _need(row, "livecodebench", "question_id", "question_content", "public_test_cases", "private_test_cases", "metadata")
    fn_name = (_json(row["metadata"] or "{}") or {}).get("func_name")
    public = [_livecodebench_test(t, fn_name) for t in _json(row["public_test_cases"] or "[]")]
    tests = public + [_livecodebench_test(t, fn_name) for t in _private_tests(row["private_test_cases"] or "[]")]
    name, ids = str(row["question_id"]), {"livecodebench": str(row["question_id"])}
    if row.get("platform") == "codeforces" and "_" in name:
        ids["codeforces"] = name.replace("_", "/").upper()
    elif row.get("platform") == "atcoder":
        ids["atcoder"] = name
    elif row.get("platform") == "leetcode" and row.get("question_title"):
        ids["leetcode"] = re.sub(r"[^a-z0-9]+", "-", row["question_title"].lower()).strip("-")
    return _checked(Problem(f"lcb/{name}", row["question_content"], f"livecodebench/{row.get('platform', '')}".rstrip("/"),
                            tests=tests, public_tests=public, fn_name=fn_name or None,
                            starter_code=(row.get("starter_code") or "") if fn_name else "", ids=ids))


def from_execution(row: dict) -> Problem:
    """A row of livecodebench/execution-v2: what does this call of this function give?"""
    _need(row, "execution", "id", "code", "input", "output")
    return _checked(Problem(f"lcb-execution/{row['id']}", f"What does `{row['input']}` return?\n\n```python\n{row['code']}\n```",
                            "livecodebench/execution", kind="execution", code=row["code"], call=row["input"],
                            answer=row["output"],
                            ids={"livecodebench": str(row["question_id"])} if row.get("question_id") else {}))


def from_test_generation(row: dict) -> Problem:
    """A row of livecodebench/test_generation: what does a right solution give for this call?"""
    _need(row, "test_generation", "question_id", "test_id", "question_content", "function_name", "test")
    tests = _json(row["test"])
    if not isinstance(tests, list) or len(tests) != 1 or not isinstance(tests[0], dict):
        raise Refused("undecodable", "'test' is not a list of one test")
    test = _livecodebench_test(tests[0] | {"testtype": "functional"}, row["function_name"])
    with long_integers():
        call = f"{row['function_name']}({', '.join(map(repr, json.loads(test['input'])))})"
        answer = repr(json.loads(test["output"]))
    return _checked(Problem(f"lcb-test-output/{row['question_id']}/{row['test_id']}", row["question_content"],
                            "livecodebench/test_generation", kind="test_output", starter_code=row.get("starter_code") or "",
                            call=call, answer=answer, ids={"livecodebench": str(row["question_id"])}))


def contest_day(row: dict) -> str:
    """The contest date of a LiveCodeBench row as YYYY-MM-DD: raw files hold ISO text, the JSON reader makes a datetime of it."""
    return str(row.get("contest_date") or "")[:10]


def _need(row: dict, corpus: str, *columns: str) -> None:
    missing = [c for c in columns if c not in row]
    if missing:
        raise ValueError(f"a row of {corpus} has no column {missing[0]!r} (it has {', '.join(map(str, row)) or 'none'}): the schema "
                         f"has changed; use the pinned revision {CORPORA[corpus].revision} of {CORPORA[corpus].repo}")


@contextmanager
def long_integers() -> Iterator[None]:
    """Lets integers of up to MAX_DIGITS digits be converted; more stays a ValueError (the conversion takes quadratic time)."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _json(text: Any) -> Any:
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")
    try:
        with long_integers():
            return json.loads(text, parse_constant=refuse)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused("undecodable", f"{type(error).__name__}: {error}"[:120]) from None


def _pairs(tests: Any) -> list[dict[str, str]]:
    """Parallel lists {"input": [...], "output": [...]}, or a list of pairs, -> a list of tests."""
    if isinstance(tests, dict):
        inputs, outputs = tests.get("input") or [], tests.get("output") or []
        if len(inputs) != len(outputs):
            raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
        tests = [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    for test in tests or []:
        if test.get("input") is None or test.get("output") is None:
            raise Refused("one_sided")
        if not isinstance(test["input"], str) or not isinstance(test["output"], str):
            raise Refused("not_text")
    return list(tests or [])


def _joined(text: Any) -> Any:
    """APPS gives a text or a list of its lines."""
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    return text


def _call(arguments: Any, result: Any) -> dict[str, str]:
    if not isinstance(arguments, list):
        raise Refused("bad_arguments", f"{arguments!r:.60}")
    for value in (*arguments, result):
        if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d+", key) for key in value):
            raise Refused("integer_keys")
    with long_integers():
        return {"input": json.dumps(arguments), "output": json.dumps(result)}


def _livecodebench_test(test: Any, fn_name: str | None) -> dict[str, str]:
    """{"input", "output", "testtype"} -> a test. A functional input holds one JSON value a line, one for each argument."""
    if not isinstance(test, dict) or not isinstance(test.get("input"), str) or not isinstance(test.get("output"), str):
        raise Refused("not_text", f"{test!r:.60}")
    if (test.get("testtype") == "functional") != bool(fn_name):
        raise Refused("mixed_tests", f"testtype {test.get('testtype')!r}, function {fn_name!r}")
    if not fn_name:
        return {"input": test["input"], "output": test["output"]}
    lines = [line.strip() for line in test["input"].split("\n") if line.strip()]
    for value in (*lines, test["output"]):
        _json(value)
    return {"input": f"[{', '.join(lines)}]", "output": test["output"].strip()}     # as written: no number is converted


def _private_tests(text: str) -> list:
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickled JSON text.

    Nothing is unpickled. A pickled text is one opcode that carries it between some that only frame it; the opcodes are
    read as data, and any other one is a refusal. So nothing can be called, and a stored length allocates nothing.
    """
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError):
        try:
            unpacker = zlib.decompressobj()
            pickled = unpacker.decompress(base64.b64decode(text), MAX_TEST_BYTES)
            if not unpacker.eof and (unpacker.unconsumed_tail or len(pickled) >= MAX_TEST_BYTES):
                raise Refused("too_large", f"more than {MAX_TEST_BYTES >> 20} MiB")
            opcodes = [(code.name, value) for code, value, _ in pickletools.genops(pickled)]
        except Refused:
            raise
        except Exception as error:      # a damaged stream raises whatever it likes, and each of those means one thing
            raise Refused("undecodable", f"{type(error).__name__}: {error}"[:120]) from None
        strings = [value for name, value in opcodes if name in PICKLED_TEXT]
        stray = [name for name, _ in opcodes if name not in PICKLED_TEXT | PICKLE_FRAME]
        if stray or len(strings) != 1:
            raise Refused("undecodable", f"the pickle is not one text (opcode {stray[0]})" if stray else "the pickle holds no text")
        tests = _json(strings[0])
    if not isinstance(tests, list):
        raise Refused("undecodable", "the private tests are not a list")
    return tests


PICKLED_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PICKLE_FRAME = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


def _ids_of_url(url: str) -> dict[str, str]:
    """The official identifier that a problem's web address holds."""
    for site, pattern in (("codeforces", r"codeforces\.com/(?:problemset/problem|contest|gym)/(\d+)/(?:problem/)?([A-Z]\d?)\b"),
                          ("atcoder", r"atcoder\.jp/contests/[^/]+/tasks/(\w+)"),
                          ("codechef", r"codechef\.com/(?:\w+/)?problems/(\w+)"),
                          ("leetcode", r"leetcode\.com/problems/([\w-]+)")):
        if found := re.search(pattern, url, re.IGNORECASE):
            name = "/".join(found.groups())
            return {site: name.lower() if site in ("atcoder", "leetcode") else name.upper()}
    return {}


def _checked(problem: Problem) -> Problem:
    """The refusals that every corpus shares."""
    if not isinstance(problem.statement, str) or not re.search(r"\w", problem.statement):
        raise Refused("no_statement")
    if problem.kind == "code":
        if not problem.tests:
            raise Refused("no_tests")
        if not any(t["output"].strip() for t in problem.tests):
            raise Refused("no_outputs")
    try:
        for text in (problem.id, problem.statement, problem.starter_code, *(x for t in problem.tests for x in t.values())):
            text.encode()
    except UnicodeEncodeError:
        raise Refused("not_text", "a lone surrogate") from None
    return problem_from_json(problem_to_json(problem))


# ------------------------------------------------------------------------------------------------ where the rows come from

@dataclass(frozen=True)
class Corpus:
    repo: str
    revision: str
    files: dict[str, tuple[str, ...]]       # split -> files of the repository (patterns allowed), in order
    columns: tuple[str, ...] | None = None  # of parquet files, all if None


# Explicit file addresses at pinned revisions: two of the five repositories hold a loading script, which `datasets` refuses to
# see. Of execution-v2 no commit is known to us: "main" is resolved to one when it is read, and the manifest keeps that.
CORPORA = {
    "code_contests": Corpus(
        "deepmind/code_contests", "802411c3010cb00d1b05bad57ca77365a3c699d6",
        {split: (f"data/{split}-*.parquet",) for split in ("train", "valid", "test")},
        ("name", "description", "public_tests", "private_tests", "generated_tests", "source", "cf_contest_id", "cf_index",
         "cf_tags", "time_limit", "input_file", "output_file")),        # without the solutions, which are most of the bytes
    "apps": Corpus(
        "codeparrot/apps", "21e74ddf8de1a21436da12e3e653065c5213e9d1",
        {"train": ("train.jsonl",), "test": ("test.jsonl",)}),
    "livecodebench": Corpus(                # release_v6: all six files
        "livecodebench/code_generation_lite", "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        {"test": ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))}),
    "execution": Corpus("livecodebench/execution-v2", "main", {"test": ("data/test-*.parquet",)}),
    "test_generation": Corpus(
        "livecodebench/test_generation", "6f3ac40bbecf81eba15899139d279b077f2816fd", {"test": ("test.parquet",)}),
}


def rows(corpus: str, split: str, local: str | os.PathLike | None = None, revision: str | None = None) -> Iterator[dict]:
    """The raw rows of a split: streamed from the hub, or of the parquet and JSON-lines files of a local folder (or one file).

    Of a folder, every file below it whose name begins with the split's name is read, in the order of their paths.
    """
    if corpus not in CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}: one of {', '.join(CORPORA)}")
    known = CORPORA[corpus]
    if split not in known.files:
        raise ValueError(f"{corpus} has no split {split!r}: one of {', '.join(known.files)}")
    if local is None:
        base = f"hf://datasets/{known.repo}@{revision or known.revision}"
        return _stream([f"{base}/{name}" for name in known.files[split]], known.columns, corpus)
    path = Path(local)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: --local {corpus}= takes a folder with copies of the files of "
                                f"{known.repo}, or one such file")
    found = [path] if path.is_file() else sorted(
        (p for p in path.rglob("*") if p.name.startswith(split) and p.suffix in (".parquet", ".jsonl")),
        key=lambda p: (str(p.parent), [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", p.stem)]))
    if not found:
        raise FileNotFoundError(f"{path} holds no {split}*.parquet and no {split}*.jsonl: copy {', '.join(known.files[split])} of "
                                f"{known.repo} into it")
    return (row for p in found for row in (_stream([str(p)], known.columns, corpus) if p.suffix == ".parquet"
                                           else _json_rows(p)))


def _json_rows(path: Path) -> Iterator[dict]:
    for number, row in read_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
        yield row


def _stream(urls: list[str], columns: tuple[str, ...] | None, corpus: str) -> Iterator[dict]:
    import datasets

    options = {"columns": list(columns)} if columns and urls[0].endswith(".parquet") else {}
    kind = "parquet" if urls[0].endswith(".parquet") else "json"
    try:
        yield from datasets.load_dataset(kind, data_files={"rows": urls}, split="rows", streaming=True, **options)
    except Exception as error:      # the hub's client, its file system and the parquet reader each have errors of their own
        said = " ".join(str(error).split()) or "no message"
        raise OSError(f"cannot read {urls[0]} ({type(error).__name__}: {said:.200}): try again with a network, or copy the files of "
                      f"{CORPORA[corpus].repo} to a folder and pass --local {corpus}=FOLDER, or leave them out by --skip "
                      f"{corpus}") from error


def resolved_revision(corpus: str) -> str:
    """The commit that a corpus is read at: the pinned one, or what a branch points to now."""
    known = CORPORA[corpus]
    if re.fullmatch("[0-9a-f]{40}", known.revision):
        return known.revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(known.repo, revision=known.revision).sha
    except Exception as error:      # as in _stream
        raise OSError(f"cannot ask the hub for {known.repo} ({type(error).__name__}): try again with a network, pass --local "
                      f"{corpus}=FOLDER, or leave it out by --skip {corpus}") from error


# ------------------------------------------------------------------------------------------------ build: the splits of Tables 3 and 9

@dataclass(frozen=True)
class Pool:
    name: str                   # its file is NAME.jsonl
    corpus: str
    split: str
    use: str                    # "train" and "dev" are cleaned; "eval" and "show" are held out
    size: int                   # default
    stage: str                  # Table 9
    newest: bool = False        # drawn by date, not by the seeded hash


POOLS = (
    Pool("sft", "code_contests", "train", "train", 700, "Planner SFT: offered to the teacher"),
    Pool("gate", "code_contests", "train", "train", 700, "Reward model: offered to the teacher"),
    Pool("warmup", "apps", "train", "train", 500, "Planner warm-up"),
    Pool("joint", "code_contests", "train", "train", 300, "Joint CPPO rollout pool"),
    Pool("dev", "code_contests", "train", "dev", 100, "Early stopping, sweeps (dev subset)"),
    Pool("apps", "apps", "test", "eval", 200, "Held-out eval: APPS"),
    Pool("cc", "code_contests", "valid", "eval", 100, "Held-out eval: CodeContests"),
    Pool("lcb", "livecodebench", "test", "eval", 300, "Held-out eval: LCBv6", newest=True),
    Pool("apps-500", "apps", "test", "eval", 500, "Diagnostic slice: APPS"),
    Pool("lcb-500", "livecodebench", "test", "eval", 500, "Diagnostic slice: LiveCodeBench"),
    Pool("execution", "execution", "test", "eval", 479, "Held-out eval: code execution (maj@4)"),
    Pool("test-output", "test_generation", "test", "eval", 442, "Held-out eval: test output (maj@4)"),
    Pool("show", "code_contests", "test", "show", 20, "Qualitative examples"),
)
MANIFEST, HELD_OUT, BOILERPLATE_FILE = "manifest.json", "held_out.jsonl", "boilerplate.npy"
READERS: dict[str, Callable[..., Problem]] = {
    "code_contests": from_code_contests, "apps": from_apps, "livecodebench": from_livecodebench,
    "execution": from_execution, "test_generation": from_test_generation}


def read_split(corpus: str, split: str, local: str | None, revision: str | None, keep: Callable[[Problem, dict], None]) -> dict:
    """Turn every row of a split into a problem, hand it to `keep`, and return the counts for the manifest.

    Of APPS only the introductory problems are read: the paper uses no others.
    """
    refused: dict[str, list[str]] = defaultdict(list)
    number = other = loaded = 0
    for number, row in enumerate(rows(corpus, split, local, revision), 1):
        if corpus == "apps" and row.get("difficulty") != "introductory":
            other += 1
            continue
        try:
            if corpus == "code_contests":
                problem = from_code_contests(row, split, number - 1)
            else:
                problem = from_apps(row, split) if corpus == "apps" else READERS[corpus](row)
        except Refused as error:
            refused[error.reason].append(f"row {number - 1}")
            continue
        loaded += 1
        keep(problem, row)
    return {"rows": number, "not_introductory": other, "loaded": loaded, "refused": dict(sorted(refused.items()))}


def deduplicate(problems: Sequence[Problem]) -> dict[str, str]:
    """Id of a problem that repeats an earlier one of its corpus -> id of that one; by official identifier or hash."""
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
    """A random order that depends on ids and seed alone: a corpus that grows or loses problems shuffles no others."""
    return sorted(problems, key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())


def build(out: str | os.PathLike, sizes: dict[str, int] | None = None, seed: int = 0, local: dict[str, str] | None = None,
          skip: Iterable[str] = (), say: Callable[[str], None] = print) -> dict:
    """Write the pools and the manifest, and return the manifest. `sizes` replaces Pool.size by name; 0 leaves a pool out.

    A pool that comes out smaller than asked for is said and stands in the manifest. A folder that holds the same build
    already is left alone; another build there is an error, for evaluation slices are fixed before any run.
    """
    out, local, skip = Path(out), dict(local or {}), sorted(set(skip))
    for name in (*local, *skip):
        if name not in CORPORA:
            raise ValueError(f"unknown corpus {name!r}: one of {', '.join(CORPORA)}")
    wanted = {pool.name: pool.size for pool in POOLS} | dict(sizes or {})
    if unknown := set(wanted) - {pool.name for pool in POOLS}:
        raise ValueError(f"unknown pool {sorted(unknown)[0]!r}: one of {', '.join(pool.name for pool in POOLS)}")
    asked = {"seed": seed, "sizes": wanted, "local": local, "skip": skip}
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest["asked"] != asked:
            changed = next(key for key in asked if manifest["asked"].get(key) != asked[key])
            raise ValueError(f"{out} holds a build with another {changed} ({manifest['asked'].get(changed)}): choose another --out, "
                             f"or delete that folder")
        say(f"{out} holds this build already")
        return manifest
    pools = [pool for pool in POOLS if wanted[pool.name] > 0 and pool.corpus not in skip]
    if not pools:
        raise ValueError("nothing to build: every corpus is skipped or every size is 0")
    if missing := sorted({pool.corpus for pool in POOLS if pool.use in ("eval", "show")} & set(skip)):
        say(f"left out: {', '.join(missing)}: training pools are NOT cleaned against them")

    # -------- read: whole rows to disk, statements and identifiers to memory
    out.mkdir(parents=True, exist_ok=True)
    splits = sorted({(pool.corpus, pool.split) for pool in pools})
    revisions = {corpus: {"local": local[corpus]} if corpus in local else
                 {"repo": CORPORA[corpus].repo, "revision": resolved_revision(corpus)} for corpus, _ in splits}
    cards: dict[tuple[str, str], list[Problem]] = {}
    place: dict[str, int] = {}
    day: dict[str, str] = {}
    counts: dict[str, dict] = {}
    with open(out / "rows.part", "w+b") as spool:
        for corpus, split in splits:
            read = cards[corpus, split] = []

            def keep(problem: Problem, row: dict) -> None:
                if problem.id in place:
                    raise ValueError(f"{corpus} {split}: two rows have the id {problem.id!r}")
                place[problem.id], day[problem.id] = spool.tell(), contest_day(row)
                spool.write(json.dumps(problem_to_json(problem)).encode() + b"\n")
                read.append(Problem(problem.id, problem.statement, ids=problem.ids))

            counts[f"{corpus}/{split}"] = read_split(corpus, split, local.get(corpus), revisions[corpus].get("revision"), keep)
            say(f"{corpus} {split}: {len(read)} problems; refused "
                f"{ {r: len(found) for r, found in counts[f'{corpus}/{split}']['refused'].items()} or 'none'}")

        # -------- clean: each split of its own repeats, then training of everything held out
        for corpus, split in splits:
            repeats = deduplicate(cards[corpus, split]) if corpus not in ("execution", "test_generation") else {}
            counts[f"{corpus}/{split}"]["repeats"] = repeats
            cards[corpus, split] = [p for p in cards[corpus, split] if p.id not in repeats]
        trained = {(pool.corpus, pool.split) for pool in pools if pool.use in ("train", "dev")}
        held_out = [p for key in splits if key not in trained for p in cards[key]]
        training = [p for key in splits if key in trained for p in cards[key]]
        overlaps, common = find_overlaps(training, held_out)
        for key in sorted(trained):
            removed = {p.id: dataclasses.asdict(overlaps[p.id]) for p in cards[key] if p.id in overlaps}
            counts["/".join(key)]["removed"] = removed
            cards[key] = [p for p in cards[key] if p.id not in overlaps]
            say(f"{' '.join(key)}: {len(removed)} removed as held-out problems "
                f"{dict(Counter(x['rule'] for x in removed.values())) or ''}, {len(cards[key])} left")

        # -------- draw
        taken: set[str] = set()
        entries: dict[str, dict] = {}
        for pool in pools:
            candidates = [p for p in draw_order(cards[pool.corpus, pool.split], seed) if p.id not in taken]
            if pool.newest:
                candidates.sort(key=lambda p: (day[p.id], p.id), reverse=True)
            chosen = candidates[:wanted[pool.name]]
            if pool.use in ("train", "dev"):
                taken |= {p.id for p in chosen}
            if len(chosen) < wanted[pool.name]:
                say(f"{pool.name}: only {len(chosen)} of {wanted[pool.name]} problems")
            if not chosen:
                raise ValueError(f"pool {pool.name!r}: no problem of {pool.corpus} {pool.split} is left: lower the sizes, or leave it out "
                                 f"by --{pool.name} 0")
            save_lines(out / f"{pool.name}.jsonl", (json.loads(_line_at(spool, place[p.id])) for p in chosen))
            entries[pool.name] = {
                "file": f"{pool.name}.jsonl", "use": pool.use, "stage": pool.stage, "split": f"{pool.corpus} {pool.split}",
                "rule": "newest by contest date" if pool.newest else f"sha256 of '{seed}:id'", "wanted": wanted[pool.name],
                "problems": len(chosen), "sha256": _sha256(out / f"{pool.name}.jsonl"), "ids": [p.id for p in chosen],
                "hashes": [statement_hash(p.statement) for p in chosen]}
    os.remove(out / "rows.part")
    save_problems_without_tests(out / HELD_OUT, held_out)
    np.save(out / BOILERPLATE_FILE, common)
    manifest = {"asked": asked, "sources": revisions, "splits": counts, "pools": entries, "held_out": len(held_out),
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


def save_problems_without_tests(path: Path, problems: Iterable[Problem]) -> None:
    save_lines(path, ({"id": p.id, "statement": p.statement, "ids": p.ids} for p in problems))


def read_manifest(folder: str | os.PathLike) -> dict:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: build the corpora by `python data.py build --out {folder}`")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete {folder} and build it again") from None


def default_pool(name: str, corpora: str | os.PathLike = "corpora") -> Path:
    """The file of a pool, built with the paper's sizes on first use (call it on one rank first)."""
    if not (Path(corpora) / MANIFEST).exists():
        print(f"{corpora} is not built yet: building it", file=sys.stderr)
        build(corpora, say=lambda line: print(line, file=sys.stderr))
    entry = read_manifest(corpora)["pools"].get(name)
    if entry is None:
        raise ValueError(f"{corpora} was built without the pool {name!r}: build it again with it, or pass a file by --problems")
    return Path(corpora) / entry["file"]


# ------------------------------------------------------------------------------------------------ audit: Tables 9 and 10

def load_held_out(corpora: str | os.PathLike) -> tuple[list[Problem], np.ndarray]:
    """What nothing may be trained on, and the boilerplate grams, as `build` wrote them."""
    problems = [Problem(row["id"], row["statement"], ids=row["ids"]) for _, row in read_lines(Path(corpora) / HELD_OUT)]
    return problems, np.load(Path(corpora) / BOILERPLATE_FILE)


def exposures(path: str | os.PathLike, held_out: Sequence[Problem], boilerplate: np.ndarray) -> tuple[list[str], dict[str, Overlap]]:
    """Ids of the problems that a file speaks of (problems, gold tuples or gate labels), and those of them that are held out."""
    problems: dict[str, Problem] = {}
    for number, row in read_lines(path):
        name = row.get("problem_id", row.get("id")) if isinstance(row, dict) else None
        if name is None:
            raise ValueError(f"{path} line {number}: neither 'id' nor 'problem_id', so nothing can be audited")
        problems.setdefault(str(name), Problem(str(name), row.get("statement") or "", ids=row.get("ids") or {}))
    return list(problems), find_overlaps(list(problems.values()), held_out, boilerplate)[0]


def audit_pool(path: str | os.PathLike, corpora: str | os.PathLike = "corpora") -> str:
    """Check a training file before it is used. Raises ValueError if it holds an evaluation problem; otherwise returns what is
    to be said about it and written into the run's config, "" if all is known and well."""
    path = Path(path)
    folder = next((f for f in (path.parent, Path(corpora)) if (f / MANIFEST).exists()), None)
    if folder is None:
        return f"{path} has no manifest: whether it shares problems with the evaluation sets is not known"
    names, found = exposures(path, *load_held_out(folder))
    if found:
        name, overlap = next(iter(found.items()))
        raise ValueError(f"{path} holds {len(found)} evaluation problem(s) among {len(names)}, the first {name!r} (held out as "
                         f"{overlap.held_out!r}, found by {overlap.rule}): train on a pool that `python data.py build` cleaned")
    for entry in read_manifest(folder)["pools"].values():
        if path.resolve() == (folder / entry["file"]).resolve() and _sha256(path) != entry["sha256"]:
            return f"{path} is not the file that {folder / MANIFEST} describes: it was changed after the build"
    return ""


COMPONENTS = (      # Table 10: component, files under corpora/, which runs (stage folder), what the paper notes
    ("Teacher", ("sft.jsonl", "gate.jsonl", "gold.jsonl"), None, "candidate generation"),
    ("LLM judge for plan validity", ("sft.jsonl", "gate.jsonl"), None, "keeps or drops candidates, labels plans"),
    ("Planner SFT", ("gold.jsonl",), "sft", ""),
    ("RM training labels", ("labels_train.jsonl",), "gate", "balanced pass/fail"),
    ("RM val (acceptance, threshold)", ("labels_val.jsonl",), None, "disjoint from RM train"),
    ("Planner warm-up", ("warmup.jsonl",), "warmup", ""),
    ("Joint CPPO rollout, RM refresh", ("joint.jsonl",), "cppo", ""),
    ("Hyperparameter sweep / early stopping", ("dev.jsonl",), None, "dev disjoint from eval"),
)


def audit(corpora: str | os.PathLike = "corpora", runs: str | os.PathLike = "runs") -> tuple[str, list[str]]:
    """Tables 9 and 10 as text, from the manifest and the config.json of every run, and the list of what is wrong."""
    corpora, runs = Path(corpora), Path(runs)
    manifest = read_manifest(corpora)
    held_out, boilerplate = load_held_out(corpora)
    wrong: list[str] = []
    checked: dict[Path, tuple[list[str], dict[str, Overlap]]] = {}

    def seen(path: Path) -> str:
        if not path.exists():
            return f"unknown, {path} is gone"
        if path not in checked:
            checked[path] = exposures(path, held_out, boilerplate)
            for name, overlap in checked[path][1].items():
                wrong.append(f"{path}: {name} is held out as {overlap.held_out} (by {overlap.rule})")
        return f"YES, {len(checked[path][1])}" if checked[path][1] else "no"

    lines = ["Table 9: splits", f"{'stage':44} {'source split':22} {'problems':>8}"]
    for entry in manifest["pools"].values():
        short = f"  (asked for {entry['wanted']})" if entry["problems"] < entry["wanted"] else ""
        lines.append(f"{entry['stage']:44} {entry['split']:22} {entry['problems']:8}{short}")
        if _sha256(corpora / entry["file"]) != entry["sha256"]:
            wrong.append(f"{corpora / entry['file']} was changed after the build")
    for name, stage in (("gold.jsonl", "Planner SFT (gold tuples)"), ("labels_train.jsonl", "Reward-model labels, train"),
                        ("labels_val.jsonl", "Reward-model labels, val")):
        if (corpora / name).exists():
            count = sum(1 for _ in read_lines(corpora / name))
            lines.append(f"{stage:44} {'of ' + ('sft' if name == 'gold.jsonl' else 'gate'):22} {count:8}")
    for name, split in manifest["splits"].items():
        rules = Counter(x["rule"] for x in split.get("removed", {}).values())
        lines.append(f"  {name}: {split['rows']} rows, {split['loaded']} loaded, "
                     f"{sum(map(len, split['refused'].values()))} refused, {len(split['repeats'])} repeats, "
                     f"{sum(rules.values())} removed as held out {dict(rules) or ''}".rstrip())

    lines += ["", "Table 10: exposure", f"{'component':40} {'held-out seen?':16} file"]
    flags = run_files(runs)
    for component, names, stage, note in COMPONENTS:
        files = [corpora / name for name in names if (corpora / name).exists()]
        files += sorted({path for found, path in flags if found == stage and path not in files})
        for path in files:
            lines.append(f"{component:40} {seen(path):16} {path}{f'  ({note})' if note else ''}")
        if not files:
            lines.append(f"{component:40} {'not run':16}")
    for found, path in sorted(flags):
        if found not in {stage for *_, stage, _ in COMPONENTS}:
            lines.append(f"{found:40} {seen(path):16} {path}")
    shown = manifest["pools"].get("show")
    lines.append(f"{'Qualitative examples':40} {'no' if shown else 'not run':16} {corpora / shown['file'] if shown else ''}")
    lines.append(f"{'Final evaluation':40} {'N/A':16} no parameter updates")
    train, val = (checked.get(corpora / f"labels_{side}.jsonl", ([], {}))[0] for side in ("train", "val"))
    if both := set(train) & set(val):
        wrong.append(f"{len(both)} problems have gate labels in training and validation, the first {min(both)}")
    return "\n".join(lines), wrong


def run_files(runs: Path) -> set[tuple[str, Path]]:
    """(stage, file) of every JSON-lines file that a flag of a training run names."""
    found = set()
    for path in runs.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if "eval" in path.relative_to(runs).parts or not isinstance(config.get("flags"), dict):
            continue                # an evaluation, or the config of a checkpoint
        values = [x for value in (config["flags"], config.get("pools") or {}) for x in value.values()]
        found |= {(path.parent.name, Path(x)) for x in values if isinstance(x, str) and x.endswith(".jsonl")}
    return found


# ------------------------------------------------------------------------------------------------ commands

def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Problems: build the splits of the paper, audit what was exposed to which component.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="read the corpora, clean them, write the pools and the manifest")
    make.add_argument("--out", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of every draw by hash (default %(default)s)")
    make.add_argument("--local", action="append", default=[], metavar="CORPUS=PATH",
                      help="read a corpus from a folder with copies of its files, or from one file, instead of the hub; "
                      f"corpora: {', '.join(CORPORA)}")
    make.add_argument("--skip", action="append", default=[], metavar="CORPUS", help="leave a corpus and its pools out")
    sizes = make.add_argument_group("sizes, in problems (0 leaves the pool out)")
    for pool in POOLS:
        sizes.add_argument(f"--{pool.name}", type=int, default=pool.size, metavar="N",
                           help=f"{pool.stage}: {pool.corpus} {pool.split} (default %(default)s)")
    check = commands.add_parser("audit", help="print Tables 9 and 10; exit status 1 if a component saw an evaluation problem")
    check.add_argument("--corpora", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    check.add_argument("--runs", default="runs", metavar="FOLDER", help="(default %(default)s)")
    args = parser.parse_args(argv)

    import common       # here, so that reading problems does not need torch

    with common.explain():
        if args.command == "build":
            if malformed := [x for x in args.local if "=" not in x]:
                raise ValueError(f"--local {malformed[0]}: write CORPUS=PATH, for example --local apps=copies/apps")
            chosen = {pool.name: getattr(args, pool.name.replace("-", "_")) for pool in POOLS}
            if negative := [name for name, n in chosen.items() if n < 0]:
                raise ValueError(f"--{negative[0]} {chosen[negative[0]]}: a size is 0 or more")
            build(args.out, chosen, args.seed, dict(x.split("=", 1) for x in args.local), args.skip)
            print(f"written to {args.out}")
        else:
            tables, wrong = audit(args.corpora, args.runs)
            print(tables)
            for line in wrong:
                print(f"EXPOSED: {line}" if "held out" in line else f"WRONG: {line}", file=sys.stderr)
            raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
