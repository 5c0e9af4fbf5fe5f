"""model.py against transformers, against a recurrence written out token by token, and against
itself."""

import copy
import json
import math
import weakref

import pretend
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from tiny import edit, tokens
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.bias import causal_lower_right

import grpo
import model
from lib import memory
from lib import weights as weights_file
from lib.adapter import cache_name

# twice as many value heads as key heads, as in the 4B and 9B models; keys and values of different
# widths
SIZES = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=8, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, linear_key_head_dim=32, linear_value_head_dim=16,
             linear_num_key_heads=2, linear_num_value_heads=4)
V = tiny.VOCAB


def logits_of(h, w, softcap):
    z = h @ w.T
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("qwen"), **SIZES)


@pytest.fixture(scope="module")
def ours(folder):
    return model.load(folder)


@pytest.fixture(scope="module")
def hf(folder):
    return tiny.hf(folder)


@pytest.fixture(scope="module")
def floor(hf):
    """How far transformers' cached decoding is from its own full forward: what rounding does
    here."""
    ids = tokens(3, 200)
    with torch.no_grad():
        full, out = hf(ids).logits, hf(ids[:, :160], use_cache=True)
        name, worst = cache_name(hf), 0.0
        for t in range(160, 200):
            out = hf(ids[:, t:t + 1], use_cache=True, **{name: out[name]})
            worst = max(worst, (out.logits[:, -1] - full[:, t]).abs().max().item())
    assert 1e-6 < worst < 5e-5
    return worst


# ----------------------------------------------------------------------------------------- logits

def test_full_forward_equals_transformers(ours, hf, floor):
    ids = tokens(3, 200)
    with torch.no_grad():
        assert (ours(ids)[:, 160:] - hf(ids).logits[:, 160:]).abs().max() < 2 * floor


def test_right_padded_prefill_and_forty_cached_steps_equal_transformers_on_each_row_alone(
        ours, hf, floor):
    """Padding that writes nothing but lets the state decay changes logits by up to 1.5,
    silently."""
    ids, lengths = tokens(3, 200), torch.tensor([200, 131, 57])
    state = ours.new_state(3, 240)
    rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
    with torch.no_grad():
        logits = ours.segment(ids, lengths, state)
        for i, row in enumerate(rows):
            assert (logits[i] - hf(torch.tensor([row])).logits[0, -1]).abs().max() < 2 * floor
        for t in range(40):
            new = tokens(3, seed=t + 1)
            for row, token in zip(rows, new.tolist()):
                row.append(token)
            logits = ours.step(new, state, int(state.pos.max()) + 1)
        assert state.pos.tolist() == [240, 171, 97]
        for i, row in enumerate(rows):
            assert (logits[i] - hf(torch.tensor([row])).logits[0, -1]).abs().max() < 2 * floor


def test_forked_rows_continue_the_prompt_and_leave_their_neighbours_alone(ours, hf, floor):
    ids = tokens(2, 150)
    prompt, place = ours.new_state(2, 77), ours.new_state(6, 200)
    with torch.no_grad():
        ours.segment(ids[:, :77], torch.tensor([77, 70]), prompt)
        ours.segment(tokens(6, 20, seed=5), torch.full((6,), 20), place)
        before = [tuple(t.clone() for t in layer) for layer in place.layers]
        ours.fork(place, [4, 1, 3], prompt, [0, 0, 1])
        assert place.pos.tolist() == [20, 77, 20, 70, 77, 20]
        for old, new in zip(before, place.layers):
            assert all(torch.equal(a[[0, 2, 5]], b[[0, 2, 5]]) for a, b in zip(old, new))
        more, lengths = ids[[0, 0, 0, 1, 0, 0], 77:120], torch.tensor([1, 43, 1, 20, 9, 1])
        logits = ours.segment(more, lengths, place)
        second = torch.cat([ids[1, :70], ids[1, 77:97]])
        for row, want in ((1, ids[0, :120]), (4, ids[0, :86]), (3, second)):
            assert (logits[row] - hf(want[None]).logits[0, -1]).abs().max() < 2 * floor


