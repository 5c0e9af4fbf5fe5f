"""grpo.py: the mathematics by hand and by finite differences, and one gradient however the work
is cut.

Two ranks import this file and do the updates of `work`, which writes what came out (see
`two_ranks`)."""

import functools
import importlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import ranks
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import grpo
import model
from lib import run as lib_run

VOCAB, LIMIT, TEMPERATURE = 96, 90, 0.8         # ids from LIMIT on are padding of the vocabulary
CONFIG = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=2, num_key_value_heads=1, head_dim=16,
              linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
              linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
SETTINGS = dict(temperature=TEMPERATURE, vocab=LIMIT, beta=0.05, max_grad_norm=0.0)


# ----------------------------------------------------------------------------------------------
# What the tests are made of

def tiny(seed, dtype=torch.float32, checkpointing=False):
    module = model.build(CONFIG, dtype, seed=seed)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():           # away from an initialisation, where norms are 0 and logits flat
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=stream), alpha=0.1)
    module.checkpointing = checkpointing
    return module


def some_rows(seed=0):
    """Two problems: a plan prompt with two tuples each, a solve prompt with four branches each,
    of many lengths."""
    stream = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(0, LIMIT, (n,), generator=stream).tolist()
    rows = []
    for _ in range(2):
        for region, count in (("plan", 2), ("solve", 4)):
            prefix = ids(int(torch.randint(3, 80, (), generator=stream)))
            for _ in range(count):
                start = 0 if region == "plan" else int(torch.randint(1, 6, (), generator=stream))
                suffix = ids(start + int(torch.randint(1, 40, (), generator=stream)))
                advantage = float(torch.randn((), generator=stream))
                rows.append(grpo.Row(prefix, suffix, start, advantage, 1 / 4, region, None))
    rows[2].advantage = 0.0         # still carries its KL
    for row in rows:
        row.logprobs = torch.rand(len(row.suffix) - row.start, generator=stream).neg().tolist()
    return rows


class Collectives(TorchDispatchMode):
    """Counts the messages between ranks, by the operation's name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func._opname] += 1
        return func(*args, **kwargs or {})


class Keep:
    """Stands where the optimizer does and keeps the gradients instead."""
    def __init__(self, module):
        self.module, self.grads, self.param_groups = module, [], []

    def step(self):
        grads = [p.grad for p in self.module.parameters()]
        self.grads.append(
            torch.cat(
                [
                    (g.full_tensor() if hasattr(g, "full_tensor") else g).flatten().clone()
                    for g in grads
                ]
            )
        )

    def zero_grad(self, set_to_none=True):
        self.module.zero_grad(set_to_none=set_to_none)


def full_logprobs(module, rows):
    """Log-probs of each row's loss tokens over full logits, one row at a time."""
    found = []
    for row in rows:
        ids, first = torch.tensor([row.prefix + row.suffix]), len(row.prefix) + row.start
        z = module(ids)[0, first - 1:-1, :LIMIT] / TEMPERATURE
        found.append(z.log_softmax(-1).gather(1, ids[0, first:, None])[:, 0])
    return found


def written_out(new, old, ref, rows):
    """The loss as the paper writes it, from each row's log-probs."""
    loss = 0.0
    for row, new, old, ref in zip(rows, new, old, ref, strict=True):
        rho = (new - old.detach()).exp()
        objective = torch.minimum(rho * row.advantage, rho.clamp(0.8, 1.2) * row.advantage)
        kl = (ref - new).exp() - (ref - new) - 1
        loss = loss - row.weight * (objective - SETTINGS["beta"] * kl).mean()
    return loss


def flat_gradient(loss, module):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


@functools.cache
def alone(dtype, checkpointing=False, **settings):
    return gradient_of_update(some_rows(), dtype, checkpointing, **settings)


def gradient_of_update(rows, dtype, checkpointing=False, compute=None, **settings):
    policy = grpo.shard(tiny(1, dtype, checkpointing), compute or dtype)
    reference = grpo.shard(tiny(2, dtype).requires_grad_(False), compute or dtype)
    keep = Keep(policy)
    metrics = grpo.update(policy, reference, keep, rows, **SETTINGS | settings)
    return keep.grads[-1], metrics


def apart(a, b):
    return float((a - b).norm() / b.norm())


# ----------------------------------------------------------------------------------------------
# The mathematics

def test_solver_advantages_by_hand():
    """One of four right: mean 1/4, unbiased variance (9/16 + 3 * 1/16) / 3 = 1/4, so (3/4) /
    (1/2) and (-1/4) / (1/2)."""
    r = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
    a = grpo.within_tuple_advantages(r)
    half = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    by_hand = [[0.75 / (0.5 + 1e-6)] + [-0.25 / (0.5 + 1e-6)] * 3, [half, half, -half, -half]]
    torch.testing.assert_close(a, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=0)


