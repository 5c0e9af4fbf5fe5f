"""Errors: a user's mistake is one line and a status, a bug of ours keeps its traceback.

    @errors.one_line()                      # around the main function of a script
    def main(args): ...
        with errors.user_input():           # what the user named is read here
            tokenizer = AutoTokenizer.from_pretrained(args.model)
        if too_few: raise errors.UserError("17 problems: fewer than --problems-per-step 32")

Set CPPO_TRACEBACK=1 to see every traceback.
"""

import os
import sys
import threading
from contextlib import contextmanager

USER_MISTAKE, FAILED = 2, 1         # exit statuses
printed = threading.Event()         # set when `one_line` has ended this process (lib/run.py asks)


class UserError(ValueError):
    """A mistake of the user: the message names the value and how to mend it."""


@contextmanager
def user_input():
    """Turn the ValueError or OSError of code that reads a file or flag of the user into a
    UserError.

    Concept modules raise ValueError, since they copy alone and know no UserError. Keep the block
    small: a bug inside it would lose its traceback.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(str(error) or type(error).__name__) from error


def out_of_memory() -> tuple[type, ...]:
    """torch's error for it, where torch is loaded: scripts that read files need no torch."""
    return (sys.modules["torch"].OutOfMemoryError,) if "torch" in sys.modules else ()


@contextmanager
def one_line():
    """End the process with one line on stderr for what is no bug of ours: status 2 for a UserError,
    status 1 where GPU memory ran out."""
    try:
        yield
    except (UserError, *out_of_memory()) as error:
        if os.environ.get("CPPO_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        where = f" on rank {rank}" if rank != "0" else ""
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error{where}: {message}", file=sys.stderr, flush=True)
        printed.set()
        status = USER_MISTAKE if isinstance(error, UserError) else FAILED
        raise SystemExit(status) from None
