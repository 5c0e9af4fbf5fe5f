"""Errors that people can read."""

import os
import sys
import threading
from contextlib import contextmanager

import torch

MISTAKEN = threading.Event()    # `explain` has ended this process


@contextmanager
def explain():
    """A user's mistake (ValueError, a missing file) ends in one line on stderr and status 2, running out of
    GPU memory in one line and status 1. Anything else is our bug and keeps its traceback; CPPO_TRACEBACK=1
    shows it for all."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if os.environ.get("CPPO_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        said = " ".join(str(error).split()) or type(error).__name__
        where = "" if rank == "0" else f" on rank {rank}"
        print(f"error{where}: {said}", file=sys.stderr, flush=True)
        MISTAKEN.set()
        raise SystemExit(1 if isinstance(error, torch.OutOfMemoryError) else 2) from None
