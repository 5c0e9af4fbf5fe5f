"""prepare/teacher.py: the funnel, gold tuples, gate labels, and the two commands."""

import json
from collections import Counter

import numpy as np
import pytest

import prompts
from chat_server import (
    K,
    N,
    NOUNS,
    PLAN,
    PROBLEMS,
    Server,
    gold_from,
    reply_of,
    responder_at,
)
from lib import files
from lib.labels import load_labels
from lib.errors import UserError
from lib.problems import save_problems
from prepare import corpora, teacher
from prepare import prompts as judge_prompts
from prepare.judge import open_source
from prepare.negatives import NEGATIVES
from prepare.teacher import Funnel

# ----------------------------------------------------------------------------------------------
# The funnel and gold tuples

def test_the_funnel_counts_each_stage_and_keeps_problems_with_k_clean_methods(tmp_path):
    with Server() as server:
        gold, counts, _ = gold_from(server.spec, tmp_path)
    assert [row["problem_id"] for row in gold] == [f"p{i}" for i in range(12)
                                                   if i not in (3, 4, 6, 7)]
    assert counts == Counter({
        "problems offered": 12,
        "problems with candidates": 11,
        "candidates proposed": 66,
        "candidates dropped: code": 1,
        "candidates dropped: too_long": 1,
        "candidates dropped: literal duplicate": 1,
        "candidates of the right form": 63,
        "candidates kept by the judge": 63 - 6 - 3 - 1,
        "problems with 4 clean candidates": 8,
        "gold tuples": 8,
        "teacher: unusable answer": 1,
        "judge: unusable answer": 1,
    })


def test_a_gold_tuple_holds_statement_thought_and_the_first_k_kept_methods(tmp_path):
    with Server() as server:
        gold, _, _ = gold_from(server.spec, tmp_path)
    by_id = {row["problem_id"]: row for row in gold}
    assert by_id["p0"] == {
        "problem_id": "p0", "statement": PROBLEMS[0].statement,
        "think": "frogs can be looked at in several ways.",
        "strategies": [f"Sort the frogs by key {j} and sweep over them with method {j}."
                       for j in range(4)]}
    # the judge drops the second one of p8
    assert [strategy[-2] for strategy in by_id["p8"]["strategies"]] == ["0", "2", "3", "4"]


def test_the_funnel_stops_when_it_has_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "BATCH", 3)
    with Server() as server:
        gold, counts, _ = gold_from(server.spec, tmp_path, wanted=4)
    assert [row["problem_id"] for row in gold] == ["p0", "p1", "p2", "p5"]
    assert counts["problems offered"] == 6


def test_a_judge_that_is_a_function_selects_the_first_k_that_it_passes_together():
    def judge(statement, plan):
        kinds = [strategy.split()[1] for strategy in prompts.parse_plan(plan, K)]
        faults = ["duplicate"] if len(set(kinds)) < K else []
        return faults + (["vague"] if "bad" in kinds else [])

    def propose(problem, n):
        return ["Try one way.", "Try one road.", "Try bad things.", "Try two ways.",
                "Try three ways.", "Try four ways."][:n]
    funnel = Funnel(propose, judge)
    gold = teacher.make_gold(funnel, PROBLEMS[:2], 2)
    assert gold[0]["strategies"] == ["Try one way.", "Try two ways.", "Try three ways.",
                                     "Try four ways."]
    assert funnel.counts["candidates kept by the judge"] == 10 and gold[1]["think"] == ""


# ----------------------------------------------------------------------------------------------
# Gate labels

def made_labels(server, tmp_path):
    model = responder_at(server.spec, tmp_path)
    funnel = Funnel(model, model, K, N)
    return teacher.teacher_labels(funnel, PROBLEMS, 2, 12, 0), funnel.counts


def test_labels_hold_a_made_negative_for_each_positive_of_the_same_problem(tmp_path):
    with Server() as server:
        labels, counts = made_labels(server, tmp_path)
    by_problem = Counter((x.problem_id, x.label) for x in labels)
    assert set(by_problem.values()) == {2} and len(by_problem) == 16
    assert counts["labels made: positive"] == 16
    assert [counts[f"labels made: {kind}"] for kind in NEGATIVES] == [4] * 4
    positives = {(x.problem_id, x.plan) for x in labels if x.label}
    negatives = {(x.problem_id, x.plan) for x in labels if not x.label}
    assert len(positives) == 16 and not positives & negatives


def test_labels_hold_their_statement_and_negatives_their_fault(tmp_path):
    with Server() as server:
        labels, _ = made_labels(server, tmp_path)
    statements = {p.id: p.statement for p in PROBLEMS}
    for label in labels:
        assert label.statement == statements[label.problem_id]
        if label.kind == "duplicate":           # in the teacher's other words
            assert "Arrange what is given" in label.plan
        if label.kind == "off_topic":
            noun = NOUNS[int(label.problem_id[1:])]
            assert any(noun not in s for s in prompts.parse_plan(label.plan, K))


@pytest.mark.parametrize("wanted, found", [
    ((12, 6), (12, 6)), ((1000, 6), (24, 6)), ((1000, 1000), (0, 32))])
def test_the_two_sides_are_balanced_and_share_no_problem(tmp_path, wanted, found):
    with Server() as server:
        labels, _ = made_labels(server, tmp_path)
    train, val = teacher.divide(labels, *wanted, 0)
    assert (len(train), len(val)) == found
    assert not {x.problem_id for x in train} & {x.problem_id for x in val}
    for side in (train, val):
        assert sum(x.label for x in side) * 2 == len(side)
    passing, failing = (Counter(x.problem_id for x in val if x.label == label) for label in (1, 0))
    assert passing == failing


