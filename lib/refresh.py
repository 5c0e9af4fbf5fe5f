"""The judge of a run, and the gate's refresh between phases of stage 5 (Appendix D)."""

import argparse
from pathlib import Path

import torch

import gate as gates
import grpo
import model
import prompts
import rollout
from lib import errors, files, rl
from lib.labels import POSITIVE, Label, balance, load_labels, save_labels, split
from lib.problems import Problem
from lib.run import Run
from prepare.ask import Cache, Responder
from prepare.judge import judge_plans, open_source

REFRESH_PROBLEMS = 64       # whose fresh plans are labelled, two each
REFRESH_LR = 1e-5
ASK_EVERY = 10              # steps between those that a model judges for the log: it takes time


class Judge:
    """--judge: names the faults of plans. What a model answers is kept under the run's answers/, so
    that a resumed run gets the same labels and pays for none of them twice."""

    def __init__(self, args: argparse.Namespace, run: Run):
        self.k = args.num_strategies
        cache = Cache(run.home / "answers")
        self.source = open_source(args.judge, "judge", cache, k=self.k, temperature=0.0)
        self.every = ASK_EVERY if isinstance(self.source, Responder) else 1

    def judge(self, pairs: list[tuple[Problem, str]]) -> list[list[str] | None]:
        """The faults of each (problem, plan); None where a model gave no usable answer."""
        with errors.user_input():           # nobody there, a wrong key
            return judge_plans(self.source, pairs, self.k)

    def faults(self, problems: list[Problem], tuples: list[list[rollout.Tuple]],
               step: int) -> list[list] | None:
        """[problem][tuple] -> faults, for the log; None at steps that are not judged."""
        if step % self.every:
            return None
        faults = iter(self.judge(plans_of(problems, tuples)))
        return [[next(faults) for _ in group] for group in tuples]


def plans_of(problems: list[Problem], tuples: list[list[rollout.Tuple]]) -> list[tuple]:
    pairs = []
    for problem, group in zip(problems, tuples, strict=True):
        pairs += [(problem, prompts.cut_thought(t.plan.text)) for t in group]
    return pairs


def refresh_gate(gate: gates.Gate, engine: rollout.Engine, problems: list[Problem], judge: Judge,
                 state: dict, args: argparse.Namespace, run: Run) -> gates.Gate:
    """The gate in force from now on; state["gate"] is its folder. Collective.

    Fresh plans of the joint pool are labelled by the judge and added to the labels so far, a fifth
    of the problems to those held out: acceptance must see what the planner writes now. The gate
    trains on from its latest checkpoint on the rebalanced whole, and must pass the same acceptance
    at the same tau, in the dtype in which it decides. One that fails is dropped, and the old gate
    stays.
    """
    step = state["step"]
    fresh = fresh_labels(engine, problems, judge, step, args, run)
    known = grown_pool(fresh, state["gate"], step, args.seed, run)
    train, held_out = balance(known["train"], args.seed), known["val"]
    candidate = trained_on(gate, state["gate"], train, args.seed + step, run)
    dtype = next(gate.module.parameters()).dtype
    p = in_dtype(candidate, dtype, run).p_pass([(label, label.plan) for label in held_out])
    metrics = gates.acceptance(p, [label.label for label in held_out], gate.tau)
    if metrics["accepted"]:
        target = run.folder / f"gate_{step:06d}"
        if run.main:
            write_gate(target, candidate, metrics, state["gate"], train, held_out)
        run.barrier()
        gate, state["gate"] = gates.Gate.load(str(target), run.device, dtype), str(target)
        run.say(f"gate refresh: AUC {metrics['auc']:.3f}, accepted, now {target}")
    else:
        failed = "; ".join(metrics["failed"])
        run.say(f"gate refresh: AUC {metrics['auc']:.3f}, DROPPED ({failed}), "
                f"{state['gate']} stays")
    state["refreshed"] = step
    run.log({"step": step, "gate": state["gate"], "fresh": len(fresh),
             "fresh_held_out": known["fresh_held_out"], "labels": len(train) + len(held_out),
             **metrics}, "gate")
    return gate


