"""What the results of the miniature world say, in sentences: every number is computed here, and a
sentence that the numbers do not bear is another one, or is left out.

    for line in sentences.summary(ours): ...        # ours: results.Results
    for title, text in sentences.reasons(ours): ... # where the small world differs from the paper
"""

from collections.abc import Iterator

import numpy as np

from lib import metrics
from lib.problems import outcome_hash
from miniature import world
from miniature.results import (
    IDENTICAL,
    K,
    Results,
    contents_table,
    passing,
    runs_interval,
    with_interval,
)
from paper import attempts
from paper.runs import CREDITS, READINGS, SYSTEMS, Measure, interval_over_runs, surface

# commit -> what was found to be wrong with it later
KNOWN_FAULTS = {"5edfc9a371": (
    "In commit 5edfc9a371 PKPO's KL weighed N = 16 times everybody's; at `--beta 0.000625` one run "
    "gained 0.05 ([notes](notes.md)). All methods share one weight since.")}


def summary(ours: Results) -> list[str]:
    lines = [f"Best possible pass@{K}: constant {ours.constant:.3f}, independent "
             f"{ours.independent.mean():.3f}, coordinated {ours.coordinated.mean():.3f}."]
    for row in CREDITS:
        if ours.seeds(row):
            lines += credit_lines(ours, row)
    lines.append(sharing_line(ours))
    for comparison in ours.comparisons:
        if comparison.a in CREDITS[1:] and comparison.b == "CPPO":
            lines.append(f"{comparison}.")
    rivals = [gain for row, gain in ours.gains().items() if row in SYSTEMS]
    if rivals:
        closest = min(rivals, key=lambda comparison: comparison.here.gain)
        lines.append(f"The strongest rival is {closest.b}: CPPO minus it "
                     f"{with_interval(closest.here)}, over runs {runs_interval(closest.by_run)}.")
    if any(ours.seeds(row) for row in IDENTICAL):
        lines.append(identical_line(ours))
    return lines + agreement_lines(ours) + base_lines(ours)


def credit_lines(ours: Results, row: str) -> list[str]:
    reached = ours.passed(row)
    by_run = list(ours.by_run(row, passing()).values())
    first = np.mean(list(ours.by_run(row, passing(1)).values()))
    listed = ", ".join(f"{value:.3f}" for value in by_run)
    lines = [f"{row} reaches pass@4 {reached.mean():.3f} (runs: {listed}) and pass@1 {first:.3f}."]
    limits = {"independent ceiling": ours.independent,
              "best constant tuple": np.full_like(reached, ours.constant)}
    for name, limit in limits.items():
        difference = metrics.paired_bootstrap(reached, limit)
        above = [value - limit.mean() for value in by_run]
        where = "above, but not surely,"
        if difference.low > 0 and (len(above) < 2 or interval_over_runs(above)[0] > 0):
            where = "above"
        elif difference.gain <= 0:
            where = "NOT above"
        lines.append(f"{row} is {where} the {name}: {with_interval(difference)} over problems, "
                     f"over runs {runs_interval(above)}.")
    return lines


def sharing_line(ours: Results) -> str:
    """What the intervals over runs leave out."""
    bases = {seed.setting.get("model_sha256") for seed in ours.seeds("Direct Solve")}
    runs = {seed.run for seeds in ours.runs.evaluations.values() for seed in seeds}
    return (f"These {len(runs)} runs start from {len(bases) or 'an unknown number of'} base "
            f"model(s): their spread leaves out how much bases, machines and numbers of processes "
            f"differ, which in earlier runs was more ([notes](notes.md)).")


def identical_line(ours: Results) -> str:
    """Does any method stand above a ceiling that it cannot pass? Then something is wrong."""
    standing = {row: ours.above_independent(row) for row in IDENTICAL if ours.seeds(row)}
    above = [row for row, (_, in_errors) in standing.items() if in_errors > 2]
    highest = max(standing, key=lambda row: standing[row][1])
    gain, in_errors = standing[highest]
    verdict = f"{', '.join(above)} STAND ABOVE" if above else "none stands above"
    return (f"Of {len(standing)} identically distributed methods {verdict} the independent ceiling "
            f"by more than two standard errors; the highest is {highest}, {gain:+.3f}, "
            f"{in_errors:+.1f} standard errors.")


