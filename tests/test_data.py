"""data.py and decontaminate.py. Every row here is made up in the schema of its corpus."""

import base64
import importlib
import json
import os
import pickle
import random
import re
import subprocess
import sys
import time
import zlib
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from lib.problems import Problem, load_problems, outcome_hash, problem_from_json, problem_to_json, save_problems, verifier_item
from prepare import corpora, decontaminate, exposure, readers
from prepare.readers import Refused

ROOT = Path(__file__).resolve().parent.parent
TEST = {"input": "1 2\n", "output": "3\n"}


def words(n: int, seed) -> str:
    """n words that no other seed's text shares in any order."""
    rng = random.Random(f"words {seed}")
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 9))) for _ in range(n))


def code_contests_row(number: int = 0, **changes) -> dict:
    row = {"name": f"{1000 + number}_A. Some Name", "description": words(80, f"cc {number}"),
           "public_tests": {"input": ["1\n"], "output": ["2\n"]},
           "private_tests": {"input": ["3\n"], "output": ["4\n"]},
           "generated_tests": {"input": ["5\n", "7\n"], "output": ["6\n", "8\n"]}, "source": 2,
           "difficulty": 7, "cf_contest_id": 1000 + number, "cf_index": "A", "cf_points": 0.0,
           "cf_rating": 800, "cf_tags": ["math"], "time_limit": {"seconds": 1, "nanos": 500_000_000},
           "memory_limit_bytes": 256_000_000, "input_file": "", "output_file": ""}
    return row | changes


def apps_row(number: int = 0, tests=None, **changes) -> dict:
    tests = {"inputs": ["1 2\n"], "outputs": ["3\n"]} if tests is None else tests
    row = {"id": number, "question": words(80, f"apps {number}"), "solutions": "", "input_output": tests
           if isinstance(tests, str) else json.dumps(tests), "difficulty": "introductory",
           "url": f"https://codeforces.com/problemset/problem/{5000 + number}/B", "starter_code": ""}
    return row | changes


def livecodebench_row(number: int = 0, public=None, private=None, **changes) -> dict:
    public = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}] if public is None else public
    private = [{"input": "3\n", "output": "4\n", "testtype": "stdin"}] if private is None else private
    row = {"question_title": f"Title {number}", "question_content": words(80, f"lcb {number}"),
           "platform": "atcoder", "question_id": f"abc{number}_a", "contest_id": f"abc{number}",
           "contest_date": "2024-01-04T00:00:00", "starter_code": "", "difficulty": "easy",
           "public_test_cases": json.dumps(public), "private_test_cases": packed(json.dumps(private)),
           "metadata": "{}"}
    return row | changes


