"""Sampling: batched, KV-cached, prefix-shared. Tuples first, their branches as they come (Eq. 3-7).

    engine = Engine(module, tokenizer, slots=256, temperature=0.7)
    for job, sample in engine.run(plan_jobs):       # rows come back as they end, in no fixed order
        engine.push(follow_up_jobs(sample))         # these join the rows that are still decoding

A CPPO step samples M tuples from one plan prompt and M*K branches from solve prompts that differ
only in their last line. Three ideas make that cheap, all by copying rows of the state
(`module.fork`):

- prefix sharing: a prompt, or what many prompts share, runs once and is forked into every row;
- refill: a finished row's slot goes to the next job, so nobody waits for the longest row;
- compaction: when no job waits, live rows move together and the batch shrinks.

A row's sample depends on its own random stream (`Job.key`) and its own logits alone. So neighbours,
slots and order of admission do not change a sample, except through the rounding of batched matrix
products. On a CPU with one thread, the same jobs in the same number of slots give the same bits.

Shapes: B slots, C longest reply of the run in tokens, V vocabulary, T prompt positions.
"""

import hashlib
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

import prompts

BUCKET = 64             # attention reads a multiple of this many positions
PREFILL_TOKENS = 16384  # positions that one prefill may hold
POLL_STEPS = 8          # on a GPU the host reads the `alive` flags every so many tokens
ENOUGH = 8              # jobs that are worth a prefill of their own while others decode
PATIENCE = 16           # steps after which fewer are prefilled, too
GRAPH_BUCKET = 512      # positions per captured step; wider: fewer graphs, more wasted reads
COMPILE = ("auto", "graphs", "off")     # what `Engine` may do with a decoding step on a GPU
WORDS = 256             # of a block of the vocabulary, when a token is drawn


class Abandoned(Exception):
    """Raised inside a rollout when `stop_flag()` turns true, e.g. on SIGTERM. Nothing is kept."""


@dataclass
class Sample:
    """One reply. `ids` go to the loss as they are; `text` is for parsers and the verifier.

    `logprobs` are those of the distribution that was sampled from: temperature applied, ids beyond
    the tokenizer's excluded.
    """
    ids: list[int]              # sampled tokens; the end-of-turn token is kept, and never added
    logprobs: list[float]       # one per id
    text: str                   # without the end-of-turn token
    finish: str                 # "eos" | "length" | "stop"


@dataclass
class Job:
    prompt: list[int]
    key: tuple                  # (seed, step, problem id, tuple, branch): names the random stream
    max_new_tokens: int
    shared: int | None = None   # leading ids that other jobs share (None: all); only for speed
    tag: Any = None             # the caller's, comes back with the job
    opened: str = ""            # the part of the reply that the prompt has begun, e.g. a thought
    stop: Callable[[str], bool] | None = None   # ends the row at the first token with stop(text);
                                # once true it stays true: the host asks every few tokens


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
    """n uniforms in [0, 1), float32, of the stream that `key` names: equal on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(stream).random(n, dtype=np.float32)


def end_of_turn(tokenizer) -> int | None:
    """The token that ends a reply: the one that the chat template writes after it, else the
    tokenizer's own; None if it has neither."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "REPLY"}]
        tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("REPLY")[2]
        after = tokenizer(tail, add_special_tokens=False)["input_ids"]
        if after and is_special(tokenizer, after[0]):
            return after[0]
    return tokenizer.eos_token_id


def is_special(tokenizer, i: int) -> bool:
    # `all_special_ids` lists the named roles only; other special tokens are among the added ones
    if i in tokenizer.all_special_ids:
        return True
    added = tokenizer.added_tokens_decoder
    return i in added and added[i].special


def end_ids(module, tokenizer) -> set[int]:
    """Every id that ends a turn: the checkpoint's, the tokenizer's, and its chat template's.

    They differ in released checkpoints (Qwen3.5: config 248044, template 248046), and with one
    missing, replies run on.
    """
    ids = {*module.eos_ids, tokenizer.eos_token_id, end_of_turn(tokenizer)}
    return ids - {None}


