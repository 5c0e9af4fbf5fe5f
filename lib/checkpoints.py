"""Checkpoints of a run under way."""

import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lib.files import PARTIAL, publish, remove


def save_checkpoint(folder: Path, step: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer,
                    extra: dict, keep: int = 2) -> Path:
    """folder/step_NNNNNN with weights, optimizer state and `extra` (JSON; the main rank's counts).
    Collective: every rank writes its shards. What was left by a process that died is cleared first, what is
    older than the newest `keep` last."""
    main, path = dist.get_rank() == 0, folder / f"step_{step:06d}"
    aside = path.with_name(path.name + PARTIAL)
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"step_*{PARTIAL}"):
            shutil.rmtree(left)
        aside.mkdir()
    unused = not optimizer.state
    weights, moments = get_state_dict(module, optimizer)
    if unused:      # torch has made the moments by a step at learning rate 0 and counted it: not one of the run's
        for moment in optimizer.state.values():
            moment["step"].zero_()
    dist.barrier()
    dcp.save({"module": weights, "optimizer": moments}, checkpoint_id=aside)
    if main:
        (aside / "state.json").write_text(json.dumps({"step": step, **extra}))
        publish(aside, path)
        for old in checkpoints(folder)[:-keep or None] if keep else []:
            remove(old)
    dist.barrier()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Complete ones, oldest first."""
    return sorted((p.parent for p in folder.glob("step_*/state.json") if p.parent.name[5:].isdigit()),
                  key=lambda path: int(path.name[5:]))


def newest_checkpoint(folder: Path) -> Path | None:
    return (checkpoints(folder) or [None])[-1]


def load_checkpoint(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Weights and optimizer state in place, whatever the number of ranks that wrote them; returns `extra`
    with the step. Collective."""
    weights, moments = get_state_dict(module, optimizer)
    state = {"module": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(module, optimizer, model_state_dict=state["module"], optim_state_dict=state["optimizer"])
    return json.loads((path / "state.json").read_text())
