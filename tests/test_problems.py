"""lib/problems.py: the problem record and its file."""

import json

import pytest

from lib.problems import Problem, load_problems, outcome_hash, save_problems, verifier_item

TEST = {"input": "1 2\n", "output": "3\n"}
GOOD = {"id": "b", "statement": "s", "tests": [TEST]}
CALL = {"input": "[1]", "output": "2"}


def test_a_pool_survives_a_round_trip_and_leaves_defaults_out(tmp_path):
    problems = [
        Problem("a", "s", tests=[TEST]),
        Problem("b", "s\u2028\ud800", source="x", tests=[CALL, CALL], public_tests=[CALL],
                fn_name="f", starter_code="def f():", time_limit=2.5, memory_limit=64.0,
                compare="tokens", float_tolerance=1e-6, ids={"codeforces": "1/A"},
                classes={"h": 0.5}),
        Problem("c", "s", kind="execution", code="def f(): pass", call="f()", answer="None")]
    save_problems(tmp_path / "p.jsonl", problems)
    assert load_problems(tmp_path / "p.jsonl") == problems
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first == {"id": "a", "statement": "s", "tests": [TEST]}


@pytest.mark.parametrize("line, message", [
    ("{", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
    ('{"id": ' + "1" * 200_000, "line 2: not JSON"),
    ([], "line 2: expected a JSON object, found list"),
    ({"statement": "s"}, "line 2: key 'id' is missing"),
    (GOOD | {"id": "a"}, "line 2: line 1 has the same id 'a'"),
    (GOOD | {"id": 3}, "'id' must be text"),
    (GOOD | {"statement": " "}, "'statement' must be text that is not blank"),
    (GOOD | {"tests": []}, "(id 'b'): tests is a list of at least one test"),
    (GOOD | {"tests": {}}, "'tests' must be a list of objects with the texts"),
    (GOOD | {"tests": [{"input": "1"}]}, "'tests' must be a list of objects with the texts"),
    (GOOD | {"public_tests": [{"input": 1, "output": "1"}]}, "'public_tests' must be a list of"),
    (GOOD | {"kind": "essay"}, "'kind' must be one of code, execution, test_output, found 'essay'"),
    (GOOD | {"kind": "execution"}, "needs an 'answer'"),
    (GOOD | {"ids": {"codeforces": 1}}, "'ids' must be an object of texts"),
    # the verifier's part of the format
    (GOOD | {"compare": "exact"}, "compare is 'lines' or 'tokens'"),
    (GOOD | {"time_limit": True}, "time_limit is a positive number"),
    (GOOD | {"memory_limit": "64 MB"}, "'memory_limit' must be a number or null"),
    (GOOD | {"float_tolerance": float("nan")}, "float_tolerance is a positive number"),
    (GOOD | {"fn_name": "f"}, "(id 'b'): test 1 of f is not JSON"),
    (GOOD | {"fn_name": "f g"}, "fn_name is the name of a function"),
    (GOOD | {"fn_name": "f", "starter_code": "def g(x):", "tests": [CALL]},
     "'starter_code' has no function 'f'"),
])
def test_a_line_that_is_no_problem_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    second = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(GOOD | {"id": "a"}) + "\n" + second + "\n")
    with pytest.raises(ValueError) as error:
        load_problems(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_missing_an_empty_and_a_binary_file_are_reported(tmp_path):
    with pytest.raises(ValueError, match="prepare.corpora"):
        load_problems(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no problems"):
        load_problems(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_problems(tmp_path / "p.jsonl")


def test_unknown_keys_are_warned_about_once_and_notes_are_not(tmp_path):
    row = {"id": "a", "statement": "s", "tests": [TEST | {"name": "sample"}], "_note": 1}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    assert load_problems(path)[0].tests == [TEST]
    path.write_text(json.dumps(row | {"test": [], "licence": "x"}))
    with pytest.warns(UserWarning, match="ignored unknown keys: licence, test$"):
        load_problems(path)


def test_the_verifier_gets_the_graded_tests_and_official_limits_on_request_only():
    problem = Problem("a", "s", tests=[TEST], public_tests=[{"input": "9", "output": "9"}],
                      fn_name="f", time_limit=2.0, compare="tokens", float_tolerance=1e-4)
    item = {"code": "x", "tests": [TEST], "compare": "tokens", "fn_name": "f",
            "float_tolerance": 1e-4}
    assert verifier_item(problem, "x") == item
    assert verifier_item(problem, None, want_outputs=True, official_limits=True) == (
        item | {"code": "", "time_limit": 2.0, "want_outputs": True})
    problem.memory_limit = 512.0
    assert "memory_mb" not in verifier_item(problem, "x")
    assert verifier_item(problem, "x", official_limits=True)["memory_mb"] == 512.0
    problem.memory_limit = 64.0             # too little for an interpreter
    assert verifier_item(problem, "x", official_limits=True)["memory_mb"] == 256
    with pytest.raises(ValueError, match="compared, not run"):
        verifier_item(Problem("b", "s", kind="execution", answer="1"), "x")


def test_outcome_classes_forgive_white_space_alone():
    same = outcome_hash(["1 2\n3\n", None])
    assert outcome_hash([" 1 2 \r\n 3", None]) == same
    for other in (["1 2 3", None], ["1 2\n3\n", ""], ["1  2\n3", None], [None, "1 2\n3\n"],
                  ["1 2\n3\n"]):
        assert outcome_hash(other) != same
