"""The miniature world: under-specified problems, as real ones are, whose best pass@4 is known exactly.

"Print the size of the small numbers for 5." Those below 5, or up to 5? How many they are, or their sum? Each
vague word has two or three precise readings with known odds; one reading of each word is a *combination*;
hidden tests decide which combination was meant.

    statement   a family (numbers, words), vague words for what to choose and what to report, a constant k
    posterior   product of the odds of the two readings (3:2 or 3:2:2): 2.25 from the likeliest to the rarest
    truth       drawn from the posterior once the statement is drawn; all judged on the same hidden inputs
    class       what a program prints on those inputs: never the same for two combinations of a statement
    strategy    one combination in words, "First keep numbers below 5, then count them."; said in nine ways that differ
                in how they open and link, so that a method can be repeated in other words
    program     one combination in Python

So a deterministic program hits at most one class, and the best pass@4 of each kind of policy is exact
(`ceilings`). Held-out statements pair vague words that never met in training: a planner has to compose, not
to recall.

The world is its own teacher (`gold`), its own source of gate labels (`labels`) and its own judge (`judge`,
`read`, `duplicates`), where the paper asks large models. The teacher knows neither truth nor posterior.

    python -m miniature.world build --out DIR    # train, dev, heldout, gold, labels_train, labels_val .jsonl
    python -m miniature.world show               # a problem of each family with its classes; the ceilings
"""

import argparse
import collections
import functools
import hashlib
import json
import os
import random
import re
import sys
from dataclasses import dataclass

import prompts
from lib.metrics import coordinated_ceiling, independent_ceiling
from lib.problems import Problem, outcome_hash, save_problems

SEED = 2026                 # of the hidden inputs and of all that `build` writes: the world is frozen
K = 4
CONSTANTS = range(3, 9)     # the k of a statement
HIDDEN_TESTS, PUBLIC_TESTS = 10, 2
SIZES = {"train": 1200, "dev": 100, "heldout": 300, "gold": 600, "labels_train": 1600, "labels_val": 400}
TEACHER_CONSISTENT = 0.65   # share of the teacher's strategies that the statement allows
KINDS = ("duplicate", "duplicate", "leak", "vague", "off_topic")    # of spoiled plans, in turn
LITERAL_DUPLICATES = 0.15   # share of the duplicates that repeat word for word, not in other words

# --------------------------------------------------------------------------------------------------- readings
# name: (group, Python, the words that name it). The teacher's wrong guesses come from the group of the right reading.

