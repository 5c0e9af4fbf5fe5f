"""The plan contract and the parsers: exact on what they accept, total on everything else."""

import json
import random
import time

import pytest

import prompts
from prompts import PlanError, check_plan, extract_answer, extract_code, parse_plan

GOOD = "A: Sort the intervals.\nB: Sweep over the ends.\nC: Binary search the answer.\nD: Build a graph."


class Problem:
    statement, starter_code, fn_name = "Add {a} and {b}.", "", None


def test_a_plan_of_four_label_lines_parses_to_its_texts():
    assert parse_plan(GOOD) == ["Sort the intervals.", "Sweep over the ends.", "Binary search the answer.", "Build a graph."]
    assert check_plan(parse_plan(GOOD), GOOD) == []


@pytest.mark.parametrize("text", [
    "", "A: x\nB: y\nC: z", "A: x\nB: y\nD: z\nC: w", "A: x\nA: x\nB: y\nC: z\nD: w", "A: x\nB:  \nC: z\nD: w",
    "a: x\nb: y\nc: z\nd: w", "A x\nB y\nC z\nD w", "A: x B: y C: z D: w", "<think>" + GOOD,
    "<think>\nplan\n</think>A: x\nB: y"])
def test_what_lacks_a_label_repeats_one_or_leaves_one_empty_is_refused(text):
    with pytest.raises(PlanError):
        parse_plan(text)


def test_labels_count_only_up_to_k_and_other_lines_are_ignored():
    text = "Here:\n A: x\n\nB: y\nE: no label here\nremark"
    assert parse_plan(text, 2) == ["x", "y"]
    assert check_plan(["x", "y"], text) == ["extra_text"]


def test_thoughts_are_cut_even_when_they_hold_a_plan():
    assert parse_plan(f"<think>A: no\nB: no</think>\n{GOOD}") == parse_plan(GOOD)
    assert parse_plan(f"<|channel>thought\nA: no\n<channel|>{GOOD}") == parse_plan(GOOD)
    assert parse_plan(f"A: no\n</think>\n{GOOD}") == parse_plan(GOOD)     # the opening mark stands in the prompt


@pytest.mark.parametrize("strategy, breach", [
    ("word " * 46, "too_long"), ("First do this. Then do that.", "second_sentence"), ("Is it? Yes.", "second_sentence"),
    ("Use ```x = 1```.", "code"), ("def f(x): return x", "code"), ("Then print(a + b).", "code"),
    ("import heapq", "code"), ("class Solution: pass", "code"), ("for (;;) { x++; }", "code"), ("if (a) {", "code"), ("Sort the  LIST", "duplicate")])
def test_each_breach_of_the_contract_has_a_name(strategy, breach):
    assert check_plan([strategy, "Sort the list.", "Count pairs.", "Use a heap."]) == [breach]


@pytest.mark.parametrize("strategy", [
    "word " * 45, "Use Dijkstra, e.g. with a heap.", "Scale by 1.5 and round.", "For each k, count the pairs (i, j) with i < j.",
    "Model the import of goods as a flow.", "Group each class size (largest first).", "Take the mex of {a, b}"])
def test_what_only_looks_like_a_breach_is_none(strategy):
    assert check_plan([strategy, "Sort the list."]) == []


def random_text(rng: random.Random) -> str:
    pieces = ["A:", "B:", "C:", "D:", "E:", "\n", "\n", " ", "x", "a b", ".", "? Q", "```", "```python", "<think>", "</think>",
              "<|channel>", "<channel|>", "\r", "\u2028", "\x00", "\ud800", "１:", "1: KEEP", "2. DROP", "faults:", "none",
              "duplicate", "[ANSWER]", "[/ANSWER]", "==", "assert ", "9" * 30, "\u0661: KEEP"]
    some = lambda n: "".join(rng.choice(pieces) for _ in range(rng.randint(0, n)))
    if rng.random() < 0.5:
        return some(25)
    lines = [f"{label}: x{some(2)}" if rng.random() < 0.9 else some(3) for label in "ABCD"]     # nearly a plan
    return "\n".join(lines)


