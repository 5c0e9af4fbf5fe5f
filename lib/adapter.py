"""Every other causal language model of transformers, Gemma 4 E2B and E4B first, behind the calls
of model.py.

`model.load` returns an `Adapter` for any checkpoint that is not a Qwen3.5. What is different here:

1. Decoding: transformers gets a cache of ours, the buffers of `model.State` indexed by position,
   and masks to match; so rows fork, join and leave as in model.py. `can_fork` tries on a few
   tokens whether a model works with such a cache.
2. For a model that does not (a recurrent state, an attention of its own kind) we warn once, and
   `can_fork` is False. It decodes in waves: a state takes one segment, of whole prompts, then
   steps. Nothing is shared.
3. The loss gives every continuation its own copy of the prompt.
4. Towers for pictures and sound are loaded, frozen and saved again; trainers freeze
   `per_layer_tables`, too.
"""

import inspect
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.weights import Source, whole
from model import BUCKET, Model, State, buffer_index, head_logits, round_to_bucket

LOGIT_ERROR = 0.01      # `distance` beyond that of rounding: what a wrong mask or position adds
PROBED = 40             # tokens that the probe of `can_fork` reads


class Adapter(nn.Module):
    fp32_units = ()
    shares_prompts = False      # see 3: padding after a shared prompt would only repeat the prompt

    def __init__(self, hf: nn.Module):
        super().__init__()
        self.hf, self.source, self.eos_ids, self.checkpointing = hf, None, set(), False
        self.config = hf.config.get_text_config()
        self.softcap = getattr(self.config, "final_logit_softcapping", None)
        self.cells: list[tuple[int, ...]] = []      # (layer, heads, key width, value width)
        # `forward` uses training mode for checkpointing alone, so dropout must be off there, too.
        for m in hf.modules():
            for name in ("p", "dropout", "attention_dropout"):
                if isinstance(getattr(m, name, None), float):
                    setattr(m, name, 0.0)
        # Only the text model trains: towers for pictures and sound are saved again, else unused.
        hf.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.head_weight.requires_grad_(True)

    @classmethod
    def load(cls, folder: Path, raw: dict, dtype: torch.dtype,
             device: torch.device | str) -> "Adapter":
        """ValueError if the checkpoint is incomplete, or if its logits are not a head's."""
        kind = raw.get("model_type")
        config_class = None
        if kind in transformers.CONFIG_MAPPING:
            config_class = transformers.CONFIG_MAPPING[kind]
        if config_class not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{folder}: transformers {transformers.__version__} has no causal "
                             f"language model of the type {kind!r}")
        try:
            hf, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
        except SafetensorError as error:
            raise ValueError(f"{folder}: model.safetensors is damaged ({error})") from error
        for problem, key in (("lacks the tensor", "missing_keys"),
                             ("has an unknown tensor", "unexpected_keys"),
                             ("has the wrong shape for", "mismatched_keys")):
            if report[key]:
                raise ValueError(f"{folder}: the checkpoint {problem} {sorted(report[key])[0]}")
        module = cls(hf.to(device).eval())
        module.source = Source(folder, raw)
        # The loss computes logits from hidden states and the head's weight: check that they agree.
        ids = module._ordinary_ids(4)
        with torch.no_grad():
            if distance(module(ids), hf(ids).logits) > LOGIT_ERROR:
                raise ValueError(f"{folder}: the logits of {type(hf).__name__} are not hidden "
                                 f"states times a head, soft-capped at most; it cannot be trained "
                                 f"here")
        return module

    def write(self, folder: Path, writes: bool) -> None:
        """Weights and config.json, for `model.save`. Collective if sharded."""
        tensors = {}
        for name, t in self.hf.state_dict().items():
            tensor = whole(t)
            if writes:
                tensors[name] = tensor.cpu().contiguous()
        if writes:
            self.hf.save_pretrained(folder, state_dict=tensors)

    @property
    def decoder(self) -> nn.Module:
        return self.hf.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        for m in self.decoder.children():
            if isinstance(m, nn.ModuleList) and len(m) == self.config.num_hidden_layers:
                return m
        raise AttributeError(f"{type(self.hf).__name__} has no list of its layers")

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
        """As `Model.forward`: ids (B, T), or one prompt (1, P) and its suffixes (B, S)."""
        rows = ids
        if suffixes is not None:
            rows = torch.cat([ids.expand(len(suffixes), -1), suffixes], 1)
        recompute = self.checkpointing and torch.is_grad_enabled()
        if recompute:               # transformers does it in training mode only
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            getattr(self.hf, new if hasattr(self.hf, new) else old)({"use_reentrant": False})
            self.hf.train()
        x = self.decoder(input_ids=rows, use_cache=False).last_hidden_state
        if recompute:
            self.hf.eval()
        if suffixes is not None:
            x = x[:, ids.shape[1] - 1:-1]
        return self._logits(x) if head is None else head(x, self.head_weight, self.softcap)

    def _logits(self, x: Tensor) -> Tensor:
        z = head_logits(x, self.head_weight)
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    # ---- decoding

    @cached_property
    def cache_name(self) -> str:
        return cache_name(self.decoder)

    @cached_property
    def can_fork(self) -> bool:
        try:
            works = self._forks()
            why = "its logits change"
        except Exception as error:      # a model may reject a foreign cache with any error
            works, why = False, type(error).__name__
        if not works:
            warnings.warn(f"{type(self.hf).__name__}: its cache cannot be forked ({why}); every "
                          f"row prefills its whole prompt, and rows start together and wait for "
                          f"the last", stacklevel=2)
        return works

    @cached_property
    def can_capture(self) -> bool:
        """Whether a step never has the host read a number of the device. What of transformers does
        that, no CUDA graph can record."""
        if not self.can_fork:
            return False
        ids = torch.zeros(2, dtype=torch.long, device=self.head_weight.device)
        try:
            with NoHostReads():
                Model.step(self, ids, self._empty_state(2, BUCKET), BUCKET)
        except HostRead as error:
            warnings.warn(f"{type(self.hf).__name__}: its decoding steps cannot be captured in "
                          f"CUDA graphs ({error}); on a GPU they are slower", stacklevel=2)
            return False
        return True

    def _ordinary_ids(self, n: int) -> Tensor:
        """(1, n) ids from the middle of the vocabulary: the first and last ones are often special
        or untrained, and logits after them say little."""
        words = self.head_weight.shape[0]
        device = self.head_weight.device
        return torch.linspace(0.2 * words, 0.5 * words, n, device=device).long().unsqueeze(0)

    @torch.no_grad()
    def _forks(self) -> bool:
        """Prefill, fork, continue and step: are the logits those of `forward`, as nearly as those
        of transformers' own cache are?"""
        ids = self._ordinary_ids(PROBED)
        n = PROBED - 5              # tokens before the step; 4 more come after it
        out = self.decoder(input_ids=ids[:, :n], use_cache=True)
        layers = out[self.cache_name].layers
        self.cells = []
        for i, layer in enumerate(layers):
            keys = getattr(layer, "keys", None)
            if keys is not None:        # some layers reuse another one's keys and values
                self.cells.append((i, keys.shape[1], keys.shape[-1], layer.values.shape[-1]))
        one, two = self._empty_state(1, BUCKET), self._empty_state(2, BUCKET)
        half = n // 2
        Model.segment(self, ids[:, :half + 1], ids.new_tensor([half]), one)
        self.fork(two, [0, 1], one, [0, 0])
        Model.segment(self, ids[:, half:n].expand(2, -1), ids.new_tensor([2, n - half]), two)
        ours, theirs = [], []
        for t in range(n, PROBED):          # row 0 is a neighbour that has read less
            ours.append(Model.step(self, ids[0, [t, t]], two, BUCKET)[1])
            cached = {self.cache_name: out[self.cache_name]}
            out = self.decoder(input_ids=ids[:, t:t + 1], use_cache=True, **cached)
            theirs.append(self._logits(out.last_hidden_state[0, -1]))
        if ids.is_meta:
            return True
        whole = self(ids)[0, n:]
        noise = distance(torch.stack(theirs), whole)
        return distance(torch.stack(ours), whole) <= 1.5 * noise + LOGIT_ERROR

    def _empty_state(self, rows: int, columns: int) -> State:
        like = self.head_weight.detach()
        layers = []
        for _, h, dk, dv in self.cells:
            layers.append((like.new_zeros(rows, h, columns + 1, dk),
                           like.new_zeros(rows, h, columns + 1, dv)))
        return State(layers, torch.zeros(rows, dtype=torch.long, device=like.device), columns)

    def new_state(self, rows: int, capacity: int) -> State:
        columns = round_to_bucket(capacity)
        if self.can_fork:
            return self._empty_state(rows, columns)
        pos = torch.zeros(rows, dtype=torch.long, device=self.head_weight.device)
        return State([], pos, columns)

    fork, grow = Model.fork, Model.grow

    @torch.no_grad()
    def segment(self, ids: Tensor, lengths: Tensor, state: State) -> Tensor:
        if self.can_fork:
            return Model.segment(self, ids, lengths, state)
        if state.wave is not None:
            raise ValueError(f"{type(self.hf).__name__} decodes in waves: a state takes one "
                             f"segment")
        longest = int(lengths.max())
        at = torch.arange(longest, device=ids.device) - (longest - lengths).unsqueeze(1)
        return self._wave(ids.gather(1, at.clamp(min=0)), at >= 0, at, None, lengths, state)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, limit: int) -> Tensor:
        if self.can_fork:
            return Model.step(self, ids, state, limit)
        cache, mask = state.wave
        mask = F.pad(mask, (0, 1), value=True)
        # Rows that have ended go on to the end of the wave: keep their positions in the context.
        at = state.pos.clamp(max=state.columns - 1).unsqueeze(1)
        return self._wave(ids.unsqueeze(1), mask, at, cache, 1, state)

    def _wave(self, ids: Tensor, mask: Tensor, at: Tensor, cache, lengths, state: State) -> Tensor:
        """Left-padded rows and the model's own cache, as transformers' `generate` does it."""
        out = self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=at.clamp(min=0),
                           use_cache=True, **{self.cache_name: cache})
        state.wave = out[self.cache_name], mask
        state.pos += lengths
        return self._logits(out.last_hidden_state[:, -1])

    def _advance(self, ids: Tensor, at: Tensor, limit: int, lengths: Tensor | None,
                 state: State) -> Tensor:
        """Hidden states (B, T, H) of ids at positions `at` (B, T), as `Model._advance`."""
        masks = self._masks(at, limit)
        cache = Slots(state.layers, [layer for layer, *_ in self.cells], at, limit)
        # transformers takes one mask, or one per kind of layer if there are several kinds
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        out = self.decoder(input_ids=ids, attention_mask=mask, use_cache=True,
                           position_ids=at.clamp(max=state.columns - 1), **{self.cache_name: cache})
        return out.last_hidden_state

    def _masks(self, at: Tensor, limit: int) -> dict[str, Tensor]:
        """{kind of layer: what is added to its scores (B, 1, T, n)}."""
        n = torch.arange(limit, device=at.device)
        last = at.clamp(max=limit - 1).unsqueeze(-1)
        seen = {"full_attention": (n <= last).unsqueeze(1)}
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if window is not None:
            inside = (n > last - window).unsqueeze(1)
            seen["sliding_attention"] = seen["full_attention"] & inside
        if not kinds:                   # all layers alike: they slide if there is a window
            kinds = [list(seen)[-1]]
        # Added to the scores: every attention of transformers takes that, but not every one takes a
        # boolean mask.
        dtype = self.head_weight.dtype
        least = torch.finfo(dtype).min
        return {kind: torch.where(seen[kind], 0.0, least).to(dtype) for kind in set(kinds)}


