"""Programs to verdicts while others still decode. Equal programs of one problem run once."""

import time
from collections.abc import Callable, Iterable
from concurrent import futures

from lib.problems import Problem, verifier_item
from rollout import Abandoned
from verifier import Verifier


class Submitter:
    """Sends programs to the verifier, each distinct (problem id, program) once.

        submitter = Submitter(verifier)
        future = submitter.submit(problem, program)     # at once; future.result() is the Verdict
        submitter.wait(branches)                        # of a rollout: futures become verdicts
        submitter.forget(problem)                       # no more programs of this problem will come

    official_limits: each problem's own time limit instead of the verifier's (see `verifier_item`).
    """

    def __init__(self, verifier: Verifier, official_limits: bool = False):
        self.verifier, self.official_limits = verifier, official_limits
        self.futures: dict[str, dict[str | None, futures.Future]] = {}

    def submit(self, problem: Problem, program: str | None,
               want_outputs: bool = False) -> futures.Future:
        """The Future of the program's Verdict. Equal programs share one Future."""
        submitted = self.futures.setdefault(problem.id, {})
        if program not in submitted:
            item = verifier_item(problem, program, want_outputs, self.official_limits)
            submitted[program] = self.verifier.submit(item)
        return submitted[program]

    def forget(self, problem: Problem) -> None:
        """Drop the verdicts of a problem: their outputs can be large."""
        self.futures.pop(problem.id, None)

    def wait(self, branches: Iterable, stop: Callable[[], bool] = lambda: False) -> float:
        """Put each branch's verdict in the place of its future, and forget them all. Returns the
        seconds waited. Raises rollout.Abandoned when stop() turns true."""
        started = time.perf_counter()
        for branch in branches:
            while not futures.wait([branch.verdict], timeout=1.0).done:
                if stop():
                    raise Abandoned
            branch.verdict = branch.verdict.result()
        self.futures.clear()
        return time.perf_counter() - started
