"""Progress of long loops: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

PROGRESS_SECONDS = 15.0         # between lines of progress where there is no terminal


def progress(items: Iterable | int, desc: str, total: int | None = None) -> Iterator:
    """The items again (or range(items)). Of several ranks only the main one shows its progress."""
    items = range(items) if isinstance(items, int) else items
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if os.environ.get("RANK", "0") != "0":
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=desc, total=total, leave=False, dynamic_ncols=True)
    else:
        yield from with_lines(items, desc, total)


def with_lines(items: Iterable, desc: str, total: int | None) -> Iterator:
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            goal = f" of {total}" if total else ""
            print(f"{desc}: {done}{goal} after {now - start:.0f} s", file=sys.stderr, flush=True)