def agreement_lines(ours: Results) -> list[str]:
    by_verdict = {"yes": [], "NO": [], "open": []}
    for comparison in ours.comparisons:
        if comparison.agrees:
            by_verdict[comparison.agrees].append(str(comparison))
    made = sum(len(group) for group in by_verdict.values())
    lines = [f"Of the paper's {made} comparisons made here, {len(by_verdict['yes'])} have the "
             f"paper's sign over problems and over runs."]
    if by_verdict["NO"]:
        lines.append(f"The opposite sign: {'; '.join(by_verdict['NO'])}.")
    if by_verdict["open"]:
        lines.append(f"Open, an interval contains 0: {'; '.join(by_verdict['open'])}.")
    return lines


def base_lines(ours: Results) -> list[str]:
    """What the base model was taught that decides where the methods start."""
    from miniature import base  # which imports the tokenizers
    habits = []
    for evaluation in ours.seeds("Direct Solve"):
        for name, made in evaluation.problems.items():
            asked = world.parse_statement(ours.known[name].statement, ours.setting)
            favourite = asked.favourite
            habit = outcome_hash(list(world.outcome(favourite)))
            habits += [attempt["outcome"] == habit for attempt in made]
    if not habits or ours.setting != "open":        # elsewhere the habit is another one
        return []
    return [f"The base model decides where methods start, and was taught two habits: asked "
            f"directly, it answers by the least likely reading of a statement "
            f"({np.mean(habits):.0%} of its attempts here; {base.FAVOURITE:.0%} in its lessons), "
            f"which holds Direct Solve and what trains from it down; and {base.CAREFUL:.0%} of the "
            f"plans that it read list different allowed readings, which planners can bring out. "
            f"Differences to the direct methods are therefore no measure of coordination alone; "
            f"those to the independent ceiling are."]


# --------------------------------------------------------------------------------------------------
# Where the small world differs from the paper

def reasons(ours: Results) -> Iterator[tuple[str, str]]:
    """(title, paragraph) of what a reader of both may ask."""
    for title, paragraph in (("D_surf and D_sem", wordings), ("iid inference", iid_inference),
                             ("The gate", the_gate), ("UpSkill", upskill),
                             ("The size of the differences", sizes), ("Larger K", larger_k),
                             ("Known faults of these runs", known_faults)):
        text = paragraph(ours)
        if text:
            yield title, text


def mean_of(ours: Results, row: str, measure: Measure | None = None) -> float:
    return float(np.mean(list(ours.by_run(row, measure or passing()).values())))


def wordings(ours: Results) -> str | None:
    contents = {line["method"]: line for line in contents_table(ours)}
    if not {"CPPO", "Tuple Planner SFT"} <= contents.keys():
        return None
    cppo, sft = contents["CPPO"], contents["Tuple Planner SFT"]
    opening = "share of the commonest first word"
    return (f"A tuple of CPPO names {cppo['readings per tuple']} different readings, one of SFT "
            f"{sft['readings per tuple']}; its strategies open with one word in "
            f"{float(cppo[opening].split()[0]):.0%} of the cases, SFT's in "
            f"{float(sft[opening].split()[0]):.0%}. No reward asks for other words. A strategy is "
            f"one sentence of some eight words, so its first words are much of what BLEU sees, and "
            f"the encoder of D_sem is the base model, which knows only words. D_alg reads what a "
            f"strategy does.")


