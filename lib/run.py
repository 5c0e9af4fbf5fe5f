"""One stage of a run: the processes that share it, its folder, its log, resuming and stopping.

    def main(args) -> int:
        with run_stage(args, "sft") as run:             # a user's mistake: one line and a status
            if not run.finished():
                train(args, run)
        return run.status

    def train(args, run):
        ...                                             # data, policy, optimizer
        state = run.resume(policy, optimizer, tokenizer)    # {"step": 0}, or where it left off
        while state["step"] < args.steps:
            rows = run.together(lambda: collect(...))   # all ranks, or none after a stop signal
            ...
            state["step"] += 1
            run.log(metrics)
            run.checkpoint()                            # when one is due, or after a stop signal
        run.finish()                                    # final/, a Hugging Face folder

The same script runs under plain python (a process group of one, no port) and under torchrun,
several nodes included; the run folder must then be on a file system that all nodes see.
"""

import argparse
import atexit
import errno
import fcntl
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

import grpo
import model
import rollout
import verifier
from lib import checkpoints, errors, files, packages, progress
from lib.errors import UserError

RUNS = Path("runs")
MAX_SKIPPED = 3                 # steps in a row without a finite gradient that end a run
STOPPED = 143                   # exit status after SIGTERM, as shells report it
ENDED = "ended"                 # in the store: how many ranks have ended with an error
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
# How long a collective waits for the slowest rank. One rank may verify a whole batch of programs
# that run into their time limit while the others are done; torch's ten minutes would end the run.
PATIENCE = timedelta(hours=3)


class Stopped(Exception):
    """A stop signal came: no further step is taken."""


class NotFinite(Exception):
    """Too many steps in a row had no finite gradient."""


# ----------------------------------------------------------------------------------------------
# Processes

@dataclass(frozen=True)
class Ranks:
    """This process among its peers. The methods are collective: every rank calls them, in one
    order."""
    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = None     # texts by name, seen by all ranks

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, item) -> list:
        """The items of all ranks, by rank, on the main one; elsewhere []."""
        items = [None] * self.world if self.main else None
        dist.gather_object(item, items)
        return items or []

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: ranks must leave a loop together."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        self.any(False)

    def main_first(self, name: str, work: Callable) -> None:
        """work() on the main rank, while the others wait for it outside of any collective, which
        would time out: building the corpora takes hours. `name` is used once."""
        if self.main:
            work()
            self.store.set(name, "done")
        try:
            while not self.store.check([name]):
                if self.store.check([ENDED]):
                    raise SystemExit(errors.FAILED)
                time.sleep(0.2)
        except dist.DistError:              # the store has ended with the main rank
            raise SystemExit(errors.FAILED) from None


def setup(seed: int = 0, device: str = "auto", timeout: timedelta = PATIENCE) -> Ranks:
    """Process group, device and seeds.

    A process has OMP_NUM_THREADS CPU threads, one by default: a resumed run is bit-equal at the
    same number only.
    """
    progress.quiet()
    launched = "RANK" in os.environ                     # by torchrun
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    slot = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if slot >= torch.cuda.device_count():
            raise UserError(f"process {slot} has no GPU of its own ({torch.cuda.device_count()} "
                            f"found): start one process per GPU, or hide them all: "
                            f"CUDA_VISIBLE_DEVICES=")
        torch.cuda.set_device(slot)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    # Heads that forget fast leave numbers below 1e-38, with which a CPU computes many times slower:
    # with zeros instead an update of a fresh model takes 30 % less time.
    torch.set_flush_denormal(True)
    store = dist.HashStore()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if launched:
            store, _, _ = next(rendezvous("env://", timeout=timeout))
            errors.first_to_end[0] = partial(is_first_to_end, store)
            atexit.register(leave)
        dist.init_process_group(backend, timeout=timeout, rank=rank, world_size=world,
                                store=dist.PrefixStore("group", store))
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    place = torch.device(device, slot) if device == "cuda" else torch.device(device)
    return Ranks(rank, world, place, store)


