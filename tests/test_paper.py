"""The paper's equations, 1 to 20 in its order, each beside the code that realises it.

Numbers are worked by hand. Equations that define a distribution (2 to 7) have no number of their
own: there a test follows log-probs of a tiny random model through the code and adds them up.

Notation: x a problem, S = (s_1..s_K) a strategy tuple, y_i the program for s_i, V the verifier,
M tuples per problem, tau a trajectory. Equations 1 and 2 are section 2, 3 to 13 section 3, 14 to 16
Appendix F, 17 and 18 Appendix H, 19 and 20 Appendix J.
"""

from argparse import Namespace
from math import exp, log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import gate
import grpo
import model
import prompts
import reward
import rollout
import train_cppo
from lib import metrics
from lib.problems import Problem
from paper.attempts import solved
from rivals.advantages import set_advantages

X = Problem(id="x", statement="Read the numbers. Keep the small ones for 5 and print their size.")
S = ["Count them.", "Sum them up.", "Sort them.", "Print them."]
PLAN = "A: Count them.\nB: Sum them up.\nC: Sort them.\nD: Print them."
TOKENIZER = tiny.tokenizer()


@pytest.fixture(scope="module")
def theta():
    """A random Qwen3.5 of some 200,000 parameters: both q_Theta and p_Theta, as in section 3.1."""
    return tiny.stir(model.build(tiny.QWEN), 0)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


@torch.no_grad()
def log_prob(theta, prompt: list[int], reply: list[int]) -> float:
    """log p(reply | prompt): the sum of its tokens' log-probs, by one plain forward pass."""
    logits = theta(torch.tensor([prompt + reply]))[0, len(prompt) - 1:-1, :len(TOKENIZER)]
    token_log_probs = logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])
    return token_log_probs.sum().item()


@torch.no_grad()
def row_log_prob(theta, row: grpo.Row) -> float:
    """The same for a row of the update: what the trainer differentiates."""
    batch = grpo.collate([row], torch.device("cpu"))
    return grpo.row_logprobs(theta, batch, vocab=len(TOKENIZER)).sum().item()


def row(prompt: list[int], reply: list[int], advantage: float = 0.0, region: str = "solve"):
    return grpo.Row(prompt, reply, 0, advantage, 1.0, region)


# --------------------------------------------------------------------------------------------
# Section 2: pass@K and independent attempts

def test_eq_1_pass_at_k_is_1_where_any_of_the_k_attempts_passes():
    """R_pass@K = 1{max_i V(x, y_i) = 1}. In code: reward.outcome_reward in training,
    paper.attempts.solved in tables. The unbiased estimator agrees at exactly K attempts."""
    for verdicts, want in (([0, 0, 1, 0], 1), ([0, 0, 0, 0], 0), ([1, 1, 1, 1], 1)):
        assert reward.outcome_reward(torch.tensor(verdicts)) == want
        assert solved([{"status": "accepted" if v else "wrong_answer"} for v in verdicts]) == want
        assert metrics.pass_at_k(n=4, c=sum(verdicts), k=4) == want


def test_eq_2_attempts_are_independent_draws_from_one_distribution(theta):
    """y_i ~ p(. | x). One prompt for all attempts, and a random stream for each: an attempt is the
    same however many others are drawn beside it. In code: rollout.sample."""
    text = prompts.direct(X)
    [one] = rollout.sample(theta, TOKENIZER, [text], n=1, max_new_tokens=8)
    [four] = rollout.sample(theta, TOKENIZER, [text], n=4, max_new_tokens=8)
    assert four[0].ids == one[0].ids
    assert len({tuple(y.ids) for y in four}) == 4
    for y in four:
        want = log_prob(theta, prompts.encode(TOKENIZER, text), y.ids)
        assert sum(y.logprobs) == pytest.approx(want, abs=1e-3)


# --------------------------------------------------------------------------------------------
# Section 3.1: the joint policy

def test_eq_3_a_plan_is_a_tuple_of_k_strategies():
    """S = (s_1, ..., s_K). In code: prompts.parse_plan."""
    assert prompts.parse_plan(PLAN, k=4) == S
    with pytest.raises(prompts.PlanError):
        prompts.parse_plan("A: Count them.\nB: Sum them up.\nC: Sort them.", k=4)


