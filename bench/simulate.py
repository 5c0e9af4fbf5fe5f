"""A training step on several GPUs as a small discrete-event simulation: where the time goes.

    python -m bench.simulate                        # one node of 8 GPUs, the 2 B shape
    python -m bench.simulate --gpus 64 --problems 64
    python -m bench.simulate --step-ms 32:7.6,64:9.8 --update-us 95     # one line, of your numbers

Nothing here is measured: the times of a decoding step and of the update are *modelled* for an H100
from counted kernels and bytes. Correct them with what bench/gpu.py finds. What is simulated follows
the engine's rules: plans first, a branch joins when its plan has ended and the engine admits it, a
program goes to the verifier's workers when it ends, the update starts when the last rank has its
last verdict, and in every micro-batch ranks wait for the slowest.

Lengths are lognormal; a share of the programs runs into the time limit, whatever its length.
"""

import argparse
import heapq
import statistics
from dataclasses import dataclass

import numpy as np

import grpo
from lib import flags

MODELLED = {64: 9.8, 128: 13.9, 256: 22.5}          # rows computed: ms of a step, captured
COMPILED = {64: 6.8, 128: 10.7, 256: 18.9}          # ... compiled, two-level draw
FUSED = {32: 3.3, 64: 3.9, 128: 5.3, 256: 8.3}      # ... with fused kernels, attention by length
REFERENCE = 0.30 / 1.54     # the reference's share of the update


@dataclass
class Design:
    name: str
    step_ms: dict[int, float]       # rows that a step computes: its milliseconds
    waits_for: float                # share of the slots that must be free before jobs are admitted
    update_us: float                # microseconds per padded token: reference, forward, backward
    weights: float                  # seconds until the sampler has the new weights
    time_limit: float = 10.5        # seconds of a program that does not end
    overlaps: bool = False          # the reference computes while verdicts are pending


DESIGNS = [
    Design("as first written", MODELLED, 1 / 8, 95, 0.8),
    Design("+ early admission", MODELLED, 1 / 64, 95, 0.8),
    Design("+ compiled step and draw", COMPILED, 1 / 64, 95, 0.8),
    Design("+ fused decoding, fla", FUSED, 1 / 64, 60, 0.8),
    Design("+ reference meanwhile", FUSED, 1 / 64, 60, 0.8, overlaps=True),
    Design("+ the problems' own limits", FUSED, 1 / 64, 60, 0.8, 2.5, True),
]


# --------------------------------------------------------------------------------------------------
# One rank

def lengths(rng: np.random.Generator, n: int, median: float, sigma: float, most: int) -> list[int]:
    drawn = rng.lognormal(np.log(median), sigma, n)
    return np.clip(drawn, 1, most).astype(int).tolist()


def sample(design: Design, plans: list[int], programs: list[list[int]],
           slots: int) -> tuple[float, list[float]]:
    """Seconds until the last row ends, and when each program ends. programs[i] are the branches of
    plan i."""
    waiting = [(length, i) for i, length in enumerate(plans)]   # (tokens, plan or None)
    live: list[tuple[int, int, int | None]] = []        # (ends at step, order, its plan or None)
    now, step, admitted, ended = 0.0, 0, 0, []
    sizes = sorted(design.step_ms)
    while waiting or live:
        free = min(slots - len(live), len(waiting))
        if free and (free >= slots * design.waits_for or free >= len(live)):
            for length, plan in waiting[:free]:
                heapq.heappush(live, (step + length, admitted, plan))
                admitted += 1
            waiting = waiting[free:]
        ends = live[0][0]
        rows = next((size for size in sizes if size >= len(live)), sizes[-1])
        now += (ends - step) * design.step_ms[rows] / 1000
        step = ends
        while live and live[0][0] == step:
            _, _, plan = heapq.heappop(live)
            if plan is None:
                ended.append(now)
            else:
                waiting += [(length, None) for length in programs[plan]]
    return now, ended


def verify(ended: list[float], seconds: list[float], workers: int) -> float:
    """When the last verdict is there: programs wait for a free worker in the order they ended."""
    free = [0.0] * workers
    for time, takes in zip(sorted(ended), seconds, strict=True):
        heapq.heapreplace(free, max(time, free[0]) + takes)
    return max(free)


