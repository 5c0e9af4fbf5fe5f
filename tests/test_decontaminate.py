"""prepare/decontaminate.py: one statement in many layouts, and planted leaks."""

import random
import time
from collections import Counter

import pytest
from corpus_rows import words

from lib.problems import Problem
from prepare import decontaminate

STORY = (
    "There is a row of n stones and every stone has a height. A frog wants to reach the last stone "
    "and pays for a jump the difference of the two heights. You may lower k stones by one before "
    "it starts."
)
RULES = "Print one integer, the least total cost when the stones are lowered in the best way."
CODE_CONTESTS_TEXT = f"""{STORY}

Input

The only line contains n (1 ≤ n ≤ 10^9) and a_i ≠ 0.

Output

{RULES}

Examples

Input

3
1 2 3


Output

4

Note

Nothing is lowered."""
APPS_TEXT = f"""{STORY}


-----Input-----

The only line contains $n$ ($1 \\le n \\leq 10^{{9}}$) and $a_{{i}} \\ne 0$.


-----Output-----

{RULES}


-----Example-----
Input
5
5 4 3 2 1

Output
9

-----Note-----

Nothing is lowered."""
LIVECODEBENCH_TEXT = f"""{STORY}

Input

The only line contains $n$ ($1 \\leqslant n \\leq 10^9$) and $a_i \\neq 0$.

Output

{RULES}Sample Input 1:
2

7 7


Sample Output 1:

0
Explanation

They are equal.

Note

Nothing is lowered."""
BOLD_STORY = STORY.replace(" frog", "&nbsp;<b>frog</b>")
HTML_TEXT = f"""<div class="problem"><p>{BOLD_STORY}</p><h3>Input</h3>
<p>The only line contains <var>n</var> (1 &le; n &le; 10<sup>9</sup>) and <i>a<sub>i</sub></i> &ne;
0.</p><h3>Output</h3><p>{RULES}</p><h3>Sample Input 1</h3><pre>1\n1</pre>
<h3>Sample Output 1</h3><pre>0</pre><h3>Note</h3>Nothing is lowered.</div>"""


def test_one_statement_has_one_hash_in_the_layouts_of_all_corpora_and_in_html():
    texts = [
        CODE_CONTESTS_TEXT,
        APPS_TEXT,
        LIVECODEBENCH_TEXT,
        HTML_TEXT,
        CODE_CONTESTS_TEXT.replace("\n", "\r\n").upper(),
    ]
    assert len({decontaminate.statement_hash(t) for t in texts}) == 1
    for text in texts:
        plain = decontaminate.canonical(text)
        assert "lowered in the best way" in plain and "nothing is lowered" in plain
        assert not any(x in plain for x in ("sample", "example", "7 7", "5 4 3"))


def test_leetcode_examples_go_and_its_constraints_stay():
    text = (
        "Return the sum.\n \nExample 1:\n\nInput: a = [1]\nOutput: 1\nExplanation: one.\n\n"
        "Example 2:\n\nInput: a = []\n\nConstraints:\n\n1 <= n"
    )
    assert decontaminate.canonical(text).split() == "return the sum. constraints: 1 <= n".split()


def test_statements_that_differ_in_more_than_layout_have_other_hashes():
    hashes = {
        decontaminate.statement_hash(t)
        for t in (
            CODE_CONTESTS_TEXT,
            CODE_CONTESTS_TEXT.replace("least", "greatest"),
            CODE_CONTESTS_TEXT.replace("1 ≤ n", "1 ≥ n"),
            CODE_CONTESTS_TEXT.replace("10^9", "10^5"),
            "Examples\n\n1",
            "Examples\n\n2",
        )
    }
    assert len(hashes) == 6


def overlaps(training, held_out):
    """{training problem: (held-out problem, rule)}; they are named t0, t1, ... and h0, h1, ..."""
    leaks, _ = decontaminate.find_overlaps(
        [Problem(f"t{i}", statement) for i, statement in enumerate(training)],
        [Problem(f"h{i}", statement) for i, statement in enumerate(held_out)],
    )
    return {name: (leak.held_out, leak.rule) for name, leak in leaks.items()}


def test_planted_leaks_are_caught_each_by_its_rule():
    paragraph = words(60, "paragraph")
    held_out = [
        Problem("h0", words(150, "a"), ids={"codeforces": "1/A"}),
        Problem("h1", HTML_TEXT),
        Problem("h2", f"{words(100, 'b')}\n\n{paragraph}\n\n{words(100, 'c')}"),
        Problem("h3", "Print the sum of two numbers."),
    ]
    training = [
        Problem("same id", words(150, "d"), ids={"apps": "train/9", "codeforces": "1/A"}),
        Problem("other layout", APPS_TEXT),
        Problem("other white space", " ".join(APPS_TEXT.split("\n"))),
        Problem("copied paragraph", f"{words(100, 'e')}\n{paragraph.upper()}\n{words(150, 'f')}"),
        Problem("short text", "<p>Print the sum\nof two numbers</p>"),
        Problem("clean", words(200, "g")),
        Problem("short and clean", "Print the sum of three numbers."),
        Problem("h2", words(150, "h")),
    ]
    leaks, _ = decontaminate.find_overlaps(training, held_out)
    assert {name: (leak.held_out, leak.rule) for name, leak in leaks.items()} == {
        "same id": ("h0", "id"),
        "other layout": ("h1", "hash"),
        "other white space": ("h1", "ngram"),
        "copied paragraph": ("h2", "ngram"),
        "short text": ("h3", "hash"),
        "h2": ("h2", "id"),
    }
    assert leaks["copied paragraph"].containment == pytest.approx(48 / 248)


