"""prepare/prompts.py: the parsers of a judge's replies."""

import random
import time

import pytest

from prepare.prompts import TAXONOMY, parse_category, parse_faults, parse_verdicts
from random_replies import REPEATED, random_reply


def test_verdicts_are_read_with_marks_of_bold_and_code():
    assert parse_verdicts("1: KEEP\n2: drop", 2) == [True, False]
    assert parse_verdicts("**1: KEEP**\n2. `DROP`", 2) == [True, False]


def test_every_candidate_needs_exactly_one_verdict():
    assert parse_verdicts("1: KEEP\n1: DROP\n2: DROP", 2) is None
    assert parse_verdicts("1: KEEP", 2) is None


def test_faults_are_listed_in_the_order_of_the_contract():
    assert parse_faults("faults: none") == []
    assert parse_faults("Faults: vague, duplicate.") == ["duplicate", "vague"]
    assert parse_faults("**faults:** off_topic") == ["off_topic"]


def test_an_unknown_fault_or_none_at_all_cannot_be_used():
    assert parse_faults("faults: ugly") is None
    assert parse_faults("fine") is None


@pytest.mark.parametrize("reply, category", [
    ("Greedy.", "greedy"),
    ("**Category:** dp", "DP"),
    ("Dynamic programming", "DP"),
    ("dynamic-programming (DP)", "DP"),
    ("brute force", "brute-force"),
    ("Brute-Force search", "brute-force"),
    ("data structure", "data-structure"),
    ("Data Structures", "data-structure"),
    ("number theory", "number-theory/math"),
    ("Number-theory/math", "number-theory/math"),
    ("Backtracking", "search/backtrack"),
    ("search", "search/backtrack"),
    ("Search / backtrack", "search/backtrack"),
    ("divide and conquer", "divide-and-conquer"),
    ("Graph theory", "graph"),
    ("other", "other"),
    ("DP or greedy", None),
    ("It searches.", None),
    ("", None),
])
def test_a_reply_names_one_category(reply, category):
    assert parse_category(reply) == category


def test_every_category_is_parsed_as_itself():
    assert [parse_category(category) for category in TAXONOMY] == list(TAXONOMY)


def test_the_parsers_are_total():
    rng = random.Random(0)
    for _ in range(5_000):
        text = random_reply(rng)
        parse_verdicts(text, 2)
        parse_faults(text)
        parse_category(text)


@pytest.mark.parametrize("piece", REPEATED)
def test_the_parsers_take_linear_time(piece):
    """20,000 line ends once took parse_verdicts 2 s."""
    text = piece * 30_000
    begun = time.process_time()
    parse_verdicts(text, 2)
    parse_faults(text)
    parse_category(text)
    assert time.process_time() - begun < 2
