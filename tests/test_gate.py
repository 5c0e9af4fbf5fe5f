"""gate.py: the figures by brute force, the balancing by its properties, the network on a tiny checkpoint."""

import itertools
import json
import math
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import gate
import model
import prompts
import train_rm
from gate import Gate, Label
from lib import run as lib_run
from paper import gate_report


def scored(n: int, seed: int, values: int) -> tuple[list[float], list[int]]:
    """n probabilities with many ties, and labels that lean on them."""
    rng = random.Random(seed)
    p = [rng.randrange(values) / values for _ in range(n)]
    labels = [int(rng.random() < 0.2 + 0.6 * x) for x in p]
    return p, [1, 0, *labels[2:]]


# ---------------------------------------------------------------------------------------- figures

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
    with pytest.raises(ValueError, match="2 probabilities for 1 labels"):
        gate.auc([0.1, 0.2], [1])


def test_recall_per_kind_counts_positives_kept_and_negatives_caught():
    labels = [Label("a", "x", "p", 1), Label("b", "x", "p", 1), Label("a", "x", "p", 0, "leak"),
              Label("b", "x", "p", 0, "leak"), Label("c", "x", "p", 0, "vague")]
    assert gate.recall_per_kind([0.9, 0.1, 0.2, 0.1, 0.6], labels, 0.5) == {
        "positive": {"count": 2, "recall": 0.5}, "leak": {"count": 2, "recall": 1.0},
        "vague": {"count": 1, "recall": 0.0}}


def test_the_joint_table_gives_the_shares_and_the_solve_rates_of_section_4_4():
    table = gate.joint_table([0.9, 0.8, 0.2, 0.1, 0.1], [1, 0, 1, 0, 0], 0.5)
    assert table == {"accepted_solved": 0.2, "accepted_failed": 0.2, "rejected_solved": 0.2,
                     "rejected_failed": 0.4, "solved_given_accepted": 0.5, "solved_given_rejected": 1 / 3,
                     "tuples": 5}
    assert gate.joint_table([0.9], [1], 0.5)["solved_given_rejected"] is None


# ---------------------------------------------------------------------------------------- diagnostics

def lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    """The three kinds of file. Of the samples: p, faults, R_out; of the attempts: two tuples of two, and one unparsed."""
    samples = [(0.9, [], 1), (0.8, [], 0), (0.2, ["leak"], 1), (0.1, [], 0), (0.1, ["vague"], 0), (None, ["parse"], 0)]
    lines(tmp_path / "r/cppo/samples.jsonl",
          [{"p_pass": p, "faults": faults, "R_out": r, "R_plan": 0} for p, faults, r in samples])
    lines(tmp_path / "r/cppo/eval/lcb-tuple.jsonl",
          [{"problem_id": "a", "seed": 0, "tuple": t, "strategy": s, "gate": p, "status": status}
           for t, s, p, status in [(0, "x", 0.9, "wrong_answer"), (0, "y", 0.9, "accepted"), (1, "x", 0.4, "accepted"),
                                   (1, "y", 0.4, "time_limit"), (2, None, 0.0, "empty"), (2, None, 0.0, "empty")]])
    labels = [Label("a", "s", "A: x", z, kind) for z, kind in ((1, ""), (0, "leak"), (0, "vague"))]
    (tmp_path / "r/gate/final").mkdir(parents=True)
    gate.save_labels(tmp_path / "r/gate/final/labels_val.jsonl", labels, [0.7, 0.7, 0.3])
    return tmp_path / "r"


def test_decisions_are_read_from_labels_samples_and_attempts(run):
    judged, solved = gate_report.read_decisions(run / "cppo/samples.jsonl")
    assert judged == [(0.9, 1), (0.8, 1), (0.2, 0), (0.1, 1), (0.1, 0), (None, 0)]
    assert solved == [(0.9, 1), (0.8, 0), (0.2, 1), (0.1, 0), (0.1, 0), (None, 0)]
    assert gate_report.read_decisions(run / "cppo/eval/lcb-tuple.jsonl") == ([], [(0.9, 1), (0.4, 1), (None, 0)])
    assert gate_report.read_decisions(run / "gate/final/labels_val.jsonl") == ([(0.7, 1), (0.7, 0), (0.3, 0)], [])


