"""Stage 2 (section 3.3, Appendix D): train the validity gate, and decide whether it may be used.

    python train_rm.py --model Qwen/Qwen3.5-0.8B --run Qwen3.5-2B   # -> runs/Qwen3.5-2B/gate/final

Labels are JSON lines {"problem_id", "statement", "plan", "label", "kind"}; `python -m
prepare.teacher labels` makes them. The gate learns p(Pass | x, S) by binary cross-entropy, then
must pass Appendix D's thresholds on held-out labels, all of them at tau. If it does not, the
command ends with status 3, and no stage will load what it wrote.

`final/` holds the gate, gate.json (tau, metrics, decision), and the labels it was trained and
measured on, from which the gate refresh of stage 5 starts.

Where the paper is silent, we chose:
 1. Learning rate 1e-5, 3 epochs, 32 labels per step; linear warm-up over a twentieth of the steps,
    then linear decay; no weight decay.
 2. Early stopping (Table 10): of the epochs' ends, the one with the highest held-out AUC is the
    gate.
 3. Early stopping, tau (when chosen) and acceptance use the same held-out labels, as in Table 10.
    So the metrics flatter a little.
 4. Acceptance is measured on the written checkpoint, in the precision of the later stages.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import gate
import grpo
import model
import prompts
from gate import ACCEPTANCE, Gate, RuleGate
from lib import errors, files, flags
from lib.errors import UserError
from lib.labels import POSITIVE, Label, balance, load_labels, save_labels, split
from lib.problems import load_problems
from lib.run import Run, run_stage
from lib.start import load_start
from prepare import exposure

MIN_KIND_SHARE = 0.10       # of the negatives: the gate has hardly met a kind of fault below it
REFUSED = 3                 # exit status of a gate that was not accepted


# --------------------------------------------------------------------------------------------------
# Labels

def load_pools(args: argparse.Namespace) -> tuple[list[Label], list[Label]]:
    """All training labels, and the balanced held-out ones."""
    if not args.labels:
        args.labels = "corpora/labels_train.jsonl"
        args.val = args.val or "corpora/labels_val.jsonl"
    for path in filter(None, (args.labels, args.val)):
        if not Path(path).is_file():
            raise UserError(f"no gate labels at {path}: make them with "
                            f"`python -m prepare.teacher labels`, or pass --labels FILE")
    problems = {}
    if args.problems:
        problems = {problem.id: problem for problem in load_problems(args.problems)}
    labels = load_labels(args.labels, problems)
    if not args.val:
        train, val = split(labels, args.seed)
        if not train or not val:
            raise UserError(f"{args.labels} has too few problems to hold out a fifth of them: pass "
                            f"held-out labels by --val")
        return train, balance(val, args.seed)
    val = load_labels(args.val, problems)
    shared = {label.statement for label in labels} & {label.statement for label in val}
    if shared:
        example = next(label.problem_id for label in val if label.statement in shared)
        raise UserError(f"{len(shared)} problems are in both {args.labels} and {args.val}, one is "
                        f"{example!r}: leave --val out to have one pool split by problem")
    return labels, balance(val, args.seed)


def rare_kinds(labels: list[Label]) -> list[str]:
    """Kinds of fault that make up less than a tenth of the negatives, each with its share."""
    count = Counter(label.kind for label in labels if not label.label)
    kinds = set(prompts.FAULTS) | set(count)
    kinds.discard("parse")                  # the gate never sees a plan that does not parse
    rare = []
    for kind in sorted(kinds):
        share = count[kind] / count.total()
        if share < MIN_KIND_SHARE:
            rare.append(f"{kind} {share:.0%}")
    return rare


# --------------------------------------------------------------------------------------------------
# Acceptance

def measure(p: list[float], labels: list[Label], tau: float) -> dict:
    """Appendix D's metrics of p at tau, and of each kind of label the share decided rightly."""
    right = defaultdict(list)
    for x, label in zip(p, labels, strict=True):
        right[label.kind].append((x >= tau) == bool(label.label))
    kinds = {}
    for kind in sorted(right, key=lambda kind: (kind != POSITIVE, kind)):
        hits = right[kind]
        kinds[kind] = {"count": len(hits), "recall": sum(hits) / len(hits)}
    return gate.acceptance(p, [label.label for label in labels], tau) | {"kinds": kinds}


