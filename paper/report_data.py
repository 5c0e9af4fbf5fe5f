"""What a report shows, read from run folders that may be half written or of another version.

    notes = []                                      # what is missing or left out, as sentences
    for folder in stage_folders(Path("runs/mini")):
        stage = read_stage(folder, notes)           # numbers, gate, and every step's tuples

Nothing here raises for a bad file: what cannot be read is left out and noted. Text of models is cut
and made visible by `clean` before it goes anywhere.
"""

import functools
import json
import math
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import gate
from lib import metrics
from paper.gate_report import Decisions, add_sample, joint_table

TEXT, LINE = 4000, 400          # characters of a text, and of a line in it, that are shown
WINDOW = 20                     # steps that the headline figures are means of
BINS = 10                       # of the reliability diagram
ROC_POINTS = 150
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")     # categories of Unicode
ADDRESS_SECRET = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=[?&]key=)[^&\s]+")
SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)   # of a variable
SHORTEST_SECRET = 8             # characters; a shorter value is a setting ("false", "1")
# how keys begin and go on that Hugging Face, OpenAI and its likes, GitHub and AWS issue
KEYS = {"hf_": r"\w{20,}", "sk-": r"[\w-]{20,}", "ghp_": r"\w{30,}", "gho_": r"\w{30,}",
        "ghs_": r"\w{30,}", "github_pat_": r"\w{30,}", "AKIA": r"[A-Z0-9]{16}"}


# ----------------------------------------------------------------------------------------------
# Text

def is_hidden(character: str) -> bool:
    """Whether it shows nothing of its own, or moves what stands around it."""
    return character != "\t" and unicodedata.category(character) in HIDDEN


def visible(character: str) -> str:
    """A control, format, or right-to-left character as something that can be seen."""
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)           # Unicode has a picture for each
    return f"⟨U+{code:04X}⟩"


def clean(text: str, most: int = TEXT) -> str:
    """Text that a browser shows as it is: cut, without characters that reorder or hide others, and
    without passwords of addresses."""
    shown = text[:most]
    if "://" in shown:
        shown = ADDRESS_SECRET.sub("***", shown)
    lines = []
    for line in shown.split("\n"):
        more = len(line) - LINE
        line = line[:LINE]
        if not line.isprintable():          # most lines are, and this is forty times faster
            line = "".join(visible(c) if is_hidden(c) else c for c in line)
        lines.append(f"{line} … ({more:,} more characters)" if more > 0 else line)
    if len(text) > most:
        lines.append(f"… ({len(text) - most:,} more characters)")
    return "\n".join(lines)


def clean_all(value):
    """A JSON value with clean text, and null for what JSON has no number for."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key), 200): clean_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_all(item) for item in value]
    if isinstance(value, float):
        # six digits: 300 steps of 60 metrics then take 150 kB
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


@functools.cache
def secrets() -> tuple[list[str], re.Pattern]:
    """What gives secrets away, and what they look like: keys as they are issued, and the values of
    this environment's variables that hold one."""
    held = [value for name, value in os.environ.items()
            if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET]
    # as they stand in JSON; the longest first, since one may begin with another
    written = sorted((json.dumps(value)[1:-1] for value in held), key=len, reverse=True)
    issued = [rf"\b{mark}{rest}" for mark, rest in KEYS.items()]
    return [*KEYS, *written], re.compile("|".join([*issued, *map(re.escape, written)]))


def without_secrets(text: str) -> str:
    """JSON text without what must not leave this machine, wherever it stands: a model that was
    shown a key may repeat it."""
    marks, pattern = secrets()
    # the expression alone takes as long as all the rest of reading a run
    return pattern.sub("***", text) if any(mark in text for mark in marks) else text


# ----------------------------------------------------------------------------------------------
# Files