class HostRead(Exception):
    pass


class NoHostReads(TorchDispatchMode):
    """Raises HostRead for every operation that would make the host wait for a GPU's numbers."""
    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in self.READS:
            raise HostRead(name)
        return func(*args, **(kwargs or {}))


def cache_name(module: nn.Module) -> str:
    """The argument and output of a transformers module that holds its cache: `cache` from 5.24 on,
    `past_key_values` before (and until 5.40, with a warning)."""
    parameters = inspect.signature(module.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


class Slots(transformers.Cache):
    """A transformers cache that writes to positions `at` of our buffers and shows their first
    `limit`. places: layer -> its buffers."""

    def __init__(self, buffers: list[tuple], places: list[int], at: Tensor, limit: int):
        super().__init__(layers=[])
        self.buffers, self.places, self.at, self.limit = buffers, places, at, limit

    def update(self, keys, values, layer_idx, *args, **kwargs):
        k, v = self.buffers[self.places.index(layer_idx)]
        index = buffer_index(self.at, keys.shape[1])
        k[index], v[index] = keys, values
        return k[:, :, :self.limit], v[:, :, :self.limit]


def distance(a: Tensor, b: Tensor) -> float:
    """How far logits a are from b, both (..., V), in units of how b varies over the vocabulary.

    A constant added to all logits is none. A 135M model: 2e-6 from rounding in fp32 and 0.02 in
    bf16; 0.32 from a mask that is off by one, 0.04 from one position left out.
    """
    if a.is_meta:
        return 0.0
    a, b = a.float(), b.float()
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return float((a - b).abs().mean() / b.std())
