"""From an inference method to graded attempts, under one parser, one verifier and one budget.

    setting = Setting(k=4, n=8)
    for attempts in attempts_at(problems, "tuple", setting, engine, Grader(verifier)):
        ...                                 # the 8 attempts at one problem, once they are verified

The methods of all problems run in one engine, so branches decode beside plans, and each program
goes to the verifier the moment its reply ends.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import prompts
from gate import Gate, RuleGate
from lib import metrics
from lib.problems import Problem, outcome_hash
from lib.verdicts import Submitter
from rivals import prompts as rival_prompts
from rivals.methods import METHODS, Pairs, Recipe, Reply, Setting, draws_per_problem
from rollout import Engine, Job, Sample
from verifier import Verifier


@dataclass
class Attempt:
    """A line of an attempts file."""
    problem_id: str
    seed: int
    tuple: int                      # which draw of the method; its attempts were planned together
    index: int                      # place in the draw
    strategy: str | None = None     # None: the method has none, or the plan did not parse
    program: str | None = None
    # what majorities count: the predicted output, or a hash of the outputs on public inputs
    answer: str | None = None
    # the verifier's, or why there was nothing to verify: no_plan, plan_cut (the length limit ended
    # it), no_code (or no answer), cut; empty: another system gave no program
    status: str = "empty"
    outcome: str | None = None      # hash of the outputs on the graded tests: a world's class
    gate: float | None = None       # p(Pass | x, S) of the tuple
    planner_tokens: int = 0         # of all plans of the draw; written at its first attempt
    solver_tokens: int = 0
    seconds: float = 0.0            # in the verifier
    # how decoding ended (of the plan, if it did not parse): eos, length, stop
    finish: str | None = None
    posterior: float | None = None  # of the outcome given the statement, where a world has classes
    reply: str | None = None        # the solver's, as it came
    plans: list[str] | None = None  # the planner's replies; written at the draw's first attempt
    error: str | None = None        # why the plan holds no strategy, or what the verifier says


# ----------------------------------------------------------------------------------------------
# Grading

class Grader:
    """From a reply to an attempt, the same for every method.

    outcomes: keep a hash of what is printed on the graded tests even where a problem has no
    classes. votes: also run programs on the public inputs, for majorities.
    """

    def __init__(self, verifier: Verifier, outcomes: bool = False, votes: bool = False,
                 official_limits: bool = False):
        self.graded = Submitter(verifier, official_limits)
        self.public = Submitter(verifier, official_limits)
        self.outcomes, self.votes = outcomes, votes

    def grade(self, problem: Problem, text: str, sample: Sample | None = None) -> Reply:
        """Take the program or the answer out of a reply's text, and start the program."""
        if problem.kind != "code":
            answer = metrics.canonical_answer(rival_prompts.extract_answer(text))
            return Reply(sample, answer=answer)
        return self.run(problem, prompts.extract_code(text, problem.fn_name), sample)

    def run(self, problem: Problem, program: str | None, sample: Sample | None = None) -> Reply:
        """Send a program to the verifier."""
        reply = Reply(sample, program)
        if program is None:
            return reply
        want_outputs = self.outcomes or problem.classes is not None
        reply.verdict = self.graded.submit(problem, program, want_outputs)
        if self.votes:
            on_public = replace(problem, tests=problem.public_tests)
            reply.public = self.public.submit(on_public, program, want_outputs=True)
        return reply

    def forget(self, problem: Problem) -> None:
        self.graded.forget(problem)
        self.public.forget(problem)

    def attempt(self, problem: Problem, reply: Reply, **known) -> Attempt:
        """Wait for the verdict. known: the fields of the attempt that do not depend on it."""
        attempt = Attempt(problem.id, **known)
        if problem.classes is not None:
            attempt.posterior = 0.0
        if reply.error:
            attempt.error = reply.error
            attempt.status = "plan_cut" if attempt.finish == "length" else "no_plan"
        if reply.sample:
            attempt.solver_tokens = len(reply.sample.ids)
            attempt.finish, attempt.reply = reply.sample.finish, reply.sample.text
            attempt.status = "cut" if attempt.finish == "length" else "no_code"
        if reply.answer is not None:
            right = reply.answer == metrics.canonical_answer(problem.answer)
            attempt.answer = reply.answer
            attempt.status = "accepted" if right else "wrong_answer"
        if reply.verdict:
            verdict = reply.verdict.result()
            attempt.program, attempt.status = reply.program, verdict.status
            attempt.seconds = round(verdict.seconds, 4)
            attempt.error = verdict.message or None
            attempt.outcome = hash_of(verdict.outputs)
            if problem.classes is not None:
                attempt.posterior = problem.classes.get(attempt.outcome, 0.0)
        if reply.public:
            attempt.answer = hash_of(reply.public.result().outputs)
        return attempt


def hash_of(outputs: list[str | None] | None) -> str | None:
    """None for a program that ended normally on no test: two of those have nothing in common."""
    if outputs is None or all(output is None for output in outputs):
        return None
    return outcome_hash(outputs)


# ----------------------------------------------------------------------------------------------
# Sampling

