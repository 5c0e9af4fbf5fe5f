"""lib/run.py, checkpoints, files, errors: folders, logs, errors, and a run that is killed and
resumed as if nothing had happened."""

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import torch

import grpo
import model
import rollout
from lib import checkpoints, errors, files, progress
from lib import run as lib_run

CONFIG = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=2, num_key_value_heads=1, head_dim=16,
              linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
              linear_num_value_heads=2, layer_types=["linear_attention", "full_attention"])
PHASES = ("start", "rollout", "update", "checkpoint", "end")


# --------------------------------------------------------------------------------------------------
# A small run, and what is done to it

def rows_of_step(step, rank, world):
    """Four problems of three rows, keyed by step and problem: what a rollout would give, whatever
    the ranks."""
    rows = []
    for problem in range(rank, 4, world):
        stream = torch.Generator().manual_seed(100 * step + problem)
        prefix = random_ids(5 + problem, stream)
        for _ in range(3):
            suffix = random_ids(4 + len(rows), stream)
            advantage = float(torch.randn((), generator=stream))
            rows.append(grpo.Row(prefix, suffix, 1, advantage, 1 / 12, "solve"))
    return rows


def random_ids(n, stream):
    return torch.randint(0, 64, (n,), generator=stream).tolist()


def small_run(folder, steps, phase):
    """A stage as the training scripts have it: rollout, update, log, checkpoint, final weights.

    `phase` is for the observer: a byte, the place in PHASES.
    """
    args = argparse.Namespace(model="none", run=str(folder.absolute()), seed=0, device="cpu",
                              dtype="fp32", fresh=False, keep=2, save_every=1, steps=steps)
    with lib_run.run_stage(args, "stage") as run:
        policy = grpo.shard(model.build(CONFIG), torch.float32)
        reference = grpo.shard(model.build(CONFIG, seed=1).requires_grad_(False), torch.float32)
        optimizer = grpo.make_optimizer(policy, 1e-2, weight_decay=0.1)
        state = run.resume(policy, optimizer, None)
        while state["step"] < steps:
            phase[0] = 1
            rows = run.together(lambda: slow_rollout(run, state["step"]))
            phase[0] = 2
            metrics = grpo.update(policy, reference, optimizer, rows, lr=1e-2)
            state["step"] += 1
            run.log({"step": state["step"] - 1, **metrics})
            for rank in run.gather(run.rank):
                run.log({"step": state["step"] - 1, "rank": rank}, "samples")
            phase[0] = 3
            run.checkpoint()
        run.finish()
    phase[0] = 4
    return 0 if run.status == lib_run.STOPPED else run.status


def slow_rollout(run, step):
    for _ in range(40):                 # decoding, with an eye on the flag
        time.sleep(0.001)
        if run.stop_asked():
            raise rollout.Abandoned
    return rows_of_step(step, run.rank, run.world)


def run_twice(folder, world, signals, seed):
    """The same run twice: in folder/whole undisturbed; in folder/hurt struck by `signals` at random
    moments of rollouts, updates and checkpoints in turn, and started again after each -> the phases
    in which they struck."""
    rng, steps, struck = random.Random(seed), steps_of(signals), []
    phase = mmap.mmap(-1, 1)                # shared with the children; rank 0 writes it

    def start(name):
        return ranks.fork(world, lambda rank: small_run(
            folder / name, steps, phase if rank == 0 else [0]))

    assert not any(ranks.wait(start("whole")))
    for i, number in enumerate(signals):
        phase[0] = 0
        children = start("hurt")
        for awaited in (1, 1 + i % 3):
            while phase[0] not in (awaited, len(PHASES) - 1):
                time.sleep(0.0005)
            time.sleep(0.02 * rng.random())
        struck.append(PHASES[phase[0]])
        for pid in children:
            os.kill(pid, number)
        struck_at = time.monotonic()
        status = ranks.wait(children)
        if number != signal.SIGKILL:        # a signal that asks: it is obeyed, and soon
            assert not any(status) and time.monotonic() - struck_at < 25, status
    assert not any(ranks.wait(start("hurt")))
    return struck


def steps_of(signals):
    return 2 * len(signals) + 2     # one strikes in the first step after a start, or in the second


def outcome(folder):
    """-> weights at the end, metrics, samples; without what a clock wrote"""
    folder = folder / "stage"
    weights = dict(model.load(folder / "final").named_parameters())
    return weights, logged(folder / "metrics.jsonl"), logged(folder / "samples.jsonl")


def logged(path):
    lines = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        lines.append({name: line[name] for name in line if not name.startswith("seconds")})
    return lines


