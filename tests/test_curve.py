"""miniature/curve.py: what it prints is the mean of what was logged."""

import json
import sys

import pytest

from miniature import curve


def test_each_step_is_in_one_part_and_a_part_shows_means_of_what_it_has():
    steps = []
    for i in range(1, 11):
        strategy_use = 1.0 if i % 5 == 0 else None
        steps.append({"step": i, "R_out": i / 10, "strategy_use": strategy_use})
    rows = curve.parts(steps, 3)
    assert [row["steps"] for row in rows] == ["1-3", "4-6", "7-10"]
    assert [row["R_out"] for row in rows] == pytest.approx([0.2, 0.5, 0.85])
    assert ["strategy use" in row for row in rows] == [False, True, True]
    assert "J" not in rows[0]


def test_a_run_shorter_than_the_parts_has_a_row_per_step():
    assert [row["steps"] for row in curve.parts([{"step": 1}, {"step": 2}], 6)] == ["1-1", "2-2"]


def test_the_command_reads_stages_3_and_5_and_refuses_a_folder_without_them(
        tmp_path, monkeypatch, capsys):
    for stage in ("sft", "warmup"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": 1, "J": 0.25}) + "\n")
    monkeypatch.setattr(sys, "argv", ["curve.py", str(tmp_path)])
    curve.main()
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "warmup" in printed and "0.250" in printed and "sft" not in printed
    monkeypatch.setattr(sys, "argv", ["curve.py", str(tmp_path / "sft")])
    with pytest.raises(SystemExit) as e:
        curve.main()
    assert e.value.code == 2 and capsys.readouterr().err.startswith("error: no metrics.jsonl")
