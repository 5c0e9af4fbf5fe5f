"""Prompts of the rival methods, and parsers of their replies. Texts: prompts.TEMPLATES."""

from prompts import TEMPLATES, cut_thought, fill, problem_holes


def plan_and_solve(problem) -> str:
    return fill("plan_and_solve", **problem_holes(problem))


def sketch(problem) -> str:
    return fill("sketch", **problem_holes(problem))


def skill(problem, z: int) -> str:
    """UpSkill: z counts from 1."""
    return fill("skill", z=z, **problem_holes(problem))


def observations(problem, n: int = 10) -> str:
    """PlanSearch (Appendix P), first turn."""
    return fill("observations", n=n, **problem_holes(problem))


def plan_from_observations(problem, chosen: list[str]) -> str:
    """PlanSearch (Appendix P), second turn."""
    listed = "\n".join(f"- {o}" for o in chosen) or "- (none needed)"
    return fill("plan_from_observations", observations=listed, **problem_holes(problem))


def fixed_strategies() -> list[str]:
    """The strategies of Table 7's Fixed-Strategy Ensemble."""
    return TEMPLATES["fixed_strategies"].splitlines()


def extract_answer(text: str) -> str | None:
    """Output prediction: the value of the last [ANSWER]...[/ANSWER], without an `assert f(x) ==`
    before it; None if there is none."""
    before, closing, _ = cut_thought(text).rpartition("[/ANSWER]")
    _, opening, value = before.rpartition("[ANSWER]")
    if not closing or not opening:
        return None
    value = value.partition("[/ANSWER]")[0].strip()
    if value.startswith("assert "):
        value = value.partition("==")[2].strip()
    return value or None
