"""Stage 3 to 5 and the rivals as their users run them, on a model of 0.2 M parameters that a few seconds of training have taught
to write plans and programs for four toy problems."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from test_teacher import Server

import gate
import grpo
import model
import prompts
import rollout
import train_cppo
from rivals import train_rivals
from lib import checkpoints, diagnostics, files, progress, rl
from lib import run as lib_run
from lib.labels import Label, load_labels, save_labels
from lib.verdicts import Submitter
from lib.problems import Problem, save_problems

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"plan": "{statement} plan", "solve": "{statement} S: {strategy}", "direct": "{statement} solve",
         "skill": "{z} {statement} solve", "gate": "{statement} {plan} ok?"}
STEP = ("--num-tuples", "4", "--problems-per-step", "3")
WAYS = "12345"                          # a strategy is "use 3"; its program adds 3
STATEMENTS = {"sum": "2", "top": "3", "gap": "4", "end": "5"}


def program(way: str) -> str:
    return f"```\nprint(int(input())+{way})\n```"


def problems() -> list[Problem]:
    """Each statement four times: with fewer problems it would be chance whether the toy model solves one at all."""
    return [Problem(f"toy/{s}{copy}", s, tests=[{"input": f"{n}\n", "output": f"{n + int(way)}\n"} for n in (7, 9, 3)])
            for s, way in STATEMENTS.items() for copy in ("", 2, 3, 4)]


def taught(folder: Path, steps: int, num_rows: int, lr: float) -> torch.nn.Module:
    """The folder's model after `steps` of learning to write plans of two ways, and programs for a way or for none."""
    module, tokenizer, rng = model.load(folder), tiny.tokenizer(), random.Random(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)

    def pair() -> tuple[str, str]:
        problem = rng.choice(problems())
        if rng.random() < 0.4:
            return prompts.plan(problem, 2), prompts.format_plan([f"use {rng.choice(WAYS)}" for _ in range(2)])
        way = rng.choice(WAYS)
        if rng.random() < 0.7:
            return prompts.solve(problem, f"use {way}"), program(way if rng.random() < 0.9 else rng.choice(WAYS))
        return prompts.direct(problem), program(way)

    def row() -> grpo.Row:
        turn, reply = pair()
        ids = prompts.encode(tokenizer, turn)
        return grpo.Row(ids, tokenizer(reply)["input_ids"] + [tokenizer.eos_token_id], 0, 0.0, 1 / num_rows, "solve")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prompts, "TEMPLATES", prompts.TEMPLATES | SHORT)
        for _ in range(steps):
            batch = grpo.collate([row() for _ in range(num_rows)], torch.device("cpu"), shared=False)
            loss = -(grpo.row_logprobs(module, batch) * batch.scale).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.5, "the toy model has not learned its replies: nothing below would mean anything"
    return module


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with base/ and random/ (Hugging Face folders), problems.jsonl and prompts.json."""
    folder = tmp_path_factory.mktemp("e2e")
    (folder / "prompts.json").write_text(json.dumps(SHORT))
    save_problems(folder / "problems.jsonl", problems())
    model.save(taught(tiny.qwen(folder / "random"), 100, 16, 3e-3), folder / "base", tiny.tokenizer())
    return folder


@pytest.fixture()
def run(world, tmp_path, monkeypatch):
    """Calls train_cppo in this process in an empty folder; returns (exit status, stage folder)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))

    def call(*flags: str, model: str = "base", script=train_cppo) -> tuple[int, Path]:
        if script is train_cppo:
            flags = (*STEP, *flags)
        args = script.parse_args(arguments(world, *flags, model=model))
        return script.main(args), Path("runs/toy") / script.stage_name(args)
    return call


def arguments(world: Path, *flags: str, model: str = "base") -> list[str]:
    return ["--model", str(world / model), "--run-name", "toy", "--problems", str(world / "problems.jsonl"),
            "--prompts", str(world / "prompts.json"), "--num-strategies", "2",
            "--max-plan-tokens", "24", "--max-solve-tokens", "28", "--slots", "32", "--temperature", "1.0", "--lr", "1e-3", "--workers", "1", *flags]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(model.load(folder / "final").named_parameters())


