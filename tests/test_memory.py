"""memory.py: the count of what is alive, the estimate's arithmetic, and the probe's decision."""

import functools
import json
from contextlib import nullcontext

import pytest
import tiny
import torch
import transformers

import grpo
import model
import rollout
from lib import memory

SIZES = dict(prompt_tokens=70, new_tokens=40, token_budget=400, slots=4)


def skeleton(config, dtype):
    with torch.device("meta"):
        return model.cast(model.Model(model.Config.from_json(config | {"rope_theta": 1e7})), dtype)


@functools.cache
def estimated(dtype=torch.bfloat16, checkpointing=False, world=8, **changes):
    module = skeleton(tiny.QWEN, dtype)
    module.checkpointing = checkpointing
    return module, memory.estimate(module, world=world, **SIZES | changes)


def test_what_is_alive_is_counted_once_and_until_it_dies():
    with memory.Alive() as alive:
        a = torch.zeros(1000)                   # 4,000 bytes
        view = a.view(10, 100)[2:]              # none
        b = a + 1                               # 8,000 in all: the peak
        del a
        assert alive.now == 8000, "the view keeps it"
        del view, b
        c = torch.zeros(10, dtype=torch.float64)
    assert (alive.now, alive.peak) == (80, 8000) and len(c) == 10


def test_the_meta_device_counts_what_a_real_one_uses():
    """The same passes over the same rows, on meta and on the CPU, where attention is a fused
    kernel too. Attention alone: the delta rule works in chunks of 32 on a CPU and of 64
    elsewhere."""
    config, found = tiny.QWEN | {"layer_types": ["full_attention"] * 4}, []
    for device in ("meta", "cpu"):
        module = skeleton(config, torch.float32) if device == "meta" else model.build(config)
        batch = memory.grpo.collate(memory.rows_of(70, 40, 8), torch.device(device))
        with (
            memory.Alive() as alive,
            memory.fused_attention() if device == "meta" else nullcontext(),
        ):
            memory.grpo.row_logprobs(module, batch).sum().backward()
        found.append(alive.peak)
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_weights_gradients_and_moments_by_hand():
    module, estimate = estimated()
    n = sum(p.numel() for p in module.parameters())
    small = sum(p.numel() for unit in module.fp32_units for p in unit.parameters())
    assert estimate["always"] == {"fp32 master weights": 4 * n // 8, "AdamW moments": 8 * n // 8,
                              "sampler": 2 * n + 2 * small, "reference": (2 * n + 2 * small) // 8}
    assert estimate["update"]["gradients"] == estimate["step"]["copy for step_norm"] == 4 * n // 8


def test_state_rows_by_hand():
    """Four layers, three of them linear: a conv tail of 3 and an fp32 matrix of 16 x 16 for each
    of 4 heads; one with keys and values. 110 tokens are rounded up to 128 columns and one to
    spare; the rest is rotary tables."""
    _, estimate = estimated()
    linear = 3 * (2 * 3 * (2 * 2 * 16 + 4 * 16) + 4 * 4 * 16 * 16)
    full = 2 * 2 * 2 * 16 * 129
    tables = 2 * 2 * 129 * 4 + 8 * 4
    assert estimate["rollout"]["state rows"] == pytest.approx(
        4 * (linear + full) + tables, rel=0.01
    )


def test_checkpointing_and_a_smaller_budget_lower_activations():
    whole, less = estimated()[1], estimated(checkpointing=True)[1]
    assert less["update"]["activations"] < 0.7 * whole["update"]["activations"]
    assert (
        estimated(token_budget=200)[1]["update"]["activations"]
        < 0.7 * whole["update"]["activations"]
    )


def test_one_process_in_fp32_gathers_nothing_and_keeps_no_reference_without_kl():
    estimate = estimated(torch.float32, world=1, reference=False)[1]
    assert (
        estimate["update"].keys() == {"gradients", "activations"}
        and estimate["always"]["reference"] == 0
    )


def test_the_report_names_the_flag_where_it_does_not_fit():
    estimate = estimated()[1]
    fixed = sum(estimate["always"].values()) + memory.CUDA_CONTEXT
    assert "WARNING" not in memory.report(estimate, 80 * memory.GIB)
    tight = memory.report(estimate, fixed + 10000)
    assert "--token-budget" in tight and "--slots" in tight
    assert "more GPUs, or a smaller model" in memory.report(estimate, fixed - 1)


def test_the_command_reads_nothing_but_config_json(tmp_path, monkeypatch, capsys):
    config = skeleton(tiny.QWEN, torch.float32).config.to_json()
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_5_text"}))
    monkeypatch.setattr("sys.argv", ["memory.py", "--model", str(tmp_path), "--gpu-gib", "0.1"])
    memory.main()
    printed = capsys.readouterr().out
    assert "AdamW moments" in printed and "WARNING: always does not fit into 0 GiB" in printed


def test_other_architectures_are_estimated_too_without_their_frozen_table(tmp_path):
    """Plain rows: four of 50 + 50 tokens are 400, and the table of per-layer embeddings has no
    moments."""
    module = memory.skeleton(tiny.gemma4(tmp_path), torch.bfloat16)
    estimate = memory.estimate(
        module, world=1, prompt_tokens=50, new_tokens=50, token_budget=400, slots=8
    )
    table = module.per_layer_tables[0].weight.numel()
    assert estimate["always"]["AdamW moments"] == 8 * (
        sum(p.numel() for p in module.parameters()) - table
    )
    assert (
        estimate["rollout"]["state rows"] > 0
        and estimate["update"]["activations"] > 400 * tiny.VOCAB * 4
    )
    assert [memory.largest_micro_batch(50, 50, 400, shared) for shared in (True, False)] == [7, 4]


SHAPE = dict(vocab_size=tiny.VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
WINDOW = dict(head_dim=16, sliding_window=16)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
FAMILIES = {
    "llama": {}, "qwen2": {}, "qwen3": dict(head_dim=16), "mistral": dict(sliding_window=16),
    "gemma2": WINDOW, "gemma3_text": WINDOW, "phi3": dict(pad_token_id=0), "olmo2": {},
    "smollm3": dict(pad_token_id=0), "starcoder2": {}, "gpt_neox": {}, "glm": dict(
        head_dim=16, pad_token_id=0), "olmoe": EXPERTS, "gpt2": dict(
        n_embd=64, n_layer=2, n_head=4)}
slow = [name for name in FAMILIES if name not in ("llama", "gemma3_text")]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in FAMILIES])
def test_families_of_transformers_are_estimated_with_grouped_queries_and_all(name, tmp_path):
    """Keys and values of two heads by hand, four where queries are not grouped."""
    config = transformers.AutoConfig.for_model(name, **SHAPE | FAMILIES[name])
    config.save_pretrained(tmp_path)
    module = memory.skeleton(str(tmp_path), torch.bfloat16)
    found = memory.estimate(module, world=1, prompt_tokens=50, new_tokens=50, token_budget=400,
                            slots=8)
    heads = config.num_attention_heads if name in ("gpt2", "gpt_neox") else 2
    keys_and_values = 2 * 2 * 8 * heads * 16 * 129 * 2
    assert found["rollout"]["state rows"] == pytest.approx(keys_and_values, rel=0.01)
    assert found["update"]["activations"] > 400 * tiny.VOCAB * 4


