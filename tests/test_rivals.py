"""rivals/train_rivals.py: what rows the rivals make of a rollout, and a step of each."""

import argparse

import pytest
import torch
from toy import read

import rollout
from rivals import train_rivals
from rivals.advantages import set_advantages

R = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.float64)


def rows_of(method: str):
    args = argparse.Namespace(method=method, num_attempts=5, num_strategies=2, problems_per_step=2,
                              alpha_mi=1.0, mask_cut=False)
    sample = rollout.Sample([7, 8], [0.0, 0.0], "", "eos")
    attempts = [[rollout.Branch([1], 1, sample, None) for _ in range(5)] for _ in range(2)]
    batch = train_rivals.Batch([None] * 2, attempts, R, None, 0.0)
    _, advantages = train_rivals.credit(batch, args)
    return train_rivals.make_rows(batch, advantages, args)


@pytest.mark.parametrize("method", ["grpo", "maxrl", "passk", "pkpo", "pkpo-loo"])
def test_every_rival_weights_its_kl_alike(method):
    """The weight of a row multiplies its KL too: 1 / (attempts * problems of the batch)."""
    assert {row.weight for row in rows_of(method)} == {1 / 10}


def test_pkpo_keeps_the_surrogate_of_its_transform():
    """Advantage times weight is the transform, which holds its 1/N, over the number of problems."""
    paid = [row.advantage * row.weight for row in rows_of("pkpo")]
    expected = set_advantages("pkpo", R, 2).flatten() / 2
    torch.testing.assert_close(torch.tensor(paid, dtype=torch.float64), expected)


@pytest.mark.parametrize("flags", [
    ("grpo",), ("maxrl",), ("passk",), ("pkpo",), ("pkpo-loo",),
    ("upskill", "--num-attempts", "3", "--problems-per-step", "9")])
def test_every_rival_takes_a_step(run_toy, flags):
    status, stage = run_toy("--steps", "1", "--method", *flags, script=train_rivals)
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["step_norm"] > 0 and 0 < metrics["pass_rate"] < 1


def test_a_fork_of_the_script_has_a_stage_folder_of_its_own():
    args = train_rivals.parse_args(["--model", "m", "--variant", "mine", "--method", "pkpo"])
    assert train_rivals.stage_name(args) == "pkpo-mine"
