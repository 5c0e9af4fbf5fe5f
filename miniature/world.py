"""The miniature world: under-specified problems, as real ones are, whose best pass@4 is known.

"Print the size of the small numbers for 5." Those below 5, or up to 5? How many, or their sum? Each
vague word has two or three precise readings with known odds. One reading of each word makes a
combination. Hidden tests decide which combination was meant.

    statement   a family (numbers, words), a vague word for what to choose, one for what to report,
                and a constant k
    posterior   probability of each combination: the product of the odds of its two readings
                (3:2 or 3:2:2), so the likeliest is 2.25 times as likely as the rarest
    truth       one combination, drawn from the posterior; its outputs are the expected ones
    class       what a program prints on the hidden inputs. Two combinations of a statement never
                share a class, so a deterministic program solves at most one of them
    strategy    one combination in words: "First keep numbers below 5, then count them.", in nine
                wordings, so that a plan can repeat a method in other words
    program     one combination in Python

The best pass@4 is therefore exact for each kind of policy (`ceilings`). Held-out statements pair
vague words that never meet in training: a planner has to compose, not to recall.

Where the paper asks large models, the world has rules: `gold` and `labels` are the teacher's data,
`judge` names the faults of a plan. The teacher knows neither truth nor posterior.

    python -m miniature.world build --out DIR    # train dev heldout gold labels_{train,val} .jsonl
    python -m miniature.world show               # a problem of each family; the ceilings

Two further settings (--setting, SETTINGS) do not flatter the method: in `settled` one reading holds
nearly all of the posterior, so that coordination can add little; in `uneven` some strategies are
harder to carry out than others.
"""

import argparse
import collections
import functools
import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import prompts
from lib import files
from lib.metrics import coordinated_ceiling, independent_ceiling
from lib.problems import Problem, outcome_hash, save_problems

Combination = tuple[str, str, str, int | None]      # family, choose, report, k if its code has one

# Frozen, in each setting: every published number depends on this seed and on the tables below, and
# tests/test_world.py holds the hash of all that `build` writes.
SEED = 2026
K = 4
CONSTANTS = range(3, 9)     # the k of a statement
HIDDEN_TESTS, PUBLIC_TESTS = 10, 2
SIZES = {"train": 1200, "dev": 100, "heldout": 300,
         "gold": 600, "labels_train": 1600, "labels_val": 400}
TEACHER_CONSISTENT = 0.65   # share of the teacher's strategies that the statement allows
KINDS = ("duplicate", "duplicate", "leak", "vague", "off_topic")    # of spoiled plans, in turn
LITERAL_DUPLICATES = 0.15   # share of the duplicates that repeat word for word

# --------------------------------------------------------------------------------------------------
# Readings. name: (group, Python, words). The teacher's wrong guesses come from the group of the
# right reading.

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
        "far": ("distance", "[x for x in a if abs(x-10)>{k}]",
                "keep numbers farther than {k} from ten"),
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
        "vowel": ("letters", "[x for x in a if x[0] in 'aeiou']",
                  "keep words that begin with a vowel"),
        "open": ("letters", "[x for x in a if x[-1] in 'aeiou']",
                 "keep words that end with a vowel"),
        "rep": ("letters", "[x for x in a if len(set(x))<len(x)]",
                "keep words that repeat a letter"),
        "uniq": ("letters", "[x for x in a if len(set(x))==len(x)]",
                 "keep words of all different letters"),
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
# Vague word: its readings, likeliest first.
VAGUE_CHOOSE = {
    "numbers": {
        "small": "lt le", "big": "ge gt", "early": "first le", "late": "last skip",
        "regular": "each div", "balanced": "even div", "uneven": "odd ndiv", "close": "near first",
        "remote": "far last", "plain": "ndiv near",
        "sparse": "each far odd", "basic": "first even lt",
    },
    "words": {
        "short": "lt le", "long": "ge gt", "early": "first vowel", "late": "last skip",
        "regular": "each eq", "soft": "open vowel", "simple": "uniq lt", "rich": "rep ge eq",
        "exact": "eq first", "uneven": "ne each",
        "closing": "last open rep", "common": "ne uniq skip",
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
        "reach": "maxl dlet", "floor": "minl short",
        "mark": "heads tails long", "tail": "zyx lst minl",
    },
}


