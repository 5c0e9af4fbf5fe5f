"""evaluate.py as it is called: attempts on disk, interrupted, continued, shared by processes,
refused."""

import json
from concurrent.futures import Future
from pathlib import Path

import pytest
import ranks
import tiny
from tiny import edit

import evaluate
from lib import files, metrics
from lib.problems import Problem, load_problems, save_problems
from paper import attempts, cards
from rivals.programs import read_programs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.qwen(tmp_path_factory.mktemp("model") / "qwen")


@pytest.fixture
def pool(tmp_path) -> Path:
    problems = []
    for i in range(5):
        tests = [{"input": f"{x}\n", "output": f"{x + i}\n"} for x in (3, 8)]
        problems.append(Problem(f"p{i}", f"Read a number and print it plus {i}.", tests=tests))
    save_problems(tmp_path / "pool.jsonl", problems)
    return tmp_path / "pool.jsonl"


def write_programs(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*argv, capsys=None) -> str:
    assert evaluate.main(evaluate.parse_args([str(a) for a in argv])) == 0
    return capsys.readouterr().out if capsys else ""


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as end:
        evaluate.main(evaluate.parse_args([str(a) for a in argv]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


# p0: right at once; p1: right at the third; p2: a whole reply; p3: two wrong ones; p4: nothing
THEIRS = [{"problem_id": "p0", "index": 0, "program": "print(int(input()) + 0)"},
          {"problem_id": "p1", "index": 2, "program": "print(int(input()) + 1)"},
          {"problem_id": "p1", "index": 0, "program": "print(int(input()) - 1)"},
          {"problem_id": "p1", "index": 1, "program": "print(int(input()))"},
          {"problem_id": "p2", "index": 0, "response": "```python\nprint(int(input()) + 2)\n```"},
          {"problem_id": "p3", "index": 0, "program": "print("},
          {"problem_id": "p3", "index": 1, "program": None}]


def test_programs_from_elsewhere_are_judged_counted_and_compared(tmp_path, pool, capsys):
    theirs = write_programs(tmp_path / "theirs.jsonl", THEIRS)
    out = tmp_path / "theirs-out.jsonl"
    shared = ("--method", "file", "--problems", pool, "--workers", 1)
    printed = call(*shared, "--programs", theirs, "--k", 1, 4, "--out", out, capsys=capsys)
    evaluation = attempts.load(out)
    status = {}
    for name, made in evaluation.problems.items():
        status[name] = [attempt["status"] for attempt in made]
    assert status == {"p0": ["accepted"], "p1": ["wrong_answer", "wrong_answer", "accepted"],
                      "p2": ["accepted"], "p3": ["compile_error", "empty"], "p4": ["empty"]}
    assert attempts.outcomes(evaluation, 1).tolist() == [1, 0, 1, 0, 0]
    assert attempts.outcomes(evaluation, 4).tolist() == [1, 1, 1, 0, 0]
    assert "0.400" in printed and "0.600" in printed

    worse = write_programs(tmp_path / "worse.jsonl", THEIRS[:1])
    printed = call(*shared, "--programs", worse, "--out", tmp_path / "worse-out.jsonl",
                   "--against", out, capsys=capsys)
    gain = metrics.paired_bootstrap([1, 0, 0, 0, 0], [1, 1, 1, 0, 0])
    assert f"{gain.gain:.3f}" in printed and f"{gain.p:.3f}" in printed


def test_a_world_s_oracle_reaches_the_coordinated_ceiling(tmp_path, capsys):
    world = pytest.importorskip("miniature.world")
    problems = world.problems("heldout")[:6]
    save_problems(tmp_path / "world.jsonl", problems)
    rows = []
    for p in problems:
        posterior = world.parse_statement(p.statement).posterior
        likeliest = sorted(posterior, key=posterior.get, reverse=True)[:4]
        for i, combination in enumerate(likeliest):
            rows.append({"problem_id": p.id, "index": i, "program": world.program(combination)})
    write_programs(tmp_path / "oracle.jsonl", rows)
    call("--method", "file", "--programs", tmp_path / "oracle.jsonl",
         "--problems", tmp_path / "world.jsonl", "--out", tmp_path / "out.jsonl", "--workers", 1,
         "--k", 2, 4)
    evaluation = attempts.load(tmp_path / "out.jsonl")
    for k in (2, 4):
        row = attempts.scores(evaluation, k)
        assert row["posterior"] == pytest.approx(row["coordinated"])
    assert row["independent"] < row["coordinated"]


SAMPLING = ["--temperature", 1, "--max-plan-tokens", 60, "--max-solve-tokens", 150, "--workers", 1]


def attempts_of(path: Path) -> list[dict]:
    return [json.loads(line) | {"seconds": None} for line in path.read_text().splitlines()]


def agree(a: list[dict], b: list[dict]) -> bool:
    """The same attempts but for rounding: other rows in the batch can change a token that was on
    the edge, and the rest of that reply with it. Here 1 of 10 attempts does."""
    def place(attempt: dict) -> tuple:
        return attempt["problem_id"], attempt["tuple"], attempt["index"]

    assert [place(attempt) for attempt in a] == [place(attempt) for attempt in b]
    return sum(x == y for x, y in zip(a, b, strict=True)) >= 0.8 * len(a)


def test_an_interrupted_evaluation_goes_on_and_comes_to_the_same_attempts(
        tmp_path, pool, checkpoint, capsys):
    argv = ["--model", checkpoint, "--method", "direct", "--problems", pool, *SAMPLING]
    call(*argv, "--out", tmp_path / "whole.jsonl")
    whole = attempts_of(tmp_path / "whole.jsonl")
    # replies differ, so equality means something
    assert len({a["solver_tokens"] for a in whole}) > 3

    out = tmp_path / "cut.jsonl"
    call(*argv, "--out", out)
    lines = out.read_text().splitlines(keepends=True)
    out.unlink()                            # as if killed within the lines of another problem
    (tmp_path / "cut.jsonl.0.part").write_text("".join(lines[:4]))
    in_part_1 = "".join(lines[12:16] + lines[4:6]) + lines[6][:30]
    (tmp_path / "cut.jsonl.1.part").write_text(in_part_1)
    capsys.readouterr()
    call(*argv, "--out", out)
    assert "2 of 5 problems are done already" in capsys.readouterr().err
    made = attempts_of(out)
    assert made[:4] == whole[:4] and made[12:16] == whole[12:16]    # these problems were on disk
    assert agree(made, whole)
    assert sorted(p.name for p in tmp_path.glob("cut*")) == ["cut.json", "cut.jsonl"]

    before = out.stat().st_mtime_ns
    call(*argv, "--out", out, "--k", 1, 2, "--attempts", 4)     # finished: counted again, no more
    assert out.stat().st_mtime_ns == before


def test_every_reply_is_kept_with_why_nothing_was_run(tmp_path, pool, checkpoint, capsys):
    argv = ["--model", checkpoint, "--method", "tuple", "--problems", pool, *SAMPLING]
    printed = call(*argv, "--limit", 2, "--out", tmp_path / "out.jsonl", capsys=capsys)
    made = attempts_of(tmp_path / "out.jsonl")
    assert {attempt["status"] for attempt in made} <= {"no_plan", "plan_cut"}
    assert all("label lines" in attempt["error"] for attempt in made)
    assert [bool(attempt["plans"]) for attempt in made] == [True, False, False, False] * 2
    assert "8 attempts: " in printed

    printed = call(*argv[:3], "direct", *argv[4:], "--out", tmp_path / "d.jsonl", capsys=capsys)
    for attempt in attempts_of(tmp_path / "d.jsonl"):
        assert attempt["status"] in ("cut", "no_code")
        assert (attempt["status"] == "cut") == (attempt["finish"] == "length")
        assert attempt["reply"]


def test_no_more_slots_are_allocated_than_rows_decode_and_the_size_is_said(
        tmp_path, pool, checkpoint, capsys):
    argv = ["--model", checkpoint, "--method", "direct", "--problems", pool, "--k", 2, *SAMPLING]
    call(*argv, "--limit", 3, "--out", tmp_path / "out.jsonl")
    error = capsys.readouterr().err
    assert "sampling: 6 slots of " in error and "MiB of state" in error
    assert error.count("cache forks, prompts shared: yes") == 1


def short(folder):
    edit(folder, max_position_embeddings=180)


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def no_tokenizer(folder):
    for file in folder.glob("token*"):
        file.unlink()


def torn(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])


@pytest.mark.parametrize("damage, message", [
    (short, "exceed the model's context of 180: lower --max-solve-tokens"),
    (no_tokenizer, "holds no tokenizer that transformers can read"),
    (torn, "model.safetensors"),
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json")])
def test_a_checkpoint_that_cannot_be_used_is_one_line(tmp_path, pool, capsys, damage, message):
    folder = tiny.llama(tmp_path / "model")
    damage(folder)
    error = refused(capsys, "--model", folder, "--method", "direct", "--problems", pool, *SAMPLING,
                    "--out", tmp_path / "out.jsonl")
    assert message in error


def test_a_base_model_without_template_or_end_is_named(tmp_path, pool, capsys):
    folder = tiny.llama(tmp_path / "model")
    no_template(folder)
    (folder / "generation_config.json").unlink()
    edit(folder, eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    capsys.readouterr()
    call("--model", folder, "--method", "direct", "--problems", pool, *SAMPLING, "--limit", 1,
         "--out", tmp_path / "out.jsonl")
    out, error = capsys.readouterr()
    assert "has no chat template" in error and "every reply runs to its length limit" in error
    assert "most replies were cut" in out


def test_one_process_and_two_come_to_the_same_attempts(tmp_path, pool, checkpoint):
    argv = ["--model", checkpoint, "--method", "sketch", "--problems", pool, "--k", 2, *SAMPLING]
    call(*argv, "--out", tmp_path / "one.jsonl")
    argv = [str(word) for word in (*argv, "--out", tmp_path / "two.jsonl")]
    ranks.run(2, "import evaluate", f"assert evaluate.main(evaluate.parse_args({argv})) == 0")
    assert agree(attempts_of(tmp_path / "one.jsonl"), attempts_of(tmp_path / "two.jsonl"))
    assert json.loads((tmp_path / "two.json").read_text())["processes"] == 2


def test_a_fault_of_the_sandbox_ends_the_evaluation_and_is_no_verdict(
        tmp_path, pool, capsys, monkeypatch):
    class Faulty(evaluate.Verifier):
        def submit(self, item):
            future = super().submit(item)
            if "+ 1" in item["code"]:
                future = Future()
                future.set_exception(evaluate.SandboxError("the supervisor died"))
            return future

    rows = [{"problem_id": f"p{i}", "index": 0, "program": f"print(int(input()) + {i})"}
            for i in range(5)]
    programs = write_programs(tmp_path / "x.jsonl", rows)
    argv = ["--method", "file", "--programs", programs, "--problems", pool, "--workers", 1,
            "--out", tmp_path / "out.jsonl", "--k", 1]
    monkeypatch.setattr(evaluate, "Verifier", Faulty)
    assert evaluate.main(evaluate.parse_args([str(a) for a in argv])) == 1
    assert "error: the supervisor died" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.undo()
    call(*argv)
    assert "1 of 5 problems are done already" in capsys.readouterr().err
    assert {a["status"] for a in attempts_of(tmp_path / "out.jsonl")} == {"accepted"}


def test_attempts_made_in_another_way_are_not_mixed_or_written_over(
        tmp_path, pool, checkpoint, capsys):
    argv = ["--model", checkpoint, "--method", "direct", "--problems", pool, "--k", 1, *SAMPLING]
    out = tmp_path / "a.jsonl"
    call(*argv, "--out", out)
    before = out.read_bytes(), (tmp_path / "a.json").read_bytes()
    capsys.readouterr()
    error = refused(capsys, *argv, "--out", out, "--temperature", "0.5")
    assert "temperature 1.0, now it is 0.5" in error and "--fresh" in error
    (tmp_path / "b.jsonl").write_text("mine\n")
    error = refused(capsys, *argv, "--out", tmp_path / "b.jsonl")
    assert "b.jsonl is there without b.json" in error
    assert (out.read_bytes(), (tmp_path / "a.json").read_bytes()) == before
    assert (tmp_path / "b.jsonl").read_text() == "mine\n"
    call(*argv, "--out", out, "--temperature", "0.5", "--fresh")
    assert attempts.load(out).setting["temperature"] == 0.5


def test_the_snapshot_of_a_hub_id_is_hashed(pool, checkpoint, monkeypatch):
    def find(name, revision):
        return checkpoint if (name, revision) == ("a/b", "v2") else None

    monkeypatch.setattr(cards.model, "find", find)
    argv = ["--model", "a/b", "--revision", "v2", "--method", "direct"]
    setting = cards.made_with(evaluate.parse_args(argv))
    assert setting["model_sha256"] == files.tree_hash(checkpoint) != ""
    assert setting["revision"] == "v2"


DIRECT = ["--method", "direct", "--model", "m"]
TUPLE = ["--method", "tuple", "--model", "m"]


@pytest.mark.parametrize("argv, message", [
    ([*DIRECT, "--k", "0"], "--k: must be a whole number of 1 or more, not 0"),
    ([*TUPLE, "--num-strategies", "0"],
     "--num-strategies: must be a whole number of 1 or more, not 0"),
    ([*DIRECT, "--attempts", "2"], "--attempts 2 is less than --k 4"),
    (["--method", "file", "--model", "m"], "--method file takes --programs"),
    (["--method", "direct"], "every other method the reverse"),
    ([*DIRECT, "--gate", "rule"], "not for direct"),
    (["--method", "direct", "--model", "nowhere"], "nowhere"),
    ([*TUPLE, "--judge", "nothing:here"], "'nothing'"),
    ([*DIRECT, "--top-k", "-1"], "--top-k: must be a whole number of 0 or more, not -1"),
    ([*DIRECT, "--temperature", "nan"], "--temperature: must be a number of 0 or more, not nan"),
    ([*DIRECT, "--temperature", "inf"], "--temperature: must be a number of 0 or more, not inf"),
    ([*DIRECT, "--out", "/dev/null/x.jsonl"], "x.jsonl cannot be written: /dev/null is no folder"),
    ([*DIRECT, "--against", "gone.jsonl"], "no attempts at gone.jsonl"),
    ([*DIRECT, "--benchmark", "no", "--problems", "gone.jsonl"], "gone.jsonl")])
def test_a_wrong_command_is_one_line_and_writes_nothing(
        tmp_path, pool, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(capsys, "--problems", pool, *argv)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("row, message", [
    ({"problem_id": "p9", "index": 0, "program": "x"}, "no problem 'p9'"),
    ({"problem_id": "p0", "index": "0", "program": "x"}, "index '0' is no whole number"),
    ({"problem_id": "p0", "program": "x"}, "problem_id, index and program"),
    ([1], "problem_id, index and program"),
    ({"problem_id": "p0", "index": 0, "program": 7}, "7 is neither text nor null"),
    ({"problem_id": "p1", "index": 5, "program": "x"}, "has an attempt 5 already")])
def test_a_broken_line_of_programs_is_named(tmp_path, pool, row, message):
    first = {"problem_id": "p1", "index": 5, "program": "x"}
    path = write_programs(tmp_path / "x.jsonl", [first, row])
    with pytest.raises(ValueError, match="x.jsonl line 2: ") as error:
        read_programs(str(path), load_problems(pool))
    assert message in str(error.value)
