"""rollout.py: a row's sample depends on its key alone, and its record is what was sampled."""

import heapq
import itertools
import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import model
import prompts
import rollout
from bench.rollout import NoWords
from lib import memory
from rollout import Engine, Job


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny.qwen(tmp_path_factory.mktemp("rollout") / "qwen")
    return model.load(folder), tiny.tokenizer(), folder


def ragged_jobs(n: int = 60, longest: int = 150) -> list[Job]:
    rng = random.Random(0)
    ids = lambda k: [rng.randrange(5, 290) for _ in range(k)]
    prefixes = [ids(rng.randint(3, longest)) for _ in range(5)]
    jobs = []
    for i in range(n):
        prefix = prefixes[i % 5]
        rest = ids(rng.randint(0, 90) if i % 3 else 0)
        jobs.append(Job(prefix + rest, (7, i), rng.randint(1, 40), shared=len(prefix), tag=i))
    return jobs


def run(module, tokenizer, jobs, slots, **settings) -> dict:
    engine = Engine(module, tokenizer, slots, **settings)
    return {job.tag: sample for job, sample in engine.run(jobs)}


def assert_same_samples(got: dict, want: dict) -> None:
    """Equal tokens; log-probs equal up to the rounding of batched matrix products."""
    assert got.keys() == want.keys()
    for i in want:
        assert got[i].ids == want[i].ids and got[i].finish == want[i].finish
        assert np.allclose(got[i].logprobs, want[i].logprobs, atol=1e-4)


def test_any_slot_count_and_any_order_sample_the_same_tokens(loaded):
    module, tokenizer, _ = loaded
    want = run(module, tokenizer, ragged_jobs(), 8)
    assert len(want) == 60 and len({tuple(s.ids) for s in want.values()}) > 50
    for slots, order in ((1, 1), (24, 1), (256, -1)):
        assert_same_samples(run(module, tokenizer, ragged_jobs()[::order], slots), want)


def test_the_same_slot_count_samples_the_same_bits(loaded):
    module, tokenizer, _ = loaded
    first, second = (run(module, tokenizer, ragged_jobs(), 24) for _ in range(2))
    assert first == second


class Tape(TorchDispatchMode):
    """Records as a CUDA graph does, on a CPU: what is computed between `with` and its end is
    undone there; `replay` computes it again from what lies at the same addresses, to the same
    addresses. What a capture refuses, it refuses."""
    REFUSED = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select")

    def __init__(self):
        super().__init__()
        self.done, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in self.REFUSED:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func._schema.is_mutable:
            storage = given[0].untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        out = func(*args, **kwargs)
        places = {t.untyped_storage().data_ptr() for t in given}
        new = isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in places
        if func._schema.is_mutable or new:
            self.done.append((func, args, kwargs, out))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        for storage, was in self.before.values():
            storage.copy_(was)

    def pool(self):
        return self

    def replay(self):
        for func, args, kwargs, out in self.done:
            made = func(*args, **kwargs)
            if made is not out:
                out.copy_(made)


def captured(monkeypatch, module, tokenizer, jobs, slots):
    engine = Engine(module, tokenizer, slots)
    engine.captures = engine.on_gpu = True
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, capture_error_mode: graph)
    return {job.tag: sample for job, sample in engine.run(jobs)}, engine


def test_a_step_that_is_recorded_once_and_replayed_samples_the_same(loaded, monkeypatch):
    """Short replies first: buffers grow on the way, and what was recorded over the old ones is
    forgotten."""
    module, tokenizer, _ = loaded
    jobs, replays, replay = ragged_jobs(), [], Tape.replay
    jobs.sort(key=lambda job: job.max_new_tokens)
    monkeypatch.setattr(rollout, "GRAPH_BUCKET", 64)
    monkeypatch.setattr(Tape, "replay", lambda tape: replays.append(tape) or replay(tape))
    got, engine = captured(monkeypatch, module, tokenizer, jobs, 24)
    assert engine.captures
    assert_same_samples(got, run(module, tokenizer, ragged_jobs(), 24))
    assert len(set(replays)) >= 3 and len(replays) > 10 * len(set(replays))
    assert not engine.graphs, "they would keep their memory through the update"


