"""Stage 1 (section 3.3): planner SFT, cross-entropy on the plans of strict-K gold tuples.

    python train_sft.py --model Qwen/Qwen3.5-2B                                   # -> runs/Qwen3.5-2B/sft/final
    torchrun --nproc_per_node=8 train_sft.py --model Qwen/Qwen3.5-2B              # the same on eight GPUs

Gold tuples are JSON lines {"problem_id", "statement", "think", "strategies": [K]} (teacher.py gold makes
them). The model reads the plan prompt in the chat template, as it will when it is sampled from, and is
trained on what should follow: the K label lines and the end of the turn. Prompt tokens carry no loss. A run
that was killed goes on from its newest checkpoint; a finished one is not done again.

Where the paper is silent, we chose:
 1. Learning rate 1e-5, 3 epochs, 32 tuples a step; warm-up over a twentieth of the steps, then linearly down;
    no decay.
 2. The loss is the mean over the plan tokens of the whole batch, all ranks together: a long plan counts for
    more.
 3. The think part of a gold tuple is left out. --with-think puts it into the template's think block and
    trains it too.
 4. A tuple without exactly K strategies, or whose strategies do not come back when the plan is parsed, is an
    error.
"""

import argparse
import math
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

import grpo
import model
import prompts
import rollout
from gate import learning_rate, schedule
from lib import checkpoints, errors, files
from lib import run as lib_run
from lib.problems import Problem, load_problems
from prepare import exposure

MAX_SKIPPED = 3         # steps without a finite gradient, one after the other, that end the run
STOPPED = 143           # exit status after SIGTERM, as a shell reports it


# ---------------------------------------------------------------------------------------- gold tuples

