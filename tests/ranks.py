"""Ranks by fork, as torchrun starts them but with torch imported once for all: importing is most of what a small test costs.

    ranks.run(2, "import train_sft", "assert train_sft.main(train_sft.parse_args([...])) == 0", cwd=folder)

A fork is safe only before torch has threads. So conftest.py calls `serve` first of all: from then on a process waits that
imports what it is told to and forks, and never computes anything itself.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path

server: list = []       # the ends of two pipes: jobs to it, exit statuses from it


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
        except SystemExit as end:
            status = end.code
        except BaseException:               # a forked child must not go on with its parent's program
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit statuses, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def run(world: int, imports: str, work: str, cwd=None, timeout: int = 240) -> None:
    """Run the statements `work` in `world` ranks after the statements `imports`; AssertionError with what they said if one fails
    or takes more than `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        jobs, statuses = server
        print(json.dumps([world, imports, work, str(cwd or os.getcwd()), str(said), timeout]), file=jobs, flush=True)
        status = statuses.readline().strip()
        assert status == "0", f"ended with {status}\n{said.read_text()}"


def serve() -> None:
    """Fork the process that `run` talks to; it ends with this one."""
    (jobs, to), (back, statuses) = os.pipe(), os.pipe()
    if os.fork():
        os.close(jobs)
        os.close(statuses)
        server[:] = os.fdopen(to, "w"), os.fdopen(back)
        return
    os.close(to)
    try:
        for line in os.fdopen(jobs):
            os.write(statuses, f"{do(*json.loads(line))}\n".encode())
    finally:
        os._exit(0)


def do(world: int, imports: str, work: str, cwd: str, said: str, timeout: int) -> int:
    """In the server: one job, what it says in the file `said` -> 0 or what it ended with."""
    names: dict = {}
    try:
        exec(imports, names)
    except Exception:
        Path(said).write_text(traceback.format_exc())
        return 1

    def ranks(_) -> bool:
        os.chdir(cwd)
        file = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)       # pytest has put others there
        children = fork(world, lambda rank: exec(work, names | {"rank": rank}))

        def late(*_) -> None:
            for child in children:
                os.kill(child, signal.SIGKILL)
            print(f"not done after {timeout} s", file=sys.stderr)
        signal.signal(signal.SIGALRM, late)
        signal.alarm(timeout)
        return any(wait(children))
    return wait(fork(1, ranks))[0]
