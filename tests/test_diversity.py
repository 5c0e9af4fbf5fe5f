"""D_sem and D_alg: from models to records, and from records to tables 14 and 16."""

import json
import statistics

import numpy as np
import pytest
import tiny
import torch
from paper_runs import PROBLEMS, read_lines, write_run

from lib import metrics
from lib.problems import Problem, save_problems
from paper import diversity, tables
from paper.runs import find


def first_letter(text: str, statement: str | None) -> str:
    """A classifier, named by its module. Programs here have 12 words, plans 6."""
    assert (statement is None) == (len(text.split()) == 12)
    return text[0]


def lengths(texts: list[str]) -> np.ndarray:
    """An encoder."""
    return np.array([[len(text), text.count("s") + 1.0] for text in texts])


def run_diversity(*argv) -> None:
    argv = [*map(str, argv), "--device", "cpu", "--classifier", "test_diversity:first_letter"]
    assert diversity.main(diversity.parse_args(argv)) == 0


def line_of(rows: list[dict], name: str) -> dict:
    return next(row for row in rows if name in row.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three evaluations with what diversity.py found."""
    folder = tmp_path_factory.mktemp("runs") / "Qwen3.5-2B"
    systems = (("cppo", "tuple"), ("cppo", "tuple-iid"), ("base", "direct"))
    paths = [write_run(folder, stage, method) for stage, method in systems]
    pool = folder.parent / "pool.jsonl"
    tests = [{"input": "", "output": ""}]
    save_problems(pool, [Problem(name, "Statement.", tests=tests) for name in PROBLEMS])
    run_diversity(*paths, "--problems", pool, "--encoder", "test_diversity:lengths")
    return folder


def groups_of(run) -> list[list[str]]:
    """The strategies of each tuple of CPPO, read without the code under test."""
    groups = {}
    for line in read_lines(run / "cppo" / "eval" / "heldout-tuple.jsonl"):
        groups.setdefault((line["problem_id"], line["tuple"]), []).append(line["strategy"])
    return list(groups.values())


def test_table_14_shows_the_means_over_tuples_beside_the_paper(run):
    groups = groups_of(run)
    line = line_of(tables.diversity_table(find([run])), "CPPO")
    d_alg = statistics.mean(len({text[0] for text in group}) / 4 for group in groups)
    assert line["D_alg (unvalidated)"].startswith(f"{d_alg:.3f} [")
    d_surf = statistics.mean(metrics.d_surf(group) for group in groups)
    assert line["D_surf"].startswith(f"{d_surf:.3f} [")
    d_sem = statistics.mean(metrics.d_sem(group, lengths) for group in groups)
    assert line["D_sem"].startswith(f"{d_sem:.3f} [")
    assert line["D_alg (paper, APPS)"] == "0.79 ±0.04"


def test_an_attempt_without_a_text_stays_in_the_denominator_of_d_alg(tmp_path):
    """Eq. 16 divides by K = 4. D_surf is of the tuples with two texts, whose number is shown."""
    run = tmp_path / "m"
    path = write_run(run, "base", "direct")
    lines = read_lines(path)
    kept = {0: "abcd", 1: "a", 2: "", 3: "aab"}           # by problem: of its first four programs
    rows = []
    for line in lines:
        number = PROBLEMS.index(line["problem_id"])
        texts = kept.get(number, "aabb")
        place = line["tuple"] % 4
        rows.append(line | {"program": texts[place] if place < len(texts) else None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = tmp_path / "pool.jsonl"
    tests = [{"input": "", "output": ""}]
    save_problems(pool, [Problem(name, "Statement.", tests=tests) for name in PROBLEMS])
    argv = ["--classifier", "test_diversity:letter", "--problems", pool, "--device", "cpu", path]
    assert diversity.main(diversity.parse_args([str(word) for word in argv])) == 0
    line = line_of(tables.diversity_table(find([run])), "Direct Solve")
    expected = (1 + 1 / 4 + 0 + 2 / 4 + 26 * 2 / 4) / 30
    assert line["D_alg (unvalidated)"].startswith(f"{expected:.3f} [")
    assert line["tuples with two texts"] == "56 of 60"
    mean, low, high = (float(word.strip("[],")) for word in line["D_surf"].split())
    assert low <= mean <= high


def letter(text: str, statement: str | None) -> str:
    return text


def test_programs_are_classified_where_a_method_has_no_plan(run):
    assert line_of(tables.diversity_table(find([run])), "Direct Solve")["D_alg (unvalidated)"]


def test_table_16_sets_joint_beside_iid_inference(run):
    runs = find([run])
    line = line_of(tables.inference_diversity_table(runs), "CPPO")
    joint = line_of(tables.diversity_table(runs), "CPPO")["D_alg (unvalidated)"]
    assert line["joint"] == joint and line["iid, first"] and line["of"] == "D_alg (unvalidated)"
    assert line["difference (paper, APPS)"] == "+0.19"


def test_d_alg_loses_its_mark_once_labels_validate_the_classifier(run, tmp_path):
    labels = tmp_path / "labels.jsonl"
    rows = [{"text": f"{c}, a plan", "statement": "S", "first": c, "second": c} for c in "aabbcc"]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_diversity("--labels", labels)
    validated = find([run], labels=str(tmp_path / "labels.predicted.jsonl"))
    before = line_of(tables.diversity_table(find([run])), "CPPO")
    after = line_of(tables.diversity_table(validated), "CPPO")
    assert after["D_alg"] == before["D_alg (unvalidated)"]


def test_any_checkpoint_can_classify_and_encode(tmp_path):
    """A random one names no category, which is "other"."""
    folder, device = str(tiny.qwen(tmp_path / "qwen")), torch.device("cpu")
    classify = diversity.load_classifier(folder, device)
    assert classify([("sort them", "Statement."), ("x = 1", None)]) == ["other", "other"]
    encode = diversity.load_encoder(folder, device)
    alone = encode(["sort"])
    beside = encode(["sort", "a much longer text that is padded to"])
    assert beside.shape == (2, 64)
    assert np.allclose(alone[0], beside[0], atol=1e-5)      # padding is left out
    assert metrics.d_sem(["sort", "sort"], encode) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("argv, told", [
    (["a.jsonl"], "pass --classifier, --encoder, or both"),
    (["a.jsonl", "--encoder", "m:f"], "pass --problems FILE"),
    (["--labels", "l.jsonl", "--encoder", "m:f"], "--labels needs the --classifier"),
    (["a.jsonl", "--problems", "p.jsonl", "--encoder", "m:f"], "no attempts at a.jsonl")])
def test_a_wrong_command_is_one_line(argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        diversity.main(diversity.parse_args([*argv, "--device", "cpu"]))
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: ") and told in printed and printed.count("\n") == 1
