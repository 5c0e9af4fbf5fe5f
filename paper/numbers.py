"""The numbers that the paper prints, for columns of their own beside ours. Data alone.

Models are named as run folders are. Cells are text, as printed: "mean ±spread", with the paper's
own spread (most of those equal sqrt(p (1 - p) / 100), whatever the caption says).
"""


def _rows(columns: str, text: str) -> dict[tuple[str, str], dict[str, str]]:
    """Lines "row | model | cell | cell ..." -> {(row, model): {column: cell}}; "-": no cell."""
    names = columns.split(", ")
    table = {}
    for line in text.strip().split("\n"):
        row, model, *cells = [part.strip() for part in line.split("|")]
        named = zip(names, cells, strict=True)
        table[row, model] = {name: cell for name, cell in named if cell != "-"}
    return table


MAIN = _rows("APPS, CodeContests, LCBv6", """
Direct Solve       | Qwen3.5-2B | 0.420 ±0.049 | 0.040 ±0.020 | 0.161 ±0.037
Direct Solve       | Qwen3.5-4B | 0.515 ±0.050 | 0.094 ±0.034 | 0.214 ±0.041
Direct Solve       | Qwen3.5-9B | 0.696 ±0.043 | 0.175 ±0.038 | 0.481 ±0.050
Plan-and-Solve     | Qwen3.5-2B | 0.492 ±0.050 | 0.065 ±0.025 | 0.205 ±0.040
Plan-and-Solve     | Qwen3.5-4B | 0.530 ±0.050 | 0.098 ±0.030 | 0.255 ±0.034
Plan-and-Solve     | Qwen3.5-9B | 0.801 ±0.040 | 0.171 ±0.038 | 0.490 ±0.050
PlanSearch         | Qwen3.5-2B | 0.513 ±0.050 | 0.043 ±0.020 | 0.225 ±0.042
PlanSearch         | Qwen3.5-4B | 0.554 ±0.050 | 0.128 ±0.033 | 0.236 ±0.033
PlanSearch         | Qwen3.5-9B | 0.770 ±0.042 | 0.168 ±0.037 | 0.564 ±0.050
Pass@K Training    | Qwen3.5-2B | 0.476 ±0.051 | 0.085 ±0.027 | 0.215 ±0.044
Pass@K Training    | Qwen3.5-4B | 0.607 ±0.044 | 0.115 ±0.032 | 0.316 ±0.046
Pass@K Training    | Qwen3.5-9B | 0.762 ±0.044 | 0.185 ±0.040 | 0.503 ±0.052
PKPO               | Qwen3.5-2B | 0.448 ±0.049 | 0.062 ±0.025 | 0.347 ±0.048
PKPO               | Qwen3.5-4B | 0.722 ±0.045 | 0.156 ±0.036 | 0.488 ±0.050
PKPO               | Qwen3.5-9B | 0.787 ±0.040 | 0.183 ±0.038 | 0.588 ±0.048
UpSkill            | Qwen3.5-2B | 0.462 ±0.053 | 0.041 ±0.021 | 0.287 ±0.046
UpSkill            | Qwen3.5-4B | 0.661 ±0.047 | 0.121 ±0.033 | 0.411 ±0.049
UpSkill            | Qwen3.5-9B | 0.762 ±0.046 | 0.136 ±0.038 | 0.542 ±0.048
Tuple Planner SFT  | Qwen3.5-2B | 0.470 ±0.050 | 0.087 ±0.028 | 0.246 ±0.043
Tuple Planner SFT  | Qwen3.5-4B | 0.528 ±0.047 | 0.142 ±0.038 | 0.368 ±0.052
Tuple Planner SFT  | Qwen3.5-9B | 0.713 ±0.054 | 0.285 ±0.044 | 0.534 ±0.054
+ RM warm-up       | Qwen3.5-2B | 0.481 ±0.046 | 0.105 ±0.033 | 0.231 ±0.038
+ RM warm-up       | Qwen3.5-4B | 0.524 ±0.051 | 0.204 ±0.043 | 0.384 ±0.049
+ RM warm-up       | Qwen3.5-9B | 0.714 ±0.048 | 0.313 ±0.042 | 0.541 ±0.051
CPPO               | Qwen3.5-2B | 0.546 ±0.050 | 0.201 ±0.045 | 0.428 ±0.046
CPPO               | Qwen3.5-4B | 0.794 ±0.038 | 0.243 ±0.047 | 0.535 ±0.048
CPPO               | Qwen3.5-9B | 0.826 ±0.041 | 0.436 ±0.046 | 0.748 ±0.044
Direct Solve       | gemma-4-E2B-it | 0.640 ±0.048 | - | 0.440
Direct Solve       | gemma-4-E4B-it | 0.750 ±0.043 | - | 0.520
Plan-and-Solve     | gemma-4-E2B-it | 0.660 ±0.047 | - | 0.452 ±0.046
Plan-and-Solve     | gemma-4-E4B-it | 0.770 ±0.042 | - | 0.531 ±0.048
PlanSearch         | gemma-4-E2B-it | 0.690 ±0.046 | - | 0.481 ±0.044
PlanSearch         | gemma-4-E4B-it | 0.790 ±0.041 | - | 0.560 ±0.046
Pass@K Training    | gemma-4-E2B-it | 0.708 ±0.047 | - | 0.519 ±0.048
Pass@K Training    | gemma-4-E4B-it | 0.798 ±0.043 | - | 0.598 ±0.045
PKPO               | gemma-4-E2B-it | 0.725 ±0.045 | - | 0.521 ±0.049
PKPO               | gemma-4-E4B-it | 0.815 ±0.041 | - | 0.601 ±0.054
CPPO               | gemma-4-E2B-it | 0.748 ±0.044 | - | 0.561 ±0.043
CPPO               | gemma-4-E4B-it | 0.832 ±0.040 | - | 0.629 ±0.043
""")  # Tables 1, 5, 8 and 19

