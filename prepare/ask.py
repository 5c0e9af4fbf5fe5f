"""Ask a model, on this machine or behind an endpoint, and keep every answer.

    responder = Responder(Endpoint("http://host/v1#model", key), Cache("corpora/answers"))
    replies = responder.ask(texts)                  # in order; None where there was no answer
    verdicts = responder.ask_parsed(texts, parse, counts, "judge")

Every answer is kept on disk under the hash of its request (model, options, text, attempt; not the
host). A run that was cut off continues from there, and a finished one gives the same again without
a model. Only requests under way at the cut are paid for twice.
"""

import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import prompts
from lib import files
from lib.errors import UserError

T = TypeVar("T")
ATTEMPTS = 3                # how often a text is asked whose replies cannot be parsed
FIRST_WAIT = 1.0            # seconds before a failed request is repeated, then twice that, ...
LONGEST_WAIT = 60.0
GIVE_UP = 8                 # failed requests before the first answer: then nobody is there
REPEAT_TEMPERATURE = 0.7    # of a greedy judge asked again because its reply could not be used
MAX_REPLY_BYTES = 16 << 20
TIMEOUT = 600               # seconds to the first byte of a reply, and then to its last
RETRIED = {408, 409, 425, 429}      # HTTP states that pass, beside 5xx
UNFIT = {400, 413, 422}     # a wrong option, but also one text that is too long or against rules


class Unfit(UserError):
    """A text that the server refuses. Where it takes others, that counts as an empty answer."""


class BadReply(Exception):
    """A reply that is not a chat completion; the request is repeated."""


Reply = str | Unfit | None              # None: no answer after all retries


# ----------------------------------------------------------------------------------------------
# An endpoint

