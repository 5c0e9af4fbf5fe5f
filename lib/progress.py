"""Progress of long loops."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

PROGRESS_SECONDS = 15.0         # between lines of progress where there is no terminal


def progress(items: Iterable | int, desc: str, total: int | None = None) -> Iterator:
    """The items again (or range(items)), with a bar on a terminal and now and then a line elsewhere. Of
    several ranks only the main one shows it."""
    items = range(items) if isinstance(items, int) else items
    total = len(items) if total is None and hasattr(items, "__len__") else total
    if os.environ.get("RANK", "0") != "0":
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=desc, total=total, leave=False, dynamic_ncols=True)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS:
            said = now
            of = f" of {total}" if total else ""
            print(f"{desc}: {done}{of} after {now - start:.0f} s", file=sys.stderr, flush=True)
