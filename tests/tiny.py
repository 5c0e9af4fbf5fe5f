"""Makers of tiny checkpoints and of a tokenizer, for everybody's tests. All are seeded: equal arguments, equal folders.

    tiny.qwen(folder)                    # Qwen3.5 text layout, as transformers' text class writes it
    tiny.qwen_composite(folder)          # the released layout: vision tower, MTP tensors, several shards
    tiny.gemma4(folder)                  # Gemma 4 E2B in small; composite=True: with a vision tower
    tiny.llama(folder)                   # any other small causal LM
    tiny.tokenizer()                     # byte-level BPE of fewer than 512 words, chat template with enable_thinking

Each maker writes a Hugging Face folder, tokenizer included, and returns its path. Weights are noisier than an
initialisation (no zero norm weights, no zero rows, no decay of nearly 1 or 0), so that every tensor matters to the logits.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import model

VOCAB = 512
END, PAD = "<|im_end|>", "<|endoftext|>"
TEXT = """Read the numbers. Keep the small ones for 5 and print their size. A: Count them. B: Sum them up to 5.
You are given an array of n integers. Write a program that prints the answer. def solve(n): return [int(x) for x in
input().split()]\nfor i in range(n):\n    print(sum(a[i] for i in range(n) if a[i] % 2 == 0))\n"""
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"""
QWEN = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, linear_key_head_dim=16, linear_value_head_dim=16,
            linear_num_key_heads=2, linear_num_value_heads=4, max_position_embeddings=4096,
            rope_theta=1e7, tie_word_embeddings=True)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of fewer than VOCAB words, as released tokenizers have fewer than their models."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True) for t in (PAD, "<|im_start|>", END)]
    bpe.train_from_iterator([TEXT] * 8, trainers.BpeTrainer(
        vocab_size=VOCAB - 12, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    bpe.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    made.chat_template = TEMPLATE
    return made


def _stir(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.05)
    return module.eval()


def _finish(folder: Path) -> Path:
    """Tokenizer, and a generation_config.json with two end ids, as the released checkpoints have."""
    made = tokenizer()
    made.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [made.eos_token_id, made.pad_token_id]}))
    return folder


def qwen(folder, seed: int = 0, **config) -> Path:
    """A Qwen3.5 text checkpoint; `config` changes the sizes of QWEN."""
    model.save(_stir(model.build(QWEN | config, seed=seed), seed), folder)
    return _finish(Path(folder))


def qwen_composite(folder, seed: int = 0, shards: int = 3, **config) -> Path:
    """The layout of the released checkpoints, written by transformers: composite config, `model.language_model.*` beside
    `model.visual.*`, MTP tensors added, in `shards` files with an index."""
    folder, text = Path(folder), {k: v for k, v in model.Config.from_json(QWEN | config).to_json().items()
                                  if k not in ("architectures", "rope_theta")}
    vision = dict(depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=text["hidden_size"],
                  num_position_embeddings=16, patch_size=2)
    torch.manual_seed(seed)
    whole = transformers.Qwen3_5ForConditionalGeneration(transformers.Qwen3_5Config(
        text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"]))
    _stir(whole, seed).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors |= {"mtp.fc.weight": torch.randn(8, 16), "mtp.norm.weight": torch.randn(8)}
    names, index = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}))
    return _finish(folder)


def gemma4(folder, seed: int = 0, composite: bool = False) -> Path:
    """Gemma 4 in small, with everything that makes it different: sliding and full layers of different head widths, layers
    that reuse keys and values, per-layer embeddings, soft-capped logits."""
    text = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
                num_key_value_heads=1, head_dim=16, global_head_dim=32, sliding_window=16, num_kv_shared_layers=2,
                use_double_wide_mlp=True, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB,
                final_logit_softcapping=30.0, max_position_embeddings=4096, bos_token_id=None, pad_token_id=0,
                eos_token_id=2, layer_types=["sliding_attention", "full_attention"] * 3)
    torch.manual_seed(seed)
    if composite:
        vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=2, head_dim=8, patch_size=4, position_embedding_size=16)
        made = transformers.Gemma4ForConditionalGeneration(transformers.Gemma4Config(
            text_config=text, vision_config=vision, audio_config=None))
    else:
        made = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**text))
    _stir(made, seed).save_pretrained(folder)
    return _finish(Path(folder))


def llama(folder, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=None, eos_token_id=2, pad_token_id=0))
    _stir(made, seed).save_pretrained(folder)
    return _finish(Path(folder))
