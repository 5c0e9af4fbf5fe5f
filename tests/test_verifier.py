"""The verifier: verdicts, what a contestant may expect, limits, resilience, commands. Hostile
programs have a file of their own."""

import ast
import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sandbox
import verifier
from lib.errors import UserError
from lib.problems import load_problems
from verifier import SandboxError, Verifier, same_output

ROOT = Path(verifier.__file__).parent
ADD = "print(sum(map(int, input().split())))"


def item(code, *tests, **more):
    return dict(
        code=code, tests=[{"input": given, "output": output} for given, output in tests], **more
    )


def one(code, *tests, **more):
    return item(code, *(tests or [("", "ok\n")]), **more)


@pytest.fixture(scope="module")
def strict():
    with Verifier(1, "strict") as judge:
        yield judge


@pytest.fixture(scope="module")
def batch():
    with Verifier(1, "batch") as judge:
        yield judge


@pytest.fixture(scope="module", params=["strict", "batch"])
def both(request):
    return request.getfixturevalue(request.param)


def status(judge, *arguments, **more):
    return judge.judge([one(*arguments, **more)])[0].status


def processes_of(judge):
    return [
        pid for worker in judge._pool for pid, _, _ in verifier.family(worker.process.pid)
    ] + [worker.process.pid for worker in judge._pool]


def processes_of_living(judge):
    workers = [worker.process for worker in judge._pool]
    pids = [process.pid for process in workers if process is not None]
    return pids + [child for pid in pids for child, _, _ in verifier.family(pid)]


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def ended(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )  # an init that does not reap is not ours
    except OSError:
        return True


def gone(pids):
    return lambda: all(map(ended, pids))


# --------------------------------------------------------------------------------------- verdicts


def test_a_right_program_is_accepted_and_a_wrong_one_stops_at_its_first_failure(both):
    right, wrong, late = both.judge(
        [
            item(ADD, ("1 2", "3\n"), ("4 5\n", "9"), ("0 0", "0")),
            item("print(3)", ("1 2", "3"), ("4 5", "9"), ("1 2", "3")),
            item(
                "n = input()\nprint(n if n == '1' else 1 / 0)", ("1", "1"), ("1", "1"), ("2", "2")
            ),
        ]
    )
    assert (right.passed, right.status, right.tests_passed) == (
        True,
        "accepted",
        3,
    ) and right.seconds > 0
    assert (wrong.passed, wrong.status, wrong.tests_passed) == (False, "wrong_answer", 1)
    assert wrong.message == "test 2: expected '9', got '3'"
    assert (late.status, late.tests_passed) == ("runtime_error", 2)
    assert late.message == "test 3: line 2: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "code, expected",
    [
        (None, "empty"),
        ("", "empty"),
        (" \n", "empty"),
        ("print('ok'", "compile_error"),
        ("print('ok')\0", "compile_error"),
        ("\tprint('ok')\n  x", "compile_error"),
        ("print('ok')", "accepted"),
        ("print('no')", "wrong_answer"),
        ("1/0", "runtime_error"),
        ("import sys; print('ok'); sys.exit(1)", "runtime_error"),
        ("x = [0] * 10**9", "memory_limit"),
        ("while True: print('x' * 10**6)", "output_limit"),
    ],
)
def test_each_status_comes_from_the_program_that_earns_it(both, code, expected):
    (verdict,) = both.judge([one(code)])
    assert verdict.status == expected and verdict.passed == (expected == "accepted")


def test_a_program_without_tests_is_refused_and_never_accepted(strict):
    with pytest.raises(ValueError, match="at least one test"):
        strict.submit(item("print('ok')"))


def test_the_time_limit_is_ten_seconds_unless_the_item_has_its_own(both):
    assert both.test_seconds == 10.0
    start = time.monotonic()
    assert status(both, "import time\ntime.sleep(60)", time_limit=0.3) == "time_limit"
    assert time.monotonic() - start < 5


def test_with_want_outputs_every_test_is_run_and_has_its_output(both):
    code = (
        "n = int(input())\nprint(n, end='')\nif n == 2: raise SystemExit(1)\nif n == 3:\n"
        "  while True: pass"
    )
    tests = [("0", "0"), ("1", "x"), ("2", "2"), ("3", "3"), ("4", "x"), ("5", "5")]
    (verdict,) = both.judge([item(code, *tests, want_outputs=True, time_limit=0.3)])
    assert verdict.outputs == ["0", "1", None, None, "4", "5"]
    assert (verdict.status, verdict.tests_passed, verdict.passed) == ("wrong_answer", 2, False)
    (verdict,) = both.judge([one("print(", ("", ""), ("", ""), want_outputs=True)])
    assert verdict.outputs == [None, None] and verdict.status == "compile_error"


def test_verdicts_come_in_the_order_of_the_items_and_futures_in_any():
    with Verifier(2) as judge:
        slow = judge.submit(one("import time\ntime.sleep(9)\nprint('ok')"))
        numbers = judge.judge(
            [one(f"print({n})", ("", str(n)), want_outputs=True) for n in range(40)]
        )
        assert [v.outputs for v in numbers] == [[f"{n}\n"] for n in range(40)]
        assert not slow.done()


# ------------------------------------------------------------------- what a contestant may expect