def read_object(path: Path, notes: list[str]) -> dict:
    """A JSON file that holds an object; {} and a note where it does not."""
    try:
        value = json.loads(without_secrets(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path} cannot be read ({error}).")
        return {}
    if isinstance(value, dict):
        return value
    notes.append(f"{path} holds no JSON object.")
    return {}


def read_rows(path: Path, notes: list[str]) -> Iterator[dict]:
    """The objects in a file of JSON lines. A training run may be writing its last line now."""
    bad, line = 0, "\n"
    # one line at a time: samples of real runs do not fit into memory
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(without_secrets(line))     # before texts are cut
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.endswith("\n") and line.strip():
                    bad += 1
    except OSError as error:
        notes.append(f"{path} cannot be read ({error}).")
    if not line.endswith("\n") and line.strip():
        notes.append(f"{path} ends inside a line; it is left out if it is not whole.")
    if bad:
        notes.append(f"{path}: {bad} lines are no JSON objects and are left out.")


def is_number(value) -> bool:
    """Whether it can be drawn: JSON as Python writes it has NaN and Infinity too."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e300


# ----------------------------------------------------------------------------------------------
# Tuples

TUPLE_NUMBERS = ("p_pass", "J", "R_out", "R_plan", "A")
BRANCH_NUMBERS = ("tests_passed", "tokens", "r", "a")


def compact_branch(branch: dict) -> dict:
    small = {name: branch.get(name) for name in BRANCH_NUMBERS if is_number(branch.get(name))}
    for name in ("strategy", "reply", "status", "finish", "message"):
        if isinstance(branch.get(name), str):
            small[name] = branch[name]
    return small


def compact_tuple(row: dict) -> dict:
    """A line of samples.jsonl, without what the page does not show or shows elsewhere."""
    branches = [b for b in as_list(row.get("branches")) if isinstance(b, dict)]
    strategies = row.get("strategies")
    small = {name: row.get(name) for name in TUPLE_NUMBERS if is_number(row.get(name))}
    small["branches"] = [compact_branch(b) for b in branches]
    if isinstance(strategies, list):
        small["strategies"] = [str(s) for s in strategies]
        for branch in small["branches"]:        # it stands above the branch already
            branch.pop("strategy", None)
    else:
        small["plan"] = str(row.get("plan", ""))
        small["error"] = str(row.get("error") or "no reason is recorded")
    if isinstance(row.get("faults"), list):
        small["faults"] = [str(f) for f in row["faults"]]
    if isinstance(row.get("A_strategies"), list):
        small["pay"] = [a for a in row["A_strategies"] if is_number(a)]
    small["marks"] = marks(row, branches)
    return clean_all(small)


def marks(row: dict, branches: list[dict]) -> list[str]:
    """What the page's filters choose by."""
    found = []
    finishes = [row.get("plan_finish"), *(b.get("finish") for b in branches)]
    if any(b.get("r") == 1 for b in branches):
        found.append("solved")
    if "strategies" in row and not isinstance(row["strategies"], list):
        found.append("unparsed")
    elif row.get("J") == 0:
        found.append("refused")
    if row.get("duplicate_literal") or "duplicate" in as_list(row.get("faults")):
        found.append("duplicate")
    if "length" in finishes:
        found.append("cut")
    return found


def compact_attempts(row: dict) -> list[dict]:
    """A rival's line: a problem with its independent attempts, each shown like a tuple of one."""
    attempts = []
    for number, branch in enumerate(as_list(row.get("branches"))):
        if not isinstance(branch, dict):
            continue
        small = {"branches": [compact_branch(branch)], "marks": marks({}, [branch])}
        for name in ("reward", "r_mi"):
            values = as_list(row.get(name))
            if number < len(values) and is_number(values[number]):
                small[name] = values[number]
        attempts.append(clean_all(small))
    return attempts


def as_list(value) -> list:
    return value if isinstance(value, list) else []


@dataclass
class Step:
    """The tuples of one step, packed: a run of real size has gigabytes of them."""
    number: int
    packed: bytes

    def groups(self) -> list[dict]:
        """One per problem: {"step", "problem", "tuples"}."""
        return json.loads(zlib.decompress(self.packed))


def pack_step(number: int, groups: dict[str, list[dict]]) -> Step:
    rows = [{"step": number, "problem": problem, "tuples": tuples}
            for problem, tuples in groups.items()]
    return Step(number, zlib.compress(json.dumps(rows).encode(), 1))


# ----------------------------------------------------------------------------------------------
# The gate

@dataclass
class GateCount:
    """What a stage's samples say of its gate."""
    judged: Decisions = field(default_factory=list)
    solved: Decisions = field(default_factory=list)
    outcomes: list[tuple[float, int]] = field(default_factory=list)     # (J, 1 if solved)
    kinds: dict[str, list[bool]] = field(default_factory=dict)  # fault -> decided rightly

    def add(self, row: dict) -> None:
        try:
            add_sample(row, self.judged, self.solved)
        except (LookupError, TypeError):
            return                      # the warm-up, or another version
        if not is_number(row.get("J")):
            return
        if is_number(row.get("R_out")):
            self.outcomes.append((row["J"], int(row["R_out"] > 0)))
        if isinstance(row["faults"], list) and is_number(row["p_pass"]):
            for kind in row["faults"] or ["no fault"]:
                right = (row["J"] == 0) == bool(row["faults"])
                self.kinds.setdefault(str(kind), []).append(right)

    def summary(self) -> dict:
        """Curves against judge and solver, and the joint table of decisions and outcomes."""
        curves = [curves_of(self.judged, "the judge"), curves_of(self.solved, "the solver")]
        kinds = sorted(self.kinds.items(), key=lambda kind: -len(kind[1]))
        found = {"kinds": [[kind, sum(right) / len(right), len(right)] for kind, right in kinds],
                 "curves": [curve for curve in curves if curve]}
        if self.outcomes:
            J, solved = zip(*self.outcomes, strict=True)
            # the decisions themselves: any tau between 0 and 1 takes them as they are
            found["table"] = joint_table(J, solved, 0.5) | {"tuples": len(J)}
        return found


def curves_of(decisions: Decisions, by: str) -> dict | None:
    """ROC and reliability of p(Pass) against a judge's labels, or against what was solved."""
    known = [(p, outcome) for p, outcome in decisions if is_number(p)]
    p = [p for p, _ in known]
    outcomes = [outcome for _, outcome in known]
    if not 0 < sum(outcomes) < len(outcomes):
        return None
    points = gate.roc(p, outcomes)
    stride = math.ceil(len(points) / ROC_POINTS)
    points = points[::stride] + points[-1:]
    return {"by": by, "auc": gate.auc(p, outcomes), "tuples": len(p),
            "roc": [[false, true] for _, false, true in points],
            "reliability": reliability(known)}


def reliability(decisions: Decisions) -> list[list[float]]:
    """[mean p, share of positives, tuples] of each tenth of [0, 1] that holds any."""
    bins: list[Decisions] = [[] for _ in range(BINS)]
    for p, outcome in decisions:
        bins[min(BINS - 1, max(0, int(p * BINS)))].append((p, outcome))
    return [[sum(p for p, _ in held) / len(held), sum(z for _, z in held) / len(held), len(held)]
            for held in bins if held]


def read_gate(folder: Path, notes: list[str]) -> dict:
    """A trained gate: how it does on its held-out labels, and on each kind of fault."""
    card = read_object(folder / "gate.json", notes)
    decisions = []
    if (folder / "labels_val.jsonl").exists():
        for row in read_rows(folder / "labels_val.jsonl", notes):
            if is_number(row.get("p_pass")) and row.get("label") in (0, 1):
                decisions.append((row["p_pass"], row["label"]))
    measured = card.get("metrics") if isinstance(card.get("metrics"), dict) else {}
    kinds = measured.get("kinds") if isinstance(measured.get("kinds"), dict) else {}
    rates = [[kind, rate.get("recall"), rate.get("count")] for kind, rate in kinds.items()
             if isinstance(rate, dict)]
    curve = curves_of(decisions, "held-out labels")
    return {"tau": card.get("tau"), "kinds": rates, "curves": [curve] if curve else []}


# ----------------------------------------------------------------------------------------------
# A stage

@dataclass
class Stage:
    """A folder that a training script has written, as far as it can be read."""
    name: str                           # RUN/STAGE
    folder: Path
    config: dict
    steps: list[int]                    # of metrics.jsonl
    values: dict[str, list]             # metric -> a number or None per step
    audit: dict
    refreshes: list[dict]               # of the gate
    best: int | None                    # step of best/, chosen on dev problems
    written: str                        # when metrics.jsonl was last written, UTC
    finished: bool
    tuples: list[Step] = field(default_factory=list)
    gate: dict = field(default_factory=dict)

    @property
    def flags(self) -> dict:
        flags = self.config.get("flags")
        return flags if isinstance(flags, dict) else {}


def stage_folders(run: Path) -> list[Path]:
    """The stages of a run, in the order in which they were written; a stage is its own."""
    named = ("metrics.jsonl", "config.json", "samples.jsonl")
    folders = []
    for folder in [run, *sorted(p for p in run.iterdir() if p.is_dir())]:
        if any((folder / name).is_file() for name in named):
            folders.append(folder)
    order = {"sft": 0, "gate": 1, "warmup": 2}
    return sorted(folders, key=lambda folder: order.get(folder.name, 3))


def read_stage(folder: Path, notes: list[str]) -> Stage:
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).exists():
            notes.append(f"{folder / name} is missing.")
    rows = []
    written = ""
    if (folder / "metrics.jsonl").exists():
        rows = [row for row in read_rows(folder / "metrics.jsonl", notes)
                if is_number(row.get("step"))]
        seconds = (folder / "metrics.jsonl").stat().st_mtime
        written = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    dev = [row for row in all_rows(folder / "dev.jsonl", notes) if is_number(row.get("step"))]
    steps, values = columns(rows, dev)
    stage = Stage(
        f"{folder.resolve().parent.name}/{folder.resolve().name}", folder,
        read_object(folder / "config.json", notes), steps, values,
        audit=last_row(folder / "audit.jsonl", notes),
        refreshes=all_rows(folder / "gate.jsonl", notes),
        best=dev[-1].get("best") if dev else None,
        written=written, finished=(folder / "final").exists())
    read_samples(stage, notes)
    if (folder / "final" / "gate.json").exists():
        stage.gate = read_gate(folder / "final", notes)
    return stage