def test_eq_4_a_strategy_is_conditioned_on_those_before_it(theta):
    """q(S | x) = prod_i q(s_i | x, s_<i). The plan is one row of the update, so its log-probs add
    up to those of four factors, each given the strategies before. In code: grpo.row_logprobs."""
    prompt = prompts.encode(TOKENIZER, prompts.plan(X, 4))
    spans = [ids_of(line + "\n") for line in PLAN.splitlines()]
    before, factors = [], []
    for span in spans:
        factors.append(log_prob(theta, prompt + before, span))
        before = before + span
    whole_plan = row(prompt, before, region="plan")
    assert row_log_prob(theta, whole_plan) == pytest.approx(sum(factors), abs=1e-3)
    # and the conditioning matters: alone, the last strategy has another probability
    assert log_prob(theta, prompt, spans[3]) != pytest.approx(factors[3], abs=1e-2)


def test_eq_5_a_program_is_drawn_given_its_own_strategy_alone(theta):
    """y_i ~ p(. | x, s_i). In code: prompts.solve, one prompt per strategy, sampled together."""
    texts = [prompts.solve(X, s) for s in S]
    for i, text in enumerate(texts):
        assert [s for s in S if s in text] == [S[i]]
    samples = rollout.sample(theta, TOKENIZER, texts, max_new_tokens=8)
    for text, [y] in zip(texts, samples, strict=True):
        want = log_prob(theta, prompts.encode(TOKENIZER, text), y.ids)
        assert sum(y.logprobs) == pytest.approx(want, abs=1e-3)


class ScriptedEngine:
    """Answers the plan prompt with PLAN and a solve prompt with a program that names its branch."""
    tokenizer = TOKENIZER

    def run(self, jobs, at_once):
        self.queue = list(jobs)
        while self.queue:
            job = self.queue.pop(0)
            branch = job.key[-1]
            text = PLAN if branch == "plan" else f"```python\nprint({branch})\n```"
            yield job, rollout.Sample(ids_of(text), [-1.0] * len(ids_of(text)), text, "eos")

    def push(self, jobs):
        self.queue += jobs


def trajectory() -> rollout.Tuple:
    [[tau]] = rollout.sample_tuples(ScriptedEngine(), [X], 1, 4, (0,), 64, 64, lambda x, y: None)
    return tau


def test_eq_6_a_trajectory_is_a_plan_and_a_program_for_each_strategy():
    """tau = (S, y_1..y_K). In code: rollout.sample_tuples makes rollout.Tuple records."""
    tau = trajectory()
    assert tau.strategies == S
    assert [y.strategy for y in tau.branches] == S
    programs = [y.program.strip() for y in tau.branches]
    assert programs == ["print(0)", "print(1)", "print(2)", "print(3)"]


def test_eq_7_a_trajectory_has_the_probability_of_its_plan_times_those_of_its_programs(theta):
    """pi(tau | x) = q(S | x) prod_i p(y_i | x, s_i). Plan and programs are rows of one update, with
    the same parameters: their log-probs add up."""
    plan_prompt, plan = prompts.encode(TOKENIZER, prompts.plan(X, 4)), ids_of(PLAN)
    solve_prompts = [prompts.encode(TOKENIZER, prompts.solve(X, s)) for s in S]
    programs = [ids_of(f"print({i})") for i in range(4)]
    want = log_prob(theta, plan_prompt, plan)
    for prompt, y in zip(solve_prompts, programs, strict=True):
        want += log_prob(theta, prompt, y)

    rows = [row(plan_prompt, plan, region="plan")]
    rows += [row(prompt, y) for prompt, y in zip(solve_prompts, programs, strict=True)]
    assert sum(row_log_prob(theta, r) for r in rows) == pytest.approx(want, abs=1e-3)


# --------------------------------------------------------------------------------------------
# Section 3.2: rewards and credit

