"""Makers of run folders with plausible attempts, for the tests of paper/.

    write_run(folder, "cppo", "tuple")      # folder/cppo/eval/heldout-tuple.jsonl and its card
    two_seeds(root)                         # every method of the tables, two seeds

What tests expect is computed from the same lines by other code (`raw`, `pass_at`).
"""

import gzip
import json
import random
import statistics
from pathlib import Path

from paper.runs import SYSTEMS, VARIANTS

PROBLEMS = [f"p{i:02}" for i in range(30)]
WORDS = "sort scan hash greedy table graph count prefix stack merge".split()
MASSES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}   # of eight outcomes, four are classes of a world
SKILL = {"direct": 0.1, "plan-and-solve": 0.12, "plansearch": 0.15, "sketch": 0.1, "fixed": 0.08,
         "self-consistency": 0.1, "skills": 0.2, "tuple": 0.3, "tuple-iid": 0.25}
CEILINGS = {"4": {"constant": 0.1, "independent": 0.6, "coordinated": 1.0}}


def write_run(folder: Path, stage: str, method: str, seed: int = 0, skill: float | None = None,
              world: bool = False, shuffled: bool = False, packed: bool = False,
              benchmark: str = "heldout", **setting) -> Path:
    """Eight attempts per problem, and their card, under folder/STAGE/eval."""
    rng = random.Random(f"{stage} {method} {seed}")
    planned = "tuple" in method
    lines = []
    for problem in PROBLEMS:
        for i in range(8):
            right = rng.random() < (SKILL[method] if skill is None else skill)
            drawn, index = (i // 4, i % 4) if method == "tuple" else (i, 0)
            line = {"problem_id": problem, "seed": 0, "tuple": drawn, "index": index, "gate": None}
            line["strategy"] = " ".join(rng.choices(WORDS, k=6)) if planned else None
            line["program"] = " ".join(rng.choices(WORDS, k=12))
            line["answer"] = rng.choice("12")
            line["status"] = "accepted" if right else "wrong_answer"
            line["outcome"] = rng.choice("abcdefgh")
            line["planner_tokens"] = 40 if planned and not index else 0
            line |= {"solver_tokens": rng.randrange(50, 90), "seconds": 0.1, "finish": "eos"}
            if world:
                line["posterior"] = MASSES.get(line["outcome"], 0.0)
            lines.append(line)
    folder = folder / "eval" if stage == "base" else folder / stage / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{benchmark}-{method}{'-shuffled' if shuffled else ''}"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = folder / f"{name}.jsonl"
    if packed:
        path = folder / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    setting = {"method": method, "benchmark": benchmark, "num_strategies": 4, "attempts": 8,
               "shuffle_strategies": shuffled} | setting
    card = {"setting": setting, "seconds": 60.0, "seconds_for_problems": 30,
            "faults": {"duplicate": 0.25} if method == "tuple" else None,
            "ceilings": CEILINGS if world else None}
    (folder / f"{name}.json").write_text(json.dumps(card))
    return path


def two_seeds(root: Path) -> list[Path]:
    """Every method of the tables; the base model's evaluations stand in the first run."""
    folders = [root / f"Qwen3.5-2B-seed{seed}" for seed in (0, 1)]
    for seed, run in enumerate(folders):
        for row, system in SYSTEMS.items():
            stage, method = system.split("/")
            shuffled = method.endswith("-shuffled")
            method = method.removesuffix("-shuffled")
            if stage != "base" or seed == 0:
                write_run(run, stage, method, seed, shuffled=shuffled, packed=row == "CPPO")
        for stage in ("sft", "cppo"):
            write_run(run, stage, "tuple-iid", seed)
        for system in VARIANTS.values():
            if not system.startswith("cppo/"):
                write_run(run, system.split("/")[0], "tuple", seed)
    return folders


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def raw(folders: list[Path], stage: str, method: str,
        benchmark: str = "heldout") -> list[list[dict]]:
    """Per seed, the lines of an attempts file, read without the code under test."""
    seeds = []
    for folder in folders:
        path = folder / stage / "eval" / f"{benchmark}-{method}.jsonl"
        packed = path.with_suffix(".jsonl.gz")
        if path.exists():
            seeds.append(read_lines(path))
        elif packed.exists():
            text = gzip.decompress(packed.read_bytes()).decode()
            seeds.append([json.loads(line) for line in text.splitlines()])
    return seeds


def pass_at(lines: list[dict], k: int) -> float:
    counted = [line for place, line in enumerate(lines) if place % 8 < k]
    solved = {line["problem_id"] for line in counted if line["status"] == "accepted"}
    return len(solved) / len(PROBLEMS)


def mean_pm_std(numbers: list[float]) -> str:
    return f"{statistics.mean(numbers):.3f} ±{statistics.stdev(numbers):.3f}"
