"""A toy policy, and the training scripts run on it as their users run them.

    world = toy.make_world(folder)      # two policies, problems, prompts
    with toy.working_folder(folder):
        status, stage = toy.train(world, "--steps", "1")        # train_cppo.main, in this process

A strategy is "use 3" and its program adds 3 to the input; which number is right depends on the
statement. The policy has 0.2 M parameters. A few seconds of training teach it to write such plans
and programs, right ones often enough for every reward to be both 0 and 1 within a step.
"""

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch

import grpo
import model
import prompts
import train_cppo
from lib.problems import Problem, save_problems

SHORT = {"plan": "{statement} plan", "solve": "{statement} S: {strategy}",
         "direct": "{statement} solve", "skill": "{z} {statement} solve",
         "gate": "{statement} {plan} ok?"}
STEP = ("--num-tuples", "4", "--problems-per-step", "3")
WAYS = "12345"                          # what a strategy may add
STATEMENTS = {"sum": "2", "top": "3", "gap": "4", "end": "5"}       # and what is right


def program(way: str) -> str:
    return f"```\nprint(int(input())+{way})\n```"


def problems() -> list[Problem]:
    """Each statement four times: with fewer problems it would be chance whether the toy policy
    solves one at all."""
    made = []
    for statement, way in STATEMENTS.items():
        for copy in ("", 2, 3, 4):
            tests = [{"input": f"{n}\n", "output": f"{n + int(way)}\n"} for n in (7, 9, 3)]
            made.append(Problem(f"toy/{statement}{copy}", statement, tests=tests))
    return made


def dev_problems() -> list[Problem]:
    """Statements that training does not have; the policy's guess is right now and then."""
    return [Problem(f"dev/{i}", f"{one} {two}", tests=[{"input": "7\n", "output": f"{7 + i}\n"}])
            for i, (one, two) in enumerate(itertools.combinations(STATEMENTS, 2), 1)]


def judge(statement: str, plan: str) -> list[str]:
    """The judge of --judge: a plan of two strategies must not repeat one."""
    distinct_words = set(plan.split())          # of "A: use 1\nB: use 2" there are five
    return [] if len(distinct_words) == 5 else ["duplicate"]


# --------------------------------------------------------------------------------------------------
# The policy

def taught(folder: Path, steps: int, num_rows: int, lr: float) -> torch.nn.Module:
    """The folder's model after `steps` of learning to write plans of two ways, and programs for a
    way or for none."""
    module, tokenizer, rng = model.load(folder), tiny.tokenizer(), random.Random(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prompts, "TEMPLATES", prompts.TEMPLATES | SHORT)
        for _ in range(steps):
            rows = [lesson(tokenizer, rng, 1 / num_rows) for _ in range(num_rows)]
            batch = grpo.collate(rows, torch.device("cpu"), shared=False)
            loss = -(grpo.row_logprobs(module, batch) * batch.scale).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.5, "the toy policy has not learned its replies: no test of it means much"
    return module


def lesson(tokenizer, rng: random.Random, weight: float) -> grpo.Row:
    turn, reply = turn_and_reply(rng)
    ids = prompts.encode(tokenizer, turn)
    suffix = tokenizer(reply)["input_ids"] + [tokenizer.eos_token_id]
    return grpo.Row(ids, suffix, 0, 0.0, weight, "solve")


def turn_and_reply(rng: random.Random) -> tuple:
    """A plan, a program for a strategy (wrong now and then), or a program for no strategy."""
    problem = rng.choice(problems())
    if rng.random() < 0.4:
        strategies = [f"use {rng.choice(WAYS)}" for _ in range(2)]
        return prompts.plan(problem, 2), prompts.format_plan(strategies)
    way = rng.choice(WAYS)
    if rng.random() < 0.7:
        written = way if rng.random() < 0.9 else rng.choice(WAYS)
        return prompts.solve(problem, f"use {way}"), program(written)
    return prompts.direct(problem), program(way)


def make_world(folder: Path) -> Path:
    """The folder, with base/ (taught) and random/ (not), problems.jsonl and prompts.json."""
    (folder / "prompts.json").write_text(json.dumps(SHORT))
    save_problems(folder / "problems.jsonl", problems())
    save_problems(folder / "dev.jsonl", dev_problems())
    policy = taught(tiny.qwen(folder / "random"), 100, 16, 3e-3)
    model.save(policy, folder / "base", tiny.tokenizer())
    return folder


# --------------------------------------------------------------------------------------------------
# Runs

def arguments(world: Path, *flags: str, model: str = "base") -> list[str]:
    return ["--model", str(world / model), "--run-name", "toy",
            "--problems", str(world / "problems.jsonl"), "--prompts", str(world / "prompts.json"),
            "--num-strategies", "2", "--max-plan-tokens", "24", "--max-solve-tokens", "28",
            "--slots", "32", "--temperature", "1.0", "--lr", "1e-3", *flags]


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """The folder that runs/ is made in; afterwards the prompts are as before."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
        yield


def train(world: Path, *flags: str, model: str = "base", script=train_cppo) -> tuple[int, Path]:
    """A training script in this process and in the working folder -> exit status, stage folder."""
    if script is train_cppo:
        flags = (*STEP, *flags)
    args = script.parse_args(arguments(world, *flags, model=model))
    return script.main(args), Path("runs/toy") / script.stage_name(args)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(stage: Path) -> list[dict]:
    """What two equal runs log equally: all metrics but the clocks."""
    steps = []
    for step in read(stage / "metrics.jsonl"):
        clocks = [name for name in step if name.startswith(("seconds", "tokens_per_second"))]
        steps.append({name: value for name, value in step.items() if name not in clocks})
    return steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(model.load(folder / "final").named_parameters())
