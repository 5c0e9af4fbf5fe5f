"""The plan contract and its parsers: exact on what they accept, total on everything else."""

import json
import random
import time

import pytest

import prompts
from prompts import PlanError, check_plan, extract_code, find_blocks, parse_list, parse_plan
from random_replies import REPEATED, random_reply

GOOD = """A: Sort the intervals.
B: Sweep over the ends.
C: Binary search the answer.
D: Build a graph."""


class Problem:
    statement, starter_code, fn_name = "Add {a} and {b}.", "", None


# ----------------------------------------------------------------------------------------------
# Plans

def test_a_plan_of_four_label_lines_parses_to_its_texts():
    strategies = parse_plan(GOOD)
    assert strategies == ["Sort the intervals.", "Sweep over the ends.",
                          "Binary search the answer.", "Build a graph."]
    assert check_plan(strategies, GOOD) == []


@pytest.mark.parametrize("text", [
    "",
    "A: x\nB: y\nC: z",
    "A: x\nB: y\nD: z\nC: w",
    "A: x\nA: x\nB: y\nC: z\nD: w",
    "A: x\nB:  \nC: z\nD: w",
    "a: x\nb: y\nc: z\nd: w",
    "A x\nB y\nC z\nD w",
    "A: x B: y C: z D: w",
    "<think>" + GOOD,
    "<think>\nplan\n</think>A: x\nB: y",
])
def test_a_plan_that_lacks_a_label_repeats_one_or_leaves_one_empty_is_refused(text):
    with pytest.raises(PlanError):
        parse_plan(text)


@pytest.mark.parametrize("template, near_miss", [
    ("**{}:** x", "**A:**"),
    ("**{}**: x", "**A:**"),
    ("- {}: x", "- A:"),
    ("* **{}:** x", "- A:"),
    ("### {}: x", "# A:"),
    ("{}) x", "A)"),
    ("({}) x", "A)"),
    ("{}. x", "A."),
    ("{} - x", "A -"),
    ("Method {}: x", "Method A:"),
    ("**Strategy {}**: x", "Method A:"),
    ("Approach {} is x", "Method A:"),
    ("{}x", ""),
])
def test_a_plan_with_other_marks_is_refused_and_the_near_miss_named(template, near_miss):
    text = "Here they are.\n" + "\n".join(template.format(label) for label in "ABCD")
    with pytest.raises(PlanError) as error:
        parse_plan(text)
    assert error.value.near_miss == near_miss
    assert (f"all labels are there as {near_miss}" in str(error.value)) == bool(near_miss)


@pytest.mark.parametrize("text, near_miss", [
    ("a: x\nb: y\nc: z\nd: w", "a:"),
    ("A: x B: y C: z D: w", "A: B:"),
    ("**A:** x\n**B:** y\n**C:** z", ""),             # one is missing
    ("**A:** x\n**C:** z\n**B:** y\n**D:** w", ""),  # another order
    ("A: x\nB:  \nC: z\nD: w", ""),                  # nothing is wrong with the marks
])
def test_only_a_whole_plan_is_a_near_miss(text, near_miss):
    with pytest.raises(PlanError) as error:
        parse_plan(text)
    assert error.value.near_miss == near_miss


def test_labels_count_only_up_to_k_and_other_lines_are_ignored():
    text = "Here:\n A: x\n\nB: y\nE: no label here\nremark"
    assert parse_plan(text, 2) == ["x", "y"]
    assert check_plan(["x", "y"], text) == ["extra_text"]


def test_thoughts_are_cut_even_when_they_hold_a_plan():
    assert parse_plan(f"<think>A: no\nB: no</think>\n{GOOD}") == parse_plan(GOOD)
    assert parse_plan(f"<|channel>thought\nA: no\n<channel|>{GOOD}") == parse_plan(GOOD)
    # the opening mark is in the prompt
    assert parse_plan(f"A: no\n</think>\n{GOOD}") == parse_plan(GOOD)