@pytest.mark.parametrize(
    "code, given, output",
    [
        ("print(open(0).read().split()[1])", "1 2\n", "2"),
        ("print(open('/dev/stdin').readline())", "1 2\n", "1 2"),
        (
            "import sys\nprint(sys.stdin.buffer.readline(), sys.stdin.buffer.readline())",
            "1\n2\n",
            "b'1\\n' b'2\\n'",
        ),
        ("import sys\nprint(sys.stdin.read().count('\\n'))", "1\r\n2\r\n", "2"),
        ("import sys\nprint(repr(sys.stdin.buffer.read()))", "1\r\n2", "b'1\\r\\n2'"),
        ("print(input(), input())", "a\r\nb", "a b"),
        ("import os\nprint(os.read(0, 100).decode())", "a b", "a b"),
        ("for line in __import__('sys').stdin: print(line.strip(), end='')", "a\nb\nc", "abc"),
        ("try:\n  input()\nexcept EOFError:\n  print('end')", "", "end"),
        ("print(2 ** 20000 % 10 ** 9, len(str(7 ** 10000)))", "", f"{2**20000 % 10**9} 8451"),
        ("print(int(input()) % 7)", "1" * 20000, "4"),
        (
            "from math import *\nfrom operator import *\nimport builtins\n"
            "print(builtins.pow(2, 10, 1000))",
            "",
            "24",
        ),
        ("from os import *\nprint('ok')\nfrom io import *", "", "ok"),
        ("print('a')\nexit()\nprint('b')", "", "a"),
        ("print('a')\nquit(0)", "", "a"),
        ("import sys\nsys.stdout.write('no newline')", "", "no newline\n"),
        (
            "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, "
            "write_through=True)\nprint('wrapped')",
            "",
            "wrapped",
        ),
        ("import sys\nout = open(1, 'w')\nout.write('by descriptor')", "", "by descriptor"),
        ("import os\nos.write(1, b'raw')", "", "raw"),
        (
            "import sys, os, io\nclass W:\n  def __init__(s): s.b = io.StringIO()\n"
            "  def write(s, x): s.b.write(x)\n"
            "  def flush(s): os.write(1, s.b.getvalue().encode())\nsys.stdout = W()\n"
            "print('by a wrapper')",
            "",
            "by a wrapper",
        ),
        (
            "import atexit, sys\natexit.register(lambda: print('last'))\nprint('first')",
            "",
            "first\nlast",
        ),
        (
            "import sys\nclass D:\n  def __del__(self): sys.stdout.write('last')\nd = D()",
            "",
            "last",
        ),
        (
            "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
            "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
            "t = threading.Thread(target=lambda: print(f(50000)))\nt.start()",
            "",
            "50000",
        ),
        (
            "import sys\nsys.setrecursionlimit(10**6)\n"
            "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(100000))",
            "",
            "100000",
        ),
        (
            "import multiprocessing as m\nwith m.Pool(2) as p: print(sum(p.map(abs, [-1, 2])))",
            "",
            "3",
        ),
        ("import asyncio\nasync def f(): print('async')\nasyncio.run(f())", "", "async"),
        (
            "import tempfile\nwith tempfile.TemporaryFile('w+') as f: f.write('x'); f.seek(0); "
            "print(f.read())",
            "",
            "x",
        ),
        (
            "from fractions import Fraction as F\nfrom decimal import *\nimport statistics\n"
            "print(F(1, 3) + F(1, 6), Decimal('0.1') * 3)",
            "",
            "1/2 0.3",
        ),
        (
            "import dataclasses, enum, json, re, uuid, hashlib, zlib, sqlite3, csv, html, "
            "zoneinfo, argparse, logging, unittest\n"
            "print(hashlib.md5(b'').hexdigest()[:4], re.sub('a', 'b', 'aa'))",
            "",
            "d41d bb",
        ),
        ("if __name__ == '__main__':\n  print('main', __file__ is not None)", "", "main True"),
        (
            "import sys\nprint(len(sys.argv), sys.stdin.fileno(), sys.stdout.isatty())",
            "",
            "1 0 False",
        ),
        (
            "import sys\nprint(sys.stdin.mode, sys.stdout.mode, sys.stdin.name)",
            "",
            "r w <stdin>",
        ),  # as templates for fast input ask
        (
            "from resource import *\nsetrlimit(RLIMIT_STACK, (1 << 29, RLIM_INFINITY))\n"
            "setrlimit(RLIMIT_STACK, (-1, -1))\nprint('ok')",
            "",
            "ok",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor as T\n"
            "with T(16) as p: print(sum(map(len, p.map(bytes, [1 << 20] * 16))) >> 20)",
            "",
            "16",
        ),
        ("print('é€😀', input())", "ü", "é€😀 ü"),
        ("# -*- coding: latin-1 -*-\nprint('a')", "", "a"),
        (
            "import pickle, copy\nclass A: x = 1\nprint(pickle.loads(pickle.dumps(A())).x)",
            "",
            "1",
        ),
        (
            "from __future__ import annotations\ndef f(x: Undefined): return 1\nprint(f(0))",
            "",
            "1",
        ),
        (
            "x = 1\ndef g():\n  global x\n  x += 1\ng()\n"
            "print(x, [x for _ in range(2)], eval('x'))",
            "",
            "2 [2, 2] 2",
        ),
    ],
)
def test_a_program_finds_the_python_that_contestants_know(both, code, given, output):
    (verdict,) = both.judge([item(code, (given, output), (given, output))])
    assert verdict.passed, verdict


def test_numpy_is_there_and_gets_along_with_the_memory_limit(both):
    pytest.importorskip("numpy")
    code = (
        "import numpy as np\nfrom numpy.lib.stride_tricks import sliding_window_view\n"
        "a = np.ones((800, 800)) @ np.ones((800, 800))\nb = np.zeros(100 << 17)\n"
        "print(int(a.sum()) + len(b), np.fft.fft([1]).real)"
    )
    (verdict,) = both.judge([one(code, ("", f"{800**3 + (100 << 17)} [1.]"))])
    assert verdict.passed, verdict
    (verdict,) = both.judge([one("import numpy\nprint(numpy.ones(40 << 20))")])
    assert verdict.status == "memory_limit", verdict


# ------------------------------------------------------------------------------------------ calls


@pytest.mark.parametrize(
    "code, arguments, output",
    [
        ("def f(a, b): return a + b", "[1, 2]", "3"),
        (
            "class Solution:\n  def f(self, a: List[int]) -> Optional[int]: return max(a, "
            "default=None)",
            "[[]]",
            "null",
        ),
        (
            "class Solution:\n  def f(self, s): return Counter(s).most_common(1)",
            '["aab"]',
            '[["a", 2]]',
        ),
        (
            "class Solution:\n  def f(self, n): return [pow(2, n, 7), math.inf > 1, gcd(4, 6), "
            "inf > 1, sum(accumulate([1, 2]))]",
            "[5]",
            "[4, true, 2, true, 4]",
        ),
        (
            "class Solution:\n  @cache\n  def g(self, n): return 0 if n == 0 else 1 + self.g(n - "
            "1)\n  def f(self, n): return self.g(n)",
            "[3000]",
            "3000",
        ),
        (
            "def f(x):\n  print('noise' * 1000)\n  import sys; sys.stdout.write('more'); return x",
            '["a"]',
            '"a"',
        ),
        ("def f(x):\n  try: input()\n  except EOFError: return x", "[true]", "true"),
        ("def f(x): return (1, (2, 3))", "[0]", "[1, [2, 3]]"),
        ("def f(x): return {1: 'a', 'b': None}", "[0]", '{"1": "a", "b": null}'),
        ("def f(x): return x * x", "[1" + "0" * 5000 + "]", "1" + "0" * 10000),
        ("import numpy as np\ndef f(x): return np.cumsum(x)", "[[1, 2]]", "[1, 3]"),
        ("f = lambda *a: len(a)", "[]", "0"),
        ("def f(x): return 1.0", "[0]", "1"),
    ],
)
def test_calls_return_their_value_past_whatever_is_printed(both, code, arguments, output):
    (verdict,) = both.judge([item(code, (arguments, output), (arguments, output), fn_name="f")])
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    "below",
    [
        "data = sys.stdin.read().split()\n  print(Solution().f(int(data[0])))",
        "import unittest\n  unittest.main()",
        "sys.exit(3)",
    ],
)
def test_what_stands_below_a_main_guard_is_no_part_of_a_call(both, below):
    code = "import sys\nclass Solution:\n  def f(self, n): return n + 1\n"
    code += f"if __name__ == '__main__':\n  {below}\n"
    (verdict,) = both.judge([item(code, *[("[1]", "2")] * 3, fn_name="f")])
    assert verdict.passed, verdict


def test_a_program_that_is_called_is_a_module_that_can_be_found(both):
    code = (
        "import dataclasses, pickle, sys\n@dataclasses.dataclass\nclass A:\n  x: int\n"
        "def f(n): return pickle.loads(pickle.dumps(A(n))).x + len(sys.modules[__name__].__name__)"
    )
    (verdict,) = both.judge([item(code, *[("[1]", "9")] * 3, fn_name="f")])
    assert verdict.passed, verdict


def test_a_prelude_gives_the_names_of_livecodebench_and_only_if_asked(both):
    code = "d = defaultdict(int)\nd[gcd(4, 6)] += 1\nprint(d[2], sys.stdin.read(), __name__)"
    test = item(code, *[("x", "1 x __main__")] * 3)
    assert both.judge([test])[0].status == "runtime_error"
    with Verifier(1, "batch", prelude="lcb") as judge:
        code = "print(stdin.read(), pow(2, 10, 1000), open is io.open)"
        assert all(v.passed for v in judge.judge([test, item(code, ("x", "x 24 True"))]))
    with pytest.raises(ValueError, match="prelude"):
        Verifier(1, prelude="all")


