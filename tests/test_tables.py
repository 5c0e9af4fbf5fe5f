"""Tables from attempts files that are made here; a cell of each is computed again by other code."""

import itertools
import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
from paper_runs import (
    MASSES,
    PROBLEMS,
    mean_pm_std,
    pass_at,
    raw,
    read_lines,
    two_seeds,
    write_run,
)
from test_attempts import pack

from lib.errors import UserError
from paper import tables
from paper.runs import Runs, find, reliability


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return two_seeds(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(folders) -> Runs:
    return find(folders)


def line_of(rows: list[dict], name: object) -> dict:
    return next(row for row in rows if name in row.values())


def by_benchmark(rows: list[dict]) -> dict[str, dict]:
    return {row["benchmark"]: row for row in rows}


# ----------------------------------------------------------------------------------------------
# Runs

def test_seeds_of_one_method_were_sampled_in_one_way(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"m-seed{seed}", "base", "direct", temperature=0.7 + 0.1 * seed)
    with pytest.raises(UserError, match="seeds of one method with another temperature"):
        find([tmp_path / "m-seed0", tmp_path / "m-seed1"])


def test_another_checkpoint_of_a_stage_is_no_other_seed_of_it(tmp_path):
    for name, setting in (("a", {}), ("b", {"step": 60}), ("c", {"model": "runs/m/cppo/best"})):
        write_run(tmp_path / "m", "cppo", "tuple", benchmark=name, **setting)
        card = tmp_path / "m" / "cppo" / "eval" / f"{name}-tuple.json"
        kept = json.loads(card.read_text())
        kept["setting"]["benchmark"] = "heldout"
        card.write_text(json.dumps(kept))
    systems = [key[2] for key in find([tmp_path / "m"]).evaluations]
    assert systems == ["cppo/tuple", "cppo/tuple-step60", "cppo/tuple-best"]


def test_an_archive_of_a_run_is_that_run(folders, runs):
    archived = find([pack(folder) for folder in folders])
    assert archived.evaluations.keys() == runs.evaluations.keys()
    assert tables.main_table(archived) == tables.main_table(runs)


def test_reliability_is_measured_against_what_the_annotators_agree_on(tmp_path):
    """Table 13."""
    path = tmp_path / "labels.jsonl"
    rows = [("dp", "dp", "dp"), ("dp", "greedy", "graph"), ("graph",) * 3, ("graph", "graph", "dp")]
    with path.open("w") as file:
        for first, second, predicted in rows:
            row = {"first": first, "second": second, "predicted": predicted}
            file.write(json.dumps(row) + "\n")
    lines = {line["quantity"]: line for line in tables.reliability_table(str(path))}
    assert lines["accuracy"]["value"] == pytest.approx(2 / 3)
    assert lines["accuracy"]["value (paper)"] == "0.81"
    assert lines["macro-F1"]["value"] == pytest.approx(2 / 3)
    chance = (2 * 1 + 0 * 1 + 2 * 2) / 16
    assert lines["kappa"]["value"] == pytest.approx((0.75 - chance) / (1 - chance))
    path.write_text('{"first": "dp"}\n')
    with pytest.raises(UserError, match="line 1: needs first, second and predicted"):
        reliability(str(path))


# ----------------------------------------------------------------------------------------------
# Tables

def test_main_table_shows_seed_means_beside_the_paper(runs, folders):
    """Tables 1, 5, 8, 19."""
    rows = tables.main_table(runs)
    pkpo = line_of(rows, "PKPO")
    expected = [pass_at(lines, 4) for lines in raw(folders, "pkpo", "direct")]
    assert pkpo["heldout"].startswith(mean_pm_std(expected) + " [")
    first = [pass_at(lines, 1) for lines in raw(folders, "pkpo", "direct")]
    assert pkpo["heldout pass@1"].startswith(mean_pm_std(first))
    assert pkpo["APPS (paper)"] == "0.448 ±0.049" and pkpo["LCBv6 (paper)"] == "0.347 ±0.048"
    direct = line_of(rows, "Direct Solve")["heldout"]
    # without training seeds: an interval
    assert direct.startswith(f"{pass_at(raw(folders, '', 'direct')[0], 4):.3f} [")
    assert [row["method"] for row in tables.stage_table(runs)] == list(tables.STAGES)


def test_a_star_marks_cppo_only_where_the_bootstrap_says_so(tmp_path):
    for skill, starred in ((0.9, True), (0.12, False)):
        run = tmp_path / f"m{skill}"
        write_run(run, "base", "direct", skill=0.1)
        write_run(run, "cppo", "tuple", skill=skill)
        cell = line_of(tables.main_table(find([run])), "CPPO")["heldout"]
        assert cell.endswith(" *") == starred


def test_worlds_show_the_posterior_averaged_pass_at_4_and_the_ceilings(tmp_path):
    lines = read_lines(write_run(tmp_path / "mini", "cppo", "tuple", world=True))
    rows = tables.main_table(find([tmp_path / "mini"]))
    hit = {name: set() for name in PROBLEMS}
    for line in lines:
        if line["tuple"] == 0:
            hit[line["problem_id"]].add(line["outcome"])
    masses = [sum(MASSES.get(outcome, 0) for outcome in outcomes) for outcomes in hit.values()]
    assert line_of(rows, "CPPO")["heldout"].startswith(f"{statistics.mean(masses):.3f} [")
    assert line_of(rows, "ceiling: coordinated")["heldout"] == 1.0
    realised = tables.main_table(find([tmp_path / "mini"], realised=True))
    assert line_of(realised, "CPPO")["heldout"].startswith(f"{pass_at(lines, 4):.3f} [")


def test_token_table_pays_for_plans_and_for_the_attempts_that_count(runs, folders):
    """Tables 4 and 18."""
    line = line_of(tables.token_table(runs), "CPPO")
    per_problem = []
    for lines in raw(folders, "cppo", "tuple"):
        solver = sum(line["solver_tokens"] for line in lines if line["tuple"] == 0)
        per_problem.append(solver / 30)
    solver = statistics.mean(per_problem)
    assert line["planner tok"] == 40 and line["solver tok"] == pytest.approx(solver)
    solved = statistics.mean(pass_at(lines, 4) for lines in raw(folders, "cppo", "tuple"))
    assert line["per 10k"] == pytest.approx(solved / (40 + solver) * 10_000)


def test_ablation_table_shows_variants_and_their_duplicates(runs, folders):
    """Table 6, upper blocks."""
    gateless = line_of(tables.ablation_table(runs), "without J (R_out)")
    expected = [pass_at(lines, 4) for lines in raw(folders, "cppo-outcome", "tuple")]
    assert gateless["pass@4"].startswith(mean_pm_std(expected))
    assert gateless["judged duplicates"] == "0.250 ±0.000"
    assert gateless["duplicates (paper, APPS)"] == "0.32 ±0.044"


def test_sweep_table_shows_budgets(runs, folders):
    """Table 6, lower block."""
    k8 = line_of(tables.sweep_table(runs), 8)
    eight = [pass_at(lines, 8) for lines in raw(folders, "cppo", "tuple")]
    assert k8["CPPO"].startswith(mean_pm_std(eight))
    assert k8["Direct Solve (paper, APPS)"] == "0.432 ±0.046"


def majority_at_4(lines: list[dict]) -> float:
    """The first of the most frequent answers, written another way."""
    right = 0
    for problem in PROBLEMS:
        four = [line for line in lines if line["problem_id"] == problem][:4]
        votes = Counter(line["answer"] for line in four)
        winner = next(line for line in four if votes[line["answer"]] == max(votes.values()))
        right += winner["status"] == "accepted"
    return right / 30


def test_majority_table_averages_the_benchmarks_whose_outputs_are_predicted(tmp_path):
    """Table 7, the only one that shows those benchmarks."""
    folders = [tmp_path / f"Qwen3.5-2B-seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_run(folder, "pkpo", "direct", seed)
        path = write_run(folder, "pkpo", "direct", seed, skill=0.3, benchmark="execution")
        lines = [line | {"program": None} for line in read_lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = find(folders)
    row = line_of(tables.majority_table(runs), "PKPO")
    expected = {}
    for benchmark in ("heldout", "execution"):
        seeds = raw(folders, "pkpo", "direct", benchmark)
        expected[benchmark] = [majority_at_4(lines) for lines in seeds]
        assert row[benchmark].startswith(mean_pm_std(expected[benchmark]))
    assert row["average"] == pytest.approx(statistics.mean(expected["execution"]))
    assert row["test-output (paper)"] == "0.21 ±0.044"
    assert "execution" not in line_of(tables.main_table(runs), "PKPO")


def test_side_by_side_shows_both_methods_attempts_at_a_problem(runs, folders):
    """Table 12."""
    text = tables.side_by_side(runs, "p03")
    ours = [line for line in raw(folders, "cppo", "tuple")[0] if line["problem_id"] == "p03"][:4]
    for attempt in ours:
        mark = "+" if attempt["status"] == "accepted" else "-"
        assert f"{mark} {attempt['strategy'][:40]}" in text
    with pytest.raises(UserError, match="'p99'"):
        tables.side_by_side(runs, "p99")


def test_side_by_side_takes_a_problem_that_cppo_alone_solves(runs, folders):
    chosen = tables.side_by_side(runs, None).split(" ")[0]
    for stage, method, solves in (("cppo", "tuple", True), ("", "direct", False)):
        lines = [line for line in raw(folders, stage, method)[0] if line["problem_id"] == chosen]
        assert ("accepted" in [line["status"] for line in lines[:4]]) == solves


def test_inference_table_and_decomposition_split_the_gain(runs, folders):
    """Tables 15 and 17."""
    joint = [pass_at(lines, 4) for lines in raw(folders, "cppo", "tuple")]
    iid = [pass_at(lines, 4) for lines in raw(folders, "cppo", "tuple-iid")]
    row = line_of(tables.inference_table(runs), "CPPO")
    assert row["joint"].startswith(mean_pm_std(joint))
    assert row["iid, first"].startswith(mean_pm_std(iid))
    assert row["iid, any"] is None                      # that takes four plans
    gap = statistics.mean(joint) - statistics.mean(iid)
    spread = statistics.stdev(a - b for a, b in zip(joint, iid, strict=True))
    assert row["joint - iid, first"] == f"{gap:+.3f} ±{spread:.3f}"
    assert row["iid (paper, APPS)"] == "0.493 ±0.052"
    direct = pass_at(raw(folders, "", "direct")[0], 4)
    split = line_of(tables.decomposition_table(runs), "iid, first")
    assert split["total gain"] == f"{statistics.mean(joint) - direct:+.3f}"
    # only the first of the two runs has evaluated the base model
    assert split["training share"] == f"{statistics.mean(iid) - direct:+.3f}"
    assert split["inference %"] == f"{gap / (statistics.mean(joint) - direct):.0%}"


def test_the_other_reading_of_iid_inference_takes_one_attempt_of_each_of_four_plans(tmp_path):
    """Its pass@4 lies where the mean over all 4^4 choices of places says."""
    path = write_run(tmp_path / "m", "cppo", "tuple", skill=0.3)
    lines = read_lines(path)
    for i, line in enumerate(lines):                    # as if of four plans of two strategies
        line["tuple"], line["index"] = i % 8 // 2, i % 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = line_of(tables.inference_table(find([tmp_path / "m"])), "CPPO")
    expected = []
    for problem in PROBLEMS:
        right = [line["status"] == "accepted" for line in lines if line["problem_id"] == problem]
        choices = itertools.product(*[right[i:i + 2] for i in (0, 2, 4, 6)])
        expected.append(statistics.mean(any(choice) for choice in choices))
    assert float(row["iid, any"][:5]) == pytest.approx(statistics.mean(expected), abs=0.15)
    [iid] = find([tmp_path / "m"]).evaluations[("m", "heldout", "cppo/tuple-iid-any")]
    for problem, made in iid.problems.items():
        assert [attempt["tuple"] for attempt in made] == [0, 1, 2, 3]
        assert all(attempt["planner_tokens"] in (0, 40) for attempt in made)


def test_budget_table_shows_every_k_that_was_made(runs, folders):
    """Table 20."""
    rows = tables.budget_table(runs)
    assert (rows[0]["K=2"], rows[0]["K=8"]) == ("first 2 of a 4-tuple", "2 4-tuples")
    cppo = line_of(rows, "CPPO")
    seeds = raw(folders, "cppo", "tuple")
    assert cppo["K=2"].startswith(mean_pm_std([pass_at(lines, 2) for lines in seeds]))
    assert cppo["K=16"] is None         # only eight were made


# ----------------------------------------------------------------------------------------------
# The paper's numbers beside ours

def test_the_paper_s_numbers_stand_beside_another_model_only_if_it_is_named(tmp_path):
    run = tmp_path / "miniature"
    write_run(run, "base", "direct")
    assert "APPS (paper)" not in line_of(tables.main_table(find([run])), "Direct Solve")
    named = find([run], paper_model="Qwen3.5-4B")
    assert line_of(tables.main_table(named), "Direct Solve")["APPS (paper)"] == "0.515 ±0.050"


def test_numbers_of_apps_do_not_stand_beside_the_paper_s_other_benchmarks(tmp_path):
    run = tmp_path / "Qwen3.5-2B"
    for benchmark in ("apps", "lcb", "lcb-500"):
        write_run(run, "cppo", "tuple", benchmark=benchmark)
        write_run(run, "base", "direct", benchmark=benchmark)
    rows = tables.ablation_table(find([run]))
    full = by_benchmark([row for row in rows if row["variant"] == "CPPO (J R_out)"])
    assert full["APPS"]["pass@4 (paper, APPS)"] == "0.546 ±0.050" and full["LCBv6"]["pass@4"]
    assert "pass@4 (paper, APPS)" not in full["LCBv6"]
    assert {row["benchmark"] for row in rows if row["variant"] == "M = 4"} == {"APPS"}
    tokens = by_benchmark(tables.token_table(find([run], paper_model="Qwen3.5-4B")))
    assert tokens["LCBv6-500"]["tokens (paper)"] == "1556.0" == tokens["LCBv6"]["tokens (paper)"]


# ----------------------------------------------------------------------------------------------
# The script

def call(*argv) -> int:
    return tables.main(tables.parse_args([str(word) for word in argv]))


def test_every_table_prints_and_absent_cells_are_dashes(runs, folders, capsys, monkeypatch):
    monkeypatch.setattr(tables, "find", lambda *_: runs)        # read once
    for number in [*tables.TABLES, 12]:
        assert call("table", number, *folders) == 0
        assert len(capsys.readouterr().out.splitlines()) > 2
    call("table", 8, *folders)
    lines = capsys.readouterr().out.splitlines()
    grpo = next(line for line in lines if line.startswith("GRPO"))
    assert grpo.split()[-3:] == ["-", "-", "-"]         # the paper has no such row


def test_the_scores_of_one_file_are_shown(folders, capsys):
    path = folders[0] / "cppo" / "eval" / "heldout-tuple.jsonl.gz"
    assert call("show", path, "--k", 2, 8) == 0
    assert f"{pass_at(raw(folders, 'cppo', 'tuple')[0], 8):.3f}" in capsys.readouterr().out


def test_a_run_may_follow_a_flag():
    args = tables.parse_args(["table", "8", "--paper-model", "Qwen3.5-4B", "runs/mini"])
    assert args.runs == ["runs/mini"]


@pytest.mark.parametrize("argv, told", [
    (["table", "8"], "required: RUN"),
    (["table", "8", "nowhere", "--nonsense"], "unrecognized arguments: --nonsense"),
    (["table", "8", "nowhere"], "nowhere holds no attempts"),
    (["table", "13", "nowhere"], "nowhere"),
    (["show", "gone.jsonl"], "no attempts at gone.jsonl"),
    (["show", "empty.jsonl"], "empty.jsonl line 1 is no attempt")])
def test_a_wrong_command_is_one_clear_line(argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SystemExit) as end:
        call(*argv)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: ") and told in printed and printed.count("\n") == 1
