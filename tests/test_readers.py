"""prepare/readers.py. Every row here is made up in the schema of its corpus."""

import base64
import json
import os
import pickle
import random
import sys
import zlib
from collections import Counter
from datetime import datetime

import pytest

from corpus_rows import apps_row, code_contests_row, livecodebench_row, packed
from lib.problems import problem_from_json, problem_to_json
from prepare import readers
from prepare.readers import Refused


# CodeContests
def test_code_contests_is_graded_on_public_private_and_generated_tests_in_that_order():
    problem = readers.from_code_contests(code_contests_row(3), "train", 17)
    assert [t["input"] for t in problem.tests] == ["1\n", "3\n", "5\n", "7\n"]
    assert [t["input"] for t in problem.public_tests] == ["1\n"]
    assert (problem.id, problem.compare, problem.time_limit) == ("cc/train/17", "tokens", 1.5)
    assert problem.ids == {"codeforces": "1003/A"} and problem.source == "code_contests/codeforces"


def test_code_contests_sources_follow_the_data_sets_index_and_not_the_protobufs():
    names = [readers.from_code_contests(code_contests_row(source=i)).source for i in range(8)]
    assert names == [
        f"code_contests/{x}"
        for x in (
            "unknown",
            "codechef",
            "codeforces",
            "hackerearth",
            "codejam",
            "atcoder",
            "aizu",
            "unknown",
        )
    ]


def test_code_contests_ids_come_from_the_columns_or_the_name():
    assert readers.from_code_contests(
        code_contests_row(cf_contest_id=0, cf_index="", name="1549_D1. X")
    ).ids == {"codeforces": "1549/D1"}
    assert readers.from_code_contests(code_contests_row(source=1, name="chefbm")).ids == {
        "codechef": "CHEFBM"
    }
    assert readers.from_code_contests(code_contests_row(source=5, name="p02534 AtCoder")).ids == {}


def test_code_contests_passes_on_the_memory_limit():
    assert readers.from_code_contests(code_contests_row()).memory_limit == 256_000_000 / 2**20
    for limit in (0, None, 2**50):
        row = code_contests_row(memory_limit_bytes=limit)
        assert readers.from_code_contests(row).memory_limit is None


def test_code_contests_rows_may_lack_a_limit_and_may_list_pairs():
    row = code_contests_row(
        time_limit=None, generated_tests=[{"input": "5", "output": "6"}], private_tests=None
    )
    problem = readers.from_code_contests(row)
    assert problem.time_limit is None and [t["input"] for t in problem.tests] == ["1\n", "5"]
    for limit in ({"seconds": -1, "nanos": 0}, {"seconds": 10**400, "nanos": None}, {}):
        assert readers.from_code_contests(code_contests_row(time_limit=limit)).time_limit is None


NOTHING = {"input": [], "output": []}


@pytest.mark.parametrize(
    "reason, changes",
    [
        ("no_statement", {"description": " \n"}),
        ("no_statement", {"description": "<image>\n<img src='a.png' alt='b'>"}),
        (
            "no_tests",
            {"public_tests": NOTHING, "private_tests": NOTHING, "generated_tests": NOTHING},
        ),
        ("one_sided", {"private_tests": {"input": ["1"], "output": []}}),
        ("one_sided", {"private_tests": {"input": ["1"], "output": [None]}}),
        (
            "no_outputs",
            {
                "public_tests": {"input": ["1"], "output": ["\n"]},
                "private_tests": NOTHING,
                "generated_tests": NOTHING,
            },
        ),
        ("file_io", {"input_file": "in.txt"}),
        ("interactive", {"cf_tags": ["interactive", "*special"]}),
        ("not_text", {"private_tests": {"input": [1], "output": ["1"]}}),
        ("not_text", {"private_tests": {"input": ["\ud800"], "output": ["1"]}}),
    ],
)
def test_a_code_contests_row_that_cannot_be_judged_is_refused_by_name(reason, changes):
    with pytest.raises(Refused) as refusal:
        readers.from_code_contests(code_contests_row(**changes))
    assert refusal.value.reason == reason


