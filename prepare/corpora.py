"""Problems: one record, five corpora, the splits of Tables 3 and 9, and the audit of who saw what.

    python -m prepare.corpora build --out corpora      # from the hub; --local CORPUS=FOLDER where there is none
    python -m prepare.exposure                    # Tables 9 and 10; status 1 if anything saw an evaluation problem

    problems = load_problems("corpora/joint.jsonl")
    verifier.judge([verifier_item(p, program) for p in problems])

`build` writes one JSON-lines file a pool; `manifest.json`: ids and hashes of every pool, what was refused or
removed and why, revisions, seed; `held_out.jsonl`: every statement that nothing may be trained on;
`boilerplate.npy`: the n-grams that say nothing. It streams the corpora and keeps the decoded rows in an
unnamed file under --out until the pools are chosen: about 20 GB of disk for all five.

Departures from the paper, and what it leaves open:
 1. Training pools are cleaned against the whole of every benchmark that was read, not only against the
    problems drawn from it, so that another slice may be drawn later. They are disjoint from one another.
 2. Table 9's 333 planner problems are those that survive the teacher's funnel, and 1110 + 278 are labels, not
    problems. The pools `sft` and `gate` are what the teacher is offered: 700 problems each, ours.
 3. "LCBv6 held-out" is the newest 300 problems of release_v6 (1055) by date: the slice called v6 has only
    175. CodeContests `valid` has 117 problems, of which 100 are drawn; this and every other slice by a seeded
    hash of ids.
 4. C.3 gives no n and no threshold for n-grams: see decontaminate.py.
 5. Table 10's qualitative examples come from CodeContests test: the pool `show`, which no figure uses.
 6. All official tests are used, public, private and generated; the checker cannot know of other valid
    answers.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.files import read_lines, save_lines
from lib.problems import Problem, problem_to_json
from prepare.decontaminate import BOILERPLATE, CONTAINMENT, NGRAM, find_overlaps, statement_hash
from prepare.readers import (
    CORPORA,
    Corpus,
    Refused,
    contest_day,
    from_apps,
    from_code_contests,
    from_execution,
    from_livecodebench,
    from_test_generation,
)

# ---------------------------------------------------------------------------------------- rows of the corpora

def rows(corpus: str, split: str, local: str | os.PathLike | None = None,
         revision: str | None = None) -> Iterator[dict]:
    """The raw rows of a split, streamed from the hub, or of the parquet and JSON-lines files of a local
    folder (or of one file). Of a folder, every file below it whose name begins with the split's name is read,
    in their order."""
    known = _known(corpus)
    if split not in known.files:
        raise ValueError(f"{corpus} has no split {split!r}: one of {', '.join(known.files)}")
    if local is None:
        base = f"hf://datasets/{known.repo}@{revision or known.revision}"
        return _stream([f"{base}/{name}" for name in known.files[split]], corpus)
    path = Path(local)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: --local {corpus}= takes a folder with copies of the "
                                f"files of {known.repo}, or one such file")
    found = [path] if path.is_file() else sorted(
        (p for p in path.rglob("*") if p.name.startswith(split) and p.suffix in (".parquet", ".jsonl")),
        key=lambda p: (str(p.parent), [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", p.stem)]))
    if not found:
        raise FileNotFoundError(f"{path} holds no {split}*.parquet and no {split}*.jsonl: copy "
                                f"{', '.join(known.files[split])} of {known.repo} into it")
    readers = (_stream([str(p)], corpus) if p.suffix == ".parquet" else _json_rows(p) for p in found)
    return itertools.chain.from_iterable(readers)


def _known(corpus: str) -> Corpus:
    if corpus not in CORPORA:
        raise ValueError(f"unknown corpus {corpus!r}: one of {', '.join(CORPORA)}")
    return CORPORA[corpus]


def _json_rows(path: Path) -> Iterator[dict]:
    for number, row in read_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
        yield row


def _stream(urls: list[str], corpus: str) -> Iterator[dict]:
    import datasets

    kind = "parquet" if urls[0].endswith(".parquet") else "json"
    known = CORPORA[corpus].columns if kind == "parquet" else None
    columns = {"columns": list(known)} if known else {}
    try:
        yield from datasets.load_dataset(kind, data_files={"rows": urls}, split="rows", streaming=True,
                                         **columns)
    except Exception as error:  # the hub's client, its file system and the readers have errors of their own
        raise _unreadable(corpus, urls[0], error) from error


def _unreadable(corpus: str, what: str, error: Exception) -> OSError:
    known, said = CORPORA[corpus], " ".join(str(error).split())[:160]
    mend = (f"try again with a network, or build from copies by `python -m prepare.corpora build --local "
            f"{corpus}=FOLDER`, or without, by --skip {corpus}" if what.startswith("hf://")
            else f"it must be a copy of a file of {known.repo} at revision {known.revision}")
    return OSError(f"cannot read {what} ({type(error).__name__}: {said}): {mend}")


def resolved_revision(corpus: str) -> str:
    """The commit that a corpus is read at: the pinned one, or what the branch points to now."""
    known = _known(corpus)
    if re.fullmatch("[0-9a-f]{40}", known.revision):
        return known.revision
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(known.repo, revision=known.revision).sha
    except Exception as error:          # as in _stream
        raise _unreadable(corpus, f"hf://datasets/{known.repo}", error) from error


# -------------------------------------------------------------------------------------- build: Tables 3 and 9

@dataclass(frozen=True)
class Pool:
    name: str                   # its file is NAME.jsonl
    corpus: str
    split: str
    use: str                    # "train" and "dev" are cleaned; "eval" and "show" are held out
    size: int                   # default
    stage: str                  # as Table 9 calls it
    newest: bool = False        # drawn by date, not by the seeded hash


POOLS = (
    Pool("sft", "code_contests", "train", "train", 700, "Planner SFT: offered to the teacher"),
    Pool("gate", "code_contests", "train", "train", 700, "Reward model: offered to the teacher"),
    Pool("warmup", "apps", "train", "train", 500, "Planner warm-up"),
    Pool("joint", "code_contests", "train", "train", 300, "Joint CPPO rollout pool"),
    Pool("dev", "code_contests", "train", "dev", 100, "Sweeps, early stopping (dev subset)"),
    Pool("apps", "apps", "test", "eval", 200, "Held-out eval: APPS"),
    Pool("cc", "code_contests", "valid", "eval", 100, "Held-out eval: CodeContests"),
    Pool("lcb", "livecodebench", "test", "eval", 300, "Held-out eval: LCBv6", newest=True),
    Pool("apps-500", "apps", "test", "eval", 500, "Diagnostic slice: APPS"),
    Pool("lcb-500", "livecodebench", "test", "eval", 500, "Diagnostic slice: LiveCodeBench"),
    Pool("execution", "execution", "test", "eval", 479, "Held-out eval: code execution"),
    Pool("test-output", "test_generation", "test", "eval", 442, "Held-out eval: test output"),
    Pool("show", "code_contests", "test", "show", 20, "Qualitative examples"),
)
MANIFEST, HELD_OUT, BOILERPLATE_FILE = "manifest.json", "held_out.jsonl", "boilerplate.npy"
READERS: dict[str, Callable[..., Problem]] = {
    "code_contests": from_code_contests, "apps": from_apps, "livecodebench": from_livecodebench,
    "execution": from_execution, "test_generation": from_test_generation}
# Problems that the benchmark's own errata list as having several right answers, an interactor or wrong tests.
# They stay where they were drawn, and the manifest says which were.
LIVECODEBENCH_ERRATA = frozenset(
    "abc311_c abc326_d abc327_b abc333_e abc343_e abc362_c abc343_a arc185_c abc337_e abc355_e abc350_c "
    "arc189_a apply-operations-to-make-string-empty most-frequent-ids "
    "find-words-containing-character find-the-peaks generate-binary-strings-without-adjacent-zeros".split())


def read_split(corpus: str, split: str, local: str | None, revision: str | None,
               keep: Callable[[Problem, dict], None]) -> dict:
    """Hand every problem of a split to `keep`, and return the counts for the manifest. Of APPS only the
    introductory problems are read: the paper uses no others."""
    refused: dict[str, list[str]] = defaultdict(list)
    number = other = loaded = 0
    for number, row in enumerate(rows(corpus, split, local, revision), 1):
        if corpus == "apps" and row.get("difficulty") != "introductory":
            other += 1
            continue
        place = {"code_contests": (split, number - 1), "apps": (split,)}.get(corpus, ())
        try:
            problem = READERS[corpus](row, *place)
        except Refused as error:
            refused[error.reason].append(f"row {number - 1}")
            continue
        except ValueError as error:
            raise ValueError(f"{corpus} {split}, row {number - 1}: {error}") from None
        loaded += 1
        keep(problem, row)
    return {"rows": number, "not_introductory": other, "loaded": loaded,
            "refused": dict(sorted(refused.items()))}


def deduplicate(problems: Sequence[Problem]) -> dict[str, str]:
    """Id of each problem that repeats an earlier one, by official identifier or hash -> that one's id."""
    first: dict[tuple[str, str], str] = {}
    repeats: dict[str, str] = {}
    for p in problems:
        marks = [*p.ids.items(), ("hash", statement_hash(p.statement))]
        met = [first[mark] for mark in marks if mark in first]
        if met:
            repeats[p.id] = met[0]
        for mark in marks:
            first.setdefault(mark, met[0] if met else p.id)
    return repeats