def test_stage_5_teaches_planner_and_solver_and_leaves_a_folder_that_loads(run, world, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(train_cppo, "USE_EVERY", 1)
    status, stage = run("--steps", "3", "--show-every", "2")
    said = capsys.readouterr()
    assert status == 0 and "audit:" in said.out and "rows done" in said.err and "of the slots idle" in said.err
    steps, samples = read(stage / "metrics.jsonl"), read(stage / "samples.jsonl")
    assert [m["step"] for m in steps] == [1, 2, 3] and len(samples) == 3 * 3 * 4
    assert any(t["A"] for t in samples) and any(b["a"] for t in samples for b in t["branches"])
    assert all(m["grad_norm"] > 0 for m in steps) and steps[0]["step_norm"] > 0
    assert all(m["plan/gap_max"] < 1e-3 and m["solve/gap_max"] < 1e-3 for m in steps)      # sampler and trainer agree
    assert all(-4 < m["strategy_use"] <= math.log(2) for m in steps)
    for t in samples:
        r = torch.tensor([b["r"] for b in t["branches"]], dtype=torch.float64)
        assert t["R_out"] == (r.max().item() if len(r) else 0.0) and t["R_plan"] == t["J"] * t["R_out"]
        if len(r):
            a = (r - r.mean()) / (r.std() + 1e-6)
            assert torch.allclose(a, torch.tensor([b["a"] for b in t["branches"]], dtype=torch.float64), atol=1e-12)
    before, after = dict(model.load(world / "base").named_parameters()), weights(stage)
    assert before.keys() == after.keys() and any((before[n] != after[n]).any() for n in before)
    config = json.loads((stage / "config.json").read_text())
    assert config["verifier"]["tier"] in "ABCD" and config["checkpoints"]["start"]["sha256"]


def test_strategy_use_is_its_formula_over_whole_logits(world):
    """log p(y_i | x, s_i) - log mean_j p(y_i | x, s_j), summed over the tokens of a reply; the first tuple that parsed counts."""
    module, rng = model.load(world / "base"), random.Random(0)
    ids = lambda n: [rng.randrange(300) for _ in range(n)]
    branch = lambda: rollout.Branch(ids(rng.randint(3, 9)), 0, rollout.Sample(ids(rng.randint(1, 7)), [], "", "eos"), None)
    plan = rollout.Tuple([1], None, None, "does not parse", [])
    tuples = [[plan], [plan, rollout.Tuple([1], None, ["a"] * 3, None, [branch() for _ in range(3)])]]

    @torch.no_grad()
    def logp(prompt: list[int], reply: list[int]) -> torch.Tensor:
        z = module(torch.tensor([prompt + reply]))[0, len(prompt) - 1:-1, :390].double() / 0.7
        return z.log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).sum()
    branches = tuples[1][1].branches
    under = torch.stack([torch.stack([logp(b.prompt, reply.sample.ids) for b in branches]) for reply in branches])
    by_hand = (under.diagonal() - under.exp().mean(1).log()).mean()
    assert diagnostics.strategy_use(module, tuples, 0.7, 390) == [pytest.approx(float(by_hand), abs=1e-5)]


def test_planner_and_solver_each_have_a_gradient_of_their_own(run):
    """The warm-up trains planner tokens alone; with solver weight 0 and no KL only the planner's rows could move anything."""
    many = "--problems-per-step", "8"
    status, stage = run("--steps", "1", "--stage", "warmup", "--gate", "rule", *many)
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["grad_norm"] > 0 and "solve/kl" not in metrics and "R_out" not in metrics
    both, planner = (read(run("--steps", "1", "--beta", "0", "--solver-weight", w, *many)[1] / "metrics.jsonl")[0] for w in "10")
    assert both["grad_norm"] > 0 and planner["grad_norm"] > 0 and abs(both["grad_norm"] - planner["grad_norm"]) > 1e-4