def test_a_run_is_diagnosed_at_any_tau(run, capsys):
    """By hand at tau 0.5: of the parsed two of three valid tuples are accepted and none of two faulty; of all six tuples
    accepted are one solved and one failed, rejected one solved and three failed. AUC: 4.5 of 6 pairs, 5 of 6."""
    gate_report.main([str(run), "--tau", "0.5"])
    attempts, samples, labels = capsys.readouterr().out.strip().split("\n\n")
    assert "against the judge: AUC 0.750; 1 of 3 tuples are valid" in labels and "solver" not in labels
    assert "against the judge: AUC 0.750; 3 of 5 tuples are valid, 1 more do not parse" in samples
    assert "against the solver: AUC 0.833; 2 of 5 tuples are solved, 1 more do not parse" in samples
    assert samples.split("\n")[-1].split() == "0.500 0.667 0.000 0.167 0.167 0.167 0.500 0.500 0.250".split()
    assert "no AUC, for all are alike; 2 of 2 tuples are solved, 1 more do not parse" in attempts
    assert attempts.split("\n")[-1].split() == "0.500 0.333 0.000 0.333 0.333 1.000 0.500".split()


@pytest.mark.parametrize("text, said", [
    ("{", "line 1 is no gate label"), ('{"R_plan": 1}', "line 1 is no gate label"), ("[]", "line 1 is no gate label"),
    ('{"label": 1}', None)])
