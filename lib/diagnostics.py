"""What a training step says of itself: records for samples.jsonl, metrics made from them, lines
to read.

Every metric here but strategy use is a function of the records; docs/glossary.md explains each one.

Shapes: P problems, M tuples per problem, K strategies per tuple, T tokens.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor

import grpo
import prompts
import rollout


def mean(values) -> float:
    """nan of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


# ----------------------------------------------------------------------------------------------
# Records: a line in samples.jsonl

def branch_record(branch: rollout.Branch, advantage: float) -> dict:
    blocks, cut = prompts.find_blocks(branch.sample.text)
    return {"strategy": branch.strategy, "reply": branch.sample.text,
            "blocks": len(blocks), "block_cut": cut,
            "tokens": len(branch.sample.ids), "finish": branch.sample.finish,
            "status": branch.verdict.status, "tests_passed": branch.verdict.tests_passed,
            "message": branch.verdict.message,      # what the first failing test said
            "r": float(branch.verdict.passed), "a": advantage}


def tuple_record(t: rollout.Tuple, a: Tensor) -> dict:
    """A tuple without what was computed over its problem. a (K,): the advantages of its
    branches."""
    branches = [branch_record(b, a[i].item()) for i, b in enumerate(t.branches)]
    return {"plan": t.plan.text, "plan_tokens": len(t.plan.ids), "plan_finish": t.plan.finish,
            "strategies": t.strategies, "error": t.error, "p_pass": t.p_pass,
            "near_miss": not t.strategies and bool(prompts.find_near_miss(t.plan.text, len(a))),
            "duplicate_literal": has_duplicate(t.strategies or []), "branches": branches}


def has_duplicate(strategies: list[str]) -> bool:
    """Whether two strategies are equal but for case, spacing and final punctuation."""
    return len({prompts.normalise(s) for s in strategies}) < len(strategies)


# ----------------------------------------------------------------------------------------------
# Metrics

def tuple_metrics(records: list[dict], k: int) -> dict:
    """The panel of Appendix O and more, over the tuples of a step."""
    by_problem = defaultdict(list)
    for t in records:
        by_problem[t["problem_id"]].append(t)
    metrics = {
        "parsed": mean(t["strategies"] is not None for t in records),
        "plan_near_miss": mean(t["near_miss"] for t in records),
        "J": mean(t["J"] for t in records),
        "R_plan": mean(t["R_plan"] for t in records),
        "sparsity": mean(t["R_plan"] == 0 for t in records),
        "zero_spread_plan": mean(all_equal([t["R_plan"] for t in group])
                                 for group in by_problem.values()),
        "duplicate_literal": mean(t["duplicate_literal"] for t in records),
        "plan_tokens": mean(t["plan_tokens"] for t in records),
        "plan_cut": mean(t["plan_finish"] == "length" for t in records),
    }
    attempted = [t for t in records if t["R_out"] is not None]      # the warm-up attempts none
    if attempted:
        metrics |= outcome_metrics(attempted, k)
    judged = [t["faults"] for t in records if t["faults"] is not None]
    if judged:
        metrics["duplicate_judged"] = mean("duplicate" in faults for faults in judged)
        metrics["valid_judged"] = mean(not faults for faults in judged)
    return metrics


def outcome_metrics(records: list[dict], k: int) -> dict:
    """What became of the branches of tuples."""
    branches = [b for t in records for b in t["branches"]]
    with_branches = [t for t in records if t["branches"]]
    return {
        "R_out": mean(t["R_out"] for t in records),
        "solved_given_valid": mean(t["R_out"] for t in records if t["J"]),
        "pass_rate": sum(b["r"] for b in branches) / (k * len(records)),
        "zero_spread_solve": mean(all_equal([b["r"] for b in t["branches"]])
                                  for t in with_branches),
        **branch_metrics(branches),
    }


def branch_metrics(branches: list[dict]) -> dict:
    metrics = {"solve_tokens": mean(b["tokens"] for b in branches),
               "solve_cut": mean(b["finish"] == "length" for b in branches),
               "several_blocks": mean(b["blocks"] > 1 for b in branches),
               "block_cut": mean(b["block_cut"] for b in branches)}
    for status in sorted({b["status"] for b in branches}):
        metrics[f"status/{status}"] = mean(b["status"] == status for b in branches)
    return metrics


