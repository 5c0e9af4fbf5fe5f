"""The rivals of CPPO in one loop: independent attempts, one set-level advantage each (Eq. 2, 17,
18).

    python -m rivals.train_rivals --model FOLDER --problems FILE --method pkpo
    torchrun --nproc_per_node=8 -m rivals.train_rivals --model Qwen/Qwen3.5-2B --method grpo

    grpo     plain GRPO                             passk    pass@K training (arXiv 2508.10751)
    pkpo     PKPO, sloo-minus-one (2505.15201)      pkpo-loo its leave-one-out baseline
    maxrl    (r - mean) / mean (2602.02710)         upskill  a skill per attempt (2602.22296)

They start from the base model: stage 1 trains nothing that they use. Each step takes as many solver
attempts as CPPO's default step (8 problems x 8 tuples x 4 branches).

Where the paper is silent (docs/paper_to_code.md has more):
 1. N = 16 attempts per problem (PKPO's n, Appendix P); UpSkill has one per skill, 4 (Appendix R).
 2. Every method averages over the attempts of a problem, so that all have the same weight of the
    KL; PKPO's transform, which holds a 1/N of its own, is multiplied by N.

Shapes: P problems of this rank in the step, N attempts per problem.
"""

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor

import grpo
import prompts
import rollout
from lib import diagnostics, flags, rl
from lib.dev import Dev, load_dev
from lib.run import Run, run_stage
from lib.verdicts import Submitter
from rivals import prompts as rival_prompts
from rivals.advantages import (
    SKILL_AGGREGATES,
    UPSKILL_ALPHA,
    set_advantages,
    skill_information,
)