def test_planner_advantages_by_hand():
    """Two of eight accepted and solved: mean 1/4, unbiased std sqrt(12/7/8)... = sqrt(1.5 / 7)."""
    # whole numbers will do
    A = grpo.across_tuple_advantages(torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]))
    std = math.sqrt(1.5 / 7)
    torch.testing.assert_close(A, torch.tensor([0.75, -0.25, -0.25, -0.25] * 2) / (std + 1e-6))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("size", [2, 4, 7, 8])
def test_a_group_of_equals_gets_exactly_nothing(value, size):
    r = torch.full((3, size), value)
    assert (grpo.within_tuple_advantages(r) == 0).all() and (
        grpo.across_tuple_advantages(r) == 0
    ).all()


def test_a_single_tuple_keeps_its_reward_and_a_single_branch_has_no_siblings():
    R = torch.tensor([[1.0], [0.0]])
    assert torch.equal(grpo.across_tuple_advantages(R), R)
    assert (grpo.within_tuple_advantages(R) == 0).all()


def test_branches_that_do_not_exist_get_nothing_and_count_for_nothing():
    """Two of three existing branches right: mean 2/3, variance (1/9 + 1/9 + 4/9) / 2 = 1/3. A
    tuple without any branch gets 0."""
    nan = math.nan
    r = torch.tensor([[1, 1, 0, nan], [1, nan, nan, nan], [nan] * 4], dtype=torch.float64)
    a = grpo.within_tuple_advantages(r)
    third, std = 1 / 3, math.sqrt(1 / 3) + 1e-6
    by_hand = [[third / std, third / std, -2 * third / std, 0], [0] * 4, [0] * 4]
    torch.testing.assert_close(a, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("tile", [7, 32, 1000])
def test_tiled_log_probs_are_those_of_log_softmax(tile, softcap):
    stream = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64)
    hidden, weight, g = draw(20, 8).requires_grad_(), draw(60, 8).requires_grad_(), draw(20)
    targets = torch.randint(0, 50, (20,), generator=stream)
    logp, entropy = grpo.token_logprobs(
        hidden, weight, targets, 0.7, vocab=50, softcap=softcap, tile=tile, entropy=True
    )
    z = hidden @ weight[:50].T
    z = softcap * torch.tanh(z / softcap) if softcap else z
    plain = torch.distributions.Categorical(logits=z / 0.7)
    torch.testing.assert_close(logp, plain.log_prob(targets), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, plain.entropy(), rtol=1e-10, atol=1e-10)
    mine = torch.autograd.grad((logp * g).sum(), (hidden, weight))
    theirs = torch.autograd.grad((plain.log_prob(targets) * g).sum(), (hidden, weight))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert (mine[1][50:] == 0).all()


def test_tiled_log_probs_agree_with_finite_differences():
    stream = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randn(n, 5, generator=stream, dtype=torch.float64, requires_grad=True)
    hidden, weight = draw(6), draw(11)
    targets = torch.randint(0, 11, (6,), generator=stream)
    f = lambda h, w: grpo.token_logprobs(h, w, targets, 1.3, softcap=3.0, tile=4)
    assert torch.autograd.gradcheck(f, (hidden, weight))


def test_a_target_outside_the_vocabulary_is_impossible_not_wrong():
    logp = grpo.token_logprobs(torch.randn(2, 4), torch.randn(10, 4), torch.tensor([3, 9]), vocab=8)
    assert torch.isfinite(logp[0]) and logp[1] == -torch.inf


def test_no_tensor_of_all_logits_is_ever_made():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            tensors = out if isinstance(out, tuple | list) else [out]
            self.numel = max(
                [self.numel] + [t.numel() for t in tensors if isinstance(t, torch.Tensor)]
            )
            return out

    hidden, weight = (
        torch.randn(300, 4, requires_grad=True),
        torch.randn(20000, 4, requires_grad=True),
    )
    with Largest() as seen:
        grpo.token_logprobs(hidden, weight, torch.arange(300), tile=500).sum().backward()
    assert seen.numel == 300 * 500, "the largest tensor is a tile of logits"
    assert grpo.token_logprobs(hidden, weight, torch.arange(300)).shape == (300,)