CHOOSE = {
    "numbers": {
        "lt": ("bound", "[x for x in a if x<{k}]", "keep numbers below {k}"),
        "le": ("bound", "[x for x in a if x<={k}]", "keep numbers up to {k}"),
        "gt": ("bound", "[x for x in a if x>{k}]", "keep numbers above {k}"),
        "ge": ("bound", "[x for x in a if x>={k}]", "keep numbers from {k} on"),
        "div": ("factor", "[x for x in a if x%{k}==0]", "keep multiples of {k}"),
        "ndiv": ("factor", "[x for x in a if x%{k}]", "drop multiples of {k}"),
        "even": ("factor", "[x for x in a if x%2==0]", "keep even numbers"),
        "odd": ("factor", "[x for x in a if x%2]", "keep odd numbers"),
        "near": ("distance", "[x for x in a if abs(x-10)<={k}]", "keep numbers within {k} of ten"),
        "far": ("distance", "[x for x in a if abs(x-10)>{k}]", "keep numbers farther than {k} from ten"),
        "first": ("place", "a[:{k}]", "keep the first {k} numbers"),
        "last": ("place", "a[-{k}:]", "keep the last {k} numbers"),
        "skip": ("place", "a[{k}:]", "skip the first {k} numbers"),
        "each": ("place", "a[::{k}]", "keep every {k}th number from the first"),
    },
    "words": {
        "lt": ("length", "[x for x in a if len(x)<{k}]", "keep words shorter than {k}"),
        "le": ("length", "[x for x in a if len(x)<={k}]", "keep words of up to {k} letters"),
        "gt": ("length", "[x for x in a if len(x)>{k}]", "keep words longer than {k}"),
        "ge": ("length", "[x for x in a if len(x)>={k}]", "keep words from {k} letters on"),
        "eq": ("length", "[x for x in a if len(x)=={k}]", "keep words of exactly {k} letters"),
        "ne": ("length", "[x for x in a if len(x)!={k}]", "drop words of exactly {k} letters"),
        "vowel": ("letters", "[x for x in a if x[0] in 'aeiou']", "keep words that begin with a vowel"),
        "open": ("letters", "[x for x in a if x[-1] in 'aeiou']", "keep words that end with a vowel"),
        "rep": ("letters", "[x for x in a if len(set(x))<len(x)]", "keep words that repeat a letter"),
        "uniq": ("letters", "[x for x in a if len(set(x))==len(x)]", "keep words of all different letters"),
        "first": ("place", "a[:{k}]", "keep the first {k} words"),
        "last": ("place", "a[-{k}:]", "keep the last {k} words"),
        "skip": ("place", "a[{k}:]", "skip the first {k} words"),
        "each": ("place", "a[::{k}]", "keep every {k}th word from the first"),
    },
}
REPORT = {
    "numbers": {
        "cnt": ("amount", "len(b)", "count them"),
        "sum": ("amount", "sum(b)", "add them up"),
        "dst": ("amount", "len(set(b))", "count different values"),
        "sq": ("amount", "sum(x*x for x in b)", "add their squares"),
        "avg": ("amount", "sum(b)//len(b)", "divide sum by count"),
        "max": ("extreme", "max(b)", "print the largest"),
        "min": ("extreme", "min(b)", "print the smallest"),
        "rng": ("extreme", "max(b)-min(b)", "subtract smallest from largest"),
        "ext": ("extreme", "max(b)+min(b)", "add smallest and largest"),
        "med": ("place", "sorted(b)[len(b)//2]", "sort and print the middle"),
        "mid": ("place", "b[len(b)//2]", "print the middle as given"),
        "fst": ("place", "b[0]", "print the first"),
        "lst": ("place", "b[-1]", "print the last"),
        "ends": ("place", "b[0]+b[-1]", "add first and last"),
    },
    "words": {
        "cnt": ("amount", "len(b)", "count them"),
        "let": ("amount", "len(''.join(b))", "count all letters"),
        "dlet": ("amount", "len(set(''.join(b)))", "count different letters"),
        "dst": ("amount", "len(set(b))", "count different words"),
        "maxl": ("extreme", "max(map(len,b))", "print the greatest length"),
        "minl": ("extreme", "min(map(len,b))", "print the least length"),
        "long": ("extreme", "max(b,key=len)", "print the longest"),
        "short": ("extreme", "min(b,key=len)", "print the shortest"),
        "abc": ("extreme", "min(b)", "print the alphabetical first"),
        "zyx": ("extreme", "max(b)", "print the alphabetical last"),
        "fst": ("place", "b[0]", "print the first as given"),
        "lst": ("place", "b[-1]", "print the last as given"),
        "mid": ("place", "b[len(b)//2]", "print the middle as given"),
        "heads": ("place", "''.join(x[0] for x in b)", "join their first letters"),
        "tails": ("place", "''.join(x[-1] for x in b)", "join their last letters"),
    },
}
# vague word: its readings, likeliest first
VAGUE_CHOOSE = {
    "numbers": {
        "small": "lt le", "big": "ge gt", "early": "first le", "late": "last skip",
        "regular": "each div", "balanced": "even div", "uneven": "odd ndiv", "close": "near first",
        "remote": "far last", "plain": "ndiv near", "sparse": "each far odd", "basic": "first even lt",
    },
    "words": {
        "short": "lt le", "long": "ge gt", "early": "first vowel", "late": "last skip",
        "regular": "each eq", "soft": "open vowel", "simple": "uniq lt", "rich": "rep ge eq",
        "exact": "eq first", "uneven": "ne each", "closing": "last open rep", "common": "ne uniq skip",
    },
}
VAGUE_REPORT = {
    "numbers": {
        "size": "cnt sum", "total": "sum sq", "top": "max fst", "bottom": "min lst",
        "middle": "med mid", "spread": "rng dst", "variety": "dst cnt", "level": "avg med",
        "frame": "ends ext", "reach": "ext max", "weight": "sq avg ends", "core": "mid avg rng",
    },
    "words": {
        "size": "cnt let", "length": "let maxl", "variety": "dlet dst", "start": "heads fst",
        "end": "tails lst", "leader": "abc fst", "peak": "long zyx", "core": "mid short",
        "reach": "maxl dlet", "floor": "minl short", "mark": "heads tails long", "tail": "zyx lst minl",
    },
}
ODDS = {2: (3, 2), 3: (3, 2, 2)}
FORMS = ("Print the {report} of the {choose} {family} for {k}.",
         "For {k}, give the {report} of {choose} {family}.")

