"""Programs that attack the verifier (tests/hostile): each contained, judged right, and leaving
nothing behind.

`VERIFIER_LAYERS=landlock,seccomp pytest tests/test_verifier_hostile.py` tries a lower tier."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

import verifier
from verifier import Verifier

HOSTILE = Path(__file__).parent / "hostile"
RIGHT = {
    "code": "print(sum(map(int, input().split())))",
    "tests": [{"input": "1 2\n", "output": "3\n"}] * 2,
}
WRONG = {
    "code": "import sys\nprint(2 * int(sys.stdin.read().split()[0]))",
    "tests": [{"input": "1 2\n", "output": "3\n"}],
}


def corpus():
    for path in sorted(HOSTILE.glob("*.txt")):
        for head, code in re.findall(r"^=== (.*)\n((?:(?!=== ).*\n)*)", path.read_text(), re.M):
            name, *options = head.split()
            yield path.stem + "/" + name, dict(option.split("=") for option in options), code


PROGRAMS = list(corpus())
# The endless ones take their time limit, so in batch mode, where they are as wild as the others,
# they are for `-m slow`.
CASES = [
    pytest.param(
        mode,
        name,
        options,
        code,
        id=f"{mode}-{name}",
        marks=[pytest.mark.slow] if mode == "batch" and "seconds" in options else [],
    )
    for mode in ("strict", "batch")
    for name, options, code in PROGRAMS
]


class Surroundings:
    """What an attacker would like to reach: a secret, a place to write, listeners, a process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.secret, self.target = folder / "secret", folder / "target"
        self.secret.write_text("ESCAPED")
        self.secret_is = self.state()
        self.tcp, self.udp = (
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(type=socket.SOCK_DGRAM),
        )
        self.udp.bind(("127.0.0.1", 0))
        self.path, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.path.bind(str(folder / "s"))
        self.abstract.bind(f"\0hostile-{os.getpid()}")
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(folder / "d"))
        (folder / "d").chmod(0o777)
        self.listeners = [self.tcp, self.udp, self.path, self.abstract, self.datagrams]
        for listener in self.listeners:
            listener.setblocking(False)
        self.path.listen()
        self.abstract.listen()
        self.given = json.dumps(
            dict(
                pid=os.getpid(),
                secret=str(self.secret),
                target=str(self.target),
                port=self.tcp.getsockname()[1],
                udp=self.udp.getsockname()[1],
                path=str(folder / "s"),
                datagrams=str(folder / "d"),
                abstract=f"hostile-{os.getpid()}",
                site=os.path.dirname(os.path.dirname(pytest.__file__)),
                verifier=verifier.__file__,
            )
        )
        self.places = [Path(p) for p in ("/tmp", "/dev/shm", "/var/tmp", "/etc", folder)]

    def state(self):
        return [
            (path.stat().st_mode, path.stat().st_mtime, path.stat().st_size)
            for path in (self.secret, Path(os.__file__))
        ]

    def check(self):
        assert self.secret.read_text() == "ESCAPED" and self.state() == self.secret_is
        assert not self.target.exists()
        for place in self.places:
            assert not (place / "hostile-test-file").exists() and not (place / "mark").exists()
        for listener in self.listeners:
            with pytest.raises(BlockingIOError):
                listener.recvfrom(1) if listener.type == socket.SOCK_DGRAM else listener.accept()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    os.environ["HOSTILE_SECRET"] = "ESCAPED"
    yield Surroundings(tmp_path_factory.mktemp("host"))
    del os.environ["HOSTILE_SECRET"]


@pytest.fixture(scope="module")
def judges():
    layers = tuple(os.environ.get("VERIFIER_LAYERS", ",".join(verifier.LAYERS)).split(","))
    made = {}

    def judge_for(mode):
        if mode not in made:
            made[mode] = judge = Verifier(1, mode, layers=layers)
            assert [v.status for v in judge.judge([RIGHT, WRONG])] == ["accepted", "wrong_answer"]
            judge.judge([dict(RIGHT, code="import numpy")])  # so that all the machinery is there
            judge.calm = processes(judge)
        return made[mode]

    yield judge_for
    for judge in made.values():
        judge.close()


def processes(judge):
    return {pid for pid, _, _ in verifier.family(judge._pool[0].process.pid)}


@pytest.mark.parametrize("mode, name, options, code", CASES)
def test_a_hostile_program_is_contained_and_leaves_nothing(
    judges, surroundings, mode, name, options, code
):
    judge = judges(mode)
    if judge.tier not in options.get("tiers", "ABC"):
        pytest.skip(f"tier {judge.tier} does not promise this")
    if "numpy" in name and judge.report["numpy"] != "active":
        pytest.skip("numpy is not installed")
    escaped = {"input": surroundings.given + "\n", "output": "ESCAPED\n"}
    tests = (
        [dict(escaped, output="first\n"), escaped]
        if options.get("tests") == "first"
        else [escaped]
    )
    if "call" in options:
        tests = [
            dict(input=json.dumps([test["input"]]), output=json.dumps(test["output"].strip()))
            for test in tests
        ]
    (verdict,) = judge.judge(
        [
            {
                "code": code,
                "tests": tests,
                "time_limit": float(options.get("seconds", 5)),
                "fn_name": options.get("call"),
            }
        ]
    )
    if "status" in options:
        assert verdict.status in options["status"].split(","), verdict
    else:
        assert not verdict.passed, verdict
    if options.get("tests") == "first" and verdict.status == "wrong_answer":
        assert verdict.tests_passed == 1, f"the first test must pass: {verdict}"
    assert processes(judge) == judge.calm, (
        "something survived the verdict, or the machinery did not"
    )
    assert [v.status for v in judge.judge([RIGHT, WRONG])] == ["accepted", "wrong_answer"]
    surroundings.check()
