"""Inference methods: what each asks the model, and which of the replies are its attempts.

A method is a generator. It yields a list of `Ask`, is sent as many replies, and returns its
attempts as pairs (strategy, reply). The strategy is None where the method has none, or where a
plan did not parse, so that nothing could be asked: the reply holds the error. rivals/inference.py
runs the generators of all problems in one engine.

A draw is one run of the generator. It makes one attempt, or K for a tuple, or all n for PlanSearch;
`number` counts the draws of a problem. What a draw samples depends on seed, problem and number
alone.

Where the paper is silent, we chose:
 1. A plan that does not parse is K failed attempts. Its tokens count, as do those of failed and cut
    replies.
 2. iid inference asks for the whole plan and stops before its second label (Appendix G does not
    say).
 3. PlanSearch makes one call for observations, then plans from combinations of at most two, until
    eight plans are distinct. It takes first those that share no observation with one taken before.
 4. The fixed strategies are four that cover large classes of the taxonomy
    (prompts.TEMPLATES["fixed_strategies"]).
 5. Output prediction: two answers are equal if Python reads both as the same literal.
 6. Self-consistency on programs votes on what they print for the public inputs; a program without
    output does not vote.
"""

import itertools
import random
import re
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field

import prompts
from lib.problems import Problem
from rivals import prompts as rival_prompts
from rollout import Sample

PLANS_SEARCHED = 8      # Appendix P: PlanSearch's candidate plans per problem
MAX_COMBINED = 2        # observations in one plan
SECOND_LABEL = re.compile(rf"^\s*{prompts.LABELS[1]}:", re.MULTILINE)


@dataclass
class Ask:
    """One request to the model."""
    text: str                   # one user turn
    solve: bool = True          # the reply is an attempt, to be graded; else it is planning
    owner: str | None = None    # problem id of the random stream, if not the method's own problem
    stop: Callable[[str], bool] | None = None   # ends the reply when it is true of the text so far
    think: bool = False         # whether the model is asked to think first


@dataclass
class Reply:
    """The reply to an `Ask` that solves; or why nothing could be asked."""
    sample: Sample | None               # None: another system wrote it
    program: str | None = None
    answer: str | None = None           # output prediction
    verdict: Future | None = None       # on the graded tests
    public: Future | None = None        # on the public inputs, where the method votes on outputs
    error: str | None = None            # why the plan holds no strategy: there is no reply


@dataclass
class Setting:
    k: int                      # strategies per tuple; skills
    n: int                      # attempts per problem
    seed: int = 0
    max_plan_tokens: int = 512
    max_solve_tokens: int = 2048
    think: bool = False         # the tuple planner thinks first, as stage 1 may have taught it
    # problem id -> the problem whose tuples it gets, where that is another one
    donors: dict[str, Problem] = field(default_factory=dict)


Pairs = list[tuple[str | None, Reply]]              # (strategy, reply) per attempt
# yields requests; is sent a Sample per plan and a Reply per attempt
Recipe = Generator[list[Ask], list, Pairs]


