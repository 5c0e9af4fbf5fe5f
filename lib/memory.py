"""Memory of a training run: planned from config.json alone, and tried on the device before step 0.

    python -m lib.memory --model Qwen/Qwen3.5-2B --gpus 8          # prints the plan; loads and
    starts nothing python train_cppo.py --model Qwen/Qwen3.5-2B --plan        # the same with a
    run's own flags

Weights, gradients and moments are arithmetic. Activations are not: the forward and backward pass
of the largest micro-batch runs on torch's meta device, where tensors have shapes and no contents,
and what is alive is counted (`Alive`). So the plan knows nothing about a model but its code.

Left out: fragmentation of the allocator, and what kernels allocate that the meta device does not
have. `probe` finds those, on the device itself.
"""

import argparse
import json
import sys
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import grpo
import model
import rollout
from lib import errors

GIB = 2 ** 30
CUDA_CONTEXT = int(1.5 * GIB)       # driver, cuBLAS, NCCL: an allowance, counted from nothing
HEADROOM = 0.95                     # share of the free memory that a probe plans to use


class Alive(TorchDispatchMode):
    """Bytes of the tensors made while it is entered: alive now, and at the highest."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for t in tree_iter((args, kwargs)):         # what was there before is not counted, nor are its views
            if isinstance(t, torch.Tensor):
                self.known.add(t.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for t in tree_iter(out):
            if isinstance(t, torch.Tensor) and (storage := t.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def free(self, n: int) -> None:
        self.now -= n


@contextmanager
def fused_attention():
    """The meta device would make attention's matrix of scores, which kernels of a GPU do not. And
    transformers would look whether position ids start anew within a row, at values that are not
    there."""
    def fused(q, k, v, attn_mask=None, **_):
        bias = None if attn_mask is None else q.new_empty(attn_mask.shape).expand(*q.shape[:3], k.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, q.requires_grad)[0]
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(F, "scaled_dot_product_attention", fused))
        if masking := sys.modules.get("transformers.masking_utils"):
            patches.enter_context(mock.patch.object(masking, "find_packed_sequence_indices", lambda *_: None))
        yield


def skeleton(path_or_id: str, dtype: torch.dtype, revision: str | None = None) -> nn.Module:
    """The model of a config.json on the meta device. Of a hub id nothing else is fetched."""
    file = Path(path_or_id, "config.json")
    if not file.exists():
        from transformers.utils import cached_file
        try:
            file = Path(cached_file(path_or_id, "config.json", revision=revision))
        except OSError as e:
            raise FileNotFoundError(f"{path_or_id} holds no config.json here, and the hub did not give one: "
                                    f"{str(e).strip().splitlines()[0]}") from e
    raw = json.loads(file.read_text())
    with torch.device("meta"):
        if raw.get("model_type") in ("qwen3_5", "qwen3_5_text"):
            return model.cast(model.Model(model.Config.from_json(raw)), dtype)
        import transformers

        from lib.adapter import Adapter
        config = transformers.AutoConfig.from_pretrained(file.parent)
        module = Adapter(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval())
        for table in module.per_layer_tables:           # as the training scripts do
            table.requires_grad_(False)
        return module


def rows_of(prompt_tokens: int, new_tokens: int, count: int) -> list[grpo.Row]:
    """`count` branches of one problem, as long as they can get, every one of their tokens with a
    loss."""
    return [grpo.Row([0] * prompt_tokens, [0] * new_tokens, 0, 1.0, 1.0, "solve") for _ in range(count)]


def padded_tokens(prompt_tokens: int, new_tokens: int, count: int, shared: bool) -> int:
    """Of a micro-batch of such rows: one prompt for all where the model shares it, else one for
    each."""
    return (prompt_tokens if shared else count * prompt_tokens) + count * new_tokens


def largest_micro_batch(prompt_tokens: int, new_tokens: int, token_budget: int, shared: bool = True) -> int:
    """How many such rows one micro-batch holds."""
    left, a_row = (token_budget - prompt_tokens, new_tokens) if shared else (token_budget, prompt_tokens + new_tokens)
    return max(1, left // a_row)


def activations(module: nn.Module, rows: list[grpo.Row], vocab: int | None = None) -> int:
    """Bytes at the highest of a forward and backward pass over one micro-batch, gradients of
    weights leaving as soon as they are complete (FSDP reduces them block by block). `module` is
    on the meta device."""
    batch = grpo.collate(rows, torch.device("meta"), module.shares_prompts)
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
             for p in module.parameters() if p.requires_grad]
    with Alive() as alive, fused_attention():
        grpo.row_logprobs(module, batch, 1.0, vocab).sum().backward()
    for hook in hooks:
        hook.remove()
    return alive.peak


def plan(module: nn.Module, *, world: int, prompt_tokens: int, new_tokens: int, token_budget: int, slots: int,
         reference: bool = True, others: dict[str, int] | None = None) -> dict[str, dict[str, int]]:
    """Bytes on each rank, by phase: "always", and on top of it "rollout", "update", "step".
    `module` is on the meta device in the compute dtype, its `checkpointing` set as the run will
    have it; `others` is more that is always there (a gate)."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    whole = sum(p.nbytes for p in module.parameters())
    masters = 4 * sum(p.numel() for p in module.parameters())
    mixed = world > 1 or any(p.dtype != torch.float32 for p in module.parameters())
    block = max(sum(p.numel() for p in b.parameters()) for b in module.blocks)
    root = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.blocks.parameters())
    width = whole // sum(p.numel() for p in module.parameters())            # bytes of a weight that computes
    rows = rows_of(prompt_tokens, new_tokens,
                   largest_micro_batch(prompt_tokens, new_tokens, token_budget, module.shares_prompts))
    always = {"fp32 master weights": masters // world, "AdamW moments": 8 * trained // world,
              "sampler": whole, "reference": whole // world * reference, **(others or {})}
    ids = torch.zeros(slots, prompt_tokens, dtype=torch.long, device="meta")
    with Alive() as alive, fused_attention():
        if not module.can_fork:
            raise ValueError(f"{type(module.hf).__name__} decodes with a cache of its own, whose size is not known "
                             f"beforehand: it cannot be planned")
        state = module.new_state(slots, prompt_tokens + new_tokens)
        buffers, some = alive.now, ids[:max(1, rollout.PREFILL_TOKENS // prompt_tokens)]       # prefilled together
        module.segment(some, torch.full_like(some[:, 0], prompt_tokens), module.new_state(len(some), prompt_tokens))
        module.step(ids[:, 0], state, prompt_tokens + new_tokens)
    update = {"gradients": 4 * trained // world, "activations": activations(module, rows)}
    if mixed:       # the root stays whole, one block computes, one is fetched, one's gradient is reduced
        update |= {"gathered weights": width * (root + 2 * block), "gradients in reduction": 4 * block}
    return {"always": always,
            "rollout": {"state rows": buffers, "prefill and decoding": alive.peak - buffers},
            "update": update,
            "step": {"gradients": 4 * trained // world, "copy for step_norm": 4 * trained // world}}


def report(planned: dict[str, dict[str, int]], gpu_bytes: int) -> str:
    """The plan as a table in GiB, and what to do where it does not fit."""
    lines, always = [], sum(planned["always"].values())
    helps = {"rollout": "fewer --slots", "update": "a smaller --token-budget, or --checkpointing",
             "step": "more GPUs"}
    for phase, parts in planned.items():
        base = 0 if phase == "always" else always
        total = base + sum(parts.values()) + CUDA_CONTEXT
        lines += [f"{phase:8} {name:26}{size / GIB:8.2f}" for name, size in parts.items()]
        lines += [f"{phase:8} {'= with what is always there':26}{total / GIB:7.2f}"] if base else []
        if total > gpu_bytes:
            help = helps.get(phase) if always + CUDA_CONTEXT < gpu_bytes else "more GPUs, or a smaller model"
            lines += [f"WARNING: {phase} does not fit into {gpu_bytes / GIB:.0f} GiB; what helps: {help}"]
    return "\n".join([*lines, f"each total includes {CUDA_CONTEXT / GIB} GiB for the driver and libraries"])


def room(device: torch.device) -> int:
    """Bytes that tensors on this GPU may still take."""
    return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device))


def worst_case(policy: nn.Module, reference: nn.Module | None, rows: list[grpo.Row]) -> int:
    """Bytes at the highest, above what is there, of one micro-batch going through as in
    `grpo.update`."""
    device = next(policy.parameters()).device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batch = grpo.collate(rows, device, policy.shares_prompts)
    with torch.no_grad():
        ref = None if reference is None else grpo.row_logprobs(reference, batch)
    logp = grpo.row_logprobs(policy, batch)
    grpo.clipped_loss(logp, None, ref, torch.ones_like(logp))[0].sum().backward()
    policy.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device) - before


def rows_that_fit(one: int, two: int, available: int) -> int:
    """Rows of a micro-batch that needs `one` bytes for one row and `two` for two."""
    return max(0, 1 + int((HEADROOM * available - one) // max(1, two - one)))


def probe(policy: nn.Module, reference: nn.Module | None, *, prompt_tokens: int, new_tokens: int,
          token_budget: int) -> tuple[int, str]:
    """Put the largest micro-batch through before step 0; returns the token budget to use, and
    what to say if it is smaller than asked. Collective. On a CPU there is nothing to find out.

    What fits is worked out from one row and from two, and agreed on by all ranks, before the
    largest is tried: an out-of-memory error in the middle of FSDP's collectives cannot be taken
    back, and would leave the other ranks waiting in them."""
    device = next(policy.parameters()).device
    if device.type != "cuda":
        return token_budget, ""
    rows = lambda n: rows_of(prompt_tokens, new_tokens, n)
    _, one, two = (worst_case(policy, reference, rows(n)) for n in (1, 1, 2))      # the first loads libraries
    fits = torch.tensor(rows_that_fit(one, two, room(device)), device=device)
    fits = int(grpo.all_reduce(fits, torch.distributed.ReduceOp.MIN))
    if fits < 1:
        raise torch.OutOfMemoryError(f"a row of {prompt_tokens} + {new_tokens} tokens takes {one / GIB:.1f} "
                                     f"GiB: too much; lower --max-solve-tokens or use more GPUs")
    asked, said = largest_micro_batch(prompt_tokens, new_tokens, token_budget, policy.shares_prompts), ""
    if fits < asked:
        said = f"--token-budget {token_budget} does not fit, {fits} of the longest rows do: "
        token_budget = padded_tokens(prompt_tokens, new_tokens, fits, policy.shares_prompts)
        said += f"{token_budget} from here on"
    worst_case(policy, reference, rows(min(fits, asked)))
    return token_budget, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder or hub id; only its config.json is read")
    add("--gpus", type=int, default=8, help="ranks")
    add("--gpu-gib", type=float, default=80.0, help="memory of each, in GiB")
    add("--token-budget", type=int, default=16384, help="padded tokens of a micro-batch")
    add("--prompt-tokens", type=int, default=1024, help="of the longest problem")
    add("--max-solve-tokens", type=int, default=2048)
    add("--slots", type=int, default=256, help="rows decoded together on a rank")
    add("--no-checkpointing", action="store_true", help="keep all activations")
    add("--beta", type=float, default=grpo.BETA, help="0: no reference")
    args = parser.parse_args()
    with errors.explain():
        module = skeleton(args.model, torch.bfloat16)
        module.checkpointing = not args.no_checkpointing
        planned = plan(module, world=args.gpus, prompt_tokens=args.prompt_tokens,
                       new_tokens=args.max_solve_tokens, token_budget=args.token_budget, slots=args.slots,
                       reference=args.beta > 0)
        print(report(planned, int(args.gpu_gib * GIB)))


if __name__ == "__main__":
    main()