@dataclass(frozen=True)
class Setting:
    """What differs between worlds. Words, readings, hidden inputs and forms are the same in all."""
    odds: dict[int, tuple[int, ...]]    # of a vague word's readings, by their number
    favourite: int                      # the base's habit: place among the readings
    hard: tuple[str, ...] = ()          # groups of REPORT whose programs the base often breaks off
    slip: float = 0.0                   # share of such programs in its lessons


SETTINGS = {
    # the least likely reading is the base's habit: RL has something to mend
    "open": Setting({2: (3, 2), 3: (3, 2, 2)}, favourite=-1),
    "settled": Setting({2: (19, 1), 3: (19, 1, 1)}, favourite=0),
    "uneven": Setting({2: (3, 2), 3: (3, 2, 2)}, favourite=-1, hard=("extreme",), slip=0.6),
}
FORMS = ("Print the {report} of the {choose} {family} for {k}.",
         "For {k}, give the {report} of {choose} {family}.")

OPENINGS = ("First", "Now", "Here")
LINKS = (", ", ", then ", ", and ")

# of the inputs of the word family
VOCABULARY = """an is of to at we use sea ant odd egg ice arm ear one area idea loop moon tree
book apple ocean queue mango tiger river house orange banana letter window animal uncle object
kitchen octopus umbrella village captain elephant question notebook envelope aquarium adventure
chocolate education umbrellas crocodile""".split()


def words(slot: dict, family: str, name: str, k: int | None = None) -> str:
    """A reading in words; slot is CHOOSE or REPORT."""
    return slot[family][name][2].replace("{k}", str(k))


def code(slot: dict, family: str, name: str, k: int | None = None) -> str:
    """A reading in Python."""
    return slot[family][name][1].replace("{k}", str(k))


def compose(chosen: str, reported: str, rng: random.Random) -> str:
    """A sentence from the two halves of a strategy, in one of nine wordings."""
    opening = rng.choice(OPENINGS)
    link = rng.choice(LINKS)
    return f"{opening} {chosen}{link}{reported}."


# --------------------------------------------------------------------------------------------------
# Combinations

def combination(family: str, choose: str, report: str, k: int) -> Combination:
    uses_k = "{k}" in CHOOSE[family][choose][1]
    return (family, choose, report, k if uses_k else None)


def program(combo: Combination) -> str:
    family, choose, report, k = combo
    line = "input().split()" if family == "words" else "[*map(int,input().split())]"
    choosing = code(CHOOSE, family, choose, k)
    reporting = code(REPORT, family, report)
    return f"a={line}\nb={choosing}\nprint({reporting})\n"


def parse_input(family: str, line: str) -> list:
    items = line.split()
    return items if family == "words" else [int(x) for x in items]


def choose_items(items: list, family: str, choose: str, k: int | None) -> list:
    return eval(code(CHOOSE, family, choose, k), {"a": items})


@functools.cache
def hidden_inputs(family: str) -> tuple[str, ...]:
    """One line of 11 to 14 items per test. All problems of a family share them, so that an input
    tells nothing about its problem."""
    rng = random.Random(f"{SEED} {family}")
    inputs: list[str] = []
    while len(inputs) < HIDDEN_TESTS + PUBLIC_TESTS:
        n = rng.randint(11, 14)
        if family == "words":
            items = rng.choices(VOCABULARY, k=n)
        else:
            items = [rng.randint(1, 30) for _ in range(n)]
        # Every reading must choose something at every k: then no program needs a case for an empty
        # list.
        if all(choose_items(items, family, choose, k)
               for choose in CHOOSE[family] for k in CONSTANTS):
            inputs.append(" ".join(map(str, items)))
    return tuple(inputs)