def test_packages_are_there_only_if_asked():
    with Verifier(1, packages=["packaging"]) as judge:
        code = "from packaging.version import Version\nprint(Version('1.10') > Version('1.9'))"
        assert status(judge, code, ("", "True")) == "accepted"
        assert status(judge, "import pytest", ("", "")) == "runtime_error"
    with pytest.raises(ValueError, match="no installed package"):
        Verifier(1, packages=("no_such_package",))


def test_an_item_can_have_a_prelude_packages_and_time_of_its_own(both):
    prelude = "print(gcd(4, 6), len(defaultdict(int)))"
    assert status(both, prelude, ("", "2 0"), prelude="lcb") == "accepted"
    assert status(both, prelude, ("", "2 0")) == "runtime_error"
    code = "from packaging.version import Version\nprint(Version('1.10') > Version('1.9'))"
    assert status(both, code, ("", "True"), packages=["packaging"]) == "accepted"
    assert status(both, code, ("", "True")) == "runtime_error"
    slow = "import time\nwhile time.process_time() < 0.3: pass\nprint('ok')"
    assert status(both, slow, *[("", "ok")] * 4, program_seconds=0.5) == "time_limit"


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(prelude="all"), "prelude is 'lcb', or null for none, not 'all'"),
        (dict(packages="sympy"), "packages is a list of names, not 'sympy'"),
        (dict(packages=["no_such_package"]), "no_such_package is no installed package"),
        (dict(program_seconds=0), "program_seconds is a positive number, not 0"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_when_the_pool_is_loaded(tmp_path, wrong, told):
    row = dict(id="a", statement="x", tests=[dict(input="", output="")], **wrong)
    (tmp_path / "pool.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=re.escape(f"pool.jsonl line 1 (id 'a'): {told}")):
        load_problems(tmp_path / "pool.jsonl")


@pytest.mark.parametrize(
    "code, expected",
    [
        ("def g(x): return 3", "runtime_error"),
        ("def f(): return 3", "runtime_error"),
        ("def f(x): return {1, 2, 3}", "runtime_error"),
        ("def f(x): print(3)", "wrong_answer"),
        ("def f(x): return '3'", "wrong_answer"),
        ("def f(x): return [3]", "wrong_answer"),
        ("class A(int):\n  def __eq__(s, o): return True\ndef f(x): return A(4)", "wrong_answer"),
        (
            "def f(x):\n  class A(list):\n    def __iter__(s): return iter([3])\n  return A()",
            "wrong_answer",
        ),
        ("def f(x):\n  a = []\n  a.append(a)\n  return a", "runtime_error"),
        ("def f(x): return float('nan')", "wrong_answer"),
        ("def f(x):\n  print(3)\n  raise SystemExit", "wrong_answer"),
        ("def f(x):\n  import os\n  os._exit(0)", "wrong_answer"),
        ("def f(x):\n  while True: pass", "time_limit"),
        ("def f(x): return 'x' * (30 << 20)", "output_limit"),
        ("import os\nos.write(3, b'4')\ndef f(x): return 3", "wrong_answer"),
    ],
)
def test_a_call_that_returns_the_wrong_thing_is_not_accepted(both, code, expected):
    (verdict,) = both.judge(
        [
            item(
                code,
                ("[1]", "3"),
                fn_name="f",
                time_limit=0.3 if expected == "time_limit" else 10,
            )
        ]
    )
    assert verdict.status == expected, verdict


# ------------------------------------------------------------------------------------- comparison


@pytest.mark.parametrize(
    "output, expected, lines, tokens",
    [
        ("3\n", "3", True, True),
        ("3 \r\n4\r\n", "3\n4\n", True, True),
        ("\n\n3\n", "3", True, True),
        ("", "", True, True),
        ("3\n\n4", "3\n4", False, True),
        ("3  4", "3 4", True, True),
        ("a  b", "a b", False, True),
        ("a b", "a\nb", False, True),
        ("1.0", "1", True, True),
        ("1e3", "1000", True, True),
        ("0.333", "0.33333", False, False),
        ("0.333333", "0.333330", False, True),
        ("Yes", "YES", False, True),
        ("1", "2", False, False),
        ("3", "3 4", False, False),
        ("3 4", "3", False, False),
        ("1 2 3", "1 2", False, False),
        ("2 1", "1 2", False, False),
        ("100000", "100001", False, False),
        ("007", "7", True, True),
        ("+7", "7", True, True),
        ("-0", "0", True, True),
        ("nan", "nan", True, True),
        ("nan", "1", False, False),
        ("inf", "1e999", False, False),
        ("sNaN", "1", False, False),
        ("1_000", "1000", False, False),
        ("0x10", "16", False, False),
        ("1" * 9000, "1" * 9000, True, True),
        ("1" * 9000, "1" * 8999 + "2", False, False),
        ("1.00000001", "1", False, True),
        ("1e-6", "0", False, True),
        ("99999.99999999999", "100000", False, True),
        ("3\0", "3", False, False),
        ("3\r4", "3\n4", False, True),
        ("3\x0b4", "3\n4", False, True),
        ("3\x1c4", "3\n4", False, False),
        ("3\u20284", "3\n4", False, False),
        ("3\u200b", "3", False, False),
        ("1.", "1", True, True),
        (".5", "0.5", True, True),
        (".", "0", False, False),
        ("1e", "1", False, False),
        ("-nan", "0", False, False),
    ],
)
def test_the_two_comparisons_decide_as_their_origins_do(output, expected, lines, tokens):
    assert same_output(output, expected) is lines
    assert same_output(output, expected, "tokens") is tokens


def test_a_float_tolerance_is_absolute_or_relative_and_leaves_words_alone():
    for compare in ("lines", "tokens"):
        assert same_output("x 1.0009\n2", "x 1\n2", compare, 1e-3)
        assert same_output("1000100", "1000000.5", compare, 1e-3)
        assert not same_output("1000100", "1000000", compare, 1e-3)
        assert not same_output("x 1.1", "x 1", compare, 1e-3)
        assert not same_output("y 1", "x 1", compare, 1e-3)
    assert not same_output("X", "x", "lines", 1e-3)


@pytest.mark.parametrize(
    "output, expected, tolerance, same",
    [
        ("3.14159265359", "3.141592653589793", 1e-6, True),
        ("3.14159265359", "3.141592653589793", None, False),
        ("3.1416", "3.141592653589793", 1e-6, False),
        ("1000000.4", "1000000.0", 1e-6, True),
        ("1000002.0", "1000000.0", 1e-6, False),
        ("3.0", "3", 1e-6, True),
        ("2.9999999", "3", 1e-6, True),
        ("4", "3", 1.5, False),
        ("1000001", "1000000", 1e-6, False),
        ("1000001.0", "1000000", 1e-6, False),
        ("1.2345678901234568e16", "12345678901234567", 1e-6, False),
        ("12345678901234567.0", "12345678901234567", 1e-6, True),
        ("1", "1e999", 1e-6, False),
        ("1e999", "1e999", 1e-6, True),
        ("9.999999999e998", "1e999", 1e-6, True),
        ("1", "inf", 1e-6, False),
        ("1e999", "inf", 1e-6, False),
        ("Infinity", "inf", 1e-6, True),
        ("-inf", "inf", 1e-6, False),
        ("nan", "1.0", 1e-6, False),
        ("1e99999999999999999999", "1.5", 1e-6, False),
    ],
)
def test_a_tolerance_is_for_floats_and_leaves_integers_and_infinities_exact(
    output, expected, tolerance, same
):
    assert same_output(output, expected, "lines", tolerance) is same
    if tolerance:
        assert same_output(output, expected, "tokens", tolerance) is same


@pytest.mark.parametrize("compare", ["lines", "tokens"])
def test_what_only_python_takes_for_a_number_or_a_space_is_neither(compare):
    for output in ("\u0661\u0660", "1_0", "\uff11\uff10", "1e1_0"):
        assert not same_output(output, "10", compare)
        assert not same_output(output, "10.0", compare, 1e-6)
    for space in "\x1c\x1f\x85\xa0\u2003\u2028\u3000":
        assert not same_output(f"1{space}2", "1 2", compare, 1e-6)
        assert not same_output(f"12{space}", "12", compare)


def test_the_default_of_tokens_compares_an_expected_integer_exactly():
    assert not same_output("1.2345678901234568e16", "12345678901234567", "tokens")
    assert not same_output("100000.1", "100000", "tokens")
    assert same_output("1e5", "100000", "tokens")


@pytest.mark.parametrize(
    "code, expected, passes",
    [
        ("def f(x): return 0.1 + 0.2", "0.3", True),
        ("def f(x): return [[0.1 + 0.2], {'a': 0.1 + 0.2}]", '[[0.3], {"a": 0.3}]', True),
        ("def f(x): return [0.1 + 0.2, 3]", "[0.3, 3]", True),
        ("def f(x): return [0.1 + 0.2, 4]", "[0.3, 3]", False),
        ("def f(x): return 3.0", "3", True),
        ("def f(x): return 3.0000001", "3", False),
        ("def f(x): return 12345678901234568", "12345678901234567", False),
        ("def f(x): return float('inf')", "1e308", False),
        ("def f(x): return 1.0", "Infinity", False),
        ("def f(x): return float('inf')", "Infinity", True),
        ("def f(x): return True", "1.0", True),
        ("def f(x): return True", "1.0000001", False),
        ("def f(x): return '0.3'", "0.3", False),
    ],
)
def test_a_tolerance_reaches_each_float_inside_a_value(strict, code, expected, passes):
    (verdict,) = strict.judge([item(code, ("[1]", expected), fn_name="f", float_tolerance=1e-6)])
    assert verdict.passed is passes, verdict


def test_millions_of_digits_do_not_hold_the_judge_up(both):
    start = time.monotonic()
    code = "print('1' * 3_000_000)"
    assert status(both, code, ("", "1" * 2_999_999 + "2"), compare="tokens") == "wrong_answer"
    assert status(both, code, ("", "+" + "1" * 3_000_000)) == "accepted"
    forged = "import os\ndef f():\n  os.write(3, b'1' * 3_000_000)\n  os._exit(0)"
    assert status(both, forged, ("[]", "1"), fn_name="f") == "wrong_answer"
    forged = "import os\ndef f():\n  os.write(3, b'[' * 3_000_000)\n  os._exit(0)"
    assert status(both, forged, ("[]", "1"), fn_name="f") == "wrong_answer"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("end", ["x", ".x", "e", "1.1"])
def test_what_is_a_number_until_its_last_character_does_not_either(end):
    start = time.monotonic()
    assert not same_output("1" * 1_000_000 + end, "1", "tokens") and not same_output(
        "1" * 1_000_000 + end, "1", "lines", 1e-6
    )
    assert time.monotonic() - start < 5


# ----------------------------------------------------------------------- strict and batch are one

SAME = [
    ADD,
    "print(input())",
    "import random\nprint(random.random())",
    "import random\nrandom.seed()\nprint(random.random() < 2)",
    "print(hash('word'), {'a', 'b', 'c', 'd'})",
    "import numpy\nprint(numpy.random.rand())",
    "x = input()\nprint(x)\nif x == '3 4': 1/0",
    "import numpy\nprint(numpy.random.default_rng(1).random(), numpy.random.randint(100))",
    "import sys\nprint(sys.getrecursionlimit())\nsys.setrecursionlimit(5000)",
    "import random\nprint(random.sample(range(100), 5))\nrandom.shuffle([1, 2])",
    "from collections import Counter\nprint(getattr(Counter, 'n', 0))\nCounter.n = 1",
    "import math\nprint(hasattr(math, 'n'))\nmath.n = 1",
    "class A:\n  n = 0\nA.n += 1\nprint(A.n)",
    "def f(x=[]):\n  x.append(1)\n  return len(x)\nprint(f())",
    "import re\nprint(re.findall('.', input()))",
    "from functools import lru_cache\n@lru_cache(None)\ndef f(n): return n\nf(1)\n"
    "print(f.cache_info().misses)",
    "import sys\nprint('a', file=sys.stderr)",
    "import sys\nsys.stdout.close()",
    "import sys\nsys.stdin.close()\nprint(1)",
    "import os\nprint(os.getpid() > 0, len(os.listdir('.')))\nopen('f', 'w')",
    "print(input() == '3 4' and [][0])",
    "print(1)\nimport sys\nif input() == '3 4': sys.exit(2)",
    "import threading\nprint(threading.active_count())",
    "x = input()\nprint(x)\nwhile x == '3 4': pass",
    "import decimal\nprint(decimal.getcontext().prec)\ndecimal.getcontext().prec = 5",
    "print(sorted(globals())[:3], sorted(vars()))",
    "import time\nprint(time.time() > 0)",
    "n = 5\ndel n\nprint('n' in dir())",
]


def test_strict_and_batch_give_the_same_verdicts_and_outputs(strict, batch):
    tests = [("1 2", "3"), ("2 3", "5"), ("3 4", "7"), ("4 5", "9")]
    items = [
        item(code, *tests, want_outputs=wanted, time_limit=0.2 if "while" in code else 10)
        for code in SAME
        for wanted in (False, True)
    ]

    def essence(verdict):
        return verdict.status, verdict.tests_passed, verdict.message, verdict.outputs

    for one_item, alone, together in zip(
        items, strict.judge(items), batch.judge(items), strict=True
    ):
        assert essence(alone) == essence(together), one_item["code"]


CLOSED_LATE = """
def g():
    try:
        yield
    finally:
        {}
class Cycle: pass
c = Cycle()
c.me, c.generator = c, g()
next(c.generator)
"""
AT_THE_END = [
    CLOSED_LATE.format("print('closed')") + "print(input())",
    CLOSED_LATE.format("print(input())") + "print(input())",
    CLOSED_LATE.format("print('closed')") + "print(input())\ndel c, g, Cycle",
    CLOSED_LATE.format("print('closed')") + "import gc\ngc.disable()\nprint(input())",
    CLOSED_LATE.format("print('closed')") + "import gc\ndel c\ngc.freeze()\nprint(input())",
    CLOSED_LATE.format("print('closed')") + "class Holder: kept = c\ndel c\nprint(input())",
    "import sys\nclass D:\n  def __init__(s): s.me = s\n"
    "  def __del__(s): print(sys.stdin.readline())\nD()\nprint(input())",
    "import weakref\nclass C: pass\nc = C()\nweakref.finalize(c, print, 'final')\nprint(input())",
    "import functools\n@functools.lru_cache\ndef f(x): return x\nclass D:\n"
    "  def __del__(s): print('gone')\nf(D())\nprint(input())",
    "try: 1 / 0\nexcept ZeroDivisionError as e: kept = e\nclass D:\n"
    "  def __del__(s): print('gone')\nkept.x, kept.me = D(), kept\nprint(input())",
]


@pytest.mark.parametrize("code", AT_THE_END)
def test_what_a_test_leaves_for_the_collector_ends_with_it_as_in_python_itself(
    strict, batch, code
):
    """A suspended generator in a cycle was closed during the next test, printed there, or ate its
    input."""
    tests = []
    for given in ("1\n2\n", "3\n4\n", "5\n6\n", "7\n8\n"):
        done = subprocess.run(
            [sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True
        )
        tests.append((given, done.stdout))
    for judge in (strict, batch):
        (verdict,) = judge.judge([item(code, *tests)])
        assert verdict.passed, verdict


@pytest.mark.parametrize(
    "code",
    [
        "import {0}\nprint(1 if hasattr({0}, 'seen') else 0)\n{0}.seen = 1".format(name)
        for name in ("math", "os", "collections")
    ]
    + [
        "from collections import Counter as C\nprint(getattr(C, 'n', 0))\nC.n = 1",
        "import re\nprint(getattr(re.compile, 'n', 0))\nre.compile.n = 1",
    ],
)
def test_a_program_that_passes_by_what_its_own_tests_left_is_refused(strict, batch, code):
    """Its tests want 0 once and 1 ever after: right in company, wrong for a program that starts
    anew."""
    for count in (2, 3, 10):
        for judge in (strict, batch):
            (verdict,) = judge.judge([item(code, ("", "0"), *[("", "1")] * (count - 1))])
            assert (verdict.status, verdict.tests_passed) == ("wrong_answer", 1)


def test_a_program_that_fails_by_what_its_own_tests_left_is_accepted(strict, batch):
    for code in (
        "import math\nprint(math.pi)\nmath.pi = 3",
        "import os\nprint(3.141592653589793)\nif os.fork() == 0: os._exit(125)",
        "import os, sys\nprint(3.141592653589793)\nsys.stdout.flush()\nos._exit(0)",
    ):
        for judge in (strict, batch):
            (verdict,) = judge.judge([item(code, *[("", "3.141592653589793")] * 6)])
            assert verdict.passed, verdict


def test_an_exit_status_is_no_fault_of_the_machinery(strict, batch):
    code = "import os, sys\nprint(input())\nif sys.stdin.read(): os._exit(125)"
    for judge in (strict, batch):
        (verdict,) = judge.judge([item(code, ("1", "1"), *[("1\n2", "1")] * 5)])
        assert (verdict.status, verdict.tests_passed, verdict.message) == (
            "runtime_error",
            1,
            "test 2: exit status 125",
        )


def test_chance_starts_the_same_in_every_test_worker_and_mode(strict, batch):
    code = (
        "import random, numpy\nprint(hash('a'), random.random(), random.getrandbits(64), "
        "list({'x', 'y', 'z'}), "
        "numpy.random.rand(), numpy.random.permutation(10))"
    )
    seen = {
        output
        for judge in (strict, batch, batch)
        for output in judge.judge([one(code, *[("", "")] * 3, want_outputs=True)])[0].outputs
    }
    assert len(seen) == 1 and None not in seen


# ----------------------------------------------------------------------------------------- limits


def test_table_11_is_what_a_program_meets(strict):
    code = (
        "import resource as r, os\nget = lambda n: r.getrlimit(getattr(r, 'RLIMIT_' + n))\n"
        "print(get('AS'), get('CORE'), get('NPROC')[0] >= 64, get('FSIZE')[0] >> 20)"
    )
    (verdict,) = strict.judge([one(code, ("", f"({256 << 20}, {256 << 20}) (0, 0) True 8"))])
    assert verdict.passed, verdict
    assert (verifier.TEST_SECONDS, verifier.MEMORY_MB, sandbox.PROCESSES) == (10.0, 256, 64)


@pytest.mark.parametrize(
    "code",
    [
        "kept = []\nwhile True: kept.append([0] * 1000)",
        "def f():\n  kept = []\n  while True: kept.append('x' * 100 + str(len(kept)))\nf()",
        "kept = {}\nn = 0\nwhile True:\n  kept[n] = (n,)\n  n += 1",
        "x = 'x' * (200 << 20)\nprint(x + x)",
    ],
)
def test_memory_that_ends_politely_is_the_memory_limit(both, code):
    """There was no memory left to say that there was none."""
    assert status(both, code) == "memory_limit"
    assert status(both, code.replace("print(", "y = str("), time_limit=5) == "memory_limit"


@pytest.mark.parametrize("megabytes", [64, 256, 512])
def test_a_thread_may_ask_for_a_stack_larger_than_its_memory(both, megabytes):
    code = (
        "import sys, threading\nsys.setrecursionlimit(10**6)\n"
        f"threading.stack_size({megabytes} << 20)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(20000)))\nt.start()\nt.join()"
    )
    assert status(both, code, *[("", "20000")] * 3) == "accepted"


def test_all_tests_together_have_longer_if_there_are_many(tmp_path):
    code = "import time\nwhile time.process_time() < 0.06: pass\nprint(input())"
    many = item(code, *[("a", "a")] * 20, time_limit=0.2)
    with Verifier(1, "strict", program_seconds=0.5) as judge:
        assert judge.judge([many])[0].status == "time_limit"
    with Verifier(1, "strict") as judge:
        assert judge.judge([many])[0].passed
    allowances = []
    for count in (1, 48, 151):
        supervisor = verifier.Supervisor(dict(program_seconds=None, test_seconds=10.0))
        allowances.append(supervisor.allow(item("", *[("", "")] * count)).cpu_seconds)
    assert allowances == [120, 120, 377.5]


def test_an_item_can_have_a_memory_limit_of_its_own(both):
    code = "x = bytearray(300 << 20)\nprint('ok')"
    assert status(both, code) == "memory_limit"
    assert status(both, code, memory_mb=512) == "accepted"
    assert status(both, "x = bytearray(90 << 20)\nprint('ok')", memory_mb=100) == "memory_limit"
    assert (
        status(both, f"x = [{'0, ' * 300_000}]", memory_mb=5) == "compile_error"
    )  # no fault of the machinery


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is told what processes share")
def test_memory_that_processes_share_counts_once(strict):
    code = (
        "import os, time\ndata = b'x' * (90 << 20)\nfor _ in range(6):\n"
        "  if os.fork() == 0: time.sleep(0.3); os._exit(0)\n"
        "for _ in range(6): os.wait()\nprint('ok')"
    )
    assert status(strict, code) == "accepted"
    assert status(strict, code.replace("time.", "data = data[1:]; time.")) == "memory_limit"


def test_a_program_has_a_time_limit_over_all_its_tests():
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(input())"
    with Verifier(1, "strict", program_seconds=1.0) as judge:
        (verdict,) = judge.judge([item(code, *[("a", "a")] * 20)])  # 8 s of CPU time
    assert (
        verdict.status == "time_limit" and 1 <= verdict.tests_passed <= 10 and verdict.seconds < 6
    )


def test_a_long_right_output_is_no_flood(both):
    text = "x" * (12 << 20)
    assert status(both, f"print('x' * {len(text)})", ("", text)) == "accepted"
    assert status(both, f"print('x' * {len(text)})", ("", "x")) == "output_limit"


def test_a_large_input_arrives(both):
    text = "7 " * (4 << 20)
    assert (
        status(
            both,
            "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
            (text, str(7 * (4 << 20))),
            memory_mb=1000,
        )
        == "accepted"
    )


def test_a_busy_machine_does_not_make_a_right_program_late():
    """It needs 0.15 s of CPU of a limit of 0.3 s, and gets a sixth of a processor."""
    code = "import time\nwhile time.process_time() < 0.15: pass\nprint('ok')"
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        for _ in range(5)
    ]
    try:
        with Verifier(1) as judge:
            (verdict,) = judge.judge([one(code, time_limit=0.3)])
            assert verdict.passed and verdict.seconds > 0.36, verdict
            start = time.monotonic()
            assert status(judge, "while True: pass", time_limit=0.2) == "time_limit"
            assert status(judge, "import time\ntime.sleep(60)", time_limit=0.2) == "time_limit"
            assert time.monotonic() - start < 60
    finally:
        os.sched_setaffinity(0, before)
        for hog in hogs:
            hog.kill()
            hog.wait()


# ------------------------------------------------------------------------------------- resilience


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_worker_that_is_killed_is_replaced_and_its_item_judged_again(victim):
    """0: the supervisor, 1 and 2: the zygote, the process that entered its namespaces."""
    with Verifier(1) as judge:
        judge.judge([one("print('ok')")])
        future = judge.submit(one("import time\ntime.sleep(0.5)\nprint('ok')"))
        time.sleep(0.2)
        pids = [judge._pool[0].process.pid] + [
            pid for pid, _, _ in verifier.family(judge._pool[0].process.pid)
        ]
        os.kill(pids[victim], signal.SIGKILL)
        assert future.result(30).passed
        assert judge.judge([one("print('ok')")])[0].passed
        assert wait_until(gone(set(pids) - set(processes_of(judge))))
    assert wait_until(gone(pids))


@pytest.mark.parametrize("mode", ["strict", "batch"])
def test_a_test_that_is_killed_from_outside_has_no_verdict(mode):
    """The kernel's out-of-memory killer takes sandbox processes first: that was scored as wrong."""

    def kill_test(judge, seen):
        children = verifier.family(judge._pool[0].process.pid) if judge._pool[0].process else []
        for pid, _, _ in children[2:]:
            if pid not in seen and "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text():
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)

    with Verifier(1, mode) as judge:
        for kills, passed in ((1, True), (99, False)):
            future = judge.submit(one("import time\ntime.sleep(0.5)\nprint('ok')"))
            seen = set()
            while not future.done():
                if len(seen) < kills:
                    with contextlib.suppress(OSError, AttributeError):
                        kill_test(judge, seen)
                time.sleep(0.02)
            if passed:
                assert future.result().passed
            else:
                with pytest.raises(SandboxError, match="killed from outside|other protections"):
                    future.result()
        # a program that kills itself has one, or it could stop the training
        for code in ("import os\nos.kill(os.getpid(), 9)", "import signal\nsignal.raise_signal(9)"):
            assert status(judge, code) == "runtime_error"


def kill_at_random(judge, draw):
    """One of the processes below the workers, or a worker; False if there is none to kill."""
    pids = processes_of_living(judge)
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(pids), signal.SIGKILL)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strict", "batch"])
def test_two_hundred_kills_at_random_bring_no_wrong_verdict_and_leave_nothing(mode):
    """Workers, zygotes, programs and tests, during 160 items; what got no verdict is sent again."""
    busy = "import time\nend = time.process_time() + 0.02\nwhile time.process_time() < end: pass\n"
    items, expected = [], []
    for n in range(160):
        right = n % 3 > 0
        items.append(item(busy + ADD, *[("1 2", "3")] * 3, ("2 3", "5" if right else "6")))
        expected.append("accepted" if right else "wrong_answer")
    draw, kills, seen = random.Random(0), 0, set()
    with Verifier(2, mode) as judge:
        waiting = {n: judge.submit(one_item) for n, one_item in enumerate(items)}
        while waiting or kills < 200:
            seen |= set(processes_of_living(judge))
            if kills < 200:
                kills += kill_at_random(judge, draw)
                time.sleep(draw.uniform(0, 0.1))
            for n, future in list(waiting.items()):
                if not future.done():
                    continue
                if future.exception() is None:
                    assert future.result().status == expected[n]
                    del waiting[n]
                else:
                    assert isinstance(future.exception(), SandboxError)
                    waiting[n] = judge.submit(items[n])
            if not waiting and kills < 200:
                waiting[0] = judge.submit(items[0])
    assert wait_until(gone(seen))


