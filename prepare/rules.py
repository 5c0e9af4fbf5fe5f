"""A teacher and a judge without a model: rules about words.

The teacher fills stock sentences with the statement's words: good for trying the wiring, not for
training. The judge sees the visible contract and the words that methods share: it does not notice a
method repeated in other words.
"""

import itertools
import re
from collections import Counter

import prompts
from lib.problems import Problem

STOCK = (
    "Simulate the process on the {a} step by step and keep the state of the {b} in an array.",
    "Sort the {a} by {b} and sweep over them once while keeping the best value so far.",
    "Run a dynamic program over the {a} whose state is the {b} handled so far.",
    "Build a graph with the {a} as nodes and an edge wherever {b} relate them, and search it "
    "breadth first.",
    "Binary search on the result and check each guess by one pass over the {a} and the {b}.",
    "Count the {a} in a hash map keyed by {b} and combine the counts.",
    "Split the {a} in halves, solve each half, and merge the two by {b}.",
    "Try every choice of {a} by backtracking and prune with a bound on the {b}.",
)
# Stock advice: what the judge calls vague, and what made negatives are spoiled with.
ADVICE = (
    "Think carefully about the constraints and choose an efficient algorithm.",
    "Use a suitable data structure to solve the problem quickly.",
    "Consider all the edge cases and handle each of them correctly.",
    "Analyse the problem, find the pattern, and implement it.",
    "Apply a standard technique from the literature that fits the task.",
    "Optimise the obvious solution until it is fast enough.",
    "Break the problem into smaller parts and solve them one after another.",
    "Read the input, process it in the right way, and print the result.",
    "Find a clever observation that makes everything simple.",
    "Do whatever the statement asks for in the best possible manner.",
)
# Words that statements of any problem have.
COMMON_WORDS = frozenset("""
    about above after also answer any are array based been being between both case cases
    consists contain contains correct could denote denoted denotes description each either
    element elements equal every exactly example first following follows for from given gives
    have her him his input inputs integer integers into its kind length less line lines list
    long main make more most must next number numbers only other output outputs over print
    problem program sample same second should single size some space separated standard string
    such sum test than that the their them then there these they third this those time total two
    until use value values want wants was way were what when where whether which while will with
    within would write you your
    """.split())
NEARLY_EQUAL = 0.8          # share of words that make two strategies one
FEWEST_WORDS = 4            # a shorter strategy is vague
ANSWER = re.compile(r"\b(?:final )?answer (?:is|to print is)\b", re.IGNORECASE)


def content_words(text: str) -> list[str]:
    """The words that say what a text is about, in order, without grammatical endings."""
    words = re.findall(r"[a-z]{3,}", text.lower())
    return [re.sub(r"(?<=...)(?:ies|es|s|ing|ed)$", "", word) for word in words
            if word not in COMMON_WORDS]


def rule_judge(statement: str, plan_text: str, k: int = 4) -> list[str]:
    """The faults that show without understanding, in the order of prompts.FAULTS."""
    try:
        strategies = prompts.parse_plan(plan_text, k)
    except prompts.PlanError:
        return ["parse"]
    breaches = set(prompts.check_plan(strategies, plan_text))
    faults = set()
    if breaches & {"extra_text", "too_long", "second_sentence"}:
        faults.add("parse")
    if "code" in breaches or any(ANSWER.search(strategy) for strategy in strategies):
        faults.add("leak")
    topic = set(content_words(statement))
    words = [set(content_words(strategy)) for strategy in strategies]
    for strategy, its_words in zip(strategies, words, strict=True):
        if is_vague(strategy):
            faults.add("vague")
        elif not its_words & topic:
            faults.add("off_topic")
    if "duplicate" in breaches or nearly_equal(words):
        faults.add("duplicate")
    return [fault for fault in prompts.FAULTS if fault in faults]


def is_vague(strategy: str) -> bool:
    advice = {prompts.normalise(sentence) for sentence in ADVICE}
    return prompts.normalise(strategy) in advice or len(strategy.split()) < FEWEST_WORDS


def nearly_equal(words: list[set[str]]) -> bool:
    """Whether two of these sets have nearly all their words in common."""
    for a, b in itertools.combinations(words, 2):
        if len(a & b) >= NEARLY_EQUAL * max(1, len(a | b)):
            return True
    return False


def rule_teacher(problem: Problem, n: int) -> list[str]:
    """n stock sentences about the statement's commonest words."""
    words = re.findall(r"[a-z]{4,}", problem.statement.lower())
    counted = Counter(word for word in words if word not in COMMON_WORDS)
    nouns = [word for word, _ in counted.most_common(8)] or ["items"]
    sentences = []
    for i in range(n):
        a, b = nouns[i % len(nouns)], nouns[(i + 1) % len(nouns)]
        sentences.append(STOCK[i % len(STOCK)].format(a=a, b=b))
    return sentences
