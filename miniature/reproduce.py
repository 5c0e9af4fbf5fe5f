"""The paper in miniature: a work queue on disk, and the results it ends in. `bash miniature/reproduce.sh` runs it.

A job is one command, and what stands in runs/NAME-queue says which have ended well: those are never done again. A command
that was cut off is given again, and every command of this repository goes on where it was. Two jobs run at a time, one
process each. SIGTERM or ^C lets them write their checkpoints; after a SIGKILL the next run waits for what the last one left
behind.

    world, bases -> for each seed: stage 1, the gate, stage 3
                 -> on one seed: stage 5 and every rival at each learning rate of one grid, measured on the dev problems
                 -> for each seed: stage 5, ablations, rivals, at the learning rate that was best; evaluations; diversity

The learning rate of an ablation is CPPO's. results.py writes what it all comes to.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miniature import results, world
from paper import attempts, tables

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
K, MANY = results.K, tables.SWEEP       # every method's K; those of direct, CPPO and PKPO (Table 20)
BASELINES = ("direct", "plan-and-solve", "plansearch", "sketch", "self-consistency", "fixed")   # of the base model
TRAINED = {     # swept: stage -> (flags of train_cppo.py, method of evaluate.py)
    "cppo": ((), "tuple"), "grpo": (("--policy", "independent", "--advantage", "grpo"), "direct"),
    "passk": (("--policy", "independent", "--advantage", "passk"), "direct"),
    "pkpo": (("--policy", "independent", "--advantage", "pkpo"), "direct"), "upskill": (("--policy", "skills"), "skills")}
VARIANTS = {    # of CPPO (Table 6) -> (flags, solver attempts in a step beside CPPO's)
    "cppo-outcome": (("--reward", "outcome"), 1), "cppo-gate": (("--reward", "gate"), 1),
    "cppo-m4": (("--num-tuples", "4"), 1 / 2), "cppo-m2": (("--num-tuples", "2"), 1 / 4),
    "cppo-m1": (("--num-tuples", "1"), 1 / 8)}
STEP = {"tuple": 3.3, "direct": 2.0, "skills": 2.6}     # CPU seconds of a step of 256 solver attempts, measured
ATTEMPT = 0.017                                         # CPU seconds of one attempt of an evaluation


def settings(path: Path = Path(__file__).with_name("settings.sh")) -> dict[str, list[str]]:
    """The flags that run.sh uses too: lines NAME="flags"."""
    found = re.findall(r'^(\w+)="(.*)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: shlex.split(flags) for name, flags in found}


# ------------------------------------------------------------------------------------------ the jobs

@dataclass
class Job:
    name: str
    command: list[str]              # {lr:STAGE} stands for the learning rate that the sweep found best
    after: tuple[str, ...] = ()
    minutes: float = 0.2            # expected, on one core
    passes: tuple[int, ...] = (0,)  # exit statuses that end it well

    def __str__(self) -> str:
        return shlex.join(self.command)


def jobs(name: str, quick: bool) -> list[Job]:
    """All jobs of a reproduction, in the order in which they are wanted. Runs are runs/NAME-seedN, of the sweep
    runs/NAME-lrX. `quick`: the same queue with one seed, two learning rates, and tiny steps, pools and bases."""
    flags = settings()
    pool, base, prompts = f"runs/{name}-world", f"runs/{name}-base", "miniature/prompts.json"
    steps, grid = int(flags["STEPS"][0]), flags["LR_GRID"][:2] if quick else flags["LR_GRID"]
    seeds = QUICK_SEEDS if quick else SEEDS
    tiny = ("--steps", "2", "--problems-per-step", "2") if quick else ()
    queue: list[Job] = []

    def add(job: str, *command, after: tuple[str, ...] = (), minutes: float = 0.2, passes: tuple[int, ...] = (0,)) -> None:
        queue.append(Job(job, list(map(str, command)), after, 0.12 if quick else minutes, passes))

    def train(job: str, run: str, seed: int, stage: str, lr: str, more: tuple, after: tuple[str, ...], share: float = 1) -> None:
        """A run of stage 5 or of a rival. CPPO and its ablations start from the seed's warm-up, rivals from the base."""
        own, planned = f"runs/{name}-seed{seed}", stage.startswith("cppo")
        gate = ("--gate", "rule" if quick else f"{own}/gate/final") + ("--skip-audit",) * quick if planned else ()
        add(job, "train_cppo.py", "--model", f"{own}/warmup/final" if planned else base, "--run-name", run, "--seed", seed,
            "--prompts", prompts, "--problems", f"{pool}/train.jsonl", *flags["SAMPLING"], *flags["RL"],
            *(flags["CPPO"] if planned else ()), *(("--judge", "miniature.world:judge") if planned else ()), *gate,
            "--steps", steps, "--lr", lr, *more, *tiny, "--workers", 1, "--keep", 1, "--show-every", 0, after=after,
            minutes=steps * share * STEP[TRAINED.get(stage, TRAINED["cppo"])[1]] / 60)

    def evaluate(job: str, seed: int, model: str, method: str, *more, ks=(1, 2, K), split="heldout", after=()) -> None:
        made_by_plans = ("--judge", "miniature.world:judge") if method in attempts.PLANNED else ()
        add(job, "evaluate.py", "--method", method, "--model", model, "--problems", f"{pool}/{split}.jsonl", "--prompts", prompts,
            *flags["SAMPLING"], "--seed", seed, "--k", *ks, *made_by_plans, "--workers", 1, *more,
            *(("--limit", 6) if quick else ()), after=after,
            minutes=0.15 + world.SIZES[split] * max(ks) * ATTEMPT / 60)

    # -- the world, the bases; of each seed what comes before stage 5
    add("world", "miniature.world", "build", "--out", pool)
    add("base", "miniature.base", "--out", base, *flags["BASE"], *(("--steps", 300) if quick else ()), minutes=4)
    add("gate-base", "miniature.base", "--out", f"{base}-gate", *flags["GATE_BASE"], *(("--steps", 10) if quick else ()),
        minutes=5)
    for seed in seeds:
        run, common = f"{name}-seed{seed}", ("--seed", seed, "--prompts", prompts, "--keep", 1)
        add(f"gate-{seed}", "train_rm.py", "--model", f"{base}-gate", "--run", run, *common, *flags["GATE"], "--labels",
            f"{pool}/labels_train.jsonl", "--val", f"{pool}/labels_val.jsonl", *tiny[:2], after=("world", "gate-base"), minutes=2.5,
            passes=(0, 3) if quick else (0,))               # ten steps make no gate that is accepted
        add(f"sft-{seed}", "train_sft.py", "--model", base, "--run", run, *common, *flags["SFT"], "--gold", f"{pool}/gold.jsonl",
            *(("--steps", "12") if quick else ()), after=("world", "base"), minutes=1.5)
        add(f"warmup-{seed}", "train_cppo.py", "--model", base, "--run-name", run, *common, "--problems", f"{pool}/train.jsonl",
            "--judge", "miniature.world:judge", *flags["SAMPLING"], *flags["RL"], "--stage", "warmup", *flags["WARMUP"], *tiny,
            *(("--gate", "rule") if quick else ()), "--workers", 1, after=(f"gate-{seed}", f"sft-{seed}"), minutes=0.8)

    # -- the sweep
    for stage, (more, method) in TRAINED.items():
        for lr in grid:
            run = f"{name}-lr{lr}"
            train(f"sweep-{stage}-{lr}", run, 0, stage, lr, more, ("warmup-0",) if stage == "cppo" else ("base", "world"))
            evaluate(f"dev-{stage}-{lr}", 0, f"runs/{run}/{stage}/final", method, "--out", f"runs/{run}/dev/{stage}.jsonl", ks=(K,),
                     split="dev", after=(f"sweep-{stage}-{lr}",))

    # -- every method on every seed
    for seed in seeds:
        run = f"{name}-seed{seed}"
        gate = ("--gate", "rule" if quick else f"runs/{run}/gate/final")
        many = {"ks": MANY}
        for method in BASELINES:
            evaluate(f"eval-{seed}-base-{method}", seed, base, method, "--run-name", run, after=("base", "world"),
                     **many if method == "direct" else {})
        for stage in ("sft", "warmup"):
            evaluate(f"eval-{seed}-{stage}", seed, f"runs/{run}/{stage}/final", "tuple", after=(f"{stage}-{seed}",))
        evaluate(f"eval-{seed}-sft-iid", seed, f"runs/{run}/sft/final", "tuple-iid", after=(f"sft-{seed}",))
        for stage, (more, method) in TRAINED.items():
            swept = tuple(f"dev-{stage}-{lr}" for lr in grid)
            best = f"{{lr:{stage}}}"
            if seed == 0:               # the sweep has trained it
                add(f"{stage}-{seed}", "cp", "-rT", f"runs/{name}-lr{best}/{stage}", f"runs/{run}/{stage}", after=swept,
                    minutes=0.01)
            else:
                train(f"{stage}-{seed}", run, seed, stage, best, more,
                      (*swept, f"warmup-{seed}") if stage == "cppo" else swept)
            evaluate(f"eval-{seed}-{stage}", seed, f"runs/{run}/{stage}/final", method, *(gate if stage == "cppo" else ()),
                     after=(f"{stage}-{seed}",), **many if stage in ("cppo", "pkpo") else {})
        cppo = f"runs/{run}/cppo/final"
        evaluate(f"eval-{seed}-cppo-iid", seed, cppo, "tuple-iid", after=(f"cppo-{seed}",))
        evaluate(f"eval-{seed}-cppo-shuffled", seed, cppo, "tuple", "--shuffle-strategies", after=(f"cppo-{seed}",))
        for stage, (more, share) in VARIANTS.items():
            train(f"{stage}-{seed}", run, seed, stage, "{lr:cppo}", more, (f"cppo-{seed}",), share)
            evaluate(f"eval-{seed}-{stage}", seed, f"runs/{run}/{stage}/final", "tuple", after=(f"{stage}-{seed}",))
        made = tuple(job.name for job in queue if job.name.startswith(f"eval-{seed}-"))
        add(f"diversity-{seed}", "miniature.reproduce", "diversity", f"runs/{run}", f"{pool}/heldout.jsonl", base, after=made,
            minutes=1)
    return queue


