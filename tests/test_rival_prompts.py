"""rivals/prompts.py: the parser of output prediction."""

import random
import time

import pytest

from random_replies import REPEATED, random_reply
from rivals.prompts import extract_answer


@pytest.mark.parametrize("reply, answer", [
    ("so [ANSWER] [1, 2] [/ANSWER]", "[1, 2]"),
    ("[ANSWER]assert f(1) == 'a'[/ANSWER]", "'a'"),
    ("[ANSWER]'a == b'[/ANSWER]", "'a == b'"),
    ("[ANSWER]1[/ANSWER] or [ANSWER]2[/ANSWER] and [ANSWER]3", "2"),
    ("nothing", None),
    ("[/ANSWER] [ANSWER]5", None),
])
def test_the_answer_is_the_last_closed_one(reply, answer):
    assert extract_answer(reply) == answer


def test_the_parser_is_total():
    rng = random.Random(0)
    for _ in range(5_000):
        extract_answer(random_reply(rng))


@pytest.mark.parametrize("piece", REPEATED)
def test_the_parser_takes_linear_time(piece):
    begun = time.process_time()
    extract_answer(piece * 30_000)
    assert time.process_time() - begun < 2
