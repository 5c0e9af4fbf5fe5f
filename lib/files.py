"""Files and folders that are whole or not there, and JSON lines."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"            # suffix of what is still being written or already being deleted


def tree_hash(folder: str | Path) -> str:
    """sha256 over names and bytes of a folder's files; of a file itself; "" for what is not on this disk."""
    path, digest = Path(folder), hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {tree_hash(file)}\n".encode())
    return digest.hexdigest() if path.is_dir() else ""


def flush(path: Path) -> None:
    """Have the kernel put a file, or a folder's list of names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, text: str) -> None:
    """Written aside, flushed, renamed: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + PARTIAL)
    aside.write_text(text)
    flush(aside)
    os.replace(aside, path)
    flush(path.parent)


def publish(aside: Path, folder: Path) -> None:
    """Flush a finished folder and give it its name; an older one of that name is replaced."""
    for path in [*aside.rglob("*"), aside]:
        flush(path)
    if folder.exists():
        remove(folder)
    os.rename(aside, folder)
    flush(folder.parent)


def remove(folder: Path) -> None:
    """Delete a folder that must never be met half deleted: its name goes first."""
    doomed = folder.with_name(folder.name + ".old" + PARTIAL)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder to write into that appears as `folder` when the block ends well (`final/`)."""
    aside = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    publish(aside, folder)


MAX_DIGITS = 100_000  # of one integer in a call; APPS has some of 9,131, and Python's own limit is 4,300


@contextmanager
def long_integers() -> Iterator[None]:
    """Inside, integers of up to MAX_DIGITS digits can be converted (which takes quadratic time)."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(line number, value) of JSON lines, blank ones left out. Raises ValueError "FILE line N: ..."."""
    number = 0
    with open(path, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with long_integers():
                        value = json.loads(line)
                    yield number, value
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} after line {number}: not UTF-8 text ({error.reason})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: not JSON ({error})") from None


def save_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write JSON lines. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(aside, path)
