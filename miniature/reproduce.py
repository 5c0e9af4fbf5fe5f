"""The paper in miniature: a work queue on disk, and the results it ends in. `bash miniature/reproduce.sh` runs it.

A job is one command, and what stands in runs/NAME-queue says which have ended well: those are never done again. A command
that was cut off is given again, and every command of this repository goes on where it was. Two jobs run at a time, one
process each. SIGTERM or ^C lets them write their checkpoints; after a SIGKILL the next run waits for what the last one left
behind.

    world, bases -> for each seed: stage 1, the gate, stage 3
                 -> on one seed: stage 5 and every rival at each learning rate of one grid, measured on the dev problems
                 -> for each seed: stage 5, ablations, rivals, at the learning rate that was best; evaluations; diversity

The learning rate of an ablation is CPPO's. Attempts go compressed to results/, which is all that the tables of RESULTS.md are
made from. What stands in RESULTS.md below the line MARK was written by hand and stays there.
"""

import argparse
import contextlib
import fcntl
import gzip
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # when run as a script

import numpy as np

import attempts
import data
import metrics
import paper
import tables
from miniature import world

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
K, MANY = 4, (1, 2, 4, 8, 16, 20, 24)       # every method's K; those of direct, CPPO and PKPO (Table 20)
PAPER_MODEL = "Qwen3.5-2B"
BASELINES = ("direct", "plan-and-solve", "plansearch", "sketch", "self-consistency", "fixed")   # of the base model
TRAINED = {     # swept: stage -> (flags of train_cppo.py, method of evaluate.py)
    "cppo": ((), "tuple"), "grpo": (("--policy", "independent", "--advantage", "grpo"), "direct"),
    "passk": (("--policy", "independent", "--advantage", "passk"), "direct"),
    "pkpo": (("--policy", "independent", "--advantage", "pkpo"), "direct"), "upskill": (("--policy", "skills"), "skills")}
VARIANTS = {    # of CPPO (Table 6) -> (flags, solver attempts in a step beside CPPO's)
    "cppo-outcome": (("--reward", "outcome"), 1), "cppo-gate": (("--reward", "gate"), 1),
    "cppo-m4": (("--num-tuples", "4"), 1 / 2), "cppo-m2": (("--num-tuples", "2"), 1 / 4),
    "cppo-m1": (("--num-tuples", "1"), 1 / 8)}
IDENTICAL = ("Direct Solve", "Plan-and-Solve", "Sketch-then-Solve", "Self-Consistency", "GRPO", "Pass@K Training", "PKPO")
IID = {"Tuple Planner SFT, iid": "sft/tuple-iid", "CPPO, iid": "cppo/tuple-iid"}
STEP = {"tuple": 3.3, "direct": 2.0, "skills": 2.6}     # CPU seconds of a step of 256 solver attempts, measured
ATTEMPT = 0.017                                         # CPU seconds of one attempt of an evaluation
MARK = "<!-- what follows was written by hand -->"


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
    add("world", "miniature/world.py", "build", "--out", pool)
    add("base", "miniature/base.py", "--out", base, *flags["BASE"], *(("--steps", 300) if quick else ()), minutes=4)
    add("gate-base", "miniature/base.py", "--out", f"{base}-gate", *flags["GATE_BASE"], *(("--steps", 10) if quick else ()), minutes=5)
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
                add(f"{stage}-{seed}", "cp", "-rT", f"runs/{name}-lr{best}/{stage}", f"runs/{run}/{stage}", after=swept, minutes=0.01)
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
        add(f"diversity-{seed}", "miniature/reproduce.py", "diversity", f"runs/{run}", f"{pool}/heldout.jsonl", base, after=made,
            minutes=1)
    return queue


def best_lr(name: str, stage: str) -> str:
    """The learning rate of the sweep with the highest pass@4 on the dev problems, the lowest of equal ones."""
    found = {path.parent.parent.name.removeprefix(f"{name}-lr"): dev_pass(path)
             for path in Path("runs").glob(f"{name}-lr*/dev/{stage}.jsonl")}
    return min(found, key=lambda lr: (-found[lr], float(lr)))


def dev_pass(path: Path) -> float:
    return float(attempts.outcomes(attempts.load(path), K, of=attempts.posterior).mean())


