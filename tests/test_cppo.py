"""train_cppo.py as its users run it, on the toy policy of toy.py: stages 3 to 5, from the flags to
the folder that is left behind."""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import ranks
import tiny
import torch
from toy import (
    SHORT,
    STEP,
    WAYS,
    arguments,
    logged,
    problems,
    read,
    taught,
    train,
    weights,
    working_folder,
)

import gate
import grpo
import model
import prompts
import rollout
import train_cppo
from lib import checkpoints, diagnostics, files, progress, rl
from lib import run as lib_run
from lib.problems import Problem
from lib.verdicts import Submitter

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------------------------------
# Stage 5, three steps of it


class Stage5(NamedTuple):
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def stage_5(toy_world, tmp_path_factory) -> Stage5:
    folder = tmp_path_factory.mktemp("stage5")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, working_folder(folder):
        patched.setattr(progress, "PROGRESS_SECONDS", 0.0)
        patched.setattr(train_cppo, "USE_EVERY", 1)
        patched.setattr(rl, "SHOW_EVERY", 2)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status, stage = train(toy_world, "--steps", "3")
    assert status == 0
    return Stage5(folder / stage, out.getvalue(), err.getvalue())


def test_stage_5_says_at_its_start_what_it_does_without_and_the_mend_of_each(stage_5):
    [_, block] = stage_5.err.split("WARNING: this run does without\n")
    for lack, mend in (("stage 1", "python train_sft.py --model"), ("a trained gate", "train_rm"),
                       ("stage 3", "--run-name toy --stage warmup")):
        assert lack in block and mend in block


def test_stage_5_prints_the_audit_and_its_progress(stage_5):
    assert "audit:" in stage_5.out
    kept = [json.loads(line)
            for line in (stage_5.folder / "audit_samples.jsonl").read_text().splitlines()]
    assert kept and all(row["plan"] and row["plan_finish"] for row in kept)
    assert all(branch["reply"] for row in kept for branch in row["branches"])
    assert "rows done" in stage_5.err and "of the slots idle" in stage_5.err


def test_stage_5_logs_every_step_and_every_tuple(stage_5):
    steps = read(stage_5.folder / "metrics.jsonl")
    assert [m["step"] for m in steps] == [1, 2, 3]
    assert len(read(stage_5.folder / "samples.jsonl")) == 3 * 3 * 4
    assert all(m["grad_norm"] > 0 for m in steps) and steps[0]["step_norm"] > 0
    assert all(-4 < m["strategy_use"] <= math.log(2) for m in steps)


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(stage_5):
    for m in read(stage_5.folder / "metrics.jsonl"):
        assert m["plan/gap_max"] < 1e-3 and m["solve/gap_max"] < 1e-3


def test_the_samples_hold_the_rewards_and_advantages_of_their_equations(stage_5):
    samples = read(stage_5.folder / "samples.jsonl")
    assert any(t["A"] for t in samples) and any(b["a"] for t in samples for b in t["branches"])
    for t in samples:
        r = torch.tensor([b["r"] for b in t["branches"]], dtype=torch.float64)
        assert t["R_out"] == (r.max().item() if len(r) else 0.0)
        assert t["R_plan"] == t["J"] * t["R_out"]
        if len(r):
            a = torch.tensor([b["a"] for b in t["branches"]], dtype=torch.float64)
            assert torch.allclose((r - r.mean()) / (r.std() + 1e-6), a, atol=1e-12)


def test_stage_5_leaves_trained_weights_that_load_and_a_config(stage_5, toy_world):
    before = dict(model.load(toy_world / "base").named_parameters())
    after = weights(stage_5.folder)
    assert before.keys() == after.keys() and any((before[n] != after[n]).any() for n in before)
    config = json.loads((stage_5.folder / "config.json").read_text())
    assert config["verifier"]["tier"] in "ABCD" and config["checkpoints"]["start"]["sha256"]


# --------------------------------------------------------------------------------------------------
# Planner and solver

