"""What only scripts need: process group, run folder, logs, progress, checkpoints, errors that people can
read.

    with errors.explain():                                       # a user's mistake: one line, exit status 2
        ranks = lib_run.setup(args.seed, args.device, args.threads, timeout)
        run = lib_run.run_folder(args.model, args.run, args.seed)
        start, said = lib_run.stage_model(run, ("warmup", "sft"), args.model)
        stop = lib_run.stop_flag()                                # SIGTERM: finish with a checkpoint
        path = checkpoints.newest_checkpoint(run / "cppo")
        state = checkpoints.load_checkpoint(path, policy, optimizer) if path else {"step": 0, "logs": {}}
        log = lib_run.Log(run / "cppo", state["logs"], ranks)
        ...
        checkpoints.save_checkpoint(run / "cppo", step, policy, optimizer, {"logs": log.offsets()}, args.keep)

The same script runs under plain python (a process group of one, no port) and under torchrun, several nodes
included; the run folder must then be on a file system that all of them see.
"""

import argparse
import atexit
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from lib import errors
from lib.files import tree_hash, write_file

RUNS = Path("runs")
DECODING_ALLOWANCE = timedelta(minutes=30)      # by which the slowest rank may end decoding after the first


# ------------------------------------------------------------------------------------------------------------
# Processes

@dataclass(frozen=True)
class Ranks:
    """This process among its peers. The methods are collective: every rank calls them, in the same order."""
    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, item) -> list:
        """The items of all ranks, by rank, on the main one; elsewhere []."""
        items = [None] * self.world if self.main else None
        dist.gather_object(item, items)
        return items or []

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank: ranks must leave a loop together."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        self.any(False)


def setup(seed: int = 0, device: str = "auto", threads: int = 1,
          timeout: timedelta = timedelta(hours=1)) -> Ranks:
    """Process group, device, seeds, threads. `timeout` is how long a collective may wait for the slowest rank
    (see `collective_timeout`). With threads > 1 results may differ in the last bit between thread counts."""
    rank, world, slot = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if threads < 0:
        raise ValueError(f"--threads must be 0 or more, not {threads}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if slot >= torch.cuda.device_count():
            raise ValueError(f"process {slot} has no GPU of its own ({torch.cuda.device_count()} found): "
                             f"start one process a GPU, or pass --device cpu")
        torch.cuda.set_device(slot)
    if threads:
        torch.set_num_threads(threads)
    if not dist.is_initialized():
        where = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if "RANK" not in os.environ else {}
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout, **where)
        if "RANK" in os.environ:
            atexit.register(leave)
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    return Ranks(rank, world, torch.device(device, slot) if device == "cuda" else torch.device(device))


def leave() -> None:
    """At the end of a process. gloo's threads let go of a collective's tensors a moment after it has returned; where the
    interpreter is going down by then, the process aborts ("terminate called without an active exception": 9 of 20
    runs on a busy machine). So they get the moment, too, in case somebody still holds the group. After a crash, or a
    user's mistake on one rank, the others may be inside a collective, and destroying the group could wait for them (gloo
    does not): there it is left alone."""
    alone = hasattr(sys, "last_value") or errors.MISTAKEN.is_set() and torch.cuda.is_available()
    if dist.is_initialized() and not alone:
        dist.destroy_process_group()
        time.sleep(0.1)


def collective_timeout(programs: int, seconds_a_program: float, workers: int) -> timedelta:
    """How long the first rank may have to wait for the last: verifying the `programs` of a rank and step may
    take `seconds_a_program` each, and torch's own ten minutes would end a run for one slow batch. One more
    than there are, because a sandbox that fails is tried again."""
    return DECODING_ALLOWANCE + timedelta(seconds=(math.ceil(programs / workers) + 1) * seconds_a_program)


