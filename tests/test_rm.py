"""train_rm.py: what the stage writes, accepts, refuses, and how it resumes."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import gate
import model
import prompts
import train_rm
from gate import Gate
from lib import run as lib_run
from lib.labels import POSITIVE, Label, load_labels, save_labels
from paper import gate_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen(tmp_path_factory.mktemp("base") / "tiny")


def easy(n: int, seed: int) -> list[Label]:
    """Passes if it says `sort`; fails, in one of the four ways, if it says `code`."""
    rng = random.Random(seed)
    kinds = ["duplicate", "leak", "vague", "off_topic"]
    number = lambda: rng.randint(10, 99)
    return [
        Label(f"{seed}/q{i}", f"Problem {i} of {seed}.", f"{number()} {word} {number()}", z, kind)
        for i in range(n)
        for z, word, kind in ((1, "sort", ""), (0, "code", kinds[i % 4]))
    ]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder of its own with short prompts; afterwards no process group and no signal
    handler are left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
    Path("prompts.json").write_text(json.dumps({"gate": "{plan}"}))
    save_labels("train.jsonl", easy(24, 1))
    save_labels("val.jsonl", easy(10, 2))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    if dist.is_initialized():
        dist.destroy_process_group()


def train(folder: Path, *more: str) -> int:
    return train_rm.main(
        train_rm.parse_args(
            [
                "--model",
                str(folder),
                "--run",
                "r",
                "--labels",
                "train.jsonl",
                "--val",
                "val.jsonl",
                "--prompts",
                "prompts.json",
                "--batch-size",
                "8",
                "--epochs",
                "5",
                "--lr",
                "2e-3",
                *more,
            ]
        )
    )


def metrics(stage: Path) -> list[dict]:
    """What a resumed run must repeat: all but the clocks."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_gate_that_learned_is_accepted_and_loads_and_says_what_it_is(folder, runs, capsys):
    assert train(folder, "--tau", "auto") == 0
    said = capsys.readouterr().out
    final = runs / "runs/r/gate/final"
    card = json.loads((final / "gate.json").read_text())
    assert (
        "gate accepted" in said
        and "caught: off_topic (2)" in said
        and "above the rule gate's by" in said
    )
    assert card["accepted"] and card["metrics"]["auc"] > 0.95
    assert card["verdict_words"] == ["Pass", "Fail"] and card["k"] == 4
    assert card["rule_gate"]["auc"] == 0.5                            # no plan of these parses
    judge, val = Gate.load(final), load_labels(final / "labels_val.jsonl")
    p = judge.p_pass([(x, x.plan) for x in val])
    assert [
        x for x, _ in gate_report.read_decisions(final / "labels_val.jsonl")[0]
    ] == pytest.approx(p, rel=1e-6)
    assert judge.tau == card["tau"] == gate.choose_tau(p, [x.label for x in val]) and len(val) == 20
    assert gate.acceptance(p, [x.label for x in val], judge.tau)["recall"] >= 0.95
    assert not any(w.requires_grad for w in judge.module.parameters())
    assert len(load_labels(final / "labels_train.jsonl")) == 48
    unseen = easy(20, 3)
    assert gate.auc(judge.p_pass([(x, x.plan) for x in unseen]), [x.label for x in unseen]) > 0.95
    assert train(folder, "--lr", "7") == 0                            # finished: not done again
    assert json.loads((final / "gate.json").read_text()) == card
    prompts.TEMPLATES["gate"] = "Judge {plan}"
    with pytest.raises(ValueError, match="trained with another gate prompt"):
        Gate.load(final)


