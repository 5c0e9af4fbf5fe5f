"""Files and folders that are whole or not there, and JSON lines.

Everything is written under a name that ends in PARTIAL, flushed to disk, and then renamed: a reader
sees the old version or the new one, and a process that dies leaves only what the next one clears.
"""

import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lib.errors import UserError

PARTIAL = ".partial"            # suffix of what is being written, or already being deleted
ABANDONED_SECONDS = 3600        # since the last byte of a partial file
MAX_DIGITS = 100_000            # of an integer: APPS has some of 9,131, Python allows 4,300


# ----------------------------------------------------------------------------------------------
# Files

def flush(path: Path) -> None:
    """Have the kernel put a file, or a folder's list of names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[TextIO]:
    """A text file to write into that appears as `path` when the block ends well.

    Each writer has a partial file of its own: of two processes that write one path the later wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(partial, "x", encoding="utf-8") as file:
            yield file
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def clear_abandoned(path: Path) -> None:
    """Remove what a killed process has left of `path`. By age: the writer may be on another node,
    where its process id says nothing."""
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        with suppress(OSError):
            if partial.is_file() and time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                partial.unlink()


def write_file(path: str | os.PathLike, text: str) -> None:
    with writing(path) as file:
        file.write(text)


def tree_hash(path: str | os.PathLike) -> str:
    """sha256 of a file, or over names and bytes of a folder's files; "" for what is not on this
    disk."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {tree_hash(file)}\n".encode())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------
# Folders

def publish(partial: Path, folder: Path) -> None:
    """Flush a finished folder and give it its name; an older one of that name is replaced."""
    for path in [*partial.rglob("*"), partial]:
        flush(path)
    if folder.exists():
        remove(folder)
    os.rename(partial, folder)
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
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    publish(partial, folder)


# ----------------------------------------------------------------------------------------------
# JSON lines

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
    """(line number, value) of each line that is not blank. UserError "FILE line N: ..." for the
    first line that is not JSON in UTF-8."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                line.encode()                   # what was not UTF-8 is a lone surrogate now
                with long_integers():
                    value = json.loads(line)
            except UnicodeEncodeError:
                raise UserError(f"{path} line {number}: not UTF-8 text") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number}: not JSON ({error})") from None
            yield number, value


def save_lines(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write JSON lines. The file appears whole or not at all."""
    with writing(path) as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
