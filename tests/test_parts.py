"""Attempts of several processes on their way into one file."""

import json

import pytest

from lib.errors import UserError
from lib.parts import Parts


def attempt(problem: str, index: int) -> dict:
    return {"problem_id": problem, "tuple": 0, "index": index}


def write(parts: Parts, rank: int, *attempts: dict) -> None:
    with parts.open(rank) as file:
        for row in attempts:
            file.write(json.dumps(row) + "\n")


def test_a_problem_is_done_when_all_its_attempts_are_there_whoever_made_them(tmp_path):
    parts = Parts(tmp_path / "a.jsonl", {"p": 2, "q": 2})
    write(parts, 1, attempt("p", 1))
    write(parts, 0, attempt("q", 0), attempt("p", 0))
    assert parts.done() == {"p": [attempt("p", 0), attempt("p", 1)]}


def test_a_line_that_was_cut_off_does_not_count(tmp_path):
    parts = Parts(tmp_path / "a.jsonl", {"p": 1})
    parts.path(0).write_text(json.dumps(attempt("p", 0)))       # without its line end
    assert parts.done() == {}


def test_the_file_appears_when_everything_is_there_and_the_parts_go(tmp_path):
    parts = Parts(tmp_path / "a.jsonl", {"q": 1, "p": 1})
    parts.begin({"setting": {}})
    write(parts, 0, attempt("p", 0))
    write(parts, 3, attempt("q", 0))
    parts.finish({"setting": {}, "seconds": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl"]
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [attempt("q", 0), attempt("p", 0)]


def test_what_an_interrupted_run_left_is_gathered_in_one_part(tmp_path):
    parts = Parts(tmp_path / "a.jsonl", {"p": 1, "q": 2})
    write(parts, 5, attempt("p", 0), attempt("q", 0))
    parts.begin({"setting": {}})
    assert parts.paths() == [parts.path(0)]
    assert parts.done() == {"p": [attempt("p", 0)]}


def test_another_setting_is_refused_by_name(tmp_path):
    parts = Parts(tmp_path / "a.jsonl", {})
    parts.refuse_another({"seed": 0})               # nothing is there yet
    parts.begin({"setting": {"seed": 0}})
    parts.refuse_another({"seed": 0})
    with pytest.raises(UserError, match="begun with seed 0, now it is 1.*--fresh"):
        parts.refuse_another({"seed": 1})