def measure_diversity(run: str, pool: str, base: str) -> None:
    """The command of a job: diversity.py on every attempts file of a run."""
    files = sorted(str(path) for path in Path(run).rglob("eval/*.jsonl"))
    subprocess.run([sys.executable, "-m", "paper.diversity", *files, "--problems", pool, "--classifier", "miniature.world:category",
                    "--encoder", base], check=True)


# ------------------------------------------------------------------------------------------ the queue

class Queue:
    """The marks of jobs in a folder: JOB.json with the command, and once it has ended its status; JOB.log."""

    def __init__(self, name: str):
        self.name, self.folder = name, Path(f"runs/{name}-queue")

    def read(self, job: Job) -> dict:
        path = self.folder / f"{job.name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write(self, job: Job, **mark) -> None:
        path = self.folder / f"{job.name}.json"
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps({"command": str(job), **mark}))
        os.replace(aside, path)

    def is_done(self, job: Job) -> bool:
        return self.read(job).get("status") in job.passes

    def check(self, queue: list[Job]) -> None:
        """Raises ValueError if a job was begun by another command: its folder would mix two settings."""
        for job in queue:
            begun = self.read(job).get("command", str(job))
            if begun != str(job):
                raise ValueError(f"job {job.name} was begun as `{begun}`, now it is `{job}`: choose another --name, or delete "
                                 f"runs/{self.name}-*")

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Only one run at a time, jobs included: they inherit the lock, so that of a run that was killed they keep it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another run of this queue, or for the jobs that one left behind", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def start(self, job: Job, lock: int) -> subprocess.Popen:
        self.write(job)
        filled = [re.sub(r"\{lr:(\w+)\}", lambda m: results.best_lr(self.name, m[1]), word) for word in job.command]
        if filled[0].endswith(".py"):
            filled.insert(0, sys.executable)
        elif "." in filled[0]:                  # a module of this repository
            filled[:0] = [sys.executable, "-m"]
        with open(self.folder / f"{job.name}.log", "a") as log:
            print(shlex.join(filled), file=log, flush=True)
            # a session of its own: ^C ends jobs by the SIGTERM that they know
            return subprocess.Popen(filled, stdout=log, stderr=log, pass_fds=[lock], start_new_session=True)

    def work(self, queue: list[Job], workers: int) -> list[Job]:
        """Do what is not done, `workers` at a time -> the jobs that failed or could not begin."""
        running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
        failed: set[str] = set()
        asked_to_stop = []

        def stop(*_) -> None:
            asked_to_stop.append(True)
            for _, process, _ in list(running.values()):
                process.terminate()

        with self.locked() as lock:
            before = [signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)]
            done = {job.name for job in queue if self.is_done(job)}
            while True:
                at_work = {job.name for job, *_ in running.values()}
                ready = [job for job in queue if job.name not in done | failed | at_work and done.issuperset(job.after)]
                for job in ready[: workers - len(running)]:
                    if not asked_to_stop:
                        process = self.start(job, lock)
                        running[process.pid] = job, process, time.time()
                        if asked_to_stop:               # while it was being started
                            process.terminate()
                if not running:
                    break
                pid, status, usage = os.wait4(-1, 0)
                job, process, started = running.pop(pid)
                status = process.returncode = os.waitstatus_to_exitcode(status)
                if asked_to_stop and status not in job.passes:
                    continue
                seconds, cpu = time.time() - started, usage.ru_utime + usage.ru_stime
                self.write(job, status=status, seconds=seconds, cpu_seconds=cpu)
                (done if status in job.passes else failed).add(job.name)
                left = sum(job.minutes for job in queue if job.name not in done) / workers
                said = "" if status in job.passes else f"  FAILED with status {status}: see {self.folder / job.name}.log"
                print(f"{len(done)}/{len(queue)}  {job.name}  {seconds:.0f} s ({cpu:.0f} s CPU); about {left:.0f} min left{said}",
                      flush=True)
        for s, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(s, handler)
        if asked_to_stop:
            print(f"stopped; {len(done)} of {len(queue)} jobs are done, the same command goes on", file=sys.stderr)
            raise SystemExit(143)
        return [job for job in queue if job.name not in done]


