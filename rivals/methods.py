"""Every inference method, from a problem to judged attempts, under one parser, one verifier and one budget.

    for attempts in attempts_at(problems, "tuple", Setting(k=4, n=8), engine, limits=(512, 2048), grader):
        ...                                 # the 8 attempts at one problem, as soon as they are judged

A method is a generator. It yields lists of `Ask`, gets as many replies back, and in the end returns its
attempts: pairs of a strategy (or None) and the reply that solves with it (or None, where no attempt could be
made). The generators of all problems run in one engine, so branches decode beside plans, and each is judged
the moment it ends.

`number` counts the draws of a method for one problem. A draw makes one attempt, or K for a tuple, or all n
for PlanSearch; what it samples depends on seed, problem and number alone.

Where the paper is silent, we chose:
 1. A plan that does not parse is K failed attempts. Its tokens count, as do those of failed and cut replies.
 2. iid inference asks for the whole plan and stops before its second label (Appendix G does not say).
 3. PlanSearch: one call for observations, then plans from combinations of at most two until eight are
    distinct; taken first are those that share no observation with one taken before.
 4. The fixed strategies are four that cover large classes of the taxonomy
    (prompts.TEMPLATES["fixed_strategies"]).
 5. Output prediction: two answers are equal if Python reads both as the same literal.
 6. Self-consistency on programs: the vote is on what they print for the public inputs; no output is no vote.
"""

import itertools
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import prompts
from gate import Gate, RuleGate
from lib import metrics
from lib.problems import Problem, outcome_hash, verifier_item
from rivals import prompts as rival_prompts
from rollout import Engine, Job, Sample
from verifier import Verifier

PLANS_SEARCHED = 8  # Appendix P: PlanSearch's candidate plans for each problem
MAX_COMBINED = 2  # observations in one plan
SECOND_LABEL = re.compile(rf"^\s*{prompts.LABELS[1]}:", re.MULTILINE)


@dataclass
class Attempt:
    """A line of an attempts file."""
    problem_id: str
    seed: int
    tuple: int                      # which draw of the method; its attempts were planned together
    index: int                      # place in it
    strategy: str | None = None     # None: the method has none, or the plan did not parse
    program: str | None = None
    answer: str | None = None       # what majorities count: the predicted output, or a hash of public outputs
    status: str = "empty"           # the verifier's; of a predicted output accepted, wrong_answer or empty
    outcome: str | None = None      # hash of the outputs on the graded tests, which names a world's class
    gate: float | None = None       # p(Pass | x, S) of the tuple
    planner_tokens: int = 0         # decoded for all plans of the draw; stands at its first attempt
    solver_tokens: int = 0
    seconds: float = 0.0            # in the verifier
    finish: str | None = None       # how decoding ended (of the plan, if it did not parse): eos, length, stop
    posterior: float | None = None  # of the outcome given the statement, where a world has classes


@dataclass
class Reply:
    """What a solving `Ask` comes back as."""
    sample: Sample | None               # None: written by another system
    program: str | None = None
    answer: str | None = None           # output prediction
    verdict: Future | None = None       # on the graded tests
    public: Future | None = None        # on the public inputs, where the method votes on outputs


@dataclass
class Ask:
    text: str                   # one user turn
    solve: bool = True          # the reply is an attempt, to be judged; else it is planning, and has a `text`
    owner: str | None = None    # the problem whose random stream it draws from, if not the method's own
    stop: Callable | None = None    # ends the reply when it finds something in the text so far
    think: bool = False         # whether the model is asked to think first


@dataclass
class Setting:
    k: int                      # strategies a tuple
    n: int                      # attempts a problem
    seed: int = 0
    donors: dict = field(default_factory=dict)  # problem id -> the problem whose tuples it gets, if another
    think: bool = False         # the tuple planner thinks first, as stage 1 may have taught it


Pairs = list[tuple[str | None, Reply | None]]
Recipe = Generator[list[Ask], list, Pairs]      # is sent a Sample for a plan, a Reply for an attempt


# ---------------------------------------------------------------------------------------------- the methods