def draw_order(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """A random order by seed and ids alone: problems that come or go do not reshuffle the others."""
    return sorted(problems, key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())


def build(out: str | os.PathLike, sizes: dict[str, int] | None = None, seed: int = 0,
          local: dict[str, str] | None = None, skip: Iterable[str] = (),
          say: Callable[[str], None] = print) -> dict:
    """Write the pools and the manifest, and return it. `sizes` replaces Pool.size by name, 0 leaves one out.

    A pool that comes out short is said, and stands in the manifest. A folder that holds this very build is
    left alone; another build there is an error, for evaluation slices are fixed before any run.
    """
    out, local, skip = Path(out), dict(local or {}), sorted(set(skip))
    for name in (*local, *skip):
        _known(name)
    wanted = {pool.name: pool.size for pool in POOLS} | dict(sizes or {})
    for name, size in wanted.items():
        if name not in {pool.name for pool in POOLS} or size < 0:
            raise ValueError(f"--{name} {size}: pools are {', '.join(p.name for p in POOLS)}, and a size is "
                             f"0 or more")
    asked = {"seed": seed, "sizes": wanted, "local": local, "skip": skip}
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        for key, value in asked.items():
            if manifest["asked"][key] != value:
                raise ValueError(f"{out} holds a build with another {key} ({manifest['asked'][key]}): choose "
                                 f"another --out, or delete that folder")
        say(f"{out} holds this build already")
        return manifest
    pools = [pool for pool in POOLS if wanted[pool.name] > 0 and pool.corpus not in skip]
    splits = sorted({(pool.corpus, pool.split) for pool in pools})
    trained = sorted({(pool.corpus, pool.split) for pool in pools if pool.use in ("train", "dev")})
    if not pools:
        raise ValueError("nothing to build: every corpus is skipped, or every size is 0")
    unread = sorted({f"{pool.corpus} {pool.split}" for pool in POOLS
                     if (pool.corpus, pool.split) not in splits})
    if unread:
        say(f"not read: {', '.join(unread)}; training pools are NOT cleaned against them")

    # ---- read: whole problems to disk; identifiers and statements, all that choosing needs, to memory
    sources = {corpus: {"local": local[corpus]} if corpus in local else
               {"repo": CORPORA[corpus].repo, "revision": resolved_revision(corpus)} for corpus, _ in splits}
    out.mkdir(parents=True, exist_ok=True)
    cards: dict[tuple[str, str], list[Problem]] = {}
    place: dict[str, int] = {}
    day: dict[str, str] = {}
    counts: dict[str, dict] = {}
    with tempfile.TemporaryFile(dir=out) as spool:
        for corpus, split in splits:
            cards[corpus, split] = []

            def keep(problem: Problem, row: dict, cards: list[Problem] = cards[corpus, split]) -> None:
                if problem.id in place:
                    raise ValueError(f"two rows have the id {problem.id!r}")
                place[problem.id], day[problem.id] = spool.tell(), contest_day(row)
                spool.write(json.dumps(problem_to_json(problem)).encode() + b"\n")
                cards.append(Problem(problem.id, problem.statement, ids=problem.ids))

            found = read_split(corpus, split, local.get(corpus), sources[corpus].get("revision"), keep)
            counts[f"{corpus}/{split}"] = found
            refused = ", ".join(f"{len(which)} {reason}" for reason, which in found["refused"].items())
            say(f"{corpus} {split}: {found['loaded']} problems{f'; refused: {refused}' if refused else ''}")

        # ---- clean: each split of its own repeats, then training of everything held out, be it a repeat
        held_out = [p for key in splits if key not in trained for p in cards[key]]
        for key in splits:
            several_a_statement = key[0] in ("execution", "test_generation")
            repeats = {} if several_a_statement else deduplicate(cards[key])
            counts["/".join(key)]["repeats"] = repeats
            cards[key] = [p for p in cards[key] if p.id not in repeats]
        overlaps, common = find_overlaps([p for key in trained for p in cards[key]], held_out)
        for key in trained:
            removed = {p.id: dataclasses.asdict(overlaps[p.id]) for p in cards[key] if p.id in overlaps}
            counts["/".join(key)]["removed"] = removed
            cards[key] = [p for p in cards[key] if p.id not in overlaps]
            say(f"{' '.join(key)}: {len(removed)} removed as held out, {len(cards[key])} left")

        # ---- draw
        taken: set[str] = set()
        entries: dict[str, dict] = {}
        for pool in pools:
            candidates = [p for p in draw_order(cards[pool.corpus, pool.split], seed) if p.id not in taken]
            if pool.newest:
                candidates.sort(key=lambda p: (day[p.id], p.id), reverse=True)
            chosen = candidates[:wanted[pool.name]]
            if not chosen:
                raise ValueError(f"pool {pool.name}: no problem of {pool.corpus} {pool.split} is left; lower "
                                 f"the sizes, or leave it out by --{pool.name} 0")
            if len(chosen) < wanted[pool.name]:
                say(f"{pool.name}: only {len(chosen)} of {wanted[pool.name]} problems")
            if pool.use in ("train", "dev"):
                taken |= {p.id for p in chosen}
            path = out / f"{pool.name}.jsonl"
            save_lines(path, (json.loads(_line_at(spool, place[p.id])) for p in chosen))
            entries[pool.name] = {
                "file": path.name, "use": pool.use, "stage": pool.stage,
                "split": f"{pool.corpus} {pool.split}",
                "rule": "newest by contest date" if pool.newest else "sha256 of 'seed:id'",
                "wanted": wanted[pool.name], "problems": len(chosen), "sha256": _sha256(path),
                "errata": [p.id for p in chosen if LIVECODEBENCH_ERRATA & set(p.ids.values())],
                "ids": [p.id for p in chosen], "hashes": [statement_hash(p.statement) for p in chosen]}
    save_lines(out / HELD_OUT, ({"id": p.id, "statement": p.statement, "ids": p.ids} for p in held_out))
    np.save(out / BOILERPLATE_FILE, common)
    manifest = {"asked": asked, "sources": sources, "splits": counts, "pools": entries,
                "held_out": len(held_out),
                "rules": {"ngram": NGRAM, "containment": CONTAINMENT, "boilerplate": BOILERPLATE}}
    aside = out / (MANIFEST + ".part")
    aside.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, out / MANIFEST)           # last: a folder without it is no build
    return manifest


