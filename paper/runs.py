"""Runs on disk, as the rows and cells of the paper's tables.

    runs = find(["runs/Qwen3.5-2B", "runs/Qwen3.5-2B-seed1"])
    for place in runs.places():                     # a model on a benchmark
        seeds = runs.get(place, "CPPO", k=4)        # its evaluations, one per training seed
        print(cell(seeds, runs.passing(4)))         # mean ± std over runs [interval over problems]
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib import files, metrics
from lib.errors import UserError
from paper import attempts
from paper.attempts import Evaluation

# method, as tables name it -> stage of the run that the model comes from / method of evaluate.py
SYSTEMS = {
    "Direct Solve": "base/direct",
    "Plan-and-Solve": "base/plan-and-solve",
    "PlanSearch": "base/plansearch",
    "Sketch-then-Solve": "base/sketch",
    "Self-Consistency": "base/self-consistency",
    "Fixed-Strategy Ensemble": "base/fixed",
    "GRPO": "grpo/direct",
    "MaxRL": "maxrl/direct",
    "Pass@K Training": "passk/direct",
    "PKPO": "pkpo/direct",
    "PKPO, leave-one-out": "pkpo-loo/direct",
    "UpSkill": "upskill/skills",
    "UpSkill, alpha 0.5": "upskill-a0.5/skills",
    "UpSkill, alpha 0.1": "upskill-a0.1/skills",
    "UpSkill, sequence": "upskill-sequence/skills",
    "Tuple Planner SFT": "sft/tuple",
    "+ RM warm-up": "warmup/tuple",
    "CPPO": "cppo/tuple",
    "CPPO, marginal": "cppo-marginal/tuple",
    "CPPO, marginal, by place": "cppo-marginal-place/tuple",
    "CPPO, shuffled": "cppo/tuple-shuffled",
}
CREDITS = ("CPPO", "CPPO, marginal", "CPPO, marginal, by place")    # Eq. 11 and 12; docs/credit.md
# Appendix G does not say which strategy of a plan an iid draw takes: the first, or any of the K
READINGS = {"iid, first": "tuple-iid", "iid, any": "tuple-iid-any"}
# Table 6
VARIANTS = {
    "CPPO (J R_out)": "cppo/tuple",
    "without J (R_out)": "cppo-outcome/tuple",
    "J alone": "cppo-gate/tuple",
    "M = 4": "cppo-m4/tuple",
    "M = 2": "cppo-m2/tuple",
    "M = 1": "cppo-m1/tuple",
}
BENCHMARKS = {"apps": "APPS", "cc": "CodeContests", "lcb": "LCBv6", "apps-500": "APPS-500",
              "lcb-500": "LCBv6-500"}
NOT_APPS = ("CodeContests", "LCBv6", "LCBv6-500", "execution", "test-output")
CEILINGS = ("constant", "independent", "coordinated")
TUPLES = 4          # independent plans that an iid draw of four attempts takes a strategy each from
# 97.5 % quantiles of Student's t by the number of runs; of more runs the normal one, or nearly
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262, 11: 2.228, 12: 2.201, 13: 2.179, 14: 2.160, 15: 2.145}
NORMAL = 2.0
# seeds of one method must agree in these
SAMPLED_BY = ("num_strategies", "temperature", "top_k", "top_p", "max_plan_tokens",
              "max_solve_tokens", "prompts_sha256")

# one number per problem, or per tuple: nan where a tuple has too few texts
Measure = Callable[[Evaluation], np.ndarray]


class Place(NamedTuple):
    """A model on a benchmark: where a table has a block of rows."""
    model: str
    benchmark: str


@dataclass
class Runs:
    """Evaluations, one per seed, by (model, benchmark, system)."""
    evaluations: dict[tuple[str, str, str], list[Evaluation]]
    realised: bool = False          # verdicts under the drawn truth even if posteriors are known
    paper_model: str | None = None  # the paper's model beside models that it does not have
    labels: str | None = None       # file of annotators' labels, which may validate D_alg

    def places(self, of_programs: bool = True) -> Iterator[Place]:
        """Where there are evaluations. Benchmarks whose outputs are predicted are for majority
        votes alone (Table 7): pass@K is of programs."""
        predicted = set()
        for (model, benchmark, _), seeds in self.evaluations.items():
            if attempts.has(seeds[0], "answer") and not attempts.has(seeds[0], "program"):
                predicted.add(Place(model, benchmark))
        for place in dict.fromkeys(Place(*key[:2]) for key in self.evaluations):
            if not (of_programs and place in predicted):
                yield place

    def get(self, place: Place, method: str, k: int = 1) -> list[Evaluation]:
        """Evaluations with K attempts or more, of a method in SYSTEMS or of a system itself."""
        seeds = self.evaluations.get((*place, SYSTEMS.get(method, method)), [])
        return [evaluation for evaluation in seeds if evaluation.made >= k]

    def passing(self, k: int) -> Measure:
        """pass@K per problem, posterior-averaged where that is known."""
        def measure(evaluation: Evaluation) -> np.ndarray:
            averaged = not self.realised and attempts.has(evaluation, "posterior")
            score = attempts.posterior if averaged else attempts.solved
            return attempts.outcomes(evaluation, k, score=score)
        return measure

    def pass_cell(self, place: Place, method: str, k: int = 4) -> str | None:
        return cell(self.get(place, method, k), self.passing(k))

    def ceiling(self, place: Place, k: int, name: str) -> float | None:
        """The best possible pass@K of a policy class, where a world knows it."""
        for key, seeds in self.evaluations.items():
            if key[:2] != place:
                continue
            for evaluation in seeds:
                ceilings = evaluation.card.get("ceilings") or {}
                if str(k) in ceilings:
                    return ceilings[str(k)][name]
        return None

    def ceilings(self, place: Place, k: int) -> dict[str, float | None]:
        return {f"ceiling: {name}": self.ceiling(place, k, name) for name in CEILINGS}

    def paper_cells(self, table: dict, method: str, model: str) -> dict[str, str]:
        """The paper's cells of a row, under names of their own."""
        cells = table.get((method, model)) or table.get((method, self.paper_model)) or {}
        return {f"{name} (paper)": text for name, text in cells.items()}

    def paper_apps_cells(self, table: dict, method: str, place: Place) -> dict[str, str]:
        """The same of a table about APPS: nothing beside the paper's other benchmarks."""
        if place.benchmark in NOT_APPS:
            return {}
        cells = self.paper_cells(table, method, place.model)
        return {name.replace("(paper)", "(paper, APPS)"): text for name, text in cells.items()}

    def d_alg(self) -> str:
        """The name of D_alg in tables: marked until a label file clears F.2's bar."""
        if self.labels:
            measured = reliability(self.labels)
            if metrics.is_validated(measured["kappa"], measured["macro-F1"]):
                return "D_alg"
        return "D_alg (unvalidated)"