def test_apps_ids_hold_the_split_because_numbers_start_anew_in_each():
    raw, converted = apps_row(7), apps_row(7)
    converted["problem_id"] = converted.pop("id")
    assert (
        readers.from_apps(raw, "train").id
        == readers.from_apps(converted, "train").id
        == "apps/train/7"
    )
    assert (
        readers.from_apps(raw, "test").id
        == "apps/test/7"
        == readers.from_apps(raw | {"problem_id": None}, "test").id
    )


@pytest.mark.parametrize(
    "url, ids",
    [
        ("https://codeforces.com/problemset/problem/1036/b", {"codeforces": "1036/B"}),
        ("http://codeforces.com/contest/1559/problem/D1", {"codeforces": "1559/D1"}),
        ("https://atcoder.jp/contests/abc301/tasks/abc301_A", {"atcoder": "abc301_a"}),
        ("https://www.codechef.com/problems/CHEFBM", {"codechef": "CHEFBM"}),
        ("https://www.codechef.com/COOK12/problems/CHEFBM", {"codechef": "CHEFBM"}),
        ("https://leetcode.com/problems/two-sum/", {"leetcode": "two-sum"}),
        ("https://www.codewars.com/kata/58603c", {}),
    ],
)
def test_apps_addresses_give_official_ids(url, ids):
    assert readers.from_apps(apps_row(1, url=url), "train").ids == {"apps": "train/1"} | ids


def test_apps_texts_may_be_lists_of_lines():
    problem = readers.from_apps(
        apps_row(tests={"inputs": [["1", "2"], "3\n"], "outputs": [["4", "5"], "6"]})
    )
    assert problem.tests == [{"input": "1\n2", "output": "4\n5"}, {"input": "3\n", "output": "6"}]


def apps_outputs(outputs, **changes) -> list:
    """The expected values of a call problem with these results."""
    tests = {"fn_name": "f", "inputs": [[1, "x"]] * len(outputs), "outputs": outputs}
    problem = readers.from_apps(apps_row(tests=tests, **changes))
    assert problem.fn_name == "f" and json.loads(problem.tests[0]["input"]) == [1, "x"]
    return [json.loads(test["output"]) for test in problem.tests]


@pytest.mark.parametrize("outputs, expected", [
    ([[False], [None]], [False, None]),
    ([[[1, 2]], [[3]]], [[1, 2], [3]]),
    ([[1], [1, 2]], [[1], [1, 2]]),
    ([5, [1]], [5, [1]]),
])
def test_apps_results_are_unwrapped_only_where_all_are_wrapped(outputs, expected):
    assert apps_outputs(outputs, starter_code="def f(a, b):") == expected


@pytest.mark.parametrize("returns, outputs, expected", [
    ("int", [[5], [1]], [5, 1]),
    ("List[int]", [[5], [1]], [[5], [1]]),              # lists of one are the results
    ("List[int]", [[[5]], [[1, 2]]], [[5], [1, 2]]),
    ("List[List[int]]", [[[5]], [[1, 2]]], [[[5]], [[1, 2]]]),
    ("Optional[list[str]]", [["a"]], [["a"]]),
    ("Dict[str, List[int]]", [[{"a": [1]}]], [{"a": [1]}]),
])
def test_the_starter_code_decides_whether_apps_results_are_wrapped(returns, outputs, expected):
    code = f"class Solution:\n    def f(self, a: int, b: str) -> {returns}:"
    assert apps_outputs(outputs, starter_code=code) == expected


def test_results_from_leetcode_are_never_wrapped():
    url = "https://leetcode.com/problems/two-sum/"
    assert apps_outputs([[5], [1]], url=url) == [[5], [1]]


