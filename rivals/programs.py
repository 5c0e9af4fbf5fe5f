"""Programs that another system wrote, graded as ours are: evaluate.py --method file."""

from collections.abc import Iterator

from lib import files
from lib.errors import UserError
from lib.problems import Problem
from rivals.inference import Attempt, Grader
from rivals.methods import Reply


def read_programs(path: str, problems: list[Problem]) -> dict[str, list[dict]]:
    """JSON lines {"problem_id", "index", "program"} -> rows per problem id, in order of index.

    "response", a whole reply, may stand in place of "program". A problem without a program gets one
    failed attempt. Raises UserError for the first line that is wrong.
    """
    kinds = {problem.id: problem.kind for problem in problems}
    rows: dict[str, dict[int, dict]] = {problem.id: {} for problem in problems}
    for number, row in files.read_lines(path):
        fault = find_fault(row, rows, kinds)
        if fault:
            raise UserError(f"{path} line {number}: {fault}")
        rows[row["problem_id"]][row["index"]] = row
    programs = {}
    for name, by_index in rows.items():
        programs[name] = [by_index[index] for index in sorted(by_index)]
        if not by_index:
            programs[name] = [{"index": 0, "program": None}]
    return programs


def find_fault(row: dict, rows: dict[str, dict[int, dict]], kinds: dict[str, str]) -> str | None:
    """What is wrong with a line of programs."""
    whole = isinstance(row, dict) and "problem_id" in row and "index" in row
    if not whole or not ("program" in row or "response" in row):
        return "an attempt is a JSON object with problem_id, index and program (or response)"
    name, index = row["problem_id"], row["index"]
    text = row["response"] if "response" in row else row["program"]
    if name not in rows:
        return f"no problem {name!r} is being evaluated"
    if type(index) is not int:
        return f"index {index!r} is no whole number"
    if index in rows[name]:
        return f"problem {name!r} has an attempt {index} already"
    if not isinstance(text, str | None):
        return f"{text!r:.40} is neither text nor null"
    if kinds[name] != "code" and "response" not in row:
        return f"problem {name!r} asks for an output: give the reply as response"
    return None


def grade_programs(programs: dict[str, list[dict]], problems: list[Problem], seed: int,
                   grader: Grader) -> Iterator[list[Attempt]]:
    """The attempts at each problem. All programs go to the verifier at once."""
    # no generator: the verifier's workers are busy only if they have all programs
    replies = {problem.id: [grade_row(problem, row, grader) for row in programs[problem.id]]
               for problem in problems}
    for problem in problems:
        attempts = []
        for row, reply in zip(programs[problem.id], replies[problem.id], strict=True):
            attempt = grader.attempt(problem, reply, seed=seed, tuple=0, index=row["index"])
            attempts.append(attempt)
        yield attempts


def grade_row(problem: Problem, row: dict, grader: Grader) -> Reply:
    if "response" in row:
        return grader.grade(problem, row["response"] or "")
    return grader.run(problem, row["program"])
