"""docs/results.md and results/, from what the queue of reproduce.py has made so far.

The attempts of a seed go into one archive, results/NAME-seedN.zip; what the queue and the sweep of
learning rates did goes into results/NAME.json. The page is made from these alone, on any machine:
the paper's tables by paper/tables.py, our own by results.py, what they say by sentences.py. Three
figures read the logs of the runs; without those the pictures stay as they are. What stands in
docs/results.md below the line MARK was written by hand and stays there.
"""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

from lib import files
from lib.errors import UserError
from miniature import results, sentences, world
from miniature.results import PAPER_MODEL, K
from paper import attempts, tables
from paper.runs import CEILINGS, SYSTEMS, Runs, find

PAGE = Path("docs/results.md")
MARK = "<!-- what follows was written by hand -->"
TITLES = {
    8: "pass@4 of every method (Tables 1, 5, 8, 19)", 4: "decoded tokens (Tables 4, 18)",
    6: "ablations and budgets", 7: "majority votes", 14: "diversity",
    15: "joint and iid inference", 16: "their diversity", 17: "where the gain comes from",
    20: "budgets K", 12: "side by side"}
FIGURES = {
    "2": "pass@K over K (Figures 2, 5, 6)", "3": "the gate", "4": "gain against diversity",
    "7": "pass@K as bars", "8": "PKPO's training", "9": "UpSkill's training",
    "cost": "pass@K against its cost"}
FROM_LOGS = "389"       # figures that read the logs of training, which no archive holds
READING = f"""\
pass@K is averaged over the posterior of each statement; brackets are 95 % bootstrap intervals over
problems, ± is the standard deviation over runs, which share a base model and a machine: runs from
other bases spread more ([notes](notes.md)). The ceilings: constant, programs that never read the
statement; independent, draws from one distribution; coordinated, different programs. (paper): its
numbers for {PAPER_MODEL} (Table 4: 4B) on real benchmarks, of which only the direction can be
compared.""".replace("\n", " ")


# --------------------------------------------------------------------------------------------------
# Archives

def write_archive(archive: Path, members: dict[str, bytes]) -> None:
    """A zip of files by the name that they have inside. Equal members give equal bytes: names are
    sorted, and every file has zip's earliest date."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    # sorted and undated, so that a commit that changes no attempt changes no archive
    with zipfile.ZipFile(archive, "w") as file:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name)           # 1980-01-01
            entry.external_attr = 0o644 << 16
            file.writestr(entry, members[name], zipfile.ZIP_DEFLATED, 9)


def pack_run(run: Path, archive: Path) -> None:
    """All attempts of a run, each with its card and what paper/diversity.py found, under the names
    STAGE/eval/NAME.jsonl, .json and .diversity.json."""
    members = {}
    for attempts_file in sorted(run.rglob("eval/*.jsonl")):
        for ending in (".jsonl", ".json", ".diversity.json"):
            path = attempts_file.with_suffix(ending)
            if path.exists():
                members[path.relative_to(run).as_posix()] = path.read_bytes()
    if members:
        write_archive(archive, members)


def pack(name: str, folder: Path) -> list[Path]:
    """Pack runs/NAME-seedN, one archive each. Returns the archives of NAME in the folder."""
    for run in sorted(Path("runs").glob(f"{name}-seed*")):
        pack_run(run, folder / f"{run.name}.zip")
    return sorted(folder.glob(f"{name}-seed*.zip"))


# --------------------------------------------------------------------------------------------------
# The sweep of learning rates

def dev_pass(path: Path) -> float:
    """pass@4 on the dev problems."""
    evaluation = attempts.load(path)
    return float(attempts.outcomes(evaluation, K, score=attempts.posterior).mean())


def swept_rates(name: str, stage: str) -> dict[str, float]:
    """pass@4 on the dev problems by learning rate."""
    rates = {}
    for path in Path("runs").glob(f"{name}-lr*/dev/{stage}.jsonl"):
        run = path.parent.parent
        rates[run.name.removeprefix(f"{name}-lr")] = dev_pass(path)
    return rates


def best_lr(name: str, stage: str) -> str:
    """The learning rate with the highest pass@4 on the dev problems, the lowest of equal ones."""
    rates = swept_rates(name, stage)
    return min(rates, key=lambda lr: (-rates[lr], float(lr)))


def spent(folder: Path) -> dict:
    """What a training run cost."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
    branches = 0
    for line in (folder / "samples.jsonl").open(encoding="utf-8"):
        branches += len(json.loads(line)["branches"])
    tokens = sum(step["tokens_sampled"] for step in steps)
    return {"steps": len(steps), "solver attempts": f"{branches:,}",
            "decoded tokens": f"{tokens:,}"}