def test_compaction_within_one_state_and_fewer_rows_decode_the_same(ours, floor):
    ids, state = tokens(16, 30), ours.new_state(16, 64)
    lengths = torch.randint(5, 31, (16,), generator=torch.Generator().manual_seed(1))
    ours.segment(ids, lengths, state)
    whole = ours.new_state(16, 64)
    ours.fork(whole, list(range(16)), state, list(range(16)))
    want = ours.step(ids[:, 0], whole, 64)
    keep = torch.tensor([15, 3, 9, 4, 0, 8, 12, 5])
    ours.fork(state, torch.arange(8), state, keep)
    got = ours.step(ids[keep, 0], state, 64)
    assert (got - want[keep]).abs().max() < 2 * floor
    assert torch.equal(state.pos[:8], whole.pos[keep]), "the state itself goes on"


def test_padding_beyond_the_last_column_does_not_touch_a_row_that_fills_its_room(ours):
    ids, exact, padded = tokens(8, 80), ours.new_state(8, 64), ours.new_state(8, 64)
    lengths = torch.full((8,), 64)
    want = ours.segment(ids[:, :64], lengths, exact)
    assert torch.equal(ours.segment(ids, lengths, padded), want)
    for a, b in zip(exact.layers, padded.layers):
        assert all(torch.equal(x[:, :, :64], y[:, :, :64]) for x, y in zip(a, b))


def test_a_full_row_idles_without_harm_and_a_prompt_beyond_the_room_is_refused(ours):
    state = ours.new_state(8, 64)
    ids = tokens(8, 64)
    lengths = torch.tensor([64, 10, 10, 10, 10, 10, 10, 10])
    ours.segment(ids, lengths, state)
    alone = ours.new_state(8, 64)
    ours.segment(ids, torch.full((8,), 10), alone)
    for t in range(5):
        a, b = ours.step(ids[:, t], state, 64), ours.step(ids[:, t], alone, 64)
    assert torch.equal(a[1:], b[1:]) and a.isfinite().all()
    with pytest.raises(ValueError, match="a row would hold 133 tokens; this state has room for 64"):
        ours.segment(ids, lengths, state)


@pytest.mark.parametrize("slots", [1, 16, 64])
def test_a_rows_logits_depend_on_no_slot_count_no_padding_and_no_room(ours, floor, slots):
    """Up to rounding. With equal shapes the bits are equal."""
    ids = tokens(64, 192)
    lengths = torch.randint(1, 31, (64,), generator=torch.Generator().manual_seed(2))

    def run(n, width, capacity, limit):
        state = ours.new_state(n, capacity)
        out = [ours.segment(ids[:n, i:i + width], lengths[:n], state) for i in (0, 9)]
        out += [ours.step(ids[:n, t], state, limit) for t in range(3)]
        return torch.stack([x[0] for x in out])
    want = run(8, 64, 128, 128)
    assert torch.equal(run(8, 64, 128, 128), want)
    for case in ((32, 64, 64), (37, 192, 128), (150, 1000, 192)):
        assert (run(slots, *case) - want).abs().max() < 2 * floor, case


def test_float64_decodes_in_float64(folder):
    """An fp32 cast left in the way would show as a difference of about 1e-6."""
    ours = model.load(folder, torch.float64)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    ids, state = tokens(2, 90), ours.new_state(2, 90)
    with torch.no_grad():
        full = ours(ids)
        assert full.dtype == torch.float64
        ours.segment(ids[:, :80], torch.full((2,), 80), state)
        for t in range(80, 90):
            logits = ours.step(ids[:, t], state, 90)
    assert (logits - full[:, -1]).abs().max() < 1e-11


def test_bf16_is_no_further_from_fp32_than_transformers_bf16_is(folder, hf):
    ids = tokens(4, 150)
    low, hf_low = model.load(folder, torch.bfloat16), tiny.hf(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = hf(ids).logits
        mine, theirs = ((m - exact).float() for m in (low(ids), hf_low(ids).logits))
    assert mine.square().mean() <= theirs.square().mean()
    assert mine.abs().max() <= 1.25 * theirs.abs().max()


def test_the_decay_and_the_gated_norm_stay_fp32_in_a_bf16_model(folder):
    low = model.load(folder, torch.bfloat16)
    wide = {name for name, p in low.named_parameters() if p.dtype == torch.float32}
    assert wide == {f"layers.{i}.linear_attn.{n}" for i in (0, 1, 2, 4, 5, 6)
                    for n in ("decay.A_log", "decay.dt_bias", "norm.weight")}
    assert len(low.fp32_units) == 12
    state = low.new_state(2, 64)
    assert state.layers[0][1].dtype == torch.float32 and state.layers[0][0].dtype == torch.bfloat16
    assert low.step(tokens(2), state, 64).dtype == torch.bfloat16


# -------------------------------------------------------------------------------------- gradients

def below(weights, prefix):
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def norm(x, weight, c):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c.rms_norm_eps) * weight


