"""Stages 3, 4 and 5: planner warm-up, the reward-density audit, the joint update (Algorithm 1).

    python train_cppo.py --model FOLDER --problems FILE --stage warmup      # stage 3: R = J
    torchrun --nproc_per_node=8 train_cppo.py --model Qwen/Qwen3.5-2B       # stage 4, then stage 5

The loop in `train` is the paper's Algorithm 1. One step: the planner samples M tuples per problem,
the solver one program per strategy, the verifier runs the tests, the gate says which plans are
valid; then solver tokens are credited within a tuple, planner tokens across tuples, and both go
through one clipped, KL-regularised update.

Where this departs from the paper, or fills in what it leaves open (docs/paper_to_code.md has all):
 1. The paper gives no learning rate, temperature, KL weight or lengths for CPPO; the defaults are
    its PKPO settings.
 2. A tuple with J = 0 is still solved, verified and trained: Eq. 11 does not know J, and the mean
    of Eq. 12 needs every tuple.
 3. A plan that does not parse has no branches, R_out = J = 0, and counts in the mean of Eq. 12.
 4. Without a trained gate the rule gate is used, with a warning.
 5. Warm-up stops when the accepted share has certainly gained less than 0.1 in the last 100 steps
    (lib/schedule.plateau), or at --steps.
 6. --solver-credit marginal and --planner-credit place are ours: Eq. 11 pays a branch for beating
    its siblings, which teaches the solver to stop listening (docs/credit.md).
 7. --solver-weight scales the solver's advantages (Eq. 11); at 0 solver rows keep their KL, which
    keeps the shared network solving: without it the planner's updates spoil the solver.

Shapes: P problems of this rank in the step, M tuples per problem, K strategies per tuple.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import gate as gates
import grpo
import prompts
import reward
import rollout
from lib import diagnostics, errors, flags, rl
from lib.dev import Dev, load_dev
from lib.errors import UserError
from lib.refresh import Judge, refresh_gate
from lib.run import Run, run_stage, stage_model
from lib.schedule import plateau
from lib.start import flags_of
from lib.verdicts import Submitter

AUDIT_PROBLEMS = 64         # stage 4 samples one tuple for each
USE_EVERY = 10              # steps between measurements of strategy use
WARMUP_STEPS = 400          # at most; the rule that ends it earlier needs 109
REFUSED = 3                 # exit status of an audit that refuses stage 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Stages 3, 4 and 5: warm-up, audit, joint CPPO.")
    flags.add_run_flags(parser)
    add = parser.add_argument_group("method").add_argument
    add("--stage", choices=("warmup", "joint"), default="joint",
        help="warmup: stage 3; joint: stages 4 and 5")
    add("--num-strategies", type=flags.count, default=4, metavar="K", help="strategies per tuple")
    add("--num-tuples", type=flags.count, default=8, metavar="M", help="tuples per problem")
    add("--problems-per-step", type=flags.count, default=8, metavar="P", help="over all ranks")
    add("--reward", choices=reward.PLANNER_REWARDS, default="both",
        help="what planner tokens are paid (Table 6)")
    add("--solver-credit", choices=("siblings", "marginal"), default="siblings",
        help="siblings: Eq. 11; marginal: what pass@K would lose without the branch")
    add("--planner-credit", choices=("tuple", "place"), default="tuple",
        help="tuple: Eq. 12; place: per strategy, against tuples that stood alike before it")
    add("--solver-weight", type=flags.weight, default=1.0,
        help="factor on the solver's advantages; 0: only its KL")
    add("--gate", metavar="FOLDER", help="by default the run's own; `rule`: the rule gate")
    add("--skip-audit", action="store_true", help="start stage 5 whatever the reward density")
    add("--judge", metavar="SPEC",
        help="names faults of plans for the log and labels plans at a refresh: rule, module:name, "
             "http://host/v1#model (key in JUDGE_API_KEY), a model's folder or hub id")
    add("--refresh-every", type=flags.steps_or_never, default=0, metavar="STEPS",
        help="steps between refreshes of the gate (Appendix D); 0: never")
    add("--variant", metavar="NAME",
        help="suffix of the stage's folder: gives a fork of this script a folder of its own")
    rl.add_rl_flags(parser)
    args = parser.parse_args(argv)
    if args.num_strategies > len(prompts.LABELS):
        parser.error(f"--num-strategies {args.num_strategies}: plans have at most "
                     f"{len(prompts.LABELS)} labels")
    if args.refresh_every and not args.judge:
        parser.error("--refresh-every needs a --judge that labels the fresh plans")
    if args.solver_credit == "marginal" and args.num_tuples == 1:
        parser.error("--solver-credit marginal compares tuples: --num-tuples 1 leaves nothing to "
                     "compare with")
    if args.planner_credit == "place" and args.stage == "warmup":
        parser.error("--planner-credit place needs branches, and --stage warmup has none")
    if args.resample_equal and args.stage == "warmup":
        parser.error("--resample-equal would hide from --stage warmup how many plans are accepted, "
                     "by which it ends")
    if args.stage == "warmup" and not args.epochs:
        args.steps = args.steps or WARMUP_STEPS
    rl.check_rl_flags(parser, args)
    return args


def stage_name(args: argparse.Namespace) -> str:
    """The stage's folder in the run. An ablation has its own, so that earlier stages are shared."""
    parts = ["warmup" if args.stage == "warmup" else "cppo"]
    if args.stage == "joint" and args.reward != "both":
        parts.append(args.reward)
    if args.stage == "joint" and args.num_tuples != 8:
        parts.append(f"m{args.num_tuples}")
    if args.stage == "joint" and args.solver_credit != "siblings":
        parts.append(args.solver_credit)
    if args.stage == "joint" and args.planner_credit != "tuple":
        parts.append(args.planner_credit)
    if args.stage == "joint" and args.solver_weight != 1:
        parts.append(f"sw{args.solver_weight:g}")
    if args.variant:
        parts.append(args.variant)
    return "-".join(parts)


