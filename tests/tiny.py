"""Makers of tiny checkpoints and of a tokenizer, for all tests. Equal arguments, equal folders.

    tiny.qwen(folder)                    # Qwen3.5 text layout, as in transformers' text class
    tiny.qwen_composite(folder)          # the released layout: vision tower, MTP tensors, shards
    tiny.gemma4(folder)                  # Gemma 4 E2B in small; composite=True: with a vision tower
    tiny.llama(folder)                   # any other small causal LM
    tiny.tokenizer()                     # byte-level BPE, 390 words, template with enable_thinking

Each maker writes a Hugging Face folder, tokenizer included, and returns its path. Noise is added to
the initial weights: no norm is 1, no row is 0, and every tensor matters to the logits.
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
TEXT = (
    "Read the numbers. Keep the small ones for 5 and print their size. A: Count them. B: Sum them "
    "up to\n5. You are given an array of n integers. Write a program that prints the answer. def "
    "solve(n): return [int(x)\nfor x in input().split()]\nfor i in range(n):\n"
    "    print(sum(a[i] for i in range(n) if a[i] % 2 == 0))\n")
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"""
QWEN = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, linear_key_head_dim=16,
            linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
            max_position_embeddings=4096, rope_theta=1e7, tie_word_embeddings=True)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of fewer words than VOCAB, as released tokenizers and models have it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True) for t in (PAD, "<|im_start|>", END)]
    bpe.train_from_iterator([TEXT] * 8, trainers.BpeTrainer(
        vocab_size=VOCAB - 12, special_tokens=specials, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    bpe.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    made.chat_template = TEMPLATE
    return made


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def hf(folder, **kwargs) -> transformers.PreTrainedModel:
    """What transformers makes of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def tensors(folder) -> dict[str, torch.Tensor]:
    """All tensors of a folder, whatever file they are in."""
    return {k: v for file in Path(folder).glob("*.safetensors") for k, v in load_file(file).items()}


def edit(folder, change=None, **config) -> None:
    """Change tensors of a single-file checkpoint with change(tensors), and keys of its config."""
    raw = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(raw))
    if change:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def stir(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Add noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.05)
    return module.eval()


def _finish(folder: Path) -> Path:
    """Tokenizer, and a generation_config.json with two end ids, as in released checkpoints."""
    made = tokenizer()
    made.save_pretrained(folder)
    ends = {"eos_token_id": [made.eos_token_id, made.pad_token_id]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


def qwen(folder, seed: int = 0, **config) -> Path:
    """A Qwen3.5 text checkpoint; `config` changes the sizes of QWEN."""
    model.save(stir(model.build(QWEN | config, seed=seed), seed), folder)
    return _finish(Path(folder))


def qwen_composite(folder, seed: int = 0, shards: int = 3, **config) -> Path:
    """The layout of released checkpoints, written by transformers: a composite config, tensors of
    `model.language_model` beside `model.visual`, MTP tensors; in `shards` files with an index."""
    folder = Path(folder)
    text = model.Config.from_json(QWEN | config).to_json()
    del text["architectures"]
    vision = dict(depth=1, hidden_size=16, intermediate_size=32, num_heads=2,
                  num_position_embeddings=16, patch_size=2, out_hidden_size=text["hidden_size"])
    torch.manual_seed(seed)
    whole = transformers.Qwen3_5ForConditionalGeneration(transformers.Qwen3_5Config(
        text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"]))
    stir(whole, seed).save_pretrained(folder)
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
    index = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return _finish(folder)


def gemma4(folder, seed: int = 0, composite: bool = False) -> Path:
    """Gemma 4 in small, with all that makes it different: sliding and full layers of different head
    widths, layers that reuse keys and values, per-layer embeddings, soft-capped logits."""
    text = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=6,
                num_attention_heads=4, num_key_value_heads=1, head_dim=16, global_head_dim=32,
                sliding_window=16, num_kv_shared_layers=2, use_double_wide_mlp=True,
                hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB,
                final_logit_softcapping=30.0, max_position_embeddings=4096, bos_token_id=None,
                pad_token_id=0, eos_token_id=2,
                layer_types=["sliding_attention", "full_attention"] * 3)
    torch.manual_seed(seed)
    if composite:
        vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                      num_attention_heads=2, num_key_value_heads=2, head_dim=8, patch_size=4,
                      position_embedding_size=16)
        made = transformers.Gemma4ForConditionalGeneration(transformers.Gemma4Config(
            text_config=text, vision_config=vision, audio_config=None))
    else:
        made = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**text))
    stir(made, seed).save_pretrained(folder)
    return _finish(Path(folder))


def llama(folder, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=2, pad_token_id=0))
    stir(made, seed).save_pretrained(folder)
    return _finish(Path(folder))
