"""miniature/reproduce.py: the jobs, the queue that survives, and (slow) a smoke run of everything into RESULTS.md."""

import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import evaluate
from lib import metrics
from lib.problems import outcome_hash
from miniature import reproduce, results, world
from miniature.reproduce import Job, Queue
from paper import cards, tables

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("quick", [False, True])
def test_every_job_is_a_command_that_its_script_takes_and_comes_after_jobs_that_exist(quick):
    queue, seen = reproduce.jobs("r", quick), set()
    outputs = []
    for job in queue:
        assert job.name not in seen and seen.issuperset(job.after), job.name
        seen.add(job.name)
        script, flags = job.command[0], [word.replace("{lr:", "").replace("}", "") for word in job.command[1:]]
        if script in ("train_cppo.py", "train_sft.py", "train_rm.py", "evaluate.py"):
            module = importlib.import_module(script.removesuffix(".py"))
            args = module.parse_args([re.sub(r"^(cppo|grpo|passk|pkpo|upskill)$", "1e-4", word) if before == "--lr" else word
                                      for before, word in zip(["", *flags], flags, strict=False)])
            if script == "train_cppo.py":           # the folder that the tables look for
                assert module.stage_name(args) == re.fullmatch(r"(?:sweep-)?(.*?)-[\de.-]+", job.name)[1]
            if hasattr(module, "check"):
                module.check(args)
            outputs.append(str(module.default_out(args)) if script == "evaluate.py" and not args.out else
                           job.name if script != "train_cppo.py" else f"{args.run}/{module.stage_name(args)}")
    assert len(outputs) == len(set(outputs))        # no two jobs write the same
    assert reproduce.listing(queue, Queue("r")).count("\n") == len(queue)


def test_every_rival_takes_as_many_solver_attempts_a_step_as_cppo():
    import train_cppo
    for stage, (more, _) in reproduce.TRAINED.items():
        job = next(job for job in reproduce.jobs("r", False) if job.name.startswith(f"sweep-{stage}"))
        args = train_cppo.parse_args(job.command[1:])
        attempts = args.num_attempts or train_cppo.ATTEMPTS.get(args.policy, args.num_tuples * args.num_strategies)
        problems = args.problems_per_step or 8 * args.num_tuples * args.num_strategies // attempts       # train_cppo's default
        assert attempts * problems == 256, stage


def shell(name: str, script: str, *after: str) -> Job:
    return Job(name, ["sh", "-c", script], after)


def test_what_is_done_is_never_done_again_and_what_fails_stops_only_what_needs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    queue = [shell("a", "echo a >> log"), shell("bad", "echo bad >> log; test -f mended"), shell("b", "echo b >> log", "a"),
             shell("c", "echo c >> log", "bad")]
    state = Queue("q")
    assert [job.name for job in state.work(queue, 2)] == ["bad", "c"] and "FAILED with status 1" in capsys.readouterr().out
    Path("mended").touch()
    assert state.work(queue, 2) == [] and sorted(Path("log").read_text().split()) == ["a", "b", "bad", "bad", "c"]
    assert state.read(queue[0])["cpu_seconds"] >= 0
    with pytest.raises(ValueError, match="job a was begun as"):
        state.check([shell("a", "echo other")])