def test_bf16_log_probs_round_the_logits_once():
    """Against float64 on the same bf16 numbers: fp32 sums, so what is left is the rounding of
    logits to bf16 on CPU."""
    stream = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=stream).bfloat16() for n in (50, 700))
    targets = torch.randint(0, 700, (50,), generator=stream)
    exact = grpo.token_logprobs(hidden.double(), weight.double(), targets, tile=100)
    rounded = grpo.token_logprobs(hidden, weight, targets, tile=100)
    largest = (hidden.double() @ weight.double().T).abs().max()
    assert rounded.dtype == torch.float32 and (rounded - exact).abs().max() < 2 * largest * 2 ** -9


def test_the_clipped_loss_by_hand():
    """Ratio 1.5 with A=2 is cut to 1.2 and has no gradient; with A=-2 it is not cut. Ratio 0.5 is
    the mirror image."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0], dtype=torch.float64)
    A = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0], dtype=torch.float64)
    old = torch.full((5,), -1.0, dtype=torch.float64)
    logp = (old + ratio.log()).requires_grad_()
    ref = logp.detach() + math.log(2)
    loss, parts = grpo.clipped_loss(logp, old, ref, A, clip=0.2, beta=0.5)
    kl = 2 - math.log(2) - 1            # exp(d) - d - 1 at d = log 2
    surrogate = torch.tensor([2.4, -3.0, 1.0, -1.6, 3.0], dtype=torch.float64)
    torch.testing.assert_close(loss, 0.5 * kl - surrogate)
    assert parts["clipped"].tolist() == [True, False, False, True, False]
    torch.testing.assert_close(parts["ratio"], ratio)
    gradient, = torch.autograd.grad(loss.sum(), logp)
    # d kl / d logp = 1 - exp(d): up, towards a reference that is likelier
    pull = 0.5 * (1 - 2)
    torch.testing.assert_close(
        gradient, pull - torch.tensor([0, -3.0, 1.0, 0, 3.0], dtype=torch.float64)
    )


def test_a_higher_upper_clip_lets_rare_tokens_rise_further():
    """DAPO's clip-higher: ratio 1.25 with A=2 is cut to 1.2 at 0.2, and passes at 0.28."""
    old = torch.zeros(3, dtype=torch.float64)
    logp = torch.tensor([1.25, 1.5, 0.5], dtype=torch.float64).log()
    A = torch.tensor([2.0, 2.0, -2.0], dtype=torch.float64)
    loss, parts = grpo.clipped_loss(logp, old, None, A, clip=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, -torch.tensor([2.5, 2.56, -1.6], dtype=torch.float64))
    assert parts["clipped"].tolist() == [False, True, True]


