"""Offline data for stages 1 and 2: gold tuples for the planner (Appendix C.4), labels for the gate (D).

    python -m prepare.teacher gold   --teacher SPEC --judge SPEC    # -> corpora/gold.jsonl, for train_sft.py
    python -m prepare.teacher labels --teacher SPEC --judge SPEC    # -> corpora/labels_{train,val}.jsonl, train_rm.py

    SPEC   http://host/v1#model   an endpoint with OpenAI's chat completions; its key is in the environment
           a folder or a hub id   a model, through rollout.py
           module:name            judge(statement, plan text) -> faults, or teacher(problem, n) -> candidates
           rule                   no model. As a judge: the visible contract and a few rules about words. As a
                                  teacher: stock sentences filled with the statement's words, to try the
                                  wiring and not to train on

The funnel: the teacher proposes six methods a problem; those whose form breaks the plan contract are dropped;
the judge keeps what is specific, actionable, code-free and new; a problem with at least K kept ones gives a
gold tuple, and the teacher writes the thought that leads to it. Gate labels start from the same funnel: K of
the kept methods are a positive, and from it a negative is made that looks as well formed (a method repeated
in other words, an implementation given away, general advice, another problem's methods). `--candidates
planner` labels samples of the current planner instead, `both` does both.

Every answer of a model is kept on disk (see ask.py): a run that was cut off goes on where it was, and one
that is finished gives the same files again without a model.

Departures from the paper, and what it leaves open:
 1. Appendix D labels teacher plans and made negatives, Appendix O samples of the planner: hence --candidates.
 2. Training and validation labels share no problem; as many Pass as Fail, by problem (balance).
 3. Negatives are labelled by how they were made; the judge is asked about planner samples only.
 4. A judge's rubric is the gate's contract of section 3.2: no prompt asks whether a method would solve the
    problem.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import prompts
from lib import errors, files, progress
from lib.labels import POSITIVE, Label, balance, save_labels
from lib import run as lib_run
from lib.problems import Problem, load_problems
from prepare import corpora, exposure
from prepare.ask import Cache, Endpoint, LocalModel, Model, silent

CANDIDATES = 6              # Appendix B: proposals a problem
BATCH = 64                  # problems that go through the funnel together; after each it may have enough

Judge = Callable[[str, str], list[str]]             # (statement, plan text) -> faults; [] is Pass
Teacher = Callable[[Problem, int], list[str]]       # (problem, n) -> candidates


# ----------------------------------------------------------------------------------------------- who is asked

def open_source(spec: str, role: str, cache: Cache, *, k: int = 4, options: dict | None = None,
                concurrency: int = 8, timeout: float = 600, retries: int = 6, max_new_tokens: int = 2048,
                temperature: float = 0.7, device: str = "auto",
                progress: Callable = silent) -> Model | Judge | Teacher:
    """SPEC -> a Model to be asked, or the function that a rule or plug-in is; teacher, judge or planner."""
    if spec == "rule":
        if role == "planner":
            raise ValueError("--planner rule: a planner is a model or an endpoint")
        return rule_teacher if role == "teacher" else lambda statement, plan: rule_judge(statement, plan, k)
    if re.match(r"https?://", spec):
        names = f"{role.upper()}_API_KEY", "OPENAI_API_KEY"
        key = next((os.environ[name] for name in names if os.environ.get(name)), None)
        options = {"temperature": temperature, "max_tokens": max_new_tokens} | (options or {})
        return Model(Endpoint(spec, key, options, concurrency, timeout, retries), cache, progress)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        return lib_run.plug_in(spec)
    if not Path(spec).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        raise ValueError(f"--{role} {spec}: no such folder; a SPEC is rule, module:name, "
                         f"http://host/v1#model, a model's folder, or a hub id like Qwen/Qwen3.5-9B")
    return Model(LocalModel(spec, max_new_tokens, temperature, device), cache, progress)


# -------------------------------------------------------------------------------------------------- the rules

STOCK = (
    "Simulate the process on the {a} step by step and keep the state of the {b} in an array.",
    "Sort the {a} by {b} and sweep over them once while keeping the best value so far.",
    "Run a dynamic program over the {a} whose state is the {b} handled so far.",
    "Build a graph with the {a} as nodes and an edge wherever {b} relate them, and search it breadth first.",
    "Binary search on the result and check each guess by one pass over the {a} and the {b}.",
    "Count the {a} in a hash map keyed by {b} and combine the counts.",
    "Split the {a} in halves, solve each half, and merge the two by {b}.",
    "Try every choice of {a} by backtracking and prune with a bound on the {b}.",
)
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
COMMON_WORDS = frozenset("""\
    about above after also answer any are array based been being between both case cases consists contain
    contains correct could denote denoted denotes description each either element elements equal every
    exactly example first following follows for from given gives have her him his input inputs integer
    integers into its kind length less line lines list long main make more most must next number numbers
    only other output outputs over print problem program sample same second should single size some space
    separated standard string such sum test than that the their them then there these they third this those
    time total two until use value values want wants was way were what when where whether which while will
    with within would write you your""".split())
NEARLY_EQUAL = 0.8          # share of words that two strategies have in common if the rules call them one


def content_words(text: str) -> list[str]:
    """The words that say what a text is about, in order, without endings that grammar adds."""
    words = re.findall(r"[a-z]{3,}", text.lower())
    return [re.sub(r"(?<=...)(?:ies|es|s|ing|ed)$", "", w) for w in words if w not in COMMON_WORDS]


def rule_judge(statement: str, plan_text: str, k: int = 4) -> list[str]:
    """The faults that show without understanding: the plan contract, and the words that methods share.

    Vague is stock advice and nothing else; a method repeated in other words is not seen.
    """
    try:
        strategies = prompts.parse_plan(plan_text, k)
    except prompts.PlanError:
        return ["parse"]
    breaches = set(prompts.check_plan(strategies, plan_text))
    faults = {"parse"} if breaches & {"extra_text", "too_long", "second_sentence"} else set()
    faults |= {"duplicate"} & breaches | ({"leak"} if "code" in breaches else set())
    about = set(content_words(statement))
    advice = {prompts.normalise(a) for a in ADVICE}
    words = [set(content_words(s)) for s in strategies]
    for s, has in zip(strategies, words, strict=True):
        if re.search(r"\b(?:final )?answer (?:is|to print is)\b", s, re.IGNORECASE):
            faults.add("leak")
        if prompts.normalise(s) in advice or len(s.split()) < 4:
            faults.add("vague")
        elif not has & about:
            faults.add("off_topic")
    if any(len(a & b) >= NEARLY_EQUAL * max(1, len(a | b)) for a, b in itertools.combinations(words, 2)):
        faults.add("duplicate")
    return [f for f in prompts.FAULTS if f in faults]


def rule_teacher(problem: Problem, n: int) -> list[str]:
    """Stock sentences about the statement's commonest words: well formed and on topic, and nothing more."""
    words = re.findall(r"[a-z]{4,}", problem.statement.lower())
    ranked = [w for w, _ in Counter(w for w in words if w not in COMMON_WORDS).most_common(8)] or ["items"]
    return [STOCK[i % len(STOCK)].format(a=ranked[i % len(ranked)], b=ranked[(i + 1) % len(ranked)])
            for i in range(n)]