def test_a_step_that_cannot_be_recorded_ends_the_rollout_and_names_the_flag(loaded, monkeypatch):
    """Going on is no way out: torch 2.11 leaves its allocator in the middle of the capture."""
    module, tokenizer, _ = loaded
    plain = rollout.draw

    def waits(logits, *settings):
        logits[0, 0].item()
        return plain(logits, *settings)
    monkeypatch.setattr(rollout, "draw", waits)
    with pytest.raises(ValueError, match=r"pass --compile off \(item: operation not permitted"):
        captured(monkeypatch, module, tokenizer, ragged_jobs(), 24)


def test_buffers_grow_without_the_old_and_the_new_beside_each_other(loaded):
    """Plans grow into programs: with both, a model of 9 B takes 94 GiB where 74 were planned."""
    module, _, _ = loaded
    small, large = module.new_state(40, 128), module.new_state(40, 640)
    nbytes = lambda state: sum(t.nbytes for layer in state.layers for t in layer)
    more = nbytes(large) - nbytes(small)
    with memory.Alive() as alive, torch.inference_mode():
        module.grow(small, 640)
    assert alive.now < 1.05 * more + nbytes(small) and alive.peak < 1.05 * nbytes(large)
    assert nbytes(small) == nbytes(large) and small.columns == large.columns


def test_a_prefix_leaves_the_pool_with_its_last_job(loaded):
    module, tokenizer, _ = loaded
    engine, jobs = Engine(module, tokenizer, 8), ragged_jobs(20, 40)
    prefix = jobs[1].prompt[:jobs[1].shared]
    late = Job(prefix + [9], (7, "late"), 5, len(prefix), tag="late")
    for job, _ in engine.run(jobs):
        needed = {rollout.prefix_of(job) for job in (*engine.queue, *engine.owner.values())}
        assert engine.pool.keys() <= needed
        if job.tag == 1:
            engine.push([late])
    assert not engine.needs and not engine.owner


def test_no_more_slots_are_made_than_rows_can_decode_at_once(loaded):
    module, tokenizer, _ = loaded
    made = []
    engine = Engine(module, tokenizer, 256)
    engine.progress = lambda engine: made.append(len(engine.state.pos))
    rollout.sample_attempts(engine, [Problem("p")], [["one", "two", "three"]], (0,), 5,
                            lambda *_: None)
    assert set(made) == {3}


def test_the_shared_prefix_is_a_hint_that_changes_no_token(loaded):
    module, tokenizer, _ = loaded
    want, jobs = run(module, tokenizer, ragged_jobs(), 64), ragged_jobs()
    for job in jobs:
        job.shared = None
    assert_same_samples(run(module, tokenizer, jobs, 64), want)


def test_recorded_log_probs_are_those_of_transformers_at_the_sampling_temperature(loaded):
    module, tokenizer, folder = loaded
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    jobs = ragged_jobs(20)
    for i, sample in run(module, tokenizer, jobs, 16, temperature=0.7).items():
        prompt = jobs[i].prompt
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + sample.ids])).logits[0]
        logits = logits[len(prompt) - 1:-1, :len(tokenizer)] / 0.7
        want = logits.log_softmax(-1).gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]
        assert (want - torch.tensor(sample.logprobs)).abs().max() < 5e-5


def generate(hf, tokenizer, job, ends):
    return hf.generate(torch.tensor([job.prompt]), max_new_tokens=job.max_new_tokens,
                       do_sample=False, eos_token_id=list(ends),
                       suppress_tokens=list(range(len(tokenizer), tiny.VOCAB)))