def test_the_warmup_trains_the_planner_alone(run_toy):
    status, stage = run_toy("--steps", "1", "--stage", "warmup", "--gate", "rule",
                            "--problems-per-step", "8")
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["grad_norm"] > 0
    assert "solve/kl" not in metrics and "R_out" not in metrics


def test_planner_and_solver_each_have_a_gradient_of_their_own(run_toy):
    """With solver weight 0 and no KL only the planner's rows can move anything."""
    norms = []
    for solver_weight in ("1", "0"):
        _, stage = run_toy("--steps", "1", "--beta", "0", "--solver-weight", solver_weight,
                           "--problems-per-step", "8")
        norms.append(read(stage / "metrics.jsonl")[0]["grad_norm"])
    both, planner = norms
    assert both > 0 and planner > 0 and abs(both - planner) > 1e-4


def region_norms(policy, rows: list[grpo.Row], settings: dict) -> dict[str, float]:
    """The norm of the policy gradient of each region's rows alone."""
    norms = {}
    for region in grpo.REGIONS:
        own = [row for row in rows if row.region == region]
        batch = grpo.collate(own, torch.device("cpu"), shared=False)
        logp = grpo.row_logprobs(policy, batch, settings["temperature"], settings["vocab"])
        (logp * batch.advantage * batch.scale).sum().backward()
        norms[region] = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
        policy.zero_grad()
    return norms


def half_open_gate(folder: Path, base: Path) -> gate.Gate:
    """An untrained gate at the tau that half of all plans pass, saved in `folder`."""
    judge = gate.Gate(model.load(base), tiny.tokenizer(), k=2)
    plans = [f"A: use {a}\nB: use {b}" for a in WAYS for b in WAYS]
    pairs = [(problem, plan) for problem in problems() for plan in plans]
    judge.tau = sorted(judge.p_pass(pairs))[len(pairs) // 2]
    model.save(judge.module, folder, judge.tokenizer)
    judge.write_card(folder, {"accepted": True, "failed": []})
    return judge


def test_a_gemma_policy_goes_through_stage_5_gated_by_a_qwen(
        run_toy, toy_world, tmp_path, monkeypatch):
    """From the rollout to final/; planner and solver tokens each have a gradient of their own."""
    policy = taught(tiny.gemma4(tmp_path / "random", composite=True), 30, 12, 8e-3)
    model.save(policy, tmp_path / "gemma", tiny.tokenizer())
    monkeypatch.setattr(prompts, "TEMPLATES", prompts.TEMPLATES | SHORT)
    judge = half_open_gate(tmp_path / "gate", toy_world / "random")
    update, norms = grpo.update, {}

    def watched(policy, reference, optimizer, rows, **settings):
        assert not settings["shared"], "each continuation has its own copy of the prompt"
        norms.update(region_norms(policy, rows, settings))
        return update(policy, reference, optimizer, rows, **settings)

    monkeypatch.setattr(grpo, "update", watched)
    status, stage = run_toy("--steps", "1", "--skip-audit", "--gate", str(tmp_path / "gate"),
                            "--model", str(tmp_path / "gemma"))
    [metrics], samples = read(stage / "metrics.jsonl"), read(stage / "samples.jsonl")
    assert status == 0 and norms["plan"] > 1e-3 and norms["solve"] > 1e-3, norms
    assert 0 < metrics["J"] < 1 and 0 < metrics["pass_rate"] < 1 and metrics["step_norm"] > 0
    assert metrics["plan/gap_max"] < 1e-3 and metrics["solve/gap_max"] < 1e-3
    assert all(t["R_plan"] == t["J"] * t["R_out"] for t in samples)
    assert all((t["p_pass"] or 0) >= judge.tau * t["J"] for t in samples)
    before = dict(tiny.hf(tmp_path / "gemma").named_parameters())
    after = dict(tiny.hf(stage / "final").named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert any("layers.0." in n for n in moved)
    assert not any("per_layer.weight" in n or "vision" in n for n in moved)


@pytest.mark.parametrize("flags", [
    ("--reward", "outcome"), ("--reward", "gate"),
    ("--num-tuples", "1", "--problems-per-step", "16"), ("--updates-per-rollout", "2"),
    ("--solver-credit", "marginal", "--planner-credit", "place")])
def test_every_ablation_takes_a_step(run_toy, flags):
    status, stage = run_toy("--steps", "1", "--skip-audit", *flags)
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["step_norm"] > 0 and 0 < metrics["pass_rate"] < 1


def test_the_script_has_at_most_forty_flags(capsys):
    with pytest.raises(SystemExit):
        train_cppo.parse_args(["--help"])
    assert 30 < len(set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.M))) <= 40


