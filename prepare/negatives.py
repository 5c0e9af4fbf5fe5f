"""Made negatives for the gate (Appendix D): plans that look well formed and have one fault."""

import random
import re

import prompts
from prepare.rules import ADVICE

NEGATIVES = ("duplicate", "leak", "vague", "off_topic")
ROOM_FOR_CODE = 25          # words that a leak may need beside the method

GIVEAWAYS = (
    "for i in range(n): total += a[i] and then print(total)",
    "print(sum(x for x in a if x % 2 == 0))",
    "dp[i] = max(dp[i - 1], dp[i - 2] + a[i]) and then print(dp[n])",
    "while lo < hi: mid = (lo + hi) // 2, then print(lo)",
    "ans = n * (n + 1) // 2; print(ans)",
    "def solve(a): return sorted(a)[len(a) // 2]",
    "the final answer is {n} for the first sample and {m} for the second",
    "so the answer to print is always {n}",
)
OTHER_WORDS = """\
use = employ
using = by means of
sort = order
sorted = ordered
array = list
compute = work out
calculate = determine
iterate over = walk through
find = determine
keep = hold on to
keeping = holding on to
count = tally
build = construct
check = test
every = each
smallest = least
largest = greatest
maximum = largest value
minimum = smallest value
step by step = one step after another
try = go through
store = save
then = after that
merge = join
split = divide
search = look through"""


def shortened(strategy: str, words: int) -> str:
    return " ".join(strategy.rstrip(". ").split()[:words]).rstrip(",;: ")


def reworded(strategy: str) -> str:
    """The same method in other words, by the list above."""
    other = strategy
    for line in OTHER_WORDS.split("\n"):
        word, _, new = line.partition(" = ")
        other = re.sub(rf"\b{word}\b", new, other)
        other = re.sub(rf"\b{word.capitalize()}\b", new.capitalize(), other)
    if prompts.normalise(other) == prompts.normalise(strategy):
        other = f"Once again {strategy[0].lower()}{strategy[1:]}"
    return shortened(other, prompts.MAX_WORDS) + "."


def spoiled(kind: str, plan: list[str], rephrased: str | None, foreign: list[str],
            rng: random.Random) -> list[str]:
    """`plan` with the fault `kind`.

    rephrased: plan[0] in other words, None to use the list. foreign: another problem's plan.
    """
    bad = list(plan)
    i = rng.randrange(len(bad))
    if kind == "duplicate":
        place = rng.randrange(1, len(bad))
        bad[place] = rephrased or reworded(bad[0])
    elif kind == "leak":
        code = rng.choice(GIVEAWAYS).format(n=rng.randint(0, 50), m=rng.randint(0, 50))
        bad[i] = f"{shortened(bad[i], prompts.MAX_WORDS - ROOM_FOR_CODE)}, in short {code}."
    elif kind == "vague":
        for place in rng.sample(range(len(bad)), rng.randint(1, 2)):
            bad[place] = rng.choice([sentence for sentence in ADVICE if sentence not in bad])
    else:
        # off topic: the whole plan, or one method of it
        places = range(len(bad)) if rng.random() < 0.5 else [i]
        for place in places:
            bad[place] = foreign[place % len(foreign)]
    return bad