def load_gold(path: str, k: int,
              problems: dict[str, Problem]) -> list[tuple[Problem, str, list[str]]]:
    """(problem, think, strategies) of each line. A line without a statement takes its problem from
    `problems`.

    Raises ValueError, naming file and line, for a line that is not a strict-K tuple.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no gold tuples at {path}: make them with `python -m prepare.teacher gold`, or pass "
                                f"--gold FILE")
    gold = []
    for number, row in files.read_lines(path):
        where = f"{path} line {number}"
        strategies = row.get("strategies") if isinstance(row, dict) else None
        if not isinstance(strategies, list) or not all(isinstance(s, str) for s in strategies):
            raise ValueError(f'{where}: a gold tuple is an object with "problem_id" and "strategies", texts')
        if len(strategies) != k:
            raise ValueError(f"{where}: {len(strategies)} strategies instead of {k} (--num-strategies)")
        try:
            parsed = prompts.parse_plan(prompts.format_plan(strategies), k)
        except prompts.PlanError:
            parsed = None
        if parsed != [s.strip() for s in strategies]:
            raise ValueError(f"{where}: written out as a plan, these strategies do not parse back; each must "
                             f"be one line of text that is not empty and has no label of its own")
        problem = problems.get(str(row.get("problem_id")))
        if row.get("statement"):
            problem = Problem(str(row.get("problem_id", "")), row["statement"])
        if problem is None:
            raise ValueError(f'{where}: it has no "statement" and no problem {row.get("problem_id")!r} is '
                             f"known to take it from; pass the problem file by --problems")
        gold.append((problem, row.get("think") or "", strategies))
    if not gold:
        raise ValueError(f"{path} holds no gold tuples")
    return gold


def make_row(tokenizer, problem: Problem, think: str, strategies: list[str],
             with_think: bool) -> grpo.Row:
    """The prompt, and after it what is trained: the thought if asked for, the plan, the end of the turn."""
    prompt, plan = prompts.plan(problem, len(strategies)), prompts.format_plan(strategies)
    if not with_think:
        head, tail = prompts.encode(tokenizer, prompt), plan
    else:
        # the template itself says how a thought is written, and where its prompt ends
        turns = [{"role": "user", "content": prompt},
                 {"role": "assistant", "content": plan, "reasoning_content": think.strip()}]
        opened = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True,
                                               enable_thinking=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=True)
        if not whole.startswith(opened) or think.strip() not in whole[len(opened):]:
            raise ValueError("--with-think: the chat template of this tokenizer has no place for a thought "
                             '("reasoning_content"); leave the flag out')
        head = tokenizer(opened, add_special_tokens=False)["input_ids"]
        tail = whole[len(opened):].rpartition(plan)[0] + plan
    suffix = tokenizer(tail, add_special_tokens=False)["input_ids"] + [rollout.end_of_turn(tokenizer)]
    return grpo.Row(head, suffix, start=0, advantage=0.0, weight=0.0, region="plan")


# ---------------------------------------------------------------------------------------- loss

def token_loss(policy, rows: list[grpo.Row], ranks: lib_run.Ranks, token_budget: int, vocab: int,
               train: bool) -> torch.Tensor:
    """Mean negative log-prob of the rows' trained tokens, the same on every rank; `train` adds its gradient.

    Every rank knows all rows and takes each world-th micro-batch. The denominator is that of all of them;
    FSDP averages gradients over the ranks, hence the factor. A rank that runs out takes part with a dummy of
    weight 0.
    """
    num_loss_tokens = sum(len(row.suffix) - row.start for row in rows)
    rows = [replace(row, weight=(len(row.suffix) - row.start) / num_loss_tokens) for row in rows]
    parts = grpo.micro_batches(rows, token_budget, shared=False)        # prompts differ: nothing to share
    parts += [[]] * (-len(parts) % ranks.world)
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for part in parts[ranks.rank::ranks.world]:
        batch = grpo.collate(part, ranks.device, shared=False)
        with torch.set_grad_enabled(train):
            logp = grpo.row_logprobs(policy, batch, 1.0, vocab)
            loss = -(logp * batch.scale.to(logp.dtype)).sum()
        if train:
            (loss * ranks.world).backward()
        total += loss.detach()
    return grpo.all_reduce(total)


# ---------------------------------------------------------------------------------------- command

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stage 1: planner SFT on strict-K gold tuples.")
    lib_run.add_common_flags(parser)
    add = parser.add_argument_group("data").add_argument
    add("--gold", metavar="FILE", default="corpora/gold.jsonl", help="gold tuples (default %(default)s)")
    add("--val", metavar="FILE", help="gold tuples whose loss is printed after every epoch (default: none)")
    add("--num-strategies", type=int, default=4, help="K, strategies a tuple (default %(default)s)")
    add("--with-think", action="store_true", help="train the gold thought too, inside the think block")
    add("--prompts", metavar="FILE", help="JSON {name: text} of prompts to use instead of ours")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=3, help="(default %(default)s; ours, the paper gives none)")
    add("--batch-size", type=int, default=32, help="tuples a step, all ranks (default %(default)s; ours)")
    add("--lr", type=float, default=1e-5, help="peak learning rate (default %(default)s; ours)")
    add("--max-grad-norm", type=float, default=1.0, help="0: no clipping (default %(default)s)")
    add("--token-budget", type=int, default=16384, help="padded tokens a micro-batch (default %(default)s)")
    add("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="compute; auto: bf16 on a GPU")
    add("--checkpointing", action="store_true", help="recompute activations block by block: less memory")
    add("--save-every", type=int, default=50, help="steps between checkpoints (default %(default)s)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    with errors.explain():
        # -------------------------------------------------------------------------------- setup
        for flag in ("num_strategies", "epochs", "batch_size", "token_budget", "save_every"):
            if getattr(args, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
        if args.steps is not None and args.steps < 1:
            raise ValueError(f"--steps must be at least 1, not {args.steps}")
        ranks = lib_run.setup(args.seed, args.device, args.threads)
        say = print if ranks.main else (lambda *_, **__: None)
        stop = lib_run.stop_flag()
        folder = lib_run.run_folder(args.model, args.run, args.seed) / "sft"
        if not args.fresh and (folder / "final" / "config.json").exists():
            say(f"{folder / 'final'} is there already (--fresh does the stage again)")
            return 0
        if args.prompts:
            prompts.load(args.prompts)

        # -------------------------------------------------------------------------------- data
        problems = {p.id: p for p in load_problems(args.problems)} if args.problems else {}
        gold = load_gold(args.gold, args.num_strategies, problems)
        held_out = load_gold(args.val, args.num_strategies, problems) if args.val else []
        doubt = exposure.check_pools(args.gold, args.val, args.problems)    # raises if one holds an evaluation problem
        start = model.find(args.model, args.revision)
        if start.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--model {start} lies in {folder}, which this stage writes: name another --run")
        tokenizer = AutoTokenizer.from_pretrained(start)
        if rollout.end_of_turn(tokenizer) is None:
            raise ValueError("this tokenizer has neither a chat template that ends a reply nor an end-of-sequence token: the "
                             "planner could not learn to stop")
        rows = [make_row(tokenizer, *each, args.with_think) for each in gold]
        val = [make_row(tokenizer, *each, args.with_think) for each in held_out]
        breaches = Counter(breach for _, _, strategies in gold for breach in prompts.check_plan(strategies))
        if doubt:
            say(f"WARNING: {doubt}", file=sys.stderr)
        if breaches:
            say(f"WARNING: of {len(gold)} gold tuples some break the plan contract: {dict(breaches)}",
                file=sys.stderr)
        steps = schedule(len(rows), args.epochs, args.batch_size, args.seed)[:args.steps]
        steps_per_epoch = math.ceil(len(rows) / args.batch_size)

        # -------------------------------------------------------------------------------- model
        compute = {"bf16": torch.bfloat16, "fp32": torch.float32,
                   "auto": torch.bfloat16 if ranks.device.type == "cuda" else torch.float32}[args.dtype]
        policy = model.load(start, torch.float32)
        policy.checkpointing = args.checkpointing
        for embeddings in policy.per_layer_tables:          # Gemma's: half of the model, left as it is
            embeddings.requires_grad_(False)
        lengths = [len(row.prefix) + len(row.suffix) for row in rows + val]
        model.check_fits(policy, tokenizer, zip([problem.id for problem, *_ in gold + held_out], lengths, strict=True))
        vocab = len(tokenizer)
        policy = grpo.shard(policy, compute, ranks.device)
        optimizer = grpo.make_optimizer(policy, args.lr)
        if args.fresh and ranks.main and folder.exists():   # now that nothing is left to complain about
            files.remove(folder)
        ranks.barrier()
        newest = checkpoints.newest_checkpoint(folder)
        state = (checkpoints.load_checkpoint(newest, policy, optimizer) if newest else
                 {"step": 0, "skipped": 0, "logs": {}})
        log = lib_run.Log(folder, state["logs"], ranks)
        if ranks.main:
            counts = {"num_gold": len(gold), "gold_breaches": dict(breaches), "pool": doubt}
            used = {"model": start, "gold": args.gold} | ({"val": args.val} if args.val else {})
            lib_run.write_config(folder, args, counts, used)
        num_tokens = sum(len(row.suffix) for row in rows)
        say(f"{len(rows)} gold tuples with {num_tokens} tokens to learn; {len(steps)} steps, starting from "
            f"{newest or args.model}")

    # ------------------------------------------------------------------------------------ loop
    for step in range(state["step"], len(steps)):
        started = time.perf_counter()
        batch = [rows[i] for i in steps[step]]
        loss = token_loss(policy, batch, ranks, args.token_budget, vocab, train=True)
        lr = learning_rate(step, len(steps), args.lr)
        norm, stepped = grpo.apply_gradients(policy, optimizer, loss, args.max_grad_norm, lr)
        state["step"], state["skipped"] = step + 1, 0 if stepped else state["skipped"] + 1
        finished = state["step"] == len(steps)

        num_tokens, seconds = sum(len(row.suffix) for row in batch), time.perf_counter() - started
        metrics = {"step": step + 1, "loss": loss.item(), "grad_norm": norm, "lr": lr, "tokens": num_tokens,
                   "skipped": int(not stepped), "seconds": seconds, "tokens_per_second": num_tokens / seconds}
        if val and (finished or (step + 1) % steps_per_epoch == 0):
            metrics["val_loss"] = token_loss(policy, val, ranks, args.token_budget, vocab, train=False).item()
        log.write("metrics", metrics)
        say(f"step {step + 1:>4}/{len(steps)}  loss {metrics['loss']:.4f}  |g| {norm:.2f}  lr {lr:.1e}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s" + ("" if stepped else "  SKIPPED: not finite")
            + (f"  held-out loss {metrics['val_loss']:.4f}" if "val_loss" in metrics else ""), flush=True)

        if state["skipped"] == MAX_SKIPPED:
            say(f"error: {MAX_SKIPPED} steps in a row had a non-finite loss or gradient; lower --lr",
                file=sys.stderr)
            return 1
        stopped = ranks.any(stop()) and not finished
        if stopped or not finished and state["step"] % args.save_every == 0:
            extra = {**state, "logs": log.offsets()}
            checkpoints.save_checkpoint(folder, state["step"], policy, optimizer, extra, args.keep)
        if stopped:
            say(f"stopped after step {state['step']}; the same command goes on from there")
            return STOPPED

    # ------------------------------------------------------------------------------------ final
    # in fp32: the RL stages move weights by less than bf16 can tell apart
    with files.published(folder / "final") if ranks.main else nullcontext(folder) as aside:
        model.save(policy, aside, tokenizer)               # every rank brings its shards, the main one writes
    ranks.barrier()
    say(f"{folder / 'final'} written after {state['step']} steps")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
