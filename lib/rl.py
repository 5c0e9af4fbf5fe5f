"""What train_cppo.py and rivals/train_rivals.py share: flags, problems, models, one update, one
log line.

Shapes: P problems of this rank in the step; rows as in grpo.py.
"""

import argparse
import dataclasses
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import grpo
import model
import prompts
import rollout
import verifier
from lib import errors, flags, memory, progress
from lib.errors import UserError
from lib.problems import Problem, load_problems
from lib.run import Run, local_workers
from lib.start import load_start
from prepare import corpora, exposure

MAX_GRAD_NORM = 1.0
DEFAULT_STEPS = 100
RESAMPLE_ROUNDS = 3     # of --resample-equal, each a rollout of its own
SHOW_EVERY = 10         # steps between whole samples on the screen
STEP_NORM_EVERY = 10    # steps between measurements of how far the weights move: it copies them


# ----------------------------------------------------------------------------------------------
# Flags

def add_rl_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every script that samples, verifies and updates."""
    add = parser.add_argument_group("dev evaluation").add_argument
    add("--epochs", type=flags.count, help="passes over the problems; with --steps, what is less")
    add("--dev", metavar="FILE", help="held-out problems, by which best/ is chosen")
    add("--eval-every", type=flags.count, metavar="STEPS", help="steps between dev evaluations")
    add("--patience", type=flags.steps_or_never, default=0, metavar="N",
        help="end after N dev evaluations without a new best one; 0: never")
    add = parser.add_argument_group("optimization").add_argument
    add("--lr", type=flags.above_zero, default=5e-7, help="learning rate of AdamW")
    add("--beta", type=flags.weight, default=grpo.BETA,
        help="weight of the KL to the reference; 0: no reference")
    add("--updates-per-rollout", type=flags.count, default=1,
        help="at 1 the ratio is exactly 1 and nothing clips")
    add("--clip-high", type=flags.above_zero, default=grpo.CLIP,
        help=f"upper clip range; the lower one is {grpo.CLIP}")
    add("--tis", type=flags.weight, metavar="CAP",
        help="multiply a token's surrogate by p_trainer / p_sampler, at most CAP; 0: off; "
             "default: 2 where the sampler computes in bf16, else off")
    add("--mask-cut", action="store_true", help="replies cut at the length limit carry no loss")
    add("--resample-equal", action="store_true",
        help="replace problems without a gradient by others within the step, at most "
             f"{RESAMPLE_ROUNDS} times")
    add("--token-budget", type=flags.count, default=16384, help="padded tokens per micro-batch")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=flags.above_zero, default=0.7, help="of planner and solver")
    add("--max-plan-tokens", type=flags.count, default=512)
    add("--max-solve-tokens", type=flags.count, default=2048)
    add("--slots", type=flags.count, default=256,
        help="rows decoded together per rank; no more are made than a step can fill")
    add("--compile", choices=rollout.COMPILE, default="auto",
        help="decoding steps on a GPU; auto: compiled and in CUDA graphs; graphs: those alone")
    add("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    add = parser.add_argument_group("log").add_argument
    add("--wandb", metavar="PROJECT", help="log there as well; needs wandb")


def check_rl_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End in one line where flags do not go together; --steps without --epochs is 100."""
    if bool(args.dev) != bool(args.eval_every):
        parser.error("--dev FILE and --eval-every STEPS go together")
    if args.patience and not args.dev:
        parser.error("--patience counts dev evaluations: pass --dev FILE and --eval-every STEPS")
    if not args.epochs:
        args.steps = args.steps or DEFAULT_STEPS


# ----------------------------------------------------------------------------------------------
# Problems

def load_pool(args: argparse.Namespace, run: Run, name: str) -> list[Problem]:
    """The problems of --problems, else of the pool `name` in corpora/. UserError if the pool
    holds an evaluation problem. Collective: one rank builds the corpora on first use."""
    if not args.problems:
        run.main_first("corpora", lambda: corpora.default_pool(name))
        args.problems = str(corpora.default_pool(name))
    problems = load_problems(args.problems)
    unknown_exposure = exposure.check_pool(args.problems)
    if unknown_exposure:
        run.warn(unknown_exposure)
    return problems


