"""Who saw what: Tables 9 and 10, and a check of every training file.

    python -m prepare.exposure      # status 1 if anything saw an evaluation problem

    warning = exposure.check_pools("corpora/joint.jsonl")       # before training
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib import errors, flags
from lib.errors import UserError
from lib.files import read_lines, tree_hash
from lib.problems import Problem, is_object_of_texts
from prepare.corpora import BOILERPLATE_FILE, HELD_OUT, MANIFEST, read_manifest
from prepare.decontaminate import Overlap, find_overlaps, shared_text

# Boilerplate is what many statements share. So few held-out statements cannot tell, and one shared
# paragraph about the input would make a pool unusable: such an overlap is a warning, unless it is
# most of the shorter statement.
FEW_STATEMENTS = 200
MOST_OF_A_STATEMENT = 0.8


class HeldOut:
    """What nothing may be trained on, as the build left it in `folder`."""

    def __init__(self, folder: str | os.PathLike):
        folder = Path(folder)
        damaged = UserError(f"{folder} holds a damaged build: delete it and build again")
        try:
            rows = [row for _, row in read_lines(folder / HELD_OUT)]
            self.problems = [Problem(r["id"], r["statement"], ids=r["ids"]) for r in rows]
        except (OSError, LookupError, TypeError):
            raise damaged from None
        try:
            self.boilerplate = np.load(folder / BOILERPLATE_FILE)
        except (OSError, EOFError, ValueError):
            raise damaged from None

    def overlaps(self, problems: Sequence[Problem]) -> tuple[dict[str, Overlap], dict[str, str]]:
        """(overlaps, doubts): id -> the held-out problem that it is, and id -> the text that it
        shares with one, where that may be boilerplate."""
        by_id, _ = find_overlaps(problems, self.problems, self.boilerplate)
        overlaps, doubts = {}, {}
        for problem in problems:
            overlap = by_id.get(problem.id)
            if overlap is None:
                continue
            if self.is_doubtful(overlap):
                other = next(p for p in self.problems if p.id == overlap.held_out)
                doubts[problem.id] = shared_text(problem.statement, other.statement)
            else:
                overlaps[problem.id] = overlap
        return overlaps, doubts

    def is_doubtful(self, overlap: Overlap) -> bool:
        return (overlap.rule == "ngram" and len(self.problems) < FEW_STATEMENTS
                and overlap.containment < MOST_OF_A_STATEMENT)


def mentioned_problems(path: str | os.PathLike) -> list[Problem]:
    """The problems that a file of problems, gold tuples or gate labels mentions, each once."""
    problems: dict[str, Problem] = {}
    for number, row in read_lines(path):
        name = row.get("problem_id", row.get("id")) if isinstance(row, dict) else None
        if name is None:
            raise UserError(f"{path} line {number}: there is neither 'id' nor 'problem_id', so its "
                            f"exposure cannot be checked")
        statement, ids = row.get("statement") or "", row.get("ids") or {}
        if not isinstance(statement, str) or not is_object_of_texts(ids):
            raise UserError(f"{path} line {number}: 'statement' must be text and 'ids' an object "
                            f"of texts")
        problems.setdefault(str(name), Problem(str(name), statement, ids=ids))
    return list(problems.values())


# ----------------------------------------------------------------------------------------------
# Before training

def check_pool(path: str | os.PathLike, corpora: str | os.PathLike = "corpora") -> str:
    """Check a training file (problems, gold tuples or gate labels) before it is used.

    UserError if it holds an evaluation problem or was changed after the build. Returns a warning
    for the run's log and config; "" if there is nothing to warn about.
    """
    path = Path(path)
    builds = [folder for folder in (path.parent, Path(corpora)) if (folder / MANIFEST).exists()]
    if not builds:
        if is_acknowledged(path):
            return ""
        return (f"{path} has no manifest: whether it shares problems with the evaluation sets is "
                f"not known (a pool of your own? `python -m prepare.check FILE --own`)")
    folder = builds[0]
    problems = mentioned_problems(path)
    overlaps, doubts = HeldOut(folder).overlaps(problems)
    if overlaps:
        name, overlap = next(iter(overlaps.items()))
        raise UserError(f"{path} holds {len(overlaps)} evaluation problem(s) among "
                        f"{len(problems)}, the first {name!r} (held out as {overlap.held_out!r}, "
                        f"found by {overlap.rule}): use the pools of `python -m prepare.corpora`")
    for entry in read_manifest(folder)["pools"].values():
        file = folder / entry["file"]
        if path.resolve() == file.resolve() and tree_hash(path) != entry["sha256"]:
            raise UserError(f"{path} is not what {folder / MANIFEST} describes: it was changed "
                            f"after the build; build again, or give your own pool another name")
    if doubts:
        name, text = next(iter(doubts.items()))
        return (f"{path}: {len(doubts)} problem(s) share text with evaluation problems, like "
                f"{name!r}; is it more than boilerplate? \"{text:.300}\"")
    return ""


def acknowledgement(path: Path) -> Path:
    """Where `prepare.check --own` says that a missing manifest is known, and of which content."""
    return path.with_suffix(".own.json")


def is_acknowledged(path: Path) -> bool:
    mine = acknowledgement(path)
    return mine.exists() and json.loads(mine.read_text()).get("sha256") == tree_hash(path)


def check_pools(*paths: str | os.PathLike | None) -> str:
    """`check_pool` of each path that is not None or empty: their warnings, joined."""
    warnings = [check_pool(path) for path in paths if path]
    return "; ".join(warning for warning in warnings if warning)


# ----------------------------------------------------------------------------------------------
# Tables 9 and 10

# Table 10: component, its files under corpora/, the stage of the runs that belong to it, notes
COMPONENTS = (
    ("Teacher", ("sft.jsonl", "gate.jsonl", "gold.jsonl"), "", "candidate generation"),
    ("LLM judge for plan validity", ("sft.jsonl", "gate.jsonl"), "", "candidates and plans"),
    ("Planner SFT", ("gold.jsonl",), "sft", ""),
    ("RM training labels", ("labels_train.jsonl",), "gate", "balanced pass/fail"),
    ("RM val (acceptance, threshold)", ("labels_val.jsonl",), "", "disjoint from RM train"),
    ("Planner warm-up", ("warmup.jsonl",), "warmup", ""),
    ("Joint CPPO rollout, RM refresh", ("joint.jsonl",), "cppo", ""),
    ("Hyperparameter sweep, early stopping", ("dev.jsonl",), "", "dev disjoint from eval"),
)
# file, the stage that Table 9 calls it, the pool it was made from
MADE_BY_TEACHER = (("gold.jsonl", "Planner SFT: gold tuples", "sft"),
                   ("labels_train.jsonl", "Reward model: labels, train", "gate"),
                   ("labels_val.jsonl", "Reward model: labels, val", "gate"))


class Exposure:
    """Collects the lines of both tables, and in `wrong` what must not be."""

    def __init__(self, corpora: Path, runs: Path):
        self.corpora, self.runs = corpora, runs
        self.manifest = read_manifest(corpora)
        self.held_out = HeldOut(corpora)
        self.wrong: list[str] = []
        self.names: dict[Path, list[str]] = {}              # checked file -> ids in it
        self.overlaps: dict[Path, dict[str, Overlap]] = {}
        self.doubts: list[str] = []
        self.split_of = {e["file"]: e["split"] for e in self.manifest["pools"].values()}
        for name, _, pool in MADE_BY_TEACHER:
            self.split_of[name] = self.split_of.get(f"{pool}.jsonl", "?")

    def check(self, path: Path) -> dict[str, Overlap]:
        # several components may have seen one file: check it once, report it once
        if path not in self.overlaps:
            problems = mentioned_problems(path)
            self.names[path] = [p.id for p in problems]
            self.overlaps[path], doubts = self.held_out.overlaps(problems)
            for name, text in doubts.items():
                self.doubts.append(f"{path}: {name} shares \"{text:.300}\"")
            for name, overlap in self.overlaps[path].items():
                self.wrong.append(f"{path}: {name} is held out as {overlap.held_out} (by "
                                  f"{overlap.rule})")
        return self.overlaps[path]

    def splits_table(self) -> list[str]:
        """Table 9."""
        lines = ["Table 9: splits", f"{'stage':38} {'problems':>10} source split"]
        for entry in self.manifest["pools"].values():
            short = ""
            if entry["problems"] < entry["wanted"]:
                short = f" ({entry['wanted']} were asked for)"
            lines.append(f"{entry['stage']:38} {entry['problems']:10} {entry['split']}{short}")
            path = self.corpora / entry["file"]
            if tree_hash(path) != entry["sha256"]:
                self.wrong.append(f"{path} was changed after the build")
        for name, stage, _ in MADE_BY_TEACHER:
            path = self.corpora / name
            if path.exists():
                count = sum(1 for _ in read_lines(path))
                lines.append(f"{stage:38} {count:10} {self.split_of[name]}")
        for name, split in self.manifest["splits"].items():
            lines.append(f"  {name}: {split_counts(split)}")
        return lines

    def components_table(self) -> list[str]:
        """Table 10."""
        lines = ["Table 10: exposure",
                 f"{'component':38} {'held-out?':10} {'source split':20} file"]
        given = run_files(self.runs, self.corpora)
        stages = set()
        for component, names, stage, note in COMPONENTS:
            stages.add(stage)
            paths = [self.corpora / name for name in names if (self.corpora / name).exists()]
            paths += sorted({path for other, path in given if other == stage} - set(paths))
            lines += [self.component_line(component, path, note) for path in paths]
            if not paths:
                lines.append(f"{component:38} not run")
        for stage, path in sorted(given):
            if stage not in stages:
                lines.append(self.component_line(f"stage {stage}", path))
        if "show" in self.manifest["pools"]:
            path = self.corpora / "show.jsonl"
            split = self.split_of[path.name]
            lines.append(f"{'Qualitative examples':38} {'no':10} {split:20} {path}")
        lines.append(f"{'Final evaluation':38} {'N/A':10} {'held out':20} no parameter updates")
        return lines

    def component_line(self, component: str, path: Path, note: str = "") -> str:
        if not path.exists():
            return f"{component:38} {'unknown':10} {path} is gone"
        overlaps = self.check(path)
        seen = f"YES, {len(overlaps)}" if overlaps else "no"
        source = "by flag"
        if path.parent == self.corpora:
            source = self.split_of.get(path.name, "?")
        note = f" ({note})" if note else ""
        return f"{component:38} {seen:10} {source:20} {path}{note}"

    def check_labels(self) -> None:
        """Gate labels for training and for validation share no problem."""
        train, val = (set(self.names.get(self.corpora / f"labels_{side}.jsonl", ()))
                      for side in ("train", "val"))
        if train & val:
            self.wrong.append(f"{len(train & val)} problems have gate labels on both sides, "
                              f"training and validation, like {min(train & val)}")


def split_counts(split: dict) -> str:
    rules = Counter(overlap["rule"] for overlap in split.get("removed", {}).values())
    refused = sum(map(len, split["refused"].values()))
    by_rule = "".join(f", {n} by {rule}" for rule, n in rules.items())
    return (f"{split['rows']} rows, {split['loaded']} loaded, {refused} refused, "
            f"{len(split['repeats'])} repeats, {sum(rules.values())} removed as held out{by_rule}")


def run_files(runs: Path, corpora: Path) -> set[tuple[str, Path]]:
    """(stage, file) of every JSON-lines file that a flag of a training run names."""
    files = set()
    for config_path in runs.rglob("config.json"):
        try:
            given = json.loads(config_path.read_text(encoding="utf-8")).get("flags")
        except (ValueError, AttributeError):
            raise UserError(f"{config_path} is not a run's config: mend or remove it, because its "
                            f"exposure cannot be checked") from None
        if "eval" in config_path.relative_to(runs).parts or not isinstance(given, dict):
            continue                # an evaluation, or the config of a checkpoint
        # any flag may name data, also one that a fork has added
        for value in given.values():
            if isinstance(value, str) and value.endswith(".jsonl"):
                own = Path(value).resolve().parent == corpora.resolve()
                path = corpora / Path(value).name if own else Path(value)
                files.add((config_path.parent.name, path))
    return files


def exposure_tables(corpora: str | os.PathLike = "corpora",
                    runs: str | os.PathLike = "runs") -> tuple[str, list[str]]:
    """Tables 9 and 10 as text, from the manifest and every run's config.json; and a list of what is
    wrong."""
    exposure = Exposure(Path(corpora), Path(runs))
    lines = [*exposure.splits_table(), "", *exposure.components_table()]
    exposure.check_labels()
    if exposure.doubts:
        lines += ["", "Text shared with evaluation problems: more than boilerplate?",
                  *exposure.doubts]
    return "\n".join(lines), exposure.wrong


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Print Tables 9 and 10; status 1 if an evaluation problem was seen.")
    parser.add_argument("--corpora", default="corpora", metavar="FOLDER")
    parser.add_argument("--runs", default="runs", metavar="FOLDER")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> int:
    tables, wrong = exposure_tables(args.corpora, args.runs)
    print(tables)
    for sentence in wrong:
        print(f"WRONG: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
