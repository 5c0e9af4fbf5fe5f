"""Stages 3, 4 and 5: RM-guided warm-up, the reward-density audit, the joint update (Algorithm 1), and the rivals.

    python train_cppo.py --model FOLDER --problems FILE --stage warmup                  # stage 3: planner tokens, R = J
    torchrun --nproc_per_node=8 train_cppo.py --model Qwen/Qwen3.5-2B                   # stage 4 (audit), then stage 5
    python train_cppo.py --model FOLDER --policy independent --advantage pkpo           # a rival, from the base model

One step: sample M tuples a problem and K branches a tuple, verify, gate, turn verdicts into two kinds of advantages, and
hand rows (prefix ids, suffix ids, advantage) to one clipped, KL-regularised update. Methods differ in how they collect
rows; the loop and the update are shared.

Where this departs from the paper, or fills in what it leaves open (the README's table has all of it):
 1. The paper gives no learning rate, temperature, KL weight or lengths for CPPO; the defaults are its PKPO settings.
 2. A tuple with J = 0 is still solved, verified and trained: Eq. 11 does not know J, and Eq. 12's mean needs every tuple.
 3. A plan that does not parse has no branches, R_out = J = 0, and counts in the mean across tuples.
 4. With no trained gate in the run, the rule gate stands in for it, said loudly.
 5. Warm-up stops when the accepted share of the last --plateau steps is not above that of as many before by one standard
    error, or at --steps.
 6. --solver-weight scales the solver's advantages (Eq. 11); at 0 solver rows keep their KL, which keeps the shared
    network solving (without it the planner's updates spoil the solver).

Shapes: P problems of this rank in the step, M tuples a problem, K strategies a tuple, N independent attempts.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoTokenizer

import gate as gates
import grpo
import model
import prompts
import reward
import rollout
import verifier
from lib import checkpoints, errors, files, memory, progress
from lib import run as lib_run
from lib.problems import load_problems, verifier_item
from prepare import corpora, exposure, teacher
from rivals import advantages

METHODS = {"tuple": ("cppo",), "independent": ("grpo", "passk", "pkpo"), "skills": ("upskill",)}
ATTEMPTS = {"independent": 16, "skills": 4}      # N: PKPO's n (Appendix P), UpSkill's number of skills (Appendix R)
STAGES = ("warmup", "joint")
MAX_SKIPPED = 3                                  # non-finite steps in a row that end a run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    lib_run.add_common_flags(parser)
    g = parser.add_argument_group("method")
    g.add_argument("--stage", choices=STAGES, default="joint", help="warmup: stage 3; joint: stages 4 and 5")
    g.add_argument("--policy", choices=METHODS, default="tuple", help="how the attempts of a problem are drawn")
    g.add_argument("--advantage", help="independent: grpo, passk or pkpo; skills: upskill (default: the policy's first)")
    g.add_argument("--reward", choices=reward.PLANNER_REWARDS, default="both", help="what planner tokens are paid (Table 6)")
    g.add_argument("--num-strategies", type=int, default=4, metavar="K", help="strategies a tuple, attempts a problem at test time")
    g.add_argument("--num-tuples", type=int, default=8, metavar="M", help="tuples a problem")
    g.add_argument("--num-attempts", type=int, metavar="N", help="attempts a problem of a rival (16; skills: 4)")
    g.add_argument("--problems-per-step", type=int, metavar="P",
                   help="problems in a step, over all ranks (8; rivals: as many as give the same number of attempts)")
    g.add_argument("--solver-weight", type=float, default=1.0, help="factor on the solver's advantages; 0: only its KL")
    g.add_argument("--gate", metavar="FOLDER", help="gate of the run by default; `rule` for the rule gate")
    g.add_argument("--tau", type=float, help="gate threshold, instead of the gate's own")
    g.add_argument("--refresh-every", type=int, default=0, metavar="STEPS", help="gate phase length; 0: the gate stays")
    g.add_argument("--labels", metavar="FILE", help="gate labels that a refresh adds to (those that the gate was trained on)")
    g.add_argument("--gate-lr", type=float, default=1e-5, help="learning rate of a gate refresh")
    g.add_argument("--judge", metavar="SPEC", help="labels plans at a refresh and names faults in the log: rule, module:name, "
                   "http://host/v1#model (key in JUDGE_API_KEY), a model's folder or hub id")
    g.add_argument("--judge-every", type=int, metavar="STEPS", help="steps between those whose tuples are judged for the log; 0: "
                   "never (1; of a model, which has to be asked, 10)")
    g.add_argument("--alpha-mi", type=float, default=advantages.UPSKILL_ALPHA, help="weight of UpSkill's information reward")
    g.add_argument("--aggregate", choices=advantages.SKILL_AGGREGATES, default="mean", help="of UpSkill's information over tokens")
    g = parser.add_argument_group("optimisation")
    g.add_argument("--lr", type=float, default=5e-7, help="peak learning rate of AdamW")
    g.add_argument("--lr-warmup", type=int, default=0, metavar="STEPS", help="linear warm-up")
    g.add_argument("--weight-decay", type=float, default=0.0, help="not on norms")
    g.add_argument("--clip", type=float, default=grpo.CLIP, help="epsilon of Eq. 18")
    g.add_argument("--beta", type=float, default=grpo.BETA, help="weight of the KL to the reference; 0: no reference")
    g.add_argument("--max-grad-norm", type=float, default=1.0, help="0: no clipping")
    g.add_argument("--updates-per-rollout", type=int, default=1, help="at 1 the ratio is exactly 1 and nothing clips")
    g.add_argument("--token-budget", type=int, default=16384, help="padded tokens of a micro-batch")
    g.add_argument("--checkpointing", action="store_true", help="recompute activations block by block")
    g.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="compute; auto: bf16 on a GPU")
    g.add_argument("--sampler-dtype", choices=("auto", "bf16", "fp32"), default="auto", help="auto: as --dtype")
    g.add_argument("--plateau", type=int, default=30, metavar="STEPS", help="window of the warm-up's stopping rule")
    g = parser.add_argument_group("sampling")
    g.add_argument("--temperature", type=float, default=0.7, help="of planner and solver")
    g.add_argument("--max-plan-tokens", type=int, default=512)
    g.add_argument("--max-solve-tokens", type=int, default=2048)
    g.add_argument("--slots", type=int, default=256, help="rows decoded together on a rank")
    g.add_argument("--with-think", action="store_true", help="planner thinks first, as stage 1 --with-think has taught it")
    g.add_argument("--prompts", metavar="FILE", help="JSON {name: text} that replaces prompts")
    g = parser.add_argument_group("verifier")
    g.add_argument("--workers", type=int, help="verifier processes of a rank (default: cores / ranks)")
    g.add_argument("--verifier-mode", choices=("batch", "strict"), default="batch")
    g.add_argument("--official-limits", action="store_true", help="a problem's own time limit instead of 10 s a test")
    g = parser.add_argument_group("memory")
    g.add_argument("--plan", action="store_true", help="print each rank's memory from config.json alone, and end")
    g.add_argument("--prompt-tokens", type=int, default=1024, help="longest prompt that --plan counts with")
    g.add_argument("--gpu-gib", type=float, default=80.0, help="memory of a GPU that --plan compares with")
    g = parser.add_argument_group("audit and log")
    g.add_argument("--skip-audit", action="store_true", help="start stage 5 whatever the reward density")
    g.add_argument("--audit-problems", type=int, default=64, help="problems of the forward-only audit")
    g.add_argument("--save-every", type=int, default=20, metavar="STEPS", help="steps between checkpoints")
    g.add_argument("--show-every", type=int, default=10, metavar="STEPS", help="print a whole tuple; 0: never")
    g.add_argument("--use-every", type=int, default=10, metavar="STEPS", help="measure strategy use; 0: never")
    g.add_argument("--wandb", metavar="PROJECT", help="log there as well (needs wandb)")
    args = parser.parse_args(argv)
    args.advantage = args.advantage or METHODS[args.policy][0]
    return args


def check(args: argparse.Namespace) -> None:
    """Flags that contradict each other or make no sense: one line each."""
    if args.advantage not in METHODS[args.policy]:
        raise ValueError(f"--advantage {args.advantage} does not fit --policy {args.policy}: take "
                         f"{' or '.join(METHODS[args.policy])}")
    if args.stage == "warmup" and args.policy != "tuple":
        raise ValueError(f"--stage warmup trains a planner, and --policy {args.policy} has none: leave --stage out")
    for flag in ("num_strategies", "num_tuples", "num_attempts", "problems_per_step", "updates_per_rollout", "max_plan_tokens",
                 "max_solve_tokens", "slots", "workers", "steps", "token_budget", "save_every", "plateau", "audit_problems"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be 1 or more, not {value}")
    for flag in ("lr", "gate_lr", "lr_warmup", "weight_decay", "clip", "beta", "max_grad_norm", "solver_weight", "tau", "keep",
                 "refresh_every", "judge_every", "show_every", "use_every"):
        value = getattr(args, flag)
        if value is not None and not value >= 0:
            raise ValueError(f"--{flag.replace('_', '-')} must be 0 or more, not {value}")
    if args.num_strategies > len(prompts.LABELS):
        raise ValueError(f"--num-strategies {args.num_strategies}: a plan has labels for at most {len(prompts.LABELS)}")
    if args.temperature <= 0:
        raise ValueError(f"--temperature must be above 0 to train on samples, not {args.temperature}")
    if args.refresh_every and not args.judge:
        raise ValueError("--refresh-every needs a --judge that labels the fresh plans, e.g. --judge miniature.world:judge")


def memory_plan(args: argparse.Namespace) -> str:
    """--plan: what each rank would hold, before anything is loaded."""
    skeleton = memory.skeleton(args.model, torch.float32 if args.dtype == "fp32" else torch.bfloat16, args.revision)
    skeleton.checkpointing = args.checkpointing
    return memory.report(memory.plan(skeleton, world=int(os.environ.get("WORLD_SIZE", 1)), prompt_tokens=args.prompt_tokens,
                                     new_tokens=args.max_solve_tokens, token_budget=args.token_budget, slots=args.slots,
                                     reference=args.beta > 0), int(args.gpu_gib * memory.GIB))


# ------------------------------------------------------------------------------------------------ one step, piece by piece

def problems_of_step(problems: list, step: int, n: int, seed: int) -> list:
    """The n problems of a step: passes over the pool, each in an order of its own, a last incomplete handful dropped, so that
    no problem is twice in one step. A function of its arguments alone: resuming needs no sampler state."""
    epoch, at = divmod(step, len(problems) // n)
    order = random.Random(f"{seed}:{epoch}").sample(range(len(problems)), len(problems))
    return [problems[i] for i in order[at * n:(at + 1) * n]]


class Judge:
    """Programs to verdicts while others still decode. Within a step equal programs for one problem are judged once."""

    def __init__(self, judge: verifier.Verifier, official_limits: bool, stop: Callable[[], bool]):
        self.verifier, self.official_limits, self.stop, self.seen = judge, official_limits, stop, {}

    def __call__(self, problem, program: str | None):
        key = (problem.id, program)
        if key not in self.seen:
            self.seen[key] = self.verifier.submit(verifier_item(problem, program, official_limits=self.official_limits))
        return self.seen[key]

    def settle(self, branches: list) -> float:
        """Wait for the verdicts of a rollout and put them in their places -> seconds waited. A SIGTERM ends the wait, too."""
        started = time.perf_counter()
        for branch in branches:
            while not futures.wait([branch.verdict], timeout=1.0).done:
                if self.stop():
                    raise rollout.Abandoned
            branch.verdict = branch.verdict.result()
        self.seen.clear()
        return time.perf_counter() - started


def all_branches(tuples: list[list[rollout.Tuple]]) -> list[rollout.Branch]:
    return [b for of_problem in tuples for t in of_problem for b in t.branches]


def apply_gate(gate, problems: list, tuples: list[list[rollout.Tuple]]) -> torch.Tensor:
    """p(Pass | x, S) and J of every tuple -> J (P, M). A plan that does not parse is not asked about: J = 0."""
    asked = [(problem, t) for problem, of_problem in zip(problems, tuples, strict=True) for t in of_problem if t.strategies]
    for (_, t), p in zip(asked, gate.p_pass([(problem, t.plan.text) for problem, t in asked]), strict=True):
        t.p_pass, t.valid = p, float(p >= gate.tau)
    return table([[t.valid or 0.0 for t in of_problem] for of_problem in tuples])


def verdicts(tuples: list[list[rollout.Tuple]], k: int) -> torch.Tensor:
    """r (P, M, K), Eq. 8's r_i; 0 for the branches that a plan without strategies does not have."""
    return table([[[float(b.verdict.passed) for b in t.branches] or [0.0] * k for t in of_problem] for of_problem in tuples], k)