def test_a_gemma_policy_goes_through_stage_5_gated_by_a_qwen(run, world, tmp_path, monkeypatch):
    """From the rollout to final/; planner and solver tokens each have a gradient of their own."""
    model.save(taught(tiny.gemma4(tmp_path / "random", composite=True), 30, 12, 8e-3), tmp_path / "gemma", tiny.tokenizer())
    monkeypatch.setattr(prompts, "TEMPLATES", prompts.TEMPLATES | SHORT)
    judge = gate.Gate(model.load(world / "random"), tiny.tokenizer(), k=2)
    pairs = [(p, f"A: use {a}\nB: use {b}") for p in problems() for a in WAYS for b in WAYS]
    judge.tau = sorted(judge.p_pass(pairs))[len(pairs) // 2]                # a random gate: half of the plans pass
    model.save(judge.module, tmp_path / "gate", judge.tokenizer)
    judge.write_card(tmp_path / "gate", {"accepted": True, "failed": []})
    update, norms = grpo.update, {}

    def watched(policy, reference, optimizer, rows, **settings):
        assert not settings["shared"], "each continuation has its own copy of the prompt"
        for region in grpo.REGIONS:
            some = [row for row in rows if row.region == region]
            batch = grpo.collate(some, torch.device("cpu"), shared=False)
            logp = grpo.row_logprobs(policy, batch, settings["temperature"], settings["vocab"])
            (logp * batch.advantage * batch.scale).sum().backward()
            norms[region] = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
            policy.zero_grad()
        return update(policy, reference, optimizer, rows, **settings)
    monkeypatch.setattr(grpo, "update", watched)
    status, stage = run("--steps", "1", "--skip-audit", "--gate", str(tmp_path / "gate"), "--model", str(tmp_path / "gemma"))
    [metrics], samples = read(stage / "metrics.jsonl"), read(stage / "samples.jsonl")
    assert status == 0 and norms["plan"] > 1e-3 and norms["solve"] > 1e-3, norms
    assert 0 < metrics["J"] < 1 and 0 < metrics["pass_rate"] < 1 and metrics["step_norm"] > 0
    assert metrics["plan/gap_max"] < 1e-3 and metrics["solve/gap_max"] < 1e-3
    assert all(t["R_plan"] == t["J"] * t["R_out"] and (t["p_pass"] or 0) >= judge.tau * t["J"] for t in samples)
    before, after = (dict(tiny.hf(f).named_parameters()) for f in (tmp_path / "gemma", stage / "final"))
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert any("layers.0." in n for n in moved) and not any("per_layer.weight" in n or "vision" in n for n in moved)


@pytest.mark.parametrize("flags", [
    ("--reward", "outcome"), ("--reward", "gate"), ("--num-tuples", "1", "--problems-per-step", "16"),
    ("--updates-per-rollout", "2"), ("--solver-credit", "marginal", "--planner-credit", "place")])
def test_every_ablation_takes_a_step(run, flags):
    status, stage = run("--steps", "1", "--skip-audit", *flags)
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["step_norm"] > 0 and 0 < metrics["pass_rate"] < 1


@pytest.mark.parametrize("flags", [
    ("grpo",), ("passk",), ("pkpo",), ("upskill", "--num-attempts", "3", "--problems-per-step", "9")])
def test_every_rival_takes_a_step(run, flags):
    status, stage = run("--steps", "1", "--method", *flags, script=train_rivals)
    metrics = read(stage / "metrics.jsonl")[0]
    assert status == 0 and metrics["step_norm"] > 0 and 0 < metrics["pass_rate"] < 1


def test_a_fork_of_the_script_has_a_stage_folder_of_its_own():
    args = ["--model", "m", "--variant", "mine"]
    assert train_cppo.stage_name(train_cppo.parse_args(args)) == "cppo-mine"
    assert train_rivals.stage_name(train_rivals.parse_args([*args, "--method", "pkpo"])) == "pkpo-mine"


def test_a_branch_that_does_not_exist_is_nan_and_a_rank_without_problems_keeps_its_shapes():
    """Made-up zeros would count as failures in anything that pools over branches."""
    plan = rollout.Tuple([1], None, None, "does not parse", [])
    r = train_cppo.verdicts([[plan, plan]], 2, 3)
    assert r.shape == (1, 2, 3) and r.isnan().all()
    assert train_cppo.verdicts([], 8, 4).shape == (0, 8, 4)
    assert train_cppo.gate_decisions(gate.RuleGate(), [], [], 8).shape == (0, 8)


def test_a_random_checkpoint_is_refused_by_the_audit(run, capsys):
    status, stage = run("--steps", "1", model="random")
    assert status == 3 and "raise --max-plan-tokens" in capsys.readouterr().err    # it babbles on
    assert not (stage / "final").exists()


MISTAKES = [
    (("--num-strategies", "0"), "of 1 or more"), (("--num-tuples", "0"), "of 1 or more"),
    (("--solver-credit", "marginal", "--num-tuples", "1"), "nothing to compare"),
    (("--planner-credit", "place", "--stage", "warmup"), "has none"),
    (("--beta", "-1"), "of 0 or more"), (("--temperature", "nan"), "a number of 0 or more"),
    (("--model", "/nowhere"), "/nowhere"), (("--gate", "/nowhere"), "/nowhere"), (("--problems", "/nowhere"), "/nowhere"),
    (("--judge", "nothing:here"), "module:name"),
    (("--problems-per-step", "99"), "fewer than"), (("--refresh-every", "2"), "--judge")]


def test_a_user_s_mistake_is_one_line_with_the_mend_and_costs_nothing(run, capsys):
    run("--steps", "1")
    final = Path("runs/toy/cppo-m4/final/config.json")
    done = final.stat().st_mtime_ns
    capsys.readouterr()
    for flags, said in MISTAKES:
        with pytest.raises(SystemExit) as stopped:
            run("--steps", "1", "--fresh", *flags)
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert stopped.value.code == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in err, flags
        assert final.stat().st_mtime_ns == done, flags


@pytest.mark.parametrize("text, said", [("{", "line 1"), ('{"id": "a", "statement": "s", "tests": []}', "tests"),
                                        ("", "no problems")])
def test_a_broken_problem_file_is_named_with_its_line(run, world, tmp_path, capsys, text, said):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text + "\n" if text else "")
    with pytest.raises(SystemExit) as stopped:
        run("--problems", str(bad))
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_problems_of_a_step_are_a_function_of_the_step_and_cover_every_pass_once():
    pool = list(range(10))
    steps = [rl.batch_of_step(pool, s, 3, seed=1) for s in range(9)]
    assert steps == [rl.batch_of_step(pool, s, 3, seed=1) for s in range(9)]
    for epoch in range(3):
        seen = [p for s in steps[3 * epoch:3 * epoch + 3] for p in s]
        assert len(set(seen)) == 9
    assert steps[0] != steps[3]