def test_a_worker_that_starts_anew_has_the_protections_it_had():
    """A signal from outside that hits a probe at its start makes seccomp look refused."""
    with Verifier(1) as judge:
        worker = judge._pool[0]
        worker.protections = dict(worker.protections, seccomp="refused")
        worker.process.kill()
        with pytest.raises(SandboxError, match="other protections"):
            judge.judge([one("print('ok')")])


def test_a_program_that_does_not_compile_is_no_kill_however_slowly_it_ends(monkeypatch):
    """On a busy machine the sandbox's own SIGKILL may be quicker than the end of a program that has
    said that it does not compile; that counted as a kill from outside and ended a training run."""
    box = object.__new__(sandbox.Sandbox)
    box.report = {"seccomp": "active"}
    monkeypatch.setattr(box, "next_message", lambda allowance: b"Cline 1: SyntaxError")
    monkeypatch.setattr(box, "end", lambda: int(signal.SIGKILL))
    files = [sandbox.memory_file() for _ in range(3)]
    result, ends = box.await_test(tuple(files), True, sandbox.Allowance())
    for descriptor in files:
        os.close(descriptor)
    assert ends and (result.status, result.message) == ("compile_error", "line 1: SyntaxError")


def test_a_fault_is_retried_once_and_then_raised_never_scored():
    with Verifier(1) as judge:
        future = judge.submit(one("import time\ntime.sleep(30)\nprint('ok')"))
        killed = set()
        while not future.done():
            process = judge._pool[0].process
            if (
                process is not None
                and process.pid not in killed
                and len(verifier.family(process.pid)) >= 2
            ):
                killed.add(process.pid)
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        with pytest.raises(SandboxError, match="no verdict"):
            future.result()
        assert len(killed) == 2
        assert judge.judge([one("print('ok')")])[0].passed


