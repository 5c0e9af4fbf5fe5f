"""Ask a model, on this machine or behind an endpoint, and keep every answer.

    judge = Model(Endpoint("http://host/v1#model", key), Cache("corpora/answers"))
    replies = judge.ask(texts)                              # in order; None where there was no answer
    verdicts = judge.ask_parsed(texts, parse, counts, "judge")

Every answer is kept on disk under the hash of its request (model, options, text, attempt; not the host). A
run that was cut off goes on from there, and one that is finished gives the same again without a model; what
is paid for twice is at most what was under way at the cut.
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
from typing import TypeVar

import prompts
from lib import files

T = TypeVar("T")
ATTEMPTS = 3                # how often a text is asked whose replies cannot be parsed
FIRST_WAIT = 1.0            # seconds before a failed request is repeated, then twice that, and so on
LONGEST_WAIT = 60.0
GIVE_UP = 8                 # requests without an answer before the first answer: nobody is there
REPEAT_TEMPERATURE = 0.7    # of a greedy judge that is asked again because its reply could not be used
MAX_REPLY_BYTES = 16 << 20
RETRIED = {408, 409, 425, 429}      # HTTP states that pass, beside 5xx
UNFIT = {400, 413, 422}             # of a wrong option, but also of one text that is too long or against the rules


class Unfit(ValueError):
    """A text that the server will not take. Where it takes others, that is an empty answer."""


def seconds_asked(header: str | None) -> float:
    """Retry-After: seconds, or a date."""
    try:
        return min(LONGEST_WAIT, float(header or 0))
    except ValueError:
        pass
    try:
        return min(LONGEST_WAIT, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class Endpoint:
    """An OpenAI-compatible server. `answer` is called from several threads at a time."""

    def __init__(self, spec: str, key: str | None = None, options: dict | None = None, concurrency: int = 8,
                 timeout: float = 600, retries: int = 6, first_wait: float = FIRST_WAIT):
        url, mark, name = spec.partition("#")
        if not mark or not name:
            raise ValueError(f"{spec!r} names no model: write it as {url.rstrip('/')}#model")
        self.url = url.rstrip("/") + "/chat/completions"
        self.key, self.concurrency, self.timeout = (key or "").strip(), concurrency, timeout
        self.retries, self.first_wait = retries, first_wait
        # an option that is null is not sent: some servers refuse a temperature, or have another max_tokens
        given = {"temperature": 0.7, "max_tokens": 2048} | (options or {})
        self.request = {"model": name} | {k: v for k, v in given.items() if v is not None}
        self.identity = self.request        # not the host: the same model elsewhere gives the same answers
        self.trouble = "no request yet"     # the last one, for the message when nobody answers
        self.stopped = threading.Event()    # set when the caller leaves: threads that wait for a retry end

    def answers(self, texts: Sequence[str], attempt: int,
                save: Callable[[str, str], None]) -> Iterator[tuple[int, str | Unfit | None]]:
        """(place, reply) as they come, None for what failed after all retries. ValueError on a refusal.

        A thread saves an answer before it asks for the next, so that a kill costs no more than is under way.
        """
        def one(text: str) -> str | Unfit | None:
            try:
                reply = self.answer(text, attempt)
            except Unfit as error:
                return error
            if reply is not None:
                save(text, reply)
            return reply

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            places = {pool.submit(one, text): i for i, text in enumerate(texts)}
            for future in as_completed(places):
                yield places[future], future.result()
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, text: str, attempt: int) -> str | None:
        body = {**self.request, "messages": [{"role": "user", "content": text}]}
        if attempt:             # another answer than the last; not every server knows seeds, so not at first
            body["seed"] = attempt
            body["temperature"] = body.get("temperature") or REPEAT_TEMPERATURE
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        wait = self.first_wait
        for turn in range(self.retries + 1):
            if turn:
                if self.stopped.wait(wait * (1 + random.random() / 4)):     # not all threads at once
                    return None
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    choice = json.loads(self.body(response))["choices"][0]
                content = choice["message"].get("content")
                if isinstance(content, str):
                    return content.encode(errors="replace").decode()    # half a character cannot be written to a file
                if choice["message"].get("refusal") or choice.get("finish_reason") in ("length", "content_filter"):
                    return ""               # an answer too: one that holds nothing
                self.note("a message without content")
            except urllib.error.HTTPError as error:
                try:
                    said = " ".join(error.read(300).decode(errors="replace").split())
                except (OSError, http.client.HTTPException):
                    said = "and a cut reply"
                self.note(f"HTTP {error.code} {said}")
                if error.code < 500 and error.code not in RETRIED:
                    mend = ("set its key in the environment" if error.code in (401, 403) else
                            "check the address, the model's name and the options")
                    kind = Unfit if error.code in UNFIT else ValueError
                    raise kind(f"{self.url} refuses: {self.trouble}; {mend}") from None
                wait = max(wait, seconds_asked(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError,
                    RecursionError) as error:   # cut, timed out, or no completion's JSON
                self.note(f"{type(error).__name__}: {error}")
        return None

    def note(self, trouble: str) -> None:
        self.trouble = trouble.replace(self.key, "(key)") if self.key else trouble

    def body(self, response: http.client.HTTPResponse) -> bytes:
        """All of a reply, within the time limit: a server may also send a byte now and then for ever."""
        begun, read = time.monotonic(), b""
        while part := response.read1(1 << 16):
            read += part
            if time.monotonic() - begun > self.timeout or len(read) > MAX_REPLY_BYTES:
                raise TimeoutError("a reply without end")
        return read


class LocalModel:
    """A checkpoint, here or on the hub. A reply is a function of text and attempt, whatever else is asked."""

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
                save: Callable[[str, str], None]) -> Iterator[tuple[int, str | None]]:
        import rollout

        temperature = REPEAT_TEMPERATURE if attempt and not self.temperature else self.temperature
        engine = rollout.Engine(self.module, self.tokenizer, slots=min(self.slots, len(texts)),
                                temperature=temperature)
        jobs = [rollout.Job(prompts.encode(self.tokenizer, text),
                            (attempt, hashlib.sha256(text.encode()).hexdigest()), self.max_new_tokens, tag=i)
                for i, text in enumerate(texts)]
        for job, sample in engine.run(jobs):
            save(texts[job.tag], sample.text)
            yield job.tag, sample.text


class Cache:
    """One small JSON file an answer, which appears whole or not at all: a process may be killed any time."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def path(self, identity: dict, text: str, attempt: int) -> Path:
        key = hashlib.sha256(json.dumps([identity, text, attempt], sort_keys=True).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, identity: dict, text: str, attempt: int) -> str | None:
        try:
            return json.loads(self.path(identity, text, attempt).read_text(encoding="utf-8"))["reply"]
        except FileNotFoundError:
            return None
        except (ValueError, LookupError):       # a disk that was full: ask again
            return None

    def put(self, identity: dict, attempt: int, text: str, reply: str) -> None:
        path = self.path(identity, text, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        aside.write_text(json.dumps({"source": identity, "attempt": attempt, "text": text, "reply": reply}),
                         encoding="utf-8")
        os.replace(aside, path)


def silent(items: Iterable[T], desc: str, total: int) -> Iterable[T]:
    """No progress shown; `progress.progress` shows it."""
    return items


class Model:
    """A source of replies with its cache."""

    def __init__(self, source: Endpoint | LocalModel, cache: Cache, progress: Callable = silent):
        self.source, self.cache, self.progress = source, cache, progress
        self.answered = 0                   # by the source itself, in this run
        self.unanswered = 0
        self.works = False                  # it has answered something, now or in an earlier run

    def ask(self, texts: Sequence[str], attempt: int = 0, desc: str = "asking") -> list[str | None]:
        """A reply for each text, None where there was none after all retries. Equal texts are asked once."""
        source = self.source
        replies = {text: self.cache.get(source.identity, text, attempt) for text in texts}
        missing = [text for text, reply in replies.items() if reply is None]
        self.works |= len(missing) < len(replies)
        if not missing:
            return [replies[text] for text in texts]

        def save(text: str, reply: str) -> None:
            self.cache.put(source.identity, attempt, text, reply)

        unfit: dict[str, Unfit] = {}
        for i, reply in self.progress(source.answers(missing, attempt, save), desc, len(missing)):
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
        if not self.works:
            raise next(iter(unfit.values()), OSError(f"{source.url} does not answer ({source.trouble}): start it or mend the "
                                                     f"address, then run the same command again"))
        for text in unfit:
            save(text, "")
            replies[text] = ""
        return [replies[text] for text in texts]

    def ask_parsed(self, texts: Sequence[str], parse: Callable[[str, int], T | None], counts: Counter,
                   desc: str) -> list[T | None]:
        """`parse(reply, place)` of each reply. Where that is None the text is asked again, ATTEMPTS times in
        all; what is still None is counted."""
        values: list[T | None] = [None] * len(texts)
        todo = list(range(len(texts)))
        lost: list[int] = []
        for attempt in range(ATTEMPTS):
            replies = self.ask([texts[i] for i in todo], attempt, desc)
            lost += [i for i, reply in zip(todo, replies, strict=True) if reply is None]
            for i, reply in zip(todo, replies, strict=True):
                values[i] = None if reply is None else parse(reply, i)
            todo = [i for i in todo if values[i] is None and i not in lost]
            if not todo:
                break
        counts[f"{desc}: no answer"] += len(lost)
        counts[f"{desc}: unusable answer"] += len(todo)
        return values
