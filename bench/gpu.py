"""What a GPU has to say about this project, all of it in one go of a few minutes: a table, and JSON.

    python -m bench.gpu --out gpu.json          # the 2 B shape on one GPU of 80 GB or more; nothing is downloaded
    python -m bench.gpu --tiny                  # the same code on a CPU, with sizes whose figures mean nothing

    sampling    tokens per second at 64, 128 and 256 slots with captured steps, with eager ones, beside `generate` of
                transformers, and beside the floor: weights, recurrent state (read and written) and keys and values at the
                bandwidth of a large copy
    update      reference, forward, backward, optimiser; model FLOPs as a share of what large bf16 products reach here (without
                recomputation, attention scores and the delta rule's own products)
    memory      the highest allocation of a rollout and of an update beside memory.estimate (wanted: within 10 %)
    attention   which kernels ran
    log-probs   memory and time of grpo.token_logprobs beside log-softmax (wanted: at most 1/8 and 1.15)
    tests       those marked gpu

Weights are random: speed does not know. A part that fails is said, and does not stop the others (exit status 1).
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import grpo  # noqa: E402
import model  # noqa: E402
import rollout  # noqa: E402
from bench import logprob  # noqa: E402
from bench.rollout import SIZES, NoWords  # noqa: E402
from lib import memory  # noqa: E402
from lib import run as lib_run
from rollout import Engine, Job  # noqa: E402

BF16 = torch.bfloat16
MINUTE = 60.0
SHAPE = SIZES["2B"] | {"rope_theta": 1e7, "tie_word_embeddings": True}
REAL = argparse.Namespace(device="cuda", config=SHAPE, slots=(64, 128, 256), prefix=700, suffix=45, new=256, new_generate=64,
                          token_budget=16384, update=(700, 600), square=8192, copy=2 ** 30, logprobs=(248320, 2048, 1024))
TINY = argparse.Namespace(device="cpu", slots=(8, 16), prefix=30, suffix=5, new=6, new_generate=4, token_budget=400,
                          update=(20, 30), square=64, copy=2 ** 20, logprobs=(5000, 64, 32),
                          config=SHAPE | dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                                              num_attention_heads=4, head_dim=16, linear_key_head_dim=16,
                                              linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2))


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
            self.failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
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
    """As model.build, on the device at once: two billion numbers from one thread of the host take a minute."""
    with torch.device("meta"):
        module = model.cast(model.Model(model.Config.from_json(config)), dtype)
    module.to_empty(device=device)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.02)
            else:       # zero-centred norms; A_log and dt_bias: a memory of some hundred tokens
                p.fill_(1.0 if name.endswith("linear_attn.norm.weight") else -4.0 if name.endswith("dt_bias") else 0.0)
    return module.eval()


def products(module) -> tuple[int, int]:
    """Multiply-adds of a token in the weights' matrix products: in the blocks, and in the head."""
    return sum(p.numel() for p in module.blocks.parameters() if p.ndim == 2), module.head_weight.numel()


# ---------------------------------------------------------------------------------------------------- the parts

def machine(report: Report, s) -> tuple[float, float]:
    """(bytes a second of a large copy, read and written both counted; FLOPs a second of large bf16 products)."""
    a = torch.ones(s.copy, device=s.device)
    b = torch.empty_like(a)
    bandwidth = 2 * a.nbytes / seconds(lambda: b.copy_(a), s.device, 5)
    x, y = (torch.randn(s.square, s.square, device=s.device, dtype=BF16) for _ in range(2))
    flops = 2 * s.square ** 3 / seconds(lambda: x @ y, s.device, 5)
    report.add("copy bandwidth", bandwidth / 1e12, "TB/s")
    report.add("bf16 products", flops / 1e12, "TFLOP/s", f"{s.square} x {s.square}")
    return bandwidth, flops


def sample(module, s, slots: int, new: int, captures: bool) -> tuple[list[list[int]], Engine]:
    """One rollout: a prefix that all rows share, a suffix each, `new` tokens each."""
    rng, vocab = np.random.default_rng(0), module.config.vocab_size
    prefix = rng.integers(0, vocab, s.prefix).tolist()
    jobs = [Job(prefix + rng.integers(0, vocab, s.suffix).tolist(), (0, i), new, s.prefix, tag=i) for i in range(slots)]
    engine = Engine(module, NoWords(vocab), slots)
    engine.captures = engine.captures and captures
    done = {job.tag: sample.ids for job, sample in engine.run(jobs)}
    return [done[i] for i in range(slots)], engine


