"""The paper's Figures 2 to 9, and pass@K against its cost: `python -m paper.tables figure N RUN...`

    2, 5, 6   pass@K over K, a line a method, ceilings dashed (2 and 5: LCBv6; 6: APPS)
    7         the same as bars
    3         the gate: ROC against the judge's labels, and accepted x solved, from samples.jsonl
    4         gain over Direct Solve against D_alg, a point a method; least-squares line and its 95 % band
    8, 9      training dynamics of PKPO and of UpSkill, from metrics.jsonl and samples.jsonl
    cost      pass@K against attempts, decoded tokens and seconds

Needs matplotlib, which nothing else does. If the runs lack the benchmark that a figure is about, all they
have is drawn.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from paper.attempts import decoded
from paper.tables import SWEEP, SYSTEMS, Runs, mean, recorded

METHODS = [row for row in SYSTEMS if row != "CPPO, shuffled"]
ABOUT = {"2": "LCBv6", "5": "LCBv6", "6": "APPS", "7": "APPS"}
PANELS = {"8": ("pkpo", {"grad_norm": "gradient norm", "step_norm": "parameter step",
                         "advantage_nonzero": "problems with a signal", "variance": "advantage variance"}),
          "9": ("upskill", {"grad_norm": "gradient norm", "r_correct": "correctness reward",
                            "r_mi": "information reward", "reward_variance": "variance of the reward"})}


def draw(number: str, runs: Runs, folders: Iterable[str], out: str | None) -> None:
    """Raises ValueError if the runs hold nothing to draw."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    if number in ABOUT:
        places = [(m, b) for m, b, _ in runs.places()]
        places = [place for place in places if place[1] == ABOUT[number]] or places
        figure, axes = panels(plt, len(places))
        for axis, (model, benchmark) in zip(axes, places, strict=False):
            (bars if number == "7" else lines)(axis, runs, model, benchmark)
    elif number == "cost":
        places = list(runs.places())
        figure, axes = panels(plt, 3 * len(places))
        for i, (model, benchmark, _) in enumerate(places):
            cost(axes[3 * i: 3 * i + 3], runs, model, benchmark)
    elif number == "4":
        figure, axes = panels(plt, 1)
        gain_over_diversity(axes[0], runs)
    elif number == "3":
        figure, axes = panels(plt, 2)
        gate(axes, folders)
    else:
        figure, axes = panels(plt, 4)
        dynamics(axes, folders, *PANELS[number])
    path = Path(out or f"figure-{number}.png")
    labels = {label: drawn for axis in axes for drawn, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if labels and number != "3":
        figure.legend(labels.values(), labels.keys(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


def panels(plt, n: int):
    figure, axes = plt.subplots(1, n, figsize=(4 * n + 1.6, 3.6), squeeze=False, layout="constrained")
    return figure, axes[0]


def curves(runs: Runs, model: str, benchmark: str) -> Iterator[tuple[str, list[int], list[float]]]:
    """(method, Ks that it made, pass@K), controls left out"""
    for row in METHODS:
        seeds = runs.get(model, benchmark, row)
        ks = [k for k in SWEEP if seeds and k <= min(e.made for e in seeds)]
        if ks:
            yield row, ks, [mean(seeds, runs.passing(k)) for k in ks]


def style(row: str) -> dict:
    """A method looks the same in every figure."""
    import matplotlib
    ours = row == "CPPO"
    color = "black" if ours else matplotlib.colormaps["tab20"](METHODS.index(row))
    return {"color": color, "marker": "o", "markersize": 3, "linewidth": 2 if ours else 1}


def lines(axis, runs: Runs, model: str, benchmark: str) -> None:
    for row, ks, passing in curves(runs, model, benchmark):
        axis.plot(ks, passing, label=row, **style(row))
    for name, dashes in (("independent", ":"), ("coordinated", "--")):
        known = [(k, c) for k in SWEEP if (c := runs.ceiling(model, benchmark, k, name)) is not None]
        if known:
            axis.plot(*zip(*known, strict=True), dashes, color="grey", linewidth=1, label=f"{name} ceiling")
    axis.set(xlabel="attempts K", ylabel="pass@K", title=f"{benchmark}, {model}")
    powers(axis, SWEEP)


def powers(axis, ticks: Iterable[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, map(str, ticks), fontsize=7)


def bars(axis, runs: Runs, model: str, benchmark: str) -> None:
    drawn = list(curves(runs, model, benchmark))
    for place, (row, ks, passing) in enumerate(drawn):
        at = [SWEEP.index(k) + (place - len(drawn) / 2) * 0.8 / len(drawn) for k in ks]
        axis.bar(at, passing, width=0.8 / len(drawn), label=row, color=style(row)["color"])
    axis.set(xlabel="attempts K", ylabel="pass@K", title=f"{benchmark}, {model}")
    axis.set_xticks(range(len(SWEEP)), map(str, SWEEP))


def cost(axes, runs: Runs, model: str, benchmark: str) -> None:
    """Seconds: of the whole evaluation, sampling and judging, a problem, in proportion to its attempts."""
    for row, ks, passing in curves(runs, model, benchmark):
        seeds = runs.get(model, benchmark, row)
        tokens = [np.mean([sum(decoded(e, k)) for e in seeds]) for k in ks]
        timed = [e for e in seeds if e.card.get("seconds_for_problems")]
        each = [e.card["seconds"] / e.card["seconds_for_problems"] / e.setting["attempts"] for e in timed]
        seconds = [k * np.mean(each) for k in ks] if each else []
        for axis, xs in zip(axes, (ks, tokens, seconds), strict=True):
            if len(xs) and all(x > 0 for x in xs):
                axis.plot(xs, passing, label=row, **style(row))
    for axis, name in zip(axes, ("attempts", "decoded tokens a problem", "seconds a problem"), strict=True):
        axis.set(xscale="log", xlabel=name, ylabel="pass@K", title=f"{benchmark}, {model}")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    powers(axes[0], SWEEP)


def gain_over_diversity(axis, runs: Runs) -> None:
    points = []
    for model, benchmark, _ in runs.places():
        direct = runs.get(model, benchmark, "Direct Solve", 4)
        for row in METHODS:
            seeds = [e for e in runs.get(model, benchmark, row, 4) if len(recorded("D_alg")(e))]
            if direct and seeds and row != "Direct Solve":
                gain = mean(seeds, runs.passing(4)) - mean(direct, runs.passing(4))
                points.append((mean(seeds, recorded("D_alg")), gain))
                axis.scatter(*points[-1], s=16, color=style(row)["color"], label=row)
    if len(points) < 3:
        raise ValueError("figure 4 needs Direct Solve, and D_alg (diversity.py) of three methods beside it")
    x, y = np.array(points).T
    grid = np.linspace(x.min(), x.max(), 50)
    axis.plot(grid, np.polyval(np.polyfit(x, y, 1), grid), "--", color="grey")
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(x), size=(1000, len(x)))
    chosen = chosen[[len(set(x[c])) > 1 for c in chosen]]       # a line needs two places
    fits = np.array([np.polyval(np.polyfit(x[c], y[c], 1), grid) for c in chosen])
    axis.fill_between(grid, *np.quantile(fits, [0.025, 0.975], axis=0), alpha=0.2, color="grey")
    axis.set(xlabel=runs.d_alg(), ylabel="gain in pass@4 over Direct Solve")


def read(folders: Iterable[str], pattern: str) -> list[dict]:
    return [json.loads(line) for folder in folders for path in sorted(Path(folder).glob(pattern))
            for line in path.read_text(encoding="utf-8").splitlines()]


def gate(axes, folders: Iterable[str]) -> None:
    """Tuples of stage 5: p(Pass) against what the judge and the verifier said of them."""
    tuples = [t for t in read(folders, "cppo/samples.jsonl") if t.get("p_pass") is not None]
    if not tuples:
        raise ValueError("figure 3 needs cppo/samples.jsonl with p(Pass) of its tuples")
    told = {"solver outcome": [(t["p_pass"], bool(t["R_out"])) for t in tuples],
            "judge's labels": [(t["p_pass"], not t["faults"]) for t in tuples if t.get("faults") is not None]}
    for name, labels in told.items():
        if len({right for _, right in labels}) < 2:
            continue
        p, right = (np.array(column) for column in zip(*sorted(labels, key=lambda pair: -pair[0]), strict=True))
        last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)    # tuples of one p are accepted together
        false = np.append(0, np.cumsum(~right)[last] / (~right).sum())
        true = np.append(0, np.cumsum(right)[last] / right.sum())
        axes[0].plot(false, true, label=f"{name}, AUC {np.trapezoid(true, false):.3f}")
    axes[0].plot([0, 1], [0, 1], ":", color="grey")
    axes[0].set(xlabel="false positive rate", ylabel="true positive rate")
    axes[0].legend(fontsize=7)
    share = np.zeros((2, 2))
    for t in tuples:
        share[int(bool(t["J"])), int(bool(t["R_out"]))] += 1 / len(tuples)
    axes[1].imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (accepted, solved), value in np.ndenumerate(share):
        axes[1].text(solved, accepted, f"{value:.1%}", ha="center", va="center")
    axes[1].set_xticks([0, 1], ["unsolved", "solved"])
    axes[1].set_yticks([0, 1], ["rejected", "accepted"])
    axes[0].set_title(f"p(Pass) of {len(tuples)} tuples of stage 5", fontsize=9)
    axes[1].set_title("share of these tuples", fontsize=9)


def dynamics(axes, folders: Iterable[str], stage: str, names: dict[str, str]) -> None:
    drawn = False
    for folder in folders:
        steps = read([folder], f"{stage}/metrics.jsonl")
        spread = defaultdict(list)
        for problem in read([folder], f"{stage}/samples.jsonl"):
            spread[problem["step"]].append(np.var([branch["a"] for branch in problem["branches"]]))
        for axis, (key, name) in zip(axes, names.items(), strict=True):
            series = {s: np.mean(v) for s, v in sorted(spread.items())} if key == "variance" else {
                m["step"]: m[key] for m in steps if m.get(key) is not None}
            if series:
                axis.plot(list(series), list(series.values()), label=Path(folder).name, linewidth=1)
                drawn = True
            axis.set(xlabel="step", title=name)
    if not drawn:
        raise ValueError(f"these runs hold no {stage}/metrics.jsonl")