def test_greedy_replies_are_those_of_transformers_generate(loaded):
    module, tokenizer, folder = loaded
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ends = rollout.end_ids(module, tokenizer)
    for job in ragged_jobs(6):
        job.max_new_tokens = 25
        got = run(module, tokenizer, [job], 8, temperature=0)[job.tag]
        with torch.no_grad():
            out = generate(reference, tokenizer, job, ends)
        assert got.ids == out[0, len(job.prompt):].tolist()


class Plain(torch.nn.Module):
    """A Hugging Face model behind the nine members that Engine asks of a module. A state is the
    ids that each row has read; every token runs all of them again, so it is slow and simple."""
    can_fork, can_capture = True, False

    def __init__(self, hf):
        super().__init__()
        self.hf, self.config = hf, hf.config
        self.eos_ids = set(hf.generation_config.eos_token_id)

    def new_state(self, rows, capacity):
        return [[] for _ in range(rows)]

    def grow(self, state, capacity):
        pass

    def fork(self, dst, dst_rows, src, src_rows):
        copies = [list(src[row]) for row in src_rows.tolist()]
        for row, ids in zip(dst_rows.tolist(), copies, strict=True):
            dst[row] = ids

    def segment(self, ids, lengths, state):
        for row, new, n in zip(state, ids.tolist(), lengths.tolist(), strict=True):
            row += new[:n]
        return self.last_logits(state)

    def step(self, ids, state, limit):
        return self.segment(ids.unsqueeze(1), torch.ones_like(ids), state[:len(ids)])

    def last_logits(self, rows):
        return torch.stack([self.hf(torch.tensor([row])).logits[0, -1] for row in rows])


def test_a_plain_hugging_face_model_in_thirty_lines_decodes_greedily_as_transformers_does(tmp_path):
    hf, tokenizer = tiny.hf(tiny.llama(tmp_path / "llama")), tiny.tokenizer()
    module = Plain(hf)
    ends = rollout.end_ids(module, tokenizer)
    jobs = ragged_jobs(10, 30)
    samples = run(module, tokenizer, jobs, 4, temperature=0)
    for job in jobs:
        with torch.no_grad():
            out = generate(hf, tokenizer, job, ends)
        assert samples[job.tag].ids == out[0, len(job.prompt):].tolist()


class Nothing(torch.nn.Module):
    """A model whose logits are all alike: what is left of a rollout is its schedule."""
    can_fork, can_capture, eos_ids = True, False, set()
    config = SimpleNamespace(vocab_size=2)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def new_state(self, rows, capacity):
        return torch.zeros(rows, capacity)

    def grow(self, *_):
        pass

    fork = grow

    def segment(self, ids, lengths, state):
        return torch.zeros(len(ids), 2)

    def step(self, ids, state, limit):
        return torch.zeros(len(ids), 2)


def schedule(num_tuples: int, under_way: int, slots: int, seed: int, on_gpu: bool = False,
             sigma: float = 0.75):
    """Rollout of tuples of random lengths, `under_way` of them begun at a time -> steps of the
    engine; of a schedule that lets no free slot wait; of the longest plan and program."""
    rng = np.random.default_rng(seed)
    draw = lambda median, most: int(np.clip(rng.lognormal(np.log(median), sigma), 1, most))
    plans = [draw(160, 512) for _ in range(num_tuples)]
    programs = [[draw(450, 2048) for _ in range(4)] for _ in range(num_tuples)]
    plan = lambda t: Job([3] * 5, (t,), plans[t], tag=(t, None))

    engine = Engine(Nothing(), NoWords(2), slots)
    engine.on_gpu = on_gpu
    unfinished = [4] * num_tuples
    following = iter(range(under_way, num_tuples))
    for (t, k) in (job.tag for job, _ in engine.run([plan(t) for t in range(under_way)])):
        if k is None:
            engine.push(Job([3] * 4 + [5], (t, i), n, 4, (t, i)) for i, n in enumerate(programs[t]))
            continue
        unfinished[t] -= 1
        if not unfinished[t]:
            engine.push(plan(other) for other in itertools.islice(following, 1))

    queue = deque((plans[t], t, True) for t in range(under_way))
    now, live, unfinished = 0, [], [4] * num_tuples
    following = iter(range(under_way, num_tuples))
    while queue or live:
        while queue and len(live) < slots:
            n, t, is_plan = queue.popleft()
            heapq.heappush(live, (now + n, t, is_plan))
        now, t, is_plan = heapq.heappop(live)
        unfinished[t] -= not is_plan
        if is_plan:
            queue.extend((n, t, False) for n in programs[t])
        elif not unfinished[t]:
            queue.extend((plans[other], other, True) for other in itertools.islice(following, 1))
    chain = max(a + max(b) for a, b in zip(plans, programs))
    return engine.stats.steps, now, chain