def test_the_plateau_rule_by_hand():
    assert not train_cppo.plateau([0.1, 0.2, 0.3], 2)                                        # too short to say
    assert not train_cppo.plateau([0.1, 0.1, 0.9, 0.9], 2)                                   # risen, no spread
    assert train_cppo.plateau([0.5, 0.5, 0.5, 0.5], 2)
    assert train_cppo.plateau([0.4, 0.6, 0.45, 0.65], 2)                                     # 0.05 up, standard error 0.1


def test_a_gate_refresh_appends_labels_and_keeps_the_old_gate_if_the_new_one_fails(run, world, tmp_path, monkeypatch):
    folder = tmp_path / "gate"
    module, tokenizer = model.load(world / "base"), tiny.tokenizer()
    prompts.TEMPLATES.update(SHORT)
    model.save(module, folder, tokenizer)
    old = gate.Gate(module, tokenizer, tau=0.0, k=2)
    old.write_card(folder, {"accepted": True, "failed": []}, base="none")
    labels = [Label(f"toy/{s}", s, f"A: use 1\nB: use {way}", int(way != "1")) for s in STATEMENTS for way in "12"]
    labels += [Label(f"other {i}", f"other {i}", f"A: use 1\nB: use {way}", int(way != "1"))
               for i in range(10) for way in "13"]
    for part in ("train", "val"):
        save_labels(str(folder / f"labels_{part}.jsonl"), labels)
    sys.modules["toy_judge"] = type(sys)("toy_judge")
    sys.modules["toy_judge"].judge = lambda statement, plan: [] if len(set(plan.split())) == 5 else ["duplicate"]
    flags = ("--steps", "2", "--problems-per-step", "1", "--skip-audit", "--gate", str(folder),
             "--refresh-every", "1", "--judge", "toy_judge:judge")
    status, stage = run(*flags)
    refresh = read(stage / "gate.jsonl")[0]
    assert status == 0 and not refresh["accepted"] and refresh["gate"] == str(folder)
    pool = load_labels(str(stage / "gate_pool" / "000001.jsonl"))
    assert len(pool) == len(labels) + refresh["fresh"] and refresh["fresh"] == 2 * len(problems())
    monkeypatch.setattr(gate, "ACCEPTANCE", {"auc": 0.0})
    status, stage = run(*flags, "--fresh")
    refresh = read(stage / "gate.jsonl")[0]
    assert refresh["accepted"] and Path(refresh["gate"]) == stage / "gate_000001" and refresh["tau"] == 0.0
    gate.Gate.load(refresh["gate"])
    # stopped in a refresh: the step before it is kept, and the refresh is made when the run goes on
    pool = (stage / "gate_pool" / "000001.jsonl").read_text()
    with monkeypatch.context() as stopping:
        stopping.setattr(lib_run, "stop_flag", lambda: lambda: (stage / "step_000001").exists())
        assert run(*flags, "--fresh", "--save-every", "1")[0] == 143
    assert not (stage / "gate_000001").exists() and run(*flags)[0] == 0
    assert (stage / "gate_pool" / "000001.jsonl").read_text() == pool and read(stage / "gate.jsonl")[0] == refresh
    # the same judge behind an endpoint gives the same labels; the log asks it about the first step only
    judged = [m.get("valid_judged") for m in read(stage / "metrics.jsonl")]

    def answer(text: str, seed: int) -> str:
        plan = text.split("Proposed methods:\n")[1].split("\n\n")[0]
        return "faults: " + ("none" if len(set(plan.split())) == 5 else "duplicate")

    with Server(reply=answer) as server:
        status, stage = run(*flags[:-1], server.spec, "--fresh")
        assert status == 0 and (stage / "gate_pool" / "000001.jsonl").read_text() == pool and server.requests
    assert [m.get("valid_judged") for m in read(stage / "metrics.jsonl")] == [judged[0], None] and None not in judged
    assert all(t["faults"] == ["parse"] for t in read(stage / "samples.jsonl") if t["step"] == 1 and t["error"])


