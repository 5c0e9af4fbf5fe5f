"""Dev evaluation during training: pass@K on problems that no step trains on, best/, patience.

    held_out = load_dev(args, problems, run)            # --dev FILE
    dev = Dev(args, run, held_out, attempt)             # --eval-every STEPS --patience N
    while state["step"] < args.steps and not dev.ends(state):
        ...                                     # one step
    dev.finish(state)

One tuple (rivals: K attempts) per dev problem, by the training sampler, from random streams that
are the same at every evaluation and used by nothing else. So training's samples do not change, and
what two checkpoints reach on one problem can be subtracted.

best/ is the checkpoint with the best pass@K, the start included. A later one replaces it only if it
is better by more than one standard error of the mean difference over problems: without the margin
the largest of twenty noisy numbers would be chosen, which is above its true value.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lib.errors import UserError
from lib.problems import load_problems
from lib.run import Run
from prepare import exposure
from prepare.decontaminate import statement_hash

Scores = dict[str, Tensor]      # "pass_at_k", "pass_at_1", ...: a number (P,) per problem


class Dev:
    """`attempt` takes this rank's dev problems and returns their Scores; "pass_at_k" decides.

    state["dev"] is what a checkpoint keeps: {"at": step of the last evaluation, "best": step,
    "scores": pass@K of each problem there, "since": evaluations since then}.
    """

    def __init__(self, args: argparse.Namespace, run: Run, problems: list,
                 attempt: Callable[[list], Scores]):
        self.run, self.problems, self.attempt = run, problems, attempt
        self.every, self.patience = args.eval_every, args.patience

    def ends(self, state: dict) -> bool:
        """Evaluate if it is time; then whether --patience is used up. Collective."""
        if not self.problems:
            return False
        last = state.get("dev")
        if last is None or (state["step"] % self.every == 0 and last["at"] != state["step"]):
            self.evaluate(state)
        return bool(self.patience) and self.run.any(
            self.run.main and state["dev"]["since"] >= self.patience)

    def finish(self, state: dict) -> None:
        """Evaluate the last step, too, and say which one is best. Collective."""
        if not self.problems:
            return
        if state["dev"]["at"] != state["step"]:
            self.evaluate(state)
        self.run.say(f"best/ is that of step {state['dev']['best']}, final/ that of step "
                     f"{state['step']}")

    def evaluate(self, state: dict) -> None:
        run, started = self.run, time.perf_counter()
        mine = self.problems[run.rank::run.world]
        parts = run.gather(run.together(lambda: self.attempt(mine)))
        better = False
        if run.main:
            scores = in_order(parts, len(self.problems))
            better = self.compare(state, scores)
            record = {"step": state["step"], "problems": len(self.problems)}
            record |= {name: values.mean().item() for name, values in scores.items()}
            record |= {"best": state["dev"]["best"], "seconds": time.perf_counter() - started}
            run.log(record, "dev")
            run.say(line(record))
        else:
            state["dev"] = {"at": state["step"], "best": None}      # the main rank's is saved
        if run.any(better):
            run.publish("best", {"step": state["step"]})

    def compare(self, state: dict, scores: Scores) -> bool:
        """Whether this is the best step so far; the answer is written into state["dev"]."""
        new = scores["pass_at_k"]
        last = state.get("dev") or {"best": None, "scores": None, "since": 0}
        first = last["scores"] is None or len(last["scores"]) != len(new)
        if first or clearly_better(new, torch.tensor(last["scores"], dtype=new.dtype)):
            state["dev"] = {"at": state["step"], "best": state["step"], "scores": new.tolist(),
                            "since": 0}
            return True
        state["dev"] = last | {"at": state["step"], "since": last["since"] + 1}
        return False


def clearly_better(new: Tensor, best: Tensor) -> bool:
    """Whether the mean of new - best, (P,) each, is above one standard error of it."""
    gain = new - best
    return bool(gain.mean() > gain.std(correction=0) / math.sqrt(len(gain)))


def in_order(parts: list[Scores], n: int) -> Scores:
    """The scores of all ranks, which took every world-th problem each, by problem."""
    scores = {}
    for name in parts[0]:
        scores[name] = torch.zeros(n, dtype=torch.float64)
        for rank, part in enumerate(parts):
            scores[name][rank::len(parts)] = part[name].double()
    return scores


def load_dev(args: argparse.Namespace, trained_on: list, run: Run) -> list:
    """The problems of --dev, [] without it. UserError if one is trained on, or belongs to an
    evaluation: the best checkpoint would be chosen by what it is measured on."""
    if not args.dev:
        return []
    problems = load_problems(args.dev)
    unknown_exposure = exposure.check_pool(args.dev)
    if unknown_exposure:
        run.warn(unknown_exposure)
    trained = {statement_hash(problem.statement) for problem in trained_on}
    both = [p.id for p in problems if statement_hash(p.statement) in trained]
    if both:
        raise UserError(f"{len(both)} of {len(problems)} problems of --dev {args.dev} are trained "
                        f"on, {both[0]!r} is one: hold them out of --problems")
    return problems


def line(record: dict) -> str:
    """What people read of an evaluation."""
    shown = [f"{name} {record[name]:.3f}" for name in ("pass_at_k", "pass_at_1", "duplicate", "J")
             if name in record]
    return (f"dev after step {record['step']}: {'  '.join(shown)}  (best: step {record['best']}; "
            f"{record['seconds']:.1f} s)")
