"""Speed and memory of this project on a GPU, measured in a few minutes: a table, and JSON.

    python -m bench.gpu --out gpu.json      # the 2 B shape, on one GPU of 80 GB; no download
    python -m bench.gpu --tiny              # the same code on a CPU: its numbers mean nothing

sampling    tokens per second at 64, 128 and 256 slots, with captured steps and eager ones, beside
            `generate` of transformers, and beside the floor: weights, recurrent state (read and
            written), keys and values at the bandwidth of a large copy
update      reference, forward, backward, optimizer; model FLOPs as a share of what large bf16
            products reach here (without recomputation, attention scores, the delta rule's products)
memory      the highest allocation of a rollout and of an update beside memory.estimate (wanted:
            within 10 %)
attention   which kernels ran
log-probs   memory and time of grpo.token_logprobs beside log-softmax (wanted: at most 1/8 and 1.15)
tests       those marked gpu

Weights are random. A part that fails is reported and does not stop the others (exit status 1).
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers

import grpo
import model
import rollout
from bench import logprob
from bench.rollout import SIZES, NoWords
from lib import memory
from lib import run as lib_run
from rollout import Engine, Job

ROOT = Path(__file__).resolve().parent.parent
BF16 = torch.bfloat16
MINUTE = 60.0
SHAPE = SIZES["2B"] | {"rope_theta": 1e7, "tie_word_embeddings": True}
SMALL = SHAPE | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "head_dim": 16, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
REAL = argparse.Namespace(
    device="cuda", config=SHAPE, slots=(64, 128, 256), prefix=700, suffix=45, new=256,
    new_generate=64, token_budget=16384, update=(700, 600), square=8192, copy=2 ** 30,
    logprobs=(248320, 2048, 1024))
TINY = argparse.Namespace(
    device="cpu", config=SMALL, slots=(8, 16), prefix=30, suffix=5, new=6,
    new_generate=4, token_budget=400, update=(20, 30), square=64, copy=2 ** 20,
    logprobs=(5000, 64, 32))


class Report:
    """Lines (what, figure, beside what), as they come; at the end the same as JSON."""

    def __init__(self):
        self.lines, self.failed = [], []

    def add(self, what: str, figure, unit: str = "", note: str = "") -> None:
        known = None if figure != figure else figure        # JSON has no nan
        self.lines.append({"what": what, "figure": known, "unit": unit, "note": note})
        shown = f"{figure:.4g}" if isinstance(figure, float) else str(figure)
        print(f"{what:58}{shown:>12} {unit:10}{note}", flush=True)

    @contextmanager
    def part(self, name: str):
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            reason = str(error).partition("\n")[0]
            self.failed.append(f"{name}: {type(error).__name__}: {reason}")
            traceback.print_exc()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.add(f"{name}: taken", time.perf_counter() - start, "s")


def seconds(work, device: str, repeats: int = 1) -> float:
    """Of the fastest of `repeats` calls, until the device is done."""
    best = float("inf")
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_of(work, device: str) -> float:
    """GiB allocated at the highest while it runs, what was there included; nan on a CPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() / memory.GIB if device == "cuda" else float("nan")


def random_model(config: dict, dtype: torch.dtype, device: str) -> model.Model:
    """As model.build, but made on the device: one thread of the host would take a minute for two
    billion numbers."""
    with torch.device("meta"):
        module = model.cast(model.Model(model.Config.from_json(config)), dtype)
    module.to_empty(device=device)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.02)
            elif name.endswith("linear_attn.norm.weight"):
                p.fill_(1.0)
            elif name.endswith("dt_bias"):
                p.fill_(-4.0)           # with A_log 0: a memory of some hundred tokens
            else:
                p.fill_(0.0)            # norms are zero-centred
    return module.eval()


def products(module) -> tuple[int, int]:
    """Multiply-adds per token in the weights' matrix products: in the blocks, and in the head."""
    body = sum(p.numel() for p in module.blocks.parameters() if p.ndim == 2)
    return body, module.head_weight.numel()


# --------------------------------------------------------------------------------------------------
# The machine