def is_first_to_end(store: dist.Store) -> bool:
    try:
        return store.add(ENDED, 1) == 1
    except dist.DistError:                  # the store has ended with the main rank, which spoke
        return False


def leave() -> None:
    """Leave the process group at the end of a process.

    gloo's threads let go of a collective's tensors a moment after it has returned. Where the
    interpreter is gone by then, the process aborts ("terminate called without an active
    exception": 9 of 20 runs on a busy machine), hence the pause. After a crash, or a user's
    mistake on one rank, the others may be inside a collective, and with NCCL destroying the group
    could wait for them: leave it alone.
    """
    crashed = hasattr(sys, "last_value")
    mistaken = errors.printed.is_set() and torch.cuda.is_available()
    if dist.is_initialized() and not crashed and not mistaken:
        dist.destroy_process_group()
        time.sleep(0.1)


def stop_flag() -> Callable[[], bool]:
    """From here on SIGTERM (preemption, torchrun going down), SIGINT (^C) and SIGHUP (a closed
    terminal) set a flag instead of ending the process. A second ^C ends it at once."""
    asked = threading.Event()

    def ask(number: int, _) -> None:
        if number == signal.SIGINT and asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    return asked.is_set


def local_workers() -> int:
    """Verifier processes per rank: the cores of this machine shared by its ranks."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """bf16 or fp32 as torch has it; auto is bf16 on a GPU that computes in it, else fp32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


# ----------------------------------------------------------------------------------------------
# Run folders

def run_folder(model_path: str, name: str | None = None, seed: int = 0) -> Path:
    """runs/NAME: `name`, else the model's own name (of runs/X/sft/final it is X), -seedN for N >
    0."""
    if name:
        return RUNS / name
    parts = Path(model_path).parts
    of_a_stage = len(parts) >= 3 and parts[-1] in ("final", "best")
    own = parts[-3] if of_a_stage else Path(model_path).name
    return RUNS / (f"{own}-seed{seed}" if seed else own)


def stage_model(home: Path, stages: Iterable[str], fallback: str) -> tuple[str, str]:
    """Where a stage starts: `final/` of the first of `stages` that is finished, else `fallback`.

    Returns the path and one line that says which.
    """
    stages = list(stages)
    for stage in stages:
        path = home / stage / "final"
        if (path / "config.json").exists():
            return str(path), f"starting from stage {stage}: {path}"
    if not stages:
        return fallback, f"starting from {fallback}"
    missing = ", ".join(stages)
    return fallback, f"no stage of {missing} is finished in {home}: starting from {fallback} itself"


def plug_in(spec: str) -> Callable:
    """The function that MODULE:NAME names, e.g. the judge of a world."""
    name, _, attribute = spec.partition(":")
    try:
        return getattr(import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot load {spec!r} ({error}): "
                        f"give it as module:name, e.g. miniature.world:judge") from None


def git(*words: str) -> str:
    """What git says of this repository; "" without git."""
    if not shutil.which("git"):
        return ""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", here, *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def commit() -> str:
    return git("rev-parse", "HEAD") or "unknown"


def write_config(folder: Path, args: argparse.Namespace, extra: dict | None = None,
                 used: dict[str, str] | None = None) -> dict:
    """config.json: flags, command, versions, commit, `extra` (what was missing or degraded), path
    and hash of every checkpoint or file `used`. A resumed run adds what changed in the flags."""
    import transformers
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    hashes = {name: {"path": str(path), "sha256": files.tree_hash(path)}
              for name, path in (used or {}).items()}
    config = {
        "flags": flags,
        "command": sys.argv,
        "commit": commit(),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                     "numpy": np.__version__, "transformers": transformers.__version__},
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "checkpoints": hashes,
        **(extra or {})}
    path = folder / "config.json"
    if path.exists():
        earlier = json.loads(path.read_text())
        before = earlier["flags"]
        changed = {k: [before.get(k), v] for k, v in flags.items() if before.get(k) != v}
        for name, (old, new) in changed.items():
            flag = name.replace("_", "-")
            print(f"resuming with another --{flag}: {new}, was {old}", file=sys.stderr)
        history = earlier.get("changed_on_resume", [])
        config["changed_on_resume"] = history + ([changed] if changed else [])
    files.write_file(path, json.dumps(config, indent=1, default=str) + "\n")
    return config


