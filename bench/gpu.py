"""Does it run on a GPU, is it right, how fast is it: two calls of five minutes on one card.

    python -m bench.gpu first --out first.json      # the 2B shape, random weights; no download
    python -m bench.gpu second --out second.json    # each way of doing it beside the others
    python -m bench.gpu first --tiny                # the same code on a CPU: not a measurement
    python -m bench.gpu table first.json second.json    # a table for the README

first   runs      stages 1, 3 and 5 of a tiny model by the scripts themselves; SIGTERM, and on
        right     captured sampling with ragged lengths, growth and refill; its log-probs beside
                  those of a training pass over the same rows
        capture   a capture that fails, in a process of its own: is it one line?
        replays   milliseconds of a captured step alone, rows x attended positions, beside the
                  floor (weights, S read and written, keys and values, at the bandwidth of a large
                  copy); the price of a capture and of a fork; what one step consists of
        update    reference, forward, backward, optimizer; model FLOPs as a share of what large bf16
                  products reach here; highest allocation beside memory.estimate
second  ways      replays of --compile auto, graphs and off
        generate  transformers.generate on the same rows
        logprobs  memory and time of grpo.token_logprobs beside log-softmax (wanted: at most 1/8
                  and 1.15)
        tests     those marked gpu

JSON is written after every part. A part that fails is reported and does not stop the others (exit
status 1).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
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
    device="cuda", config=SHAPE, rows=(32, 64, 128, 256), attended=(1024, 2048, 3072), replays=30,
    slots=(64, 256), prefix=700, suffix=45, new=256, new_generate=64, longest=200,
    token_budget=16384, update=(700, 600), square=8192, copy=2 ** 30, logprobs=(248320, 2048, 1024))
TINY = argparse.Namespace(
    device="cpu", config=SMALL, rows=(2, 8), attended=(64, 128), replays=2, slots=(8,), prefix=30,
    suffix=5, new=6, new_generate=4, longest=20, token_budget=400, update=(20, 30), square=64,
    copy=2 ** 20, logprobs=(5000, 64, 32))


class Report:
    """Lines (what, figure, beside what), printed as they come, and as JSON after every part."""

    def __init__(self, out: Path | None = None, about: dict | None = None):
        self.out, self.about = out, about or {}
        self.lines, self.failed = [], []

    def add(self, what: str, figure, unit: str = "", note: str = "") -> None:
        known = None if figure != figure else figure        # JSON has no nan
        self.lines.append({"what": what, "figure": known, "unit": unit, "note": note})
        shown = f"{figure:.4g}" if isinstance(figure, float) else str(figure)
        print(f"{what:58}{shown:>12} {unit:10}{note}", flush=True)

    def part(self, name: str, work: Callable, *inputs):
        """work(report, *inputs), or None if it fails."""
        print(f"--- {name}", flush=True)
        start, result = time.perf_counter(), None
        try:
            result = work(self, *inputs)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            self.failed.append(f"{name}: {type(error).__name__}: {reason}")
            traceback.print_exc()
        try:
            torch.cuda.empty_cache()        # after a failed capture this may fail, too
        except Exception as error:
            self.failed.append(f"{name}, freeing memory: {error}")
        self.add(f"{name}: taken", time.perf_counter() - start, "s")
        if self.out:
            numbers = self.about | {"failed": self.failed, "figures": self.lines}
            self.out.write_text(json.dumps(numbers, indent=1) + "\n")
        return result


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
# Does it run

def runs(report: Report, s) -> None:
    """A random model of four layers through the scripts: two steps of stage 1, one of stage 3,
    three of stage 5, of which SIGTERM interrupts the second."""
    from bench.step import Case, make_model
    with tempfile.TemporaryDirectory() as folder:
        call = Scripts(Path(folder), s.device)
        make_model(str(call.folder / "base"), Case([], 0, layers=4, hidden=64))
        call("-m", "miniature.world", "build", "--out", "world")
        call("train_sft.py", *call.common, "--gold", "world/gold.jsonl", "--steps", "2",
             "--batch-size", "4")
        rl = (*call.common, "--problems", "world/train.jsonl", "--gate", "rule", "--num-tuples",
              "2", "--problems-per-step", "2", "--max-plan-tokens", "16", "--max-solve-tokens",
              "16", "--save-every", "1")
        call("train_cppo.py", *rl, "--stage", "warmup", "--steps", "1")
        joint = ("train_cppo.py", *rl, "--skip-audit", "--steps", "3")
        report.add("status after SIGTERM (143: stopped in order)", call.interrupted(*joint))
        call(*joint)
        steps = call.log.read_text().splitlines()
        report.add("joint steps logged (3: none lost, none twice)", len(steps))
        if len(steps) != 3:
            raise RuntimeError(f"three joint steps left {len(steps)} lines")


class Scripts:
    """The repository's scripts as processes, in a folder of their own."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.log = folder, folder / "runs/gpu/cppo-m2/metrics.jsonl"
        self.env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if device == "cpu":
            self.env["CUDA_VISIBLE_DEVICES"] = ""
        self.common = ("--model", "base", "--run-name", "gpu", "--prompts",
                       str(ROOT / "miniature/prompts.json"))

    def command(self, *words: str) -> list[str]:
        first = words[0] if words[0] == "-m" else str(ROOT / words[0])
        return [sys.executable, first, *words[1:]]

    def __call__(self, *words: str) -> None:
        ran = subprocess.run(self.command(*words), cwd=self.folder, env=self.env, text=True,
                             capture_output=True, timeout=3 * MINUTE)
        if ran.returncode:
            print(ran.stdout[-2000:], ran.stderr[-2000:])
            raise RuntimeError(f"{' '.join(words[:2])} ended with {ran.returncode}")

    def interrupted(self, *words: str) -> int:
        """Exit status after a SIGTERM that comes when the first step is logged."""
        process = subprocess.Popen(self.command(*words), cwd=self.folder, env=self.env,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 2 * MINUTE
        while process.poll() is None and time.monotonic() < until:
            if self.log.exists() and self.log.read_text():
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        return process.wait(MINUTE)


# --------------------------------------------------------------------------------------------------
# Is it right

def right(report: Report, s) -> None:
    """Four layers of the shape: sample with all that moves rows, then take the log-probs of the
    same tokens as the trainer does, in the same dtype and in fp32."""
    ours = random_model(s.config | {"num_hidden_layers": 4}, BF16, s.device)
    slots, vocab = s.slots[0], ours.config.vocab_size
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, vocab, s.prefix // (1 + i)).tolist() for i in range(3)]
    jobs = []
    for i in range(2 * slots):      # short ones first: buffers grow; twice the slots: refill
        new = 2 + s.longest * i // (2 * slots)
        own = draw.integers(0, vocab, 1 + i % s.suffix).tolist()
        prompt = prompts[i % 3]
        jobs.append(Job(prompt + own, (0, i), new, len(prompt), tag=i))
    engine = Engine(ours, NoWords(vocab), slots)
    rows = []
    for job, sample in engine.run(jobs):
        n = job.shared
        rows.append(grpo.Row(job.prompt[:n], job.prompt[n:] + sample.ids, len(job.prompt) - n, 0.0,
                             1.0, "solve", sample.logprobs))
    report.add("engine: captured", engine.captures)
    wide = random_model(s.config | {"num_hidden_layers": 4}, torch.float32, s.device)
    grpo.refresh(wide, ours)
    for name, module in (("the trainer's", ours), ("fp32", wide)):
        gaps = []
        for batch in grpo.collate_all(rows, s.token_budget, torch.device(s.device)):
            with torch.no_grad():
                gaps.append((grpo.row_logprobs(module, batch) - batch.sampled).abs())
        gaps = torch.cat(gaps)
        report.add(f"log-probs, sampled against {name}: mean gap", gaps.mean().item(), "nats")
        report.add(f"log-probs, sampled against {name}: largest gap", gaps.max().item(), "nats")


FAILING = """
import torch, rollout
from bench.gpu import BF16, SMALL, NoWords, random_model
draw = rollout.draw
def waits(logits, *settings):
    logits[0, 0].item()
    return draw(logits, *settings)
rollout.draw = waits
try:
    rollout.Engine(random_model(SMALL, BF16, "cuda"), NoWords(512), 8, compile="graphs")
except ValueError as error:
    print(error)
"""


def capture_failure(report: Report, s) -> None:
    """What a user reads where a step waits for the host and so cannot be captured."""
    if s.device == "cpu":
        report.add("a failing capture says", "not tried on a CPU")
        return
    ran = subprocess.run([sys.executable, "-c", FAILING], cwd=ROOT, text=True, capture_output=True,
                         timeout=MINUTE)
    report.add("a failing capture says", ran.stdout.strip().partition("\n")[0])
    if "--compile off" not in ran.stdout:
        raise RuntimeError(f"no line that names the flag: {ran.stderr[-500:]}")


# --------------------------------------------------------------------------------------------------
# Replays

class Replays:
    """The engine's own step over buffers of a given size, without a rollout around it."""

    def __init__(self, module, s, way: str):
        self.s, self.module = s, module
        self.engine = Engine(module, NoWords(module.config.vocab_size), s.rows[-1], compile=way)

    def open(self, rows: int, attended: int) -> None:
        engine = self.engine
        engine._allocate(rows)
        engine.push([Job([0] * (attended - 8), ("row",), 8)])
        engine._make_room()
        engine.queue.clear()
        engine.rows = rows
        engine.limit.fill_(10 ** 6)
        self.rewind(attended)

    def rewind(self, attended: int) -> None:
        """Every row full up to one token: the most that `attended` can mean."""
        self.engine.state.pos.fill_(attended - 2)
        self.engine.alive.fill_(True)
        self.engine.count.zero_()

    def step(self, attended: int) -> None:
        engine = self.engine
        (engine._replay if engine.captures else engine._advance)(attended)

    def milliseconds(self, rows: int, attended: int) -> tuple[float, float]:
        """(a step, the first one: its capture)"""
        self.open(rows, attended)
        first = seconds(lambda: self.step(attended), self.s.device)
        times = []
        for _ in range(self.s.replays):
            self.rewind(attended)
            times.append(seconds(lambda: self.step(attended), self.s.device))
        return 1e3 * float(np.median(times)), 1e3 * first


def step_bytes(module, rows: int, attended: int) -> float:
    """What a step cannot do without: weights, keys and values read, S read and written."""
    total = sum(p.nbytes for p in module.parameters())
    state = module.new_state(1, attended)
    for layer, kind in zip(state.layers, module.config.layer_types, strict=True):
        for t in layer:
            passes = 2 if kind == "linear_attention" else attended / t.shape[2]
            total += rows * passes * t.nbytes
    return total


@torch.inference_mode()
def replays(report: Report, s, bandwidth: float, ways: tuple[str, ...] = ("auto",)) -> None:
    for way in ways:
        module = random_model(s.config, BF16, s.device)
        start = time.perf_counter()
        measured = Replays(module, s, way)
        report.add(f"{way}: compiled and captured in", time.perf_counter() - start, "s")
        for rows in s.rows:
            for attended in s.attended:
                took, first = measured.milliseconds(rows, attended)
                floor = 1e3 * step_bytes(module, rows, attended) / bandwidth
                report.add(f"{way}: a step of {rows} rows, {attended} attended", took, "ms",
                           f"floor {floor:.2f} ms, {floor / took:.0%} of it reached; "
                           f"{rows / took * 1e3:,.0f} tokens/s; capture {first:.0f} ms")
        engine = measured.engine
        every = engine.index[:s.rows[-1]]
        fork = seconds(lambda: module.fork(engine.state, every, engine.state, every), s.device, 3)
        report.add(f"{way}: forking {s.rows[-1]} rows", 1e3 * fork, "ms")
        attended = s.attended[-1]
        measured.rewind(attended)
        report_events(report, s, f"a step, {way}",
                      profiled(lambda: measured.step(attended), s.device))
        no_host_waits(report, s, measured)


def no_host_waits(report: Report, s, measured: Replays) -> None:
    """Raises if a decoding step makes the host wait for the GPU."""
    if s.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        measured.engine._advance(s.attended[-1])
    finally:
        if s.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    report.add("host waits in a decoding step", "none")


# --------------------------------------------------------------------------------------------------
# transformers.generate

def generate(report: Report, s) -> None:
    config = transformers.Qwen3_5TextConfig(**model.Config.from_json(s.config).to_json())
    with torch.device(s.device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16).eval()
    theirs.generation_config.pad_token_id = 0
    theirs.generation_config.eos_token_id = None
    for slots in s.slots:
        rate = their_rate(theirs, s, slots)
        report.add(f"{slots} rows: transformers.generate", rate, "tokens/s",
                   f"prefill included, from {s.new_generate} tokens")


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
    rollout_gib = peak_of(lambda: sample(sampler, s, s.slots[-1], s.new), s.device)
    update_speed(report, s, metrics, len(rows), products(sampler), flops)
    compare_memory(report, s, update_gib, rollout_gib)
    batch = grpo.collate(rows[:2], torch.device(s.device))
    report_events(report, s, "an update", profiled(
        lambda: grpo.row_logprobs(policy, batch).sum().backward(), s.device))


def sample(module, s, slots: int, new: int) -> None:
    """One rollout: a prefix that all rows share, a suffix each, `new` tokens each."""
    rng, vocab = np.random.default_rng(0), module.config.vocab_size
    prefix = rng.integers(0, vocab, s.prefix).tolist()
    jobs = []
    for i in range(slots):
        suffix = rng.integers(0, vocab, s.suffix).tolist()
        jobs.append(Job(prefix + suffix, (0, i), new, s.prefix, tag=i))
    list(Engine(module, NoWords(vocab), slots).run(jobs))


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


def table(files: list[Path]) -> str:
    """Markdown for the README: what was measured, on which device."""
    lines = ["| what | measured | device |", "|---|---|---|"]
    for file in files:
        read = json.loads(file.read_text())
        for line in read["figures"]:
            if line["what"].endswith(": taken") or line["what"].startswith("  "):
                continue
            figure = line["figure"]
            shown = f"{figure:.3g}" if isinstance(figure, float) else figure
            note = f" ({line['note']})" if line["note"] else ""
            lines.append(f"| {line['what']} | {shown} {line['unit']}{note} | {read['device']} |")
        lines += [f"| FAILED | {failure} | {read['device']} |" for failure in read["failed"]]
    return "\n".join(lines)


def measure(report: Report, s, call: str) -> None:
    speed = report.part("machine", machine, s)
    bandwidth, flops = speed or (float("nan"), float("nan"))
    if call == "first":
        report.part("runs", runs, s)
        report.part("right", right, s)
        report.part("capture", capture_failure, s)
        report.part("replays", replays, s, bandwidth)
        report.part("update", training, s, flops)
        return
    report.part("ways", replays, s, bandwidth, rollout.COMPILE)
    report.part("generate", generate, s)
    report.part("logprobs", log_probs, s)
    if s.device == "cuda":
        report.part("tests", marked_tests)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=("first", "second", "table"))
    parser.add_argument("files", nargs="*", type=Path, help="of a table: JSON of earlier calls")
    parser.add_argument("--tiny", action="store_true",
                        help="tiny sizes on the CPU: tries this script, measures nothing")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the numbers there as JSON")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    if args.call == "table":
        print(table(args.files))
        return 0
    if not args.tiny and not torch.cuda.is_available():
        print("error: no CUDA device here, so there is nothing to measure (--tiny tries the script "
              "on the CPU)", file=sys.stderr)
        return 2
    s = TINY if args.tiny else REAL
    transformers.logging.set_verbosity_error()
    lib_run.setup(0, s.device)
    name = "a CPU, tiny sizes: no number means anything"
    if not args.tiny:
        name = torch.cuda.get_device_name()
    about = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    print(about, flush=True)
    report = Report(args.out, about)
    measure(report, s, args.call)
    for failure in report.failed:
        print(f"FAILED {failure}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