METHODS = ("grpo", "maxrl", "passk", "pkpo", "pkpo-loo", "upskill")
ATTEMPTS_PER_STEP = 256         # CPPO's: 8 problems, 8 tuples, 4 branches


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("The rivals of CPPO: GRPO, MaxRL, pass@K training, PKPO, UpSkill.")
    flags.add_run_flags(parser)
    add = parser.add_argument_group("method").add_argument
    add("--method", choices=METHODS, required=True)
    add("--num-attempts", type=flags.at_least(2), metavar="N",
        help="attempts per problem; default: 16, of upskill 4")
    add("--num-strategies", type=flags.count, default=4, metavar="K",
        help="attempts per problem at test time: the K of pass@K")
    add("--problems-per-step", type=flags.count, metavar="P",
        help="over all ranks; default: as many as give CPPO's number of attempts")
    add("--alpha-mi", type=flags.weight, default=UPSKILL_ALPHA,
        help="weight of UpSkill's information reward")
    add("--aggregate", choices=SKILL_AGGREGATES, default="mean",
        help="of UpSkill's information over tokens")
    add("--variant", metavar="NAME", help="suffix of the stage's folder, e.g. for a fork")
    rl.add_rl_flags(parser)
    args = parser.parse_args(argv)
    args.num_attempts = args.num_attempts or (4 if args.method == "upskill" else 16)
    as_cppo = max(1, ATTEMPTS_PER_STEP // args.num_attempts)
    args.problems_per_step = args.problems_per_step or as_cppo
    rl.check_rl_flags(parser, args)
    return args


def stage_name(args: argparse.Namespace) -> str:
    return f"{args.method}-{args.variant}" if args.variant else args.method


# ----------------------------------------------------------------------------------------------
# One step

@dataclass
class Batch:
    """What one step has collected on this rank."""
    problems: list
    attempts: list[list[rollout.Branch]]    # P lists of N
    r: Tensor                               # (P, N) verdicts
    r_mi: Tensor | None                     # (P, N) UpSkill's information
    waited: float                           # seconds for verdicts after the last token


def collect(engine: rollout.Engine, submitter: Submitter, models: rl.Models, problems: list,
            key: tuple, args: argparse.Namespace) -> Batch:
    """N attempts at each problem of this rank, verified."""
    turns = [user_turns(problem, args) for problem in problems]
    attempts = rollout.sample_attempts(engine, problems, turns, key, args.max_solve_tokens,
                                       submitter.submit)
    branches = [b for group in attempts for b in group]
    waited = submitter.wait(branches, engine.stop_flag)
    r = torch.zeros(len(problems), args.num_attempts, dtype=torch.float64)
    for p, group in enumerate(attempts):
        for n, attempt in enumerate(group):
            r[p, n] = float(attempt.verdict.passed)
    r_mi = None
    if args.method == "upskill":
        r_mi = torch.zeros_like(r)
        for p, group in enumerate(attempts):
            r_mi[p] = information(group, models, args)
    return Batch(problems, attempts, r, r_mi, waited)


def user_turns(problem, args: argparse.Namespace) -> list[str]:
    """What each attempt is asked: the same, or a skill of its own."""
    if args.method != "upskill":
        return [prompts.direct(problem)] * args.num_attempts
    return [rival_prompts.skill(problem, z) for z in range(1, args.num_attempts + 1)]


def information(attempts: list[rollout.Branch], models: rl.Models,
                args: argparse.Namespace) -> Tensor:
    """How much each attempt tells of which skill wrote it, (N,): UpSkill's r_mi."""
    contexts = [attempt.prompt for attempt in attempts]
    replies = [attempt.sample.ids for attempt in attempts]
    scores = diagnostics.cross_scores(models.sampler, contexts, replies, args.temperature,
                                      models.vocab)
    lengths = torch.tensor([len(ids) for ids in replies])
    mask = (torch.arange(scores.shape[-1]) < lengths[:, None]).float()
    return skill_information(scores, torch.arange(len(replies)), mask, args.aggregate)


def credit(batch: Batch, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Rewards and advantages, (P, N) each."""
    reward = batch.r if batch.r_mi is None else batch.r + args.alpha_mi * batch.r_mi
    name = "grpo" if args.method == "upskill" else args.method
    advantages = set_advantages(name, reward, args.num_strategies)
    if args.method.startswith("pkpo"):
        # its transform holds 1/N already, and so do the rows' weights: a weight of 1/P instead
        # would make its KL N times as strong as everybody's (that cost it 0.05 of pass@4)
        advantages = advantages * args.num_attempts
    return reward, advantages


def teaches(batch: Batch, args: argparse.Namespace) -> Tensor:
    """Whether a problem has any gradient, (P,)."""
    return (credit(batch, args)[1] != 0).any(-1)


def make_rows(batch: Batch, advantages: Tensor, args: argparse.Namespace) -> list[grpo.Row]:
    weight = 1 / (args.num_attempts * args.problems_per_step)
    rows = []
    for p, group in enumerate(batch.attempts):
        for i, attempt in enumerate(group):
            if not rl.masked(attempt.sample, args):
                rows.append(grpo.Row(attempt.prompt, attempt.sample.ids, 0, advantages[p, i].item(),
                                     weight, "solve", attempt.sample.logprobs))
    return rows


# ----------------------------------------------------------------------------------------------
# The stage

def train(args: argparse.Namespace, run: Run) -> None:
    rl.load_prompts(args)
    problems = rl.load_pool(args, run, "joint")
    run.say(f"starting from {args.model}")
    models = rl.load_models(args, run, args.model)
    held_out = load_dev(args, problems, run)
    problems, longest = those_that_fit(problems, models, args, run)
    held_out, _ = those_that_fit(held_out, models, args, run)
    rl.check_pool_size(problems, args)
    rl.count_steps(problems, args)
    engine = rl.make_engine(args, run, models, longest, args.problems_per_step * args.num_attempts)
    verifier = rl.make_verifier()
    config = {"verifier": {"tier": verifier.tier, **verifier.report}}
    state = run.resume(models.policy, models.optimizer, models.tokenizer, config=config,
                       used={"start": models.start})
    grpo.refresh(models.sampler, models.policy)

    with verifier:
        submitter = Submitter(verifier)
        dev = Dev(args, run, held_out, lambda mine: dev_scores(
            engine, submitter, models, mine, args))
        while state["step"] < args.steps and not dev.ends(state):
            step, started = state["step"], time.perf_counter()
            key = (args.seed, "joint", step)
            engine.stats = rollout.Stats()
            batch, replaced = rl.draw_step(
                problems, step, lambda mine: collect(engine, submitter, models, mine, key, args),
                lambda batch: teaches(batch, args), args, run)
            reward, advantages = credit(batch, args)
            rows = make_rows(batch, advantages, args)
            # each skill has a prompt of its own, from its first words on: nothing to share
            updated = rl.update(models, rows, step, args, shared=args.method != "upskill")
            state["step"] += 1
            records = make_records(state["step"], batch, reward, advantages)
            parts = run.gather({"records": records, "stats": engine.stats, "waited": batch.waited})
            if args.resample_equal:
                updated["replaced"] = replaced
            if run.main:
                log_step(parts, updated, time.perf_counter() - started, state, args, run)
            run.count_skipped(updated["skipped"])
            run.checkpoint()
        dev.finish(state)
    run.finish()


def those_that_fit(problems: list, models: rl.Models, args: argparse.Namespace,
                   run: Run) -> tuple[list, int]:
    """The problems whose prompt leaves room for a reply, and the longest prompt."""
    lengths = [len(prompts.encode(models.tokenizer, user_turns(p, args)[0])) for p in problems]
    return rl.leave_out_long(problems, lengths, args.max_solve_tokens, models, run)


def dev_scores(engine: rollout.Engine, submitter: Submitter, models: rl.Models, problems: list,
               args: argparse.Namespace) -> dict[str, Tensor]:
    """What lib/dev.py asks: K attempts at each problem, those of a test, (P,) each."""
    k_attempts = argparse.Namespace(**vars(args) | {"num_attempts": args.num_strategies})
    batch = collect(engine, submitter, models, problems, (args.seed, "dev"), k_attempts)
    return {"pass_at_k": batch.r.amax(-1), "pass_at_1": batch.r.mean(-1)}


def make_records(step: int, batch: Batch, reward: Tensor, advantages: Tensor) -> list[dict]:
    """A line of samples.jsonl per problem."""
    records = []
    for p, problem in enumerate(batch.problems):
        branches = [diagnostics.branch_record(b, advantages[p, n].item())
                    for n, b in enumerate(batch.attempts[p])]
        r_mi = None if batch.r_mi is None else batch.r_mi[p].tolist()
        records.append({"step": step, "problem_id": problem.id, "r_mi": r_mi,
                        "reward": reward[p].tolist(), "branches": branches})
    return records


def log_step(parts: list[dict], updated: dict, seconds: float, state: dict,
             args: argparse.Namespace, run: Run) -> None:
    """On the main rank: metrics.jsonl, samples.jsonl, the line that people read."""
    records = [record for part in parts for record in part["records"]]
    records.sort(key=lambda record: record["problem_id"])
    metrics = {"step": state["step"], **diagnostics.attempt_metrics(records)}
    if args.method == "upskill":
        metrics |= skill_metrics(records)
    metrics |= updated | rl.timings(parts, updated, seconds)
    run.log(metrics)
    for record in records:
        run.log(record, "samples")
    run.say(diagnostics.line(args.steps, metrics))
    if state["step"] % rl.SHOW_EVERY == 0:
        run.say(diagnostics.show(records[(state["step"] - 1) % len(records)]))


def skill_metrics(records: list[dict]) -> dict:
    """Appendix R's panel."""
    rewards = torch.tensor([p["reward"] for p in records], dtype=torch.float64)
    information_rewards = [value for p in records for value in p["r_mi"]]
    return {"r_correct": diagnostics.mean(b["r"] for p in records for b in p["branches"]),
            "r_mi": diagnostics.mean(information_rewards),
            "reward_variance": rewards.var(-1, unbiased=False).mean().item()}


def main(args: argparse.Namespace) -> int:
    with run_stage(args, stage_name(args)) as run:
        if not run.finished():
            train(args, run)
    return run.status


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
