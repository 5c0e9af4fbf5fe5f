"""lib/labels.py: files, the split, and the balancing by its properties."""

import random
from collections import Counter

import pytest

from lib.labels import Label, balance, load_labels, save_labels, split


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
    chosen = balance(labels, seed=1)
    sides = Counter((x.problem_id, x.label) for x in chosen)
    for q in {x.problem_id for x in labels}:
        have = Counter(x.label for x in labels if x.problem_id == q)
        assert sides[q, 0] == sides[q, 1] == min(have[0], have[1])
    assert len({(x.problem_id, x.plan, x.kind) for x in chosen}) == len(chosen)      # no label twice


def test_problems_with_one_label_only_are_matched_with_each_other_a_round_at_a_time():
    labels = pool({"a": (3, {}), "b": (1, {}),
                   "c": (0, {"leak": 9}), "d": (0, {"vague": 1}), "e": (0, {"leak": 1})})
    chosen = balance(labels)
    assert Counter(x.label for x in chosen) == {1: 4, 0: 4}
    assert Counter(x.problem_id for x in chosen) == {"a": 3, "b": 1, "c": 2, "d": 1, "e": 1}


def test_balancing_keeps_the_kinds_of_negative_even():
    """Four kinds, of which one makes up 7 of 10 negatives of the pool: a quarter of each comes out."""
    labels = pool({f"q{i}": (1, {"duplicate": 7, "leak": 1, "vague": 1, "off_topic": 1}) for i in range(40)})
    assert Counter(x.kind for x in balance(labels) if not x.label) == dict.fromkeys(
        ("duplicate", "leak", "vague", "off_topic"), 10)


def test_balancing_does_not_depend_on_hash_order_and_moves_with_the_seed():
    labels = pool({f"q{i}": (2, {"leak": 3}) for i in range(10)})
    assert balance(labels, 1) == balance(list(labels), 1) != balance(labels, 2)
    with pytest.raises(ValueError, match="both Pass and Fail are needed"):
        balance(pool({"a": (3, {})}))


def test_the_split_is_by_problem_near_its_share_and_stable_when_the_pool_grows():
    labels = pool({f"q{i}": (1, {"leak": 2}) for i in range(1000)})
    train, val = split(labels, seed=0)
    assert not {x.problem_id for x in train} & {x.problem_id for x in val}
    assert len(train) + len(val) == len(labels) and 0.16 < len(val) / len(labels) < 0.24
    _, small = split(labels[:300], seed=0)
    assert small == [x for x in val if x in labels[:300]]


def test_labels_survive_a_file(tmp_path):
    labels = [Label("a", "say {x} \"ü\"", "A: b\nB: c", 1),
              Label("7", "s", "A: d", 0, "leak", "def f():", "f")]
    save_labels(tmp_path / "x.jsonl", labels)
    assert load_labels(tmp_path / "x.jsonl") == labels


@pytest.mark.parametrize("line, complaint", [
    ("{", "line 2: not JSON"),
    ('["a"]', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "label": 1}', "line 2: a gate label is an object"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": "Pass"}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "statement": "s", "plan": "p", "label": 0.5}', "line 2: \"label\" must be 1"),
    ('{"problem_id": "a", "statement": 3, "plan": "p", "label": 1}', 'line 2: "statement" must be text, not 3'),
    ('{"problem_id": ' + "1" * 5000, "line 2: not JSON"),
    ('{"problem_id": "a", "plan": "p", "label": 1}', "line 2: it has no \"statement\".*--problems"),
])
def test_a_broken_label_line_is_named_with_its_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"problem_id": "b", "statement": "s", "plan": "p", "label": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=complaint) as e:
        load_labels(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_label_without_a_statement_takes_that_of_its_problem(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"problem_id": "a", "plan": "p", "label": 0}\n')
    problem = Label("a", "from the pool", "", 0, starter_code="def f():", fn_name="f")
    assert load_labels(path, {"a": problem}) == [
        Label("a", "from the pool", "p", 0, "negative", "def f():", "f")]