@pytest.mark.parametrize("strategy, breach", [
    ("word " * 46, "too_long"),
    ("First do this. Then do that.", "second_sentence"),
    ("Is it? Yes.", "second_sentence"),
    ("Sort by x. Then sweep.", "second_sentence"),
    ("Use trees, heaps, etc. Then sort.", "second_sentence"),
    ("Use ```x = 1```.", "code"),
    ("def f(x): return x", "code"),
    ("Then print(a + b).", "code"),
    ("import heapq", "code"),
    ("class Solution: pass", "code"),
    ("for (;;) { x++; }", "code"),
    ("if (a) {", "code"),
    ("Sort the  LIST", "duplicate"),
])
def test_each_breach_of_the_contract_has_a_name(strategy, breach):
    assert check_plan([strategy, "Sort the list.", "Count pairs.", "Use a heap."]) == [breach]


ORDINARY = """
Use Dijkstra, e.g. with a heap.
Build a spanning tree, e.g. Kruskal with a disjoint-set union.
Compare a greedy rule vs. Brute force on small cases and keep the rule.
Keep the smallest w.r.t. Euclidean distance in a heap.
Reduce it to a known problem, i.e. Longest Increasing Subsequence on the indices.
Sort by the key, cf. Johnson's rule, and pair the ends.
Scale by 1.5 and round.
Count all n! orders by inclusion and exclusion.
For each k, count the pairs (i, j) with i < j.
Count the pairs with i != j by a hash map of differences.
Stop as soon as a[i] == a[j] for two pointers i and j.
Let dp[i] = max(dp[i-1], dp[i-2] + a[i]) and read off dp[n].
Use dp[i][j] = min(dp[i-1][j], dp[i][j-1]) + cost(i, j) over the grid.
Define f(n) = f(n-1) + f(n-2) and use fast matrix powers.
Define best(v) := max over children of best(c) + w(v, c).
Run Dijkstra and track min(dist) over the targets.
Keep a monotonic stack and use len(stack) as the depth.
Take sum(prefix) - k as the key of a hash map.
Compute gcd(a, b) of all differences and count its divisors.
Sort the pairs by max(x, y) and sweep.
Binary search x so that f(x) >= k and f(x - 1) < k.
Use the closed form n * (n + 1) / 2 for each block.
Halve the interval at (lo + hi) / 2 until it holds one number.
Use a Fenwick tree for range sums over [l, r].
Answer each range(l, r) query by prefix sums.
Model the import of goods as a flow.
Transform each row from left to right: import the last value, then compare.
Group each class size (largest first).
Solve each residue class: at most k of them matter.
Take the mex of {a, b}
Use bitmasks: bit i of S is set if item i is taken.
Simulate with a deque (double-ended queue) and rotate.
Translate the C++ idea of a priority queue to a sorted list of events.
Use two heaps: one for the lower half, one for the upper half.
While the window sum exceeds s, move the left end.
For every suffix, extend a trie; for every prefix, walk it.
Keep x = y + 1 as an invariant while merging.
If n is even, pair the ends; otherwise, drop the median first.
Precompute f for all x in S, then answer in O(1).
Write the string as t + t and search s in it.
Enumerate the sets S with |S|=k and keep the best.
""".strip().split("\n")
LEAKS = """
def solve(n): return n * 2
Use the function def f(x): and call it.
class Solution: pass
import heapq
from collections import Counter
Use for i in range(n): total.
Loop for x in a: add it.
for (int i = 0; i < n; i++) sum it.
while lo < hi: move mid.
Set total += a[i] in one pass.
Do x -= 1 until it is zero.
Count with cnt++ in one pass.
Start from ans = [] and fill it.
Read n = int(input()) first.
Swap by a, b = b, a % b until b is zero.
Set x = 0; y = 1 and go on.
Then print(a + b).
Use ```x = 1```.
Call stack.append(x) for all x.
Use sorted(a, key=lambda p: p[1]) and sweep.
if (a) {
""".strip().split("\n")


@pytest.mark.parametrize("strategy", [*ORDINARY, "word " * 45])
def test_what_only_looks_like_a_breach_is_none(strategy):
    assert check_plan([strategy, "Sort the list."]) == []


@pytest.mark.parametrize("strategy", LEAKS)
def test_code_in_a_strategy_is_a_breach(strategy):
    assert check_plan([strategy, "Sort the list."]) == ["code"]