# ----------------------------------------------------------------------------------------------- combinations
# (family, choose, report, k); k is None where the readings do not use it

VOCABULARY = """an is of to at we use sea ant odd egg ice arm ear one area idea loop moon tree book apple
ocean queue mango tiger river house orange banana letter window animal uncle object kitchen octopus umbrella
village captain elephant question notebook envelope aquarium adventure chocolate education umbrellas
crocodile""".split()


OPENINGS, LINKS = ("First", "Now", "Here"), (", ", ", then ", ", and ")


def words(slot: dict, family: str, name: str, k: int | None = None) -> str:
    return slot[family][name][2].replace("{k}", str(k))


def compose(chosen: str, reported: str, rng: random.Random) -> str:
    """A sentence of the two halves of a strategy, opened and linked in one of nine ways."""
    return f"{rng.choice(OPENINGS)} {chosen}{rng.choice(LINKS)}{reported}."


def code(slot: dict, family: str, name: str, k: int | None = None) -> str:
    return slot[family][name][1].replace("{k}", str(k))


def combination(family: str, choose: str, report: str, k: int) -> tuple:
    return (family, choose, report, k if "{k}" in CHOOSE[family][choose][1] else None)


def program(combo: tuple) -> str:
    family, choose, report, k = combo
    line = "input().split()" if family == "words" else "[*map(int,input().split())]"
    return f"a={line}\nb={code(CHOOSE, family, choose, k)}\nprint({code(REPORT, family, report)})\n"


@functools.cache
def hidden_inputs(family: str) -> tuple[str, ...]:
    """One line of 11 to 14 items a test, the same for all problems of a family: they tell none apart.

    Drawn again until every reading at every k chooses something: no program needs a case for the empty list.
    """
    rng = random.Random(f"{SEED} {family}")
    found: list[str] = []
    while len(found) < HIDDEN_TESTS + PUBLIC_TESTS:
        n = rng.randint(11, 14)
        a = rng.choices(VOCABULARY, k=n) if family == "words" else [rng.randint(1, 30) for _ in range(n)]
        if all(eval(code(CHOOSE, family, c, k), {"a": a}) for c in CHOOSE[family] for k in CONSTANTS):
            found.append(" ".join(map(str, a)))
    return tuple(found)


@functools.cache
def outputs(combo: tuple) -> tuple[str, ...]:
    """What the combination's program prints: on the graded tests, then on the public ones."""
    family, choose, report, k = combo
    printed = []
    for line in hidden_inputs(family):
        a = line.split() if family == "words" else [int(x) for x in line.split()]
        b = eval(code(CHOOSE, family, choose, k), {"a": a})
        printed.append(str(eval(code(REPORT, family, report), {"b": b})))
    return tuple(printed)


def outcome(combo: tuple) -> tuple[str, ...]:
    """The class of a combination."""
    return outputs(combo)[:HIDDEN_TESTS]


# ------------------------------------------------------------------------------------------------- statements

@dataclass(frozen=True)
class Statement:
    family: str
    choose: str      # the vague words
    report: str
    k: int
    form: int = 0    # of FORMS

    def __str__(self) -> str:
        return FORMS[self.form].format(**vars(self))

    @property
    def readings(self) -> tuple[list[str], list[str]]:
        """What the two vague words can mean, likeliest first."""
        return VAGUE_CHOOSE[self.family][self.choose].split(), VAGUE_REPORT[self.family][self.report].split()

    @property
    def posterior(self) -> dict[tuple, float]:
        """combination -> probability that it was meant"""
        chosen, reported = self.readings
        odds = {combination(self.family, c, r, self.k): c_odds * r_odds
                for c, c_odds in zip(chosen, ODDS[len(chosen)], strict=True)
                for r, r_odds in zip(reported, ODDS[len(reported)], strict=True)}
        return {combo: w / sum(odds.values()) for combo, w in odds.items()}

    @property
    def favourite(self) -> tuple:
        """The combination that the base model writes out of habit: allowed, and the least likely."""
        chosen, reported = self.readings
        return combination(self.family, chosen[-1], reported[-1], self.k)

    @property
    def sound(self) -> bool:
        """No two combinations print the same on all graded tests."""
        return len({outcome(combo) for combo in self.posterior}) == len(self.posterior)


