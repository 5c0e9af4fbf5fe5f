"""The README as data, for the tests that hold it to its word."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def map_rows() -> list[list[str]]:
    """The cells of the README's map: files, what they are, what they copy alone with."""
    section = README.split("\n## Map\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip("|"))
            for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def copies_alone() -> dict[str, tuple[list[str], list[str]]]:
    """{file: (files it is copied with, packages it needs)}, for the rows that promise it."""
    promises = {}
    for files, _, alone in map_rows():
        companions = [name for name in quoted(files) + quoted(alone) if name.endswith(".py")]
        packages = re.sub(r"`[^`]+`|standard library|each other", " ", alone)
        if alone and alone != "-":
            for file in quoted(files):
                others = [name for name in companions if name != file]
                promises[file] = (others, re.findall(r"\w+", packages))
    return promises
