"""Rows of the five corpora -> problems.

A row that cannot be judged is `Refused` by a name in REASONS. A row of another schema is a
UserError: the file is not what the pinned revision holds.
"""

import base64
import json
import pickletools
import re
import zlib
from typing import Any

from lib.errors import UserError
from lib.files import long_integers
from lib.problems import Problem, problem_from_json, problem_to_json
from prepare.decontaminate import canonical
from prepare.sources import CORPORA

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
    "integer_keys": "an argument or a result is a dictionary with integer keys, which JSON lacks",
    "mixed_tests": "some tests call a function and some do not",
}
MAX_TEST_BYTES = 512 << 20      # of one row's unpacked private tests: a zip bomb stops here


class Refused(ValueError):
    """A row that cannot become a problem. `reason` is a name in REASONS; the build counts them."""

    def __init__(self, reason: str, detail: str = ""):
        note = f" ({detail:.120})" if detail else ""
        super().__init__(f"{reason}: {REASONS[reason]}{note}")
        self.reason = reason


# ----------------------------------------------------------------------------------------------
# The five corpora

# The data set's ClassLabel has no gaps; the protobuf it came from has ATCODER = 6 and AIZU = 7.
CODE_CONTESTS_SOURCES = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "atcoder",
                         "aizu")


def from_code_contests(row: dict, split: str = "", index: int | None = None) -> Problem:
    """A row of deepmind/code_contests: standard input, token comparison.

    `index` is the row's place in its split, because names are not unique; without it, the id is
    made of source and name.
    """
    require(row, "code_contests", name=str, description=str, public_tests=object,
            private_tests=object, generated_tests=object)
    allow(row, "code_contests", source=int, time_limit=dict, memory_limit_bytes=int, cf_tags=list,
          cf_contest_id=int, cf_index=str)
    # the sandbox has neither files for a program nor an interactor
    if row.get("input_file") or row.get("output_file"):
        raise Refused("file_io", f"{row.get('input_file')!r} {row.get('output_file')!r}")
    if "interactive" in (row.get("cf_tags") or ()):
        raise Refused("interactive")
    source = "unknown"
    if row.get("source") in range(len(CODE_CONTESTS_SOURCES)):
        source = CODE_CONTESTS_SOURCES[row["source"]]
    name = f"{source}-{row['name'].strip()}" if index is None else str(index)
    public = paired(row["public_tests"])
    return checked(Problem(
        id="/".join(part for part in ("cc", split, name) if part),
        statement=row["description"],
        source=f"code_contests/{source}",
        tests=public + paired(row["private_tests"]) + paired(row["generated_tests"]),
        public_tests=public,
        compare="tokens",           # as the corpus's own checker does
        ids=code_contests_ids(row, source),
        time_limit=code_contests_seconds(row.get("time_limit") or {}),
        memory_limit=code_contests_mebibytes(row.get("memory_limit_bytes") or 0)))


def code_contests_ids(row: dict, source: str) -> dict[str, str]:
    if source == "codechef":
        return {"codechef": row["name"].upper()}
    if source != "codeforces":
        return {}
    if row.get("cf_contest_id") and row.get("cf_index"):
        return {"codeforces": f"{row['cf_contest_id']}/{row['cf_index']}".upper()}
    named = re.match(r"(\d+)_([A-Z]\d?)\.", row["name"])
    return {"codeforces": f"{named[1]}/{named[2]}"} if named else {}


def code_contests_seconds(limit: dict) -> float | None:
    """Seconds and nanoseconds -> seconds; None for a limit of 0 or of a thousand seconds."""
    allow(limit, "code_contests", seconds=int, nanos=int)
    nanos = (limit.get("seconds") or 0) * 10 ** 9 + (limit.get("nanos") or 0)
    return nanos / 1e9 if 0 < nanos < 10 ** 12 else None


