"""A run as one HTML file: curves, tuples to browse, the gate, the evaluation.

    python -m paper.report runs/mini                        # runs/mini/report.html
    python -m paper.report runs/mini runs/mini-seed1        # curves of both; in the first's folder
    python -m paper.report runs/mini --watch 60             # again every minute, while it trains

The file opens from disk: it needs no server and no network, and loads nothing. It is at most 2 MB:
every metric stands in it, and as many steps' tuples as fit. What a model wrote is shown as text: it
travels compressed, JavaScript puts it into text nodes alone, and a content security policy lets no
other script run. docs/report.md shows the page.

A run may be half written, or lack any of its files: the page says what is missing, and shows the
rest.
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import json
import math
import re
import statistics
import tempfile
import time
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lib import errors, files, flags, metrics
from lib.errors import UserError
from lib.run import commit
from paper import attempts, report_sources, runs
from paper import report_data as data
from paper.report_data import Stage, Step

LIMIT = 2_000_000           # bytes of the page
POINTS = 2000               # of all curves of a metric together
FEWEST_STEPS = 24           # with tuples, before fewer problems of each step are kept
HERE = Path(__file__).parent
GLOSSARY = HERE.parent / "docs" / "glossary.md"
K = 4                       # of the headline, as in the paper
MOST_PROBLEMS = 1000        # in the matrix of problems
MOST_HEADLINES = 4

# Healthy values as numbers, where docs/glossary.md has numbers; "near" is taken as within 0.05
HEALTHY = {
    "parsed": (0.95, 1), "plan_near_miss": (0, 0.05), "strategy_use": (0, math.log(K)),
    "plan/kl": (0, 0.25), "solve/kl": (0, 0.25), "plan/gap_mean": (0, 0.01),
    "solve/gap_mean": (0, 0.01), "plan/gap_max": (0, 0.5), "solve/gap_max": (0, 0.5),
    "plan/clip_fraction": (0, 0), "solve/clip_fraction": (0, 0), "plan/ratio_max": (1, 1),
    "solve/ratio_max": (1, 1), "skipped": (0, 0), "idle_share": (0, 0.4)}

# of curves that are in no table of the glossary: report_data.distinct_tuples, lib/dev.py
OURS = {
    "distinct_tuples": {
        "formula": "of a problem's M tuples, the share whose set of programs no tuple before has "
                   "(from samples.jsonl)",
        "healthy": "well above 1 / M: where all tuples are one, Eq. 12 compares nothing"},
    "dev/pass_at_k": {
        "formula": "share of dev problems that one tuple solves. The large dot is best/",
        "healthy": "rises"},
    "dev/pass_at_1": {"formula": "share of their programs that pass", "healthy": "rises"},
    "dev/duplicate": {"formula": "share of these tuples with two equal strategies",
                      "healthy": "low"}}

CHARTS = {
    "Dev problems, which no step trains on": (
        "dev/pass_at_k", "dev/pass_at_1", "dev/duplicate", "dev/J"),
    "Reward": ("R_out", "J", "R_plan", "pass_rate", "solved_given_valid", "sparsity"),
    "Do the strategies differ, and does the solver listen?": (
        "strategy_use", "distinct_tuples", "duplicate_judged", "duplicate_literal",
        "valid_judged", "zero_spread_plan", "zero_spread_solve", "advantage_nonzero", "r_mi"),
    "Is the update healthy?": (
        "plan/kl", "solve/kl", "plan/entropy", "solve/entropy", "grad_norm", "plan/gap_mean",
        "solve/gap_mean", "loss", "correct", "val_auc"),
    "Format and length": ("parsed", "plan_near_miss", "plan_tokens", "solve_tokens", "plan_cut",
                          "solve_cut", "several_blocks", "block_cut"),
    "Speed": ("seconds", "seconds_sampling", "seconds_verifying", "seconds_update",
              "tokens_per_second_sampling", "tokens_per_second_training", "idle_share"),
}


# ----------------------------------------------------------------------------------------------
# Curves

def read_glossary() -> dict[str, dict]:
    """metric -> {"formula", "healthy"} as docs/glossary.md has them; {} where it is not there."""
    if not GLOSSARY.exists():
        return {}
    entries = dict(OURS)
    healthy = ""
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        # formulas hold bars of their own: the first cell is the name, the last is the range
        if len(cells) < 3 or not cells[0].startswith("`"):
            continue
        if cells[-1] != "the same":
            healthy = plain(cells[-1])
        formula = plain(" | ".join(cells[1:-1]))
        names = re.findall(r"`([^`]+)`", cells[0])
        parts = formula.split("; ")
        # "the step; sampling; ..." explains as many names, one each
        formulas = parts if len(parts) == len(names) else [formula] * len(names)
        for name, formula in zip(names, formulas, strict=True):
            entries[name] = {"formula": formula, "healthy": healthy}
    return entries


def plain(text: str) -> str:
    return text.replace("\\|", "|").replace("`", "")


def chart_list(stages: list[Stage]) -> list[dict]:
    """Every metric of any stage, in sections; what no section names comes last."""
    glossary = read_glossary()
    present = dict.fromkeys(name for stage in stages for name in stage.values)
    charts = []
    for section, names in CHARTS.items():
        charts += [(section, name) for name in names if name in present]
    named = {name for _, name in charts}
    charts += [("All other metrics", name) for name in present if name not in named]
    return [{"section": section, "metric": name, "band": HEALTHY.get(name),
             **glossary.get(name, glossary.get(name.removeprefix("dev/"), {}))}
            for section, name in charts]


def curves(stage: Stage, most: int) -> dict:
    """Steps and values; where there are more than `most`, every n-th and those of dev
    evaluations."""
    stride = max(1, math.ceil(len(stage.steps) / most))
    dev = stage.values.get("dev/pass_at_k", [None] * len(stage.steps))
    kept = [i for i, value in enumerate(dev) if i % stride == 0 or value is not None]
    values = {name: [column[i] for i in kept] for name, column in stage.values.items()}
    return {"steps": [stage.steps[i] for i in kept], "values": values, "stride": stride}


# ----------------------------------------------------------------------------------------------
# Tuples

def pick_tuples(stage: Stage, statements: dict[str, str], room: int) -> tuple[str, dict]:
    """As many of a stage's tuples as fit into `room` characters, packed for the page, and how many
    that are: steps evenly apart, and of each the first problems."""
    total = len(stage.tuples)
    # what a step takes when it is packed with others, from below: the loop corrects it
    size = 0.5 * statistics.mean(len(step.packed) for step in stage.tuples)
    for share in (1.0, 0.5, 0.25, 0.125):
        count = min(total, int(room / (size * share)))
        if count >= min(total, FEWEST_STEPS):
            break
    while count > 0:
        chosen = [stage.tuples[i] for i in np.linspace(0, total - 1, count).round().astype(int)]
        packed = pack(chosen, share, statements)
        if len(packed) <= room:
            return packed, {"steps": count, "of": total, "share": share}
        count = min(count - 1, int(0.97 * count * room / len(packed)))
    return "", {"steps": 0, "of": total, "share": share}


def pack(steps: list[Step], share: float, statements: dict[str, str]) -> str:
    groups = []
    for step in steps:
        held = step.groups()
        groups += held[:max(1, math.ceil(share * len(held)))]
    used = {group["problem"] for group in groups}
    shown = {name: text for name, text in statements.items() if name in used}
    text = data.without_secrets(as_json({"groups": groups, "statements": shown}))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def read_statements(stage: Stage, file: str | None, notes: list[str]) -> dict[str, str]:
    """Problem id -> statement, from --problems or from the file that the run was given."""
    named = file or stage.flags.get("problems")
    if not stage.tuples:
        return {}
    if not isinstance(named, str) or not Path(named).is_file():
        notes.append(f"The statements of {stage.name} are not shown: its problem file "
                     f"{named or '(none named)'} is not here; name it by --problems.")
        return {}
    statements = {}
    for row in data.read_rows(Path(named), notes):
        if isinstance(row.get("statement"), str):
            statements[data.clean(str(row.get("id")), 200)] = data.clean(row["statement"])
    return statements


# ----------------------------------------------------------------------------------------------
# Evaluation

def read_evaluations(folders: list[Path], notes: list[str]) -> runs.Runs:
    """Every attempts file that can be read, as paper/tables.py takes them."""
    found: dict[tuple, list] = {}
    for folder in folders:
        for path in attempts.paths(folder):
            try:
                evaluation = attempts.load(path)
                key = runs.key_of(folder, evaluation)
            except (ValueError, LookupError, OSError, TypeError, RecursionError) as error:
                notes.append(f"{path} is left out: {error or type(error).__name__}.")
                continue
            evaluation.problems = dict(sorted(evaluation.problems.items()))
            found.setdefault(key, []).append(evaluation)
    return runs.Runs(found)


def evaluation_rows(held: runs.Runs, notes: list[str]) -> list[dict]:
    """A row per model, benchmark and system: pass@K with its interval, and what it cost."""
    names = {system: name for name, system in (runs.VARIANTS | runs.SYSTEMS).items()}
    for name, system in runs.SYSTEMS.items():
        for reading, method in runs.READINGS.items():
            if system.endswith("/tuple"):
                names[system.replace("/tuple", f"/{method}")] = f"{name}, {reading}"
    rows = []
    for (model, benchmark, system), seeds in held.evaluations.items():
        try:
            row = {"model": model, "benchmark": benchmark, "method": names.get(system, system),
                   "seeds": len(seeds)} | measured(held, seeds)
        except (ValueError, LookupError, TypeError) as error:
            notes.append(f"{seeds[0].path} is left out: {error or type(error).__name__}.")
            continue
        rows.append(row)
    return sorted(rows, key=lambda row: (row["model"], row["benchmark"], -row["value"]))


def measured(held: runs.Runs, seeds: list[attempts.Evaluation]) -> dict:
    """Numbers of one row, each by the function that paper/tables.py uses."""
    most = min(seed.made for seed in seeds)
    row = {}
    for k in (1, 2, 4, 8, 16):
        if k <= most:
            row[f"pass@{k}"] = runs.cell(seeds, held.passing(k))
    k = min(K, most)
    outcomes = runs.values(seeds, held.passing(k))
    low, high = metrics.bootstrap_interval(outcomes)
    planner, solver = np.mean([attempts.decoded(seed, k) for seed in seeds], axis=0)
    row |= {"planner tokens": planner, "solver tokens": solver}
    row |= attempts.tuple_scores(seeds[0])
    return row | {"k": k, "value": outcomes.mean(), "low": low, "high": high,
                  "outcomes": dict(zip(seeds[0].problems, outcomes.mean(axis=0), strict=True))}


def evaluation_part(folders: list[Path], notes: list[str]) -> dict:
    held = read_evaluations(folders, notes)
    rows = evaluation_rows(held, notes)
    problems = list(dict.fromkeys(name for row in rows for name in row["outcomes"]))
    if len(problems) > MOST_PROBLEMS:
        notes.append(f"The matrix shows the first {MOST_PROBLEMS} of {len(problems)} problems.")
    problems = problems[:MOST_PROBLEMS]
    for row in rows:
        row["matrix"] = "".join(digit(row["outcomes"].get(name)) for name in problems)
        del row["outcomes"]
    ceilings = {}
    for place in held.places(of_programs=False):
        known = held.ceilings(place, K)
        ceilings[f"{place.model} {place.benchmark}"] = {
            name.removeprefix("ceiling: "): value for name, value in known.items()
            if value is not None}
    return {"rows": [{name: as_number(value) for name, value in row.items()} for row in rows],
            "problems": problems, "ceilings": ceilings}


def digit(value: float | None) -> str:
    """A cell of the matrix: 0 to 9 for a share, - for a problem that was not attempted."""
    return "-" if value is None else str(min(9, int(10 * value)))


def as_number(value):
    return float(value) if isinstance(value, np.floating) else value


# ----------------------------------------------------------------------------------------------
# The page

def headlines(stages: list[Stage], evaluation: dict) -> list[dict]:
    """The figures at the top: pass@K of each run's CPPO, or else best method, where it was
    evaluated; else what the training of each stage says."""
    figures = []
    places = dict.fromkeys((row["model"], row["benchmark"]) for row in evaluation["rows"])
    for model, benchmark in places:
        rows = [row for row in evaluation["rows"]
                if (row["model"], row["benchmark"]) == (model, benchmark)]
        best = next((row for row in rows if row["method"] == "CPPO"), rows[0])
        figures.append({
            "evaluated": best["method"], "where": f"{model}, {benchmark}", "k": best["k"],
            "value": best["value"], "low": best["low"], "high": best["high"],
            "ceilings": evaluation["ceilings"].get(f"{model} {benchmark}", {}),
            "others": [[row["method"], row["value"]] for row in rows if row is not best][:3]})
    if not figures:
        trained = map(data.training_figure, stages)
        figures = [figure for figure in trained if figure]
    return figures[:MOST_HEADLINES]


def describe(stage: Stage, most: int) -> dict:
    """A stage without its tuples, as the page takes it."""
    return {"name": stage.name, "state": data.state(stage), "facts": data.facts(stage),
            "warnings": data.as_list(stage.config.get("warnings")), "audit": stage.audit,
            "refreshes": stage.refreshes, "best": stage.best, "gate": stage.gate,
            **curves(stage, most)}


def build(given: list[Path], problems: str | None = None, limit: int = LIMIT) -> str:
    """The page of one run or of several. UserError where there is nothing to show."""
    with tempfile.TemporaryDirectory() as space:
        folders = [folder_of(run, Path(space) / str(i)) for i, run in enumerate(given)]
        notes: list[str] = []
        stages = read_stages(folders, notes)
        evaluation = evaluation_part(folders, notes)
        if not stages and not evaluation["rows"]:
            raise UserError(f"{', '.join(map(str, given))}: no stage with metrics.jsonl and no "
                            f"eval/*.jsonl: give a folder that a training script has written")
        page = {"title": ", ".join(folder.resolve().name for folder in folders),
                "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "commit": commit()[:12],
                "charts": chart_list(stages),
                "stages": [describe(stage, max(100, POINTS // len(stages))) for stage in stages],
                "sources": report_sources.sources(stages, notes),
                "evaluation": evaluation, "headlines": headlines(stages, evaluation)}
        blobs = add_tuples(page, stages, problems, limit, notes)
        inside = re.compile(rf"{re.escape(space)}/\d+/")        # an archive's files by their names
        page["notes"] = [inside.sub("", note) for note in dict.fromkeys(notes)]
        return fill(page, blobs)


def folder_of(run: Path, space: Path) -> Path:
    """The run's folder; of an archive (RUN.zip, as in results/) what is in it, under `space`."""
    if run.suffix == ".zip" and run.is_file():
        try:
            with zipfile.ZipFile(run) as archive:
                archive.extractall(space / run.stem)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{run} cannot be unpacked ({error})") from None
        return space / run.stem
    if not run.is_dir():
        raise UserError(f"{run} is no folder and no archive: give a run, as in runs/NAME")
    return run