def draw(logits: Tensor, u: Tensor, temperature: float, top_k: int = 0,
         top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: logits (B, V), u (B,) in [0, 1) -> ids (B,), log-probs (B,).

    Training samples from the full softmax; top_k, top_p and temperature 0 (greedy) are for
    evaluation.
    """
    logits = logits.float()
    if temperature == 0:
        logp = logits.log_softmax(-1)
        ids = logits.argmax(-1, keepdim=True)
        return ids.squeeze(1), logp.gather(1, ids).squeeze(1)
    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs           # 0 for the first one, which always stays
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(1, order, ordered)
    logp = logits.log_softmax(-1)
    # In two levels: a block of words, then a word in it. One sum along 248,320 words is slow.
    blocks = pad(logp.exp(), (0, -logp.shape[-1] % WORDS)).unflatten(-1, (-1, WORDS))
    mass = blocks.sum(-1)                                   # (B, V / WORDS)
    cdf = mass.cumsum(-1)
    target = u.unsqueeze(1) * cdf[:, -1:]
    block = first_above(cdf, target)
    target = (target - (cdf - mass).gather(1, block)).clamp(min=0)
    cdf = blocks.take_along_dim(block.unsqueeze(-1), 1).squeeze(1).cumsum(-1)   # (B, WORDS)
    ids = block * WORDS + first_above(cdf, target)
    return ids.squeeze(1), logp.gather(1, ids).squeeze(1)


def first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """The first place (B, 1) where cdf (B, n) exceeds target (B, 1), so none of probability 0;
    where rounding leaves none, the last that has a probability."""
    place = torch.searchsorted(cdf, target, right=True)
    return torch.minimum(place, torch.searchsorted(cdf, cdf[:, -1:].contiguous()))


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --------------------------------------------------------------------------------------- the engine

class Seat(NamedTuple):
    """A job on its way into a slot."""
    slot: int
    job: Job
    prefix: tuple           # the part of its prompt that is run once for all who share it

    @property
    def rest(self) -> list[int]:
        return self.job.prompt[len(self.prefix):]


def prefix_of(job: Job) -> tuple:
    return tuple(job.prompt[:job.shared or None])


class Engine:
    """A stream of jobs through a fixed number of slots. Its state is allocated per run.

    It asks nine things of a module, beside that it is a torch module. `model.Model` and
    `lib.adapter.Adapter` have them; tests/test_rollout.py wraps a Hugging Face model in 30 lines.

    - config: has `vocab_size` and perhaps `max_position_embeddings`
    - eos_ids: set of ids that end a turn
    - can_fork: False if a state takes one segment, of whole prompts, in all its rows
    - can_capture: True if a CUDA graph may record `step`. On a GPU, `model.Model` has more to offer
      (`limit_matters`, `decode_block`); a module need not
    - new_state(rows, capacity) -> a state of empty rows, each with room for `capacity` tokens
    - grow(state, capacity): room for more tokens in each row, in place
    - fork(dst, dst_rows, src, src_rows): dst[dst_rows[i]] = src[src_rows[i]]
    - segment(ids (B, T), lengths (B,), state of B rows): run right-padded ids on from what each row
      has read -> logits (B, V) after its last
    - step(ids (B,), state, limit): one more token for each of the first B rows -> logits (B, V);
      live rows have read fewer than `limit` tokens
    """

    def __init__(self, module, tokenizer, slots: int = 64, temperature: float = 1.0,
                 top_k: int = 0, top_p: float = 1.0, stop_flag: Callable[[], bool] = lambda: False,
                 progress: Callable[["Engine"], None] | None = None, compile: str = "auto"):
        """compile, on a GPU: "auto" compiles the step and records it in CUDA graphs, "graphs" only
        records it, "off" does neither."""
        if slots < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"slots {slots}, temperature {temperature}, top-p {top_p}: slots must "
                             f"be 1 or more, temperature 0 or more, top-p in (0, 1]")
        words = len(tokenizer)
        if words > module.config.vocab_size:
            raise ValueError(f"the tokenizer has {words} words and the model "
                             f"{module.config.vocab_size}: they do not belong together")
        self.module, self.tokenizer, self.slots = module, tokenizer, slots
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.stop_flag, self.progress = stop_flag, progress
        self.device = next(module.parameters()).device
        self.on_gpu = self.device.type == "cuda"
        self.captures = False
        self.sample_token = self._sample_token
        # Models pad their vocabulary beyond the tokenizer's words; such ids are never sampled.
        self.vocab = words
        self.ends = end_ids(module, tokenizer)
        self.is_end = torch.zeros(words, dtype=torch.bool, device=self.device)
        self.is_end[[i for i in self.ends if i < words]] = True
        self.stats = Stats()
        self.queue: deque[Job] = deque()
        # {prefix: jobs that wait for it, or decode behind it: their siblings may come yet}
        self.needs: Counter[tuple] = Counter()
        if self.on_gpu and compile != "off":
            self._warm_up(compile)

    def push(self, jobs: Iterable[Job]) -> None:
        """Queue jobs; also while `run` is under way."""
        context = getattr(self.module.config, "max_position_embeddings", None)
        for job in jobs:
            prompt, reply = len(job.prompt), job.max_new_tokens
            if not prompt or reply < 1:
                raise ValueError(f"job {job.key}: needs a prompt and max_new_tokens of 1 or more, "
                                 f"not {prompt} and {reply}")
            if context and prompt + reply > context:
                raise ValueError(f"job {job.key}: a prompt of {prompt} tokens and a reply of up to "
                                 f"{reply} exceed the model's context of {context}; shorten either")
            self.queue.append(job)
            self.needs[prefix_of(job)] += 1

    @torch.inference_mode()
    def run(self, jobs: Iterable[Job],
            at_once: int | None = None) -> Iterator[tuple[Job, Sample]]:
        """Yields (job, sample) as rows end, until the queue is empty and every row has ended.

        at_once: rows that can decode together at most, those of jobs pushed later included. Slots
        beyond it are not allocated.
        """
        self.queue.clear()
        self.needs.clear()
        self.push(jobs)
        self._allocate(min(self.slots, at_once or self.slots))
        started = time.perf_counter()
        while self.queue or self.owner:
            if self.stop_flag():
                raise Abandoned
            self._admit()
            for _ in range(POLL_STEPS if self.on_gpu else 1):
                self._decode()
            done = list(self._collect())
            # Stop the clock while the caller works.
            self.stats.seconds += time.perf_counter() - started
            if self.progress:
                self.progress(self)
            yield from done
            started = time.perf_counter()
        # The update needs this memory until the next rollout.
        self.graphs.clear()
        del self.state, self.pool

    # ---- buffers, indexed by slot; only the first `self.rows` slots are computed

    def _allocate(self, B: int) -> None:
        zeros = partial(torch.zeros, device=self.device)
        self.room = B                                           # slots of this run
        self.rows = self.capacity = self.reply = 0
        self.steps = self.waiting_since = 0
        self.state = None
        self.pool: dict[tuple, tuple] = {}                      # prefix -> (state, row, logits)
        self.graphs: dict[tuple, torch.cuda.CUDAGraph] = {}     # (rows, attended) -> a step
        # on the host
        self.owner: dict[int, Job] = {}                         # slot -> its job
        self.length = np.zeros(B, dtype=np.int64)               # positions used: needs no sync
        self.checked = np.zeros(B, dtype=np.int64)              # tokens that `stop` has seen
        # on the device
        self.index = torch.arange(B, device=self.device)
        self.current = zeros(B, dtype=torch.long)               # the last sampled token
        self.count = zeros(B, dtype=torch.long)                 # tokens sampled so far
        self.limit = zeros(B, dtype=torch.long)
        self.alive = zeros(B, dtype=torch.bool)
        self.uniform = zeros(B, 0)                              # (B, C)
        self.out_ids = zeros(B, 1, dtype=torch.long)            # (B, C + 1): the last column takes
        self.out_logp = zeros(B, 1)                             # what ended rows would write

    def _make_room(self) -> None:
        """Let the buffers hold every queued job. Once or twice per run."""
        longest = max(len(job.prompt) + job.max_new_tokens for job in self.queue)
        longest = round_up(longest, BUCKET)
        reply = max(job.max_new_tokens for job in self.queue)
        if reply > self.reply:
            grow = (0, reply - self.reply)
            self.uniform = pad(self.uniform, grow)
            self.out_ids, self.out_logp = pad(self.out_ids, grow), pad(self.out_logp, grow)
            self.reply = reply
            self.graphs.clear()             # a captured step holds the addresses of the buffers
        if longest > self.capacity:
            self.capacity = longest
            self.graphs.clear()
            if self.module.can_fork and self.state is None:
                self.state = self.module.new_state(self.room, longest)
            elif self.module.can_fork:
                self.module.grow(self.state, longest)

    # ---- admission: prefill what is shared once, fork it, run the rest of each prompt

    def _admit(self) -> None:
        free = [slot for slot in range(self.room) if slot not in self.owner]
        n = min(len(free), len(self.queue))
        if n == 0:
            self.waiting_since = self.steps
            return
        # A prefill has a fixed cost, so a few jobs wait for more; but not for long, since the row
        # that ends last is often one that began late.
        waited = self.steps - self.waiting_since
        if self.owner and n < min(ENOUGH, self.room // 8) and waited < PATIENCE:
            return
        if not self.module.can_fork and self.owner:
            return                          # such a state is filled as a whole: wave after wave
        self._make_room()
        seats = []
        for slot in free[:n]:
            job = self.queue.popleft()
            seats.append(Seat(slot, job, prefix_of(job)))
        self.waiting_since = self.steps
        if not self.module.can_fork:
            self.state = self.module.new_state(n, self.capacity)
            self._seat(seats, self._segment([seat.job.prompt for seat in seats], self.state))
            self.rows = n
            return
        # Neighbours in a prefill have similar lengths: less padding.
        seats.sort(key=lambda seat: len(seat.job.prompt))
        while seats:
            most = max(1, PREFILL_TOKENS // len(seats[-1].job.prompt))
            self._seat_forked(seats[-most:])
            seats = seats[:-most]
        self.rows = max(self.rows, self._rows_for(max(self.owner) + 1))

    def _seat_forked(self, seats: list[Seat]) -> None:
        prefixes = dict.fromkeys(seat.prefix for seat in seats)
        self._prefill([prefix for prefix in prefixes if prefix not in self.pool])
        whole = [seat for seat in seats if not seat.rest]
        if whole:
            self._seat(whole, self._fork_prefixes(whole, self.state, [s.slot for s in whole]))
        begun = [seat for seat in seats if seat.rest]
        if begun:
            longest = max(len(seat.job.prompt) for seat in begun)
            rows = list(range(len(begun)))
            state = self.module.new_state(len(begun), longest)
            self._fork_prefixes(begun, state, rows)
            logits = self._segment([seat.rest for seat in begun], state)
            self._fork(self.state, [seat.slot for seat in begun], state, rows)
            self._seat(begun, logits)
        for seat in whole:
            self._release(seat.prefix)

    def _release(self, prefix: tuple) -> None:
        """A job needs it no longer. A prefix leaves the pool with the last such job."""
        self.needs[prefix] -= 1
        if not self.needs[prefix]:
            del self.needs[prefix]
            self.pool.pop(prefix, None)

    def _prefill(self, prefixes: list[tuple]) -> None:
        """Run each prefix once; its state and its last logits stay in the pool."""
        prefixes = sorted(prefixes, key=len)
        while prefixes:
            most = max(1, PREFILL_TOKENS // len(prefixes[-1]))
            batch, prefixes = prefixes[-most:], prefixes[:-most]
            state = self.module.new_state(len(batch), len(batch[-1]))
            logits = self._segment(batch, state)
            for row, prefix in enumerate(batch):
                self.pool[prefix] = (state, row, logits[row])

    def _fork_prefixes(self, seats: list[Seat], dst, dst_rows: list[int]) -> Tensor:
        """Copy each seat's prefix from the pool into its row of dst -> last logits (n, V)."""
        logits, copies = [], {}
        for seat, dst_row in zip(seats, dst_rows, strict=True):
            state, row, last = self.pool[seat.prefix]
            _, into, rows = copies.setdefault(id(state), (state, [], []))
            into.append(dst_row)
            rows.append(row)
            logits.append(last)
        for state, into, rows in copies.values():
            self._fork(dst, into, state, rows)
        return torch.stack(logits)

    def _fork(self, dst, dst_rows: list[int], src, src_rows: list[int]) -> None:
        rows = torch.tensor([dst_rows, src_rows], device=self.device)
        self.module.fork(dst, rows[0], src, rows[1])

    def _segment(self, rows: list, state) -> Tensor:
        """Run lists of ids, one per row of the state -> logits (n, V) after each row's last id."""
        lengths = torch.tensor([len(ids) for ids in rows])
        padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for row, ids in zip(padded, rows, strict=True):
            row[:len(ids)] = torch.tensor(ids)
        self.stats.prefill_tokens += int(lengths.sum())
        return self.module.segment(padded.to(self.device), lengths.to(self.device), state)

    def _seat(self, seats: list[Seat], logits: Tensor) -> None:
        """The prompts are in the state: give rows their streams and sample their first tokens."""
        stream = np.zeros((len(seats), self.reply), dtype=np.float32)
        for row, (slot, job, _) in zip(stream, seats, strict=True):
            row[:job.max_new_tokens] = uniforms(job.key, job.max_new_tokens)
            self.owner[slot] = job
            self.length[slot], self.checked[slot] = len(job.prompt), 0
        limits = [seat.job.max_new_tokens for seat in seats]
        at = torch.tensor([seat.slot for seat in seats], device=self.device)
        self.uniform[at] = torch.from_numpy(stream).to(self.device)
        self.limit[at] = torch.tensor(limits, device=self.device)
        self.count[at], self.alive[at] = 0, True
        self._sample_token(at, logits)

    # ---- decoding: tensors only, so that a GPU never waits for the host between two tokens

    def _sample_token(self, at: Tensor, logits: Tensor) -> None:
        """Sample one token for the rows `at` (n,) from logits (n, V). Ended rows do not change."""
        count, alive = self.count[at], self.alive[at]
        u = self.uniform[at, count.clamp(max=self.reply - 1)]
        ids, logp = draw(logits[:, :self.vocab], u, self.temperature, self.top_k, self.top_p)
        column = torch.where(alive, count, self.reply)      # ended rows write to the last column
        self.out_ids[at, column], self.out_logp[at, column] = ids, logp
        self.current[at] = ids
        self.count[at] = count + alive
        self.alive[at] = alive & ~self.is_end[ids] & (count + 1 < self.limit[at])

    def _decode(self) -> None:
        """One token for every row."""
        if not self.owner:
            return
        longest = int(self.length[list(self.owner)].max())
        bucket = GRAPH_BUCKET if self.captures else BUCKET
        attended = min(round_up(longest + 1, bucket), self.capacity)
        if self.captures and not getattr(self.module, "limit_matters", True):
            attended = self.capacity            # one graph for all lengths
        if self.captures:
            self._replay(attended)
        else:
            self._advance(attended)
        self.length[:self.rows] = np.minimum(self.length[:self.rows] + 1, self.capacity - 1)
        self.steps += 1
        self.stats.steps += 1
        self.stats.row_steps += self.rows
        self.stats.live_row_steps += len(self.owner)

    def _advance(self, attended: int) -> None:
        logits = self.module.step(self.current[:self.rows], self.state, attended)
        self.sample_token(self.index[:self.rows], logits)

    def _replay(self, attended: int) -> None:
        """`_advance` through a CUDA graph, captured once per (rows, attended): launching hundreds
        of kernels one by one takes longer than running them.

        A graph holds addresses. So a step touches only the engine's buffers, the state and the
        weights, and whatever moves one of those clears `graphs`. Temporaries of all graphs share
        one pool: graphs never run at once, and none reads what another has left.
        """
        graph = self.graphs.get((self.rows, attended))
        if graph is not None:
            graph.replay()
            return
        self._advance(attended)     # run once eagerly: lazy loading is illegal during capture
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        try:
            # records, does not run
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._advance(attended)
        except RuntimeError as error:
            # No going on from here: torch 2.11 leaves its allocator in the middle of the capture.
            raise ValueError(f"the decoding step cannot be captured in a CUDA graph: pass "
                             f"--compile off ({first_line(error)})") from error
        self.graphs[self.rows, attended] = graph

    def _warm_up(self, compile: str) -> None:
        """Compile and capture a step, and decode a few tokens: what cannot work fails before the
        first job, and what works is not waited for later."""
        started, notes = time.perf_counter(), []
        jobs = [Job([0, 0], ("warm-up", i), 2 * POLL_STEPS) for i in range(8)]
        if compile == "auto" and hasattr(self.module, "decode_block"):
            try:
                notes = self._compile()
                list(self.run(jobs, len(jobs)))
            except Exception as error:      # of the compiler: any kind
                self.module.decode_block = type(self.module).decode_block
                self.sample_token = self._sample_token
                notes.append(f"decoding with a step that is not compiled: {first_line(error)}")
        self.captures = self.module.can_capture
        list(self.run(jobs, len(jobs)))
        self.stats = Stats()
        notes.append(f"decoding is ready after {time.perf_counter() - started:.0f} s (--compile "
                     f"graphs: sooner, for slower steps)")
        print("\n".join(notes), file=sys.stderr, flush=True)

    def _compile(self) -> list[str]:
        """Let blocks and sampling be compiled, for any number of rows, and blocks use the kernels
        that work here -> what does not."""
        from lib import kernels         # here: this file copies alone
        notes = kernels.speed_up(self.module)
        block = type(self.module.blocks[0])
        # Block by block: two kinds of block are compiled once each, not 24 of them.
        self.module.decode_block = torch.compile(block.run, dynamic=True)
        self.sample_token = torch.compile(self._sample_token, dynamic=True)
        return notes

    def _rows_for(self, n: int) -> int:
        """Rows to compute for n live ones. On a CPU work follows rows; on a GPU only the slots, a
        half or a quarter of them, so that few graphs are captured."""
        if self.on_gpu:
            for rows in (self.room // 4, self.room // 2):
                if n <= rows:
                    return rows
            return self.room
        return n

    # ---- rows that have ended

    def _collect(self) -> Iterator[tuple[Job, Sample]]:
        """Take out the rows that ended; then, with nothing waiting, move the others together."""
        if any(job.stop for job in self.owner.values()):
            self._apply_stops()
        alive = self.alive.tolist()
        ended = [slot for slot in self.owner if not alive[slot]]
        if not ended:
            return
        at = torch.tensor(ended, device=self.device)
        counts, ids = self.count[at].tolist(), self.out_ids[at].tolist()
        logprobs = self.out_logp[at].tolist()
        for i, slot in enumerate(ended):
            job, n = self.owner.pop(slot), counts[i]
            if len(prefix_of(job)) < len(job.prompt):
                self._release(prefix_of(job))
            yield job, self._make_sample(job, ids[i][:n], logprobs[i][:n])
        if not self.queue and self.owner and self.module.can_fork:
            self._compact()

    def _make_sample(self, job: Job, ids: list[int], logprobs: list[float]) -> Sample:
        self.stats.rows += 1
        self.stats.tokens += len(ids)
        if ids[-1] in self.ends:
            return Sample(ids, logprobs, self._text(job, ids[:-1]), "eos")
        text = self._text(job, ids)
        stopped = job.stop is not None and job.stop(text)
        return Sample(ids, logprobs, text, "stop" if stopped else "length")

    def _text(self, job: Job, ids: list[int]) -> str:
        return job.opened + self.tokenizer.decode(ids, skip_special_tokens=False,
                                                  clean_up_tokenization_spaces=False)

    def _apply_stops(self) -> None:
        """End each row at the first token with which its `stop` holds: the host may be some tokens
        behind."""
        slots = [slot for slot, job in self.owner.items() if job.stop]
        at = torch.tensor(slots, device=self.device)
        counts = self.count[at].tolist()
        rows = self.out_ids[at, :max(counts)].tolist()
        for slot, count, row in zip(slots, counts, rows, strict=True):
            job, first = self.owner[slot], int(self.checked[slot]) + 1
            self.checked[slot] = count
            if not self._stops(job, row[:count]):       # nor did it at any token before
                continue
            n = next(n for n in range(first, count + 1) if self._stops(job, row[:n]))
            self.count[slot], self.alive[slot] = n, False

    def _stops(self, job: Job, ids: list[int]) -> bool:
        """Whether the row would stop here. The end of a turn is no text: see `_make_sample`."""
        text = ids[:-1] if ids[-1] in self.ends else ids
        return job.stop(self._text(job, text))

    def _compact(self) -> None:
        """Move the live rows to the front once they fit into 3/4 of the computed ones."""
        rows = self._rows_for(len(self.owner))
        if 4 * rows > 3 * self.rows:
            return
        old = sorted(self.owner)
        n = len(old)
        src, dst = torch.tensor(old, device=self.device), self.index[:n]
        self.module.fork(self.state, dst, self.state, src)
        for buffer in (self.current, self.count, self.limit, self.alive, self.uniform,
                       self.out_ids, self.out_logp):
            buffer[dst] = buffer[src]
        self.alive[n:] = False
        self.length[:n], self.checked[:n] = self.length[old], self.checked[old]
        self.owner = {new: self.owner[slot] for new, slot in enumerate(old)}
        self.rows = rows


# ------------------------------------------------------------------------------ tuples and branches

@dataclass
class Branch:
    """One attempt: a program for one strategy, or for none (independent policies)."""
    prompt: list[int]
    shared: int                 # leading ids of the prompt that the problem's other branches share
    sample: Sample
    program: str | None         # None: the reply held no program
    strategy: str | None = None
    verdict: Any = None         # what `verify` returned: a Future while the rollout runs


@dataclass
class Tuple:
    """tau = (S, y_1..y_K), Eq. 6. A plan that does not parse has no branches: K failures."""
    prompt: list[int]
    plan: Sample
    strategies: list[str] | None
    error: str | None                   # why the plan did not parse
    branches: list[Branch | None]       # K of them, filled as they end; empty without strategies
    p_pass: float | None = None         # the gate's p(Pass | x, S), Eq. 9
    valid: float | None = None          # J


class Place(NamedTuple):
    """Which row of a step a job is: indices, not ids."""
    problem: int
    tuple: int
    branch: int | None = None           # None: the tuple's plan


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
    decode = partial(tokenizer.decode, skip_special_tokens=False,
                     clean_up_tokenization_spaces=False)
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
    """Encodes solve prompts and knows how many leading ids those of a problem share.

    Whole prompts are tokenised, because a prefix tokenised alone can end in another token. Two
    strategies without a common beginning show where the prompts part.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.shared: dict[str, int] = {}        # by problem id

    def __call__(self, problem, strategy: str) -> tuple[list[int], int]:
        """-> (ids, shared)"""
        if problem.id not in self.shared:
            one, two = self.encode(problem, "A0."), self.encode(problem, "z9!")
            shared = 0
            while shared < min(len(one), len(two)) and one[shared] == two[shared]:
                shared += 1
            self.shared[problem.id] = shared
        return self.encode(problem, strategy), self.shared[problem.id]

    def encode(self, problem, strategy: str) -> list[int]:
        return prompts.encode(self.tokenizer, prompts.solve(problem, strategy))


def sample_tuples(engine: Engine, problems: list, num_tuples: int, num_strategies: int, key: tuple,
                  max_plan_tokens: int, max_solve_tokens: int,
                  verify: Callable[[Any, str | None], Any] | None = None,
                  think: bool = False) -> list[list[Tuple]]:
    """M tuples per problem (Eq. 3-4) and K branches per tuple (Eq. 5) -> [problem][tuple].

    A branch starts to decode when its plan has ended, beside plans that have not, whatever a gate
    will decide on it. When it ends, `verify(problem, program)` is called; what that returns becomes
    the branch's verdict. verify=None: plans alone (warm-up). think: the planner thinks first, as
    stage 1 may have taught it, and a plan's text holds the thought; the solver does not.
    """
    solve_prompt = SolvePrompts(engine.tokenizer)
    opened = prompts.thought_mark(engine.tokenizer) if think else ""
    jobs = []
    for p, problem in enumerate(problems):
        ids = prompts.encode(engine.tokenizer, prompts.plan(problem, num_strategies), think)
        for m in range(num_tuples):
            stream = (*key, problem.id, m, "plan")
            jobs.append(Job(ids, stream, max_plan_tokens, tag=Place(p, m), opened=opened))
    tuples: list[list] = [[None] * num_tuples for _ in problems]
    rows = len(jobs) * (1 if verify is None else num_strategies)    # a plan, or its branches
    for job, sample in engine.run(jobs, rows):
        p, m, k = job.tag
        problem = problems[p]
        if k is None:
            t = tuples[p][m] = parse_tuple(job.prompt, sample, num_strategies)
            if t.strategies is None or verify is None:
                continue
            t.branches = [None] * num_strategies
            for k, strategy in enumerate(t.strategies):
                ids, shared = solve_prompt(problem, strategy)
                stream = (*key, problem.id, m, k)
                engine.push([Job(ids, stream, max_solve_tokens, shared, Place(p, m, k))])
        else:
            t = tuples[p][m]
            t.branches[k] = make_branch(job, sample, problem, t.strategies[k], verify)
    return tuples


def parse_tuple(prompt: list[int], plan: Sample, num_strategies: int) -> Tuple:
    try:
        strategies = prompts.parse_plan(plan.text, num_strategies)
    except prompts.PlanError as error:
        return Tuple(prompt, plan, None, str(error), [])
    return Tuple(prompt, plan, strategies, None, [])


def make_branch(job: Job, sample: Sample, problem, strategy: str | None,
                verify: Callable[[Any, str | None], Any]) -> Branch:
    program = prompts.extract_code(sample.text, problem.fn_name)
    shared = len(job.prompt) if job.shared is None else job.shared
    return Branch(job.prompt, shared, sample, program, strategy, verify(problem, program))


def sample_attempts(engine: Engine, problems: list, texts: list[list[str]], key: tuple,
                    max_solve_tokens: int,
                    verify: Callable[[Any, str | None], Any]) -> list[list[Branch]]:
    """Attempts without a plan (Eq. 2), one per user turn in texts[problem], each with its own
    stream -> [problem][attempt]."""
    jobs = []
    for p, problem in enumerate(problems):
        for n, text in enumerate(texts[p]):
            ids = prompts.encode(engine.tokenizer, text)
            jobs.append(Job(ids, (*key, problem.id, n, "attempt"), max_solve_tokens, tag=(p, n)))
    attempts: list[list] = [[None] * len(turns) for turns in texts]
    for job, sample in engine.run(jobs, len(jobs)):
        p, n = job.tag
        attempts[p][n] = make_branch(job, sample, problems[p], None, verify)
    return attempts


def sample(module, tokenizer, texts: list[str | list[int]], n: int = 1, max_new_tokens: int = 512,
           temperature: float = 1.0, seed: int = 0, slots: int = 64, top_k: int = 0,
           top_p: float = 1.0) -> list[list[Sample]]:
    """n samples for each prompt (a user turn's text, or token ids), in order."""
    jobs = []
    for i, text in enumerate(texts):
        ids = prompts.encode(tokenizer, text) if isinstance(text, str) else list(text)
        for j in range(n):
            jobs.append(Job(ids, (seed, i, j), max_new_tokens, tag=(i, j)))
    engine = Engine(module, tokenizer, slots, temperature, top_k, top_p)
    samples: list[list] = [[None] * n for _ in texts]
    for job, one in engine.run(jobs, len(jobs)):
        i, j = job.tag
        samples[i][j] = one
    return samples
