"""lib/adapter.py: other architectures behind the calls of model.py, against transformers."""

import warnings

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers
from tiny import edit, tokens

import model
from lib.adapter import Adapter, distance

V = tiny.VOCAB


def logits_of(h, w, softcap):
    z = h @ w.T
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def loss_of(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gemma2(folder):
    torch.manual_seed(0)
    made = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, head_dim=16, num_key_value_heads=2, sliding_window=16,
        query_pre_attn_scalar=16, max_position_embeddings=512))
    tiny.stir(made, 0).save_pretrained(folder)
    return folder


def mistral(folder):
    torch.manual_seed(0)
    made = transformers.MistralForCausalLM(transformers.MistralConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16,
        max_position_embeddings=512))
    tiny.stir(made, 0).save_pretrained(folder)
    return folder


OTHERS = {"gemma4": tiny.gemma4, "gemma4 composite": lambda f: tiny.gemma4(f, composite=True),
          "llama": tiny.llama, "gemma2": gemma2, "mistral": mistral}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_answer_the_same_calls(name, tmp_path):
    """Windows of 16 tokens in rows of up to 100: one that counted padding, or another row, would
    show."""
    folder = OTHERS[name](tmp_path / "a")
    hf = tiny.hf(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*cannot be forked")
        warnings.filterwarnings("error", ".*past_key_values")
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
        assert torch.equal(tiny.hf(tmp_path / "b")(ids).logits, hf(ids).logits)
    before, after = tiny.tensors(tmp_path / "a"), tiny.tensors(tmp_path / "b")
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
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, linear_key_head_dim=16,
        linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1,
        shared_expert_intermediate_size=32))
    tiny.stir(made, 0).save_pretrained(tmp_path / "a")
    module, hf = model.load(tmp_path / "a"), tiny.hf(tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = module.new_state(3, 64)
        ids, lengths = tokens(3, 30), torch.tensor([30, 12, 5])
        logits = module.segment(ids, lengths, state)
        rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
        for t in range(5):
            logits = module.step(ids[:, t], state, 64)
            rows = [row + [int(ids[i, t])] for i, row in enumerate(rows)]
    messages = [str(warning.message) for warning in caught]
    ours = [m for m in messages if "Qwen3NextForCausalLM: its cache cannot be forked" in m]
    assert len(ours) == 1 and not module.can_fork
    assert not any("past_key_values" in m for m in messages)
    with torch.no_grad():
        for i, row in enumerate(rows):
            assert (logits[i] - hf(torch.tensor([row])).logits[0, -1]).abs().max() < 5e-5
    with pytest.raises(ValueError, match="decodes in waves"):
        module.segment(ids, lengths, state)


def test_a_model_whose_logits_are_something_else_is_refused(tmp_path):
    """Cohere multiplies its logits by a constant; a loss over hidden states and a head would not
    know."""
    torch.manual_seed(0)
    made = transformers.CohereForCausalLM(transformers.CohereConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4,
        logit_scale=0.25))
    made.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError,
                       match="logits of CohereForCausalLM are not hidden states times a head"):
        model.load(tmp_path / "a")


def test_an_adapters_checkpoint_must_be_complete_too(tmp_path):
    folder = tiny.llama(tmp_path / "a")
    edit(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match="lacks the tensor model.layers.0.mlp.up_proj.weight"):
        model.load(folder)
    edit(folder, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}))
    with pytest.raises(ValueError, match="has the wrong shape for"):
        model.load(folder)


def released(folder):
    """As large as it must be for bf16 to round: 8 layers, and a table of tokens that matters."""
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=192, intermediate_size=384, num_hidden_layers=8,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512))
    tiny.stir(made, 0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_of_forks_knows_rounding_from_a_mask_that_is_off_by_one(tmp_path, dtype,
                                                                         monkeypatch):
    module = model.load(released(tmp_path / "a"), dtype)
    assert module._forks()
    masks = Adapter._masks
    monkeypatch.setattr(Adapter, "_masks", lambda self, at, limit: masks(self, at - 1, limit))
    assert not module._forks()


def test_logits_that_differ_by_a_constant_are_the_same():
    a = torch.randn(3, V)
    assert distance(a + 5, a) < 1e-6 < distance(a.roll(1, -1), a)