def sampling(report: Report, s, bandwidth: float) -> None:
    ours = random_model(s.config, BF16, s.device)
    config = transformers.Qwen3_5TextConfig(**ours.config.to_json())
    with torch.device(s.device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16).eval()
    theirs.generation_config.pad_token_id, theirs.generation_config.eos_token_id = 0, None
    weights = sum(p.nbytes for p in ours.parameters())
    sample(ours, s, s.slots[0], 3, True)        # libraries load
    for slots in s.slots:
        state = ours.new_state(1, s.prefix + s.suffix + s.new)
        row = sum(2 * t.nbytes if kind == "linear_attention" else t.nbytes * (s.prefix + s.suffix + s.new / 2) / t.shape[2]
                  for layer, kind in zip(state.layers, ours.config.layer_types, strict=True) for t in layer)
        floor = slots * bandwidth / (weights + slots * row)
        report.add(f"{slots} slots: floor", floor, "tokens/s",
                   f"{weights / memory.GIB:.1f} GiB of weights, {slots * row / memory.GIB:.1f} GiB of memory a step")
        tokens = {}
        for name, captures in (("captured", True), ("eager", False)):
            tokens[name], engine = sample(ours, s, slots, s.new, captures)
            if captures and s.device == "cuda" and not engine.captures:
                raise RuntimeError("the step could not be captured: see the warning above")
            rate = slots * s.new / engine.stats.seconds
            report.add(f"{slots} slots: {name}", rate, "tokens/s",
                       f"{rate / floor:.0%} of the floor, prefill and captures included")
        alike = np.mean([a == b for a, b in zip(tokens["captured"], tokens["eager"], strict=True)])
        report.add(f"{slots} slots: rows alike, captured and eager", float(alike), "", "they attend over other widths: rounding")
        ids = torch.randint(0, ours.config.vocab_size, (slots, s.prefix + s.suffix), device=s.device)
        mask, call = torch.ones_like(ids), dict(do_sample=True, top_k=0, top_p=1.0)
        theirs.generate(ids, attention_mask=mask, max_new_tokens=2, **call)
        one, more = (seconds(lambda: theirs.generate(ids, attention_mask=mask, max_new_tokens=n, **call), s.device)
                     for n in (1, 1 + s.new_generate))
        rate = slots * s.new / (one + (more - one) * (s.new - 1) / s.new_generate)
        report.add(f"{slots} slots: transformers.generate", rate, "tokens/s", f"{rate / floor:.0%} of the floor, "
                   f"prefill included, from {s.new_generate} tokens")

    # -- no token waits for the host
    state, current = ours.new_state(s.slots[0], s.prefix), torch.zeros(s.slots[0], dtype=torch.long, device=s.device)
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