def code_contests_mebibytes(limit: int) -> float | None:
    """Bytes -> MiB; None for a limit of 0 or of a tebibyte."""
    return limit / 2 ** 20 if 0 < limit < 2 ** 40 else None


def from_apps(row: dict, split: str = "") -> Problem:
    """A row of codeparrot/apps. Its number is `id` in the raw files and `problem_id` in converted
    ones; the numbers start anew in each split."""
    require(row, "apps", question=str, input_output=str | dict)
    allow(row, "apps", url=str, starter_code=str)
    number = apps_number(row, split)
    fn_name, tests = apps_tests(row)
    return checked(Problem(
        id=f"apps/{number}",
        statement=row["question"],
        source="apps",
        tests=tests,
        fn_name=fn_name,
        starter_code=starter_code(row, fn_name),
        float_tolerance=float_tolerance(tests, fn_name),
        ids={"apps": number} | ids_of_url(row.get("url") or "")))


def apps_number(row: dict, split: str) -> str:
    key = "id" if row.get("problem_id") is None else "problem_id"
    require(row, "apps", **{key: int | str})
    return f"{split}/{row[key]}".lstrip("/")


def apps_tests(row: dict) -> tuple[str | None, list[dict[str, str]]]:
    """(fn_name, tests) of the column input_output: an object, as JSON or decoded."""
    given = row["input_output"]
    if isinstance(given, str):
        given = parse_json(given) if given.strip() else {}
    if not isinstance(given, dict):
        raise Refused("undecodable", "input_output is not an object")
    inputs, outputs = given.get("inputs") or [], given.get("outputs") or []
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Refused("undecodable", "input_output does not hold two lists")
    if len(inputs) != len(outputs):
        raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
    fn_name = function_name(given.get("fn_name"))
    if not fn_name:
        inputs, outputs = list(map(joined, inputs)), list(map(joined, outputs))
        return None, paired({"input": inputs, "output": outputs})
    if are_wrapped(outputs, row):
        outputs = [output[0] for output in outputs]
    return fn_name, [call_test(*pair) for pair in zip(inputs, outputs, strict=True)]


def are_wrapped(outputs: list, row: dict) -> bool:
    """Whether each result of a call is wrapped in a list of one.

    Codewars' are, LeetCode's are not, and a list of one may be the result itself. So where the
    starter code says what it returns, that decides; else the site.
    """
    if not all(isinstance(output, list) and len(output) == 1 for output in outputs):
        return False
    annotation = LIST_RESULT.search(row.get("starter_code") or "")
    if annotation:
        declared = annotation[1].lower().count("list")
        return max(map(list_depth, outputs), default=0) > declared
    return "leetcode.com" not in (row.get("url") or "")


# "-> List[List[int]]:" with the part that says how deep; empty for "-> int:"
LIST_RESULT = re.compile(r"->\s*(?:Optional\[)?((?:list\b\[?)*)[^:]*:", re.IGNORECASE)


def list_depth(value: Any) -> int:
    if not isinstance(value, list):
        return 0
    return 1 + max(map(list_depth, value), default=0)


def from_livecodebench(row: dict) -> Problem:
    """A row of livecodebench/code_generation_lite: graded on public and private tests, in that
    order."""
    require(row, "livecodebench", question_id=int | str, question_content=str,
            public_test_cases=str | None, private_test_cases=str | None, metadata=str | None)
    allow(row, "livecodebench", starter_code=str)
    metadata = parse_json(row["metadata"] or "{}")
    fn_name = None
    if isinstance(metadata, dict):
        fn_name = function_name(metadata.get("func_name"))
    public = livecodebench_tests(parse_json(row["public_test_cases"] or "[]"), fn_name)
    private = livecodebench_tests(private_tests(row["private_test_cases"] or "[]"), fn_name)
    return checked(Problem(
        id=f"lcb/{row['question_id']}",
        statement=row["question_content"],
        source=f"livecodebench/{row.get('platform') or ''}",
        tests=public + private,
        public_tests=public,
        fn_name=fn_name,
        starter_code=starter_code(row, fn_name),
        float_tolerance=float_tolerance(public + private, fn_name),
        ids=livecodebench_ids(row)))


