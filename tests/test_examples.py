"""Each concept alone, in some ten lines to paste. Here a tiny random model stands in for yours.

`folder` is any Hugging Face folder of a Qwen3.5 text model, or a hub id such as Qwen/Qwen3.5-2B.
"""

from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gate
import grpo
import model
import prompts
import reward
import rollout
from verifier import Verifier

PROBLEM = SimpleNamespace(id="double", statement="Read n. Print 2n.", starter_code="", fn_name=None)
PLAN = "A: Read n and multiply it by two.\nB: Add n to itself.\nC: Shift n left.\nD: Count to 2n."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("examples") / "qwen")


# --------------------------------------------------------------------------------------------
# verifier.py: judge programs in a sandbox

def judge_two_programs():
    tests = [{"input": "3\n", "output": "6\n"}, {"input": "-1\n", "output": "-2\n"}]
    right = {"code": "print(2 * int(input()))", "tests": tests}
    wrong = {"code": "print(6)", "tests": tests}
    call = {"code": "def f(n):\n    return n + n", "fn_name": "f",
            "tests": [{"input": "[3]", "output": "6"}]}        # JSON: the arguments, the value
    with Verifier(workers=1) as verifier:
        return verifier.judge([right, wrong, call])


def test_verifier_alone():
    right, wrong, call = judge_two_programs()
    assert right.passed and right.status == "accepted" and right.tests_passed == 2
    assert not wrong.passed and wrong.status == "wrong_answer" and wrong.tests_passed == 1
    assert call.passed


# --------------------------------------------------------------------------------------------
# rollout.py: sample, and let new prompts join while other rows still decode

def sample_and_follow_up(folder):
    module, tokenizer = model.load(folder), AutoTokenizer.from_pretrained(folder)
    engine = rollout.Engine(module, tokenizer, slots=8, temperature=0.7)
    first = prompts.encode(tokenizer, "Name a sorting algorithm.")
    jobs = [rollout.Job(first, key=("draft", n), max_new_tokens=16, tag="draft") for n in range(3)]
    replies = []
    for job, sample in engine.run(jobs):        # rows come back as they end
        replies.append((job.tag, sample))
        if job.tag == "draft":
            ids = prompts.encode(tokenizer, f"Shorten this: {sample.text}")
            key = (*job.key, "short")           # names the row's own random stream
            engine.push([rollout.Job(ids, key, max_new_tokens=8, tag="short")])
    return replies


def test_engine_alone(folder):
    replies = sample_and_follow_up(folder)
    assert sorted(tag for tag, _ in replies) == ["draft"] * 3 + ["short"] * 3
    for _, sample in replies:
        assert len(sample.ids) == len(sample.logprobs) and sample.finish in ("eos", "length")


# --------------------------------------------------------------------------------------------
# gate.py: is this plan well formed?

def ask_a_gate(folder):
    module, tokenizer = model.load(folder), AutoTokenizer.from_pretrained(folder)
    learned = gate.Gate(module, tokenizer, tau=0.17)    # gate.Gate.load(folder) for a trained one
    rule = gate.RuleGate()                              # needs no model: the visible contract alone
    pairs = [(PROBLEM, PLAN), (PROBLEM, PLAN.replace("Count to 2n", "Add n to itself"))]
    return {"learned": learned.p_pass(pairs), "rule": rule.p_pass(pairs)}


def test_gate_alone(folder, monkeypatch):
    # the tiny tokenizer spells both words with the same first letters; yours has a token for each
    monkeypatch.setattr(gate, "verdict_ids", lambda tokenizer: (40, 50))
    p = ask_a_gate(folder)
    assert p["rule"] == [1.0, 0.0]                      # the second plan repeats a strategy
    assert all(0 < one < 1 for one in p["learned"])


# --------------------------------------------------------------------------------------------
# reward.py, grpo.py: two kinds of credit for verdicts of your own

def two_kinds_of_credit():
    # verdicts (P, M, K) of 1 problem, 2 tuples, 4 programs each; both plans are valid, J (P, M)
    r = torch.tensor([[[1., 0, 0, 0], [0, 0, 0, 0]]])
    J = torch.tensor([[1., 1.]])
    R_plan = reward.planner_reward(J, reward.outcome_reward(r))
    return grpo.within_tuple_advantages(r), grpo.across_tuple_advantages(R_plan)