def test_a_caller_may_ignore_and_block_signals():
    script = (
        "import signal, verifier\nfor n in (signal.SIGCHLD, signal.SIGALRM): signal.signal(n, "
        "signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGALRM})\n"
        "with verifier.Verifier(1, 'strict') as judge:\n"
        "  print(*[v.status for v in judge.judge([dict(code=c, tests=[dict(input='', "
        "output='ok')]) for c in ("
        '"print(\'ok\')", "print(\'ok\')\\nexit(1)", "import signal\\nsignal.setitimer(0, 0.1)\\n'
        'signal.pause()")])])'
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["accepted", "runtime_error", "runtime_error"], done.stderr


def test_a_sandbox_that_does_not_start_leaves_nothing(tmp_path, monkeypatch):
    """As where the folder of numpy has gone since it was looked for."""
    gone = dict(verifier.find_image(), stdlib=str(tmp_path / "gone"))
    monkeypatch.setattr(verifier, "find_image", lambda names: gone)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for layers in (verifier.LAYERS, ("landlock", "seccomp")):
        with pytest.raises(SandboxError, match="did not start"):
            Verifier(1, layers=layers)
    assert not os.listdir(tmp_path)


SCRIPT = """
import os, signal, sys, time
import verifier
# a test run in the background passes on that it ignores ^C
signal.signal(signal.SIGINT, signal.default_int_handler)
judge = verifier.Verifier(2, layers=tuple(sys.argv[1].split(",")), min_tier="D")
code = "import os, time\\nos.fork()\\ntime.sleep(600)"
item = dict(code=code, tests=[dict(input="", output="")], time_limit=900)
futures = [judge.submit(item) for _ in range(4)]
while sum(len(verifier.family(worker.process.pid)) for worker in judge._pool) < 6:
    time.sleep(0.05)
for worker in judge._pool:
    print(worker.process.pid, *[pid for pid, _, _ in verifier.family(worker.process.pid)], end=" ")
print(flush=True)
"""


@pytest.mark.parametrize(
    "layers, end",
    [
        *[
            ("namespaces,landlock,seccomp", end)
            for end in (
                "signal.SIGKILL",
                "signal.SIGTERM",
                "signal.SIGINT",
                "return",
                "exit hook",
                "exception",
            )
        ],
        *[("landlock,seccomp", end) for end in ("signal.SIGKILL", "signal.SIGINT", "return")],
    ],
)
def test_nothing_outlives_the_caller_however_it_ends(tmp_path, layers, end):
    tail = {"return": "", "exit hook": "sys.exit(3)", "exception": "raise OSError"}.get(
        end, "judge.judge([])\ntime.sleep(600)"
    )
    before = set(os.listdir("/tmp"))
    caller = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + tail, layers],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pids = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(pids) >= 6
    if end.startswith("signal"):
        os.kill(caller.pid, eval(end))
    caller.wait(30)
    assert wait_until(gone(pids)), f"left: {[pid for pid in pids if not gone([pid])()]}"
    assert wait_until(
        lambda: not [n for n in set(os.listdir("/tmp")) - before if n.startswith("verifier-")]
    )


