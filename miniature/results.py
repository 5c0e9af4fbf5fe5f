"""RESULTS.md and results/ of the paper in miniature, from what reproduce.py's queue has made so far.

Attempts go to results/, one archive for each seed, which is all that tables are made from: the paper's by tables.py, and three of our own, every
method beside CPPO, its ceilings and the paper; the paper's other comparisons; the gap to the coordinated ceiling in its three
parts. The sentences at the top say what those tables say. What stands in RESULTS.md below the line MARK was written by hand and
stays there.

    python -m miniature.results runs/miniature-seed{0,1,2}      # our own tables, for any runs in the world
"""

import argparse
import contextlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import errors, metrics
from lib.problems import outcome_hash
from miniature import world
from paper import attempts, tables
from paper import numbers as paper
from paper.attempts import Evaluation

K = 4
PAPER_MODEL, PAPER_BENCHMARKS = "Qwen3.5-2B", ("APPS", "CodeContests", "LCBv6")
IID = {"Tuple Planner SFT, iid": "sft/tuple-iid", "CPPO, iid": "cppo/tuple-iid"}
IDENTICAL = ("Direct Solve", "Plan-and-Solve", "Sketch-then-Solve", "Self-Consistency", "GRPO", "Pass@K Training", "PKPO", *IID)
SYSTEMS = tables.SYSTEMS | tables.VARIANTS | IID
PLACES = {"first": "0.518 ±0.048", "last": "0.514 ±0.049", "random": "0.516 ±0.048"}      # the paper's (Appendix G)
MARK = "<!-- what follows was written by hand -->"


def best_lr(name: str, stage: str) -> str:
    """The learning rate of the sweep with the highest pass@4 on the dev problems, the lowest of equal ones."""
    found = {path.parent.parent.name.removeprefix(f"{name}-lr"): dev_pass(path)
             for path in Path("runs").glob(f"{name}-lr*/dev/{stage}.jsonl")}
    return min(found, key=lambda lr: (-found[lr], float(lr)))


def dev_pass(path: Path) -> float:
    return float(attempts.outcomes(attempts.load(path), K, score=attempts.posterior).mean())


def write_archive(archive: Path, members: dict[str, bytes]) -> None:
    """A zip of files by the name that they have inside. Equal members give equal bytes: names are sorted and every file
    has zip's earliest date."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name)           # 1980-01-01
            entry.external_attr = 0o644 << 16
            file.writestr(entry, members[name], zipfile.ZIP_DEFLATED, 9)


def pack_run(run: Path, archive: Path) -> None:
    """All attempts of a run, each with its card and what diversity.py found, as STAGE/eval/NAME.jsonl and so on."""
    members = {}
    for attempts_file in sorted(run.rglob("eval/*.jsonl")):
        for ending in (".jsonl", ".json", ".diversity.json"):
            path = attempts_file.with_suffix(ending)
            if path.exists():
                members[path.relative_to(run).as_posix()] = path.read_bytes()
    if members:
        write_archive(archive, members)


def pack(name: str, out: Path) -> list[Path]:
    """Pack runs/NAME-seedN, one archive each -> the archives in `out`."""
    for run in sorted(Path("runs").glob(f"{name}-seed*")):
        pack_run(run, out / f"{run.name}.zip")
    return sorted(out.glob(f"{name}-seed*.zip"))


def said(argv: list[str]) -> str:
    """What `python -m paper.tables ...` prints, an error included."""
    text = io.StringIO()
    args = tables.parse_args(argv)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        tables.main(args)
    return re.sub("^error: (.*)", r"- (\1)", text.getvalue().rstrip())


# ------------------------------------------------------------------------------------------ comparisons

Figures = Callable[[Evaluation], Iterable[tuple[str, float]]]       # (problem id, figure of it or of one of its tuples)


def passing(k: int = K, rule: str = "first") -> Figures:
    return lambda evaluation: zip(evaluation.problems, attempts.outcomes(evaluation, k, rule, attempts.posterior), strict=True)


def repeats(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """By the world's rule, never by the gate's."""
    for group in attempts.tuples(evaluation):
        strategies = [a["strategy"] for a in group if a["strategy"]]
        yield group[0]["problem_id"], float(world.duplicates("", strategies) > 0)


def surface(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    for group in attempts.tuples(evaluation):
        texts = attempts.texts(evaluation, group)
        if len(texts) > 1:
            yield group[0]["problem_id"], metrics.d_surf(texts)


def recorded(name: str) -> Figures:
    """D_alg or D_sem, as diversity.py wrote it."""
    return lambda evaluation: ((group["problem_id"], group[name]) for group in (evaluation.diversity or {}).get("groups", [])
                               if name in group)


def printed(table: dict, row: str, column: str) -> float | None:
    text = table.get((row, PAPER_MODEL), {}).get(column)
    return float(text.split()[0]) if text else None


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


@dataclass
class Compared:
    """a less b: the paper's difference, and ours over problems with seeds averaged."""
    of: str
    a: str
    b: str
    paper: float | None
    here: metrics.Comparison

    @property
    def agrees(self) -> str | None:
        """Which way it goes, as far as the 95 % interval tells."""
        if self.paper is None:
            return None
        return "open" if self.here.low <= 0 <= self.here.high else "yes" if self.here.gain * self.paper > 0 else "NO"

    def __str__(self) -> str:
        return f"{self.of}, {self.a} less {self.b} ({self.here.gain:+.3f}, the paper {self.paper:+.3f})"


