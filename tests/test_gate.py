"""gate.py: the figures by brute force, the balancing by its properties, the network on a tiny checkpoint."""

import itertools
import json
import math
import random
from collections import Counter

import pytest
import torch

import gate
import prompts
from gate import Label


def scored(n: int, seed: int, values: int) -> tuple[list[float], list[int]]:
    """n probabilities with many ties, and labels that lean on them."""
    rng = random.Random(seed)
    p = [rng.randrange(values) / values for _ in range(n)]
    labels = [int(rng.random() < 0.2 + 0.6 * x) for x in p]
    return p, [1, 0, *labels[2:]]


# ------------------------------------------------------------------------------------------------ figures

@pytest.mark.parametrize("values", [1, 2, 7, 1000])
def test_auc_is_the_share_of_pairs_in_the_right_order_a_tie_counting_half(values):
    for seed in range(5):
        p, labels = scored(60, seed, values)
        pairs = [(a, b) for a, z in zip(p, labels) if z for b, y in zip(p, labels) if not y]
        by_hand = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
        assert gate.auc(p, labels) == pytest.approx(by_hand, abs=1e-12)


def test_auc_is_the_area_under_the_roc_points():
    p, labels = scored(80, 3, 9)
    points = gate.roc(p, labels)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (_, x0, y0), (_, x1, y1) in itertools.pairwise(points))
    assert gate.auc(p, labels) == pytest.approx(area, abs=1e-12)
    assert points[0] == (math.inf, 0.0, 0.0) and points[-1][1:] == (1.0, 1.0)


def test_each_roc_point_is_what_its_tau_accepts():
    p, labels = scored(50, 4, 6)
    for tau, false_rate, recall in gate.roc(p, labels):
        figures = gate.acceptance(p, labels, tau)
        assert (figures["recall"], 1 - figures["specificity"]) == pytest.approx((recall, false_rate), abs=1e-12)


def test_acceptance_worked_by_hand():
    """tau 0.5 keeps three of four positives and one of four negatives; of 16 pairs 13 are in order and one is a tie."""
    p, labels = [0.9, 0.8, 0.5, 0.1, 0.7, 0.4, 0.1, 0.0], [1, 1, 1, 1, 0, 0, 0, 0]
    figures = gate.acceptance(p, labels, 0.5)
    pairs_in_order = 4 + 4 + 3 + 1.5                 # 0.9 and 0.8 beat all four, 0.5 three, 0.1 one and a tie
    assert figures["auc"] == pairs_in_order / 16
    assert figures["recall"] == figures["specificity"] == figures["balanced_accuracy"] == figures["precision"] == 0.75
    assert figures["accepted"] and figures["failed"] == []
    assert (figures["positives"], figures["negatives"], figures["tau"]) == (4, 4, 0.5)


@pytest.mark.parametrize("p, tau, failed", [
    ([.9, .8, .7, .6, .5, .4], 0.65, []),                             # in order: every figure is 1
    ([.9, .8, .1, .6, .5, .4], 0.65, ["auc"]),                        # recall 2/3, precision 1
    ([.9, .8, .7, .6, .5, .4], 0.95, ["balanced_accuracy", "precision", "recall"]),     # nothing is accepted
    ([.9, .8, .7, .6, .5, .4], 0.45, ["balanced_accuracy", "precision"]),               # 3 of 3, and 2 of 3 wrongly
    ([.9, .5, .4, .8, .3, .2], 0.6, ["balanced_accuracy", "precision", "recall"]),      # 1 of 3, and 1 of 3 wrongly
])
def test_each_threshold_of_appendix_d_refuses_by_itself(p, tau, failed):
    figures = gate.acceptance(p, [1, 1, 1, 0, 0, 0], tau)
    assert [x.split()[0] for x in figures["failed"]] == failed
    assert figures["accepted"] == (not failed)


def test_the_thresholds_are_those_of_the_paper():
    assert gate.ACCEPTANCE == {"auc": 0.75, "balanced_accuracy": 0.70, "precision": 0.65, "recall": 0.65}
    assert gate.TAU == 0.17


