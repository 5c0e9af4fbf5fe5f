"""V(x, y): does a program pass its tests? Section 3.2, Table 11.

    with Verifier(workers=8) as verifier:
        test = {"input": "1\n", "output": "1\n"}
        verdicts = verifier.judge([{"code": "print(input())", "tests": [test]}])
        future = verifier.submit(item)          # one item: a concurrent.futures.Future

    python verifier.py judge FILE.jsonl --workers 8     # one verdict per line, in the order of FILE
    python verifier.py doctor                           # which protections hold here: tries each

An item has "code" (text, or null if there is no program) and "tests" ([{"input", "output"}]). It
may have "fn_name" (the tests are then calls: input is a JSON list of arguments, output a JSON
value), "time_limit" (seconds per test), "program_seconds" (of all its tests), "memory_mb",
"compare" ("lines" or "tokens"), "float_tolerance", "prelude" ("lcb"), "packages" (names of
installed ones that the program may import) and "want_outputs". A program is accepted if each of its
tests ran, ended normally (exit status 0) and printed or returned the right thing; the first failing
test ends it.

Only this file knows expected outputs; sandbox.py runs the programs. The two copy together and need
the standard library alone, on Linux. docs/verifier.md says what the sandbox covers and what it does
not, and what the tiers A to D are.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] == ["--supervisor"] and sys.version_info < (3, 11):
    del sys.path[0]     # this folder could shadow the standard library; later: PYTHONSAFEPATH

import contextlib
import functools
import json
import os
import re
import select
import signal
import subprocess
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation

FOLDER = os.path.dirname(os.path.abspath(__file__))
if FOLDER not in sys.path:
    sys.path.append(FOLDER)     # last, so that it shadows nothing

from sandbox import (           # noqa: E402
    LAYERS, MEMORY_MB, OUTPUT_MB, PATIENCE, PDEATHSIG, PROGRAM_SECONDS, SUBREAPER, TEST_SECONDS,
    TOTAL_MEMORY_MB, Allowance, Fault, Kernel, Result, Sandbox, family, reset_signals,
    start_process)

TIERS = "ABCD"
MODES = ("strict", "batch")

# ----------------------------------------------------------------------------- comparing outputs

# Python splits at 25 kinds of white space, C and contest judges at these
SPACE = " \t\n\r\v\f"
WORD = re.compile(f"[^{SPACE}]+")
INTEGER = re.compile(r"[+-]?[0-9]+")
# There is one way to match it, so that no text takes quadratic time. ASCII only, no 1_000: Decimal
# and float would take both.
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
INFINITY = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
TOKEN_TOLERANCE = 1e-5      # absolute, as CodeContests
# Differences are exact to 60 digits, whatever the exponents: floats would take a 17-digit integer
# for its neighbour, and anything for 1e999.
EXACT = Context(prec=60, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def same_output(output: str, expected: str, compare: str = "lines",
                tolerance: float | None = None) -> bool:
    """Is this what the test expects? docs/verifier.md compares these rules with those of others.

    lines (LiveCodeBench, APPS): stripped, line by line, equal as text or as exact decimals.
    tokens (CodeContests): tokens between white space, case-insensitive, numbers within 1e-5.
    tolerance: in both, numbers may differ by that much, absolutely or relative to the expected one.
    An expected integer is never relaxed to another integer, nor by a relative tolerance.
    """
    output, expected = output.strip(SPACE), expected.strip(SPACE)
    if output == expected:
        return True
    if compare == "tokens":
        return same_tokens(output.casefold(), expected.casefold(), tolerance)
    lines, wanted = output.split("\n"), expected.split("\n")
    if len(lines) != len(wanted):
        return False
    return all(same_line(a, b, tolerance) for a, b in zip(lines, wanted, strict=True))


def same_line(line: str, expected: str, tolerance: float | None) -> bool:
    if line.strip(SPACE) == expected.strip(SPACE):
        return True
    words, wanted = WORD.findall(line), WORD.findall(expected)
    if len(words) != len(wanted):
        return False
    for word, want in zip(words, wanted, strict=True):
        # without a tolerance all words must be numbers: "a  b" is not "a b", as in LiveCodeBench
        same_word = tolerance is not None and word == want
        if not same_word and not same_number(word, want, tolerance or 0.0):
            return False
    return True


def same_tokens(output: str, expected: str, tolerance: float | None) -> bool:
    words, wanted = WORD.findall(output), WORD.findall(expected)
    if len(words) != len(wanted):
        return False
    relative = tolerance is not None
    tolerance = TOKEN_TOLERANCE if tolerance is None else tolerance
    pairs = zip(words, wanted, strict=True)
    return all(a == b or same_number(a, b, tolerance, relative) for a, b in pairs)


def same_number(word: str, expected: str, tolerance: float, relative: bool = True) -> bool:
    value, wanted = parse_number(word), parse_number(expected)
    if value is None or wanted is None:
        return False
    if INTEGER.fullmatch(expected):
        if INTEGER.fullmatch(word):
            tolerance = 0.0
        relative = False
    return close(value, wanted, tolerance, relative)


def parse_number(word: str) -> Decimal | None:
    try:
        if NUMBER.fullmatch(word) or INFINITY.fullmatch(word):
            return Decimal(word)    # int() takes minutes for a million digits
    except InvalidOperation:        # an exponent of twenty digits
        pass
    return None


def close(value: Decimal, expected: Decimal, tolerance: float, relative: bool) -> bool:
    if value == expected:
        return True
    if not tolerance or not value.is_finite() or not expected.is_finite():
        return False
    allowed = Decimal(tolerance)
    if relative:
        allowed = EXACT.multiply(allowed, max(Decimal(1), EXACT.abs(expected)))
    return EXACT.abs(EXACT.subtract(value, expected)) <= allowed


def same_value(value, expected, tolerance: float | None) -> bool:
    """JSON values: equal; with a tolerance, each expected float, also inside lists, within it."""
    if value == expected or tolerance is None:
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        if len(value) != len(expected):
            return False
        pairs = zip(value, expected, strict=True)
        return all(same_value(a, b, tolerance) for a, b in pairs)
    if isinstance(value, dict) and isinstance(expected, dict):
        if value.keys() != expected.keys():
            return False
        return all(same_value(value[key], expected[key], tolerance) for key in value)
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if not number or not isinstance(expected, float):
        return False
    return close(Decimal(value), Decimal(expected), tolerance, relative=True)


def parse_json(text: str):
    """JSON; an integer of more than 4,300 digits becomes a Decimal, read in linear time."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=Decimal)