def attempt_metrics(records: list[dict]) -> dict:
    """The same for rivals, whose record is a problem with its N independent attempts."""
    attempts = [b for p in records for b in p["branches"]]
    credits = [[b["a"] for b in p["branches"]] for p in records]
    return {
        "R_out": mean(max(b["r"] for b in p["branches"]) for p in records),
        "pass_rate": mean(b["r"] for b in attempts),
        "zero_spread_solve": mean(all_equal(a) for a in credits),
        "advantage_nonzero": mean(any(a) for a in credits),
        **branch_metrics(attempts),
    }


def all_equal(values: list) -> bool:
    return len(set(values)) == 1


@torch.no_grad()
def cross_scores(sampler, contexts: list[list[int]], replies: list[list[int]], temperature: float,
                 vocab: int) -> Tensor:
    """log p(reply token | context, the tokens before) of every reply after every context ->
    (replies, contexts, T), 0 behind a reply's end.

    It runs on the sampler, a whole copy on every rank, so ranks need not call it equally often.
    """
    width = max(len(ids) for ids in replies)
    scores = torch.zeros(len(replies), len(contexts), width, dtype=torch.float64)
    device = next(sampler.parameters()).device
    for c, context in enumerate(contexts):
        rows = [grpo.Row(context, ids, 0, 0.0, 0.0, "solve") for ids in replies]
        logp = grpo.row_logprobs(sampler, grpo.collate(rows, device), temperature, vocab)
        parts = logp.double().cpu().split([len(ids) for ids in replies])
        for i, part in enumerate(parts):
            scores[i, c, :len(part)] = part
    return scores


def strategy_use(sampler, tuples: list[list[rollout.Tuple]], temperature: float,
                 vocab: int) -> list[float]:
    """mean_i [log p(y_i | x, s_i) - log mean_j p(y_i | x, s_j)], in nats, of each problem's first
    parsed tuple.

    0: the solver does not listen to its strategy. log K: its program gives the strategy away.
    """
    uses = []
    for group in tuples:
        branches = next((t.branches for t in group if t.branches), None)
        if branches is None:
            continue
        contexts = [b.prompt for b in branches]
        replies = [b.sample.ids for b in branches]
        logp = cross_scores(sampler, contexts, replies, temperature, vocab).sum(-1)    # (K, K)
        mixture = logp.logsumexp(-1) - math.log(len(branches))
        uses.append((logp.diagonal() - mixture).mean().item())
    return uses


# ----------------------------------------------------------------------------------------------
# Lines that people read

SHOWN = (       # name in the line, keys of the metrics (the first that is there), format
    ("R_out", ("R_out",), ".3f"), ("J", ("J",), ".3f"), ("R_plan", ("R_plan",), ".3f"),
    ("pass", ("pass_rate",), ".3f"), ("dup", ("duplicate_judged", "duplicate_literal"), ".3f"),
    ("kl", ("plan/kl", "solve/kl"), ".4f"), ("|g|", ("grad_norm",), ".2f"),
    ("use", ("strategy_use",), ".2f"),
)


def line(steps: int, m: dict) -> str:
    """The line per step."""
    parts = [f"step {m['step']}/{steps}"]
    for name, keys, form in SHOWN:
        values = [m[key] for key in keys if key in m]
        if values and not math.isnan(values[0]):
            parts.append(f"{name} {values[0]:{form}}")
    parts.append(f"{m['seconds']:.1f} s (sample {m['seconds_sampling']:.1f}, "
                 f"verify {m['seconds_verifying']:.1f}, update {m['seconds_update']:.1f})")
    if m.get("skipped"):
        parts.append("SKIPPED: non-finite")
    return "  ".join(parts)


def show(record: dict) -> str:
    """A whole sample, for the eye: numbers hide what text shows."""
    if "plan" not in record:
        first = record["branches"][0]
        return f"--- {record['problem_id']}, an attempt: {first['status']}\n{first['reply']}\n---"
    lines = [f"--- {record['problem_id']} tuple {record['tuple']}: J {record['J']:.0f}  "
             f"R_out {record['R_out']}  A {record['A']:+.2f}", record["plan"]]
    for label, b in zip(prompts.LABELS, record["branches"], strict=False):
        lines.append(f"[{label}] {b['status']}, a {b['a']:+.2f}\n{b['reply']}")
    return "\n".join([*lines, "---"])
