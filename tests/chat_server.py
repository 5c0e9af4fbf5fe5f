"""An imaginary model behind an endpoint on 127.0.0.1 that can misbehave as real ones do.

    with Server(trouble=lambda visit: 429 if visit == 0 else None) as server:
        responder_at(server.spec, cache).ask([prompts.teacher(PROBLEMS[0], N)])
"""

import json
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lib.problems import Problem
from prepare import ask
from prepare import prompts as judge_prompts
from prepare.teacher import Funnel, make_gold

K, N = 4, 6
NOUNS = ("frogs", "towers", "ribbons", "planets", "bridges", "lanterns", "beetles", "castles",
         "rivers", "tickets", "mirrors", "violins")
PROBLEMS = [Problem(f"p{i}", f"Count the {noun} that {NOUNS[i - 1]} can see, number {i}.",
                    tests=[{"input": "", "output": "1"}]) for i, noun in enumerate(NOUNS)]
PLAN = ["Sort the frogs by weight and sweep once.", "Build a graph of frogs and search it.",
        "Binary search the number of frogs seen.", "Simulate every frog with a queue."]


# ----------------------------------------------------------------------------------------------
# What the imaginary model replies

def methods_of(i: int) -> list[str]:
    return [f"Sort the {NOUNS[i]} by key {j} and sweep over them with method {j}."
            for j in range(N)]


def reply_of(text: str, seed: int) -> str:
    """The reply to the prompts of teacher and judge about each problem in PROBLEMS."""
    if text.startswith("Say this method again"):
        mark = zlib.crc32(text.encode())
        return f"Arrange what is given in order and walk along it once, by {mark}."
    for i, problem in enumerate(PROBLEMS):
        if text == judge_prompts.teacher(problem, N):
            return teacher_reply(i)
        if problem.statement in text and "think through" in text:
            return f"<think>hm</think>{NOUNS[i]} can be looked at in several ways."
        if problem.statement in text and "KEEP or DROP" in text:
            return judge_reply(i, text, seed)
    raise AssertionError(f"nobody should ask {text!r}")


def teacher_reply(i: int) -> str:
    methods = methods_of(i)
    if i == 3:
        return "I'm sorry, but I can't help with that."
    if i == 4:
        methods[1] = "Use this: ```for x in a: print(x)```"                 # code
        methods[2] = " ".join(["word"] * 60)                                # too long
        methods[3] = methods[0].upper()                                     # the same again
    return "Here they are.\n" + "\n".join(f"{j + 1}. {m}" for j, m in enumerate(methods))


def judge_reply(i: int, text: str, seed: int) -> str:
    if i == 5 and not seed:
        return "1: KEEP\n9: DROP"                       # wrong numbers at first
    if i == 6:
        return "All of them look fine to me."           # never usable
    count = sum(method in text for method in methods_of(i))
    dropped = {7: {1, 2, 3}, 8: {2}}.get(i, set())
    return "\n".join(f"{j}: {'DROP' if j in dropped else 'KEEP'}" for j in range(1, count + 1))


# ----------------------------------------------------------------------------------------------
# The server

def completion(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content}
    if content is None:
        message["refusal"] = "no"
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]}).encode()


# what a misbehaving server writes instead of a reply
RAW = {
    "cut": b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [',
    "error cut": b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nnot",
    "gone": b"",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
}
MISBEHAVIOUR = (429, 500, *RAW, "{", "<html>Bad gateway</html>", '{"choices": []}', "[]",
                "[" * 100_000, '{"choices": [{"message": null}]}',
                '{"choices": [{"message": {"content": null}}]}', None)


class Server:
    """OpenAI's chat completions. `trouble(visit)` is what happens on a request's n-th visit: None
    is an answer, a number an HTTP state, a key of RAW, "slow" or "drip" trouble, any other text the
    body of a reply."""

    def __init__(self, trouble=lambda visit: None, reply=reply_of):
        self.visits, self.served = Counter(), Counter()         # by (text, seed)
        self.requests, self.headers = [], []
        self.lock, self.trouble, self.reply = threading.Lock(), trouble, reply
        handler = type("Handler", (Handler,), {"chat": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None        # a client that went away in the middle
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.spec = f"http://127.0.0.1:{self.http.server_address[1]}/v1#imaginary"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: Server

    def log_message(self, *args):
        pass

    def do_POST(self):
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mark = (body["messages"][-1]["content"], body.get("seed", 0))
        with chat.lock:
            chat.last_text = mark[0]
            what = chat.trouble(chat.visits[mark])
            chat.visits[mark] += 1
            chat.requests.append(body)
            chat.headers.append(dict(self.headers))
        if self.path != "/v1/chat/completions":
            self.send(404, b'{"error": "no such path"}')
        elif what is None:
            content = chat.reply(*mark)
            with chat.lock:
                chat.served[mark] += 1
            self.send(200, completion(content))
        elif isinstance(what, int):
            headers = {"Retry-After": "0"} if what == 429 else {}
            self.send(what, b'{"error": {"message": "not now sk-secret"}}', headers)
        elif what in ("slow", "drip") or what in RAW:
            self.misbehave(what)
        else:
            self.send(200, what.encode())

    def misbehave(self, what: str):
        if what == "slow":
            time.sleep(1.5)
        elif what == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(RAW[what])
        self.close_connection = True
        self.wfile.flush()

    def send(self, status, content, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


# ----------------------------------------------------------------------------------------------
# Its clients

def responder_at(spec: str, cache: Path, **options) -> ask.Responder:
    options = {"retries": 8, "timeout": 1.0, "first_wait": 0.005} | options
    return ask.Responder(ask.Endpoint(spec, **options), ask.Cache(cache))


def gold_from(spec: str, cache: Path, wanted: int = 100, **options):
    """(gold tuples, counts, responder) with one model as teacher and judge."""
    model = responder_at(spec, cache, **options)
    funnel = Funnel(model, model, K, N)
    gold = make_gold(funnel, PROBLEMS, wanted)
    return gold, funnel.counts, model
