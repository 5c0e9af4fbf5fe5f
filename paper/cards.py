"""The card beside an attempts file: what the attempts were made with, and what bounds and faults
go with them."""

import argparse
from pathlib import Path

import numpy as np

import model
import prompts
from lib import checkpoints, errors, files, metrics
from lib.problems import Problem
from paper import attempts
from prepare.ask import Responder
from prepare.judge import Judge, judge_plans

# a second evaluation into the same file must agree in these; of files the hash counts as well
SETTING = ("method", "benchmark", "problems", "limit", "model", "step", "revision", "programs",
           "prompts", "gate", "seed", "num_strategies", "attempts", "shuffle_strategies",
           "temperature", "top_k", "top_p", "max_plan_tokens", "max_solve_tokens",
           "official_limits", "outcomes", "dtype")
SETTING_FILES = ("problems", "model", "programs", "prompts", "gate")


def made_with(args: argparse.Namespace) -> dict:
    """Everything that the attempts depend on."""
    setting = {name: getattr(args, name) for name in SETTING}
    setting["with_think"] = args.with_think or None
    for name in SETTING_FILES:
        path = getattr(args, name)
        if name == "model" and path and args.step:
            path = Path(path, checkpoints.name(args.step))
        elif name == "model" and path:
            path = model.find(path, args.revision)      # of a hub id the snapshot that is loaded
        if path:
            setting[f"{name}_sha256"] = files.tree_hash(path)
    return setting


def ceilings(problems: list[Problem], ks: tuple[int, ...],
             tuple_size: int) -> dict[str, dict[str, float]] | None:
    """K -> mean over problems of the best possible pass@K per policy class; None outside of worlds.

    A program sees its input, so problems with equal inputs are one family to a constant policy.
    """
    if not all(problem.classes for problem in problems):
        return None
    posteriors = [problem.classes for problem in problems]
    inputs = [tuple(test["input"] for test in problem.tests) for problem in problems]
    best = {}
    for k in sorted(set(ks)):
        if k > tuple_size and k % tuple_size:
            continue            # no exact ceiling
        independent = [metrics.independent_ceiling(list(p.values()), k) for p in posteriors]
        coordinated = [metrics.coordinated_ceiling(list(p.values()), k, tuple_size)
                       for p in posteriors]
        best[str(k)] = {"constant": metrics.constant_ceiling(posteriors, inputs, k),
                        "independent": float(np.mean(independent)),
                        "coordinated": float(np.mean(coordinated))}
    return best


def fault_shares(evaluation: attempts.Evaluation, problems: list[Problem], k: int,
                 judge: Responder | Judge) -> dict[str, float]:
    """Share of tuples with each fault that the judge names, and with any.

    A tuple that does not parse has a fault. Tuples for which a model gave no usable answer are left
    out.
    """
    by_id = {problem.id: problem for problem in problems}
    plans = []
    for group in attempts.tuples(evaluation):
        strategies = [attempt["strategy"] for attempt in group]
        text = "" if None in strategies else prompts.format_plan(strategies)
        plans.append((by_id[group[0]["problem_id"]], text))
    with errors.user_input():       # an endpoint that does not answer
        judged = judge_plans(judge, plans, k)
    faults = [names for names in judged if names is not None]
    total = max(1, len(faults))
    shares = {fault: sum(fault in names for names in faults) / total for fault in prompts.FAULTS}
    return shares | {"any": sum(bool(names) for names in faults) / total}
