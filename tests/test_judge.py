"""prepare/judge.py, rules.py and negatives.py: who labels plans, and plans made to fail."""

import random
from collections import Counter

import pytest

import prompts
from chat_server import K, PLAN, PROBLEMS, Server, responder_at
from lib.labels import Label
from lib.problems import Problem
from prepare import ask, rules
from prepare.judge import judge_plans, open_source
from prepare.negatives import NEGATIVES, reworded, spoiled


@pytest.mark.parametrize("change, faults", [
    ({}, []),
    ({1: "sort the frogs by weight, and sweep once"}, ["duplicate"]),
    ({2: "Use for i in range(n): total += frogs[i] and print(total)."}, ["leak"]),
    ({2: "The answer is 17 frogs."}, ["leak"]),
    ({0: rules.ADVICE[3]}, ["vague"]),
    ({0: "Count frogs."}, ["vague"]),
    ({0: "Walk the tree from its root and merge the heaps."}, ["off_topic"]),
    ({0: "Sort the frogs by weight. Then sweep once."}, ["parse"]),
    ({0: "frogs " * 46}, ["parse"]),
    ({0: ""}, ["parse"]),
])
def test_the_rule_judge_names_the_faults_that_show(change, faults):
    plan = [change.get(i, strategy) for i, strategy in enumerate(PLAN)]
    assert rules.rule_judge(PROBLEMS[0].statement, prompts.format_plan(plan)) == faults


def test_a_plug_in_judge_agrees_with_the_worlds_own_labels():
    from miniature import world

    judge = open_source("miniature.world:judge", "judge", None)
    labels = [Label(**row) for row in world.labels("val")[:80]]
    faults = judge_plans(judge, [(Problem(x.problem_id, x.statement), x.plan) for x in labels])
    for label, its_faults in zip(labels, faults, strict=True):
        assert label.label == int(not its_faults)
        assert label.label or label.kind in its_faults


def test_a_plan_that_does_not_parse_is_a_fault_and_nobody_is_asked(tmp_path):
    plan = prompts.format_plan(PLAN)
    towers = plan.replace("frogs", "towers").replace("frog", "tower")
    pairs = [(PROBLEMS[0], "no plan"), (PROBLEMS[0], plan), (Problem("x", "About towers."), towers)]
    counts = Counter()

    def reply(text, seed):
        return "faults: vague, leak" if "frogs" in text else "nonsense"
    with Server(reply=reply) as server:
        model = responder_at(server.spec, tmp_path)
        faults = judge_plans(model, pairs, counts=counts)
    assert faults == [["parse"], ["leak", "vague"], None]
    assert len(server.served) == 1 + ask.ATTEMPTS and counts["judge: unusable answer"] == 1


# ----------------------------------------------------------------------------------------------
# Made negatives

@pytest.mark.parametrize("kind", NEGATIVES)
def test_made_negatives_look_well_formed_and_have_the_fault(kind):
    foreign = [s.replace("frogs", "lanterns").replace("frog", "lantern") for s in PLAN]
    seen = set()
    for seed in range(60):
        bad = spoiled(kind, PLAN, None, foreign, random.Random(seed))
        text = prompts.format_plan(bad)
        assert prompts.parse_plan(text, K) == bad != PLAN
        assert set(prompts.check_plan(bad, text)) <= ({"code"} if kind == "leak" else set())
        changed = [new for new, old in zip(bad, PLAN, strict=True) if new != old]
        seen |= set(changed)
        if kind == "vague":
            assert set(changed) <= set(rules.ADVICE)
        elif kind == "off_topic":
            assert set(changed) <= set(foreign) and len(changed) in (1, K)
        elif kind == "duplicate":
            assert len(changed) == 1
        else:
            assert len(changed) == 1
            assert "print" in text or "return" in text or "answer" in text
    assert len(seen) >= (1 if kind == "duplicate" else 4)


def test_a_repeat_in_other_words_is_not_the_literal_text():
    for strategy in (*PLAN, "Zip lanterns."):
        other = reworded(strategy)
        assert prompts.normalise(other) != prompts.normalise(strategy)
        assert prompts.check_plan([other]) == []
    assert reworded(PLAN[0]) == "Order the frogs by weight and sweep once."