# ----------------------------------------------------------------------------------------------
# Logs

class Log:
    """JSON lines under a stage's folder, written by the main rank alone.

    On resume a file is cut to the length that it had at the checkpoint, so that a step done twice
    is logged once; a file newer than the checkpoint starts empty.
    """

    def __init__(self, folder: Path, offsets: dict[str, int], main: bool, wandb=None):
        self.folder, self.main, self.files, self.wandb = folder, main, {}, wandb
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, length in offsets.items():
            path = folder / name
            if not path.exists() or path.stat().st_size < length:
                raise UserError(f"{path} is shorter than at the last checkpoint: "
                                f"put it back, or start over with --fresh")
            os.truncate(path, length)
            self.files[name] = path.open("a", encoding="utf-8")

    def write(self, name: str, record: dict) -> None:
        """Append a line to NAME.jsonl. Numbers that JSON cannot say (inf, nan) become null."""
        if not self.main:
            return
        file = self.files.get(f"{name}.jsonl")
        if file is None:
            file = (self.folder / f"{name}.jsonl").open("w", encoding="utf-8")
            self.files[f"{name}.jsonl"] = file
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v
                 for k, v in record.items()}
        file.write(json.dumps(plain, ensure_ascii=False) + "\n")
        file.flush()
        if self.wandb and name == "metrics":
            self.wandb.log(plain)
        if self.wandb and name == "dev":
            self.wandb.log({"step": plain["step"]}
                           | {f"dev/{k}": v for k, v in plain.items() if k != "step"})

    def offsets(self) -> dict[str, int]:
        """Length in bytes of every file, once it is on disk: part of a checkpoint."""
        lengths = {}
        for name, file in self.files.items():
            os.fsync(file.fileno())
            lengths[name] = os.fstat(file.fileno()).st_size
        return lengths


def import_wandb():
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs a package: pip install wandb, or leave it out") from None
    return wandb


def start_wandb(project: str, folder: Path, run_id: str, config: dict):
    """One run there for one stage here, however often it is resumed. wandb refuses to log an
    earlier step once more, as a resumed run does; so the step is an axis like any other."""
    run = import_wandb().init(project=project, name="/".join(folder.parts[-2:]), dir=str(folder),
                              id=run_id, resume="allow", config=config)
    run.define_metric("*", step_metric="step")
    return run


# ----------------------------------------------------------------------------------------------
# A stage

