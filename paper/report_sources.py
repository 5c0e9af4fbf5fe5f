"""Where a stage's data comes from: how many problems there were, what was dropped and why.

    for source in sources(stages, notes):
        source["title"]         # "corpora/joint.jsonl, used by mini/cppo"
        source["rows"]          # [{"what": "left after decontamination", "count": 8123,
                                #   "lost": False}, ...], from above to below
        source["cleaned"]       # whether a manifest says what it was cleaned against

Read from what prepare/ writes beside its files (manifest.json, gold.json, labels.json), and from
the files themselves. What is not there is left out.
"""

from collections import Counter
from pathlib import Path

from paper import report_data as data
from paper.report_data import Stage

INPUTS = ("problems", "dev", "gold", "labels", "val")      # flags that name a file of data
RULES = {"id": "an equal official identifier", "hash": "an equal statement",
         "ngram": "shared word 13-grams"}


def row(what: str, count: int, lost: bool = False) -> dict:
    return {"what": what, "count": count, "lost": lost}


def sources(stages: list[Stage], notes: list[str]) -> list[dict]:
    """A funnel for each file of data that the stages were given."""
    users: dict[str, list[str]] = {}
    for stage in stages:
        for flag in INPUTS:
            named = stage.flags.get(flag)
            if isinstance(named, str):
                users.setdefault(named, []).append(stage.name)
    found = []
    for named, names in users.items():
        path = Path(named)
        rows = drawn_rows(path, notes) + teacher_rows(path, notes) + file_rows(path, notes)
        if rows:
            found.append({"title": f"{path}, used by {', '.join(names)}", "rows": rows,
                          "cleaned": (path.parent / "manifest.json").exists()})
    return found


def drawn_rows(path: Path, notes: list[str]) -> list[dict]:
    """What prepare.corpora and prepare.screen say of a pool in manifest.json."""
    manifest = data.read_object(path.parent / "manifest.json", notes)
    pools, splits = (as_object(manifest.get(name)) for name in ("pools", "splits"))
    pool = next((entry for entry in map(as_object, pools.values())
                 if entry.get("file") == path.name), {})
    split = as_object(splits.get(str(pool.get("split")).replace(" ", "/")))
    rows = []
    if split:
        rows = split_rows(str(pool["split"]), split)
    dropped = as_object(pool.get("dropped"))
    if data.is_number(pool.get("problems")):
        rule = pool.get("rule")
        rows.append(row(f"drawn by {rule}; {pool.get('wanted')} were wanted",
                        pool["problems"] + len(dropped)))
        rows += lost("screened out", Counter(map(str, dropped.values())))
        if dropped:
            rows.append(row("kept after screening", pool["problems"]))
    return rows


def split_rows(name: str, split: dict) -> list[dict]:
    """From the rows of a corpus to what is left of them after decontamination."""
    refused = {reason: len(data.as_list(places))
               for reason, places in as_object(split.get("refused")).items()}
    repeats = len(as_object(split.get("repeats")))
    rules = [as_object(overlap).get("rule") for overlap in as_object(split.get("removed")).values()]
    removed = Counter(RULES.get(rule, str(rule)) for rule in rules)
    rows = []
    if data.is_number(split.get("rows")):
        rows.append(row(f"rows of {name}", split["rows"]))
    if split.get("not_introductory"):
        rows.append(row("not introductory", split["not_introductory"], lost=True))
    rows += lost("refused", refused)
    if repeats:
        rows.append(row("repeat an earlier problem", repeats, lost=True))
    if "removed" in split:
        rows += lost("held out: has", removed)
    if data.is_number(split.get("loaded")):
        left = split["loaded"] - repeats - sum(removed.values())
        rows.append(row("left after decontamination" if "removed" in split else "left", left))
    return rows


def lost(why: str, counts: dict[str, int]) -> list[dict]:
    """A row per reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return [row(f"{why} {reason}", count, lost=True) for reason, count in ordered if count]


def teacher_rows(path: Path, notes: list[str]) -> list[dict]:
    """What prepare.teacher counted on the way to gold.jsonl, or to the labels."""
    command = "gold" if path.name.startswith("gold") else "labels"
    if not path.name.startswith(command):
        return []
    counts = as_object(data.read_object(path.parent / f"{command}.json", notes).get("counts"))
    return [row(what, count, lost="dropped" in what) for what, count in counts.items()
            if data.is_number(count) and count]


def file_rows(path: Path, notes: list[str]) -> list[dict]:
    """What stands in the file itself: problems, or labels by kind."""
    if not path.is_file():
        return []
    total, problems, kinds = 0, set(), Counter()
    for line in data.read_rows(path, notes):
        total += 1
        problems.add(str(line.get("problem_id") or line.get("id")))
        if "label" in line:
            kinds["Pass" if line["label"] else f"Fail: {line.get('kind')}"] += 1
    of = f" of {len(problems)} problems" if len(problems) < total else ""
    rows = [row(f"in the file{of}", total)]
    return rows + [row(f"of these {kind}", count) for kind, count in kinds.most_common()]


def as_object(value) -> dict:
    return value if isinstance(value, dict) else {}