def test_importance_weights_by_hand():
    """The trainer thinks a token 1.5, 4 and 0.5 times as likely as the sampler did; of the last one
    the sampler's log-prob is unknown. The cap is 2; the KL (1 - log 2 at half the reference) is not
    weighted."""
    logp = torch.full((4,), -3.0, dtype=torch.float64)
    sampled = logp - torch.tensor([1.5, 4.0, 0.5, 1.0], dtype=torch.float64).log()
    sampled[3] = torch.nan
    A = torch.tensor([1.0, 1.0, -2.0, 3.0], dtype=torch.float64)
    loss, parts = grpo.clipped_loss(logp, None, logp + math.log(2), A, beta=0.1, sampled=sampled,
                                    tis=2.0)
    surrogate = torch.tensor([1.5, 2.0, -1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(loss, 0.1 * (1 - math.log(2)) - surrogate)
    torch.testing.assert_close(parts["tis"], torch.tensor([1.5, 2.0, 0.5, 1.0], dtype=torch.double))
    assert parts["mismatch"].max() == pytest.approx(4.0)


def test_importance_weights_make_the_gradient_that_of_the_policy_s_own_samples():
    """Tokens drawn from another distribution q, weighted by p / q, give the policy gradient of p
    in expectation: summed over all four words, exactly."""
    z = torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    A = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    logp = z.log_softmax(0)
    loss, _ = grpo.clipped_loss(logp, None, None, A, sampled=q.log(), tis=100.0)
    weighted, = torch.autograd.grad((q * loss).sum(), z, retain_graph=True)
    exact, = torch.autograd.grad(-(logp.exp() * A).sum(), z)
    torch.testing.assert_close(weighted, exact)


def test_the_clipped_loss_agrees_with_finite_differences():
    stream = torch.Generator().manual_seed(0)
    logp, old, ref, A = (torch.randn(40, generator=stream, dtype=torch.float64) for _ in range(4))
    assert torch.autograd.gradcheck(
        lambda x: grpo.clipped_loss(x, old, ref, A)[0], (logp.requires_grad_(),)
    )


def test_the_first_update_is_the_policy_gradient():
    """Without old log-probs the ratio is 1 whatever the policy, and the gradient of -rho A is
    -A."""
    logp = torch.linspace(-9, -0.1, 12, dtype=torch.float64, requires_grad=True)
    A = torch.linspace(-2, 2, 12, dtype=torch.float64)
    loss, parts = grpo.clipped_loss(logp, None, None, A)
    assert (parts["ratio"] == 1).all() and not parts["clipped"].any()
    assert torch.equal(torch.autograd.grad(loss.sum(), logp)[0], -A)


def test_the_kl_survives_a_token_that_the_policy_has_given_up():
    """TRL#3015 and its like: exp of a difference of 200 is inf, and 0 * inf in the backward pass
    is nan."""
    logp = torch.tensor([-200.0, -1.0], requires_grad=True)
    loss, parts = grpo.clipped_loss(logp, None, torch.tensor([-1.0, -300.0]), torch.zeros(2))
    loss.sum().backward()
    assert (
        torch.isfinite(loss).all() and torch.isfinite(logp.grad).all() and (parts["kl"] >= 0).all()
    )
    assert logp.grad[1] > 0, "descent lowers a token that the reference thinks impossible"


# ----------------------------------------------------------------------------------------------
# One gradient, however the work is cut

@pytest.fixture(scope="module")
def expected():
    """{dtype: (loss, gradient)} of the loss written out."""
    found, rows = {}, some_rows()
    for dtype in TOLERANCE:
        policy = tiny(1, dtype)
        new = full_logprobs(policy, rows)
        with torch.no_grad():
            ref = full_logprobs(tiny(2, dtype), rows)
        loss = written_out(new, new, ref, rows)
        found[dtype] = float(loss.detach()), flat_gradient(loss, policy)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "shared,checkpointing", [(True, False), (True, True), (False, False), (False, True)]
)
def test_the_gradient_does_not_depend_on_micro_batches_sharing_or_checkpointing(
    expected, dtype, shared, checkpointing
):
    loss, gradient = expected[dtype]
    for token_budget in (1, 150, 10 ** 6):
        mine, metrics = alone(dtype, checkpointing, shared=shared, token_budget=token_budget)
        assert apart(mine, gradient) < TOLERANCE[dtype]
        assert metrics["loss"] == pytest.approx(loss, rel=TOLERANCE[dtype])
        assert metrics["micro_batches"] == {1: 12, 10**6: 4 if shared else 1}.get(
            token_budget, metrics["micro_batches"]
        )


def trl_trainer(trl, datasets, folder: Path, output: Path):
    args = trl.GRPOConfig(
        output_dir=str(output), loss_type="grpo", beta=SETTINGS["beta"], top_k=0,
        temperature=TEMPERATURE, per_device_train_batch_size=2, num_generations=2,
        use_bias_correction_kl=False, report_to=[], use_cpu=True, bf16=False,
        model_init_kwargs={"dtype": "float32"})
    prompts = datasets.Dataset.from_dict({"prompt": ["x"]})
    trainer = trl.GRPOTrainer(str(folder), reward_funcs=len, args=args, train_dataset=prompts)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(rows: list[grpo.Row], ref: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows as TRL pads them: prompts on the left, replies on the right."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    left = lambda lists: pad([torch.tensor(x).flip(0) for x in lists]).flip(1)
    right = lambda lists: pad([torch.as_tensor(x) for x in lists])
    ones = lambda lists: [[1] * len(x) for x in lists]
    prompts = [row.prefix + row.suffix[:row.start] for row in rows]
    replies = [row.suffix[row.start:] for row in rows]
    return {
        "prompt_ids": left(prompts), "prompt_mask": left(ones(prompts)),
        "completion_ids": right(replies), "completion_mask": right(ones(replies)),
        "advantages": torch.tensor([row.advantage for row in rows]),
        "ref_per_token_logps": right(ref)}


def test_trl_has_the_same_loss_and_gradient(tmp_path):
    """An independent check, where TRL is installed: its GRPO loss over transformers' model, the
    same rows. (With its bias correction of the KL gradient, on by default, the loss is the same
    and the gradient 6 % off.)"""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tiny_folders = importlib.import_module("tiny")
    folder, rows = tiny_folders.qwen(tmp_path / "policy"), some_rows()
    trainer = trl_trainer(trl, datasets, folder, tmp_path)
    reference = model.load(tiny_folders.qwen(tmp_path / "reference", seed=1)).requires_grad_(False)
    batch = grpo.collate(rows, torch.device("cpu"), shared=False)
    lengths = [len(row.suffix) - row.start for row in rows]
    ref = grpo.row_logprobs(reference, batch, TEMPERATURE).split(lengths)
    loss = trainer._compute_loss(trainer.model.train(), trl_inputs(rows, ref))
    loss.backward()

    for row in rows:
        row.weight = 1 / len(rows)          # TRL: the mean over rows of the mean over tokens
    policy = model.load(folder)
    keep = Keep(policy)
    metrics = grpo.update(policy, reference, keep, rows, **SETTINGS | {"vocab": None})
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    theirs = {}
    for name, p in trainer.model.named_parameters():
        theirs[name.removeprefix("model.")] = p.grad.flatten()
    mine = [name.replace(".decay.", ".") for name, _ in policy.named_parameters()]
    assert set(mine) == set(theirs)
    assert apart(keep.grads[0], torch.cat([theirs[name] for name in mine])) < 1e-5


@torch.no_grad()
def test_the_loss_of_a_whole_update_agrees_with_finite_differences():
    """Central differences along three directions of parameter space, log-probs taken over full
    logits."""
    rows = some_rows()[:9]
    with torch.enable_grad():
        gradient = gradient_of_update(rows, torch.float64)[0]
    ref, old = (full_logprobs(tiny(seed, torch.float64), rows) for seed in (2, 1))
    for seed in range(3):
        direction = torch.randn(
            gradient.shape, generator=torch.Generator().manual_seed(seed)
        ).double()
        sides = []
        for h in (1e-5, -1e-5):
            moved = tiny(1, torch.float64)
            vector = torch.nn.utils.parameters_to_vector(moved.parameters())
            torch.nn.utils.vector_to_parameters(vector + h * direction, moved.parameters())
            sides.append(float(written_out(full_logprobs(moved, rows), old, ref, rows)))
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-5)


class PlainTransformers(torch.nn.Module):
    """All that `grpo.update` asks of a model, around a causal LM of transformers: see grpo.Policy.
    Each row computes its own copy of the prompt, which is simple and slow."""
    fp32_units = ()

    def __init__(self, lm):
        super().__init__()
        self.lm = lm
        self.blocks = lm.model.layers

    def forward(self, ids, suffixes=None, head=None):
        first = None
        if suffixes is not None:
            first = ids.shape[1] - 1        # the state that predicts the first suffix token
            prompts = ids.expand(len(suffixes), -1)
            ids = torch.cat([prompts, suffixes], 1)[:, :-1]
        hidden = self.lm.model(ids).last_hidden_state
        return head(hidden[:, first:], self.lm.lm_head.weight, None)


@pytest.mark.parametrize("shared", [True, False])
def test_a_plain_model_of_transformers_gets_the_gradient_of_autograd_on_its_logits(shared):
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=2, num_key_value_heads=1)
    lms = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        lms.append(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).double())
    rows = some_rows()
    new, ref = (full_logprobs(lambda ids, lm=lm: lm(ids).logits, rows) for lm in lms)
    ref = [logp.detach() for logp in ref]
    gradient = flat_gradient(written_out(new, new, ref, rows), lms[0])
    policy, reference = (grpo.shard(PlainTransformers(lm), torch.float64) for lm in lms)
    keep = Keep(policy)
    grpo.update(policy, reference, keep, rows, shared=shared, token_budget=300, **SETTINGS)
    assert apart(keep.grads[0], gradient) < 1e-9