@dataclass
class Draw:
    """One draw of a method for one problem, while it is under way."""
    problem: Problem
    number: int
    recipe: Recipe
    asked: int = 0                      # requests so far: each has its own random stream
    waiting: int = 0                    # replies to come before the recipe goes on
    replies: list = field(default_factory=list)
    plans: list[Sample] = field(default_factory=list)
    pairs: Pairs | None = None          # the recipe's result, once it has ended


def next_jobs(draw: Draw, replies: list | None, engine: Engine, setting: Setting) -> list[Job]:
    """Send replies to the draw's recipe -> jobs for what it asks next; [] once it has ended."""
    try:
        asks = draw.recipe.send(replies)
    except StopIteration as end:
        draw.pairs = end.value
        return []
    encoded = [prompts.encode(engine.tokenizer, ask.text, ask.think) for ask in asks]
    # the branches of a tuple share all of the prompt but the strategy
    shared = len(os.path.commonprefix(encoded)) or None
    jobs = []
    for place, (ask, ids) in enumerate(zip(asks, encoded, strict=True)):
        owner = ask.owner or draw.problem.id
        key = (setting.seed, "eval", owner, draw.number, draw.asked + place)
        limit = setting.max_solve_tokens if ask.solve else setting.max_plan_tokens
        opened = prompts.thought_mark(engine.tokenizer) if ask.think else ""
        jobs.append(Job(ids, key, limit, shared, (draw, place, ask.solve), opened, ask.stop))
    draw.asked += len(asks)
    draw.waiting = len(asks)
    draw.replies = [None] * len(asks)
    return jobs


def sample_draws(engine: Engine, draws: Iterable[Draw], setting: Setting,
                 grader: Grader) -> Iterator[Draw]:
    """Run every draw's recipe to its end, all in one engine; yields draws as they end.

    As many draws are under way as there are slots, so that problems end in turn.
    """
    draws = iter(draws)
    first = []
    for draw in itertools.islice(draws, engine.slots):
        first += next_jobs(draw, None, engine, setting)
    for job, sample in engine.run(first):
        draw, place, solves = job.tag
        if solves:
            draw.replies[place] = grader.grade(draw.problem, sample.text, sample)
        else:
            draw.replies[place] = sample
            draw.plans.append(sample)
        draw.waiting -= 1
        if draw.waiting:
            continue
        engine.push(next_jobs(draw, draw.replies, engine, setting))
        # an ended draw makes room for the next one
        if draw.pairs is not None:
            for following in itertools.islice(draws, 1):
                engine.push(next_jobs(following, None, engine, setting))
            yield draw


# ----------------------------------------------------------------------------------------------
# Attempts

def attempts_at(problems: list[Problem], method: str, setting: Setting, engine: Engine,
                grader: Grader, gate: Gate | RuleGate | None = None) -> Iterator[list[Attempt]]:
    """The attempts at each problem, as soon as the last of its verdicts is there."""
    per_problem = draws_per_problem(method, setting)
    draws = (Draw(problem, number, METHODS[method](problem, number, setting))
             for problem in problems for number in range(per_problem))
    sampled: dict[str, list[Draw]] = defaultdict(list)
    unverified: list[list[Draw]] = []
    for draw in sample_draws(engine, draws, setting, grader):
        sampled[draw.problem.id].append(draw)
        if len(sampled[draw.problem.id]) == per_problem:
            unverified.append(sampled.pop(draw.problem.id))
        for ready in [draws for draws in unverified if is_verified(draws)]:
            unverified.remove(ready)
            yield attempts_of(ready, setting, grader, gate)
    for left in unverified:
        yield attempts_of(left, setting, grader, gate)


def is_verified(draws: list[Draw]) -> bool:
    return all(verdict.done() for draw in draws for verdict in verdicts_of(draw))


def verdicts_of(draw: Draw) -> Iterator[Future]:
    for _, reply in draw.pairs:
        if reply.verdict:
            yield reply.verdict
        if reply.public:
            yield reply.public


def attempts_of(draws: list[Draw], setting: Setting, grader: Grader,
                gate: Gate | RuleGate | None) -> list[Attempt]:
    """All attempts at a problem, in order. Waits for their verdicts."""
    attempts = []
    for draw in sorted(draws, key=lambda draw: draw.number):
        known = {"seed": setting.seed, "tuple": draw.number}
        if draw.plans:
            known["finish"] = draw.plans[-1].finish
        if gate:
            known["gate"] = p_pass(draw, gate)
        first = len(attempts)
        for index, (strategy, reply) in enumerate(draw.pairs):
            attempt = grader.attempt(draw.problem, reply, index=index, strategy=strategy, **known)
            attempts.append(attempt)
        attempts[first].planner_tokens = sum(len(plan.ids) for plan in draw.plans)
        attempts[first].plans = [plan.text for plan in draw.plans] or None
    grader.forget(draws[0].problem)
    return attempts


def p_pass(draw: Draw, gate: Gate | RuleGate) -> float:
    """p(Pass | x, S) of a tuple; 0 if it does not parse: the gate is not asked, as in training."""
    strategy, _ = draw.pairs[0]
    if strategy is None:
        return 0.0
    return gate.p_pass([(draw.problem, draw.plans[0].text)])[0]