@functools.cache
def outputs(combo: Combination) -> tuple[str, ...]:
    """What the combination's program prints: on the hidden tests, then on the public ones."""
    family, choose, report, k = combo
    printed = []
    for line in hidden_inputs(family):
        chosen = choose_items(parse_input(family, line), family, choose, k)
        value = eval(code(REPORT, family, report), {"b": chosen})
        printed.append(str(value))
    return tuple(printed)


def outcome(combo: Combination) -> tuple[str, ...]:
    """The class of a combination."""
    return outputs(combo)[:HIDDEN_TESTS]


# --------------------------------------------------------------------------------------------------
# Statements

@dataclass(frozen=True)
class Statement:
    family: str
    choose: str      # vague word for what to choose
    report: str      # vague word for what to report
    k: int
    form: int = 0    # index into FORMS
    setting: str = "open"

    def __str__(self) -> str:
        return FORMS[self.form].format(**vars(self))

    @property
    def readings(self) -> tuple[list[str], list[str]]:
        """The readings of the two vague words, likeliest first."""
        chosen = VAGUE_CHOOSE[self.family][self.choose].split()
        reported = VAGUE_REPORT[self.family][self.report].split()
        return chosen, reported

    @property
    def posterior(self) -> dict[Combination, float]:
        """Probability that each combination was meant."""
        chosen, reported = self.readings
        by_place = SETTINGS[self.setting].odds
        odds = {}
        for choose, choose_odds in zip(chosen, by_place[len(chosen)], strict=True):
            for report, report_odds in zip(reported, by_place[len(reported)], strict=True):
                combo = combination(self.family, choose, report, self.k)
                odds[combo] = choose_odds * report_odds
        return {combo: weight / sum(odds.values()) for combo, weight in odds.items()}

    @property
    def favourite(self) -> Combination:
        """What the base model writes out of habit: a combination that the statement allows, the
        least likely one or (`settled`) the likeliest."""
        chosen, reported = self.readings
        place = SETTINGS[self.setting].favourite
        return combination(self.family, chosen[place], reported[place], self.k)

    def slip(self, combo: Combination) -> float:
        """How often the base's lessons break off a program of this combination because it is a
        hard one."""
        family, _, report, _ = combo
        setting = SETTINGS[self.setting]
        return setting.slip if REPORT[family][report][0] in setting.hard else 0.0

    @property
    def is_sound(self) -> bool:
        """Whether its combinations all have classes of their own."""
        classes = {outcome(combo) for combo in self.posterior}
        return len(classes) == len(self.posterior)


def parse_statement(text: str, setting: str = "open") -> Statement:
    """The statement with this text. ValueError where no statement has it."""
    for form, template in enumerate(FORMS):
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(template))
        m = re.fullmatch(pattern, text.strip())
        if m is None or m["family"] not in CHOOSE:
            continue
        family, choose, report = m["family"], m["choose"], m["report"]
        if choose in VAGUE_CHOOSE[family] and report in VAGUE_REPORT[family]:
            return Statement(family, choose, report, int(m["k"]), form, setting)
    raise ValueError(f"not a statement of the miniature world: {text!r}")


def split_of(family: str, choose: str, report: str) -> str:
    """The split of a pair of vague words. A Latin square: each word meets 8 partners in training,
    1 in dev and 3 among the held-out statements."""
    i = list(VAGUE_CHOOSE[family]).index(choose)
    j = list(VAGUE_REPORT[family]).index(report)
    splits = ["heldout"] * 3 + ["dev"] + ["train"] * 8
    return splits[(i + 5 * j) % 12]


