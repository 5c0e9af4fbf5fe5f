"""miniature/reproduce.py, jobs.py, report.py, results.py: the jobs, the queue that survives, the
archives, the tables, and (slow) a smoke run of everything into docs/results.md."""

import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import evaluate
from lib import errors, metrics
from lib.problems import outcome_hash
from miniature import report, reproduce, results, sentences, world
from miniature.jobs import Job, Queue
from paper import cards
from paper.runs import find

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_cppo.py": "train_cppo", "train_sft.py": "train_sft", "train_rm.py": "train_rm",
           "evaluate.py": "evaluate", "rivals.train_rivals": "rivals.train_rivals"}


def parsed(job: Job):
    """(module, args) of a job's command; a learning rate that the sweep chooses reads 1e-4."""
    module = importlib.import_module(SCRIPTS[job.command[0]])
    words = [re.sub(r"\{lr:[^}]+\}", "1e-4", word) for word in job.command[1:]]
    return module, module.parse_args(words)


@pytest.mark.parametrize("quick, setting", [(False, "open"), (True, "open"), (False, "settled")])
def test_every_job_is_a_command_that_its_script_takes_and_comes_after_jobs_that_exist(
        quick, setting):
    queue, seen, written = reproduce.make_queue("r", quick, setting), set(), []
    for job in queue.jobs:
        assert job.name not in seen and seen.issuperset(job.after), job.name
        seen.add(job.name)
        if job.command[0] not in SCRIPTS:
            continue
        module, args = parsed(job)
        if hasattr(module, "check"):
            module.check(args)
        if hasattr(module, "stage_name"):       # the folder that the tables look for
            stage = re.fullmatch(r"(?:sweep-)?(.*?)-[\de.-]+", job.name)[1]
            assert module.stage_name(args) == stage
            written.append(f"{args.run}/{stage}")
        elif module is evaluate:
            written.append(str(args.out or module.default_out(args)))
    assert len(written) == len(set(written))        # no two jobs write the same
    assert queue.listing().count("\n") == len(queue.jobs)


def test_every_rival_takes_as_many_solver_attempts_per_step_as_cppo():
    jobs = reproduce.make_queue("r", False).jobs
    for stage in reproduce.TRAINED:
        job = next(job for job in jobs if job.name.startswith(f"sweep-{stage}"))
        _, args = parsed(job)
        if stage in reproduce.CREDITS:
            attempts = args.num_tuples * args.num_strategies
        else:
            attempts = args.num_attempts
        assert attempts * args.problems_per_step == 256, stage


def test_a_fourth_and_a_fifth_rate_are_tried_where_the_best_one_lies_at_an_edge(
        tmp_path, monkeypatch):
    """A method that is best at 6e-4 also runs at 1.2e-3 and, still better there, at 2.4e-3."""
    monkeypatch.chdir(tmp_path)
    assert reproduce.rates(["1.5e-4", "3e-4", "6e-4"], 2) == (["7.5e-5", "3.75e-5"],
                                                              ["1.2e-3", "2.4e-3"])
    queue = reproduce.make_queue("r", False)
    asked, tried = [], []
    rising = {"1.5e-4": 0.1, "3e-4": 0.2, "6e-4": 0.3, "1.2e-3": 0.4, "2.4e-3": 0.35}
    monkeypatch.setattr(reproduce.report, "swept_rates",
                        lambda name, stage: {lr: rising[lr] for lr in asked})
    for job in queue.jobs:
        if re.fullmatch(r"sweep-pkpo-[\d.e-]+", job.name):
            if not job.only_if or queue.wanted(job.only_if):
                tried.append(job.name.removeprefix("sweep-pkpo-"))
        if job.name.removeprefix("dev-pkpo-") in tried:
            asked.append(job.name.removeprefix("dev-pkpo-"))
    assert tried == ["1.5e-4", "3e-4", "6e-4", "1.2e-3", "2.4e-3"]
    best = next(job for job in queue.jobs if job.name == "pkpo-1")
    assert {f"dev-pkpo-{lr}" for lr in ("3.75e-5", "2.4e-3")} <= set(best.after)