class Endpoint:
    """An OpenAI-compatible server. `answer` is called from several threads at a time."""

    def __init__(self, spec: str, key: str | None = None, options: dict | None = None,
                 concurrency: int = 8, timeout: float = TIMEOUT, retries: int = 6,
                 first_wait: float = FIRST_WAIT):
        url, mark, name = spec.partition("#")
        if not mark or not name:
            raise UserError(f"{spec!r} names no model: write it as {url.rstrip('/')}#model")
        self.url = url.rstrip("/") + "/chat/completions"
        self.key = (key or "").strip()
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.first_wait = retries, first_wait
        # An option that is null is not sent: some servers refuse a temperature, or call max_tokens
        # otherwise.
        given = {"temperature": 0.7, "max_tokens": 2048} | (options or {})
        self.request = {"model": name} | {k: v for k, v in given.items() if v is not None}
        self.identity = self.request    # not the host: the same model elsewhere answers the same
        self.trouble = "no request yet"     # the last one, for the message when nobody answers
        # Set when the caller leaves, so that threads that wait for a retry end.
        self.stopped = threading.Event()

    def answers(self, texts: Sequence[str], attempt: int,
                save: Callable[[str, str], None]) -> Iterator[tuple[int, Reply]]:
        """(place, reply) as they come. UserError if the server refuses the request as such.

        A thread saves an answer before it asks for the next, so that a kill costs no more than
        what is under way.
        """
        def answer_and_save(text: str) -> Reply:
            try:
                reply = self.answer(text, attempt)
            except Unfit as error:
                return error
            if reply is not None:
                save(text, reply)
            return reply

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            places = {pool.submit(answer_and_save, text): i for i, text in enumerate(texts)}
            for future in as_completed(places):
                yield places[future], future.result()
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, text: str, attempt: int) -> str | None:
        """One reply, after retries; None if all failed."""
        body = {**self.request, "messages": [{"role": "user", "content": text}]}
        if attempt:
            # Another answer than the last. Not in the first attempt: not every server knows seeds.
            body["seed"] = attempt
            body["temperature"] = body.get("temperature") or REPEAT_TEMPERATURE
        wait = self.first_wait
        for turn in range(self.retries + 1):
            # a random part, so that not all threads come back at once
            if turn and self.stopped.wait(wait * (1 + random.random() / 4)):
                return None
            if turn:
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                return self.post(body)
            except urllib.error.HTTPError as error:
                self.check_status(error)
                wait = max(wait, retry_after(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError, BadReply) as error:
                # cut, timed out, no JSON, or a header with a character that none may have
                self.note(f"{type(error).__name__}: {error}")
        return None

    def post(self, body: dict) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return content_of(self.read(response))

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """A whole reply within the time limit. A server may also send a byte now and then for
        ever, which the socket's time limit does not notice."""
        begun, reply = time.monotonic(), b""
        while part := response.read1(1 << 16):
            reply += part
            if time.monotonic() - begun > self.timeout or len(reply) > MAX_REPLY_BYTES:
                raise TimeoutError("a reply without end")
        return reply

    def check_status(self, error: urllib.error.HTTPError) -> None:
        """Return for a state that may pass; UserError for one that stays."""
        try:
            message = " ".join(error.read(300).decode(errors="replace").split())
        except (OSError, http.client.HTTPException):
            message = "and a cut reply"
        self.note(f"HTTP {error.code} {message}")
        if error.code >= 500 or error.code in RETRIED:
            return
        mend = "check the address, the model's name and the options"
        if error.code in (401, 403):
            mend = "set its key in the environment"
        kind = Unfit if error.code in UNFIT else UserError
        raise kind(f"{self.url} refuses: {self.trouble}; {mend}") from None

    def note(self, trouble: str) -> None:
        self.trouble = trouble.replace(self.key, "(key)") if self.key else trouble


def content_of(reply: bytes) -> str:
    """The text of a chat completion; "" for a refusal, or a thought that filled the limit."""
    try:
        choice = json.loads(reply)["choices"][0]
        message = choice["message"]
        content = message.get("content")
        refused = message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadReply(f"{type(error).__name__}: {error}") from None
    if isinstance(content, str):
        # half a character (a lone surrogate) could not be written to a file
        return content.encode(errors="replace").decode()
    if refused or choice.get("finish_reason") in ("length", "content_filter"):
        return ""
    raise BadReply("a message without content")


def retry_after(header: str | None) -> float:
    """Seconds to wait by the header Retry-After, which holds seconds or a date; at most
    LONGEST_WAIT."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(LONGEST_WAIT, seconds)


# ----------------------------------------------------------------------------------------------
# A local model

class LocalModel:
    """A checkpoint, here or on the hub. A reply depends on text and attempt alone, not on what else
    is asked."""

    def __init__(self, path: str, max_new_tokens: int, temperature: float, device: str = "auto",
                 slots: int = 64):
        import torch
        import transformers

        import model

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.module = model.load(path, dtype=dtype, device=device).eval().requires_grad_(False)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.max_new_tokens, self.temperature, self.slots = max_new_tokens, temperature, slots
        self.identity = {"model": str(path), "sha256": files.tree_hash(path),
                         "max_new_tokens": max_new_tokens, "temperature": temperature}

    def answers(self, texts: Sequence[str], attempt: int,
                save: Callable[[str, str], None]) -> Iterator[tuple[int, str]]:
        """(place, reply) as they come."""
        import rollout

        temperature = self.temperature
        if attempt and not temperature:
            temperature = REPEAT_TEMPERATURE
        engine = rollout.Engine(self.module, self.tokenizer, slots=min(self.slots, len(texts)),
                                temperature=temperature)
        jobs = []
        for i, text in enumerate(texts):
            key = (attempt, hashlib.sha256(text.encode()).hexdigest())
            ids = prompts.encode(self.tokenizer, text)
            jobs.append(rollout.Job(ids, key, self.max_new_tokens, tag=i))
        for job, sample in engine.run(jobs):
            save(texts[job.tag], sample.text)
            yield job.tag, sample.text


# ----------------------------------------------------------------------------------------------
# Answers on disk

class Cache:
    """One small JSON file per answer."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def path(self, identity: dict, text: str, attempt: int) -> Path:
        request = json.dumps([identity, text, attempt], sort_keys=True)
        key = hashlib.sha256(request.encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, identity: dict, text: str, attempt: int) -> str | None:
        path = self.path(identity, text, attempt)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["reply"]
        except (FileNotFoundError, ValueError, LookupError):    # absent or damaged: ask again
            return None

    def put(self, identity: dict, attempt: int, text: str, reply: str) -> None:
        record = {"source": identity, "attempt": attempt, "text": text, "reply": reply}
        try:
            files.write_file(self.path(identity, text, attempt), json.dumps(record))
        except FileNotFoundError:
            pass            # another process wrote the same answer at this very moment


def silent(items: Iterable[T], desc: str, total: int) -> Iterable[T]:
    """No progress shown; `progress.progress` shows it."""
    return items


class Responder:
    """An endpoint or a local model, with its cache."""

    def __init__(self, source: Endpoint | LocalModel, cache: Cache, progress: Callable = silent):
        self.source, self.cache, self.progress = source, cache, progress
        self.answered = 0                   # by the source itself, in this run
        self.unanswered = 0
        self.works = False                  # it has answered something, now or in an earlier run

    @property
    def identity(self) -> dict[str, Any]:
        return self.source.identity

    def ask(self, texts: Sequence[str], attempt: int = 0, desc: str = "asking") -> list[str | None]:
        """A reply to each text, None where there was none after all retries. Equal texts are asked
        once. UserError if the source refuses, or never answers anything."""
        replies = {text: self.cache.get(self.identity, text, attempt) for text in texts}
        missing = [text for text, reply in replies.items() if reply is None]
        self.works |= len(missing) < len(replies)

        def save(text: str, reply: str) -> None:
            self.cache.put(self.identity, attempt, text, reply)

        unfit: dict[str, Unfit] = {}
        if missing:
            answers = self.source.answers(missing, attempt, save)
            for i, reply in self.progress(answers, desc, len(missing)):
                if isinstance(reply, Unfit):
                    unfit[missing[i]] = reply
                elif reply is None:
                    self.unanswered += 1
                else:
                    self.answered += 1
                    self.works = True
                    replies[missing[i]] = reply
                if not self.works and len(unfit) + self.unanswered >= GIVE_UP:
                    break
            self.check_works(unfit)
        # The source works, so it is these texts that it does not take: remember that, too.
        for text in unfit:
            save(text, "")
            replies[text] = ""
        return [replies[text] for text in texts]

    def check_works(self, unfit: dict[str, Unfit]) -> None:
        if self.works:
            return
        for error in unfit.values():
            raise error
        raise UserError(f"{self.source.url} does not answer ({self.source.trouble}): start it or "
                        f"mend the address, then run the same command again")

    def ask_parsed(self, texts: Sequence[str], parse: Callable[[str, int], T | None],
                   counts: Counter, desc: str) -> list[T | None]:
        """`parse(reply, place)` of each reply. Where that is None the text is asked again, ATTEMPTS
        times in all; None where it stays so, which is counted."""
        values: list[T | None] = [None] * len(texts)
        todo = list(range(len(texts)))
        lost = 0
        for attempt in range(ATTEMPTS):
            if not todo:
                break
            replies = self.ask([texts[i] for i in todo], attempt, desc)
            again = []
            for i, reply in zip(todo, replies, strict=True):
                if reply is None:
                    lost += 1
                    continue
                values[i] = parse(reply, i)
                if values[i] is None:
                    again.append(i)
            todo = again
        counts[f"{desc}: no answer"] += lost
        counts[f"{desc}: unusable answer"] += len(todo)
        return values