def direct(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Eq. 2. Self-consistency asks the same and takes a vote."""
    [reply] = yield [Ask(prompts.direct(problem))]
    return [(None, reply)]


def plan_and_solve(problem: Problem, number: int, setting: Setting) -> Recipe:
    [reply] = yield [Ask(rival_prompts.plan_and_solve(problem))]
    return [(None, reply)]


def skills(problem: Problem, number: int, setting: Setting) -> Recipe:
    """UpSkill: the K skills in turn."""
    skill = number % setting.k + 1
    [reply] = yield [Ask(rival_prompts.skill(problem, skill))]
    return [(None, reply)]


def fixed(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Fixed-Strategy Ensemble (Table 7): the same strategies for every problem, in turn."""
    strategies = rival_prompts.fixed_strategies()
    return solve_each(problem, [strategies[number % len(strategies)]])


def sketch(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Independent sketch-then-solve (section 4.3): no sketch sees the others."""
    [plan] = yield [Ask(rival_prompts.sketch(problem), solve=False)]
    strategy = one_line(plan.text)
    if not strategy:
        return no_plan("the sketch is blank")
    return (yield from solve_each(problem, [strategy]))


def joint_tuple(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Eq. 3-5: one plan of K strategies, each conditioned on those before it, then K branches."""
    donor = setting.donors.get(problem.id, problem)
    text = prompts.plan(donor, setting.k)
    [plan] = yield [Ask(text, solve=False, owner=donor.id, think=setting.think)]
    try:
        strategies = prompts.parse_plan(plan.text, setting.k)
    except prompts.PlanError as error:
        return no_plan(str(error)) * setting.k
    return (yield from solve_each(problem, strategies))


def iid_tuple(problem: Problem, number: int, setting: Setting) -> Recipe:
    """Appendix G: one strategy from the tuple planner, the history cleared between draws."""
    text = prompts.plan(problem, setting.k)
    [plan] = yield [Ask(text, solve=False, stop=second_label, think=setting.think)]
    try:
        strategies = prompts.parse_plan(plan.text, 1)
    except prompts.PlanError as error:
        return no_plan(str(error))
    return (yield from solve_each(problem, strategies))


def second_label(text: str) -> bool:
    return SECOND_LABEL.search(prompts.cut_thought(text)) is not None


def plansearch(problem: Problem, number: int, setting: Setting) -> Recipe:
    """PlanSearch (arXiv 2409.03733) in the form of Appendix P."""
    [reply] = yield [Ask(rival_prompts.observations(problem), solve=False)]
    observations = list(dict.fromkeys(prompts.parse_list(reply.text)))
    combinations: list[tuple[str, ...]] = []
    for size in range(MAX_COMBINED + 1):
        combinations += itertools.combinations(observations, size)
    # a text as seed: the order depends on the problem, never on its place in the file
    random.Random(f"{setting.seed} {problem.id} plansearch").shuffle(combinations)

    plans: dict[str, tuple] = {}    # normalised plan -> (plan, the observations it came from)
    while combinations and len(plans) < PLANS_SEARCHED:
        # equal plans count once, so one round may not be enough
        missing = PLANS_SEARCHED - len(plans)
        batch, combinations = combinations[:missing], combinations[missing:]
        texts = [rival_prompts.plan_from_observations(problem, list(chosen))
                 for chosen in batch]
        replies = yield [Ask(text, solve=False) for text in texts]
        for combination, reply in zip(batch, replies, strict=True):
            plan = one_line(reply.text)
            if plan:
                plans.setdefault(prompts.normalise(plan), (plan, combination))
    if not plans:
        return no_plan("every plan is blank") * setting.n
    ordered = spread(list(plans.values()))
    return (yield from solve_each(problem, [ordered[i % len(ordered)] for i in range(setting.n)]))


def spread(plans: list[tuple[str, tuple]]) -> list[str]:
    """(plan, observations) -> the plans in order of choice.

    Next is the plan with the fewest observations that were used already, the earliest among equals.
    """
    ordered, used, left = [], set(), list(plans)
    while left:
        best = min(left, key=lambda plan: len(used.intersection(plan[1])))
        left.remove(best)
        ordered.append(best[0])
        used.update(best[1])
    return ordered


def solve_each(problem: Problem, strategies: list[str]) -> Recipe:
    """One branch per strategy."""
    replies = yield [Ask(prompts.solve(problem, strategy)) for strategy in strategies]
    return list(zip(strategies, replies, strict=True))


def no_plan(error: str) -> Pairs:
    return [(None, Reply(None, error=error))]


def one_line(text: str) -> str:
    """A reply that is one strategy, without its thought and its line breaks."""
    return " ".join(prompts.cut_thought(text).split())


METHODS: dict[str, Callable[[Problem, int, Setting], Recipe]] = {
    "direct": direct,
    "plan-and-solve": plan_and_solve,
    "plansearch": plansearch,
    "sketch": sketch,
    "fixed": fixed,
    "self-consistency": direct,
    "tuple": joint_tuple,
    "tuple-iid": iid_tuple,
    "skills": skills,
}


def attempts_per_draw(method: str, setting: Setting) -> int:
    if method == "tuple":
        return setting.k
    return setting.n if method == "plansearch" else 1


def draws_per_problem(method: str, setting: Setting) -> int:
    """Whole tuples are drawn: n attempts, rounded up."""
    return -(-setting.n // attempts_per_draw(method, setting))


def most_rows(method: str, setting: Setting) -> int:
    """The most rows that one problem may decode at the same time."""
    if method == "plansearch":
        return max(PLANS_SEARCHED, setting.n)
    return draws_per_problem(method, setting) * attempts_per_draw(method, setting)


def expected_rows(method: str, setting: Setting) -> int:
    """Rows that one problem takes in all, plans too, if every plan parses."""
    solved = draws_per_problem(method, setting) * attempts_per_draw(method, setting)
    if method == "plansearch":
        return solved + 1 + PLANS_SEARCHED
    planned = method in ("tuple", "tuple-iid", "sketch")
    return solved + planned * draws_per_problem(method, setting)


def shuffled_donors(problems: list[Problem], seed: int) -> dict[str, Problem]:
    """Problem id -> the problem whose tuples it gets: the next in a random round, never itself."""
    order = random.Random(f"{seed} strategies").sample(problems, len(problems))
    return {problem.id: donor for problem, donor in zip(order, order[1:] + order[:1], strict=True)}
