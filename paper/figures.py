"""The paper's Figures 1 to 9, and pass@K against its cost, of any runs.

    python -m paper.figures RUN... --out figures      # all that these runs have the data for
    python -m paper.tables figure 5 RUN...            # one of them

    1         the method on one tuple of the run: its plan, programs, verdicts, and who was paid
    2, 5, 6   pass@K over K, a line per method, ceilings dashed (2 and 5: LCBv6; 6: APPS)
    7         the same as bars
    3         the gate: ROC against judge and solver, and accepted x solved, from samples.jsonl
    4         gain over Direct Solve against D_alg, a point per method; least-squares line with its
              95 % band
    8, 9      training dynamics of PKPO and of UpSkill, from metrics.jsonl and samples.jsonl
    cost      pass@K against attempts, decoded tokens and seconds

Needs matplotlib, which nothing else does. Runs without the benchmark that a figure is about are
drawn with the benchmarks that they have. Every number is the one that the tables and the report
page show, by the same function.
"""

import argparse
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

try:
    import matplotlib
except ImportError:
    sys.exit("error: the figures need matplotlib: pip install matplotlib")

matplotlib.use("Agg")       # no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import prompts
from lib import errors, files, flags
from lib.errors import UserError
from paper import report_data
from paper.attempts import SWEEP, decoded
from paper.runs import SYSTEMS, Place, Runs, algorithmic, find, having, mean

METHODS = [method for method in SYSTEMS if method != "CPPO, shuffled"]      # no controls
ABOUT = {"2": "LCBv6", "5": "LCBv6", "6": "APPS", "7": "APPS"}
NUMBERS = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "cost")
# of metrics.jsonl, but for the variance of the advantages, which comes from samples.jsonl
DYNAMICS = {
    "8": ("pkpo", {"grad_norm": "gradient norm", "step_norm": "parameter step",
                   "advantage_nonzero": "problems with a signal",
                   "variance": "advantage variance"}),
    "9": ("upskill", {"grad_norm": "gradient norm", "r_correct": "correctness reward",
                      "r_mi": "information reward",
                      "reward_variance": "variance of the reward"}),
}
RESAMPLES = 1000            # figure 4's band

# Okabe and Ito's colours, which the colour-blind tell apart; the report page has the same. There
# are more methods than colours: markers tell those of one colour apart.
BLUE, ORANGE = "#0072b2", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "os^D"
HATCHES = {"o": "", "s": "////", "^": "....", "D": "xxxx"}    # of bars
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e4e8ec", "grid.linewidth": 0.7, "axes.axisbelow": True,
         "axes.titlesize": 9, "legend.frameon": False,
         "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}


def draw(number: str, runs: Runs, folders: Iterable[str], out: str | Path) -> Path:
    """Draw a figure into the file `out`. Raises UserError if the runs hold nothing to draw."""
    with matplotlib.rc_context(STYLE):
        figure = make(number, runs, folders)
        figure.savefig(out, dpi=120)
    plt.close(figure)
    return Path(out)


def make(number: str, runs: Runs, folders: Iterable[str]):
    if number == "1":
        return overview(*example(folders))
    places = list(runs.places())
    if number in ABOUT:
        places = [place for place in places if place.benchmark == ABOUT[number]] or places
        figure, axes = panels(len(places))
        for axis, place in zip(axes, places, strict=True):
            if number == "7":
                draw_bars(axis, runs, place)
            else:
                draw_lines(axis, runs, place)
    elif number == "cost":
        figure, axes = panels(3 * len(places))
        for i, place in enumerate(places):
            draw_cost(axes[3 * i:3 * i + 3], runs, place)
    elif number == "4":
        figure, axes = panels(1)
        draw_gain(axes[0], runs)
    elif number == "3":
        figure, axes = panels(2)
        draw_gate(axes, folders)
    else:
        figure, axes = panels(4)
        draw_dynamics(axes, folders, *DYNAMICS[number])
    if number != "3":           # its legend stands in a panel
        add_legend(figure, axes)
    return figure


def panels(n: int):
    """A figure with n panels in a row."""
    if not n:
        raise UserError("these runs hold no attempts at programs (eval/*.jsonl): evaluate.py "
                        "writes them")
    size = (4 * n + 1.6, 3.6)
    figure, axes = plt.subplots(1, n, figsize=size, squeeze=False, layout="constrained")
    return figure, axes[0]