def table(values: list, *inner: int) -> torch.Tensor:
    """Nested lists (P, M, *inner) as float64; a rank without problems in a step has P = 0 and still takes part."""
    return torch.tensor(values, dtype=torch.float64) if values else torch.zeros(0, 1, *inner, dtype=torch.float64)


def tuple_rows(tuples: list[list[rollout.Tuple]], a: torch.Tensor | None, A: torch.Tensor, weight: float) -> list[grpo.Row]:
    """Eq. 13's rows: planner tokens with A (P, M), solver tokens with a (P, M, K), or none of the latter (a=None)."""
    rows = []
    for p, of_problem in enumerate(tuples):
        for m, t in enumerate(of_problem):
            rows.append(grpo.Row(t.prompt, t.plan.ids, 0, A[p, m].item(), weight, "plan", t.plan.logprobs))
            if a is not None:
                rows += [branch_row(b, a[p, m, i].item(), weight) for i, b in enumerate(t.branches)]
    return rows


def branch_row(b: rollout.Branch, advantage: float, weight: float) -> grpo.Row:
    tail = b.prompt[b.shared:]
    return grpo.Row(b.prompt[:b.shared], tail + b.sample.ids, len(tail), advantage, weight, "solve", b.sample.logprobs) \
        if b.shared < len(b.prompt) else grpo.Row(b.prompt, b.sample.ids, 0, advantage, weight, "solve", b.sample.logprobs)