def _line_at(spool, offset: int) -> bytes:
    spool.seek(offset)
    return spool.readline()


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: make it by `python -m prepare.corpora build --out {folder}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest["pools"], dict):
            raise TypeError
        return manifest
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is no manifest of `data.py build`: delete {folder} and build it again") from None


def default_pool(name: str, corpora: str | os.PathLike = "corpora") -> Path:
    """The file of a pool. On first use the corpora are built, by the defaults: call it on one rank first."""
    if not (Path(corpora) / MANIFEST).exists():
        print(f"{corpora} is not built yet: building it", file=sys.stderr)
        build(corpora, say=lambda line: print(line, file=sys.stderr))
    entry = read_manifest(corpora)["pools"].get(name)
    if entry is None:
        raise ValueError(f"{corpora} was built without the pool {name!r}: build it with that, or pass "
                         f"--problems FILE")
    return Path(corpora) / entry["file"]


# ------------------------------------------------------------------------------------- audit: Tables 9 and 10

def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the paper's splits; audit what saw what.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="read the corpora, clean them, write the pools and the manifest")
    make.add_argument("--out", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of every draw by hash (default %(default)s)")
    make.add_argument("--local", action="append", default=[], metavar="CORPUS=PATH",
                      help="read a corpus from a folder with copies of its files, or from one file, and not "
                           f"from the hub; corpora: {', '.join(CORPORA)}")
    make.add_argument("--skip", action="append", default=[], metavar="CORPUS",
                      help="leave a corpus and its pools out")
    sizes = make.add_argument_group("sizes, in problems (0 leaves the pool out)")
    for pool in POOLS:
        sizes.add_argument(f"--{pool.name}", type=int, default=pool.size, metavar="N",
                           help=f"{pool.stage}; {pool.corpus} {pool.split} (default %(default)s)")
    check = commands.add_parser("audit",
                                help="print Tables 9 and 10; status 1 if an evaluation problem was seen")
    check.add_argument("--corpora", default="corpora", metavar="FOLDER", help="(default %(default)s)")
    check.add_argument("--runs", default="runs", metavar="FOLDER", help="(default %(default)s)")
    args = parser.parse_args(argv)

    from lib import errors  # here, so that reading problems needs no torch
    from prepare.exposure import audit


    with errors.explain():
        if args.command == "build":
            if malformed := [x for x in args.local if "=" not in x]:
                raise ValueError(f"--local {malformed[0]}: write CORPUS=PATH, as in --local apps=copies/apps")
            chosen = {pool.name: getattr(args, pool.name.replace("-", "_")) for pool in POOLS}
            build(args.out, chosen, args.seed, dict(x.split("=", 1) for x in args.local), args.skip)
            print(f"written to {args.out}")
        else:
            tables, wrong = audit(args.corpora, args.runs)
            print(tables)
            for problem in wrong:
                print(f"WRONG: {problem}", file=sys.stderr)
            raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
