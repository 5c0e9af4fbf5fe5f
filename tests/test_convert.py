"""prepare/convert.py: tasks with asserts become call-based problems, or are refused with a
sentence."""

import json

import pytest

from lib.problems import load_problems
from prepare import convert


def test_asserts_become_tests_and_the_first_one_is_public():
    problem = convert.from_asserts(
        "a/1", "Add.", ["assert add(1, [2]) == (3, 0.5)", "assert add(-1, []) == None"],
        "import math\ndef add(a, b=()):\n    return a")
    assert problem.fn_name == "add" and problem.starter_code == "def add(a, b=()):\n    ..."
    assert problem.public_tests == [{"input": "[1, [2]]", "output": "[3, 0.5]"}]
    assert problem.tests == [{"input": "[-1, []]", "output": "null"}]
    assert problem.float_tolerance == 1e-6


@pytest.mark.parametrize("line, message", [
    ("assert f((1, 2)) == 3", "a tuple is among the arguments"),
    ("assert f([{'a': (1,)}]) == 3", "a tuple is among the arguments"),
    ("assert f({1, 2}) == 3", "a set is among the values"),
    ("assert f(1) == {2}", "a set is among the values"),
    ("assert f({1: 2}) == 3", "keys that are no text"),
    ("assert f(1j) == 3", "a complex is among the values"),
    ("assert f(x) == 3", "an assert is not f"),
    ("assert f(1) > 3", "an assert is not f"),
    ("assert f(1, b=2) == 3", "an assert is not f"),
    ("assert math.isclose(f(1), 3)", "an assert is not f"),
    ("print(3)", "an assert is not f"),
    ("assert g(1) == 3", "asserts call 2 functions")])
def test_what_json_does_not_have_is_refused_with_a_sentence(line, message):
    with pytest.raises(ValueError, match=message):
        convert.from_asserts("a", "s", ["assert f(1) == 1", line])


def test_the_command_counts_what_it_refuses(tmp_path, capsys):
    rows = [{"task_id": 1, "text": "s", "code": "def f(a): return a",
             "test_list": ["assert f(1) == 1", "assert f(2) == 2"]},
            {"task_id": 2, "text": "s", "code": "def f(a): return a",
             "test_list": ["assert f((1,)) == (1,)", "assert f(2) == 2"]},
            {"task_id": 9, "text": "s", "test_list": []}]
    source, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [str(source), str(out), "--ids", "1", "5"]
    convert.main(convert.parse_args(argv))
    printed = capsys.readouterr().out
    assert "1 problems" in printed and "1 refused: a tuple is among the arguments" in printed
    assert [problem.id for problem in load_problems(out)] == ["own/1"]
    convert.main(convert.parse_args([*argv, "--tuples-as-lists"]))
    assert load_problems(out)[1].public_tests == [{"input": "[[1]]", "output": "[1]"}]
    with pytest.raises(SystemExit):
        convert.main(convert.parse_args([*argv, "--asserts-key", "asserts"]))
    assert "no key 'asserts' among task_id, text" in capsys.readouterr().err