# ----------------------------------------------------------------------------------------------
# One step: collect, credit, rows

@dataclass
class Batch:
    """What one step has collected on this rank."""
    problems: list
    tuples: list[list[rollout.Tuple]]   # P lists of M
    J: Tensor                           # (P, M) the gate's decisions, 0 for plans that do not parse
    r: Tensor                           # (P, M, K) verdicts, NaN where a branch does not exist
    R_out: Tensor                       # (P, M)
    R_plan: Tensor                      # (P, M)
    waited: float                       # seconds for verdicts after the last token


def collect(engine: rollout.Engine, gate, submitter: Submitter, problems: list, key: tuple,
            args: argparse.Namespace) -> Batch:
    """Algorithm 1, lines 2-5, for the problems of this rank. The warm-up samples plans alone."""
    warmup = args.stage == "warmup"
    tuples = rollout.sample_tuples(
        engine, problems, args.num_tuples, args.num_strategies, key, args.max_plan_tokens,
        args.max_solve_tokens, None if warmup else submitter.submit, args.with_think)
    waited = submitter.wait(branches_of(tuples), engine.stop_flag)
    J = gate_decisions(gate, problems, tuples, args.num_tuples)
    r = verdicts(tuples, args.num_tuples, args.num_strategies)
    R_out = reward.outcome_reward(r)
    R_plan = reward.planner_reward(J, R_out, "gate" if warmup else args.reward)
    return Batch(problems, tuples, J, r, R_out, R_plan, waited)


def collect_one(engine: rollout.Engine, gate, submitter: Submitter, problems: list, key: tuple,
                args: argparse.Namespace) -> Batch:
    """One tuple per problem, always solved: for the audit and for dev evaluations."""
    one = argparse.Namespace(**vars(args) | {"num_tuples": 1, "stage": "joint"})
    return collect(engine, gate, submitter, problems, key, one)


def branches_of(tuples: list[list[rollout.Tuple]]) -> list[rollout.Branch]:
    return [branch for group in tuples for t in group for branch in t.branches]


