"""The paper's Figures 2 to 9, and pass@K against its cost: `python -m paper.tables figure N RUN...`

    2, 5, 6   pass@K over K, a line per method, ceilings dashed (2 and 5: LCBv6; 6: APPS)
    7         the same as bars
    3         the gate: ROC against the judge's labels, and accepted x solved, from samples.jsonl
    4         gain over Direct Solve against D_alg, a point per method; least-squares line with its
              95 % band
    8, 9      training dynamics of PKPO and of UpSkill, from metrics.jsonl and samples.jsonl
    cost      pass@K against attempts, decoded tokens and seconds

Needs matplotlib, which nothing else does. Runs without the benchmark that a figure is about are
drawn with the benchmarks that they have.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")       # no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gate import auc, roc
from lib import files
from lib.errors import UserError
from paper.attempts import SWEEP, decoded
from paper.runs import SYSTEMS, Place, Runs, algorithmic, having, mean

METHODS = [method for method in SYSTEMS if method != "CPPO, shuffled"]      # no controls
ABOUT = {"2": "LCBv6", "5": "LCBv6", "6": "APPS", "7": "APPS"}
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


def draw(number: str, runs: Runs, folders: Iterable[str], out: str) -> Path:
    """Draw a figure into the file `out`. Raises UserError if the runs hold nothing to draw."""
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
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return Path(out)


def panels(n: int):
    """A figure with n panels in a row."""
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
    """A method looks the same in every figure."""
    ours = method == "CPPO"
    color = "black" if ours else matplotlib.colormaps["tab20"](METHODS.index(method))
    return {"color": color, "marker": "o", "markersize": 3, "linewidth": 2 if ours else 1}


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
                 color=style(curve.method)["color"])
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
            axis.scatter(xs[-1], ys[-1], s=16, color=style(method)["color"], label=method)
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
    """Figure 3, of the tuples of stage 5: p(Pass) beside what the judge and the verifier say."""
    tuples = [row for row in read_logs(folders, "cppo/samples.jsonl")
              if row.get("p_pass") is not None]
    if not tuples:
        raise UserError("figure 3 needs cppo/samples.jsonl with p(Pass) of its tuples")
    curve_axis, share_axis = axes
    judged = [row for row in tuples if row.get("faults") is not None]
    draw_roc(curve_axis, "solver outcome", tuples, [int(bool(row["R_out"])) for row in tuples])
    draw_roc(curve_axis, "judge's labels", judged, [int(not row["faults"]) for row in judged])
    curve_axis.plot([0, 1], [0, 1], ":", color="grey")
    curve_axis.set(xlabel="false positive rate", ylabel="true positive rate")
    curve_axis.legend(fontsize=7)
    curve_axis.set_title(f"p(Pass) of {len(tuples)} tuples of stage 5", fontsize=9)

    share = np.zeros((2, 2))
    for row in tuples:
        share[int(bool(row["J"])), int(bool(row["R_out"]))] += 1 / len(tuples)
    share_axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (accepted, solved), value in np.ndenumerate(share):
        share_axis.text(solved, accepted, f"{value:.1%}", ha="center", va="center")
    share_axis.set_xticks([0, 1], ["unsolved", "solved"])
    share_axis.set_yticks([0, 1], ["rejected", "accepted"])
    share_axis.set_title("share of these tuples", fontsize=9)


def draw_roc(axis: Axes, name: str, tuples: list[dict], labels: list[int]) -> None:
    """The ROC of p(Pass) against labels, where there are labels of both kinds."""
    if len(set(labels)) < 2:
        return
    p = [row["p_pass"] for row in tuples]
    points = roc(p, labels)
    false_positives = [rate for _, rate, _ in points]
    recalls = [recall for _, _, recall in points]
    axis.plot(false_positives, recalls, label=f"{name}, AUC {auc(p, labels):.3f}")


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
