"""What a training stage starts from: a checkpoint, checked and made ready to be trained."""

import json
from pathlib import Path

import torch
from torch import nn

import model
from lib import errors, weights
from lib.errors import UserError
from lib.run import Run


def load_start(run: Run, path_or_id: str | Path) -> tuple[nn.Module, object, Path]:
    """The policy (fp32 master weights, not yet sharded), its tokenizer, and its folder (of a hub
    id, where it was put on this disk).

    UserError if it lies in the folder that the stage writes, does not fit its tokenizer, or holds
    weights that are not finite: those would end as "no sampled plan parses".
    """
    with errors.user_input():
        start = model.find(path_or_id)
        if start.resolve().is_relative_to(run.folder.resolve()):
            raise UserError(f"--model {start} lies in {run.folder}, which this stage writes: "
                            f"name another --run")
        tokenizer = weights.load_tokenizer(start)
        policy = model.load(start, torch.float32, run.device)
        model.check_fits(policy, tokenizer)
    for name, weight in policy.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{start} holds a NaN or an infinity in {name}: take another one")
    # Activations kept whole take several times the memory of a 2B model's update. On a CPU small
    # models are trained, and time is what is short.
    policy.checkpointing = run.device.type == "cuda"
    for doubt in weights.doubts(policy, tokenizer):
        run.warn(doubt)
    frozen = weights.freeze_tables(policy)
    if frozen:
        run.say(frozen)
    return policy, tokenizer, start


def flags_of(start: str | Path) -> dict:
    """The flags of the stage that wrote runs/X/STAGE/final; {} of any other checkpoint."""
    config = Path(start).parent / "config.json"
    if not config.exists():
        return {}
    return json.loads(config.read_text()).get("flags", {})