def find(runs: Iterable[str | Path], realised: bool = False, paper_model: str | None = None,
         labels: str | None = None) -> Runs:
    """The evaluations under RUN/eval (of the base model) and RUN/STAGE/eval.

    A run is a folder or an archive of one (RUN.zip). RUN-seedN is a seed of RUN.
    """
    evaluations = defaultdict(list)
    for run in map(Path, runs):
        paths = attempts.paths(run)
        if not paths:
            raise UserError(f"{run} holds no attempts (eval/*.jsonl): evaluate.py writes them")
        for path in paths:
            evaluation = attempts.load(path)
            evaluation.run = run.name.removesuffix(".zip")
            if not evaluation.setting:
                raise UserError(f"{path} is there without the .json that evaluate.py writes "
                                f"beside it")
            seeds = evaluations[key_of(run, evaluation)]
            if seeds:
                refuse_another(seeds[0], evaluation)
            # one order for all seeds and methods: comparisons are paired by place
            evaluation.problems = dict(sorted(evaluation.problems.items()))
            seeds.append(evaluation)
    for key, seeds in list(evaluations.items()):
        enough = all(attempts.num_tuples(evaluation) >= TUPLES for evaluation in seeds)
        if key[2].endswith("/tuple") and enough:
            other_reading = (*key[:2], key[2] + "-iid-any")
            evaluations[other_reading] = [attempts.any_label(evaluation) for evaluation in seeds]
    return Runs(dict(evaluations), realised, paper_model, labels)