def add_legend(figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels."""
    drawn = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        drawn |= zip(labels, handles, strict=True)
    if drawn:
        figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", fontsize=7)


def style(method: str) -> dict:
    """A method looks the same in every figure: CPPO black, the others by colour and marker."""
    if method == "CPPO":
        return {"color": "black", "marker": "o", "markersize": 4, "linewidth": 2}
    turn, colour = divmod(METHODS.index(method), len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[turn % len(MARKERS)], "markersize": 4,
            "linewidth": 1}


# ----------------------------------------------------------------------------------------------
# pass@K over K

class Curve(NamedTuple):
    method: str
    ks: list[int]               # as far as the method has made attempts
    passing: list[float]        # pass@K, mean over seeds and problems


def curves(runs: Runs, place: Place) -> list[Curve]:
    found = []
    for method in METHODS:
        seeds = runs.get(place, method)
        if seeds:
            most = min(seed.made for seed in seeds)
            ks = [k for k in SWEEP if k <= most]
            found.append(Curve(method, ks, [mean(seeds, runs.passing(k)) for k in ks]))
    return found


def draw_lines(axis: Axes, runs: Runs, place: Place) -> None:
    for curve in curves(runs, place):
        axis.plot(curve.ks, curve.passing, label=curve.method, **style(curve.method))
    for name, dashes in (("independent", ":"), ("coordinated", "--")):
        ceilings = {k: runs.ceiling(place, k, name) for k in SWEEP}
        known = {k: value for k, value in ceilings.items() if value is not None}
        if known:
            axis.plot(list(known), list(known.values()), dashes, color="grey", linewidth=1,
                      label=f"{name} ceiling")
    axis.set(xlabel="attempts K", ylabel="pass@K", title=f"{place.benchmark}, {place.model}")
    set_powers(axis)


def set_powers(axis: Axes) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(SWEEP, [str(k) for k in SWEEP], fontsize=7)


def draw_bars(axis: Axes, runs: Runs, place: Place) -> None:
    drawn = curves(runs, place)
    width = 0.8 / len(drawn)
    for i, curve in enumerate(drawn):
        left = [SWEEP.index(k) + (i - len(drawn) / 2) * width for k in curve.ks]
        axis.bar(left, curve.passing, width=width, label=curve.method,
                 color=style(curve.method)["color"], hatch=HATCHES[style(curve.method)["marker"]],
                 edgecolor="white", linewidth=0)
    axis.set(xlabel="attempts K", ylabel="pass@K", title=f"{place.benchmark}, {place.model}")
    axis.set_xticks(range(len(SWEEP)), [str(k) for k in SWEEP])


def draw_cost(axes: Iterable[Axes], runs: Runs, place: Place) -> None:
    """pass@K against attempts, tokens and seconds per problem.

    Seconds are those of the whole evaluation, sampling and verifying, in proportion to K.
    """
    for curve in curves(runs, place):
        seeds = runs.get(place, curve.method)
        tokens = [np.mean([sum(decoded(seed, k)) for seed in seeds]) for k in curve.ks]
        per_attempt = []
        for seed in seeds:
            if seed.card.get("seconds_for_problems"):
                per_problem = seed.card["seconds"] / seed.card["seconds_for_problems"]
                per_attempt.append(per_problem / seed.setting["attempts"])
        seconds = [k * np.mean(per_attempt) for k in curve.ks] if per_attempt else []
        for axis, costs in zip(axes, (curve.ks, tokens, seconds), strict=True):
            if costs and min(costs) > 0:        # a logarithmic axis
                axis.plot(costs, curve.passing, label=curve.method, **style(curve.method))
    names = ("attempts", "decoded tokens per problem", "seconds per problem")
    for axis, name in zip(axes, names, strict=True):
        title = f"{place.benchmark}, {place.model}"
        axis.set(xscale="log", xlabel=name, ylabel="pass@K", title=title)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(two_or_five)
    set_powers(axes[0])


def two_or_five(x: float, _) -> str:
    """Labels minor ticks at 2 and 5 times a power of ten."""
    return f"{x:g}" if f"{x:.0e}"[0] in "25" else ""


# ----------------------------------------------------------------------------------------------
# Gain and diversity

def draw_gain(axis: Axes, runs: Runs) -> None:
    """Figure 4: gain in pass@4 over direct solving against D_alg."""
    xs, ys = [], []
    for place in runs.places():
        direct = runs.get(place, "Direct Solve", 4)
        for method in METHODS:
            seeds = having(runs.get(place, method, 4), algorithmic)
            if not direct or not seeds or method == "Direct Solve":
                continue
            xs.append(mean(seeds, algorithmic))
            ys.append(mean(seeds, runs.passing(4)) - mean(direct, runs.passing(4)))
            look = style(method)
            axis.scatter(xs[-1], ys[-1], s=20, color=look["color"], marker=look["marker"],
                         label=method)
    if len(xs) < 3:
        raise UserError("figure 4 needs Direct Solve, and D_alg (diversity.py) of three methods "
                        "beside it")
    x, y = np.array(xs), np.array(ys)
    grid = np.linspace(x.min(), x.max(), 50)
    axis.plot(grid, np.polyval(np.polyfit(x, y, 1), grid), "--", color="grey")
    low, high = line_band(x, y, grid)
    axis.fill_between(grid, low, high, alpha=0.2, color="grey")
    axis.set(xlabel=runs.d_alg(), ylabel="gain in pass@4 over Direct Solve")


def line_band(x: np.ndarray, y: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """95 % bootstrap band of the least-squares line: (2, grid)."""
    rng = np.random.default_rng(0)
    fits = []
    for chosen in rng.integers(len(x), size=(RESAMPLES, len(x))):
        if len(set(x[chosen])) > 1:         # a line needs two places
            fits.append(np.polyval(np.polyfit(x[chosen], y[chosen], 1), grid))
    return np.quantile(fits, [0.025, 0.975], axis=0)


# ----------------------------------------------------------------------------------------------
# From the logs of training

def read_logs(folders: Iterable[str], name: str) -> list[dict]:
    """The lines of folder/name, for every folder that has it."""
    rows = []
    for folder in folders:
        path = Path(folder) / name
        if path.exists():
            rows += [row for _, row in files.read_lines(path)]
    return rows


def draw_gate(axes: Iterable[Axes], folders: Iterable[str]) -> None:
    """Figure 3, of the tuples of stage 5: p(Pass) beside what the judge and the verifier say, and
    the gate's decisions beside the verifier's."""
    count = report_data.GateCount()
    for row in read_logs(folders, "cppo/samples.jsonl"):
        count.add(row)
    gate = count.summary()
    if "table" not in gate:
        raise UserError("figure 3 needs cppo/samples.jsonl with p(Pass) of its tuples")
    curve_axis, share_axis = axes
    for curve in gate["curves"]:
        curve_axis.plot(*zip(*curve["roc"], strict=True),
                        label=f"{curve['by']}, AUC {curve['auc']:.3f}")
    curve_axis.plot([0, 1], [0, 1], ":", color="grey")
    curve_axis.set(xlabel="false positive rate", ylabel="true positive rate")
    curve_axis.legend(fontsize=7)
    table = gate["table"]
    curve_axis.set_title(f"p(Pass) of {table['tuples']} tuples of stage 5")

    decisions, outcomes = ("rejected", "accepted"), ("failed", "solved")
    share = np.array([[table[f"{decision}, {outcome}"] for outcome in outcomes]
                      for decision in decisions])
    share_axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (accepted, solved), value in np.ndenumerate(share):
        colour = "white" if value > 0.6 else "black"
        share_axis.text(solved, accepted, f"{value:.1%}", ha="center", va="center", color=colour)
    share_axis.set_xticks([0, 1], outcomes)
    share_axis.set_yticks([0, 1], decisions)
    share_axis.grid(visible=False)
    share_axis.set_title("share of these tuples")


def draw_dynamics(axes: Iterable[Axes], folders: Iterable[str], stage: str,
                  names: dict[str, str]) -> None:
    """Figures 8 and 9: a panel per metric, a line per run."""
    drawn = False
    for folder in folders:
        steps = read_logs([folder], f"{stage}/metrics.jsonl")
        for axis, (key, name) in zip(axes, names.items(), strict=True):
            if key == "variance":
                series = advantage_variance(read_logs([folder], f"{stage}/samples.jsonl"))
            else:
                series = {row["step"]: row[key] for row in steps if row.get(key) is not None}
            if series:
                axis.plot(list(series), list(series.values()), label=Path(folder).name, linewidth=1)
                drawn = True
            axis.set(xlabel="step", title=name)
    if not drawn:
        raise UserError(f"these runs hold no {stage}/metrics.jsonl")


def advantage_variance(problems: list[dict]) -> dict[int, float]:
    """Step -> variance of the advantages within a problem, mean over its problems."""
    variances = defaultdict(list)
    for problem in problems:
        advantages = [branch["a"] for branch in problem["branches"]]
        variances[problem["step"]].append(np.var(advantages))
    return {step: np.mean(variances[step]) for step in sorted(variances)}


# ----------------------------------------------------------------------------------------------
# One tuple

WIDTHS = {"statement": 26, "strategy": 33, "program": 34}       # characters a line
LINES = 5                                                       # of a box, at most


def overview(row: dict, statement: str):
    """Figure 1, on a tuple of samples.jsonl: statement, K strategies, K programs, verdicts, and
    what each is paid."""
    branches = row["branches"]
    figure, axis = plt.subplots(figsize=(11, 0.6 + 1.05 * len(branches)), layout="constrained")
    axis.set(xlim=(-0.5, 100.5), ylim=(len(branches), -0.4))
    axis.axis("off")
    middle = len(branches) / 2
    box(axis, 0, middle, 19, middle - 0.08, wrapped(statement, "statement"))
    for i, branch in enumerate(branches):
        y = i + 0.5
        strategy = wrapped(f"{prompts.LABELS[i]}: {branch['strategy']}", "strategy")
        program = wrapped(prompts.extract_code(branch["reply"]) or branch["reply"], "program")
        box(axis, 23, y, 23, 0.42, strategy, row["A"])
        box(axis, 50, y, 27, 0.42, program, branch["a"], family="monospace")
        mark = "✓" if branch["r"] else "✗"
        axis.text(76.5, y + 0.37, f"{mark} r = {branch['r']:.0f}   a = {branch['a']:+.2f}",
                  ha="right", fontsize=8, weight="bold")
        arrow(axis, 19, middle, 23, y)
        arrow(axis, 46, y, 50, y)
        arrow(axis, 77, y, 81, middle)
    box(axis, 81, middle, 19, middle - 0.08, reward_of(row), row["A"])
    heads = {0: "the problem x", 23: "one plan: K strategies", 50: "a program for each, verified",
             81: "what the plan is paid"}
    for x, text in heads.items():
        axis.text(x, -0.1, text, color="#5b6570")
    return figure


def reward_of(row: dict) -> str:
    lines = [f"the gate {'accepts' if row['J'] else 'refuses'} it:", f"J = {row['J']:.0f}", "",
             "some program passes:" if row["R_out"] else "no program passes:",
             f"R_out = {row['R_out']:.0f}", "", f"R_plan = J · R_out = {row['R_plan']:.0f}", "",
             "against the other tuples", f"of the problem: A = {row['A']:+.2f}", "", "",
             "blue: paid", "orange: charged"]
    return "\n".join(lines)


def example(folders: Iterable[str]) -> tuple[dict, str]:
    """The newest tuple that shows most, and its statement: accepted, solved by one branch alone,
    paid. UserError where no tuple has a branch."""
    best, chosen = (), ()
    for folder in folders:
        for row in read_logs([folder], "cppo/samples.jsonl"):
            branches = row.get("branches")
            if not branches or not row.get("strategies"):
                continue
            solved = sum(branch["r"] for branch in branches)
            shows = (row["J"] and solved == 1, not row["duplicate_literal"], row["A"] > 0,
                     row["step"])
            if shows > best:
                best, chosen = shows, (Path(folder) / "cppo", row)
    if not chosen:
        raise UserError("figure 1 needs cppo/samples.jsonl with a plan that was solved")
    stage, row = chosen
    return row, statement_of(stage, row["problem_id"])


def statement_of(stage: Path, problem: str) -> str:
    notes: list[str] = []
    named = report_data.read_object(stage / "config.json", notes).get("flags", {}).get("problems")
    for row in report_data.read_rows(Path(named), notes) if named else ():
        if row.get("id") == problem:
            return row["statement"]
    return problem


def wrapped(text: str, what: str) -> str:
    """At most LINES lines of a text as wide as its box."""
    lines = []
    for line in report_data.clean(text.strip()).splitlines():
        code = what == "program"
        lines += textwrap.wrap(line, WIDTHS[what], drop_whitespace=not code) or [""]
    if len(lines) > LINES:
        lines[LINES - 1:] = ["…"]
    return "\n".join(lines)


def box(axis: Axes, x: float, y: float, width: float, half: float, text: str, pay: float = 0,
        **font) -> None:
    """A rectangle with text, coloured by what it was paid, as on the report page."""
    colour = BLUE if pay > 0 else ORANGE
    alpha = 0.35 * min(1, abs(pay) / 2)
    axis.add_patch(plt.Rectangle((x, y - half), width, 2 * half, facecolor=(colour, alpha),
                                 edgecolor="#b6bfc8", linewidth=0.8))
    axis.text(x + 1, y, text, va="center", fontsize=8, parse_math=False, **font)     # "$" is text


def arrow(axis: Axes, x: float, y: float, to_x: float, to_y: float) -> None:
    axis.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "#8a949e",
                                                        "linewidth": 0.8})


# ----------------------------------------------------------------------------------------------
# The script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("Every figure of the paper that these runs have the data for.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="run folders or archives, NAME-seedN per seed")
    parser.add_argument("--out", type=Path, default="figures", metavar="FOLDER",
                        help="where figure-N.png go")
    return parser.parse_args(argv)


@errors.one_line()
def main(args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        runs = find(args.runs)
    except UserError as error:
        print(f"no attempts, so figures of pass@K are left out: {error}", file=sys.stderr)
        runs = Runs({})
    drawn = 0
    for number in NUMBERS:
        try:
            print(draw(number, runs, args.runs, args.out / f"figure-{number}.png"))
            drawn += 1
        except UserError as error:
            print(f"no figure {number}: {error}", file=sys.stderr)
    if not drawn:
        raise UserError("no figure could be drawn")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