# ---------------------------------------------------------------------------------- the funnel (Appendix C.4)

def propose(teacher: Model | Teacher, problems: Sequence[Problem], n: int,
            counts: Counter) -> list[list[str]]:
    """Up to n candidates a problem whose form keeps the plan contract, no two literally equal."""
    if isinstance(teacher, Model):
        lists = teacher.ask_parsed([prompts.teacher(p, n) for p in problems],
                                   lambda text, _: prompts.parse_list(text) or None, counts, "teacher")
    else:
        lists = [teacher(p, n) for p in problems]
    proposed = []
    for found in lists:
        found = (found or [])[:n]
        counts["candidates proposed"] += len(found)
        fit: dict[str, str] = {}
        for candidate in found:
            breaches = prompts.check_plan([candidate])
            for breach in breaches:
                counts[f"candidates dropped: {breach}"] += 1
            if not breaches:
                counts["candidates dropped: literal duplicate"] += prompts.normalise(candidate) in fit
                fit.setdefault(prompts.normalise(candidate), candidate)
        counts["candidates of the right form"] += len(fit)
        proposed.append(list(fit.values()))
    return proposed


def keep(judge: Model | Judge, problems: Sequence[Problem], candidates: Sequence[list[str]], k: int,
         counts: Counter) -> list[list[str]]:
    """The candidates that the judge keeps. A function judges plans: it is shown each one K times over."""
    asked = [i for i, found in enumerate(candidates) if found]
    kept: list[list[str]] = [[] for _ in candidates]
    if isinstance(judge, Model):
        texts = [prompts.judge_candidates(problems[i], candidates[i]) for i in asked]
        verdicts = judge.ask_parsed(
            texts, lambda text, at: prompts.parse_verdicts(text, len(candidates[asked[at]])), counts, "judge")
        for i, verdict in zip(asked, verdicts, strict=True):
            kept[i] = [c for c, good in zip(candidates[i], verdict, strict=True) if good] if verdict else []
    else:
        for i in asked:
            kept[i] = [c for c in candidates[i]
                       if not set(judge(problems[i].statement, prompts.format_plan([c] * k))) - {"duplicate"}]
    counts["candidates kept by the judge"] += sum(map(len, kept))
    return kept


