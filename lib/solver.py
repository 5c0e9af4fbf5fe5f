"""Stage 1 teaches plans to the network that also solves: does it still?

    keeper = Keeper(args, run, tokenizer, start, gold, problems)
    before = keeper.measure("before")               # share of its programs that pass
    loss = ... + args.replay * loss of keeper.replay(step, n)
    after = keeper.measure("after", policy)

The solver is asked as in stage 5, one strategy of each gold tuple, one program. The programs that
the starting model writes are also what --replay trains beside the plans: cross-entropy on one's own
samples is the KL to the starting model, up to a constant (and to the samples' noise).
"""

import argparse

import torch
import torch.distributed as dist

import grpo
import model
import prompts
import rollout
from lib import errors
from lib.errors import UserError
from lib.problems import Problem
from lib.run import Run, local_workers
from lib.verdicts import Submitter
from verifier import Verifier

TEMPERATURE = 0.7       # of the solver in stage 5
WORN_OUT = 0.1          # a pass rate that falls by more is a warning


class Keeper:
    def __init__(self, args: argparse.Namespace, run: Run, tokenizer, start, gold: list,
                 problems: dict[str, Problem]):
        """gold: (problem, thought, strategies). Only problems whose tests are known are asked."""
        self.args, self.run, self.tokenizer, self.start = args, run, tokenizer, start
        self.tasks = []
        for i, (problem, _, strategies) in enumerate(gold):
            known = problems.get(problem.id, problem)
            if known.tests and len(self.tasks) < args.solver_problems:
                self.tasks.append((known, strategies[i % len(strategies)]))
        self.rows: list[grpo.Row] = []
        if args.replay and not self.tasks:
            raise UserError("--replay needs the tests of the gold tuples' problems: pass "
                            "--problems, and --solver-problems of 1 or more")

    def measure(self, when: str, policy=None) -> float | None:
        """The share of its programs that pass, of the starting model or of `policy`; None if no
        tests are known. Collective. Every program goes to solver.jsonl."""
        run = self.run
        if not self.tasks:
            run.say("solver pass rate: not measured, no problem's tests are known (--problems)")
            return None
        with errors.user_input():
            sampler = model.load(self.start, run.dtype, run.device).requires_grad_(False)
        if policy is not None:
            grpo.refresh(sampler, policy)
        branches = run.together(lambda: self.programs(sampler))
        passed = [float(branch.verdict.passed) for branch in branches]
        counts = torch.tensor([sum(passed), len(passed)], dtype=torch.float64, device=run.device)
        right, total = grpo.all_reduce(counts).tolist()
        for part in run.gather(self.records(when, branches)):
            for record in part:
                run.log(record, "solver")
        if policy is None:
            self.rows = self.rows_of(branches)
        run.say(f"solver pass rate {when} stage 1: {right / total:.3f} ({right:.0f} of "
                f"{total:.0f} programs)")
        return right / total

    def programs(self, sampler) -> list[rollout.Branch]:
        """One verified program for each task of this rank."""
        mine = self.tasks[self.run.rank::self.run.world]
        if not mine:
            return []
        problems = [problem for problem, _ in mine]
        texts = [[prompts.solve(problem, strategy)] for problem, strategy in mine]
        engine = rollout.Engine(sampler, self.tokenizer, min(64, len(mine)), TEMPERATURE,
                                stop_flag=self.run.stop_asked)
        with Verifier(local_workers()) as verifier:
            submitter = Submitter(verifier)
            groups = rollout.sample_attempts(engine, problems, texts, (self.args.seed, "solver"),
                                             self.args.max_solve_tokens, submitter.submit)
            branches = [branch for [branch] in groups]
            submitter.wait(branches, self.run.stop_asked)
        return branches

    def records(self, when: str, branches: list[rollout.Branch]) -> list[dict]:
        mine = self.tasks[self.run.rank::self.run.world]
        return [{"when": when, "problem_id": problem.id, "strategy": strategy,
                 "reply": branch.sample.text, "finish": branch.sample.finish,
                 "status": branch.verdict.status}
                for (problem, strategy), branch in zip(mine, branches, strict=True)]

    def rows_of(self, branches: list[rollout.Branch]) -> list[grpo.Row]:
        """The programs of all ranks as rows, on every rank. Collective."""
        mine = [(branch.prompt, branch.sample.ids) for branch in branches]
        parts = [None] * self.run.world
        dist.all_gather_object(parts, mine)
        return [grpo.Row(prompt, ids, 0, 0.0, 0.0, "solve") for part in parts
                for prompt, ids in part]

    def replay(self, step: int, n: int) -> list[grpo.Row]:
        """n of the starting model's programs, in turn."""
        return [self.rows[(step * n + i) % len(self.rows)] for i in range(min(n, len(self.rows)))]

    def compare(self, before: float | None, after: float | None) -> None:
        if before is not None and after is not None and after < before - WORN_OUT:
            self.run.warn(f"STAGE 1 WEARS THE SOLVER OUT: its pass rate fell from {before:.3f} to "
                          f"{after:.3f}; lower --lr or --epochs, or replay its own programs with "
                          f"--replay 0.5")