def test_eq_8_the_outcome_reward_of_a_tuple_is_its_pass_at_k():
    """R_out = 1{max_i V(x, y_i) = 1}. In code: reward.outcome_reward, (P, M, K) -> (P, M)."""
    r = torch.tensor([[[0., 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]])
    assert reward.outcome_reward(r).tolist() == [[0, 1, 1]]


def test_eq_9_the_gate_accepts_a_tuple_from_the_threshold_on(theta, monkeypatch):
    """J = 1{p(Pass | x, S) >= tau}. p is the softmax over the two verdict words, tau is 0.17 in the
    paper. In code: gate.Gate.p_pass, train_cppo.gate_decisions."""
    # of this toy tokenizer, "Pass" and "Fail" begin alike
    monkeypatch.setattr(gate, "VERDICT_WORDS", ("Count", "Sum"))
    judge = gate.Gate(theta, TOKENIZER)
    assert judge.tau == 0.17
    [p] = judge.p_pass([(X, PLAN)])

    prompt = prompts.encode(TOKENIZER, prompts.gate(X, PLAN, 4))
    a, b = (log_prob(theta, prompt, [first]) for first in judge.verdict_ids)
    assert p == pytest.approx(exp(a) / (exp(a) + exp(b)), abs=1e-4)

    stub = SimpleNamespace(tau=0.17, p_pass=lambda pairs: [0.17, 0.16])
    tuples = [[trajectory(), trajectory()]]
    assert train_cppo.gate_decisions(stub, [X], tuples, 2).tolist() == [[1, 0]]


def test_eq_10_the_planner_is_paid_for_tuples_that_are_valid_and_solve():
    """R_plan = J * R_out. In code: reward.planner_reward."""
    J, R_out = torch.tensor([[1., 1, 0, 0]]), torch.tensor([[1., 0, 1, 0]])
    assert reward.planner_reward(J, R_out).tolist() == [[1, 0, 0, 0]]


def test_eq_11_solver_advantages_compare_the_branches_of_one_tuple():
    """a_i = (r_i - mean r) / (std r + eps). One of four passes: the mean is 1/4, the unbiased std
    sqrt((9/16 + 3/16) / 3) = 1/2. In code: grpo.within_tuple_advantages."""
    r = torch.tensor([[[1., 0, 0, 0], [0, 0, 0, 0]]])       # P = 1, M = 2, K = 4
    a = grpo.within_tuple_advantages(r)
    assert a[0, 0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert a[0, 1].tolist() == [0, 0, 0, 0]                 # equals teach nothing, exactly


def test_eq_12_planner_advantages_compare_the_tuples_of_one_problem():
    """A = (R_plan - mean) / (std + eps) over M tuples. Two of four: the mean is 1/2, the unbiased
    std sqrt(4/4 / 3) = 1/sqrt(3). In code: grpo.across_tuple_advantages."""
    A = grpo.across_tuple_advantages(torch.tensor([[1., 1, 0, 0]]))
    half = sqrt(3) / 2
    assert A[0].tolist() == pytest.approx([half, half, -half, -half], abs=1e-5)
    assert grpo.across_tuple_advantages(torch.tensor([[1.]])).item() == 1       # M = 1: A = R


def test_eq_13_the_loss_sums_solver_rows_and_planner_rows(theta):
    """L = sum_m sum_i L_solve(a) + sum_m L_plan(A). At the first update the ratio is 1 and a row's
    loss is minus its advantage, however long it is; we divide the sum by M, and by the number of
    problems. In code: train_cppo.make_rows, grpo.update."""
    M, K = 2, 4
    a = torch.tensor([[[3., 1, 0, 0], [0, -1, 0, 0]]])      # not centred: the sum is not 0
    A = torch.tensor([[2., -1]]).unsqueeze(-1).expand_as(a)         # one for all strategies
    batch = SimpleNamespace(tuples=[[trajectory(), trajectory()]])
    args = Namespace(num_tuples=M, problems_per_step=1, mask_cut=False)
    rows = train_cppo.make_rows(batch, a, A, TOKENIZER, args)
    assert [r.region for r in rows] == (["plan"] + ["solve"] * K) * M
    assert [r.advantage for r in rows] == [2, 3, 1, 0, 0, -1, 0, -1, 0, 0]

    policy = tiny.stir(model.build(tiny.QWEN), 0)
    found = grpo.update(policy, theta, grpo.make_optimizer(policy, lr=0.0), rows)
    assert found["loss"] == pytest.approx(-(3 + 1 - 1 + 2 - 1) / M, abs=1e-4)


# --------------------------------------------------------------------------------------------
# Appendix F: diversity of a tuple

def test_eq_14_surface_diversity_is_one_minus_the_mean_bleu_of_ordered_pairs():
    """Two texts share 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples: BLEU-4 is
    (4/5 * 3/4 * 2/3 * 1/2) ** (1/4) = 0.2 ** (1/4). A third shares nothing with either.
    In code: metrics.d_surf."""
    bleu = 0.2 ** 0.25
    one, two, other = "a b c d e", "a b c d f", "u v w x y"
    assert metrics.d_surf([one, two]) == pytest.approx(1 - bleu)
    assert metrics.d_surf([one, two, other]) == pytest.approx(1 - 2 * bleu / 6)


def test_eq_15_semantic_diversity_is_the_mean_cosine_distance_of_pairs():
    """Vectors at 0, 45 and 90 degrees: the cosines are 1/sqrt(2), 1/sqrt(2) and 0.
    In code: metrics.d_sem."""
    vectors = np.array([[1, 0], [3, 3], [0, 2]])        # lengths do not matter
    found = metrics.d_sem(["s1", "s2", "s3"], lambda texts: vectors)
    assert found == pytest.approx(1 - (2 / sqrt(2)) / 3)


def test_eq_16_algorithmic_diversity_is_the_share_of_distinct_categories():
    """|{c_1..c_K}| / K. In code: metrics.d_alg."""
    assert metrics.d_alg(["dp", "greedy", "graph", "dp"]) == 3 / 4
    assert metrics.d_alg(["dp"] * 4) == 1 / 4


# --------------------------------------------------------------------------------------------
# Appendix H: GRPO

def test_eq_17_grpo_compares_the_rollouts_of_one_prompt():
    """A_i = (r_i - mean r) / (std r + eps). Three of four: the mean is 3/4, the unbiased std
    sqrt((3/16 + 9/16) / 3) = 1/2. In code: Eq. 11 and 12, and the plain GRPO rival."""
    A = set_advantages("grpo", torch.tensor([[1., 1, 1, 0]]), k=4)
    assert A[0].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-5)


@pytest.mark.parametrize("ratio, advantage, surrogate", [
    (1.1, +1.0, 1.1),       # within 1 +- 0.2: as it is
    (1.5, +1.0, 1.2),       # no more reward for going further: clipped
    (1.5, -1.0, -1.5),      # but the full penalty for having gone too far
    (0.5, +1.0, 0.5),
    (0.5, -1.0, -0.8),
])
def test_eq_18_the_surrogate_is_clipped_where_that_makes_it_smaller(ratio, advantage, surrogate):
    """min(rho A, clip(rho, 1 +- eps) A), per token; the loss is its negative.
    In code: grpo.clipped_loss."""
    logp, old = torch.tensor([log(0.1 * ratio)]), torch.tensor([log(0.1)])
    loss, _ = grpo.clipped_loss(logp, old, None, torch.tensor([advantage]), clip=0.2)
    assert -loss.item() == pytest.approx(surrogate, abs=1e-5)


def test_eq_18_the_kl_to_the_reference_is_the_k3_estimate_times_beta():
    """The reference gives the token twice the probability: k3 = 2 - log 2 - 1."""
    logp, ref = torch.tensor([log(0.1)]), torch.tensor([log(0.2)])
    loss, parts = grpo.clipped_loss(logp, None, ref, torch.tensor([0.0]), beta=0.01)
    assert parts["kl"].item() == pytest.approx(2 - log(2) - 1, abs=1e-5)
    assert loss.item() == pytest.approx(0.01 * (1 - log(2)), abs=1e-7)


# --------------------------------------------------------------------------------------------
# Appendix J: the two planner rewards

def test_eq_19_the_warm_up_pays_the_planner_for_validity_alone():
    """R_warm = J: no verifier is asked. In code: reward.planner_reward(kind="gate")."""
    J, R_out = torch.tensor([[1., 1, 0, 0]]), torch.tensor([[1., 0, 1, 0]])
    assert reward.planner_reward(J, R_out, "gate").tolist() == [[1, 1, 0, 0]]


def test_eq_20_a_solved_problem_gives_a_refused_plan_no_credit():
    """R_plan = J * R_out = 0 although R_out = 1; its solver rows still get Eq. 11's advantages."""
    r = torch.tensor([[[0., 1, 0, 0]]])
    R_out = reward.outcome_reward(r)
    assert R_out.item() == 1
    assert reward.planner_reward(torch.tensor([[0.]]), R_out).item() == 0
    assert grpo.within_tuple_advantages(r)[0, 0, 1].item() == pytest.approx(1.5, abs=1e-5)