@torch.no_grad()
def cross_scores(sampler, prompts_of: list[list[int]], replies: list[list[int]], temperature: float, vocab: int) -> torch.Tensor:
    """log p(reply token | prompt z, the tokens before) for every reply under every prompt -> (replies, prompts, T), 0 behind a
    reply's end. On the sampler, a whole copy on every rank, so ranks need not agree on how often they call it."""
    width = max(map(len, replies))
    scores = torch.zeros(len(replies), len(prompts_of), width, dtype=torch.float64)
    device = next(sampler.parameters()).device
    for z, prompt in enumerate(prompts_of):
        rows = [grpo.Row(prompt, ids, 0, 0.0, 0.0, "solve") for ids in replies]
        flat = grpo.row_logprobs(sampler, grpo.collate(rows, device), temperature, vocab).double().cpu()
        for i, part in enumerate(flat.split([len(ids) for ids in replies])):
            scores[i, z, :len(part)] = part
    return scores


def information(sampler, prompts_of: list[list[int]], replies: list[list[int]], temperature: float, vocab: int,
                aggregate: str) -> torch.Tensor:
    """How much each reply tells about which prompt it answers (reply i answers prompt i): advantages.skill_information, (replies,)."""
    scores = cross_scores(sampler, prompts_of, replies, temperature, vocab)
    mask = torch.tensor([[float(t < len(ids)) for t in range(scores.shape[-1])] for ids in replies])
    return advantages.skill_information(scores, torch.arange(len(replies)), mask, aggregate)


def strategy_use(sampler, tuples: list[list[rollout.Tuple]], temperature: float, vocab: int) -> list[float]:
    """mean_i log p(y_i | x, s_i) - log mean_j p(y_i | x, s_j), for each problem's first parsed tuple: 0 when the solver does not
    listen to its strategy, log K when the program gives it away."""
    found = []
    for of_problem in tuples:
        t = next((t for t in of_problem if t.branches), None)
        if t:
            found.append(information(sampler, [b.prompt for b in t.branches], [b.sample.ids for b in t.branches], temperature,
                                     vocab, "sequence").mean().item())
    return found


# ------------------------------------------------------------------------------------------------ records and diagnostics

def branch_record(b: rollout.Branch, advantage: float) -> dict:
    return {"strategy": b.strategy, "reply": b.sample.text, "tokens": len(b.sample.ids), "finish": b.sample.finish,
            "status": b.verdict.status, "tests_passed": b.verdict.tests_passed, "r": float(b.verdict.passed), "a": advantage}


def open_judge(args, folder: Path) -> tuple[Callable, int]:
    """--judge -> a function from (problem, plan) pairs to their faults, None where a model gave no usable answer; and the number
    of steps between those that are judged for the log. What a model answers is kept in `folder`: a run that goes on from a
    checkpoint gets the same labels and pays for none of them twice."""
    source = teacher.open_source(args.judge, "judge", teacher.Cache(folder), k=args.num_strategies, temperature=0.0,
                                 device=args.device)

    def judge_plans(pairs: list) -> list[list[str] | None]:
        with errors.explain():                             # nobody there, a wrong key: one line
            return teacher.judge_plans(source, pairs, args.num_strategies)

    asked = isinstance(source, teacher.Model)
    return judge_plans, args.judge_every if args.judge_every is not None else 10 if asked else 1