def all_rows(path: Path, notes: list[str]) -> list[dict]:
    return list(read_rows(path, notes)) if path.exists() else []


def last_row(path: Path, notes: list[str]) -> dict:
    rows = all_rows(path, notes)
    return rows[-1] if rows else {}


def columns(rows: list[dict], dev: list[dict]) -> tuple[list[int], dict[str, list]]:
    """Steps, and the values of every metric at them; None where a step has none. What dev.jsonl
    has stands under dev/."""
    by_step: dict[int, dict] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    for row in dev:
        named = {f"dev/{name}": value for name, value in row.items()
                 if name not in ("step", "problems", "best", "seconds")}
        by_step.setdefault(row["step"], {}).update(named)
    names = dict.fromkeys(name for row in by_step.values() for name in row if name != "step")
    steps = sorted(by_step)
    values = {}
    for name in names:
        column = [by_step[step].get(name) for step in steps]
        if any(is_number(value) for value in column):
            values[name] = [value if is_number(value) else None for value in column]
    return steps, values


def read_samples(stage: Stage, notes: list[str]) -> None:
    """Packs the tuples of every step, and counts what the gate decided."""
    path = stage.folder / "samples.jsonl"
    if not path.exists():
        if "R_out" in stage.values or "J" in stage.values:
            notes.append(f"{path} is missing: no tuples of {stage.name} are shown.")
        return
    count = GateCount()
    groups: dict[str, list[dict]] = {}
    distinct: dict[int, float] = {}
    current = None
    for row in read_rows(path, notes):
        if not is_number(row.get("step")) or "problem_id" not in row:
            continue
        if row["step"] != current and groups:
            stage.tuples.append(pack_step(current, groups))
            distinct[current] = distinct_tuples(groups)
            groups = {}
        current = row["step"]
        tuples = groups.setdefault(clean(str(row["problem_id"]), 200), [])
        if "plan" in row:
            tuples.append(compact_tuple(row))
            count.add(row)
        else:
            tuples.extend(compact_attempts(row))
    if groups:
        stage.tuples.append(pack_step(current, groups))
        distinct[current] = distinct_tuples(groups)
    stage.gate = count.summary()
    column = [distinct.get(step) for step in stage.steps]
    if any(map(is_number, column)):
        stage.values["distinct_tuples"] = column


