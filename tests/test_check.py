"""prepare/check.py: a problem file of one's own, its solutions, its summary, acknowledged."""

import json

import pytest

from corpus_rows import write_rows
from lib.problems import load_problems
from prepare import check, exposure

ADD = {"id": "add", "statement": "Return the sum.", "fn_name": "add",
       "starter_code": "def add(a, b):\n    ...", "tests": [{"input": "[1, 2]", "output": "3"}],
       "public_tests": [{"input": "[1, 2]", "output": "3"}]}
HALF = {"id": "half", "statement": "Print half.", "tests": [{"input": "1\n", "output": "0.5\n"}]}


@pytest.fixture
def own(tmp_path):
    return write_rows(tmp_path / "own.jsonl", [ADD, HALF])


def call(*argv) -> int:
    return check.main(check.parse_args([str(word) for word in argv]))


def test_solutions_run_and_what_fails_is_named_and_left_out(own, tmp_path, capsys):
    solutions = write_rows(tmp_path / "s.jsonl", [
        {"problem_id": "add", "program": "def add(a, b): return a + b"},
        {"problem_id": "half", "program": "print(int(input()) // 2)"}])
    argv = (own, "--solutions", solutions, "--workers", 1)
    assert call(*argv) == 1
    printed = capsys.readouterr().out
    assert "1 calls of a function" in printed and "1 programs on standard input" in printed
    assert "1 expect floats without float_tolerance, the first 'half'" in printed
    assert "1 grade on a public test, the first 'add'" in printed
    assert "2 solutions ran, 1 are accepted" in printed and "half: wrong_answer" in printed
    assert call(*argv, "--keep", tmp_path / "good.jsonl") == 0
    assert [problem.id for problem in load_problems(tmp_path / "good.jsonl")] == ["add"]


def test_problems_that_a_model_solves_always_or_never_are_left_out(own, tmp_path):
    attempts = [{"problem_id": "add", "status": "accepted"},
                {"problem_id": "add", "status": "no_code"},
                {"problem_id": "half", "status": "no_code"}]
    path = write_rows(tmp_path / "attempts.jsonl", attempts)
    call(own, "--attempts", path, "--pass-rate", 0.1, 0.9, "--keep", tmp_path / "good.jsonl")
    assert [problem.id for problem in load_problems(tmp_path / "good.jsonl")] == ["add"]


def test_a_missing_manifest_is_acknowledged_for_the_content_that_was_checked(own, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "prepare.check FILE --own" in exposure.check_pool(own, nowhere)
    call(own, "--own")
    assert exposure.check_pool(own, nowhere) == ""
    own.write_text(own.read_text() + json.dumps(HALF | {"id": "other"}) + "\n")
    assert "has no manifest" in exposure.check_pool(own, nowhere)


def test_a_solution_of_no_problem_is_named_with_its_line(own, tmp_path, capsys):
    path = write_rows(tmp_path / "s.jsonl", [{"problem_id": "x", "program": ""}])
    with pytest.raises(SystemExit) as end:
        call(own, "--solutions", path)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "s.jsonl line 1: a solution is" in error