TOKENS = {
    "APPS": _rows("planner tok, solver tok, tokens, pass@4, per 10k", """
Direct Solve   | Qwen3.5-4B | 0.0   | 6086.8 | 6086.8 | 0.515 | 0.846
Plan-and-Solve | Qwen3.5-4B | 0.0   | 7326.2 | 7326.2 | 0.530 | 0.723
PlanSearch     | Qwen3.5-4B | 566.0 | 4969.0 | 5535.0 | 0.554 | 1.001
CPPO           | Qwen3.5-4B | 131.1 | 4596.7 | 4727.8 | 0.794 | 1.679
"""),
    "LCBv6": _rows("planner tok, solver tok, tokens, pass@4, per 10k", """
Direct Solve   | Qwen3.5-4B | 0.0 | 1731.0 | 1731.0 | 0.214 | 1.236
Plan-and-Solve | Qwen3.5-4B | 0.0 | 3975.0 | 3975.0 | 0.255 | 0.642
PlanSearch     | Qwen3.5-4B | -   | -      | 2137.0 | 0.236 | 1.104
PKPO           | Qwen3.5-4B | 0.0 | 2137.0 | 2137.0 | 0.488 | 2.284
UpSkill        | Qwen3.5-4B | 0.0 | 2218.0 | 2218.0 | 0.411 | 1.853
CPPO           | Qwen3.5-4B | -   | -      | 1556.0 | 0.535 | 3.438
""")}  # Tables 4 and 18

ABLATION = _rows("pass@4, duplicates", """
CPPO (J R_out)       | Qwen3.5-2B | 0.546 ±0.050 | 0.08 ±0.030
without J (R_out)    | Qwen3.5-2B | 0.522 ±0.047 | 0.32 ±0.044
J alone              | Qwen3.5-2B | 0.503 ±0.050 | 0.14 ±0.032
M = 4                | Qwen3.5-2B | 0.535 ±0.048 | 0.10 ±0.032
M = 2                | Qwen3.5-2B | 0.515 ±0.049 | 0.12 ±0.034
M = 1                | Qwen3.5-2B | 0.486 ±0.048 | 0.16 ±0.035
""")  # Table 6, upper blocks (APPS)

BUDGET = _rows("Direct Solve, CPPO", """
2 | Qwen3.5-2B | 0.399 ±0.047 | 0.518 ±0.048
4 | Qwen3.5-2B | 0.420 ±0.049 | 0.546 ±0.050
8 | Qwen3.5-2B | 0.432 ±0.046 | 0.561 ±0.055
""")  # Table 6, lower block (APPS)