def run_twice_for_each_world(folder, worlds, signals, seed=0):
    """`run_twice` for each number of ranks, in folder/WORLD -> {world: phases that were struck}."""
    struck = {}
    for world in worlds:
        own = folder / str(world)
        own.mkdir()
        call = f"test_run.run_twice(Path('.'), {world}, {list(map(int, signals))}, {seed})"
        ranks.run(1, "import json, test_run, torch._dynamo; from pathlib import Path",
                  f"Path('struck').write_text(json.dumps({call}))", own, timeout=1000)
        struck[world] = json.loads((own / "struck").read_text())
    return struck


def assert_undisturbed(folder, signals):
    weights, *logs = outcome(folder / "hurt")
    weights_whole, *logs_whole = outcome(folder / "whole")
    stage, steps = folder / "hurt" / "stage", steps_of(signals)
    assert logs == logs_whole and [line["step"] for line in logs[0]] == list(range(steps))
    assert all(torch.equal(weights[name], weights_whole[name]) for name in weights_whole)
    assert not list(stage.glob(f"*{files.PARTIAL}")), "something half-written was left"
    assert [int(path.name[5:]) for path in checkpoints.complete(stage)] == [steps - 1, steps]


@pytest.fixture
def alone():
    """A process group of one, as plain python has it, gone again after the test."""
    yield lib_run.setup(seed=0, device="cpu")
    torch.distributed.destroy_process_group()


def trained(steps=1, seed=0):
    policy = model.build(CONFIG, seed=seed)
    optimizer = grpo.make_optimizer(policy, 1e-2)
    for step in range(steps):
        grpo.update(policy, None, optimizer, rows_of_step(step, 0, 1))
    return policy, optimizer


def everything(policy, optimizer):
    parts = list(policy.parameters())
    for state in optimizer.state.values():
        parts += state.values()
    return torch.cat([t.detach().flatten() for t in parts])


# --------------------------------------------------------------------------------------------------
# Killed and resumed

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]


@pytest.fixture(scope="module")
def hurt(tmp_path_factory):
    """(folder, phases that were struck) of a run of one rank and of a run of two."""
    folder = tmp_path_factory.mktemp("hurt")
    return folder, run_twice_for_each_world(folder, [1, 2], SIGNALS)


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_killed_ends_as_one_that_was_not(hurt, world):
    """Weights and logs bit for bit, without clocks; two kills and one SIGTERM."""
    folder, struck = hurt
    assert len(struck[world]) == 3
    assert_undisturbed(folder / str(world), SIGNALS)


def test_a_checkpoint_of_two_ranks_is_resumed_by_one(alone, hurt):
    """The shards of both put together are the weights that the two wrote as final."""
    policy, optimizer = trained(0, seed=1)
    folder = hurt[0] / "2" / "whole" / "stage"
    state = checkpoints.load(checkpoints.newest(folder), policy, optimizer)
    final = outcome(folder.parent)[0]
    assert state["step"] == 8
    assert all(torch.equal(p, final[name]) for name, p in policy.named_parameters())
    assert all(moments["exp_avg"].any() for moments in optimizer.state.values())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills_strike_everywhere_and_change_nothing(tmp_path, world):
    signals = [signal.SIGKILL] * 20
    struck = run_twice_for_each_world(tmp_path, [world], signals)[world]
    assert_undisturbed(tmp_path / str(world), signals)
    assert {"rollout", "update", "checkpoint"} <= set(struck)


# --------------------------------------------------------------------------------------------------
# Checkpoints and files

def test_weights_and_moments_come_back_exactly_with_what_was_put_beside_them(alone, tmp_path):
    policy, optimizer = trained(2)
    checkpoints.save(tmp_path, 2, policy, optimizer, {"phase": "x", "logs": {"metrics.jsonl": 7}})
    other = trained(0, seed=1)
    state = checkpoints.load(checkpoints.newest(tmp_path), *other)
    assert state == {"step": 2, "phase": "x", "logs": {"metrics.jsonl": 7}}
    assert torch.equal(everything(*other), everything(policy, optimizer))
    assert other[1].param_groups[0]["lr"] == 1e-2


def test_a_checkpoint_before_the_first_step_counts_none(alone, tmp_path):
    """SIGTERM in the first rollout. torch makes AdamW's moments by a step of its own, which would
    be Adam's first."""
    policy, optimizer = trained(0)
    checkpoints.save(tmp_path, 0, policy, optimizer, {})
    other = trained(0, seed=1)
    checkpoints.load(checkpoints.newest(tmp_path), *other)
    want = trained(1)
    for pair in ((policy, optimizer), other):
        grpo.update(pair[0], None, pair[1], rows_of_step(0, 0, 1))
        assert torch.equal(everything(*pair), everything(*want))


