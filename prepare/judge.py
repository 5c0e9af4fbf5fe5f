"""Who labels plans, and who proposes methods: a SPEC -> a model to ask, or a function.

    judge = open_source("http://host/v1#model", "judge", Cache("answers"))
    faults = judge_plans(judge, [(problem, plan_text)])     # [] for Pass, None: no usable answer

    SPEC   http://host/v1#model   an endpoint with OpenAI's chat completions; its key is in the
                                  environment: TEACHER_API_KEY, JUDGE_API_KEY, PLANNER_API_KEY,
                                  else OPENAI_API_KEY
           a folder or a hub id   a model, sampled by rollout.py
           module:name            judge(statement, plan text) -> faults, or
                                  teacher(problem, n) -> candidates
           rule                   no model: see rules.py

The rubric is the gate's contract of section 3.2: no prompt asks whether a method would solve the
problem.
"""

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import prompts
from lib import run as lib_run
from lib.errors import UserError
from lib.problems import Problem
from prepare import prompts as judge_prompts
from prepare.ask import Cache, Endpoint, LocalModel, Responder, silent
from prepare.rules import rule_judge, rule_teacher

Judge = Callable[[str, str], list[str]]             # (statement, plan text) -> faults; [] is Pass
Teacher = Callable[[Problem, int], list[str]]       # (problem, n) -> candidates

ENDPOINT = re.compile(r"https?://")
PLUG_IN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(spec: str, role: str, cache: Cache, *, k: int = 4, options: dict | None = None,
                concurrency: int = 8, retries: int = 6, max_new_tokens: int = 2048,
                temperature: float = 0.7, device: str = "auto",
                progress: Callable = silent) -> Responder | Judge | Teacher:
    """SPEC -> who is asked in the role of teacher, judge or planner.

    options: fields of an endpoint's requests, null to leave one out. concurrency, retries: of an
    endpoint. device: of a local model.
    """
    if role == "planner" and (spec == "rule" or PLUG_IN.fullmatch(spec)):
        raise UserError(f"--planner {spec}: a planner is a model or an endpoint")
    if spec == "rule":
        if role == "teacher":
            return rule_teacher
        return lambda statement, plan: rule_judge(statement, plan, k)
    if ENDPOINT.match(spec):
        options = {"temperature": temperature, "max_tokens": max_new_tokens} | (options or {})
        endpoint = Endpoint(spec, api_key(role), options, concurrency, retries=retries)
        return Responder(endpoint, cache, progress)
    if PLUG_IN.fullmatch(spec):
        function = lib_run.plug_in(spec)
        try:
            inspect.signature(function).bind("one", "two")
        except TypeError:
            raise UserError(f"--{role} {spec} is no function of two arguments: see the head of "
                            f"prepare/judge.py") from None
        return function
    # a typing error in a path must not be taken for a model on the hub
    if not Path(spec).exists() and not HUB_ID.fullmatch(spec):
        raise UserError(f"--{role} {spec}: no such folder; a SPEC is rule, module:name, "
                        f"http://host/v1#model, a model's folder, or a hub id like Qwen/Qwen3.5-9B")
    return Responder(LocalModel(spec, max_new_tokens, temperature, device), cache, progress)


def api_key(role: str) -> str | None:
    return os.environ.get(f"{role.upper()}_API_KEY") or os.environ.get("OPENAI_API_KEY")


def judge_plans(judge: Responder | Judge, pairs: Sequence[tuple[Problem, str]], k: int = 4,
                counts: Counter | None = None) -> list[list[str] | None]:
    """The faults of each (problem, plan text): [] for Pass, None where the judge gave no usable
    answer. A plan that does not parse is not shown to the judge."""
    counts = Counter() if counts is None else counts
    # a plan that does not parse needs no request
    faults: list[list[str] | None] = [["parse"] for _ in pairs]
    parsed = [i for i, (_, plan) in enumerate(pairs) if parses(plan, k)]
    if isinstance(judge, Responder):
        texts = [judge_prompts.judge_plan(*pairs[i], k) for i in parsed]
        answers = judge.ask_parsed(texts, lambda text, _: judge_prompts.parse_faults(text), counts,
                                   "judge")
    else:
        answers = [judge(pairs[i][0].statement, pairs[i][1]) for i in parsed]
    for i, answer in zip(parsed, answers, strict=True):
        faults[i] = answer
    return faults


def parses(plan: str, k: int) -> bool:
    try:
        prompts.parse_plan(plan, k)
    except prompts.PlanError:
        return False
    return True