# -------------------------------------------------------------------------------- items, verdicts

class SandboxError(RuntimeError):
    """A fault of the machinery, after one retry: no verdict."""


@dataclass
class Verdict:
    passed: bool
    status: str             # accepted; wrong_answer, time_limit, memory_limit, output_limit,
                            # runtime_error, compile_error, empty (no program)
    tests_passed: int       # before the first that failed; with want_outputs, of all
    seconds: float          # wall clock of its tests
    message: str = ""       # for people
    # with want_outputs: of each test, None if it ended badly
    outputs: list[str | None] | None = None


def check_item(item: dict) -> None:
    """ValueError in one sentence if an item is not as the top of this file says."""
    if not isinstance(item, dict):
        raise ValueError(f"an item is an object with code and tests, not a {type(item).__name__}")
    for key in ("code", "tests"):
        if key not in item:
            keys = ", ".join(map(repr, item)) or "none"
            raise ValueError(f"the key {key!r} is missing; there is {keys}")
    code, tests = item["code"], item["tests"]
    if not isinstance(code, (str, type(None))):
        raise ValueError(f"code is text, or null if there is none, not a {type(code).__name__}")
    if not isinstance(tests, list) or not tests:
        raise ValueError("tests is a list of at least one test: nothing is accepted without one")
    for n, test in enumerate(tests, 1):
        for key in ("input", "output"):
            if not isinstance(test, dict) or not isinstance(test.get(key), str):
                raise ValueError(f"test {n} needs {key!r}, as text")
    if item.get("fn_name") is not None:
        check_calls(item["fn_name"], tests)
    if item.get("compare") not in (None, "lines", "tokens"):
        raise ValueError(f"compare is 'lines' or 'tokens', not {item['compare']!r}")
    if item.get("prelude") not in (None, "lcb"):
        raise ValueError(f"prelude is 'lcb', or null for none, not {item['prelude']!r}")
    check_packages(item.get("packages"))
    for key in ("time_limit", "program_seconds", "memory_mb", "float_tolerance"):
        value = item.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < 1e6):
            raise ValueError(f"{key} is a positive number, not {value!r}")


