"""Build the pools of Tables 3 and 9 from the five corpora.

    python -m prepare.corpora --out corpora     # from the hub; --local CORPUS=FOLDER without one

Writes one JSON-lines file per pool; `manifest.json` (ids and hashes of every pool, what was refused
or removed and why, revisions, seed); `held_out.jsonl` (every statement that nothing may be trained
on); `boilerplate.npy` (the n-grams that do not count). The corpora are streamed, and the decoded
rows are kept in an unnamed file under --out until the pools are chosen: about 20 GB of disk for all
five.

Departures from the paper, and what it leaves open:
 1. Training pools are cleaned against every benchmark as a whole, not only against the problems
    drawn from it, so that another slice may be drawn later. They are disjoint from one another.
 2. Table 9's 333 planner problems are those that pass the teacher's funnel, and 1110 + 278 are
    labels, not problems. The pools `sft` and `gate` are what the teacher is offered: 700 problems
    each, our choice.
 3. "LCBv6 held-out" is the newest 300 problems of release_v6 (1055) by date: the slice called v6
    has only 175. CodeContests `valid` has 117 problems, of which 100 are drawn; this and every
    other slice by a seeded hash of ids.
 4. C.3 gives neither n nor a threshold for n-grams: see decontaminate.py.
 5. Table 10's qualitative examples come from CodeContests test: the pool `show`.
 6. All official tests are used: public, private and generated.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import errors, flags
from lib.errors import UserError
from lib.files import save_lines, tree_hash, write_file
from lib.problems import Problem, problem_to_json
from lib.progress import progress
from prepare import readers, sources
from prepare.decontaminate import BOILERPLATE, CONTAINMENT, NGRAM, find_overlaps, statement_hash

# ----------------------------------------------------------------------------------------------
# The pools

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
TRAINED = ("train", "dev")
MANIFEST, HELD_OUT, BOILERPLATE_FILE = "manifest.json", "held_out.jsonl", "boilerplate.npy"
# These ask several questions about one statement, so an equal statement is no repeat.
SEVERAL_PER_STATEMENT = ("execution", "test_generation")
# Problems that the benchmark's own errata list as having several right answers, an interactor or
# wrong tests. They are not drawn unless --errata asks for them; the manifest names them.
LIVECODEBENCH_ERRATA = frozenset("""
    abc311_c abc326_d abc327_b abc333_e abc343_e abc362_c abc343_a arc185_c abc337_e abc355_e
    abc350_c arc189_a apply-operations-to-make-string-empty most-frequent-ids
    find-words-containing-character find-the-peaks generate-binary-strings-without-adjacent-zeros
    """.split())


def statement_card(problem: Problem) -> Problem:
    """What choosing needs of a problem: identifiers and statement, without the tests."""
    return Problem(problem.id, problem.statement, ids=problem.ids)


class Spool:
    """Whole problems in an unnamed file, until it is known which are chosen: tests are most of the
    bytes, and those of five corpora do not fit into memory."""

    def __init__(self, folder: Path):
        self.file = tempfile.TemporaryFile(dir=folder)
        self.place: dict[str, int] = {}         # id -> offset in the file
        self.day: dict[str, str] = {}           # id -> contest date

    def add(self, problem: Problem, day: str) -> None:
        if problem.id in self.place:
            raise UserError(f"two rows have the id {problem.id!r}")
        self.place[problem.id] = self.file.tell()
        self.day[problem.id] = day
        self.file.write(json.dumps(problem_to_json(problem)).encode() + b"\n")

    def rows(self, problems: Iterable[Problem]) -> Iterator[dict]:
        for problem in problems:
            self.file.seek(self.place[problem.id])
            yield json.loads(self.file.readline())


# ----------------------------------------------------------------------------------------------
# Read, clean, draw. `cards` maps (corpus, split) to its problems without tests, and `counts` maps
# it to what the manifest says of it.

Cards = dict[tuple[str, str], list[Problem]]
Counts = dict[tuple[str, str], dict]


def read_split(corpus: str, split: str, rows: Iterable[dict],
               spool: Spool) -> tuple[list[Problem], dict]:
    """Put the problems of a split into the spool; return their cards, and counts for the manifest.

    The paper uses only the introductory problems of APPS, so others are not read.
    """
    cards: list[Problem] = []
    refused: dict[str, list[str]] = defaultdict(list)
    number = other = 0
    for number, row in enumerate(rows, 1):
        if corpus == "apps" and row.get("difficulty") != "introductory":
            other += 1
            continue
        try:
            problem = readers.read_row(corpus, split, number - 1, row)
        except readers.Refused as error:
            refused[error.reason].append(f"row {number - 1}")
            continue
        except UserError as error:
            raise UserError(f"{corpus} {split}, row {number - 1}: {error}") from None
        spool.add(problem, readers.contest_day(row))
        cards.append(statement_card(problem))
    return cards, {"rows": number, "not_introductory": other, "loaded": len(cards),
                   "refused": dict(sorted(refused.items()))}


def read_splits(splits: Sequence[tuple[str, str]], origins: dict[str, dict], spool: Spool,
                say: Callable[[str], None]) -> tuple[Cards, Counts]:
    cards: Cards = {}
    counts: Counts = {}
    for corpus, split in splits:
        origin = origins[corpus]
        rows = sources.rows(corpus, split, origin.get("local"), origin.get("revision"))
        rows = progress(rows, f"{corpus} {split}, rows")
        cards[corpus, split], count = read_split(corpus, split, rows, spool)
        counts[corpus, split] = count
        refused = [f"{len(places)} {reason}" for reason, places in count["refused"].items()]
        note = f"; refused: {', '.join(refused)}" if refused else ""
        say(f"{corpus} {split}: {count['loaded']} problems{note}")
    return cards, counts


def deduplicate(problems: Sequence[Problem]) -> dict[str, str]:
    """Id of each problem that repeats an earlier one, by official identifier or hash -> the earlier
    one's id."""
    first: dict[tuple[str, str], str] = {}
    repeats: dict[str, str] = {}
    for problem in problems:
        marks = [*problem.ids.items(), ("hash", statement_hash(problem.statement))]
        earlier = [first[mark] for mark in marks if mark in first]
        # `first` maps to the start of a chain: a repeat of a repeat names the problem that stays
        original = earlier[0] if earlier else problem.id
        if earlier:
            repeats[problem.id] = original
        for mark in marks:
            first.setdefault(mark, original)
    return repeats