def sweep_table(name: str) -> list[dict]:
    """Every trained method at every learning rate: its cost, and its pass@4 on the dev problems."""
    lines, ceilings = [], {}
    stages = sorted({path.stem for path in Path("runs").glob(f"{name}-lr*/dev/*.jsonl")})
    for stage in stages:
        best = best_lr(name, stage)
        for lr, reached in sorted(swept_rates(name, stage).items()):
            run = Path(f"runs/{name}-lr{lr}")
            cost = spent(run / stage)
            lines.append({"method": stage, "learning rate": lr} | cost |
                         {"dev pass@4": f"{reached:.3f}", "taken": "*" if lr == best else None})
            ceilings = attempts.load(run / "dev" / f"{stage}.jsonl").card["ceilings"][str(K)]
    warmup = Path(f"runs/{name}-seed0/warmup")
    if lines and warmup.exists():
        lines.append({"method": "warm-up, before cppo"} | spent(warmup))
    for kind, value in ceilings.items():
        lines.append({"method": f"ceiling: {kind}", "dev pass@4": f"{value:.3f}"})
    return lines


def sweep_note(lines: list[dict]) -> str:
    """Which methods might do better still beyond the rates that they were tried at."""
    swept = [line for line in lines if "learning rate" in line]
    at_edge = []
    for line in swept:
        rates = [float(other["learning rate"]) for other in swept
                 if other["method"] == line["method"]]
        if line["taken"] and float(line["learning rate"]) in (min(rates), max(rates)):
            at_edge.append(line["method"])
    note = ("CPPO alone had gold tuples, gate labels and a warm-up before; the rivals start from "
            "the base.")
    if at_edge:
        note += (f" Best at an edge of what was tried, so that other rates might be better still: "
                 f"{', '.join(at_edge)}.")
    return note


# --------------------------------------------------------------------------------------------------
# The page

def table_section(title: str, source: str, text: str, note: str) -> str:
    """source: one line that says where the numbers come from."""
    section = f"### {title}\n\n{source}\n\n```\n{text}\n```\n"
    return section + (f"\n{note}\n" if note else "")


def figure_section(number: str, name: str, runs: Runs, archives: list[Path], out: Path) -> str:
    folders = [str(Path("runs") / path.stem) for path in archives]
    from_logs = number in FROM_LOGS
    shown_runs = f"runs/{name}-seed*" if from_logs else f"results/{name}-seed*.zip"
    remark = " (of logs, which results/ does not hold)" if from_logs else ""
    picture = out / "results" / f"figure-{number}.png"
    shown = f"![](../results/{picture.name})"
    try:
        from paper import figures  # matplotlib is optional
        figures.draw(number, runs, folders, str(picture))
    except (ImportError, UserError) as error:
        if not picture.exists():        # else it is of the runs that were here
            shown = f"- ({error})"
    return (f"### Figure {number}: {FIGURES[number]}\n\n"
            f"`python -m paper.tables figure {number} {shown_runs}`{remark}\n\n{shown}\n")


def paper_table_section(number: int, runs: Runs, shown_runs: str, commits: str,
                        ceilings: str) -> str:
    paper_model = PAPER_MODEL.replace("2B", "4B") if number == 4 else PAPER_MODEL
    try:
        text = tables.table_text(number, replace(runs, paper_model=paper_model))
    except UserError as error:
        text = f"- ({error})"
    flags = [] if number == 12 else ["--paper-model", paper_model]
    command = " ".join(["python -m paper.tables table", str(number), shown_runs, *flags])
    note = ceilings_note(text, ceilings)
    return table_section(f"Table {number}: {TITLES[number]}",
                         f"Attempts of commit {commits}: `{command}`", text, note)


def ceilings_note(text: str, ceilings: str) -> str:
    """The ceilings, below a table that shows pass@K without them."""
    has_ceilings = all(name in text for name in CEILINGS)
    return "" if has_ceilings or "pass@" not in text else ceilings


def record(name: str, folder: Path, done: list[dict], missing: list[str]) -> dict:
    """What no archive of attempts holds: how far the queue got, its CPU hours, and the sweep.
    Written to NAME.json where there are runs, read from there where there are none."""
    path = folder / f"{name}.json"
    if done:
        hours = sum(mark["cpu_seconds"] for mark in done) / 3600
        skipped = sum(mark.get("skipped", False) for mark in done)
        kept = {"done": len(done) - skipped, "jobs": len(done) - skipped + len(missing),
                "missing": missing, "cpu_hours": round(hours, 1), "sweep": sweep_table(name)}
        files.write_file(path, json.dumps(kept, indent=1) + "\n")
    if not path.exists():
        raise UserError(f"neither runs/{name}-queue nor {path} is there: run the queue first")
    return json.loads(path.read_text(encoding="utf-8"))