def test_a_job_whose_condition_does_not_hold_is_skipped_and_holds_nothing_up(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [shell("a", "echo a >> log"), shell("b", "echo b >> log", "a"),
            shell("c", "echo c >> log", "a"), shell("d", "echo d >> log", "b", "c")]
    jobs[1].only_if, jobs[2].only_if = "yes", "no"
    queue = Queue("q", jobs, wanted=lambda condition: condition == "yes")
    assert "those marked `if`" in queue.listing()
    assert queue.work(1) == []
    assert Path("log").read_text().split() == ["a", "b", "d"]
    assert queue.mark(jobs[2])["skipped"] and "skip" in queue.listing()


def shell(name: str, script: str, *after: str) -> Job:
    return Job(name, ["sh", "-c", script], after)


def test_a_done_job_is_never_run_again_and_a_failed_one_stops_only_what_needs_it(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    jobs = [shell("a", "echo a >> log"), shell("bad", "echo bad >> log; test -f mended"),
            shell("b", "echo b >> log", "a"), shell("c", "echo c >> log", "bad")]
    left = Queue("q", jobs).work(2)
    assert [job.name for job in left] == ["bad", "c"]
    assert "FAILED with status 1" in capsys.readouterr().out
    Path("mended").touch()
    queue = Queue("q", jobs)
    assert queue.work(2) == []
    assert sorted(Path("log").read_text().split()) == ["a", "b", "bad", "bad", "c"]
    assert queue.mark(jobs[0])["cpu_seconds"] >= 0
    with pytest.raises(errors.UserError, match="job a was begun as"):
        Queue("q", [shell("a", "echo other")]).check()


RUNNER = """import sys; sys.path.insert(0, {root!r})
from miniature.jobs import Job, Queue
script = ("trap 'echo asked >> log; exit 9' TERM; "
          "echo begun >> log; sleep 0.5 & wait; echo ended >> log")
jobs = [Job("one", ["sh", "-c", script]), Job("two", ["sh", "-c", "echo two >> log"], ("one",))]
sys.exit(len(Queue("q", jobs).work(1)))"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_queue_that_was_ended_continues_and_never_runs_a_job_beside_itself(tmp_path, how):
    """After SIGKILL the job lives on: the next run waits for it, then gives the command again."""
    command = [sys.executable, "-c", RUNNER.format(root=str(ROOT))]
    log = tmp_path / "log"
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    while not log.exists():
        time.sleep(0.01)
    first.send_signal(how)
    assert first.wait() == (143 if how != signal.SIGKILL else -9)
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0
    once = ["begun", "ended"] if how == signal.SIGKILL else ["begun", "asked"]
    assert log.read_text().split() == [*once, "begun", "ended", "two"]


def test_the_learning_rate_is_the_best_on_dev_and_the_lowest_of_equals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for lr, reached in (("1e-3", 0.5), ("3e-4", 0.75), ("1e-4", 0.75)):
        path = Path(f"runs/r-lr{lr}/dev/pkpo.jsonl")
        path.parent.mkdir(parents=True)
        rows = [{"problem_id": f"p{i // 4}", "tuple": i % 4, "index": 0, "outcome": "x",
                 "status": "empty", "posterior": float(i < 16 * reached)} for i in range(16)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report.best_lr("r", "pkpo") == "1e-4"
    queue = reproduce.make_queue("r", False)
    assert queue.fill("runs/r-lr{lr:pkpo}/pkpo") == "runs/r-lr1e-4/pkpo"


def test_an_archive_holds_the_tree_of_a_run_and_equal_files_give_equal_bytes(tmp_path):
    run, archives = tmp_path / "m-seed0", [tmp_path / "a.zip", tmp_path / "b.zip"]
    for stage in ("cppo", "."):
        folder = run / stage / "eval"
        folder.mkdir(parents=True)
        for ending in (".jsonl", ".json", ".diversity.json", ".log"):
            (folder / f"heldout{ending}").write_text(stage + ending)
    for archive in archives:
        report.pack_run(run, archive)
        (run / "cppo/eval/heldout.json").touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as file:
        assert file.namelist() == [f"{folder}heldout{ending}" for folder in ("cppo/eval/", "eval/")
                                   for ending in (".diversity.json", ".json", ".jsonl")]
        assert file.read("cppo/eval/heldout.jsonl") == b"cppo.jsonl"


def write_attempts(run: Path, stage: str, method: str, problems: list, choose,
                   setting: str = "open") -> None:
    """Four attempts per problem: `choose` picks from the combinations that its statement allows,
    likeliest first."""
    path, rng = run / stage / "eval" / f"heldout-{method}.jsonl", random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_tuple, rows = method == "tuple", []
    for problem in problems:
        posterior = world.parse_statement(problem.statement, setting).posterior
        likeliest = sorted(posterior, key=posterior.get, reverse=True)
        for i, combo in enumerate(choose(likeliest)):
            outcome = outcome_hash(list(world.outcome(combo)))
            rows.append({"problem_id": problem.id, "tuple": 0 if is_tuple else i, "index": i,
                         "status": "wrong_answer",
                         "strategy": world.write_strategy(combo, rng) if is_tuple else None,
                         "program": world.program(combo), "outcome": outcome,
                         "posterior": problem.classes[outcome], "answer": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampled = {"method": method, "benchmark": "heldout", "num_strategies": 4,
               "shuffle_strategies": False}
    card = {"setting": sampled, "ceilings": cards.ceilings(problems, (2, 4), 4)}
    path.with_suffix(".json").write_text(json.dumps(card))


def test_the_results_say_who_stands_above_the_independent_ceiling_and_what_the_gap_is(tmp_path):
    """An oracle's tuples leave no gap; four equal draws lose the policy class and more; a method
    that does what no independent sampler can is named."""
    run, problems = tmp_path / "m", world.problems("heldout")[:20]
    write_attempts(run, "cppo", "tuple", problems, lambda likeliest: likeliest[:4])
    write_attempts(run, ".", "direct", problems, lambda likeliest: likeliest[:1] * 4)
    ours = results.Results(find([run]))
    parts = ("gap", "policy class", "optimization", "solver noise")
    gap = {line["method"]: [line[name] for name in parts] for line in results.gap_table(ours)}
    assert [abs(float(value)) for value in gap["CPPO"]] == [0] * 4
    assert [line["readings per tuple"] for line in results.contents_table(ours)] == ["4.000"]
    best = [max(p.classes.values()) for p in problems]
    four = [metrics.coordinated_ceiling(list(p.classes.values()), 4) for p in problems]
    lost = float(gap["Direct Solve"][0])
    assert lost == pytest.approx(np.mean(four) - np.mean(best), abs=6e-4)
    assert sum(map(float, gap["Direct Solve"][1:3])) == pytest.approx(lost, abs=2e-3)
    text = "\n".join(sentences.summary(ours))
    assert "CPPO is above the independent ceiling" in text and "none stands above" in text
    assert "0 have the paper's sign" in text            # one run says nothing about others
    assert ours.gains()["Direct Solve"].agrees == "open"
    write_attempts(run, "pkpo", "direct", problems, lambda likeliest: likeliest[:4])
    text = "\n".join(sentences.summary(results.Results(find([run]))))
    assert "PKPO STAND ABOVE" in text


def test_a_further_setting_ends_in_one_table_with_its_own_ceilings(tmp_path, monkeypatch):
    """In `settled` four draws of the likeliest reading are near what coordination reaches."""
    monkeypatch.chdir(tmp_path)
    problems = world.problems("heldout", "settled")[:10]
    run = Path("runs/s-seed0")
    write_attempts(run, "cppo", "tuple", problems, lambda likeliest: likeliest[:4], "settled")
    write_attempts(run, ".", "direct", problems, lambda likeliest: likeliest[:1] * 4, "settled")
    page = report.write_setting("s", "settled", Path("."), []).read_text()
    best = world.ceilings("heldout", setting="settled")
    assert f"independent {best['independent']:.3f}" in page and "Direct Solve" in page
    direct = next(line for line in page.splitlines() if line.startswith("Direct Solve"))
    expected = np.mean([max(problem.classes.values()) for problem in problems])
    assert f"{expected:.3f} [" in direct and expected > 0.85


@pytest.mark.slow
def test_all_jobs_in_small_survive_a_kill_and_end_in_results(tmp_path):
    """Every cell of the tables is a number of real attempts, or `-`."""
    for path in ROOT.iterdir():         # a tree of its own, for runs/ and results
        if path.name not in ("runs", "corpora", ".git"):
            (tmp_path / path.name).symlink_to(path)
    command = [sys.executable, "-m", "miniature.reproduce", "--quick", "--name", "smoke"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                        "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=env)
    while not (tmp_path / "runs/smoke-seed0/sft").exists():
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == 0
    page = tmp_path / "runs/smoke/docs/results.md"
    text = page.read_text()
    assert "NOT DONE" not in text and "error:" not in text and "nan" not in text
    for number in report.TITLES:
        assert f"### Table {number}:" in text
    claim = r"^- CPPO is .* the independent ceiling: [+-]\d\.\d{3} \["
    assert re.search(claim, text, re.MULTILINE)
    table = text.partition("### The gap")[2].partition("```\n")[2].partition("\n```")[0]
    for line in table.splitlines()[2:]:         # gap = policy class + optimization + solver noise
        *_, gap, policy, optimization, noise = re.split(r"\s{2,}", line)
        parts = float(policy) + float(optimization) + (0 if noise == "-" else float(noise))
        assert float(gap) == pytest.approx(parts, abs=2e-3)
    page.write_text(text + "By hand.\n")
    assert subprocess.run([*command, "--report"], cwd=tmp_path, env=env).returncode == 0
    assert page.read_text() == text + "By hand.\n"


# --------------------------------------------------------------------------------------------------
# docs/results.md

@pytest.mark.slow
def test_the_page_above_the_mark_is_what_the_archives_give(tmp_path):
    """Every sentence and every table of it is computed: nothing was edited by hand."""
    archives = sorted((ROOT / "results").glob("reproduce-seed*.zip"))
    for path in (ROOT / "results").iterdir():
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    kept = json.loads((ROOT / "results/reproduce.json").read_text())
    text = report.page_text("reproduce", tmp_path, archives, kept)
    page = (ROOT / report.PAGE).read_text(encoding="utf-8")
    assert page.partition(report.MARK)[0] == text + "\n"


@pytest.mark.slow
def test_the_numbers_below_the_mark_are_those_that_the_testbed_prints(tmp_path):
    """Each row of the two tables is one of its rows, or the beginning of one."""
    by_hand = (ROOT / report.PAGE).read_text(encoding="utf-8").partition(report.MARK)[2]
    command = [sys.executable, "-m", "miniature.testbed", "--out", str(tmp_path / "testbed.png")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    printed = {" ".join(line.split()) for line in printed.splitlines()}
    tables = by_hand.split("```")[1::2]
    rows = [" ".join(line.split()) for table in tables for line in table.splitlines()
            if re.search(r"\d\.\d{3}", line)]
    assert len(rows) >= 10
    missing = [row for row in rows if not any(line.startswith(row) for line in printed)]
    assert missing == []