def test_a_gate_that_fails_acceptance_ends_with_status_3_and_is_never_loaded(folder, runs, capsys):
    opposite = [Label(x.problem_id, x.statement, x.plan, 1 - x.label) for x in easy(10, 2)]
    save_labels("val.jsonl", opposite)
    # asked again, it says so again
    for _ in range(2):
        assert train(folder, "--steps", "4") == 3
        said = capsys.readouterr().err
        assert "gate NOT accepted: auc 0." in said and "--fresh" in said
    final = runs / "runs/r/gate/final"
    assert not json.loads((final / "gate.json").read_text())["accepted"]
    with pytest.raises(ValueError, match="was not accepted.*auc") as e:
        Gate.load(final)
    assert "\n" not in str(e.value)


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The stage folder of a run that nobody cut off: two epochs of six steps."""
    tmp = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp)
        patched.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))
        Path("prompts.json").write_text(json.dumps({"gate": "{plan}"}))
        save_labels("train.jsonl", easy(24, 1))
        save_labels("val.jsonl", easy(10, 2))
        assert train(folder, "--epochs", "2", "--save-every", "2") in (0, 3)
    dist.destroy_process_group()
    return tmp / "runs/r/gate"


@pytest.mark.parametrize("how, at", [("crash", 5), ("SIGTERM", 9), ("crash", "acceptance")])
def test_a_run_cut_off_anywhere_ends_bit_for_bit_like_one_that_was_not(
        folder, runs, undisturbed, monkeypatch, how, at):
    write, arguments = lib_run.Log.write, ("--epochs", "2", "--save-every", "2")

    def cut(self, name, record):
        write(self, name, record)
        if record.get("step") == at and how == "crash":
            raise Crash
        if record.get("step") == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(lib_run.Log, "write", cut)
        if at == "acceptance":
            patched.setattr(train_rm, "table", crash)
        if how == "crash":
            with pytest.raises(Crash):
                train(folder, *arguments)
        else:
            assert train(folder, *arguments) == 143
    assert train(folder, *arguments) in (0, 3)
    stage = runs / "runs/r/gate"
    assert metrics(stage) == metrics(undisturbed)
    assert [row["step"] for row in metrics(stage) if "val_auc" in row] == [6, 12]
    a, b = (load_file(s / "final" / "model.safetensors") for s in (stage, undisturbed))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    card, expected = (
        json.loads((s / "final" / "gate.json").read_text()) for s in (stage, undisturbed)
    )
    assert card == expected


def test_of_the_epochs_the_one_with_the_highest_held_out_auc_is_the_gate(folder, runs, monkeypatch):
    """Weights of the second epoch's end, though a third follows."""
    aucs, kept, auc = iter([0.6, 0.9, 0.7]), [], gate.auc

    def told(p, labels):
        value = next(aucs, None)
        if value is not None:
            kept.append({n: w.detach().clone() for n, w in modules[0].named_parameters()})
        return auc(p, labels) if value is None else value

    modules, fit = [], gate.fit

    def watched(module, *args, **kwargs):
        modules.append(module)
        return fit(module, *args, **kwargs)

    monkeypatch.setattr(gate, "auc", told)
    monkeypatch.setattr(gate, "fit", watched)
    assert train(folder, "--epochs", "3") in (0, 3)
    final = dict(model.load(runs / "runs/r/gate/final").named_parameters())
    assert (
        json.loads((runs / "runs/r/gate/final/gate.json").read_text())["step"] == 12
        and len(kept) == 3
    )
    assert all(torch.equal(final[n], kept[1][n]) for n in final)
    assert not all(torch.equal(final[n], kept[2][n]) for n in final)


def test_kinds_of_fault_that_are_rare_or_missing_are_named(folder, runs, capsys):
    save_labels("train.jsonl", [x for x in easy(24, 1) if x.kind in (POSITIVE, "leak", "vague")])
    train(folder, "--steps", "1")
    assert "duplicate 0%, off_topic 0%" in capsys.readouterr().err
    config = json.loads((runs / "runs/r/gate/config.json").read_text())
    assert "duplicate 0%, off_topic 0%" in "\n".join(config["warnings"])


def test_one_pool_is_split_by_problem(folder, runs):
    train(folder, "--steps", "1", "--labels", "train.jsonl", "--val", "")
    sides = [
        load_labels(runs / f"runs/r/gate/final/labels_{side}.jsonl") for side in ("train", "val")
    ]
    train_ids, val_ids = ({x.problem_id for x in side} for side in sides)
    assert (
        sum(map(len, sides)) == 48
        and len(train_ids) + len(val_ids) == 24
        and not train_ids & val_ids
    )


@pytest.mark.parametrize("more, complaint", [
    (["--labels", "nowhere.jsonl"], "no gate labels at nowhere.jsonl"),
    (["--val", "train.jsonl"], "24 problems are in both"),
    (["--epochs", "0"], "argument --epochs: must be a whole number of 1 or more, not 0"),
    (["--tau", "1.5"], "argument --tau: must lie between 0 and 1, not 1.5"),
    (["--model", "nowhere"], "nowhere: no such folder"),
])
def test_a_user_s_mistake_is_one_line_and_exit_status_2(folder, runs, capsys, more, complaint):
    with pytest.raises(SystemExit) as e:
        train(folder, *more)
    assert e.value.code == 2 and complaint in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (runs / "runs").exists()


def test_recall_per_kind_counts_positives_kept_and_negatives_caught():
    labels = [Label("a", "x", "p", 1), Label("b", "x", "p", 1), Label("a", "x", "p", 0, "leak"),
              Label("b", "x", "p", 0, "leak"), Label("c", "x", "p", 0, "vague")]
    assert train_rm.measure([0.9, 0.1, 0.2, 0.1, 0.6], labels, 0.5)["kinds"] == {
        "positive": {"count": 2, "recall": 0.5}, "leak": {"count": 2, "recall": 1.0},
        "vague": {"count": 1, "recall": 0.0}}
