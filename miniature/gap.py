"""What separates a planner's tuples from the coordinated ceiling: how much is the planner's, how
much the solver's.

    parts = gap.split(attempts.load("runs/mini/cppo/eval/heldout-tuple.jsonl"), problems)
    parts["ceiling"] - parts["wasted"] - parts["choice"] - parts["ignored"] + parts["luck"]
                                                        # = parts["pass"], exactly, tuple by tuple

    wasted      strategies that name no reading of the statement, or one that is named already:
                the ceiling less the best that so many different readings could cover
    choice      different readings, but not the likeliest: that less what those named cover
    ignored     mass of the readings that are named and that no program carries out
    luck        mass of the readings that are carried out and that no strategy names

wasted + choice is the planner's part, ignored - luck the solver's. All are posterior masses, exact
because the world knows which combination a strategy names (world.read_strategy).
"""

import numpy as np

from lib.problems import Problem, outcome_hash
from miniature import world
from paper import attempts

PARTS = ("ceiling", "wasted", "choice", "ignored", "luck", "pass")


def split(evaluation: attempts.Evaluation, problems: dict[str, Problem]) -> dict[str, float]:
    """Means over the tuples of an attempts file, by PARTS; and `obeys`, the share of programs that
    do what their strategy says, of those whose strategy says something. problems: by id."""
    rows, obeyed = [], []
    for group in attempts.tuples(evaluation):
        problem = problems[group[0]["problem_id"]]
        named = [named_class(attempt["strategy"], problem) for attempt in group]
        rows.append(split_tuple(named, [attempt["outcome"] for attempt in group], problem.classes))
        obeyed += [attempt["outcome"] == said for attempt, said in zip(group, named, strict=True)
                   if said]
    means = {name: float(np.mean([row[name] for row in rows])) for name in PARTS}
    return means | {"obeys": float(np.mean(obeyed)) if obeyed else float("nan")}


def named_class(strategy: str | None, problem: Problem) -> str | None:
    """The class of what a strategy says (lib.problems.outcome_hash), as far as it is about this
    statement's family and k; it need not be one that the statement allows."""
    combo = world.read_strategy(strategy or "")
    asked = world.parse_statement(problem.statement)
    if combo is None or combo[0] != asked.family or combo[3] not in (None, asked.k):
        return None
    return outcome_hash(list(world.outcome(combo)))


def split_tuple(named: list[str | None], made: list[str | None],
                classes: dict[str, float]) -> dict[str, float]:
    """PARTS of one tuple. named, made: (K,) the class that each strategy says, that each program
    prints; classes: posterior probability of each class of the statement."""
    def mass(found: set) -> float:
        return sum(classes[name] for name in found)

    covered, hit = classes.keys() & set(named), classes.keys() & set(made)
    likeliest = sorted(classes.values(), reverse=True)
    ceiling, reachable = sum(likeliest[:len(named)]), sum(likeliest[:len(covered)])
    return {"ceiling": ceiling, "wasted": ceiling - reachable, "choice": reachable - mass(covered),
            "ignored": mass(covered - hit), "luck": mass(hit - covered), "pass": mass(hit)}