@pytest.mark.parametrize("outputs, tolerance", [
    (["3.141592653589793\n"], 1e-6),
    (["1 2\nYES 0.5"], 1e-6),
    (["1e-9"], 1e-6),
    ([".5"], 1e-6),
    (["3\n", "12345678901234567890"], None),            # integers stay exact
    (["1.2.3"], None),
    (["v1.2"], None),
    (["e5"], None),
])
def test_a_program_that_prints_floats_has_a_tolerance(outputs, tolerance):
    tests = {"inputs": ["1"] * len(outputs), "outputs": outputs}
    assert readers.from_apps(apps_row(tests=tests)).float_tolerance == tolerance
    public = [{"input": "1", "output": output, "testtype": "stdin"} for output in outputs]
    assert readers.from_livecodebench(livecodebench_row(public=public)).float_tolerance == tolerance


@pytest.mark.parametrize("output, tolerance", [
    ("0.3", 1e-6), ("[1, [0.5]]", 1e-6), ('{"a": 2.0}', 1e-6), ("3", None), ('["0.5"]', None)])
def test_a_call_that_returns_floats_has_a_tolerance_also_inside_lists(output, tolerance):
    test = {"input": "1", "output": output, "testtype": "functional"}
    row = livecodebench_row(public=[test], private=[], metadata='{"func_name": "f"}')
    assert readers.from_livecodebench(row).float_tolerance == tolerance


def test_apps_starter_code_of_a_program_that_reads_standard_input_is_left_out():
    assert readers.from_apps(apps_row(starter_code="def f():")).starter_code == ""


def test_apps_integers_of_nine_thousand_digits_are_read_and_absurd_ones_refused():
    before = sys.get_int_max_str_digits()
    big = "7" * 9131
    problem = readers.from_apps(
        apps_row(tests=f'{{"fn_name": "f", "inputs": [[{big}]], "outputs": [[{big}]]}}')
    )
    assert problem.tests == [{"input": f"[{big}]", "output": big}]
    with pytest.raises(Refused) as refusal:
        readers.from_apps(
            apps_row(tests=f'{{"fn_name": "f", "inputs": [[{"7" * 200_000}]], "outputs": [[1]]}}')
        )
    assert refusal.value.reason == "undecodable" and sys.get_int_max_str_digits() == before


@pytest.mark.parametrize(
    "reason, tests",
    [
        ("no_tests", ""),
        ("no_tests", {"inputs": [], "outputs": []}),
        ("one_sided", {"inputs": ["1"], "outputs": []}),
        ("no_outputs", {"inputs": ["1"], "outputs": [""]}),
        ("not_text", {"inputs": [1], "outputs": ["1"]}),
        ("not_text", {"inputs": [["1", 2]], "outputs": ["1"]}),
        ("bad_arguments", {"fn_name": "f", "inputs": ["ab"], "outputs": [[1]]}),
        ("integer_keys", {"fn_name": "f", "inputs": [[{"1": "a"}]], "outputs": [[1]]}),
        ("integer_keys", {"fn_name": "f", "inputs": [[1]], "outputs": [[{"-1": 2}]]}),
        ("integer_keys", {"fn_name": "f", "inputs": [[1]], "outputs": [[{"a": [{"1": 2}]}]]}),
        ("undecodable", "{"),
        ("undecodable", "[]"),
        ("undecodable", "[" * 100_000),
        ("undecodable", '{"fn_name": "f", "inputs": [[NaN]], "outputs": [[1]]}'),
        ("undecodable", '{"fn_name": "f", "inputs": [[1e999]], "outputs": [[1]]}'),
    ],
)
def test_an_apps_row_that_cannot_be_judged_is_refused_by_name(reason, tests):
    with pytest.raises(Refused) as refusal:
        readers.from_apps(apps_row(tests=tests))
    assert refusal.value.reason == reason


@pytest.mark.parametrize("protocol", range(6))
def test_private_tests_are_read_from_every_pickle_protocol_and_from_plain_json(protocol):
    tests = [{"input": "3\n", "output": "4 é\n", "testtype": "stdin"}]
    for private in (packed(json.dumps(tests), protocol), json.dumps(tests)):
        problem = readers.from_livecodebench(livecodebench_row(private_test_cases=private))
        assert [t["output"] for t in problem.tests] == ["2\n", "4 é\n"]
        assert [t["output"] for t in problem.public_tests] == ["2\n"]


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    for protocol in range(6):
        for value in (Hostile(tmp_path / "ran"), ["[]", Hostile(tmp_path / "ran")]):
            with pytest.raises(Refused) as refusal:
                readers.from_livecodebench(
                    livecodebench_row(private_test_cases=packed(value, protocol))
                )
            assert refusal.value.reason == "undecodable"
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))  # the weapon was loaded
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [["[]"], 7, None, b"[]", ("[]", "[]"), {"a": "[]"}])
def test_a_pickle_of_anything_but_one_text_is_refused(value):
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(private_test_cases=packed(value)))
    assert refusal.value.reason == "undecodable"


