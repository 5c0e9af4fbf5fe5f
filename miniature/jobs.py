"""A work queue on disk: commands that run two at a time, each once, whatever interrupts them.

A job is one command. Its mark runs/NAME-queue/JOB.json says whether it has ended well; then it is
never run again. A command that was cut off is given again, and every command of this repository
continues where it was. SIGTERM or ^C lets the jobs write their checkpoints. After a SIGKILL the
next run waits for the jobs that the last one left behind.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib import files
from lib.errors import UserError

STOPPED = 143                       # exit status after SIGTERM, as shells report it


@dataclass
class Job:
    name: str
    command: list[str]              # a script, a module of this repository, or any program
    after: tuple[str, ...] = ()     # jobs that must be done before
    minutes: float = 0.2            # expected, on one core
    passes: tuple[int, ...] = (0,)  # exit statuses that count as done
    only_if: str = ""               # a condition that the queue's `wanted` decides before it starts

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass
class Running:
    job: Job
    process: subprocess.Popen
    started: float


class Queue:
    """Jobs, and their marks and logs in runs/NAME-queue.

    fill: completes the words of a command when its job starts. wanted: whether a condition holds
    (Job.only_if); if not, the job counts as done, and its mark says that it was skipped.
    """

    def __init__(self, name: str, jobs: list[Job], fill: Callable[[str], str] = str,
                 wanted: Callable[[str], bool] = bool):
        self.name, self.jobs, self.fill, self.wanted = name, jobs, fill, wanted
        self.folder = Path(f"runs/{name}-queue")
        self.running: dict[int, Running] = {}       # by process id
        self.failed: set[str] = set()
        self.stopping = False

    # ---- marks

    def mark(self, job: Job) -> dict:
        """The command; once the job has ended also status, seconds and cpu_seconds. {} before it
        has begun."""
        path = self.folder / f"{job.name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_mark(self, job: Job, **outcome) -> None:
        text = json.dumps({"command": str(job), **outcome})
        files.write_file(self.folder / f"{job.name}.json", text)

    def is_done(self, job: Job) -> bool:
        return self.mark(job).get("status") in job.passes

    def done(self) -> list[Job]:
        return [job for job in self.jobs if self.is_done(job)]

    def missing(self) -> list[Job]:
        return [job for job in self.jobs if not self.is_done(job)]

    def check(self) -> None:
        """UserError if a job was begun by another command: its folder would mix two settings."""
        for job in self.jobs:
            begun = self.mark(job).get("command", str(job))
            if begun != str(job):
                raise UserError(f"job {job.name} was begun as `{begun}`, now it is `{job}`: choose "
                                f"another --name, or delete runs/{self.name}-*")

    def listing(self) -> str:
        lines = []
        for job in self.jobs:
            state = "done" if self.is_done(job) else "if" if job.only_if else "-"
            if self.mark(job).get("skipped"):
                state = "skip"
            lines.append(f"{state:5}{job.minutes:6.1f} min  {job.name:28} {job}")
        total = sum(job.minutes for job in self.jobs if not job.only_if) / 60
        left = sum(job.minutes for job in self.missing() if not job.only_if) / 60
        more = sum(job.minutes for job in self.missing() if job.only_if) / 60
        lines.append(f"{len(self.jobs)} jobs, {total:.1f} hours of one core, {left:.1f} of them "
                     f"left; those marked `if` take at most {more:.1f} more")
        return "\n".join(lines)

    # ---- work

    @contextmanager
    def locked(self) -> Iterator[int]:
        """One run at a time. Jobs inherit the lock and hold it, so that the next run also waits for
        the jobs of a run that was killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another run of this queue, or for the jobs that one left behind",
                      flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    @contextmanager
    def stop_signals(self) -> Iterator[None]:
        """Inside, SIGTERM and ^C end the running jobs and start no more."""
        def stop(*_) -> None:
            self.stopping = True
            for running in list(self.running.values()):
                running.process.terminate()

        handlers = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ready(self) -> list[Job]:
        done = {job.name for job in self.done()}
        at_work = {running.job.name for running in self.running.values()}
        return [job for job in self.jobs
                if job.name not in done | self.failed | at_work and done.issuperset(job.after)]

    def skip_unwanted(self) -> None:
        """Mark ready jobs whose condition does not hold; that may make others ready."""
        while unwanted := [job for job in self.ready()
                           if job.only_if and not self.wanted(job.only_if)]:
            for job in unwanted:
                self.write_mark(job, status=job.passes[0], skipped=True, seconds=0, cpu_seconds=0)

    def start(self, job: Job, lock: int) -> None:
        self.write_mark(job)
        command = [self.fill(word) for word in job.command]
        if command[0].endswith(".py"):
            command.insert(0, sys.executable)
        elif "." in command[0]:                 # a module of this repository
            command[:0] = [sys.executable, "-m"]
        with open(self.folder / f"{job.name}.log", "a") as log:
            print(shlex.join(command), file=log, flush=True)
            # A session of its own: ^C must reach a job as the SIGTERM that it knows.
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[lock],
                                       start_new_session=True)
        self.running[process.pid] = Running(job, process, time.time())
        if self.stopping:                       # the signal came while the job was being started
            process.terminate()

    def wait_for_one(self, workers: int) -> None:
        """Wait until a job ends, and write its mark unless a stop signal cut it off."""
        pid, status, usage = os.wait4(-1, 0)
        running = self.running.pop(pid)
        job = running.job
        # set on the process, too: it was waited for behind its back, for the CPU seconds
        status = running.process.returncode = os.waitstatus_to_exitcode(status)
        passed = status in job.passes
        if self.stopping and not passed:
            return                  # no mark of an end: the next run gives the command again
        seconds, cpu = time.time() - running.started, usage.ru_utime + usage.ru_stime
        self.write_mark(job, status=status, seconds=seconds, cpu_seconds=cpu)
        failure = ""
        if not passed:
            self.failed.add(job.name)
            failure = f"  FAILED with status {status}: see {self.folder / job.name}.log"
        missing = self.missing()
        left = sum(job.minutes for job in missing) / workers
        print(f"{len(self.jobs) - len(missing)}/{len(self.jobs)}  {job.name}  {seconds:.0f} s "
              f"({cpu:.0f} s CPU); about {left:.0f} min left{failure}", flush=True)

    def work(self, workers: int) -> list[Job]:
        """Run what is not done, `workers` jobs at a time. Returns the jobs that failed or could not
        begin."""
        with self.locked() as lock, self.stop_signals():
            while True:
                self.skip_unwanted()
                for job in self.ready()[:workers - len(self.running)]:
                    if not self.stopping:
                        self.start(job, lock)
                if not self.running:
                    break
                self.wait_for_one(workers)
        if self.stopping:
            print(f"stopped; {len(self.done())} of {len(self.jobs)} jobs are done, the same "
                  f"command continues", file=sys.stderr)
            raise SystemExit(STOPPED)
        return self.missing()
