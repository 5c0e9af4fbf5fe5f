"""Offline data for stages 1 and 2: gold tuples (Appendix C.4) and gate labels (Appendix D).

    python -m prepare.teacher gold   --teacher SPEC --judge SPEC    # -> corpora/gold.jsonl
    python -m prepare.teacher labels --teacher SPEC --judge SPEC    # -> corpora/labels_*.jsonl

prepare/judge.py says what a SPEC is.

The funnel: the teacher proposes six methods per problem; those whose form breaks the plan contract
are dropped; the judge keeps what is specific, actionable, free of code and new; a problem with at
least K kept methods gives a gold tuple, and the teacher writes the thought that leads to it. Gate
labels start from the same funnel: K of the kept methods are a positive, and from it we make a
negative that looks as well formed (see negatives.py). `--candidates planner` labels samples of the
current planner instead, `both` does both.

Every answer of a model is kept on disk (see ask.py): a run that was cut off continues where it was,
and a finished one gives the same files again without a model.

Departures from the paper, and what it leaves open:
 1. Appendix D labels teacher plans and made negatives, Appendix O samples of the planner: hence
    --candidates.
 2. Training and validation labels share no problem; as many Pass as Fail, by problem
    (lib.labels.balance).
 3. Negatives are labelled by how they were made; the judge labels planner samples only.
"""

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import prompts
from lib import errors, files, flags, progress
from lib.errors import UserError
from lib.labels import POSITIVE, Label, balance, save_labels
from lib.problems import Problem, load_problems
from prepare import corpora, exposure
from prepare import prompts as judge_prompts
from prepare.ask import Cache, Responder
from prepare.judge import Judge, Teacher, judge_plans, open_source
from prepare.negatives import NEGATIVES, spoiled

CANDIDATES = 6              # Appendix B: proposals per problem
LABELS_PER_PROBLEM = 2      # positives per problem, and planner samples per problem
BATCH = 64                  # problems that go through the funnel together, before we look whether
                            # there is enough

# ----------------------------------------------------------------------------------------------
# The funnel (Appendix C.4)

@dataclass
class Funnel:
    """From problems to plans of K clean methods. `counts` says what each stage dropped."""
    teacher: Responder | Teacher
    judge: Responder | Judge
    k: int = 4
    num_candidates: int = CANDIDATES
    counts: Counter = field(default_factory=Counter)

    def run(self, problems: Sequence[Problem]) -> list[list[list[str]]]:
        """For each problem every K of its kept candidates, in the teacher's order."""
        self.counts["problems offered"] += len(problems)
        candidates = self.propose(problems)
        self.counts["problems with candidates"] += sum(map(bool, candidates))
        kept = self.keep(problems, candidates)
        plans = [self.plans(*pair) for pair in zip(problems, kept, strict=True)]
        self.counts[f"problems with {self.k} clean candidates"] += sum(map(bool, plans))
        return plans

    def propose(self, problems: Sequence[Problem]) -> list[list[str]]:
        """Up to `num_candidates` methods per problem in the right form, no two literally equal."""
        n = self.num_candidates
        if isinstance(self.teacher, Responder):
            texts = [judge_prompts.teacher(p, n) for p in problems]
            lists = self.teacher.ask_parsed(texts, lambda text, _: prompts.parse_list(text) or None,
                                            self.counts, "teacher")
        else:
            lists = [self.teacher(p, n) for p in problems]
        return [self.well_formed((proposed or [])[:n]) for proposed in lists]

    def well_formed(self, candidates: list[str]) -> list[str]:
        self.counts["candidates proposed"] += len(candidates)
        fit: dict[str, str] = {}
        for candidate in candidates:
            breaches = prompts.check_plan([candidate])
            for breach in breaches:
                self.counts[f"candidates dropped: {breach}"] += 1
            name = prompts.normalise(candidate)
            if not breaches and name in fit:
                self.counts["candidates dropped: literal duplicate"] += 1
            elif not breaches:
                fit[name] = candidate
        self.counts["candidates of the right form"] += len(fit)
        return list(fit.values())

    def keep(self, problems: Sequence[Problem],
             candidates: Sequence[list[str]]) -> list[list[str]]:
        """The candidates that the judge keeps."""
        if isinstance(self.judge, Responder):
            kept = self.ask_judge(problems, candidates)
        else:
            kept = []
            for problem, proposed in zip(problems, candidates, strict=True):
                kept.append([c for c in proposed if self.function_keeps(problem, c)])
        self.counts["candidates kept by the judge"] += sum(map(len, kept))
        return kept

    def ask_judge(self, problems: Sequence[Problem],
                  candidates: Sequence[list[str]]) -> list[list[str]]:
        asked = [i for i, proposed in enumerate(candidates) if proposed]
        texts = [judge_prompts.judge_candidates(problems[i], candidates[i]) for i in asked]

        def parse(text: str, place: int) -> list[bool] | None:
            return judge_prompts.parse_verdicts(text, len(candidates[asked[place]]))

        verdicts = self.judge.ask_parsed(texts, parse, self.counts, "judge")
        kept: list[list[str]] = [[] for _ in candidates]
        for i, verdict in zip(asked, verdicts, strict=True):
            if verdict:
                kept[i] = list(itertools.compress(candidates[i], verdict))
        return kept

    def function_keeps(self, problem: Problem, candidate: str) -> bool:
        """A judge that is a function labels plans: show it one that repeats the candidate K times,
        and overlook that."""
        faults = self.judge(problem.statement, prompts.format_plan([candidate] * self.k))
        return not set(faults) - {"duplicate"}

    def plans(self, problem: Problem, kept: list[str]) -> list[list[str]]:
        """Every K of the kept candidates; a judge that is a function must pass them together."""
        combinations = [list(chosen) for chosen in itertools.combinations(kept, self.k)]
        if isinstance(self.judge, Responder):
            return combinations
        return [plan for plan in combinations
                if not self.judge(problem.statement, prompts.format_plan(plan))]