MAJORITY = _rows("execution, test-output, average", """
Direct Solve             | Qwen3.5-2B | 0.22 ±0.041 | 0.19 ±0.042 | 0.205 ±0.042
Plan-and-Solve           | Qwen3.5-2B | 0.16 ±0.039 | 0.10 ±0.033 | 0.130 ±0.031
Fixed-Strategy Ensemble  | Qwen3.5-2B | 0.19 ±0.042 | 0.13 ±0.034 | 0.160 ±0.033
PKPO                     | Qwen3.5-2B | 0.38 ±0.050 | 0.21 ±0.044 | 0.295 ±0.042
CPPO                     | Qwen3.5-2B | 0.41 ±0.049 | 0.31 ±0.047 | 0.360 ±0.046
Direct Solve             | Qwen3.5-4B | 0.38 ±0.052 | 0.29 ±0.044 | 0.335 ±0.045
Plan-and-Solve           | Qwen3.5-4B | 0.15 ±0.034 | 0.12 ±0.030 | 0.135 ±0.035
Fixed-Strategy Ensemble  | Qwen3.5-4B | 0.32 ±0.048 | 0.30 ±0.049 | 0.310 ±0.042
PKPO                     | Qwen3.5-4B | 0.48 ±0.048 | 0.34 ±0.048 | 0.410 ±0.052
CPPO                     | Qwen3.5-4B | 0.51 ±0.054 | 0.35 ±0.050 | 0.430 ±0.052
""")  # Table 7

RELIABILITY = {"kappa": "0.72", "accuracy": "0.81", "macro-F1": "0.78"}  # Table 13

DIVERSITY = _rows("D_surf, D_sem, D_alg", """
Direct Solve       | Qwen3.5-2B | 0.74 ±0.04 | 0.31 ±0.03 | 0.38 ±0.05
Plan-and-Solve     | Qwen3.5-2B | 0.77 ±0.04 | 0.34 ±0.04 | 0.44 ±0.06
PlanSearch         | Qwen3.5-2B | 0.83 ±0.03 | 0.41 ±0.04 | 0.58 ±0.05
Pass@K Training    | Qwen3.5-2B | 0.76 ±0.05 | 0.33 ±0.04 | 0.43 ±0.06
PKPO               | Qwen3.5-2B | 0.79 ±0.04 | 0.37 ±0.04 | 0.49 ±0.06
Tuple Planner SFT  | Qwen3.5-2B | 0.86 ±0.03 | 0.47 ±0.04 | 0.66 ±0.05
CPPO               | Qwen3.5-2B | 0.90 ±0.03 | 0.55 ±0.04 | 0.79 ±0.04
""")  # Table 14 (APPS)

INFERENCE = _rows("joint, iid, difference", """
Tuple Planner SFT | Qwen3.5-2B | 0.470 ±0.050 | 0.452 ±0.051 | +0.018
CPPO              | Qwen3.5-2B | 0.546 ±0.050 | 0.493 ±0.052 | +0.053
Tuple Planner SFT | Qwen3.5-4B | 0.528 ±0.047 | 0.511 ±0.048 | +0.017
CPPO              | Qwen3.5-4B | 0.794 ±0.038 | 0.741 ±0.041 | +0.053
Tuple Planner SFT | Qwen3.5-9B | 0.713 ±0.054 | 0.701 ±0.054 | +0.012
CPPO              | Qwen3.5-9B | 0.826 ±0.041 | 0.794 ±0.043 | +0.032
""")  # Table 15 (APPS)

INFERENCE_DIVERSITY = _rows("joint, iid, difference", """
Tuple Planner SFT | Qwen3.5-2B | 0.66 ±0.05 | 0.54 ±0.06 | +0.12
CPPO              | Qwen3.5-2B | 0.79 ±0.04 | 0.60 ±0.05 | +0.19
""")  # Table 16 (APPS)

DECOMPOSITION = _rows("total gain, training share, joint-inference share, inference %", """
CPPO | Qwen3.5-2B | +0.126 | +0.073 | +0.053 | 42%
CPPO | Qwen3.5-4B | +0.279 | +0.226 | +0.053 | 19%
CPPO | Qwen3.5-9B | +0.130 | +0.098 | +0.032 | 25%
""")  # Table 17 (APPS)
