"""Inference methods on scripted models: what is asked, what is judged, what comes out."""

import random
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

import prompts
from lib.problems import Problem, outcome_hash
from rivals import prompts as rival_prompts
from rivals.inference import Grader, attempts_at
from rivals.methods import METHODS, Setting, shuffled_donors, spread
from rollout import Sample
from verifier import Verdict

PLAN = "A: add them\nB: count them\nC: sort them\nD: print them"


def problem(name: str = "p", **fields) -> Problem:
    return Problem(name, f"Statement of {name}.", tests=[{"input": "1\n", "output": "2\n"}],
                   public_tests=[{"input": "3\n", "output": "4\n"}], **fields)


def tokens(text: str) -> dict:
    return {"input_ids": list(text.encode())}


class Engine:
    """Answers prompts by a function of the text, in an order of its own; tokens are bytes."""
    tokenizer, slots = staticmethod(tokens), 3

    def __init__(self, answer, seed: int = 0):
        self.answer, self.order, self.queue, self.jobs = answer, random.Random(seed), [], []

    def push(self, jobs):
        self.queue += jobs

    def run(self, jobs):
        self.push(jobs)
        while self.queue:
            job = self.queue.pop(self.order.randrange(len(self.queue)))
            self.jobs.append(job)
            text, finish = self.answer(bytes(job.prompt).decode()), "eos"
            for end in range(len(text)) if job.stop else ():
                if job.stop(text[:end]):
                    text, finish = text[:end], "stop"
                    break
            yield job, Sample(list(text.encode()), [], text, finish)


@dataclass
class Verifier:
    """Accepts the programs that hold `right`; a program prints itself. Keeps what it was asked to
    run."""
    items: list

    def submit(self, item) -> Future:
        self.items.append(item)
        right = "right" in item["code"]
        future = Future()
        future.set_result(Verdict(right, "accepted" if right else "wrong_answer", int(right), 0.5,
                                  outputs=[item["code"]] if item.get("want_outputs") else None))
        return future


def program(text: str) -> str:
    return f"Here it is.\n```python\n{text}\n```\n"


def run(method: str, answer, problems=None, n: int = 4, order: int = 0, gate=None, donors=None,
        **grader) -> tuple:
    """-> attempts by problem id, the jobs that were sampled, the items that were judged"""
    engine, verifier, problems = Engine(answer, order), Verifier([]), problems or [problem()]
    setting = Setting(k=4, n=n, donors=donors or {})
    made = attempts_at(problems, method, setting, engine, Grader(verifier, **grader), gate)
    return {attempts[0].problem_id: attempts for attempts in made}, engine.jobs, verifier.items


def model(text: str) -> str:
    """A planner that lists PLAN, a solver that writes a program for the last line of its prompt."""
    if "Propose 4 alternative" in text:
        return PLAN
    return program(text.strip().split("\n")[-1])


# --------------------------------------------------------------------------------------------------
# Methods

def test_a_tuple_is_one_plan_and_one_branch_for_each_of_its_strategies():
    made, jobs, _ = run("tuple", model)
    assert [a.strategy for a in made["p"]] == ["add them", "count them", "sort them", "print them"]
    assert [a.program for a in made["p"]] == ["add them", "count them", "sort them", "print them"]
    assert [(a.tuple, a.index) for a in made["p"]] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert len(jobs) == 5 and [j.max_new_tokens for j in jobs] == [512, 2048, 2048, 2048, 2048]
    assert [a.planner_tokens for a in made["p"]] == [len(PLAN), 0, 0, 0]
    programs = [program(strategy) for strategy in prompts.parse_plan(PLAN)]
    assert [a.solver_tokens for a in made["p"]] == [len(text) for text in programs]


def test_the_branches_of_a_tuple_share_all_of_the_prompt_but_the_strategy():
    _, jobs, _ = run("tuple", model)
    plan, *branches = jobs
    shared = bytes(branches[0].prompt[: branches[0].shared]).decode()
    assert plan.shared == len(plan.prompt) and len({job.shared for job in branches}) == 1
    assert shared == prompts.solve(problem(), "")


