"""Prompts of teacher and judge, and parsers of their replies. Texts: prompts.TEMPLATES."""

import re

from prompts import FAULTS, cut_thought, fill, format_plan, problem_holes

# Appendix F.1
TAXONOMY = ("DP", "greedy", "graph", "search/backtrack", "number-theory/math", "simulation",
            "data-structure", "divide-and-conquer", "brute-force", "other")


def teacher(problem, n: int = 6) -> str:
    return fill("teacher", n=n, **problem_holes(problem))


def teacher_trace(problem, strategies: list[str]) -> str:
    return fill("teacher_trace", plan=format_plan(strategies), k=len(strategies),
                **problem_holes(problem))


def rephrase(strategy: str) -> str:
    return fill("rephrase", strategy=strategy)


def judge_candidates(problem, candidates: list[str]) -> str:
    numbered = "\n".join(f"{i}: {c}" for i, c in enumerate(candidates, 1))
    return fill("judge_candidates", candidates=numbered, **problem_holes(problem))


def judge_plan(problem, plan_text: str, k: int = 4) -> str:
    return fill("judge_plan", plan=plan_text.strip(), k=k, **problem_holes(problem))


def classify(text: str, statement: str | None = None) -> str:
    """Appendix F: which category of TAXONOMY does a strategy (given its statement) or a program
    (no statement) belong to?"""
    categories = ", ".join(TAXONOMY)
    if statement is None:
        return fill("classify_program", text=text, categories=categories)
    return fill("classify_plan", text=text, statement=statement, categories=categories)


# ----------------------------------------------------------------------------------------------
# Parsers: total, and None for a reply that cannot be used

VERDICT = re.compile(r"^[^\S\n]*(\d{1,4})\s*[.):-]\s*(KEEP|DROP)\b", re.MULTILINE | re.IGNORECASE)
FAULTS_LINE = re.compile(r"^[^\S\n]*faults\s*:(.*)$", re.MULTILINE | re.IGNORECASE)


def plain(text: str) -> str:
    """A judge's reply without its thought and the marks of bold and code."""
    return re.sub("[*`]", "", cut_thought(text))


def parse_verdicts(text: str, n: int) -> list[bool] | None:
    """KEEP (True) or DROP for each of n candidates, or None unless each is judged exactly once."""
    kept = {}
    for number, word in VERDICT.findall(plain(text)):
        if int(number) in kept:
            return None
        kept[int(number)] = word.upper() == "KEEP"
    if sorted(kept) != list(range(1, n + 1)):
        return None
    return [kept[i] for i in range(1, n + 1)]


def parse_faults(text: str) -> list[str] | None:
    """The faults that a judge named, [] for none; None if the reply names no fault, or one that
    does not exist."""
    lines = FAULTS_LINE.findall(plain(text))
    if not lines:
        return None
    names = [name.strip(" .\t\r").lower() for name in lines[-1].split(",")]
    if names == ["none"]:
        return []
    if not all(name in FAULTS for name in names):
        return None
    return sorted(set(names), key=FAULTS.index)


# Other names of the categories, in the spelling of `category_words`.
SYNONYMS = {
    "dynamic programming": "DP", "dynamic program": "DP", "memoization": "DP",
    "graphs": "graph", "graph theory": "graph", "graph search": "graph",
    "search and backtracking": "search/backtrack", "search backtracking": "search/backtrack",
    "backtracking": "search/backtrack", "backtrack": "search/backtrack",
    "number theory": "number-theory/math", "math": "number-theory/math",
    "maths": "number-theory/math", "mathematics": "number-theory/math",
    "simulate": "simulation", "data structures": "data-structure",
    "brute force search": "brute-force", "exhaustive search": "brute-force",
    "divide conquer": "divide-and-conquer",
}


def category_words(text: str) -> str:
    """Lower case, words only: "Data-Structure" and "data structure" are one."""
    return " ".join(re.findall("[a-z]+", text.lower()))


CATEGORIES = {category_words(category): category for category in TAXONOMY} | SYNONYMS
# longest first: "number theory math" before "number theory"
CATEGORY = re.compile(r"\b(?:" + "|".join(sorted(CATEGORIES, key=len, reverse=True)) + r")\b")


def parse_category(text: str) -> str | None:
    """The category of TAXONOMY that a reply names, or None unless it names exactly one."""
    words = category_words(plain(text))
    if words == "search":
        return "search/backtrack"       # within a sentence the word says nothing
    named = {CATEGORIES[name] for name in CATEGORY.findall(words)}
    if len(named) == 2:
        named.discard("other")          # "greedy, no other"
    return named.pop() if len(named) == 1 else None