def test_there_are_enough_of_both():
    assert len(ORDINARY) >= 40 and len(LEAKS) >= 20


# ----------------------------------------------------------------------------------------------
# All parsers

def second_reading(text: str) -> list[str] | None:
    """parse_plan's rule again, with string methods alone."""
    for opening, closing in (("<think>", "</think>"), ("<|channel>", "<channel|>")):
        text = text.split(closing)[-1].split(opening)[0]
    labels, strategies = "", []
    for line in text.split("\n"):
        line = line.lstrip()
        if line[:2] in ("A:", "B:", "C:", "D:"):
            labels += line[0]
            strategies.append(line[2:].strip())
    return strategies if labels == "ABCD" and all(strategies) else None


def test_parsers_are_total_and_parse_plan_agrees_with_a_second_reading_of_its_rule():
    rng = random.Random(0)
    accepted = 0
    for _ in range(20_000):
        text = random_reply(rng)
        try:
            strategies = parse_plan(text)
        except PlanError:
            strategies = None
        assert strategies == second_reading(text), repr(text)
        accepted += strategies is not None
        check_plan(strategies or [text], text)
        extract_code(text)
        parse_list(text)
    assert 1000 < accepted < 10_000             # neither side of the property is vacuous


@pytest.mark.parametrize("piece", REPEATED)
def test_no_parser_takes_more_than_linear_time(piece):
    """A reply cut at its limit is often one piece repeated; 30,000 line ends once took 5 s."""
    text = ";" + piece * 30_000 + "x"
    begun = time.process_time()
    check_plan([text], text)
    extract_code(text)
    parse_list(text)
    with pytest.raises(PlanError):
        parse_plan(text)
    assert time.process_time() - begun < 2


# ----------------------------------------------------------------------------------------------
# Programs

@pytest.mark.parametrize("reply, program", [
    # the last python block, whatever follows
    ("```python\na\n```\nor\n```py\nb\n\nc\n```", "b\n\nc"),
    ("```python\na\n```\nIt prints:\n```text\n42\n```", "a"),
    ("```Python\na\n```\nIt prints:\n```\n42\n```", "a"),
    ("```python\na\n```\nRun it:\n```bash\npython a.py\n```", "a"),
    # else the last block without a tag that compiles
    ("```\na = 1\n```\nIt prints:\n```\n3 4\n```", "a = 1"),
    ("```\na = 1\n```\nor\n```\nb = 2\n```", "b = 2"),
    ("```cpp\nint x;\n```", None),
    ("```\nnot a program\n```", None),
    # only closed blocks, after any thought
    ("```python\na\n```\nand now\n```python\ncut", "a"),
    ("```python\ncut", None),
    ("```python\ncut\n```python\nwhole\n```", "whole"),
    ("<think>```\nno\n```</think>\n```py\nyes\n```", "yes"),
    ("no fence", None),
    ("```\n \n```", None),
    ("```x = 1``` is text\n```python\na\n```", "a"),
    ("```python\na\n```x = 1```\n```", "a\n```x = 1```"),
    ("```python\na\n``` This prints the answer.\n", "a"),
    ("```python\na\n```text\n42\n```", "a"),
    ("```python\na\n``` Python prints it.\n", "a"),
    ("```{.python title='a.py'}\na\n```.", "a"),
])
def test_the_program_is_the_last_python_block_or_else_one_that_compiles(reply, program):
    assert extract_code(reply) == program


def test_a_function_is_found_before_its_example():
    function = "def add(a, b):\n    return a + b"
    reply = f"```python\n{function}\n```\nExample usage:\n```python\nprint(add(1, 2))\n```"
    assert extract_code(reply, "add") == function
    assert extract_code(reply) == extract_code(reply, "other") == "print(add(1, 2))"
    method = "class Solution:\n    def add(self, a, b):\n        return a + b"
    assert extract_code(f"```\n{method}\n```\n```python\nadd(1, 2)\n```", "add") == method


def test_a_block_inside_a_list_is_dedented():
    reply = "1. Write:\n   ```python\n   for i in x:\n       f(i)\n\n   g()\n   ```"
    assert extract_code(reply) == "for i in x:\n    f(i)\n\ng()"
    assert extract_code("```python\n  a\nb\n   c\n```") == "a\nb\n c"