def livecodebench_ids(row: dict) -> dict[str, str]:
    name, platform = str(row["question_id"]), row.get("platform")
    ids = {"livecodebench": name}
    if platform == "codeforces" and "_" in name:
        ids["codeforces"] = name.replace("_", "/").upper()
    elif platform == "atcoder":
        ids["atcoder"] = name
    elif platform == "leetcode" and row.get("question_title"):
        title = str(row["question_title"]).lower()
        ids["leetcode"] = re.sub(r"[^a-z0-9]+", "-", title).strip("-")
    return ids


def from_execution(row: dict) -> Problem:
    """A row of livecodebench/execution-v2: what does this call of this function return?"""
    require(row, "execution", id=int | str, code=str, input=str, output=str)
    question = row.get("question_id")
    return checked(Problem(
        id=f"lcb-execution/{row['id']}",
        statement=f"What does `{row['input']}` return?\n\n```python\n{row['code']}\n```",
        source="livecodebench/execution",
        kind="execution",
        code=row["code"],
        call=row["input"],
        answer=row["output"],
        ids={"livecodebench": str(question)} if question else {}))


def from_test_generation(row: dict) -> Problem:
    """A row of livecodebench/test_generation: what does a right solution return for this call?"""
    require(row, "test_generation", question_id=int | str, test_id=int | str, question_content=str,
            function_name=str, test=str)
    allow(row, "test_generation", starter_code=str)
    tests = livecodebench_tests(parse_json(row["test"]), row["function_name"])
    if len(tests) != 1:
        raise Refused("undecodable", f"{len(tests)} tests instead of one")
    with long_integers():
        arguments = ", ".join(map(repr, json.loads(tests[0]["input"])))
        answer = repr(json.loads(tests[0]["output"]))
    return checked(Problem(
        id=f"lcb-test-output/{row['question_id']}/{row['test_id']}",
        statement=row["question_content"],
        source="livecodebench/test_generation",
        kind="test_output",
        starter_code=row.get("starter_code") or "",
        call=f"{row['function_name']}({arguments})",
        answer=answer,
        ids={"livecodebench": str(row["question_id"])}))


def read_row(corpus: str, split: str, index: int, row: dict) -> Problem:
    """A row of any corpus; `index` is its place in the split."""
    if corpus == "code_contests":
        return from_code_contests(row, split, index)
    if corpus == "apps":
        return from_apps(row, split)
    if corpus == "livecodebench":
        return from_livecodebench(row)
    return from_execution(row) if corpus == "execution" else from_test_generation(row)


def row_id(corpus: str, split: str, index: int, row: dict) -> str:
    """The id of the problem that `read_row` makes of a CodeContests or APPS row."""
    if corpus == "code_contests":
        return f"cc/{split}/{index}"
    return f"apps/{apps_number(row, split)}"


def contest_day(row: dict) -> str:
    """A row's contest date as YYYY-MM-DD. Raw files hold ISO text, the hub's JSON reader makes a
    datetime."""
    return str(row.get("contest_date") or "")[:10]


# ----------------------------------------------------------------------------------------------
# Schemas

def require(row: dict, corpus: str, **columns: Any) -> None:
    """UserError for a missing column or one of another type: the schema changed, which is no
    refusal."""
    if not isinstance(row, dict):
        raise UserError(f"a row of {corpus} is an object of the schema's columns, not {row!r:.60}")
    for name, kind in columns.items():
        if name in row and isinstance(row[name], kind):
            continue
        wrong = f"no column {name!r}"
        if name in row:
            wrong = f"{name!r} holds {type(row[name]).__name__}"
        raise UserError(f"a row of {corpus} has another schema ({wrong}): use the pinned revision "
                        f"{CORPORA[corpus].revision} of {CORPORA[corpus].repo}")