def packed(value, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


# ------------------------------------------------------------------------------------ the record and its file

def test_a_pool_survives_a_round_trip_and_leaves_defaults_out(tmp_path):
    problems = [Problem("a", "s", tests=[TEST]), Problem("b", "s\u2028\ud800", source="x", tests=[TEST, TEST],
                                                         public_tests=[TEST], fn_name="f",
                                                         starter_code="def f():", time_limit=2.5,
                                                         compare="tokens", float_tolerance=1e-6,
                                                         ids={"codeforces": "1/A"}, classes={"h": 0.5}),
                Problem("c", "s", kind="execution", code="def f(): pass", call="f()", answer="None")]
    save_problems(tmp_path / "p.jsonl", problems)
    assert load_problems(tmp_path / "p.jsonl") == problems
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first == {"id": "a", "statement": "s", "tests": [TEST]}


GOOD = {"id": "b", "statement": "s", "tests": [TEST]}


@pytest.mark.parametrize("line, said", [
    ("{", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
    ([], "line 2: expected a JSON object, found list"),
    ({"statement": "s"}, "line 2: key 'id' is missing"),
    (GOOD | {"id": "a"}, "line 2: id 'a' stands in line 1 too"),
    (GOOD | {"id": 3}, "'id' must be text"),
    ('{"id": ' + "1" * 200_000, "line 2: not JSON"),
    (GOOD | {"statement": " "}, "'statement' must be more than white space"),
    (GOOD | {"tests": []}, "without any, nothing could be judged right"),
    (GOOD | {"tests": {}}, "'tests' must be a list of objects with the texts"),
    (GOOD | {"tests": [{"input": "1"}]}, "'tests' must be a list of objects with the texts"),
    (GOOD | {"public_tests": [{"input": 1, "output": "1"}]}, "'public_tests' must be a list of objects"),
    (GOOD | {"kind": "essay"}, "'kind' must be one of code, execution, test_output, found 'essay'"),
    (GOOD | {"kind": "execution"}, "'answer' must be there"),
    (GOOD | {"compare": "exact"}, "'compare' must be one of lines, tokens"),
    (GOOD | {"time_limit": True}, "'time_limit' must be a positive number"),
    (GOOD | {"float_tolerance": float("nan")}, "'float_tolerance' must be a positive number"),
    (GOOD | {"ids": {"codeforces": 1}}, "'ids' must be an object of texts"),
])
def test_a_line_that_is_no_problem_is_named_with_its_number(tmp_path, line, said):
    path = tmp_path / "p.jsonl"
    second = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(GOOD | {"id": "a"}) + "\n" + second + "\n")
    with pytest.raises(ValueError) as error:
        load_problems(path)
    assert str(path) in str(error.value) and said in str(error.value)


def test_a_missing_an_empty_and_a_binary_file_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.py build"):
        load_problems(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no problems"):
        load_problems(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_problems(tmp_path / "p.jsonl")


def test_keys_that_no_problem_has_are_said_once_and_notes_are_not(tmp_path):
    row = {"id": "a", "statement": "s", "tests": [TEST | {"name": "sample"}], "_note": 1}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    assert load_problems(path)[0].tests == [TEST]
    path.write_text(json.dumps(row | {"test": [], "licence": "x"}))
    with pytest.warns(UserWarning, match="ignored: licence, test$"):
        load_problems(path)


def test_the_judge_gets_the_graded_tests_and_the_official_limit_on_request_only():
    problem = Problem("a", "s", tests=[TEST], public_tests=[{"input": "9", "output": "9"}], fn_name="f",
                      time_limit=2.0, compare="tokens", float_tolerance=1e-4)
    item = {"code": "x", "tests": [TEST], "compare": "tokens", "fn_name": "f", "float_tolerance": 1e-4}
    assert verifier_item(problem, "x") == item
    assert verifier_item(problem, None, want_outputs=True, official_limits=True) == (
        item | {"code": "", "time_limit": 2.0, "want_outputs": True})
    with pytest.raises(ValueError, match="compared, not run"):
        verifier_item(Problem("b", "s", kind="execution", answer="1"), "x")


def test_outcome_classes_forgive_white_space_alone():
    same = outcome_hash(["1 2\n3\n", None])
    assert outcome_hash([" 1 2 \r\n 3", None]) == same
    for other in (["1 2 3", None], ["1 2\n3\n", ""], ["1  2\n3", None], [None, "1 2\n3\n"], ["1 2\n3\n"]):
        assert outcome_hash(other) != same


# ----------------------------------------------------------------------------------------------- CodeContests

def test_code_contests_is_graded_on_public_private_and_generated_tests_in_that_order():
    problem = readers.from_code_contests(code_contests_row(3), "train", 17)
    assert [t["input"] for t in problem.tests] == ["1\n", "3\n", "5\n", "7\n"]
    assert [t["input"] for t in problem.public_tests] == ["1\n"]
    assert (problem.id, problem.compare, problem.time_limit) == ("cc/train/17", "tokens", 1.5)
    assert problem.ids == {"codeforces": "1003/A"} and problem.source == "code_contests/codeforces"


def test_code_contests_sources_follow_the_data_sets_index_and_not_the_protobufs():
    names = [readers.from_code_contests(code_contests_row(source=i)).source for i in range(8)]
    assert names == [f"code_contests/{x}" for x in ("unknown", "codechef", "codeforces", "hackerearth",
                                                    "codejam", "atcoder", "aizu", "unknown")]


def test_code_contests_ids_come_from_the_columns_or_the_name():
    assert readers.from_code_contests(code_contests_row(cf_contest_id=0, cf_index="",
                                                     name="1549_D1. X")).ids == {"codeforces": "1549/D1"}
    assert readers.from_code_contests(code_contests_row(source=1, name="chefbm")).ids == {"codechef": "CHEFBM"}
    assert readers.from_code_contests(code_contests_row(source=5, name="p02534 AtCoder")).ids == {}


def test_code_contests_rows_may_lack_a_limit_and_may_list_pairs():
    row = code_contests_row(time_limit=None, generated_tests=[{"input": "5", "output": "6"}],
                            private_tests=None)
    problem = readers.from_code_contests(row)
    assert problem.time_limit is None and [t["input"] for t in problem.tests] == ["1\n", "5"]
    for limit in ({"seconds": -1, "nanos": 0}, {"seconds": 10 ** 400, "nanos": None}, {}):
        assert readers.from_code_contests(code_contests_row(time_limit=limit)).time_limit is None


NOTHING = {"input": [], "output": []}


@pytest.mark.parametrize("reason, changes", [
    ("no_statement", {"description": " \n"}),
    ("no_statement", {"description": "<image>\n<img src='a.png' alt='b'>"}),
    ("no_tests", {"public_tests": NOTHING, "private_tests": NOTHING, "generated_tests": NOTHING}),
    ("one_sided", {"private_tests": {"input": ["1"], "output": []}}),
    ("one_sided", {"private_tests": {"input": ["1"], "output": [None]}}),
    ("no_outputs", {"public_tests": {"input": ["1"], "output": ["\n"]}, "private_tests": NOTHING,
                    "generated_tests": NOTHING}),
    ("file_io", {"input_file": "in.txt"}),
    ("interactive", {"cf_tags": ["interactive", "*special"]}),
    ("not_text", {"private_tests": {"input": [1], "output": ["1"]}}),
    ("not_text", {"private_tests": {"input": ["\ud800"], "output": ["1"]}}),
])
def test_a_code_contests_row_that_cannot_be_judged_is_refused_by_name(reason, changes):
    with pytest.raises(Refused) as refusal:
        readers.from_code_contests(code_contests_row(**changes))
    assert refusal.value.reason == reason


# ------------------------------------------------------------------------------------------------------- APPS

def test_apps_ids_hold_the_split_because_numbers_start_anew_in_each():
    raw, converted = apps_row(7), apps_row(7)
    converted["problem_id"] = converted.pop("id")
    assert readers.from_apps(raw, "train").id == readers.from_apps(converted, "train").id == "apps/train/7"
    assert readers.from_apps(raw, "test").id == "apps/test/7" == readers.from_apps(raw | {"problem_id": None}, "test").id


@pytest.mark.parametrize("url, ids", [
    ("https://codeforces.com/problemset/problem/1036/b", {"codeforces": "1036/B"}),
    ("http://codeforces.com/contest/1559/problem/D1", {"codeforces": "1559/D1"}),
    ("https://atcoder.jp/contests/abc301/tasks/abc301_A", {"atcoder": "abc301_a"}),
    ("https://www.codechef.com/problems/CHEFBM", {"codechef": "CHEFBM"}),
    ("https://www.codechef.com/COOK12/problems/CHEFBM", {"codechef": "CHEFBM"}),
    ("https://leetcode.com/problems/two-sum/", {"leetcode": "two-sum"}),
    ("https://www.codewars.com/kata/58603c", {}),
])
def test_apps_addresses_give_official_ids(url, ids):
    assert readers.from_apps(apps_row(1, url=url), "train").ids == {"apps": "train/1"} | ids


def test_apps_texts_may_be_lists_of_lines():
    problem = readers.from_apps(apps_row(tests={"inputs": [["1", "2"], "3\n"], "outputs": [["4", "5"], "6"]}))
    assert problem.tests == [{"input": "1\n2", "output": "4\n5"}, {"input": "3\n", "output": "6"}]


def test_apps_calls_have_one_encoding_and_results_are_unwrapped_only_where_all_are_wrapped():
    def outputs(found):
        row = apps_row(tests={"fn_name": "f", "inputs": [[1, "x"]] * len(found), "outputs": found},
                       starter_code="def f(a, b):")
        problem = readers.from_apps(row)
        assert problem.fn_name == "f" and problem.starter_code
        assert json.loads(problem.tests[0]["input"]) == [1, "x"]
        return [json.loads(t["output"]) for t in problem.tests]
    assert outputs([[False], [None]]) == [False, None]
    assert outputs([[[1, 2]], [[3]]]) == [[1, 2], [3]]
    assert outputs([[1], [1, 2]]) == [[1], [1, 2]]
    assert outputs([5, [1]]) == [5, [1]]


def test_apps_starter_code_of_a_program_that_reads_standard_input_is_left_out():
    assert readers.from_apps(apps_row(starter_code="def f():")).starter_code == ""


def test_apps_integers_of_nine_thousand_digits_are_read_and_absurd_ones_refused():
    before = sys.get_int_max_str_digits()
    big = "7" * 9131
    problem = readers.from_apps(apps_row(tests=f'{{"fn_name": "f", "inputs": [[{big}]], "outputs": [[{big}]]}}'))
    assert problem.tests == [{"input": f"[{big}]", "output": big}]
    with pytest.raises(Refused) as refusal:
        readers.from_apps(apps_row(tests=f'{{"fn_name": "f", "inputs": [[{"7" * 200_000}]], "outputs": [[1]]}}'))
    assert refusal.value.reason == "undecodable" and sys.get_int_max_str_digits() == before


@pytest.mark.parametrize("reason, tests", [
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
])
def test_an_apps_row_that_cannot_be_judged_is_refused_by_name(reason, tests):
    with pytest.raises(Refused) as refusal:
        readers.from_apps(apps_row(tests=tests))
    assert refusal.value.reason == reason


# ---------------------------------------------------------------------------------------------- LiveCodeBench

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
                readers.from_livecodebench(livecodebench_row(private_test_cases=packed(value, protocol)))
            assert refusal.value.reason == "undecodable"
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))       # the weapon was loaded
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [["[]"], 7, None, b"[]", ("[]", "[]"), {"a": "[]"}])
def test_a_pickle_of_anything_but_one_text_is_refused(value):
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(private_test_cases=packed(value)))
    assert refusal.value.reason == "undecodable"


