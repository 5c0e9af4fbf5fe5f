"""miniature/curve.py: what it prints is the mean of what was logged."""

import json
import sys

import pytest

from miniature import curve


def test_each_step_is_in_one_part_and_a_part_shows_means_of_what_it_has():
    steps = [{"step": i, "R_out": i / 10, "strategy_use": 1.0 if i % 5 == 0 else None} for i in range(1, 11)]
    rows = curve.parts(steps, 3)
    assert [row["steps"] for row in rows] == ["1-3", "4-6", "7-10"]
    assert [row["R_out"] for row in rows] == pytest.approx([0.2, 0.5, 0.85])
    assert ["strategy use" in row for row in rows] == [False, True, True] and "J" not in rows[0]


def test_a_run_shorter_than_the_parts_has_a_row_a_step():
    assert [row["steps"] for row in curve.parts([{"step": 1}, {"step": 2}], 6)] == ["1-1", "2-2"]


def test_the_command_finds_stages_3_and_5_and_says_when_there_are_none(tmp_path, monkeypatch, capsys):
    for stage in ("sft", "warmup"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": 1, "J": 0.25}) + "\n")
    monkeypatch.setattr(sys, "argv", ["curve.py", str(tmp_path)])
    curve.main()
    said = capsys.readouterr().out
    assert "warmup" in said and "0.250" in said and "sft" not in said.replace(str(tmp_path), "")
    monkeypatch.setattr(sys, "argv", ["curve.py", str(tmp_path / "sft")])
    with pytest.raises(SystemExit) as e:
        curve.main()
    assert e.value.code == 2 and capsys.readouterr().err.startswith("error: no metrics.jsonl")
