"""train_sft.py on tiny checkpoints: what carries loss, what it equals, what is refused, resuming,
and several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo
import model
import prompts
import rollout
import train_rm
import train_sft
from lib import checkpoints
from lib import run as lib_run
from lib.labels import Label, save_labels
from lib.problems import Problem, save_problems
from lib.solver import Keeper

ROOT = Path(__file__).resolve().parent.parent
WORDS = "sort count scan hash sum split merge walk fold greedy stack queue".split()
ONE = lib_run.Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder of its own; afterwards no process group, no signal handler and no other
    prompts are left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    if dist.is_initialized():
        dist.destroy_process_group()


def gold_file(path: Path, n: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        row = {"problem_id": f"q{i}", "statement": f"Problem {i}."}
        row["think"] = f"Think of {rng.choice(WORDS)}."
        row["strategies"] = [f"{word.title()} the items." for word in rng.sample(WORDS, 4)]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(folder: Path, tmp: Path, *more: str, n: int = 12) -> list[str]:
    """A run of 3 epochs of 3 steps with short prompts."""
    (tmp / "prompts.json").write_text(json.dumps({"plan": "Plan: {statement}"}))
    gold = gold_file(tmp / "gold.jsonl", n)
    return ["--model", str(folder), "--run", "r", "--gold", str(gold),
            "--prompts", str(tmp / "prompts.json"), "--batch-size", "4", "--lr", "1e-3", *more]


def train(arguments: list[str]) -> int:
    return train_sft.main(train_sft.parse_args(arguments))


def metrics(stage: Path) -> list[dict]:
    """What a resumed run must repeat: all but the clocks."""
    rows = []
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        clocks = [name for name in row if name.startswith(("seconds", "tokens_per"))]
        rows.append({name: value for name, value in row.items() if name not in clocks})
    return rows


def weights(stage: Path) -> dict[str, torch.Tensor]:
    return load_file(stage / "final" / "model.safetensors")


def equal_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --------------------------------------------------------------------------------------------------
# Rows

PROBLEM = Problem("q", "Sum {x} numbers.")
PLAN = ["Sort them.", "Count each.", "Use a heap.", "Scan once."]


def test_a_row_is_the_prompt_of_sampling_then_the_plan_and_the_end_of_the_turn(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = train_sft.make_row(tokenizer, (PROBLEM, "never seen", PLAN), with_think=False)
    assert row.prefix == prompts.encode(tokenizer, prompts.plan(PROBLEM, 4)) and row.start == 0
    plan = "A: Sort them.\nB: Count each.\nC: Use a heap.\nD: Scan once."
    assert tokenizer.decode(row.suffix) == plan + tiny.END
    assert row.suffix[-1] in rollout.end_ids(model.load(folder), tokenizer)
    assert prompts.parse_plan(tokenizer.decode(row.suffix[:-1]), 4) == PLAN


def test_the_end_of_the_turn_is_the_template_s_and_not_the_tokenizer_s(folder):
    """Released checkpoints differ in the two (Qwen3.5: 248046 and 248044); the wrong one means
    plans that never end. Without a template it is the tokenizer's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(tiny.END)
    tokenizer.eos_token = tiny.PAD
    assert rollout.end_of_turn(tokenizer) == end != tokenizer.eos_token_id
    tokenizer.chat_template = None
    assert rollout.end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert rollout.end_of_turn(tokenizer) is None


def test_a_template_without_a_place_for_a_thought_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="no place for a thought"):
        train_sft.make_row(tokenizer, (PROBLEM, "Because.", PLAN), with_think=True)


THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"