@pytest.mark.parametrize("private", [
    "!", "AAAA", packed("[]")[:-8], base64.b64encode(zlib.compress(b"\x80\x04X\xff\xff\xff\x7f[]")).decode(),
    base64.b64encode(zlib.compress(b"\x80\x04r\xff\xff\xff\xff.")).decode(), packed("no JSON"), packed("{}"),
    packed("[1]")])
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
    tests = [{"input": f'["a", "b"]\n{big}\n', "output": "1.50\n", "testtype": "functional"},
             {"input": "", "output": "[]", "testtype": "functional"}]
    row = livecodebench_row(public=tests[:1], private=tests[1:], metadata='{"func_name": "go"}',
                            starter_code="class Solution:")
    problem = readers.from_livecodebench(row)
    assert problem.tests == [{"input": f'[["a", "b"], {big}]', "output": "1.50"},
                             {"input": "[]", "output": "[]"}]
    assert problem.fn_name == "go" and problem.starter_code == "class Solution:"


@pytest.mark.parametrize("reason, public, metadata", [
    ("mixed_tests", [{"input": "1", "output": "1", "testtype": "functional"}], "{}"),
    ("mixed_tests", [{"input": "1", "output": "1", "testtype": "stdin"}], '{"func_name": "f"}'),
    ("undecodable", [{"input": "nope", "output": "1", "testtype": "functional"}], '{"func_name": "f"}'),
    ("undecodable", [{"input": "1", "output": "Infinity", "testtype": "functional"}], '{"func_name": "f"}'),
    ("not_text", [{"input": "1", "testtype": "stdin"}], "{}"),
])
def test_a_livecodebench_row_that_cannot_be_judged_is_refused_by_name(reason, public, metadata):
    with pytest.raises(Refused) as refusal:
        readers.from_livecodebench(livecodebench_row(public=public, private=[], metadata=metadata))
    assert refusal.value.reason == reason


def test_livecodebench_ids_match_those_of_the_other_corpora():
    assert readers.from_livecodebench(livecodebench_row(platform="codeforces",
                                                     question_id="1873_A")).ids["codeforces"] == "1873/A"
    assert readers.from_livecodebench(livecodebench_row(platform="atcoder",
                                                     question_id="abc1_a")).ids["atcoder"] == "abc1_a"
    row = livecodebench_row(platform="leetcode", question_id="2727",
                            question_title="Number of Senior Citizens")
    assert readers.from_livecodebench(row).ids["leetcode"] == "number-of-senior-citizens"


@pytest.mark.parametrize("date", ["2025-01-04T00:00:00", "2025-01-04 00:00:00", datetime(2025, 1, 4),
                                  "2025-01-04"])
def test_contest_dates_come_as_text_or_as_datetimes(date):
    assert readers.contest_day({"contest_date": date}) == "2025-01-04"


def test_output_prediction_rows_become_a_call_and_a_python_literal():
    problem = readers.from_execution({"id": "sample_3", "question_id": 2727, "code": "def f(a):\n    return a",
                                   "input": "f(a = 1)", "output": "1"})
    assert (problem.id, problem.call, problem.answer) == ("lcb-execution/sample_3", "f(a = 1)", "1")
    assert problem.code in problem.statement and problem.call in problem.statement
    test = [{"input": "[1, null]\ntrue\n", "output": '["x", false]', "testtype": "functional"}]
    problem = readers.from_test_generation({"question_id": "9", "test_id": 2, "question_content": "Do it.",
                                         "function_name": "go", "starter_code": "def go(a, b):",
                                         "test": json.dumps(test)})
    assert (problem.id, problem.call, problem.answer) == ("lcb-test-output/9/2", "go([1, None], True)",
                                                          "['x', False]")