def direct(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Eq. 2. Self-consistency is the same, voted on."""
    [reply] = yield [Ask(prompts.direct(problem))]
    return [(None, reply)]


def plan_and_solve(problem: Problem, number: int, setting: Setting) -> Recipe:
    [reply] = yield [Ask(rival_prompts.plan_and_solve(problem))]
    return [(None, reply)]


def skills(problem: Problem, number: int, setting: Setting) -> Recipe:
    """UpSkill: one sample for each of the K skills, in turn."""
    [reply] = yield [Ask(rival_prompts.skill(problem, number % setting.k + 1))]
    return [(None, reply)]


def fixed(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Fixed-Strategy Ensemble (Table 7): the same strategies for every problem, in turn."""
    strategies = rival_prompts.fixed_strategies()
    return solve_each(problem, [strategies[number % len(strategies)]])


def sketch(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Independent sketch-then-solve (section 4.3): each sketch without sight of the others."""
    [plan] = yield [Ask(rival_prompts.sketch(problem), solve=False)]
    strategy = one_line(plan.text)
    return (yield from solve_each(problem, [strategy])) if strategy else [(None, None)]


def joint_tuple(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Eq. 3-5: one plan of K strategies, each conditioned on those before it, then a branch for each."""
    donor = setting.donors.get(problem.id, problem)
    [plan] = yield [Ask(prompts.plan(donor, setting.k), solve=False, owner=donor.id, think=setting.think)]
    try:
        strategies = prompts.parse_plan(plan.text, setting.k)
    except prompts.PlanError:
        return [(None, None)] * setting.k
    return (yield from solve_each(problem, strategies))


def iid_tuple(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Appendix G: one strategy from the tuple planner, the history cleared between draws."""
    [plan] = yield [Ask(prompts.plan(problem, setting.k), solve=False, stop=second_label, think=setting.think)]
    try:
        strategies = prompts.parse_plan(plan.text, 1)
    except prompts.PlanError:
        return [(None, None)]
    return (yield from solve_each(problem, strategies))


def second_label(text: str) -> bool:
    return bool(SECOND_LABEL.search(prompts.cut_thought(text)))


def plansearch(problem: Problem, number: int, setting: Setting) -> Recipe:
    """PlanSearch (arXiv 2409.03733) in the form of Appendix P."""
    [listed] = yield [Ask(rival_prompts.observations(problem), solve=False)]
    observations = list(dict.fromkeys(prompts.parse_list(listed.text)))
    combinations = [c for size in range(MAX_COMBINED + 1) for c in itertools.combinations(observations, size)]
    random.Random(f"{setting.seed} {problem.id} plansearch").shuffle(combinations)
    found: dict[str, tuple] = {}        # normalised plan -> (plan, the observations it came from)
    while combinations and len(found) < PLANS_SEARCHED:
        missing = PLANS_SEARCHED - len(found)
        now, combinations = combinations[:missing], combinations[missing:]
        replies = yield [Ask(rival_prompts.plan_from_observations(problem, list(c)), solve=False) for c in now]
        for combination, reply in zip(now, replies, strict=True):
            plan = one_line(reply.text)
            if plan:
                found.setdefault(prompts.normalise(plan), (plan, combination))
    if not found:
        return [(None, None)] * setting.n
    chosen = spread(list(found.values()))
    return (yield from solve_each(problem, [chosen[i % len(chosen)] for i in range(setting.n)]))


def spread(plans: list[tuple[str, tuple]]) -> list[str]:
    """The plans in order of choice: next is the one with the fewest observations that were used already."""
    chosen, used, left = [], set(), list(plans)
    while left:
        best = min(left, key=lambda plan: len(used.intersection(plan[1])))      # the earliest among equals
        left.remove(best)
        chosen.append(best[0])
        used.update(best[1])
    return chosen


def solve_each(problem: Problem, strategies: list[str]) -> Recipe:
    replies = yield [Ask(prompts.solve(problem, strategy)) for strategy in strategies]
    return list(zip(strategies, replies, strict=True))


def one_line(text: str) -> str:
    """A reply that is one strategy, without its thought and its line breaks."""
    return " ".join(prompts.cut_thought(text).split())


METHODS = {"direct": direct, "plan-and-solve": plan_and_solve, "plansearch": plansearch, "sketch": sketch,
           "fixed": fixed, "self-consistency": direct, "tuple": joint_tuple, "tuple-iid": iid_tuple,
           "skills": skills}


def attempts_a_draw(method: str, setting: Setting) -> int:
    return {"tuple": setting.k, "plansearch": setting.n}.get(method, 1)


# ---------------------------------------------------------------------------------------------- judging

class Grader:
    """From a reply to an attempt, the same for every method. Equal programs for one problem are run once."""

    def __init__(self, verifier: Verifier, outcomes: bool = False, votes: bool = False,
                 official_limits: bool = False):
        self.verifier, self.official_limits = verifier, official_limits
        self.outcomes = outcomes    # keep a hash of what is printed on the graded tests, not only in worlds
        self.votes = votes          # and of what is printed on the public inputs
        self.running: dict[str, dict] = defaultdict(dict)       # problem id -> program -> futures

    def grade(self, problem: Problem, text: str, sample: Sample | None = None) -> Reply:
        """Take the program or the answer out of a reply's text, and start the program."""
        if problem.kind != "code":
            return Reply(sample, answer=metrics.canonical_answer(rival_prompts.extract_answer(text)))
        return self.run(problem, prompts.extract_code(text, problem.fn_name), sample)

    def run(self, problem: Problem, program: str | None, sample: Sample | None = None) -> Reply:
        if program is None:
            return Reply(sample)
        running = self.running[problem.id]
        if program not in running:
            public = replace(problem, tests=problem.public_tests)
            running[program] = (self._submit(problem, program, self.outcomes or problem.classes is not None),
                                self._submit(public, program, True) if self.votes else None)
        return Reply(sample, program, None, *running[program])

    def _submit(self, problem: Problem, program: str, outputs: bool) -> Future:
        return self.verifier.submit(verifier_item(problem, program, outputs, self.official_limits))

    def forget(self, problem: Problem) -> None:
        self.running.pop(problem.id, None)

    def finish(self, problem: Problem, reply: Reply | None, **known) -> Attempt:
        """Waits for the verdict. known: what the attempt says beyond it."""
        attempt = Attempt(problem.id, **known, posterior=None if problem.classes is None else 0.0)
        if reply is None:
            return attempt
        if reply.sample:
            attempt.solver_tokens, attempt.finish = len(reply.sample.ids), reply.sample.finish
        if reply.answer is not None:
            right = reply.answer == metrics.canonical_answer(problem.answer)
            attempt.answer, attempt.status = reply.answer, "accepted" if right else "wrong_answer"
        if reply.verdict:
            verdict = reply.verdict.result()
            attempt.program, attempt.status = reply.program, verdict.status
            attempt.seconds, attempt.outcome = round(verdict.seconds, 4), hash_of(verdict.outputs)
            if reply.public:
                attempt.answer = hash_of(reply.public.result().outputs)
            if problem.classes is not None:
                attempt.posterior = problem.classes.get(attempt.outcome, 0.0)
        return attempt


def hash_of(outputs: list[str | None] | None) -> str | None:
    """None for a program that ended normally on no test: two of those have nothing in common."""
    return outcome_hash(outputs) if outputs and any(output is not None for output in outputs) else None


# ---------------------------------------------------------------------------------------------- running them

@dataclass
class Draw:
    """One draw of a method for one problem, while it is under way."""
    problem: Problem
    number: int
    recipe: Recipe
    asked: int = 0                      # requests so far, which is the place in the random stream's key
    waiting: int = 0                    # replies to come before the recipe goes on
    replies: list = field(default_factory=list)
    plans: list[Sample] = field(default_factory=list)
    pairs: Pairs | None = None          # set when it has ended


def sample_draws(engine: Engine, draws: Iterable[Draw], seed: int, limits: tuple[int, int],
                 grade: Callable[[Problem, Sample], Reply]) -> Iterator[Draw]:
    """Run every draw's recipe to its end, all in one engine; yields them as they end. limits: new tokens of a
    plan, of an attempt. As many draws are under way as there are slots, so that problems end in turn."""

    def go_on(draw: Draw, replies: list | None) -> list[Job]:
        try:
            asks = draw.recipe.send(replies)
        except StopIteration as end:
            draw.pairs = end.value
            return []
        encoded = [prompts.encode(engine.tokenizer, ask.text, ask.think) for ask in asks]
        shared = len(os.path.commonprefix(encoded)) or None     # of a tuple's branches: all but the strategy
        jobs = []
        for place, (ask, ids) in enumerate(zip(asks, encoded, strict=True)):
            key = (seed, "eval", ask.owner or draw.problem.id, draw.number, draw.asked + place)
            opened = prompts.thought_mark(engine.tokenizer) if ask.think else ""
            jobs.append(Job(ids, key, limits[ask.solve], shared, (draw, place, ask.solve), opened, ask.stop))
        draw.asked, draw.waiting, draw.replies = draw.asked + len(asks), len(asks), [None] * len(asks)
        return jobs

    draws = iter(draws)
    first = [job for draw in itertools.islice(draws, engine.slots) for job in go_on(draw, None)]
    for job, sample in engine.run(first):
        draw, place, is_attempt = job.tag
        if not is_attempt:
            draw.plans.append(sample)
        draw.replies[place] = grade(draw.problem, sample) if is_attempt else sample
        draw.waiting -= 1
        if draw.waiting:
            continue
        engine.push(go_on(draw, draw.replies))
        if draw.pairs is not None:
            for following in itertools.islice(draws, 1):
                engine.push(go_on(following, None))
            yield draw


def attempts_at(problems: list[Problem], method: str, setting: Setting, engine: Engine,
                limits: tuple[int, int], grader: Grader,
                gate: Gate | RuleGate | None = None) -> Iterator[list[Attempt]]:
    """The attempts at each problem, as soon as the last of its verdicts is there."""
    recipe, per_problem = METHODS[method], -(-setting.n // attempts_a_draw(method, setting))
    draws = (Draw(p, number, recipe(p, number, setting)) for p in problems for number in range(per_problem))
    sampled: dict[str, list[Draw]] = defaultdict(list)
    unjudged: list[list[Draw]] = []

    def is_judged(draws: list[Draw]) -> bool:
        replies = [reply for draw in draws for _, reply in draw.pairs if reply]
        return all(f.done() for reply in replies for f in (reply.verdict, reply.public) if f)

    def finish(draws: list[Draw]) -> list[Attempt]:
        draws.sort(key=lambda draw: draw.number)
        attempts = [attempt for draw in draws for attempt in attempts_of(draw, setting.seed, grader, gate)]
        grader.forget(draws[0].problem)
        return attempts

    def grade(problem: Problem, sample: Sample) -> Reply:
        return grader.grade(problem, sample.text, sample)

    for draw in sample_draws(engine, draws, setting.seed, limits, grade):
        sampled[draw.problem.id].append(draw)
        if len(sampled[draw.problem.id]) == per_problem:
            unjudged.append(sampled.pop(draw.problem.id))
        for ready in [draws for draws in unjudged if is_judged(draws)]:
            unjudged.remove(ready)
            yield finish(ready)
    for draws in unjudged:
        yield finish(draws)


def attempts_of(draw: Draw, seed: int, grader: Grader, gate: Gate | RuleGate | None) -> list[Attempt]:
    known = {"seed": seed, "tuple": draw.number, "finish": draw.plans[-1].finish if draw.plans else None}
    if gate:        # a plan that does not parse is not asked about, as in training
        parsed = draw.pairs[0][0] is not None
        known["gate"] = gate.p_pass([(draw.problem, draw.plans[0].text)])[0] if parsed else 0.0
    attempts = [grader.finish(draw.problem, reply, index=index, strategy=strategy, **known)
                for index, (strategy, reply) in enumerate(draw.pairs)]
    attempts[0].planner_tokens = sum(len(plan.ids) for plan in draw.plans)
    return attempts