def table(learned: dict, rules: dict) -> str:
    """The gate's metrics beside the rule gate's on the same held-out labels, and the thresholds."""
    lines = [f"held out: {learned['positives']} Pass, {learned['negatives']} Fail; "
             f"tau {learned['tau']:.4g}",
             f"{'':26}    gate   rules  needed"]
    for name, least in ACCEPTANCE.items():
        title = name.replace("_", " ")
        lines.append(f"{title:26}{learned[name]:8.3f}{rules[name]:8.3f}{least:8.2f}")
    for kind, row in learned["kinds"].items():
        title = f"{'kept' if kind == POSITIVE else 'caught'}: {kind} ({row['count']})"
        lines.append(f"{title:26}{row['recall']:8.3f}{rules['kinds'][kind]['recall']:8.3f}")
    lines.append(f"AUC above the rule gate's by {learned['auc'] - rules['auc']:.3f}")
    return "\n".join(lines)


def accept(args: argparse.Namespace, run: Run, pool: list[Label], val: list[Label]) -> None:
    """Measure best/, write its gate.json and labels, and name it final/. On the main rank."""
    best, pairs = run.folder / "best", [(label, label.plan) for label in val]
    module = model.load(best, run.dtype, run.device)
    judge = Gate(module, run.tokenizer, k=args.num_strategies, token_budget=args.token_budget)
    p = judge.p_pass(pairs)
    judge.tau = args.tau
    if args.tau == "auto":
        judge.tau = gate.choose_tau(p, [label.label for label in val])
    rule_gate = RuleGate(args.num_strategies)
    learned = measure(p, val, judge.tau)
    rules = measure(rule_gate.p_pass(pairs), val, rule_gate.tau)
    print(table(learned, rules))
    save_labels(best / "labels_train.jsonl", pool)
    save_labels(best / "labels_val.jsonl", val, p)
    judge.write_card(best, learned, rule_gate=rules, base=args.model, step=run.state["best_step"])
    files.publish(best, run.folder / "final")


def decision(run: Run) -> int:
    """Print whether the gate of this run was accepted; returns the exit status."""
    final = run.folder / "final"
    metrics = json.loads((final / "gate.json").read_text())["metrics"]
    if metrics["accepted"]:
        run.say(f"gate accepted: {final}")
        return 0
    run.say(f"gate NOT accepted: {'; '.join(metrics['failed'])}. No stage will load {final}; train "
            f"again with --fresh and more or cleaner labels", file=sys.stderr)
    return REFUSED


# --------------------------------------------------------------------------------------------------
# The stage