def test_too_few_clean_problems_are_reported_with_the_counts(tmp_path):
    with Server(reply=lambda text, seed: "no") as server:
        with pytest.raises(UserError, match="too few to make labels of.*problems offered"):
            made_labels(server, tmp_path)


def test_planner_samples_are_labelled_by_the_judge(tmp_path):
    def reply(text, seed):
        if text.startswith(PROBLEMS[0].statement):
            return prompts.format_plan(PLAN) if seed else "<think>A: x</think>A: only one."
        return "faults: none"
    counts = Counter()
    with Server(reply=reply) as server:
        model = responder_at(server.spec, tmp_path)
        labels = teacher.planner_labels(model, model, PROBLEMS[:1], 2, K, counts)
    assert [(x.label, x.kind, x.plan) for x in labels] == [
        (0, "parse", "A: only one."), (1, "positive", prompts.format_plan(PLAN))]
    assert counts["planner samples"] == 2


def test_an_untrained_model_writes_no_plans(tmp_path):
    import tiny
    from prepare.ask import Cache

    folder = str(tiny.qwen(tmp_path / "model"))
    planner = open_source(folder, "planner", Cache(tmp_path), max_new_tokens=8, device="cpu")
    judge = open_source("rule", "judge", None)
    labels = teacher.planner_labels(planner, judge, PROBLEMS[:3], 2, K, Counter())
    assert len(labels) == 6 and {x.kind for x in labels} == {"parse"}


# ----------------------------------------------------------------------------------------------
# Commands

@pytest.fixture
def pool(tmp_path):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)
    return ["--problems", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path)]


RULES = ["--teacher", "rule", "--judge", "rule"]


def command(*flags: str) -> int:
    return teacher.main(teacher.parse_args(flags))


def test_rules_alone_make_gold_that_stage_1_reads(tmp_path, pool, capsys):
    import train_sft

    assert command("gold", "--gold", "5", *RULES, *pool) == 0
    assert len(train_sft.load_gold(str(tmp_path / "gold.jsonl"), K, {})) == 5
    assert command("gold", "--gold", "50", *RULES, *pool) == 0
    assert "only 12 of 50 gold tuples" in capsys.readouterr().err


def test_rules_alone_make_labels_that_stage_2_reads(tmp_path, pool):
    flags = ["labels", "--train", "12", "--val", "4", *RULES, *pool]
    command(*flags)
    first = (tmp_path / "labels_train.jsonl").read_bytes()
    train = load_labels(str(tmp_path / "labels_train.jsonl"))
    val = load_labels(str(tmp_path / "labels_val.jsonl"))
    assert (len(train), len(val)) == (12, 4) and sum(x.label for x in train + val) == 8
    assert not {x.problem_id for x in train} & {x.problem_id for x in val}
    command(*flags)
    assert (tmp_path / "labels_train.jsonl").read_bytes() == first


@pytest.mark.parametrize("flags, message", [
    (["gold", "--judge", "rule"], "needs --teacher SPEC"),
    (["labels", "--candidates", "both", *RULES], "needs --planner SPEC"),
    (["labels", "--candidates", "planner", "--planner", "rule", "--judge", "rule"],
     "a planner is a model or an endpoint"),
    (["gold", "--teacher", "http://host/v1", "--judge", "rule"],
     "names no model: write it as http://host/v1#model"),
    (["gold", "--teacher", "nowhere", "--judge", "rule"], "no such folder; a SPEC is"),
    (["gold", "--teacher", "rule", "--judge", "no.such:thing"], "cannot load"),
    (["gold", "--teacher", "rule", "--judge", "prompts:nothing"], "cannot load"),
    (["gold", *RULES, "--num-candidates", "3"], "N at least K"),
    (["gold", *RULES, "--gold", "0"], "--gold: must be a whole number of 1 or more"),
    (["gold", *RULES, "--retries", "-1"], "--retries: must be a whole number of 0 or more"),
    (["gold", *RULES, "--judge-options", "[]"], "--judge-options: must be a JSON object"),
])
def test_a_wrong_flag_is_one_line(pool, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        command(*flags, *pool)
    lines = [line for line in capsys.readouterr().err.splitlines()
             if not line.startswith("warning: ")]
    assert end.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_unanswered_requests_end_in_status_1_and_say_how_to_go_on(tmp_path, pool, capsys):
    def reply(text, seed):
        assert text != judge_prompts.teacher(PROBLEMS[0], N), "a wrong reply"
        return reply_of(text, seed)
    with Server(reply=reply) as server:
        status = command("gold", "--teacher", server.spec, "--judge", server.spec, "--retries",
                         "0", *pool)
    assert status == 1
    assert "1 requests had no answer: run the same command again" in capsys.readouterr().err
    assert len((tmp_path / "gold.jsonl").read_text().splitlines()) == 7


def test_the_teacher_is_never_shown_an_evaluation_problem(tmp_path, capsys):
    save_problems(tmp_path / "sft.jsonl", PROBLEMS)
    held_out = {"id": "lcb/x", "statement": PROBLEMS[4].statement.upper(), "ids": {}}
    files.save_lines(tmp_path / corpora.HELD_OUT, [held_out])
    np.save(tmp_path / corpora.BOILERPLATE_FILE, np.empty(0, np.uint64))
    manifest = {"pools": {"sft": {"file": "sft.jsonl"}}}
    (tmp_path / corpora.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SystemExit) as end:
        command("gold", *RULES, "--out", str(tmp_path))
    assert end.value.code == 2 and "holds 1 evaluation problem(s)" in capsys.readouterr().err