@pytest.mark.parametrize("n", [1, 7, 20, 60, 200])
@pytest.mark.parametrize("recall", [0.5, 0.95, 1.0])
def test_the_chosen_tau_is_the_largest_that_keeps_the_recall(n, recall):
    p, labels = scored(n + 2, n, 13)
    tau = gate.choose_tau(p, labels, recall)
    positives = [x for x, z in zip(p, labels) if z]

    def kept(t):
        return sum(x >= t for x in positives) / len(positives)

    assert kept(tau) >= recall - 1e-12
    assert all(kept(t) < recall for t in [*p, math.nextafter(tau, 2)] if t > tau)


def test_figures_without_both_labels_are_refused():
    for labels in ([1, 1], [0, 0]):
        for figure in (gate.auc, gate.roc, gate.choose_tau, lambda p, z: gate.acceptance(p, z, 0.5)):
            with pytest.raises(ValueError, match="cannot be measured without both"):
                figure([0.1, 0.2], labels)
    with pytest.raises(ValueError, match="2 probabilities for 1 labels"):
        gate.auc([0.1, 0.2], [1])


def test_recall_per_kind_counts_positives_kept_and_negatives_caught():
    labels = [Label("a", "x", "p", 1), Label("b", "x", "p", 1), Label("a", "x", "p", 0, "leak"),
              Label("b", "x", "p", 0, "leak"), Label("c", "x", "p", 0, "vague")]
    assert gate.recall_per_kind([0.9, 0.1, 0.2, 0.1, 0.6], labels, 0.5) == {
        "positive": {"count": 2, "recall": 0.5}, "leak": {"count": 2, "recall": 1.0}, "vague": {"count": 1, "recall": 0.0}}


def test_the_joint_table_gives_the_shares_and_the_solve_rates_of_section_4_4():
    table = gate.joint_table([0.9, 0.8, 0.2, 0.1, 0.1], [1, 0, 1, 0, 0], 0.5)
    assert {k: table[k] for k in ("accepted_solved", "accepted_failed", "rejected_solved", "rejected_failed")} == {
        "accepted_solved": 0.2, "accepted_failed": 0.2, "rejected_solved": 0.2, "rejected_failed": 0.4}
    assert table["solved_given_accepted"] == 0.5 and table["solved_given_rejected"] == 1 / 3
    assert gate.joint_table([0.9], [1], 0.5)["solved_given_rejected"] is None


# ------------------------------------------------------------------------------------------------ labels

def pool(spec: dict[str, tuple[int, dict[str, int]]]) -> list[Label]:
    """{problem: (positives, {kind: negatives})}"""
    return [Label(q, f"statement {q}", f"{q} plan {i}", z, kind)
            for q, (n, kinds) in spec.items()
            for z, kind, i in [*((1, "", i) for i in range(n)), *((0, k, i) for k, m in kinds.items() for i in range(m))]]


def test_balancing_gives_every_problem_as_many_pass_as_fail():
    rng = random.Random(0)
    labels = pool({f"q{i}": (rng.randint(1, 3), {"leak": rng.randint(1, 3), "vague": rng.randint(0, 2)}) for i in range(40)})
    chosen = gate.balance(labels, seed=1)
    sides = Counter((x.problem_id, x.label) for x in chosen)
    for q in {x.problem_id for x in labels}:
        have = Counter(x.label for x in labels if x.problem_id == q)
        assert sides[q, 0] == sides[q, 1] == min(have[0], have[1])
    assert len({(x.problem_id, x.plan, x.kind) for x in chosen}) == len(chosen)      # no label twice


def test_problems_with_one_label_only_are_matched_with_each_other_a_round_at_a_time():
    labels = pool({"a": (3, {}), "b": (1, {}), "c": (0, {"leak": 9}), "d": (0, {"vague": 1}), "e": (0, {"leak": 1})})
    chosen = gate.balance(labels)
    assert Counter(x.label for x in chosen) == {1: 4, 0: 4}
    assert Counter(x.problem_id for x in chosen) == {"a": 3, "b": 1, "c": 2, "d": 1, "e": 1}


def test_balancing_keeps_the_kinds_of_negative_even():
    """Four kinds, of which one makes up 7 of 10 negatives of the pool: a quarter of each comes out."""
    labels = pool({f"q{i}": (1, {"duplicate": 7, "leak": 1, "vague": 1, "off_topic": 1}) for i in range(40)})
    assert Counter(x.kind for x in gate.balance(labels) if not x.label) == dict.fromkeys(
        ("duplicate", "leak", "vague", "off_topic"), 10)