def tau_or_auto(text: str) -> float | str:
    return text if text == "auto" else flags.share(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Stage 2: the validity gate.")
    flags.add_run_flags(parser)
    parser.set_defaults(save_every=50)
    add = parser.add_argument_group("data").add_argument
    add("--labels", metavar="FILE",
        help="gate labels; by default corpora/labels_train.jsonl and labels_val.jsonl")
    add("--val", metavar="FILE", help="held-out gate labels; by default --labels is split")
    add("--num-strategies", type=flags.count, default=4, help="K, strategies per tuple")
    add("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    add = parser.add_argument_group("training").add_argument
    add("--tau", type=tau_or_auto, default=gate.TAU, metavar="X|auto",
        help=f"accept where p(Pass) >= tau; auto: the largest with held-out recall {gate.RECALL}")
    add("--epochs", type=flags.count, default=3, help="passes over the labels; ours")
    add("--batch-size", type=flags.count, default=32, help="labels per step, over all ranks; ours")
    add("--lr", type=flags.above_zero, default=1e-5, help="peak learning rate; ours")
    add("--max-grad-norm", type=flags.weight, default=1.0, help="0: no clipping")
    add("--token-budget", type=flags.count, default=16384, help="padded tokens per micro-batch")
    return parser.parse_args(argv)


def load_data(args: argparse.Namespace, run: Run) -> tuple[list[Label], list[Label], list[Label]]:
    """All training labels, the balanced ones, and the held-out ones. UserError if one is of an
    evaluation problem."""
    with errors.user_input():
        if args.prompts:
            prompts.load(args.prompts)
        pool, val = load_pools(args)
        unknown_exposure = exposure.check_pools(args.labels, args.val, args.problems)
    if unknown_exposure:
        run.warn(unknown_exposure)
    labels = balance(pool, args.seed)
    rare = rare_kinds(labels)
    if rare:
        run.warn(f"less than {MIN_KIND_SHARE:.0%} of the negatives are {', '.join(rare)}: the gate "
                 f"will hardly know that fault")
    return pool, labels, val


def check_lengths(module, tokenizer, labels: list[Label], k: int) -> None:
    """UserError if a label does not fit into the gate's context."""
    lengths = []
    with errors.user_input():
        for label in labels:
            ids = gate.encode(tokenizer, label, label.plan, k)
            lengths.append((label.problem_id, len(ids)))
        model.check_fits(module, tokenizer, lengths)


def train(args: argparse.Namespace, run: Run) -> None:
    pool, labels, val = load_data(args, run)
    module, tokenizer, start = load_start(run, args.model)
    check_lengths(module, tokenizer, labels + val, args.num_strategies)
    module = grpo.shard(module, run.dtype, run.device)
    optimizer = grpo.make_optimizer(module, args.lr)
    judge = Gate(module, tokenizer, k=args.num_strategies, token_budget=args.token_budget)

    # ---- where a killed run left off
    config = {"num_train": len(labels), "num_val": len(val)}
    used = {"model": start, "labels": args.labels} | ({"val": args.val} if args.val else {})
    state = run.resume(module, optimizer, tokenizer, {"best_auc": -1.0, "best_step": 0},
                       config=config, used=used)
    steps_per_epoch = math.ceil(len(labels) / args.batch_size)
    steps = min(steps_per_epoch * args.epochs, args.steps or math.inf)
    run.say(f"{len(labels)} balanced labels of {len(pool)}, {len(val)} held out; {steps} steps")

    # ---- the loop
    started = time.perf_counter()
    for metrics in gate.fit(module, tokenizer, labels, optimizer, k=args.num_strategies,
                            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr,
                            max_grad_norm=args.max_grad_norm, seed=args.seed,
                            token_budget=args.token_budget, first_step=state["step"],
                            last_step=steps):
        state["step"] = metrics["step"]
        epoch_ends = state["step"] == steps or state["step"] % steps_per_epoch == 0
        if epoch_ends:
            p = judge.p_pass([(label, label.plan) for label in val])
            metrics["val_auc"] = gate.auc(p, [label.label for label in val])
            if metrics["val_auc"] > state["best_auc"]:
                state["best_auc"], state["best_step"] = metrics["val_auc"], state["step"]
                run.publish("best", {"step": state["step"]})
        metrics["seconds"], started = time.perf_counter() - started, time.perf_counter()
        run.log(metrics)
        run.say(line(metrics, steps))
        run.count_skipped(metrics["skipped"])
        run.checkpoint(due=epoch_ends)

    # ---- acceptance
    if run.main:
        accept(args, run, pool, val)
    run.barrier()


def line(m: dict, steps: int) -> str:
    """The line per step that people read."""
    text = (f"step {m['step']:>4}/{steps}  loss {m['loss']:.4f}  right {m['correct']:.0%}  "
            f"|g| {m['grad_norm']:.2f}  lr {m['lr']:.1e}  {m['seconds']:.1f} s")
    if m["skipped"]:
        text += "  SKIPPED: not finite"
    if "val_auc" in m:
        text += f"  held-out AUC {m['val_auc']:.3f}"
    return text


def main(args: argparse.Namespace) -> int:
    with run_stage(args, "gate") as run:
        if not run.finished():
            train(args, run)
        run.status = decision(run)
    return run.status


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