def understand(text: str) -> Statement:
    """The statement behind its text."""
    for form, template in enumerate(FORMS):
        m = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(template)), text.strip())
        family = m["family"] if m else None
        if family in CHOOSE and m["choose"] in VAGUE_CHOOSE[family] and m["report"] in VAGUE_REPORT[family]:
            return Statement(family, m["choose"], m["report"], int(m["k"]), form)
    raise ValueError(f"not a statement of the miniature world: {text!r}")


def split_of(family: str, choose: str, report: str) -> str:
    """A Latin square over the vague words: each has 8 partners in training, 1 in dev and 3 held out."""
    i, j = list(VAGUE_CHOOSE[family]).index(choose), list(VAGUE_REPORT[family]).index(report)
    return (["heldout"] * 3 + ["dev"] + ["train"] * 8)[(i + 5 * j) % 12]


@functools.cache
def statements(split: str) -> tuple[Statement, ...]:
    """All sound statements of a split, in every form."""
    every = (Statement(f, c, r, k, form) for f in CHOOSE for c in VAGUE_CHOOSE[f] for r in VAGUE_REPORT[f]
             if split_of(f, c, r) == split for k in CONSTANTS for form in range(len(FORMS)))
    return tuple(s for s in every if s.sound)


def draw_truth(statement: Statement, rng: random.Random) -> tuple:
    return rng.choices(list(statement.posterior), list(statement.posterior.values()))[0]


def make_problem(id: str, statement: Statement, truth: tuple) -> Problem:
    lines = zip(hidden_inputs(statement.family), outputs(truth), strict=True)
    tests = [{"input": i + "\n", "output": o + "\n"} for i, o in lines]
    classes = {outcome_hash(list(outcome(combo))): p for combo, p in statement.posterior.items()}
    return Problem(id=id, source="miniature", statement=str(statement), tests=tests[:HIDDEN_TESTS],
                   public_tests=tests[HIDDEN_TESTS:], classes=classes)


def problems(split: str) -> list[Problem]:
    """The problems of a split. No two dev or held-out statements differ in their form alone."""
    rng = random.Random(f"{SEED} {split}")
    pool = list(statements(split))
    rng.shuffle(pool)
    if split != "train":
        pool = list({(s.family, s.choose, s.report, s.k): s for s in pool}.values())
    assert len(pool) >= SIZES[split]
    pool = pool[:SIZES[split]]
    return [make_problem(f"mini/{split}/{i}", s, draw_truth(s, rng)) for i, s in enumerate(pool)]


# --------------------------------------------------------------------------------------------------- ceilings

def ceilings(split: str, k: int = K) -> dict[str, float]:
    """The best pass@k of four kinds of policy, averaged over a split's problems and their posteriors; exact.

    pass@1       the likeliest class
    constant     one k-tuple that never reads the statement (a program can tell families by its input, so
                 each family has a tuple). Classes are disjoint, so a tuple covers the sum of its members'
                 shares: the k classes of largest total share are the optimum, and nothing has to be searched
    independent  k draws from one distribution over programs, the best for each statement (water filling)
    coordinated  the k likeliest classes
    """
    asked = [understand(p.statement) for p in problems(split)]
    posteriors = [list(s.posterior.values()) for s in asked]
    share: dict[str, collections.Counter] = {family: collections.Counter() for family in CHOOSE}
    for s in asked:
        for combo, p in s.posterior.items():
            share[s.family][outcome(combo)] += p
    constant = sum(p for counts in share.values() for _, p in counts.most_common(k))
    return {"pass@1": sum(map(max, posteriors)) / len(asked), "constant": constant / len(asked),
            "independent": sum(independent_ceiling(p, k) for p in posteriors) / len(asked),
            "coordinated": sum(coordinated_ceiling(p, k) for p in posteriors) / len(asked)}


