"""prepare/exposure.py: who saw what."""

import importlib
import json
import re

import pytest

from corpus_rows import TEST, words, write_rows
from lib.errors import UserError
from lib.problems import load_problems, save_problems
from prepare import exposure


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the build, to be changed."""
    folder = tmp_path / "corpora"
    folder.mkdir()
    for path in built.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_clean_build_has_no_exposure(built, tmp_path):
    tables, wrong = exposure.exposure_tables(built, tmp_path)
    assert wrong == [] and "YES" not in tables
    assert "Joint CPPO rollout pool" in tables and "3 removed as held out" in tables
    for name in ("sft", "gate", "joint", "dev", "warmup"):
        assert exposure.check_pool(built / f"{name}.jsonl") == ""


@pytest.mark.parametrize("leak", ["whole line", "new id", "statement in a label"])
def test_an_evaluation_problem_in_a_component_is_found(copied, tmp_path, leak):
    stolen = load_problems(copied / "cc.jsonl")[0]
    if leak == "statement in a label":
        label = {"problem_id": "mine/1", "statement": stolen.statement, "plan": "A: x", "label": 1}
        path = write_rows(copied / "labels_train.jsonl", [label])
    else:
        if leak == "new id":
            stolen.id = "cc/train/900"
        path = copied / "joint.jsonl"
        save_problems(path, [*load_problems(path), stolen])
    with pytest.raises(UserError, match=r"holds 1 evaluation problem\(s\) among"):
        exposure.check_pool(path)
    tables, wrong = exposure.exposure_tables(copied, tmp_path)
    assert "YES, 1" in tables and any("is held out as cc/valid/" in line for line in wrong)


def test_the_files_that_training_runs_were_given_are_checked(copied, tmp_path):
    def write_config(folder, content):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(content))
    stage = tmp_path / "runs" / "X" / "cppo"
    write_config(stage, {"flags": {"problems": str(copied / "lcb.jsonl"), "lr": 1e-6}})
    write_config(stage / "final", {"model_type": "qwen"})
    # evaluations may see them
    evaluation = tmp_path / "runs" / "X" / "eval"
    write_config(evaluation, {"flags": {"problems": str(copied / "cc.jsonl")}})
    _, wrong = exposure.exposure_tables(copied, tmp_path / "runs")
    assert len(wrong) == 4 and all("lcb.jsonl" in line for line in wrong)


def test_changed_pools_and_labels_on_both_sides_are_found(copied, tmp_path):
    path = copied / "sft.jsonl"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="changed after the build"):
        exposure.check_pool(path)
    row = {"problem_id": "cc/train/1", "statement": words(40, "z"), "plan": "A: x", "label": 1}
    write_rows(copied / "labels_train.jsonl", [row])
    write_rows(copied / "labels_val.jsonl", [row])
    _, wrong = exposure.exposure_tables(copied, tmp_path)
    assert len(wrong) == 2 and "changed" in wrong[0] and "on both sides" in wrong[1]


@pytest.mark.parametrize("file, text, message", [
    ("manifest.json", "{}", "is no manifest"),
    ("manifest.json", "[", "is no manifest"),
    ("held_out.jsonl", "{}", "damaged build"),
    ("boilerplate.npy", "", "damaged build"),
    ("boilerplate.npy", "nonsense", "damaged build"),
    ("joint.jsonl", '{"id": "x", "ids": {"a": []}}', "joint.jsonl line 1"),
    ("joint.jsonl", "[]", "joint.jsonl line 1"),
])
def test_a_damaged_build_is_reported_in_one_line(copied, tmp_path, capsys, file, text, message):
    (copied / file).write_text(text)
    flags = ["--corpora", str(copied), "--runs", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        exposure.main(exposure.parse_args(flags))
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_the_command_prints_both_tables_and_ends_in_status_1(copied, capsys, tmp_path):
    save_problems(copied / "dev.jsonl", load_problems(copied / "cc.jsonl"))
    flags = ["--corpora", str(copied), "--runs", str(tmp_path)]
    assert exposure.main(exposure.parse_args(flags)) == 1
    out, error = capsys.readouterr()
    assert error.count("is held out as") == 3 and "Table 9" in out and "Table 10" in out


def test_a_file_elsewhere_is_checked_against_the_corpora_or_warned_about(copied, built, tmp_path):
    row = {"id": "mine", "statement": words(40, "mine"), "tests": [TEST]}
    path = write_rows(tmp_path / "mine.jsonl", [row])
    assert "has no manifest" in exposure.check_pool(path, tmp_path / "nowhere")
    assert exposure.check_pool(path, copied) == ""
    row["statement"] = load_problems(built / "apps.jsonl")[0].statement
    write_rows(path, [row])
    with pytest.raises(UserError, match="found by hash"):
        exposure.check_pool(path, copied)


def test_a_shared_paragraph_in_a_small_evaluation_set_is_a_warning_with_its_text(copied, tmp_path,
                                                                                monkeypatch):
    """Few statements cannot tell boilerplate from content."""
    shared = load_problems(copied / "cc.jsonl")[0].statement.split()[:30]
    row = {"id": "mine", "statement": " ".join([*shared, words(70, "mine")]), "tests": [TEST]}
    path = write_rows(copied / "mine.jsonl", [row])
    warning = exposure.check_pool(path)
    assert " ".join(shared) in warning and "more than boilerplate?" in warning
    monkeypatch.setattr(exposure, "FEW_STATEMENTS", 0)
    with pytest.raises(UserError, match="found by ngram"):
        exposure.check_pool(path)


def test_shared_paragraphs_are_listed_below_the_tables(copied, tmp_path):
    problems = load_problems(copied / "joint.jsonl")
    shared = load_problems(copied / "cc.jsonl")[0].statement.split()[:30]
    problems[0].statement = " ".join([*shared, words(70, "mine")])
    save_problems(copied / "mine.jsonl", problems[:1])
    config = tmp_path / "runs" / "X" / "cppo" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"flags": {"problems": str(copied / "mine.jsonl")}}))
    tables, wrong = exposure.exposure_tables(copied, tmp_path / "runs")
    assert wrong == [] and tables.endswith(" ".join(shared) + '"')


def test_the_warnings_of_several_files_are_joined(tmp_path):
    paths = [write_rows(tmp_path / f"{name}.jsonl", [{"id": "x"}]) for name in "ab"]
    warnings = exposure.check_pools(paths[0], None, paths[1])
    assert warnings.count("has no manifest") == 2 and "; " in warnings


@pytest.mark.parametrize("script, flag, row", [
    ("train_sft", "--gold", {"strategies": ["a b", "c d", "e f", "g h"]}),
    ("train_rm", "--labels", {"plan": "A: x", "kind": "positive"}),
])
def test_stages_1_and_2_refuse_evaluation_problems(copied, tmp_path, monkeypatch, capsys, script,
                                                   flag, row):
    """Only the pools of stages 3 and 5 were checked once. The stolen statement has another id and
    other white space."""
    stolen = load_problems(copied / "cc.jsonl")[0].statement.replace(" ", "  ")
    clean = []
    for i in range(8):
        for label in (0, 1):
            mine = {"problem_id": f"mine/{i}", "statement": words(40, i), "label": label}
            clean.append(row | mine)
    bad = [old | {"problem_id": "mine/9", "statement": stolen} for old in clean[:2]]
    write_rows(tmp_path / "val.jsonl", bad)
    write_rows(tmp_path / "rows.jsonl", clean[2:])
    monkeypatch.chdir(tmp_path)         # where corpora/ is the build
    module = importlib.import_module(script)
    flags = ["--model", "nowhere", flag, str(tmp_path / "rows.jsonl")]
    for more, message in (([], "nowhere: no such folder"),
                          (["--val", str(tmp_path / "val.jsonl")], "holds 1 evaluation")):
        with pytest.raises(SystemExit) as end:
            module.main(module.parse_args([*flags, *more]))
        assert end.value.code == 2 and re.search(message, capsys.readouterr().err)
