"""Attempts of several processes, each its own part on disk, until all of them are there.

    parts = Parts(out, expected)            # OUT.jsonl; {problem id: number of attempts}
    parts.begin(card)                       # main rank: the card, and what an interrupted run left
    with parts.open(rank) as file: ...      # every rank appends whole problems
    parts.finish(card)                      # main rank: OUT.jsonl appears, the parts go

The card is OUT.json: the setting that the attempts were made with, and what is known about them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from lib import files
from lib.errors import UserError


class Parts:
    def __init__(self, out: Path, expected: dict[str, int]):
        self.out, self.expected = out, expected
        self.card = out.with_suffix(".json")

    def path(self, rank: int) -> Path:
        return self.out.with_name(f"{self.out.name}.{rank}.part")

    def open(self, rank: int) -> TextIO:
        return open(self.path(rank), "a", encoding="utf-8")

    def paths(self) -> list[Path]:
        """The parts on disk, of any number of ranks."""
        prefix = f"{self.out.name}."        # no glob pattern: a name may hold brackets
        parts = self.out.parent.glob("*.part")
        return sorted(path for path in parts if path.name.startswith(prefix))

    def refuse_another(self, setting: dict) -> None:
        """UserError if OUT holds, or is about to hold, attempts of another setting."""
        mend = "name another --out, or start over with --fresh"
        if not self.card.exists():
            if self.out.exists():
                raise UserError(f"{self.out} is there without {self.card.name}: {mend}")
            return
        begun = json.loads(self.card.read_text())["setting"]
        for name in setting | begun:
            before, now = begun.get(name), setting.get(name)
            if before != now:
                raise UserError(f"{self.out} was begun with {name} {before!r}, now it is {now!r}: "
                                f"{mend}")

    def done(self) -> dict[str, list[dict]]:
        """The attempts at each problem of which every attempt is on disk, in order."""
        found: dict[str, dict] = {name: {} for name in self.expected}
        for path in self.paths():
            *lines, _ = path.read_text(encoding="utf-8").split("\n")    # no line end: cut off
            for line in lines:
                attempt = json.loads(line)
                found[attempt["problem_id"]][attempt["tuple"], attempt["index"]] = attempt
        complete = {}
        for name, attempts in found.items():
            if len(attempts) == self.expected[name]:
                complete[name] = [attempts[place] for place in sorted(attempts)]
        return complete

    def clear(self) -> None:
        """--fresh: delete the attempts made so far."""
        for path in (self.out, *self.paths()):
            path.unlink(missing_ok=True)

    def begin(self, card: dict) -> None:
        """Write the card, and put what an interrupted run left into one part."""
        self.save_card(card)
        files.save_lines(self.path(0), all_lines(self.done()))
        for path in self.paths():
            if path != self.path(0):
                path.unlink()

    def finish(self, card: dict) -> None:
        """Write OUT and its card; the parts go."""
        self.save_card(card)
        files.save_lines(self.out, all_lines(self.done()))
        for path in self.paths():
            path.unlink()

    def save_card(self, card: dict) -> None:
        files.write_file(self.card, json.dumps(card, indent=1) + "\n")


def all_lines(problems: dict[str, list[dict]]) -> Iterable[dict]:
    for attempts in problems.values():
        yield from attempts