@pytest.mark.parametrize("output, reason", [(" ", "no_outputs"), ("'\ud800'", "not_text")])
def test_an_answer_that_nobody_could_give_is_refused(output, reason):
    with pytest.raises(Refused) as refusal:
        readers.from_execution({"id": "sample_3", "code": "def f(): pass", "input": "f()", "output": output})
    assert refusal.value.reason == reason


@pytest.mark.parametrize("read, row, column", [
    (readers.from_code_contests, code_contests_row(), "generated_tests"),
    (readers.from_apps, apps_row(), "input_output"),
    (readers.from_livecodebench, livecodebench_row(), "private_test_cases"),
    (readers.from_execution, {"id": "a"}, "code"),
    (readers.from_test_generation, {"question_id": 1}, "test_id")])
def test_a_changed_schema_is_an_error_that_names_the_column_and_not_a_refusal(read, row, column):
    with pytest.raises(ValueError, match=f"no column '{column}'.*pinned revision") as error:
        read({k: v for k, v in row.items() if k != column})
    assert not isinstance(error.value, Refused)
    with pytest.raises(ValueError, match="is an object of the schema's columns, not None"):
        read(None)


JUNK = (None, True, -1, 1.5, "", "x", "[]", "{}", [], {}, [None], [[]], {"input": 1}, "\ud800", 10 ** 30,
        float("nan"), b"x", {"seconds": "x"}, [{"input": "1", "output": "2"}], '{"func_name": [1]}',
        '{"inputs": [1], "outputs": [2]}', '{"inputs": {"a": 1}, "outputs": {"a": 1}}',
        '{"inputs": [[1]], "outputs": [[2]], "fn_name": 3}',
        '[{"input": "1", "output": "1", "testtype": "functional"}]')


def test_whatever_stands_in_a_row_it_ends_as_a_problem_a_refusal_or_an_error_of_the_schema():
    test = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    makers = [(readers.from_code_contests, code_contests_row()), (readers.from_apps, apps_row()),
              (readers.from_livecodebench, livecodebench_row()),
              (readers.from_execution, {"id": "sample_1", "code": "x", "input": "f()", "output": "1"}),
              (readers.from_test_generation, {"question_id": "1", "test_id": 1, "question_content": "q",
                                           "test": test, "function_name": "f", "starter_code": ""})]
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


# ---------------------------------------------------------------------------------------------------- reading

def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_unknown_corpora_and_splits_are_said_with_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match="unknown corpus 'humaneval': one of code_contests, apps"):
        corpora.rows("humaneval", "test")
    with pytest.raises(ValueError,
                       match="code_contests has no split 'validation': one of train, valid, test"):
        corpora.rows("code_contests", "validation")
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere"):
        corpora.rows("apps", "test", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no test\*.parquet and no test\*.jsonl"):
        corpora.rows("apps", "test", tmp_path)
    write_rows(tmp_path / "test.jsonl", [[1]])
    with pytest.raises(ValueError, match="test.jsonl line 1: expected a JSON object"):
        list(corpora.rows("apps", "test", tmp_path))


def test_local_files_of_a_split_are_read_in_the_order_of_their_numbers(tmp_path):
    for name in ("test10", "test2", "test", "train"):
        write_rows(tmp_path / "deep" / f"{name}.jsonl", [{"file": name}])
    assert [r["file"] for r in corpora.rows("livecodebench", "test", tmp_path)] == ["test", "test2", "test10"]
    assert [r["file"] for r in corpora.rows("livecodebench", "test",
                                         tmp_path / "deep" / "train.jsonl")] == ["train"]


def test_parquet_and_json_lines_of_the_same_rows_give_the_same_problems(tmp_path):
    import datasets

    raw = [code_contests_row(1), code_contests_row(2, time_limit=None)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(raw).to_parquet(tmp_path / "valid-00000-of-00001.parquet")
    rows = list(corpora.rows("code_contests", "valid", tmp_path))
    assert "cf_rating" not in rows[0]       # columns that nobody needs are not read
    assert [readers.from_code_contests(r) for r in rows] == [readers.from_code_contests(r) for r in raw]


def test_livecodebench_rows_read_by_the_hub_reader_give_the_same_problems(tmp_path):
    raw = [livecodebench_row(i) for i in range(3)]
    rows = list(corpora._stream([str(write_rows(tmp_path / "test.jsonl", raw))], "livecodebench"))
    assert [readers.from_livecodebench(r) for r in rows] == [readers.from_livecodebench(r) for r in raw]
    assert readers.contest_day(rows[0]) == readers.contest_day(raw[0]) == "2024-01-04"


def test_a_local_file_that_is_no_copy_is_said(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"name": "x"}]).to_parquet(tmp_path / "valid-0.parquet")
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 nonsense")
    for split in ("valid", "test"):
        with pytest.raises(OSError,
                           match="must be a copy of a file of deepmind/code_contests at revision 802411c"):
            list(corpora.rows("code_contests", split, tmp_path))