def page_text(name: str, out: Path, archives: list[Path], kept: dict) -> str:
    """The page above MARK. kept: `record`."""
    runs = find(archives, paper_model=PAPER_MODEL)
    evaluations = [evaluation for seeds in runs.evaluations.values() for evaluation in seeds]
    commits = ", ".join(sorted({e.card.get("commit", "unknown")[:10] for e in evaluations}))
    ours = results.Results(runs)
    shown_runs = f"results/{name}-seed*.zip"
    ceilings, *facts = sentences.summary(ours)
    made = (f"Written by `bash miniature/reproduce.sh`: {len(archives)} run(s), {len(ours.names)} "
            f"held-out problems, {kept['done']} of {kept['jobs']} jobs, {kept['cpu_hours']} CPU "
            f"hours. `bash miniature/reproduce.sh --report` writes this page again from results/. "
            f"{READING}\n")
    parts = ["# Results of the miniature world\n",
             f"**{' '.join([ceilings, *facts[:1]])}**\n",
             *(f"- {fact}" for fact in facts[1:]), "", made]
    absent = [row for row in SYSTEMS if not ours.seeds(row)]
    if absent:
        parts.append(f"Not measured yet: {'; '.join(absent)}.\n")
    if kept["missing"]:
        parts.append(f"NOT DONE: {', '.join(kept['missing'])}.\n")
    source = f"Attempts of commit {commits}: `python -m miniature.results {shown_runs}`"
    for title, text, note in results.blocks(ours):
        note = f"{note} {ceilings_note(text, ceilings)}".strip()
        parts.append(table_section(title, source, text, note))
    if kept["sweep"]:
        source = f"results/{name}.json, attempts of commit {commits}"
        parts.append(table_section("The sweep of learning rates, on seed 0", source,
                                   attempts.render(kept["sweep"]), sweep_note(kept["sweep"])))
    parts.append("## Where the small world differs from the paper, and why\n")
    parts += [f"**{title}.** {text}\n" for title, text in sentences.reasons(ours)]
    parts.append("## The paper's tables\n")
    for number in TITLES:
        parts.append(paper_table_section(number, runs, shown_runs, commits, ceilings))
    parts.append("Table 13 needs annotators.\n\n## The paper's figures\n")
    for number in FIGURES:
        parts.append(figure_section(number, name, runs, archives, out))
    return "\n".join(parts)


def write_setting(name: str, setting: str, out: Path, missing: list[str]) -> Path:
    """results/NAME.md: one table of a further setting, with its ceilings."""
    archives = pack(name, out / "results")
    if not archives:
        raise UserError(f"neither runs/{name}-seed* nor {out / 'results'} hold attempts yet: run "
                        f"the queue first")
    ours = results.Results(find(archives), setting)
    best = world.ceilings("heldout", K, setting)
    said = "; ".join(f"{kind} {value:.3f}" for kind, value in best.items())
    table = attempts.render(results.methods_table(ours))
    lines = [f"# The small world in the setting `{setting}`\n",
             f"{world.SETTINGS[setting]}, world {world.fingerprint(setting)}.\n",
             f"Best possible: {said}. (Pass@{K}, where no K is named.)\n", f"```\n{table}\n```\n",
             f"{results.TABLES['Every method'][1]}\n",
             f"Written by `bash miniature/reproduce.sh --setting {setting}`."]
    if missing:
        lines.append(f"\nNOT DONE: {', '.join(missing)}.")
    page = out / "results" / f"{name}.md"
    files.write_file(page, "\n".join(lines) + "\n")
    return page


def write_report(name: str, out: Path, done: list[dict], missing: list[str]) -> Path:
    """docs/results.md and results/ under `out`, from what there is. done: the queue's marks of
    finished jobs; missing: the names of the others."""
    archives = pack(name, out / "results")
    if not archives:
        raise UserError(f"neither runs/{name}-seed* nor {out / 'results'} hold attempts yet: run "
                        f"the queue first")
    text = page_text(name, out, archives, record(name, out / "results", done, missing))
    page = out / PAGE
    # what a person has written below the mark outlives every report
    by_hand = page.read_text(encoding="utf-8").partition(MARK)[2] if page.exists() else "\n"
    files.write_file(page, f"{text}\n{MARK}{by_hand}")
    return page
