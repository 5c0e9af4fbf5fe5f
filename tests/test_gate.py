"""gate.py: its metrics by brute force, the network and its training on a tiny checkpoint."""

import itertools
import math
import random

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gate
import model
import prompts
from gate import Gate
from lib.labels import Label


def scored(n: int, seed: int, values: int) -> tuple[list[float], list[int]]:
    """n probabilities with many ties, and labels that lean on them."""
    rng = random.Random(seed)
    p = [rng.randrange(values) / values for _ in range(n)]
    labels = [int(rng.random() < 0.2 + 0.6 * x) for x in p]
    return p, [1, 0, *labels[2:]]


# ---------------------------------------------------------------------------------------- acceptance

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
        assert figures["recall"] == pytest.approx(recall, abs=1e-12)
        assert 1 - figures["specificity"] == pytest.approx(false_rate, abs=1e-12)


def test_acceptance_worked_by_hand():
    """tau 0.5 keeps three of four positives and one of four negatives; of 16 pairs 13 are in order and one is
    a tie."""
    p, labels = [0.9, 0.8, 0.5, 0.1, 0.7, 0.4, 0.1, 0.0], [1, 1, 1, 1, 0, 0, 0, 0]
    figures = gate.acceptance(p, labels, 0.5)
    pairs_in_order = 4 + 4 + 3 + 1.5                 # 0.9 and 0.8 beat all four, 0.5 three, 0.1 one and a tie
    assert figures["auc"] == pairs_in_order / 16
    assert {figures[x] for x in ("recall", "specificity", "balanced_accuracy", "precision")} == {0.75}
    assert figures["accepted"] and figures["failed"] == []
    assert (figures["positives"], figures["negatives"], figures["tau"]) == (4, 4, 0.5)