# ------------------------------------------------------------------------------------------------ processes

CLOCKS = ("seconds", "tokens_per_second")


def logged(stage: Path) -> list[dict]:
    return [{k: v for k, v in m.items() if not k.startswith(CLOCKS)} for m in read(stage / "metrics.jsonl")]


def test_two_processes_sample_what_one_samples_and_take_the_same_step(run, world, tmp_path):
    """Under torchrun, as users start them; sharded, and with whole weights on each (small models)."""
    ways, flags = {"sharded": 0, "replicated": grpo.REPLICATE_BELOW}, ("--steps", "1", "--skip-audit", *STEP)
    status, stage = run(*flags)
    job = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", "import grpo", "import train_cppo"]
    for name, small in ways.items():
        argv = arguments(world, *flags, "--run-name", name)
        job += [f"grpo.REPLICATE_BELOW = {small}", f"assert train_cppo.main(train_cppo.parse_args({argv})) == 0"]
    (tmp_path / "job.py").write_text("\n".join(job))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "job.py"]
    ran = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=240,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    for name in ways:
        two = tmp_path / "runs" / name / "cppo-m4"
        assert read(stage / "samples.jsonl") == read(two / "samples.jsonl")
        a, b = logged(stage)[0], logged(two)[0]
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-5 * a["grad_norm"]
        ours, theirs = weights(stage), weights(two)
        # Adam's first step is the sign of the gradient: compare what moved by less than the rounding of a sum could turn
        moved = torch.cat([(ours[n] - theirs[n]).abs().flatten() for n in ours])
        assert (moved > 1e-4).float().mean() < 0.01


