"""Log-probs of given tokens over a large vocabulary: memory and time of five ways.

    python -m bench.logprob                 # 2,048 tokens, 248,320 words, hidden 1,024, bf16
    python -m bench.logprob --vocab 151936 --repeats 5

Forward and backward; each way runs in processes of its own. Memory is the high-water mark above the
inputs (of the process on a CPU, of the allocator on a GPU), time is CPU seconds of the process (on
a GPU: seconds), the median over repeats.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

import grpo

ROOT = Path(__file__).resolve().parent.parent


def log_softmax(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def logsumexp(hidden, weight, targets):
    """The "selective" form: no full log-softmax, but autograd keeps what logsumexp needs."""
    z = (hidden @ weight.T).float()
    return z.gather(1, targets.unsqueeze(1)).squeeze(1) - z.logsumexp(-1)


def checkpointed_rows(hidden, weight, targets, rows=256):
    parts = zip(hidden.split(rows), targets.split(rows))
    return torch.cat([checkpoint(log_softmax, h, weight, t, use_reentrant=False) for h, t in parts])


def with_entropy(hidden, weight, targets):
    logp, _ = grpo.token_logprobs(hidden, weight, targets, entropy=True)
    return logp


WAYS = {"log_softmax": log_softmax, "gather - logsumexp": logsumexp,
        "checkpointed rows": checkpointed_rows, "grpo.token_logprobs": grpo.token_logprobs,
        "grpo.token_logprobs, entropy": with_entropy}


def peak(device: str) -> int:
    """Bytes at the highest, since the last `forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def forget_peak(device: str) -> int:
    """Let the high-water mark fall to what is in use, and return that."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def once(way: str, args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(shape, dtype=torch.bfloat16, device=args.device)
    weight = make(args.vocab, args.hidden).mul_(0.02).requires_grad_()
    hidden, g = make(args.tokens, args.hidden).requires_grad_(), make(args.tokens).float()
    targets = torch.randint(0, args.vocab, (args.tokens,), device=args.device)
    # load what loads on first use
    WAYS[way](hidden[:8], weight[:64], targets[:8] % 64).sum().backward()
    hidden.grad = weight.grad = None
    before = forget_peak(args.device)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    start = clock()
    logp = WAYS[way](hidden, weight, targets)
    (logp * g).mean().backward()
    if args.device == "cuda":
        torch.cuda.synchronize()
    seconds, extra = clock() - start, peak(args.device) - before
    return {"seconds": seconds, "gib": (extra - weight.nbytes) / 2 ** 30,
            "logp": float(logp.detach().mean())}


def in_a_process(way: str) -> dict:
    """`once` in a process of its own, with this process's flags."""
    command = [sys.executable, "-m", "bench.logprob", *sys.argv[1:], "--way", way]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if ran.returncode:
        sys.exit(f"{way}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)


def medians(runs: list[dict]) -> dict[str, float]:
    keys = ("seconds", "gib", "logp")
    return {key: statistics.median(run[key] for run in runs) for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vocab", type=int, default=248320)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(once(args.way, args)))
        return
    gradient = 2 * args.vocab * args.hidden / 2 ** 30
    print(f"{args.tokens} tokens, {args.vocab} words, hidden {args.hidden}, bf16, {args.device}; "
          f"memory is beyond the {gradient:.2f} GiB of the weight's gradient")
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):       # interleaved: a busy minute must not hit one way alone
        for way in WAYS:
            runs[way].append(in_a_process(way))
    base = medians(runs["log_softmax"])
    titles = ("GiB", "of first", "seconds", "of first")
    print(f"{'':30}{titles[0]:>8}{titles[1]:>10}{titles[2]:>10}{titles[3]:>10}{'mean logp':>12}")
    for way in WAYS:
        m = medians(runs[way])
        print(f"{way:30}{m['gib']:8.2f}{m['gib'] / base['gib']:10.3f}{m['seconds']:10.2f}"
              f"{m['seconds'] / base['seconds']:10.2f}{m['logp']:12.5f}")


if __name__ == "__main__":
    main()