CJK = ("给定一个长度为n的数组，求出所有子数组的和的最大值。"
       "注意子数组必须是连续的，数组中的元素可能为负数。")


@pytest.mark.parametrize(
    "held_out, training, rule",
    [
        (
            "Print the sum of a and b.\n\nExample\n\n1 2\n\n3",
            "<p>PRINT the sum\tof a and b</p>Example\n9 9\n18",
            "hash",
        ),
        (
            "Print the sum of a and b.",
            f"{words(70, 1)} print\nthe sum of a and b {words(70, 2)}",
            "ngram",
        ),  # held by a longer one
        (
            f"{words(70, 1)} print\nthe sum of a and b {words(70, 2)}",
            "Print the sum of a and b.",
            "ngram",
        ),
        (CJK, f"{words(30, 3)}{CJK}{words(30, 4)}", "ngram"),  # no spaces: each character is a word
        (
            "Дан массив из n чисел. Выведите сумму.",
            "<b>ДАН</b> массив из n чисел!\nВыведите сумму",
            "hash",
        ),
        ("Print the sum of a and b.", f"{words(70, 1)} print the sum of b and a", None),
        (CJK, CJK[20:] + CJK[:9] + words(9, 5), "ngram"),
        (CJK, CJK[::-1], None),
    ],
)
def test_short_texts_and_other_scripts_are_met_as_well(held_out, training, rule):
    assert overlaps([training], [held_out]) == ({"t0": ("h0", rule)} if rule else {})


def test_a_short_text_that_stands_in_many_statements_is_boilerplate():
    training = [f"{words(40, i)} find the answer {words(40, -i)}" for i in range(1, 6)]
    assert overlaps(training, ["Find the answer."]) == {}
    assert len(overlaps(training[:4], ["Find the answer."])) == 4


def test_unrelated_problems_that_share_boilerplate_are_not_caught():
    boilerplate = (
        "The first line of the input contains a single integer t, the number of test cases. The "
        "description of the test cases "
        "follows. It is guaranteed that the sum of n over all "
        "test cases does not exceed 200000."
    )
    held_out = [f"{words(40, ('h', i))} {boilerplate}" for i in range(4)]
    training = [f"{words(40, ('t', i))} {boilerplate}" for i in range(4)]
    assert overlaps(training, held_out) == {}
    assert len(overlaps(training[:1], held_out[:1])) == 1, (
        "in fewer than six statements it is not known to be boilerplate"
    )


def random_texts(n, rng):
    """Texts of up to three excerpts from a common stock and up to 150 words of their own."""
    stock = [words(30, ("chunk", i)).split() for i in range(25)]
    texts = []
    for _ in range(n):
        parts = []
        for chunk in rng.sample(stock, rng.randint(0, 3)):
            parts += chunk[rng.randint(0, 20) :]
        parts += words(rng.randint(0, 150), rng.random()).split()
        texts.append(" ".join(parts) or "x")
    return texts


def thirteen_grams(text):
    w = text.split()
    if len(w) < 13:
        return {tuple(w)}
    return {tuple(w[i : i + 13]) for i in range(len(w) - 12)}


def containments(training, held_out):
    """{t0, t1, ...: largest share of 13-grams in common with a held-out text}, from 0.1 on. Only
    13-grams that at most five statements hold count; of two texts the one with fewer is whole."""
    frequency = Counter()
    for text in {*training, *held_out}:
        frequency.update(thirteen_grams(text))
    rare = {}
    for text in {*training, *held_out}:
        rare[text] = {gram for gram in thirteen_grams(text) if frequency[gram] <= 5}
    expected = {}
    for i, t in enumerate(training):
        shares = []
        for h in held_out:
            shares.append(len(rare[t] & rare[h]) / max(1, min(len(rare[t]), len(rare[h]))))
        share = 1.0 if t in held_out else max(shares)
        if share >= 0.1:
            expected[f"t{i}"] = share
    return expected


def test_ngram_containment_agrees_with_sets_of_word_tuples():
    rng = random.Random(1)
    training, held_out = random_texts(60, rng), random_texts(40, rng)
    expected = containments(training, held_out)
    leaks, _ = decontaminate.find_overlaps(
        [Problem(f"t{i}", t) for i, t in enumerate(training)],
        [Problem(f"h{i}", t) for i, t in enumerate(held_out)],
    )
    assert {name: leak.containment for name, leak in leaks.items()} == pytest.approx(expected)
    assert 5 < len(expected) < 55


def test_the_text_that_two_statements_share_is_the_longest_run_of_words():
    first = "Count frogs. The FIRST line holds n, the number of <b>lines</b>."
    second = "Sum towers! The first line holds n, the number of lines"
    assert decontaminate.shared_text(first, second) == "the first line holds n the number of lines"


def test_thirteen_thousand_against_five_thousand_take_minutes():
    """A tenth of it, in CPU time: both sides are sorted once and compared once, so all of it takes
    about ten times as long."""
    training = [Problem(f"t{i}", words(300, i % 1250)) for i in range(1300)]
    held_out = [Problem(f"h{i}", words(300, i)) for i in range(1000, 1500)]
    begun = time.process_time()
    leaks, _ = decontaminate.find_overlaps(training, held_out)
    assert time.process_time() - begun < 12
    assert len(leaks) == 250