def batches(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    for start in range(0, len(problems), BATCH):
        yield problems[start:start + BATCH]


def make_gold(funnel: Funnel, problems: Sequence[Problem], wanted: int) -> list[dict]:
    """Gold tuples of the first `wanted` problems with K clean candidates."""
    gold: list[dict] = []
    for batch in batches(problems):
        if len(gold) >= wanted:
            break
        plans = funnel.run(batch)
        chosen = [(p, possible[0]) for p, possible in zip(batch, plans, strict=True) if possible]
        chosen = chosen[:wanted - len(gold)]
        for (p, strategies), thought in zip(chosen, thoughts(funnel, chosen), strict=True):
            gold.append({"problem_id": p.id, "statement": p.statement, "think": thought or "",
                         "strategies": strategies})
    funnel.counts["gold tuples"] = len(gold)
    funnel.counts["gold tuples without a thought"] = sum(not row["think"] for row in gold)
    return gold


def thoughts(funnel: Funnel, chosen: list[tuple[Problem, list[str]]]) -> Sequence[str | None]:
    """The thought that leads to each tuple; a teacher that is a function writes none."""
    if not isinstance(funnel.teacher, Responder):
        return [None] * len(chosen)
    texts = [judge_prompts.teacher_trace(p, strategies) for p, strategies in chosen]
    return funnel.teacher.ask_parsed(
        texts, lambda text, _: prompts.cut_thought(text).strip() or None, funnel.counts, "trace")


# ----------------------------------------------------------------------------------------------
# Gate labels (Appendices D and O)

Plan = tuple[Problem, list[str]]


def positive_plans(funnel: Funnel, problems: Sequence[Problem], per_problem: int,
                   wanted: int, seed: int) -> list[Plan]:
    """Up to `per_problem` plans per problem from the funnel, until there are about `wanted`."""
    plans: list[Plan] = []
    for batch in batches(problems):
        # one problem more than needed: one may be lost where the two sides divide
        if len(plans) >= wanted + per_problem:
            break
        for problem, possible in zip(batch, funnel.run(batch), strict=True):
            # one stream per problem: more problems do not change the labels of these
            rng = random.Random(f"{seed}:{problem.id}")
            for chosen in rng.sample(possible, min(per_problem, len(possible))):
                # so that the gate cannot learn from a method's place
                rng.shuffle(chosen)
                plans.append((problem, chosen))
    return plans


def teacher_labels(funnel: Funnel, problems: Sequence[Problem], per_problem: int, wanted: int,
                   seed: int) -> list[Label]:
    """Positives from the funnel and a made negative for each, about `wanted` labels in all."""
    plans = positive_plans(funnel, problems, per_problem, wanted // 2, seed)
    counts = funnel.counts
    if len({problem.id for problem, _ in plans}) < 2:
        raise UserError(f"{len(plans)} plans from {counts['problems offered']} problems passed the "
                        f"judge, too few to make labels of: see the counts ({dict(+counts)})")
    # each kind of negative equally often
    kinds = [NEGATIVES[i % len(NEGATIVES)] for i in range(len(plans))]
    rephrased = rephrase(funnel, plans, [i for i, kind in enumerate(kinds) if kind == "duplicate"])
    labels = []
    for i, (problem, plan) in enumerate(plans):
        rng = random.Random(f"{seed}:{problem.id}:{i}")
        foreign = foreign_plan(plans, i, rng)
        bad = spoiled(kinds[i], plan, rephrased.get(i), foreign, rng)
        labels.append(Label(problem.id, problem.statement, prompts.format_plan(plan), 1,
                            POSITIVE))
        labels.append(Label(problem.id, problem.statement, prompts.format_plan(bad), 0,
                            kinds[i]))
        counts[f"labels made: {kinds[i]}"] += 1
    counts["labels made: positive"] = len(plans)
    return labels


def rephrase(funnel: Funnel, plans: list[Plan], places: list[int]) -> dict[int, str | None]:
    """The first method of the plans at `places` in the teacher's other words."""
    if not isinstance(funnel.teacher, Responder):
        return {}
    originals = [plans[i][1][0] for i in places]
    texts = [judge_prompts.rephrase(original) for original in originals]
    replies = funnel.teacher.ask_parsed(
        texts, lambda text, at: usable_rephrasing(text, originals[at]), funnel.counts, "rephrasing")
    return dict(zip(places, replies, strict=True))


def usable_rephrasing(text: str, original: str) -> str | None:
    """A reply that is one method of the right form, and not the original itself."""
    lines = [line.strip() for line in prompts.cut_thought(text).split("\n") if line.strip()]
    if len(lines) != 1 or prompts.check_plan(lines):
        return None
    return lines[0] if prompts.normalise(lines[0]) != prompts.normalise(original) else None


def foreign_plan(plans: list[Plan], i: int, rng: random.Random) -> list[str]:
    """A plan of another problem than that of plan i."""
    for step in itertools.count(rng.randrange(1, len(plans))):
        problem, plan = plans[(i + step) % len(plans)]
        if problem.id != plans[i][0].id:
            return plan
    raise AssertionError("there are plans of two problems")


def planner_labels(planner: Responder, judge: Responder | Judge, problems: Sequence[Problem],
                   per_problem: int, k: int, counts: Counter) -> list[Label]:
    """Judged samples of the planner under CPPO's own prompt (Appendix O)."""
    labels = []
    for attempt in range(per_problem):
        replies = planner.ask([prompts.plan(p, k) for p in problems], attempt, "planner")
        pairs = [(p, prompts.cut_thought(text).strip())
                 for p, text in zip(problems, replies, strict=True) if text]
        counts["planner samples"] += len(pairs)
        counts["planner: no answer"] += len(problems) - len(pairs)
        for (p, plan), faults in zip(pairs, judge_plans(judge, pairs, k, counts), strict=True):
            if faults is None:
                continue
            # the first fault in the order of the contract names the kind
            kind = faults[0] if faults else POSITIVE
            labels.append(Label(p.id, p.statement, plan, int(not faults), kind))
            counts[f"planner samples judged: {kind}"] += 1
    return labels


def divide(labels: list[Label], num_train: int, num_val: int,
           seed: int) -> tuple[list[Label], list[Label]]:
    """Training and held-out labels, at most so many: as many Pass as Fail, no problem on both
    sides. The held-out side is filled first."""
    balanced = balance(labels, seed)
    by_problem: dict[str, list[Label]] = {}
    for label in balanced:
        by_problem.setdefault(label.problem_id, []).append(label)
    train: list[Label] = []
    val: list[Label] = []
    for name in sorted(by_problem, key=lambda name: corpora.order_key(seed, name)):
        full = all(len(of_label(val, label)) >= num_val // 2 for label in (0, 1))
        (train if full else val).extend(by_problem[name])
    return cut(train, num_train, seed), cut(val, num_val, seed)


def of_label(labels: list[Label], label: int) -> list[Label]:
    return [x for x in labels if x.label == label]


def cut(labels: list[Label], size: int, seed: int) -> list[Label]:
    """At most `size` labels, as many Pass as Fail, of the first problems; in random order."""
    failing, passing = of_label(labels, 0), of_label(labels, 1)
    half = min(size // 2, len(failing), len(passing))
    chosen = failing[:half] + passing[:half]
    random.Random(f"{seed}:cut").shuffle(chosen)
    return chosen


# ----------------------------------------------------------------------------------------------
# Commands

def json_object(text: str) -> dict:
    """The argparse type of --teacher-options and the like."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text!r}")
    return options


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Offline data of stages 1 and 2: gold tuples and gate labels. SPEC: "
                          "http://host/v1#model, a model's folder or hub id, module:name, or rule.")
    parser.add_argument("command", choices=["gold", "labels"])
    parser.add_argument("--teacher", metavar="SPEC", help="who proposes methods")
    parser.add_argument("--judge", metavar="SPEC", required=True, help="who labels plans")
    parser.add_argument("--problems", metavar="FILE",
                        help="by default the pool sft (gold) or gate (labels) of --out")
    parser.add_argument("--out", type=Path, default="corpora", metavar="FOLDER",
                        help="where the files go, and the answers of models (answers/)")
    parser.add_argument("--prompts", metavar="FILE",
                        help="JSON file {name: text} that replaces prompts")
    parser.add_argument("--num-strategies", type=flags.at_least(2), default=4, metavar="K",
                        help="methods of a plan")
    parser.add_argument("--num-candidates", type=flags.at_least(2), default=CANDIDATES,
                        metavar="N", help="proposals per problem, at least K")
    parser.add_argument("--seed", type=int, default=0)
    add = parser.add_argument_group("gold").add_argument
    add("--gold", type=flags.at_least(1), default=333, metavar="N",
        help="tuples wanted, one per problem")
    add = parser.add_argument_group("labels").add_argument
    add("--candidates", choices=["teacher", "planner", "both"], default="teacher",
        help="what is labelled")
    add("--planner", metavar="SPEC", help="the planner whose samples are labelled")
    add("--train", type=flags.at_least(2), default=1110, metavar="N", help="training labels")
    add("--val", type=flags.at_least(2), default=278, metavar="N", help="held-out labels")
    add = parser.add_argument_group("models").add_argument
    add("--concurrency", type=flags.at_least(1), default=8, metavar="N",
        help="requests under way at a time")
    add("--retries", type=flags.at_least(0), default=6, metavar="N",
        help="of a request that fails, after 1 s, 2 s, 4 s, ...")
    add("--max-new-tokens", type=flags.at_least(1), default=2048, metavar="N", help="of a reply")
    for role in ("teacher", "judge", "planner"):
        add(f"--{role}-options", metavar="JSON", type=json_object, default={},
            help="fields of a request to an endpoint, null to leave one out: "
                 "'{\"max_tokens\": null}'")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of local models")
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """UserError for flags that do not fit together; drops the roles that are not needed."""
    k, most = args.num_strategies, len(prompts.LABELS)
    if k > most or args.num_candidates < k:
        raise UserError(f"--num-strategies {k} --num-candidates {args.num_candidates}: K is at "
                        f"most {most}, and N at least K")
    needed = {"teacher": args.command == "gold" or args.candidates != "planner",
              "planner": args.command == "labels" and args.candidates != "teacher"}
    for role, is_needed in needed.items():
        if not is_needed:
            setattr(args, role, None)
        elif not getattr(args, role):
            mode = f" --candidates {args.candidates}" if args.command == "labels" else ""
            raise UserError(f"prepare.teacher {args.command}{mode} needs --{role} SPEC")


def open_role(role: str, args: argparse.Namespace) -> Responder | Judge | Teacher | None:
    spec = getattr(args, role)
    if not spec:
        return None
    return open_source(
        spec, role, Cache(args.out / "answers"), k=args.num_strategies,
        options=getattr(args, f"{role}_options"), concurrency=args.concurrency,
        retries=args.retries, max_new_tokens=args.max_new_tokens,
        temperature=0.0 if role == "judge" else 0.7, device=args.device,
        progress=progress.progress)


def write_gold(funnel: Funnel, problems: list[Problem], args: argparse.Namespace) -> str:
    """Write gold.jsonl; return what came out short, "" if nothing."""
    gold = make_gold(funnel, problems, args.gold)
    if not gold:
        raise UserError(f"no problem of {args.problems} has {funnel.k} clean candidates: "
                        f"{dict(+funnel.counts)}")
    files.save_lines(args.out / "gold.jsonl", gold)
    return f"{len(gold)} of {args.gold} gold tuples" if len(gold) < args.gold else ""


def write_labels(funnel: Funnel, planner: Responder | None, problems: list[Problem],
                 args: argparse.Namespace) -> str:
    """Write labels_train.jsonl and labels_val.jsonl; return what came out short, "" if nothing."""
    labels: list[Label] = []
    if args.teacher:
        labels += teacher_labels(funnel, problems, LABELS_PER_PROBLEM, args.train + args.val,
                                 args.seed)
    if planner:
        labels += planner_labels(planner, funnel.judge, problems, LABELS_PER_PROBLEM, funnel.k,
                                 funnel.counts)
    train, val = divide(labels, args.train, args.val, args.seed)
    short = ""
    for name, chosen, size in (("train", train, args.train), ("val", val, args.val)):
        funnel.counts[f"labels written: {name}"] = len(chosen)
        save_labels(str(args.out / f"labels_{name}.jsonl"), chosen)
        if len(chosen) < size - 1:          # an odd size gives one less
            short = f"{len(chosen)} of {size} {name} labels"
    return short


def save_record(args: argparse.Namespace, warning: str, counts: Counter,
                responders: Iterable[Responder]) -> None:
    """What a file was made of, beside it."""
    record = {"flags": vars(args), "problems_sha256": files.tree_hash(args.problems),
              "warning": warning, "models": [r.identity for r in responders],
              "counts": dict(counts)}
    text = json.dumps(record, indent=1, default=str)
    files.write_file(args.out / f"{args.command}.json", text + "\n")


@errors.one_line()
def main(args: argparse.Namespace) -> int:
    check_args(args)
    if args.prompts:
        with errors.user_input():
            prompts.load(args.prompts)
    pool = "sft" if args.command == "gold" else "gate"
    args.problems = args.problems or str(corpora.default_pool(pool, args.out))
    problems = load_problems(args.problems)
    warning = exposure.check_pool(args.problems, args.out)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    teacher, judge, planner = (open_role(role, args) for role in ("teacher", "judge", "planner"))
    funnel = Funnel(teacher, judge, args.num_strategies, args.num_candidates)

    args.out.mkdir(parents=True, exist_ok=True)
    if args.command == "gold":
        short = write_gold(funnel, problems, args)
    else:
        short = write_labels(funnel, planner, problems, args)

    for name, count in (+funnel.counts).items():
        print(f"{count:8}  {name}")
    responders = [r for r in (teacher, judge, planner) if isinstance(r, Responder)]
    save_record(args, warning, funnel.counts, responders)
    print(f"written to {args.out}")
    if short:
        print(f"only {short}: more problems are needed (python -m prepare.corpora --{pool} N)",
              file=sys.stderr)
    unanswered = sum(r.unanswered for r in responders)
    if unanswered:
        print(f"{unanswered} requests had no answer: run the same command again; the answers so "
              f"far are in {args.out / 'answers'}", file=sys.stderr)
    return 1 if unanswered else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
