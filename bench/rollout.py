"""Sampling beside `transformers.generate`: the same weights, prompts and tokens per row.

    python -m bench.rollout ragged    # 192 rows of 6 prompts, replies of 2 to 64 tokens: the engine
    python -m bench.rollout step      # a step of a 0.75 B model in bf16 at batch 8: the model alone
    python -m bench.rollout ragged --model FOLDER --rows 32 --dtype bf16    # a released model

One thread, CPU seconds of this process, the two sides in turn, the median over repeats. The floor
is what this machine needs for the unavoidable work alone:

    ragged  every prompt's shared part, every suffix and every sampled token once, through the
            products with the weights, at the rate that such products reach here with 64 rows
    step    every weight read once, at the bandwidth of a large copy

The same on a GPU is in bench/gpu.py.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
import transformers

import model
from lib.adapter import cache_name
from rollout import Engine, Job

# Keys of config.json in which the released text models differ from the defaults; "mini" is for the
# ragged job.
SIZES = {
    "mini": dict(vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                 linear_key_head_dim=64, linear_value_head_dim=64,
                 linear_num_key_heads=2, linear_num_value_heads=4),
    "0.8B": dict(vocab_size=248320, hidden_size=1024, intermediate_size=3584, num_hidden_layers=24,
                 num_attention_heads=8, num_key_value_heads=2, linear_num_value_heads=16),
    "2B": dict(vocab_size=248320, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24,
               num_attention_heads=8, num_key_value_heads=2, linear_num_value_heads=16)}


DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class NoWords:
    """What the engine asks of a tokenizer; nothing ends a reply but its length."""
    eos_token_id = None

    def __init__(self, words: int):
        self.words = words

    def __len__(self) -> int:
        return self.words

    def decode(self, ids: list[int], **_) -> str:
        return ""


class Lengths(transformers.StoppingCriteria):
    """Ends row i of `generate` after lengths[i] tokens, as `max_new_tokens` of a Job does."""

    def __init__(self, lengths: list[int], prompt: int):
        self.total = torch.tensor(lengths) + prompt

    def __call__(self, ids, scores, **_):
        return ids.shape[1] >= self.total


def both(size: str, dtype: torch.dtype, folder: str | None = None):
    """The same weights as ours and as transformers' module: those of a folder, or random ones."""
    if folder:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        theirs.generation_config.eos_token_id = None
        theirs.generation_config.pad_token_id = 0
        ours = model.load(folder, dtype)
        ours.eos_ids = set()
        return ours, theirs
    with tempfile.TemporaryDirectory() as folder:
        model.save(model.build(SIZES[size], dtype), folder)
        ours = model.load(folder, dtype)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    theirs.generation_config.pad_token_id = 0       # and no end: rows end by length
    return ours, theirs