def test_every_row_is_in_one_micro_batch_within_the_budget():
    rows = some_rows()
    for shared in (True, False):
        batches = grpo.micro_batches(rows, 200, shared)
        assert sorted(map(id, sum(batches, []))) == sorted(map(id, rows))
        for batch in batches:
            assert not shared or len({tuple(row.prefix) for row in batch}) == 1
            made = grpo.collate(batch, torch.device("cpu"), shared)
            tokens = made.ids.numel() + (made.suffixes.numel() if shared else 0)
            assert tokens <= 200 or len(batch) == 1


def test_sequences_are_packed_once_each_within_the_budget_and_with_little_padding():
    rng = random.Random(0)
    lengths = [rng.randint(1, 90) for _ in range(200)] + [500]
    batches = grpo.pack(lengths, 256)
    assert sorted(i for b in batches for i in b) == list(range(201))
    assert all(len(b) * max(lengths[i] for i in b) <= 256 or len(b) == 1 for b in batches)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)
    assert grpo.pack([], 256) == []


def test_rows_with_no_advantage_keep_their_pull_to_the_reference():
    rows = some_rows()
    for row in rows:
        row.advantage = 0.0
    assert gradient_of_update(rows, torch.float32)[0].norm() > 1e-3
    assert gradient_of_update(rows, torch.float32, beta=0.0)[0].norm() == 0