def tuple_records(step: int, problems: list, tuples, R_out, R_plan, a, A, judge_plans: Callable | None) -> list[dict]:
    """What samples.jsonl holds of a step, a line a tuple; every diagnostic is a function of these."""
    records = []
    plans = [(problem, prompts.cut_thought(t.plan.text)) for problem, of in zip(problems, tuples, strict=True) for t in of]
    faults = iter(judge_plans(plans) if judge_plans else [None] * len(plans))
    for p, (problem, of_problem) in enumerate(zip(problems, tuples, strict=True)):
        for m, t in enumerate(of_problem):
            records.append({
                "step": step, "problem_id": problem.id, "tuple": m, "plan": t.plan.text, "plan_tokens": len(t.plan.ids),
                "plan_finish": t.plan.finish, "strategies": t.strategies, "error": t.error, "p_pass": t.p_pass,
                "J": t.valid or 0.0, "R_out": None if R_out is None else R_out[p, m].item(), "R_plan": R_plan[p, m].item(),
                "A": A[p, m].item(),
                "duplicate_literal": bool(t.strategies) and len({prompts.normalise(s) for s in t.strategies}) < len(t.strategies),
                "faults": next(faults),
                "branches": [branch_record(b, a[p, m, i].item()) for i, b in enumerate(t.branches)]})
    return records


def mean(values: list) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def tuple_diagnostics(records: list[dict], k: int) -> dict:
    """The panel of Appendix O and more; the README's glossary has each one's formula and healthy range."""
    groups: dict[str, list[dict]] = {}
    for t in records:
        groups.setdefault(t["problem_id"], []).append(t)
    solved = [t for t in records if t["R_out"] is not None]
    out = {
        "parsed": mean(t["strategies"] is not None for t in records),
        "J": mean(t["J"] for t in records),
        "R_plan": mean(t["R_plan"] for t in records),
        "sparsity": mean(t["R_plan"] == 0 for t in records),
        "zero_spread_plan": mean(len({t["R_plan"] for t in g}) == 1 for g in groups.values()),
        "duplicate_literal": mean(t["duplicate_literal"] for t in records),
        "plan_tokens": mean(t["plan_tokens"] for t in records),
        "plan_cut": mean(t["plan_finish"] == "length" for t in records),
    }
    if solved:
        branches = [b for t in solved for b in t["branches"]]
        out |= {
            "R_out": mean(t["R_out"] for t in solved),
            "solved_given_valid": mean(t["R_out"] for t in solved if t["J"]),
            "pass_rate": sum(b["r"] for b in branches) / (k * len(solved)),
            "zero_spread_solve": mean(len({b["r"] for b in t["branches"]}) == 1 for t in solved if t["branches"]),
            "solve_tokens": mean(b["tokens"] for b in branches), "solve_cut": mean(b["finish"] == "length" for b in branches),
            **{f"status/{s}": mean(b["status"] == s for b in branches) for s in sorted({b["status"] for b in branches})},
        }
    judged = [t["faults"] for t in records if t["faults"] is not None]
    if judged:
        out["duplicate_judged"] = mean("duplicate" in faults for faults in judged)
        out["valid_judged"] = mean(not faults for faults in judged)
    return out


def attempt_diagnostics(records: list[dict]) -> dict:
    """The same for rivals, whose record is a problem with its N attempts."""
    attempts = [b for p in records for b in p["branches"]]
    out = {"R_out": mean(max(b["r"] for b in p["branches"]) for p in records), "pass_rate": mean(b["r"] for b in attempts),
           "zero_spread_solve": mean(len({b["a"] for b in p["branches"]}) == 1 for p in records),
           "advantage_nonzero": mean(any(b["a"] for b in p["branches"]) for p in records),
           "solve_tokens": mean(b["tokens"] for b in attempts), "solve_cut": mean(b["finish"] == "length" for b in attempts),
           **{f"status/{s}": mean(b["status"] == s for b in attempts) for s in sorted({b["status"] for b in attempts})}}
    if records[0].get("r_mi"):
        mi = [x for p in records for x in p["r_mi"]]
        total = [b["r"] for b in attempts]
        out |= {"r_correct": mean(total), "r_mi": mean(mi),
                "reward_variance": mean(torch.tensor(p["reward"]).var(unbiased=False).item() for p in records)}
    return out


def line(step: int, steps: int, m: dict) -> str:
    """The one line a step that people read."""
    def show(name: str, key: str, form: str = ".3f") -> str:
        return f"{name} {m[key]:{form}}" if key in m and not math.isnan(m[key]) else ""
    parts = [show("R_out", "R_out"), show("J", "J"), show("R_plan", "R_plan"), show("pass", "pass_rate"),
             show("dup", "duplicate_judged" if "duplicate_judged" in m else "duplicate_literal"),
             show("kl", "plan/kl" if "plan/kl" in m else "solve/kl", ".4f"), show("|g|", "grad_norm", ".2f"),
             show("use", "strategy_use", ".2f")]
    seconds = f"{m['seconds']:.1f} s (sample {m['seconds_sampling']:.1f}, verify {m['seconds_verifying']:.1f}, " \
              f"update {m['seconds_update']:.1f})"
    return f"step {step + 1}/{steps}  " + "  ".join(p for p in parts if p) + "  " + seconds + \
        ("  SKIPPED: non-finite" if m.get("skipped") else "")


def sampling_progress() -> Callable[[rollout.Engine], None]:
    """A line now and then in a long rollout, for the engine to call: every progress.PROGRESS_SECONDS of sampling."""
    last = 0.0

    def show(engine: rollout.Engine) -> None:
        nonlocal last
        s = engine.stats
        last = last if s.seconds >= last else 0.0           # another rollout has begun
        if s.seconds - last >= progress.PROGRESS_SECONDS:
            last = s.seconds
            rate = s.live_row_steps / s.seconds
            print(f"sampling: {s.rows} rows done, {len(engine.owner)} decode, {len(engine.queue)} wait; {rate:,.0f} tokens/s, "
                  f"{s.idle_share:.0%} of the slots idle", file=sys.stderr, flush=True)
    return show


