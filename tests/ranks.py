"""Ranks by fork, as torchrun starts them but with torch imported once for all: importing is most of what a small test costs.

    ran = ranks.run(2, "import train_sft", "assert train_sft.main(train_sft.parse_args([...])) == 0", cwd=folder)

A fork is safe only before torch has threads. So `run` takes a process of its own, which imports and then forks.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}


def fork(world: int, work) -> list[int]:
    """Process ids of `world` children that call work(rank), with the environment that torchrun would give them; one alone is
    plain python."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    children = []
    for rank in range(world):
        if pid := os.fork():
            children.append(pid)
            continue
        if world > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        status = 1
        try:
            status = work(rank) or 0
        except BaseException as error:      # a forked child must not go on with its parent's program
            print(f"rank {rank}: {error!r}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit statuses, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def run(world: int, imports: str, work: str, cwd=None, timeout: float = 240) -> None:
    """Run the statements `work` in `world` ranks after the statements `imports`; AssertionError with what they said if one fails."""
    ran = subprocess.run([sys.executable, __file__, str(world), imports, work], cwd=cwd, capture_output=True, text=True,
                         timeout=timeout, env=ENV)
    assert ran.returncode == 0, ran.stderr + ran.stdout


if __name__ == "__main__":
    names: dict = {}
    exec(sys.argv[2], names)
    sys.exit(any(wait(fork(int(sys.argv[1]), lambda rank: exec(sys.argv[3], names)))))