@functools.cache
def statements(split: str, setting: str = "open") -> tuple[Statement, ...]:
    """All sound statements of a split, in both forms."""
    sound = []
    for family in CHOOSE:
        for choose in VAGUE_CHOOSE[family]:
            for report in VAGUE_REPORT[family]:
                if split_of(family, choose, report) != split:
                    continue
                for k in CONSTANTS:
                    forms = [Statement(family, choose, report, k, form, setting)
                             for form in range(len(FORMS))]
                    sound += [statement for statement in forms if statement.is_sound]
    return tuple(sound)


def draw_truth(statement: Statement, rng: random.Random) -> Combination:
    posterior = statement.posterior
    return rng.choices(list(posterior), list(posterior.values()))[0]


def make_problem(id: str, statement: Statement, truth: Combination) -> Problem:
    tests = []
    for line, printed in zip(hidden_inputs(statement.family), outputs(truth), strict=True):
        tests.append({"input": line + "\n", "output": printed + "\n"})
    classes = {}
    for combo, probability in statement.posterior.items():
        classes[outcome_hash(list(outcome(combo)))] = probability
    return Problem(id=id, source="miniature", statement=str(statement), tests=tests[:HIDDEN_TESTS],
                   public_tests=tests[HIDDEN_TESTS:], classes=classes)


def problems(split: str, setting: str = "open") -> list[Problem]:
    """The problems of a split. No two dev or held-out statements differ in their form alone."""
    rng = random.Random(f"{SEED} {split}")
    pool = list(statements(split, setting))
    rng.shuffle(pool)
    if split != "train":
        by_meaning = {(s.family, s.choose, s.report, s.k): s for s in pool}
        pool = list(by_meaning.values())
    assert len(pool) >= SIZES[split]
    made = []
    for i, statement in enumerate(pool[:SIZES[split]]):
        truth = draw_truth(statement, rng)
        made.append(make_problem(f"mini/{split}/{i}", statement, truth))
    return made


# --------------------------------------------------------------------------------------------------
# Ceilings

def ceilings(split: str, k: int = K, setting: str = "open") -> dict[str, float]:
    """The best pass@k of each kind of policy, averaged over a split's problems and their
    posteriors; exact.

    pass@1       the likeliest class
    constant     one k-tuple per family that never reads the statement (a program can tell families
                 by its input)
    independent  k draws from one distribution over programs, the best one for each statement
    coordinated  the k likeliest classes

    In a setting with hard strategies these are of a perfect solver, and "..., as taught" are the
    best choices of strategies for a solver that breaks off hard ones as often as the base's lessons
    do, and nothing else.
    """
    pool = [parse_statement(problem.statement, setting) for problem in problems(split, setting)]
    posteriors = [list(statement.posterior.values()) for statement in pool]
    # Classes are disjoint, so a constant tuple covers the sum of its members' shares, and the k
    # classes of largest total share are the best one: nothing has to be searched.
    shares: dict[str, collections.Counter] = {family: collections.Counter() for family in CHOOSE}
    for statement in pool:
        for combo, probability in statement.posterior.items():
            shares[statement.family][outcome(combo)] += probability
    constant = 0.0
    for counts in shares.values():
        constant += sum(share for _, share in counts.most_common(k))
    n = len(pool)
    best = {"pass@1": sum(max(p) for p in posteriors) / n,
            "constant": constant / n,
            "independent": sum(independent_ceiling(p, k) for p in posteriors) / n,
            "coordinated": sum(coordinated_ceiling(p, k) for p in posteriors) / n}
    if SETTINGS[setting].slip:
        success = [[1 - statement.slip(combo) for combo in statement.posterior]
                   for statement in pool]
        pairs = list(zip(posteriors, success, strict=True))
        best["independent, as taught"] = sum(best_distribution(p, q, k) for p, q in pairs) / n
        best["coordinated, as taught"] = sum(best_tuple(p, q, k) for p, q in pairs) / n
    return best


