"""Command-line flags: types that check their values, and the flags that every training script
has."""

import argparse
import math
import os
import sys
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help, and ends in one line where a flag is wrong."""

    def __init__(self, description: str, **settings):       # settings: what add_parser passes on
        shape = argparse.ArgumentDefaultsHelpFormatter
        spec = sys.modules["__main__"].__spec__
        if spec and "." in spec.name:       # usage lines say how a script in a folder is run
            settings.setdefault("prog", f"python -m {spec.name}")
        super().__init__(description=description, formatter_class=shape, allow_abbrev=False,
                         **settings)

    def error(self, message: str):
        if os.environ.get("RANK", "0") != "0":
            self.exit(2)                        # the main rank says it
        self.exit(2, f"error: {message} (--help explains the flags)\n")


def at_least(least: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a finite number of `kind` that is `least` or more."""
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what} of {least} or more, not {text}")
        return value
    return parse


def seed(text: str) -> int:
    """An argparse type: what torch takes for a seed."""
    value = at_least(0)(text)
    if value >= 2 ** 63:
        raise argparse.ArgumentTypeError(f"must be below 2^63, not {text}")
    return value


def above_zero(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = at_least(0, float)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def share(text: str) -> float:
    """An argparse type: a number strictly between 0 and 1."""
    value = at_least(0, float)(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return value


count, steps_or_never, weight = at_least(1), at_least(0), at_least(0, float)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that the training scripts share."""
    add = parser.add_argument_group("run").add_argument
    add("--model", required=True,
        help="checkpoint folder, or hub id (ID@REVISION), that the run starts from")
    # torchrun takes --run for an abbreviation of its own --run-path and refuses it
    add("--run", "--run-name", metavar="NAME",
        help="folder under runs/: by default the model's name, with -seedN for N > 0. "
             "Behind torchrun write --run-name")
    add("--seed", type=seed, default=0, help="seed of everything random")
    add("--steps", type=count, help="optimizer steps; by default the stage's own number")
    add("--problems", metavar="FILE",
        help="problems as JSON lines; by default the stage's pool in corpora/")
    add("--fresh", action="store_true", help="start the stage over and delete what it has written")
    add("--keep", type=steps_or_never, default=2, help="checkpoints to keep, 0: all")
    add("--save-every", type=count, default=20, metavar="STEPS", help="steps between checkpoints")