def training(report: Report, s, flops: float) -> None:
    """The path of a real run on one device: fp32 masters, bf16 compute, reference, sampler, AdamW; worst-case micro-batches."""
    policy = random_model(s.config, torch.float32, s.device)
    policy.checkpointing = True
    policy = grpo.shard(policy, BF16, s.device)
    reference, sampler = (random_model(s.config, BF16, s.device).requires_grad_(False) for _ in range(2))
    optimizer = grpo.make_optimizer(policy, 5e-7)
    prompt, new = s.update
    most = memory.largest_micro_batch(prompt, new, s.token_budget)
    rows = memory.rows_of(prompt, new, most)
    stream = np.random.default_rng(0)
    for row in rows:
        row.suffix, row.advantage = stream.integers(0, sampler.config.vocab_size, new).tolist(), float(stream.normal())
    update = lambda: grpo.update(policy, reference, optimizer, rows, temperature=0.7, token_budget=s.token_budget,
                                 want_step_norm=True)
    update()                                    # moments are made, libraries load
    found = {}
    allocated = peak_of(lambda: found.update(update()), s.device)
    for name in grpo.Tally.PHASES:
        report.add(f"update of {most} rows of {prompt} + {new}: {name}", found[f"seconds_{name}"], "s")
    body, head = products(sampler)
    useful = 6 * (body * (prompt + most * new) + head * most * new)
    spent = found["seconds_forward"] + found["seconds_backward"]
    report.add("model FLOPs utilisation, forward and backward", useful / spent / flops, "", "with recomputation, of bf16 products")
    report.add("trained tokens", most * new / (spent + found["seconds_reference"] + found["seconds_optimizer"]), "tokens/s")

    slots, length = s.slots[-1], s.prefix + s.suffix
    with torch.device("meta"):
        bones = model.cast(model.Model(model.Config.from_json(s.config)), BF16)
    bones.checkpointing = True
    plan = memory.estimate(bones, world=1, prompt_tokens=prompt, new_tokens=new, token_budget=s.token_budget, slots=slots)
    always = sum(plan["always"].values())
    planned = max(always + sum(plan[phase].values()) for phase in ("update", "step")) / memory.GIB
    report.add("update: highest allocation", allocated, "GiB", f"planned {planned:.2f}, ratio {allocated / planned:.3f}")
    plan = memory.estimate(bones, world=1, prompt_tokens=length, new_tokens=s.new, token_budget=s.token_budget, slots=slots)
    planned = (always + sum(plan["rollout"].values())) / memory.GIB
    allocated = peak_of(lambda: sample(sampler, s, slots, s.new, True), s.device)
    report.add(f"rollout of {slots} slots: highest allocation", allocated, "GiB",
               f"planned {planned:.2f}, ratio {allocated / planned:.3f}")

    # -- which attention ran, and where a decoding step's time goes
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (s.device == "cuda")
    batch = grpo.collate(rows[:2], torch.device(s.device))
    state = sampler.new_state(slots, length)
    current = torch.zeros(slots, dtype=torch.long, device=s.device)
    sampler.step(current, state, length)
    for name, work in (("an update", lambda: grpo.row_logprobs(policy, batch).sum().backward()),
                       ("a decoding step", lambda: sampler.step(current, state, length))):
        with torch.profiler.profile(activities=kinds) as profile:
            work()
            wait(s.device)
        events = profile.key_averages()
        ran = sorted({e.key.removeprefix("aten::_scaled_dot_product_") for e in events
                      if e.key.startswith("aten::_scaled_dot_product") and "backward" not in e.key})
        report.add(f"attention in {name}", ", ".join(ran))
        if "attention_math" in ran and s.device == "cuda":
            raise RuntimeError(f"attention in {name} made all of its scores")
        cost = lambda e: e.self_device_time_total if s.device == "cuda" else e.self_cpu_time_total
        for e in sorted(events, key=cost, reverse=True)[:8]:
            report.add(f"  {name}: {e.key[:44]}", cost(e) / 1e3, "ms", f"{e.count} times")


def log_probs(report: Report, s) -> None:
    vocab, tokens, hidden = s.logprobs
    args = argparse.Namespace(vocab=vocab, tokens=tokens, hidden=hidden, threads=1, device=s.device)
    found = {}
    for way in ("log_softmax", "grpo.token_logprobs"):
        logprob.once(way, args)
        found[way] = logprob.once(way, args)
    base = found["log_softmax"]
    for way, m in found.items():
        report.add(f"{way}, {tokens} x {vocab}", m["seconds"] * 1e3, "ms", f"{m['seconds'] / base['seconds']:.2f} of the first; "
                   f"{m['gib']:.2f} GiB beyond the weight's gradient, {m['gib'] / base['gib']:.3f} of the first")


def marked_tests(report: Report, s) -> None:
    ran = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(ROOT / "tests")], cwd=ROOT,
                         capture_output=True, text=True, timeout=4 * MINUTE)
    print(ran.stdout[-3000:])
    report.add("tests marked gpu", (ran.stdout.strip().splitlines() or ["none"])[-1])
    if ran.returncode:
        raise RuntimeError("tests marked gpu failed: see above")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: tries this script, measures nothing")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the figures there as JSON")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("error: no CUDA device here, so there is nothing to measure (--tiny tries the script on the CPU)", file=sys.stderr)
        return 2
    s, report = TINY if args.tiny else REAL, Report()
    transformers.logging.set_verbosity_error()
    lib_run.setup(0, s.device)
    name = "a CPU, tiny sizes: no figure means anything" if args.tiny else torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    bandwidth, flops = machine(report, s)
    with report.part("sampling"):
        sampling(report, s, bandwidth)
    with report.part("update, memory, attention"):
        training(report, s, flops)
    with report.part("log-probs"):
        log_probs(report, s)
    if not args.tiny:
        with report.part("tests"):
            marked_tests(report, s)
    for failure in report.failed:
        print(f"FAILED {failure}")
    if args.out:
        args.out.write_text(json.dumps({"device": name, "torch": torch.__version__, "transformers": transformers.__version__,
                                        "failed": report.failed, "figures": report.lines}, indent=1) + "\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