def test_parsers_are_total_and_parse_plan_agrees_with_a_second_reading_of_its_rule():
    """The second reading: look at each line with string methods alone."""
    rng = random.Random(0)
    accepted = 0
    for _ in range(20_000):
        text = random_text(rng)
        body = text
        for opened, closed in (("<think>", "</think>"), ("<|channel>", "<channel|>")):
            body = body.split(closed)[-1].split(opened)[0]
        found = [(line.lstrip()[0], line.lstrip()[2:].strip()) for line in body.split("\n")
                 if line.lstrip()[:2] in ("A:", "B:", "C:", "D:")]
        want = [s for _, s in found] if [c for c, _ in found] == list("ABCD") and all(s for _, s in found) else None
        try:
            got = parse_plan(text)
        except PlanError:
            got = None
        assert got == want, repr(text)
        accepted += got is not None
        check_plan(got or [text], text)
        extract_code(text), extract_answer(text), prompts.parse_list(text), prompts.parse_verdicts(text, 2)
        prompts.parse_faults(text), prompts.parse_category(text)
    assert 1000 < accepted < 10_000                                    # neither side of the property is vacuous


@pytest.mark.parametrize("piece", ["\n", "; ", "for: ", "[ANSWER]", "1 ", "A:", ". "])
def test_no_parser_takes_more_than_linear_time(piece):
    """A reply cut at its limit is often one piece again and again. 20,000 line ends once took parse_verdicts 2 s, 30,000 5 s."""
    text = ";" + piece * 30_000 + "x"
    begun = time.process_time()
    check_plan([text], text)
    extract_code(text), extract_answer(text), prompts.parse_list(text), prompts.parse_verdicts(text, 2)
    prompts.parse_faults(text), prompts.parse_category(text)
    with pytest.raises(PlanError):
        parse_plan(text)
    assert time.process_time() - begun < 2


def test_the_program_is_the_last_closed_block():
    assert extract_code("```python\na\n```\nso\n```\nb\n\nc\n```") == "b\n\nc"
    assert extract_code("```python\na\n```\nand now\n```python\ncut") == "a"
    assert extract_code("no fence") is None and extract_code("```\n \n```") is None and extract_code("```python\ncut") is None
    assert extract_code("<think>```\nno\n```</think>```py\nyes\n```") == "yes"


def test_answers_and_lists_and_verdicts_parse():
    assert extract_answer("so [ANSWER] [1, 2] [/ANSWER]") == "[1, 2]"
    assert extract_answer("[ANSWER]assert f(1) == 'a'[/ANSWER]") == "'a'"
    assert extract_answer("[ANSWER]'a == b'[/ANSWER]") == "'a == b'"
    assert extract_answer("[ANSWER]1[/ANSWER] or [ANSWER]2[/ANSWER] and [ANSWER]3") == "2"
    assert extract_answer("nothing") is None and extract_answer("[/ANSWER] [ANSWER]5") is None
    assert prompts.parse_list("1. a\n2) b\nprose\n- c") == ["a", "b", "c"]
    assert prompts.parse_list("**1.** a\n  2. **b** c\n**Bold** prose\n-5 < x") == ["a", "**b** c"]
    assert prompts.parse_verdicts("1: KEEP\n2: drop", 2) == [True, False] == prompts.parse_verdicts("**1: KEEP**\n2. `DROP`", 2)
    assert prompts.parse_faults("**faults:** off_topic") == ["off_topic"]
    assert prompts.parse_verdicts("1: KEEP\n1: DROP\n2: DROP", 2) is None and prompts.parse_verdicts("1: KEEP", 2) is None
    assert prompts.parse_faults("faults: none") == [] and prompts.parse_faults("Faults: vague, duplicate.") == ["duplicate", "vague"]
    assert prompts.parse_faults("faults: ugly") is None and prompts.parse_faults("fine") is None
    assert prompts.parse_category("Greedy.") == "greedy" and prompts.parse_category("DP or greedy") is None


def test_prompts_take_statements_with_braces_and_put_the_strategy_last():
    assert "Add {a} and {b}." in prompts.plan(Problem)
    assert prompts.solve(Problem, "use {statement}").endswith("use {statement}")
    assert all(label in prompts.plan(Problem, 3) for label in ("A:", "B:", "C:")) and "D:" not in prompts.plan(Problem, 3)


def test_a_prompt_file_replaces_prompts_and_says_what_is_wrong_with_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"plan": "{statement} P{k}"}))
    prompts.load(str(path))
    assert prompts.plan(Problem) == "Add {a} and {b}. P4"
    for bad, said in (("{", "not JSON"), ('{"plam": ""}', "plam"), ("[]", "object"), ('{"plan": 3}', "string")):
        path.write_text(bad)
        with pytest.raises(ValueError, match=said):
            prompts.load(str(path))