def test_closing_does_not_wait_for_what_runs_and_leaves_nothing(both):
    judge = Verifier(2)
    futures = [
        judge.submit(one("import time\ntime.sleep(600)", time_limit=900)) for _ in range(5)
    ]
    time.sleep(0.3)
    pids, start = processes_of(judge), time.monotonic()
    judge.close()
    assert time.monotonic() - start < 5 and not any(
        os.path.exists(f"/proc/{pid}") for pid in pids
    )
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), SandboxError)
    with pytest.raises(ValueError, match="closed"):
        judge.submit(one("print('ok')"))
    judge.close()


def test_a_fork_of_the_caller_does_not_close_its_verifier(strict):
    child = os.fork()
    if child == 0:
        strict.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert status(strict, "print('ok')") == "accepted"


def test_programs_do_not_delay_one_another():
    with Verifier(2) as judge:
        slow = judge.submit(one("while True: pass", time_limit=3))
        start = time.monotonic()
        assert all(v.passed for v in judge.judge([one("print('ok')")] * 20))
        assert time.monotonic() - start < 3 and not slow.done()


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def leaks(judge, count, folder):
    mixed = [
        item(ADD, ("1 2", "3"), ("2 3", "5")),
        one("import os\nos.fork()\nprint('ok')"),
        one("1/0"),
        one("open('f', 'w').write('x')"),
        one("x = (", ("", "")),
        item("def f(x): return x", ("[1]", "1"), fn_name="f"),
    ]
    judge.judge(mixed * 5)
    supervisor = judge._pool[0].process.pid

    def state():
        family = verifier.family(supervisor)
        with open(f"/proc/{supervisor}/statm") as file:
            return (
                descriptors(os.getpid()),
                descriptors(supervisor),
                [descriptors(pid) for pid, _, _ in family],
                len(family),
                os.listdir(folder),
            ), int(file.read().split()[1])

    before, pages = state()
    for _ in range(count // len(mixed)):
        judge.judge(mixed)
    after, pages_after = state()
    assert after == before
    assert pages_after - pages < 500  # 2 MB


@pytest.mark.parametrize("count", [150, pytest.param(50_000, marks=pytest.mark.slow)])
def test_many_verdicts_leak_nothing(tmp_path, monkeypatch, count):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Verifier(1) as judge:
        leaks(judge, count, tmp_path)
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------ tiers


def test_a_tier_that_the_machine_lacks_is_refused_with_its_reason():
    with pytest.raises(ValueError, match="tier D .* C is asked for .*seccomp: off"):
        Verifier(1, layers=("namespaces", "landlock"))
    with Verifier(1, min_tier="D", layers=()) as judge:
        assert judge.tier == "D" and status(judge, "print('ok')") == "accepted"
    with pytest.raises(ValueError, match="min_tier is one of"):
        Verifier(1, min_tier="Z")


@pytest.mark.parametrize(
    "layers, mode",
    [
        (("landlock", "seccomp"), "strict"),
        (("landlock", "seccomp"), "batch"),
        (("seccomp",), "strict"),
        ((), "batch"),
    ],
)
def test_right_and_wrong_are_the_same_without_namespaces(layers, mode):
    items = [
        item(ADD, ("1 2", "3"), ("2 3", "5")),
        item("print(3)", ("1 2", "3"), ("2 3", "5")),
        one("import os, decimal\nos.fork()"),
        one(
            "from fractions import Fraction\nopen('f', 'w').write('x')\nprint('ok')",
            ("", "ok"),
            ("", "ok"),
        ),
        one("while True: pass", time_limit=0.3),
        one("import encodings.idna, xml.dom.minidom, unittest\nprint('ok')"),
        one("import numpy.polynomial\nprint('ok')"),
    ]
    with Verifier(1, mode, min_tier="D", layers=layers) as judge:
        assert [v.status for v in judge.judge(items)] == [
            "accepted",
            "wrong_answer",
            "wrong_answer",
            "accepted",
            "time_limit",
            "accepted",
            "accepted",
        ]


NEEDED_CALLS = set("""
    read write futex clone exit_group getrandom rt_sigreturn wait4
""".split())
FORBIDDEN_CALLS = set("""
    execve execveat socket setsockopt connect bind listen accept accept4 ptrace
    process_vm_readv process_vm_writev mount umount2 pivot_root chroot unshare setns setuid
    setgid setresuid setresgid setreuid setgroups capset keyctl add_key request_key bpf
    perf_event_open io_uring_setup io_uring_enter memfd_create userfaultfd shmget semget
    msgget mq_open mlock mlockall mknod mknodat setxattr pidfd_open pidfd_getfd seccomp
    clone3 kexec_load init_module reboot swapon personality open_by_handle_at
    name_to_handle_at fanotify_init inotify_init1 setsid setpgid setpriority
    sched_setscheduler kcmp quotactl settimeofday clock_settime adjtimex sethostname acct
    syslog
""".split())
HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("machine", HEADERS)
def test_only_listed_system_calls_are_allowed(machine):
    """The lists are numbers; the kernel's own headers say what they mean."""
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header}")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    names = {int(n): name for name, n in pattern.findall(header.read_text())}
    allowed = set()
    for part in sandbox.ALLOWED_CALLS[machine].split():
        first, _, last = part.partition("-")
        for n in range(int(first), int(last or first) + 1):
            allowed.add(names.get(n, "newer"))
    assert NEEDED_CALLS <= allowed
    assert not allowed & FORBIDDEN_CALLS
    assert len(sandbox.seccomp_filter(machine, True, True)) % 8 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_an_ordinary_user_is_protected_as_well(tmp_path):
    python = next(
        (p for p in (sys.executable, "/usr/bin/python3") if readable_by_all(os.path.realpath(p))),
        None,
    )
    if python is None:
        pytest.skip("no Python here that another user may run")
    shutil.copy(verifier.__file__, tmp_path)
    shutil.copy(sandbox.__file__, tmp_path)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest", "popen")):
            parent.chmod(0o755)
    script = (
        "import verifier\nfor layers in (verifier.LAYERS, verifier.LAYERS[1:]):\n"
        " with verifier.Verifier(1, 'strict', layers=layers) as judge:\n"
        "  print(judge.tier, [v.status for v in judge.judge([dict(code=c, tests=[dict(input='', "
        "output='1')]) for c in"
        " ('print(1)', 'open(\"/etc/passwd\")', 'import os, time\\n"
        "if os.fork() == 0: time.sleep(99)\\nprint(1)')])])"
    )
    done = subprocess.run(
        [python, "-c", script],
        cwd=tmp_path,
        user=12345,
        group=12345,
        extra_groups=[],
        capture_output=True,
        text=True,
        env=dict(PYTHONDONTWRITEBYTECODE="1"),
    )
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == 2, done.stderr
    for tier, statuses in lines:
        assert tier in "AC" and ast.literal_eval(statuses) == [
            "accepted",
            "runtime_error",
            "accepted",
        ]


