"""Stage 2 (section 3.3, Appendix D): train the validity gate, and decide whether it may be used.

    python train_rm.py --model Qwen/Qwen3.5-0.8B --run Qwen3.5-2B          # -> runs/Qwen3.5-2B/gate/final

Labels are JSON lines {"problem_id", "statement", "plan", "label", "kind"} (teacher.py labels makes them). One
pool is split by problem, a fifth held out; both sides are balanced by label and problem. The gate learns
p(Pass | x, S) by binary cross-entropy; then it must pass Appendix D's thresholds on the held-out labels, all
of them at tau. If it does not, the command ends with status 3, and what it wrote is marked so that no stage
will load it. A run that was killed goes on from its newest checkpoint; a finished one is not done again.

`final/` is the gate, gate.json (tau, figures, verdict) and the labels it was trained and measured on, which
is what the gate refresh of stage 5 starts from.

Where the paper is silent, we chose:
 1. Learning rate 1e-5, 3 epochs, 32 labels a step; warm-up over a twentieth of the steps, then linearly down;
    no decay.
 2. Early stopping (Table 10): of the epochs' ends, the one with the highest held-out AUC is the gate.
 3. Early stopping, tau (when chosen) and acceptance use the same held-out labels, as in Table 10; the figures
    flatter a little.
 4. The figures are measured on the written checkpoint in the precision in which the later stages use it (bf16
    on a GPU).
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoTokenizer

import gate
import grpo
import model
import prompts
from gate import ACCEPTANCE, Gate, Label, RuleGate
from lib import checkpoints, errors, files
from lib import run as lib_run
from lib.problems import load_problems
from prepare import exposure

MIN_KIND_SHARE = 0.10       # of the negatives, for each kind: below it the gate has hardly met that fault
MAX_SKIPPED = 3             # steps without a finite gradient, one after the other, that end the run
REFUSED = 3                 # exit status of a gate that was not accepted
STOPPED = 143               # exit status after SIGTERM, as a shell reports it


# ---------------------------------------------------------------------------------------- labels

def load_pools(args: argparse.Namespace) -> tuple[list[Label], list[Label]]:
    """The whole training side of the labels, and the balanced held-out ones."""
    if not args.labels:
        args.labels, args.val = "corpora/labels_train.jsonl", args.val or "corpora/labels_val.jsonl"
    for path in filter(None, (args.labels, args.val)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no gate labels at {path}: make them with `python -m prepare.teacher labels`, "
                                    f"or pass --labels FILE")
    problems = {p.id: p for p in load_problems(args.problems)} if args.problems else {}
    train = gate.load_labels(args.labels, problems)
    if args.val:
        val = gate.load_labels(args.val, problems)
        shared = {x.statement for x in train} & {x.statement for x in val}
        if shared:
            problem_id = next(x.problem_id for x in val if x.statement in shared)
            raise ValueError(f"{len(shared)} problems are in both {args.labels} and {args.val}, one is "
                             f"{problem_id!r}: leave --val out to have one pool split by problem")
    else:
        train, val = gate.split(train, args.val_share, args.seed)
        if not train or not val:
            raise ValueError(f"{args.labels} has too few problems to hold out a share of {args.val_share} of "
                             f"them: pass held-out labels by --val")
    return train, gate.balance(val, args.seed)


def rare_kinds(labels: list[Label]) -> list[str]:
    """Kinds of fault that make up less than a tenth of the negatives, each with its share."""
    count = Counter(x.kind for x in labels if not x.label)
    kinds = set(prompts.FAULTS) - {"parse"} | set(count)        # a plan that does not parse has J = 0 anyway
    shares = {kind: count[kind] / count.total() for kind in sorted(kinds)}
    return [f"{kind} {share:.0%}" for kind, share in shares.items() if share < MIN_KIND_SHARE]


# ---------------------------------------------------------------------------------------- what is printed

def measure(p: list[float], labels: list[Label], tau: float) -> dict:
    """Acceptance figures and the recall of each kind."""
    kinds = gate.recall_per_kind(p, labels, tau)
    return gate.acceptance(p, [x.label for x in labels], tau) | {"kinds": kinds}


def table(learned: dict, rules: dict) -> str:
    """The figures of the gate beside the rule gate's on the same held-out labels, and the thresholds."""
    lines = [f"held out: {learned['positives']} Pass, {learned['negatives']} Fail; tau {learned['tau']:.4g}",
             f"{'':26}    gate   rules  needed"]
    for name, least in ACCEPTANCE.items():
        lines.append(f"{name.replace('_', ' '):26}{learned[name]:8.3f}{rules[name]:8.3f}{least:8.2f}")
    for kind, row in learned["kinds"].items():
        what = f"{'kept' if kind == gate.POSITIVE else 'caught'}: {kind} ({row['count']})"
        lines.append(f"{what:26}{row['recall']:8.3f}{rules['kinds'][kind]['recall']:8.3f}")
    return "\n".join(lines)