@pytest.mark.parametrize(
    "private",
    [
        "!",
        "AAAA",
        packed("[]")[:-8],
        base64.b64encode(zlib.compress(b"\x80\x04X\xff\xff\xff\x7f[]")).decode(),
        base64.b64encode(zlib.compress(b"\x80\x04r\xff\xff\xff\xff.")).decode(),
        packed("no JSON"),
        packed("{}"),
        packed("[1]"),
    ],
)
def test_damaged_private_tests_are_refused(private):
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(private_test_cases=private))
    assert refusal.value.reason in ("undecodable", "not_text")


def test_what_unpacks_a_thousandfold_stops_at_the_limit(monkeypatch):
    monkeypatch.setattr(readers, "MAX_TEST_BYTES", 1 << 20)
    bomb = base64.b64encode(zlib.compress(b" " * (64 << 20))).decode()
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(private_test_cases=bomb))
    assert refusal.value.reason == "too_large"


def test_functional_tests_hold_one_argument_a_line_and_are_copied_digit_by_digit():
    big = "1" * 9131
    tests = [
        {"input": f'["a", "b"]\n{big}\n', "output": "1.50\n", "testtype": "functional"},
        {"input": "", "output": "[]", "testtype": "functional"},
    ]
    row = livecodebench_row(
        public=tests[:1],
        private=tests[1:],
        metadata='{"func_name": "go"}',
        starter_code="class Solution: def go",
    )
    problem = readers.from_livecodebench(row)
    assert problem.tests == [
        {"input": f'[["a", "b"], {big}]', "output": "1.50"},
        {"input": "[]", "output": "[]"},
    ]
    assert problem.fn_name == "go" and problem.starter_code == "class Solution: def go"


@pytest.mark.parametrize(
    "reason, public, metadata",
    [
        ("mixed_tests", [{"input": "1", "output": "1", "testtype": "functional"}], "{}"),
        ("mixed_tests", [{"input": "1", "output": "1", "testtype": "stdin"}], '{"func_name": "f"}'),
        (
            "undecodable",
            [{"input": "nope", "output": "1", "testtype": "functional"}],
            '{"func_name": "f"}',
        ),
        (
            "undecodable",
            [{"input": "1", "output": "Infinity", "testtype": "functional"}],
            '{"func_name": "f"}',
        ),
        ("not_text", [{"input": "1", "testtype": "stdin"}], "{}"),
    ],
)
def test_a_livecodebench_row_that_cannot_be_judged_is_refused_by_name(reason, public, metadata):
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(public=public, private=[], metadata=metadata))
    assert refusal.value.reason == reason


def test_livecodebench_ids_match_those_of_the_other_corpora():
    assert (
        readers.from_livecodebench(
            livecodebench_row(platform="codeforces", question_id="1873_A")
        ).ids["codeforces"]
        == "1873/A"
    )
    assert (
        readers.from_livecodebench(livecodebench_row(platform="atcoder", question_id="abc1_a")).ids[
            "atcoder"
        ]
        == "abc1_a"
    )
    row = livecodebench_row(
        platform="leetcode", question_id="2727", question_title="Number of Senior Citizens"
    )
    assert readers.from_livecodebench(row).ids["leetcode"] == "number-of-senior-citizens"


@pytest.mark.parametrize(
    "date", ["2025-01-04T00:00:00", "2025-01-04 00:00:00", datetime(2025, 1, 4), "2025-01-04"]
)
def test_contest_dates_come_as_text_or_as_datetimes(date):
    assert readers.contest_day({"contest_date": date}) == "2025-01-04"