def check_packages(packages: list[str] | None) -> None:
    if packages is None:
        return
    if not isinstance(packages, list) or not all(isinstance(name, str) for name in packages):
        raise ValueError(f"packages is a list of names, not {packages!r:.60}")
    find_image(tuple(packages))


def check_calls(function: str, tests: list[dict]) -> None:
    if not isinstance(function, str) or not function.isidentifier() or len(function) > 200:
        raise ValueError(f"fn_name is the name of a function, not {function!r}")
    for n, test in enumerate(tests, 1):
        try:
            arguments, _ = parse_json(test["input"]), parse_json(test["output"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"test {n} of {function} is not JSON: {error}") from None
        if not isinstance(arguments, list):
            raise ValueError(f"the input of test {n} is a JSON list of the arguments of "
                             f"{function}, not {test['input']!r:.50}")


# --------------------------------------------------------------------- the supervisor of a worker

class Supervisor:
    """Comes to the verdict on one item at a time, in the sandboxes of one worker.

    strict: every test alone, in a process of its own. batch: in company, one after another in one
    process, but for one test, which has a fresh process; from the first that fails on, all run
    alone. So batch can only differ by accepting a program that passes because of what its own
    earlier tests left behind, in spite of Snapshot.restore, and passes the one test all the same.
    """

    def __init__(self, config: dict):
        self.config = config
        self.sandboxes: dict[tuple, Sandbox] = {}

    def start(self) -> dict[str, str]:
        """Try what the machine gives. The second sandbox, with numpy, starts when it is needed."""
        numpy = "active" if self.config["has_numpy"] else "off: not installed"
        return dict(self.sandbox(b"", {}).report, numpy=numpy)

    def sandbox(self, source: bytes, item: dict) -> Sandbox:
        """The one for this program; those with other packages or prelude start when needed."""
        config = self.config | item.get("image", {})
        config["prelude"] = item.get("prelude") or config["prelude"]
        config["numpy"] = b"numpy" in source and config["has_numpy"]
        kind = config["numpy"], config["prelude"], tuple(config["readable"])
        if kind not in self.sandboxes:
            self.sandboxes[kind] = Sandbox(config)
        return self.sandboxes[kind]

    def close(self) -> None:
        """End the sandboxes, and what a killed zygote has left: the subreaper inherits it."""
        for sandbox in self.sandboxes.values():
            sandbox.close()
        self.sandboxes.clear()
        while alive := family(os.getpid()):
            for pid, _, _ in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)

    def verdict(self, item: dict) -> dict:
        """The fields of the item's Verdict."""
        code, tests = item["code"] or "", item["tests"]
        self.item, self.tests = item, tests
        self.every_test = bool(item.get("want_outputs"))
        self.results: list[Result | None] = [None] * len(tests)
        if not code.strip():
            self.results[0] = Result("empty", "there is no program")
            return self.summary()
        self.allowance = self.allow(item)
        if item.get("fn_name") is not None:
            self.expected = [parse_json(test["output"]) for test in tests]
        source = code.encode("utf-8", "surrogatepass")
        if self.config["mode"] == "batch" and len(tests) > 1:
            self.run_batch(source)
        while (waiting := self.next_tests()):
            self.run(source, [(n, True) for n in waiting])
        return self.summary()

    def allow(self, item: dict) -> Allowance:
        seconds = item.get("time_limit") or self.config["test_seconds"]
        self.program_seconds = item.get("program_seconds") or self.config["program_seconds"]
        if self.program_seconds is None:
            self.program_seconds = max(PROGRAM_SECONDS, seconds * len(item["tests"]) / 4)
        memory_mb = item.get("memory_mb") or MEMORY_MB
        longest = max(len(test["output"]) for test in item["tests"])
        return Allowance(
            test_seconds=min(seconds, self.program_seconds),
            cpu_seconds=self.program_seconds,
            wall_seconds=PATIENCE * self.program_seconds,
            memory=int(memory_mb * 2**20),
            total_memory=int(max(TOTAL_MEMORY_MB, memory_mb * 1.5) * 2**20),
            output=max(OUTPUT_MB << 20, 2 * longest + (1 << 20)))

    def next_tests(self) -> list[int]:
        """The tests that are still to be run."""
        waiting = []
        for n, result in enumerate(self.results):
            if result is None:
                waiting.append(n)
            elif result.status != "accepted" and not self.every_test:
                break
        return waiting

    def run_batch(self, source: bytes) -> None:
        """All tests but one in company, and this one in a fresh process if the others pass.

        It is picked by a checksum: the same in every run, and nothing that a program could prepare
        for. The first test of a process is as good as one alone. Where another fails in company, or
        the one does, what company may have spoilt is forgotten, to be run alone.
        """
        count, spoilt = len(self.tests), False
        lone = 1 + zlib.crc32(source) % (count - 1)
        others = [n for n in range(count) if n != lone]
        self.run(source, [(n, False) for n in others])
        if all(map(self.passed, others)):
            self.run(source, [(lone, False)])
            spoilt = not self.passed(lone)
        for n, result in enumerate(self.results):
            if result is not None and not result.fresh and (spoilt or not self.passed(n)):
                self.results[n] = None

    def passed(self, n: int) -> bool:
        return self.results[n] is not None and self.results[n].status == "accepted"

    def run(self, source: bytes, tests: list[tuple[int, bool]]) -> None:
        """Run (test, alone?) pairs in one program process, as far as it lives and they pass."""
        allowance = self.allowance
        if allowance.cpu_seconds <= 0 or allowance.wall_seconds <= 0:
            late = Result("time_limit", f"all tests together: {self.program_seconds:g} s")
            for n, _ in tests:
                self.results[n] = late
            return
        box = self.sandbox(source, self.item)
        inputs = [(self.tests[n]["input"], alone) for n, alone in tests]
        results = box.run(source, inputs, allowance, self.item.get("fn_name"))
        with contextlib.closing(results):
            for (n, _), result in zip(tests, results):  # noqa: B905 (ends early)
                self.results[n] = result = self.compared(n, result)
                if result.status == "compile_error":
                    self.results = [result] * len(self.tests)
                    return
                if result.status != "accepted" and not (self.every_test and result.fresh):
                    return
                if allowance.cpu_seconds <= 0 or allowance.wall_seconds <= 0:
                    return

    def compared(self, n: int, result: Result) -> Result:
        if result.status != "ended":
            return result
        test, tolerance = self.tests[n], self.item.get("float_tolerance")
        if self.item.get("fn_name") is None:
            compare = self.item.get("compare") or "lines"
            same = same_output(result.output, test["output"], compare, tolerance)
        else:
            try:
                same = same_value(parse_json(result.output), self.expected[n], tolerance)
            except (ValueError, RecursionError, OverflowError):
                same = False
        result.status = "accepted" if same else "wrong_answer"
        if not same:
            expected, got = shorten(test["output"]), shorten(result.output)
            result.message = f"expected {expected}, got {got}"
        if not self.every_test:
            result.output = None
        return result

    def summary(self) -> dict:
        results = self.results
        passes = [result is not None and result.status == "accepted" for result in results]
        verdict = dict(passed=all(passes), status="accepted", tests_passed=len(passes), message="",
                       seconds=sum(result.seconds for result in results if result), outputs=None)
        if self.every_test:
            verdict["outputs"] = [result and result.output for result in results]
        if not all(passes):
            first = passes.index(False)
            failure = results[first]
            place = "" if failure.status in ("empty", "compile_error") else f"test {first + 1}: "
            verdict.update(status=failure.status, message=place + failure.message,
                           tests_passed=sum(passes) if self.every_test else first)
        return verdict