def machine(report: Report, s) -> tuple[float, float]:
    """(bytes per second of a large copy, read and write both counted; FLOPs per second of large
    bf16 products)."""
    a = torch.ones(s.copy, device=s.device)
    b = torch.empty_like(a)
    bandwidth = 2 * a.nbytes / seconds(lambda: b.copy_(a), s.device, 5)
    x, y = (torch.randn(s.square, s.square, device=s.device, dtype=BF16) for _ in range(2))
    flops = 2 * s.square ** 3 / seconds(lambda: x @ y, s.device, 5)
    report.add("copy bandwidth", bandwidth / 1e12, "TB/s")
    report.add("bf16 products", flops / 1e12, "TFLOP/s", f"{s.square} x {s.square}")
    return bandwidth, flops


# --------------------------------------------------------------------------------------------------
# Sampling

def sample(module, s, slots: int, new: int, captures: bool) -> tuple[list[list[int]], Engine]:
    """One rollout: a prefix that all rows share, a suffix each, `new` tokens each."""
    rng, vocab = np.random.default_rng(0), module.config.vocab_size
    prefix = rng.integers(0, vocab, s.prefix).tolist()
    jobs = []
    for i in range(slots):
        suffix = rng.integers(0, vocab, s.suffix).tolist()
        jobs.append(Job(prefix + suffix, (0, i), new, s.prefix, tag=i))
    engine = Engine(module, NoWords(vocab), slots)
    engine.captures = engine.captures and captures
    done = {job.tag: sample.ids for job, sample in engine.run(jobs)}
    return [done[i] for i in range(slots)], engine


def row_bytes(module, s) -> float:
    """Bytes of decoding state that a row reads and writes per token, halfway in its reply."""
    state = module.new_state(1, s.prefix + s.suffix + s.new)
    length = s.prefix + s.suffix + s.new / 2
    total = 0.0
    for layer, kind in zip(state.layers, module.config.layer_types, strict=True):
        for t in layer:
            if kind == "linear_attention":
                total += 2 * t.nbytes
            else:
                total += t.nbytes * length / t.shape[2]
    return total


def sampling(report: Report, s, bandwidth: float) -> None:
    ours = random_model(s.config, BF16, s.device)
    config = transformers.Qwen3_5TextConfig(**ours.config.to_json())
    with torch.device(s.device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16).eval()
    theirs.generation_config.pad_token_id = 0
    theirs.generation_config.eos_token_id = None
    weights, row = sum(p.nbytes for p in ours.parameters()), row_bytes(ours, s)
    sample(ours, s, s.slots[0], 3, True)        # libraries load
    for slots in s.slots:
        floor = slots * bandwidth / (weights + slots * row)
        report.add(f"{slots} slots: floor", floor, "tokens/s",
                   f"{weights / memory.GIB:.1f} GiB of weights, "
                   f"{slots * row / memory.GIB:.1f} GiB of state per step")
        our_rates(report, s, ours, slots, floor)
        rate = their_rate(theirs, s, slots)
        report.add(f"{slots} slots: transformers.generate", rate, "tokens/s",
                   f"{rate / floor:.0%} of the floor, prefill included, from {s.new_generate} "
                   f"tokens")
    no_host_waits(report, s, ours)


def our_rates(report: Report, s, ours, slots: int, floor: float) -> None:
    tokens = {}
    for name in ("captured", "eager"):
        tokens[name], engine = sample(ours, s, slots, s.new, name == "captured")
        if name == "captured" and s.device == "cuda" and not engine.captures:
            raise RuntimeError("the step could not be captured: see the warning above")
        rate = slots * s.new / engine.stats.seconds
        report.add(f"{slots} slots: {name}", rate, "tokens/s",
                   f"{rate / floor:.0%} of the floor, prefill and captures included")
    same = [a == b for a, b in zip(tokens["captured"], tokens["eager"], strict=True)]
    report.add(f"{slots} slots: same rows, captured and eager", sum(same) / len(same), "",
               "they attend over other widths: rounding")


