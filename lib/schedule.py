"""Which rows an optimizer step of stages 1 and 2 takes, its learning rate, and when a curve has
stopped rising.

Functions of their arguments alone, so that a resumed run and every rank see the same.
"""

import random


def schedule(rows: int, epochs: int, batch_size: int, seed: int) -> list[list[int]]:
    """The row numbers of every optimizer step. Each epoch has an order of its own; its last batch
    may be small."""
    steps = []
    for epoch in range(epochs):
        order = list(range(rows))
        random.Random(f"{seed}:epoch {epoch}").shuffle(order)
        steps += [order[i:i + batch_size] for i in range(0, rows, batch_size)]
    return steps


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth of the steps, then linear decay. The last step still
    moves."""
    warmup = max(1, steps // 20)
    rising = (step + 1) / warmup
    falling = (steps - step) / max(1, steps - warmup)
    return peak * min(rising, falling)


def plateau(values: list[float], window: int = 100, least_gain: float = 0.1,
            confidence: float = 1.645, patience: int = 10) -> bool:
    """Whether a noisy curve has stopped rising: at each of the last `patience` steps, the upper
    confidence bound on its gain over the last `window` steps was below `least_gain`.

    The gain is that of the least-squares line, its standard error that of the line's residuals, so
    it holds however much the tuples of a problem resemble each other. `confidence` is in standard
    errors: 1.645 is 95 %, one-sided.

    The numbers are for a share over 64 tuples a step that rises by 0.13 in 100 steps: runs stop
    after the curve has become flat and within a window of it (tests/test_schedule.py simulates
    them). With a window of 60 most of them stop while it rises.
    """
    if len(values) < window + patience - 1:
        return False
    return all(gain_bound(values[len(values) - window - i:len(values) - i], confidence) < least_gain
               for i in range(patience))


def gain_bound(values: list[float], confidence: float) -> float:
    """The upper confidence bound on what the least-squares line through values gains over them."""
    n, mean = len(values), sum(values) / len(values)
    x = [i - (n - 1) / 2 for i in range(n)]
    squares = sum(xi * xi for xi in x)
    slope = sum(xi * y for xi, y in zip(x, values)) / squares
    left = sum((y - mean - slope * xi) ** 2 for xi, y in zip(x, values))
    error = (left / (n - 2) / squares) ** 0.5
    return n * (slope + confidence * error)