# ------------------------------------------------------------------------------------------- the oracle judge

VAGUE = ("Think about small cases.", "Use a clever trick.", "Do what is asked.", "Take care of every case.")
FOREIGN = ("Build a graph and search it.", "Sort the intervals by their ends.", "Fill a table over subsets.",
           "Walk the tree from its root.")
# No precise strategy holds any of these.
LEAK = re.compile(r"[][=<>%`(){}]|\banswer\b|\bset b\b", re.IGNORECASE)

CHOOSE_BY_WORDS = {words(CHOOSE, f, c, "{k}"): (f, c) for f in CHOOSE for c in CHOOSE[f]}
REPORT_BY_WORDS = {(f, words(REPORT, f, r)): r for f in REPORT for r in REPORT[f]}
SENTENCE = re.compile(f"(?:{'|'.join(OPENINGS).lower()}) (.*?)(?:{'|'.join(sorted(LINKS, reverse=True))})(.*)")


def say(combo: tuple, rng: random.Random, unlike: str = "") -> str:
    """A strategy: the combination in words, in any of their wordings but `unlike`."""
    family, choose, report, k = combo
    while True:
        text = compose(words(CHOOSE, family, choose, k), words(REPORT, family, report), rng)
        if text != unlike:
            return text


def read(strategy: str) -> tuple | None:
    """The combination that a strategy says, in whichever words, or None if it says none."""
    m = SENTENCE.fullmatch(prompts.normalise(strategy))
    if not m:
        return None
    k = re.search(r"\d+", m[1])
    family, choose = CHOOSE_BY_WORDS.get(re.sub(r"\d+", "{k}", m[1]), (None, None))
    report = REPORT_BY_WORDS.get((family, m[2]))
    return report and (family, choose, report, int(k[0]) if k else None)


@functools.cache
def _programs() -> dict[str, tuple]:
    every = (combination(f, c, r, k) for f in CHOOSE for c in CHOOSE[f] for r in REPORT[f] for k in CONSTANTS)
    return {program(combo).strip(): combo for combo in every}


def category(text: str, statement: str | None = None) -> str:
    """The classifier of D_alg (Eq. 16), exact: the combination that a strategy says or a program carries out, else "other"."""
    combo = read(text) or _programs().get(text.strip())
    return " ".join(map(str, combo)) if combo else "other"


def duplicates(statement: str, strategies: list[str]) -> int:
    """How many strategies repeat an earlier one: the same combination in any words, or the same text."""
    return len(strategies) - len({read(s) or prompts.normalise(s) for s in strategies})


def judge(statement: str, plan_text: str) -> list[str]:
    """The faults of a plan (prompts.FAULTS), [] for none. The gate's contract: not whether it will succeed.

    A precise reading that the statement does not allow is no fault; one for another family or k is off topic.
    """
    asked = understand(statement)
    try:
        strategies = prompts.parse_plan(plan_text, K)
    except prompts.PlanError:
        return ["parse"]
    faults = {"leak"} if LEAK.search(plan_text) else set()          # on a label line or beside them
    if duplicates(statement, strategies):
        faults.add("duplicate")
    for s in strategies:
        combo = read(s)
        if combo is None and not LEAK.search(s):
            faults.add("off_topic" if _foreign(s, asked) else "vague")
        elif combo is not None and (combo[0] != asked.family or combo[3] not in (None, asked.k)):
            faults.add("off_topic")
    return [f for f in prompts.FAULTS if f in faults]


def _foreign(strategy: str, asked: Statement) -> bool:
    """Whether an unreadable strategy speaks of something else: a stock sentence, the other family's items."""
    other = "word" if asked.family == "numbers" else "number"
    return strategy in FOREIGN or re.search(rf"\b{other}s?\b", strategy, re.IGNORECASE) is not None


# ------------------------------------------------------------------------------------------------ the teacher