class Run:
    """One stage of a run on this rank. Methods marked collective: every rank calls them, in one
    order."""

    def __init__(self, args: argparse.Namespace, stage: str):
        self.args = args
        if getattr(args, "wandb", None):
            import_wandb()                  # a missing package is said before anything is deleted
        self.ranks = setup(args.seed)
        self.rank, self.world, self.device = self.ranks.rank, self.ranks.world, self.ranks.device
        self.main, self.any, self.gather = self.ranks.main, self.ranks.any, self.ranks.gather
        self.barrier, self.main_first = self.ranks.barrier, self.ranks.main_first
        self.dtype = compute_dtype("auto", self.device)
        if self.dtype == torch.bfloat16:
            # TF32. In a bf16 run, the products in fp32 are the delta rule's (and those of a gate
            # that is refreshed): 10 bits of mantissa are more than bf16 has handed them.
            torch.set_float32_matmul_precision("high")
        self.kernels = packages.use(self.device, self.dtype)
        self.home = run_folder(args.model, args.run, args.seed)
        self.folder = self.home / stage
        self.stop_asked = stop_flag()
        self.warnings: list[str] = []       # what is missing or degraded; config.json keeps it
        self.status = 0
        for name, what in self.kernels.items():
            self.say(f"{name}: {what}")
        self.state: dict = {}               # what a checkpoint keeps beside weights and moments
        self.module = None                  # set by `resume`

    def say(self, *words, **more) -> None:
        """Print, on the main rank alone."""
        if self.main:
            print(*words, **more, flush=True)

    def warn(self, message: str) -> None:
        """Print what is missing or degraded, and keep it for config.json."""
        self.warnings.append(message)
        self.say(f"WARNING: {message}", file=sys.stderr)

    def warn_of_lacks(self, lacks: list[tuple[str, str]]) -> None:
        """One block of what the run does without, each with the command that mends it."""
        if lacks:
            self.say("WARNING: this run does without", file=sys.stderr)
        for what, mend in lacks:
            self.warnings.append(f"without {what}")
            self.say(f"  {what}\n      mend: {mend}", file=sys.stderr)

    def finished(self) -> bool:
        """Whether the stage has its final/ already and is not to be done afresh or for longer.

        UserError if final/ was made from another model or with another seed.
        """
        final = self.folder / "final"
        if self.args.fresh or not (final / "config.json").exists():
            return False
        config = self.folder / "config.json"
        made_with = json.loads(config.read_text())["flags"] if config.exists() else {}
        for name in ("model", "seed"):
            new = getattr(self.args, name)
            old = made_with.get(name, new)
            if old != new:
                raise UserError(f"{final} was made with --{name} {old}, not {new}: name another "
                                f"--run, or start over with --fresh")
        newest = checkpoints.newest(self.folder)
        goal = checkpoints.read_state(newest).get("goal", {}) if newest else {}
        for name, reached in goal.items():
            asked = getattr(self.args, name, None)
            if asked and reached and asked > reached:
                return False
        self.say(f"{final} is there already (--fresh does the stage again)")
        return True

    def lock(self) -> None:
        """Refuse a second process in this folder. The kernel drops the lock of a dead process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock_file = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:        # a file system without locks
                return
            raise UserError(f"another process writes to {self.folder}: wait for it, stop it, or "
                            f"name another --run") from None

    def resume(self, module, optimizer, tokenizer, state: dict | None = None, *,
               config: dict | None = None, used: dict[str, str] | None = None) -> dict:
        """Where the stage left off: weights and moments in place, the log cut to that point.
        Collective.

        state: what a new run starts with beside {"step": 0}; config, used: see `write_config`.
        Call it when nothing is left to complain about: --fresh deletes the stage here.
        """
        if self.main:
            self.lock()
            if self.args.fresh:
                files.remove(self.folder)
                self.lock()
        self.barrier()
        self.module, self.optimizer, self.tokenizer = module, optimizer, tokenizer
        newest = self.newest_whole()
        self.resumed = newest is not None
        self.state = {"step": 0, "skipped": 0, "logs": {}, **(state or {})}
        if newest:
            self.state = checkpoints.load(newest, module, optimizer)
            self.say(f"resuming after step {self.state['step']} from {newest}")
        # `finished` compares this with what the next command asks for
        self.state["goal"] = {"steps": self.args.steps,
                              "epochs": getattr(self.args, "epochs", None)}
        wandb = getattr(self.args, "wandb", None)
        if wandb and self.main:
            run_id = self.state.setdefault("wandb", uuid.uuid4().hex[:12])
            wandb = start_wandb(wandb, self.folder, run_id, vars(self.args))
        self.logs = Log(self.folder, self.state["logs"], self.main, wandb)
        if self.main:
            extra = {"warnings": self.warnings, "dtype": str(self.dtype),
                     "kernels": self.kernels, **(config or {})}
            write_config(self.folder, self.args, extra, used)
        return self.state

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose bytes are as they were written; damaged ones are put aside.
        Collective."""
        if self.main:
            for path in reversed(checkpoints.complete(self.folder)):
                damage = checkpoints.damage(path)
                if not damage:
                    break
                self.warn(f"{path} is damaged ({damage}): put aside as {path.name}.damaged")
                path.rename(path.with_name(path.name + ".damaged"))
        self.barrier()
        newest = checkpoints.newest(self.folder)
        if newest is None and any(self.folder.glob("*.damaged")):
            raise UserError(f"no whole checkpoint is left in {self.folder}: put one back, or start "
                            f"over with --fresh")
        return newest

    def together(self, collect: Callable):
        """collect(), or Stopped on all ranks where a stop signal ended it on one: what follows is
        collective."""
        try:
            result = collect()
        except rollout.Abandoned:
            result = None
        if self.any(result is None):
            raise Stopped
        return result

    def log(self, metrics: dict, name: str = "metrics") -> None:
        """Append a line to NAME.jsonl in the stage's folder."""
        self.logs.write(name, metrics)

    def count_skipped(self, skipped: bool) -> None:
        """Raise NotFinite when MAX_SKIPPED steps in a row had no finite gradient."""
        self.state["skipped"] = self.state["skipped"] + 1 if skipped else 0
        if self.state["skipped"] >= MAX_SKIPPED:
            raise NotFinite(f"{MAX_SKIPPED} steps in a row had a non-finite loss or gradient; "
                            f"lower --lr")

    def checkpoint(self, due: bool = False) -> None:
        """Between two steps: save every --save-every steps, when `due`, and after a stop signal,
        which then ends the run. Collective."""
        stopping = self.any(self.stop_asked())
        if due or stopping or self.state["step"] % self.args.save_every == 0:
            self.save()
        if stopping:
            raise Stopped

    def save(self) -> None:
        """A checkpoint of the step that was completed last. Collective.

        NotFinite where a weight or a moment is not: it would push out the last good checkpoint.
        """
        if self.any(not self.all_finite()):
            raise NotFinite(f"after step {self.state['step']} the weights hold a NaN or an "
                            f"infinity and are not saved; lower --lr")
        newest = checkpoints.newest(self.folder)
        if newest and newest.name == checkpoints.name(self.state["step"]):
            return
        extra = {**self.state, "logs": self.logs.offsets()}
        checkpoints.save(self.folder, self.state["step"], self.module, self.optimizer, extra,
                         self.args.keep)

    def all_finite(self) -> bool:
        """Whether this rank's shards of weights and moments are."""
        tensors = list(self.module.parameters())
        for moments in self.optimizer.state.values():
            tensors += [moments["exp_avg"], moments["exp_avg_sq"]]
        return all(bool(torch.isfinite(grpo.local(t)).all()) for t in tensors)

    def finish(self) -> None:
        """Write final/. In fp32: RL moves weights by less than bf16 can tell apart. Collective."""
        self.save()
        self.publish("final", {"step": self.state["step"]})
        self.say(f"{self.folder / 'final'} written after {self.state['step']} steps")

    def publish(self, name: str, notes: dict | None = None) -> None:
        """Write the module as a Hugging Face folder that appears when it is whole, with `notes` in
        its notes.json. Collective: every rank brings its shards, the main one writes."""
        target = self.folder / name
        with files.published(target) if self.main else nullcontext(self.folder) as partial:
            model.save(self.module, partial, self.tokenizer)
            if self.main and notes:
                files.write_file(partial / "notes.json", json.dumps(notes) + "\n")
        self.barrier()


@contextmanager
def run_stage(args: argparse.Namespace, stage: str) -> Iterator[Run]:
    """A Run whose ends are messages and exit statuses: a stop signal saves a checkpoint first
    (143), a fault of the sandbox or of the arithmetic is one line (1), so is a user's mistake
    (2)."""
    with errors.one_line():
        run = Run(args, stage)
        try:
            yield run
        except Stopped:
            if not run.state.get("step"):
                run.say("stopped before the first step was done; the same command starts again")
            else:
                run.save()
                step = run.state["step"]
                run.say(f"stopped after step {step}; the same command goes on from there")
            run.status = STOPPED
        except (NotFinite, verifier.SandboxError) as error:
            # a fault of the machinery is no verdict: nothing was learned from it
            errors.last_line(f"{error}; the same command goes on from the newest checkpoint")
            run.status = errors.FAILED
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            errors.last_line(f"{error.strerror}: {error.filename or run.folder}; make room, then "
                             f"the same command goes on from the newest checkpoint")
            run.status = errors.FAILED
