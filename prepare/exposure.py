"""The exposure audit: who saw what (Tables 9 and 10)."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.files import read_lines
from lib.problems import Problem
from prepare.corpora import BOILERPLATE_FILE, HELD_OUT, MANIFEST, _sha256, read_manifest
from prepare.decontaminate import Overlap, find_overlaps


def load_held_out(corpora: str | os.PathLike) -> tuple[list[Problem], np.ndarray]:
    """What nothing may be trained on, and the boilerplate grams, as `build` left them."""
    lines = read_lines(Path(corpora) / HELD_OUT)
    try:
        problems = [Problem(row["id"], row["statement"], ids=row["ids"]) for _, row in lines]
        return problems, np.load(Path(corpora) / BOILERPLATE_FILE)
    except (LookupError, TypeError, EOFError):
        raise ValueError(f"{corpora} holds a damaged build: delete it and build it again") from None


def exposures(path: str | os.PathLike, held_out: Sequence[Problem],
              boilerplate: np.ndarray) -> tuple[list[str], dict[str, Overlap]]:
    """Ids of the problems that a file speaks of (problems, gold tuples or gate labels), and which of them are
    held out as what."""
    problems: dict[str, Problem] = {}
    for number, row in read_lines(path):
        name = row.get("problem_id", row.get("id")) if isinstance(row, dict) else None
        if name is None:
            raise ValueError(f"{path} line {number}: neither 'id' nor 'problem_id', so it cannot be audited")
        statement, ids = row.get("statement") or "", row.get("ids") or {}
        if not isinstance(ids, dict) or not all(isinstance(x, str) for x in (statement, *ids.values())):
            raise ValueError(f"{path} line {number}: 'statement' must be text and 'ids' an object of texts")
        problem = Problem(str(name), statement, ids=ids)
        problems.setdefault(problem.id, problem)
    return list(problems), find_overlaps(list(problems.values()), held_out, boilerplate)[0]


def audit_pool(path: str | os.PathLike, corpora: str | os.PathLike = "corpora") -> str:
    """Check a training file (problems, gold tuples or gate labels) before it is used. Raises ValueError where
    `audit` would fail, for an evaluation problem in it or a change after the build; else returns what is to be said
    and written into the run's config, "" if all is known and well."""
    path = Path(path)
    folder = next((f for f in (path.parent, Path(corpora)) if (f / MANIFEST).exists()), None)
    if folder is None:
        return f"{path} has no manifest: whether it shares problems with the evaluation sets is not known"
    names, found = exposures(path, *load_held_out(folder))
    if found:
        name, overlap = next(iter(found.items()))
        raise ValueError(f"{path} holds {len(found)} evaluation problem(s) among {len(names)}, the first "
                         f"{name!r} (held out as {overlap.held_out!r}, found by {overlap.rule}): use what "
                         f"`python -m prepare.corpora build` made")
    for entry in read_manifest(folder)["pools"].values():
        if path.resolve() == (folder / entry["file"]).resolve() and _sha256(path) != entry["sha256"]:
            raise ValueError(f"{path} is not what {folder / MANIFEST} describes: it was changed after the build; build it "
                             f"again, or keep your own pool in a file of another name")
    return ""


def audit_pools(*paths: str | os.PathLike | None) -> str:
    """`audit_pool` of each file that there is: what is to be said of them, one after the other."""
    return "; ".join(said for path in paths if path and (said := audit_pool(path)))


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
MADE_BY_TEACHER = (("gold.jsonl", "Planner SFT: gold tuples", "sft"),
                   ("labels_train.jsonl", "Reward model: labels, train", "gate"),
                   ("labels_val.jsonl", "Reward model: labels, val", "gate"))


