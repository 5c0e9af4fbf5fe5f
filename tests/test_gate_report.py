"""paper/gate_report.py: section 4.4 of files made by hand."""

import json
from pathlib import Path

import pytest

from lib.labels import Label, save_labels
from paper import gate_report


def test_the_joint_table_gives_the_shares_and_the_solve_rates_of_section_4_4():
    table = gate_report.joint_table([0.9, 0.8, 0.2, 0.1, 0.1], [1, 0, 1, 0, 0], 0.5)
    assert table == {"accepted, solved": 0.2, "accepted, failed": 0.2, "rejected, solved": 0.2,
                     "rejected, failed": 0.4, "solved | accepted": 0.5, "solved | rejected": 1 / 3}
    assert gate_report.joint_table([0.9], [1], 0.5)["solved | rejected"] is None


def lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    """The three kinds of file. Of the samples: p, faults, R_out; of the attempts: two tuples of two, and one unparsed."""
    samples = [(0.9, [], 1), (0.8, [], 0), (0.2, ["leak"], 1), (0.1, [], 0), (0.1, ["vague"], 0), (None, ["parse"], 0)]
    lines(tmp_path / "r/cppo/samples.jsonl",
          [{"p_pass": p, "faults": faults, "R_out": r, "R_plan": 0} for p, faults, r in samples])
    lines(tmp_path / "r/cppo/eval/lcb-tuple.jsonl",
          [{"problem_id": "a", "seed": 0, "tuple": t, "strategy": s, "gate": p, "status": status}
           for t, s, p, status in [(0, "x", 0.9, "wrong_answer"), (0, "y", 0.9, "accepted"), (1, "x", 0.4, "accepted"),
                                   (1, "y", 0.4, "time_limit"), (2, None, 0.0, "empty"), (2, None, 0.0, "empty")]])
    labels = [Label("a", "s", "A: x", z, kind) for z, kind in ((1, ""), (0, "leak"), (0, "vague"))]
    (tmp_path / "r/gate/final").mkdir(parents=True)
    save_labels(tmp_path / "r/gate/final/labels_val.jsonl", labels, [0.7, 0.7, 0.3])
    return tmp_path / "r"


def test_decisions_are_read_from_labels_samples_and_attempts(run):
    judged, solved = gate_report.read_decisions(run / "cppo/samples.jsonl")
    assert judged == [(0.9, 1), (0.8, 1), (0.2, 0), (0.1, 1), (0.1, 0), (None, 0)]
    assert solved == [(0.9, 1), (0.8, 0), (0.2, 1), (0.1, 0), (0.1, 0), (None, 0)]
    assert gate_report.read_decisions(run / "cppo/eval/lcb-tuple.jsonl") == ([], [(0.9, 1), (0.4, 1), (None, 0)])
    assert gate_report.read_decisions(run / "gate/final/labels_val.jsonl") == ([(0.7, 1), (0.7, 0), (0.3, 0)], [])


def test_a_run_is_diagnosed_at_any_tau(run, capsys):
    """By hand at tau 0.5: of the parsed two of three valid tuples are accepted and none of two faulty; of all six tuples
    accepted are one solved and one failed, rejected one solved and three failed. AUC: 4.5 of 6 pairs, 5 of 6."""
    gate_report.main([str(run), "--tau", "0.5"])
    attempts, samples, labels = capsys.readouterr().out.strip().split("\n\n")
    assert "against the judge: AUC 0.750; 1 of 3 tuples are valid" in labels and "solver" not in labels
    assert "against the judge: AUC 0.750; 3 of 5 tuples are valid, 1 more do not parse" in samples
    assert "against the solver: AUC 0.833; 2 of 5 tuples are solved, 1 more do not parse" in samples
    assert samples.split("\n")[-1].split() == "0.500 0.667 0.000 0.167 0.167 0.167 0.500 0.500 0.250".split()
    assert "no AUC, for all are alike; 2 of 2 tuples are solved, 1 more do not parse" in attempts
    assert attempts.split("\n")[-1].split() == "0.500 0.333 0.000 0.333 0.333 1.000 0.500".split()


@pytest.mark.parametrize("text, said", [
    ("{", "line 1 is no gate label"), ('{"R_plan": 1}', "line 1 is no gate label"), ("[]", "line 1 is no gate label"),
    ('{"label": 1}', None)])
def test_a_file_without_decisions_is_said(tmp_path, capsys, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    if said is None:
        gate_report.main([str(tmp_path / "x.jsonl")])
        assert "no p(Pass) in it" in capsys.readouterr().out
    for path, complaint in ((tmp_path / "x.jsonl", said), (tmp_path, "holds none of"), (tmp_path / "none", "No such file")):
        if complaint:
            with pytest.raises(SystemExit) as end:
                gate_report.main([str(path)])
            err = capsys.readouterr().err
            assert end.value.code == 2 and complaint in err and err.count("\n") == 1
