"""Ranks by fork, as torchrun starts them but with torch imported once for all: importing is most of
what a small test costs.

    argv = [...]
    ranks.run(2, "import train_sft",
              f"assert train_sft.main(train_sft.parse_args({argv})) == 0", cwd=folder)

A fork is safe only before torch has threads. So conftest.py calls `serve` first of all: from then
on a process waits that imports what it is told to and forks, and never computes anything itself.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

server: list = []       # the ends of two pipes: jobs to it, exit statuses from it


def fork(world: int, work: Callable[[int], int | None]) -> list[int]:
    """Process ids of `world` children that call work(rank), with the environment that torchrun
    would give them; one alone is plain python."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        if world > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                           "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": port}
        status = 1
        try:
            status = work(rank) or 0
        except SystemExit as end:
            status = end.code
        except BaseException:           # a forked child must not go on with its parent's program
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit statuses, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def run(world: int, imports: str, work: str, cwd=None, timeout: int = 240) -> None:
    """Run the statements `work` in `world` ranks after the statements `imports`. AssertionError
    with their output if one fails or takes more than `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        jobs, statuses = server
        job = [world, imports, work, str(cwd or os.getcwd()), str(output), timeout]
        print(json.dumps(job), file=jobs, flush=True)
        status = statuses.readline().strip()
        assert status == "0", f"ended with {status}\n{output.read_text()}"


def serve() -> None:
    """Fork the process that `run` talks to; it ends with this one."""
    (jobs, to_server), (from_server, statuses) = os.pipe(), os.pipe()
    if os.fork():
        os.close(jobs)
        os.close(statuses)
        server[:] = os.fdopen(to_server, "w"), os.fdopen(from_server)
        return
    os.close(to_server)
    try:
        for line in os.fdopen(jobs):
            os.write(statuses, f"{do(*json.loads(line))}\n".encode())
    finally:
        os._exit(0)


def do(world: int, imports: str, work: str, cwd: str, output: str, timeout: int) -> int:
    """In the server: one job, which prints to the file `output` -> 0 or what it ended with."""
    names: dict = {}
    try:
        exec(imports, names)
    except Exception:
        Path(output).write_text(traceback.format_exc())
        return 1

    def launch(_) -> bool:
        """The parent of the ranks: a process of its own, whose output and alarm are the job's."""
        os.chdir(cwd)
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest has put others there
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        children = fork(world, lambda rank: exec(work, names | {"rank": rank}))

        def kill_all(*_) -> None:
            for child in children:
                os.kill(child, signal.SIGKILL)
            print(f"not done after {timeout} s", file=sys.stderr)

        signal.signal(signal.SIGALRM, kill_all)
        signal.alarm(timeout)
        return any(wait(children))

    return wait(fork(1, launch))[0]