def test_blocks_and_a_cut_at_the_end_are_told_apart():
    blocks, cut = find_blocks("```python\na\n```\n```text\nb\n```")
    assert blocks == [("python", "a"), ("text", "b")] and not cut
    assert find_blocks("```python\na\n```\n```\nb") == ([("python", "a")], True)
    assert find_blocks("<think>```\n") == ([], False)


@pytest.mark.parametrize("code", ["(" * 5_000, "-" * 100_000 + "1", "x" + ".x" * 50_000, "\x00",
                                  "[" * 90 + "]" * 90, "if 1:\n" * 3_000, "\ud800"])
def test_hostile_text_in_a_block_harms_nobody(code):
    extract_code(f"```\n{code}\n```")


def test_lists_are_numbered_or_dashed_lines():
    assert parse_list("1. a\n2) b\nprose\n- c") == ["a", "b", "c"]
    assert parse_list("**1.** a\n  2. **b** c\n**Bold** prose\n-5 < x") == ["a", "**b** c"]


# ----------------------------------------------------------------------------------------------
# Prompts

def test_prompts_take_statements_with_braces_and_put_the_strategy_last():
    assert "Add {a} and {b}." in prompts.plan(Problem)
    assert prompts.solve(Problem, "use {statement}").endswith("use {statement}")


def test_the_plan_prompt_names_k_labels():
    text = prompts.plan(Problem, 3)
    assert all(label in text for label in ("A:", "B:", "C:")) and "D:" not in text


@pytest.fixture
def own_templates(monkeypatch):
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))


def test_a_prompt_file_replaces_prompts(tmp_path, own_templates):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"plan": "{statement} P{k}", "code_format": "Go.",
                                "call_format": "{fn_name}!"}))
    prompts.load(str(path))
    assert prompts.plan(Problem) == "Add {a} and {b}. P4"
    assert prompts.direct(Problem) == "Add {a} and {b}.\n\nGo."

    class Call(Problem):
        fn_name = "add"
    assert prompts.direct(Call) == "Add {a} and {b}.\n\nadd!"


@pytest.mark.parametrize("text, message", [
    ("{", "not JSON"), ('{"plam": ""}', "plam"), ("[]", "object"), ('{"plan": 3}', "string")])
def test_a_wrong_prompt_file_is_reported(tmp_path, own_templates, text, message):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompts.load(str(path))


# ----------------------------------------------------------------------------------------------
# Public tests and a system turn: both off by default

class Call(Problem):
    fn_name, starter_code = "add", "def add(a, b):"
    public_tests = [{"input": "[1, [true]]", "output": "null"}]
    tests = [{"input": "[8, 9]", "output": "17"}]


class Chat:
    """A tokenizer whose ids are characters."""
    chat_template = "yes"

    def apply_chat_template(self, turns, **_):
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)

    def __call__(self, text, **_):
        return {"input_ids": list(text)}


def test_public_tests_are_shown_where_the_template_says_so_and_hidden_ones_never(monkeypatch):
    problem = Call()
    assert "add(1" not in prompts.direct(problem)
    monkeypatch.setitem(prompts.TEMPLATES, "problem", "{statement}\n\nExamples:\n{examples}")
    for text in (prompts.direct(problem), prompts.plan(problem), prompts.gate(problem, "A: x")):
        assert "Examples:\nadd(1, [True]) == None" in text and "17" not in text
    problem.fn_name, problem.public_tests = None, [{"input": "1 2\n", "output": "3\n"}]
    assert "Input:\n1 2\nOutput:\n3\n" in prompts.direct(problem)


def test_a_system_turn_comes_before_the_user_s(monkeypatch):
    chat = Chat()
    assert "".join(prompts.encode(chat, "x")) == "user: x\n"
    monkeypatch.setitem(prompts.TEMPLATES, "system", "Be brief.")
    assert "".join(prompts.encode(chat, "x")) == "system: Be brief.\nuser: x\n"
    chat.chat_template = None
    assert "".join(prompts.encode(chat, "x")) == "Be brief.\n\nx"