def show_tuple(record: dict) -> str:
    """One whole sample, for the eye: numbers hide what text shows."""
    if "plan" not in record:
        b = record["branches"][0]
        return f"--- {record['problem_id']}, an attempt: {b['status']}\n{b['reply']}\n---"
    lines = [f"--- {record['problem_id']} tuple {record['tuple']}: J {record['J']:.0f}  R_out {record['R_out']}  "
             f"A {record['A']:+.2f}", record["plan"]]
    lines += [f"[{label}] {b['status']}, a {b['a']:+.2f}\n{b['reply']}"
              for label, b in zip(prompts.LABELS, record["branches"], strict=False)]
    return "\n".join([*lines, "---"])


def unless_stopped(ranks, collect: Callable):
    """collect(), or rollout.Abandoned on all ranks if a SIGTERM ended it on one: what follows is collective."""
    try:
        found = collect()
    except rollout.Abandoned:
        found = None
    if ranks.any(found is None):
        raise rollout.Abandoned
    return found


# ------------------------------------------------------------------------------------------------ stage 4

def audit(engine, problems: list, gate, judge: Judge, args, ranks) -> dict:
    """Stage 4, forward only: frozen-solver pass@K of the planner, and the share of rollouts with R_plan > 0. No update."""
    chosen = problems_of_step(problems, 0, min(args.audit_problems, len(problems)), args.seed)[ranks.rank::ranks.world]

    def collect() -> list:
        tuples = rollout.sample_tuples(engine, chosen, 1, args.num_strategies, (args.seed, "audit"), args.max_plan_tokens,
                                       args.max_solve_tokens, judge, args.with_think)
        judge.settle(all_branches(tuples))
        return tuples
    tuples = unless_stopped(ranks, collect)
    valid = apply_gate(gate, chosen, tuples)
    outcome = reward.outcome_reward(verdicts(tuples, args.num_strategies))
    sums = grpo.all_reduce(torch.tensor([outcome.sum(), valid.sum(), (valid * outcome).sum(), outcome.numel(),
                                         sum(t.strategies is not None for of in tuples for t in of)],
                                        dtype=torch.float64, device=ranks.device)).tolist()
    n = sums[3]
    return {"problems": int(n), "pass_at_k": sums[0] / n, "valid": sums[1] / n, "R_plan_density": sums[2] / n,
            "parsed": sums[4] / n}


def refusal(found: dict) -> str | None:
    """Why stage 5 may not start, and where to go back to; None if it may."""
    if not found["parsed"]:
        return "no sampled plan parses: return to stage 1 (train_sft.py)"
    if not found["pass_at_k"]:
        return "frozen-solver pass@K is 0: return to stage 1 (train_sft.py), or take a model that solves some of these problems"
    if not found["valid"]:
        return "the gate accepts no plan: return to stage 2 (train_rm.py), or to stage 1 if the plans are bad"
    if not found["R_plan_density"]:
        return "R_plan is 0 in every rollout, no accepted tuple solves: return to stage 2 (train_rm.py)"
    return None


def refresh_gate(gate: gates.Gate, path: str, engine, problems: list, judge_plans: Callable, step: int, folder: Path, args,
                 ranks) -> tuple[gates.Gate, str, dict]:
    """Appendix D's refresh between phases -> the gate in force from now on, its folder, what to log.

    Fresh plans from the joint pool are labelled by the judge and added to the labels so far, the whole is rebalanced by
    prompt and label, the gate trains on from its latest checkpoint, and the result must pass the same acceptance at the same
    tau on held-out problems. One that fails is dropped and the old gate stays.
    """
    # a stream of its own: 64 problems that no training step decides on
    chosen = problems_of_step(problems, step, min(64, len(problems)), args.seed + 1)[ranks.rank::ranks.world]
    key = args.seed, "refresh", step
    drawn = unless_stopped(ranks, lambda: rollout.sample_tuples(engine, chosen, 2, args.num_strategies, key,
                                                                args.max_plan_tokens, 1, think=args.with_think))
    plans = [(problem, prompts.cut_thought(t.plan.text)) for problem, of in zip(chosen, drawn, strict=True) for t in of]
    fresh = [gates.Label(problem.id, problem.statement, plan, int(not faults), faults[0] if faults else gates.POSITIVE)
             for (problem, plan), faults in zip(plans, judge_plans(plans), strict=True) if faults is not None]
    gathered = ranks.gather(fresh)
    pools = folder / "gate_pool"                           # a file for each refresh, so that one done twice adds nothing twice
    pool, target = pools / f"{step:06d}.jsonl", folder / f"gate_{step:06d}"
    if ranks.main:
        earlier = sorted(p for p in pools.glob("*.jsonl") if p.name < pool.name)
        known = gates.load_labels(str(earlier[-1] if earlier else args.labels or Path(path) / "labels_train.jsonl"))
        pools.mkdir(exist_ok=True)
        aside = pool.with_suffix(".partial")
        gates.save_labels(str(aside), known + [x for part in gathered for x in part])
        os.replace(aside, pool)
    ranks.barrier()
    train = gates.balance(gates.load_labels(str(pool)), args.seed)
    held_out = gates.load_labels(str(Path(path) / "labels_val.jsonl"))      # those that stage 2 accepted the gate on
    trained = grpo.shard(model.load(path, torch.float32), torch.float32, ranks.device)
    optimizer = grpo.make_optimizer(trained, args.gate_lr)
    for _ in gates.fit(trained, gate.tokenizer, train, optimizer, k=gate.k, epochs=1, lr=args.gate_lr, seed=args.seed + step):
        pass
    whole = model.load(path, torch.float32, ranks.device).requires_grad_(False)
    grpo.refresh(whole, trained)
    candidate = gates.Gate(whole.eval(), gate.tokenizer, gate.tau, gate.k, gate.words)
    found = gates.acceptance(candidate.p_pass([(x, x.plan) for x in held_out]), [x.label for x in held_out], gate.tau)
    if found["accepted"]:
        if ranks.main:
            with files.published(target) as aside:
                model.save(whole, aside, gate.tokenizer)
                gates.write_card(str(aside), candidate, found, base=path)
                for part, labels in (("train", train), ("val", held_out)):
                    gates.save_labels(str(aside / f"labels_{part}.jsonl"), labels)
        ranks.barrier()
        gate, path = gates.Gate.load(str(target), ranks.device, next(gate.module.parameters()).dtype), str(target)
    return gate, path, {"step": step, "gate": path, "fresh": sum(map(len, gathered)), "labels": len(train) + len(held_out), **found}