def key_of(run: Path, evaluation: Evaluation) -> tuple[str, str, str]:
    """(model, benchmark, system) of an evaluation, from its path and its setting."""
    setting = evaluation.setting
    model = re.sub(r"-seed\d+$", "", run.name.removesuffix(".zip"))
    benchmark = BENCHMARKS.get(setting["benchmark"], setting["benchmark"])
    stage = evaluation.path.parent.parent.relative_to(run).as_posix()
    system = f"{'base' if stage == '.' else stage}/{setting['method']}"
    # another checkpoint of a stage is no other seed of it
    if setting.get("step"):
        system += f"-step{setting['step']}"
    if Path(setting.get("model") or "").name == "best":
        system += "-best"
    if setting["shuffle_strategies"]:
        system += "-shuffled"
    return model, benchmark, system


def refuse_another(first: Evaluation, other: Evaluation) -> None:
    """UserError if two seeds of one method do not belong together."""
    if first.problems.keys() != other.problems.keys():
        raise UserError(f"{other.path} and {first.path} are seeds of one method on different "
                        f"problems")
    for name in SAMPLED_BY:
        if first.setting.get(name) != other.setting.get(name):
            raise UserError(f"{other.path} and {first.path} are seeds of one method with another "
                            f"{name}")


def reliability(path: str) -> dict[str, float]:
    """Table 13 (F.2): agreement of two annotators, and the classifier against what they agree on.

    path: JSON lines with first, second and predicted, each a category.
    """
    first, second, agreed, predicted = [], [], [], []
    for number, row in files.read_lines(path):
        if not isinstance(row, dict) or not {"first", "second", "predicted"} <= row.keys():
            raise UserError(f"{path} line {number}: needs first, second and predicted")
        first.append(row["first"])
        second.append(row["second"])
        if row["first"] == row["second"]:
            agreed.append(row["first"])
            predicted.append(row["predicted"])
    if not agreed:
        raise UserError(f"{path}: the annotators agree on no line, so there is nothing to measure "
                        f"the classifier against")
    return {"kappa": metrics.cohen_kappa(first, second),
            "accuracy": metrics.accuracy(agreed, predicted),
            "macro-F1": metrics.macro_f1(agreed, predicted)}


# ----------------------------------------------------------------------------------------------
# Measures of a file

@functools.cache
def surface(evaluation: Evaluation) -> np.ndarray:
    """D_surf per tuple; nan of fewer than two texts."""
    groups = [attempts.texts(evaluation, group) for group in attempts.tuples(evaluation)]
    return np.array([metrics.d_surf(texts) if len(texts) > 1 else math.nan for texts in groups])


def records(evaluation: Evaluation) -> list[tuple[list[dict], dict]]:
    """Each tuple with what diversity.py wrote about it: {} of fewer than two texts."""
    found = {}
    for record in (evaluation.diversity or {}).get("groups", []):
        found[record["problem_id"], record.get("tuple", 0)] = record
    pairs = []
    for group in attempts.tuples(evaluation):
        pairs.append((group, found.get((group[0]["problem_id"], group[0]["tuple"]), {})))
    return pairs


def semantic(evaluation: Evaluation) -> np.ndarray:
    """D_sem per tuple, as diversity.py wrote it; nan of fewer than two texts."""
    return np.array([record.get("D_sem", math.nan) for _, record in records(evaluation)])