def test_output_prediction_rows_become_a_call_and_a_python_literal():
    problem = readers.from_execution(
        {
            "id": "sample_3",
            "question_id": 2727,
            "code": "def f(a):\n    return a",
            "input": "f(a = 1)",
            "output": "1",
        }
    )
    assert (problem.id, problem.call, problem.answer) == ("lcb-execution/sample_3", "f(a = 1)", "1")
    assert problem.code in problem.statement and problem.call in problem.statement
    test = [{"input": "[1, null]\ntrue\n", "output": '["x", false]', "testtype": "functional"}]
    problem = readers.from_test_generation(
        {
            "question_id": "9",
            "test_id": 2,
            "question_content": "Do it.",
            "function_name": "go",
            "starter_code": "def go(a, b):",
            "test": json.dumps(test),
        }
    )
    assert (problem.id, problem.call, problem.answer) == (
        "lcb-test-output/9/2",
        "go([1, None], True)",
        "['x', False]",
    )


@pytest.mark.parametrize("output, reason", [(" ", "no_outputs"), ("'\ud800'", "not_text")])
def test_an_answer_that_nobody_could_give_is_refused(output, reason):
    with pytest.raises(Refused) as refusal:
        readers.from_execution(
            {"id": "sample_3", "code": "def f(): pass", "input": "f()", "output": output}
        )
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "read, row, column",
    [
        (readers.from_code_contests, code_contests_row(), "generated_tests"),
        (readers.from_apps, apps_row(), "input_output"),
        (readers.from_livecodebench, livecodebench_row(), "private_test_cases"),
        (readers.from_execution, {"id": "a"}, "code"),
        (readers.from_test_generation, {"question_id": 1}, "test_id"),
    ],
)
def test_a_changed_schema_is_an_error_that_names_the_column_and_not_a_refusal(read, row, column):
    with pytest.raises(ValueError, match=f"no column '{column}'.*pinned revision") as error:
        read({k: v for k, v in row.items() if k != column})
    assert not isinstance(error.value, Refused)
    with pytest.raises(ValueError, match="is an object of the schema's columns, not None"):
        read(None)


JUNK = (
    None,
    True,
    -1,
    1.5,
    "",
    "x",
    "[]",
    "{}",
    [],
    {},
    [None],
    [[]],
    {"input": 1},
    "\ud800",
    10**30,
    float("nan"),
    b"x",
    {"seconds": "x"},
    [{"input": "1", "output": "2"}],
    '{"func_name": [1]}',
    '{"inputs": [1], "outputs": [2]}',
    '{"inputs": {"a": 1}, "outputs": {"a": 1}}',
    '{"inputs": [[1]], "outputs": [[2]], "fn_name": 3}',
    '[{"input": "1", "output": "1", "testtype": "functional"}]',
)


def test_whatever_stands_in_a_row_it_ends_as_a_problem_a_refusal_or_an_error_of_the_schema():
    test = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    makers = [
        (readers.from_code_contests, code_contests_row()),
        (readers.from_apps, apps_row()),
        (readers.from_livecodebench, livecodebench_row()),
        (readers.from_execution, {"id": "sample_1", "code": "x", "input": "f()", "output": "1"}),
        (
            readers.from_test_generation,
            {
                "question_id": "1",
                "test_id": 1,
                "question_content": "q",
                "test": test,
                "function_name": "f",
                "starter_code": "",
            },
        ),
    ]
    rng, ends = random.Random(0), Counter()
    for _ in range(20_000):
        make, row = rng.choice(makers)
        row = row | {name: rng.choice(JUNK) for name in rng.choices(list(row), k=rng.randint(1, 3))}
        try:
            problem = make(row)
            assert problem_from_json(json.loads(json.dumps(problem_to_json(problem)))) == problem
            ends["problem"] += 1
        except Refused as refusal:
            ends[refusal.reason] += 1
        except ValueError as error:
            assert "schema" in str(error), (row, error)
            ends["schema"] += 1
    assert min(ends["problem"], ends["schema"], ends["undecodable"]) > 500 and len(ends) > 6