# ------------------------------------------------------------------------------------------------ main

def stage_name(args) -> str:
    """The stage's folder in the run; an ablation has its own, so that earlier stages are shared."""
    if args.stage == "warmup":
        return "warmup"
    if args.policy != "tuple":
        return args.advantage
    parts = ["cppo"]
    parts += [args.reward] if args.reward != "both" else []
    parts += [f"m{args.num_tuples}"] if args.num_tuples != 8 else []
    parts += [f"sw{args.solver_weight:g}"] if args.solver_weight != 1 else []
    return "-".join(parts)


def main(args: argparse.Namespace) -> int:
    # ---- setup
    with errors.explain():
        check(args)
        if args.plan:
            if os.environ.get("RANK", "0") == "0":
                print(memory_plan(args))
            return 0
        if args.prompts:
            prompts.load(args.prompts)
        world = int(os.environ.get("WORLD_SIZE", 1))
        args.workers = args.workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        args.steps = args.steps or 100
        k, tuples_mode = args.num_strategies, args.policy == "tuple"
        attempts = args.num_attempts or ATTEMPTS.get(args.policy, 0)
        a_problem = args.num_tuples * k if tuples_mode else attempts                # solver attempts
        args.problems_per_step = args.problems_per_step or (8 if tuples_mode else max(1, 8 * args.num_tuples * k // attempts))
        worst = (1 + verifier.PATIENCE) * verifier.PROGRAM_SECONDS + verifier.TEST_SECONDS      # of one program
        timeout = lib_run.collective_timeout(-(-args.problems_per_step // world) * a_problem, worst, args.workers)
        ranks = lib_run.setup(args.seed, args.device, args.threads, timeout)
        say = print if ranks.main else (lambda *_, **__: None)

        # ---- problems
        if not args.problems:
            pool = "warmup" if args.stage == "warmup" else "joint"
            args.problems = str(corpora.default_pool(pool)) if ranks.main else ""     # built on first use, by one rank
            ranks.barrier()
            args.problems = args.problems or str(corpora.default_pool(pool))
        problems = load_problems(args.problems)
        doubt = exposure.audit_pool(args.problems)             # raises if the pool holds an evaluation problem
        if doubt:
            say(f"WARNING: {doubt}", file=sys.stderr)

        # ---- where the stage starts; independent policies start from the base model, for stage 1 trains nothing they use
        run = lib_run.run_folder(args.model, args.run, args.seed)
        folder = run / stage_name(args)
        if (folder / "final" / "config.json").exists() and not args.fresh:
            say(f"{folder / 'final'} is there already (--fresh does the stage again)")
            return 0
        earlier = ("sft",) if args.stage == "warmup" else ("warmup", "sft") if tuples_mode else ()
        start, said = lib_run.stage_model(run, earlier, args.model) if earlier else (args.model, f"starting from {args.model}")
        say(said)

    # ---- models
    with errors.explain():
        compute = {"bf16": torch.bfloat16, "fp32": torch.float32,
                   "auto": torch.bfloat16 if ranks.device.type == "cuda" else torch.float32}[args.dtype]
        sampling = {"bf16": torch.bfloat16, "fp32": torch.float32, "auto": compute}[args.sampler_dtype]
        revision = args.revision if start == args.model else None
        start = str(model.find(start, revision))           # of a hub id the folder it lies in: what config.json hashes
        policy = model.load(start, torch.float32, ranks.device)
        tokenizer = AutoTokenizer.from_pretrained(start)
        if args.with_think:
            prompts.thought_mark(tokenizer)                # raises where there is no thinking
        model.check_fits(policy, tokenizer)
        lengths = [len(prompts.encode(tokenizer, prompts.plan(p, k) if tuples_mode else prompts.direct(p), args.with_think))
                   for p in problems]
        context = getattr(policy.config, "max_position_embeddings", None) or math.inf
        room = context - args.max_plan_tokens - args.max_solve_tokens
        if max(lengths) > room:
            too_long = [p.id for p, n in zip(problems, lengths, strict=True) if n > room]
            say(f"WARNING: {len(too_long)} of {len(problems)} problems are left out, {too_long[0]} the first: in a context of "
                f"{context} tokens they leave no room for a plan of {args.max_plan_tokens} and a program of "
                f"{args.max_solve_tokens}", file=sys.stderr)
            problems = [p for p, n in zip(problems, lengths, strict=True) if n <= room]
        if len(problems) < args.problems_per_step:
            raise ValueError(f"{args.problems} holds {len(problems)} problems that can be used, fewer than --problems-per-step "
                             f"{args.problems_per_step}")
        policy.checkpointing = args.checkpointing
        for embeddings in policy.per_layer_tables:         # Gemma's: half of the model, left as it is
            embeddings.requires_grad_(False)
        policy = grpo.shard(policy, compute, ranks.device)
        reference = None
        if args.beta:
            reference = model.load(start, compute).requires_grad_(False)
            reference = grpo.shard(reference, compute, ranks.device)
        sampler = model.load(start, sampling, ranks.device).requires_grad_(False)
        optimizer = grpo.make_optimizer(policy, args.lr, args.weight_decay)
        vocab = len(tokenizer)
        gate = gate_path = None
        if tuples_mode:
            own = run / "gate" / "final"
            gate_path = args.gate or (str(own) if (own / "gate.json").exists() else "rule")
            gate = gates.RuleGate(k) if gate_path == "rule" else gates.Gate.load(gate_path, ranks.device, compute)
            if gate_path == "rule" and not args.gate:
                say(f"WARNING: {own} is not there; the RULE GATE stands in for a trained one (train_rm.py makes one)")
            if args.tau is not None:
                gate.tau = args.tau
            if args.refresh_every and gate_path == "rule":
                raise ValueError("--refresh-every needs a trained gate to go on from, and this run has the rule gate: run "
                                 "train_rm.py first")

        judge_plans, judge_every = open_judge(args, run / "answers") if args.judge else (None, 0)

    # ---- where a killed run left off
    if args.fresh and ranks.main and folder.exists():      # only now: a mistake in the flags has cost nothing
        files.remove(folder)
    ranks.barrier()
    newest = checkpoints.newest_checkpoint(folder)
    state = {"step": 0, "logs": {}, "accepted": [], "skipped": 0, "gate": gate_path, "refreshed": 0}
    if newest:
        state = checkpoints.load_checkpoint(newest, policy, optimizer)
        say(f"resuming after step {state['step']} from {newest}")
        if state["gate"] != gate_path:
            gate = gates.Gate.load(state["gate"], ranks.device, compute)       # a refreshed one
    grpo.refresh(sampler, policy)
    log = lib_run.Log(folder, state["logs"], ranks, args.wandb)

    with errors.explain():
        checker = verifier.Verifier(args.workers, mode=args.verifier_mode)
    if ranks.main:
        used = {"start": start} | ({"gate": gate_path} if gate_path not in (None, "rule") else {})
        lib_run.write_config(folder, args, {"stage": args.stage, "gate": gate_path, "pool": doubt,
                                           "verifier": {"tier": checker.tier, **checker.report}}, used)
    stop = lib_run.stop_flag()
    # -- the worst micro-batch goes through before step 0; on a GPU the budget may shrink, once
    with errors.explain():
        engine = rollout.Engine(sampler, tokenizer, args.slots, args.temperature, stop_flag=stop,
                                progress=sampling_progress() if ranks.main else None)
        args.token_budget, said = memory.probe(policy, reference, prompt_tokens=min(max(lengths), room),
                                               new_tokens=args.max_solve_tokens, token_budget=args.token_budget)
        if said:
            say(f"WARNING: {said}", file=sys.stderr)

    def save() -> None:
        checkpoints.save_checkpoint(folder, state["step"], policy, optimizer, {**state, "logs": log.offsets()}, args.keep)

    with checker:
        judge = Judge(checker, args.official_limits, stop)

        # ---- stage 4: the audit
        if args.stage == "joint" and tuples_mode and not args.skip_audit and not newest:
            try:
                found = audit(engine, problems, gate, judge, args, ranks)
            except rollout.Abandoned:
                say("stopped in the audit; the same command starts it again")
                return 143
            except verifier.SandboxError as error:
                print(f"error: {error}; the same command starts again", file=sys.stderr)
                return 1
            say("audit: " + "  ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                                      for name, value in found.items()))
            log.write("audit", found)
            if refusal(found):
                if ranks.main:
                    print(f"audit failed: {refusal(found)} (--skip-audit goes on regardless)", file=sys.stderr)
                return 3

        # ---- the loop
        warm = args.stage == "warmup"
        finished, stopped = state["step"] >= args.steps, False
        while not finished and not stopped:
            step = state["step"]
            # -- the gate's next phase
            if args.refresh_every and step and step % args.refresh_every == 0 and state["refreshed"] != step:
                try:
                    gate, state["gate"], found = refresh_gate(gate, state["gate"], engine, problems, judge_plans, step, folder,
                                                              args, ranks)
                except rollout.Abandoned:
                    stopped = True
                    break
                state["refreshed"] = step
                log.write("gate", found)
                say(f"gate refresh: AUC {found['auc']:.3f}, " + (f"accepted, now {state['gate']}" if found["accepted"] else
                    f"DROPPED ({'; '.join(found['failed'])}), {state['gate']} stays"))

            started = time.perf_counter()
            batch = problems_of_step(problems, step, args.problems_per_step, args.seed)[ranks.rank::ranks.world]
            key = (args.seed, args.stage, step)
            engine.stats = rollout.Stats()
            use: list[float] = []
            try:
                if tuples_mode:
                    # -- tuples, then branches (Algorithm 1, lines 2-5); the warm-up needs no branches
                    tuples = rollout.sample_tuples(engine, batch, args.num_tuples, k, key, args.max_plan_tokens,
                                                   args.max_solve_tokens, None if warm else judge, args.with_think)
                    waited = judge.settle(all_branches(tuples))
                    valid = apply_gate(gate, batch, tuples)                                           # J (P, M)
                    r = verdicts(tuples, k)                                                           # (P, M, K)
                    outcome = None if warm else reward.outcome_reward(r)                              # R_out (P, M)
                    planned = reward.planner_reward(valid, outcome, "gate" if warm else args.reward)  # R_plan (P, M)
                    # -- two kinds of credit (lines 6-7)
                    a = None if warm else args.solver_weight * grpo.within_tuple_advantages(r)        # (P, M, K)
                    A = grpo.across_tuple_advantages(planned)                                         # (P, M)
                    rows = tuple_rows(tuples, a, A, 1 / (args.num_tuples * args.problems_per_step))
                    if args.use_every and step % args.use_every == 0 and not warm:
                        use = strategy_use(sampler, tuples, args.temperature, vocab)
                    records = tuple_records(step + 1, batch, tuples, outcome, planned, a, A,
                                            judge_plans if judge_every and step % judge_every == 0 else None)
                else:
                    rows, records, waited = rival_step(engine, batch, key, judge, args, attempts, sampler, vocab, step + 1)
            except rollout.Abandoned:
                rows = None
            except verifier.SandboxError as error:         # a fault of the machinery is no verdict, so there is no reward
                print(f"error: {error}; the same command goes on from the newest checkpoint", file=sys.stderr)
                return 1
            stopped = ranks.any(rows is None)              # all ranks or none: the update is collective
            if stopped:
                break

            # -- the update (line 8): one clipped, KL-regularised loss over both regions
            sampled, lr = time.perf_counter(), lib_run.warmup(args.lr, step, args.lr_warmup)
            with errors.explain():                         # out of memory in spite of the probe: one line with the flag
                updated = grpo.update(policy, reference, optimizer, rows, temperature=args.temperature, clip=args.clip,
                                      beta=args.beta, vocab=vocab, token_budget=args.token_budget,
                                      updates=args.updates_per_rollout, max_grad_norm=args.max_grad_norm, lr=lr,
                                      # every skill's prompt is its own, from the first words on: one row shares nothing
                                      shared=sampler.shares_prompts and args.policy != "skills", want_step_norm=True)
            grpo.refresh(sampler, policy)
            done = time.perf_counter()
            state["step"] += 1
            state["skipped"] = state["skipped"] + 1 if updated["skipped"] else 0

            # -- what people read and what programs read
            parts = ranks.gather({"records": records, "use": use, "stats": engine.stats, "waited": waited})
            if ranks.main:
                records = sorted((t for part in parts for t in part["records"]), key=lambda t: (t["problem_id"], t.get("tuple", 0)))
                found = tuple_diagnostics(records, k) if tuples_mode else attempt_diagnostics(records)
                use = [u for part in parts for u in part["use"]]
                stats = [part["stats"] for part in parts]
                metrics = {"step": step + 1, **found, **({"strategy_use": mean(use)} if use else {}), **updated, "lr": lr,
                           "tokens_sampled": sum(s.tokens for s in stats), "idle_share": mean(s.idle_share for s in stats),
                           "tokens_per_second_sampling": sum(s.tokens_per_second for s in stats),
                           "tokens_per_second_training": updated["tokens"] / (done - sampled),
                           "seconds": done - started, "seconds_sampling": max(s.seconds for s in stats),
                           "seconds_verifying": max(part["waited"] for part in parts), "seconds_update": done - sampled}
                log.write("metrics", metrics)
                for record in records:
                    log.write("samples", record)
                say(line(step, args.steps, metrics), flush=True)
                if args.show_every and (step + 1) % args.show_every == 0:
                    say(show_tuple(records[step % len(records)]), flush=True)
                if tuples_mode:
                    state["accepted"].append(found["J"])
            if state["skipped"] >= MAX_SKIPPED:
                path = folder / f"rows_rank{ranks.rank}.json"
                files.write_file(path, json.dumps([vars(row) for row in rows]))
                print(f"error: {MAX_SKIPPED} steps in a row had a non-finite loss or gradient; their rows are in {path}",
                      file=sys.stderr)
                return 1

            # -- between steps: a checkpoint, the end
            finished = state["step"] >= args.steps or ranks.any(warm and ranks.main and plateau(state["accepted"], args.plateau))
            stopped = ranks.any(stop())
            if finished or stopped or state["step"] % args.save_every == 0:
                save()

    # ---- the end of the stage
    if stopped and not finished:
        newest = checkpoints.newest_checkpoint(folder)
        if not newest or not newest.name.endswith(f"{state['step']:06d}"):
            save()                                         # the rollout that was under way is abandoned
        say(f"stopped after step {state['step']}; the same command goes on from there")
        return 143
    with files.published(folder / "final") if ranks.main else nullcontext(folder) as aside:
        model.save(policy, aside, tokenizer)               # fp32: every rank brings its shards, the main one writes
    ranks.barrier()
    say(f"{folder / 'final'} written after {state['step']} steps")
    return 0


def plateau(accepted: list[float], window: int) -> bool:
    """Whether the mean of the last `window` values is not above that of the `window` before by one standard error."""
    if len(accepted) < 2 * window:
        return False
    last, before = (torch.tensor(accepted[a:b], dtype=torch.float64) for a, b in ((-window, None), (-2 * window, -window)))
    error = ((last.var(unbiased=False) + before.var(unbiased=False)) / window).sqrt()
    return bool(last.mean() - before.mean() <= error)


def rival_step(engine, batch, key, judge, args, n, sampler, vocab, step) -> tuple[list, list, float]:
    """One rollout of an independent policy (Eq. 2) or of skills -> rows, records, seconds waited for verdicts."""
    skills = args.policy == "skills"
    texts = [[prompts.skill(p, z) for z in range(1, n + 1)] if skills else [prompts.direct(p)] * n for p in batch]
    drawn = rollout.sample_attempts(engine, batch, texts, key, args.max_solve_tokens, judge)
    waited = judge.settle([b for of_problem in drawn for b in of_problem])
    if not batch:
        return [], [], waited
    r = table([[float(b.verdict.passed) for b in of_problem] for of_problem in drawn])
    total, mi = r, None
    if skills:
        mi = torch.stack([information(sampler, [b.prompt for b in of], [b.sample.ids for b in of], args.temperature, vocab,
                                      args.aggregate) for of in drawn])
        total = r + args.alpha_mi * mi
    credits = advantages.set_advantages("grpo" if skills else args.advantage, total, args.num_strategies)
    # PKPO's transform holds its 1/N already; the others average over the attempts
    weight = 1 / ((1 if args.advantage == "pkpo" else n) * args.problems_per_step)
    rows = [branch_row(b, credits[p, i].item(), weight) for p, of in enumerate(drawn) for i, b in enumerate(of)]
    records = [{"step": step, "problem_id": problem.id, "r_mi": mi[p].tolist() if skills else None, "reward": total[p].tolist(),
                "branches": [branch_record(b, credits[p, i].item()) for i, b in enumerate(of)]}
               for p, (problem, of) in enumerate(zip(batch, drawn, strict=True))]
    return rows, records, waited


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
