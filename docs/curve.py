"""docs/curve.png, the README's plot: pass@K against the three ceilings.

    python docs/curve.py        # from Table 20 of docs/results.md; needs matplotlib
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
BUDGETS = [1, 2, 4, 8, 16, 20, 24]
CEILINGS = {"coordinated": "--", "independent": ":", "constant": "-."}
# Okabe and Ito's colours, as in paper/figures.py
METHODS = {"CPPO": "black", "Tuple Planner SFT": "#d55e00", "PKPO": "#0072b2",
           "Direct Solve": "#cc79a7"}
# pass@4 of every run of the recipe on record: README, "Results"
RUNS = [0.753, 0.727, 0.742, 0.753, 0.679, 0.742, 0.663, 0.652, 0.657, 0.652, 0.627, 0.571, 0.816,
        0.789]
# and with marginal credit: docs/credit.md
MARGINAL = [0.752, 0.774, 0.853, 0.809]


def table_20() -> dict[str, list[float]]:
    """{method: pass@K at BUDGETS, as far as it was measured}. A cell is 0.741 +-0.013, or -."""
    table = (HERE / "results.md").read_text().split("### Table 20")[1].split("```")[1]
    rows = {}
    for line in table.splitlines():
        name, *cells = re.split(r"  +", line.strip())
        means = [float(cell[:5]) for cell in cells if re.match(r"\d\.\d{3}", cell)]
        if means:
            rows[name] = means
    return rows


def main() -> None:
    rows = table_20()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150)
    for name, style in CEILINGS.items():
        values = rows[f"ceiling: {name}"]
        axes.plot(BUDGETS, values, style, color="gray", label=f"ceiling: {name}")
    for name, color in METHODS.items():
        values = rows[name]
        axes.plot(BUDGETS[:len(values)], values, "o-", color=color, markersize=3, label=name)
    axes.plot([4] * len(RUNS), RUNS, "_", color="black", markersize=14, label="CPPO, single runs")
    axes.plot([4] * len(MARGINAL), MARGINAL, "_", color="#009e73", markersize=14,
              label="with marginal credit")
    axes.set_xscale("log", base=2)
    axes.set_xticks(BUDGETS, [str(k) for k in BUDGETS])
    axes.set_xlabel("attempts K")
    axes.set_ylabel("pass@K, 300 held-out problems")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, loc="upper left")
    figure.tight_layout()
    figure.savefig(HERE / "curve.png")


if __name__ == "__main__":
    main()