def drop_repeats(cards: Cards, counts: Counts) -> None:
    for key, problems in cards.items():
        repeats = {} if key[0] in SEVERAL_PER_STATEMENT else deduplicate(problems)
        counts[key]["repeats"] = repeats
        cards[key] = [p for p in problems if p.id not in repeats]


def drop_held_out(cards: Cards, counts: Counts, trained: Sequence[tuple[str, str]],
                  held_out: Sequence[Problem], say: Callable[[str], None]) -> np.ndarray:
    """Remove from the training splits what is held out; return the boilerplate grams."""
    training = [p for key in trained for p in cards[key]]
    overlaps, boilerplate = find_overlaps(training, held_out)
    for key in trained:
        removed = {p.id: dataclasses.asdict(overlaps[p.id]) for p in cards[key] if p.id in overlaps}
        counts[key]["removed"] = removed
        cards[key] = [p for p in cards[key] if p.id not in removed]
        say(f"{' '.join(key)}: {len(removed)} removed as held out, {len(cards[key])} left")
    return boilerplate


def draw_order(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """A random order by seed and ids alone: a problem that comes or goes does not reshuffle the
    others."""
    return sorted(problems, key=lambda p: order_key(seed, p.id))


def order_key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def is_erratum(problem: Problem) -> bool:
    return not LIVECODEBENCH_ERRATA.isdisjoint(problem.ids.values())


def draw(pool: Pool, size: int, problems: Sequence[Problem], day: dict[str, str],
         seed: int) -> list[Problem]:
    candidates = draw_order(problems, seed)
    if pool.newest:
        candidates.sort(key=lambda p: (day[p.id], p.id), reverse=True)
    if not candidates:
        raise UserError(f"pool {pool.name}: no problem of {pool.corpus} {pool.split} is left; "
                        f"lower the sizes, or leave the pool out: --{pool.name} 0")
    return candidates[:size]


def manifest_entry(pool: Pool, size: int, chosen: Sequence[Problem], errata: Iterable[Problem],
                   path: Path) -> dict:
    return {
        "file": path.name, "use": pool.use, "stage": pool.stage,
        "split": f"{pool.corpus} {pool.split}",
        "rule": "newest by contest date" if pool.newest else "sha256 of 'seed:id'",
        "wanted": size, "problems": len(chosen), "sha256": tree_hash(path),
        "errata": sorted(p.id for p in errata),
        "ids": [p.id for p in chosen],
        "hashes": [statement_hash(p.statement) for p in chosen],
    }


def write_pools(out: Path, pools: Sequence[Pool], request: dict, cards: Cards, spool: Spool,
                say: Callable[[str], None]) -> dict[str, dict]:
    """Draw every pool, write its file, and return the manifest's entries. Training pools share no
    problem; evaluation slices of one split may. Where errata are kept, the manifest lists the drawn
    ones; else those that are left out."""
    entries = {}
    taken: set[str] = set()
    for pool in pools:
        size = request["sizes"][pool.name]
        left = [p for p in cards[pool.corpus, pool.split] if p.id not in taken]
        errata = [p for p in left if pool.corpus == "livecodebench" and is_erratum(p)]
        if errata and not request["errata"]:
            say(f"{pool.name}: {len(errata)} problems of the published errata left out (--errata "
                f"keeps them)")
            left = [p for p in left if p not in errata]
        chosen = draw(pool, size, left, spool.day, request["seed"])
        if request["errata"]:
            errata = [p for p in errata if p in chosen]
        if len(chosen) < size:
            say(f"{pool.name}: only {len(chosen)} of {size} problems")
        if pool.use in TRAINED:
            taken |= {p.id for p in chosen}
        path = out / f"{pool.name}.jsonl"
        save_lines(path, spool.rows(chosen))
        entries[pool.name] = manifest_entry(pool, size, chosen, errata, path)
    return entries


# ----------------------------------------------------------------------------------------------
# Build

def check_request(sizes: dict[str, int], local: dict[str, str], skip: Iterable[str]) -> None:
    for name in (*local, *skip):
        sources.find_corpus(name)
    names = [pool.name for pool in POOLS]
    for name in sizes:
        if name not in names:
            raise UserError(f"there is no pool {name!r}: one of {', '.join(names)}")


def existing_build(out: Path, request: dict) -> dict:
    """The manifest of a folder that holds this very build. Another build there is an error, because
    evaluation slices are fixed before any run."""
    manifest = read_manifest(out)
    for key, value in request.items():
        built = manifest["asked"].get(key)
        if built != value:
            raise UserError(f"{out} holds a build with another {key} ({built}): choose another "
                            f"--out, or delete that folder")
    return manifest


def build(out: str | os.PathLike, sizes: dict[str, int] | None = None, seed: int = 0,
          local: dict[str, str] | None = None, skip: Iterable[str] = (), errata: bool = False,
          say: Callable[[str], None] = print) -> dict:
    """Write the pools and the manifest, and return the manifest.

    sizes: replaces Pool.size by name, 0 leaves a pool out. local: corpus -> folder or file.
    skip: corpora to leave out. errata: draw problems of LiveCodeBench's errata too. A pool that
    comes out short is reported and recorded.
    """
    out, local, skip = Path(out), dict(local or {}), sorted(set(skip))
    sizes = dict(sizes or {})
    check_request(sizes, local, skip)
    wanted = {pool.name: pool.size for pool in POOLS} | sizes
    request = {"seed": seed, "sizes": wanted, "local": local, "skip": skip, "errata": errata}
    if (out / MANIFEST).exists():
        say(f"{out} already holds this build")
        return existing_build(out, request)

    pools = [pool for pool in POOLS if wanted[pool.name] > 0 and pool.corpus not in skip]
    if not pools:
        raise UserError("nothing to build: every corpus is skipped, or every size is 0")
    splits = sorted({(pool.corpus, pool.split) for pool in pools})
    trained = sorted({(pool.corpus, pool.split) for pool in pools if pool.use in TRAINED})
    unread = sorted({f"{pool.corpus} {pool.split}" for pool in POOLS
                     if (pool.corpus, pool.split) not in splits})
    if unread:
        say(f"not read: {', '.join(unread)}; training pools are NOT cleaned against them")
    for corpus, split in splits:
        if corpus in local:             # a wrong path ends the build at once, not after hours
            sources.local_files(corpus, split, Path(local[corpus]))
    # before anything is read: the manifest must name the commit even if a branch moves meanwhile
    origins = {corpus: origin(corpus, local) for corpus, _ in splits}
    size = sum(sources.bytes_on_the_hub(*split) for split in splits if split[0] not in local)
    if size:
        say(f"reading {len(splits)} splits from the hub, at most {size / 1e9:.1f} GB: training "
            f"pools are cleaned against every benchmark; up to 20 GB of disk in {out} meanwhile")

    out.mkdir(parents=True, exist_ok=True)
    spool = Spool(out)
    with spool.file:
        cards, counts = read_splits(splits, origins, spool, say)
        # Repeats of a held-out problem are held out too: they may have other official ids.
        held_out = [p for key in splits if key not in trained for p in cards[key]]
        drop_repeats(cards, counts)
        boilerplate = drop_held_out(cards, counts, trained, held_out, say)
        entries = write_pools(out, pools, request, cards, spool, say)
    save_lines(out / HELD_OUT, ({"id": p.id, "statement": p.statement, "ids": p.ids}
                                for p in held_out))
    np.save(out / BOILERPLATE_FILE, boilerplate)
    manifest = {
        "asked": request, "sources": origins, "pools": entries, "held_out": len(held_out),
        "splits": {"/".join(key): count for key, count in counts.items()},
        "rules": {"ngram": NGRAM, "containment": CONTAINMENT, "boilerplate": BOILERPLATE},
    }
    # last: a folder without a manifest is no build
    write_file(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def origin(corpus: str, local: dict[str, str]) -> dict[str, str]:
    """Where the rows of a corpus come from, as the manifest records it."""
    if corpus in local:
        return {"local": local[corpus]}
    return {"repo": sources.CORPORA[corpus].repo, "revision": sources.resolved_revision(corpus)}


def read_manifest(folder: str | os.PathLike) -> dict:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"no {path}: make it with `python -m prepare.corpora --out {folder}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["pools"], dict):
            return manifest
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{path} is no manifest of prepare.corpora: delete {folder} and build again")


def default_pool(name: str, corpora: str | os.PathLike = "corpora") -> Path:
    """The file of a pool. On first use the corpora are built with the default sizes; where there
    are several ranks, call it on one of them first."""
    if not (Path(corpora) / MANIFEST).exists():
        print(f"{corpora} is not built yet: building it", file=sys.stderr)
        build(corpora, say=lambda line: print(line, file=sys.stderr))
    entry = read_manifest(corpora)["pools"].get(name)
    if entry is None:
        raise UserError(f"{corpora} was built without the pool {name!r}: build it with that pool, "
                        f"or pass --problems FILE")
    return Path(corpora) / entry["file"]


def corpus_and_path(text: str) -> tuple[str, str]:
    """The argparse type of --local."""
    corpus, mark, path = text.partition("=")
    if not mark:
        raise argparse.ArgumentTypeError(f"write CORPUS=PATH, as in --local apps=copies/apps, "
                                         f"not {text}")
    return corpus, path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Build the pools of Tables 3 and 9.")
    parser.add_argument("--out", default="corpora", metavar="FOLDER", help="where the pools go")
    parser.add_argument("--seed", type=int, default=0, help="of every draw by hash")
    parser.add_argument("--local", action="append", default=[], metavar="CORPUS=PATH",
                        type=corpus_and_path,
                        help="read a corpus from a folder with copies of its files, or from one "
                             f"file, not from the hub; corpora: {', '.join(sources.CORPORA)}")
    parser.add_argument("--skip", action="append", default=[], metavar="CORPUS",
                        help="leave a corpus and its pools out")
    parser.add_argument("--errata", action="store_true",
                        help="draw problems that LiveCodeBench's published errata list, too")
    sizes = parser.add_argument_group("sizes, in problems (0 leaves the pool out)")
    for pool in POOLS:
        sizes.add_argument(f"--{pool.name}", type=flags.at_least(0), default=pool.size, metavar="N",
                           help=f"{pool.stage}; {pool.corpus} {pool.split}")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> None:
    sizes = {pool.name: getattr(args, pool.name.replace("-", "_")) for pool in POOLS}
    build(args.out, sizes, args.seed, dict(args.local), args.skip, args.errata)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main(parse_args())