def recurrence(w, c, ids):
    """The architecture as its papers write it, token by token where it has a memory. Names are
    those of the checkpoint, nothing of model.py is used. ids (B, T) -> logits."""
    x = w["embed_tokens.weight"][ids]
    for i, kind in enumerate(c.layer_types):
        p = below(w, f"layers.{i}.")
        y = norm(x, 1 + p["input_layernorm.weight"], c)
        if kind == "full_attention":
            x = x + softmax_attention(y, below(p, "self_attn."), c)
        else:
            x = x + gated_delta_net(y, below(p, "linear_attn."), c)
        y = norm(x, 1 + p["post_attention_layernorm.weight"], c)
        y = F.silu(y @ p["mlp.gate_proj.weight"].T) * (y @ p["mlp.up_proj.weight"].T)
        x = x + y @ p["mlp.down_proj.weight"].T
    return norm(x, 1 + w["norm.weight"], c) @ w["embed_tokens.weight"].T


def softmax_attention(y, p, c):
    B, T, _ = y.shape
    h, kv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    q, gate = (y @ p["q_proj.weight"].T).view(B, T, h, 2, d).unbind(3)
    q = norm(q, 1 + p["q_norm.weight"], c)
    k = (y @ p["k_proj.weight"].T).view(B, T, kv, d)
    k = norm(k, 1 + p["k_norm.weight"], c)
    v = (y @ p["v_proj.weight"].T).view(B, T, kv, d)
    r = int(d * c.partial_rotary_factor)
    # frequencies are fp32 numbers by definition of the checkpoint, whatever the arithmetic
    f = (1 / c.rope_theta ** (torch.arange(0, r, 2).float() / r)).to(y.dtype)
    angle = torch.arange(T).to(y.dtype)[:, None] * f
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotated(z):
        pair = torch.complex(z[..., :r // 2], z[..., r // 2:r]) * turn[:, None]
        return torch.cat([pair.real, pair.imag, z[..., r:]], -1)
    q, k = rotated(q), rotated(k).repeat_interleave(h // kv, 2)
    score = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    score = score.masked_fill(future, -torch.inf).softmax(-1)
    v = v.repeat_interleave(h // kv, 2)
    o = torch.einsum("bhij,bjhd->bihd", score, v) * gate.sigmoid()
    return o.reshape(B, T, -1) @ p["o_proj.weight"].T


def gated_delta_net(y, p, c):
    B, T, _ = y.shape
    hk, hv = c.linear_num_key_heads, c.linear_num_value_heads
    dk, dv = c.linear_key_head_dim, c.linear_value_head_dim
    u, kernel = y @ p["in_proj_qkv.weight"].T, p["conv1d.weight"][:, 0]
    n = kernel.shape[1]
    sums = []
    for t in range(T):
        last = range(min(n, t + 1))
        sums.append(sum(u[:, t - j] * kernel[:, n - 1 - j] for j in last))
    u = F.silu(torch.stack(sums, 1))
    q, k, v = u.split([hk * dk, hk * dk, hv * dv], -1)
    q, k = (z.view(B, T, hk, dk) for z in (q, k))
    q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
    q, k = (z.repeat_interleave(hv // hk, 2) for z in (q / math.sqrt(dk), k))
    v, z = v.view(B, T, hv, dv), (y @ p["in_proj_z.weight"].T).view(B, T, hv, dv)
    beta = (y @ p["in_proj_b.weight"].T).sigmoid()
    rate = F.softplus(y @ p["in_proj_a.weight"].T + p["dt_bias"])
    share = torch.exp(-p["A_log"].exp() * rate)
    S, out = y.new_zeros(B, hv, dk, dv), []
    for t in range(T):
        S = S * share[:, t, :, None, None]
        held = (S * k[:, t, :, :, None]).sum(2)
        S = S + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - held))[:, :, None]
        out.append((S * q[:, t, :, :, None]).sum(2))
    o = norm(torch.stack(out, 1), p["norm.weight"], c) * F.silu(z)
    return o.reshape(B, T, -1) @ p["out_proj.weight"].T


def weights(folder, dtype):
    """Leaves by checkpoint name, less the prefix."""
    return {k.removeprefix("model.language_model."): v.to(dtype).requires_grad_()
            for k, v in tiny.tensors(folder).items()}


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {k.replace(".decay.", "."): p.grad.clone() for k, p in module.named_parameters()}


def apart(a, b):
    """Distance of two gradients as a share of the norm of the second."""
    assert a.keys() == b.keys()
    norm = sum(g.double().square().sum() for g in b.values()).sqrt()
    return (sum((a[k] - b[k]).double().square().sum() for k in b).sqrt() / norm).item()


def loss_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.fixture(scope="module")
def slow(folder, hf, floor):
    """Gradients of the recurrence in float64, after its logits were found equal to transformers'
    in fp32."""
    ids = tokens(2, 150)
    c = model.Config.from_json(json.loads((folder / "config.json").read_text()))
    with torch.no_grad():
        logits = recurrence(weights(folder, torch.float32), c, ids)
        assert (logits - hf(ids).logits).abs().max() < 4 * floor
    w = weights(folder, torch.float64)
    loss_of(recurrence(w, c, ids), ids).backward()
    return ids, {k: v.grad for k, v in w.items()}


def test_float64_gradients_equal_those_of_the_recurrence(folder, slow):
    ids, want = slow
    ours = model.load(folder, torch.float64)
    assert apart(gradients(ours, loss_of(ours(ids), ids)), want) < 1e-9


def test_fp32_gradients_are_within_1e_5_of_the_whole_gradients_norm(ours, slow):
    ids, want = slow
    assert apart(gradients(ours, loss_of(ours(ids), ids)), want) < 1e-5


@pytest.mark.parametrize("remember", [False, True], ids=["", "recomputed"])
def test_a_shared_prompt_has_the_gradients_of_rows_that_each_carry_it(folder, remember):
    """Through what the prompt leaves: recurrent state, convolution, keys. 61 tokens: the last
    chunk not full."""
    ours = model.load(folder, torch.float64)
    prompt, suffixes = tokens(1, 61), tokens(3, 40, seed=3)
    rows = torch.cat([prompt.expand(3, -1), suffixes], 1)
    weight = torch.rand(3, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def loss(hidden, w, softcap):
        assert hidden.shape == (3, 40, 128) and w is ours.head_weight and softcap is None
        logp = (hidden @ w.T).log_softmax(-1).gather(-1, suffixes[..., None])[..., 0]
        return -(logp * weight).sum()
    plain = gradients(ours, ours(rows, head=lambda h, w, s: loss(h[:, 60:100], w, s)))
    ours.checkpointing = remember
    assert apart(gradients(ours, ours(prompt, suffixes, head=loss)), plain) < 1e-12


def test_right_padding_of_suffixes_changes_no_other_logit(ours):
    prompt, suffixes = tokens(1, 50), tokens(4, 33, seed=3)
    padded = suffixes.clone()
    padded[1, 20:] = 0
    with torch.no_grad():
        a, b = ours(prompt, suffixes, head=logits_of), ours(prompt, padded, head=logits_of)
    assert torch.equal(a[[0, 2, 3]], b[[0, 2, 3]]) and torch.equal(a[1, :21], b[1, :21])


def test_recomputation_in_blocks_keeps_every_bit_and_drops_the_activations(folder):
    ours, ids = model.load(folder), tokens(2, 100)
    kept = []

    def count(x):
        kept[-1] += x.numel()
        return x
    out = []
    for ours.checkpointing in (False, True):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss = loss_of(ours(ids), ids)
        out.append(gradients(ours, loss))
    assert all(torch.equal(out[0][k], out[1][k]) for k in out[0])
    assert kept[1] < kept[0] / 10


def test_the_convolution_of_other_devices_is_that_of_the_cpu_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda t: False))
    window, weight = torch.randn(3, 43, 24), torch.randn(24, 1, 4)
    window.requires_grad_()
    weight.requires_grad_()
    y = model.short_convolution(window, weight)
    want = F.conv1d(window.mT, weight, groups=24).mT
    assert torch.equal(y, want)
    weights = torch.randn_like(y)
    mine = torch.autograd.grad((y * weights).sum(), (window, weight))
    theirs = torch.autograd.grad((want * weights).sum(), (window, weight))
    torch.testing.assert_close(mine, theirs)


def test_attention_without_a_matrix_for_its_mask_is_that_with_one(ours):
    attention = copy.deepcopy(ours.layers[3].self_attn).double()
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64)
    past, x = (draw(1, 2, 50, 32), draw(1, 2, 50, 32)), draw(4, 33, 128)
    rope = ours._rope(50, 83, x)
    with torch.no_grad():
        dense, _ = attention(x, past, model.Span(rope, torch.ones(33, 83).bool().tril(50)))
        found, _ = attention(x, past, model.Span(rope, causal_lower_right(33, 83)))
    assert (found - dense).abs().max() < 1e-12


def test_a_training_pass_on_a_gpu_leaves_every_fast_kernel_its_chance():
    """No mask that flash attention refuses, no convolution of cuDNN, no batch of products above the
    65,535 of a grid's axis; logits are the fp32 sums of bf16 products."""
    config = tiny.QWEN | dict(hidden_size=256, head_dim=256, linear_num_key_heads=16,
                              linear_num_value_heads=16, linear_key_head_dim=128,
                              linear_value_head_dim=128, rope_theta=1e7)
    with torch.device("meta"):
        module = model.cast(model.Model(model.Config.from_json(config)), torch.bfloat16)
    batch = grpo.collate(memory.rows_of(700, 600, 26), torch.device("meta"))
    with pretend.gpu() as seen:
        logp = grpo.row_logprobs(module, batch)
        logp.sum().backward()
        sampled = module._logits(torch.zeros(4, 1, 256, dtype=torch.bfloat16, device="meta"))
    assert seen.counts["_scaled_dot_product_flash_attention"] == 1        # the suffixes'
    assert seen.counts["_scaled_dot_product_flash_attention_backward"] == 1
    assert not any("convolution" in name for name in seen.counts)
    assert 0 < seen.largest_batch <= 65535
    assert logp.dtype == sampled.dtype == torch.float32


def test_the_inverse_is_exact_where_keys_repeat_and_differentiates_exactly():
    """Equal keys and beta = 1 make A all ones below the diagonal: a power series is off by 1e10
    there."""
    A = torch.ones(3, 64, 64).tril(-1)
    want = torch.eye(64) - torch.diag(torch.ones(63), -1)
    assert (model.invert_unit_lower(A) - want).abs().max() < 1e-6
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 8, 8, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: model.invert_unit_lower(A.tril(-1)), A)


# ---------------------------------------------------------------------------------------- folders

LAYOUTS = {"text": tiny.qwen, "composite": tiny.qwen_composite}


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_ours_folder_transformers_gives_equal_logits(layout, untied, tmp_path, monkeypatch):
    LAYOUTS[layout](tmp_path / "a", tie_word_embeddings=not untied)
    monkeypatch.setattr(weights_file, "SHARD_BYTES", 300_000)
    module = model.load(tmp_path / "a")
    model.save(module, tmp_path / "b")
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    ids = tokens(2, 50)
    a, b = tiny.hf(tmp_path / "a"), tiny.hf(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(a(ids).logits, b(ids).logits) and type(a) is type(b)
        assert torch.equal(module(ids), model.load(tmp_path / "b")(ids))


def test_only_the_rank_that_writes_copies_weights_to_the_host(tmp_path):
    """Others did, too, up to 5 GB at a time. Tensors on the meta device cannot be copied."""
    with torch.device("meta"):
        module = model.Model(model.Config.from_json(tiny.QWEN))
    source = weights_file.Source(None, module.config.to_json())
    weights_file.write_tensors(module, source, tmp_path, writes=False)
    with pytest.raises(NotImplementedError, match="meta"):
        weights_file.write_tensors(module, source, tmp_path, writes=True)


def test_a_composite_checkpoint_keeps_its_layout_its_towers_and_its_files(tmp_path):
    tiny.qwen_composite(tmp_path / "a")
    module = model.load(tmp_path / "a")
    with torch.no_grad():
        module.norm.weight += 1
    model.save(module, tmp_path / "b")
    before, after = tiny.tensors(tmp_path / "a"), tiny.tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"model.language_model.norm.weight"}
    assert below(after, "mtp.") and below(after, "model.visual.")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["model_type"] == "qwen3_5"
    assert config["dtype"] == config["text_config"]["dtype"] == "float32"
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json",
                 "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    seeing = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "b").eval()
    ids = tokens(1, 20)
    with torch.no_grad():
        assert (seeing(ids).logits - module(ids)).abs().max() < 1e-5


def test_a_bf16_save_says_so_and_keeps_the_decay_in_fp32(tmp_path):
    module = model.load(tiny.qwen(tmp_path / "a"), torch.bfloat16)
    model.save(module, tmp_path / "b", tiny.tokenizer())
    kinds = {k.rsplit("linear_attn.")[-1]: v.dtype for k, v in tiny.tensors(tmp_path / "b").items()}
    assert kinds["A_log"] == kinds["norm.weight"] == torch.float32
    assert kinds["out_proj.weight"] == torch.bfloat16
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert tiny.hf(tmp_path / "b").dtype == torch.bfloat16
    again = model.load(tmp_path / "b", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters()))


