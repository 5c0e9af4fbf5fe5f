"""Progress of long loops: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

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


def sampling(total: int | None = None) -> Callable:
    """For rollout.Engine to call: prints a line every PROGRESS_SECONDS of sampling. total: rows to
    come in all, which says how long it may still take."""
    last = 0.0

    def show(engine) -> None:
        nonlocal last
        stats = engine.stats
        if stats.seconds < last:            # another rollout has begun
            last = 0.0
        if stats.seconds - last < PROGRESS_SECONDS:
            return
        last = stats.seconds
        rate = stats.live_row_steps / stats.seconds
        left = ""
        if total and stats.rows:
            seconds = stats.seconds * max(0, total - stats.rows) / stats.rows
            left = f" of {total}, about {seconds / 60:.0f} min left"
        print(f"sampling: {stats.rows} rows done{left}; {len(engine.owner)} decode, "
              f"{len(engine.queue)} wait; {rate:,.0f} tokens/s, {stats.idle_share:.0%} of the "
              f"slots idle", file=sys.stderr, flush=True)
    return show


def quiet() -> None:
    """Without transformers' bars and warnings while it loads: they bury the lines that matter."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
