"""Programs to verdicts while others still decode. Equal programs of one problem run once."""

from concurrent.futures import Future

from lib.problems import Problem, verifier_item
from verifier import Verifier


class Submitter:
    """Sends programs to the verifier, each distinct (problem id, program) once.

        submitter = Submitter(verifier)
        future = submitter.submit(problem, program)     # at once; future.result() is the Verdict
        submitter.forget(problem)                       # no more programs of this problem will come

    official_limits: each problem's own time limit instead of the verifier's (see `verifier_item`).
    """

    def __init__(self, verifier: Verifier, official_limits: bool = False):
        self.verifier, self.official_limits = verifier, official_limits
        self.futures: dict[str, dict[str | None, Future]] = {}

    def submit(self, problem: Problem, program: str | None, want_outputs: bool = False) -> Future:
        """The Future of the program's Verdict. Equal programs share one Future."""
        futures = self.futures.setdefault(problem.id, {})
        if program not in futures:
            item = verifier_item(problem, program, want_outputs, self.official_limits)
            futures[program] = self.verifier.submit(item)
        return futures[program]

    def forget(self, problem: Problem) -> None:
        """Drop the verdicts of a problem: their outputs can be large."""
        self.futures.pop(problem.id, None)