def allow(row: dict, corpus: str, **columns: Any) -> None:
    """The same for columns that may be absent or null."""
    present = {name: kind for name, kind in columns.items() if row.get(name) is not None}
    require(row, corpus, **present)


def checked(problem: Problem) -> Problem:
    """The refusals that every corpus shares."""
    if not re.search(r"\w", canonical(problem.statement)):
        raise Refused("no_statement")
    outputs = [problem.answer or ""]
    if problem.kind == "code":
        outputs = [test["output"] for test in problem.tests]
        if not outputs:
            raise Refused("no_tests")
    # a program that prints nothing must earn no reward
    if not any(map(str.strip, outputs)):
        raise Refused("no_outputs")
    texts = [problem.id, problem.statement, problem.starter_code, problem.code, problem.call,
             problem.answer]
    for test in problem.tests:
        texts += test.values()
    try:
        for text in texts:
            (text or "").encode()
    except UnicodeEncodeError:
        raise Refused("not_text", "a lone surrogate") from None
    # through the file format, so that every problem of a pool can be loaded again
    try:
        return problem_from_json(problem_to_json(problem))
    except ValueError as error:
        raise Refused("undecodable", str(error)) from None


# ----------------------------------------------------------------------------------------------
# Tests

def function_name(name: Any) -> str | None:
    if not isinstance(name, str | None):
        raise Refused("undecodable", f"{name!r:.60} is no function's name")
    return name or None


FLOAT_TOLERANCE = 1e-6      # relative or absolute, as contests print "or within 10^-6"
FLOAT = re.compile(r"(?<!\S)[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?!\S)")


def float_tolerance(tests: list[dict[str, str]], fn_name: str | None) -> float | None:
    """The tolerance of a problem that expects floats, so that 3.14159265359 is right for
    3.141592653589793, and 0.1 + 0.2 for 0.3. None where no expected value is a float."""
    for test in tests:
        output = test["output"]
        if fn_name:
            expects_float = holds_float(parse_json(output))
        else:
            expects_float = FLOAT.search(output) is not None
        if expects_float:
            return FLOAT_TOLERANCE
    return None


