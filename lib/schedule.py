"""Which rows an optimizer step of stages 1 and 2 takes, and its learning rate.

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
