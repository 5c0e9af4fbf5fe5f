"""Attempts files: how they are read, which attempts count, what they score."""

import gzip
import json
import statistics
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
from paper_runs import PROBLEMS, pass_at, raw, write_run

import evaluate
from lib import metrics
from lib.errors import UserError
from lib.problems import Problem
from paper import attempts


def pack(folder: Path) -> Path:
    """An archive of a run, as results/ has."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder))
    return archive


def test_a_file_reads_alike_plain_compressed_and_from_an_archive(tmp_path):
    path = write_run(tmp_path / "run", "cppo", "tuple")
    attempts.beside(path, ".diversity.json").write_text('{"groups": []}')
    (tmp_path / "run/cppo/metrics.jsonl").write_text("{}")      # a log, no attempts
    plain = attempts.load(path)
    archive = pack(tmp_path / "run")
    zipped = attempts.load(archive / "cppo/eval/heldout-tuple.jsonl")
    compressed = path.with_suffix(".jsonl.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    for other in (attempts.load(compressed), zipped):
        assert other.problems == plain.problems
        assert other.card == plain.card and other.diversity == {"groups": []}
    assert attempts.paths(archive) == [archive / "cppo/eval/heldout-tuple.jsonl"]
    assert attempts.paths(tmp_path / "run") == [path, compressed]


def test_a_member_that_an_archive_lacks_is_missed_by_its_name(tmp_path):
    write_run(tmp_path / "run", "cppo", "tuple")
    gone = pack(tmp_path / "run") / "cppo/eval/gone.jsonl"
    with pytest.raises(UserError, match="no attempts at .*run.zip/cppo/eval/gone.jsonl"):
        attempts.load(gone)


def test_last_and_random_attempts_are_of_as_few_tuples_as_hold_k(tmp_path):
    """Appendix G's control is about places in one tuple, whatever else was drawn."""
    evaluation = attempts.load(write_run(tmp_path, "cppo", "tuple"))
    places = {}
    for rule in ("first", "last", "random"):
        counted = [attempt for name in PROBLEMS
                   for attempt in attempts.chosen(evaluation, name, 2, rule)]
        places[rule] = {(attempt["tuple"], attempt["index"]) for attempt in counted}
    assert places["first"] == {(0, 0), (0, 1)} and places["last"] == {(0, 2), (0, 3)}
    assert places["random"] == {(0, i) for i in range(4)}
    pooled = attempts.chosen(evaluation, "p00", 6, "last")
    expected = [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert [(attempt["tuple"], attempt["index"]) for attempt in pooled] == expected
    direct = attempts.load(write_run(tmp_path, "base", "direct"))
    assert [a["tuple"] for a in attempts.chosen(direct, "p00", 2, "last")] == [6, 7]
    with pytest.raises(UserError, match="holds 8 attempts at p00, not 9"):
        attempts.scores(direct, 9)


def test_the_diversity_of_fixed_strategies_is_that_of_their_programs(tmp_path):
    """The model did not plan them (F.1)."""
    group = [{"strategy": "Sort.", "program": f"print({i})"} for i in range(4)]
    fixed = attempts.load(write_run(tmp_path, "base", "fixed"))
    sketch = attempts.load(write_run(tmp_path, "base", "sketch"))
    assert attempts.texts(fixed, group)[0] == "print(0)"
    assert attempts.texts(sketch, group) == ["Sort."] * 4


def test_unbiased_pass_at_k_is_for_independent_methods_with_attempts_to_spare(tmp_path):
    direct = attempts.load(write_run(tmp_path, "base", "direct"))
    right = [sum(a["status"] == "accepted" for a in made) for made in direct.problems.values()]
    expected = statistics.mean(metrics.pass_at_k(8, c, 4) for c in right)
    assert attempts.scores(direct, 4)["unbiased"] == pytest.approx(expected)
    assert "unbiased" not in attempts.scores(direct, 8)
    joint = attempts.load(write_run(tmp_path, "sft", "tuple"))
    assert "unbiased" not in attempts.scores(joint, 4)


def test_pass_at_k_counts_the_first_k_attempts(tmp_path):
    path = write_run(tmp_path, "cppo", "tuple")
    [lines] = raw([tmp_path], "cppo", "tuple")
    for k in (1, 2, 4, 8):
        assert attempts.scores(attempts.load(path), k)["pass@K"] == pytest.approx(pass_at(lines, k))


def test_tuples_are_counted_by_what_is_wrong_with_them(tmp_path):
    """Of four tuples one repeats a strategy, one has two programs of one outcome, one is not
    parsed; the gate accepts two."""
    path = tmp_path / "a.jsonl"
    strategies = [["Sort.", "sort", "c", "d"], list("abcd"), [None] * 4, list("abcd")]
    outcomes = [list("wxyz"), list("wwyz"), [None] * 4, list("wxyz")]
    p_pass = [0.9, 0.1, 0.0, 0.5]
    rows = []
    for t in range(4):
        for i in range(4):
            row = {"problem_id": f"p{t}", "tuple": 0, "index": i, "gate": p_pass[t]}
            row |= {"strategy": strategies[t][i], "outcome": outcomes[t][i]}
            rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = {"method": "tuple", "num_strategies": 4}
    card = {"setting": setting, "tau": 0.5, "faults": {"leak": 0.25}}
    path.with_suffix(".json").write_text(json.dumps(card))
    assert attempts.tuple_scores(attempts.load(path)) == {
        "literal duplicates": 0.25, "equal outcomes": 0.25, "judged leak": 0.25, "accepted": 0.5,
        "unparsed": 0.25}


def test_rows_print_under_all_their_columns_and_absent_cells_are_dashes():
    text = attempts.render([{"method": "CPPO", "pass@4": 0.5}, {"method": "x", "tokens": 1234.56},
                            {"method": "y", "pass@4": float("nan")}])
    assert text.split("\n") == ["method  pass@4  tokens", "------  ------  ------",
                                "CPPO     0.500       -", "x            -  1234.6",
                                "y            -       -"]


def evaluation_of(lines: list[dict], method: str = "tuple") -> attempts.Evaluation:
    problems: dict[str, list[dict]] = {}
    for line in lines:
        problems.setdefault(line["problem_id"], []).append(line)
    return attempts.Evaluation(Path("x.jsonl"), {"setting": {"method": method}}, problems)


def test_shares_of_odd_replies_and_plans_are_those_of_training():
    block = "```python\nprint(1)\n```\n"
    near_miss = "\n".join(f"**{label}:** sort the list" for label in "ABCD")
    plan = "\n".join(f"{label}: sort the list by column {label}" for label in "ABCD")
    lines = [{"problem_id": "p", "reply": reply, "plans": plans} for reply, plans in (
        (block, [plan]), (block + "Example usage:\n" + block, None),
        ("```python\nprint(", [near_miss]), (block + "```\n1", ["nothing"]), (None, None))]
    shares = attempts.reply_scores(evaluation_of(lines))
    assert shares == {"several blocks": 0.25, "block cut": 0.5, "plan near miss": 1 / 3}
    assert "plan near miss" not in attempts.reply_scores(evaluation_of(lines, "tuple-iid"))
    # a file of an earlier version, or of another system
    assert attempts.reply_scores(evaluation_of([{"problem_id": "p"}])) == {}


def test_both_figures_are_printed_where_published_errata_are_among_the_problems(capsys):
    base = {"tuple": 0, "index": 0, "planner_tokens": 0, "solver_tokens": 0, "strategy": None}
    evaluation = evaluation_of([base | {"problem_id": "lcb/a", "status": "accepted"},
                                base | {"problem_id": "lcb/b", "status": "wrong_answer"}], "direct")
    problems = [Problem("lcb/a", "x"), Problem("lcb/b", "x", ids={"atcoder": "abc311_c"})]
    args = Namespace(benchmark="lcb", method="direct", k=[1], select="first")
    evaluate.print_scores(args, problems, evaluation, [])
    printed = capsys.readouterr().out
    assert "1 of them are published errata" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("1  ")] == \
        ["0.500", "1.000"]
    evaluate.print_scores(args, problems[:1], evaluation, [])
    assert "errata" not in capsys.readouterr().out


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xfd\xfe")
    with pytest.raises(UserError, match="x.jsonl is not UTF-8 text"):
        attempts.load(tmp_path / "x.jsonl")
