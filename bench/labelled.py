"""Real programs whose labels are known, through loaders and verifier: who is refused, who passes?

    python -m bench.labelled --humaneval HumanEval.jsonl --mbpp mbpp.jsonl --limit 100
    python -m bench.labelled --labelled kattis.jsonl --peer PATH    # beside LiveCodeBench's runner

Reference solutions of HumanEval and MBPP and mechanical mutants of them (one operator, constant or
comparison changed) are labelled by plain Python, which runs the same assertions without a sandbox.
A test of theirs is one assertion, read from standard input by the program; where an assertion
compares a call with a literal, the item is judged a second time as calls. `--labelled` takes JSON
lines of problems with tests (input, output) and submissions (code, label), `--apps` rows of
codeparrot/apps, whose solutions count as right. Every disagreement is printed. The data stay where
they are: nothing is written.
"""

import argparse
import ast
import json
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.problems import verifier_item
from prepare.readers import from_apps
from verifier import MODES, Verifier

SECONDS = 5                     # of CPU time for all assertions of a program
PLAIN = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
code, tests = json.load(sys.stdin)
for test in tests:
    names = dict(__name__="__main__")
    exec(code, names)
    exec(test, names)
print("ok")
"""
ASSERTING = "{}\nimport sys\nexec(sys.stdin.read())\nprint('ok')\n"


@dataclass
class Labelled:
    name: str
    right: bool
    item: dict                  # as the verifier takes it


# ------------------------------------------------------------------------------------------- data

def read(path: str | None, limit: int | None) -> list[dict]:
    if not path:
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()[:limit]]


def humaneval(row: dict) -> tuple[str, str, list[str]]:
    """(function, solution, assertions) of a row. What stands between assertions comes before
    each."""
    [check] = [node for node in ast.parse(row["test"]).body if isinstance(node, ast.FunctionDef)]
    others = [node for node in check.body if not isinstance(node, ast.Assert)]
    before = "\n".join([f"candidate = {row['entry_point']}", *map(ast.unparse, others)])
    asserts = [node for node in check.body if isinstance(node, ast.Assert)]
    tests = [f"{before}\n{ast.unparse(node)}" for node in asserts] or [before]
    return row["entry_point"], row["prompt"] + row["canonical_solution"], tests


def mbpp(row: dict) -> tuple[str, str, list[str]]:
    before = "\n".join([row.get("test_setup_code", ""), *row.get("test_imports", ())])
    tests = [f"{before}\n{test}" for test in row["test_list"]]
    called = [node.func.id for node in ast.walk(ast.parse(row["test_list"][0]))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    defined = {node.name for node in ast.walk(ast.parse(row["code"]))
               if isinstance(node, ast.FunctionDef)}
    return next(name for name in called if name in defined), row["code"], tests


def as_calls(function: str, tests: list[str]) -> list[dict] | None:
    """The assertions as call tests; None where one is no `f(literals) == literal` in JSON."""
    calls = []
    for test in tests:
        try:
            compared = ast.parse(test).body[-1].test
            [operator], [wanted] = compared.ops, compared.comparators
            arguments = [ast.literal_eval(node) for node in compared.left.args]
            value = ast.literal_eval(wanted)
            called = compared.left.func.id in (function, "candidate")
            given, output = json.dumps(arguments), json.dumps(value)
            same = json.loads(given) == arguments and json.loads(output) == value
        except (ValueError, AttributeError, TypeError):
            return None
        if not (isinstance(operator, ast.Eq) and called and same and not compared.left.keywords):
            return None
        calls.append({"input": given, "output": output})
    return calls


SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
         ast.Mod: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
         ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And}


def mutants(code: str, count: int) -> list[str]:
    """Programs that differ in one place; chosen by the program's checksum."""
    tree = ast.parse(code)
    places = [node for node in ast.walk(tree)
              if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS
              or isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS
              or isinstance(node, ast.Constant) and type(node.value) is int]
    random.Random(zlib.crc32(code.encode())).shuffle(places)
    changed = []
    for node in places[:count]:
        if isinstance(node, ast.Constant):
            node.value += 1
            changed.append(ast.unparse(tree))
            node.value -= 1
        elif isinstance(node, ast.Compare):
            kept, node.ops[0] = node.ops[0], SWAPS[type(node.ops[0])]()
            changed.append(ast.unparse(tree))
            node.ops[0] = kept
        else:
            kept, node.op = node.op, SWAPS[type(node.op)]()
            changed.append(ast.unparse(tree))
            node.op = kept
    return changed


