"""Stage 1 (section 3.3): planner SFT, cross-entropy on the plans of strict-K gold tuples.

    python train_sft.py --model Qwen/Qwen3.5-2B                       # -> runs/Qwen3.5-2B/sft/final
    torchrun --nproc_per_node=8 train_sft.py --model Qwen/Qwen3.5-2B  # the same on eight GPUs

Gold tuples are JSON lines {"problem_id", "statement", "think", "strategies": [K]}; `python -m
prepare.teacher gold` makes them. A run that was killed continues from its newest checkpoint.

Where the paper is silent, we chose:
 1. Learning rate 1e-5, 3 epochs, 32 tuples per step; linear warm-up over a twentieth of the
    steps, then linear decay; no weight decay.
 2. The loss is the mean over the plan tokens of the whole batch, over all ranks: a long plan
    counts more.
 3. The thought of a gold tuple is left out; --with-think trains it too, in the template's think
    block.
 4. A tuple without exactly K strategies, or whose plan does not parse back to them, is an error.
 5. The solver shares the network, so its pass rate is printed before and after; --replay trains its
    own programs beside the plans.
"""

import argparse
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

import grpo
import model
import prompts
import rollout
from lib import errors, files, flags
from lib.errors import UserError
from lib.problems import Problem, load_problems
from lib.run import Run, run_stage
from lib.schedule import learning_rate, schedule
from lib.solver import Keeper
from lib.start import load_start
from prepare import exposure

Gold = tuple[Problem, str, list[str]]       # problem, thought, strategies


# ----------------------------------------------------------------------------------------------
# Gold tuples

def load_gold(path: str, k: int, problems: dict[str, Problem]) -> list[Gold]:
    """The gold tuples of a file. A line without a statement takes its problem from `problems`, by
    id.

    UserError names file and line of the first that is not a strict-K tuple.
    """
    if not Path(path).is_file():
        raise UserError(f"no gold tuples at {path}: make them with "
                        f"`python -m prepare.teacher gold`, or pass --gold FILE")
    gold = []
    for number, row in files.read_lines(path):
        try:
            gold.append(gold_tuple(row, k, problems))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
    if not gold:
        raise UserError(f"{path} holds no gold tuples")
    return gold


def gold_tuple(row: dict, k: int, problems: dict[str, Problem]) -> Gold:
    strategies = row.get("strategies") if isinstance(row, dict) else None
    if not isinstance(strategies, list) or not all(isinstance(s, str) for s in strategies):
        raise UserError('a gold tuple is an object with "problem_id" and "strategies" (texts)')
    if len(strategies) != k:
        raise UserError(f"{len(strategies)} strategies instead of {k} (--num-strategies)")
    if not parses_back(strategies):
        raise UserError("written out as a plan, these strategies do not parse back: each must be "
                        "one line of text that is not empty and has no label of its own")
    problem_id = str(row.get("problem_id", ""))
    if row.get("statement"):
        problem = Problem(problem_id, row["statement"])
    elif problem_id in problems:
        problem = problems[problem_id]
    else:
        raise UserError(f'it has no "statement", and no problem {problem_id!r} is known to take it '
                        f"from; pass the problem file by --problems")
    return problem, row.get("think") or "", strategies


def parses_back(strategies: list[str]) -> bool:
    try:
        parsed = prompts.parse_plan(prompts.format_plan(strategies), len(strategies))
    except prompts.PlanError:
        return False
    return parsed == [s.strip() for s in strategies]


def make_row(tokenizer, gold: Gold, with_think: bool) -> grpo.Row:
    """The plan prompt as it is sampled from, and what is trained after it: the thought if asked
    for, the plan, the end of the turn. Prompt tokens carry no loss."""
    problem, think, strategies = gold
    prompt = prompts.plan(problem, len(strategies))
    plan = prompts.format_plan(strategies)
    if with_think:
        head, tail = with_thought(tokenizer, prompt, think.strip(), plan)
    else:
        head, tail = prompts.encode(tokenizer, prompt), plan
    target = tokenizer(tail, add_special_tokens=False)["input_ids"]
    target.append(rollout.end_of_turn(tokenizer))
    return grpo.Row(head, target, start=0, advantage=0.0, weight=0.0, region="plan")


