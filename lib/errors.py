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
from collections.abc import Callable
from contextlib import contextmanager

USER_MISTAKE, FAILED = 2, 1         # exit statuses
LOST_PEER = ("Connection closed by peer", "Connection reset by peer")       # gloo's words
printed = threading.Event()         # set when a line has ended this process (lib/run.py asks)
# Whether this rank is the first to end with an error. lib/run.py replaces it: eight ranks that find
# the same mistake say it once.
first_to_end: list[Callable[[], bool]] = [lambda: True]


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


def last_line(message: str) -> None:
    """Print why this process ends, unless another rank has said it."""
    printed.set()
    if not first_to_end[0]():
        return
    rank = os.environ.get("RANK", "0")
    where = f" on rank {rank}" if rank != "0" else ""
    print(f"error{where}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def explanation(error: Exception) -> str | None:
    """The line for a user's mistake, for GPU memory that ran out, and for a rank that has ended
    during a collective; None for everything else, which keeps its traceback."""
    out_of_memory = ()                          # scripts that read files need no torch
    if "torch" in sys.modules:
        out_of_memory = sys.modules["torch"].OutOfMemoryError
    if isinstance(error, UserError) or isinstance(error, out_of_memory):
        return str(error) or type(error).__name__
    if any(words in str(error) for words in LOST_PEER):
        return "another rank has ended; if it does not say why, it was killed"
    return None


@contextmanager
def one_line():
    """End the process with one line on stderr for what is no bug of ours: status 2 for a UserError,
    status 1 where GPU memory ran out, or where another rank has ended."""
    try:
        yield
    except (UserError, RuntimeError) as error:      # torch's and gloo's are RuntimeErrors
        line = explanation(error)
        if os.environ.get("CPPO_TRACEBACK") or line is None:
            raise
        last_line(line)
        raise SystemExit(USER_MISTAKE if isinstance(error, UserError) else FAILED) from None