def test_only_complete_checkpoints_count_and_the_newest_are_kept(alone, tmp_path):
    policy, optimizer = trained()
    (tmp_path / f"step_000099{files.PARTIAL}").mkdir(parents=True)      # died while writing
    (tmp_path / "step_000098").mkdir()                      # no state.json: nothing we wrote
    for step in (1, 2, 9, 1000000):
        checkpoints.save(tmp_path, step, policy, optimizer, {}, keep=2)
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["step_000009", "step_1000000"]
    assert checkpoints.newest(tmp_path).name == "step_1000000"
    assert not list(tmp_path.glob(f"*{files.PARTIAL}"))
    checkpoints.save(tmp_path, 1000001, policy, optimizer, {}, keep=0)
    assert len(checkpoints.complete(tmp_path)) == 3
    assert checkpoints.newest(tmp_path / "none") is None


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.published(tmp_path / "final") as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert not (tmp_path / "final").exists()
    for text in ("one", "two"):
        with files.published(tmp_path / "final") as partial:
            (partial / "a").write_text(text)
    assert (tmp_path / "final" / "a").read_text() == "two" and len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------------------------------
# Nothing is lost

@pytest.fixture
def stage(tmp_path):
    """Starts a run of a stage in tmp_path, with one trained step behind it if asked."""
    def start(**flags):
        args = argparse.Namespace(**{
            "model": "none", "run": str(tmp_path), "seed": 0, "device": "cpu",
            "dtype": "fp32", "fresh": False, "keep": 2, "save_every": 1, "steps": 3, **flags})
        run = lib_run.Run(args, "stage")
        policy, optimizer = trained(1)
        run.resume(policy, optimizer, None)
        return run
    yield start
    torch.distributed.destroy_process_group()


def test_numbers_below_the_smallest_normal_one_are_zero(stage):
    """On a CPU they made an update of a fresh model take 1.4 times as long."""
    stage()
    assert not (torch.full((64,), 1e-39) * 0.5).any()


def steps_saved(run, *steps):
    for step in steps:
        run.state["step"] = step
        run.save()


@pytest.mark.parametrize("file, content, message", [
    ("__0_0.distcp", b"cut off", "__0_0.distcp has changed"),
    (".metadata", None, ".metadata is missing"),
    ("state.json", b"", "state.json cannot be read")])
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_is_used(
        stage, capsys, file, content, message):
    first = stage()
    steps_saved(first, 1, 2)
    path = first.folder / "step_000002" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    first.lock_file.close()
    again = stage()
    assert again.state["step"] == 1 and (again.folder / "step_000002.damaged").exists()
    assert message in capsys.readouterr().err and message in again.warnings[0]


def test_weights_that_are_not_finite_are_never_saved(stage):
    run = stage()
    steps_saved(run, 1)
    with torch.no_grad():
        next(run.module.parameters()).view(-1)[0] = float("nan")
    run.state["step"] = 2
    with pytest.raises(lib_run.NotFinite, match="after step 2 .* lower --lr"):
        run.finish()
    assert checkpoints.newest(run.folder).name == "step_000001"
    assert not (run.folder / "final").exists()


def test_a_second_process_in_a_run_folder_is_refused_and_a_dead_one_holds_no_lock(stage):
    first = stage()
    with pytest.raises(errors.UserError, match="another process writes"):
        stage()
    first.lock_file.close()             # what the kernel does when a process dies
    stage()


def test_a_finished_stage_goes_on_for_more_steps_and_names_another_seed(stage, capsys):
    run = stage(steps=2, epochs=1)
    steps_saved(run, 2)
    run.finish()
    assert run.finished() and "is there already" in capsys.readouterr().out
    run.args.steps = 5
    assert not run.finished()
    run.args.steps, run.args.epochs = None, 2
    assert not run.finished()
    run.args.seed = 7
    with pytest.raises(errors.UserError, match="--seed 0, not 7"):
        run.finished()


def test_a_missing_package_is_named_before_fresh_deletes_anything(stage, monkeypatch):
    run = stage()
    steps_saved(run, 1)
    run.lock_file.close()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.UserError, match="pip install wandb"):
        stage(wandb="project", fresh=True)
    assert checkpoints.newest(run.folder).name == "step_000001"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_ask_a_run_to_stop_and_a_second_interrupt_ends_it(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    stop = lib_run.stop_flag()
    os.kill(os.getpid(), number)
    assert stop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    for n, handler in before.items():
        signal.signal(n, handler)


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device", "step_000001/__0_0.distcp"),
    OSError(30, "Read-only file system", "step_000001/__0_0.distcp")])