def generate(hf, prompts: list[list[int]], lengths: list[int], batch: int,
             greedy: bool = False) -> list:
    """Left-padded batches, one after the other: what a trainer that calls `generate` does."""
    out = []
    for i in range(0, len(prompts), batch):
        rows, wanted = prompts[i:i + batch], lengths[i:i + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        made = hf.generate(ids, attention_mask=mask, max_new_tokens=max(wanted),
                           do_sample=not greedy, top_k=0, top_p=1.0,
                           stopping_criteria=[Lengths(wanted, width)])
        for row, n in zip(made[:, width:].tolist(), wanted, strict=True):
            out.append(row[:n])
    return out


def engine(module, prompts: list[list[int]], lengths: list[int], shared: list[int], slots: int,
           greedy: bool = False) -> list:
    words = NoWords(module.config.vocab_size)
    sampler = Engine(module, words, slots, temperature=0.0 if greedy else 1.0)
    jobs = []
    for i, (prompt, n, begin) in enumerate(zip(prompts, lengths, shared, strict=True)):
        jobs.append(Job(prompt, (0, i), n, begin, tag=i))
    done = {job.tag: sample.ids for job, sample in sampler.run(jobs)}
    return [done[i] for i in range(len(jobs))]


def in_turn(sides: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each side; one round that is not counted, then A, B, A, B ..."""
    seconds = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.process_time()
            side()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def products(module) -> int:
    """Multiply-adds of a token in the weights' matrix products, head included."""
    total = module.head_weight.numel()
    for name, p in module.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            total += p.numel()
    return total


def bandwidth() -> float:
    """Bytes per second of a large copy, read and written both counted."""
    a = torch.ones(2**27, dtype=torch.float32)
    b = torch.empty_like(a)
    return 2 * a.nbytes / in_turn({"copy": lambda: b.copy_(a)}, 5)["copy"]


def product_rate() -> float:
    """Multiply-adds per second of a product of 64 rows with a weight."""
    a, b = torch.randn(64, 256), torch.randn(768, 256)

    def thousand():
        for _ in range(1000):
            a @ b.T
    return 1000 * a.shape[0] * b.numel() / in_turn({"product": thousand}, 5)["product"]


def ragged(args: argparse.Namespace) -> None:
    rows, repeats = args.rows, args.repeats
    ours, hf = both("mini", getattr(torch, DTYPES[args.dtype]), args.model)
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(2, 500, rng.integers(100, 140)).tolist() for _ in range(6)]
    suffixes = [rng.integers(2, 500, rng.integers(8, 20)).tolist() for _ in range(rows)]
    lengths = np.minimum(64, rng.lognormal(np.log(22), 0.6, rows)).astype(int).clip(2).tolist()
    owner = [i * len(prefixes) // rows for i in range(rows)]
    prompts = [prefixes[owner[i]] + s for i, s in enumerate(suffixes)]
    shared = [len(prefixes[owner[i]]) for i in range(rows)]

    rate = product_rate()
    tokens = sum(map(len, prefixes)) + sum(map(len, suffixes)) + sum(lengths)
    floor = tokens * products(ours) / rate
    print(f"floor: {tokens} tokens x {products(ours) / 1e6:.2f} M multiply-adds at "
          f"{rate / 1e9:.1f} G/s = {floor:.2f} s")

    mine = engine(ours, prompts, lengths, shared, 64, greedy=True)
    theirs = generate(hf, prompts, lengths, 64, greedy=True)
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(f"rows with equal greedy tokens: {equal} of {rows}")
    seconds = in_turn({"generate": lambda: generate(hf, prompts, lengths, 64),
                       "engine": lambda: engine(ours, prompts, lengths, shared, 64)}, repeats)
    for name, s in seconds.items():
        print(f"{name:9} {s:6.2f} s {sum(lengths) / s:7.0f} tokens/s   {s / floor:5.1f} x floor")
    print(f"ratio {seconds['generate'] / seconds['engine']:.2f}  (wanted: 3, aim 4)")


def step(args: argparse.Namespace) -> None:
    repeats = args.repeats
    ours, hf = both("0.8B", torch.bfloat16)
    B, P, N = 8, 64, 8
    ids = torch.randint(0, 248320, (B, P + N), generator=torch.Generator().manual_seed(0))
    nbytes = sum(p.nbytes for p in ours.parameters())
    rate = bandwidth()
    floor = nbytes / rate
    print(f"floor: {nbytes / 2**30:.2f} GiB of weights at {rate / 1e9:.1f} GB/s = "
          f"{floor * 1e3:.0f} ms")

    state = ours.new_state(B, P + N)
    ours.segment(ids[:, :P], torch.full((B,), P), state)
    name = cache_name(hf)
    with torch.no_grad():
        cache = hf(ids[:, :P], use_cache=True, logits_to_keep=1)[name]

    @torch.no_grad()
    def theirs():                   # forward alone, without what `generate` adds around it
        for t in range(P, P + N):
            hf(ids[:, t:t + 1], use_cache=True, **{name: cache})

    def mine():
        state.pos.fill_(P)
        for t in range(P, P + N):
            ours.step(ids[:, t], state, P + N)
    rows = ids[:, :P].tolist()
    seconds = in_turn({"generate": lambda: generate(hf, rows, [N + 1] * B, B),
                       "prefill": lambda: generate(hf, rows, [1] * B, B),
                       "forward": theirs, "step": mine}, repeats)
    seconds["generate"] -= seconds.pop("prefill")
    for name, s in seconds.items():
        print(f"{name:9} {s / N * 1e3:5.0f} ms a step   {s / N / floor:5.1f} x floor")
    print(f"ratio {seconds['generate'] / seconds['step']:.2f} to generate, "
          f"{seconds['forward'] / seconds['step']:.2f} to its forward alone  (wanted: 1.5)")


if __name__ == "__main__":
    what = {"ragged": ragged, "step": step}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=list(what), default=list(what),
                        metavar="|".join(what))
    parser.add_argument("--repeats", type=int, default=5, metavar="N",
                        help="timed rounds per side (default 5)")
    parser.add_argument("--model", metavar="FOLDER", help="ragged: a checkpoint, else random")
    parser.add_argument("--rows", type=int, default=192, help="ragged: rows of 6 prompts")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="ragged")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    for name in args.what:
        print(f"--- {name}")
        what[name](args)
