"""prepare/ask.py: an endpoint that misbehaves as real ones do, a local model, answers on disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from chat_server import MISBEHAVIOUR, N, PROBLEMS, Server, gold_from, reply_of, responder_at
from lib.errors import UserError
from lib.labels import Label, load_labels, save_labels
from lib.problems import save_problems
from prepare import ask
from prepare import prompts as judge_prompts
from prepare.judge import open_source

ROOT = Path(__file__).resolve().parent.parent
NOBODY = "http://127.0.0.1:9/v1"


# ----------------------------------------------------------------------------------------------
# Replies that fail

def test_a_server_that_fails_in_every_way_gives_the_same_gold_and_nothing_twice(tmp_path,
                                                                               monkeypatch):
    monkeypatch.setattr(ask, "LONGEST_WAIT", 0.001)
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[:2]
    last = len(MISBEHAVIOUR) - 1
    with Server(lambda visit: MISBEHAVIOUR[min(visit, last)]) as bad:
        found = gold_from(bad.spec, tmp_path / "bad", retries=len(MISBEHAVIOUR))[:2]
    assert found == expected
    assert bad.served == good.served and set(bad.served.values()) == {1}
    assert set(bad.visits.values()) == {len(MISBEHAVIOUR)}


@pytest.mark.parametrize("what", ["slow", "drip"])
def test_a_server_that_never_ends_a_reply_is_asked_again(tmp_path, what):
    with Server(lambda visit: what if visit == 0 else None) as server:
        model = responder_at(server.spec, tmp_path, timeout=0.3)
        [reply] = model.ask([judge_prompts.teacher(PROBLEMS[0], N)])
    assert reply.startswith("Here they are.")


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_a_refusal_is_an_empty_answer_and_so_is_a_thought_that_met_the_limit(tmp_path, reason):
    message = {"content": None, "refusal": "no" if reason == "stop" else None}
    reply = json.dumps({"choices": [{"message": message, "finish_reason": reason}]})
    with Server(lambda visit: reply) as server:
        assert responder_at(server.spec, tmp_path).ask(["x"]) == [""]
    assert len(server.requests) == 1


def test_one_text_that_the_server_refuses_costs_that_text_alone(tmp_path):
    """Too long for its context, or against its rules: other texts go on, and the next run asks for
    none of them."""
    texts = [f"x{i}" for i in range(5)]
    with Server(lambda visit: 400 if server.last_text == "too long" else None,
                reply=lambda text, seed: text) as server:
        model, counts = responder_at(server.spec, tmp_path, concurrency=1), Counter()
        found = model.ask_parsed(["too long", *texts], lambda reply, _: reply or None, counts,
                                 "judge")
        assert found == [None, *texts]
        assert counts["judge: unusable answer"] == 1 and model.unanswered == 0
        before = len(server.requests)
        assert responder_at(server.spec, tmp_path).ask(["too long", *texts]) == ["", *texts]
        assert len(server.requests) == before
        # where nothing has ever been answered, the request itself is wrong
        with pytest.raises(UserError, match="HTTP 400"):
            responder_at(server.spec, tmp_path / "new").ask(["too long"])


@pytest.mark.parametrize("header, seconds", [
    ("7", 7), ("0.5", 0.5), ("3600", ask.LONGEST_WAIT), (None, 0), ("soon", 0), ("²", 0),
    ("Wed, 21 Oct 2065 07:28:00 GMT", ask.LONGEST_WAIT),
])
def test_the_wait_that_a_server_asks_for_is_kept_up_to_a_limit(header, seconds):
    assert ask.retry_after(header) == seconds


def test_a_reply_with_half_a_character_can_be_written_to_every_file(tmp_path):
    with Server(reply=lambda text, seed: "A: \ud83d frogs\nB: \u2028\x00") as server:
        [reply] = responder_at(server.spec, tmp_path).ask(["x"])
    assert reply == "A: ? frogs\nB: \u2028\x00"
    save_labels(tmp_path / "x.jsonl", [Label("p", "s", reply, 1)])
    assert load_labels(tmp_path / "x.jsonl")[0].plan == reply


def test_an_unusable_reply_is_asked_for_again_with_another_seed_and_then_given_up(tmp_path):
    def seeds_of(problem):
        return {seed for text, seed in server.served
                if "KEEP or DROP" in text and problem.statement in text}
    with Server() as server:
        gold_from(server.spec, tmp_path)
    assert seeds_of(PROBLEMS[5]) == {0, 1}
    assert seeds_of(PROBLEMS[6]) == {0, 1, 2}


# ----------------------------------------------------------------------------------------------
# Requests that can never succeed

@pytest.mark.parametrize("status, mend", [
    (401, "set its key in the environment"), (404, "check the address"), (400, "the options")])
def test_a_refused_request_ends_the_run_in_one_line_without_the_key(tmp_path, status, mend):
    with Server(lambda visit: status) as server:
        with pytest.raises(UserError, match=mend) as error:
            responder_at(server.spec, tmp_path, key="sk-secret").ask([f"x{i}" for i in range(40)])
    assert f"HTTP {status}" in str(error.value) and "sk-secret" not in str(error.value)
    assert len(server.requests) < 40            # the others are not tried


def test_nobody_there_is_noticed_before_every_request_has_been_tried(tmp_path):
    model = responder_at(f"{NOBODY}#m", tmp_path, retries=0)
    with pytest.raises(UserError, match="does not answer .*run the same command again"):
        model.ask([f"x{i}" for i in range(1000)])
    assert model.unanswered == ask.GIVE_UP
    # nor does a single text without an answer count as no answer
    with pytest.raises(UserError, match="does not answer"):
        responder_at(f"{NOBODY}#m", tmp_path, retries=0).ask(["x"])


# ----------------------------------------------------------------------------------------------
# Keys and options

def test_a_key_with_a_line_end_works_and_is_never_shown(tmp_path):
    with Server(reply=lambda text, seed: "hello") as server:
        assert responder_at(server.spec, tmp_path, key="sk-secret\n").ask(["x"]) == ["hello"]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    endpoint = ask.Endpoint(server.spec, "sk-secret\x01", retries=0)      # no header may hold that
    assert endpoint.answer("x", 0) is None and "sk-secret" not in endpoint.trouble


def test_keys_come_from_the_environment_and_options_change_the_request(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    monkeypatch.setenv("JUDGE_API_KEY", "special")
    with Server(reply=lambda text, seed: "hello") as server:
        for role in ("teacher", "judge"):
            options = {"max_tokens": None, "max_completion_tokens": 7, "top_p": len(role)}
            source = open_source(server.spec, role, ask.Cache(tmp_path), temperature=0.0,
                                 max_new_tokens=9, options=options)
            source.ask(["x"])
            source.ask(["x"], attempt=1)
    keys = [headers["Authorization"] for headers in server.headers]
    assert keys == ["Bearer general"] * 2 + ["Bearer special"] * 2
    first, second = server.requests[:2]
    assert first == {"model": "imaginary", "messages": [{"role": "user", "content": "x"}],
                     "temperature": 0.0, "max_completion_tokens": 7, "top_p": 7}
    assert second == first | {"seed": 1, "temperature": ask.REPEAT_TEMPERATURE}
    assert "special" not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))


# ----------------------------------------------------------------------------------------------
# Answers on disk

def test_a_finished_run_is_reproduced_without_a_server(tmp_path):
    with Server() as server:
        expected = gold_from(server.spec, tmp_path)[:2]
    gold, counts, model = gold_from(f"{NOBODY}#imaginary", tmp_path)
    assert (gold, counts) == expected and model.answered == 0
    # another model has other answers
    with pytest.raises(UserError, match="does not answer"):
        gold_from(f"{NOBODY}#other", tmp_path, retries=0)


def test_what_failed_for_good_is_counted_and_alone_asked_for_by_the_next_run(tmp_path):
    broken = {judge_prompts.teacher(PROBLEMS[i], N) for i in (1, 2)}
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[:2]

    def reply(text, seed):
        assert text not in broken or healed, "a wrong reply"
        return reply_of(text, seed)
    healed = False
    with Server(reply=reply) as server:
        gold, counts, model = gold_from(server.spec, tmp_path / "bad", retries=1)
        assert counts["teacher: no answer"] == model.unanswered == 2
        assert len(gold) == len(expected[0]) - 2
        healed, before = True, Counter(server.served)
        found = gold_from(server.spec, tmp_path / "bad")[:2]
    assert found == expected
    statements = [PROBLEMS[i].statement for i in (1, 2)]
    for text, _ in server.served - before:
        assert text in broken or any(statement in text for statement in statements)


def test_a_damaged_answer_on_disk_is_asked_for_again(tmp_path):
    text = judge_prompts.teacher(PROBLEMS[0], N)
    with Server() as server:
        reply = responder_at(server.spec, tmp_path).ask([text])
        for path in tmp_path.rglob("*.json"):
            path.write_text('{"reply": "Her')
        assert responder_at(server.spec, tmp_path).ask([text]) == reply
    assert server.served[text, 0] == 2


def test_equal_requests_are_sent_once(tmp_path):
    text = judge_prompts.teacher(PROBLEMS[0], N)
    with Server() as server:
        assert len(set(responder_at(server.spec, tmp_path).ask([text] * 5))) == 1
    assert server.served == {(text, 0): 1}


def test_a_killed_run_continues_where_it_was_and_pays_for_nothing_twice(tmp_path):
    save_problems(tmp_path / "pool.jsonl", PROBLEMS)
    enough = threading.Event()
    resumed = False

    def reply(text, seed):
        if len(server.served) == 9:
            enough.set()
            if not resumed:
                time.sleep(60)
        return reply_of(text, seed)
    with Server(reply=reply) as server:
        flags = {"--teacher": server.spec, "--judge": server.spec, "--gold": "100",
                 "--problems": str(tmp_path / "pool.jsonl"), "--out": str(tmp_path),
                 "--concurrency": "1"}
        command = [sys.executable, "-m", "prepare.teacher", "gold"]
        for pair in flags.items():
            command += pair
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
        first = subprocess.Popen(command, **pipes)
        assert enough.wait(60)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        assert not (tmp_path / "gold.jsonl").exists()
        resumed = True
        second = subprocess.run(command, **pipes)
        assert second.returncode == 0, second.stderr
    with Server() as good:
        expected = gold_from(good.spec, tmp_path / "good")[0]
    lines = (tmp_path / "gold.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == expected
    assert server.served == good.served         # each request was answered once, before or after
    record = json.loads((tmp_path / "gold.json").read_text())
    assert record["counts"]["gold tuples"] == 8 and "no manifest" in record["warning"]
    assert record["models"][0]["model"] == "imaginary"


# ----------------------------------------------------------------------------------------------
# A local model

def test_a_local_models_replies_do_not_depend_on_what_else_is_asked(tmp_path):
    import tiny

    folder = str(tiny.qwen(tmp_path / "model"))
    model = open_source(folder, "planner", ask.Cache(tmp_path / "a"), max_new_tokens=8,
                        device="cpu")
    texts = [p.statement for p in PROBLEMS[:3]]
    replies = model.ask(texts)
    other = ask.Responder(model.source, ask.Cache(tmp_path / "b"))
    assert other.ask(texts[::-1][:2]) == replies[::-1][:2]
    assert model.ask(texts, attempt=1) != replies
    before = model.answered
    assert model.ask(texts) == replies and model.answered == before