@pytest.mark.parametrize("num_tuples,on_gpu", [(8, False), (32, True), (64, True)])
def test_the_engine_takes_no_more_steps_than_the_longest_plan_and_program(num_tuples, on_gpu):
    """A step of 1, 4 and 8 problems. 9 to 33 % more while small prefills waited for larger ones."""
    steps, ideal, chain = schedule(num_tuples, num_tuples, 256, seed=0, on_gpu=on_gpu)
    assert ideal == chain and steps <= 1.02 * chain


def test_where_jobs_wait_for_slots_no_slot_waits_for_a_job():
    """Evaluation: as many draws under way as there are slots."""
    steps, ideal, chain = schedule(240, 240, 256, seed=1, sigma=0.3)
    assert chain < 0.9 * ideal and steps <= 1.02 * ideal


def test_replies_keep_the_end_token_they_sampled_and_never_gain_one(loaded):
    module, tokenizer, _ = loaded
    samples = run(module, tokenizer, ragged_jobs(200), 64, temperature=3.0)
    jobs = {job.tag: job for job in ragged_jobs(200)}
    ends = rollout.end_ids(module, tokenizer)
    assert {s.finish for s in samples.values()} == {"eos", "length"}
    for i, s in samples.items():
        assert len(s.ids) == len(s.logprobs) <= jobs[i].max_new_tokens
        assert (s.ids[-1] in ends) == (s.finish == "eos") and not ends & set(s.ids[:-1])
        assert max(s.ids) < len(tokenizer)      # the padded part of the vocabulary has no words
        assert s.text == tokenizer.decode(s.ids[:-1] if s.finish == "eos" else s.ids)


def test_every_id_that_ends_a_turn_is_known(loaded):
    module, tokenizer, _ = loaded
    end, pad = tokenizer.convert_tokens_to_ids([tiny.END, tiny.PAD])
    assert rollout.end_ids(module, tokenizer) == {end, pad}
    assert rollout.end_ids(model.build(tiny.QWEN), tokenizer) == {end}


def test_a_stop_ends_the_row_at_the_first_token_that_satisfies_it(loaded):
    module, tokenizer, _ = loaded
    jobs = ragged_jobs(30)
    free = run(module, tokenizer, jobs, 16, temperature=1.5)
    for job in jobs:
        job.stop = lambda text: len(text) >= 8
    for i, s in run(module, tokenizer, jobs, 16, temperature=1.5).items():
        ids, n = free[i].ids, 1
        while n < len(ids) and len(tokenizer.decode(ids[:n])) < 8:
            n += 1
        assert s.ids == ids[:n]
        assert s.finish == "stop" or n == len(ids)


def test_inverse_cdf_gives_every_id_its_share_of_the_unit_interval():
    logits = torch.tensor([0.3, -1.0, -torch.inf, 2.0, 0.0])
    u = (torch.arange(20_000) + 0.5) / 20_000
    ids, logp = rollout.draw(logits.expand(20_000, 5), u, temperature=0.7)
    want = (logits / 0.7).softmax(-1)
    assert (torch.bincount(ids, minlength=5) / 20_000 - want).abs().max() < 1e-4
    assert torch.allclose(logp, want.log()[ids], atol=1e-6)
    impossible = torch.tensor([[-torch.inf, 1.0]])
    assert rollout.draw(impossible, torch.zeros(1), 1.0)[0] == 1        # although u = 0