def stop_flag() -> Callable[[], bool]:
    """From here on SIGTERM (preemption, torchrun going down) sets a flag instead of ending the process."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked.is_set


# ------------------------------------------------------------------------------------------------------------
# Flags, the run folder

def add_common_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--model", required=True, help="checkpoint folder, or id on the hub, that the run starts from")
    add("--revision", help="branch, tag or commit of a model on the hub (default: the newest)")
    # torchrun takes --run for an abbreviation of its own --run-path and refuses it; --run-name gets past it
    add("--run", "--run-name", metavar="NAME", help="folder under runs/ (default: the model's name, -seedN "
        "for N > 0); behind torchrun write --run-name")
    add("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    add("--steps", type=int, help="optimizer steps (default: the stage's own)")
    add("--problems", metavar="FILE", help="problems, JSON lines (default: the stage's pool in corpora/)")
    add("--fresh", action="store_true", help="start the stage over, deleting what it has written")
    add("--keep", type=int, default=2, help="checkpoints kept, 0 for all (default %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads a process, 0 for torch's own choice; a resumed "
        "run is exactly the undisturbed one at an equal number (default %(default)s)")


def plug_in(spec: str) -> Callable:
    """The function that MODULE:NAME names, e.g. a judge of a world."""
    name, _, attribute = spec.partition(":")
    try:
        return getattr(import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {spec!r} ({error}): give it as module:name, e.g. miniature.world:judge") from None


def run_folder(model: str, run: str | None = None, seed: int = 0, variant: str = "") -> Path:
    """runs/NAME: `run`, else the model's own name (of runs/X/sft/final it is X), -seedN for N > 0,
    -variant."""
    if run:
        return RUNS / run
    parts = Path(model).parts
    name = parts[-3] if len(parts) >= 3 and parts[-1] == "final" else Path(model).name
    return RUNS / (name + (f"-seed{seed}" if seed else "") + (f"-{variant}" if variant else ""))


def stage_model(run: Path, stages: Iterable[str], fallback: str) -> tuple[str, str]:
    """Where a stage starts: `final/` of the first of `stages` (the newest stage first) that is finished, else
    `fallback`. Returns (path, one line that says which)."""
    stages = list(stages)
    for stage in stages:
        path = run / stage / "final"
        if (path / "config.json").exists():
            return str(path), f"starting from stage {stage}: {path}"
    return fallback, f"no stage of {', '.join(stages)} is finished in {run}: starting from {fallback} itself"


def write_config(folder: Path, args: argparse.Namespace, extra: dict | None = None,
                 checkpoints: dict[str, str] | None = None) -> dict:
    """config.json: flags, command, versions, commit, `extra` (what was missing or degraded), path and hash of
    every checkpoint used. A resumed run adds what changed in the flags. Call it on the main rank."""
    import transformers
    here = Path(__file__).resolve().parent
    git = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True
                                        ).stdout.strip() if shutil.which("git") else ""
    config = {
        "flags": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "command": sys.argv, "commit": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
                     "transformers": transformers.__version__},
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "checkpoints": {name: {"path": str(path), "sha256": tree_hash(path)}
                        for name, path in (checkpoints or {}).items()},
        **(extra or {})}
    path = folder / "config.json"
    if path.exists():
        earlier = json.loads(path.read_text())
        changed = {name: [earlier["flags"].get(name), value] for name, value in config["flags"].items()
                   if earlier["flags"].get(name) != value}
        for name, (was, now) in changed.items():
            print(f"resuming with another --{name.replace('_', '-')}: {now}, was {was}", file=sys.stderr)
        config["changed_on_resume"] = earlier.get("changed_on_resume", []) + ([changed] if changed else [])
    write_file(path, json.dumps(config, indent=1, default=str) + "\n")
    return config


def warmup(lr: float, step: int, steps: int) -> float:
    """Learning rate of step 0, 1, ...: a straight line to `lr` over the first `steps`, then `lr`."""
    return lr * min(1.0, (step + 1) / steps) if steps else lr


# ------------------------------------------------------------------------------------------------------------
# Logs

class Log:
    """JSON lines under a stage's folder, written by the main rank alone. On resume a file is cut to the
    length it had at the checkpoint, so that a step done twice is logged once; a file newer than that starts
    empty."""

    def __init__(self, folder: Path, offsets: dict[str, int], ranks: Ranks, wandb: str | None = None):
        self.folder, self.main, self.files, self.wandb = folder, ranks.main, {}, None
        if not self.main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, length in offsets.items():
            path = folder / name
            if not path.exists() or path.stat().st_size < length:
                raise ValueError(f"{path} is shorter than at the last checkpoint: put it back, or start over "
                                 f"with --fresh")
            os.truncate(path, length)
            self.files[name] = path.open("a", encoding="utf-8")
        if wandb:
            try:
                import wandb as service
            except ImportError:
                raise ValueError("--wandb needs a package: pip install wandb, or leave it out") from None
            self.wandb = service.init(project=wandb, name="/".join(folder.parts[-2:]), dir=str(folder))

    def write(self, name: str, record: dict) -> None:
        """Append a line to NAME.jsonl. Numbers that JSON cannot say (inf, nan) become null."""
        if not self.main:
            return
        file = self.files.get(f"{name}.jsonl")
        if file is None:
            file = self.files[f"{name}.jsonl"] = (self.folder / f"{name}.jsonl").open("w", encoding="utf-8")
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        file.write(json.dumps(plain, ensure_ascii=False) + "\n")
        file.flush()
        if self.wandb and name == "metrics":
            self.wandb.log(plain, step=plain.get("step"))

    def offsets(self) -> dict[str, int]:
        """Length in bytes of every file, once it is on disk: part of a checkpoint."""
        for file in self.files.values():
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()}


# ------------------------------------------------------------------------------------------------------------
# Files that are whole or not there


# ------------------------------------------------------------------------------------------------------------
# Checkpoints