def teacher_strategy(asked: Statement, rng: random.Random) -> tuple:
    """A plausible precise combination: allowed by the statement, or one slot read in a related wrong way."""
    chosen, reported = asked.readings
    choose, report = rng.choice(chosen), rng.choice(reported)
    if rng.random() > TEACHER_CONSISTENT:
        if rng.random() < 0.5:
            choose = rng.choice(_related(CHOOSE[asked.family], chosen))
        else:
            report = rng.choice(_related(REPORT[asked.family], reported))
    return combination(asked.family, choose, report, asked.k)


def _related(slot: dict, allowed: list[str]) -> list[str]:
    groups = {slot[name][0] for name in allowed}
    return [name for name, (group, _, _) in slot.items() if group in groups and name not in allowed]


def teacher_tuple(asked: Statement, rng: random.Random) -> list[tuple]:
    """K different combinations, in the teacher's order."""
    found: dict[tuple, None] = {}
    while len(found) < K:
        found[teacher_strategy(asked, rng)] = None
    return in_order(list(found))


def in_order(combos: list[tuple]) -> list[tuple]:
    """The teacher goes through the readings as the tables list them. So what comes later in a tuple is further on, and a
    planner of a million parameters can learn not to repeat itself without comparing every pair of strategies."""
    return sorted(combos, key=lambda c: (list(CHOOSE[c[0]]).index(c[1]), list(REPORT[c[0]]).index(c[2])))


def leak(combo: tuple, rng: random.Random) -> str:
    """A combination given away: in code, in code read aloud (without a mark of code), or as an answer."""
    family, choose, report, k = combo
    chosen, reported = code(CHOOSE, family, choose, k), code(REPORT, family, report)
    kind = rng.random()
    if kind < 0.4:
        return f"Use b={chosen}, print({reported})."
    if kind < 0.85:
        return f"Set b to {_aloud(chosen)}, print {_aloud(reported)}."
    return f"The answer is {rng.choice(outputs(combo))}."


ALOUD = (("''.join", "join"), ("'aeiou'", "vowels"), ("==", " is "), ("!=", " is not "), ("<=", " to "),
         (">=", " from "), ("<", " under "), (">", " over "), ("//", " by "), ("%", " mod "),
         ("*", " times "), ("::", "step "), ("(", " of "), ("[", " "), (",", " "), (":", " cut "), (")", ""),
         ("]", ""), ("=", " "))


def _aloud(text: str) -> str:
    for mark, word in ALOUD:
        text = text.replace(mark, word)
    return " ".join(text.split())


def vague(asked: Statement, rng: random.Random) -> str:
    """A strategy that does not say what to do: the statement's vague words in a slot or both, or advice."""
    family, choose, report, k = teacher_strategy(asked, rng)
    halves = (f"keep the {asked.choose} ones", words(CHOOSE, family, choose, k)), \
             (f"print their {asked.report}", words(REPORT, family, report))
    kind = rng.randrange(4)             # both halves vague, the second, the first, or advice
    return compose(halves[0][kind == 1], halves[1][kind == 2], rng) if kind < 3 else rng.choice(VAGUE)


def off_topic(asked: Statement, rng: random.Random) -> str:
    """A strategy for another problem: of the other family, for another k, or on another subject."""
    kind = rng.random()
    if kind < 0.4:
        other = rng.choice([s for s in statements("train") if s.family != asked.family])
        return say(teacher_strategy(other, rng), rng)
    if kind < 0.7:
        k = rng.choice([k for k in CONSTANTS if k != asked.k])
        with_k = [c for c in asked.posterior if c[3]]
        if with_k:
            return say(rng.choice(with_k)[:3] + (k,), rng)
    return rng.choice(FOREIGN)


def spoil(kind: str, asked: Statement, combos: list[tuple], rng: random.Random) -> list[str]:
    """A well-formed plan with a fault of this kind in one of its strategies."""
    plan = [say(combo, rng) for combo in combos]
    i, j = rng.sample(range(K), 2)
    if kind == "duplicate":
        literally = rng.random() < LITERAL_DUPLICATES
        plan[i] = plan[j] if literally else say(combos[j], rng, unlike=plan[j])
    elif kind == "leak":
        plan[i] = leak(combos[i], rng)
    else:
        plan[i] = {"vague": vague, "off_topic": off_topic}[kind](asked, rng)
    return plan


