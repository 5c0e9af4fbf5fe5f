"""miniature/gap.py: the parts add up, and each is what it says."""

import random

import pytest

from lib.problems import outcome_hash
from miniature import gap, world
from paper.attempts import Evaluation

PROBLEM = next(p for p in world.problems("heldout") if len(p.classes) == 4)
ASKED = world.parse_statement(PROBLEM.statement)
LIKELIEST = sorted(ASKED.posterior, key=ASKED.posterior.get, reverse=True)


def class_of(combo: world.Combination) -> str:
    return outcome_hash(list(world.outcome(combo)))


def split(strategies: list, programs: list) -> dict[str, float]:
    """Parts of one tuple; both are combinations, or None."""
    rng = random.Random(0)
    rows = []
    for i, (said, done) in enumerate(zip(strategies, programs, strict=True)):
        rows.append({"problem_id": PROBLEM.id, "tuple": 0, "index": i,
                     "strategy": world.write_strategy(said, rng) if said else "Think hard.",
                     "outcome": class_of(done) if done else None})
    evaluation = Evaluation(None, {"setting": {"num_strategies": 4}}, {PROBLEM.id: rows})
    return gap.split(evaluation, {PROBLEM.id: PROBLEM})


def test_an_oracle_that_is_obeyed_leaves_nothing():
    parts = split(LIKELIEST, LIKELIEST)
    assert parts["pass"] == pytest.approx(parts["ceiling"]) == pytest.approx(1)
    lost = [parts[name] for name in ("wasted", "choice", "ignored", "luck")]
    assert lost == pytest.approx([0] * 4)
    assert parts["obeys"] == 1


def test_each_mistake_is_booked_where_it_belongs():
    """Of four readings with masses 9, 6, 6, 4 of 25."""
    a, b, c, d = LIKELIEST
    repeat = split([a, a, b, c], [a, a, b, c])
    assert repeat["wasted"] == pytest.approx(4 / 25) and repeat["choice"] == pytest.approx(0)
    unlikely = split([d, None, b, c], [d, None, b, c])
    assert unlikely["wasted"] == pytest.approx(4 / 25)
    assert unlikely["choice"] == pytest.approx((9 - 4) / 25)
    deaf = split([a, b, c, d], [a, a, a, a])
    assert deaf["ignored"] == pytest.approx(16 / 25) and deaf["obeys"] == 0.25
    lucky = split([a, a, b, c], [a, d, b, c])
    assert lucky["luck"] == pytest.approx(4 / 25) and lucky["ignored"] == 0


def test_the_parts_add_up_whatever_is_written():
    rng = random.Random(1)
    other = ("words", "first", "long") if ASKED.family == "numbers" else ("numbers", "last", "sq")
    foreign = world.combination(*other, ASKED.k)
    for _ in range(50):
        said = rng.choices([*LIKELIEST, foreign, None], k=4)
        done = rng.choices([*LIKELIEST, foreign, None], k=4)
        parts = split(said, done)
        left = parts["wasted"] + parts["choice"] + parts["ignored"] - parts["luck"]
        assert parts["ceiling"] - left == pytest.approx(parts["pass"])
        hit = {combo for combo in done if combo in ASKED.posterior}
        assert parts["pass"] == pytest.approx(sum(ASKED.posterior[combo] for combo in hit))
        assert min(parts.values()) >= -1e-12 or parts["obeys"] != parts["obeys"]