def test_more_attempts_than_a_tuple_holds_are_pooled_from_whole_tuples():
    made, jobs, _ = run("tuple", model, n=6)
    assert [(a.tuple, a.index) for a in made["p"]] == [(m, i) for m in range(2) for i in range(4)]
    assert len({job.key for job in jobs}) == 10


def test_a_plan_that_does_not_parse_is_k_failed_attempts_whose_tokens_count():
    made, jobs, items = run("tuple", lambda text: "A: only one")
    assert len(jobs) == 1 and not items
    failed = ("no_plan", None, None, 0)
    assert [(a.status, a.strategy, a.program, a.solver_tokens) for a in made["p"]] == [failed] * 4
    assert made["p"][0].planner_tokens == len("A: only one") and made["p"][0].finish == "eos"


def test_iid_inference_draws_each_strategy_alone_and_stops_before_the_second_label():
    made, jobs, _ = run("tuple-iid", model)
    plans = [job for job in jobs if job.max_new_tokens == 512]
    assert len(plans) == 4 and len({job.key for job in plans}) == 4
    assert {bytes(job.prompt).decode() for job in plans} == {prompts.plan(problem(), 4)}
    assert [(a.tuple, a.strategy) for a in made["p"]] == [(i, "add them") for i in range(4)]
    assert {a.planner_tokens for a in made["p"]} == {len("A: add them\nB:")}


def test_shuffled_strategies_are_another_problem_s_tuple_from_that_problem_s_stream():
    problems = [problem(name) for name in "abc"]
    donors = shuffled_donors(problems, seed=0)
    assert all(donors[p.id].id != p.id for p in problems)
    assert len({donor.id for donor in donors.values()}) == 3

    def own(text):
        return PLAN.replace("them", text[13]) if "Propose" in text else model(text)

    plain, plain_jobs, _ = run("tuple", own, problems)
    shuffled, jobs, _ = run("tuple", own, problems, donors=donors)
    for p in problems:
        assert [a.strategy for a in shuffled[p.id]] == [a.strategy for a in plain[donors[p.id].id]]
    assert {j.key for j in jobs} == {j.key for j in plain_jobs}
    for job in jobs:
        if job.tag[2]:
            assert f"Statement of {job.tag[0].problem.id}." in bytes(job.prompt).decode()


@pytest.mark.parametrize("method, expected", [
    ("direct", [prompts.direct(problem())] * 4),
    ("plan-and-solve", [rival_prompts.plan_and_solve(problem())] * 4),
    ("skills", [rival_prompts.skill(problem(), z) for z in (1, 2, 3, 4)]),
    ("fixed", [prompts.solve(problem(), s) for s in rival_prompts.fixed_strategies()])])
def test_methods_without_a_planner_ask_once_for_each_attempt(method, expected):
    made, jobs, _ = run(method, lambda text: program("right"))
    asked = {job.key: bytes(job.prompt).decode() for job in jobs}
    assert [asked[key] for key in sorted(asked)] == expected
    assert {(a.planner_tokens, a.status) for a in made["p"]} == {(0, "accepted")}


def test_sketches_are_asked_for_one_by_one_and_an_empty_one_is_a_failed_attempt():
    plans = iter(["First\nidea.", "", "<think>no</think> Third."])

    def answer(text):
        return next(plans) if "one method" in text else program("right")

    made, _, _ = run("sketch", answer, n=3)
    assert Counter(a.strategy for a in made["p"]) == Counter(["First idea.", None, "Third."])
    assert Counter(a.status for a in made["p"]) == Counter({"accepted": 2, "no_plan": 1})


def test_plansearch_asks_for_plans_until_eight_are_distinct_and_pays_for_all_of_them():
    observations = ["1. even", "2. sorted", "3. small", "4. prime"]
    asked = []

    def answer(text):
        if "List up to" in text:
            return "\n".join(observations)
        if "Using these observations" in text:
            asked.append(text)
            return "Same plan." if len(asked) in (2, 3, 5) else f"Plan {len(asked)}."
        return program(text.strip().split("\n")[-1])

    made, jobs, _ = run("plansearch", answer)
    plans = [job for job in jobs if "Using these" in bytes(job.prompt).decode()]
    assert len(plans) == 10        # three replies are one plan, so eight distinct ones take ten
    # each comes from another combination
    assert len({bytes(job.prompt) for job in plans}) == len(plans)
    assert max(bytes(job.prompt).decode().count("\n- ") for job in plans) == 2
    assert len({a.strategy for a in made["p"]}) == 4 == len(made["p"])
    replies = [len("Same plan.") if i in (2, 3, 5) else len(f"Plan {i}.") for i in range(1, 11)]
    assert made["p"][0].planner_tokens == len("\n".join(observations)) + sum(replies)


