"""Sampling: batched, KV-cached, prefix-shared. Tuples first, their branches as they come (Eq. 3-7).

A CPPO step samples M tuples from one plan prompt and M*K branches from solve prompts that differ only in their last line. Three
ideas make that cheap; all of them are one operation on the decoding state, an indexed copy of rows (`module.fork`):

- prefix sharing: a prompt, or the part that many prompts share, is run once and forked into every row that continues it;
- refill: a finished row's slot is given to the next job at once, so nobody waits for the longest row;
- compaction: when no job waits, the live rows move together and the batch shrinks (on a CPU, where work follows rows).

    engine = Engine(module, tokenizer, slots=256, temperature=0.7)
    for job, sample in engine.run(plan_jobs):            # rows come back as they end, in no promised order
        engine.push(jobs_that_follow_from(sample))       # they join the rows that are still decoding

Shapes: B slots, C longest reply of the run in tokens, V vocabulary, T prompt positions.

What a row samples depends on its own random stream (`Job.key`) and its own logits alone: one uniform number per row and position,
mapped through the inverse of the cumulative distribution. So neither neighbours, nor slots, nor the order of admission change a
sample, except through the rounding of batched matrix products. On a CPU with one thread the same jobs in the same number of slots
give the same bits.

Log-probs are those of the distribution that was sampled from (temperature applied, ids beyond the tokenizer's excluded). Training
samples from the full softmax; top-k, top-p and greedy decoding are for evaluation. `Sample.ids` keeps the end-of-turn token as it
was sampled and never gains one that was not; ids go to the loss as they are, text is only for parsers and the verifier.
"""

import hashlib
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import prompts

BUCKET = 64             # attended positions are a multiple of it
PREFILL_TOKENS = 16384  # positions that one prefill may hold
POLL_STEPS = 8          # on a GPU the host looks at the `alive` flags every so many tokens; on a CPU after each one
GRAPH_BUCKET = 512      # attended positions of a captured step: the wider, the fewer captures and the more keys read in vain


class Abandoned(Exception):
    """Raised inside a rollout when `stop_flag()` turns true, e.g. on SIGTERM. Nothing of the rollout is kept."""


@dataclass
class Sample:
    ids: list[int]              # sampled tokens, the end-of-turn token included
    logprobs: list[float]       # one per id, at the sampling temperature
    text: str                   # without the end-of-turn token
    finish: str                 # "eos" | "length" | "stop"


@dataclass
class Job:
    prompt: list[int]
    key: tuple                  # (seed, step, problem id, tuple, branch): names the row's random stream
    max_new_tokens: int
    shared: int | None = None   # how many leading ids other jobs share (None: the whole prompt); a speed hint, not a promise
    tag: Any = None             # the caller's
    opened: str = ""            # what the prompt has begun of the reply, e.g. a thought: stands before its text
    stop: Callable[[str], bool] | None = None   # ends the row after the first token with which it says True of the text so far


@dataclass
class Stats:
    rows: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    steps: int = 0
    row_steps: int = 0          # rows computed, live or not
    live_row_steps: int = 0
    seconds: float = 0.0

    @property
    def idle_share(self) -> float:
        return 1 - self.live_row_steps / max(1, self.row_steps)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(1e-9, self.seconds)


def uniforms(key: tuple, n: int) -> np.ndarray:
    """n uniforms in [0, 1), float32, from the stream that `key` names; equal keys give equal streams on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(n, dtype=np.float32)


def end_of_turn(tokenizer) -> int | None:
    """The token that ends a reply: the one the chat template writes after it, else the tokenizer's own; None if it has neither."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "REPLY"}]
        tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("REPLY")[2]
        after = tokenizer(tail, add_special_tokens=False)["input_ids"]
        added = tokenizer.added_tokens_decoder             # has the special tokens that play no named role as well
        if after and (after[0] in tokenizer.all_special_ids or after[0] in added and added[after[0]].special):
            return after[0]
    return tokenizer.eos_token_id