def test_a_full_or_read_only_disk_is_one_line(stage, capsys, tmp_path, error):
    args = stage().args
    args.run = str(tmp_path / "other")
    with lib_run.run_stage(args, "stage") as run:
        raise error
    assert run.status == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {error.strerror}: step_000001") and said.count("\n") == 1


def test_a_resumed_run_is_the_same_run_in_wandb(stage, monkeypatch):
    """With the flags as its config; the step is an axis, since wandb refuses to go back to one."""
    begun, sent = [], []

    def init(**settings):
        begun.append(settings)
        return SimpleNamespace(log=sent.append, define_metric=lambda name, step_metric: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    first = stage(wandb="project")
    steps_saved(first, 1)
    first.lock_file.close()
    again = stage(wandb="project")
    again.log({"step": 2, "R_out": 0.5})
    again.log({"step": 2, "pass_at_k": 0.25}, "dev")
    one, two = begun
    assert one["id"] == two["id"] == again.state["wandb"] and two["resume"] == "allow"
    assert two["config"]["save_every"] == 1
    assert sent == [{"step": 2, "R_out": 0.5}, {"step": 2, "dev/pass_at_k": 0.25}]


def test_ranks_wait_for_the_main_one_outside_of_collectives(tmp_path):
    """They would time out while it builds. Then it fails, and the others end with it."""
    work = ("ranks = lib_run.setup(device='cpu')\n"
            "lib_run.dist.all_reduce = lib_run.dist.gather_object = None\n"
            "ranks.main_first('build', lambda: (time.sleep(0.3), Path('built').touch()))\n"
            "assert Path('built').exists()\n"
            "def fail(): raise errors.UserError('no network')\n"
            "try:\n"
            "    with errors.one_line(): ranks.main_first('again', fail)\n"
            "except SystemExit as end: Path(f'{rank} {end.code}').touch()\n"
            # here the store lives in the main rank; under torchrun it outlives all of them
            "while rank == 0 and not Path('1 1').exists(): time.sleep(0.05)\n")
    ranks.run(2, "import time\nfrom pathlib import Path\n"
              "from lib import errors\nfrom lib import run as lib_run", work, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"built", "0 2", "1 1"}


# --------------------------------------------------------------------------------------------------
# Logs, folders, flags, errors

def test_logs_are_cut_to_where_the_checkpoint_was(alone, tmp_path):
    log = lib_run.Log(tmp_path, {}, alone.main)
    log.write("metrics", {"step": 0, "loss": float("nan"), "name": "ä"})
    offsets = log.offsets()
    log.write("metrics", {"step": 1})
    log.write("samples", {"step": 1})       # after the checkpoint, like the line above
    (tmp_path / "labels.jsonl").write_text("not ours")
    log = lib_run.Log(tmp_path, offsets, alone.main)
    for name in ("metrics", "samples"):
        log.write(name, {"step": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = [{"step": 0, "loss": None, "name": "ä"}, {"step": 1}]
    assert [json.loads(line) for line in lines] == expected
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "labels.jsonl").read_text() == "not ours"
    os.truncate(tmp_path / "metrics.jsonl", 3)
    with pytest.raises(ValueError, match="--fresh"):
        lib_run.Log(tmp_path, offsets, alone.main)


def test_only_the_main_rank_writes(tmp_path):
    log = lib_run.Log(tmp_path / "a", {}, main=False)
    log.write("metrics", {"step": 0})
    assert log.offsets() == {} and not (tmp_path / "a").exists()


@pytest.mark.parametrize("error, status, message", [
    (errors.UserError("K of 0\nmust be 1"), 2, "error: K of 0 must be 1"),
    (torch.OutOfMemoryError("lower --token-budget"), 1, "error: lower --token-budget"),
    (RuntimeError("[gloo/pair.cc:534] Connection closed by peer"), 1, "another rank has ended")])
def test_a_mistake_of_the_user_is_one_line_and_a_status(capsys, error, status, message):
    with pytest.raises(SystemExit) as exit, errors.one_line():
        raise error
    printed = capsys.readouterr()
    assert exit.value.code == status and not printed.out
    assert message in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("error", [
    ValueError("line 3: not JSON"), FileNotFoundError(2, "No such file or directory", "a.jsonl")])
def test_errors_of_reading_what_the_user_named_are_the_user_s(error):
    with pytest.raises(errors.UserError, match="line 3|a.jsonl"), errors.user_input():
        raise error


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("x"), OSError("no space")])
def test_a_bug_keeps_its_traceback(error):
    """A forker's shape bug is a ValueError too: only UserError becomes one line."""
    with pytest.raises(type(error)), errors.one_line():
        raise error