def test_metrics_tell_the_regions_apart_and_do_not_depend_on_micro_batches():
    rows = some_rows()
    metrics = [gradient_of_update(rows, torch.float64, token_budget=budget)[1]
               for budget in (150, 10 ** 6)]
    for region in grpo.REGIONS:
        mine = [row for row in rows if row.region == region]
        with torch.no_grad():
            new, ref = (
                torch.cat(full_logprobs(tiny(seed, torch.float64), mine)) for seed in (1, 2)
            )
        d, gap = ref - new, (new - torch.tensor(sum([row.logprobs for row in mine], []))).abs()
        for found in metrics:
            assert found[f"{region}/tokens"] == len(new)
            assert found[f"{region}/kl"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-9)
            assert found[f"{region}/gap_mean"] == pytest.approx(float(gap.mean()), rel=1e-6)
            assert found[f"{region}/gap_max"] == pytest.approx(float(gap.max()), rel=1e-6)
            assert found[f"{region}/ratio_max"] == 1 and found[f"{region}/clip_fraction"] == 0
            assert 0 < found[f"{region}/entropy"] < math.log(LIMIT)
    assert metrics[0]["plan/entropy"] == pytest.approx(metrics[1]["plan/entropy"], rel=1e-9)


def test_a_second_update_takes_its_ratios_against_the_policy_that_sampled():
    rows = some_rows()[:9]
    policy, reference = tiny(1, torch.float64), tiny(2, torch.float64)
    metrics = grpo.update(
        policy,
        reference,
        torch.optim.SGD(policy.parameters(), lr=0.05),
        rows,
        updates=2,
        token_budget=150,
        **SETTINGS,
    )
    by_hand = tiny(1, torch.float64)
    with torch.no_grad():
        ref, old = full_logprobs(reference, rows), full_logprobs(by_hand, rows)
    for _ in range(2):
        gradient = flat_gradient(written_out(full_logprobs(by_hand, rows), old, ref, rows), by_hand)
        vector = torch.nn.utils.parameters_to_vector(by_hand.parameters())
        torch.nn.utils.vector_to_parameters(
            (vector - 0.05 * gradient).detach(), by_hand.parameters()
        )
    mine, theirs = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in (policy, by_hand))
    assert apart(mine.detach(), theirs.detach()) < 1e-9
    assert metrics["plan/ratio_max"] > 1


@pytest.mark.parametrize("what", ["advantage", "weight"])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(what):
    rows, policy = some_rows(), tiny(1)
    optimizer = grpo.make_optimizer(policy, 1e-3)
    grpo.update(policy, None, optimizer, rows)
    moments = lambda: torch.cat(
        [t.flatten() for state in optimizer.state.values() for t in state.values()]
    )
    was = moments()
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).clone()
    setattr(rows[5], what, math.nan if what == "advantage" else math.inf)
    metrics = grpo.update(policy, None, optimizer, rows, updates=3, want_step_norm=True)
    assert metrics["skipped"] == 1 and metrics["step_norm"] == 0
    assert torch.equal(torch.nn.utils.parameters_to_vector(policy.parameters()), before)
    assert torch.equal(moments(), was)
    assert all(p.grad is None for p in policy.parameters()), (
        "a bad gradient must not reach the next step"
    )


def test_a_batch_without_rows_changes_nothing():
    """Every plan of a warm-up step may fail to parse on every rank."""
    policy = tiny(1)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).clone()
    optimizer = grpo.make_optimizer(policy, 1e-3, weight_decay=0.1)
    metrics = grpo.update(policy, tiny(2), optimizer, [], want_step_norm=True)
    assert metrics["tokens"] == metrics["loss"] == metrics["step_norm"] == metrics["skipped"] == 0
    assert torch.equal(torch.nn.utils.parameters_to_vector(policy.parameters()), before)


def test_gradients_are_clipped_to_the_given_norm():
    policy = tiny(1)
    keep = Keep(policy)
    metrics = grpo.update(policy, None, keep, some_rows(), max_grad_norm=0.01)
    assert metrics["grad_norm"] > 0.01 and float(keep.grads[0].norm()) == pytest.approx(
        0.01, rel=1e-3
    )