def readable_by_all(path):
    return all(
        parent.stat().st_mode & 0o005 == 0o005 for parent in [Path(path), *Path(path).parents]
    )


# --------------------------------------------------------------------------------------- commands


def run(*arguments, text=None, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "verifier.py", *arguments],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


COUNTED = """
import os, sys, time
sys.path.insert(0, {root!r})
from bench.verifier import adopt_orphans, cpu_seconds
adopt_orphans()
before = cpu_seconds()
helper = os.fork()
if helper == 0:
    if os.fork() == 0:
        while time.process_time() < 0.1: pass
    os._exit(0)
os.waitpid(helper, 0)
while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT) is None: time.sleep(0.01)
assert cpu_seconds() - before >= 0.08
"""


def test_the_bench_counts_the_time_of_orphans_and_of_the_dead():
    """The CPU time of a peer's helper vanished with it: a program took -3 ms."""
    subprocess.run([sys.executable, "-c", COUNTED.format(root=str(ROOT))], check=True)


def test_the_file_works_alone_in_an_empty_folder(tmp_path):
    shutil.copy(verifier.__file__, tmp_path)
    shutil.copy(sandbox.__file__, tmp_path)
    (tmp_path / "items.jsonl").write_text(
        "\n".join(
            json.dumps(i)
            for i in [item(ADD, ("1 2", "3")), one("print('no')", want_outputs=True), one(None)]
        )
        + "\n"
    )
    for mode in ("strict", "batch"):
        done = run("judge", "items.jsonl", "--workers", "1", "--mode", mode, cwd=tmp_path)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0 and done.stderr == ""
        assert [line["status"] for line in lines] == ["accepted", "wrong_answer", "empty"]
        assert set(lines[0]) == {"passed", "status", "tests_passed", "seconds", "message"}
        assert lines[1]["outputs"] == ["no\n"]