def test_a_variable_shows_the_traceback_of_a_mistake_too(monkeypatch):
    monkeypatch.setenv("CPPO_TRACEBACK", "1")
    with pytest.raises(errors.UserError), errors.one_line():
        raise errors.UserError("x")


@pytest.mark.parametrize("given,name", [
    (("Qwen/Qwen3.5-2B",), "Qwen3.5-2B"), (("Qwen/Qwen3.5-2B", None, 3), "Qwen3.5-2B-seed3"),
    (("/models/mine/",), "mine"), (("runs/mine/sft/final",), "mine"),
    (("x", "named", 3), "named")])
def test_a_run_is_named_after_its_model_and_seed(given, name):
    assert lib_run.run_folder(*given) == lib_run.RUNS / name


def test_a_stage_starts_from_the_newest_finished_one_and_says_which(tmp_path):
    assert lib_run.stage_model(tmp_path, ("warmup", "sft"), "base")[0] == "base"
    for stage in ("sft", "warmup"):
        final = tmp_path / stage / "final"
        final.mkdir(parents=True)
        assert lib_run.stage_model(tmp_path, ("warmup", "sft"), "base")[0] != str(final)
        (final / "config.json").write_text("{}")
        path, message = lib_run.stage_model(tmp_path, ("warmup", "sft"), "base")
        assert path == str(final) and stage in message and path in message


def test_the_hash_of_a_checkpoint_knows_every_byte_and_name(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    hashes = {files.tree_hash(tmp_path)}
    (tmp_path / "a").write_bytes(b"2")
    hashes.add(files.tree_hash(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    hashes.add(files.tree_hash(tmp_path))
    assert len(hashes) == 3 and files.tree_hash(tmp_path) in hashes
    assert files.tree_hash(tmp_path / "owner" / "not-here") == ""


def test_the_config_tells_what_was_run_and_what_changed_on_resume(tmp_path, capsys):
    flags = argparse.Namespace(lr=1e-3, model="m", problems=Path("p"))
    (tmp_path / "weights").write_text("w")
    used = {"start": tmp_path / "weights"}
    config = lib_run.write_config(tmp_path / "sft", flags, {"gate": "rule"}, used)
    assert config == json.loads((tmp_path / "sft" / "config.json").read_text())
    assert config["flags"] == {"lr": 1e-3, "model": "m", "problems": "p"}
    assert config["gate"] == "rule" and len(config["commit"]) == 40
    assert config["versions"]["torch"] == torch.__version__
    assert config["checkpoints"]["start"]["sha256"] == files.tree_hash(tmp_path / "weights")
    flags.lr = 2e-3
    config = lib_run.write_config(tmp_path / "sft", flags)
    assert config["changed_on_resume"] == [{"lr": [1e-3, 2e-3]}]
    assert "--lr: 0.002, was 0.001" in capsys.readouterr().err


def test_progress_without_a_terminal_is_lines_and_only_now_and_then(monkeypatch, capsys):
    ticks = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))
    assert list(progress.progress(7, "judging")) == list(range(7))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["judging: 3 of 7 after 15 s", "judging: 6 of 7 after 30 s"]
    monkeypatch.setenv("RANK", "1")
    assert list(progress.progress(iter("ab"), "judging")) == ["a", "b"]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_job_down_with_its_reason(tmp_path):
    """The other rank waits in a collective, as it would for a slow verifier. It adds nothing of its
    own: of eight ranks one line is read."""
    root = Path(lib_run.__file__).parents[1]
    (tmp_path / "job.py").write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from lib import errors\nfrom lib import run as lib_run\n"
        "with errors.one_line():\n"
        "    ranks = lib_run.setup(device='cpu')\n"
        "    lib_run.stop_flag()\n"
        "    if not ranks.main: raise errors.UserError('the seventh problem has no tests')\n"
        "    ranks.barrier()\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    began = time.monotonic()
    command = [*launch, tmp_path / "job.py"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode != 0 and "error on rank 1: the seventh problem has no tests" in ran.stderr
    assert ran.stderr.count("error on rank") + ran.stderr.count("error: ") == 1
    assert "gloo" not in ran.stderr and "RuntimeError" not in ran.stderr
    assert time.monotonic() - began < 60