def end_ids(module, tokenizer) -> set[int]:
    """Every id that ends a turn: the checkpoint's, the tokenizer's, and the one its chat template writes after a reply. They
    differ in released checkpoints (Qwen3.5: config 248044, template 248046), and a missed one means replies that run on."""
    return {i for i in (*module.eos_ids, tokenizer.eos_token_id, end_of_turn(tokenizer)) if i is not None}


def draw(logits: Tensor, u: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling. logits (B, V), u (B,) in [0, 1) -> ids (B,), log-probs (B,). temperature 0 is greedy."""
    logits = logits.float()
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = logits.argmax(-1, keepdim=True)
        return ids.squeeze(1), logp.gather(1, ids).squeeze(1)
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1])).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        ordered = ordered.masked_fill(probs.cumsum(-1) - probs >= top_p, -torch.inf)     # the first one always stays
        logits = torch.full_like(logits, -torch.inf).scatter(1, order, ordered)
    logp = logits.log_softmax(-1)
    cdf = logp.exp().cumsum(-1)
    target = (u.unsqueeze(1) * cdf[:, -1:]).contiguous()
    # right=True: the first id whose cumulative probability exceeds u, so an id of probability 0 is never drawn
    ids = torch.searchsorted(cdf, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids.squeeze(1), logp.gather(1, ids).squeeze(1)


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def first_rows(state, n: int):
    """The first n rows of a decoding state, as views into it."""
    return replace(state, pos=state.pos[:n], layers=[tuple(t[:n] for t in layer) for layer in state.layers])


# ------------------------------------------------------------------------------------------------ the engine

class Engine:
    """A stream of jobs through a fixed number of slots. One instance may run many rollouts; its state is allocated per run."""

    def __init__(self, module, tokenizer, slots: int = 64, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                 stop_flag: Callable[[], bool] = lambda: False, progress: Callable[["Engine"], None] | None = None):
        if slots < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"slots {slots}, temperature {temperature}, top-p {top_p}: slots must be 1 or more, "
                             "temperature 0 or more, top-p in (0, 1]")
        self.module, self.tokenizer, self.slots = module, tokenizer, slots
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.stop_flag, self.progress = stop_flag, progress
        self.device = next(module.parameters()).device
        self.on_gpu = self.device.type == "cuda"
        self.captures = self.on_gpu and module.can_capture
        if len(tokenizer) > module.config.vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} words and the model {module.config.vocab_size}: they do not "
                             f"belong together")
        # a vocabulary is padded beyond the tokenizer's words; ids without a word are never sampled
        self.vocab = len(tokenizer)
        self.ends = end_ids(module, tokenizer)
        self.is_end = torch.zeros(self.vocab, dtype=torch.bool, device=self.device)
        self.is_end[[i for i in self.ends if i < self.vocab]] = True
        self.stats = Stats()
        self.queue: deque[Job] = deque()

    def push(self, jobs: Iterable[Job]) -> None:
        """Queue jobs; also while `run` is under way."""
        limit = getattr(self.module.config, "max_position_embeddings", None)
        for job in jobs:
            if not job.prompt or job.max_new_tokens < 1:
                raise ValueError(f"job {job.key}: needs a prompt and max_new_tokens of 1 or more, not "
                                 f"{len(job.prompt)} and {job.max_new_tokens}")
            if limit and len(job.prompt) + job.max_new_tokens > limit:
                raise ValueError(f"job {job.key}: a prompt of {len(job.prompt)} tokens and a reply of up to "
                                 f"{job.max_new_tokens} exceed the model's context of {limit}; shorten either")
            self.queue.append(job)

    @torch.inference_mode()
    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Sample]]:
        """Yields (job, sample) as rows end, until the queue is empty and every row has ended."""
        self.queue.clear()
        self.push(jobs)
        self._allocate()
        started = time.perf_counter()
        while self.queue or self.owner:
            if self.stop_flag():
                raise Abandoned
            self._admit()
            for _ in range(POLL_STEPS if self.on_gpu else 1):
                self._decode()
            done = list(self._collect())
            self.stats.seconds += time.perf_counter() - started
            if self.progress:
                self.progress(self)
            yield from done                        # the caller's time is not the sampler's
            started = time.perf_counter()
        self.graphs.clear()
        del self.state, self.pool                  # the memory is the update's until the next rollout

    # ---- buffers, all of them indexed by slot; the first `self.rows` slots are computed

    def _allocate(self) -> None:
        device, B = self.device, self.slots
        self.capacity = self.reply = 0
        self.state = None
        self.pool: OrderedDict[tuple, tuple] = OrderedDict()       # shared prefix -> (state, row, logits)
        self.owner: dict[int, Job] = {}
        self.length = np.zeros(B, dtype=np.int64)                  # host's count of positions used, so that no sync is needed
        self.checked = np.zeros(B, dtype=np.int64)                 # sampled tokens that `stop` has seen
        self.rows = 0
        self.graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self.current = torch.zeros(B, dtype=torch.long, device=device)
        self.count = torch.zeros(B, dtype=torch.long, device=device)       # tokens sampled so far
        self.limit = torch.zeros(B, dtype=torch.long, device=device)
        self.alive = torch.zeros(B, dtype=torch.bool, device=device)
        self.index = torch.arange(B, device=device)
        self.uniform = torch.zeros(B, 0, device=device)
        self.out_ids = torch.zeros(B, 1, dtype=torch.long, device=device)
        self.out_logp = torch.zeros(B, 1, device=device)

    def _make_room(self) -> None:
        """Let the buffers hold every queued job; rows under way are copied over. Called once or twice a run."""
        longest = round_up(max(len(j.prompt) + j.max_new_tokens for j in self.queue), BUCKET)
        reply = max(j.max_new_tokens for j in self.queue)
        if reply > self.reply:
            grow = reply - self.reply
            pad = torch.nn.functional.pad
            self.uniform = pad(self.uniform, (0, grow))
            self.out_ids, self.out_logp = pad(self.out_ids, (0, grow)), pad(self.out_logp, (0, grow))
            self.reply = reply
            self.graphs.clear()                    # a captured step holds the addresses of the buffers
        if longest > self.capacity:
            old, self.capacity = self.state, longest
            self.state = self.module.new_state(self.slots, longest) if self.module.can_fork else None
            if old is not None and self.owner:
                self.module.fork(self.state, self.index, old, self.index)
            self.graphs.clear()

    # ---- admission: prefill what is shared once, fork it, run the rest of each prompt

    def _admit(self) -> None:
        free = [s for s in range(self.slots) if s not in self.owner]
        n = min(len(free), len(self.queue))
        if not self.module.can_fork and self.owner:
            return                                 # such a cache is filled as a whole: wave after wave
        # a prefill has a price of its own, so small ones wait until they are worth it or nothing else is left to do
        if n == 0 or (n < self.slots // 8 and n < len(self.owner)):
            return
        self._make_room()
        slots, jobs = free[:n], [self.queue.popleft() for _ in range(n)]
        if not self.module.can_fork:
            slots = list(range(n))
            self.state = self.module.new_state(n, self.capacity)
            self._seat(slots, jobs, self._segment([j.prompt for j in jobs], self.state))
            self.rows = n
            return
        order = sorted(range(n), key=lambda i: len(jobs[i].prompt))        # neighbours in a prefill are of like length
        while order:
            most = max(1, PREFILL_TOKENS // len(jobs[order[-1]].prompt))
            batch, order = order[-most:], order[:-most]
            self._seat_forked([slots[i] for i in batch], [jobs[i] for i in batch])
        self.rows = max(self.rows, self._fitting(max(self.owner) + 1))

    def _seat_forked(self, slots: list[int], jobs: list[Job]) -> None:
        shared = [tuple(j.prompt[:j.shared]) if j.shared else tuple(j.prompt) for j in jobs]
        self._prefill([p for p in dict.fromkeys(shared) if p not in self.pool])
        whole = [i for i, p in enumerate(shared) if len(p) == len(jobs[i].prompt)]
        rest = [i for i, p in enumerate(shared) if len(p) < len(jobs[i].prompt)]
        if whole:
            for i in whole:
                state, row, _ = self.pool[shared[i]]
                self._fork(self.state, [slots[i]], state, [row])
            logits = torch.stack([self.pool[shared[i]][2] for i in whole])
            self._seat([slots[i] for i in whole], [jobs[i] for i in whole], logits)
        if rest:
            tails = [jobs[i].prompt[len(shared[i]):] for i in rest]
            spare = self.module.new_state(len(rest), max(len(jobs[i].prompt) for i in rest))
            for at, i in enumerate(rest):
                state, row, _ = self.pool[shared[i]]
                self._fork(spare, [at], state, [row])
            logits = self._segment(tails, spare)
            self._fork(self.state, [slots[i] for i in rest], spare, list(range(len(rest))))
            self._seat([slots[i] for i in rest], [jobs[i] for i in rest], logits)
        for p in shared:
            self.pool.move_to_end(p)
        while len(self.pool) > max(self.slots, len(jobs)):                 # least recently used goes first
            self.pool.popitem(last=False)

    def _prefill(self, prefixes: list[tuple]) -> None:
        """Run each prefix once and keep its state and its last logits in the pool."""
        prefixes = sorted(prefixes, key=len)
        while prefixes:
            most = max(1, PREFILL_TOKENS // len(prefixes[-1]))
            batch, prefixes = prefixes[-most:], prefixes[:-most]
            state = self.module.new_state(len(batch), len(batch[-1]))
            logits = self._segment([list(p) for p in batch], state)
            for row, prefix in enumerate(batch):
                self.pool[prefix] = (state, row, logits[row])

    def _segment(self, ids: list[list[int]], state) -> Tensor:
        """Logits (len(ids), V) after each row's last id; the state goes on by the rows' lengths."""
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
        for row, n, some in zip(padded, lengths, ids, strict=True):
            row[:n] = torch.tensor(some)
        self.stats.prefill_tokens += int(lengths.sum())
        return self.module.segment(padded.to(self.device), lengths.to(self.device), state)

    def _fork(self, dst, dst_rows: list[int], src, src_rows: list[int]) -> None:
        rows = torch.tensor([dst_rows, src_rows], device=self.device)
        self.module.fork(dst, rows[0], src, rows[1])

    def _seat(self, slots: list[int], jobs: list[Job], logits: Tensor) -> None:
        """The prompts are in the state: give the rows their streams and sample their first tokens."""
        stream = np.zeros((len(jobs), self.reply), dtype=np.float32)
        for i, (slot, job) in enumerate(zip(slots, jobs, strict=True)):
            stream[i, :job.max_new_tokens] = uniforms(job.key, job.max_new_tokens)
            self.owner[slot] = job
            self.length[slot], self.checked[slot] = len(job.prompt), 0
        at = torch.tensor(slots, device=self.device)
        self.uniform[at] = torch.from_numpy(stream).to(self.device)
        self.limit[at] = torch.tensor([j.max_new_tokens for j in jobs], device=self.device)
        self.count[at], self.alive[at] = 0, True
        self._take(at, logits)

    # ---- decoding: tensors only, so that a GPU never waits for the host between two tokens

    def _take(self, at: Tensor, logits: Tensor) -> None:
        """Sample one token for the rows `at` (n,) from logits (n, V); rows that have ended keep everything as it is."""
        count, alive = self.count[at], self.alive[at]
        u = self.uniform[at, count.clamp(max=self.reply - 1)]
        ids, logp = draw(logits[:, :self.vocab], u, self.temperature, self.top_k, self.top_p)
        place = torch.where(alive, count, self.reply)                      # the last column takes what nobody reads
        self.out_ids[at, place], self.out_logp[at, place] = ids, logp
        self.current[at] = ids
        self.count[at] = count + alive
        self.alive[at] = alive & ~self.is_end[ids] & (count + 1 < self.limit[at])

    def _decode(self) -> None:
        """One token for every row."""
        if not self.owner:
            return
        live = max(self.length[s] for s in self.owner)
        attended = min(round_up(int(live) + 1, GRAPH_BUCKET if self.captures else BUCKET), self.capacity)
        if self.captures:
            self._replay(attended)
        else:
            self._advance(attended)
        self.length[:self.rows] = np.minimum(self.length[:self.rows] + 1, self.capacity - 1)
        self.stats.steps += 1
        self.stats.row_steps += self.rows
        self.stats.live_row_steps += len(self.owner)

    def _advance(self, attended: int) -> None:
        view = self.state if self.rows == self.slots or not self.module.can_fork else first_rows(self.state, self.rows)
        logits = self.module.step(self.current[:self.rows], view, attended)
        view.pos.clamp_(max=self.capacity - 1)     # slots without an owner idle in place
        self._take(self.index[:self.rows], logits)

    def _replay(self, attended: int) -> None:
        """The same through a CUDA graph, captured once for each (rows, attended): launching some 700 kernels one by one takes
        longer than running them. A graph holds addresses; so a step reads and writes the engine's buffers, the state and the
        weights alone, and whatever gives one of those another address clears `graphs`. What it makes in between lies in one
        pool for all graphs: they never run at once, and none reads what another has left there."""
        graph = self.graphs.get((self.rows, attended))
        if graph is not None:
            graph.replay()
            return
        self._advance(attended)                    # this token is computed eagerly: libraries load, which capturing must not see
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):     # records, does not run
                self._advance(attended)
            self.graphs[self.rows, attended] = graph
        except RuntimeError as error:
            torch.cuda.set_stream(stream)          # a capture that fails leaves its own one behind
            self.captures = False
            warnings.warn(f"decoding goes on without CUDA graphs, more slowly: {str(error).splitlines()[0]}", stacklevel=2)

    def _buffers(self) -> tuple[Tensor, ...]:
        return self.current, self.count, self.limit, self.alive, self.uniform, self.out_ids, self.out_logp

    def _fitting(self, n: int) -> int:
        """Rows to compute for n live ones: n on a CPU; on a GPU the slots, a half or a quarter of them, so that few graphs are
        captured."""
        if not self.on_gpu:
            return n
        return next((r for r in (self.slots // 4, self.slots // 2) if n <= r), self.slots)

    def _collect(self) -> Iterator[tuple[Job, Sample]]:
        """Take out the rows that ended; then, with nothing waiting, move the others together."""
        if any(j.stop for j in self.owner.values()):
            self._apply_stops()
        alive = self.alive.tolist()
        ended = [s for s in self.owner if not alive[s]]
        if not ended:
            return
        at = torch.tensor(ended, device=self.device)
        counts, ids, logps = self.count[at].tolist(), self.out_ids[at].tolist(), self.out_logp[at].tolist()
        for s, n, row_ids, row_logps in zip(ended, counts, ids, logps, strict=True):
            job = self.owner.pop(s)
            yield job, self._sample(job, row_ids[:n], row_logps[:n])
        if not self.queue and self.owner and self.module.can_fork:
            self._compact()

    def _sample(self, job: Job, ids: list[int], logprobs: list[float]) -> Sample:
        eos = ids[-1] in self.ends
        text = job.opened + self._decode_text(ids[:-1] if eos else ids)
        self.stats.rows += 1
        self.stats.tokens += len(ids)
        finish = "eos" if eos else "stop" if job.stop and job.stop(text) else "length"
        return Sample(ids, logprobs, text, finish)

    def _decode_text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _apply_stops(self) -> None:
        """End each row whose `stop` says so, at the first token with which it does (the host may be some tokens behind)."""
        counts = self.count.tolist()
        for s, job in self.owner.items():
            if job.stop is None:
                continue
            ids = self.out_ids[s, :counts[s]].tolist()
            for n in range(int(self.checked[s]) + 1, counts[s] + 1):
                if ids[n - 1] not in self.ends and job.stop(job.opened + self._decode_text(ids[:n])):
                    self.count[s], self.alive[s] = n, False
                    break
            self.checked[s] = counts[s]

    def _compact(self) -> None:
        """Move the live rows to the front once they fit into three quarters of the computed ones."""
        rows = self._fitting(len(self.owner))
        if 4 * rows > 3 * self.rows:
            return
        old = sorted(self.owner)
        n = len(old)
        src, dst = torch.tensor(old, device=self.device), self.index[:n]
        self.module.fork(self.state, dst, self.state, src)
        for buffer in self._buffers():
            buffer[dst] = buffer[src]
        self.alive[n:] = False
        self.length[:n], self.checked[:n] = self.length[old], self.checked[old]
        self.owner = {new: self.owner[s] for new, s in enumerate(old)}
        self.rows = rows


# ------------------------------------------------------------------------------------------------ tuples and branches

@dataclass
class Branch:
    """One attempt: a program for one strategy, or for none (independent policies)."""
    prompt: list[int]
    shared: int                       # leading ids of the prompt that the problem's other branches share
    sample: Sample
    program: str | None               # None: the reply held no program
    strategy: str | None = None
    verdict: Any = None               # what `judge` gave: a Future while the rollout runs


@dataclass
class Tuple:
    """tau = (S, y_1..y_K), Eq. 6. A plan that does not parse has no branches and counts as K failures."""
    prompt: list[int]
    plan: Sample
    strategies: list[str] | None
    error: str | None                 # why the plan did not parse
    branches: list[Branch | None]     # K of them, filled as they end; empty without strategies
    p_pass: float | None = None       # the gate's p(Pass | x, S), Eq. 9
    valid: float | None = None        # J


def strategy_of_tokens(tokenizer, t: Tuple, k: int) -> list[int]:
    """The place 0..K-1 of the strategy that each sampled token of a plan belongs to, (T,).

    A token belongs to the last label that starts at or before it: one that holds the end of a
    strategy and the next label still belongs to the first of the two. Tokens before the first
    label, a thought too, belong to the first strategy, tokens after the last line to the last. A
    plan that does not parse has no strategies: all its tokens get place 0.
    """
    if not t.strategies:
        return [0] * len(t.plan.ids)
    # a chat template may have opened the thought in the prompt: it stands in the text, not in ids
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    opened = len(t.plan.text) - len(decode(reply_ids(t.plan)))
    starts = prompts.label_starts(t.plan.text, k)
    places, place = [], 0
    for i in range(len(t.plan.ids)):
        # a character whose bytes are not complete yet decodes to U+FFFD: it has not begun
        begin = opened + len(decode(t.plan.ids[:i]).rstrip("\ufffd"))
        while place + 1 < k and starts[place + 1] <= begin:
            place += 1
        places.append(place)
    return places


def reply_ids(sample: Sample) -> list[int]:
    """The ids of a sample without the end of the turn."""
    return sample.ids[:-1] if sample.finish == "eos" else sample.ids


class SolvePrompts:
    """Encodes solve prompts and knows how many leading ids a problem's share whatever the strategy is. Whole prompts are tokenised,
    because a prefix tokenised alone can end in another token; two that have nothing in common show where they part."""

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, problem, strategy: str) -> tuple[list[int], int]:
        """-> (ids, shared)"""
        if problem.id not in self.known:
            one, two = (prompts.encode(self.tokenizer, prompts.solve(problem, s)) for s in ("A0.", "z9!"))
            self.known[problem.id] = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
        return prompts.encode(self.tokenizer, prompts.solve(problem, strategy)), self.known[problem.id]


def sample_tuples(engine: Engine, problems: list, num_tuples: int, num_strategies: int, key: tuple, max_plan_tokens: int,
                  max_solve_tokens: int, judge: Callable[[Any, str | None], Any] | None = None,
                  think: bool = False) -> list[list[Tuple]]:
    """M tuples for each problem (Eq. 3-4) and K branches for each tuple (Eq. 5), all in one engine -> [problem][tuple].

    A branch starts to decode when its plan has ended, beside plans that have not, whatever a gate will say of it; the moment it
    ends, `judge(problem, program)` is called and what it returns becomes the branch's verdict. judge=None: plans alone (warm-up).
    think: planner, not solver, is asked to think first, as stage 1 may have taught it; a plan's text then holds the thought.
    """
    solve_prompt, opened = SolvePrompts(engine.tokenizer), prompts.thought_mark(engine.tokenizer) if think else ""
    jobs = []
    for p, problem in enumerate(problems):
        ids = prompts.encode(engine.tokenizer, prompts.plan(problem, num_strategies), think)
        jobs += [Job(ids, (*key, problem.id, m, "plan"), max_plan_tokens, tag=(p, m, None), opened=opened)
                 for m in range(num_tuples)]
    tuples: list[list] = [[None] * num_tuples for _ in problems]
    for job, sample in engine.run(jobs):
        p, m, i = job.tag
        problem = problems[p]
        if i is None:
            strategies = error = None
            try:
                strategies = prompts.parse_plan(sample.text, num_strategies)
            except prompts.PlanError as e:
                error = str(e)
            tuples[p][m] = Tuple(job.prompt, sample, strategies, error, [None] * num_strategies if strategies and judge else [])
            if strategies and judge:
                encoded = [solve_prompt(problem, s) for s in strategies]
                engine.push(Job(ids, (*key, problem.id, m, b), max_solve_tokens, shared, tag=(p, m, b))
                            for b, (ids, shared) in enumerate(encoded))
        else:
            program = prompts.extract_code(sample.text, problem.fn_name)
            tuples[p][m].branches[i] = Branch(job.prompt, job.shared, sample, program, tuples[p][m].strategies[i],
                                              judge(problem, program))
    return tuples


def sample_attempts(engine: Engine, problems: list, texts: list[list[str]], key: tuple, max_solve_tokens: int,
                    judge: Callable[[Any, str | None], Any]) -> list[list[Branch]]:
    """Attempts without a plan (Eq. 2): one for each user turn in texts[problem], each with its own stream -> [problem][attempt]."""
    jobs = []
    for p, problem in enumerate(problems):
        for n, text in enumerate(texts[p]):
            jobs.append(Job(prompts.encode(engine.tokenizer, text), (*key, problem.id, n, "attempt"), max_solve_tokens, tag=(p, n)))
    attempts: list[list] = [[None] * len(t) for t in texts]
    for job, sample in engine.run(jobs):
        p, n = job.tag
        program = prompts.extract_code(sample.text, problems[p].fn_name)
        attempts[p][n] = Branch(job.prompt, len(job.prompt), sample, program, None, judge(problems[p], program))
    return attempts


def sample(module, tokenizer, texts: list[str | list[int]], n: int = 1, max_new_tokens: int = 512, temperature: float = 1.0,
           seed: int = 0, slots: int = 64, top_k: int = 0, top_p: float = 1.0) -> list[list[Sample]]:
    """n samples for each prompt (a user turn's text, or token ids), in order."""
    encoded = [prompts.encode(tokenizer, t) if isinstance(t, str) else list(t) for t in texts]
    jobs = [Job(ids, (seed, i, j), max_new_tokens, tag=(i, j)) for i, ids in enumerate(encoded) for j in range(n)]
    found: list[list] = [[None] * n for _ in encoded]
    engine = Engine(module, tokenizer, slots=min(slots, max(1, len(jobs))), temperature=temperature, top_k=top_k, top_p=top_p)
    for job, one in engine.run(jobs):
        found[job.tag[0]][job.tag[1]] = one
    return found
