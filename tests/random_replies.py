"""Random replies of a model, for properties that every parser must have."""

import random

PIECES = ["A:", "B:", "C:", "D:", "E:", "\n", "\n", " ", "x", "a b", ".", "? Q", "```", "```python",
          "<think>", "</think>", "<|channel>", "<channel|>", "\r", "\u2028", "\x00", "\ud800",
          "\uff11:", "1: KEEP", "2. DROP", "faults:", "none", "duplicate", "[ANSWER]", "[/ANSWER]",
          "==", "assert ", "9" * 30, "\u0661: KEEP"]
REPEATED = ["\n", "; ", "for: ", "[ANSWER]", "1 ", "A:", ". "]


def random_pieces(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, most)))


def random_reply(rng: random.Random) -> str:
    """Half of them nearly plans."""
    if rng.random() < 0.5:
        return random_pieces(rng, 25)
    lines = []
    for label in "ABCD":
        if rng.random() < 0.9:
            lines.append(f"{label}: x{random_pieces(rng, 2)}")
        else:
            lines.append(random_pieces(rng, 3))
    return "\n".join(lines)
