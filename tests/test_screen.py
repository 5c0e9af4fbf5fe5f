"""prepare/screen.py: pools judged by their own solutions."""

import json
import sys

import pytest

from corpus_rows import apps_row, code_contests_row, write_rows
from lib import flags
from lib.errors import UserError
from lib.problems import load_problems
from prepare import corpora, exposure, screen
from prepare.readers import from_apps, from_code_contests, row_id
from verifier import Verdict, Verifier

RIGHT = "print(int(input()) + 1)"       # the tests of code_contests_row
WRONG = "print(int(input()))"


def solutions(*programs: str, language: int = screen.PYTHON3) -> dict:
    return {"language": [language] * len(programs), "solution": list(programs)}


def verdict(status: str) -> Verdict:
    return Verdict(status == "accepted", status, 0, 0.0)


@pytest.mark.parametrize("right, wrong, reason", [
    (["accepted", "accepted"], ["wrong_answer"], ""),
    (["accepted", "wrong_answer"], [], "right_fails"),
    (["accepted"], ["time_limit", "accepted"], "wrong_passes"),
    # Python 2, or too slow here: says nothing of the problem
    (["compile_error", "time_limit"], ["wrong_answer"], ""),
    ([], [], ""),
])
def test_a_problem_goes_if_a_right_solution_fails_or_a_wrong_one_passes(right, wrong, reason):
    assert screen.reason_to_drop(list(map(verdict, right)), list(map(verdict, wrong))) == reason


def test_programs_in_other_languages_are_not_run():
    row = code_contests_row(solutions=solutions("int main() {}", language=2))
    assert screen.labelled_programs("code_contests", row) == ([], [])
    row = apps_row(solutions=json.dumps(["a"] * 9))
    assert screen.labelled_programs("apps", row) == (["a"] * screen.SOLUTIONS, [])


def test_row_ids_are_the_ids_of_the_problems():
    assert row_id("code_contests", "train", 7, {}) == from_code_contests(
        code_contests_row(), "train", 7).id
    assert row_id("apps", "test", 0, apps_row(3)) == from_apps(apps_row(3), "test").id


@pytest.fixture
def built(tmp_path):
    """A build with one pool of three problems: good, with a right solution that fails, with a wrong
    one that passes."""
    rows = [code_contests_row(i, solutions=solutions(RIGHT), incorrect_solutions=solutions(WRONG))
            for i in range(3)]
    rows[1]["solutions"] = solutions(RIGHT, WRONG)
    rows[2]["incorrect_solutions"] = solutions(WRONG, RIGHT)
    write_rows(tmp_path / "copies" / "train.jsonl", rows)
    sizes = {pool.name: 0 for pool in corpora.POOLS} | {"joint": 3}
    local = {"code_contests": str(tmp_path / "copies")}
    corpora.build(tmp_path / "corpora", sizes, local=local, say=lambda line: None)
    return tmp_path / "corpora"


def test_a_screened_pool_is_a_pool_of_the_build(built):
    with Verifier(workers=1) as verifier:
        entry = screen.screen(built, "joint", verifier)
        rates = {"cc/train/0": 1.0}         # solved always: nothing to learn
        strict = screen.screen(built, "joint", verifier, rates, (0.02, 0.9))
    assert entry["dropped"] == {"cc/train/1": "right_fails", "cc/train/2": "wrong_passes"}
    assert entry["ids"] == ["cc/train/0"] and entry["problems"] == 1
    assert strict["dropped"]["cc/train/0"] == "pass_rate" and strict["problems"] == 0
    assert exposure.check_pool(built / "joint.jsonl") == ""
    assert corpora.default_pool("joint-screened", built).name == "joint-screened.jsonl"
    assert len(load_problems(built / "joint.jsonl")) == 3


def test_a_pool_without_solutions_is_refused(built):
    with pytest.raises(UserError, match="'lcb' has no solutions to run: one of joint"):
        screen.screen(built, "lcb", None)


def test_pass_rates_are_shares_of_accepted_attempts(tmp_path):
    attempts = [{"problem_id": "a", "status": "accepted"}, {"problem_id": "a", "status": "empty"},
                {"problem_id": "b", "status": "wrong_answer"}]
    path = write_rows(tmp_path / "attempts.jsonl", attempts)
    assert screen.pass_rates(path) == {"a": 0.5, "b": 0.0}
    write_rows(path, [{"problem_id": "a"}])
    with pytest.raises(UserError, match="line 1: an attempt has"):
        screen.pass_rates(path)


def test_the_usage_line_says_how_a_script_in_a_folder_is_run(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", screen.__spec__)
    usage = flags.Parser("").format_usage()
    assert usage.startswith("usage: python -m prepare.screen")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert not flags.Parser("").format_usage().startswith("usage: python -m")
