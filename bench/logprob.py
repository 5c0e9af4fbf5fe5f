"""Log-probs of given tokens over a large vocabulary, forward and backward: memory and time of five ways.

    python -m bench.logprob                              # 2,048 tokens, 248,320 words, hidden 1,024, bf16
    python -m bench.logprob --vocab 151936 --repeats 5

Each way runs in processes of its own. Memory is the high-water mark above the inputs (of the process on a
CPU, of the allocator on a GPU), time is CPU seconds of the process (on a GPU: seconds), the median over
repeats.
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

import grpo  # noqa: E402


def log_softmax(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def logsumexp(hidden, weight, targets):
    """The "selective" form: no full log-softmax, but autograd keeps what logsumexp needs."""
    z = (hidden @ weight.T).float()
    return z.gather(1, targets.unsqueeze(1)).squeeze(1) - z.logsumexp(-1)


def checkpointed_rows(hidden, weight, targets, rows=256):
    parts = zip(hidden.split(rows), targets.split(rows))
    return torch.cat([checkpoint(log_softmax, h, weight, t, use_reentrant=False) for h, t in parts])


WAYS = {"log_softmax": log_softmax, "gather - logsumexp": logsumexp, "checkpointed rows": checkpointed_rows,
        "grpo.token_logprobs": grpo.token_logprobs,
        "grpo.token_logprobs, entropy": lambda h, w, t: grpo.token_logprobs(h, w, t, entropy=True)[0]}


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
    WAYS[way](hidden[:8], weight[:64], targets[:8] % 64).sum().backward()       # load what loads on first use
    hidden.grad = weight.grad = None
    before, clock = forget_peak(args.device), time.process_time if args.device == "cpu" else time.perf_counter
    start = clock()
    logp = WAYS[way](hidden, weight, targets)
    (logp * g).mean().backward()
    if args.device == "cuda":
        torch.cuda.synchronize()
    seconds, extra = clock() - start, peak(args.device) - before
    return {"seconds": seconds, "gib": (extra - weight.nbytes) / 2 ** 30, "logp": float(logp.detach().mean()),
            "grads": [float(hidden.grad.float().norm()), float(weight.grad.float().norm())]}


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
    print(f"{args.tokens} tokens, {args.vocab} words, hidden {args.hidden}, bf16, {args.device}; memory is "
          f"beyond the {2 * args.vocab * args.hidden / 2 ** 30:.2f} GiB of the weight's gradient")
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):           # interleaved, so that a busy minute does not hit one way alone
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            ran = subprocess.run(command, capture_output=True, text=True)
            found[way].append(json.loads(ran.stdout) if ran.returncode == 0 else
                              sys.exit(f"{way}: {ran.stderr.strip().splitlines()[-1:] or ran.returncode}"))
    median = {way: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "gib", "logp")}
              for way, runs in found.items()}
    base = median["log_softmax"]
    print(f"{'':30}{'GiB':>8}{'of first':>10}{'seconds':>10}{'of first':>10}{'mean logp':>12}")
    for way, m in median.items():
        print(f"{way:30}{m['gib']:8.2f}{m['gib'] / base['gib']:10.3f}{m['seconds']:10.2f}"
              f"{m['seconds'] / base['seconds']:10.2f}{m['logp']:12.5f}")


if __name__ == "__main__":
    main()