def signed(found: metrics.Comparison) -> str:
    return f"{found.gain:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


class Report:
    """Tables of our own, from the same evaluations as the paper's tables."""

    def __init__(self, runs: tables.Runs):
        self.runs = runs
        self.model, self.benchmark, _ = next(runs.places())
        self.known = {problem.id: problem for problem in world.problems("heldout")}
        self.names = list(next(iter(runs.found.values()))[0].problems)
        if strange := set(self.names) - self.known.keys():
            raise ValueError(f"{min(strange)} is no held-out problem of the miniature world")
        posteriors = [list(self.known[name].classes.values()) for name in self.names]
        self.independent = np.array([metrics.independent_ceiling(p, K) for p in posteriors])
        self.coordinated = np.array([metrics.coordinated_ceiling(p, K) for p in posteriors])
        self.constant = self.runs.ceiling(self.model, self.benchmark, K, "constant")
        self.compared = [found for wanted in self.wanted() if (found := self.compare(*wanted))]

    def seeds(self, row: str) -> list[Evaluation]:
        return self.runs.get(self.model, self.benchmark, SYSTEMS.get(row, row), K)

    def figures(self, row: str, of: Figures) -> dict[str, float]:
        """By problem, the mean over tuples and seeds."""
        found: dict[str, list[float]] = {}
        for evaluation in self.seeds(row):
            for name, figure in of(evaluation):
                found.setdefault(name, []).append(figure)
        return {name: float(np.mean(figures)) for name, figures in found.items()}

    def passed(self, row: str) -> np.ndarray | None:
        """(problems,): pass@4, or None if nobody evaluated it."""
        found = self.figures(row, passing())
        return np.array([found[name] for name in self.names]) if found else None

    def wanted(self) -> Iterator[tuple]:
        """What is compared: (of, a, b, the paper's difference, figures)."""
        for row in (row for row in tables.SYSTEMS if not row.startswith("CPPO")):
            theirs = [minus(printed(paper.MAIN, "CPPO", c), printed(paper.MAIN, row, c)) for c in PAPER_BENCHMARKS]
            yield "pass@4", "CPPO", row, None if None in theirs else float(np.mean(theirs)), passing()
        full, gateless = "CPPO (J R_out)", "without J (R_out)"
        for a, b in ((full, gateless), (full, "J alone"), (full, "M = 4"), ("M = 4", "M = 2"), ("M = 2", "M = 1")):
            yield "pass@4", a, b, minus(*(printed(paper.ABLATION, row, "pass@4") for row in (a, b))), passing()
        yield "tuples with a repeat", full, gateless, minus(
            *(printed(paper.ABLATION, row, "duplicates") for row in (full, gateless))), repeats
        for row in ("Tuple Planner SFT", "CPPO"):
            yield "pass@4", row, f"{row}, iid", printed(paper.INFERENCE, row, "difference"), passing()
            yield "D_alg", row, f"{row}, iid", printed(paper.INFERENCE_DIVERSITY, row, "difference"), recorded("D_alg")
        for name, of in (("D_surf", surface), ("D_sem", recorded("D_sem")), ("D_alg", recorded("D_alg"))):
            for row in ("Tuple Planner SFT", "PKPO", "Direct Solve"):
                theirs = minus(*(printed(paper.DIVERSITY, r, name) for r in ("CPPO", row)))
                yield name, "CPPO", row, theirs, of

    def compare(self, of: str, a: str, b: str, theirs: float | None, figures: Figures) -> Compared | None:
        ours, rival = self.figures(a, figures), self.figures(b, figures)
        both = [name for name in ours if name in rival]
        if not both:
            return None
        here = metrics.paired_bootstrap([ours[name] for name in both], [rival[name] for name in both])
        return Compared(of, a, b, theirs, here)

    def standing(self, row: str) -> tuple[float, float]:
        """Mean of pass@4 less the independent ceiling, and the same in standard errors over problems."""
        above = self.passed(row) - self.independent
        return above.mean(), above.mean() / (above.std(ddof=1) / len(above) ** 0.5)

    # ---- what the top of RESULTS.md says

    def summary(self) -> list[str]:
        lines = [f"Best possible pass@{K}: constant {self.constant:.3f}, independent {self.independent.mean():.3f}, "
                 f"coordinated {self.coordinated.mean():.3f}."]
        cppo = self.passed("CPPO")
        if cppo is not None:
            each = ", ".join(f"{attempts.outcomes(e, K, score=attempts.posterior).mean():.3f}" for e in self.seeds("CPPO"))
            lines.append(f"CPPO reaches {cppo.mean():.3f} (by seed {each}).")
            for name, limit in (("independent ceiling", self.independent),
                                ("best constant tuple", np.full_like(cppo, self.constant))):
                found = metrics.paired_bootstrap(cppo, limit)
                where = "above" if found.low > 0 else "NOT above" if found.gain <= 0 else "above, but not surely,"
                lines.append(f"CPPO is {where} the {name}: {signed(found)}, p = {found.p:.3f}.")
        rivals = [c for c in self.compared if (c.of, c.a) == ("pass@4", "CPPO") and c.b in tables.SYSTEMS]
        if rivals:
            near = min(rivals, key=lambda c: c.here.gain)
            lines.append(f"The strongest rival is {near.b}: CPPO less it {signed(near.here)}, p = {near.here.p:.3f}.")
        there = {row: self.standing(row) for row in IDENTICAL if self.seeds(row)}
        above = [row for row, (_, errors) in there.items() if errors > 2]
        if there:
            row = max(there, key=lambda row: there[row][1])
            lines.append(f"Of {len(there)} identically distributed methods "
                         + (f"{', '.join(above)} STAND ABOVE" if above else "none stands above")
                         + f" the independent ceiling beyond two standard errors; the highest is {row}, {there[row][0]:+.3f}, "
                         f"{there[row][1]:+.1f} standard errors.")
        told = {word: [str(c) for c in self.compared if c.agrees == word] for word in ("yes", "NO", "open")}
        lines.append(f"Of the paper's {sum(map(len, told.values()))} comparisons that were made, {len(told['yes'])} go its way.")
        lines += [f"The other way: {'; '.join(told['NO'])}."] if told["NO"] else []
        lines += [f"Open, their intervals hold 0: {'; '.join(told['open'])}."] if told["open"] else []
        return lines

    def methods(self) -> list[dict]:
        """Every method: pass@4, beside the independent ceiling, beside CPPO, and the paper's difference."""
        beside = {c.b: c for c in self.compared if (c.of, c.a) == ("pass@4", "CPPO")}
        lines = []
        for row in (*tables.SYSTEMS, *IID):
            if self.seeds(row):
                line = {"method": row, "pass@4": self.runs.pass_cell(self.model, self.benchmark, SYSTEMS[row], K),
                        "less the independent ceiling": "{:+.3f}, {:+.1f} se".format(*self.standing(row))}
                if row in beside:
                    line |= {"CPPO less it": signed(beside[row].here), "paper": beside[row].paper,
                             "as in the paper": beside[row].agrees}
                lines.append(line)
        best = {"constant": self.constant, "independent": self.independent.mean(), "coordinated": self.coordinated.mean()}
        lines += [{"method": f"ceiling: {name}", "pass@4": f"{value:.3f}"} for name, value in best.items()]
        return [{name: f"{v:+.3f}" if name == "paper" and v is not None else v for name, v in line.items()} for line in lines]

    def others(self) -> list[dict]:
        rest = [c for c in self.compared if (c.of, c.a) != ("pass@4", "CPPO") or c.b in IID]
        return [{"of": c.of, "difference": f"{c.a} less {c.b}", "here": signed(c.here),
                 "paper": None if c.paper is None else f"{c.paper:+.3f}", "as in the paper": c.agrees} for c in rest]

    def places(self) -> list[dict]:
        """Appendix G: does it matter which two of a tuple's four attempts count?"""
        rules = {rule: self.figures("CPPO", passing(2, rule)) for rule in ("first", "last", "random")}
        lines = []
        for rule, found in rules.items() if rules["first"] else ():
            less = metrics.paired_bootstrap(list(found.values()), list(rules["first"].values()))
            lines.append({"CPPO, pass@2": f"{rule} 2 of 4", "here": f"{np.mean(list(found.values())):.3f}",
                          "less first": signed(less), "paper": PLACES[rule]})
        best = self.runs.ceilings(self.model, self.benchmark, 2) if lines else {}
        return lines + [{"CPPO, pass@2": name, "here": value} for name, value in best.items()]

    def made_of(self) -> list[dict]:
        """What tuples differ in: the reading that a strategy spells out, or only the words that it opens with."""
        lines = []
        for row in ("Tuple Planner SFT", "+ RM warm-up", "CPPO", "without J (R_out)", *IID):
            groups = [[a["strategy"] for a in group] for e in self.seeds(row) for group in attempts.tuples(e)]
            whole = [strategies for strategies in groups if None not in strategies]
            if not whole:
                continue
            openings = [[strategy.split()[0] for strategy in strategies] for strategies in whole]
            every = [word for words in openings for word in words]
            lines.append({"method": row,
                          "readings a tuple": f"{np.mean([len({world.read(s) for s in one} - {None}) for one in whole]):.2f}",
                          "first words a tuple": f"{np.mean([len(set(words)) for words in openings]):.2f}",
                          "share of the commonest first word": f"{max(map(every.count, set(every))) / len(every):.2f}"})
        return lines

    # ---- the gap

    def planned(self, row: str) -> np.ndarray | None:
        """(problems,): what the strategies alone would reach, were each carried out to the letter."""
        if self.seeds(row)[0].method not in attempts.PLANNED:
            return None
        masses = [[self.mass(name, attempts.chosen(e, name, K)) for name in self.names] for e in self.seeds(row)]
        return np.mean(masses, axis=0)

    def mass(self, name: str, made: list[dict]) -> float:
        combos = {world.read(a["strategy"]) for a in made if a["strategy"]} - {None}
        hit = {outcome_hash(list(world.outcome(combo))) for combo in combos}
        return metrics.posterior_pass(list(hit), self.known[name].classes)

    def gap(self) -> list[dict]:
        """coordinated ceiling - pass@4 = policy class + optimisation + solver noise, mean over problems and seeds."""
        lines, top = [], self.coordinated.mean()
        for row in (*tables.SYSTEMS, *tables.VARIANTS, *IID):
            if not self.seeds(row) or row in ("CPPO, shuffled", "CPPO (J R_out)"):
                continue
            reached, planned = self.passed(row).mean(), self.planned(row)
            best = (self.independent if row in IDENTICAL else self.coordinated).mean()
            written = reached if planned is None else planned.mean()
            line = {"method": row, "pass@4": reached, "ceiling of its class": best, "coordinated ceiling": top,
                    "gap": top - reached, "policy class": top - best, "optimisation": best - written,
                    "solver noise": None if planned is None else written - reached}
            lines.append({name: f"{v:.3f}" if isinstance(v, float) else v for name, v in line.items()})
        return lines

    def blocks(self) -> Iterator[tuple[str, str, str]]:
        """(title, table, what to know)"""
        yield "Every method", attempts.render(self.methods()), (
            "se: standard errors over problems. paper: CPPO's difference there, mean of its three benchmarks.")
        yield "The paper's other comparisons", attempts.render(self.others()), (
            "M = 4, 2, 1 take 1/2, 1/4, 1/8 of CPPO's attempts a step, for as many steps. D_surf, D_sem and D_alg are of "
            "strategies, or of programs where there are none; D_alg is by the world's own rule, not by a model.")
        yield "Which two of four attempts count (Appendix G)", attempts.render(self.places()), ""
        yield "What a tuple's strategies differ in", attempts.render(self.made_of()), (
            "Of four strategies: different readings, which can solve more; different first words, which D_surf sees.")
        yield "The gap to the coordinated ceiling", attempts.render(self.gap()), (
            "gap = policy class + optimisation + solver noise. A method's class is independent draws or coordinated tuples. Solver "
            "noise is what its strategies would reach, carried out to the letter, less what its programs reach; without strategies "
            "it is part of the optimisation.")


