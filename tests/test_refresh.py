"""lib/refresh.py: the gate's refresh between two steps of stage 5, on the toy policy of toy.py.

Each fixture is one run of two steps with a refresh between them; `accepted` is the one that the
others are compared with.
"""

import shutil
from pathlib import Path

import pytest
import tiny
import toy
from chat_server import Server

import gate
import model
import prompts
from lib import refresh
from lib import run as lib_run
from lib.labels import Label, load_labels, save_labels

FLAGS = ("--steps", "2", "--problems-per-step", "1", "--skip-audit", "--refresh-every", "1")
JUDGE = ("--judge", "toy:judge")
ANY_GATE = {"auc": 0.0}             # an acceptance that every candidate passes
POOL = "gate_pool/000001_train.jsonl"           # in the stage folder
HELD_OUT = "gate_pool/000001_val.jsonl"


def old_labels(part: str) -> list[Label]:
    """The judge's labels of plans for the toy problems, of which one is held out, and for ten that
    the run does not have, in either part."""
    statements = ["end"] if part == "val" else ["sum", "top", "gap"]
    plans = [(f"toy/{s}", s, way) for s in statements for way in "12"]
    plans += [(f"{part} {i}", f"{part} {i}", way) for i in range(10) for way in "13"]
    return [Label(problem_id, statement, f"A: use 1\nB: use {way}", int(way != "1"))
            for problem_id, statement, way in plans]


@pytest.fixture(scope="module")
def gate_folder(toy_world, tmp_path_factory) -> Path:
    """An accepted gate with tau 0 and its labels."""
    folder = tmp_path_factory.mktemp("old") / "gate"
    module, tokenizer = model.load(toy_world / "base"), tiny.tokenizer()
    model.save(module, folder, tokenizer)
    with toy.working_folder(folder):
        prompts.TEMPLATES.update(toy.SHORT)
        old = gate.Gate(module, tokenizer, tau=0.0, k=2)
        old.write_card(folder, {"accepted": True, "failed": []}, base="none")
    for part in ("train", "val"):
        save_labels(str(folder / f"labels_{part}.jsonl"), old_labels(part))
    return folder


@pytest.fixture(scope="module")
def refused(toy_world, gate_folder, tmp_path_factory) -> Path:
    """The stage folder of a run whose candidate fails the paper's acceptance."""
    folder = tmp_path_factory.mktemp("refused")
    with toy.working_folder(folder):
        status, stage = toy.train(toy_world, *FLAGS, *JUDGE, "--gate", str(gate_folder))
    assert status == 0
    return folder / stage