def passes_plainly(code: str, tests: list[str]) -> bool:
    """In a Python of its own, without a sandbox: these programs are not hostile."""
    done = subprocess.run([sys.executable, "-I", "-c", PLAIN], input=json.dumps([code, tests]),
                          capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.endswith("ok\n")


def asserted(rows: list[dict], convert, name: str, per_solution: int) -> Iterator[Labelled]:
    """Solutions and mutants: as programs that read assertions, and as calls where that says the
    same."""
    for row in rows:
        function, solution, tests = convert(row)
        calls = as_calls(function, tests)
        for n, code in enumerate([solution, *mutants(solution, per_solution)]):
            right = passes_plainly(code, tests)
            label = f"{name} {row['task_id']} {'mutant ' + str(n) if n else 'solution'}"
            items = [{"input": test, "output": "ok\n"} for test in tests]
            limits = {"time_limit": SECONDS}
            yield Labelled(label, right, {"code": ASSERTING.format(code), "tests": items} | limits)
            if calls:
                yield Labelled(label + " as calls", right,
                               {"code": code, "tests": calls, "fn_name": function} | limits)


def submitted(rows: list[dict], tolerances: bool = True) -> Iterator[Labelled]:
    for row in rows:
        tests = [{"input": test["input"], "output": test["output"]} for test in row["tests"]]
        more = {"compare": "tokens"}
        if row.get("float_tolerance") and tolerances:
            more["float_tolerance"] = row["float_tolerance"]
        for submission in row["submissions"]:
            right = submission["label"] == "accepted"
            name = f"{row['id']} {submission['path']} ({submission['label']})"
            yield Labelled(name, right, {"code": submission["code"], "tests": tests} | more)


def apps(rows: list[dict]) -> Iterator[Labelled]:
    for row in rows:
        problem = from_apps(row)
        for n, code in enumerate(json.loads(row["solutions"])):
            yield Labelled(f"{problem.id} solution {n}", True, verifier_item(problem, code))


# ------------------------------------------------------------------------------------------ judges

def ours(mode: str, programs: list[Labelled], workers: int | None) -> list[tuple[bool, str]]:
    with Verifier(workers, mode) as verifier:
        verdicts = verifier.judge([program.item for program in programs])
    return [(verdict.passed, f"{verdict.status}: {verdict.message}") for verdict in verdicts]


def livecodebench(programs: list[Labelled]) -> list[tuple[bool, str]]:
    """Its own check of one program, 10 s a test, one after another."""
    from lcb_runner.evaluation.compute_code_generation_metrics import check_correctness
    outcomes = []
    for program in programs:
        item = program.item
        tests = {"inputs": [], "outputs": [], "fn_name": item.get("fn_name")}
        for test in item["tests"]:
            given = test["input"]
            if item.get("fn_name"):         # a line of JSON per argument
                given = "\n".join(map(json.dumps, json.loads(given)))
            tests["inputs"].append(given)
            tests["outputs"].append(test["output"])
        results, told = check_correctness({"input_output": json.dumps(tests)}, item["code"],
                                          timeout=10, debug=False)
        passed = len(results) == len(item["tests"]) and all(r is True for r in results)
        outcomes.append((passed, str(told)[:120]))
    return outcomes


def report(name: str, programs: list[Labelled], outcomes: list[tuple[bool, str]],
           seconds: float) -> None:
    counts = Counter((program.right, passed)
                     for program, (passed, _) in zip(programs, outcomes, strict=True))
    print(f"{name}: {counts[True, True] + counts[True, False]} right programs, "
          f"{counts[True, False]} refused; {counts[False, True] + counts[False, False]} wrong, "
          f"{counts[False, True]} accepted; {seconds:.0f} s", flush=True)
    for program, (passed, message) in zip(programs, outcomes, strict=True):
        if passed != program.right:
            print(f"    {'accepts' if passed else 'refuses'} {program.name}: {message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.labelled",
                                     description=__doc__.split("\n\n")[0])
    for flag in ("--humaneval", "--mbpp", "--labelled", "--apps"):
        parser.add_argument(flag, metavar="FILE")
    parser.add_argument("--limit", type=int, help="rows of each file (default: all)")
    parser.add_argument("--mutants", type=int, default=2, help="per solution (default %(default)s)")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--peer", metavar="PATH", help="a checkout of LiveCodeBench")
    args = parser.parse_args()
    sets = {
        "HumanEval": asserted(read(args.humaneval, args.limit), humaneval, "", args.mutants),
        "MBPP": asserted(read(args.mbpp, args.limit), mbpp, "MBPP", args.mutants),
        "labelled submissions": submitted(read(args.labelled, args.limit)),
        "APPS solutions": apps(read(args.apps, args.limit)),
    }
    for name, made in sets.items():
        programs = list(made)
        if not programs:
            continue
        judges = {mode: lambda mode=mode: ours(mode, programs, args.workers) for mode in MODES}
        if args.peer:
            sys.path.insert(0, args.peer)
            judges["LiveCodeBench"] = lambda: livecodebench(programs)
        for judge, call in judges.items():
            start = time.perf_counter()
            report(f"{name}, {judge}", programs, call(), time.perf_counter() - start)


if __name__ == "__main__":
    main()