def micro_batches(args: argparse.Namespace, groups: list[list[int]]) -> list[int]:
    """Padded tokens of each, the costliest first; a group has one prompt."""
    tokens = []
    for rows in groups:
        for places in grpo.pack(rows, args.token_budget - args.prompt_tokens):
            tokens.append(args.prompt_tokens + len(places) * rows[places[0]])
    return sorted(tokens, reverse=True)


# --------------------------------------------------------------------------------------------------
# All ranks

def simulate(design: Design, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Seconds of one step's parts."""
    rng = np.random.default_rng(seed)
    sampled, done, batches = [], [], []
    for rank in range(args.gpus):
        plans, programs, groups = [], [], []
        for _ in range(rank, args.problems, args.gpus):
            mine = lengths(rng, args.tuples, args.plan_tokens, 0.35, 512)
            branches = [lengths(rng, args.strategies, args.program_tokens, args.sigma, 2048)
                        for _ in mine]
            plans += mine
            programs += branches
            groups += [mine, sum(branches, [])]
        count = len(plans) * args.strategies
        timed_out = rng.random(count) < args.timeouts
        seconds = np.where(timed_out, design.time_limit, args.verdict_seconds).tolist()
        last_token, ended = sample(design, plans, programs, args.slots)
        sampled.append(last_token)
        done.append(max(last_token, verify(ended, seconds, args.workers)))
        batches.append(micro_batches(args, groups))
    waiting = max(done) - max(sampled)
    most = max(map(len, batches))
    slowest = [max(b[i] for b in batches if i < len(b)) for i in range(most)]
    update = sum(slowest) * design.update_us / 1e6
    if design.overlaps:
        update -= min(waiting, REFERENCE * update)
    return {"step": max(done) + update + design.weights, "sampling": max(sampled),
            "mean": statistics.mean(sampled), "verdicts": waiting, "update": update,
            "weights": design.weights}


def step_table(text: str) -> dict[int, float]:
    """An argparse type: 32:7.6,64:9.8 -> {32: 7.6, 64: 9.8}."""
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        return {int(rows): float(ms) for rows, ms in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 32:7.6,64:9.8, not {text}") from None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("A training step on several GPUs, simulated.")
    add = parser.add_argument
    add("--gpus", type=flags.count, default=8, help="ranks")
    add("--problems", type=flags.count, default=8, help="of a step, over all ranks")
    add("--tuples", type=flags.count, default=8, help="M, per problem")
    add("--strategies", type=flags.count, default=4, help="K, per tuple")
    add("--plan-tokens", type=flags.above_zero, default=160, help="median length of a plan")
    add("--program-tokens", type=flags.above_zero, default=450, help="median length of a reply")
    add("--sigma", type=flags.weight, default=0.75, help="of the logarithm of a reply's length")
    add("--prompt-tokens", type=flags.count, default=700, help="of every problem")
    add("--timeouts", type=flags.share, default=0.15, help="share of programs that never end")
    add("--verdict-seconds", type=flags.above_zero, default=0.3, help="of the other programs")
    add("--workers", type=flags.count, default=12, help="verifier processes per rank")
    add("--slots", type=flags.count, default=256, help="rows decoded together per rank")
    add("--token-budget", type=flags.count, default=16384, help="padded tokens per micro-batch")
    add("--step-ms", type=step_table, help="measured: rows and milliseconds of a decoding step")
    add("--update-us", type=flags.above_zero, default=60, help="measured: microseconds per token")
    add("--samples", type=flags.count, default=50, help="simulated steps; their means are shown")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    designs = DESIGNS
    if args.step_ms:
        designs = [Design("given", args.step_ms, 1 / 64, args.update_us, 0.8, overlaps=True)]
    print(f"MODELLED, not measured. {args.gpus} GPUs, {args.problems} problems x {args.tuples} "
          f"tuples x {args.strategies} strategies; seconds, means of {args.samples} steps")
    columns = ("step", "sampling", "mean", "verdicts", "update", "weights")
    print(f"{'':28}" + "".join(f"{name:>10}" for name in columns))
    for design in designs:
        runs = [simulate(design, args, seed) for seed in range(args.samples)]
        shown = [statistics.mean(run[name] for run in runs) for name in columns]
        print(f"{design.name:28}" + "".join(f"{value:10.1f}" for value in shown))
    print("sampling: of the slowest rank; mean: over ranks; verdicts: waiting after the last token")


if __name__ == "__main__":
    main()
