"""Rows of the five corpora to problems."""

import base64
import json
import pickletools
import re
import zlib
from dataclasses import dataclass
from typing import Any

from lib.files import long_integers
from lib.problems import Problem, problem_from_json, problem_to_json
from prepare.decontaminate import canonical


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
