"""Figures are drawn from attempts and from the logs of training."""

import json
from pathlib import Path

import pytest
from paper_runs import PROBLEMS, write_run
from readme import ROOT

pytest.importorskip("matplotlib")

from paper import figures, tables  # noqa: E402


def write_logs(run: Path) -> None:
    """Eight steps of training, a problem each."""
    for stage in ("pkpo", "upskill", "cppo"):
        (run / stage).mkdir(exist_ok=True)
        metrics, samples = [], []
        for step in range(1, 9):
            metrics.append({"step": step, "grad_norm": 1 / step, "step_norm": 0.1,
                            "advantage_nonzero": 0.5, "r_correct": step / 9, "r_mi": 0.3,
                            "reward_variance": 0.2})
            faults = None if step == 1 else ["leak"] if step < 5 else []
            samples.append({"step": step, "p_pass": step / 9, "J": float(step > 3),
                            "R_out": step % 2, "faults": faults,
                            "branches": [{"a": 0.0}, {"a": step / 9}]})
        for name, rows in (("metrics", metrics), ("samples", samples)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (run / stage / f"{name}.jsonl").write_text(text)


def write_step(run: Path) -> None:
    """A real step of training."""
    (run / "cppo").mkdir(parents=True)
    samples = (ROOT / "miniature" / "worked_step.jsonl").read_text()
    (run / "cppo" / "samples.jsonl").write_text(samples)


@pytest.mark.parametrize("number", ["2", "4", "7", "8", "9", "3", "cost"])
def test_figures_are_drawn(number, tmp_path):
    run = tmp_path / "Qwen3.5-2B"
    systems = (("base", "direct"), ("base", "sketch"), ("cppo", "tuple"), ("sft", "tuple"))
    for stage, method in systems:
        path = write_run(run, stage, method)
        categories = [str(i % (1 + len(method + stage) % 4)) for i in range(4)]
        groups = [{"problem_id": problem, "tuple": 0, "categories": categories}
                  for problem in PROBLEMS]
        path.with_suffix(".diversity.json").write_text(json.dumps({"groups": groups}))
    write_logs(run)
    out = tmp_path / "figure.png"
    assert tables.main(tables.parse_args(["figure", number, str(run), "--out", str(out)])) == 0
    assert out.stat().st_size > 5000


def test_one_command_draws_what_there_is_data_for_and_names_the_rest(tmp_path, capsys):
    run = tmp_path / "run"
    write_step(run)
    assert figures.main(figures.parse_args([str(run), "--out", str(tmp_path / "out")])) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figure-1.png", "figure-3.png"]
    left_out = capsys.readouterr().err
    assert "no figure 8: these runs hold no pkpo/metrics.jsonl" in left_out
    assert left_out.count("no figure ") == len(figures.NUMBERS) - 2


def test_no_two_methods_look_alike():
    looks = [(look["color"], look["marker"]) for look in map(figures.style, figures.METHODS)]
    assert len(set(looks)) == len(figures.METHODS)


def test_figure_1_shows_a_plan_that_one_branch_alone_has_solved(tmp_path):
    write_step(tmp_path)
    row, statement = figures.example([str(tmp_path)])
    assert row["J"] == row["R_out"] == sum(branch["r"] for branch in row["branches"]) == 1
    assert statement == row["problem_id"]           # no problem file is named


def test_a_figure_without_its_data_is_refused_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, "base", "direct")
    needs = {"3": "cppo/samples.jsonl", "4": "D_alg", "8": "pkpo/metrics.jsonl"}
    for number, needed in needs.items():
        with pytest.raises(SystemExit) as end:
            tables.main(tables.parse_args(["figure", number, str(run)]))
        printed = capsys.readouterr().err
        assert end.value.code == 2
        assert needed in printed and printed.count("\n") == 1
