"""lib/dev.py and lib/export.py: dev evaluations during training, the best checkpoint, and what is
made of any checkpoint."""

import argparse
import json
from types import SimpleNamespace

import pytest
import tiny
import torch
from toy import read, weights

import evaluate
import train_cppo
from lib import checkpoints, dev, errors, export
from rivals import train_rivals

STEPS = ("--steps", "3", "--skip-audit", "--problems-per-step", "2")


# --------------------------------------------------------------------------------------------------
# Choosing

def scored(*solved: float) -> dict:
    return {"pass_at_k": torch.tensor(solved, dtype=torch.float64)}


@pytest.fixture
def evaluations():
    """evaluations(scores, ...) of steps 0, 1, ...: (step of best/, whether patience is used up)."""
    def run_through(*scores, patience=0):
        written, left = [], iter(scores)
        run = SimpleNamespace(
            rank=0, world=1, main=True, any=bool, gather=lambda part: [part],
            together=lambda work: work(), log=lambda *_: None, say=lambda *_: None,
            publish=lambda name, notes: written.append(notes))
        args = argparse.Namespace(eval_every=1, patience=patience)
        watched = dev.Dev(args, run, ["problem"] * len(scores[0]["pass_at_k"]),
                          lambda mine: next(left))
        state, ended = {"step": 0}, []
        for _ in scores:
            ended.append(watched.ends(state))
            state["step"] += 1
        return state["dev"]["best"], ended, [notes["step"] for notes in written]
    return run_through


def test_a_checkpoint_is_best_only_above_the_margin_of_one_standard_error(evaluations):
    """Of four problems: one gained is 0.25 with an error of 0.217, one gained and one lost is
    0 with 0.354, two gained and one lost 0.25 with 0.415."""
    start = scored(1, 0, 0, 0)
    assert evaluations(start, scored(1, 1, 0, 0))[0] == 1
    assert evaluations(start, scored(0, 1, 0, 0))[0] == 0
    assert evaluations(start, scored(0, 1, 1, 0))[0] == 0
    assert evaluations(start, start)[0] == 0


def test_best_is_written_when_it_is_found_and_patience_counts_evaluations(evaluations):
    worse, better = scored(0, 0, 0, 0), scored(1, 1, 1, 0)
    best, ended, written = evaluations(worse, better, worse, better, worse, patience=3)
    assert best == 1 and written == [0, 1]
    assert ended == [False, False, False, False, True]


def test_scores_of_two_ranks_are_put_in_the_order_of_the_problems():
    parts = [scored(0, 2, 4), scored(1, 3)]
    assert dev.in_order(parts, 5)["pass_at_k"].tolist() == [0, 1, 2, 3, 4]


# --------------------------------------------------------------------------------------------------
# In a run

@pytest.fixture(scope="module")
def pair(toy_world, tmp_path_factory):
    """The stage folders of one run without dev evaluation, and with it."""
    import toy
    folders = []
    for flags in ((), ("--dev", str(toy_world / "dev.jsonl"), "--eval-every", "2", "--keep", "0",
                       "--save-every", "1")):
        folder = tmp_path_factory.mktemp("dev")
        with toy.working_folder(folder):
            status, stage = toy.train(toy_world, *STEPS, *flags)
        assert status == 0
        folders.append(folder / stage)
    return folders


def test_training_is_the_same_with_and_without_dev_evaluation(pair):
    without, with_dev = pair
    assert read(without / "samples.jsonl") == read(with_dev / "samples.jsonl")
    ours, theirs = weights(without), weights(with_dev)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_start_every_second_step_and_the_last_one_are_evaluated(pair):
    records = read(pair[1] / "dev.jsonl")
    assert [r["step"] for r in records] == [0, 2, 3]
    for r in records:
        assert r["problems"] == 6 and 0 <= r["pass_at_1"] <= r["pass_at_k"] <= 1
        assert {"duplicate", "J"} <= r.keys()
    best = json.loads((pair[1] / "best" / "notes.json").read_text())["step"]
    assert best == records[-1]["best"]


def test_a_rival_is_evaluated_by_k_attempts(run_toy, toy_world):
    status, stage = run_toy("--steps", "1", "--method", "grpo", "--num-attempts", "4", "--dev",
                            str(toy_world / "dev.jsonl"), "--eval-every", "1",
                            "--problems-per-step", "2", script=train_rivals)
    assert status == 0 and [r["step"] for r in read(stage / "dev.jsonl")] == [0, 1]


@pytest.mark.parametrize("flags, message", [
    (("--dev", "d.jsonl"), "go together"), (("--eval-every", "5"), "go together"),
    (("--patience", "2"), "--patience counts dev evaluations")])
def test_flags_that_need_each_other_are_named(capsys, flags, message):
    with pytest.raises(SystemExit):
        train_cppo.parse_args(["--model", "m", *flags])
    assert message in capsys.readouterr().err


def test_dev_problems_that_are_trained_on_are_refused(run_toy, toy_world, capsys):
    with pytest.raises(SystemExit):
        run_toy(*STEPS, "--dev", str(toy_world / "problems.jsonl"), "--eval-every", "1")
    assert "'toy/sum' is one: hold them out" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Any checkpoint

def test_any_step_of_a_run_is_loaded_as_it_was_trained(pair):
    module, _ = export.load_step(pair[1], 3)
    final = weights(pair[1])
    assert all(torch.equal(p, final[name]) for name, p in module.named_parameters())
    earlier = dict(export.load_step(pair[1], 1)[0].named_parameters())
    assert any(not torch.equal(earlier[name], final[name]) for name in final)
    with pytest.raises(errors.UserError, match="keeps steps 1, 2, 3, not 80: train with --keep 0"):
        export.load_step(pair[1], 80)


@pytest.mark.parametrize("step", ["1", "best", "final"])
def test_a_step_is_exported_in_bf16_with_a_card(pair, toy_world, tmp_path, monkeypatch, step):
    monkeypatch.chdir(pair[1].parents[2])
    out = tmp_path / "out"
    stage = pair[1].relative_to(pair[1].parents[2])
    assert export.main(export.parse_args([str(stage), "--step", step, "--out", str(out)])) == 0
    module = tiny.hf(out, dtype=torch.bfloat16)
    assert {p.dtype for n, p in module.named_parameters() if "A_log" not in n} >= {torch.bfloat16}
    card = (out / "README.md").read_text()
    for part in (f"base_model: {toy_world / 'base'}", "license: unknown", "Coordinated Pass@K",
                 f"problems: {toy_world / 'problems.jsonl'}", "commit", "without a trained gate"):
        assert part in card
    if step != "1":
        assert "dev (6 problems): pass_at_k" in card


def test_a_checkpoint_of_a_run_is_evaluated_without_conversion(
        pair, toy_world, monkeypatch, capsys):
    monkeypatch.chdir(pair[1].parents[2])
    stage = str(pair[1].relative_to(pair[1].parents[2]))
    argv = ["--model", stage, "--step", str(checkpoints.read_state(
        checkpoints.newest(pair[1]))["step"]), "--method", "tuple", "--num-strategies", "2",
        "--k", "2", "--problems", str(toy_world / "dev.jsonl"), "--max-plan-tokens", "24",
        "--max-solve-tokens", "28", "--prompts", str(toy_world / "prompts.json")]
    assert evaluate.main(evaluate.parse_args(argv)) == 0
    assert (pair[1] / "eval" / "dev-tuple-step3.jsonl").exists()
