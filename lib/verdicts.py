"""Programs to verdicts while others still decode.

    submitter = Submitter(verifier)
    future = submitter(problem, program)        # equal programs for one problem are run once
    submitter.wait(branches, stop)              # each branch's future becomes its verdict
"""

import time
from collections.abc import Callable, Iterable
from concurrent import futures

from lib.problems import Problem, verifier_item
from rollout import Abandoned
from verifier import Verifier


class Submitter:
    """Hands programs to a verifier; within a step equal programs for one problem share a
    verdict."""

    def __init__(self, verifier: Verifier, official_limits: bool = False):
        self.verifier, self.official_limits = verifier, official_limits
        self.submitted: dict[tuple, futures.Future] = {}

    def __call__(self, problem: Problem, program: str | None) -> futures.Future:
        key = problem.id, program
        if key not in self.submitted:
            item = verifier_item(problem, program, official_limits=self.official_limits)
            self.submitted[key] = self.verifier.submit(item)
        return self.submitted[key]

    def wait(self, branches: Iterable, stop: Callable[[], bool] = lambda: False) -> float:
        """Put the verdict of each branch in the place of its future. Returns the seconds waited.

        Raises rollout.Abandoned when stop() turns true.
        """
        started = time.perf_counter()
        for branch in branches:
            while not futures.wait([branch.verdict], timeout=1.0).done:
                if stop():
                    raise Abandoned
            branch.verdict = branch.verdict.result()
        self.submitted.clear()
        return time.perf_counter() - started