def test_a_fork_of_the_script_has_a_stage_folder_of_its_own():
    args = train_cppo.parse_args(["--model", "m", "--variant", "mine"])
    assert train_cppo.stage_name(args) == "cppo-mine"


# --------------------------------------------------------------------------------------------------
# The parts of a step

def random_branch(rng: random.Random) -> rollout.Branch:
    prompt = [rng.randrange(300) for _ in range(rng.randint(3, 9))]
    reply = [rng.randrange(300) for _ in range(rng.randint(1, 7))]
    return rollout.Branch(prompt, 0, rollout.Sample(reply, [], "", "eos"), None)


@torch.no_grad()
def reply_logp(module, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """The whole reply's log-probability at temperature 0.7 over the first 390 words."""
    z = module(torch.tensor([prompt + reply]))[0, len(prompt) - 1:-1, :390].double() / 0.7
    return z.log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).sum()


def test_strategy_use_is_its_formula_over_whole_logits(toy_world):
    """log p(y_i | x, s_i) - log mean_j p(y_i | x, s_j), summed over the tokens of a reply; the
    first tuple that parsed counts."""
    module, rng = model.load(toy_world / "base"), random.Random(0)
    unparsed = rollout.Tuple([1], None, None, "does not parse", [])
    branches = [random_branch(rng) for _ in range(3)]
    parsed = rollout.Tuple([1], None, ["a"] * 3, None, branches)
    under = []                                  # [reply i][strategy j]
    for reply in branches:
        row = [reply_logp(module, branch.prompt, reply.sample.ids) for branch in branches]
        under.append(torch.stack(row))
    under = torch.stack(under)
    by_hand = (under.diagonal() - under.exp().mean(1).log()).mean()
    used = diagnostics.strategy_use(module, [[unparsed], [unparsed, parsed]], 0.7, 390)
    assert used == [pytest.approx(float(by_hand), abs=1e-5)]


def test_a_branch_that_does_not_exist_is_nan():
    """Made-up zeros would count as failures in anything that pools over branches."""
    plan = rollout.Tuple([1], None, None, "does not parse", [])
    r = train_cppo.verdicts([[plan, plan]], 2, 3)
    assert r.shape == (1, 2, 3) and r.isnan().all()


def test_a_rank_without_problems_keeps_its_shapes():
    assert train_cppo.verdicts([], 8, 4).shape == (0, 8, 4)
    assert train_cppo.gate_decisions(gate.RuleGate(), [], [], 8).shape == (0, 8)


def test_problems_of_a_step_are_a_function_of_the_step_and_cover_every_pass_once():
    pool = list(range(10))
    steps = [rl.batch_of_step(pool, s, 3, seed=1) for s in range(9)]
    assert steps == [rl.batch_of_step(pool, s, 3, seed=1) for s in range(9)]
    for epoch in range(3):
        seen = {p for step in steps[3 * epoch:3 * epoch + 3] for p in step}
        assert len(seen) == 9
    assert steps[0] != steps[3]


def test_cut_replies_carry_no_loss_if_asked():
    def sample(finish):
        return rollout.Sample([5], [-1.0], "", finish)

    branches = [rollout.Branch([1], 1, sample(finish), None) for finish in ("eos", "length")]
    group = [rollout.Tuple([1], sample("length"), ["a", "b"], None, branches)]
    batch = train_cppo.Batch([None], [group], *[torch.zeros(1, 1)] * 4, 0.0)
    regions = []
    for flags in ((), ("--mask-cut",)):
        args = train_cppo.parse_args(["--model", "m", *flags])
        rows = train_cppo.make_rows(batch, torch.ones(1, 1, 2), torch.ones(1, 1, 2), None, args)
        regions.append([row.region for row in rows])
    assert regions == [["plan", "solve", "solve"], ["solve"]]