def listing(queue: list[Job], state: Queue) -> str:
    lines = [f"{'done' if state.is_done(job) else '-':5}{job.minutes:6.1f} min  {job.name:28} {job}" for job in queue]
    left = sum(job.minutes for job in queue if not state.is_done(job))
    return "\n".join([*lines, f"{len(queue)} jobs, {sum(job.minutes for job in queue) / 60:.1f} hours of one core, "
                              f"{left / 60:.1f} of them left"])


# ------------------------------------------------------------------------------------------ the command

def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The paper in miniature, from a queue on disk.")
    parser.add_argument("diversity", nargs="*", help=argparse.SUPPRESS)     # a job's own command
    parser.add_argument("--list", action="store_true", help="print the jobs, with expected minutes, and end")
    parser.add_argument("--report", action="store_true", help="write the results of what is done so far, and end")
    parser.add_argument("--quick", action="store_true", help="a smoke run of the whole queue; results go to runs/NAME")
    parser.add_argument("--name", help="of the runs: runs/NAME-seedN (default: reproduce, with --quick quick)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time, one core each (%(default)s)")
    args = parser.parse_args(argv)
    if args.diversity:
        measure_diversity(*args.diversity[1:])
        return 0
    name = args.name or ("quick" if args.quick else "reproduce")
    queue, state = jobs(name, args.quick), Queue(name)
    try:
        if args.list:
            print(listing(queue, state))
            return 0
        if args.workers < 1:
            raise ValueError(f"--workers must be 1 or more, not {args.workers}")
        state.check(queue)
        left = [] if args.report else state.work(queue, args.workers)
        out = Path("runs") / name if args.quick else Path(".")
        out.mkdir(parents=True, exist_ok=True)
        marks = [state.read(job) for job in queue if state.is_done(job)]
        missing = [job.name for job in queue if not state.is_done(job)]
        print(f"written: {results.report(name, out, marks, missing)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for job in left:
        print(f"not done: {job.name} (see {state.folder / job.name}.log)", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
