"""Programs on their way to the verifier."""

from concurrent.futures import Future

from lib.problems import Problem
from lib.verdicts import Submitter

TESTS = [{"input": "1\n", "output": "2\n"}]
A = Problem("a", "Statement.", tests=TESTS, time_limit=3.0)
B = Problem("b", "Statement.", tests=TESTS)


class Verifier:
    """Keeps the items that it is asked to run."""

    def __init__(self):
        self.items = []

    def submit(self, item) -> Future:
        self.items.append(item)
        return Future()


def test_equal_programs_of_one_problem_share_one_future():
    submitter = Submitter(Verifier())
    first = submitter.submit(A, "x")
    assert submitter.submit(A, "x") is first
    assert submitter.submit(A, "y") is not first
    assert [item["code"] for item in submitter.verifier.items] == ["x", "y"]


def test_equal_programs_of_two_problems_run_twice():
    submitter = Submitter(Verifier())
    assert submitter.submit(A, "x") is not submitter.submit(B, "x")


def test_a_forgotten_problem_runs_its_programs_again():
    submitter = Submitter(Verifier())
    first, other = submitter.submit(A, "x"), submitter.submit(B, "x")
    submitter.forget(A)
    assert submitter.submit(A, "x") is not first
    assert submitter.submit(B, "x") is other


def test_limits_and_outputs_are_asked_for_on_request():
    submitter = Submitter(Verifier(), official_limits=True)
    submitter.submit(A, "x", want_outputs=True)
    [item] = submitter.verifier.items
    assert item["time_limit"] == 3.0 and item["want_outputs"]
    plain = Submitter(Verifier())
    plain.submit(A, "x")
    assert not {"time_limit", "want_outputs"} & plain.verifier.items[0].keys()