def gold() -> list[dict]:
    """Stage 1: strict tuples on training statements."""
    rng = random.Random(f"{SEED} gold")
    rows = []
    for i in range(SIZES["gold"]):
        asked = rng.choice(statements("train"))
        combos = teacher_tuple(asked, rng)
        think = f"{asked.choose}: {_listed(CHOOSE, combos, 1)}. {asked.report}: {_listed(REPORT, combos, 2)}."
        rows.append({"problem_id": f"mini/gold/{i}", "statement": str(asked), "think": think,
                     "strategies": [say(combo, rng) for combo in combos]})
    return rows


def _listed(slot: dict, combos: list[tuple], place: int) -> str:
    """The readings at one place of the combinations, in words."""
    said = (words(slot, combo[0], combo[place], combo[3]) for combo in combos)
    return " or ".join(dict.fromkeys(said))


def labels(split: str) -> list[dict]:
    """Stage 2: for each problem a plan that passes and a spoiled one. No statement is in both splits."""
    pool = list(statements("train"))
    random.Random(f"{SEED} labels").shuffle(pool)
    cut = len(pool) * 4 // 5
    pool = pool[:cut] if split == "train" else pool[cut:]
    rng = random.Random(f"{SEED} labels {split}")
    rows = []
    for i in range(SIZES[f"labels_{split}"] // 2):
        asked, kind = rng.choice(pool), KINDS[i % len(KINDS)]
        plans = {"positive": [say(combo, rng) for combo in teacher_tuple(asked, rng)],
                 kind: spoil(kind, asked, teacher_tuple(asked, rng), rng)}
        rows += [{"problem_id": f"mini/labels/{split}/{i}", "statement": str(asked),
                  "plan": prompts.format_plan(plan), "label": int(kind == "positive"), "kind": kind}
                 for kind, plan in plans.items()]
    return rows


# --------------------------------------------------------------------------------------------------- commands

def files() -> dict[str, list]:
    """What `build` writes, by file name."""
    return {"train": problems("train"), "dev": problems("dev"), "heldout": problems("heldout"),
            "gold": gold(), "labels_train": labels("train"), "labels_val": labels("val")}


def fingerprint() -> str:
    """A hash of all that `build` writes, but for field names and outcome hashes, which data.py may change."""
    def plain(row):
        if isinstance(row, Problem):
            return [row.id, row.statement, row.tests, list(row.classes.values())]
        return row
    written = {name: [plain(row) for row in rows] for name, rows in files().items()}
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]


def build(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, rows in files().items():
        path = os.path.join(folder, f"{name}.jsonl")
        if isinstance(rows[0], Problem):
            save_problems(path, rows)
        else:
            with open(path, "w", encoding="utf-8") as f:
                f.writelines(json.dumps(row) + "\n" for row in rows)


def show() -> None:
    rng = random.Random(0)
    for family in CHOOSE:
        asked = rng.choice([s for s in statements("heldout") if s.family == family])
        print(f"{asked}\n  on the input: {hidden_inputs(family)[0]}")
        for combo, p in asked.posterior.items():
            print(f"  {p:.2f}  {say(combo, rng):60}  prints {outcome(combo)[0]}")
        print("\n" + program(asked.favourite))
        for kind in ("none", *dict.fromkeys(KINDS)):
            combos = teacher_tuple(asked, rng)
            clean = [say(combo, rng) for combo in combos]
            plan = clean if kind == "none" else spoil(kind, asked, combos, rng)
            print(f"{prompts.format_plan(plan)}\n  faults: {kind}\n")
    for split in ("train", "heldout"):
        best = ", ".join(f"{name} {value:.3f}" for name, value in ceilings(split).items())
        print(f"{split}: {len(statements(split))} statements; best pass@{K}: {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The miniature world: problems, teacher's data, ceilings.")
    parser.add_argument("command", choices=["build", "show"])
    parser.add_argument("--out", default="runs/world", help="folder for build (default: %(default)s)")
    args = parser.parse_args()
    if args.command == "show":
        show()
        return
    build(args.out)
    print(f"{args.out}: world {fingerprint()}, " + ", ".join(f"{name} {n}" for name, n in SIZES.items()))


if __name__ == "__main__":
    main()
