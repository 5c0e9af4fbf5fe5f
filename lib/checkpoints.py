"""Checkpoints of a stage under way: step_NNNNNN/ with weights, optimizer state and a few numbers.

    checkpoints.save(folder, step, module, optimizer, {"logs": {...}}, keep=2)  # every rank calls
    path = checkpoints.newest(folder)
    if not checkpoints.damage(path):                # reads every byte: ask on one rank
        state = checkpoints.load(path, module, optimizer)       # on any number of ranks
"""

import errno
import json
import os
import shutil
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

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
    write_shards({"module": weights, "optimizer": moments}, partial)
    checksums = gathered_checksums(partial)
    if main:
        state = {**extra, "step": step, "checksums": checksums}
        (partial / "state.json").write_text(json.dumps(state))
        files.publish(partial, path)
        if keep:
            for old in complete(folder)[:-keep]:
                files.remove(old)
    dist.barrier()
    return path


def write_shards(state: dict, partial: Path) -> None:
    """dcp.save, whose own error on a full disk names neither the disk nor the file."""
    try:
        dcp.save(state, checkpoint_id=partial)
    except Exception as error:
        needed = sum(t.nbytes for t in state["module"].values() if isinstance(t, torch.Tensor))
        if shutil.disk_usage(partial).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
        raise


def gathered_checksums(partial: Path) -> dict[str, int]:
    """CRC-32 of every file, each rank reading its share. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.barrier()                      # all shards are written
    names = sorted(path.name for path in partial.iterdir())
    own = {name: checksum(partial / name) for name in names[rank::world]}
    parts = [None] * world
    dist.all_gather_object(parts, own)
    return {name: value for part in parts for name, value in part.items()}


def checksum(path: Path) -> int:
    """CRC-32: enough to notice a flipped bit or a file that was cut off."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if every byte is as it was written."""
    try:
        checksums = json.loads((path / "state.json").read_text())["checksums"]
    except (ValueError, KeyError, TypeError):
        return "state.json cannot be read"
    for name, value in checksums.items():
        if not (path / name).exists():
            return f"{name} is missing"
        if checksum(path / name) != value:
            return f"{name} has changed"
    return None


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
    return read_state(path)


@torch.no_grad()
def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Put the weights of a checkpoint into a module that is not sharded, in its own dtype."""
    own = get_model_state_dict(module)
    wide = {name: torch.empty(t.shape, dtype=torch.float32) for name, t in own.items()}
    dcp.load({"module": wide}, checkpoint_id=path, no_dist=not dist.is_initialized())
    for name, t in own.items():
        t.copy_(wide[name])


def read_state(path: Path) -> dict:
    """`extra` of a checkpoint with the step; no tensor is read."""
    state = json.loads((path / "state.json").read_text())
    del state["checksums"]
    return state
