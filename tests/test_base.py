"""miniature/base.py: every prompt mode takes the real paths; the tokenizer is short and exact."""

import random
import statistics

import pytest
import torch
import transformers

import model
import prompts
from lib.problems import Problem
from miniature import base, world


@pytest.fixture(scope="module", autouse=True)
def miniature_prompts():
    kept = dict(prompts.TEMPLATES)
    prompts.load(base.PROMPTS)
    yield
    prompts.TEMPLATES.update(kept)


@pytest.fixture(scope="module")
def tokenizer():
    return base.make_tokenizer()


def some(mode: str, n: int = 200) -> list[tuple[world.Statement, str, str]]:
    rng = random.Random(mode)
    asked = rng.choices(world.statements("train"), k=n)
    return [(s, *base.example(mode, s, rng)) for s in asked]


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in ("Keep numbers below 5, count them.", "```python\nprint(len(b))\n```",
                 "é漢 \t\n\n  A: x", "B: 12\nC: "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= base.VOCABULARY


def test_plans_programs_and_statements_are_short_enough_for_a_laptop(tokenizer):
    def tokens(texts):
        return statistics.mean(len(tokenizer(t)["input_ids"]) for t in texts)
    assert tokens(reply for _, _, reply in some("plan")) <= 50
    assert tokens(reply for _, _, reply in some("direct")) <= 30
    assert tokens(str(asked) for asked, _, _ in some("direct")) <= 20


def test_a_strategy_has_the_same_tokens_in_the_plan_the_solvers_prompt_and_the_gates(tokenizer):
    rng, asked = random.Random(0), world.statements("train")[0]
    problem = Problem(id="", statement=str(asked))
    strategies = [world.write_strategy(c, rng) for c in world.teacher_tuple(asked, rng)]
    plan = prompts.format_plan(strategies)
    whole = tokenizer(plan)["input_ids"]

    def holds(ids, part):
        return any(ids[i:i + len(part)] == part for i in range(len(ids)))

    for s in strategies:
        part = tokenizer(s)["input_ids"]
        assert holds(whole, part)
        assert holds(prompts.encode(tokenizer, prompts.solve(problem, s)), part)
        assert holds(prompts.encode(tokenizer, prompts.gate(problem, plan)), part)


def test_rows_are_what_the_samplers_see_and_end_their_turn(tokenizer):
    pairs = [(turn, reply) for mode in base.POLICY_MIX for _, turn, reply in some(mode, 5)]
    for (turn, reply), (ids, start) in zip(pairs, base.encode(tokenizer, pairs), strict=True):
        assert ids[:start] == prompts.encode(tokenizer, turn)
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[start:-1]) == reply


def test_the_two_verdicts_differ_in_their_first_token(tokenizer):
    assert tokenizer("Pass")["input_ids"][0] != tokenizer("Fail")["input_ids"][0]


def test_the_template_has_a_place_for_thoughts_that_is_off_unless_asked_for(tokenizer):
    ask = {"role": "user", "content": "x"}
    reply = {"role": "assistant", "reasoning_content": "hm", "content": "y"}
    def opened(**thinking):
        return tokenizer.apply_chat_template([ask], tokenize=False, add_generation_prompt=True,
                                             **thinking)
    whole = tokenizer.apply_chat_template([ask, reply], tokenize=False)
    assert whole.startswith(opened(enable_thinking=True)) and "hm" in whole
    assert "think" not in opened(enable_thinking=False) + opened()


def test_direct_answers_are_mostly_a_favourite_that_is_not_the_likeliest():
    written = [(s, prompts.extract_code(reply)) for s, _, reply in some("direct", 1000)]
    is_favourite = [code == world.program(s.favourite).rstrip("\n") for s, code in written]
    assert 0.62 <= statistics.mean(is_favourite) <= 0.8
    assert all(s.posterior[s.favourite] < max(s.posterior.values()) for s, _ in written)


def test_the_solver_is_mostly_but_not_always_faithful_and_a_leak_helps_it():
    by_kind = {"words": [], "leak": []}
    for _, turn, reply in some("solve", 2000):
        strategy = turn.rpartition("S: ")[2]
        combo, code = world.read_strategy(strategy), prompts.extract_code(reply)
        if combo is not None:
            by_kind["words"].append(code == world.program(combo).rstrip("\n"))
        elif world.LEAK.search(strategy):
            by_kind["leak"].append(code is not None)
    assert 0.9 <= statistics.mean(by_kind["words"]) <= 0.96
    assert by_kind["leak"] and all(by_kind["leak"])


def test_plans_are_sloppy_in_every_way_that_the_gate_is_for():
    faults = [world.judge(str(s), reply) for s, _, reply in some("plan", 600)]
    assert 0.3 < sum(not f for f in faults) / len(faults) < 0.6
    for fault in prompts.FAULTS:
        assert sum(fault in f for f in faults) / len(faults) >= 0.01


def test_the_base_never_saw_a_held_out_statement():
    source = base.examples(base.POLICY_MIX, random.Random(3))
    seen = [next(source)[0] for _ in range(500)]
    assert not any(p.statement in turn for p in world.problems("heldout") for turn in seen)


def test_training_learns_and_the_folder_loads_as_any_other(tokenizer, tmp_path):
    config = base.GATE | dict(vocab_size=base.VOCABULARY, eos_token_id=tokenizer.eos_token_id,
                              hidden_size=32)
    module = model.build(config, seed=1)
    lessons = ((1.0, {"direct": 1}),)
    before = base.train(module, tokenizer, lessons, steps=1, rows=32, lr=3e-3, seed=1)
    after = base.train(module, tokenizer, lessons, steps=40, rows=32, lr=1e-2, seed=1)
    assert after < 0.8 * before
    model.save(module, str(tmp_path), tokenizer)
    loaded, ids = model.load(str(tmp_path)), torch.tensor([prompts.encode(tokenizer, "Solve.")])
    torch.testing.assert_close(loaded(ids), module(ids))
    assert tokenizer.eos_token_id in loaded.eos_ids
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert prompts.encode(theirs, "Solve.") == ids[0].tolist()
    with torch.no_grad():
        reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        torch.testing.assert_close(reference(ids).logits, module(ids), rtol=1e-3, atol=1e-3)