def iid_inference(ours: Results) -> str | None:
    """What Tables 15 to 17 say depends on the reading."""
    if not ours.seeds("CPPO") or not ours.seeds("Direct Solve"):
        return None
    joint, direct = mean_of(ours, "CPPO"), mean_of(ours, "Direct Solve")
    parts = []
    for reading in READINGS:
        row = f"CPPO, {reading}"
        if ours.seeds(row):
            reached = mean_of(ours, row)
            kept = reached - direct
            parts.append(f"`{reading}`: pass@4 {reached:.3f}, which keeps {kept:+.3f} of the gain "
                         f"of {joint - direct:+.3f} over Direct Solve "
                         f"({kept / (joint - direct):.0%})")
    if not parts:
        return None
    text = (f"Appendix G does not say which strategy of a plan an iid draw takes. "
            f"{'; '.join(parts)}. Table 17 splits the gain by the reading: neither split is a "
            f"finding.")
    contents = {line["method"]: line["readings per tuple"] for line in contents_table(ours)}
    if {"CPPO, iid, first", "Tuple Planner SFT, iid, first"} <= contents.keys():
        text += (f" CPPO's first strategy is nearly certain: four of them, drawn apart, hold "
                 f"{contents['CPPO, iid, first']} readings (SFT: "
                 f"{contents['Tuple Planner SFT, iid, first']}).")
    if ours.seeds("Tuple Planner SFT"):
        one = [mean_of(ours, row, passing(1)) for row in ("CPPO", "Tuple Planner SFT")]
        text += (f" One attempt, by the first strategy, passes in {one[0]:.3f} (CPPO) and "
                 f"{one[1]:.3f} (SFT): taken one at a time, CPPO's strategies are "
                 f"{'not worse' if one[0] >= one[1] else 'worse'}.")
    return text


def the_gate(ours: Results) -> str | None:
    """What the gate does, as far as it is established over runs."""
    found = [c for c in ours.comparisons if c.b == "without J (R_out)"]
    if not found:
        return None
    said = "; ".join(f"{c}: {'open' if c.is_open else 'established'}" for c in found)
    return f"With the gate against without it. {said}."


def upskill(ours: Results) -> str | None:
    rows = [row for row in SYSTEMS if row.startswith("UpSkill") and ours.seeds(row)]
    if not rows:
        return None
    said = []
    for row in rows:
        found = np.concatenate([surface(evaluation) for evaluation in ours.seeds(row)])
        pair = np.count_nonzero(~np.isnan(found))
        said.append(f"{row}: pass@4 {mean_of(ours, row):.3f}, pass@1 "
                    f"{mean_of(ours, row, passing(1)):.3f}, {pair:,} of {len(found):,} groups of "
                    f"four hold two programs or more")
    others = ("" if len(rows) > 1 else " Smaller alphas and the `sequence` aggregate are not "
              "measured: reproduce.py has the jobs.")
    return (f"{'; '.join(said)}. At alpha 5 the information reward outweighs rare success, and "
            f"skills are told apart soonest by garbage (Figure 9; [notes](notes.md)).{others}")


def sizes(ours: Results) -> str | None:
    gains = [gain for gain in ours.gains().values() if gain.paper]
    if not gains:
        return None
    ratio = np.median([gain.here.gain / gain.paper for gain in gains])
    return (f"CPPO's differences at pass@4 are {ratio:.1f} times the paper's (median of "
            f"{len(gains)}). The world is built so that coordination is what is missing: every "
            f"statement allows four readings or more, and no independent sampler passes the "
            f"independent ceiling. CPPO alone had gold tuples, gate labels and a warm-up before, "
            f"and the base's habits hold the direct methods down.")


def larger_k(ours: Results) -> str | None:
    """Pooled tuples are drawn independently of each other."""
    seeds = ours.seeds("CPPO")
    if not seeds:
        return None
    leads = []
    for k in attempts.SWEEP:
        ceiling = ours.runs.ceiling(ours.place, k, "independent")
        if ceiling is not None and min(seed.made for seed in seeds) >= k:
            leads.append(f"{mean_of(ours, 'CPPO', passing(k)) - ceiling:+.3f} at K = {k}")
    return (f"CPPO minus the independent ceiling: {', '.join(leads)}. Coordination reaches as far "
            f"as one plan of four.")


def known_faults(ours: Results) -> str | None:
    seeds = [seed for seeds in ours.runs.evaluations.values() for seed in seeds]
    commits = {seed.card.get("commit", "")[:10] for seed in seeds}
    found = [KNOWN_FAULTS[commit] for commit in sorted(commits & KNOWN_FAULTS.keys())]
    return " ".join(found) or None