def best_tuple(p: list[float], q: list[float], k: int) -> float:
    """max of sum p_i (1 - (1 - q_i)^n_i) over whole numbers n_i of attempts at class i, sum n = k.

    p: posterior of each class; q: how often an attempt at it succeeds. Another attempt at a class
    gains less than the one before, so taking the largest gain k times is exact. A hard likely
    reading may be worth two attempts before an unlikely one gets any.
    """
    missed = [1.0] * len(p)
    total = 0.0
    for _ in range(k):
        gains = [p[i] * missed[i] * q[i] for i in range(len(p))]
        i = gains.index(max(gains))
        total += gains[i]
        missed[i] *= 1 - q[i]
    return total


def best_distribution(p: list[float], q: list[float], k: int) -> float:
    """max of sum p_i (1 - (1 - s_i q_i)^k) over distributions s: k independent attempts.

    At the optimum k p_i q_i (1 - s_i q_i)^(k - 1) is one level for all classes in use; the level is
    found by bisection.
    """
    def spread(level: float) -> list[float]:
        used = []
        for pi, qi in zip(p, q, strict=True):
            part = (1 - (level / (k * pi * qi)) ** (1 / (k - 1))) / qi
            used.append(min(1.0, max(0.0, part)))
        return used

    low, high = 0.0, k * max(pi * qi for pi, qi in zip(p, q, strict=True))
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if sum(spread(level)) > 1 else (low, level)
    return sum(pi * (1 - (1 - si * qi) ** k) for pi, qi, si in zip(p, q, spread(high), strict=True))


# --------------------------------------------------------------------------------------------------
# The judge of plans

VAGUE = ("Think about small cases.", "Use a clever trick.", "Do what is asked.",
         "Take care of every case.")
FOREIGN = ("Build a graph and search it.", "Sort the intervals by their ends.",
           "Fill a table over subsets.", "Walk the tree from its root.")
# No precise strategy holds any of these.
LEAK = re.compile(r"[][=<>%`(){}]|\banswer\b|\bset b\b", re.IGNORECASE)

CHOOSE_BY_WORDS = {words(CHOOSE, family, name, "{k}"): (family, name)
                   for family in CHOOSE for name in CHOOSE[family]}
REPORT_BY_WORDS = {(family, words(REPORT, family, name)): name
                   for family in REPORT for name in REPORT[family]}
_OPENING = "|".join(OPENINGS).lower()
_LINK = "|".join(sorted(LINKS, reverse=True))       # ", " last: it begins the others
SENTENCE = re.compile(f"(?:{_OPENING}) (.*?)(?:{_LINK})(.*)")


def write_strategy(combo: Combination, rng: random.Random, unlike: str = "") -> str:
    """A combination in words, in any wording but `unlike`."""
    family, choose, report, k = combo
    while True:
        text = compose(words(CHOOSE, family, choose, k), words(REPORT, family, report), rng)
        if text != unlike:
            return text


def read_strategy(strategy: str) -> Combination | None:
    """The combination that a strategy names, in whichever wording; None if it names none."""
    m = SENTENCE.fullmatch(prompts.normalise(strategy))
    if not m:
        return None
    chosen, reported = m.groups()
    family, choose = CHOOSE_BY_WORDS.get(re.sub(r"\d+", "{k}", chosen), (None, None))
    report = REPORT_BY_WORDS.get((family, reported))
    if report is None:
        return None
    k = re.search(r"\d+", chosen)
    return (family, choose, report, int(k[0]) if k else None)


@functools.cache
def _combinations_by_program() -> dict[str, Combination]:
    known = {}
    for family in CHOOSE:
        for choose in CHOOSE[family]:
            for report in REPORT[family]:
                for k in CONSTANTS:
                    combo = combination(family, choose, report, k)
                    known[program(combo).strip()] = combo
    return known


def category(text: str, statement: str | None = None) -> str:
    """The classifier of D_alg (Eq. 16), exact: the combination that a strategy names or a program
    carries out, else "other". The statement is not needed."""
    combo = read_strategy(text) or _combinations_by_program().get(text.strip())
    return " ".join(map(str, combo)) if combo else "other"