def audit(corpora: str | os.PathLike = "corpora", runs: str | os.PathLike = "runs") -> tuple[str, list[str]]:
    """Tables 9 and 10 as text, from the manifest and every run's config.json; and a list of what is wrong."""
    corpora, manifest = Path(corpora), read_manifest(corpora)
    held_out, boilerplate = load_held_out(corpora)
    split_of = {entry["file"]: entry["split"] for entry in manifest["pools"].values()}
    split_of |= {name: split_of.get(f"{pool}.jsonl", "?") for name, _, pool in MADE_BY_TEACHER}
    wrong: list[str] = []
    checked: dict[Path, tuple[list[str], dict[str, Overlap]]] = {}

    def line(component: str, path: Path, note: str = "") -> str:
        if not path.exists():
            return f"{component:38} {'unknown':10} {path} is gone"
        if path not in checked:
            checked[path] = exposures(path, held_out, boilerplate)
            wrong.extend(f"{path}: {name} is held out as {overlap.held_out} (by {overlap.rule})"
                         for name, overlap in checked[path][1].items())
        seen = f"YES, {len(checked[path][1])}" if checked[path][1] else "no"
        source = split_of.get(path.name, "?") if path.parent == corpora else "by flag"
        return f"{component:38} {seen:10} {source:20} {path}{f' ({note})' if note else ''}"

    lines = ["Table 9: splits", f"{'stage':38} {'problems':>10} source split"]
    for entry in manifest["pools"].values():
        short = f" ({entry['wanted']} were asked for)" if entry["problems"] < entry["wanted"] else ""
        lines.append(f"{entry['stage']:38} {entry['problems']:10} {entry['split']}{short}")
        if _sha256(corpora / entry["file"]) != entry["sha256"]:
            wrong.append(f"{corpora / entry['file']} was changed after the build")
    lines += [f"{stage:38} {sum(1 for _ in read_lines(corpora / name)):10} {split_of[name]}"
              for name, stage, _ in MADE_BY_TEACHER if (corpora / name).exists()]
    for name, split in manifest["splits"].items():
        rules = Counter(x["rule"] for x in split.get("removed", {}).values())
        lines.append(f"  {name}: {split['rows']} rows, {split['loaded']} loaded, "
                     f"{sum(map(len, split['refused'].values()))} refused, {len(split['repeats'])} repeats, "
                     f"{sum(rules.values())} removed as held out"
                     + "".join(f", {n} by {r}" for r, n in rules.items()))

    lines += ["", "Table 10: exposure", f"{'component':38} {'held-out?':10} {'source split':20} file"]
    given = run_files(Path(runs), corpora)
    for component, names, stage, note in COMPONENTS:
        files = [corpora / name for name in names if (corpora / name).exists()]
        files += sorted({path for found, path in given if found == stage} - set(files))
        lines += [line(component, path, note) for path in files] or [f"{component:38} not run"]
    others = sorted((found, path) for found, path in given
                    if found not in {stage for *_, stage, _ in COMPONENTS})
    lines += [line(f"stage {found}", path) for found, path in others]
    if "show" in manifest["pools"]:
        lines.append(f"{'Qualitative examples':38} {'no':10} {split_of['show.jsonl']:20} "
                     f"{corpora / 'show.jsonl'}")
    lines.append(f"{'Final evaluation':38} {'N/A':10} {'held out':20} no parameter updates")
    train, val = (checked.get(corpora / f"labels_{side}.jsonl", ([], {}))[0] for side in ("train", "val"))
    if both := set(train) & set(val):
        wrong.append(f"{len(both)} problems have gate labels on both sides, training and validation, like "
                     f"{min(both)}")
    return "\n".join(lines), wrong


def run_files(runs: Path, corpora: Path) -> set[tuple[str, Path]]:
    """(stage, file) of every JSON-lines file that a flag of a training run names."""
    found = set()
    for config_path in runs.rglob("config.json"):
        try:
            flags = json.loads(config_path.read_text(encoding="utf-8")).get("flags")
        except (ValueError, AttributeError):
            raise ValueError(f"{config_path} is not a run's config: mend or remove it, for it cannot be "
                             f"audited") from None
        if "eval" in config_path.relative_to(runs).parts or not isinstance(flags, dict):
            continue                # an evaluation, or the config of a checkpoint
        for value in flags.values():
            if isinstance(value, str) and value.endswith(".jsonl"):
                own = Path(value).resolve().parent == corpora.resolve()
                found.add((config_path.parent.name, corpora / Path(value).name if own else Path(value)))
    return found