def leave_out_long(problems: list[Problem], lengths: list[int], new_tokens: int, models: "Models",
                   run: Run) -> tuple[list[Problem], int]:
    """The problems whose prompt, `lengths` tokens each, leaves room for `new_tokens`; and the
    longest prompt."""
    context = getattr(models.policy.config, "max_position_embeddings", None) or math.inf
    room = context - new_tokens
    too_long = [p.id for p, n in zip(problems, lengths, strict=True) if n > room]
    if too_long:
        run.warn(f"{len(too_long)} of {len(problems)} problems are left out, {too_long[0]} the "
                 f"first: their prompts have more than {room} tokens and leave too little context")
    longest = max((n for n in lengths if n <= room), default=0)
    return [p for p in problems if p.id not in set(too_long)], longest


def count_steps(problems: list, args: argparse.Namespace) -> None:
    """Turn --epochs into --steps, now that the number of problems is known."""
    if args.epochs:
        steps = args.epochs * (len(problems) // args.problems_per_step)
        args.steps = min(steps, args.steps or steps)


def batch_of_step(problems: list, step: int, n: int, seed: int) -> list:
    """The n problems of a step: the pool is reshuffled every epoch, an incomplete last batch
    dropped.

    A function of its arguments alone, so that resuming needs no sampler state.
    """
    epoch, batch = divmod(step, len(problems) // n)
    shuffled = random.Random(f"{seed}:{epoch}").sample(range(len(problems)), len(problems))
    return [problems[i] for i in shuffled[batch * n:(batch + 1) * n]]


# ----------------------------------------------------------------------------------------------
# Models

@dataclass
class Models:
    """The network in its three roles, all from one checkpoint."""
    start: Path                     # the folder it was read from
    tokenizer: object
    policy: nn.Module               # fp32 master weights, sharded
    reference: nn.Module | None     # frozen, in the compute dtype; None without a KL
    sampler: nn.Module              # a whole copy per rank in the compute dtype
    optimizer: torch.optim.Optimizer

    @property
    def vocab(self) -> int:
        return len(self.tokenizer)


def load_models(args: argparse.Namespace, run: Run, path_or_id: str) -> Models:
    policy, tokenizer, start = load_start(run, path_or_id)
    reference = model.load(start, run.dtype).requires_grad_(False) if args.beta else None
    sampler = model.load(start, run.dtype, run.device).requires_grad_(False)
    if args.tis is None:        # in fp32 sampler and trainer agree to 1e-6
        args.tis = 2.0 if run.dtype == torch.bfloat16 else 0.0
    policy = grpo.shard(policy, run.dtype, run.device)
    if reference is not None:
        reference = grpo.shard(reference, run.dtype, run.device)
    optimizer = grpo.make_optimizer(policy, args.lr)
    return Models(start, tokenizer, policy, reference, sampler, optimizer)


def make_engine(args: argparse.Namespace, run: Run, models: Models, longest_prompt: int,
                rows: int) -> rollout.Engine:
    """The sampling engine; `rows` of all ranks may decode together. On a GPU the worst micro-batch
    goes through first: the token budget may shrink, once, before step 0."""
    slots = min(args.slots, -(-rows // run.world))
    run.say(memory.decoding_line(models.sampler, slots, longest_prompt, args.max_solve_tokens))
    with errors.user_input():
        show = progress.sampling() if run.main else None
        engine = rollout.Engine(models.sampler, models.tokenizer, slots, args.temperature,
                                stop_flag=run.stop_asked, progress=show, compile=args.compile)
    args.token_budget, shrunk = memory.probe(
        models.policy, models.reference, models.optimizer, prompt_tokens=longest_prompt,
        new_tokens=args.max_solve_tokens, token_budget=args.token_budget)
    if shrunk:
        run.warn(shrunk)
    return engine


def make_verifier() -> verifier.Verifier:
    with errors.user_input():
        return verifier.Verifier(local_workers())


# ----------------------------------------------------------------------------------------------
# One step

def draw_step(problems: list, step: int, draw: Callable, teaches: Callable,
              args: argparse.Namespace, run: Run):
    """The batch of a step, and how many problems were replaced on the way to it. Collective.

    draw: this rank's problems -> its Batch. teaches: Batch -> whether each of its problems has a
    gradient, (P,).
    With --resample-equal, problems without one give their places to others of the pool, in an order
    that depends on seed and step alone: the same for any number of ranks, and after a resume.
    """
    chosen = batch_of_step(problems, step, args.problems_per_step, args.seed)
    batch = run.together(lambda: draw(chosen[run.rank::run.world]))
    replaced = 0
    if not args.resample_equal:
        return batch, replaced
    used = {problem.id for problem in chosen}
    spare = [problem for problem in problems if problem.id not in used]
    random.Random(f"{args.seed}:spare:{step}").shuffle(spare)
    for _ in range(RESAMPLE_ROUNDS):
        places = places_that_teach_nothing(teaches(batch), args.problems_per_step, run)
        places = places[:len(spare)]
        if not places:
            break
        new, spare = dict(zip(places, spare)), spare[len(places):]
        own = [place for place in places if place % run.world == run.rank]
        drawn = run.together(lambda: draw([new[place] for place in own]))
        put(batch, [place // run.world for place in own], drawn)
        replaced += len(places)
    return batch, replaced


def places_that_teach_nothing(teaches: Tensor, n: int, run: Run) -> list[int]:
    """Of all n places of the step, where place i belongs to rank i mod world. Collective."""
    nothing = torch.zeros(n)
    nothing[run.rank::run.world] = (~teaches).float()
    return grpo.all_reduce(nothing).nonzero().flatten().tolist()


def put(batch, places: list[int], drawn) -> None:
    """Put the problems of another Batch at these places of a Batch: its lists and tensors have one
    entry per problem."""
    for field in dataclasses.fields(batch):
        old, new = getattr(batch, field.name), getattr(drawn, field.name)
        if isinstance(old, list | Tensor):
            for i, place in enumerate(places):
                old[place] = new[i]
    batch.waited += drawn.waited


def masked(sample: rollout.Sample, args: argparse.Namespace) -> bool:
    """--mask-cut: whether a reply carries no loss, being cut at the length limit. It counts in the
    rewards and in the mean that its siblings are compared with all the same."""
    return args.mask_cut and sample.finish == "length"


def update(models: Models, rows: list[grpo.Row], step: int, args: argparse.Namespace, *,
           shared: bool = True) -> dict[str, float]:
    """One clipped, KL-regularised update over the rows of all ranks; then the sampler is refreshed.
    Collective. shared: rows of a problem have a long prefix in common, which is computed once."""
    started = time.perf_counter()
    metrics = grpo.update(
        models.policy, models.reference, models.optimizer, rows, temperature=args.temperature,
        clip_high=args.clip_high, beta=args.beta, tis=args.tis, vocab=models.vocab,
        token_budget=args.token_budget,
        updates=args.updates_per_rollout, max_grad_norm=MAX_GRAD_NORM, lr=args.lr,
        shared=shared and models.sampler.shares_prompts,
        want_step_norm=step % STEP_NORM_EVERY == 0)
    grpo.refresh(models.sampler, models.policy)
    return metrics | {"lr": args.lr, "seconds_update": time.perf_counter() - started}


def timings(parts: list[dict], updated: dict, seconds: float) -> dict:
    """What the step cost, over all ranks. parts: each rank's {"stats": rollout.Stats, "waited"}."""
    stats = [part["stats"] for part in parts]
    return {
        "tokens_sampled": sum(s.tokens for s in stats),
        "idle_share": sum(s.idle_share for s in stats) / len(stats),
        "tokens_per_second_sampling": sum(s.tokens_per_second for s in stats),
        "tokens_per_second_training": updated["tokens"] / updated["seconds_update"],
        "seconds": seconds,
        "seconds_sampling": max(s.seconds for s in stats),
        "seconds_verifying": max(part["waited"] for part in parts),
    }


def check_pool_size(problems: list, args: argparse.Namespace) -> None:
    if len(problems) < args.problems_per_step:
        raise UserError(f"{args.problems} holds {len(problems)} problems that can be used, fewer "
                        f"than --problems-per-step {args.problems_per_step}")


def load_prompts(args: argparse.Namespace) -> None:
    if args.prompts:
        with errors.user_input():
            prompts.load(args.prompts)