def with_thought(tokenizer, prompt: str, think: str, plan: str) -> tuple[list[int], str]:
    """Ids of the prompt in thinking mode, and the reply: thought and plan.

    The chat template itself says how a thought is written, and where its prompt ends.
    """
    asked = prompts.turns(prompt)
    turns = [*asked, {"role": "assistant", "content": plan, "reasoning_content": think}]
    opened = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True,
                                           enable_thinking=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=True)
    if not whole.startswith(opened) or think not in whole[len(opened):]:
        raise UserError('--with-think: the chat template of this tokenizer has no place for a '
                        'thought ("reasoning_content"); leave the flag out')
    before_plan = whole[len(opened):].rpartition(plan)[0]
    return tokenizer(opened, add_special_tokens=False)["input_ids"], before_plan + plan


# ----------------------------------------------------------------------------------------------
# Loss

def token_loss(policy, rows: list[grpo.Row], run: Run, token_budget: int, vocab: int,
               train: bool, weight: float = 1.0) -> torch.Tensor:
    """Mean negative log-prob of the rows' trained tokens times `weight`, the same on every rank;
    `train` adds its gradient. Collective.

    Every rank knows all rows and takes each world-th micro-batch; the denominator is that of all
    rows.
    """
    counts = [len(row.suffix) - row.start for row in rows]
    weighted = [replace(row, weight=weight * n / sum(counts))
                for row, n in zip(rows, counts, strict=True)]
    # shared=False: prompts differ, so rows have no prefix in common
    batches = grpo.micro_batches(weighted, token_budget, shared=False)
    batches += [[]] * (-len(batches) % run.world)       # dummies: FSDP's collectives must match
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    for part in batches[run.rank::run.world]:
        batch = grpo.collate(part, run.device, shared=False)
        with torch.set_grad_enabled(train):
            logp = grpo.row_logprobs(policy, batch, 1.0, vocab)
            loss = -(logp * batch.scale.to(logp.dtype)).sum()
        if train:
            (loss * run.world).backward()               # FSDP averages gradients over the ranks
        total += loss.detach()
    return grpo.all_reduce(total)


def replay_loss(policy, keeper: Keeper, step: int, args: argparse.Namespace, run: Run,
                vocab: int) -> torch.Tensor:
    """--replay times the loss of a batch of the starting model's programs; adds its gradient."""
    if not args.replay:
        return torch.zeros((), device=run.device)
    rows = keeper.replay(step, args.batch_size)
    return token_loss(policy, rows, run, args.token_budget, vocab, train=True, weight=args.replay)