def test_rows_that_cannot_be_trained_are_refused_in_a_sentence():
    policy = tiny(1)
    for row, said in (
        (grpo.Row([1], [2], 1, 1.0, 1.0, "plan"), "0 sampled tokens"),
        (grpo.Row([1], [2, 3], 0, 1.0, 1.0, "plan", [-1.0]), "2 sampled tokens and 1 log-p"),
        (grpo.Row([1], [VOCAB - 1], 0, 1.0, 1.0, "plan"), "outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=said):
            grpo.update(policy, None, Keep(policy), [row], vocab=LIMIT)


# ----------------------------------------------------------------------------------------------
# Precision

def test_at_5e_7_fp32_masters_move_and_bf16_weights_do_not():
    """Why the master weights are fp32 (section 4.1). AdamW's step is about lr whatever the
    gradient; half the distance between two bf16 numbers near 0.02 is 3e-5. Twenty steps of 5e-7
    all round back to where they started."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.nn.Parameter(torch.full((1000,), 0.02, dtype=dtype))
        optimizer = torch.optim.AdamW([w], lr=5e-7, weight_decay=0.0)
        for _ in range(20):
            w.grad = torch.ones_like(w)
            optimizer.step()
        moved[dtype] = float((0.02 - w.detach().double()).mean())
    assert moved[torch.float32] == pytest.approx(20 * 5e-7, rel=0.05)
    assert abs(moved[torch.bfloat16] - (0.02 - float(torch.tensor(0.02).bfloat16()))) == 0


def test_an_update_at_5e_7_moves_the_masters_though_few_bf16_images_change():
    policy = tiny(1)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    optimizer = grpo.make_optimizer(policy, 5e-7)
    metrics = grpo.update(policy, None, optimizer, some_rows(), want_step_norm=True)
    after = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    assert metrics["step_norm"] == pytest.approx(float((after - before).norm()), rel=1e-4)
    assert metrics["step_norm"] == pytest.approx(5e-7 * math.sqrt(len(after)), rel=0.1)
    assert (before.bfloat16() != after.bfloat16()).float().mean() < 0.01


def test_norms_and_biases_are_not_decayed():
    policy = tiny(1)
    optimizer = grpo.make_optimizer(policy, 0.1, weight_decay=0.5)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in policy.named_parameters():
        assert torch.equal(p, before[name]) == (p.ndim < 2), name
    assert "layers.0.linear_attn.decay.A_log" in before


def test_the_sampler_is_refreshed_in_the_same_storage_and_keeps_its_fp32_parts():
    policy, sampler = tiny(1), tiny(2, torch.bfloat16)
    places = [p.data_ptr() for p in sampler.parameters()]
    grpo.refresh(sampler, policy)
    assert [p.data_ptr() for p in sampler.parameters()] == places
    for (name, mine), theirs in zip(sampler.named_parameters(), policy.parameters()):
        assert torch.equal(mine, theirs.to(mine.dtype)), name
        kept = "decay" in name or "linear_attn.norm" in name
        assert mine.dtype == (torch.float32 if kept else torch.bfloat16)
    grpo.refresh(policy, policy)


# ----------------------------------------------------------------------------------------------
# Two ranks

def work(out):
    """What each rank of the two-rank tests does; the main one writes down the results."""
    group = lib_run.setup()
    rows, found = some_rows(), {}
    replicate_below, grpo.REPLICATE_BELOW = grpo.REPLICATE_BELOW, 0     # shards, tiny as they are
    uneven = {0: rows[:3], 1: rows[3:]}[group.rank] if group.world == 2 else rows
    for dtype in TOLERANCE:
        for shared, checkpointing in ((True, False), (True, True), (False, True)):
            found[dtype, shared, checkpointing] = gradient_of_update(
                uneven, dtype, checkpointing, shared=shared, token_budget=150)
    lonely = rows if group.main else []
    found["lonely"] = gradient_of_update(lonely, torch.float64)
    found["bf16"] = gradient_of_update(
        uneven, torch.float32, compute=torch.bfloat16, checkpointing=True
    )

    # the path of a real run: fp32 masters, bf16 compute, a bf16 reference and sampler
    # what torch finds on a machine with a GPU, though the run is one of --device cpu
    with mock.patch("torch._C._get_accelerator", lambda *_: torch.device("cuda")):
        policy = grpo.shard(tiny(1, checkpointing=True), torch.bfloat16)
    reference = grpo.shard(tiny(2, torch.bfloat16).requires_grad_(False), torch.bfloat16)
    found["devices"] = {p.device_mesh.device_type for p in policy.parameters()
                        if hasattr(p, "device_mesh")}
    with Collectives() as messages:
        grpo.row_logprobs(policy, grpo.collate(uneven[:2], group.device)).sum().backward()
    found["messages"] = messages.counts
    policy.zero_grad()
    seen = set()
    for name, module in policy.named_modules():
        if name.endswith(("decay", "in_proj_a")):
            module.register_forward_pre_hook(lambda m, *_: seen.update(
                (n.rsplit(".")[-1], p.dtype, type(p).__name__) for n, p in m.named_parameters()))
    optimizer = grpo.make_optimizer(policy, 1e-3)
    metrics = grpo.update(policy, reference, optimizer, uneven, updates=2, **SETTINGS)
    sampler = tiny(3, torch.bfloat16)
    grpo.refresh(sampler, policy)
    whole = {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
             for n, p in policy.named_parameters()}
    found["real"] = metrics, seen, whole, dict(sampler.named_parameters())
    before = [grpo.local(p).detach().clone() for p in policy.parameters()]
    if not group.main:
        uneven[0].advantage = math.nan
    metrics = grpo.update(policy, reference, optimizer, uneven, **SETTINGS)
    still = all(torch.equal(grpo.local(p), was) for p, was in zip(policy.parameters(), before))
    found["nan"] = group.gather((metrics["skipped"], still))

    grpo.REPLICATE_BELOW = replicate_below
    uneven = {0: some_rows()[:3], 1: some_rows()[3:]}[group.rank]
    found["replicated"] = gradient_of_update(uneven, torch.float64, token_budget=150)
    if group.main:
        torch.save(found, out)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    ranks.run(2, "import test_grpo, torch._dynamo", f"test_grpo.work({str(out)!r})")
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shared,checkpointing", [(True, False), (True, True), (False, True)])
def test_two_ranks_have_the_gradient_of_one(expected, two_ranks, dtype, shared, checkpointing):
    """Ranks hold 3 and 9 rows, so the first runs dummies; norms and metrics are of the whole
    batch."""
    gradient, metrics = two_ranks[dtype, shared, checkpointing]
    assert apart(gradient, expected[dtype][1]) < TOLERANCE[dtype]
    metrics_alone = alone(dtype, checkpointing, shared=shared, token_budget=150)[1]
    for name in set(metrics_alone) - {"micro_batches"}:
        if not name.startswith("seconds"):
            assert metrics[name] == pytest.approx(metrics_alone[name], rel=20 * TOLERANCE[dtype]), (
                name
            )


def test_a_small_model_that_is_whole_on_each_rank_has_the_same_gradient(expected, two_ranks):
    gradient, metrics = two_ranks["replicated"]
    assert apart(gradient, expected[torch.float64][1]) < 1e-9
    assert metrics["loss"] == pytest.approx(expected[torch.float64][0], rel=1e-9)


def test_a_rank_without_rows_keeps_in_step(expected, two_ranks):
    gradient, metrics = two_ranks["lonely"]
    assert apart(gradient, expected[torch.float64][1]) < 1e-9
    assert metrics["tokens"] == sum(len(row.suffix) - row.start for row in some_rows())


def test_bf16_compute_over_fp32_masters_points_where_fp32_does(expected, two_ranks):
    gradient = two_ranks["bf16"][0]
    assert gradient.dtype == torch.float32
    assert torch.cosine_similarity(gradient, expected[torch.float32][1], dim=0) > 0.99


def test_decay_parameters_are_fp32_in_the_forward_of_a_bf16_policy(two_ranks):
    """Megatron#3634: A_log in bf16 changes how fast the state forgets."""
    metrics, seen, whole, sampler = two_ranks["real"]
    assert seen == {("A_log", torch.float32, "Parameter"), ("dt_bias", torch.float32, "Parameter"),
                    ("weight", torch.bfloat16, "Parameter")}
    assert metrics["plan/ratio_max"] > 1
    assert all(p.dtype == torch.float32 for p in whole.values())


def test_the_sampler_gets_the_gathered_policy(two_ranks):
    _, _, whole, sampler = two_ranks["real"]
    assert whole.keys() == sampler.keys()
    assert all(torch.equal(sampler[n], whole[n].to(sampler[n].dtype)) for n in whole)


def test_a_run_on_the_cpu_stays_there_on_a_machine_with_a_gpu(two_ranks):
    """Left to itself, FSDP takes the accelerator that torch finds."""
    assert two_ranks["devices"] == {"cpu"}


def test_a_micro_batch_sends_three_messages_a_unit(two_ranks):
    """Three units, two blocks and the root: gathered forwards, gathered backwards, reduced. The
    small tensors that stay fp32 travel once a step."""
    assert two_ranks["messages"] == {"_allgather_base_": 2 * 3, "_reduce_scatter_base_": 3}


def test_a_nan_on_one_rank_skips_the_step_on_all(two_ranks):
    assert two_ranks["nan"] == [(1, True), (1, True)]