def holds_float(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(map(holds_float, value))
    return isinstance(value, float)


def starter_code(row: dict, fn_name: str | None) -> str:
    """Only calls are completed from it; a program that reads standard input has none."""
    return row.get("starter_code") or "" if fn_name else ""


def parse_json(text: str) -> Any:
    def refuse_constant(name: str):
        raise ValueError(f"{name} is not JSON")         # NaN and Infinity, which Python would take
    try:
        with long_integers():
            return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None


def paired(tests: Any) -> list[dict[str, str]]:
    """Parallel lists {"input": [...], "output": [...]}, or a list of pairs, -> a list of tests."""
    if isinstance(tests, dict):
        inputs, outputs = tests.get("input") or [], tests.get("output") or []
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise Refused("undecodable", f"{tests!r:.60} are no tests")
        if len(inputs) != len(outputs):
            raise Refused("one_sided", f"{len(inputs)} inputs, {len(outputs)} outputs")
        tests = [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    if tests is None:
        return []
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise Refused("undecodable", f"{tests!r:.60} are no tests")
    pairs = []
    for test in tests:
        given, expected = test.get("input"), test.get("output")
        if given is None or expected is None:
            raise Refused("one_sided", f"{test!r:.60}")
        if not isinstance(given, str) or not isinstance(expected, str):
            raise Refused("not_text", f"{test!r:.60}")
        pairs.append({"input": given, "output": expected})
    return pairs


def joined(text: Any) -> Any:
    """APPS gives a text, or the list of its lines."""
    whole = isinstance(text, list) and all(isinstance(line, str) for line in text)
    return "\n".join(text) if whole else text


def call_test(arguments: Any, result: Any) -> dict[str, str]:
    if not isinstance(arguments, list):
        raise Refused("bad_arguments", f"{arguments!r:.60}")
    try:
        with long_integers():
            test = {"input": json.dumps(arguments, allow_nan=False),
                    "output": json.dumps(result, allow_nan=False)}
        keyed = has_integer_keys([arguments, result])
    except (ValueError, RecursionError) as error:
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None
    if keyed:
        raise Refused("integer_keys", test["input"])
    return test


def has_integer_keys(value: Any) -> bool:
    """Whether some object in a JSON value has integers for keys, written as text."""
    if isinstance(value, dict):
        if value and all(re.fullmatch(r"-?\d+", key) for key in value):
            return True
        value = list(value.values())
    return isinstance(value, list) and any(map(has_integer_keys, value))


def livecodebench_tests(tests: Any, fn_name: str | None) -> list[dict[str, str]]:
    """[{"input", "output", "testtype"}] -> tests. A functional input holds one JSON argument per
    line."""
    if not isinstance(tests, list):
        raise Refused("undecodable", "the tests are not a list")
    for test in tests:
        if not isinstance(test, dict) or not isinstance(test.get("input"), str) \
                or not isinstance(test.get("output"), str):
            raise Refused("not_text", f"{test!r:.60}")
        if (test.get("testtype") == "functional") != bool(fn_name):
            raise Refused("mixed_tests", f"testtype {test.get('testtype')!r}, function {fn_name!r}")
    if not fn_name:
        return [{"input": test["input"], "output": test["output"]} for test in tests]
    calls = []
    for test in tests:
        lines = [line.strip() for line in test["input"].split("\n") if line.strip()]
        for value in (*lines, test["output"]):
            parse_json(value)
        # joined as text, not decoded and encoded: every digit stays as it was written
        calls.append({"input": f"[{', '.join(lines)}]", "output": test["output"].strip()})
    return calls


PICKLED_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PICKLE_FRAME = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


def private_tests(text: str) -> Any:
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickled JSON text.

    Nothing is unpickled. A pickled text is one opcode that carries it, among some that only frame
    it; we read the opcodes as data and refuse any other. So nothing can be called, and no stored
    length allocates anything.
    """
    if text.lstrip().startswith("["):   # base64 has no bracket
        return parse_json(text)
    unpacker = zlib.decompressobj()
    try:
        pickled = unpacker.decompress(base64.b64decode(text), MAX_TEST_BYTES)
        if not unpacker.eof and len(pickled) >= MAX_TEST_BYTES:
            raise Refused("too_large", f"more than {MAX_TEST_BYTES >> 20} MiB")
        opcodes = [(code.name, value) for code, value, _ in pickletools.genops(pickled)]
    except Refused:
        raise
    except Exception as error:          # a damaged stream may raise anything
        raise Refused("undecodable", f"{type(error).__name__}: {error}") from None
    texts = [value for name, value in opcodes if name in PICKLED_TEXT]
    stray = [name for name, _ in opcodes if name not in PICKLED_TEXT | PICKLE_FRAME]
    if stray or len(texts) != 1:
        raise Refused("undecodable", f"the pickle holds {len(texts)} texts and {stray[:1]}")
    return parse_json(texts[0])


SITES = (
    ("codeforces",
     r"codeforces\.com/(?:problemset/problem|contest|gym)/(\d+)/(?:problem/)?([A-Z]\d?)\b"),
    ("codechef", r"codechef\.com/(?:\w+/)?problems/(\w+)"),
    ("atcoder", r"atcoder\.jp/contests/[^/]+/tasks/(\w+)"),
    ("leetcode", r"leetcode\.com/problems/([\w-]+)"),
)


def ids_of_url(url: str) -> dict[str, str]:
    """The official identifier in a problem's web address."""
    for site, pattern in SITES:
        match = re.search(pattern, url, re.IGNORECASE)
        if match:
            name = "/".join(match.groups())
            return {site: name.lower() if site in ("atcoder", "leetcode") else name.upper()}
    return {}