RUNNER = """import sys; sys.path.insert(0, {root!r})
from miniature.reproduce import Job, Queue
jobs = [Job("one", ["sh", "-c", "trap 'echo asked >> log; exit 9' TERM; echo begun >> log; sleep 0.5 & wait; echo ended >> log"]),
        Job("two", ["sh", "-c", "echo two >> log"], ("one",))]
sys.exit(len(Queue("q").work(jobs, 1)))"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_queue_that_was_ended_in_any_way_goes_on_and_never_runs_a_job_beside_itself(tmp_path, how):
    """After SIGKILL the job lives on: the next run waits for it and only then gives the command again."""
    command = [sys.executable, "-c", RUNNER.format(root=str(ROOT))]
    log = tmp_path / "log"
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not log.exists():
        time.sleep(0.01)
    first.send_signal(how)
    assert first.wait() == (143 if how != signal.SIGKILL else -9)
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0
    once = ["begun", "ended"] if how == signal.SIGKILL else ["begun", "asked"]
    assert log.read_text().split() == [*once, "begun", "ended", "two"]


def test_the_learning_rate_is_the_best_on_the_dev_problems_and_the_lowest_of_equals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for lr, reached in (("1e-3", 0.5), ("3e-4", 0.75), ("1e-4", 0.75)):
        path = Path(f"runs/r-lr{lr}/dev/pkpo.jsonl")
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"problem_id": f"p{i // 4}", "tuple": i % 4, "index": 0, "outcome": "x",
                                            "status": "empty", "posterior": float(i < 16 * reached)}) + "\n" for i in range(16)))
    assert results.best_lr("r", "pkpo") == "1e-4"


def write_attempts(path: Path, stage: str, method: str, problems: list, chosen) -> None:
    """Four attempts a problem: `chosen` picks from the combinations that its statement allows, likeliest first."""
    path, rng = path / stage / "eval" / f"heldout-{method}.jsonl", random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for problem in problems:
        posterior = world.parse_statement(problem.statement).posterior
        for i, combo in enumerate(chosen(sorted(posterior, key=posterior.get, reverse=True))):
            outcome = outcome_hash(list(world.outcome(combo)))
            rows.append({"problem_id": problem.id, "tuple": 0 if method == "tuple" else i, "index": i, "status": "wrong_answer",
                         "strategy": world.write_strategy(combo, rng) if method == "tuple" else None, "program": world.program(combo),
                         "outcome": outcome, "posterior": problem.classes[outcome], "answer": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = {"method": method, "benchmark": "heldout", "num_strategies": 4, "shuffle_strategies": False}
    path.with_suffix(".json").write_text(json.dumps({"setting": setting, "ceilings": cards.ceilings(problems, (2, 4), 4)}))


def test_the_report_says_who_stands_above_the_independent_ceiling_and_where_the_gap_goes(tmp_path):
    """An oracle's tuples leave no gap; four equal draws lose the policy class and more; what no independent sampler can do is
    told of one that does it."""
    run, problems = tmp_path / "m", world.problems("heldout")[:20]
    write_attempts(run, "cppo", "tuple", problems, lambda likeliest: likeliest[:4])
    write_attempts(run, ".", "direct", problems, lambda likeliest: likeliest[:1] * 4)
    ours = results.Report(tables.find([run]))
    gap = {line["method"]: [line[name] for name in ("gap", "policy class", "optimisation", "solver noise")] for line in ours.gap()}
    assert gap["CPPO"] == ["0.000"] * 4
    assert [line["readings a tuple"] for line in ours.made_of()] == ["4.00"]
    best = [max(p.classes.values()) for p in problems]
    four = [metrics.coordinated_ceiling(list(p.classes.values()), 4) for p in problems]
    assert float(gap["Direct Solve"][0]) == pytest.approx(np.mean(four) - np.mean(best), abs=6e-4)
    assert sum(map(float, gap["Direct Solve"][1:3])) == pytest.approx(float(gap["Direct Solve"][0]), abs=2e-3)
    text = "\n".join(ours.summary())
    assert "CPPO is above the independent ceiling" in text and "none stands above" in text and "2 go its way" in text
    assert [c.agrees for c in ours.compared if c.of == "pass@4" and c.b == "Direct Solve"] == ["yes"]
    write_attempts(run, "pkpo", "direct", problems, lambda likeliest: likeliest[:4])
    text = "\n".join(results.Report(tables.find([run])).summary())
    assert "PKPO STAND ABOVE" in text and "Open, their intervals hold 0: pass@4, CPPO less PKPO (+0.000" in text


@pytest.mark.slow
def test_the_whole_queue_in_small_survives_a_kill_and_ends_in_results(tmp_path):
    """Every cell of the tables is a number of real attempts, or `-`."""
    for path in ROOT.iterdir():         # a tree of its own, for runs/ and results
        if path.name not in ("runs", "corpora", ".git"):
            (tmp_path / path.name).symlink_to(path)
    command = [sys.executable, "-m", "miniature.reproduce", "--quick", "--name", "smoke"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=env)
    while not (tmp_path / "runs/smoke-seed0/sft").exists():
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 0
    text = (tmp_path / "runs/smoke/RESULTS.md").read_text()
    assert "NOT DONE" not in text and "error:" not in text and "nan" not in text
    for number in results.TITLES:
        assert f"### Table {number}:" in text
    assert re.search(r"^- CPPO is .* the independent ceiling: [+-]\d\.\d{3} \[", text, re.MULTILINE)
    gaps = text.partition("### The gap")[2].partition("```\n")[2].partition("\n```")[0].splitlines()
    for line in gaps[2:]:               # gap = policy class + optimisation + solver noise
        *_, gap, policy, optimisation, noise = re.split(r"\s{2,}", line)
        assert float(gap) == pytest.approx(float(policy) + float(optimisation) + (0 if noise == "-" else float(noise)), abs=2e-3)
    before = (tmp_path / "runs/smoke/RESULTS.md").read_text()
    (tmp_path / "runs/smoke/RESULTS.md").write_text(before + "By hand.\n")
    assert subprocess.run([*command, "--report"], cwd=tmp_path, env=env).returncode == 0
    assert (tmp_path / "runs/smoke/RESULTS.md").read_text() == before + "By hand.\n"