def measure_diversity(run: str, pool: str, base: str) -> None:
    """The command of a job: diversity.py on every attempts file of a run."""
    files = sorted(str(path) for path in Path(run).rglob("eval/*.jsonl"))
    subprocess.run([sys.executable, "diversity.py", *files, "--problems", pool, "--classifier", "miniature.world:category",
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
        filled = [re.sub(r"\{lr:(\w+)\}", lambda m: best_lr(self.name, m[1]), word) for word in job.command]
        if filled[0].endswith(".py"):
            filled.insert(0, sys.executable)
        with open(self.folder / f"{job.name}.log", "a") as log:
            print(shlex.join(filled), file=log, flush=True)
            # a session of its own: ^C ends jobs by the SIGTERM that they know
            return subprocess.Popen(filled, stdout=log, stderr=log, pass_fds=[lock], start_new_session=True)

    def work(self, queue: list[Job], workers: int) -> list[Job]:
        """Do what is not done, `workers` at a time -> the jobs that failed or could not begin."""
        running: dict[int, tuple[Job, subprocess.Popen, float]] = {}
        failed: set[str] = set()
        total = sum(job.minutes for job in queue)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with self.locked() as lock:
            done = {job.name for job in queue if self.is_done(job)}
            try:
                while True:
                    at_work = {job.name for job, *_ in running.values()}
                    ready = [job for job in queue if job.name not in done | failed | at_work and done.issuperset(job.after)]
                    for job in ready[: workers - len(running)]:
                        process = self.start(job, lock)
                        running[process.pid] = job, process, time.time()
                    if not running:
                        break
                    pid, status, usage = os.wait4(-1, 0)
                    job, process, started = running.pop(pid)
                    status = process.returncode = os.waitstatus_to_exitcode(status)
                    cpu = usage.ru_utime + usage.ru_stime
                    self.write(job, status=status, seconds=time.time() - started, cpu_seconds=cpu)
                    (done if status in job.passes else failed).add(job.name)
                    left = sum(job.minutes for job in queue if job.name not in done) / workers
                    said = "" if status in job.passes else f"  FAILED with status {status}: see {self.folder / job.name}.log"
                    print(f"{len(done)}/{len(queue)}  {job.name}  {time.time() - started:.0f} s ({cpu:.0f} s CPU); about "
                          f"{left:.0f} of {total / workers:.0f} min left{said}", flush=True)
            except KeyboardInterrupt:
                for _, process, _ in running.values():
                    process.terminate()
                for _, process, _ in running.values():
                    process.wait()
                print(f"stopped; {len(done)} of {len(queue)} jobs are done, the same command goes on", file=sys.stderr)
                raise SystemExit(143) from None
        return [job for job in queue if job.name not in done]


def listing(queue: list[Job], state: Queue) -> str:
    lines = [f"{'done' if state.is_done(job) else '-':5}{job.minutes:6.1f} min  {job.name:28} {job}" for job in queue]
    left = sum(job.minutes for job in queue if not state.is_done(job))
    return "\n".join([*lines, f"{len(queue)} jobs, {sum(job.minutes for job in queue) / 60:.1f} hours of one core, "
                              f"{left / 60:.1f} of them left"])


# ------------------------------------------------------------------------------------------ results

def pack(name: str, out: Path) -> list[Path]:
    """Copy attempts files, compressed, with what stands beside them -> the folders of the runs in `out`."""
    packed = []
    for run in sorted(Path("runs").glob(f"{name}-seed*")):
        for path in sorted(run.rglob("eval/*.json*")):
            to = out / path.relative_to("runs")
            if path.suffix == ".jsonl":
                to.parent.mkdir(parents=True, exist_ok=True)
                to.with_name(to.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            elif path.name.endswith(".json") and path.with_name(path.name.replace(".diversity", "") + "l").exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
        if (out / run.name).exists():
            packed.append(out / run.name)
    return packed


def said(argv: list[str]) -> str:
    """What `python tables.py ...` prints, an error included."""
    text = io.StringIO()
    args = tables.parse_args(argv)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        tables.main(args)
    return re.sub("^error: (.*)", r"- (\1)", text.getvalue().rstrip())


def signed(found: metrics.Comparison) -> str:
    return f"{found.gain:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


class Report:
    """Tables of our own, from the same evaluations as the paper's tables."""

    def __init__(self, runs: tables.Runs, problems: list[data.Problem]):
        self.runs, self.of = runs, runs.passing(K)
        self.model, self.benchmark = next((m, b) for m, b, _ in runs.places())
        known = {p.id: p for p in problems}
        names = next(iter(runs.found.values()))[0].problems
        self.classes = [list(known[name].classes.values()) for name in names]
        self.known = known

    def seeds(self, row: str) -> list[attempts.Evaluation]:
        return self.runs.get(self.model, self.benchmark, row)

    def values(self, row: str) -> np.ndarray | None:
        """(problems,): pass@4 averaged over posterior and seeds."""
        return tables.values(self.seeds(row), self.of).mean(0) if self.seeds(row) else None

    def ceiling(self, row: str) -> np.ndarray:
        """(problems,): the best of the policy class that a method belongs to."""
        independent = row in IDENTICAL or row in IID
        return np.array([(metrics.independent_ceiling if independent else metrics.coordinated_ceiling)(p, K) for p in self.classes])

    def planned(self, row: str) -> np.ndarray | None:
        """(problems,): what the strategies alone would reach, were each carried out to the letter."""
        if not self.seeds(row) or self.seeds(row)[0].setting["method"] not in attempts.PLANNED:
            return None

        def mass(evaluation: attempts.Evaluation) -> np.ndarray:
            return np.array([self.mass(name, made[:K]) for name, made in evaluation.problems.items()])
        return tables.values(self.seeds(row), mass).mean(0)

    def mass(self, name: str, made: list[dict]) -> float:
        combos = {world.read(a["strategy"]) for a in made if a["strategy"]} - {None}
        hit = {data.outcome_hash(list(world.outcome(combo))) for combo in combos}
        return metrics.posterior_pass(list(hit), self.known[name].classes)

    def gap(self) -> list[dict]:
        """coordinated ceiling - pass@4 = policy class + optimisation + solver noise, mean over problems and seeds."""
        lines = []
        for row, system in (tables.SYSTEMS | IID).items():
            reached, planned, best = self.values(system), self.planned(system), self.ceiling(row)
            if reached is None or row == "CPPO, shuffled":
                continue
            top = np.array([metrics.coordinated_ceiling(p, K) for p in self.classes]).mean()
            lines.append({"method": row, "pass@4": reached.mean(), "ceiling of its class": best.mean(),
                          "coordinated ceiling": top, "gap": top - reached.mean(), "policy class": top - best.mean(),
                          "optimisation": best.mean() - (reached if planned is None else planned).mean(),
                          "solver noise": None if planned is None else planned.mean() - reached.mean()})
        return [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]

    def demands(self) -> list[dict]:
        """What must hold in the miniature world, and whether it does."""
        lines, cppo = [], self.values("CPPO")
        independent = np.array([metrics.independent_ceiling(p, K) for p in self.classes])
        constant = self.runs.ceiling(self.model, self.benchmark, K, "constant")
        for name, limit in (("independent ceiling", independent), ("best constant tuple", np.full_like(independent, constant))):
            if cppo is not None:
                found = metrics.paired_bootstrap(cppo, limit)
                lines.append({"demand": f"CPPO above the {name}", "difference": signed(found), "p": found.p,
                              "holds": "yes" if found.gain > 0 else "NO"})
        for row in IDENTICAL:
            reached = self.values(row)
            if reached is not None:
                above = reached - independent
                error = above.std(ddof=1) / len(above) ** 0.5
                lines.append({"demand": f"{row} not above the independent ceiling", "difference":
                              f"{above.mean():+.3f}, {above.mean() / error:+.1f} standard errors",
                              "holds": "yes" if above.mean() <= 2 * error else "NO"})
        return lines

    def directions(self) -> list[dict]:
        """The paper's comparisons: its difference beside ours, with a paired bootstrap interval over problems."""
        def printed(table: dict, row: str, column: str) -> float | None:
            text = table.get((row, PAPER_MODEL), {}).get(column)
            return float(text.split()[0]) if text else None

        def per_problem(row: str, of) -> dict[str, float]:
            made: dict[str, list[float]] = {}
            for evaluation in self.seeds(row):
                for name, value in of(evaluation):
                    made.setdefault(name, []).append(value)
            return {name: float(np.mean(values)) for name, values in made.items()}

        def repeats(evaluation) -> Iterator[tuple[str, float]]:
            for group in attempts.tuples(evaluation, K):
                strategies = [a["strategy"] for a in group if a["strategy"]]
                yield group[0]["problem_id"], float(world.duplicates("", strategies) > 0)

        def algorithms(evaluation) -> Iterator[tuple[str, float]]:
            for group in (evaluation.diversity or {}).get("groups", []):
                yield group["problem_id"], group["D_alg"]

        def passing(evaluation) -> Iterator[tuple[str, float]]:
            yield from zip(evaluation.problems, self.of(evaluation), strict=True)

        columns = ("APPS", "CodeContests", "LCBv6")
        theirs = {row: np.mean([printed(paper.MAIN, "CPPO", c) - printed(paper.MAIN, row, c) for c in columns])
                  for row in tables.SYSTEMS if (row, PAPER_MODEL) in paper.MAIN and row != "CPPO"}
        ablated = {row: printed(paper.ABLATION, row, "pass@4") for row in tables.VARIANTS}
        wanted = [("pass@4", "CPPO", row, theirs.get(row), passing) for row in tables.SYSTEMS if not row.startswith("CPPO")]
        wanted += [("pass@4", a, b, ablated[a] - ablated[b], passing) for a, b in
                   (("CPPO (J R_out)", "without J (R_out)"), ("CPPO (J R_out)", "J alone"), ("CPPO (J R_out)", "M = 4"),
                    ("M = 4", "M = 2"), ("M = 2", "M = 1"))]
        wanted += [("tuples with a repeat", "CPPO (J R_out)", "without J (R_out)", 0.08 - 0.32, repeats)]
        wanted += [("pass@4", f"{name}, joint", f"{name}, iid", printed(paper.INFERENCE, name, "difference"), passing)
                   for name in ("Tuple Planner SFT", "CPPO")]
        wanted += [("D_alg", "CPPO", row, printed(paper.DIVERSITY, "CPPO", "D_alg") - printed(paper.DIVERSITY, row, "D_alg"), algorithms)
                   for row in ("Tuple Planner SFT", "PKPO", "Direct Solve")]
        system = tables.VARIANTS | IID | {"Tuple Planner SFT, joint": "sft/tuple", "CPPO, joint": "cppo/tuple"}
        lines = []
        for what, a, b, known, of in wanted:
            line = {"of": what, "difference": f"{a} less {b}", "paper": None if known is None else f"{known:+.3f}"}
            ours, rival = (per_problem(system.get(row, row), of) for row in (a, b))
            both = [name for name in ours if name in rival]
            if both:
                found = metrics.paired_bootstrap([ours[name] for name in both], [rival[name] for name in both])
                decided = found.low > 0 or found.high < 0
                line |= {"here": signed(found), "as in the paper": None if known is None else "open" if not decided else
                         "yes" if (found.gain > 0) == (known > 0) else "NO"}
            lines.append(line)
        return lines


def sweep_table(name: str) -> list[dict]:
    """What every trained method was given, and what it came to on the dev problems."""
    lines = []
    for stage, path in itertools.chain.from_iterable(
            ((s, p) for p in sorted(Path("runs").glob(f"{name}-lr*/dev/{s}.jsonl"))) for s in TRAINED):
        folder = path.parent.parent / stage
        with open(folder / "samples.jsonl", encoding="utf-8") as rows:
            samples = sum(len(json.loads(row)["branches"]) for row in rows)
        steps = [json.loads(row) for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lr = path.parent.parent.name.removeprefix(f"{name}-lr")
        lines.append({"method": stage, "learning rate": lr, "steps": len(steps), "solver attempts": samples,
                      "decoded tokens": f"{sum(m['tokens_sampled'] for m in steps):,}", "dev pass@4": f"{dev_pass(path):.3f}",
                      "taken": "*" if lr == best_lr(name, stage) else None})
    return lines


TITLES = {8: "pass@4 of every method (Tables 1, 8, 19)", 5: "the stages", 4: "decoded tokens (Tables 4, 18)",
          6: "ablations and budgets", 7: "majority votes", 13: "reliability of the classifier (nobody annotated; in this world it is exact)", 14: "diversity",
          15: "joint and iid inference", 16: "their diversity", 17: "where the gain comes from", 20: "budgets K", 12: "side by side"}
FIGURES = {"2": "pass@K over K (Figures 2, 5, 6)", "3": "the gate", "4": "gain against diversity", "7": "pass@K as bars", "8": "PKPO's training",
           "9": "UpSkill's training", "cost": "pass@4 against its cost"}


def report(name: str, out: Path, queue: list[Job], state: Queue) -> Path:
    """RESULTS.md and results/ under `out`, from what there is."""
    packed = pack(name, out / "results")
    if not packed:
        raise ValueError(f"runs/{name}-seed* hold no attempts yet: run the queue first")
    folders = [str(path) for path in packed]
    runs = tables.find(folders, paper_model=PAPER_MODEL)
    made = [evaluation for found in runs.found.values() for evaluation in found]
    commits = ", ".join(sorted({e.card.get("commit", "unknown")[:10] for e in made}))
    ours = Report(runs, data.load_problems(f"runs/{name}-world/heldout.jsonl"))
    marks = [state.read(job) for job in queue if state.is_done(job)]
    hours = sum(mark["cpu_seconds"] for mark in marks) / 3600
    missing = [job.name for job in queue if not state.is_done(job)]
    short = f"{out}/results/{name}-seed*".removeprefix("./")
    command = "bash miniature/reproduce.sh"

    def block(title: str, text: str, how: str) -> str:
        beside = f"\n{best}" if "pass@" in text else ""
        return f"### {title}\n\nCommit {commits}: `{how}`\n{beside}\n```\n{text}\n```\n"

    ceilings = {n: runs.ceiling(ours.model, ours.benchmark, K, n) for n in ("constant", "independent", "coordinated")}
    best = f"Best possible pass@{K}: " + ", ".join(f"{n} {v:.3f}" for n, v in ceilings.items()) + ".\n"
    parts = [
        "# Results of the miniature world\n",
        f"Written by `{command}`; {len(folders)} seed(s), {len(ours.classes)} held-out problems, {len(marks)} of {len(queue)} jobs, "
        f"{hours:.1f} CPU hours, attempts made at commit {commits}. pass@K is averaged over the posterior of each statement; brackets "
        "are 95 % bootstrap intervals over problems, ± is the standard deviation over training seeds. Columns marked (paper) are the "
        f"paper's own figures for {PAPER_MODEL}, on real benchmarks: only their directions can be compared.\n",
        "The best that a policy can reach: constant, four programs that never read the statement; independent, four draws from one "
        f"distribution; coordinated, four different programs. {best}"]
    if missing:
        parts.append(f"NOT DONE: {', '.join(missing)}.\n")
    parts += ["## What must hold\n", block("Demands", attempts.render(ours.demands()), f"{command} --report"),
              block("The paper's directions", attempts.render(ours.directions()), f"{command} --report"),
              block("The gap to the coordinated ceiling", attempts.render(ours.gap()), f"{command} --report"),
              "A method's class is independent draws or coordinated tuples. Solver noise is what its strategies would reach, carried "
              "out to the letter, less what its programs reach; methods without strategies have it in their optimisation.\n",
              block("The sweep of learning rates, on seed 0", attempts.render(sweep_table(name)), f"{command} --report"),
              "## Tables\n"]
    for number, title in TITLES.items():
        paper_model = [] if number in (12, 13) else ["--paper-model", PAPER_MODEL]
        printed = said(["table", str(number), *folders, *paper_model])
        parts.append(block(f"Table {number}: {title}", printed, shlex.join(["python", "tables.py", "table", str(number), short,
                                                                           *paper_model]).replace("'", "")))
    parts.append("## Figures\n")
    for number, title in FIGURES.items():
        picture, trained = out / "results" / f"figure-{number}.png", number in "389"     # those read the logs of training
        given = [f"runs/{Path(folder).name}" for folder in folders] if trained else folders
        told = said(["figure", number, *given, "--out", str(picture)])
        how = f"python tables.py figure {number} {f'runs/{name}-seed*' if trained else short}"
        parts.append(f"### Figure {number}: {title}\n\nCommit {commits}: `{how}`\n\n"
                     + (f"![]({picture.relative_to(out)})\n" if told == str(picture) else f"{told}\n"))
    path = out / "RESULTS.md"
    by_hand = path.read_text(encoding="utf-8").partition(MARK)[2] if path.exists() else "\n"
    path.write_text("\n".join(parts) + f"\n{MARK}{by_hand}", encoding="utf-8")
    return path


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
        print(f"written: {report(name, out, queue, state)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for job in left:
        print(f"not done: {job.name} (see {state.folder / job.name}.log)", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