def their_rate(theirs, s, slots: int) -> float:
    """Tokens per second of `generate`: the time of the first token, and of those after it
    extrapolated."""
    vocab = theirs.config.vocab_size
    ids = torch.randint(0, vocab, (slots, s.prefix + s.suffix), device=s.device)

    def generate(new: int) -> None:
        theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                        do_sample=True, top_k=0, top_p=1.0)

    generate(2)
    first = seconds(lambda: generate(1), s.device)
    more = seconds(lambda: generate(1 + s.new_generate), s.device)
    per_token = (more - first) / s.new_generate
    return slots * s.new / (first + per_token * (s.new - 1))


def no_host_waits(report: Report, s, ours) -> None:
    """Raises if a decoding step makes the host wait for the GPU."""
    state = ours.new_state(s.slots[0], s.prefix)
    current = torch.zeros(s.slots[0], dtype=torch.long, device=s.device)
    u = torch.rand(s.slots[0], device=s.device)
    with torch.no_grad():
        rollout.draw(ours.step(current, state, 64), u, 0.7)
        if s.device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            rollout.draw(ours.step(current, state, 64), u, 0.7)
        finally:
            if s.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    report.add("host waits in a decoding step", "none")


# --------------------------------------------------------------------------------------------------
# The update, memory, attention

def training(report: Report, s, flops: float) -> None:
    """The path of a real run on one device: fp32 masters, bf16 compute, reference, sampler, AdamW;
    worst-case micro-batches."""
    policy = random_model(s.config, torch.float32, s.device)
    policy.checkpointing = True
    policy = grpo.shard(policy, BF16, s.device)
    reference = random_model(s.config, BF16, s.device).requires_grad_(False)
    sampler = random_model(s.config, BF16, s.device).requires_grad_(False)
    optimizer = grpo.make_optimizer(policy, 5e-7)
    rows = random_rows(s, sampler.config.vocab_size)
    metrics = {}

    def update() -> None:
        metrics.update(grpo.update(policy, reference, optimizer, rows, temperature=0.7,
                                   token_budget=s.token_budget, want_step_norm=True))

    update()                                    # moments are made, libraries load
    update_gib = peak_of(update, s.device)
    rollout_gib = peak_of(lambda: sample(sampler, s, s.slots[-1], s.new, True), s.device)
    update_speed(report, s, metrics, len(rows), products(sampler), flops)
    compare_memory(report, s, update_gib, rollout_gib)
    profile(report, s, policy, sampler, rows)


def random_rows(s, vocab: int) -> list[grpo.Row]:
    prompt, new = s.update
    rows = memory.rows_of(prompt, new, memory.largest_micro_batch(prompt, new, s.token_budget))
    stream = np.random.default_rng(0)
    for row in rows:
        row.suffix = stream.integers(0, vocab, new).tolist()
        row.advantage = float(stream.normal())
    return rows


def update_speed(report: Report, s, metrics: dict, rows: int, macs: tuple[int, int],
                 flops: float) -> None:
    prompt, new = s.update
    for name in grpo.Tally.PHASES:
        report.add(f"update of {rows} rows of {prompt} + {new}: {name}",
                   metrics[f"seconds_{name}"], "s")
    body, head = macs
    useful = 6 * (body * (prompt + rows * new) + head * rows * new)
    spent = metrics["seconds_forward"] + metrics["seconds_backward"]
    report.add("model FLOPs utilization, forward and backward", useful / spent / flops, "",
               "with recomputation, of bf16 products")
    whole = spent + metrics["seconds_reference"] + metrics["seconds_optimizer"]
    report.add("trained tokens", rows * new / whole, "tokens/s")


def compare_memory(report: Report, s, update_gib: float, rollout_gib: float) -> None:
    """The highest allocations beside their estimates."""
    with torch.device("meta"):
        skeleton = model.cast(model.Model(model.Config.from_json(s.config)), BF16)
    skeleton.checkpointing = True

    def estimated(prompt: int, new: int, phases: tuple[str, ...]) -> float:
        parts = memory.estimate(skeleton, world=1, prompt_tokens=prompt, new_tokens=new,
                                token_budget=s.token_budget, slots=s.slots[-1])
        largest = max(sum(parts[phase].values()) for phase in phases)
        return (sum(parts["always"].values()) + largest) / memory.GIB

    for what, allocated, expected in (
            ("update", update_gib, estimated(*s.update, ("update", "step"))),
            (f"rollout of {s.slots[-1]} slots", rollout_gib,
             estimated(s.prefix + s.suffix, s.new, ("rollout",)))):
        report.add(f"{what}: highest allocation", allocated, "GiB",
                   f"estimated {expected:.2f}, ratio {allocated / expected:.3f}")


