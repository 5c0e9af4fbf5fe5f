"""Checkpoints of a stage under way: step_NNNNNN/ with weights, optimizer state and a few numbers.

    checkpoints.save(folder, step, module, optimizer, {"logs": {...}}, keep=2)     # every rank
    calls it newest = checkpoints.newest(folder) state = checkpoints.load(newest, module,
    optimizer)     # on any number of ranks
"""

import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lib import files
from lib.files import PARTIAL


def name(step: int) -> str:
    return f"step_{step:06d}"


def save(folder: Path, step: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer,
         extra: dict, keep: int = 2) -> Path:
    """Write folder/step_NNNNNN with weights, optimizer state and `extra` (JSON; the main rank's
    counts).

    Collective: every rank writes its shards. What a dead process left is cleared first; what is
    older than the newest `keep` (0: none) goes last.
    """
    main, path = dist.get_rank() == 0, folder / name(step)
    partial = path.with_name(path.name + PARTIAL)
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"step_*{PARTIAL}"):
            shutil.rmtree(left)
        partial.mkdir()
    unused = not optimizer.state
    weights, moments = get_state_dict(module, optimizer)
    if unused:
        # get_state_dict initialises Adam's moments with a fake step at learning rate 0: undo its
        # count
        for moment in optimizer.state.values():
            moment["step"].zero_()
    dist.barrier()
    dcp.save({"module": weights, "optimizer": moments}, checkpoint_id=partial)
    if main:
        (partial / "state.json").write_text(json.dumps({"step": step, **extra}))
        files.publish(partial, path)
        if keep:
            for old in complete(folder)[:-keep]:
                files.remove(old)
    dist.barrier()
    return path


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p.parent for p in folder.glob("step_*/state.json") if p.parent.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest(folder: Path) -> Path | None:
    return (complete(folder) or [None])[-1]


def load(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Put weights and optimizer state in place, whatever the number of ranks that wrote them.

    Returns `extra` with the step. Collective.
    """
    weights, moments = get_state_dict(module, optimizer)
    state = {"module": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(module, optimizer, model_state_dict=state["module"],
                   optim_state_dict=state["optimizer"])
    return json.loads((path / "state.json").read_text())