def test_epochs_are_steps_of_a_pool():
    pool = list(range(20))
    for flags, steps in ((("--epochs", "3"), 6), (("--epochs", "3", "--steps", "4"), 4), ((), 100),
                         (("--stage", "warmup"), 400)):
        args = train_cppo.parse_args(["--model", "m", *flags])
        rl.count_steps(pool, args)
        assert args.steps == steps


# --------------------------------------------------------------------------------------------------
# Problems without a gradient are replaced

@dataclasses.dataclass
class Drawn:
    problems: list
    marks: torch.Tensor
    waited: float = 1.0


def test_problems_without_a_gradient_give_their_places_to_others(monkeypatch):
    """Those of odd number teach nothing. Each is replaced, at most three times, by problems that
    the step has not had; the same ones at a resume."""
    pool = [Problem(str(i), str(i)) for i in range(12)]
    args = argparse.Namespace(seed=0, problems_per_step=4, resample_equal=True)
    run, asked = SimpleNamespace(rank=0, world=1, together=lambda draw: draw()), []

    def draw(problems):
        asked.append([p.id for p in problems])
        return Drawn(list(problems), torch.tensor([int(p.id) for p in problems]))

    def even(batch):
        return batch.marks % 2 == 0

    batch, replaced = rl.draw_step(pool, 5, draw, even, args, run)
    again, _ = rl.draw_step(pool, 5, draw, even, args, run)
    first = [int(name) for name in asked[0]]
    kept = [n for n in first if n % 2 == 0]
    assert [p.id for p in batch.problems] == [p.id for p in again.problems]
    assert [int(p.id) for p in batch.problems] == batch.marks.tolist()
    assert set(kept) <= set(batch.marks.tolist()) and len(set(batch.marks.tolist())) == 4
    assert replaced == sum(map(len, asked[1:len(asked) // 2])) > 0
    assert len(asked) // 2 <= 1 + rl.RESAMPLE_ROUNDS and batch.waited == len(asked) // 2


# --------------------------------------------------------------------------------------------------
# What is refused

def test_a_random_checkpoint_is_refused_by_the_audit(run_toy, capsys):
    status, stage = run_toy("--steps", "1", model="random")
    assert status == 3
    assert "raise --max-plan-tokens" in capsys.readouterr().err     # it babbles on
    assert not (stage / "final").exists()


@pytest.mark.parametrize("audited, reward, message", [
    ({"parsed": 0.0, "plan_cut": 0.9}, "both", "raise --max-plan-tokens 512"),
    ({"parsed": 0.0}, "both", "return to stage 1"),
    ({"pass_at_k": 0.0, "solve_cut": 0.8}, "both", "raise --max-solve-tokens 2048"),
    ({"pass_at_k": 0.0}, "both", "return to stage 1"),
    ({"valid": 0.0, "R_plan_density": 0.0}, "both", "the gate accepts no plan"),
    ({"valid": 0.0}, "outcome", None), ({}, "both", None)])
def test_the_audit_says_what_to_change_and_asks_no_gate_where_none_is_used(
        audited, reward, message):
    args = train_cppo.parse_args(["--model", "m", "--reward", reward])
    well = {"parsed": 1.0, "pass_at_k": 0.5, "valid": 0.5, "R_plan_density": 0.2, "plan_cut": 0.0,
            "solve_cut": 0.0}
    reason = train_cppo.refusal(well | audited, args)
    assert reason is None if message is None else message in reason


MISTAKES = [
    (("--num-strategies", "0"), "of 1 or more"), (("--num-tuples", "0"), "of 1 or more"),
    (("--solver-credit", "marginal", "--num-tuples", "1"), "nothing to compare"),
    (("--planner-credit", "place", "--stage", "warmup"), "has none"),
    (("--judge", "os:getcwd"), "no function of two arguments"),
    (("--seed", "9" * 23), "below 2^63"), (("--lr", "inf"), "not inf"),
    (("--resample-equal", "--stage", "warmup"), "--resample-equal would hide"),
    (("--beta", "-1"), "of 0 or more"), (("--temperature", "nan"), "a number of 0 or more"),
    (("--model", "/nowhere"), "/nowhere"), (("--gate", "/nowhere"), "/nowhere"),
    (("--problems", "/nowhere"), "/nowhere"), (("--judge", "nothing:here"), "module:name"),
    (("--problems-per-step", "99"), "fewer than"), (("--refresh-every", "2"), "--judge")]


def test_a_user_s_mistake_is_one_line_with_the_mend_and_costs_nothing(run_toy, capsys):
    _, stage = run_toy("--steps", "1")
    final = stage / "final" / "config.json"
    written = final.stat().st_mtime_ns
    capsys.readouterr()
    for flags, message in MISTAKES:
        with pytest.raises(SystemExit) as stopped:
            run_toy("--steps", "1", "--fresh", *flags)
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert stopped.value.code == 2 and "Traceback" not in err, flags
        assert len(errors) == 1 and message in errors[0], flags
        assert final.stat().st_mtime_ns == written, flags


def test_a_sandbox_that_cannot_be_made_is_said_before_fresh_deletes_anything(
        run_toy, monkeypatch, capsys):
    def refuse(workers):
        raise ValueError("tier A is not to be had here")

    _, stage = run_toy("--steps", "1", "--skip-audit")
    monkeypatch.setattr(rl.verifier, "Verifier", refuse)
    with pytest.raises(SystemExit) as stopped:
        run_toy("--steps", "1", "--skip-audit", "--fresh")
    assert stopped.value.code == 2 and "tier A is not to be had" in capsys.readouterr().err
    assert (stage / "final" / "config.json").exists()


@pytest.mark.parametrize("text, message", [
    ("{", "line 1"), ('{"id": "a", "statement": "s", "tests": []}', "tests"), ("", "no problems")])
def test_a_broken_problem_file_is_named_with_its_line(run_toy, tmp_path, capsys, text, message):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text + "\n" if text else "")
    with pytest.raises(SystemExit) as stopped:
        run_toy("--problems", str(bad))
    assert stopped.value.code == 2 and message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Processes

def test_two_processes_sample_what_one_samples_and_take_the_same_step(
        run_toy, toy_world, tmp_path):
    """Under torchrun, as users start them; sharded, and with whole weights on each, as small models
    are trained. Problems without a gradient are replaced, and dev problems evaluated."""
    flags = ("--steps", "1", "--skip-audit", *STEP, *extras(toy_world))
    replicate_below = {"sharded": 0, "replicated": grpo.REPLICATE_BELOW}
    _, stage = run_toy(*flags)
    job = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", "import grpo", "import train_cppo"]
    for name, bound in replicate_below.items():
        argv = arguments(toy_world, *flags, "--run-name", name)
        job += [f"grpo.REPLICATE_BELOW = {bound}",
                f"assert train_cppo.main(train_cppo.parse_args({argv})) == 0"]
    (tmp_path / "job.py").write_text("\n".join(job))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
              "job.py"]
    ran = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=600,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    for name in replicate_below:
        two = tmp_path / "runs" / name / "cppo-m4"
        assert read(stage / "samples.jsonl") == read(two / "samples.jsonl")
        assert evaluations(stage) == evaluations(two)
        a, b = logged(stage)[0], logged(two)[0]
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-5 * a["grad_norm"]
        ours, theirs = weights(stage), weights(two)
        # Adam's first step is the sign of the gradient: a weight whose gradient is as small as the
        # rounding of a sum may move the other way
        moved = torch.cat([(ours[n] - theirs[n]).abs().flatten() for n in ours])
        assert (moved > 1e-4).float().mean() < 0.01


def extras(world: Path) -> tuple[str, ...]:
    return ("--dev", str(world / "dev.jsonl"), "--eval-every", "1", "--resample-equal",
            "--tis", "2", "--mask-cut")


def evaluations(stage: Path) -> list[dict]:
    """dev.jsonl without clocks."""
    return [{name: e[name] for name in e if name != "seconds"} for e in read(stage / "dev.jsonl")]


def kill_and_start_again(argv: list[str], stage: Path, kills: int, seed: int,
                         world: int = 1) -> None:
    """A run that is killed `kills` times, each time after a step of its own: in a checkpoint, a
    rollout, an update, an evaluation. Then it runs to its end."""
    rng, log = random.Random(seed), stage / "metrics.jsonl"

    def steps_logged() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    for start in range(kills + 1):
        before, deadline = steps_logged(), time.time() + 120
        pids = ranks.fork(world, lambda rank: train_cppo.main(train_cppo.parse_args(argv)))
        if start < kills:
            while time.time() < deadline and steps_logged() <= before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        assert set(ranks.wait(pids)) == {-signal.SIGKILL if start < kills else 0}
        for checkpoint in stage.glob("step_*"):
            assert checkpoint.name.endswith(files.PARTIAL) or (checkpoint / "state.json").exists()


def assert_kills_change_nothing(toy_world, tmp_path, world: int, kills: int) -> None:
    """Weights, best/, samples and logs of a run that is killed are those of one that is not."""
    flags = (*STEP, "--steps", str(2 * kills), "--problems-per-step", "2", "--save-every", "1",
             "--skip-audit", *extras(toy_world))
    argv, folders = arguments(toy_world, *flags), {}
    for name, times in (("calm", 0), ("killed", kills)):
        folders[name] = tmp_path / name / "runs/toy/cppo-m4"
        (tmp_path / name).mkdir()
        work = (f"test_cppo.kill_and_start_again({argv}, pathlib.Path({str(folders[name])!r}), "
                f"{times}, 0, {world})")
        ranks.run(1, "import pathlib, test_cppo, torch._dynamo", work, tmp_path / name, 1500)
    killed, calm = folders["killed"], folders["calm"]
    assert logged(killed) == logged(calm) and evaluations(killed) == evaluations(calm)
    assert read(killed / "samples.jsonl") == read(calm / "samples.jsonl")
    for name in ("final", "best"):
        ours, theirs = (dict(model.load(f / name).named_parameters()) for f in (killed, calm))
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_killed_at_random_moments_a_run_ends_as_if_it_had_never_stopped(toy_world, tmp_path):
    assert_kills_change_nothing(toy_world, tmp_path, world=1, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills_change_nothing(toy_world, tmp_path, world):
    assert_kills_change_nothing(toy_world, tmp_path, world, kills=20)


def test_sigterm_in_the_audit_leaves_it_to_be_made_again(run_toy, capsys, monkeypatch):
    monkeypatch.setattr(lib_run, "stop_flag", lambda: lambda: True)
    status, stage = run_toy("--steps", "1")
    assert status == 143 and "starts again" in capsys.readouterr().out
    assert not (stage / "audit.jsonl").exists() and not checkpoints.newest(stage)


def test_sigterm_ends_the_wait_for_verdicts():
    branch = rollout.Branch([1], 1, None, "while True: pass", verdict=Future())
    with pytest.raises(rollout.Abandoned):
        Submitter(None).wait([branch], lambda: True)


def test_sigterm_ends_a_run_with_a_checkpoint_from_which_it_goes_on(run_toy, tmp_path, capsys):
    log, asked = tmp_path / "runs/toy/cppo-m4/metrics.jsonl", []

    def ask():
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.01)
        asked.append(time.time())
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    status, stage = run_toy("--steps", "1000", "--save-every", "1000", "--skip-audit")
    signal.signal(signal.SIGTERM, handler)
    assert status == 143 and time.time() - asked[0] < 25
    assert "goes on from there" in capsys.readouterr().out
    state = json.loads((checkpoints.newest(stage) / "state.json").read_text())
    assert state["step"] == len(read(stage / "metrics.jsonl")) < 1000