@pytest.mark.parametrize(
    "content, told",
    [(b"\xfd\xfe", "is not UTF-8 text"), (b"\n", "holds no items"), (b"[1", "line 1: Expecting")],
)
def test_a_file_that_holds_no_items_is_named(tmp_path, content, told):
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {told}"):
        verifier.read_items(str(path))


def test_items_may_come_by_standard_input():
    done = run("judge", "-", "--workers", "1", text=json.dumps(one("print('ok')")))
    assert done.returncode == 0 and json.loads(done.stdout)["passed"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: Expecting"),
        ("[1]", "an item is an object"),
        ('{"tests": []}', "the key 'code' is missing"),
        ('{"code": "x"}', "the key 'tests' is missing"),
        ('{"code": "x", "tests": []}', "at least one test"),
        ('{"code": 3, "tests": [{"input": "", "output": ""}]}', "code is text"),
        ('{"code": "x", "tests": [{"input": ""}]}', "test 1 needs 'output'"),
        ('{"code": "x", "tests": [{"input": 1, "output": ""}]}', "test 1 needs 'input'"),
        (
            '{"code": "x", "tests": [{"input": "", "output": ""}], "compare": "sets"}',
            "'lines' or 'tokens', not 'sets'",
        ),
        (
            '{"code": "x", "tests": [{"input": "", "output": ""}], "time_limit": -1}',
            "time_limit is a positive number",
        ),
        (
            '{"code": "x", "tests": [{"input": "", "output": ""}], "time_limit": "1"}',
            "time_limit is a positive number",
        ),
        (
            '{"code": "x", "tests": [{"input": "1", "output": "1"}], "fn_name": "f"}',
            "a JSON list of the arguments of f",
        ),
        (
            '{"code": "x", "tests": [{"input": "[", "output": "1"}], "fn_name": "f"}',
            "test 1 of f is not JSON",
        ),
        (
            '{"code": "x", "tests": [{"input": "[]", "output": "1"}], "fn_name": "f()"}',
            "fn_name is the name of a function",
        ),
    ],
)
def test_a_bad_line_is_one_clear_sentence_and_exit_2(
    tmp_path, monkeypatch, capsys, line, message
):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(one("print('ok')")) + "\n" + line + "\n")
    monkeypatch.setattr(sys, "argv", ["verifier.py", "judge", str(path)])
    assert verifier.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err and f"{path} line 2" in err


def test_bad_arguments_are_one_clear_sentence_and_exit_2(tmp_path):
    done = run("judge", str(tmp_path / "absent.jsonl"))
    assert (
        done.returncode == 2
        and "absent.jsonl" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    for bad in (dict(workers=0), dict(mode="quick"), dict(min_tier="E")):
        with pytest.raises(ValueError):
            Verifier(**{"workers": 1, **bad})


def test_a_lower_tier_has_no_process_pools_and_no_absolute_tmp_and_the_doctor_says_so(monkeypatch):
    """Tiers B and C share the host's files with no one: relative paths are what programs have."""
    lower = functools.partial(Verifier, layers=("landlock", "seccomp"))
    with lower(1, "strict") as judge:
        for name, code in verifier.EXPECTED.items():
            expected = "accepted" if name == "/dev/stdin" else "runtime_error"
            assert status(judge, code, ("2", "2")) == expected, name
    monkeypatch.setattr(verifier, "Verifier", lower)
    monkeypatch.setattr(verifier, "CANARIES", {})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert verifier.command_doctor() == 0
    assert re.findall(r"(\S+) +does not work", printed.getvalue()) == ["pools", "/tmp"]


def test_the_doctor_tries_every_protection(tmp_path):
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (
        "namespaces",
        "landlock",
        "seccomp",
        "identity",
        "network",
        "memory",
        "processes",
        "files",
        "tier",
    ):
        assert word in done.stdout


def test_importing_the_verifier_is_cheap():
    code = (
        "import sys\nbefore = set(sys.modules)\nimport verifier\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        "numpy",
        "torch",
        "multiprocessing",
        "concurrent",
        "argparse",
        "asyncio",
        "ctypes",
    } & set(loaded)