def test_plansearch_takes_plans_from_unused_observations_first():
    plans = [("one", ("a", "b")), ("two", ("a",)), ("three", ("c", "d")), ("four", ()),
             ("five", ("a", "c"))]
    assert spread(plans) == ["one", "three", "four", "two", "five"]


def test_plansearch_without_any_plan_is_n_failed_attempts():
    made, _, items = run("plansearch", lambda text: "", n=4)
    assert [a.status for a in made["p"]] == ["no_plan"] * 4 and not items


@pytest.mark.parametrize("method", METHODS)
def test_attempts_do_not_depend_on_the_order_in_which_replies_come(method):
    def answer(text):
        return "- one\n- two" if "List up to" in text else model(text)

    problems = [problem(name) for name in "abcde"]
    first, jobs, _ = run(method, answer, problems, order=1, votes=True)
    second, _, _ = run(method, answer, problems[::-1], order=2, votes=True)
    assert first == second and len(first) == 5
    assert len({job.key for job in jobs}) == len(jobs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["execution", "test_output"])
def test_every_method_predicts_outputs_from_a_prompt_that_shows_the_call(method, kind):
    statement = "What does `f(1)` return?" if kind == "execution" else "Double it."
    asked = Problem("p", statement, kind=kind, starter_code="def f(x):",
                    code="def f(x): return [x]", call="f(1)", answer="[1, 2]")

    def answer(text):
        assert "f(1)" in text
        if "List up to" in text or "Propose" in text or "Using these" in text:
            return model(text) if "Propose 4" in text else "- trace it"
        assert "[ANSWER]value[/ANSWER]" in text
        return "It is\n[ANSWER][1,2][/ANSWER]"

    made, _, items = run(method, answer, [asked])
    assert [(a.answer, a.status) for a in made["p"]] == [("[1, 2]", "accepted")] * 4 and not items


# --------------------------------------------------------------------------------------------------
# Judging

def test_equal_programs_for_one_problem_are_run_once_and_for_two_problems_twice():
    _, _, items = run("direct", lambda text: program("same"), [problem("a"), problem("b")])
    assert len(items) == 2


def test_self_consistency_votes_on_public_outputs_and_keeps_the_graded_verdicts():
    replies = iter(["right", "wrong", "wrong", "odd"])
    made, _, items = run("self-consistency", lambda text: program(next(replies)), votes=True)
    assert len(items) == 2 * 3
    assert [i["tests"] for i in items[:2]] == [problem().tests, problem().public_tests]
    votes = Counter(a.answer for a in made["p"])
    assert votes[outcome_hash(["wrong"])] == 2 and votes[outcome_hash(["right"])] == 1


def test_a_reply_without_a_program_is_kept_and_not_run():
    made, _, items = run("direct", lambda text: "```python\nprint(1)")
    assert [a.status for a in made["p"]] == ["no_code"] * 4 and not items
    assert {a.reply for a in made["p"]} == {"```python\nprint(1)"}


def test_worlds_get_the_posterior_of_each_outcome():
    classes = {outcome_hash(["right"]): 0.6, outcome_hash(["other"]): 0.4}
    replies = iter(["right", "other", "none", "right"])
    made, _, _ = run("direct", lambda text: program(next(replies)), [problem(classes=classes)])
    assert sorted(a.posterior for a in made["p"]) == [0.0, 0.4, 0.6, 0.6]


def test_the_gate_is_asked_about_parsed_plans_only():
    class Gate:
        def p_pass(self, pairs):
            assert pairs == [(problem(), PLAN)]
            return [0.25]

    assert {a.gate for a in run("tuple", model, gate=Gate())[0]["p"]} == {0.25}
    assert {a.gate for a in run("tuple", lambda text: "no plan", gate=Gate())[0]["p"]} == {0.0}
