"""teacher.py and ask.py: the funnel, gate labels, and an endpoint that misbehaves as real ones do."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import prompts
from lib import files
from lib.labels import Label, load_labels, save_labels
from lib.problems import Problem, save_problems
from prepare import ask, corpora, teacher

ROOT = Path(__file__).resolve().parent.parent
K, N = 4, 6
NOUNS = ("frogs", "towers", "ribbons", "planets", "bridges", "lanterns", "beetles", "castles", "rivers",
         "tickets", "mirrors", "violins")
PROBLEMS = [Problem(f"p{i}", f"Count the {noun} that {NOUNS[i - 1]} can see, number {i}.",
                    tests=[{"input": "", "output": "1"}]) for i, noun in enumerate(NOUNS)]


# ------------------------------------------------------------------------------- a server and the model in it

def reply_of(text: str, seed: int) -> str | None:
    """What the imaginary model says: about each problem in PROBLEMS, to the teacher's and the judge's
    prompts."""
    for i, p in enumerate(PROBLEMS):
        methods = [f"Sort the {NOUNS[i]} by key {j} and sweep over them with method {j}." for j in range(N)]
        if text == prompts.teacher(p, N):
            if i == 3:
                return "I'm sorry, but I can't help with that."
            if i == 4:
                methods[1] = "Use this: ```for x in a: print(x)```"                 # code
                methods[2] = " ".join(["word"] * 60)                                # too long
                methods[3] = methods[0].upper()                                     # the same again
            return "Here they are.\n" + "\n".join(f"{j + 1}. {m}" for j, m in enumerate(methods))
        if text.startswith(prompts.teacher_trace(p, ["x"] * K).split("These")[0]) and "think through" in text:
            return f"<think>hm</think>{NOUNS[i]} can be looked at in several ways."
        if p.statement in text and "KEEP or DROP" in text:
            count = sum(m in text for m in methods)
            if i == 5 and not seed:
                return "1: KEEP\n9: DROP"                                           # wrong labels at first
            if i == 6:
                return "All of them look fine to me."                               # never usable
            dropped = {7: {1, 2, 3}, 8: {2}}.get(i, set())
            return "\n".join(f"{j}: {'DROP' if j in dropped else 'KEEP'}" for j in range(1, count + 1))
    if text.startswith("Say this method again"):
        return f"Arrange what is given in order and walk along it once, by {zlib.crc32(text.encode())}."
    raise AssertionError(f"nobody should ask {text!r}")


class Server:
    """OpenAI's chat completions on 127.0.0.1. `trouble(visit)` says what happens on a request's n-th visit;
    None is an answer."""

    def __init__(self, trouble=lambda visit: None, reply=reply_of):
        self.visits, self.served, self.requests, self.headers = Counter(), Counter(), [], []
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                mark = (text, body.get("seed", 0))
                with lock:
                    server.requests_now = text
                    what = trouble(server.visits[mark])
                    server.visits[mark] += 1
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                if self.path != "/v1/chat/completions":
                    return self.say(404, b'{"error": "no such path"}')
                if what is None:
                    content = reply(*mark)
                    with lock:
                        server.served[mark] += 1
                    message = {"role": "assistant",
                               "content": content} | ({"refusal": "no"} if content is None else {})
                    return self.say(200,
                                    json.dumps({"choices": [{"index": 0, "message": message,
                                                             "finish_reason": "stop"}]}).encode())
                if isinstance(what, int):
                    return self.say(what, b'{"error": {"message": "not now sk-secret"}}',
                                    {"Retry-After": "0"} if what == 429 else {})
                if what == "cut":
                    self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')
                elif what == "error cut":
                    self.wfile.write(b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nnot")
                elif what == "gone":
                    self.wfile.write(b"")
                elif what == "slow":
                    time.sleep(1.5)
                elif what == "drip":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    for _ in range(100):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.05)
                elif what == "not http":
                    self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                else:
                    return self.say(200, what.encode())
                self.close_connection = True
                self.wfile.flush()

            def say(self, status, content, headers=()):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None        # a client that went away in the middle
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.spec = f"http://127.0.0.1:{self.http.server_address[1]}/v1#imaginary"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def model_at(spec: str, cache: Path, **options) -> ask.Model:
    options = {"retries": 8, "timeout": 1.0, "first_wait": 0.005} | options
    return ask.Model(ask.Endpoint(spec, **options), ask.Cache(cache))


def gold_from(spec: str, cache: Path, wanted: int = 100, **options):
    model = model_at(spec, cache, **options)
    return (*teacher.make_gold(model, model, PROBLEMS, wanted, K, N), model)


MISBEHAVIOUR = (429, 500, "cut", "error cut", "gone", "not http", "{", "<html>Bad gateway</html>", '{"choices": []}', "[]",
                "[" * 100_000, '{"choices": [{"message": null}]}', '{"choices": [{"message": {"content": null}}]}', None)


# ------------------------------------------------------------------------------------------------- the funnel

def test_the_funnel_counts_each_stage_and_keeps_problems_with_k_clean_methods(tmp_path):
    with Server() as server:
        gold, counts, _ = gold_from(server.spec, tmp_path)
    assert [row["problem_id"] for row in gold] == [f"p{i}" for i in range(12) if i not in (3, 4, 6, 7)]
    assert counts == Counter({
        "problems offered": 12, "problems with candidates": 11, "candidates proposed": 66,
        "candidates dropped: code": 1,
        "candidates dropped: too_long": 1, "candidates dropped: literal duplicate": 1,
        "candidates of the right form": 63,
        "candidates kept by the judge": 63 - 6 - 3 - 1, "problems with 4 clean candidates": 8,
        "gold tuples": 8,
        "teacher: unusable answer": 1, "judge: unusable answer": 1})
    assert gold[0]["strategies"] == [f"Sort the frogs by key {j} and sweep over them with method {j}."
                                     for j in range(4)]
    assert gold[0]["think"] == "frogs can be looked at in several ways."
    assert gold[0]["statement"] == PROBLEMS[0].statement
    eighth = next(row for row in gold if row["problem_id"] == "p8")
    assert [s[-2] for s in eighth["strategies"]] == ["0", "2", "3",
                                                     "4"], "the second one was dropped by the judge"


def test_the_funnel_stops_when_it_has_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "BATCH", 3)
    with Server() as server:
        gold, counts, _ = gold_from(server.spec, tmp_path, wanted=4)
    assert [row["problem_id"] for row in gold] == ["p0", "p1", "p2", "p5"] and counts["problems offered"] == 6


def test_an_unusable_reply_is_asked_for_again_with_another_seed_and_then_given_up(tmp_path):
    with Server() as server:
        gold_from(server.spec, tmp_path)
    seeds = {mark[1] for mark in server.served if "KEEP or DROP" in mark[0]
             and PROBLEMS[5].statement in mark[0]}
    assert seeds == {0, 1}
    seeds = {mark[1] for mark in server.served if "KEEP or DROP" in mark[0]
             and PROBLEMS[6].statement in mark[0]}
    assert seeds == {0, 1, 2}


# -------------------------------------------------------------------------------------- misbehaving endpoints

def test_a_server_that_fails_in_every_way_gives_the_same_gold_and_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "LONGEST_WAIT", 0.001)
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[:2]
    with Server(lambda visit: MISBEHAVIOUR[min(visit, len(MISBEHAVIOUR) - 1)]) as bad:
        found = gold_from(bad.spec, tmp_path / "bad", retries=len(MISBEHAVIOUR))[:2]
    assert found == expected
    assert bad.served == good.served and set(bad.served.values()) == {1}
    assert set(bad.visits.values()) == {len(MISBEHAVIOUR)}


@pytest.mark.parametrize("what", ["slow", "drip"])
def test_a_server_that_never_ends_a_reply_is_asked_again(tmp_path, what):
    with Server(lambda visit: what if visit == 0 else None) as server:
        model = model_at(server.spec, tmp_path, timeout=0.3)
        assert model.ask([prompts.teacher(PROBLEMS[0], N)])[0].startswith("Here they are.")


def test_a_finished_run_is_reproduced_without_a_server(tmp_path):
    with Server() as server:
        expected = gold_from(server.spec, tmp_path)[:2]
    gold, counts, model = gold_from("http://127.0.0.1:9/v1#imaginary", tmp_path)
    assert (gold, counts) == expected and model.answered == 0
    with pytest.raises(OSError, match="does not answer"):       # another model's answers are another model's
        gold_from("http://127.0.0.1:9/v1#other", tmp_path, retries=0)


def test_what_failed_for_good_is_counted_and_asked_for_by_the_next_run_alone(tmp_path):
    broken = {prompts.teacher(PROBLEMS[1], N), prompts.teacher(PROBLEMS[2], N)}
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[:2]

    def reply(text, seed):
        assert text not in broken or healed, "a wrong reply"
        return reply_of(text, seed)
    healed = False
    with Server(reply=reply) as server:
        gold, counts, model = gold_from(server.spec, tmp_path / "bad", retries=1)
        assert counts["teacher: no answer"] == model.unanswered == 2 and len(gold) == len(expected[0]) - 2
        healed, before = True, Counter(server.served)
        found = gold_from(server.spec, tmp_path / "bad")[:2]
    assert found == expected
    assert all(mark[0] in broken or any(PROBLEMS[i].statement in mark[0] for i in (1, 2))
               for mark in server.served - before)


def test_a_damaged_answer_on_disk_is_asked_for_again(tmp_path):
    text = prompts.teacher(PROBLEMS[0], N)
    with Server() as server:
        reply = model_at(server.spec, tmp_path).ask([text])
        for path in tmp_path.rglob("*.json"):
            path.write_text('{"reply": "Her')
        assert model_at(server.spec, tmp_path).ask([text]) == reply
    assert server.served[text, 0] == 2


def test_equal_requests_are_sent_once(tmp_path):
    text = prompts.teacher(PROBLEMS[0], N)
    with Server() as server:
        assert len(set(model_at(server.spec, tmp_path).ask([text] * 5))) == 1
    assert server.served == {(text, 0): 1}


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_a_refusal_is_an_answer_without_content_and_so_is_a_thought_that_met_the_limit(tmp_path, reason):
    choice = {"message": {"content": None, "refusal": "no" if reason == "stop" else None}, "finish_reason": reason}
    with Server(lambda visit: json.dumps({"choices": [choice]})) as server:
        assert model_at(server.spec, tmp_path).ask(["x"]) == [""]
    assert len(server.requests) == 1


def test_one_text_that_the_server_will_not_take_costs_that_text_alone(tmp_path):
    """Too long for its context, or against its rules: other texts go on, and the next run asks for none of them."""
    long, texts = "too long", [f"x{i}" for i in range(5)]
    with Server(lambda visit: 400 if server.requests_now == long else None, reply=lambda text, seed: text) as server:
        model, counts = model_at(server.spec, tmp_path, concurrency=1), Counter()
        found = model.ask_parsed([long, *texts], lambda reply, _: reply or None, counts, "judge")
        assert found == [None, *texts] and counts["judge: unusable answer"] == 1 and model.unanswered == 0
        before = len(server.requests)
        assert model_at(server.spec, tmp_path).ask([long, *texts]) == ["", *texts] and len(server.requests) == before
        with pytest.raises(ValueError, match="HTTP 400"):       # nothing has ever been answered: the request itself is wrong
            model_at(server.spec, tmp_path / "new").ask([long])


@pytest.mark.parametrize("header, seconds", [("7", 7), ("0.5", 0.5), ("3600", ask.LONGEST_WAIT), (None, 0), ("soon", 0), ("²", 0),
                                             ("Wed, 21 Oct 2065 07:28:00 GMT", ask.LONGEST_WAIT)])
def test_the_wait_that_a_server_asks_for_is_kept_up_to_a_limit(header, seconds):
    assert ask.seconds_asked(header) == seconds


def test_a_reply_with_half_a_character_can_be_written_to_every_file(tmp_path):
    with Server(reply=lambda text, seed: "A: \ud83d frogs\nB: \u2028\x00") as server:
        [reply] = model_at(server.spec, tmp_path).ask(["x"])
    assert reply == "A: ? frogs\nB: \u2028\x00"
    save_labels(tmp_path / "x.jsonl", [Label("p", "s", reply, 1)])
    assert load_labels(tmp_path / "x.jsonl")[0].plan == reply


def test_a_key_with_a_line_end_is_mended_and_never_shown(tmp_path):
    with Server(reply=lambda text, seed: "hello") as server:
        assert model_at(server.spec, tmp_path, key="sk-secret\n").ask(["x"]) == ["hello"]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    endpoint = ask.Endpoint(server.spec, "sk-secret\x01", retries=0)      # no header may hold that
    assert endpoint.answer("x", 0) is None and "sk-secret" not in endpoint.trouble


@pytest.mark.parametrize("status, mend", [(401, "set its key in the environment"), (404, "check the address"),
                                          (400, "the options")])
def test_a_request_that_can_never_succeed_ends_the_run_in_one_line_without_the_key(tmp_path, status, mend):
    with Server(lambda visit: status) as server:
        with pytest.raises(ValueError, match=mend) as error:
            model_at(server.spec, tmp_path, key="sk-secret").ask([f"x{i}" for i in range(40)])
    assert f"HTTP {status}" in str(error.value) and "sk-secret" not in str(error.value)
    assert len(server.requests) < 40, "the others are not tried"


def test_nobody_there_is_noticed_before_every_request_has_been_tried(tmp_path):
    model = model_at("http://127.0.0.1:9/v1#m", tmp_path, retries=0)
    with pytest.raises(OSError, match="does not answer .*run the same command again"):
        model.ask([f"x{i}" for i in range(1000)])
    assert model.unanswered == ask.GIVE_UP
    with pytest.raises(OSError, match="does not answer"):       # nor is it no answer, where there is a single text
        model_at("http://127.0.0.1:9/v1#m", tmp_path, retries=0).ask(["x"])


def test_keys_come_from_the_environment_and_options_change_the_request(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    monkeypatch.setenv("JUDGE_API_KEY", "special")
    with Server(reply=lambda text, seed: "hello") as server:
        for role in ("teacher", "judge"):
            source = teacher.open_source(server.spec, role, ask.Cache(tmp_path), temperature=0.0,
                                         max_new_tokens=9,
                                         options={"max_tokens": None, "max_completion_tokens": 7,
                                                  "top_p": len(role)})
            source.ask(["x"])
            source.ask(["x"], attempt=1)
    assert [h["Authorization"] for h in server.headers] == ["Bearer general"] * 2 + ["Bearer special"] * 2
    assert server.requests[0] == {"model": "imaginary", "messages": [{"role": "user", "content": "x"}],
                                  "temperature": 0.0, "max_completion_tokens": 7, "top_p": 7}
    assert server.requests[1] == server.requests[0] | {"seed": 1, "temperature": ask.REPEAT_TEMPERATURE}
    assert "special" not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))


def command(*args, **options):
    return [sys.executable, "-m", "prepare.teacher",
            *map(str, args)], {"cwd": ROOT, "text": True, "stderr": subprocess.PIPE,
                               "stdout": subprocess.PIPE, **options}


def test_a_killed_run_continues_where_it_was_and_pays_for_nothing_twice(tmp_path):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)
    enough = threading.Event()

    def reply(text, seed):
        if len(server.served) == 9:
            enough.set()
            if not resumed:
                time.sleep(60)
        return reply_of(text, seed)
    resumed = False
    with Server(reply=reply) as server:
        flags = ["gold", "--teacher", server.spec, "--judge", server.spec, "--problems",
                 tmp_path / "pool.jsonl", "--out", tmp_path, "--gold", 100, "--concurrency", 1]
        argv, options = command(*flags)
        first = subprocess.Popen(argv, **options)
        assert enough.wait(60)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        assert not (tmp_path / "gold.jsonl").exists()
        resumed = True
        second = subprocess.run(argv, **options)
        assert second.returncode == 0, second.stderr
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[0]
    assert [json.loads(line) for line in (tmp_path / "gold.jsonl").read_text().splitlines()] == expected
    assert server.served == good.served, "each request was answered once, before the kill or after it"
    record = json.loads((tmp_path / "gold.json").read_text())
    assert record["counts"]["gold tuples"] == 8 and "no manifest" in record["warning"]
    assert record["models"][0]["model"] == "imaginary"


# ----------------------------------------------------------------------------------------------------- judges

PLAN = ["Sort the frogs by weight and sweep once.", "Build a graph of frogs and search it.",
        "Binary search the number of frogs seen.", "Simulate every frog with a queue."]


@pytest.mark.parametrize("change, faults", [
    ({}, []),
    ({1: "sort the frogs by weight, and sweep once"}, ["duplicate"]),
    ({2: "Use for i in range(n): total += frogs[i] and print(total)."}, ["leak"]),
    ({2: "The answer is 17 frogs."}, ["leak"]),
    ({0: teacher.ADVICE[3]}, ["vague"]),
    ({0: "Count frogs."}, ["vague"]),
    ({0: "Walk the tree from its root and merge the heaps."}, ["off_topic"]),
    ({0: "Sort the frogs by weight. Then sweep once."}, ["parse"]),
    ({0: "frogs " * 46}, ["parse"]),
    ({0: ""}, ["parse"]),
])
def test_the_rule_judge_names_the_faults_that_show(change, faults):
    plan = [change.get(i, s) for i, s in enumerate(PLAN)]
    assert teacher.rule_judge(PROBLEMS[0].statement, prompts.format_plan(plan)) == faults


def test_a_plug_in_judge_agrees_with_the_worlds_own_labels():
    from miniature import world

    judge = teacher.open_source("miniature.world:judge", "judge", None)
    labels = [Label(**row) for row in world.labels("val")[:80]]
    pairs = [(Problem(x.problem_id, x.statement), x.plan) for x in labels]
    faults = teacher.judge_plans(judge, pairs)
    assert [int(not f) for f in faults] == [x.label for x in labels]
    assert all(x.kind in f for x, f in zip(labels, faults, strict=True) if not x.label)


def test_a_judge_that_is_a_function_selects_the_first_k_that_it_passes_together():
    def judge(statement, plan):
        strategies = prompts.parse_plan(plan, K)
        kinds = [s.split()[1] for s in strategies]
        return (["duplicate"] if len(set(kinds)) < K else []) + (["vague"] if "bad" in kinds else [])

    def propose(problem, n):
        return ["Try one way.", "Try one road.", "Try bad things.", "Try two ways.", "Try three ways.",
                "Try four ways."][:n]
    gold, counts = teacher.make_gold(propose, judge, PROBLEMS[:2], 2)
    assert gold[0]["strategies"] == ["Try one way.", "Try two ways.", "Try three ways.", "Try four ways."]
    assert counts["candidates kept by the judge"] == 10 and gold[1]["think"] == ""


def test_a_plan_that_does_not_parse_is_a_fault_that_nobody_is_asked_about(tmp_path):
    plan = prompts.format_plan(PLAN)
    with Server(reply=lambda text, seed: "faults: vague, leak" if "frogs" in text else "nonsense") as server:
        model = model_at(server.spec, tmp_path)
        pairs = [(PROBLEMS[0], "no plan"), (PROBLEMS[0], plan),
                 (PROBLEMS[1], plan.replace("frogs", "towers").replace("frog", "tower"))]
        pairs[2] = (Problem("x", "About towers."), pairs[2][1])
        counts = Counter()
        assert teacher.judge_plans(model, pairs, counts=counts) == [["parse"], ["leak", "vague"], None]
    assert len(server.served) == 1 + ask.ATTEMPTS and counts["judge: unusable answer"] == 1


# ------------------------------------------------------------------------------------------------ gate labels

@pytest.mark.parametrize("kind", teacher.NEGATIVES)
def test_made_negatives_look_well_formed_and_have_the_fault(kind):
    foreign = [s.replace("frogs", "lanterns").replace("frog", "lantern") for s in PLAN]
    seen = set()
    for seed in range(60):
        bad = teacher.spoiled(kind, PLAN, None, foreign, random.Random(seed))
        text = prompts.format_plan(bad)
        assert prompts.parse_plan(text, K) == bad != PLAN
        assert set(prompts.check_plan(bad, text)) <= ({"code"} if kind == "leak" else set())
        changed = [s for s, t in zip(bad, PLAN, strict=True) if s != t]
        seen |= set(changed)
        if kind == "vague":
            assert set(changed) <= set(teacher.ADVICE)
        elif kind == "off_topic":
            assert set(changed) <= set(foreign) and len(changed) in (1, K)
        elif kind == "duplicate":
            assert len(changed) == 1
        else:
            assert len(changed) == 1 and ("print" in text or "return" in text or "answer" in text)
    assert len(seen) >= (1 if kind == "duplicate" else 4)


def test_a_repeat_in_other_words_is_not_the_literal_text():
    for strategy in (*PLAN, "Zip lanterns."):
        other = teacher.reworded(strategy)
        assert prompts.normalise(other) != prompts.normalise(strategy) and not prompts.check_plan([other])
    assert teacher.reworded(PLAN[0]) == "Order the frogs by weight and sweep once."


def made_labels(server, tmp_path, wanted=(8, 4)):
    model, counts = model_at(server.spec, tmp_path), Counter()
    return teacher.teacher_labels(model, model, PROBLEMS, 2, wanted, K, N, 0, counts), counts


def test_labels_hold_a_made_negative_for_each_positive_of_the_same_problem(tmp_path):
    with Server() as server:
        labels, counts = made_labels(server, tmp_path)
    by_problem = Counter((x.problem_id, x.label) for x in labels)
    assert all(by_problem[x.problem_id, 0] == by_problem[x.problem_id, 1] == 2 for x in labels)
    assert counts["labels made: positive"] == 16 and [counts[f"labels made: {kind}"]
                                                      for kind in teacher.NEGATIVES] == [4] * 4
    positives = {(x.problem_id, x.plan) for x in labels if x.label}
    assert len(positives) == 16 and not positives & {(x.problem_id, x.plan) for x in labels if not x.label}
    assert all("Arrange what is given" in x.plan for x in labels
               if x.kind == "duplicate"), "said by the teacher in other words"
    statements = {p.id: p.statement for p in PROBLEMS}
    assert all(x.statement == statements[x.problem_id] for x in labels)
    for x in labels:
        if x.kind == "off_topic":
            noun = NOUNS[int(x.problem_id[1:])]
            assert any(noun not in s for s in prompts.parse_plan(x.plan, K))


def test_the_two_sides_are_balanced_and_share_no_problem(tmp_path):
    with Server() as server:
        labels, _ = made_labels(server, tmp_path)
    for sizes, found in (((12, 6), (12, 6)), ((1000, 6), (24, 6)), ((1000, 1000), (0, 32))):
        train, val = teacher.divide(labels, sizes, 0)
        assert (len(train), len(val)) == found and not {x.problem_id
                                                        for x in train} & {x.problem_id for x in val}
        for side in (train, val):
            assert sum(x.label for x in side) * 2 == len(side)
    assert Counter(x.problem_id for x in val if x.label) == Counter(x.problem_id for x in val if not x.label)


def test_too_few_clean_problems_are_said_with_the_counts(tmp_path):
    with Server(reply=lambda text, seed: "no") as server:
        with pytest.raises(ValueError, match="too few to make labels of.*problems offered"):
            made_labels(server, tmp_path)


def test_planner_samples_are_labelled_by_the_judge(tmp_path):
    def reply(text, seed):
        if text.startswith(PROBLEMS[0].statement):
            return prompts.format_plan(PLAN) if seed else "<think>A: x</think>A: only one."
        return "faults: none"
    with Server(reply=reply) as server:
        model = model_at(server.spec, tmp_path)
        counts = Counter()
        labels = teacher.planner_labels(model, model, PROBLEMS[:1], 2, K, counts)
    assert [(x.label, x.kind, x.plan) for x in labels] == [(0, "parse", "A: only one."),
                                                           (1, "positive", prompts.format_plan(PLAN))]
    assert counts["planner samples"] == 2


def test_a_local_models_replies_do_not_depend_on_what_else_is_asked(tmp_path):
    import tiny

    folder = str(tiny.qwen(tmp_path / "model"))
    model = teacher.open_source(folder, "planner", ask.Cache(tmp_path / "a"), max_new_tokens=8,
                                device="cpu")
    texts = [p.statement for p in PROBLEMS[:3]]
    replies = model.ask(texts)
    assert ask.Model(model.source,
                         ask.Cache(tmp_path / "b")).ask(texts[::-1][:2]) == replies[::-1][:2]
    assert model.ask(texts, attempt=1) != replies
    before = model.answered
    assert model.ask(texts) == replies and model.answered == before
    labels = teacher.planner_labels(model, teacher.open_source("rule", "judge", None), PROBLEMS[:3], 2, K,
                                    Counter())
    assert len(labels) == 6 and {x.kind for x in labels} == {"parse"}, "an untrained model writes no plans"


# --------------------------------------------------------------------------------------------------- commands

def test_rules_alone_run_both_commands_and_the_trainers_read_the_files(tmp_path, capsys):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)
    common = ["--teacher", "rule", "--judge", "rule", "--problems", str(tmp_path / "pool.jsonl"), "--out",
              str(tmp_path)]
    teacher.main(["gold", "--gold", "5", *common])
    teacher.main(["labels", "--train", "12", "--val", "4", *common])
    import train_sft

    assert len(train_sft.load_gold(str(tmp_path / "gold.jsonl"), K, {})) == 5
    train, val = (load_labels(str(tmp_path / f"labels_{side}.jsonl")) for side in ("train", "val"))
    assert (len(train), len(val)) == (12, 4) and sum(x.label for x in train + val) == 8
    assert not {x.problem_id for x in train} & {x.problem_id for x in val}
    first = (tmp_path / "labels_train.jsonl").read_bytes()
    teacher.main(["labels", "--train", "12", "--val", "4", *common])
    assert (tmp_path / "labels_train.jsonl").read_bytes() == first
    teacher.main(["gold", "--gold", "50", *common])
    assert "only 12 of 50 gold tuples" in capsys.readouterr().err


@pytest.mark.parametrize("flags, said", [
    (["gold", "--judge", "rule"], "needs --teacher SPEC"),
    (["labels", "--candidates", "both", "--teacher", "rule", "--judge", "rule"], "needs --planner SPEC"),
    (["gold", "--teacher", "http://host/v1", "--judge", "rule"],
     "names no model: write it as http://host/v1#model"),
    (["gold", "--teacher", "nowhere", "--judge", "rule"], "no such folder; a SPEC is"),
    (["gold", "--teacher", "rule", "--judge", "no.such:thing"], "cannot load"),
    (["gold", "--teacher", "rule", "--judge", "prompts:nothing"], "cannot load"),
    (["gold", "--teacher", "rule", "--judge", "rule", "--num-candidates", "3"], "N at least K"),
    (["gold", "--teacher", "rule", "--judge", "rule", "--gold", "0"], "--gold 0: it must be at least 1"),
    (["gold", "--teacher", "rule", "--judge", "rule", "--retries", "-1"], "--retries -1: it must be at least 0"),
    (["gold", "--teacher", "rule", "--judge", "rule", "--judge-options", "[]"],
     "--judge-options must be a JSON object"),
    (["labels", "--candidates", "planner", "--planner", "rule", "--judge", "rule"],
     "a planner is a model or an endpoint"),
])
def test_a_wrong_flag_is_said_in_one_line(tmp_path, capsys, flags, said):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)
    with pytest.raises(SystemExit) as end:
        teacher.main([*flags, "--problems", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path)])
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert end.value.code == 2 and len(err) == 1 and err[0].startswith("error: ") and said in err[0]


def test_unanswered_requests_end_in_status_1_and_say_how_to_go_on(tmp_path, capsys):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)

    def reply(text, seed):
        assert text != prompts.teacher(PROBLEMS[0], N), "a wrong reply"
        return reply_of(text, seed)
    with Server(reply=reply) as server, pytest.raises(SystemExit) as end:
        teacher.main(["gold", "--teacher", server.spec, "--judge", server.spec, "--problems",
                      str(tmp_path / "pool.jsonl"), "--out", str(tmp_path), "--retries", "0"])
    assert end.value.code == 1
    assert "1 requests had no answer: run the same command again" in capsys.readouterr().err
    assert len((tmp_path / "gold.jsonl").read_text().splitlines()) == 7


def test_the_teacher_is_never_shown_an_evaluation_problem(tmp_path, capsys):
    np = pytest.importorskip("numpy")
    save_problems(tmp_path / "sft.jsonl", PROBLEMS)
    files.save_lines(tmp_path / corpora.HELD_OUT, [{"id": "lcb/x", "statement": PROBLEMS[4].statement.upper(),
                                                "ids": {}}])
    np.save(tmp_path / corpora.BOILERPLATE_FILE, np.empty(0, np.uint64))
    (tmp_path / corpora.MANIFEST).write_text(json.dumps({"pools": {"sft": {"file": "sft.jsonl"}}}))
    with pytest.raises(SystemExit) as end:
        teacher.main(["gold", "--teacher", "rule", "--judge", "rule", "--out", str(tmp_path)])
    assert end.value.code == 2 and "holds 1 evaluation problem(s)" in capsys.readouterr().err