def profile(report: Report, s, policy, sampler, rows: list[grpo.Row]) -> None:
    """Which attention ran, and where the time of an update and of a decoding step goes."""
    batch = grpo.collate(rows[:2], torch.device(s.device))
    length = s.prefix + s.suffix
    state = sampler.new_state(s.slots[-1], length)
    current = torch.zeros(s.slots[-1], dtype=torch.long, device=s.device)
    sampler.step(current, state, length)
    events = profiled(lambda: grpo.row_logprobs(policy, batch).sum().backward(), s.device)
    report_events(report, s, "an update", events)
    events = profiled(lambda: sampler.step(current, state, length), s.device)
    report_events(report, s, "a decoding step", events)


def profiled(work, device: str):
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
        wait(device)
    return profiler.key_averages()


def report_events(report: Report, s, name: str, events) -> None:
    prefix = "aten::_scaled_dot_product_"
    kernels = {e.key.removeprefix(prefix) for e in events
               if e.key.startswith(prefix) and "backward" not in e.key}
    report.add(f"attention in {name}", ", ".join(sorted(kernels)))
    if "attention_math" in kernels and s.device == "cuda":
        raise RuntimeError(f"attention in {name} made all of its scores")

    def cost(event) -> float:
        return event.self_device_time_total if s.device == "cuda" else event.self_cpu_time_total

    for event in sorted(events, key=cost, reverse=True)[:8]:
        report.add(f"  {name}: {event.key[:44]}", cost(event) / 1e3, "ms", f"{event.count} times")


# --------------------------------------------------------------------------------------------------
# Log-probs, tests

def log_probs(report: Report, s) -> None:
    vocab, tokens, hidden = s.logprobs
    args = argparse.Namespace(vocab=vocab, tokens=tokens, hidden=hidden, threads=1,
                              device=s.device)
    measured = {}
    for way in ("log_softmax", "grpo.token_logprobs"):
        logprob.once(way, args)
        measured[way] = logprob.once(way, args)
    base = measured["log_softmax"]
    for way, m in measured.items():
        report.add(f"{way}, {tokens} x {vocab}", m["seconds"] * 1e3, "ms",
                   f"{m['seconds'] / base['seconds']:.2f} of the first; {m['gib']:.2f} GiB beyond "
                   f"the weight's gradient, {m['gib'] / base['gib']:.3f} of the first")


def marked_tests(report: Report) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * MINUTE)
    print(ran.stdout[-3000:])
    report.add("tests marked gpu", (ran.stdout.strip().splitlines() or ["none"])[-1])
    if ran.returncode:
        raise RuntimeError("tests marked gpu failed: see above")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true",
                        help="tiny sizes on the CPU: tries this script, measures nothing")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the numbers there as JSON")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("error: no CUDA device here, so there is nothing to measure (--tiny tries the script "
              "on the CPU)", file=sys.stderr)
        return 2
    s, report = TINY if args.tiny else REAL, Report()
    transformers.logging.set_verbosity_error()
    lib_run.setup(0, s.device)
    name = "a CPU, tiny sizes: no number means anything"
    if not args.tiny:
        name = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{name}; {versions}", flush=True)
    bandwidth, flops = machine(report, s)
    with report.part("sampling"):
        sampling(report, s, bandwidth)
    with report.part("update, memory, attention"):
        training(report, s, flops)
    with report.part("log-probs"):
        log_probs(report, s)
    if not args.tiny:
        with report.part("tests"):
            marked_tests(report)
    for failure in report.failed:
        print(f"FAILED {failure}")
    if args.out:
        numbers = {"device": name, **versions, "failed": report.failed, "figures": report.lines}
        args.out.write_text(json.dumps(numbers, indent=1) + "\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