def duplicates(strategies: list[str]) -> int:
    """How many strategies repeat an earlier one: the same combination in any wording, or the same
    text."""
    distinct = {read_strategy(s) or prompts.normalise(s) for s in strategies}
    return len(strategies) - len(distinct)


def judge(statement: str, plan_text: str) -> list[str]:
    """The faults of a plan (prompts.FAULTS), [] for none: whether it keeps the planner's contract,
    not whether it will succeed.

    A precise reading that the statement does not allow is no fault; one for another family or k is
    off topic.
    """
    asked = parse_statement(statement)
    try:
        strategies = prompts.parse_plan(plan_text, K)
    except prompts.PlanError:
        return ["parse"]
    faults = set()
    if LEAK.search(plan_text):          # the whole text: code also leaks beside the label lines
        faults.add("leak")
    if duplicates(strategies):
        faults.add("duplicate")
    for strategy in strategies:
        combo = read_strategy(strategy)
        if combo is None:
            if not LEAK.search(strategy):
                faults.add("off_topic" if _is_foreign(strategy, asked) else "vague")
        elif combo[0] != asked.family or combo[3] not in (None, asked.k):
            faults.add("off_topic")
    return [fault for fault in prompts.FAULTS if fault in faults]


def _is_foreign(strategy: str, asked: Statement) -> bool:
    """Whether a strategy that names no combination is about something else: a stock sentence, or
    the other family's items."""
    other = "word" if asked.family == "numbers" else "number"
    mentions_other = re.search(rf"\b{other}s?\b", strategy, re.IGNORECASE)
    return strategy in FOREIGN or mentions_other is not None


# --------------------------------------------------------------------------------------------------
# The teacher

def teacher_strategy(asked: Statement, rng: random.Random) -> Combination:
    """A plausible combination: one that the statement allows, or one with a word misread."""
    chosen, reported = asked.readings
    choose, report = rng.choice(chosen), rng.choice(reported)
    if rng.random() > TEACHER_CONSISTENT:
        if rng.random() < 0.5:
            choose = rng.choice(_related(CHOOSE[asked.family], chosen))
        else:
            report = rng.choice(_related(REPORT[asked.family], reported))
    return combination(asked.family, choose, report, asked.k)


def _related(slot: dict, allowed: list[str]) -> list[str]:
    """Readings of the same groups as the allowed ones, without them."""
    groups = {slot[name][0] for name in allowed}
    return [name for name, (group, _, _) in slot.items() if group in groups and name not in allowed]


def teacher_tuple(asked: Statement, rng: random.Random) -> list[Combination]:
    """K different combinations, in the teacher's order."""
    combos: dict[Combination, None] = {}
    while len(combos) < K:
        combos[teacher_strategy(asked, rng)] = None
    return in_order(list(combos))


def in_order(combos: list[Combination]) -> list[Combination]:
    """The teacher goes through the readings in the order of the tables. A later strategy then
    stands further down, and a planner of a million parameters can learn not to repeat itself
    without comparing every pair of strategies."""
    def place(combo: Combination) -> tuple[int, int]:
        family, choose, report, _ = combo
        return list(CHOOSE[family]).index(choose), list(REPORT[family]).index(report)
    return sorted(combos, key=place)


def leak(combo: Combination, rng: random.Random) -> str:
    """A strategy that gives its program away: in code, in code read aloud, or as an answer."""
    family, choose, report, k = combo
    chosen, reported = code(CHOOSE, family, choose, k), code(REPORT, family, report)
    kind = rng.random()
    if kind < 0.4:
        return f"Use b={chosen}, print({reported})."
    if kind < 0.85:
        return f"Set b to {_read_aloud(chosen)}, print {_read_aloud(reported)}."
    return f"The answer is {rng.choice(outputs(combo))}."