def verdict(folder: Path, say: bool) -> int:
    """Say whether the gate of `folder` was accepted. Returns the exit status."""
    figures = json.loads((folder / "gate.json").read_text())["metrics"]
    if say and figures["accepted"]:
        print(f"gate accepted: {folder}")
    elif say:
        print(f"gate NOT accepted: {'; '.join(figures['failed'])}. No stage will load {folder}; train again "
              f"with --fresh and more or cleaner labels", file=sys.stderr)
    return 0 if figures["accepted"] else REFUSED


# ---------------------------------------------------------------------------------------- command

def tau_or_auto(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        tau = float(text)
    except ValueError:
        tau = math.nan
    if not 0 < tau < 1:
        raise argparse.ArgumentTypeError(f"must be auto or a number between 0 and 1, not {text}")
    return tau


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stage 2: the validity gate.")
    lib_run.add_common_flags(parser)
    add = parser.add_argument_group("data").add_argument
    add("--labels", metavar="FILE", help="gate labels (default: corpora/labels_train.jsonl and _val.jsonl)")
    add("--val", metavar="FILE", help="held-out gate labels (default: split --labels by problem)")
    add("--val-share", type=float, default=0.2, help="of the problems, held out (default %(default)s)")
    add("--num-strategies", type=int, default=4, help="K, strategies a tuple (default %(default)s)")
    add("--prompts", metavar="FILE", help="JSON {name: text} of prompts to use instead of ours")
    add = parser.add_argument_group("training").add_argument
    add("--tau", type=tau_or_auto, default=gate.TAU, metavar="X|auto", help="accepted is p(Pass) >= tau; "
        f"auto: the largest with a held-out recall of {gate.RECALL} (default %(default)s)")
    add("--epochs", type=int, default=3, help="(default %(default)s; ours, the paper gives none)")
    add("--batch-size", type=int, default=32, help="labels a step, all ranks (default %(default)s; ours)")
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
        folder = lib_run.run_folder(args.model, args.run, args.seed) / "gate"
        if not args.fresh and (folder / "final" / "gate.json").exists():
            say(f"{folder / 'final'} is there already (--fresh does the stage again)")
            return verdict(folder / "final", ranks.main)
        if args.prompts:
            prompts.load(args.prompts)

        # -------------------------------------------------------------------------------- data
        pool, val = load_pools(args)
        doubt = exposure.check_pools(args.labels, args.val, args.problems)  # raises if one holds an evaluation problem
        train = gate.balance(pool, args.seed)
        rare = rare_kinds(train)
        if rare:
            say(f"WARNING: less than {MIN_KIND_SHARE:.0%} of the negatives are {', '.join(rare)}: the gate "
                f"will hardly know that fault", file=sys.stderr)
        steps_per_epoch = math.ceil(len(train) / args.batch_size)
        num_steps = min(steps_per_epoch * args.epochs, args.steps or sys.maxsize)

        # -------------------------------------------------------------------------------- model
        compute = {"bf16": torch.bfloat16, "fp32": torch.float32,
                   "auto": torch.bfloat16 if ranks.device.type == "cuda" else torch.float32}[args.dtype]
        start = model.find(args.model, args.revision)
        if start.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--model {start} lies in {folder}, which this stage writes: name another --run")
        tokenizer = AutoTokenizer.from_pretrained(start)
        if doubt:
            say(f"WARNING: {doubt}", file=sys.stderr)
        module = model.load(start, torch.float32)
        model.check_fits(module, tokenizer, [(x.problem_id, len(gate.encode(tokenizer, x, x.plan, args.num_strategies)))
                                             for x in train + val])
        module.checkpointing = args.checkpointing
        for embeddings in module.per_layer_tables:          # Gemma's: half of the model, left as it is
            embeddings.requires_grad_(False)
        module = grpo.shard(module, compute, ranks.device)
        optimizer = grpo.make_optimizer(module, args.lr)
        judge = Gate(module, tokenizer, k=args.num_strategies, token_budget=args.token_budget)
        if args.fresh and ranks.main and folder.exists():   # now that nothing is left to complain about
            files.remove(folder)
        ranks.barrier()
        newest = checkpoints.newest_checkpoint(folder)
        state = (checkpoints.load_checkpoint(newest, module, optimizer) if newest else
                 {"step": 0, "skipped": 0, "best_auc": -1.0, "best_step": 0, "logs": {}})
        log = lib_run.Log(folder, state["logs"], ranks)
        if ranks.main:
            counts = {"num_train": len(train), "num_val": len(val), "rare_kinds": rare, "pool": doubt}
            used = {"model": start, "labels": args.labels} | ({"val": args.val} if args.val else {})
            lib_run.write_config(folder, args, counts, used)
        say(f"{len(train)} balanced labels of {len(pool)}, {len(val)} held out; {num_steps} steps, starting "
            f"from {newest or args.model}")

    # ------------------------------------------------------------------------------------ loop
    started = time.perf_counter()
    for metrics in gate.fit(module, tokenizer, train, optimizer, k=args.num_strategies, epochs=args.epochs,
                            batch_size=args.batch_size, lr=args.lr, max_grad_norm=args.max_grad_norm,
                            seed=args.seed, token_budget=args.token_budget, first_step=state["step"],
                            last_step=num_steps):
        state["step"], state["skipped"] = metrics["step"], state["skipped"] + 1 if metrics["skipped"] else 0
        finished = state["step"] == num_steps
        epoch_ends = finished or state["step"] % steps_per_epoch == 0
        if epoch_ends:
            p = judge.p_pass([(x, x.plan) for x in val])
            metrics["val_auc"] = gate.auc(p, [x.label for x in val])
            if metrics["val_auc"] > state["best_auc"]:
                state["best_auc"], state["best_step"] = metrics["val_auc"], state["step"]
                with files.published(folder / "best") if ranks.main else nullcontext(folder) as aside:
                    model.save(module, aside, tokenizer)   # every rank brings its shards, the main one writes
        seconds, started = time.perf_counter() - started, time.perf_counter()
        log.write("metrics", metrics | {"seconds": seconds})
        say(f"step {metrics['step']:>4}/{num_steps}  loss {metrics['loss']:.4f}  "
            f"right {metrics['correct']:.0%}  |g| {metrics['grad_norm']:.2f}  lr {metrics['lr']:.1e}  "
            f"{seconds:.1f} s"
            + ("  SKIPPED: not finite" if metrics["skipped"] else "")
            + (f"  held-out AUC {metrics['val_auc']:.3f}" if epoch_ends else ""), flush=True)

        if state["skipped"] == MAX_SKIPPED:
            say(f"error: {MAX_SKIPPED} steps in a row had a non-finite loss or gradient; lower --lr",
                file=sys.stderr)
            return 1
        stopped = ranks.any(stop()) and not finished
        if stopped or epoch_ends or state["step"] % args.save_every == 0:
            extra = {**state, "logs": log.offsets()}
            checkpoints.save_checkpoint(folder, state["step"], module, optimizer, extra, args.keep)
        if stopped:
            say(f"stopped after step {state['step']}; the same command goes on from there")
            return STOPPED

    # ------------------------------------------------------------------------------------ acceptance
    if ranks.main:
        best = model.load(folder / "best", compute, ranks.device)
        judge = Gate(best, tokenizer, k=args.num_strategies, token_budget=args.token_budget)
        rule_gate, pairs = RuleGate(args.num_strategies), [(x, x.plan) for x in val]
        p = judge.p_pass(pairs)
        judge.tau = gate.choose_tau(p, [x.label for x in val]) if args.tau == "auto" else args.tau
        learned, rules = measure(p, val, judge.tau), measure(rule_gate.p_pass(pairs), val, rule_gate.tau)
        print(table(learned, rules))
        print(f"AUC above the rule gate's by {learned['auc'] - rules['auc']:.3f}")
        gate.save_labels(folder / "best" / "labels_train.jsonl", pool)
        gate.save_labels(folder / "best" / "labels_val.jsonl", val, p)
        gate.write_card(folder / "best", judge, learned, rule_gate=rules, base=args.model,
                        step=state["best_step"])
        files.publish(folder / "best", folder / "final")
    ranks.barrier()
    return verdict(folder / "final", ranks.main)


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