def test_without_a_network_the_mend_is_said(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        commit = "21e74ddf8de1a21436da12e3e653065c5213e9d1"
        assert kwargs["data_files"]["rows"] == [f"hf://datasets/codeparrot/apps@{commit}/test.jsonl"]
        raise ConnectionError("no route\nto host")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(OSError, match="no route to host.*--local apps=FOLDER.*--skip apps"):
        list(corpora.rows("apps", "test"))


# -------------------------------------------------------------------------------------------- decontamination

STORY = ("There is a row of n stones and every stone has a height. A frog wants to reach the last stone and "
         "pays for a jump the " "difference of the two heights. You may lower k stones by one before it "
                                "starts.")
RULES = "Print one integer, the least total cost when the stones are lowered in the best way."
CODE_CONTESTS_TEXT = f"""{STORY}

Input

The only line contains n (1 ≤ n ≤ 10^9) and a_i ≠ 0.

Output

{RULES}

Examples

Input

3
1 2 3


Output

4

Note

Nothing is lowered."""
APPS_TEXT = f"""{STORY}


-----Input-----

The only line contains $n$ ($1 \\le n \\leq 10^{{9}}$) and $a_{{i}} \\ne 0$.


-----Output-----

{RULES}


-----Example-----
Input
5
5 4 3 2 1

Output
9

-----Note-----

Nothing is lowered."""
LIVECODEBENCH_TEXT = f"""{STORY}

Input

The only line contains $n$ ($1 \\leqslant n \\leq 10^9$) and $a_i \\neq 0$.

Output

{RULES}Sample Input 1:
2

7 7


Sample Output 1:

0
Explanation

They are equal.

Note

Nothing is lowered."""
HTML_TEXT = f"""<div class="problem"><p>{STORY.replace(" frog", "&nbsp;<b>frog</b>")}</p><h3>Input</h3>
<p>The only line contains <var>n</var> (1 &le; n &le; 10<sup>9</sup>) and <i>a<sub>i</sub></i> &ne; 0.</p>
<h3>Output</h3><p>{RULES}</p><h3>Sample Input 1</h3><pre>1\n1</pre><h3>Sample Output 1</h3><pre>0</pre>
<h3>Note</h3>Nothing is lowered.</div>"""


def test_one_statement_has_one_hash_in_the_layouts_of_all_corpora_and_in_html():
    texts = [CODE_CONTESTS_TEXT, APPS_TEXT, LIVECODEBENCH_TEXT, HTML_TEXT,
             CODE_CONTESTS_TEXT.replace("\n", "\r\n").upper()]
    assert len({decontaminate.statement_hash(t) for t in texts}) == 1
    for text in texts:
        plain = decontaminate.canonical(text)
        assert "lowered in the best way" in plain and "nothing is lowered" in plain
        assert not any(x in plain for x in ("sample", "example", "7 7", "5 4 3"))


def test_leetcode_examples_go_and_its_constraints_stay():
    text = ("Return the sum.\n \nExample 1:\n\nInput: a = [1]\nOutput: 1\nExplanation: one.\n\n"
            "Example 2:\n\nInput: a = []\n\nConstraints:\n\n1 <= n")
    assert decontaminate.canonical(text).split() == ["return", "the", "sum.", "constraints:", "1", "<=", "n"]


def test_statements_that_differ_in_more_than_layout_have_other_hashes():
    hashes = {decontaminate.statement_hash(t) for t in (CODE_CONTESTS_TEXT,
                                                        CODE_CONTESTS_TEXT.replace("least", "greatest"),
                                                        CODE_CONTESTS_TEXT.replace("1 ≤ n", "1 ≥ n"),
                                                        CODE_CONTESTS_TEXT.replace("10^9", "10^5"),
                                                        "Examples\n\n1", "Examples\n\n2")}
    assert len(hashes) == 6


def overlaps(training, held_out):
    found, _ = decontaminate.find_overlaps([Problem(f"t{i}", *(x if isinstance(x, tuple) else (x,))) for i,
                                            x in enumerate(training)],
                                           [Problem(f"h{i}", x) for i, x in enumerate(held_out)])
    return {name: (o.held_out, o.rule) for name, o in found.items()}


def test_planted_leaks_are_caught_each_by_its_rule():
    paragraph = words(60, "paragraph")
    held_out = [Problem("h0", words(150, "a"), ids={"codeforces": "1/A"}), Problem("h1", HTML_TEXT),
                Problem("h2", f"{words(100, 'b')}\n\n{paragraph}\n\n{words(100, 'c')}"),
                Problem("h3", "Print the sum of two numbers.")]
    training = [Problem("same id", words(150, "d"), ids={"apps": "train/9", "codeforces": "1/A"}),
                Problem("other layout", APPS_TEXT), Problem("other white space",
                                                            " ".join(APPS_TEXT.split("\n"))),
                Problem("copied paragraph", f"{words(100, 'e')}\n{paragraph.upper()}\n{words(150, 'f')}"),
                Problem("short text", "<p>Print the sum\nof two numbers</p>"),
                Problem("clean", words(200, "g")), Problem("short and clean",
                                                           "Print the sum of three numbers."),
                Problem("h2", words(150, "h"))]
    found, _ = decontaminate.find_overlaps(training, held_out)
    assert {name: (o.held_out, o.rule) for name, o in found.items()} == {
        "same id": ("h0", "id"), "other layout": ("h1", "hash"), "other white space": ("h1", "ngram"),
        "copied paragraph": ("h2", "ngram"), "short text": ("h3", "hash"), "h2": ("h2", "id")}
    assert found["copied paragraph"].containment == pytest.approx(48 / 248)


CJK = "给定一个长度为n的数组，求出所有子数组的和的最大值。注意子数组必须是连续的，数组中的元素可能为负数。"


@pytest.mark.parametrize("held_out, training, rule", [
    ("Print the sum of a and b.\n\nExample\n\n1 2\n\n3", "<p>PRINT the sum\tof a and b</p>Example\n9 9\n18", "hash"),
    ("Print the sum of a and b.", f"{words(70, 1)} print\nthe sum of a and b {words(70, 2)}", "ngram"),    # held by a longer one
    (f"{words(70, 1)} print\nthe sum of a and b {words(70, 2)}", "Print the sum of a and b.", "ngram"),
    (CJK, f"{words(30, 3)}{CJK}{words(30, 4)}", "ngram"),                  # no spaces: each character is a word
    ("Дан массив из n чисел. Выведите сумму.", "<b>ДАН</b> массив из n чисел!\nВыведите сумму", "hash"),
    ("Print the sum of a and b.", f"{words(70, 1)} print the sum of b and a", None),
    (CJK, CJK[20:] + CJK[:9] + words(9, 5), "ngram"),
    (CJK, CJK[::-1], None),
])
def test_short_texts_and_other_scripts_are_met_as_well(held_out, training, rule):
    assert overlaps([training], [held_out]) == ({"t0": ("h0", rule)} if rule else {})


def test_a_short_text_that_stands_in_many_statements_is_boilerplate():
    training = [f"{words(40, i)} find the answer {words(40, -i)}" for i in range(1, 6)]
    assert overlaps(training, ["Find the answer."]) == {}
    assert len(overlaps(training[:4], ["Find the answer."])) == 4


def test_unrelated_problems_that_share_boilerplate_are_not_caught():
    boilerplate = ("The first line of the input contains a single integer t, the number of test cases. The "
                   "description of the test cases " "follows. It is guaranteed that the sum of n over all "
                                                    "test cases does not exceed 200000.")
    held_out = [f"{words(40, ('h', i))} {boilerplate}" for i in range(4)]
    training = [f"{words(40, ('t', i))} {boilerplate}" for i in range(4)]
    assert overlaps(training, held_out) == {}
    assert len(overlaps(training[:1],
                        held_out[:1])) == 1, "in fewer than six statements it is not known to be boilerplate"


def test_ngram_containment_agrees_with_sets_of_word_tuples():
    rng = random.Random(1)

    chunks = [words(30, ("chunk", i)).split() for i in range(25)]

    def text():
        parts = [w for chunk in rng.sample(chunks, rng.randint(0, 3)) for w in chunk[rng.randint(0, 20):]]
        return " ".join([*parts, *words(rng.randint(0, 150), rng.random()).split()]) or "x"
    training, held_out = [text() for _ in range(60)], [text() for _ in range(40)]

    def tuples(t):
        w = t.split()
        return {tuple(w[i:i + 13]) for i in range(len(w) - 12)} if len(w) >= 13 else {tuple(w)}
    statements = set(training + held_out)
    frequency = {}
    for s in statements:
        for g in tuples(s):
            frequency[g] = frequency.get(g, 0) + 1
    rare = {s: {g for g in tuples(s) if frequency[g] <= 5} for s in statements}
    expected = {}
    for i, t in enumerate(training):
        shares = [len(rare[t] & rare[h]) / max(1, min(len(rare[t]), len(rare[h]))) for h in held_out]
        if t in held_out:
            expected[f"t{i}"] = 1.0
        elif max(shares) >= 0.1:
            expected[f"t{i}"] = max(shares)
    found, _ = decontaminate.find_overlaps([Problem(f"t{i}", t) for i, t in enumerate(training)],
                                           [Problem(f"h{i}", t) for i, t in enumerate(held_out)])
    assert {name: o.containment for name, o in found.items()} == pytest.approx(expected)
    assert 5 < len(expected) < 55


def test_thirteen_thousand_against_five_thousand_take_minutes():
    """A tenth of it, on the processor's clock: both sides are sorted once and met once, so the whole takes
    some ten times as long."""
    training = [Problem(f"t{i}", words(300, i % 1250)) for i in range(1300)]
    held_out = [Problem(f"h{i}", words(300, i)) for i in range(1000, 1500)]
    begun = time.process_time()
    found, _ = decontaminate.find_overlaps(training, held_out)
    assert time.process_time() - begun < 12
    assert len(found) == 250


# -------------------------------------------------------------------------------------------- build and audit

SIZES = {"sft": 6, "gate": 5, "warmup": 4, "joint": 5, "dev": 2, "apps": 3, "cc": 3, "lcb": 4, "apps-500": 5,
         "lcb-500": 5, "execution": 2, "test-output": 2, "show": 2}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Small copies of the five corpora with four planted leaks, two repeats and three rows of no use."""
    folder = tmp_path_factory.mktemp("sources")
    valid = [code_contests_row(100 + i) for i in range(5)]
    train = [code_contests_row(i) for i in range(24)]
    train[3]["description"] = "<p>" + valid[2]["description"].replace(" ", "\n") + "</p>"  # same text
    train[5].update(cf_contest_id=9000, cf_index="C")  # same official id as APPS test 2
    train[7]["description"] = words(50, "x") + " " + livecodebench_row(1)["question_content"][:300]
    train[9].update(cf_contest_id=1, cf_index="Z", description=train[8]["description"])  # a repeat
    train[11]["input_file"] = "in.txt"
    train[12]["private_tests"] = {"input": ["1"], "output": []}
    write_rows(folder / "cc" / "train-00000.jsonl", train)
    write_rows(folder / "cc" / "valid-00000.jsonl", valid)
    write_rows(folder / "cc" / "test-00000.jsonl", [code_contests_row(200 + i) for i in range(4)])
    apps_test = [apps_row(300 + i) for i in range(7)] + [apps_row(399, difficulty="interview")]
    apps_test[2]["url"] = "https://codeforces.com/contest/9000/problem/C"
    apps_train = [apps_row(i) for i in range(9)]
    apps_train[4]["question"] = apps_test[5]["question"] + "\n\n-----Examples-----\n1\n"
    apps_train[6]["input_output"] = ""
    write_rows(folder / "apps" / "train.jsonl", apps_train)
    write_rows(folder / "apps" / "test.jsonl", apps_test)
    lcb = [livecodebench_row(i, contest_date=f"2024-0{1 + i % 7}-0{1 + i}T00:00:00") for i in range(8)]
    write_rows(folder / "lcb" / "test.jsonl", lcb[:4])
    # a repeat
    write_rows(folder / "lcb" / "test2.jsonl", lcb[4:] + [livecodebench_row(0, question_id="abc77_b")])
    write_rows(folder / "execution.jsonl", [{"id": f"sample_{i}", "code": f"def f{i}(): return {i}",
                                             "input": f"f{i}()", "output": f"{i}", "question_id": 1}
                                            for i in range(2)])
    test = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    write_rows(folder / "test_generation.jsonl",
               [{"question_id": "1", "test_id": i, "question_content": words(30, "q"), "test": test,
                 "function_name": "f"} for i in range(2)])
    return {"code_contests": str(folder / "cc"), "apps": str(folder / "apps"),
            "livecodebench": str(folder / "lcb"), "execution": str(folder / "execution.jsonl"),
            "test_generation": str(folder / "test_generation.jsonl")}


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    corpora.build(out, SIZES, local=sources, say=lambda line: None)
    return out


def test_a_build_refuses_counts_and_removes_what_was_planted(built):
    splits = corpora.read_manifest(built)["splits"]
    cc, apps = splits["code_contests/train"], splits["apps/train"]
    assert cc["rows"] == 24 and cc["refused"] == {"file_io": ["row 11"], "one_sided": ["row 12"]}
    assert cc["repeats"] == {"cc/train/9": "cc/train/8"}
    assert {name: (x["held_out"], x["rule"]) for name, x in cc["removed"].items()} == {
        "cc/train/3": ("cc/valid/2", "hash"), "cc/train/5": ("apps/test/302", "id"),
        "cc/train/7": ("lcb/abc1_a", "ngram")}
    assert apps["refused"] == {"no_tests": ["row 6"]} and list(apps["removed"]) == ["apps/train/4"]
    assert splits["apps/test"]["not_introductory"] == 1
    assert splits["livecodebench/test"]["repeats"] == {"lcb/abc77_b": "lcb/abc0_a"}
    held_out = {p.id for p in exposure.load_held_out(built)[0]}
    assert {"lcb/abc0_a", "lcb/abc77_b"} < held_out, "training is cleaned of repeats too: they may be known by other ids"
    assert "removed" not in splits["code_contests/valid"], "evaluation is fixed, training is cleaned"


def test_pools_have_their_sizes_and_share_nothing(built):
    manifest = corpora.read_manifest(built)
    pools = {name: load_problems(built / entry["file"]) for name, entry in manifest["pools"].items()}
    assert {name: len(found) for name, found in pools.items()} == SIZES
    for name, found in pools.items():
        assert [p.id for p in found] == manifest["pools"][name]["ids"]
        assert [decontaminate.statement_hash(p.statement) for p in found] == manifest["pools"][name]["hashes"]
    trained = [p.id for name in ("sft", "gate", "joint", "dev", "warmup") for p in pools[name]]
    assert len(trained) == len(set(trained))
    assert not set(trained) & {p.id for name in ("apps", "cc", "lcb", "apps-500", "lcb-500", "show")
                               for p in pools[name]}
    assert all(p.tests and p.time_limit for p in pools["joint"]), "whole problems, not their cards"
    assert [p.id for p in pools["lcb"]] == ["lcb/abc6_a", "lcb/abc5_a", "lcb/abc4_a",
                                            "lcb/abc3_a"], "the newest, newest first"
    assert {p.id for p in pools["apps"]} < {p.id for p in pools["apps-500"]}


def test_a_build_is_a_function_of_its_seed_and_a_draw_of_its_problems_ids(built, sources, tmp_path):
    again = corpora.build(tmp_path / "a", SIZES, local=sources, say=lambda line: None)
    assert again == corpora.read_manifest(built)
    for entry in again["pools"].values():
        assert (tmp_path / "a" / entry["file"]).read_bytes() == (built / entry["file"]).read_bytes()
    other = corpora.build(tmp_path / "b", SIZES, seed=1, local=sources, say=lambda line: None)
    assert other["pools"]["joint"]["ids"] != again["pools"]["joint"]["ids"]
    problems = [Problem(str(i), "s") for i in range(50)]
    order = [p.id for p in corpora.draw_order(problems, 0)]
    assert [p.id for p in corpora.draw_order(problems[::-2], 0)] == [name for name in order if int(name) % 2]


def test_the_same_build_again_does_nothing_and_another_one_is_refused(built, sources):
    before = (built / "joint.jsonl").stat().st_mtime_ns
    corpora.build(built, SIZES, local=sources, say=lambda line: None)
    assert (built / "joint.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another seed"):
        corpora.build(built, SIZES, seed=5, local=sources)


def test_a_row_of_another_schema_ends_the_build_with_its_place(sources, tmp_path):
    path = write_rows(tmp_path / "test.jsonl", [apps_row(0), {k: v for k, v in apps_row(1).items() if k != "question"}])
    with pytest.raises(ValueError, match="^apps test, row 1: a row of apps has another schema .no column 'question'"):
        corpora.build(tmp_path / "out", SIZES, local=sources | {"apps": str(path.parent)}, say=lambda line: None)


def test_a_pool_that_comes_out_short_is_said_and_recorded(sources, tmp_path):
    said = []
    manifest = corpora.build(tmp_path / "c", SIZES | {"warmup": 1000}, local=sources, say=said.append)
    assert "warmup: only " in "\n".join(said) and manifest["pools"]["warmup"]["wanted"] == 1000
    said.clear()
    corpora.build(tmp_path / "d", SIZES, local={k: v for k, v in sources.items() if k != "livecodebench"},
               skip=["livecodebench"], say=said.append)
    assert "NOT cleaned against" in said[0] and not (tmp_path / "d" / "lcb.jsonl").exists()


def test_private_tests_are_in_no_statement_and_public_ones_are_apart(built):
    for p in load_problems(built / "lcb.jsonl"):
        assert p.public_tests == p.tests[:1] and p.tests[1]["input"] not in p.statement


def test_the_audit_of_a_clean_build_finds_nothing(built, tmp_path):
    text, wrong = exposure.audit(built, tmp_path)
    assert wrong == [] and "YES" not in text
    assert "Joint CPPO rollout pool" in text and "3 removed as held out" in text
    for name in ("sft", "gate", "joint", "dev", "warmup"):
        assert exposure.audit_pool(built / f"{name}.jsonl") == ""


@pytest.fixture
def copied(built, tmp_path):
    folder = tmp_path / "built"
    folder.mkdir()
    for path in corpora.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("leak", ["whole line", "new id", "statement in a label"])
def test_the_audit_fails_if_a_component_saw_an_evaluation_problem(copied, tmp_path, leak):
    stolen = load_problems(copied / "cc.jsonl")[0]
    if leak == "statement in a label":
        path = write_rows(copied / "labels_train.jsonl",
                          [{"problem_id": "mine/1", "statement": stolen.statement, "plan": "A: x",
                            "label": 1}])
    else:
        stolen.id = stolen.id if leak == "whole line" else "cc/train/900"
        path = copied / "joint.jsonl"
        save_problems(path, [*load_problems(path), stolen])
    with pytest.raises(ValueError, match=r"holds 1 evaluation problem\(s\) among"):
        exposure.audit_pool(path)
    text, wrong = exposure.audit(copied, tmp_path)
    assert "YES, 1" in text and any("is held out as cc/valid/" in line for line in wrong)


def test_the_audit_looks_at_what_runs_were_given(copied, tmp_path):
    runs = tmp_path / "runs"
    (runs / "X" / "cppo").mkdir(parents=True)
    flags = {"problems": str(copied / "lcb.jsonl"), "lr": 1e-6}
    (runs / "X" / "cppo" / "config.json").write_text(json.dumps({"flags": flags}))
    (runs / "X" / "cppo" / "final").mkdir()
    (runs / "X" / "cppo" / "final" / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    (runs / "X" / "eval").mkdir()
    flags = {"problems": str(copied / "cc.jsonl")}
    (runs / "X" / "eval" / "config.json").write_text(json.dumps({"flags": flags}))
    _, wrong = exposure.audit(copied, runs)
    assert len(wrong) == 4 and all("lcb.jsonl" in line for line in wrong)


def test_the_audit_sees_changed_pools_and_labels_that_cross_the_split(copied, tmp_path):
    path = copied / "sft.jsonl"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match="changed after the build"):
        exposure.audit_pool(path)
    row = {"problem_id": "cc/train/1", "statement": words(40, "z"), "plan": "A: x", "label": 1}
    write_rows(copied / "labels_train.jsonl", [row])
    write_rows(copied / "labels_val.jsonl", [row])
    _, wrong = exposure.audit(copied, tmp_path)
    assert [("changed" in line, "on both sides" in line) for line in wrong] == [(True, False), (False, True)]


@pytest.mark.parametrize("file, text, said", [
    ("manifest.json", "{}", "is no manifest"), ("manifest.json", "[", "is no manifest"),
    ("held_out.jsonl", "{}", "damaged build"), ("boilerplate.npy", "", "damaged build"),
    ("joint.jsonl", '{"id": "x", "ids": {"a": []}}', "joint.jsonl line 1"), ("joint.jsonl", "[]", "joint.jsonl line 1")])
def test_a_damaged_build_is_said_in_one_line(copied, tmp_path, capsys, file, text, said):
    (copied / file).write_text(text)
    with pytest.raises(SystemExit) as end:
        corpora.main(["audit", "--corpora", str(copied), "--runs", str(tmp_path)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and said in err and err.count("\n") == 1


def test_a_file_outside_is_audited_against_the_corpora_or_warned_about(copied, built, tmp_path):
    path = write_rows(tmp_path / "mine.jsonl",
                      [{"id": "mine", "statement": words(40, "mine"), "tests": [TEST]}])
    assert "has no manifest" in exposure.audit_pool(path, tmp_path / "nowhere")
    assert exposure.audit_pool(path, copied) == ""
    write_rows(path, [{"id": "mine", "statement": load_problems(built / "apps.jsonl")[0].statement,
                       "tests": [TEST]}])
    with pytest.raises(ValueError, match="found by hash"):
        exposure.audit_pool(path, copied)


@pytest.mark.parametrize("script, flag, row", [
    ("train_sft", "--gold", {"strategies": ["a b", "c d", "e f", "g h"]}),
    ("train_rm", "--labels", {"plan": "A: x", "kind": "positive"})])
def test_stages_1_and_2_refuse_what_the_audit_would_fail(copied, tmp_path, monkeypatch, capsys, script, flag, row):
    """Only the pools of stages 3 and 5 were checked once. The stolen statement has another id and white space."""
    stolen = load_problems(copied / "cc.jsonl")[0].statement.replace(" ", "  ")
    clean = [{"problem_id": f"mine/{i}", "statement": words(40, i), "label": label} | row
             for i in range(8) for label in (0, 1)]             # a gold tuple has no use for labels
    write_rows(tmp_path / "val.jsonl", [x | {"problem_id": "mine/9", "statement": stolen} for x in clean[:2]])
    write_rows(tmp_path / "rows.jsonl", clean[2:])
    monkeypatch.chdir(tmp_path)         # where `built` is the build
    module = importlib.import_module(script)
    flags = ["--model", "nowhere", flag, str(tmp_path / "rows.jsonl")]
    for held_out, said in (([], "nowhere: no such folder"), (["--val", str(tmp_path / "val.jsonl")], "holds 1 evaluation")):
        with pytest.raises(SystemExit) as end:
            module.main(module.parse_args([*flags, *held_out]))
        assert end.value.code == 2 and re.search(said, capsys.readouterr().err)


def test_the_default_pool_is_the_builds_file_and_an_absent_one_is_said(built):
    assert corpora.default_pool("joint", built) == built / "joint.jsonl"
    with pytest.raises(ValueError, match="without the pool 'nonsense'"):
        corpora.default_pool("nonsense", built)


def test_the_commands_say_mistakes_in_one_line_and_fail_the_audit_with_status_1(copied, capsys, tmp_path):
    save_problems(copied / "dev.jsonl", load_problems(copied / "cc.jsonl"))
    with pytest.raises(SystemExit) as end:
        corpora.main(["audit", "--corpora", str(copied), "--runs", str(tmp_path)])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("is held out as") == 3 and "Table 10" in out
    for wrong, said in ((["--local", "humaneval=x"], "unknown corpus 'humaneval'"),
                        (["--local", "apps"], "write CORPUS=PATH"), (["--joint", "-1"], "--joint -1"),
                        (["--skip", "humaneval"], "unknown corpus 'humaneval'")):
        done = [sys.executable, "-m", "prepare.corpora", "build", "--out", str(tmp_path / "x"), *wrong]
        if wrong[0] == "--joint":       # one of them as a command: it takes seconds to start
            ended = subprocess.run(done, cwd=ROOT, capture_output=True, text=True)
            status, err = ended.returncode, ended.stderr
        else:
            with pytest.raises(SystemExit) as end:
                corpora.main(done[3:])
            status, err = end.value.code, capsys.readouterr().err
        assert status == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1