def test_with_think_the_thought_stands_in_the_template_s_think_block_and_is_trained(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tiny.TEMPLATE.replace("{{ m.content }}", THOUGHT + "{{ m.content }}")
    row = train_sft.make_row(tokenizer, (PROBLEM, " Because.\n", PLAN), with_think=True)
    # stages 3 to 5 ask with this prompt
    assert row.prefix == prompts.encode(tokenizer, prompts.plan(PROBLEM, 4), think=True)
    text = tokenizer.decode(row.prefix + row.suffix)
    assert "<think>\nBecause.\n</think>\n\nA: Sort them." in text
    assert text.endswith("Scan once." + tiny.END)
    trained = tokenizer.decode(row.suffix)
    assert "Because." in trained and "Sum {x} numbers." not in trained
    assert prompts.parse_plan(text, 4)[:3] == PLAN[:3]


@pytest.mark.parametrize("row, complaint", [
    ("{", "line 2: not JSON"),
    ({"statement": "s"}, "line 2: a gold tuple is an object"),
    ({"statement": "s", "strategies": ["x", "y", "z", 4]}, "line 2: a gold tuple is an object"),
    ({"statement": "s", "strategies": ["x", "y", "z"]}, "line 2: 3 strategies instead of 4"),
    ({"statement": "s", "strategies": list("vwxyz")}, "line 2: 5 strategies instead of 4"),
    ({"statement": "s", "strategies": ["x", "y", "", "z"]}, "line 2: written out as a plan"),
    ({"statement": "s", "strategies": ["x", "y\nsecond line", "w", "z"]},
     "line 2: written out as a plan"),
    ({"statement": "s", "strategies": ["x\nB: y", "y", "w", "z"]}, "line 2: written out as a plan"),
    ({"statement": "s", "strategies": ["x", "y", "<think>", "z"]}, "line 2: written out as a plan"),
    ({"problem_id": "a", "strategies": list("wxyz")},
     "line 2: it has no \"statement\".*--problems"),
])
def test_a_tuple_that_is_not_strict_is_refused_with_its_line(tmp_path, row, complaint):
    path = gold_file(tmp_path / "gold.jsonl", 1)
    with path.open("a") as f:
        f.write(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(ValueError, match=complaint) as e:
        train_sft.load_gold(str(path), 4, {})
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_tuple_without_a_statement_takes_its_problem_from_the_pool(tmp_path):
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps({"problem_id": "q", "strategies": PLAN}) + "\n")
    assert train_sft.load_gold(str(path), 4, {"q": PROBLEM}) == [(PROBLEM, "", PLAN)]


# --------------------------------------------------------------------------------------------------
# Loss

def sample_rows(folder: Path, n: int) -> tuple:
    """-> tokenizer, n rows of many lengths"""
    tokenizer, rng, rows = AutoTokenizer.from_pretrained(folder), random.Random(1), []
    for _ in range(n):
        problem = Problem("q", "x" * rng.randint(1, 60))
        strategies = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(4)]
        rows.append(train_sft.make_row(tokenizer, (problem, "", strategies), False))
    return tokenizer, rows


@pytest.mark.parametrize("maker", [tiny.qwen, tiny.llama])
def test_the_loss_is_transformers_cross_entropy_over_the_plan_tokens_alone(tmp_path, maker):
    maker(tmp_path)
    tokenizer, rows = sample_rows(tmp_path, 5)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = theirs(torch.tensor([row.prefix + row.suffix])).logits[0]
            # ids beyond the tokenizer's are never sampled
            logits = logits[len(row.prefix) - 1:-1, :len(tokenizer)]
            total += F.cross_entropy(logits, torch.tensor(row.suffix), reduction="sum").item()
            count += len(row.suffix)
    policy = model.load(tmp_path)
    ours = train_sft.token_loss(policy, rows, ONE, 10 ** 6, len(tokenizer), train=False)
    assert ours.item() == pytest.approx(total / count, rel=1e-5)


def test_loss_and_gradient_do_not_depend_on_the_token_budget(folder):
    """One denominator for the batch: a mean of micro-batch means would weigh short plans up."""
    tokenizer, rows = sample_rows(folder, 5)
    policy, measured = model.load(folder, dtype=torch.float64), []
    for budget in (1, 700, 10 ** 6):
        policy.zero_grad()
        loss = train_sft.token_loss(policy, rows, ONE, budget, len(tokenizer), train=True)
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        measured.append((loss.item(), gradient))
    first_loss, first_gradient = measured[0]
    for loss, gradient in measured[1:]:
        assert loss == pytest.approx(first_loss, rel=1e-12)
        assert (gradient - first_gradient).norm() <= 1e-9 * first_gradient.norm()


def test_prompt_tokens_carry_no_loss(folder):
    """The gradient with respect to the hidden states is zero wherever the next token belongs to the
    prompt."""
    tokenizer, rows = sample_rows(folder, 1)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, ids, head):
            hidden = torch.randn(*ids.shape, 8).requires_grad_()
            seen.append(hidden)
            return head(hidden, torch.randn(len(tokenizer), 8), None)

    train_sft.token_loss(Spy(), rows, ONE, 10 ** 6, len(tokenizer), train=True)
    touched = seen[0].grad.abs().sum(-1)[0] > 0
    at = torch.arange(len(touched))
    first = len(rows[0].prefix) - 1
    assert torch.equal(touched, (at >= first) & (at < first + len(rows[0].suffix)))


# --------------------------------------------------------------------------------------------------
# The command