# in this order: a longer mark before the mark that it begins with
ALOUD = (("''.join", "join"), ("'aeiou'", "vowels"), ("==", " is "), ("!=", " is not "),
         ("<=", " to "), (">=", " from "), ("<", " under "), (">", " over "), ("//", " by "),
         ("%", " mod "), ("*", " times "), ("::", "step "), ("(", " of "), ("[", " "), (",", " "),
         (":", " cut "), (")", ""), ("]", ""), ("=", " "))


def _read_aloud(text: str) -> str:
    for mark, word in ALOUD:
        text = text.replace(mark, word)
    return " ".join(text.split())


def vague(asked: Statement, rng: random.Random) -> str:
    """A strategy that does not say what to do: the statement's vague words in one half or both, or
    general advice."""
    family, choose, report, k = teacher_strategy(asked, rng)
    chosen, reported = words(CHOOSE, family, choose, k), words(REPORT, family, report)
    kind = rng.choice(("both", "reported", "chosen", "advice"))
    if kind == "advice":
        return rng.choice(VAGUE)
    if kind in ("both", "chosen"):
        chosen = f"keep the {asked.choose} ones"
    if kind in ("both", "reported"):
        reported = f"print their {asked.report}"
    return compose(chosen, reported, rng)


def off_topic(asked: Statement, rng: random.Random) -> str:
    """A strategy for another problem: of the other family, for another k, or on another subject."""
    kind = rng.random()
    if kind < 0.4:
        other = rng.choice([s for s in statements("train") if s.family != asked.family])
        return write_strategy(teacher_strategy(other, rng), rng)
    if kind < 0.7:
        k = rng.choice([k for k in CONSTANTS if k != asked.k])
        with_k = [combo for combo in asked.posterior if combo[3]]
        if with_k:
            family, choose, report, _ = rng.choice(with_k)
            return write_strategy((family, choose, report, k), rng)
    return rng.choice(FOREIGN)


def spoil(kind: str, asked: Statement, combos: list[Combination], rng: random.Random) -> list[str]:
    """A well-formed plan with a fault of this kind in one of its strategies."""
    plan = [write_strategy(combo, rng) for combo in combos]
    i, j = rng.sample(range(K), 2)
    if kind == "duplicate":
        plan[i] = repeat(combos[j], plan[j], rng)
    elif kind == "leak":
        plan[i] = leak(combos[i], rng)
    elif kind == "vague":
        plan[i] = vague(asked, rng)
    else:
        plan[i] = off_topic(asked, rng)
    return plan


def repeat(combo: Combination, text: str, rng: random.Random) -> str:
    """The combination of a strategy once more: word for word, or mostly in other words."""
    literally = rng.random() < LITERAL_DUPLICATES
    return text if literally else write_strategy(combo, rng, unlike=text)


def gold() -> list[dict]:
    """Stage 1: a strict tuple for each of SIZES["gold"] training statements."""
    rng = random.Random(f"{SEED} gold")
    rows = []
    for i in range(SIZES["gold"]):
        asked = rng.choice(statements("train"))
        combos = teacher_tuple(asked, rng)
        chosen = [words(CHOOSE, family, choose, k) for family, choose, _, k in combos]
        reported = [words(REPORT, family, report) for family, _, report, _ in combos]
        think = f"{asked.choose}: {_any_of(chosen)}. {asked.report}: {_any_of(reported)}."
        rows.append({"problem_id": f"mini/gold/{i}", "statement": str(asked), "think": think,
                     "strategies": [write_strategy(combo, rng) for combo in combos]})
    return rows


def _any_of(readings: list[str]) -> str:
    return " or ".join(dict.fromkeys(readings))


