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


@pytest.mark.parametrize("strategy", [
    "word " * 45,
    "Use Dijkstra, e.g. with a heap.",
    "Scale by 1.5 and round.",
    "For each k, count the pairs (i, j) with i < j.",
    "Model the import of goods as a flow.",
    "Group each class size (largest first).",
    "Take the mex of {a, b}",
])
def test_what_only_looks_like_a_breach_is_none(strategy):
    assert check_plan([strategy, "Sort the list."]) == []


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