def read_stages(folders: list[Path], notes: list[str]) -> list[Stage]:
    stages = []
    for folder in folders:
        found = data.stage_folders(folder)
        if not found and not attempts.paths(folder):
            notes.append(f"{folder} holds nothing that a training script or evaluate.py writes.")
        stages += [data.read_stage(stage, notes) for stage in found]
    names = Counter(stage.name for stage in stages)
    for stage in stages:
        if names[stage.name] > 1:
            stage.name = str(stage.folder)          # runs of one name under two roots
    return stages


def add_tuples(page: dict, stages: list[Stage], problems: str | None, limit: int,
               notes: list[str]) -> dict[str, str]:
    """Stage name -> its tuples, packed, as many as fit beside the page; says how many on it."""
    sampled = [stage for stage in stages if stage.tuples]
    if not sampled:
        notes.append("No samples.jsonl with tuples: there is nothing to browse.")
    # the tuples get what the rest leaves, and the notes to come may need a little
    room = limit - len(fill(page | {"notes": notes}, {})) - 20_000
    blobs = {}
    for stage in sampled:
        statements = read_statements(stage, problems, notes)
        packed, kept = pick_tuples(stage, statements, max(0, room // len(sampled)))
        blobs[stage.name] = packed
        page["stages"][stages.index(stage)]["kept"] = kept
    return blobs


def fill(page: dict, blobs: dict[str, str]) -> str:
    """The template with style, script and data. The policy names the script and the style by their
    hashes, so that nothing else runs."""
    script = (HERE / "report_page.js").read_text(encoding="utf-8")
    style = (HERE / "report_page.css").read_text(encoding="utf-8")
    text = (HERE / "report_page.html").read_text(encoding="utf-8")
    parts = {"SCRIPT-HASH": digest(script), "STYLE-HASH": digest(style), "SCRIPT": script,
             "STYLE": style, "TUPLES": embed(as_json(blobs)),
             "PAGE": embed(data.without_secrets(as_json(data.clean_all(page))))}
    # one pass: what a value holds is not looked into again
    return re.sub(r"\{\{([A-Z-]+)\}\}", lambda match: parts[match[1]], text)


def as_json(value) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def embed(text: str) -> str:
    """JSON that no HTML parser takes for the end of its element, or for a comment."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ----------------------------------------------------------------------------------------------
# The script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser(__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="a run's folder, as in runs/NAME, one of its stages, or an archive "
                             "of one (RUN.zip)")
    parser.add_argument("--problems", metavar="FILE",
                        help="problems, for their statements; by default the file that the run "
                             "was trained on")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="where the page goes; by default report.html in the first RUN, or "
                             "beside it if that is an archive")
    parser.add_argument("--watch", type=flags.above_zero, metavar="SECONDS",
                        help="write it again after so many seconds, while the run trains, until "
                             "^C")
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    page = build(args.runs, args.problems)
    first = args.runs[0]
    beside = first.with_suffix(".html") if first.suffix == ".zip" else first / "report.html"
    out = args.out or beside
    with errors.user_input():
        files.write_file(out, page)
    print(f"{out}: {len(page.encode()) / 1e6:.2f} MB", flush=True)


def watch(args: argparse.Namespace) -> None:
    """Writes the page again and again. A run that has not logged its first step is waited for."""
    while True:
        try:
            write(args)
        except UserError as error:
            print(f"waiting: {error}", flush=True)
        time.sleep(args.watch)


@errors.one_line()
def main(args: argparse.Namespace) -> None:
    if not args.watch:
        write(args)
        return
    with contextlib.suppress(KeyboardInterrupt):
        watch(args)


if __name__ == "__main__":
    main(parse_args())