def spent(folder: Path) -> dict:
    """What a training run was given."""
    with open(folder / "samples.jsonl", encoding="utf-8") as rows:
        samples = sum(len(json.loads(row)["branches"]) for row in rows)
    steps = [json.loads(row) for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = sum(step["tokens_sampled"] for step in steps)
    return {"steps": len(steps), "solver attempts": f"{samples:,}", "decoded tokens": f"{tokens:,}"}


def sweep_table(name: str) -> list[dict]:
    """Every trained method at every learning rate: what it was given, and what it came to on the dev problems."""
    lines, best = [], {}
    for path in sorted(Path("runs").glob(f"{name}-lr*/dev/*.jsonl"), key=lambda path: (path.name, str(path))):
        stage, lr = path.stem, path.parent.parent.name.removeprefix(f"{name}-lr")
        lines.append({"method": stage, "learning rate": lr} | spent(path.parent.parent / stage) |
                     {"dev pass@4": f"{dev_pass(path):.3f}", "taken": "*" if lr == best_lr(name, stage) else None})
        best = attempts.load(path).card["ceilings"][str(K)]
    warmup = Path(f"runs/{name}-seed0/warmup")
    lines += [{"method": "warm-up, before cppo"} | spent(warmup)] if lines and warmup.exists() else []
    return lines + [{"method": f"ceiling: {kind}", "dev pass@4": f"{value:.3f}"} for kind, value in best.items()]


# ------------------------------------------------------------------------------------------ RESULTS.md

TITLES = {
    8: "pass@4 of every method (Tables 1, 5, 8, 19)", 4: "decoded tokens (Tables 4, 18)", 6: "ablations and budgets",
    7: "majority votes", 14: "diversity", 15: "joint and iid inference", 16: "their diversity", 17: "where the gain comes from",
    20: "budgets K", 12: "side by side"}
FIGURES = {"2": "pass@K over K (Figures 2, 5, 6)", "3": "the gate", "4": "gain against diversity",
           "7": "pass@K as bars", "8": "PKPO's training", "9": "UpSkill's training", "cost": "pass@K against its cost"}


READING = (
    "pass@K is averaged over the posterior of each statement; brackets are 95 % bootstrap intervals over problems, ± is the "
    "standard deviation over training seeds. The ceilings: constant, programs that never read the statement; independent, draws "
    "from one distribution; coordinated, different programs. (paper): its figures for "
    f"{PAPER_MODEL} (Table 4: 4B) on real benchmarks, of which only the direction can be compared. Where it differs, the reasons "
    "are at the end.")


def report(name: str, out: Path, marks: list[dict], missing: list[str]) -> Path:
    """RESULTS.md and results/ under `out`, from what there is. marks: the queue's, of jobs that are done; missing: the others."""
    packed = pack(name, out / "results")
    if not packed:
        raise ValueError(f"runs/{name}-seed* hold no attempts yet: run the queue first")
    folders = [str(path) for path in packed]
    runs = tables.find(folders, paper_model=PAPER_MODEL)
    made = [evaluation for found in runs.found.values() for evaluation in found]
    commits = ", ".join(sorted({e.card.get("commit", "unknown")[:10] for e in made}))
    ours = Report(runs)
    short = f"{out}/results/{name}-seed*.zip".removeprefix("./")

    def block(title: str, text: str, how: str, told: str = "") -> str:
        lines = [f"### {title}", f"Attempts of commit {commits}: `{how.strip()}`", f"```\n{text}\n```", *([told] if told else [])]
        return "\n\n".join(lines) + "\n"

    best, *facts = ours.summary()

    def bounds(text: str) -> str:
        return best if "pass@" in text and not all(name in text for name in tables.CEILINGS) else ""

    hours = sum(mark["cpu_seconds"] for mark in marks) / 3600
    parts = [
        "# Results of the miniature world\n", f"**{best} {facts[0] if facts else ''}**\n", *(f"- {fact}" for fact in facts[1:]), "",
        f"Written by `bash miniature/reproduce.sh`: {len(folders)} seed(s), {len(ours.names)} held-out problems, {len(marks)} of "
        f"{len(marks) + len(missing)} jobs, {hours:.1f} CPU hours. {READING}\n"]
    if missing:
        parts.append(f"NOT DONE: {', '.join(missing)}.\n")
    mine = f"python -m miniature.results {short}"
    parts += [block(title, text, mine, f"{told} {bounds(text)}".strip()) for title, text, told in ours.blocks()]
    swept = sweep_table(name)
    rates = [float(line["learning rate"]) for line in swept if "learning rate" in line]
    edge = [line["method"] for line in swept if line.get("taken") and float(line["learning rate"]) in (min(rates), max(rates))]
    parts += [block("The sweep of learning rates, on seed 0", attempts.render(swept), "bash miniature/reproduce.sh --report",
                    "CPPO alone had gold tuples, gate labels and a warm-up before; the rivals start from the base."
                    + f" At an edge of the grid, so that others might be better still: {', '.join(edge)}." * bool(edge)),
              "## The paper's tables\n"]
    for number, title in TITLES.items():
        paper_model = [] if number == 12 else ["--paper-model", PAPER_MODEL.replace("2B", "4B") if number == 4 else PAPER_MODEL]
        text = said(["table", str(number), *folders, *paper_model])
        how = f"python -m paper.tables table {number} {short} {' '.join(paper_model)}"
        parts.append(block(f"Table {number}: {title}", text, how, bounds(text)))
    parts.append("Table 13 needs annotators.\n\n## The paper's figures\n")
    for number, title in FIGURES.items():
        picture, trained = out / "results" / f"figure-{number}.png", number in "389"     # those read the logs of training
        given = [f"runs/{Path(folder).stem}" for folder in folders] if trained else folders
        told = said(["figure", number, *given, "--out", str(picture)])
        shown = f"![]({picture.relative_to(out)})" if told == str(picture) else told
        how = f"python -m paper.tables figure {number} {f'runs/{name}-seed*' if trained else short}"
        parts.append(f"### Figure {number}: {title}\n\n`{how}`\n\n{shown}\n")
    path = out / "RESULTS.md"
    by_hand = path.read_text(encoding="utf-8").partition(MARK)[2] if path.exists() else "\n"
    path.write_text("\n".join(parts) + f"\n{MARK}{by_hand}", encoding="utf-8")
    return path


def main() -> None:

    parser = argparse.ArgumentParser(description="Every method of the miniature world beside CPPO, its ceilings and the paper.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs/NAME-seedN")
    args = parser.parse_args()
    with errors.explain():
        ours = Report(tables.find(args.runs))
    print("\n".join(ours.summary()))
    for title, text, told in ours.blocks():
        print(f"\n{title}\n{text}\n{told}".rstrip())


if __name__ == "__main__":
    main()