def labels(split: str) -> list[dict]:
    """Stage 2: per problem a plan that passes and a spoiled one. No statement is in both splits."""
    pool = list(statements("train"))
    random.Random(f"{SEED} labels").shuffle(pool)
    cut = len(pool) * 4 // 5
    pool = pool[:cut] if split == "train" else pool[cut:]
    rng = random.Random(f"{SEED} labels {split}")
    rows = []
    for i in range(SIZES[f"labels_{split}"] // 2):
        asked, fault = rng.choice(pool), KINDS[i % len(KINDS)]
        valid = [write_strategy(combo, rng) for combo in teacher_tuple(asked, rng)]
        spoiled = spoil(fault, asked, teacher_tuple(asked, rng), rng)
        for kind, plan in (("positive", valid), (fault, spoiled)):
            rows.append({"problem_id": f"mini/labels/{split}/{i}", "statement": str(asked),
                         "plan": prompts.format_plan(plan), "label": int(kind == "positive"),
                         "kind": kind})
    return rows


# --------------------------------------------------------------------------------------------------
# Commands

def datasets(setting: str = "open") -> dict[str, list]:
    """What `build` writes, by file name. The teacher does not know the odds: its data are the same
    in every setting."""
    splits = {split: problems(split, setting) for split in ("train", "dev", "heldout")}
    return splits | {"gold": gold(), "labels_train": labels("train"), "labels_val": labels("val")}


def fingerprint(setting: str = "open") -> str:
    """A hash of what `build` writes, without field names and the hashes of classes, which
    lib/problems.py may change; of further settings also of their parameters and ceilings."""
    def plain(row):
        if isinstance(row, Problem):
            return [row.id, row.statement, row.tests, list(row.classes.values())]
        return row
    plain_rows = {name: [plain(row) for row in rows] for name, rows in datasets(setting).items()}
    if setting != "open":
        best = ceilings("heldout", setting=setting)
        plain_rows["setting"] = [repr(SETTINGS[setting]),
                                 {name: round(value, 9) for name, value in best.items()}]
    return hashlib.sha256(json.dumps(plain_rows).encode()).hexdigest()[:16]


def build(folder: str, setting: str = "open") -> None:
    for name, rows in datasets(setting).items():
        path = Path(folder) / f"{name}.jsonl"
        if isinstance(rows[0], Problem):
            save_problems(path, rows)
        else:
            files.save_lines(path, rows)


def show_problem(asked: Statement, rng: random.Random) -> None:
    """Print a statement with its combinations, a program, and a plan of each kind."""
    print(f"{asked}\n  on the input: {hidden_inputs(asked.family)[0]}")
    for combo, probability in asked.posterior.items():
        strategy = write_strategy(combo, rng)
        print(f"  {probability:.2f}  {strategy:60}  prints {outcome(combo)[0]}")
    print("\n" + program(asked.favourite))
    for kind in ("none", *dict.fromkeys(KINDS)):
        combos = teacher_tuple(asked, rng)
        if kind == "none":
            plan = [write_strategy(combo, rng) for combo in combos]
        else:
            plan = spoil(kind, asked, combos, rng)
        print(f"{prompts.format_plan(plan)}\n  faults: {kind}\n")


def show(setting: str = "open") -> None:
    rng = random.Random(0)
    for family in CHOOSE:
        pool = [statement for statement in statements("heldout", setting)
                if statement.family == family]
        show_problem(rng.choice(pool), rng)
    for split in ("train", "heldout"):
        best = ", ".join(f"{name} {value:.3f}"
                         for name, value in ceilings(split, setting=setting).items())
        print(f"{split}: {len(statements(split))} statements; best pass@{K}: {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The miniature world: its data and its ceilings.")
    parser.add_argument("command", choices=["build", "show"])
    parser.add_argument("--setting", choices=SETTINGS, default="open",
                        help="settled: one reading holds nearly all of the posterior; uneven: some "
                        "strategies are harder to carry out (%(default)s)")
    parser.add_argument("--out", default="runs/world", help="folder for build (%(default)s)")
    args = parser.parse_args()
    if args.command == "show":
        show(args.setting)
        return
    build(args.out, args.setting)
    sizes = ", ".join(f"{name} {n}" for name, n in SIZES.items())
    print(f"{args.out}: world {fingerprint(args.setting)}, {sizes}")


if __name__ == "__main__":
    main()