def test_balancing_does_not_depend_on_hash_order_and_moves_with_the_seed():
    labels = pool({f"q{i}": (2, {"leak": 3}) for i in range(10)})
    assert gate.balance(labels, 1) == gate.balance(list(labels), 1) != gate.balance(labels, 2)
    with pytest.raises(ValueError, match="both Pass and Fail are needed"):
        gate.balance(pool({"a": (3, {})}))


def test_the_split_is_by_problem_near_its_share_and_stable_when_the_pool_grows():
    labels = pool({f"q{i}": (1, {"leak": 2}) for i in range(1000)})
    train, val = gate.split(labels, 0.2, seed=0)
    assert not {x.problem_id for x in train} & {x.problem_id for x in val}
    assert len(train) + len(val) == len(labels) and 0.16 < len(val) / len(labels) < 0.24
    _, small = gate.split(labels[:300], 0.2, seed=0)
    assert small == [x for x in val if x in labels[:300]]


def test_labels_survive_a_file(tmp_path):
    labels = [Label("a", "say {x} \"ü\"", "A: b\nB: c", 1), Label("7", "s", "A: d", 0, "leak", "def f():", "f")]
    gate.save_labels(tmp_path / "x.jsonl", labels)
    assert gate.load_labels(tmp_path / "x.jsonl") == labels


@pytest.mark.parametrize("line, complaint", [
    ("{", "line 2: not JSON"),
    ('["a"]', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "label": 1}', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": "Pass"}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": 0.5}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "plan": "p", "label": 1}', "line 2: it has no \"statement\".*--problems"),
])
def test_a_broken_label_line_is_named_with_its_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"problem_id": "b", "statement": "s", "plan": "p", "label": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=complaint) as e:
        gate.load_labels(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_label_without_a_statement_takes_that_of_its_problem(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"problem_id": "a", "plan": "p", "label": 0}\n')
    problem = Label("a", "from the pool", "", 0, starter_code="def f():", fn_name="f")
    assert gate.load_labels(path, {"a": problem}) == [Label("a", "from the pool", "p", 0, "negative", "def f():", "f")]


# ------------------------------------------------------------------------------------------------ the rule gate

@pytest.mark.parametrize("plan, p", [
    ("A: Sort them.\nB: Count each.\nC: Use a heap.\nD: Scan once.", 1.0),
    ("A: Sort them.\nB: Count each.\nC: Use a heap.", 0.0),                          # three methods
    ("A: Sort them.\nB: sort them\nC: Use a heap.\nD: Scan once.", 0.0),             # a literal duplicate
    ("A: Sort them.\nB: Order the items.\nC: Use a heap.\nD: Scan once.", 1.0),      # in other words: it cannot see that
    ("A: print(sum(a))\nB: Count each.\nC: Use a heap.\nD: Scan once.", 0.0),        # code
    ("", 0.0),
])
def test_the_rule_gate_sees_the_visible_contract_and_no_more(plan, p):
    g = gate.RuleGate(k=4)
    assert g.p_pass([(Label("a", "s", plan, 1), plan)]) == [p] and (p >= g.tau) == bool(p)


# ------------------------------------------------------------------------------------------------ micro-batches, schedule

def test_micro_batches_hold_every_row_once_within_the_budget():
    rng = random.Random(0)
    lengths = [rng.randint(1, 90) for _ in range(200)] + [500]
    batches = gate.micro_batches(lengths, 256)
    assert sorted(i for b in batches for i in b) == list(range(201))
    assert all(len(b) * max(lengths[i] for i in b) <= 256 or len(b) == 1 for b in batches)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)
    assert gate.micro_batches([], 256) == []


def test_the_schedule_visits_every_row_once_an_epoch_in_an_order_of_its_own():
    steps = gate.schedule(10, 3, 4, seed=0)
    assert [len(s) for s in steps] == [4, 4, 2] * 3
    epochs = [sum(steps[i:i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and epochs[0] != epochs[1]
    assert steps == gate.schedule(10, 3, 4, seed=0) != gate.schedule(10, 3, 4, seed=1)


def test_the_learning_rate_warms_up_and_comes_down_and_is_never_zero():
    rates = [gate.learning_rate(s, 100, 1.0) for s in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[-1] == pytest.approx(1 / 95)
    assert all(a > b for a, b in itertools.pairwise(rates[5:])) and max(rates) == 1.0
    assert gate.learning_rate(0, 1, 1.0) == 1.0