@pytest.mark.parametrize("p, tau, failed", [
    ([.9, .8, .7, .6, .5, .4], 0.65, []),                             # in order: every figure is 1
    ([.9, .8, .1, .6, .5, .4], 0.65, ["auc"]),                        # recall 2/3, precision 1
    ([.9, .8, .7, .6, .5, .4], 0.95, ["balanced_accuracy", "precision", "recall"]),     # accepts nothing
    ([.9, .8, .7, .6, .5, .4], 0.45, ["balanced_accuracy", "precision"]),               # 3 of 3, 2 of 3
    ([.9, .5, .4, .8, .3, .2], 0.6, ["balanced_accuracy", "precision", "recall"]),      # 1 of 3, 1 of 3
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


# ---------------------------------------------------------------------------------------- the rule gate

@pytest.mark.parametrize("plan, p", [
    ("A: Sort them.\nB: Count each.\nC: Use a heap.\nD: Scan once.", 1.0),
    ("A: Sort them.\nB: Count each.\nC: Use a heap.", 0.0),                          # three methods
    ("A: Sort them.\nB: sort them\nC: Use a heap.\nD: Scan once.", 0.0),             # a literal duplicate
    ("A: Sort them.\nB: Order the items.\nC: Use a heap.\nD: Scan once.", 1.0),      # one in other words
    ("A: print(sum(a))\nB: Count each.\nC: Use a heap.\nD: Scan once.", 0.0),        # code
    ("", 0.0),
])
def test_the_rule_gate_sees_the_visible_contract_and_no_more(plan, p):
    g = gate.RuleGate(k=4)
    assert g.p_pass([(Label("a", "s", plan, 1), plan)]) == [p] and (p >= g.tau) == bool(p)


# ---------------------------------------------------------------------------------------- p(Pass | x, S)

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("base") / "tiny")


def pairs(n: int, seed: int = 0) -> list[tuple[Label, str]]:
    """Statements and plans of very different lengths."""
    rng = random.Random(seed)
    labels = [Label(f"q{i}", "word " * rng.randint(1, 30), "A: " + "step " * rng.randint(1, 30), i % 2)
              for i in range(n)]
    return [(x, x.plan) for x in labels]


@pytest.mark.parametrize("maker", [tiny.qwen, tiny.gemma4])         # Gemma's logits are soft-capped
def test_p_pass_is_the_softmax_of_transformers_logits_over_the_two_verdict_tokens(tmp_path, maker):
    maker(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    two = gate.verdict_ids(tokenizer)
    assert [tokenizer.decode([i])[0] for i in two] == ["P", "F"]
    expected = []
    for problem, plan in pairs(5):
        ids = prompts.encode(tokenizer, prompts.gate(problem, plan, 4))
        with torch.no_grad():
            expected.append(theirs(torch.tensor([ids])).logits[0, -1, list(two)].softmax(-1)[0].item())
    assert Gate(model.load(tmp_path), tokenizer).p_pass(pairs(5)) == pytest.approx(expected, rel=2e-5)
    assert max(expected) > 1.005 * min(expected)


def test_p_pass_does_not_depend_on_how_the_pairs_are_batched_and_keeps_their_order(folder):
    judge = Gate(model.load(folder, dtype=torch.float64), AutoTokenizer.from_pretrained(folder))
    alone = [judge.p_pass([pair])[0] for pair in pairs(5)]
    for judge.token_budget in (2000, 10 ** 6):
        assert judge.p_pass(pairs(5)) == pytest.approx(alone, rel=1e-9)
    assert judge.p_pass([]) == []


def test_the_gate_judges_the_plan_without_its_thought(folder):
    judge = Gate(model.load(folder), AutoTokenizer.from_pretrained(folder))
    problem = Label("q", "Sum.", "", 1)
    plans = "A: Sort them.", "<think>\nHm.\n</think>\n\nA: Sort them.", "<think>\nA: Sort them.", ""
    bare, after_thought, in_thought, empty = judge.p_pass([(problem, plan) for plan in plans])
    assert after_thought == pytest.approx(bare, rel=1e-5) and in_thought == pytest.approx(empty, rel=1e-5)
    assert bare != pytest.approx(empty, rel=1e-4)


def test_a_folder_without_gate_json_is_no_gate(folder):
    with pytest.raises(FileNotFoundError, match="has no gate.json"):
        Gate.load(folder)


def test_verdict_words_that_begin_with_one_token_are_refused(folder):
    with pytest.raises(ValueError, match="begin with the same token"):
        gate.verdict_ids(AutoTokenizer.from_pretrained(folder), ("Pass", "Pity"))


# ---------------------------------------------------------------------------------------- training

def test_fit_s_loss_is_the_cross_entropy_of_p_and_its_gradient_that_of_one_batch(folder, monkeypatch):
    """Whatever the token budget; p(1 - p) and the rest are left to autograd on the plain formula."""
    monkeypatch.setitem(prompts.TEMPLATES, "gate", "{plan}")
    tokenizer, labels = AutoTokenizer.from_pretrained(folder), [x for x, _ in pairs(4)]
    module = model.load(folder, dtype=torch.float64)
    two = gate.verdict_ids(tokenizer)
    rows = [gate.encode(tokenizer, x, x.plan, 4) for x in labels]
    p = torch.cat([gate.margin(module, [row], two).sigmoid() for row in rows])
    z = torch.tensor([x.label for x in labels])
    plain = -(z * p.log() + (1 - z) * (1 - p).log()).mean()
    plain.backward()
    expected = {n: w.grad.clone() for n, w in module.named_parameters()}
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for budget in (1, 10 ** 6):
        module = model.load(folder, dtype=torch.float64)
        sgd = torch.optim.SGD(module.parameters(), lr=1.0)      # a step moves the weights by their gradient
        before = {n: w.detach().clone() for n, w in module.named_parameters()}
        [step] = gate.fit(module, tokenizer, labels, sgd, epochs=1, batch_size=4, lr=1.0, max_grad_norm=0,
                          token_budget=budget)
        assert step["loss"] == pytest.approx(plain.item(), rel=1e-9)
        assert step["correct"] == pytest.approx(((p > 0.5) == (z > 0)).double().mean().item())
        off = [(before[n] - w.detach() - expected[n]).flatten() for n, w in module.named_parameters()]
        assert torch.cat(off).norm() < 1e-9 * norm