# ----------------------------------------------------------------------------------------------
# The stage

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Stage 1: planner SFT on strict-K gold tuples.")
    flags.add_run_flags(parser)
    parser.set_defaults(save_every=50)
    add = parser.add_argument_group("data").add_argument
    add("--gold", metavar="FILE", default="corpora/gold.jsonl", help="gold tuples")
    add("--val", metavar="FILE", help="gold tuples whose loss is printed after every epoch")
    add("--num-strategies", type=flags.count, default=4, help="K, strategies per tuple")
    add("--with-think", action="store_true", help="train the gold thought too, in the think block")
    add("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=flags.count, default=3, help="passes over the tuples; ours")
    add("--batch-size", type=flags.count, default=32, help="tuples per step, over all ranks; ours")
    add("--lr", type=flags.above_zero, default=1e-5, help="peak learning rate; ours")
    add("--max-grad-norm", type=flags.weight, default=1.0, help="0: no clipping")
    add("--token-budget", type=flags.count, default=16384, help="padded tokens per micro-batch")
    add = parser.add_argument_group("the solver, which shares the network").add_argument
    add("--replay", type=flags.weight, default=0.0, metavar="WEIGHT",
        help="of a loss on the starting model's own programs, as many a step as tuples: keeps the "
             "solver; needs --problems with tests")
    add("--solver-problems", type=flags.steps_or_never, default=32, metavar="N",
        help="problems whose pass rate is printed before and after; 0: none")
    add("--max-solve-tokens", type=flags.count, default=2048, help="new tokens of such a program")
    return parser.parse_args(argv)


def load_data(args: argparse.Namespace,
              run: Run) -> tuple[list[Gold], list[Gold], dict[str, Problem]]:
    """Training and held-out gold tuples, and the problems of --problems by id. UserError if one is
    an evaluation problem."""
    if args.prompts:
        with errors.user_input():
            prompts.load(args.prompts)
    problems = {}
    if args.problems:
        problems = {problem.id: problem for problem in load_problems(args.problems)}
    gold = load_gold(args.gold, args.num_strategies, problems)
    held_out = load_gold(args.val, args.num_strategies, problems) if args.val else []
    unknown_exposure = exposure.check_pools(args.gold, args.val, args.problems)
    if unknown_exposure:
        run.warn(unknown_exposure)
    breaches = Counter()
    for _, _, strategies in gold:
        breaches.update(prompts.check_plan(strategies))
    if breaches:
        run.warn(f"of {len(gold)} gold tuples some break the plan contract: {dict(breaches)}")
    return gold, held_out, problems


def train(args: argparse.Namespace, run: Run) -> None:
    # ---- data
    gold, held_out, problems = load_data(args, run)

    # ---- model
    policy, tokenizer, start = load_start(run, args.model)
    if rollout.end_of_turn(tokenizer) is None:
        raise UserError("this tokenizer has neither a chat template that ends a reply nor an "
                        "end-of-sequence token: the planner could not learn to stop")
    rows = [make_row(tokenizer, each, args.with_think) for each in gold]
    val = [make_row(tokenizer, each, args.with_think) for each in held_out]
    ids = [problem.id for problem, _, _ in gold + held_out]
    lengths = [len(row.prefix) + len(row.suffix) for row in rows + val]
    with errors.user_input():
        model.check_fits(policy, tokenizer, zip(ids, lengths, strict=True))
    vocab = len(tokenizer)
    policy = grpo.shard(policy, run.dtype, run.device)
    optimizer = grpo.make_optimizer(policy, args.lr)

    # ---- where a killed run left off
    steps = schedule(len(rows), args.epochs, args.batch_size, args.seed)[:args.steps]
    per_epoch = math.ceil(len(rows) / args.batch_size)
    used = {"model": start, "gold": args.gold} | ({"val": args.val} if args.val else {})
    state = run.resume(policy, optimizer, tokenizer, {"solver": None}, used=used,
                       config={"num_gold": len(gold)})
    run.say(f"{len(rows)} gold tuples, {sum(len(row.suffix) for row in rows)} tokens to learn, in "
            f"{len(steps)} steps")
    keeper = Keeper(args, run, tokenizer, start, gold, problems)
    if args.replay or not run.resumed:
        state["solver"] = keeper.measure("before")

    # ---- the loop
    while state["step"] < len(steps):
        step, started = state["step"], time.perf_counter()
        batch = [rows[i] for i in steps[step]]
        loss = token_loss(policy, batch, run, args.token_budget, vocab, train=True)
        replayed = replay_loss(policy, keeper, step, args, run, vocab)
        lr = learning_rate(step, len(steps), args.lr)
        norm, stepped = grpo.apply_gradients(policy, optimizer, loss + replayed,
                                             args.max_grad_norm, lr)
        state["step"] += 1
        seconds = time.perf_counter() - started
        tokens = sum(len(row.suffix) for row in batch)
        metrics = {"step": state["step"], "loss": loss.item(), "grad_norm": norm, "lr": lr,
                   "tokens": tokens, "skipped": int(not stepped), "seconds": seconds,
                   "tokens_per_second": tokens / seconds}
        if args.replay:
            metrics["replay_loss"] = replayed.item() / args.replay
        if val and (state["step"] == len(steps) or state["step"] % per_epoch == 0):
            val_loss = token_loss(policy, val, run, args.token_budget, vocab, train=False)
            metrics["val_loss"] = val_loss.item()
        run.log(metrics)
        run.say(line(metrics, len(steps)))
        run.count_skipped(not stepped)
        if state["step"] < len(steps):
            run.checkpoint()
    keeper.compare(state["solver"], keeper.measure("after", policy))
    run.finish()


def line(m: dict, steps: int) -> str:
    """The line per step that people read."""
    text = (f"step {m['step']:>4}/{steps}  loss {m['loss']:.4f}  |g| {m['grad_norm']:.2f}  "
            f"lr {m['lr']:.1e}  {m['tokens_per_second']:,.0f} tokens/s")
    if m["skipped"]:
        text += "  SKIPPED: not finite"
    if "val_loss" in m:
        text += f"  held-out loss {m['val_loss']:.4f}"
    return text


def main(args: argparse.Namespace) -> int:
    with run_stage(args, "sft") as run:
        if not run.finished():
            train(args, run)
    return run.status


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
