"""Tables from attempts files that are made here; a cell of each is computed again by other code."""

import gzip
import json
import random
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from lib import metrics
from lib.problems import Problem, save_problems
from paper import attempts, diversity, tables
from paper import numbers as paper

PROBLEMS = [f"p{i:02}" for i in range(30)]
WORDS = "sort scan hash greedy table graph count prefix stack merge".split()
MASSES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}      # of eight outcomes, four are classes of the world
SKILL = {"direct": 0.1, "plan-and-solve": 0.12, "plansearch": 0.15, "sketch": 0.1, "fixed": 0.08,
         "self-consistency": 0.1, "skills": 0.2, "tuple": 0.3, "tuple-iid": 0.25}


def write_run(folder: Path, stage: str, method: str, seed: int = 0, skill: float | None = None, world: bool = False,
              shuffled: bool = False, packed: bool = False, benchmark: str = "heldout", **setting) -> Path:
    """Plausible attempts, eight a problem, and their card under folder/STAGE/eval."""
    rng = random.Random(f"{stage} {method} {seed}")
    planned, lines = "tuple" in method, []
    for problem in PROBLEMS:
        for i in range(8):
            right = rng.random() < (SKILL[method] if skill is None else skill)
            drawn, index = (i // 4, i % 4) if method == "tuple" else (i, 0)
            lines.append({
                "problem_id": problem, "seed": 0, "tuple": drawn, "index": index, "gate": None,
                "strategy": " ".join(rng.choices(WORDS, k=6)) if planned else None,
                "program": " ".join(rng.choices(WORDS, k=12)), "answer": rng.choice("12"),
                "status": "accepted" if right else "wrong_answer", "outcome": rng.choice("abcdefgh"),
                "planner_tokens": 40 if planned and not index else 0,
                "solver_tokens": rng.randrange(50, 90), "seconds": 0.1, "finish": "eos"})
            if world:
                lines[-1]["posterior"] = MASSES.get(lines[-1]["outcome"], 0.0)
    folder = folder / stage / "eval" if stage != "base" else folder / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}-{method}{'-shuffled' * shuffled}.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if packed:
        path = path.with_suffix(".jsonl.gz")
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    card = {"setting": {"method": method, "benchmark": benchmark, "num_strategies": 4, "attempts": 8,
                        "shuffle_strategies": shuffled} | setting, "seconds": 60.0, "seconds_for_problems": 30,
            "faults": {"duplicate": 0.25} if method == "tuple" else None,
            "ceilings": {"4": {"constant": 0.1, "independent": 0.6, "coordinated": 1.0}} if world else None}
    (folder / f"{path.name.partition('.')[0]}.json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two seeds of every method; the base model's evaluations stand in the first run."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run = root / f"Qwen3.5-2B-seed{seed}"
        for row, system in tables.SYSTEMS.items():
            stage, method = system.split("/")
            method, shuffled = method.removesuffix("-shuffled"), method.endswith("-shuffled")
            if stage != "base" or seed == 0:
                write_run(run, stage, method, seed, shuffled=shuffled, packed=row == "CPPO")
        for stage in ("sft", "cppo"):
            write_run(run, stage, "tuple-iid", seed)
        for system in tables.VARIANTS.values():
            if not system.startswith("cppo/"):
                write_run(run, system.split("/")[0], "tuple", seed)
    return [root / f"Qwen3.5-2B-seed{seed}" for seed in (0, 1)]


@pytest.fixture(scope="module")
def runs(folders) -> tables.Runs:
    return tables.find(folders)


def raw(folders: list[Path], stage: str, name: str, benchmark: str = "heldout") -> list[list[dict]]:
    """Per seed, the lines of an attempts file, read without the code under test."""
    files = [folder / stage / "eval" / f"{benchmark}-{name}.jsonl" for folder in folders]
    packed = [file.with_suffix(".jsonl.gz") for file in files]
    texts = [file.read_text() if file.exists() else gzip.decompress(gz.read_bytes()).decode()
             for file, gz in zip(files, packed, strict=True) if file.exists() or gz.exists()]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def pass_at(lines: list[dict], k: int) -> float:
    counted = [line for place, line in enumerate(lines) if place % 8 < k]
    return len({line["problem_id"] for line in counted if line["status"] == "accepted"}) / 30


def line_of(lines: list[dict], name: object) -> dict:
    return next(line for line in lines if name in line.values())


def mean_pm_std(numbers: list[float]) -> str:
    return f"{statistics.mean(numbers):.3f} ±{statistics.stdev(numbers):.3f}"


def test_main_table_shows_seed_means_beside_the_paper(runs, folders):
    """Tables 1, 5, 8, 19."""
    lines = tables.main_table(runs)
    pkpo = line_of(lines, "PKPO")
    assert pkpo["heldout"] == mean_pm_std([pass_at(lines, 4) for lines in raw(folders, "pkpo", "direct")])
    assert pkpo["APPS (paper)"] == "0.448 ±0.049" and pkpo["LCBv6 (paper)"] == "0.347 ±0.048"
    direct = line_of(lines, "Direct Solve")["heldout"]
    assert direct.startswith(f"{pass_at(raw(folders, '', 'direct')[0], 4):.3f} [")      # no seeds: interval
    assert [line["method"] for line in tables.TABLES[5][0](runs)] == list(tables.STAGES)


def test_a_star_marks_cppo_only_where_the_bootstrap_says_so(tmp_path):
    for skill, starred in ((0.9, True), (0.12, False)):
        run = tmp_path / f"m{skill}"
        write_run(run, "base", "direct", skill=0.1)
        write_run(run, "cppo", "tuple", skill=skill)
        cell = line_of(tables.main_table(tables.find([run])), "CPPO")["heldout"]
        assert cell.endswith(" *") == starred


def test_worlds_show_the_posterior_averaged_figure_and_the_ceilings(tmp_path):
    path = write_run(tmp_path / "mini", "cppo", "tuple", world=True)
    lines = tables.main_table(tables.find([tmp_path / "mini"]))
    hit = {p: set() for p in PROBLEMS}
    for line in map(json.loads, path.read_text().splitlines()):
        if line["tuple"] == 0:
            hit[line["problem_id"]].add(line["outcome"])
    expected = sum(MASSES.get(outcome, 0) for found in hit.values() for outcome in found) / 30
    assert line_of(lines, "CPPO")["heldout"].startswith(f"{expected:.3f} [")
    assert line_of(lines, "ceiling: coordinated")["heldout"] == 1.0
    realised = line_of(tables.main_table(tables.find([tmp_path / "mini"], realised=True)), "CPPO")
    solved = pass_at([json.loads(line) for line in path.read_text().splitlines()], 4)
    assert realised["heldout"].startswith(f"{solved:.3f} [")


def test_token_table_pays_for_plans_and_for_the_attempts_that_count(runs, folders):
    """Tables 4 and 18."""
    line = line_of(tables.token_table(runs), "CPPO")
    counted = [[a for a in lines if a["tuple"] == 0] for lines in raw(folders, "cppo", "tuple")]
    solver = statistics.mean(sum(a["solver_tokens"] for a in lines) / 30 for lines in counted)
    assert line["planner tok"] == 40 and line["solver tok"] == pytest.approx(solver)
    solved = statistics.mean(pass_at(lines, 4) for lines in raw(folders, "cppo", "tuple"))
    assert line["per 10k"] == pytest.approx(solved / (40 + solver) * 10_000)


def test_ablation_table_shows_variants_duplicates_and_budgets(runs, folders):
    """Table 6."""
    lines = tables.ablation_table(runs)
    gateless = line_of(lines, "without J (R_out)")
    assert gateless["pass@4"] == mean_pm_std([pass_at(x, 4) for x in raw(folders, "cppo-outcome", "tuple")])
    assert gateless["judged duplicates"] == "0.250 ±0.000" and gateless["duplicates (paper, APPS)"] == "0.32 ±0.044"
    k8 = line_of(tables.sweep_table(runs), 8)
    assert k8["CPPO"] == mean_pm_std([pass_at(x, 8) for x in raw(folders, "cppo", "tuple")])
    assert k8["Direct Solve (paper, APPS)"] == "0.432 ±0.046"


def test_majority_table_counts_the_first_of_the_most_frequent_answers(tmp_path):
    """Table 7, the only one where predicted outputs stand."""
    def maj(lines: list[dict]) -> float:
        right = 0
        for problem in PROBLEMS:
            four = [a for a in lines if a["problem_id"] == problem][:4]
            votes = Counter(a["answer"] for a in four)
            winner = next(a for a in four if votes[a["answer"]] == max(votes.values()))
            right += winner["status"] == "accepted"
        return right / 30

    folders = [tmp_path / f"Qwen3.5-2B-seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_run(folder, "pkpo", "direct", seed)
        path = write_run(folder, "pkpo", "direct", seed, skill=0.3, benchmark="execution")
        path.write_text("".join(json.dumps(json.loads(line) | {"program": None}) + "\n" for line in path.read_text().splitlines()))
    runs = tables.find(folders)
    line = line_of(tables.majority_table(runs), "PKPO")
    found = [raw(folders, "pkpo", "direct", benchmark) for benchmark in ("heldout", "execution")]
    assert [line["heldout"], line["execution"]] == [mean_pm_std([maj(x) for x in lines]) for lines in found]
    assert line["average"] == pytest.approx(statistics.mean(map(maj, found[1]))) and line["test-output (paper)"] == "0.21 ±0.044"
    assert "execution" not in line_of(tables.main_table(runs), "PKPO")


def test_side_by_side_shows_both_methods_attempts_at_a_problem(runs, folders):
    """Table 12."""
    text = tables.side_by_side(runs, "p03")
    ours = [a for a in raw(folders, "cppo", "tuple")[0] if a["problem_id"] == "p03"][:4]
    for attempt in ours:
        mark = "+" if attempt["status"] == "accepted" else "-"
        assert f"{mark} {attempt['strategy'][:40]}" in text
    chosen = tables.side_by_side(runs, None).split(" ")[0]
    cppo, direct = ([a["status"] for a in raw(folders, stage, name)[0] if a["problem_id"] == chosen][:4]
                    for stage, name in (("cppo", "tuple"), ("", "direct")))
    assert "accepted" in cppo and "accepted" not in direct
    with pytest.raises(ValueError, match="'p99'"):
        tables.side_by_side(runs, "p99")


def test_reliability_table_measures_against_what_the_annotators_agree_on(tmp_path):
    """Table 13."""
    path = tmp_path / "labels.jsonl"
    rows = [("dp", "dp", "dp"), ("dp", "greedy", "graph"), ("graph",) * 3, ("graph", "graph", "dp")]
    names = ("first", "second", "predicted")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    lines = {line["quantity"]: line for line in tables.reliability_table(str(path))}
    assert lines["accuracy"]["value"] == pytest.approx(2 / 3) and lines["accuracy"]["value (paper)"] == "0.81"
    assert lines["macro-F1"]["value"] == pytest.approx(2 / 3)
    assert lines["kappa"]["value"] == pytest.approx((0.75 - (2 * 1 + 0 * 1 + 2 * 2) / 16) / (1 - 6 / 16))
    path.write_text('{"first": "dp"}\n')
    with pytest.raises(ValueError, match="first, second and predicted"):
        tables.reliability(str(path))


def first_letter(text: str, statement: str | None) -> str:
    """A classifier, named by its module."""
    assert (statement is None) == (len(text.split()) == 12)     # programs here have 12 words, plans 6
    return text[0]


def lengths(texts: list[str]) -> np.ndarray:
    """An encoder."""
    return np.array([[len(text), text.count("s") + 1.0] for text in texts])


def test_diversity_goes_from_models_into_tables_14_and_16(tmp_path):
    run, pool = tmp_path / "Qwen3.5-2B", tmp_path / "pool.jsonl"
    paths = [write_run(run, stage, method) for stage, method in
             (("cppo", "tuple"), ("cppo", "tuple-iid"), ("base", "direct"))]
    save_problems(pool, [Problem(p, "Statement.", tests=[{"input": "", "output": ""}]) for p in PROBLEMS])
    argv = [*map(str, paths), "--problems", str(pool), "--device", "cpu", "--classifier",
            "test_tables:first_letter", "--encoder", "test_tables:lengths"]
    assert diversity.main(diversity.parse_args(argv)) == 0
    groups = {}
    for a in map(json.loads, paths[0].read_text().splitlines()):
        groups.setdefault((a["problem_id"], a["tuple"]), []).append(a["strategy"])
    d_alg = statistics.mean(len({text[0] for text in group}) / 4 for group in groups.values())
    runs = tables.find([run])
    line = line_of(tables.diversity_table(runs), "CPPO")
    assert line["D_alg (unvalidated)"].startswith(f"{d_alg:.3f} [") and line["D_sem"]
    d_surf = statistics.mean(metrics.d_surf(group) for group in groups.values())
    assert line["D_surf"].startswith(f"{d_surf:.3f} [") and line["D_alg (paper, APPS)"] == "0.79 ±0.04"
    assert line_of(tables.diversity_table(runs), "Direct Solve")["D_alg (unvalidated)"]
    joint = line_of(tables.TABLES[16][0](runs), "CPPO")
    assert joint["joint"] == line["D_alg (unvalidated)"] and joint["iid"] and joint["of"] == "D_alg (unvalidated)"
    assert joint["difference (paper, APPS)"] == "+0.19"

    labels = tmp_path / "labels.jsonl"
    rows = [{"text": f"{c}, a plan", "statement": "S", "first": c, "second": c} for c in "aabbcc"]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--labels", str(labels), "--classifier", "test_tables:first_letter", "--device", "cpu"]
    assert diversity.main(diversity.parse_args(argv)) == 0
    cleared = tables.find([run], labels=str(tmp_path / "labels.predicted.jsonl"))
    assert line_of(tables.diversity_table(cleared), "CPPO")["D_alg"] == line["D_alg (unvalidated)"]


def test_any_checkpoint_can_classify_and_encode(tmp_path):
    """A random one names no category, which is "other"."""
    folder, device = str(tiny.qwen(tmp_path / "qwen")), torch.device("cpu")
    classify = diversity.load_classifier(folder, device)
    assert classify([("sort them", "Statement."), ("x = 1", None)]) == ["other", "other"]
    encode = diversity.load_encoder(folder, device)
    alone, beside = encode(["sort"]), encode(["sort", "a much longer text that is padded to"])
    assert beside.shape == (2, 64) and np.allclose(alone[0], beside[0], atol=1e-5)      # padding is left out
    assert metrics.d_sem(["sort", "sort"], encode) == pytest.approx(0, abs=1e-6)


def test_inference_table_and_decomposition_split_the_gain(runs, folders):
    """Tables 15 and 17."""
    joint, iid = ([pass_at(x, 4) for x in raw(folders, "cppo", name)] for name in ("tuple", "tuple-iid"))
    line = line_of(tables.inference_table(runs), "CPPO")
    assert (line["joint"], line["iid"]) == (mean_pm_std(joint), mean_pm_std(iid))
    gap = statistics.mean(joint) - statistics.mean(iid)
    assert line["difference"] == f"{gap:+.3f}" and line["iid (paper, APPS)"] == "0.493 ±0.052"
    direct = pass_at(raw(folders, "", "direct")[0], 4)
    [split] = tables.decomposition_table(runs)
    assert split["total gain"] == f"{statistics.mean(joint) - direct:+.3f}"
    assert split["training share"] == f"{statistics.mean(iid) - direct:+.3f}"
    assert split["inference %"] == f"{gap / (statistics.mean(joint) - direct):.0%}"


def test_budget_table_shows_every_k_that_was_made(runs, folders):
    """Table 20."""
    lines = tables.budget_table(runs)
    assert (lines[0]["K=2"], lines[0]["K=8"]) == ("first 2 of a 4-tuple", "2 4-tuples")
    cppo = line_of(lines, "CPPO")
    assert cppo["K=2"] == mean_pm_std([pass_at(x, 2) for x in raw(folders, "cppo", "tuple")])
    assert cppo["K=16"] is None         # only eight were made


def test_every_table_prints_and_absent_cells_are_dashes(runs, folders, capsys, monkeypatch):
    monkeypatch.setattr(tables, "find", lambda *_: runs)        # read once
    for number in [*tables.TABLES, 12, 13]:
        assert tables.main(tables.parse_args(["table", str(number), *map(str, folders)])) == 0
        printed = capsys.readouterr().out
        assert len(printed.splitlines()) > 2
    tables.main(tables.parse_args(["table", "8", *map(str, folders)]))
    grpo = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("GRPO"))
    assert grpo.split()[-3:] == ["-", "-", "-"]        # the paper has no such row


def test_the_paper_s_figures_stand_beside_another_model_only_if_it_is_named(tmp_path):
    run = tmp_path / "miniature"
    write_run(run, "base", "direct")
    assert "APPS (paper)" not in line_of(tables.main_table(tables.find([run])), "Direct Solve")
    named = tables.find([run], paper_model="Qwen3.5-4B")
    assert line_of(tables.main_table(named), "Direct Solve")["APPS (paper)"] == "0.515 ±0.050"
    args = tables.parse_args(["table", "8", "--paper-model", "Qwen3.5-4B", str(run)])       # a RUN behind a flag
    assert args.runs == [str(run)]
    with pytest.raises(SystemExit):
        tables.parse_args(["table", "8", str(run), "--nonsense"])


def test_figures_of_apps_do_not_stand_beside_the_paper_s_other_benchmarks(tmp_path):
    run = tmp_path / "Qwen3.5-2B"
    for benchmark in ("apps", "lcb", "lcb-500"):
        write_run(run, "cppo", "tuple", benchmark=benchmark)
        write_run(run, "base", "direct", benchmark=benchmark)
    runs = tables.find([run])
    lines = {line["benchmark"]: line for line in tables.ablation_table(runs) if line["variant"] == "CPPO (J R_out)"}
    assert lines["APPS"]["pass@4 (paper, APPS)"] == "0.546 ±0.050" and lines["LCBv6"]["pass@4"]
    assert "pass@4 (paper, APPS)" not in lines["LCBv6"]
    assert {line["benchmark"] for line in tables.ablation_table(runs) if line["variant"] == "M = 4"} == {"APPS"}
    tokens = {line["benchmark"]: line for line in tables.token_table(tables.find([run], paper_model="Qwen3.5-4B"))}
    assert tokens["LCBv6-500"]["tokens (paper)"] == "1556.0" == tokens["LCBv6"]["tokens (paper)"]


def test_seeds_of_one_method_were_sampled_in_one_way(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"m-seed{seed}", "base", "direct", temperature=0.7 + 0.1 * seed)
    with pytest.raises(ValueError, match="seeds of one method with another temperature"):
        tables.find([tmp_path / "m-seed0", tmp_path / "m-seed1"])


def test_last_and_random_attempts_are_of_as_few_tuples_as_hold_k(tmp_path):
    """Appendix G's control is about places in one tuple, whatever else was drawn."""
    evaluation = attempts.load(write_run(tmp_path, "cppo", "tuple"))
    places = {rule: {(a["tuple"], a["index"]) for name in PROBLEMS for a in attempts.chosen(evaluation, name, 2, rule)}
              for rule in ("first", "last", "random")}
    assert places == {"first": {(0, 0), (0, 1)}, "last": {(0, 2), (0, 3)}, "random": {(0, i) for i in range(4)}}
    pooled = attempts.chosen(evaluation, "p00", 6, "last")
    assert [(a["tuple"], a["index"]) for a in pooled] == [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    direct = attempts.load(write_run(tmp_path, "base", "direct"))
    assert [a["tuple"] for a in attempts.chosen(direct, "p00", 2, "last")] == [6, 7]
    with pytest.raises(ValueError, match="holds 8 attempts at p00, not 9"):
        attempts.scores(direct, 9)


def test_the_diversity_of_fixed_strategies_is_that_of_their_programs(tmp_path):
    """Nobody planned them (F.1)."""
    group = [{"strategy": "Sort.", "program": f"print({i})"} for i in range(4)]
    fixed, sketch = (attempts.load(write_run(tmp_path, "base", method)) for method in ("fixed", "sketch"))
    assert attempts.texts(fixed, group)[0] == "print(0)" and attempts.texts(sketch, group) == ["Sort."] * 4


def test_figures_of_one_file_are_shown(folders, capsys):
    path = folders[0] / "cppo" / "eval" / "heldout-tuple.jsonl.gz"
    assert tables.main(tables.parse_args(["show", str(path), "--k", "2", "8"])) == 0
    printed = capsys.readouterr().out
    assert f"{pass_at(raw(folders, 'cppo', 'tuple')[0], 8):.3f}" in printed


def test_unbiased_pass_at_k_is_for_independent_methods_with_attempts_to_spare(folders):
    direct = attempts.load(folders[0] / "eval" / "heldout-direct.jsonl")
    right = [sum(a["status"] == "accepted" for a in found) for found in direct.problems.values()]
    assert attempts.scores(direct, 4)["unbiased"] == pytest.approx(statistics.mean(
        metrics.pass_at_k(8, c, 4) for c in right))
    assert "unbiased" not in attempts.scores(direct, 8)
    joint = attempts.load(folders[0] / "sft" / "eval" / "heldout-tuple.jsonl")
    assert "unbiased" not in attempts.scores(joint, 4)


@pytest.mark.parametrize("argv, told", [
    (["table", "8"], "no RUN given"), (["table", "8", "nowhere"], "nowhere holds no attempts"),
    (["show", "gone.jsonl"], "no attempts at gone.jsonl"), (["show", "empty.jsonl"], "empty.jsonl line 1 is no attempt")])
def test_a_wrong_command_is_one_clear_line(argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    assert tables.main(tables.parse_args(argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and said.count("\n") == 1


def test_the_paper_s_numbers_agree_with_themselves():
    """A typing error shows where the paper prints a number twice, or a difference."""
    for (row, model), cells in paper.INFERENCE.items():
        assert cells["joint"] == paper.MAIN[row, model]["APPS"]
        gap = float(cells["joint"].split()[0]) - float(cells["iid"].split()[0])
        assert cells["difference"] == f"{gap:+.3f}"
    for (row, model), cells in paper.DECOMPOSITION.items():
        printed = (paper.MAIN["Direct Solve", model]["APPS"], paper.INFERENCE[row, model]["iid"],
                   paper.MAIN[row, model]["APPS"])
        direct, iid, joint = (float(cell.split()[0]) for cell in printed)
        assert cells["total gain"] == f"{joint - direct:+.3f}"
        assert cells["training share"] == f"{iid - direct:+.3f}"
    for benchmark, rows in paper.TOKENS.items():
        for (row, model), cells in rows.items():
            assert paper.MAIN[row, model][benchmark].split()[0] == cells["pass@4"]
            per = float(cells["pass@4"]) / float(cells["tokens"]) * 10_000
            assert per == pytest.approx(float(cells["per 10k"]), abs=2e-3)
    assert len(paper.MAIN) == 39 and all(len(cells) >= 2 for cells in paper.MAIN.values())


@pytest.mark.parametrize("number", ["2", "4", "7", "8", "9", "3", "cost"])
def test_figures_are_drawn(number, tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "Qwen3.5-2B"
    for stage, method in (("base", "direct"), ("base", "sketch"), ("cppo", "tuple"), ("sft", "tuple")):
        path = write_run(run, stage, method)
        groups = [{"problem_id": p, "D_alg": 0.25 * (1 + len(method + stage) % 4)} for p in PROBLEMS]
        path.with_suffix(".diversity.json").write_text(json.dumps({"groups": groups}))
    for stage in ("pkpo", "upskill", "cppo"):
        (run / stage).mkdir(exist_ok=True)
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(
            {"step": s, "grad_norm": 1 / s, "step_norm": 0.1, "advantage_nonzero": 0.5, "r_correct": s / 9,
             "r_mi": 0.3, "reward_variance": 0.2}) + "\n" for s in range(1, 9)))
        (run / stage / "samples.jsonl").write_text("".join(json.dumps(
            {"step": s, "p_pass": s / 9, "J": s > 3, "R_out": s % 2, "faults": [None, ["leak"], []][(s > 1) + (s > 4)],
             "branches": [{"a": 0.0}, {"a": s / 9}]}) + "\n" for s in range(1, 9)))
    out = tmp_path / "figure.png"
    assert tables.main(tables.parse_args(["figure", number, str(run), "--out", str(out)])) == 0
    assert out.stat().st_size > 5000