def test_a_built_model_loads_in_transformers_and_equal_seeds_build_equal_models(tmp_path):
    a, b, c = (model.build(tiny.QWEN, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
    model.save(a, tmp_path / "a", tiny.tokenizer())
    ids = tokens(2, 40)
    with torch.no_grad():
        assert (tiny.hf(tmp_path / "a")(ids).logits - a(ids)).abs().max() < 1e-5
    assert model.load(tmp_path / "a").config == a.config
    rows = a.embed_tokens.weight.norm(dim=1)
    assert rows.min() > 0.5 * rows.mean(), "a zero row meets the norms' slope of 1000"


def test_a_copy_of_a_module_is_its_own(folder):
    ours = model.load(folder)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.embed_tokens.weight += 1
    assert not torch.equal(ours.embed_tokens.weight, twin.embed_tokens.weight)
    assert twin.source == ours.source


def test_all_ids_that_end_a_turn_are_found(tmp_path):
    folder = tiny.qwen(tmp_path / "a", eos_token_id=7)
    assert model.load(folder).eos_ids == {0, 2, 7}


def test_loading_and_saving_hold_one_tensor_beside_the_model(tmp_path, monkeypatch):
    alive, peak, plain = [0], [0], weights_file.read_tensor

    def counted(file, name):
        value = plain(file, name)
        alive[0] += 1
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(value, lambda: alive.__setitem__(0, alive[0] - 1))
        return value
    monkeypatch.setattr(weights_file, "read_tensor", counted)
    module = model.load(tiny.qwen(tmp_path / "a"))
    assert peak == [2], "the one in hand, and the one before it until the name is bound again"
    assert alive == [0] and module.embed_tokens.weight.device.type == "cpu"


def test_a_sharded_model_is_saved_whole(tmp_path):
    ours = model.load(tiny.qwen_composite(tmp_path / "a"))
    want = {k: v.clone() for k, v in ours.named_parameters()}
    rendezvous = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    try:
        for part in [*ours.fp32_units, *ours.blocks, ours]:
            fully_shard(part)
        model.save(ours, tmp_path / "b")
    finally:
        dist.destroy_process_group()
    for name, p in model.load(tmp_path / "b").named_parameters():
        assert torch.equal(p, want[name])


# -------------------------------------------------------------------------------------- bad input

NAME = "model.language_model.layers.1.linear_attn.A_log"
EMBEDDING = "model.language_model.embed_tokens.weight"
WEIGHTS = "model.safetensors"


def put(**tensors):
    return lambda held: held.update({k.replace("__", "."): v for k, v in tensors.items()})


def write_config(folder, text):
    (folder / "config.json").write_text(text)


BAD = {
    "a missing tensor": (lambda f: edit(f, lambda held: held.pop(NAME)),
                         f"lacks the tensor {NAME}"),
    "an extra tensor": (lambda f: edit(f, put(model__language_model__extra=torch.ones(1))),
                        "has an unknown tensor model.language_model.extra"),
    "a wrong shape": (lambda f: edit(f, put(**{NAME: torch.ones(5)})),
                      rf"{NAME} has the shape \(5,\)"),
    "a quantised tensor": (lambda f: edit(f, put(**{NAME: torch.ones(4, dtype=torch.int8)})),
                           f"{NAME} is torch.int8"),
    "no embedding": (lambda f: edit(f, lambda held: held.pop(EMBEDDING)),
                     "0 tensors are named ...embed_tokens.weight"),
    "a head unlike the embedding": (lambda f: edit(f, put(lm_head__weight=torch.ones(V, 64))),
                                    "ties lm_head.weight to the embedding, and the two differ"),
    "another size in the config": (lambda f: edit(f, hidden_size=32),
                                   "has the shape .* config.json says"),
    "an unknown type": (lambda f: edit(f, model_type="qwen9"),
                        "no causal language model .* 'qwen9'"),
    "no type": (lambda f: edit(f, model_type=None), "no causal language model of the type None"),
    "not a language model": (lambda f: edit(f, model_type="vit"),
                             "no causal language model .* 'vit'"),
    "another activation": (lambda f: edit(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
    "stretched positions": (
        lambda f: edit(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e7}),
        "rope_type is 'yarn'"),
    "a config without sizes": (lambda f: write_config(f, '{"model_type": "qwen3_5_text"}'),
                               "vocab_size, hidden_size, .* missing"),
    "an unknown layer": (lambda f: edit(f, layer_types=["full_attention"] * 3 + ["mamba"]),
                         "layer_types must name 4"),
    "heads that do not divide": (lambda f: edit(f, num_key_value_heads=3),
                                 "num_attention_heads = 4 must be a multiple"),
    "a size that is none": (lambda f: edit(f, hidden_size="64"),
                            "hidden_size must be a whole number above 0, not '64'"),
    "a config that is no object": (lambda f: write_config(f, "[1]"), "config.json holds a list"),
    "a config that is not JSON": (lambda f: write_config(f, "{"), "config.json is not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "holds neither model.safetensors nor"),
    "a truncated file": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]),
                         "model.safetensors is broken"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_in_one_sentence_that_names_what_is_wrong(case, tmp_path):
    change, sentence = BAD[case]
    folder = tiny.qwen(tmp_path / "a")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as e:
        model.load(folder)
    assert "\n" not in str(e.value)


def test_a_missing_shard_and_a_lying_index_are_named(tmp_path):
    folder = tiny.qwen_composite(tmp_path / "a")
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    file = raw["weight_map"]["model.language_model.norm.weight"]
    (folder / file).rename(folder / "moved")
    with pytest.raises(FileNotFoundError,
                       match=f"{file} is not there, though model.safetensors.index.json"):
        model.load(folder)
    (folder / "moved").rename(folder / file)
    other = next(f for f in raw["weight_map"].values() if f != file)
    raw["weight_map"]["model.language_model.norm.weight"] = other
    index.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"{other} does not give model.language_model.norm.weight"):
        model.load(folder)


def test_a_path_that_is_nothing_and_a_hub_that_is_away_are_told_apart(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
        model.load(tmp_path / "nothing" / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no folder here, and the hub did not give it") as e:
        model.load("nobody/nothing")
    assert "\n" not in str(e.value)


def test_a_hub_id_and_revision_are_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    """The hub's cache layout, made by hand: models--owner--name, refs, snapshots."""
    cache = tmp_path / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (cache / "refs" / "v2").write_text("0" * 40)
    tiny.qwen(cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for found in (model.find("some/model", "v2"), model.find("some/model@v2")):
        assert found == cache / "snapshots" / ("0" * 40)


def test_saving_over_the_source_or_with_a_foreign_tokenizer_is_refused(tmp_path):
    folder = tiny.qwen(tmp_path / "a", vocab_size=300)
    module = model.load(folder)
    with pytest.raises(ValueError, match="is where the model was loaded from"):
        model.save(module, folder)
    with pytest.raises(ValueError, match="the tokenizer has 390 words and the model 300"):
        model.save(module, tmp_path / "b", tiny.tokenizer())
    assert not (tmp_path / "b").exists()


def test_a_row_beyond_the_context_is_named_with_its_problem(ours):
    model.check_fits(ours, tiny.tokenizer(), [("p", 4096)])
    with pytest.raises(ValueError,
                       match="problem 'q': 4097 tokens exceed the model's context of 4096"):
        model.check_fits(ours, tiny.tokenizer(), [("p", 4096), ("q", 4097)])


def test_a_misspelt_key_of_build_is_named():
    with pytest.raises(ValueError, match="'hiden_size' is no key"):
        model.build(tiny.QWEN | {"hiden_size": 3})