def distinct_tuples(groups: dict[str, list[dict]]) -> float | None:
    """Of a problem's tuples, the share whose programs, as a set of texts, no tuple before has; mean
    over problems. None where there are no programs, or attempts instead of tuples."""
    shares = []
    for tuples in groups.values():
        sets = [frozenset(branch.get("reply") for branch in t["branches"]) for t in tuples
                if t.get("strategies")]
        if len(sets) > 1 and all(sets):
            shares.append(len(set(sets)) / len(sets))
    return sum(shares) / len(shares) if shares else None


# ----------------------------------------------------------------------------------------------
# Head

def facts(stage: Stage) -> list[tuple[str, str]]:
    """What ran, as names and values."""
    flags = stage.flags
    shown = [("model", flags.get("model")), ("method", method(stage)), ("seed", flags.get("seed")),
             ("problems", flags.get("problems") or flags.get("gold") or flags.get("labels")),
             ("learning rate", flags.get("lr")), ("temperature", flags.get("temperature")),
             ("gate", stage.config.get("gate")), ("commit", commit(stage.config)),
             ("versions", versions(stage.config)), ("GPU", stage.config.get("gpu")),
             ("processes", stage.config.get("processes"))]
    if is_number(stage.best):
        chosen_on = flags.get("dev") or "dev problems"
        shown.append(("best/", f"of step {stage.best}, chosen on {chosen_on}"))
    command = stage.config.get("command")
    if isinstance(command, list):
        shown.append(("command", " ".join(map(str, command))))
    return [(name, str(value)) for name, value in shown if value not in (None, "")]