def algorithmic(evaluation: Evaluation) -> np.ndarray:
    """D_alg per tuple by Eq. 16: categories that differ, over K. An attempt without a text has no
    category and stays in the denominator; nan everywhere if diversity.py classified nothing."""
    pairs = records(evaluation)
    if not any("categories" in record for _, record in pairs):
        return np.full(len(pairs), math.nan)
    shares = []
    for group, record in pairs:
        categories = record.get("categories") or attempts.texts(evaluation, group)[:1]
        shares.append(metrics.d_alg(categories, len(group)))
    return np.array(shares)


def duplicates(evaluation: Evaluation) -> np.ndarray:
    """1 per tuple that has two strategies of one text, else 0."""
    groups = [attempts.texts(evaluation, group) for group in attempts.tuples(evaluation)]
    return np.array([float(metrics.is_literal_duplicate(texts)) for texts in groups])


# ----------------------------------------------------------------------------------------------
# Cells

def values(seeds: list[Evaluation], measure: Measure) -> np.ndarray:
    """(seeds, problems)"""
    return np.array([measure(evaluation) for evaluation in seeds])


def having(seeds: list[Evaluation], measure: Measure) -> list[Evaluation]:
    """The evaluations for which there is something to measure."""
    return [evaluation for evaluation in seeds if not np.isnan(measure(evaluation)).all()]


def mean(seeds: list[Evaluation], measure: Measure) -> float | None:
    if not seeds:
        return None
    return float(np.mean([np.nanmean(measure(evaluation)) for evaluation in seeds]))


def cell(seeds: list[Evaluation], measure: Measure) -> str | None:
    """Mean ± std over runs [95 % bootstrap interval over problems]; no ± of a single run.

    Runs of an untrained method differ in the seed of sampling alone.
    """
    if not seeds:
        return None
    by_problem = values(seeds, measure)
    if np.isnan(by_problem).any():
        low, high = interval_of_few(by_problem)
    else:
        low, high = metrics.bootstrap_interval(by_problem)
    return f"{mean_std(list(np.nanmean(by_problem, axis=1)))} [{low:.3f}, {high:.3f}]"


def interval_of_few(by_problem: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """metrics.bootstrap_interval where some values are nan: every run weighs alike, however many
    tuples it has a value for. by_problem: (seeds, problems)."""
    rng = np.random.default_rng(0)
    n = by_problem.shape[1]
    means = []
    for _ in range(resamples):
        of_runs = [np.nanmean(run) for run in by_problem[:, rng.integers(n, size=n)]
                   if not np.isnan(run).all()]
        if of_runs:
            means.append(np.mean(of_runs))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def interval_over_runs(numbers: list[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; without limits for fewer than two runs."""
    average, std = metrics.seed_mean_std(numbers)
    if len(numbers) < 2:
        return -math.inf, math.inf
    half = STUDENT.get(len(numbers), NORMAL) * std / math.sqrt(len(numbers))
    return average - half, average + half


def mean_std(numbers: list[float]) -> str | None:
    if not numbers:
        return None
    average, std = metrics.seed_mean_std(numbers)
    return f"{average:.3f}" if math.isnan(std) else f"{average:.3f} ±{std:.3f}"


def difference(a: list[Evaluation], b: list[Evaluation], measure: Measure) -> str | None:
    """Mean of a less mean of b, ± std over the runs that have both."""
    if not a or not b:
        return None
    theirs = {evaluation.run: evaluation for evaluation in b}
    by_run = [mean([ours], measure) - mean([theirs[ours.run]], measure)
              for ours in a if ours.run in theirs]
    spread = f" ±{metrics.seed_mean_std(by_run)[1]:.3f}" if len(by_run) > 1 else ""
    return f"{mean(a, measure) - mean(b, measure):+.3f}{spread}"
