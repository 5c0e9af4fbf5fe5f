"""Every other causal language model of transformers, Gemma 4 E2B and E4B first, behind the calls
of model.py.

`model.load` returns an `Adapter` for any checkpoint that is not a Qwen3.5. What is different here:

1. Decoding: transformers gets a cache of ours, the buffers of `model.State` indexed by position,
   and masks to match; so rows fork, join and leave as in model.py. Whether a model plays along is
   tried on a few tokens.
2. A model that does not (a recurrent state, an attention of its own kind) says so once and has
   `can_fork` False. It decodes in waves: a state takes one segment, of whole prompts, then steps.
   Nothing is shared.
3. The loss gives every continuation its own copy of the prompt.
4. Towers for pictures and sound are loaded, frozen and saved again; `per_layer_tables` names what
   a trainer had better freeze as well.
"""

import inspect
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lib.weights import Source, whole
from model import BUCKET, Model, State, buffer_index, round_to_bucket


class Adapter(nn.Module):
    fp32_units = ()
    shares_prompts = False      # by 3: padding after a shared prompt would only repeat it
    can_capture = False         # what transformers does between two kernels is not ours to promise

    def __init__(self, hf: nn.Module):
        super().__init__()
        self.hf, self.source, self.eos_ids, self.checkpointing = hf, None, set(), False
        self.config = hf.config.get_text_config()
        self.softcap = getattr(self.config, "final_logit_softcapping", None)
        self.cells: list[tuple[int, ...]] = []      # (layer, heads, key width, value width)
        for m in hf.modules():                      # training mode is used below for checkpointing alone
            for name in ("p", "dropout", "attention_dropout"):
                if isinstance(getattr(m, name, None), float):
                    setattr(m, name, 0.0)
        hf.requires_grad_(False)                    # towers for pictures and sound: saved again, else unused
        self.decoder.requires_grad_(True)
        self.head_weight.requires_grad_(True)

    @classmethod
    def load(cls, folder: Path, raw: dict, dtype: torch.dtype, device: torch.device | str) -> "Adapter":
        kind = raw.get("model_type")
        if kind not in transformers.CONFIG_MAPPING or \
                transformers.CONFIG_MAPPING[kind] not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{folder}: transformers {transformers.__version__} has no causal language "
                             f"model of the type {kind!r}")
        hf, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
        for problem, key in (("lacks the tensor", "missing_keys"),
                             ("has an unknown tensor", "unexpected_keys"),
                             ("has the wrong shape for", "mismatched_keys")):
            if report[key]:
                raise ValueError(f"{folder}: the checkpoint {problem} {sorted(report[key])[0]}")
        module = cls(hf.to(device).eval())
        module.source = Source(folder, raw)
        ids = torch.arange(4, device=device).unsqueeze(0)
        with torch.no_grad():
            if not close(module(ids), hf(ids).logits):
                raise ValueError(f"{folder}: the logits of {type(hf).__name__} are not hidden states times a "
                                 f"head, soft-capped at most; it cannot be trained here")
        return module

    def write(self, folder: Path, writes: bool) -> None:
        tensors = {name: whole(t) for name, t in self.hf.state_dict().items()}
        if writes:
            self.hf.save_pretrained(folder, state_dict=tensors)

    @property
    def decoder(self) -> nn.Module:
        return self.hf.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        return next(m for m in self.decoder.children()
                    if isinstance(m, nn.ModuleList) and len(m) == self.config.num_hidden_layers)

    @property
    def per_layer_tables(self) -> tuple[nn.Module, ...]:
        """Gemma's per-layer embeddings, half of E2B. A step has gradients for few of their rows,
        but AdamW keeps moments for all: 38 GiB with masters and gradients. So a trainer freezes
        them by default."""
        table = getattr(self.decoder, "embed_tokens_per_layer", None)
        return () if table is None else (table,)

    @property
    def head_weight(self) -> Tensor:
        return self.hf.get_output_embeddings().weight

    def forward(self, ids: Tensor, suffixes: Tensor | None = None, head: Callable | None = None):
        P, recompute = ids.shape[1], self.checkpointing and torch.is_grad_enabled()
        rows = ids if suffixes is None else torch.cat([ids.expand(len(suffixes), -1), suffixes], 1)
        if recompute:               # which transformers does in training mode only
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            getattr(self.hf, new if hasattr(self.hf, new) else old)({"use_reentrant": False})
            self.hf.train()
        x = self.decoder(input_ids=rows, use_cache=False).last_hidden_state
        if recompute:
            self.hf.eval()
        x = x if suffixes is None else x[:, P - 1:-1]
        return self._logits(x) if head is None else head(x, self.head_weight, self.softcap)

    def _logits(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.head_weight)
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    # ---- decoding

    @cached_property
    def cache_name(self) -> str:
        return cache_name(self.decoder)

    @cached_property
    def can_fork(self) -> bool:
        ids = torch.arange(12, device=self.head_weight.device).unsqueeze(0)
        try:
            with torch.no_grad():
                layers = self.decoder(input_ids=ids, use_cache=True)[self.cache_name].layers
                self.cells = [(i, layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1])
                              for i, layer in enumerate(layers) if getattr(layer, "keys", None) is not None]
                one, two = self._room(1, BUCKET), self._room(2, BUCKET)
                Model.segment(self, ids[:, :7], torch.tensor([6], device=ids.device), one)
                self.fork(two, [0, 1], one, [0, 0])
                Model.segment(self, ids[:, 6:11].expand(2, -1), torch.tensor([2, 5], device=ids.device), two)
                logits, why = Model.step(self, ids[0, [8, 11]], two, BUCKET)[1], "its logits change"
                works = close(logits, self(ids)[0, -1])
        except Exception as e:      # a model may stumble over a foreign cache in any way: that is the answer
            works, why = False, type(e).__name__
        if not works:
            warnings.warn(f"{type(self.hf).__name__}: its cache cannot be forked ({why}); every row prefills "
                          f"its whole prompt, and rows start together and wait for the last", stacklevel=2)
        return works

    def _room(self, rows: int, columns: int) -> State:
        like = self.head_weight.detach()
        layers = [(like.new_zeros(rows, h, columns + 1, dk), like.new_zeros(rows, h, columns + 1, dv))
                  for _, h, dk, dv in self.cells]
        return State(layers, torch.zeros(rows, dtype=torch.long, device=like.device), columns)

    def new_state(self, rows: int, capacity: int) -> State:
        state = self._room(rows if self.can_fork else 0, round_to_bucket(capacity))
        state.pos = state.pos.new_zeros(rows)
        return state

    fork = Model.fork

    @torch.no_grad()
    def segment(self, ids: Tensor, lengths: Tensor, state: State) -> Tensor:
        if self.can_fork:
            return Model.segment(self, ids, lengths, state)
        if state.wave is not None:
            raise ValueError(f"{type(self.hf).__name__} decodes in waves: a state takes one segment")
        longest = int(lengths.max())
        at = torch.arange(longest, device=ids.device) - (longest - lengths).unsqueeze(1)
        return self._wave(ids.gather(1, at.clamp(min=0)), at >= 0, at, None, lengths, state)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, limit: int) -> Tensor:
        if self.can_fork:
            return Model.step(self, ids, state, limit)
        cache, mask = state.wave
        mask = F.pad(mask, (0, 1), value=True)
        # rows that have ended go on to the end of the wave: keep their positions in the context
        at = state.pos.clamp(max=state.columns - 1).unsqueeze(1)
        return self._wave(ids.unsqueeze(1), mask, at, cache, 1, state)

    def _wave(self, ids: Tensor, mask: Tensor, at: Tensor, cache, lengths, state: State) -> Tensor:
        """Left-padded rows and the model's own cache, as transformers' `generate` does it."""
        out = self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=at.clamp(min=0),
                           use_cache=True, **{self.cache_name: cache})
        state.wave = out[self.cache_name], mask
        state.pos += lengths
        return self._logits(out.last_hidden_state[:, -1])

    def _advance(self, ids: Tensor, at: Tensor, limit: int, lengths: Tensor | None, state: State) -> Tensor:
        n, seen = torch.arange(limit, device=ids.device), at.clamp(max=limit - 1).unsqueeze(-1)
        window = getattr(self.config, "sliding_window", None)
        masks = {"full_attention": (n <= seen).unsqueeze(1)}                                    # (B, 1, T, n)
        if window is not None:
            masks["sliding_attention"] = masks["full_attention"] & (n > seen - window).unsqueeze(1)
        kinds = getattr(self.config, "layer_types", None) or [list(masks)[-1]]
        # to be added to the scores: every attention of transformers takes that, not every one a
        # boolean mask
        least = torch.finfo(self.head_weight.dtype).min
        masks = {kind: torch.where(masks[kind], 0.0, least).to(self.head_weight.dtype) for kind in set(kinds)}
        cache = slot_cache(state.layers, [layer for layer, *_ in self.cells], at, limit)
        return self.decoder(input_ids=ids, attention_mask=masks if len(masks) > 1 else masks[kinds[0]],
                            position_ids=at.clamp(max=state.columns - 1), use_cache=True,
                            **{self.cache_name: cache}).last_hidden_state


def cache_name(module: nn.Module) -> str:
    """The argument and output of a transformers module that holds its cache: `cache` from 5.24 on,
    `past_key_values` before (and until 5.40, with a warning)."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def slot_cache(buffers: list[tuple], layers: list[int], at: Tensor, limit: int):
    """A transformers cache that writes to positions `at` of our buffers and shows their first
    `limit`."""
    class Slots(transformers.Cache):
        def update(self, keys, values, layer_idx, *args, **kwargs):
            k, v = buffers[layers.index(layer_idx)]
            index = buffer_index(at, keys.shape[1])
            k[index], v[index] = keys, values
            return k[:, :, :limit], v[:, :, :limit]

    return Slots(layers=[])


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, in any dtype. A wrong mask or cache is off by as much as the logits
    vary."""
    return a.is_meta or bool((a - b).abs().mean() < 0.1 * b.std())