@pytest.mark.parametrize("available,rows", [(10000, 49), (1000, 4), (400, 1), (100, 0)])
def test_what_fits_is_worked_out_before_it_is_tried(available, rows):
    """A row takes 190 bytes beyond a fixed 100, and 95 % of the room is used."""
    assert memory.rows_that_fit(290, 480, available) == rows
    assert 100 + 190 * rows <= 0.95 * available < 100 + 190 * (rows + 1) or rows == 0


@pytest.mark.gpu
def test_the_estimate_is_within_ten_percent_of_what_a_gpu_uses():
    """One micro-batch at the hidden sizes of the 2B model, four blocks of it."""
    config = dict(
        vocab_size=248320,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_value_heads=16,
    )
    rows = memory.rows_of(700, 1024, 8)
    bones, policy = skeleton(config, torch.bfloat16), model.build(config, torch.bfloat16, "cuda")
    bones.checkpointing = policy.checkpointing = True
    for p in policy.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    memory.worst_case(policy, None, rows)
    assert memory.activations(bones, rows) == pytest.approx(
        memory.worst_case(policy, None, rows), rel=0.1
    )


def test_on_a_cpu_the_probe_leaves_the_budget_alone():
    module = torch.nn.Linear(1, 1)
    optimizer = grpo.make_optimizer(module, 1e-3)
    sizes = dict(prompt_tokens=1, new_tokens=1, token_budget=7)
    assert memory.probe(module, None, optimizer, **sizes) == (7, "")


def test_moments_that_are_made_early_change_nothing():
    """A probe without them had 8 bytes a parameter too few on a GPU."""
    found = []
    for early in (False, True):
        module = model.build(tiny.QWEN)
        optimizer = grpo.make_optimizer(module, 1e-3, weight_decay=0.1)
        if early:
            memory.make_moments(optimizer)
            moments = [m["exp_avg_sq"] for m in optimizer.state.values()]
            assert sum(m.numel() for m in moments) == sum(p.numel() for p in module.parameters())
        module(tiny.tokens(2, 20)).square().sum().backward()
        optimizer.step()
        found.append([p.detach() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_what_an_update_holds_is_planned_within_ten_percent():
    """Two micro-batches: the second computes while the gradients of the first are there. Attention
    alone, as above."""
    config = tiny.QWEN | {"layer_types": ["full_attention"] * 4, "rope_theta": 1e7}
    planned = memory.estimate(skeleton(config, torch.float32), world=1, **SIZES)["update"]
    module = model.build(config)
    counted = memory.worst_case(module, None, memory.rows_of(70, 40, 8))
    assert sum(planned.values()) == pytest.approx(counted, rel=0.1)
    assert planned["gradients"] == 4 * sum(p.numel() for p in module.parameters())


def test_what_a_rollout_holds_is_planned_within_ten_percent():
    """Eight prompts for 64 rows, whose buffers grow when longer replies are asked for: not to twice
    their size. Attention alone, as above."""
    config = tiny.QWEN | {"layer_types": ["full_attention"] * 4, "rope_theta": 1e7}
    bones = skeleton(config, torch.float32)
    bones.can_capture = False               # on a CPU no step is
    planned = memory.decoding(bones, 64, 200, 300)
    tokenizer = tiny.tokenizer()
    prompts = tiny.tokens(8, 200).clamp(max=len(tokenizer) - 1).tolist()
    engine = rollout.Engine(model.build(config), tokenizer, 64)
    with memory.Alive() as alive:
        rows = engine.run(rollout.Job(prompts[i % 8], (0, i), 150) for i in range(64))
        next(rows)
        engine.push([rollout.Job(prompts[0], (1, 0), 300)])
        assert sum(1 for _ in rows) == 64
    assert sum(planned.values()) == pytest.approx(alive.peak, rel=0.1)