def tuples(judge: Model | Judge, problem: Problem, kept: list[str], k: int) -> Iterator[list[str]]:
    """Every K of the kept candidates, in the teacher's order; a judge that is a function must pass them."""
    for chosen in itertools.combinations(kept, k):
        if isinstance(judge, Model) or not judge(problem.statement, prompts.format_plan(list(chosen))):
            yield list(chosen)


def batches(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    return (problems[i:i + BATCH] for i in range(0, len(problems), BATCH))


def make_gold(teacher: Model | Teacher, judge: Model | Judge, problems: Sequence[Problem], wanted: int,
              k: int = 4, n: int = CANDIDATES, with_think: bool = True) -> tuple[list[dict], Counter]:
    """Gold tuples of the first `wanted` problems with K clean candidates, and what each stage counted."""
    gold: list[dict] = []
    counts: Counter = Counter()
    for batch in batches(problems):
        if len(gold) >= wanted:
            break
        counts["problems offered"] += len(batch)
        candidates = propose(teacher, batch, n, counts)
        counts["problems with candidates"] += sum(map(bool, candidates))
        kept = keep(judge, batch, candidates, k, counts)
        chosen = [(p, next(tuples(judge, p, found, k), None)) for p, found in zip(batch, kept, strict=True)]
        chosen = [(p, strategies) for p, strategies in chosen if strategies]
        counts[f"problems with {k} clean candidates"] += len(chosen)
        chosen = chosen[:wanted - len(gold)]
        thoughts: Sequence[str | None] = [""] * len(chosen)
        if with_think and isinstance(teacher, Model):
            texts = [prompts.teacher_trace(p, strategies) for p, strategies in chosen]
            thoughts = teacher.ask_parsed(
                texts, lambda text, _: prompts.cut_thought(text).strip() or None, counts, "trace")
        for (p, strategies), thought in zip(chosen, thoughts, strict=True):
            gold.append({"problem_id": p.id, "statement": p.statement, "think": thought or "",
                         "strategies": strategies})
    counts["gold tuples"] = len(gold)
    counts["gold tuples without a thought"] = sum(not row["think"] for row in gold)
    return gold, counts


# -------------------------------------------------------------------------------- gate labels (Appendix D, O)

NEGATIVES = ("duplicate", "leak", "vague", "off_topic")


def shortened(strategy: str, words: int) -> str:
    return " ".join(strategy.rstrip(". ").split()[:words]).rstrip(",;: ")


def reworded(strategy: str) -> str:
    """The same method in other words, by a short list of them."""
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
    """A plan as well formed as `plan` that has the fault `kind`. `rephrased`: plan[0] in other words."""
    out = list(plan)
    i = rng.randrange(len(out))
    if kind == "duplicate":
        place = rng.randrange(1, len(out))
        out[place] = rephrased or reworded(out[0])
    elif kind == "leak":
        code = rng.choice(GIVEAWAYS).format(n=rng.randint(0, 50), m=rng.randint(0, 50))
        out[i] = f"{shortened(out[i], prompts.MAX_WORDS - 25)}, in short {code}."
    elif kind == "vague":
        for place in rng.sample(range(len(out)), rng.randint(1, 2)):
            out[place] = rng.choice([a for a in ADVICE if a not in out])
    else:
        replaced = range(len(out)) if rng.random() < 0.5 else [i]       # the whole plan, or one method of it
        for place in replaced:
            out[place] = foreign[place % len(foreign)]
    return out


def teacher_labels(teacher: Model | Teacher, judge: Model | Judge, problems: Sequence[Problem],
                   per_problem: int, wanted: tuple[int, int], k: int, n: int, seed: int,
                   counts: Counter) -> list[Label]:
    """Positives from the funnel, up to `per_problem` a problem, and a made negative for each; it stops when
    there are enough for `wanted` training and held-out labels."""
    plans: list[tuple[Problem, list[str]]] = []
    positives: list[Label] = []
    for batch in batches(problems):
        if len(plans) >= sum(wanted) // 2 + per_problem:        # a problem may stand between the two sides
            break
        counts["problems offered"] += len(batch)
        kept = keep(judge, batch, propose(teacher, batch, n, counts), k, counts)
        for p, found in zip(batch, kept, strict=True):
            rng = random.Random(f"{seed}:{p.id}")
            possible = list(tuples(judge, p, found, k))
            counts[f"problems with {k} clean candidates"] += bool(possible)
            for chosen in rng.sample(possible, min(per_problem, len(possible))):
                rng.shuffle(chosen)
                plans.append((p, chosen))
                positives.append(Label(p.id, p.statement, prompts.format_plan(chosen), 1, POSITIVE))
    if len({p.id for p, _ in plans}) < 2:
        raise ValueError(f"{len(plans)} plans from {counts['problems offered']} problems passed the judge, "
                         f"too few to make labels of: see the counts ({dict(+counts)})")
    kinds = [NEGATIVES[i % len(NEGATIVES)] for i in range(len(plans))]
    repeated = [i for i, kind in enumerate(kinds) if kind == "duplicate"]
    other_words: dict[int, str | None] = {}
    if isinstance(teacher, Model):
        texts = [prompts.rephrase(plans[i][1][0]) for i in repeated]
        said = teacher.ask_parsed(texts, lambda text, at: usable_rephrasing(text, plans[repeated[at]][1][0]),
                                  counts, "rephrasing")
        other_words = dict(zip(repeated, said, strict=True))
    labels = []
    for i, (p, plan) in enumerate(plans):
        rng = random.Random(f"{seed}:{p.id}:{i}")
        foreign = next(plans[(i + step) % len(plans)][1]
                       for step in itertools.count(rng.randrange(1, len(plans)))
                       if plans[(i + step) % len(plans)][0].id != p.id)
        bad = spoiled(kinds[i], plan, other_words.get(i), foreign, rng)
        labels += [positives[i], Label(p.id, p.statement, prompts.format_plan(bad), 0, kinds[i])]
        counts[f"labels made: {kinds[i]}"] += 1
    counts["labels made: positive"] = len(positives)
    return labels


def usable_rephrasing(text: str, original: str) -> str | None:
    """The first line of a reply if it is one method of the right form and not the original itself."""
    lines = [line.strip() for line in prompts.cut_thought(text).strip().split("\n") if line.strip()]
    same = len(lines) == 1 and prompts.normalise(lines[0]) == prompts.normalise(original)
    return None if len(lines) != 1 or same or prompts.check_plan(lines) else lines[0]


def judge_plans(judge: Model | Judge, pairs: Sequence[tuple[Problem, str]], k: int = 4,
                counts: Counter | None = None) -> list[list[str] | None]:
    """The faults of each (problem, plan text), [] for Pass, None where the judge gave no usable answer.

    A plan that does not parse is not shown to the judge.
    """
    counts = Counter() if counts is None else counts
    faults: list[list[str] | None] = [None] * len(pairs)
    parsed = []
    for i, (_, plan) in enumerate(pairs):
        try:
            prompts.parse_plan(plan, k)
            parsed.append(i)
        except prompts.PlanError:
            faults[i] = ["parse"]
    if isinstance(judge, Model):
        texts = [prompts.judge_plan(*pairs[i], k) for i in parsed]
        found = judge.ask_parsed(texts, lambda text, _: prompts.parse_faults(text), counts, "judge")
    else:
        found = [judge(pairs[i][0].statement, pairs[i][1]) for i in parsed]
    for i, verdict in zip(parsed, found, strict=True):
        faults[i] = verdict
    return faults


def planner_labels(planner: Model, judge: Model | Judge, problems: Sequence[Problem], per_problem: int,
                   k: int, counts: Counter) -> list[Label]:
    """Judged samples of the planner, `per_problem` a problem, under CPPO's own prompt (Appendix O)."""
    labels = []
    for draw in range(per_problem):
        replies = planner.ask([prompts.plan(p, k) for p in problems], draw, "planner")
        pairs = [(p, prompts.cut_thought(text).strip()) for p, text in zip(problems, replies, strict=True)
                 if text]
        counts["planner samples"] += len(pairs)
        counts["planner: no answer"] += len(problems) - len(pairs)
        for (p, plan), faults in zip(pairs, judge_plans(judge, pairs, k, counts), strict=True):
            if faults is not None:
                kind = faults[0] if faults else POSITIVE
                labels.append(Label(p.id, p.statement, plan, int(not faults), kind))
                counts[f"planner samples judged: {kind}"] += 1
    return labels


def divide(labels: list[Label], sizes: tuple[int, int],
           seed: int) -> tuple[list[Label], list[Label]]:
    """Training and held-out labels, at most `sizes`: as many Pass as Fail, no problem on both sides."""
    balanced = balance(labels, seed)
    order = sorted({x.problem_id for x in balanced},
                   key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    sides: list[list[Label]] = [[], []]
    for name in order:              # the held-out side is filled first
        full = all(sum(x.label == label for x in sides[1]) >= sizes[1] // 2 for label in (0, 1))
        sides[not full] += [x for x in balanced if x.problem_id == name]
    return cut(sides[0], sizes[0], seed), cut(sides[1], sizes[1], seed)


def cut(labels: list[Label], size: int, seed: int) -> list[Label]:
    """At most `size` labels, as many Pass as Fail, of the first problems; in random order."""
    half = min(size // 2, *(sum(x.label == label for x in labels) for label in (0, 1)))
    chosen = [x for label in (0, 1) for x in [y for y in labels if y.label == label][:half]]
    random.Random(f"{seed}:cut").shuffle(chosen)
    return chosen


# --------------------------------------------------------------------------------------------------- commands

def report(counts: Counter) -> None:
    for name, n in counts.items():
        if n:
            print(f"{n:8}  {name}")


def save_record(path: Path, args: argparse.Namespace, warning: str, counts: Counter,
                models: Iterable[Any]) -> None:
    """What a file was made of, beside it."""
    record = {"flags": vars(args), "problems_sha256": files.tree_hash(args.problems), "warning": warning,
              "models": [m.source.identity for m in models if isinstance(m, Model)], "counts": dict(counts)}
    files.write_file(path, json.dumps(record, indent=1, default=str) + "\n")


def read_options(role: str, text: str) -> dict:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"--{role}-options must be a JSON object, not {text!r}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Offline data of stages 1 and 2: gold tuples and gate labels.",
        epilog="SPEC: http://host/v1#model, a model's folder or hub id, module:name, or rule. Keys of "
               "endpoints: TEACHER_API_KEY, JUDGE_API_KEY, PLANNER_API_KEY, else OPENAI_API_KEY.")
    parser.add_argument("command", choices=["gold", "labels"])
    parser.add_argument("--teacher", metavar="SPEC", help="who proposes methods")
    parser.add_argument("--judge", metavar="SPEC", required=True, help="who says which are valid")
    parser.add_argument("--problems", metavar="FILE",
                        help="default: the pool sft (gold) or gate (labels) of --out")
    parser.add_argument("--out", default="corpora", metavar="FOLDER",
                        help="where the files go (default %(default)s)")
    parser.add_argument("--cache", metavar="FOLDER", help="where answers are kept (default: OUT/answers)")
    parser.add_argument("--prompts", metavar="FILE", help="JSON file {name: text} that replaces prompts")
    parser.add_argument("--num-strategies", type=int, default=4, metavar="K",
                        help="methods of a plan (default %(default)s)")
    parser.add_argument("--num-candidates", type=int, default=CANDIDATES, metavar="N",
                        help="proposals a problem (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    g = parser.add_argument_group("gold")
    g.add_argument("--gold", type=int, default=333, metavar="N",
                   help="tuples wanted, one a problem (default %(default)s)")
    g.add_argument("--no-think", action="store_true", help="do not ask for the thought behind a tuple")
    g = parser.add_argument_group("labels")
    g.add_argument("--candidates", choices=["teacher", "planner", "both"], default="teacher",
                   help="what is labelled (default %(default)s)")
    g.add_argument("--planner", metavar="SPEC", help="the planner whose samples are labelled")
    g.add_argument("--per-problem", type=int, default=2, metavar="N",
                   help="positives a problem, and planner samples (default %(default)s)")
    g.add_argument("--train", type=int, default=1110, metavar="N",
                   help="training labels (default %(default)s)")
    g.add_argument("--val", type=int, default=278, metavar="N", help="held-out labels (default %(default)s)")
    g = parser.add_argument_group("models")
    g.add_argument("--concurrency", type=int, default=8, metavar="N",
                   help="requests under way at a time (default %(default)s)")
    g.add_argument("--timeout", type=float, default=600, metavar="S",
                   help="seconds to the first byte of a reply, and then to its last (default %(default)s)")
    g.add_argument("--retries", type=int, default=6, metavar="N",
                   help="of a request that fails, waiting 1 s, 2 s, 4 s, ... (default %(default)s)")
    g.add_argument("--max-new-tokens", type=int, default=2048, metavar="N",
                   help="of a reply (default %(default)s)")
    g.add_argument("--temperature", type=float, default=0.7, metavar="T",
                   help="of teacher and planner; a judge has 0 (default %(default)s)")
    for role in ("teacher", "judge", "planner"):
        g.add_argument(f"--{role}-options", metavar="JSON", default="{}",
                       help="fields to add to a request, or as null to leave out: '{\"max_tokens\": null}'")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                   help="of local models (default %(default)s)")
    args = parser.parse_args(argv)
    with errors.explain():
        run(args)


def run(args: argparse.Namespace) -> None:
    # -------- what is asked, and of whom
    k, out = args.num_strategies, Path(args.out)
    for flag, least in (("gold", 1), ("per_problem", 1), ("train", 2), ("val", 2), ("concurrency", 1), ("retries", 0),
                        ("max_new_tokens", 1), ("temperature", 0), ("timeout", 0.01)):
        if not getattr(args, flag) >= least:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: it must be at least {least}")
    uses_teacher = args.command == "gold" or args.candidates != "planner"
    uses_planner = args.command == "labels" and args.candidates != "teacher"
    if not 2 <= k <= len(prompts.LABELS) or args.num_candidates < k:
        raise ValueError(f"--num-strategies {k} --num-candidates {args.num_candidates}: K is 2 to "
                         f"{len(prompts.LABELS)}, and N at least K")
    for flag, needed in (("teacher", uses_teacher), ("planner", uses_planner)):
        if needed and not getattr(args, flag):
            mode = f" --candidates {args.candidates}" if args.command == "labels" else ""
            raise ValueError(f"`teacher.py {args.command}{mode}` needs --{flag} SPEC")
    if args.prompts:
        prompts.load(args.prompts)
    args.problems = args.problems or str(corpora.default_pool("sft" if args.command == "gold" else "gate", out))
    problems = load_problems(args.problems)
    warning = exposure.audit_pool(args.problems, out)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    cache = Cache(args.cache or out / "answers")
    shared = {"k": k, "concurrency": args.concurrency, "timeout": args.timeout, "retries": args.retries,
              "device": args.device, "max_new_tokens": args.max_new_tokens, "progress": progress.progress}
    asked = {"teacher": args.teacher if uses_teacher else None, "judge": args.judge,
             "planner": args.planner if uses_planner else None}
    models = {}
    for role, spec in asked.items():
        if spec:
            models[role] = open_source(
                spec, role, cache, options=read_options(role, getattr(args, f"{role}_options")),
                temperature=0.0 if role == "judge" else args.temperature, **shared)

    # -------- ask, and write
    counts: Counter = Counter()
    if args.command == "gold":
        gold, counts = make_gold(models["teacher"], models["judge"], problems, args.gold, k,
                                 args.num_candidates, not args.no_think)
        if not gold:
            raise ValueError(f"no problem of {args.problems} has {k} clean candidates: {dict(+counts)}")
        files.save_lines(out / "gold.jsonl", gold)
        written = [out / "gold.jsonl"]
        short = f"{len(gold)} of {args.gold} gold tuples" if len(gold) < args.gold else ""
    else:
        labels: list[Label] = []
        if uses_teacher:
            labels += teacher_labels(models["teacher"], models["judge"], problems, args.per_problem,
                                     (args.train, args.val), k, args.num_candidates, args.seed, counts)
        if uses_planner:
            labels += planner_labels(models["planner"], models["judge"], problems, args.per_problem, k,
                                     counts)
        out.mkdir(parents=True, exist_ok=True)
        written, short = [], ""
        sizes = args.train, args.val
        for name, size, chosen in zip(("train", "val"), sizes, divide(labels, sizes, args.seed), strict=True):
            counts[f"labels written: {name}"] = len(chosen)
            save_labels(str(out / f"labels_{name}.jsonl"), chosen)
            written.append(out / f"labels_{name}.jsonl")
            if len(chosen) < size - 1:
                short = f"{len(chosen)} of {size} {name} labels"
    report(counts)
    save_record(out / f"{args.command}.json", args, warning, counts, models.values())
    print(f"written: {', '.join(map(str, written))}")
    if short:
        print(f"only {short}: more problems are needed (data.py build "
              f"--{'sft' if args.command == 'gold' else 'gate'} N)", file=sys.stderr)
    unanswered = sum(m.unanswered for m in models.values() if isinstance(m, Model))
    if unanswered:
        print(f"{unanswered} requests had no answer: run the same command again, the answers so far are in "
              f"{cache.folder}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