def kill_and_start_again(argv: list[str], stage: Path, kills: int, seed: int) -> None:
    """A run that is struck `kills` times, each time after a step of its own: in a checkpoint, a rollout, an update."""
    rng, log = random.Random(seed), stage / "metrics.jsonl"
    steps = lambda: log.read_bytes().count(b"\n") if log.exists() else 0
    for blow in [*["kill"] * kills, None]:
        done, deadline = steps(), time.time() + 120
        [pid] = ranks.fork(1, lambda rank: train_cppo.main(train_cppo.parse_args(argv)))
        if blow:
            while time.time() < deadline and steps() <= done:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.12))
            os.kill(pid, signal.SIGKILL)
        assert ranks.wait([pid]) == [-signal.SIGKILL if blow else 0]
        assert all((c / "state.json").exists() for c in stage.glob("step_*") if not c.name.endswith(files.PARTIAL))


def test_killed_at_random_moments_a_run_ends_as_if_it_had_never_stopped(run, world, tmp_path):
    flags = (*STEP, "--steps", "6", "--problems-per-step", "2", "--save-every", "1", "--skip-audit")
    status, calm = run(*flags)
    stage = tmp_path / "killed" / calm
    (tmp_path / "killed").mkdir()
    again = f"test_e2e.kill_and_start_again({arguments(world, *flags)}, test_e2e.Path({str(stage)!r}), kills=3, seed=0)"
    ranks.run(1, "import test_e2e, torch._dynamo", again, tmp_path / "killed")
    assert logged(stage) == logged(calm) and read(stage / "samples.jsonl") == read(calm / "samples.jsonl")
    ours, theirs = weights(stage), weights(calm)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_sigterm_in_the_audit_or_while_verdicts_are_awaited_ends_both(run, capsys, monkeypatch):
    monkeypatch.setattr(lib_run, "stop_flag", lambda: lambda: True)
    status, stage = run("--steps", "1")
    assert status == 143 and "starts again" in capsys.readouterr().out
    assert not (stage / "audit.jsonl").exists() and not checkpoints.newest(stage), "the audit is still to be made"
    branch = rollout.Branch([1], 1, None, "while True: pass", verdict=Future())
    with pytest.raises(rollout.Abandoned):
        Submitter(None).wait([branch], lambda: True)


def test_sigterm_ends_a_run_with_a_checkpoint_from_which_it_goes_on(run, capsys):
    stage, asked = Path("runs/toy/cppo-m4").absolute(), []

    def ask():
        while not ((stage / "metrics.jsonl").exists() and (stage / "metrics.jsonl").stat().st_size):
            time.sleep(0.01)
        asked.append(time.time())
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    status, stage = run("--steps", "1000", "--save-every", "1000", "--skip-audit")
    signal.signal(signal.SIGTERM, handler)
    assert status == 143 and time.time() - asked[0] < 25 and "goes on from there" in capsys.readouterr().out
    newest = checkpoints.newest(stage)
    assert json.loads((newest / "state.json").read_text())["step"] == len(read(stage / "metrics.jsonl")) < 1000


@pytest.mark.parametrize("audited, reward, message", [
    ({"parsed": 0.0, "plan_cut": 0.9}, "both", "raise --max-plan-tokens 512"),
    ({"parsed": 0.0}, "both", "return to stage 1"),
    ({"pass_at_k": 0.0, "solve_cut": 0.8}, "both", "raise --max-solve-tokens 2048"),
    ({"pass_at_k": 0.0}, "both", "return to stage 1"),
    ({"valid": 0.0, "R_plan_density": 0.0}, "both", "the gate accepts no plan"),
    ({"valid": 0.0}, "outcome", None), ({}, "both", None)])
def test_the_audit_says_what_to_change_and_asks_no_gate_where_none_is_used(audited, reward, message):
    args = train_cppo.parse_args(["--model", "m", "--reward", reward])
    well = {"parsed": 1.0, "pass_at_k": 0.5, "valid": 0.5, "R_plan_density": 0.2, "plan_cut": 0.0,
            "solve_cut": 0.0}
    reason = train_cppo.refusal(well | audited, args)
    assert reason is None if message is None else message in reason