def test_a_token_drawn_in_two_levels_is_the_one_that_a_single_sum_gives():
    """Over a large vocabulary, peaked and flat, at the ends of the unit interval, with blocks of
    words that have no probability."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(600, 5000, generator=generator)
    logits *= torch.linspace(0.1, 8, 600).unsqueeze(1)
    logits[::3, :700], logits[1::3, 4000:] = -torch.inf, -torch.inf
    u = torch.rand(600, generator=generator)
    u[:50], u[50:100] = 0.0, 1 - 2 ** -24
    ids, logp = rollout.draw(logits, u, 1.0)
    exact = logits.double().log_softmax(-1)
    cdf = exact.exp().cumsum(-1)
    before, mine = cdf - exact.exp(), ids.unsqueeze(1)
    assert (exact.gather(1, mine) > -torch.inf).all()
    assert (u - before.gather(1, mine)[:, 0] > -1e-6).all()
    assert (cdf.gather(1, mine)[:, 0] - u > -1e-6).all()
    single = torch.searchsorted(cdf.float(), u.unsqueeze(1) * cdf.float()[:, -1:], right=True)
    assert (single[100:] == mine[100:]).float().mean() > 0.995
    assert (logp - exact.gather(1, mine)[:, 0]).abs().max() < 3e-6


def test_top_k_and_top_p_keep_what_their_definitions_keep():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
    p = logits.softmax(-1)[0]
    u = torch.linspace(0, 0.9999, 2000)
    seen = lambda **kw: set(rollout.draw(logits.expand(2000, 5), u, 1.0, **kw)[0].tolist())
    assert seen() == {0, 1, 2, 3, 4} and seen(top_k=2) == {0, 1}
    for cut in (0.3, 0.7, 0.9, 0.99):
        want, mass = set(), 0.0
        # the smallest set of likeliest ids that holds at least `cut`
        for i in range(5):
            if mass < cut:
                want.add(i)
            mass += p[i].item()
        assert seen(top_p=cut) == want


def test_a_row_s_stream_depends_on_its_key_alone():
    assert np.array_equal(rollout.uniforms((0, "a", 1), 5), rollout.uniforms((0, "a", 1), 9)[:5])
    assert not np.array_equal(rollout.uniforms((0, "a", 1), 5), rollout.uniforms((0, "a", 2), 5))
    long = rollout.uniforms((3,), 100_000)
    assert long.dtype == np.float32 and 0 <= long.min() and long.max() < 1
    assert abs(long.mean() - 0.5) < 0.005


class Problem:
    def __init__(self, id):
        self.id, self.statement, self.starter_code, self.fn_name = id, f"Problem {id}.", "", None


def test_branches_follow_their_plans_and_a_plan_that_does_not_parse_has_none(loaded, monkeypatch):
    module, tokenizer, _ = loaded
    verified = []

    def parse(text, k):
        if len(text) % 2 == 0:
            raise prompts.PlanError("no")
        return ["zigzag", "roundabout"]

    def verify(problem, program):
        verified.append((problem.id, program))
        return len(verified)
    monkeypatch.setattr(prompts, "parse_plan", parse)
    engine = Engine(module, tokenizer, 16)
    problems = [Problem("p"), Problem("q")]
    tuples = rollout.sample_tuples(engine, problems, 6, 2, (0, 1), 12, 9, verify)
    flat = [(p, t) for p, of_problem in enumerate(tuples) for t in of_problem]
    assert len(flat) == 12 and {len(t.branches) for _, t in flat} == {0, 2}
    assert len(verified) == sum(len(t.branches) for _, t in flat)
    for p, t in flat:
        assert (t.strategies is None) == (t.error is not None) == (not t.branches)
        for strategy, b in zip(t.strategies or [], t.branches, strict=True):
            assert b.strategy == strategy and b.verdict is not None
            whole, shared = tokenizer.decode(b.prompt), tokenizer.decode(b.prompt[:b.shared])
            statement = f"Problem {'pq'[p]}."
            assert strategy in whole and statement in whole
            assert strategy not in shared and statement in shared


def test_a_planner_that_thinks_is_asked_to_and_a_thought_that_never_closes_is_no_plan(
        loaded, monkeypatch):
    """Where stage 1 was trained with thoughts. The prompt opens the thought; the solver goes
    without."""
    module, tokenizer, _ = loaded
    asked, parse = [], prompts.parse_plan
    monkeypatch.setattr(prompts, "parse_plan",
                        lambda text, k: asked.append(text) or ["zigzag", "roundabout"])
    [[t]] = rollout.sample_tuples(Engine(module, tokenizer, 8), [Problem("p")], 1, 2, (0, 1), 12, 9,
                                  lambda *_: 0, think=True)
    assert tokenizer.decode(t.prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert asked == [t.plan.text]
    assert t.plan.text == "<think>" + tokenizer.decode(rollout.reply_ids(t.plan))
    for b in t.branches:
        assert "</think>" in tokenizer.decode(b.prompt)
        assert not b.sample.text.startswith("<think>")
    assert parse("<think>A: no\nB: no\n</think>\nA: x\nB: y", 2) == ["x", "y"]
    with pytest.raises(prompts.PlanError):
        parse("<think>A: x\nB: y", 2)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.TEMPLATE.replace("enable_thinking is false", "true")
    with pytest.raises(ValueError,
                       match="--with-think: this tokenizer.s chat template has no thinking"):
        prompts.thought_mark(tokenizer)


def test_a_rollout_can_be_abandoned_between_two_tokens(loaded):
    module, tokenizer, _ = loaded
    steps = iter([False] * 3 + [True])
    with pytest.raises(rollout.Abandoned):
        run(module, tokenizer, ragged_jobs(), 16, stop_flag=lambda: next(steps))


def test_impossible_jobs_are_refused_in_words(loaded):
    module, tokenizer, _ = loaded
    for job, message in ((Job([5] * 5000, (0,), 10), "context of 4096"),
                         (Job([], (0,), 1), "needs a prompt"), (Job([1], (0,), 0), "needs a")):
        with pytest.raises(ValueError, match=message):
            run(module, tokenizer, [job], 8)
    with pytest.raises(ValueError, match="slots 0"):
        Engine(module, tokenizer, 0)
    with pytest.raises(ValueError, match="the tokenizer has 390 words and the model 300"):
        Engine(model.build(tiny.QWEN | {"vocab_size": 300}), tokenizer, 8)


@pytest.mark.gpu
def test_on_a_gpu_captured_steps_sample_what_eager_ones_do(loaded, monkeypatch):
    """In fp32, where other widths of attention change no token here; and no operation of a step
    waits for the host."""
    _, tokenizer, folder = loaded
    module = model.load(folder, device="cuda")
    monkeypatch.setattr(rollout, "GRAPH_BUCKET", 128)
    engine = Engine(module, tokenizer, 24)
    got = {job.tag: sample.ids for job, sample in engine.run(ragged_jobs())}
    assert engine.captures, "it fell back"
    engine.captures = False
    eager = {job.tag: sample.ids for job, sample in engine.run(ragged_jobs())}
    assert sum(got[i] == eager[i] for i in eager) >= 58
    state, current = module.new_state(24, 64), torch.zeros(24, dtype=torch.long, device="cuda")
    u = torch.rand(24, device="cuda")
    rollout.draw(module.step(current, state, 64), u, 0.7)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rollout.draw(module.step(current, state, 64), u, 0.7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