def method(stage: Stage) -> str:
    flags = stage.flags
    if stage.config.get("stage") == "warmup":
        return "warm-up: the planner alone, paid J"
    if flags.get("method"):
        return f"{flags['method']}, {flags.get('num_attempts')} attempts per problem"
    if flags.get("gold"):
        return "supervised fine-tuning of the planner on gold plans"
    if flags.get("labels"):
        return "the gate, trained on labelled plans"
    if "num_tuples" not in flags:
        return stage.folder.name
    shape = (f"K = {flags.get('num_strategies')}, M = {flags['num_tuples']}, "
             f"P = {flags.get('problems_per_step')}")
    return (f"CPPO, {shape}, solver paid by {flags.get('solver_credit', 'siblings')}, planner by "
            f"{flags.get('planner_credit', 'tuple')}, reward {flags.get('reward')}")


def commit(config: dict) -> str | None:
    if not config.get("commit"):
        return None
    changed = " and uncommitted changes" if config.get("uncommitted_changes") else ""
    return f"{config['commit']}"[:12] + changed


def versions(config: dict) -> str | None:
    held = config.get("versions")
    if not isinstance(held, dict):
        return None
    return ", ".join(f"{name} {version}" for name, version in held.items())


def state(stage: Stage) -> str:
    done = stage.steps[-1] if stage.steps else 0
    planned = stage.flags.get("steps")
    if stage.finished:
        return f"finished after {done} steps"
    if not stage.steps:
        return "no step is logged"
    goal = f" of {planned}" if is_number(planned) else ""
    return f"at step {done}{goal}, last written {stage.written} UTC"


def training_figure(stage: Stage) -> dict | None:
    """How the share of solved tuples (of rivals: problems) moved in training, where no evaluation
    says more. The interval is a bootstrap over steps."""
    values = [value for value in stage.values.get("R_out", []) if value is not None]
    if not values:
        return None
    window = min(WINDOW, max(1, len(values) // 2))
    first, last = values[:window], values[-window:]
    low, high = metrics.bootstrap_interval(last)
    return {"stage": stage.name, "value": sum(last) / window, "low": low, "high": high,
            "first": sum(first) / window, "window": window,
            "audit": stage.audit.get("pass_at_k")}
