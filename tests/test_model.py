"""model.py against transformers, against a recurrence written out token by token, and against itself."""

import copy
import json
import math
import shutil
import warnings

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard

import model

# twice as many value heads as key heads, as in the 4B and 9B models; a head width that is no share of the hidden size
SIZES = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
             head_dim=32, linear_key_head_dim=32, linear_value_head_dim=16, linear_num_key_heads=2,
             linear_num_value_heads=4)
V = tiny.VOCAB


def hf_load(folder, **kwargs):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def tokens(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


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
    return hf_load(folder)


@pytest.fixture(scope="module")
def floor(hf):
    """How far transformers' cached decoding is from its own full forward: nobody can be asked to come closer."""
    ids = tokens(3, 200)
    with torch.no_grad():
        full, out = hf(ids).logits, hf(ids[:, :160], use_cache=True)
        worst = 0.0
        for t in range(160, 200):
            out = hf(ids[:, t:t + 1], past_key_values=out.past_key_values, use_cache=True)
            worst = max(worst, (out.logits[:, -1] - full[:, t]).abs().max().item())
    assert 1e-6 < worst < 5e-5
    return worst


# ------------------------------------------------------------------------------------------------ decoding and forward

def test_full_forward_equals_transformers(ours, hf, floor):
    ids = tokens(3, 200)
    with torch.no_grad():
        assert (ours(ids)[:, 160:] - hf(ids).logits[:, 160:]).abs().max() < 2 * floor


def test_right_padded_prefill_and_forty_cached_steps_equal_transformers_on_each_row_alone(ours, hf, floor):
    """Padding that only decays the state changed logits by up to 1.5, silently, in a cache that ignores it."""
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
        logits = ours.segment(ids[[0, 0, 0, 1, 0, 0], 77:120], torch.tensor([1, 43, 1, 20, 9, 1]), place)
        for row, want in ((1, ids[0, :120]), (4, ids[0, :86]), (3, torch.cat([ids[1, :70], ids[1, 77:97]]))):
            assert (logits[row] - hf(want[None]).logits[0, -1]).abs().max() < 2 * floor


def test_compaction_within_one_state_and_a_shorter_view_decode_the_same(ours):
    ids, state = tokens(16, 30), ours.new_state(16, 64)
    lengths = torch.randint(5, 31, (16,), generator=torch.Generator().manual_seed(1))
    ours.segment(ids, lengths, state)
    whole = ours.new_state(16, 64)
    ours.fork(whole, list(range(16)), state, list(range(16)))
    want = ours.step(ids[:, 0], whole, 64)
    keep = torch.tensor([15, 3, 9, 4, 0, 8, 12, 5])
    ours.fork(state, torch.arange(8), state, keep)
    view = state.first(8)
    got = ours.step(ids[keep, 0], view, 64)
    assert torch.equal(got, want[keep])
    assert torch.equal(state.pos[:8], whole.pos[keep]), "a view shares its memory with the state"


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
    with pytest.raises(ValueError, match="a row would hold 133 tokens, and this state has room for 64"):
        ours.segment(ids, lengths, state)


@pytest.mark.parametrize("slots", [16, 64])
def test_a_rows_logits_are_equal_to_the_last_bit_at_any_slot_count(ours, slots):
    """The slot-invariance contract: fp32, one CPU thread, 8 rows or more, prefill width and key length in multiples of 64."""
    assert torch.get_num_threads() == 1
    ids = tokens(64, 128)
    lengths = torch.randint(1, 100, (64,), generator=torch.Generator().manual_seed(2))
    some = torch.arange(8)

    def run(n, width, limit):
        state = ours.new_state(n, 192)
        out = [ours.segment(ids[:n, :width], lengths[:n].clamp(max=64), state)]
        for t in range(3):
            out.append(ours.step(ids[:n, t], state, limit))
        return torch.stack([x[some] for x in out])
    assert torch.equal(run(8, 64, 128), run(slots, 128, 192))


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
    assert (logits - full[:, -1]).abs().max() < 1e-10       # angles of the rotary embedding are fp32 by definition


def test_bf16_is_no_further_from_fp32_than_transformers_bf16_is(folder, hf):
    ids = tokens(4, 150)
    low, hf_low = model.load(folder, torch.bfloat16), hf_load(folder, dtype=torch.bfloat16)
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


# ------------------------------------------------------------------------------------------------ gradients

def recurrence(w, c, ids):
    """The architecture as its papers write it, one token and one head at a time where it matters. Names are the
    checkpoint's; nothing of model.py is used. ids (B, T) -> logits."""
    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c.rms_norm_eps) * weight

    B, T = ids.shape
    x = w["embed_tokens.weight"][ids]
    for i, kind in enumerate(c.layer_types):
        p = {k.removeprefix(f"layers.{i}."): v for k, v in w.items() if k.startswith(f"layers.{i}.")}
        y = norm(x, 1 + p["input_layernorm.weight"])
        if kind == "full_attention":
            h, kv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
            q, gate = (y @ p["self_attn.q_proj.weight"].T).view(B, T, h, 2, d).unbind(3)
            q = norm(q, 1 + p["self_attn.q_norm.weight"])
            k = norm((y @ p["self_attn.k_proj.weight"].T).view(B, T, kv, d), 1 + p["self_attn.k_norm.weight"])
            v = (y @ p["self_attn.v_proj.weight"].T).view(B, T, kv, d)
            r = int(d * c.partial_rotary_factor)
            # frequencies are fp32 numbers by definition of the checkpoint, whatever the arithmetic
            f = (1 / c.rope_theta ** (torch.arange(0, r, 2).float() / r)).to(x.dtype)
            turn = torch.polar(torch.ones(T, r // 2, dtype=x.dtype), torch.arange(T).to(x.dtype)[:, None] * f)

            def rotated(z):
                pair = torch.complex(z[..., :r // 2], z[..., r // 2:r]) * turn[:, None]
                return torch.cat([pair.real, pair.imag, z[..., r:]], -1)
            q, k = rotated(q), rotated(k).repeat_interleave(h // kv, 2)
            score = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d)
            score = score.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
            o = torch.einsum("bhij,bjhd->bihd", score, v.repeat_interleave(h // kv, 2)) * gate.sigmoid()
            y = o.reshape(B, T, -1) @ p["self_attn.o_proj.weight"].T
        else:
            p = {k.removeprefix("linear_attn."): v for k, v in p.items() if k.startswith("linear_attn.")} | {
                k: v for k, v in p.items() if not k.startswith("linear_attn.")}
            hk, hv, dk, dv = (c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim,
                              c.linear_value_head_dim)
            u, kernel = y @ p["in_proj_qkv.weight"].T, p["conv1d.weight"][:, 0]
            n = kernel.shape[1]
            u = F.silu(torch.stack([sum(u[:, t - j] * kernel[:, n - 1 - j] for j in range(min(n, t + 1)))
                                    for t in range(T)], 1))
            q, k, v = u.split([hk * dk, hk * dk, hv * dv], -1)
            q, k = (z.view(B, T, hk, dk) for z in (q, k))
            q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
            q, k = (z.repeat_interleave(hv // hk, 2) for z in (q / math.sqrt(dk), k))
            v, z = v.view(B, T, hv, dv), (y @ p["in_proj_z.weight"].T).view(B, T, hv, dv)
            beta = (y @ p["in_proj_b.weight"].T).sigmoid()
            share = torch.exp(-p["A_log"].exp() * F.softplus(y @ p["in_proj_a.weight"].T + p["dt_bias"]))
            S, out = x.new_zeros(B, hv, dk, dv), []
            for t in range(T):
                S = S * share[:, t, :, None, None]
                held = (S * k[:, t, :, :, None]).sum(2)
                S = S + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - held))[:, :, None]
                out.append((S * q[:, t, :, :, None]).sum(2))
            o = norm(torch.stack(out, 1), p["norm.weight"]) * F.silu(z)
            y = o.reshape(B, T, -1) @ p["out_proj.weight"].T
        x = x + y
        y = norm(x, 1 + p["post_attention_layernorm.weight"])
        y = F.silu(y @ p["mlp.gate_proj.weight"].T) * (y @ p["mlp.up_proj.weight"].T)
        x = x + y @ p["mlp.down_proj.weight"].T
    return norm(x, 1 + w["norm.weight"]) @ w["embed_tokens.weight"].T


def weights(folder, dtype):
    """Leaves by checkpoint name, less the prefix."""
    return {k.removeprefix("model.language_model."): v.to(dtype).requires_grad_()
            for k, v in load_file(folder / "model.safetensors").items()}


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
    """Gradients of the recurrence in float64, once the recurrence has been found equal to transformers in fp32."""
    ids, c = tokens(2, 150), model.Config.from_json(json.loads((folder / "config.json").read_text()))
    with torch.no_grad():
        assert (recurrence(weights(folder, torch.float32), c, ids) - hf(ids).logits).abs().max() < 4 * floor
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
    """Through the memory that the prompt leaves: recurrent state, convolution and keys. 61 tokens: chunks that are not full."""
    ours = model.load(folder, torch.float64)
    prompt, suffixes = tokens(1, 61), tokens(3, 40, seed=3)
    rows = torch.cat([prompt.expand(3, -1), suffixes], 1)
    weight = torch.rand(3, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def loss(hidden, w, softcap):
        assert hidden.shape == (3, 40, 128) and w is ours.head_weight and softcap is None
        return -((hidden @ w.T).log_softmax(-1).gather(-1, suffixes[..., None])[..., 0] * weight).sum()
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


def test_the_inverse_is_exact_where_keys_repeat_and_differentiates_exactly():
    """Equal keys and beta = 1 make A all ones below the diagonal: a power series is off by 1e10 there."""
    A = torch.ones(3, 64, 64).tril(-1)
    want = torch.eye(64) - torch.diag(torch.ones(63), -1)
    assert (model.invert_unit_lower(A) - want).abs().max() < 1e-6
    A = (torch.randn(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).tril(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: model.invert_unit_lower(A.tril(-1)), A)


# ------------------------------------------------------------------------------------------------ folders

LAYOUTS = {"text": tiny.qwen, "composite": tiny.qwen_composite}


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_ours_folder_transformers_gives_equal_logits(layout, untied, tmp_path, monkeypatch):
    LAYOUTS[layout](tmp_path / "a", tie_word_embeddings=not untied)
    monkeypatch.setattr(model, "SHARD_BYTES", 300_000)
    module = model.load(tmp_path / "a")
    model.save(module, tmp_path / "b")
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    ids = tokens(2, 50)
    a, b = hf_load(tmp_path / "a"), hf_load(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(a(ids).logits, b(ids).logits) and type(a) is type(b)
        assert torch.equal(module(ids), model.load(tmp_path / "b")(ids))


def all_tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_a_composite_checkpoint_keeps_its_layout_its_towers_and_its_files(tmp_path):
    tiny.qwen_composite(tmp_path / "a")
    module = model.load(tmp_path / "a")
    with torch.no_grad():
        module.norm.weight += 1
    model.save(module, tmp_path / "b")
    before, after = all_tensors(tmp_path / "a"), all_tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"model.language_model.norm.weight"}
    assert any(k.startswith("mtp.") for k in after) and any(k.startswith("model.visual.") for k in after)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["model_type"] == "qwen3_5" and config["dtype"] == config["text_config"]["dtype"] == "float32"
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    seeing = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "b").eval()
    ids = tokens(1, 20)
    with torch.no_grad():
        assert (seeing(ids).logits - module(ids)).abs().max() < 1e-5


def test_a_bf16_save_says_so_and_keeps_the_decay_in_fp32(tmp_path):
    module = model.load(tiny.qwen(tmp_path / "a"), torch.bfloat16)
    model.save(module, tmp_path / "b", tiny.tokenizer())
    kinds = {k.rsplit("linear_attn.")[-1]: v.dtype for k, v in all_tensors(tmp_path / "b").items()}
    assert kinds["A_log"] == kinds["norm.weight"] == torch.float32 and kinds["out_proj.weight"] == torch.bfloat16
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert hf_load(tmp_path / "b").dtype == torch.bfloat16
    again = model.load(tmp_path / "b", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters()))


def test_a_built_model_loads_in_transformers_and_equal_seeds_build_equal_models(tmp_path):
    a, b, c = (model.build(tiny.QWEN, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
    model.save(a, tmp_path / "a", tiny.tokenizer())
    ids = tokens(2, 40)
    with torch.no_grad():
        assert (hf_load(tmp_path / "a")(ids).logits - a(ids)).abs().max() < 1e-5
    assert model.load(tmp_path / "a").config == a.config
    rows = a.embed_tokens.weight.norm(dim=1)
    assert rows.min() > 0.5 * rows.mean(), "a zero row meets the norms' slope of 1000"


def test_a_copy_of_a_module_is_its_own(folder):
    ours = model.load(folder)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.embed_tokens.weight += 1
    assert not torch.equal(ours.embed_tokens.weight, twin.embed_tokens.weight) and twin.source == ours.source


def test_all_ids_that_end_a_turn_are_found(tmp_path):
    folder = tiny.qwen(tmp_path / "a", eos_token_id=7)
    assert model.load(folder).eos_ids == {0, 2, 7}


def test_loading_the_weights_never_holds_the_model_twice(tmp_path):
    """Counted where memory is asked for: one tensor of the size of each parameter, and one more at a time."""
    folder, alive, peak = tiny.qwen(tmp_path / "a"), [0], [0]
    plain = model.read_tensor

    def counted(file, name):
        value = plain(file, name)
        alive[0] += 1
        peak[0] = max(peak[0], alive[0])
        weakref_finalize(value, alive)
        return value

    import weakref

    def weakref_finalize(value, alive):
        weakref.finalize(value, lambda: alive.__setitem__(0, alive[0] - 1))
    model.read_tensor, module = counted, None
    try:
        module = model.load(folder)
    finally:
        model.read_tensor = plain
    assert module is not None and peak[0] <= 2 and alive[0] == 0


def test_a_sharded_model_is_saved_whole(tmp_path):
    ours = model.load(tiny.qwen_composite(tmp_path / "a"))
    want = {k: v.clone() for k, v in ours.named_parameters()}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for part in [*ours.fp32_units, *ours.blocks, ours]:
            fully_shard(part)
        model.save(ours, tmp_path / "b")
    finally:
        dist.destroy_process_group()
    for name, p in model.load(tmp_path / "b").named_parameters():
        assert torch.equal(p, want[name])


# ------------------------------------------------------------------------------------------------ bad input

def edit(folder, change=None, **config):
    """Change a text checkpoint's tensors with change(tensors) and its config with keys."""
    raw = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(raw))
    if change:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")


NAME = "model.language_model.layers.1.linear_attn.A_log"
BAD = {
    "a missing tensor": (lambda f: edit(f, lambda t: t.pop(NAME)), f"lacks the tensor {NAME}"),
    "an extra tensor": (lambda f: edit(f, lambda t: t.update({"model.language_model.extra": torch.ones(1)})),
                        "has an unknown tensor model.language_model.extra"),
    "a wrong shape": (lambda f: edit(f, lambda t: t.update({NAME: torch.ones(5)})), rf"{NAME} has the shape \(5,\)"),
    "a quantised tensor": (lambda f: edit(f, lambda t: t.update({NAME: torch.ones(4, dtype=torch.int8)})),
                           f"{NAME} is torch.int8"),
    "no embedding": (lambda f: edit(f, lambda t: t.pop("model.language_model.embed_tokens.weight")),
                     "embed_tokens.weight, and 0 are"),
    "a head that is not the embedding": (lambda f: edit(f, lambda t: t.update({"lm_head.weight": torch.ones(V, 64)})),
                                         "config.json ties lm_head.weight to the embedding, and the two differ"),
    "another size in the config": (lambda f: edit(f, hidden_size=32), "has the shape .* and config.json says"),
    "an unknown type": (lambda f: edit(f, model_type="qwen9"), "no causal language model of the type 'qwen9'"),
    "no type": (lambda f: edit(f, model_type=None), "no causal language model of the type None"),
    "a type that is no language model": (lambda f: edit(f, model_type="vit"), "no causal language model of the type 'vit'"),
    "another activation": (lambda f: edit(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
    "stretched positions": (lambda f: edit(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e7}),
                            "rope_type is 'yarn'"),
    "a config without sizes": (lambda f: (f / "config.json").write_text('{"model_type": "qwen3_5_text"}'),
                               "vocab_size, hidden_size, .* missing"),
    "an unknown layer": (lambda f: edit(f, layer_types=["full_attention"] * 3 + ["mamba"]), "layer_types must name 4"),
    "heads that do not divide": (lambda f: edit(f, num_key_value_heads=3), "num_attention_heads = 4 must be a multiple"),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "a truncated file": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
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
    with pytest.raises(FileNotFoundError, match=f"{file} is not there, though model.safetensors.index.json names it"):
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
    found = model.find("some/model", "v2")
    assert found == cache / "snapshots" / ("0" * 40)


def test_saving_over_the_source_or_with_a_foreign_tokenizer_is_refused(tmp_path):
    folder = tiny.qwen(tmp_path / "a", vocab_size=300)
    module = model.load(folder)
    with pytest.raises(ValueError, match="is where the model was loaded from"):
        model.save(module, folder)
    with pytest.raises(ValueError, match="the tokenizer has 389 words and the model 300"):
        model.save(module, tmp_path / "b", tiny.tokenizer())
    assert not (tmp_path / "b").exists()


def test_a_misspelt_key_of_build_is_named():
    with pytest.raises(ValueError, match="called hiden_size"):
        model.build(tiny.QWEN | {"hiden_size": 3})


# ------------------------------------------------------------------------------------------------ other architectures

def gemma2(folder):
    torch.manual_seed(0)
    made = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, sliding_window=16, query_pre_attn_scalar=16, max_position_embeddings=512))
    tiny._stir(made, 0).save_pretrained(folder)
    return folder


def mistral(folder):
    torch.manual_seed(0)
    made = transformers.MistralForCausalLM(transformers.MistralConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, max_position_embeddings=512))
    tiny._stir(made, 0).save_pretrained(folder)
    return folder


OTHERS = {"gemma4": tiny.gemma4, "gemma4 composite": lambda f: tiny.gemma4(f, composite=True), "llama": tiny.llama,
          "gemma2": gemma2, "mistral": mistral}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_answer_the_same_calls(name, tmp_path):
    """Windows of 16 tokens in rows of 100, so that a window that counted padding or another row would show."""
    folder = OTHERS[name](tmp_path / "a")
    hf = hf_load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        module = model.load(folder)
        assert module.can_fork
    ids, lengths = tokens(8, 60), torch.tensor([60, 31, 7, 60, 1, 60, 60, 60])
    rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
    prompt, state = module.new_state(8, 60), module.new_state(8, 128)
    with torch.no_grad():
        assert torch.equal(module(ids), hf(ids).logits)
        module.segment(ids, lengths, prompt)
        module.fork(state, list(range(8)), prompt, [1, 1, 0, 2, 3, 4, 5, 6])
        rows = [rows[i] for i in (1, 1, 0, 2, 3, 4, 5, 6)]
        more, n = tokens(8, 20, seed=1), torch.tensor([20, 3, 11, 1, 1, 20, 7, 2])
        logits = module.segment(more, n, state)
        rows = [row + more[i, :n[i]].tolist() for i, row in enumerate(rows)]
        for t in range(20):
            logits = module.step(more[:, t], state, int(state.pos.max()) + 1)
            rows = [row + [int(more[i, t])] for i, row in enumerate(rows)]
        for i, row in enumerate(rows):
            assert (logits[i] - hf(torch.tensor([row])).logits[0, -1]).abs().max() < 5e-5
        shared = module(ids[:1, :30], ids[:3, 30:], head=logits_of)
        alone = module(torch.cat([ids[:1, :30].expand(3, -1), ids[:3, 30:]], 1))
        assert torch.allclose(shared, alone[:, 29:-1], atol=1e-5)
    model.save(module, tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(hf_load(tmp_path / "b")(ids).logits, hf(ids).logits)
    before, after = all_tensors(tmp_path / "a"), all_tensors(tmp_path / "b")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_gemma_trains_its_text_model_with_recomputation_and_names_its_large_table(tmp_path):
    module = model.load(tiny.gemma4(tmp_path / "a", composite=True))
    assert [tuple(t.weight.shape) for t in module.per_layer_tables] == [(V, 6 * 8)]
    still = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert still and all(".vision_tower." in n or ".embed_vision." in n for n in still)
    ids = tokens(2, 40)
    out = []
    for module.checkpointing in (False, True):
        module.zero_grad()
        loss_of(module(ids), ids).backward()
        out.append({n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad})
    assert all(torch.equal(out[0][n], out[1][n]) for n in out[0])
    # the module that trains with recomputation is also the one that samples, in a single process
    state = module.new_state(8, 64)
    module.segment(tokens(8, 20), torch.full((8,), 20), state)
    assert module.step(tokens(8), state, 64).isfinite().all() and not module.hf.training


def test_an_architecture_whose_cache_cannot_fork_says_so_once_and_decodes_in_waves(tmp_path):
    """Qwen3-Next: a recurrent state that lives in transformers' own cache."""
    torch.manual_seed(0)
    made = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
        linear_num_value_heads=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, decoder_sparse_step=1))
    tiny._stir(made, 0).save_pretrained(tmp_path / "a")
    module, hf = model.load(tmp_path / "a"), hf_load(tmp_path / "a")
    with pytest.warns(UserWarning, match="Qwen3NextForCausalLM: its cache cannot be forked") as said:
        state = module.new_state(3, 64)
        ids, lengths = tokens(3, 30), torch.tensor([30, 12, 5])
        logits = module.segment(ids, lengths, state)
        rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
        for t in range(5):
            logits = module.step(ids[:, t], state, 64)
            rows = [row + [int(ids[i, t])] for i, row in enumerate(rows)]
    assert len(said) == 1 and not module.can_fork
    with torch.no_grad():
        for i, row in enumerate(rows):
            assert (logits[i] - hf(torch.tensor([row])).logits[0, -1]).abs().max() < 5e-5
    with pytest.raises(ValueError, match="decodes in waves"):
        module.segment(ids, lengths, state)


def test_a_model_whose_logits_are_something_else_is_refused(tmp_path):
    """Cohere multiplies its logits by a constant, which a loss over hidden states and a head would not know."""
    torch.manual_seed(0)
    made = transformers.CohereForCausalLM(transformers.CohereConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, logit_scale=0.25))
    made.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="logits of CohereForCausalLM are not hidden states times a head"):
        model.load(tmp_path / "a")


def test_an_adapters_checkpoint_must_be_complete_too(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    edit(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match="lacks the tensor model.layers.0.mlp.up_proj.weight"):
        model.load(folder)
    edit(folder, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}))
    with pytest.raises(ValueError, match="has the wrong shape for"):
        model.load(folder)