def shorten(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def supervise(descriptor: int) -> None:
    """Receive items, send verdicts, until the caller is gone or ends this process by SIGTERM."""
    from multiprocessing.connection import Connection   # pickles, between our own processes alone
    reset_signals()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    caller = Connection(descriptor)
    config = caller.recv()
    kernel = Kernel()
    kernel.prctl(SUBREAPER, 1)
    kernel.prctl(PDEATHSIG, signal.SIGTERM)     # when the thread that started us ends
    if os.getppid() != config["caller"]:
        return
    supervisor = Supervisor(config)
    work = supervisor.start     # first the report, then verdicts
    try:
        while True:
            try:
                answer = "done", work()
            except Fault as fault:
                supervisor.close()
                answer = "fault", str(fault)
            try:
                caller.send(answer)
                work = functools.partial(supervisor.verdict, caller.recv())
            except (EOFError, OSError):     # the caller is gone
                return
    finally:
        # blocking SIGTERM first raises what came before
        with contextlib.suppress(SystemExit):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        supervisor.close()


# --------------------------------------------------------------------------- the caller's process

def tier_of(report: dict[str, str]) -> str:
    active = {layer for layer, state in report.items() if state.startswith("active")}
    needs = dict(A={"namespaces", "seccomp"}, B={"identity", "landlock", "seccomp"},
                 C={"landlock", "seccomp"})
    for tier, needed in needs.items():
        if needed <= active:
            return tier
    return "D"


class Verifier:
    """Workers that judge programs; close it, or use it in a `with` statement.

    workers: programs judged at a time (default: one per processor). mode: see Supervisor. min_tier:
    ValueError if the machine gives less (default C). program_seconds: of all tests of a program
    (default: 120, or a quarter of what its tests may take, if that is more). prelude: "lcb" gives
    programs the names that LiveCodeBench's runner imports. packages: names of installed packages,
    next to numpy, that programs may import. layers: leave some out to try a lower tier. `tier` and
    `report` say what protects.
    """

    def __init__(self, workers: int | None = None, mode: str = "batch", min_tier: str | None = None,
                 *, test_seconds: float = TEST_SECONDS, program_seconds: float | None = None,
                 prelude: str | None = None, packages: Sequence[str] = (),
                 layers: tuple[str, ...] = LAYERS):
        import queue
        if sys.platform != "linux":
            raise OSError(f"the verifier needs Linux, not {sys.platform}")
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers is at least 1, not {workers}")
        if mode not in MODES:
            raise ValueError(f"mode is 'batch' or 'strict', not {mode!r}")
        if min_tier is not None and min_tier not in TIERS:
            raise ValueError(f"min_tier is one of {', '.join(TIERS)}, not {min_tier!r}")
        if prelude not in (None, "lcb"):
            raise ValueError(f"prelude is 'lcb' or None, not {prelude!r}")
        config = dict(find_image(tuple(packages)), mode=mode, prelude=prelude,
                      test_seconds=test_seconds,
                      program_seconds=program_seconds, layers=list(layers), caller=os.getpid(),
                      tmp=os.environ.get("TMPDIR", "/tmp"))
        self.test_seconds = test_seconds
        self._owner, self._closed, self._jobs = os.getpid(), False, queue.SimpleQueue()
        self._pool = [Worker(config, self._jobs) for _ in range(self.workers)]
        try:
            self.report = [worker.report.result() for worker in self._pool][0]
            self.tier = tier_of(self.report)
            if self.tier > (min_tier or "C"):
                missing = "; ".join(f"{layer}: {state}" for layer, state in self.report.items()
                                    if state != "active")
                raise ValueError(
                    f"this machine gives tier {self.tier} and {min_tier or 'C'} is asked for "
                    f"({missing}); min_tier={self.tier!r} would take it")
        except BaseException:
            self.close()
            raise

    def submit(self, item: dict):
        """The Future of an item's Verdict. Raises ValueError at once if the item is bad."""
        from concurrent.futures import Future
        check_item(item)
        if self._closed:
            raise ValueError("this Verifier is closed")
        if item.get("packages"):
            item = dict(item, image=find_image(tuple(item["packages"])))
        future: Future = Future()
        self._jobs.put((item, future))
        return future

    def judge(self, items) -> list[Verdict]:
        """The verdicts of items, in their order."""
        futures = [self.submit(item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()     # if an exception ended the waiting

    def close(self) -> None:
        """Kill what runs, cancel items that wait. Returns when no process is left."""
        import queue
        if self._closed or os.getpid() != self._owner:      # a fork of the caller does not own them
            return
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()[1].cancel()
        for worker in self._pool:
            self._jobs.put(None)
            worker.stop()
        for worker in self._pool:
            worker.thread.join()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Worker:
    """The caller's end of one supervisor: a thread that sends items and awaits verdicts."""

    def __init__(self, config: dict, jobs):
        from concurrent.futures import Future
        self.config, self.jobs = config, jobs
        self.process, self.stopping, self.lock = None, False, threading.Lock()
        self.protections: dict[str, str] | None = None      # as at the first start
        self.report: Future = Future()
        self.thread = threading.Thread(target=self.run, name="verifier", daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            self.report.set_result(self.start())
        except BaseException as error:
            self.report.set_exception(error)
        while (job := self.jobs.get()) is not None:
            item, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.verdict(item))
                except BaseException as error:
                    future.set_exception(error)
        self.discard()

    def verdict(self, item: dict) -> Verdict:
        """After a fault, once more with a new supervisor; then SandboxError."""
        for attempt in (1, 2):
            try:
                if self.process is None:
                    self.start()
                return Verdict(**self.ask(item))
            except (SandboxError, OSError) as error:
                self.discard()
                if attempt == 2 or self.stopping:
                    reason = "the Verifier was closed" if self.stopping else error
                    raise SandboxError(f"no verdict: {reason}") from None

    def start(self) -> dict[str, str]:
        """Start a supervisor, return its report. It ends with the thread that runs this."""
        from multiprocessing.connection import Pipe
        self.supervisor, theirs = Pipe()
        # all our processes hold the other end: when it reads as closed, all are gone
        self.alive, held = os.pipe()
        with theirs, self.lock:
            if self.stopping:
                raise SandboxError("the Verifier is closed")
            self.process = start_process(__file__, "--supervisor", theirs, held)
        os.close(held)
        report = self.ask(dict(self.config, alive=held))
        self.protections = self.protections or report
        if report != self.protections:      # say, a probe at its start was killed from outside
            raise SandboxError(f"a worker came back with other protections: {report}")
        return report

    def ask(self, request: dict) -> dict:
        try:
            self.supervisor.send(request)
            kind, content = self.supervisor.recv()
        except (EOFError, OSError):
            kind, content = "fault", "the supervisor of a worker died"
        if kind == "fault":
            raise SandboxError(content)
        return content

    def stop(self) -> None:
        """From another thread: what runs ends, nothing new starts."""
        with self.lock:
            self.stopping = True
            if self.process is not None:
                self.process.terminate()

    def discard(self) -> None:
        if self.process is None:
            return
        with self.lock:
            process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.supervisor.close()
        select.select([self.alive], [], [], 10.0)
        os.close(self.alive)


LOAD_ALL = """
import ctypes, os, sys
for path in sys.argv[1:]:
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(".so"):
                try: ctypes.CDLL(os.path.join(folder, name), os.RTLD_LAZY)
                except OSError: pass
maps = [line.rstrip().split(None, 5) for line in open("/proc/self/maps")]
paths = {fields[5] for fields in maps if len(fields) == 6 and ".so" in fields[5]}
print(*sorted(paths), sep="\\n")
"""


@functools.cache
def find_image(names: tuple[str, ...] = ()) -> dict:
    """Which files programs may see: standard library, numpy, packages, their shared objects.

    names: of packages beside numpy, in the same folder as numpy; the packages that they need must
    be named, too.
    These are found by loading every extension module in a throwaway interpreter (40 ms, once per
    process).
    """
    import importlib.util
    stdlib = os.path.realpath(os.path.dirname(os.__file__))
    folders = []
    for name in ("numpy", *names):
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations and spec.origin:
            folders.append(os.path.realpath(os.path.dirname(spec.origin)))
        elif name != "numpy":
            raise ValueError(f"{name} is no installed package (with a folder of its own)")
    sites = sorted({os.path.dirname(folder) for folder in folders})
    if len(sites) > 1:
        raise ValueError(f"packages are in one folder, not in {' and '.join(sites)}")
    packages = folders + [path for path in map("{}.libs".format, folders) if os.path.isdir(path)]
    command = [sys.executable, "-s", "-S", "-B", "-c", LOAD_ALL, stdlib + "/lib-dynload", *packages]
    maps = subprocess.run(command, env=dict(PYTHONSAFEPATH="1"), cwd="/", stdout=subprocess.PIPE,
                          text=True, check=True).stdout
    objects = {path for path in maps.splitlines() if not path.startswith((stdlib, *packages))}
    links = []
    for place in {os.path.dirname(path) for path in objects}:
        for entry in os.scandir(place):
            if entry.is_symlink() and ".so" in entry.name:
                links.append((entry.path, os.path.realpath(entry.path)))
    others = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
    third_party = [f"{stdlib}/{name}-packages" for name in ("site", "dist")]
    lib_links = [path for path in ("/lib", "/lib64", "/lib32") if os.path.islink(path)]
    return dict(
        stdlib=stdlib,
        site=sites[0] if sites else None,
        has_numpy=any(os.path.basename(folder) == "numpy" for folder in folders),
        readable=packages + sorted(objects) + [path for path in others if os.path.exists(path)],
        aliases=[(path, target) for path, target in links if target in objects],
        third_party=[path for path in third_party if os.path.isdir(path)],
        links=[(path, os.readlink(path)) for path in lib_links])


# --------------------------------------------------------------------------------------- commands

def read_items(path: str) -> list[dict]:
    items = []
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
        try:
            lines = file.readlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
            check_item(items[-1])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {n}: {error}") from None
    if not items:
        raise ValueError(f"{path} holds no items")
    return items


def command_judge(arguments) -> int:
    items, faults = read_items(arguments.file), 0
    options = dict(program_seconds=arguments.program_seconds, prelude=arguments.prelude,
                   packages=arguments.packages)
    with Verifier(arguments.workers, arguments.mode, arguments.min_tier, **options) as verifier:
        for future in [verifier.submit(item) for item in items]:
            try:
                line = asdict(future.result())
            except SandboxError as error:
                line = asdict(Verdict(False, "sandbox_error", 0, 0.0, str(error)))
                faults += 1
            if line["outputs"] is None:
                del line["outputs"]
            print(json.dumps(line), flush=True)
    return 1 if faults else 0


CANARIES = {    # each tries what it should not get; it prints why it did not
    "files": "open(given['file'])",
    "writing": "open(given['target'], 'w')",
    "packages": "sys.path.append(given['site']); __import__(given['package'])",
    "network": "socket.create_connection(('127.0.0.1', given['port']), 1)",
    "signals": "os.kill(given['pid'], 0)",
    "exec": "subprocess.run(['/bin/true'])",
    "root": "os.setuid(0); os.chown(given['file'], 0, 0)",
    "processes": "any(os.fork() == 0 and time.sleep(9) for _ in range(70)); time.sleep(0.5)",
    "memory": "bytearray(300 << 20)",
    "all memory": "[os.fork() == 0 and hoard() for _ in range(6)]; time.sleep(3)",
    "scratch": "[open(str(n), 'wb').write(bytes(1 << 20)) for n in range(100)]; time.sleep(0.5)",
    "output": "print('x' * (20 << 20), flush=True)",
    "time": "time.sleep(9)",
    "leftovers": "open('left') if given['again'] else "
                 "(open('left', 'w'), os.fork() == 0 and time.sleep(9))",
}
CANARY = """
import json, os, socket, subprocess, sys, time
def hoard():
    memory = bytearray(100 << 20)
    memory[::4096] = bytes(len(memory) // 4096)
    time.sleep(9)
given = json.loads(input())
try:
    {}
except (OSError, MemoryError, ImportError) as error:
    print(f"{{type(error).__name__}}: {{error}}"[:60], end="")
"""


EXPECTED = {    # what a contestant may expect, and what not every tier gives
    "pools": "import multiprocessing as m\nwith m.Pool(2) as p: print(sum(p.map(abs, [-1, 1])))",
    "/tmp": "open('/tmp/x', 'w').write('ab'); print(len(open('/tmp/x').read()))",
    "/dev/stdin": "print(open('/dev/stdin').read())",
}


def a_third_party_package() -> tuple[str, str]:
    """(folder, name), for a program to try to import."""
    for folder in sys.path:
        if folder.endswith("-packages") and os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name != "numpy" and os.path.exists(f"{folder}/{name}/__init__.py"):
                    return folder, name
    return "/", "none"


def command_doctor() -> int:
    """Try each protection: exit status 1 if one does not hold."""
    import socket
    import tempfile
    site, package = a_third_party_package()
    broken = 0
    with Verifier(1, "strict", "D") as verifier, tempfile.TemporaryDirectory() as folder, \
            socket.create_server(("127.0.0.1", 0)) as listener:
        for layer, state in dict(verifier.report, tier=verifier.tier).items():
            print(f"{layer:<12}{state}")
        given = dict(file=os.path.abspath(__file__), target=folder + "/canary", pid=os.getpid(),
                     port=listener.getsockname()[1], site=site, package=package)
        for name, attempt in CANARIES.items():
            item = dict(code=CANARY.format(attempt), want_outputs=True,
                        time_limit=0.5 if name == "time" else 5)
            for again in (False, True) if name == "leftovers" else (False,):
                test = dict(input=json.dumps(dict(given, again=again)), output="")
                verdict, = verifier.judge([dict(item, tests=[test])])
            broken += verdict.passed
            outcome = "DOES NOT HOLD" if verdict.passed else "holds"
            print(f"{name:<12}{outcome:<15}{verdict.outputs[0] or verdict.message}")
        for name, code in EXPECTED.items():
            verdict, = verifier.judge([dict(code=code, tests=[dict(input="2", output="2")])])
            outcome = "works" if verdict.passed else "does not work"
            print(f"{name:<12}{outcome:<15}{verdict.message}")
        print("mode        strict in this command, `judge` and evaluation; batch in training")
    return 1 if broken else 0


def main() -> int:
    import argparse
    parser = argparse.ArgumentParser(description="Run programs against tests in a sandbox.")
    commands = parser.add_subparsers(dest="command", required=True)
    judge = commands.add_parser("judge", help="a verdict for each line of a file, in its order")
    judge.add_argument("file", help="items as JSON lines; - is standard input")
    judge.add_argument("--workers", type=int,
                       help="programs judged at a time (default: one per processor)")
    judge.add_argument("--mode", choices=MODES, default="strict",
                       help="strict (default): a process per test; batch: several times faster")
    judge.add_argument("--min-tier", choices=TIERS, help="refuse less protection (default: C)")
    judge.add_argument("--program-seconds", type=float, metavar="S",
                       help="CPU time of all tests of a program (default: 120, or a quarter of "
                            "what its tests may take, if more); wall clock: 5 times as long")
    judge.add_argument("--prelude", choices=("lcb",),
                       help="lcb: the imports of LiveCodeBench's runner before every program; "
                            "scores without it are stricter than published ones (default: none)")
    judge.add_argument("--packages", nargs="+", default=[], metavar="NAME",
                       help="installed packages that programs may import, beside numpy")
    commands.add_parser("doctor", help="try each protection on this machine, say which hold")
    arguments = parser.parse_args()
    try:
        if arguments.command == "doctor":
            return command_doctor()
        return command_judge(arguments)
    except (ValueError, OSError, SandboxError) as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 1 if isinstance(error, SandboxError) else 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["--supervisor"]:
        supervise(int(sys.argv[2]))
    else:
        sys.exit(main())