def gate_decisions(gate, problems: list, tuples: list[list[rollout.Tuple]], m: int) -> Tensor:
    """J (P, M), Eq. 9; also sets p(Pass | x, S) on each tuple. A plan that does not parse is not
    shown to the gate: J = 0."""
    shown = []
    for problem, group in zip(problems, tuples, strict=True):
        shown += [(problem, t) for t in group if t.strategies]
    p_pass = gate.p_pass([(problem, t.plan.text) for problem, t in shown])
    for (_, t), p in zip(shown, p_pass, strict=True):
        t.p_pass, t.valid = p, float(p >= gate.tau)
    J = torch.zeros(len(problems), m, dtype=torch.float64)
    for p, group in enumerate(tuples):
        for i, t in enumerate(group):
            J[p, i] = t.valid or 0.0
    return J


def verdicts(tuples: list[list[rollout.Tuple]], m: int, k: int) -> Tensor:
    """r (P, M, K) of Eq. 8, NaN for branches that do not exist."""
    r = torch.full((len(tuples), m, k), torch.nan, dtype=torch.float64)
    for p, group in enumerate(tuples):
        for i, t in enumerate(group):
            for j, branch in enumerate(t.branches):
                r[p, i, j] = float(branch.verdict.passed)
    return r


def credit(batch: Batch, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Algorithm 1, lines 6-7: solver advantages (P, M, K) and planner advantages (P, M, K), one
    per strategy; Eq. 12 has one per tuple, the same for all its strategies."""
    solver = {"siblings": grpo.within_tuple_advantages,                     # Eq. 11
              "marginal": grpo.marginal_advantages}[args.solver_credit]
    a = args.solver_weight * solver(batch.r)
    if args.planner_credit == "place":
        return a, grpo.place_advantages(batch.R_plan, batch.r)
    A = grpo.across_tuple_advantages(batch.R_plan)                          # Eq. 12
    return a, A.unsqueeze(-1).expand_as(a)


def teaches(batch: Batch, args: argparse.Namespace) -> Tensor:
    """Whether a problem has any gradient, (P,): not where all its rewards are equal."""
    a, A = credit(batch, args)
    return ((a != 0) | (A != 0)).flatten(1).any(-1)


def make_rows(batch: Batch, a: Tensor, A: Tensor, tokenizer,
              args: argparse.Namespace) -> list[grpo.Row]:
    """The rows of Eq. 13: planner tokens with A, solver tokens with a, both (P, M, K).

    The weight is the same for both regions: 1 / (M * problems of the whole batch).
    """
    weight = 1 / (args.num_tuples * args.problems_per_step)
    rows = []
    for p, group in enumerate(batch.tuples):
        for m, t in enumerate(group):
            if not rl.masked(t.plan, args):
                advantage = plan_advantage(t, A[p, m], tokenizer)
                rows.append(grpo.Row(t.prompt, t.plan.ids, 0, advantage, weight, "plan",
                                     t.plan.logprobs))
            for k, branch in enumerate(t.branches):
                if not rl.masked(branch.sample, args):
                    rows.append(solve_row(branch, a[p, m, k].item(), weight))
    return rows


def plan_advantage(t: rollout.Tuple, A: Tensor, tokenizer) -> float | list[float]:
    """What the tokens of a plan are paid: one advantage, or each that of its own strategy."""
    values = A.tolist()
    if min(values) == max(values):
        return values[0]
    return [values[place] for place in rollout.strategy_of_tokens(tokenizer, t, len(values))]


def solve_row(branch: rollout.Branch, advantage: float, weight: float) -> grpo.Row:
    """A branch as a row: its prompt ends in its own strategy, and begins like its siblings'."""
    shared, own = branch.prompt[:branch.shared], branch.prompt[branch.shared:]
    return grpo.Row(shared, own + branch.sample.ids, len(own), advantage, weight, "solve",
                    branch.sample.logprobs)


def warmed_up(state: dict, args: argparse.Namespace, run: Run) -> bool:
    """Stage 3's end: the accepted share has stopped rising. state["accepted"] has a share per step,
    on the main rank alone, which decides for all. Collective."""
    if args.stage != "warmup":
        return False
    return run.any(run.main and plateau(state["accepted"]))


# ----------------------------------------------------------------------------------------------
# Stage 4: the audit

def audit(engine: rollout.Engine, gate, submitter: Submitter, problems: list,
          args: argparse.Namespace, run: Run) -> dict:
    """Forward only: frozen-solver pass@K of the planner, and the share of rollouts with R_plan > 0.
    Collective."""
    n = min(AUDIT_PROBLEMS, len(problems))
    mine = rl.batch_of_step(problems, 0, n, args.seed)[run.rank::run.world]
    batch = run.together(
        lambda: collect_one(engine, gate, submitter, mine, (args.seed, "audit"), args))
    tuples = [t for [t] in batch.tuples]
    branches = branches_of(batch.tuples)
    for part in run.gather(audit_records(batch, args)):
        for record in part:
            run.log(record, "audit_samples")
    counts = [len(tuples), sum(t.strategies is not None for t in tuples), batch.R_out.sum(),
              batch.J.sum(), (batch.R_plan > 0).sum(), sum(cut(t.plan) for t in tuples),
              len(branches), sum(cut(b.sample) for b in branches)]
    counts = torch.tensor(counts, dtype=torch.float64, device=run.device)
    sums = grpo.all_reduce(counts).tolist()
    n, parsed, solved, valid, dense, plans_cut, programs, cut_programs = sums
    return {"problems": int(n), "parsed": parsed / n, "pass_at_k": solved / n, "valid": valid / n,
            "R_plan_density": dense / n, "plan_cut": plans_cut / n,
            "solve_cut": cut_programs / max(1, programs)}


def audit_records(batch: Batch, args: argparse.Namespace) -> list[dict]:
    """Every plan and reply of the audit, as samples.jsonl has those of the steps."""
    records = []
    for problem, [t], J, R_out in zip(batch.problems, batch.tuples, batch.J, batch.R_out,
                                      strict=True):
        record = diagnostics.tuple_record(t, torch.zeros(args.num_strategies))
        records.append({"problem_id": problem.id} | record | {"J": J.item(), "R_out": R_out.item()})
    return records


def cut(sample: rollout.Sample) -> bool:
    """Whether the length limit ended it."""
    return sample.finish == "length"


def refusal(audited: dict, args: argparse.Namespace) -> str | None:
    """Why stage 5 may not start, and what to do about it; None if it may."""
    if not audited["parsed"]:
        if audited["plan_cut"] > 0.5:
            return (f"no sampled plan parses, and {audited['plan_cut']:.0%} of them were cut: "
                    f"raise --max-plan-tokens {args.max_plan_tokens}")
        return "no sampled plan parses: return to stage 1 (train_sft.py)"
    if not audited["pass_at_k"]:
        if audited["solve_cut"] > 0.5:
            return (f"frozen-solver pass@K is 0, and {audited['solve_cut']:.0%} of the programs "
                    f"were cut: raise --max-solve-tokens {args.max_solve_tokens}")
        return ("frozen-solver pass@K is 0: return to stage 1 (train_sft.py), or take a model that "
                "solves some of these problems")
    if not audited["valid"] and args.reward != "outcome":
        return ("the gate accepts no plan: return to stage 2 (train_rm.py), or to stage 1 if the "
                "plans are bad")
    if not audited["R_plan_density"]:
        return ("R_plan is 0 in every rollout, no accepted tuple solves: return to stage 2 "
                "(train_rm.py)")
    return None


def dev_scores(batch: Batch) -> dict[str, Tensor]:
    """What lib/dev.py asks of one tuple per problem, (P,) each."""
    repeats = [diagnostics.has_duplicate(t.strategies or []) for [t] in batch.tuples]
    return {"pass_at_k": batch.R_out[:, 0], "pass_at_1": batch.r.nan_to_num(nan=0.0).mean(-1)[:, 0],
            "duplicate": torch.tensor(repeats, dtype=torch.float64), "J": batch.J[:, 0]}


# ----------------------------------------------------------------------------------------------
# What a run starts with

def load_gate(path: str, args: argparse.Namespace, run: Run):
    if path == "rule":
        return gates.RuleGate(args.num_strategies)
    with errors.user_input():
        return gates.Gate.load(path, run.device, run.dtype)


def gate_path(args: argparse.Namespace, run: Run) -> str:
    """--gate, else the run's own trained gate, else the rule gate."""
    own = run.home / "gate" / "final"
    return args.gate or (str(own) if (own / "gate.json").exists() else "rule")


def lacks(start: str, gate: str, args: argparse.Namespace, run: Run) -> list[tuple[str, str]]:
    """What the paper has and this run has not: (what, the command that mends it)."""
    begun = Path(start).parent.name if flags_of(start) else ""      # the stage of the start
    model = f"--model {args.model}" + (f" --run-name {args.run}" if args.run else "")
    missing = []
    if not begun:
        gold = "" if Path("corpora/gold.jsonl").exists() else "python -m prepare.teacher gold; "
        missing.append((f"stage 1 (planner SFT): it starts from {start} itself",
                        f"{gold}python train_sft.py {model}"))
    if gate == "rule" and not args.gate:
        labels = "corpora/labels_train.jsonl"
        made = "" if Path(labels).exists() else "python -m prepare.teacher labels; "
        missing.append(("a trained gate (stage 2): the rule gate sees form alone",
                        f"{made}python train_rm.py --model Qwen/Qwen3.5-0.8B "
                        f"--run-name {run.home.name}"))
    if args.stage == "joint" and not begun.startswith("warmup"):
        missing.append(("stage 3 (warm-up)", f"python train_cppo.py {model} --stage warmup"))
    return missing


# ----------------------------------------------------------------------------------------------
# The stage

def train(args: argparse.Namespace, run: Run) -> None:
    # ---- what it starts with, and without: said before corpora are built, which takes hours
    earlier = ("sft",) if args.stage == "warmup" else ("warmup", "sft")
    start, message = stage_model(run.home, earlier, args.model)
    path = gate_path(args, run)
    run.say(message)
    run.warn_of_lacks(lacks(start, path, args, run))

    # ---- problems
    rl.load_prompts(args)
    problems = rl.load_pool(args, run, "warmup" if args.stage == "warmup" else "joint")

    # ---- models
    args.with_think = flags_of(start).get("with_think", False)  # as train_sft.py has taught it
    models = rl.load_models(args, run, start)
    held_out = load_dev(args, problems, run)
    problems, longest = those_that_fit(problems, models, args, run)
    held_out, _ = those_that_fit(held_out, models, args, run)
    rl.check_pool_size(problems, args)
    rl.count_steps(problems, args)
    gate = load_gate(path, args, run)
    if args.refresh_every and path == "rule":
        raise UserError("--refresh-every needs a trained gate: run train_rm.py first")
    judge = Judge(args, run) if args.judge else None
    rows = args.problems_per_step * args.num_tuples         # and the audit's, of one tuple each
    if args.stage == "joint":
        rows = max(rows, AUDIT_PROBLEMS) * args.num_strategies
    engine = rl.make_engine(args, run, models, longest, rows)
    verifier = rl.make_verifier()

    # ---- where a killed run left off
    used = {"start": models.start} | ({"gate": path} if path != "rule" else {})
    config = {"stage": args.stage, "gate": path,
              "verifier": {"tier": verifier.tier, **verifier.report}}
    state = run.resume(models.policy, models.optimizer, models.tokenizer,
                       {"accepted": [], "gate": path, "refreshed": 0}, config=config, used=used)
    if state["gate"] != path:                       # a refreshed one
        gate = load_gate(state["gate"], args, run)
    grpo.refresh(models.sampler, models.policy)

    with verifier:
        submitter = Submitter(verifier)
        # ---- stage 4
        if args.stage == "joint" and not args.skip_audit and not run.resumed:
            audited = audit(engine, gate, submitter, problems, args, run)
            run.log(audited, "audit")
            run.say("audit: " + "  ".join(f"{name} {value:.3g}" for name, value in audited.items()))
            reason = refusal(audited, args)
            if reason:
                run.say(f"audit failed: {reason} (--skip-audit goes on regardless)",
                        file=sys.stderr)
                run.status = REFUSED
                return
        # ---- stage 3 or 5
        algorithm_1(args, run, problems, held_out, models, engine, gate, submitter, judge, state)
    run.finish()


def those_that_fit(problems: list, models: rl.Models, args: argparse.Namespace,
                   run: Run) -> tuple[list, int]:
    """The problems whose plan prompt leaves room for the replies, and the longest prompt."""
    lengths = []
    for problem in problems:
        turn = prompts.plan(problem, args.num_strategies)
        lengths.append(len(prompts.encode(models.tokenizer, turn, args.with_think)))
    return rl.leave_out_long(problems, lengths, args.max_plan_tokens + args.max_solve_tokens,
                             models, run)


def algorithm_1(args, run: Run, problems: list, held_out: list, models: rl.Models,
                engine: rollout.Engine, gate, submitter: Submitter, judge, state: dict) -> None:
    dev = Dev(args, run, held_out, lambda mine: dev_scores(
        collect_one(engine, gate, submitter, mine, (args.seed, "dev"), args)))
    while state["step"] < args.steps and not warmed_up(state, args, run) and not dev.ends(state):
        step, started = state["step"], time.perf_counter()
        if args.refresh_every and step % args.refresh_every == 0 and step > state["refreshed"]:
            gate = refresh_gate(gate, engine, problems, judge, state, args, run)

        # lines 2-5: plans, programs, verdicts, gate
        key = (args.seed, args.stage, step)         # names the random streams of the step
        engine.stats = rollout.Stats()
        batch, replaced = rl.draw_step(
            problems, step, lambda mine: collect(engine, gate, submitter, mine, key, args),
            lambda batch: teaches(batch, args), args, run)

        # lines 6-7: two kinds of credit
        a, A = credit(batch, args)              # (P, M, K) each: Eq. 11, 12, or marginal credit
        report = measure(batch, a, A, step, engine, models, judge, args)

        # line 8: one clipped, KL-regularised update over both regions
        rows = make_rows(batch, a, A, models.tokenizer, args)               # Eq. 13
        updated = rl.update(models, rows, step, args)                       # Eq. 18
        if args.resample_equal:
            updated["replaced"] = replaced

        state["step"] += 1
        parts = run.gather(report)
        if run.main:
            log_step(parts, updated, time.perf_counter() - started, state, args, run)
        run.count_skipped(updated["skipped"])
        run.checkpoint()
    dev.finish(state)


def measure(batch: Batch, a: Tensor, A: Tensor, step: int, engine: rollout.Engine,
            models: rl.Models, judge, args: argparse.Namespace) -> dict:
    """What this rank reports of the step: its records, strategy use, and what sampling cost."""
    use = []
    if args.stage == "joint" and step % USE_EVERY == 0:
        use = diagnostics.strategy_use(models.sampler, batch.tuples, args.temperature, models.vocab)
    faults = judge.faults(batch.problems, batch.tuples, step) if judge else None
    records = []
    for p, problem in enumerate(batch.problems):
        for m, t in enumerate(batch.tuples[p]):
            record = {"step": step + 1, "problem_id": problem.id, "tuple": m}
            record |= diagnostics.tuple_record(t, a[p, m])
            record |= {"J": batch.J[p, m].item(), "R_plan": batch.R_plan[p, m].item(),
                       "A": A[p, m, 0].item()}
            if args.planner_credit == "place":      # "A" is the first strategy's then
                record["A_strategies"] = A[p, m].tolist()
            record["R_out"] = batch.R_out[p, m].item() if args.stage == "joint" else None
            record["faults"] = faults[p][m] if faults else None
            records.append(record)
    return {"records": records, "use": use, "stats": engine.stats, "waited": batch.waited}


def log_step(parts: list[dict], updated: dict, seconds: float, state: dict,
             args: argparse.Namespace, run: Run) -> None:
    """On the main rank: metrics.jsonl, samples.jsonl, the line that people read."""
    records = sorted((record for part in parts for record in part["records"]),
                     key=lambda record: (record["problem_id"], record["tuple"]))
    metrics = {"step": state["step"], **diagnostics.tuple_metrics(records, args.num_strategies)}
    use = [value for part in parts for value in part["use"]]
    if use:
        metrics["strategy_use"] = diagnostics.mean(use)
    metrics |= updated | rl.timings(parts, updated, seconds)
    state["accepted"].append(metrics["J"])
    run.log(metrics)
    for record in records:
        run.log(record, "samples")
    run.say(diagnostics.line(args.steps, metrics))
    if state["step"] % rl.SHOW_EVERY == 0:
        run.say(diagnostics.show(records[(state["step"] - 1) % len(records)]))


def main(args: argparse.Namespace) -> int:
    with run_stage(args, stage_name(args)) as run:
        if not run.finished():
            train(args, run)
    return run.status


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