def test_after_training_the_planner_writes_its_gold_plans_and_stops(folder, runs):
    assert train(arguments(folder, runs, "--epochs", "30", "--lr", "5e-3", n=4)) == 0
    final = runs / "runs/r/sft/final"
    tokenizer, policy = AutoTokenizer.from_pretrained(final), model.load(final)
    for problem, _, strategies in train_sft.load_gold("gold.jsonl", 4, {}):
        turns = [prompts.plan(problem, 4)]
        [[sample]] = rollout.sample(policy, tokenizer, turns, 1, 200, temperature=0)
        assert sample.finish == "eos" and prompts.parse_plan(sample.text, 4) == strategies
    log = metrics(runs / "runs/r/sft")
    assert [row["step"] for row in log] == list(range(1, 31))
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    norm = load_file(final / "model.safetensors")["model.language_model.norm.weight"]
    assert norm.dtype == torch.float32


class Crash(Exception):
    pass


RESUMABLE = ("--save-every", "2", "--val", "val.jsonl")


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The stage folder of a run that nobody cut off."""
    tmp = tmp_path_factory.mktemp("undisturbed")
    gold_file(tmp / "val.jsonl", 3, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp)
        patched.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
        assert train(arguments(folder, tmp, *RESUMABLE)) == 0
    dist.destroy_process_group()
    return tmp / "runs/r/sft"


@pytest.mark.parametrize("how, at", [("crash", 2), ("crash", 9), ("SIGTERM", 5)])
def test_a_run_cut_off_at_any_step_ends_bit_for_bit_like_one_that_was_not(
        folder, runs, undisturbed, monkeypatch, how, at):
    gold_file(runs / "val.jsonl", 3, seed=1)
    write = lib_run.Log.write

    def cut(self, name, record):
        write(self, name, record)
        if record.get("step") == at:
            if how == "crash":
                raise Crash
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(lib_run.Log, "write", cut)
        if how == "crash":
            with pytest.raises(Crash):
                train(arguments(folder, runs, *RESUMABLE))
        else:
            assert train(arguments(folder, runs, *RESUMABLE)) == 143
    assert train(arguments(folder, runs, *RESUMABLE)) == 0
    stage = runs / "runs/r/sft"
    assert metrics(stage) == metrics(undisturbed)
    assert equal_bits(weights(stage), weights(undisturbed))
    assert [row["step"] for row in metrics(stage) if "val_loss" in row] == [3, 6, 9]


def test_a_finished_stage_is_not_done_again_unless_asked(folder, runs, capsys):
    assert train(arguments(folder, runs, "--steps", "1")) == 0
    final = runs / "runs/r/sft/final/model.safetensors"
    written = final.stat().st_mtime_ns
    assert train(arguments(folder, runs, "--steps", "1")) == 0
    assert final.stat().st_mtime_ns == written and "--fresh" in capsys.readouterr().out
    assert train(arguments(folder, runs, "--steps", "1", "--fresh")) == 0
    assert final.stat().st_mtime_ns > written and len(metrics(runs / "runs/r/sft")) == 1


def test_steps_without_a_finite_gradient_are_skipped_and_three_end_the_run(
        folder, runs, monkeypatch, capsys):
    loss = train_sft.token_loss

    def broken(*args, **kwargs):
        return loss(*args, **kwargs) * float("nan")

    before = model.load(folder).state_dict()
    monkeypatch.setattr(train_sft, "token_loss", broken)
    assert train(arguments(folder, runs, "--save-every", "1")) == 1
    assert "3 steps in a row" in capsys.readouterr().err
    stage, module = runs / "runs/r/sft", model.load(folder)
    assert [(row["loss"], row["skipped"]) for row in metrics(stage)] == [(None, 1)] * 3
    checkpoints.load(checkpoints.newest(stage), module, grpo.make_optimizer(module, 1.0))
    assert equal_bits(module.state_dict(), before)


@pytest.mark.parametrize("more, complaint", [
    (["--gold", "nowhere.jsonl"], "no gold tuples at nowhere.jsonl"),
    (["--num-strategies", "3"], "4 strategies instead of 3"),
    (["--num-strategies", "0"], "--num-strategies: must be a whole number of 1 or more"),
    (["--steps", "0"], "--steps: must be a whole number of 1 or more"),
    (["--model", "nowhere"], "nowhere: no such folder"),
    (["--problems", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--model", "short"], "problem 'q0': "),
    (["--model", "other"], "the tokenizer has 390 words and the model 300"),
])
def test_a_user_s_mistake_is_one_line_and_exit_status_2(folder, runs, capsys, more, complaint):
    if "short" in more:
        tiny.qwen("short", max_position_embeddings=30)
    if "other" in more:
        tiny.qwen("other", vocab_size=300)
    with pytest.raises(SystemExit) as e:
        train([*arguments(folder, runs), *more])
    *warnings, error = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and complaint in error and error.startswith("error: ")
    assert all(line.startswith("WARNING: ") for line in warnings)
    assert not (runs / "runs/r/sft/final").exists()


def test_two_processes_train_both_stages_like_one(folder, runs):
    """Losses and weights of two gloo ranks, FSDP-sharded, beside those of a plain process, up to
    the order of summation."""
    sft = arguments(folder, runs, "--steps", "2", "--token-budget", "150")
    labels = [Label(f"q{i}", f"Problem {i}.", f"{word} {i}", z)
              for i in range(8) for z, word in ((1, "sort"), (0, "code"))]
    save_labels("labels.jsonl", labels)
    held_out = [Label("v", "Another.", label.plan, label.label) for label in labels]
    save_labels("val.jsonl", held_out)
    rm = ["--model", str(folder), "--labels", "labels.jsonl", "--val", "val.jsonl", "--lr", "1e-3",
          "--batch-size", "6", "--steps", "2", "--token-budget", "400"]
    ranks.run(2, "import train_rm, train_sft, torch._dynamo",
              f"assert train_sft.main(train_sft.parse_args({sft} + ['--run', 'two'])) == 0\n"
              f"assert train_rm.main(train_rm.parse_args({rm} + ['--run', 'two'])) == 3\n")
    assert train(sft) == 0 and train_rm.main(train_rm.parse_args([*rm, "--run", "r"])) == 3
    start = load_file(folder / "model.safetensors")
    for stage in ("sft", "gate"):
        one, two = runs / "runs/r" / stage, runs / "runs/two" / stage
        for a, b in zip(metrics(one), metrics(two), strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        for name, weight in weights(one).items():
            moved = (weight - start[name]).norm()
            assert moved > 0 and (weight - weights(two)[name]).norm() < 0.02 * moved, name


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_like_an_undisturbed_run(folder, runs):
    """SIGKILL, wherever it strikes: in an update, in a checkpoint, in the writing of final/."""
    more = arguments(folder, runs, "--save-every", "1", "--epochs", "8")
    assert train(more) == 0
    command = [sys.executable, ROOT / "train_sft.py", *more, "--run", "killed"]
    stage, rng, kills = runs / "runs/killed/sft", random.Random(0), 0
    while not (stage / "final").exists():
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"},
                                   stdout=subprocess.PIPE)
        process.stdout.readline()                              # models are loaded, training begins
        time.sleep(rng.uniform(0, 1.5))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 2
    undisturbed = runs / "runs/r/sft"
    assert metrics(stage) == metrics(undisturbed)
    assert equal_bits(weights(stage), weights(undisturbed))


# --------------------------------------------------------------------------------------------------
# The solver

def test_the_solver_s_programs_are_counted_before_and_after_kept_and_replayed(folder, runs, capsys):
    tests = [{"input": "", "output": "1"}]
    problems = [Problem(f"q{i}", f"Problem {i}.", tests=tests) for i in range(6)]
    save_problems(runs / "problems.jsonl", problems)
    more = ["--problems", str(runs / "problems.jsonl"), "--max-solve-tokens", "12", "--steps", "2",
            "--solver-problems", "3", "--replay", "0.5"]
    assert train(arguments(folder, runs, *more, n=6)) == 0
    printed = capsys.readouterr().out
    assert "solver pass rate before stage 1: 0.000 (0 of 3 programs)" in printed
    assert "solver pass rate after stage 1: 0.000 (0 of 3 programs)" in printed
    stage = runs / "runs" / "r" / "sft"
    kept = [json.loads(line) for line in (stage / "solver.jsonl").read_text().splitlines()]
    assert [row["when"] for row in kept] == ["before"] * 3 + ["after"] * 3
    assert all(row["reply"] and row["strategy"].endswith("the items.") for row in kept)
    losses = [row["replay_loss"] for row in metrics(stage)]
    assert len(losses) == 2 and losses[0] != losses[1]


def test_replay_without_tests_is_refused_and_a_worn_solver_is_loud(folder, runs, capsys):
    with pytest.raises(SystemExit):
        train(arguments(folder, runs, "--replay", "1"))
    assert "--replay needs the tests" in capsys.readouterr().err
    keeper = object.__new__(Keeper)
    warned = []
    keeper.run = SimpleNamespace(warn=warned.append)
    keeper.compare(0.5, 0.45)
    assert not warned
    keeper.compare(0.5, 0.3)
    assert "fell from 0.500 to 0.300" in warned[0]
