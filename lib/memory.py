"""Memory of a training run: estimated from config.json, and tried on the device before step 0.

    python -m lib.memory --model Qwen/Qwen3.5-2B --gpus 8           # loads and starts nothing

Weights, gradients and moments are arithmetic. Activations are not: the forward and backward pass of
the largest micro-batch runs on torch's meta device, where tensors have shapes and no contents, and
`Alive` counts what is alive. So the estimate knows nothing about a model but its code.

Left out: fragmentation of the allocator, and what kernels allocate that the meta device does not
have. `probe` finds those, on the device itself.
"""

import json
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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
from lib import errors, flags, weights
from lib.errors import UserError

GIB = 2 ** 30
ROWS_PER_PREFIX = 8                 # rows of a rollout for each prompt that is kept for forking
CUDA_CONTEXT = int(1.5 * GIB)       # driver, cuBLAS, NCCL: an allowance, counted from nothing
HEADROOM = 0.95                     # share of the free memory that a probe plans to use


# --------------------------------------------------------------------------------------------------
# Counting

class Alive(TorchDispatchMode):
    """Bytes of the tensors made while it is entered: alive now, and at the highest."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # what was there before is not counted, nor are its views
        for t in tree_iter((args, kwargs)):
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
    def fused(q, k, v, attn_mask=None, *, enable_gqa=False, **_):
        bias = None
        if enable_gqa:              # a kernel reads grouped keys where they are, without a copy
            shape = (*q.shape[:2], *k.shape[2:])
            k, v = k[:, :1].expand(shape), v[:, :1].expand(*shape[:3], v.shape[3])
        if attn_mask is not None:
            bias = q.new_empty(attn_mask.shape).expand(*q.shape[:3], k.shape[2])
        attention = torch.ops.aten._scaled_dot_product_efficient_attention
        return attention(q, k, v, bias, q.requires_grad)[0]
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(F, "scaled_dot_product_attention", fused))
        # a causal mask that is no matrix costs what no mask costs; torch cannot make one in here
        patches.enter_context(mock.patch.object(model, "causal_lower_right", lambda *size: None))
        if masking := sys.modules.get("transformers.masking_utils"):
            packed = mock.patch.object(masking, "find_packed_sequence_indices", lambda *_: None)
            patches.enter_context(packed)
        yield


# --------------------------------------------------------------------------------------------------
# Estimating

def skeleton(path_or_id: str, dtype: torch.dtype, revision: str | None = None) -> nn.Module:
    """The model of a config.json on the meta device. Of a hub id nothing else is fetched."""
    file = Path(path_or_id, "config.json")
    if not file.exists():
        from transformers.utils import cached_file
        try:
            file = Path(cached_file(path_or_id, "config.json", revision=revision))
        except OSError as e:
            reason = str(e).strip().splitlines()[0]
            raise FileNotFoundError(f"{path_or_id} holds no config.json here, and the hub did not "
                                    f"give one: {reason}") from e
    raw = json.loads(file.read_text())
    with torch.device("meta"):
        if raw.get("model_type") in ("qwen3_5", "qwen3_5_text"):
            return model.cast(model.Model(model.Config.from_json(raw)), dtype)
        import transformers

        from lib.adapter import Adapter
        config = transformers.AutoConfig.from_pretrained(file.parent)
        module = Adapter(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval())
        weights.freeze_tables(module)           # as the training scripts do
        return module


def rows_of(prompt_tokens: int, new_tokens: int, count: int) -> list[grpo.Row]:
    """`count` branches of one problem, as long as they can get, every one of their tokens with a
    loss."""
    row = grpo.Row([0] * prompt_tokens, [0] * new_tokens, 0, 1.0, 1.0, "solve")
    return [replace(row) for _ in range(count)]


def padded_tokens(prompt_tokens: int, new_tokens: int, count: int, shared: bool) -> int:
    """Of a micro-batch of such rows: one prompt for all where the model shares it, else one for
    each."""
    return (prompt_tokens if shared else count * prompt_tokens) + count * new_tokens


def largest_micro_batch(prompt_tokens: int, new_tokens: int, token_budget: int,
                        shared: bool = True) -> int:
    """How many such rows one micro-batch holds."""
    if shared:
        return max(1, (token_budget - prompt_tokens) // new_tokens)
    return max(1, token_budget // (prompt_tokens + new_tokens))


def activations(module: nn.Module, rows: list[grpo.Row]) -> int:
    """Bytes at the highest of a forward and backward pass over one micro-batch, gradients of
    weights leaving as soon as they are complete (FSDP reduces them block by block). `module` is
    on the meta device."""
    batch = grpo.collate(rows, torch.device("meta"), module.shares_prompts)
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
             for p in module.parameters() if p.requires_grad]
    with Alive() as alive, fused_attention():
        grpo.row_logprobs(module, batch, entropy=True)[0].sum().backward()
    for hook in hooks:
        hook.remove()
    return alive.peak


def decoding(module: nn.Module, slots: int, prompt_tokens: int,
             new_tokens: int) -> dict[str, int]:
    """Bytes of a rollout of `slots` rows, by what holds them. The module is on the meta device."""
    ids = torch.zeros(slots, prompt_tokens, dtype=torch.long, device="meta")
    parts = {}
    with Alive() as alive, fused_attention():
        if not module.can_fork:             # tried here, on the meta device
            raise UserError(f"{type(module.hf).__name__} decodes with a cache of its own, whose "
                            f"size is not known beforehand: its memory cannot be estimated")
        state = module.new_state(slots, prompt_tokens + new_tokens)
        parts["state rows"] = alive.now
        # plans come first; for the longer programs each layer grows in turn
        grows = max(sum(t.nbytes for t in layer) for layer in state.layers)
        prompts = ids[:-(-slots // ROWS_PER_PREFIX)]
        pool = module.new_state(len(prompts), prompt_tokens)
        parts["prompts to fork"] = alive.now - parts["state rows"]

        def highest(work: Callable[[], object]) -> int:
            before = alive.peak = alive.now
            work()
            return alive.peak - before

        def prefill() -> None:
            together = prompts[:max(1, rollout.PREFILL_TOKENS // prompt_tokens)]
            lengths = torch.full_like(together[:, 0], prompt_tokens)
            module.segment(together, lengths, pool.first_rows(len(together)))

        def step() -> None:
            logits = module.step(ids[:, 0], state, prompt_tokens + new_tokens)
            rollout.draw(logits, torch.zeros(slots, device="meta"), 0.7)

        # a state grows before prompts are kept for its rows
        parts["prefill or growth"] = max(highest(prefill), grows - parts["prompts to fork"])
        parts["a step"] = highest(step)
        del pool
    if not module.can_capture:              # a captured step keeps its memory for itself
        parts["prefill or growth"] = max(parts["prefill or growth"], parts.pop("a step"))
    return parts


def estimate(module: nn.Module, *, world: int, prompt_tokens: int, new_tokens: int,
             token_budget: int, slots: int, reference: bool = True) -> dict[str, dict[str, int]]:
    """Bytes on each rank, by phase: "always", and on top of it "rollout", "update", "step".

    world: ranks that share the weights, those of one node (`grpo.mesh_of_ranks`). `module` is on
    the meta device in the compute dtype, its `checkpointing` set as in the run.
    """
    params = list(module.parameters())
    count = sum(p.numel() for p in params)
    trained = sum(p.numel() for p in params if p.requires_grad)
    whole = sum(p.nbytes for p in params)
    gradients = 4 * trained // world
    always = {"fp32 master weights": 4 * count // world, "AdamW moments": 8 * trained // world,
              "sampler": whole, "reference": whole // world if reference else 0}

    most = largest_micro_batch(prompt_tokens, new_tokens, token_budget, module.shares_prompts)
    rows = rows_of(prompt_tokens, new_tokens, most)
    update = {"gradients": gradients, "activations": activations(module, rows)}
    if world > 1 or any(p.dtype != torch.float32 for p in params):
        # FSDP: the root stays whole, one block computes, one is fetched, one's gradient is reduced
        block = max(sum(p.numel() for p in b.parameters()) for b in module.blocks)
        root = count - sum(p.numel() for p in module.blocks.parameters())
        weight_bytes = whole // count
        update["gathered weights"] = weight_bytes * (root + 2 * block)
        update["gradients in reduction"] = 4 * block
    return {"always": always,
            "rollout": decoding(module, slots, prompt_tokens, new_tokens),
            "update": update,
            "step": {"gradients": gradients, "copy for step_norm": gradients}}


def report(estimated: dict[str, dict[str, int]], gpu_bytes: int) -> str:
    """An estimate as a table in GiB, and what to do where it does not fit."""
    helps = {"rollout": "fewer --slots", "update": "a smaller --token-budget",
             "step": "more GPUs"}
    always = sum(estimated["always"].values()) + CUDA_CONTEXT
    lines = []
    for phase, parts in estimated.items():
        total = always
        for name, size in parts.items():
            lines.append(f"{phase:8} {name:26}{size / GIB:8.2f}")
        if phase != "always":
            total += sum(parts.values())
            lines.append(f"{phase:8} {'= with what is always there':26}{total / GIB:7.2f}")
        if total > gpu_bytes:
            remedy = "more GPUs, or a smaller model" if always >= gpu_bytes else helps[phase]
            lines.append(f"WARNING: {phase} does not fit into {gpu_bytes / GIB:.0f} GiB; what "
                         f"helps: {remedy}")
    lines.append(f"each total includes {CUDA_CONTEXT / GIB} GiB for the driver and libraries")
    return "\n".join(lines)


def decoding_line(module: nn.Module, slots: int, prompt_tokens: int, new_tokens: int) -> str:
    """What sampling will hold, to be printed before it does."""
    forks = module.can_fork
    size = ""
    if forks:
        state = module.new_state(1, prompt_tokens + new_tokens)
        row = sum(t.nbytes for layer in state.layers for t in layer)
        size = f", about {slots * row / 2 ** 20:,.0f} MiB of state"
    return (f"sampling: {slots} slots of {prompt_tokens} + {new_tokens} tokens{size}; "
            f"cache forks, prompts shared: {'yes' if forks else 'no'}")


# --------------------------------------------------------------------------------------------------
# Probing

def room(device: torch.device) -> int:
    """Bytes that tensors on this GPU may still take."""
    return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device))


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's moments as before the first step, zero. Left to itself it makes them in that step,
    when everything else has been measured."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for moments in optimizer.state.values():
        moments["step"].zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


@contextmanager
def highest(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function: bytes allocated on the device at the highest since then, above what was
    there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        with Alive() as alive:
            yield lambda: alive.peak


def worst_case(policy: nn.Module, reference: nn.Module | None, rows: list[grpo.Row]) -> int:
    """Bytes at the highest, above what is there, of an update as `grpo.update` does it: the
    gradients of one micro-batch are there while the next one computes, and a copy of the weights
    measures the step."""
    params = [p for p in policy.parameters() if p.requires_grad]
    device = params[0].device
    batch = grpo.collate(rows, device, policy.shares_prompts)
    with highest(device) as bytes_now:
        with torch.no_grad():
            ref = None if reference is None else grpo.row_logprobs(reference, batch)
        for _ in range(2):
            logp, _ = grpo.row_logprobs(policy, batch, entropy=True)
            grpo.clipped_loss(logp, None, ref, torch.ones_like(logp))[0].sum().backward()
        copy = [grpo.local(p).detach().clone() for p in params]
        found = bytes_now()
    del copy
    policy.zero_grad(set_to_none=True)
    return found


def rows_that_fit(one: int, two: int, available: int) -> int:
    """Rows of a micro-batch that needs `one` bytes for one row and `two` for two."""
    return max(0, 1 + int((HEADROOM * available - one) // max(1, two - one)))


def probe(policy: nn.Module, reference: nn.Module | None, optimizer: torch.optim.Optimizer, *,
          prompt_tokens: int, new_tokens: int, token_budget: int) -> tuple[int, str]:
    """Run the largest micro-batch before step 0. Returns the token budget to use, and a warning if
    it is smaller than asked. Collective. Nothing happens on a CPU."""
    device = next(policy.parameters()).device
    if device.type != "cuda":
        return token_budget, ""
    make_moments(optimizer)

    def bytes_of(rows: int) -> int:
        return worst_case(policy, reference, rows_of(prompt_tokens, new_tokens, rows))

    # What fits follows from one row and from two, and all ranks agree on it before the largest is
    # tried: an out-of-memory error amid FSDP's collectives cannot be taken back, and would leave
    # the other ranks waiting in them.
    bytes_of(1)                 # loads libraries
    one, two = bytes_of(1), bytes_of(2)
    fits = torch.tensor(rows_that_fit(one, two, room(device)), device=device)
    fits = int(grpo.all_reduce(fits, torch.distributed.ReduceOp.MIN))
    if fits < 1:
        raise torch.OutOfMemoryError(
            f"a row of {prompt_tokens} + {new_tokens} tokens takes {one / GIB:.1f} GiB: too much; "
            f"lower --max-solve-tokens or use more GPUs")
    shared = policy.shares_prompts
    asked = largest_micro_batch(prompt_tokens, new_tokens, token_budget, shared)
    warning = ""
    if fits < asked:
        smaller = padded_tokens(prompt_tokens, new_tokens, fits, shared)
        warning = (f"--token-budget {token_budget} does not fit, {fits} of the longest rows do: "
                   f"{smaller} from here on")
        token_budget = smaller
    bytes_of(min(fits, asked))
    return token_budget, warning


def main() -> None:
    parser = flags.Parser("What each rank of a training run holds in memory, from config.json.")
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder or hub id; only its config.json is read")
    add("--gpus", type=flags.count, default=8, help="ranks of a node, which share weights")
    add("--gpu-gib", type=flags.above_zero, default=80.0, help="memory of each, in GiB")
    add("--token-budget", type=flags.count, default=16384, help="padded tokens per micro-batch")
    add("--prompt-tokens", type=flags.count, default=1024, help="of the longest problem")
    add("--max-solve-tokens", type=flags.count, default=2048, help="of the longest reply")
    add("--slots", type=flags.count, default=256, help="rows decoded together per rank")
    add("--beta", type=flags.weight, default=grpo.BETA, help="0: no reference")
    args = parser.parse_args()
    with errors.one_line():
        with errors.user_input():
            module = skeleton(args.model, torch.bfloat16)
        module.checkpointing = True         # as on a GPU, see lib/start.py
        estimated = estimate(
            module, world=args.gpus, prompt_tokens=args.prompt_tokens,
            new_tokens=args.max_solve_tokens, token_budget=args.token_budget, slots=args.slots,
            reference=args.beta > 0)
        print(report(estimated, int(args.gpu_gib * GIB)))


if __name__ == "__main__":
    main()