def fresh_labels(engine: rollout.Engine, problems: list[Problem], judge: Judge, step: int,
                 args: argparse.Namespace, run: Run) -> list[Label]:
    """Labels of what the planner writes now, over all ranks; on the main one, [] elsewhere."""
    # a stream of its own: problems that no training step decides on
    n = min(REFRESH_PROBLEMS, len(problems))
    mine = rl.batch_of_step(problems, step, n, args.seed + 1)[run.rank::run.world]
    key = (args.seed, "refresh", step)
    tuples = run.together(lambda: rollout.sample_tuples(
        engine, mine, 2, args.num_strategies, key, args.max_plan_tokens, 1, think=args.with_think))
    labels = []
    pairs = plans_of(mine, tuples)
    for (problem, plan), faults in zip(pairs, judge.judge(pairs), strict=True):
        if faults is not None:
            kind = faults[0] if faults else POSITIVE
            labels.append(Label(problem.id, problem.statement, plan, int(not faults), kind))
    return [label for part in run.gather(labels) for label in part]


def grown_pool(fresh: list[Label], gate_folder: str, step: int, seed: int, run: Run) -> dict:
    """{"train", "val"}: the labels so far and the fresh ones; "fresh_held_out", on the main rank:
    how many of these are in val. Collective. Two files per refresh: one that is done twice, after a
    kill, adds nothing twice."""
    pools, held_out = run.folder / "gate_pool", 0
    pool = {side: pools / f"{step:06d}_{side}.jsonl" for side in ("train", "val")}
    if run.main:
        pools.mkdir(parents=True, exist_ok=True)
        so_far = {}
        for side, path in pool.items():
            earlier = sorted(p for p in pools.glob(f"*_{side}.jsonl") if p.name < path.name)
            latest = earlier[-1] if earlier else Path(gate_folder) / f"labels_{side}.jsonl"
            so_far[side] = load_labels(str(latest))
        train, val = apart(fresh, so_far["train"], so_far["val"], seed)
        save_labels(str(pool["train"]), so_far["train"] + train)
        save_labels(str(pool["val"]), so_far["val"] + val)
        held_out = len(val)
    run.barrier()
    grown = {side: load_labels(str(path)) for side, path in pool.items()}
    return grown | {"fresh_held_out": held_out}


def apart(fresh: list[Label], train: list[Label], val: list[Label],
          seed: int) -> tuple[list[Label], list[Label]]:
    """Fresh labels to train on and to hold out. A statement stays on the side where it has been: a
    gate that has seen it in training would be measured on what it knows. Of new ones a fifth is
    held out."""
    held_out = {label.statement for label in val}
    trained = {label.statement for label in train} - held_out
    new_train, new_val = split(fresh, seed)
    to_train = [label for label in new_val if label.statement in trained]
    to_val = [label for label in new_train if label.statement in held_out]
    new_train = [label for label in new_train if label.statement not in held_out] + to_train
    new_val = [label for label in new_val if label.statement not in trained] + to_val
    return new_train, new_val


def trained_on(gate: gates.Gate, folder: str, labels: list[Label], seed: int,
               run: Run) -> gates.Gate:
    """The gate of `folder` after an epoch on `labels`, in fp32. Collective."""
    trained = grpo.shard(model.load(folder, torch.float32), torch.float32, run.device)
    optimizer = grpo.make_optimizer(trained, REFRESH_LR)
    for _ in gates.fit(trained, gate.tokenizer, labels, optimizer, k=gate.k, epochs=1,
                       lr=REFRESH_LR, seed=seed):
        pass
    whole = model.load(folder, torch.float32, run.device).requires_grad_(False)
    grpo.refresh(whole, trained)
    return gates.Gate(whole.eval(), gate.tokenizer, gate.tau, gate.k)


def in_dtype(gate: gates.Gate, dtype: torch.dtype, run: Run) -> gates.Gate:
    """The gate as it will decide: its fp32 weights are what a later refresh goes on from."""
    module = model.load(gate.module.source.folder, dtype, run.device).requires_grad_(False)
    grpo.refresh(module, gate.module)
    return gates.Gate(module.eval(), gate.tokenizer, gate.tau, gate.k)


def write_gate(target: Path, candidate: gates.Gate, metrics: dict, base: str,
               train: list[Label], held_out: list[Label]) -> None:
    with files.published(target) as partial:
        model.save(candidate.module, partial, candidate.tokenizer)
        candidate.write_card(partial, metrics, base=base)
        save_labels(str(partial / "labels_train.jsonl"), train)
        save_labels(str(partial / "labels_val.jsonl"), held_out)
