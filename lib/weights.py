"""Checkpoints in and out: Hugging Face folders, behind `model.load` and `model.save`.

A checkpoint is read tensor by tensor into the network, and every tensor must be used or IGNORED. It
is written in the layout that it came in: names, vision tower and MTP tensors, tokenizer files. So
transformers and serving engines load the result as they loaded the original.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model import Config, Model, cast

SHARD_BYTES = 5 * 10**9     # largest weight file that `save` writes
# Tensors of a Qwen3.5 checkpoint that the text model has no use for; `save` copies them.
IGNORED = ("model.visual.*", "mtp.*")
# Files of a checkpoint that `save` copies, beside config.json and the weights.
CARRIED = ("generation_config.json", "tokenizer*", "*token*.json", "vocab*", "merges.txt",
           "chat_template*", "*processor_config.json")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Source:
    """Where a module came from, which decides how it is saved."""
    folder: Path | None                         # None: built, not loaded
    raw: dict                                   # its config.json
    prefix: str = "model.language_model."       # of the text model's tensor names


# ----------------------------------------------------------------------------------------- building

def build(config: dict | Config, dtype: torch.dtype = torch.float32,
          device: torch.device | str = "cpu", seed: int = 0) -> Model:
    """A randomly initialised Qwen3.5; a dict has keys of `Config`, of which six are required."""
    if isinstance(config, dict):
        known = {f.name for f in fields(Config)}
        known |= {"architectures", "model_type", "rope_parameters"}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(f"config: {unknown[0]!r} is no key of a Qwen3.5; those are "
                             f"{', '.join(sorted(known))}")
        config = Config.from_json({"tie_word_embeddings": True, "rope_theta": 1e7} | config)
    module = Model(config)
    initialise(module, torch.Generator().manual_seed(seed))
    module.eos_ids = as_set(config.eos_token_id)
    return cast(module, dtype).to(device)


@torch.no_grad()
def initialise(module: Model, random: torch.Generator) -> None:
    for name, p in module.named_parameters():
        if name.endswith("A_log"):
            p.uniform_(1, 16, generator=random).log_()
        elif name.endswith("dt_bias"):
            # softplus(dt_bias) is log-uniform in 0.001 to 0.1: heads that remember from 1 to 1000
            # tokens. transformers starts with 1, where nearly every head forgets all in a token.
            p.copy_(p.uniform_(-6.9, -2.3, generator=random).exp().expm1().log())
        elif name.endswith("conv1d.weight"):
            p.uniform_(-0.5, 0.5, generator=random)
        elif p.ndim == 2:
            p.normal_(0, module.config.initializer_range, generator=random)


# ------------------------------------------------------------------------------------------ loading

def load(path_or_id: str | Path, dtype: torch.dtype = torch.float32,
         device: torch.device | str = "cpu", revision: str | None = None) -> nn.Module:
    """A checkpoint folder or hub id (at `revision`): Qwen3.5 as a `Model`, others as an `Adapter`.

    ValueError or FileNotFoundError if it is incomplete or of another kind.
    """
    folder = find(path_or_id, revision)
    raw = read_json(folder / "config.json")
    if raw.get("model_type") in ("qwen3_5", "qwen3_5_text"):
        # Laid out on the device without values, then filled tensor by tensor: the weights never
        # exist twice, nor in host memory when the device is a GPU.
        with torch.device("meta"):
            module = cast(Model(Config.from_json(raw)), dtype)
        module.source = Source(folder, raw)
        fill(module.to_empty(device=device))
    else:
        from lib.adapter import Adapter         # needs transformers, which a Qwen3.5 does not
        module = Adapter.load(folder, raw, dtype, device)
    # Released checkpoints name their end tokens in several files, and not the same ones.
    configs = [raw, raw.get("text_config", {})]
    generation = folder / "generation_config.json"
    if generation.exists():
        configs.append(read_json(generation))
    for config in configs:
        module.eos_ids |= as_set(config.get("eos_token_id"))
    return module


def find(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, or found in the hub's cache. ID@REVISION
    names a branch, tag or commit."""
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder} holds no config.json: it is not a checkpoint folder")
        return folder
    if not revision:
        path_or_id, _, revision = str(path_or_id).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)):
        raise FileNotFoundError(f"{path_or_id}: no such folder, and not a hub id (owner/name) "
                                f"either")
    from huggingface_hub import snapshot_download       # not needed for folders
    wanted = ["*.json", "*.safetensors", *CARRIED]
    try:
        return Path(snapshot_download(str(path_or_id), revision=revision or None,
                                      allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as e:                  # the hub's errors derive from these
        reason = str(e).strip().splitlines()[0]
        raise FileNotFoundError(f"{path_or_id} is no folder here, and the hub did not give it: "
                                f"{type(e).__name__}: {reason}") from e


@torch.no_grad()
def fill(module: Model) -> None:
    """Read the checkpoint into the parameters: every tensor is used or IGNORED, every parameter
    filled."""
    folder = module.source.folder
    files = tensor_files(folder)
    files = {name: file for name, file in files.items() if not matches(name, IGNORED)}
    module.source.prefix = prefix_of(files, folder)
    parameters = named_for_checkpoint(module, module.source.prefix)
    # A tied head is stored all the same in some checkpoints; it must equal the embedding.
    head_file = None
    if module.config.tie_word_embeddings:
        head_file = files.pop("lm_head.weight", None)
    for problem, names in (("lacks the tensor", parameters.keys() - files.keys()),
                           ("has an unknown tensor", files.keys() - parameters.keys())):
        if names:
            raise ValueError(f"{folder}: the checkpoint {problem} {min(names)} (one of "
                             f"{len(names)}); its weights and config.json do not belong together")
    for name, p in parameters.items():
        value = read_tensor(files[name], name)
        if value.shape != p.shape:
            raise ValueError(f"{folder}: {name} has the shape {tuple(value.shape)}, and "
                             f"config.json says {tuple(p.shape)}")
        if value.dtype not in FLOATS:
            raise ValueError(f"{folder}: {name} is {value.dtype}; take the checkpoint that is not "
                             f"quantised")
        p.copy_(value)
    if head_file is not None:
        head = read_tensor(head_file, "lm_head.weight").to(module.head_weight)
        if not torch.equal(head, module.head_weight):
            raise ValueError(f"{folder}: config.json ties lm_head.weight to the embedding, and the "
                             f"two differ")


def prefix_of(names: Iterable[str], folder: Path) -> str:
    """What stands before the text model's tensor names: depends on which class wrote them."""
    end = "embed_tokens.weight"
    embeddings = [name for name in names if name.endswith(end)]
    if len(embeddings) != 1:
        raise ValueError(f"{folder}: {len(embeddings)} tensors are named ...{end}, not one")
    return embeddings[0].removesuffix(end)


def named_for_checkpoint(module: Model, prefix: str) -> dict[str, nn.Parameter]:
    """The parameters by their names in a checkpoint, where `Decay` is no module of its own."""
    out = {}
    for name, p in module.named_parameters():
        if not name.startswith("lm_head"):
            name = prefix + name.replace(".decay.", ".")
        out[name] = p
    return out


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def as_set(ids: int | list[int] | None) -> set[int]:
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else set(ids)


# ------------------------------------------------------------------------------------------- saving

def save(module: nn.Module, folder: str | Path, tokenizer=None) -> None:
    """Write a Hugging Face folder in the layout that the module came in, weights in their dtypes.

    Tensors that loading ignored, the generation config and the tokenizer's files are copied (a
    given tokenizer is written anew). Collective: every rank calls, the first one writes.
    """
    folder = Path(folder)
    source = module.source or Source(None, module.config.to_json())
    origin = source.folder
    if origin is not None and folder.resolve() == origin.resolve():
        raise ValueError(f"{folder} is where the model was loaded from; save it to another folder")
    if tokenizer is not None:
        check_fits(module, tokenizer)
    writes = not dist.is_initialized() or dist.get_rank() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    if isinstance(module, Model):
        write_tensors(module, source, folder, writes)
    else:
        module.write(folder, writes)
    if not writes:
        return
    if isinstance(module, Model):
        write_config(module, source, folder)
    if origin is not None:
        for file in sorted(origin.iterdir()):
            if file.is_file() and matches(file.name, CARRIED):
                shutil.copyfile(file, folder / file.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_tensors(module: Model, source: Source, folder: Path, writes: bool) -> None:
    """Gather and write one weight file at a time, then the index if there are several."""
    own = named_for_checkpoint(module, source.prefix)
    files = {} if source.folder is None else tensor_files(source.folder)
    ignored = {name: file for name, file in files.items() if matches(name, IGNORED)}
    sizes = {name: p.nbytes for name, p in own.items()}
    for name, file in ignored.items():
        sizes[name] = read_tensor(file, name).nbytes
    shards = split(sizes)
    weight_map = {}
    for i, names in enumerate(shards, 1):
        part = f"-{i:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        tensors = {}
        for name in names:
            if name in own:
                tensor = whole(own[name])               # collective: on the other ranks, too
                if writes:
                    tensors[name] = tensor.cpu().contiguous()
            elif writes:
                tensors[name] = read_tensor(ignored[name], name)
        if writes:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if writes and len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def split(sizes: dict[str, int]) -> list[list[str]]:
    """Names of tensors for each file of at most SHARD_BYTES (or of one tensor)."""
    shards, total = [[]], 0
    for name, nbytes in sizes.items():
        if shards[-1] and total + nbytes > SHARD_BYTES:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += nbytes
    return shards


def write_config(module: Model, source: Source, folder: Path) -> None:
    """The config.json that the module came with, with the dtype that the weights have now."""
    dtype = str(module.head_weight.dtype).removeprefix("torch.")

    def with_dtype(config: dict) -> dict:
        config = config | {"dtype": dtype}
        config.pop("torch_dtype", None)                 # the older name of the same key
        return config

    raw = with_dtype(source.raw)
    if "text_config" in raw:
        raw["text_config"] = with_dtype(raw["text_config"])
    write_json(folder / "config.json", raw)


def whole(p: Tensor) -> Tensor:
    """Full tensor, where it lies. Collective if sharded."""
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


def load_tokenizer(folder: str | Path):
    """The tokenizer of a checkpoint folder. ValueError in one sentence if it has none."""
    from transformers import AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:          # a broken file raises whatever its reader raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} holds no tokenizer that transformers can read: "
                         f"{reason:.200}") from error


def doubts(module: nn.Module, tokenizer) -> list[str]:
    """What is allowed about a checkpoint and often a mistake, a sentence each."""
    from rollout import end_ids
    found = []
    if not getattr(tokenizer, "chat_template", None):
        found.append("the tokenizer has no chat template: prompts are plain text, as for a base "
                     "model")
    if not end_ids(module, tokenizer):
        found.append("neither tokenizer nor config names an id that ends a reply: every reply runs "
                     "to its length limit")
    return found


def freeze_tables(module: nn.Module) -> str:
    """Freeze Gemma's per-layer embeddings, which are half of E2B: AdamW's moments for all of their
    rows take more memory than the rest (Adapter.per_layer_tables). CPPO_TRAIN_TABLES=1 trains them.
    Returns a sentence for the log, "" for any other model."""
    frozen = 0
    for table in module.per_layer_tables:
        trains = os.environ.get("CPPO_TRAIN_TABLES") == "1"
        table.requires_grad_(trains)
        frozen += 0 if trains else sum(p.numel() for p in table.parameters())
    if not frozen:
        return ""
    return (f"per-layer embeddings are frozen: {frozen / 1e9:.2f} B parameters "
            f"(CPPO_TRAIN_TABLES=1 trains them)")


def check_fits(module: nn.Module, tokenizer, rows: Iterable[tuple[str, int]] = ()) -> None:
    """ValueError if the tokenizer has ids without an embedding, or if one of `rows` (problem,
    tokens) does not fit into the context."""
    words = module.config.vocab_size
    context = getattr(module.config, "max_position_embeddings", None)
    if len(tokenizer) > words:
        raise ValueError(f"the tokenizer has {len(tokenizer)} words and the model {words}: they do "
                         f"not belong together")
    for problem, n in rows:
        if context and n > context:
            raise ValueError(f"problem {problem!r}: {n} tokens exceed the model's context of "
                             f"{context}; leave it out or shorten it")


# -------------------------------------------------------------------------------------------- files

def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def tensor_files(folder: Path) -> dict[str, Path]:
    """{tensor name: its safetensors file} of a checkpoint, single or sharded."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map", {})
        files = {name: folder / file for name, file in weight_map.items()}
        for file in sorted(set(files.values())):
            if not file.exists():
                raise FileNotFoundError(f"{file} is not there, though {index.name} names it")
        return files
    if not single.exists():
        raise FileNotFoundError(f"{folder} holds neither {single.name} nor {index.name}; convert "
                                f"other formats first (with save_pretrained of transformers)")
    try:
        with safe_open(single, "pt") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    except SafetensorError as e:
        raise ValueError(f"{single} is broken: {e}") from e


def read_tensor(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(name)
    except SafetensorError as e:
        raise ValueError(f"{file} does not give {name}: {e}") from e