@pytest.fixture(scope="module")
def accepted(toy_world, gate_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("accepted")
    with pytest.MonkeyPatch.context() as patched, toy.working_folder(folder):
        patched.setattr(gate, "ACCEPTANCE", ANY_GATE)
        status, stage = toy.train(toy_world, *FLAGS, *JUDGE, "--gate", str(gate_folder))
    assert status == 0
    return folder / stage


@pytest.fixture(scope="module")
def endpoint(toy_world, gate_folder, tmp_path_factory) -> Path:
    """Like `accepted`, with the same judge behind an endpoint."""
    def answer(text: str, seed: int) -> str:
        plan = text.split("Proposed methods:\n")[1].split("\n\n")[0]
        return "faults: " + (", ".join(toy.judge("", plan)) or "none")

    folder = tmp_path_factory.mktemp("endpoint")
    with pytest.MonkeyPatch.context() as patched, toy.working_folder(folder):
        patched.setattr(gate, "ACCEPTANCE", ANY_GATE)
        with Server(reply=answer) as server:
            status, stage = toy.train(toy_world, *FLAGS, "--judge", server.spec,
                                      "--gate", str(gate_folder))
            assert server.requests
    assert status == 0
    return folder / stage


def refresh_of(stage: Path) -> dict:
    return toy.read(stage / "gate.jsonl")[0]


def test_two_fresh_plans_per_problem_are_labelled_and_added_to_the_pool(refused):
    made = refresh_of(refused)
    assert made["fresh"] == 2 * len(toy.problems())
    assert made["fresh_held_out"] == made["fresh"] / 4
    added = 3 / 4 * made["fresh"]
    assert len(load_labels(str(refused / POOL))) == len(old_labels("train")) + added


def test_no_statement_is_trained_on_and_held_out_and_acceptance_sees_fresh_plans(refused):
    """The problems of the statement that was held out before the run stay there."""
    train, val = (load_labels(str(refused / name)) for name in (POOL, HELD_OUT))
    assert not {label.statement for label in train} & {label.statement for label in val}
    assert len(val) == len(old_labels("val")) + refresh_of(refused)["fresh_held_out"]
    assert refresh_of(refused)["positives"] + refresh_of(refused)["negatives"] == len(val)


def test_a_new_statement_goes_to_one_side_and_an_old_one_stays_where_it_was():
    def label(statement):
        return Label(statement, statement, "A: x", 1)

    fresh = [label(f"new {i}") for i in range(100)] + [label("known"), label("held")]
    train, val = refresh.apart(fresh, [label("known")], [label("held")], seed=0)
    assert label("known") in train and label("held") in val
    assert len(train) + len(val) == 102 and 10 < len(val) < 32


def test_a_candidate_that_fails_acceptance_is_dropped_and_the_old_gate_stays(refused, gate_folder):
    made = refresh_of(refused)
    assert not made["accepted"] and made["gate"] == str(gate_folder)


def test_a_candidate_that_passes_is_the_gate_from_then_on_at_the_same_tau(accepted, monkeypatch):
    made = refresh_of(accepted)
    assert made["accepted"] and made["tau"] == 0.0
    assert made["gate"] == "runs/toy/cppo-m4/gate_000001"
    monkeypatch.setitem(prompts.TEMPLATES, "gate", toy.SHORT["gate"])
    gate.Gate.load(str(accepted / "gate_000001"))           # raises if it may not be used


def test_a_run_stopped_in_a_refresh_makes_the_same_refresh_when_it_goes_on(
        accepted, gate_folder, run_toy, tmp_path, monkeypatch):
    """The step before it is kept. --fresh drops the gate that an earlier run left there."""
    monkeypatch.setattr(gate, "ACCEPTANCE", ANY_GATE)
    stage = tmp_path / "runs/toy/cppo-m4"
    shutil.copytree(accepted, stage)
    flags = (*FLAGS, *JUDGE, "--gate", str(gate_folder))
    with monkeypatch.context() as stopping:
        stop = (stage / "step_000001").exists           # asked for as soon as step 1 is saved
        stopping.setattr(lib_run, "stop_flag", lambda: stop)
        assert run_toy(*flags, "--fresh", "--save-every", "1")[0] == 143
    assert not (stage / "gate_000001").exists()
    assert run_toy(*flags)[0] == 0
    assert (stage / POOL).read_text() == (accepted / POOL).read_text()
    assert refresh_of(stage) == refresh_of(accepted)


def test_a_judge_behind_an_endpoint_gives_the_same_labels(endpoint, accepted):
    assert (endpoint / POOL).read_text() == (accepted / POOL).read_text()


def test_the_log_asks_a_model_about_the_first_step_only(endpoint, accepted):
    """A plug-in judges every step; a model takes time and is asked every tenth."""
    by_plug_in = [m.get("valid_judged") for m in toy.read(accepted / "metrics.jsonl")]
    by_model = [m.get("valid_judged") for m in toy.read(endpoint / "metrics.jsonl")]
    assert by_model == [by_plug_in[0], None] and None not in by_plug_in


def test_a_plan_that_does_not_parse_has_that_fault_without_asking_a_model(endpoint):
    samples = toy.read(endpoint / "samples.jsonl")
    assert all(t["faults"] == ["parse"] for t in samples if t["step"] == 1 and t["error"])
