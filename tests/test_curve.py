"""miniature/curve.py: what it prints is the mean of what was logged."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from lib.errors import UserError
from lib.problems import outcome_hash, save_problems
from miniature import curve, world


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


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> list[Path]:
    """Two runs of a stage with checkpoints at steps 2 and 4 and a log."""
    made = []
    for seed in (0, 1):
        stage = tmp_path_factory.mktemp(f"run{seed}") / "cppo"
        for step in (2, 4):
            (stage / f"step_00000{step}").mkdir(parents=True)
            (stage / f"step_00000{step}" / "state.json").write_text("{}")
        log = [{"step": step, "strategy_use": step / 10} for step in (1, 2, 3, 4)]
        (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        made.append(stage)
    return made


def test_checkpoints_of_several_runs_become_a_table_and_a_picture(stages, tmp_path, capsys):
    """Attempts that are there are not made again: here they are an oracle's."""
    problems = world.problems("heldout")[:5]
    save_problems(tmp_path / "heldout.jsonl", problems)
    for seed, stage in enumerate(stages):
        for step in (2, 4):
            write_oracle(stage / "curve" / f"step_00000{step}.jsonl", problems, step + seed)
    picture = tmp_path / "curve.png" if importlib.util.find_spec("matplotlib") else None
    curve.print_checkpoints(stages, tmp_path / "heldout.jsonl", 2, [], picture)
    table, pooled = capsys.readouterr().out.split("\nmean ±")
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["2", "4", "2", "4"]
    assert "0.350" in table and "0.150" in table                # strategy use, means of two steps
    last = pooled.splitlines()[4].split()
    assert last[:3] == ["cppo", "4", "2"]                        # two runs
    assert not picture or picture.stat().st_size > 5000
    with pytest.raises(UserError, match="no checkpoint of every 3th step"):
        curve.steps_of(stages[0], 3)


def write_oracle(path: Path, problems: list, right: int) -> None:
    """Four attempts per problem: the `right` likeliest readings, the first of them repeated."""
    path.parent.mkdir(exist_ok=True)
    rows = []
    for problem in problems:
        posterior = world.parse_statement(problem.statement).posterior
        combos = sorted(posterior, key=posterior.get, reverse=True)[:min(right, 4)]
        for i, combo in enumerate((combos * 4)[:4]):
            outcome = outcome_hash(list(world.outcome(combo)))
            rows.append({"problem_id": problem.id, "tuple": 0, "index": i, "status": "empty",
                         "strategy": world.write_strategy(combo, random.Random(0)),
                         "program": world.program(combo), "outcome": outcome,
                         "posterior": problem.classes[outcome]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = {"method": "tuple", "num_strategies": 4}
    path.with_suffix(".json").write_text(json.dumps({"setting": setting}))