def test_a_file_without_decisions_is_said(tmp_path, capsys, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    if said is None:
        gate_report.main([str(tmp_path / "x.jsonl")])
        assert "no p(Pass) in it" in capsys.readouterr().out
    for path, complaint in ((tmp_path / "x.jsonl", said), (tmp_path, "holds none of"), (tmp_path / "none", "No such file")):
        if complaint:
            with pytest.raises(SystemExit) as end:
                gate_report.main([str(path)])
            err = capsys.readouterr().err
            assert end.value.code == 2 and complaint in err and err.count("\n") == 1


# ---------------------------------------------------------------------------------------- labels

def pool(spec: dict[str, tuple[int, dict[str, int]]]) -> list[Label]:
    """{problem: (positives, {kind: negatives})}"""
    return [Label(q, f"statement {q}", f"{q} plan {i}", z, kind)
            for q, (positives, negatives) in spec.items()
            for z, kind, n in [(1, "", positives), *((0, kind, n) for kind, n in negatives.items())]
            for i in range(n)]


def test_balancing_gives_every_problem_as_many_pass_as_fail():
    rng = random.Random(0)
    labels = pool({f"q{i}": (rng.randint(1, 3), {"leak": rng.randint(1, 3), "vague": rng.randint(0, 2)})
                   for i in range(40)})
    chosen = gate.balance(labels, seed=1)
    sides = Counter((x.problem_id, x.label) for x in chosen)
    for q in {x.problem_id for x in labels}:
        have = Counter(x.label for x in labels if x.problem_id == q)
        assert sides[q, 0] == sides[q, 1] == min(have[0], have[1])
    assert len({(x.problem_id, x.plan, x.kind) for x in chosen}) == len(chosen)      # no label twice


def test_problems_with_one_label_only_are_matched_with_each_other_a_round_at_a_time():
    labels = pool({"a": (3, {}), "b": (1, {}),
                   "c": (0, {"leak": 9}), "d": (0, {"vague": 1}), "e": (0, {"leak": 1})})
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
    labels = [Label("a", "say {x} \"ü\"", "A: b\nB: c", 1),
              Label("7", "s", "A: d", 0, "leak", "def f():", "f")]
    gate.save_labels(tmp_path / "x.jsonl", labels)
    assert gate.load_labels(tmp_path / "x.jsonl") == labels


@pytest.mark.parametrize("line, complaint", [
    ("{", "line 2: not JSON"),
    ('["a"]', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "label": 1}', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": "Pass"}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": 0.5}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "statement": 3, "plan": "p", "label": 1}', "line 2: 'statement' must be text, not 3"),
    ('{"problem_id": ' + "1" * 5000, "line 2: not JSON"),
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
    assert gate.load_labels(path, {"a": problem}) == [
        Label("a", "from the pool", "p", 0, "negative", "def f():", "f")]


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


# ---------------------------------------------------------------------------------------- batches, schedule

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
    with pytest.raises(FileNotFoundError, match="holds no gate.json"):
        Gate.load(folder)


def test_verdict_words_that_begin_with_one_token_are_refused(folder):
    with pytest.raises(ValueError, match="begin with the same token"):
        gate.verdict_ids(AutoTokenizer.from_pretrained(folder), ("Pass", "Pity"))


# ---------------------------------------------------------------------------------------- training

def test_fit_s_loss_is_the_cross_entropy_of_p_and_its_gradient_that_of_one_batch(folder, runs):
    """Whatever the token budget; p(1 - p) and the rest are left to autograd on the plain formula."""
    prompts.load("prompts.json")
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


def easy(n: int, seed: int) -> list[Label]:
    """Passes if it says `sort`; fails, in one of the four ways, if it says `code`."""
    rng = random.Random(seed)
    kinds = ["duplicate", "leak", "vague", "off_topic"]
    number = lambda: rng.randint(10, 99)
    return [Label(f"{seed}/q{i}", f"Problem {i} of {seed}.", f"{number()} {word} {number()}", z, kind)
            for i in range(n) for z, word, kind in ((1, "sort", ""), (0, "code", kinds[i % 4]))]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder of its own with short prompts; afterwards no process group and no signal handler are
    left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
    Path("prompts.json").write_text(json.dumps({"gate": "{plan}"}))
    gate.save_labels("train.jsonl", easy(24, 1))
    gate.save_labels("val.jsonl", easy(10, 2))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    if dist.is_initialized():
        dist.destroy_process_group()


def train(folder: Path, *more: str) -> int:
    return train_rm.main(train_rm.parse_args(
        ["--model", str(folder), "--run", "r", "--labels", "train.jsonl", "--val", "val.jsonl",
         "--prompts", "prompts.json", "--device", "cpu", "--batch-size", "8", "--epochs", "5", "--lr", "2e-3",
         *more]))


def metrics(stage: Path) -> list[dict]:
    """What a resumed run must repeat: all but the clocks."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_gate_that_learned_is_accepted_and_loads_and_says_what_it_is(folder, runs, capsys):
    assert train(folder, "--tau", "auto") == 0
    said = capsys.readouterr().out
    final = runs / "runs/r/gate/final"
    card = json.loads((final / "gate.json").read_text())
    assert "gate accepted" in said and "caught: off_topic (2)" in said and "above the rule gate's by" in said
    assert card["accepted"] and card["metrics"]["auc"] > 0.95
    assert card["verdict_words"] == ["Pass", "Fail"] and card["k"] == 4
    assert card["rule_gate"]["auc"] == 0.5                            # no plan of these parses
    judge, val = Gate.load(final), gate.load_labels(final / "labels_val.jsonl")
    p = judge.p_pass([(x, x.plan) for x in val])
    assert [x for x, _ in gate_report.read_decisions(final / "labels_val.jsonl")[0]] == pytest.approx(p, rel=1e-6)
    assert judge.tau == card["tau"] == gate.choose_tau(p, [x.label for x in val]) and len(val) == 20
    assert gate.acceptance(p, [x.label for x in val], judge.tau)["recall"] >= 0.95
    assert not any(w.requires_grad for w in judge.module.parameters())
    assert len(gate.load_labels(final / "labels_train.jsonl")) == 48
    unseen = easy(20, 3)
    assert gate.auc(judge.p_pass([(x, x.plan) for x in unseen]), [x.label for x in unseen]) > 0.95
    assert train(folder, "--lr", "7") == 0                            # finished: not done again
    assert json.loads((final / "gate.json").read_text()) == card
    prompts.TEMPLATES["gate"] = "Judge {plan}"
    with pytest.raises(ValueError, match="trained with another gate prompt"):
        Gate.load(final)


def test_a_gate_that_fails_acceptance_ends_with_status_3_and_is_never_loaded(folder, runs, capsys):
    opposite = [Label(x.problem_id, x.statement, x.plan, 1 - x.label) for x in easy(10, 2)]
    gate.save_labels("val.jsonl", opposite)
    for _ in range(2):                                                # asked again, it says so again
        assert train(folder, "--steps", "4") == 3
        said = capsys.readouterr().err
        assert "gate NOT accepted: auc 0." in said and "--fresh" in said
    final = runs / "runs/r/gate/final"
    assert not json.loads((final / "gate.json").read_text())["accepted"]
    with pytest.raises(ValueError, match="was not accepted.*auc") as e:
        Gate.load(final)
    assert "\n" not in str(e.value)


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The stage folder of a run that nobody cut off: two epochs of six steps."""
    tmp = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp)
        patched.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
        Path("prompts.json").write_text(json.dumps({"gate": "{plan}"}))
        gate.save_labels("train.jsonl", easy(24, 1))
        gate.save_labels("val.jsonl", easy(10, 2))
        assert train(folder, "--epochs", "2", "--save-every", "2") in (0, 3)
    dist.destroy_process_group()
    return tmp / "runs/r/gate"


@pytest.mark.parametrize("how, at", [("crash", 5), ("SIGTERM", 9), ("crash", "acceptance")])
def test_a_run_cut_off_anywhere_ends_bit_for_bit_like_one_that_was_not(
        folder, runs, undisturbed, monkeypatch, how, at):
    write, arguments = lib_run.Log.write, ("--epochs", "2", "--save-every", "2")

    def cut(self, name, record):
        write(self, name, record)
        if record.get("step") == at and how == "crash":
            raise Crash
        if record.get("step") == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(lib_run.Log, "write", cut)
        if at == "acceptance":
            patched.setattr(train_rm, "table", crash)
        if how == "crash":
            with pytest.raises(Crash):
                train(folder, *arguments)
        else:
            assert train(folder, *arguments) == 143
    assert train(folder, *arguments) in (0, 3)
    stage = runs / "runs/r/gate"
    assert metrics(stage) == metrics(undisturbed)
    assert [row["step"] for row in metrics(stage) if "val_auc" in row] == [6, 12]
    a, b = (load_file(s / "final" / "model.safetensors") for s in (stage, undisturbed))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    card, expected = (json.loads((s / "final" / "gate.json").read_text()) for s in (stage, undisturbed))
    assert card == expected


def test_of_the_epochs_the_one_with_the_highest_held_out_auc_is_the_gate(folder, runs, monkeypatch):
    """Weights of the second epoch's end, though a third follows."""
    aucs, kept, auc = iter([0.6, 0.9, 0.7]), [], gate.auc

    def told(p, labels):
        value = next(aucs, None)
        if value is not None:
            kept.append({n: w.detach().clone() for n, w in modules[0].named_parameters()})
        return auc(p, labels) if value is None else value

    modules, fit = [], gate.fit

    def watched(module, *args, **kwargs):
        modules.append(module)
        return fit(module, *args, **kwargs)

    monkeypatch.setattr(gate, "auc", told)
    monkeypatch.setattr(gate, "fit", watched)
    assert train(folder, "--epochs", "3") in (0, 3)
    final = dict(model.load(runs / "runs/r/gate/final").named_parameters())
    assert json.loads((runs / "runs/r/gate/final/gate.json").read_text())["step"] == 12 and len(kept) == 3
    assert all(torch.equal(final[n], kept[1][n]) for n in final)
    assert not all(torch.equal(final[n], kept[2][n]) for n in final)


def test_kinds_of_fault_that_are_rare_or_missing_are_named(folder, runs, capsys):
    gate.save_labels("train.jsonl", [x for x in easy(24, 1) if x.kind in (gate.POSITIVE, "leak", "vague")])
    train(folder, "--steps", "1")
    assert "duplicate 0%, off_topic 0%" in capsys.readouterr().err
    config = json.loads((runs / "runs/r/gate/config.json").read_text())
    assert config["rare_kinds"] == ["duplicate 0%", "off_topic 0%"]


def test_one_pool_is_split_by_problem(folder, runs):
    train(folder, "--steps", "1", "--labels", "train.jsonl", "--val", "")
    sides = [gate.load_labels(runs / f"runs/r/gate/final/labels_{side}.jsonl") for side in ("train", "val")]
    train_ids, val_ids = ({x.problem_id for x in side} for side in sides)
    assert sum(map(len, sides)) == 48 and len(train_ids) + len(val_ids) == 24 and not train_ids & val_ids


@pytest.mark.parametrize("more, complaint", [
    (["--labels", "nowhere.jsonl"], "no gate labels at nowhere.jsonl"),
    (["--val", "train.jsonl"], "24 problems are in both"),
    (["--epochs", "0"], "--epochs must be at least 1"),
    (["--tau", "1.5"], "must be auto or a number between 0 and 1"),
    (["--model", "nowhere"], "nowhere: no such folder"),
])
def test_a_user_s_mistake_is_one_line_and_exit_status_2(folder, runs, capsys, more, complaint):
    with pytest.raises(SystemExit) as e:
        train(folder, *more)
    assert e.value.code == 2 and complaint in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (runs / "runs").exists()
