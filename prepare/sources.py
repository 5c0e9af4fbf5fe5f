"""Where the five corpora are, and their raw rows: from the hub, or from copies in a folder.

    for row in sources.rows("apps", "test", local="copies/apps"): ...
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lib.errors import UserError
from lib.files import read_lines


@dataclass(frozen=True)
class Corpus:
    repo: str                   # dataset repository on the hub
    revision: str               # commit, or a branch that is resolved to one when it is read
    files: dict[str, tuple[str, ...]]       # split -> files of the repository (patterns allowed)
    columns: tuple[str, ...] | None = None  # of parquet files; all if None


# We name files at pinned revisions, because `datasets` refuses repositories with a loading script,
# and two of these have one. We know no commit of execution-v2: its branch is resolved when read.
CORPORA = {
    "code_contests": Corpus(
        "deepmind/code_contests", "802411c3010cb00d1b05bad57ca77365a3c699d6",
        {split: (f"data/{split}-*.parquet",) for split in ("train", "valid", "test")},
        # without the solutions, which are most of the bytes
        ("name", "description", "public_tests", "private_tests", "generated_tests", "source",
         "cf_contest_id", "cf_index", "cf_tags", "time_limit", "memory_limit_bytes", "input_file",
         "output_file")),
    "apps": Corpus(
        "codeparrot/apps", "21e74ddf8de1a21436da12e3e653065c5213e9d1",
        {"train": ("train.jsonl",), "test": ("test.jsonl",)}),
    "livecodebench": Corpus(                # release_v6 is all six files
        "livecodebench/code_generation_lite", "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        {"test": ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))}),
    "execution": Corpus(
        "livecodebench/execution-v2", "main", {"test": ("data/test-*.parquet",)}),
    "test_generation": Corpus(
        "livecodebench/test_generation", "6f3ac40bbecf81eba15899139d279b077f2816fd",
        {"test": ("test.parquet",)}),
}


def find_corpus(name: str) -> Corpus:
    if name not in CORPORA:
        raise UserError(f"unknown corpus {name!r}: one of {', '.join(CORPORA)}")
    return CORPORA[name]


def rows(name: str, split: str, local: str | os.PathLike | None = None,
         revision: str | None = None, more_columns: tuple[str, ...] = ()) -> Iterator[dict]:
    """The raw rows of a split: streamed from the hub, or read from the parquet and JSON-lines files
    of a local folder (or from one file). more_columns: beyond Corpus.columns."""
    corpus = find_corpus(name)
    if split not in corpus.files:
        raise UserError(f"{name} has no split {split!r}: one of {', '.join(corpus.files)}")
    if local is None:
        base = f"hf://datasets/{corpus.repo}@{revision or corpus.revision}"
        return stream([f"{base}/{file}" for file in corpus.files[split]], name, more_columns)
    readers = []
    for path in local_files(name, split, Path(local)):
        if path.suffix == ".parquet":
            readers.append(stream([str(path)], name, more_columns))
        else:
            readers.append(json_rows(path))
    return itertools.chain.from_iterable(readers)


def local_files(name: str, split: str, path: Path) -> list[Path]:
    """The files below a folder whose names begin with the split's name, in their order."""
    corpus = find_corpus(name)
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"there is no {path}: --local {name}= takes a folder with copies of the "
                        f"files of {corpus.repo}, or one such file")
    files = [p for p in path.rglob(f"{split}*") if p.suffix in (".parquet", ".jsonl")]
    if not files:
        raise UserError(f"{path} holds no {split}*.parquet and no {split}*.jsonl: copy "
                        f"{', '.join(corpus.files[split])} of {corpus.repo} into it")
    return sorted(files, key=by_number)


def by_number(path: Path) -> tuple:
    """Sorts test2 before test10."""
    parts = re.split(r"(\d+)", path.stem)
    return str(path.parent), [int(part) if part.isdigit() else part for part in parts]


def json_rows(path: Path) -> Iterator[dict]:
    for number, row in read_lines(path):
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: expected a JSON object, found "
                            f"{type(row).__name__}")
        yield row


def stream(urls: list[str], name: str, more_columns: tuple[str, ...] = ()) -> Iterator[dict]:
    """The rows of files that `datasets` reads, one after the other, without a copy on disk."""
    import datasets

    kind = "parquet" if urls[0].endswith(".parquet") else "json"
    options = {}
    if kind == "parquet" and CORPORA[name].columns:
        options["columns"] = [*CORPORA[name].columns, *more_columns]
    try:
        yield from datasets.load_dataset(kind, data_files={"rows": urls}, split="rows",
                                         streaming=True, **options)
    except Exception as error:  # the hub's client, its file system and the readers have their own
        raise unreadable(name, urls[0], error) from error


def unreadable(name: str, what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    corpus = CORPORA[name]
    if what.startswith("hf://"):
        mend = (f"try again with a network, or build from copies with `python -m prepare.corpora "
                f"--local {name}=FOLDER`, or without it: --skip {name}")
    else:
        mend = f"it must be a copy of a file of {corpus.repo} at revision {corpus.revision}"
    return UserError(f"cannot read {what} ({type(error).__name__}: {reason}): {mend}")


def bytes_on_the_hub(name: str, split: str) -> int:
    """Size of the files of a split; of parquet files only some columns are read."""
    import huggingface_hub

    corpus = find_corpus(name)
    try:
        info = huggingface_hub.HfApi().dataset_info(corpus.repo, revision=corpus.revision,
                                                    files_metadata=True)
    except Exception as error:          # as in `stream`
        raise unreadable(name, f"hf://datasets/{corpus.repo}", error) from error
    return sum(file.size or 0 for file in info.siblings
               for pattern in corpus.files[split] if fnmatch(file.rfilename, pattern))


def resolved_revision(name: str) -> str:
    """The commit that a corpus is read at: the pinned one, or what the branch points to now."""
    corpus = find_corpus(name)
    if re.fullmatch("[0-9a-f]{40}", corpus.revision):
        return corpus.revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(corpus.repo, revision=corpus.revision).sha
    except Exception as error:          # as in `stream`
        raise unreadable(name, f"hf://datasets/{corpus.repo}", error) from error