def test_advantages_alone():
    a, A = two_kinds_of_credit()
    assert a[0, 0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-4)
    assert a[0, 1].tolist() == [0, 0, 0, 0]
    assert A[0].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)


# --------------------------------------------------------------------------------------------
# grpo.py: the update, with any reward

def learn_to_write_letters(folder, steps=12, n=32):
    policy, reference = model.load(folder), model.load(folder).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = grpo.make_optimizer(policy, lr=1e-2)
    prompt, log = prompts.encode(tokenizer, "Say something."), []
    for step in range(steps):
        [samples] = rollout.sample(policy, tokenizer, [prompt], n, max_new_tokens=8, seed=step)
        r = torch.tensor([sum(map(str.isalpha, s.text)) / 8 for s in samples])      # any reward
        A = grpo.across_tuple_advantages(r).tolist()
        rows = [grpo.Row(prompt, s.ids, 0, A[i], 1 / n, "solve", s.logprobs)
                for i, s in enumerate(samples)]
        # vocab: ids without a word are never sampled, so they stay out of the loss's softmax, too
        metrics = grpo.update(policy, reference, optimizer, rows, vocab=len(tokenizer))
        log.append(metrics | {"reward": r.mean().item()})
    return log


def test_update_alone(folder):
    log = learn_to_write_letters(folder)
    assert log[0]["solve/kl"] == 0 and log[0]["solve/gap_max"] < 1e-4
    rewards = [step["reward"] for step in log]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


# --------------------------------------------------------------------------------------------
# rollout.py and grpo.py with a model of your own: all that they ask of it

class PlainModel(torch.nn.Module):
    """A causal LM of transformers, in the simplest and slowest way: no cache, every token runs the
    whole row again. lib/adapter.py does the same with a cache."""
    can_fork = can_capture = False      # rollout: no rows are copied, no CUDA graphs
    fp32_units = ()                     # grpo.shard: parts that must stay in fp32

    def __init__(self, lm):
        super().__init__()
        self.lm, self.config, self.blocks = lm, lm.config, lm.model.layers
        self.eos_ids = {lm.config.eos_token_id}

    def new_state(self, rows, capacity):
        zeros = torch.zeros(rows, capacity, dtype=torch.long)
        return SimpleNamespace(ids=zeros, pos=zeros[:, 0].clone())      # pos: tokens that are there

    def segment(self, ids, lengths, state):
        """Prompts (B, T), of `lengths` tokens -> logits (B, V) after each one's last."""
        state.ids[:, :ids.shape[1]] = ids
        state.pos += lengths
        return self.last_logits(state)

    def step(self, ids, state, attended):
        """One more token (B,) for every row -> logits (B, V)."""
        state.ids[torch.arange(len(ids)), state.pos] = ids
        state.pos += 1
        return self.last_logits(state)

    def last_logits(self, state):
        logits = self.lm(state.ids).logits      # padding stands behind, where no token sees it
        return logits[torch.arange(len(logits)), state.pos - 1]

    def forward(self, ids, head):
        """For grpo.update(shared=False): rows (B, T) -> head(hidden (B, T, H), weight, softcap)."""
        hidden = self.lm.model(ids).last_hidden_state
        return head(hidden, self.lm.lm_head.weight, None)


def sample_and_update(folder):
    policy = PlainModel(AutoModelForCausalLM.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = prompts.encode(tokenizer, "Say something.")
    [samples] = rollout.sample(policy, tokenizer, [prompt], n=4, max_new_tokens=6)
    rows = [grpo.Row(prompt, s.ids, 0, advantage, 1 / 4, "solve", s.logprobs)
            for s, advantage in zip(samples, [1.0, -1.0, 0.5, -0.5], strict=True)]
    optimizer = grpo.make_optimizer(policy, lr=1e-3)
    return grpo.update(policy, None, optimizer, rows, vocab=len(tokenizer), shared=False)


def test_a_plain_model_of_transformers_has_all_that_sampling_and_updating_ask(tmp_path):
    metrics = sample_and_update(tiny.llama(tmp_path / "llama"))
    assert metrics["solve/gap_max"] < 1e-4      # sampler and trainer agree on every log-prob
    assert metrics["grad_norm"] > 0 and not metrics["skipped"]
