"""Makers of rows in the schema of each corpus, and of small local copies of all five.

    corpus_rows.apps_row(3, url="")             # one row; keyword arguments replace columns
    sources = corpus_rows.write_sources(folder) # {corpus: path}, as --local takes them
"""

import base64
import json
import pickle
import random
import zlib
from pathlib import Path

TEST = {"input": "1 2\n", "output": "3\n"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(n: int, seed) -> str:
    """n words that no other seed's text shares in any order."""
    rng = random.Random(f"words {seed}")
    return " ".join("".join(rng.choices(LETTERS, k=rng.randint(4, 9))) for _ in range(n))


def code_contests_row(number: int = 0, **changes) -> dict:
    row = {
        "name": f"{1000 + number}_A. Some Name",
        "description": words(80, f"cc {number}"),
        "public_tests": {"input": ["1\n"], "output": ["2\n"]},
        "private_tests": {"input": ["3\n"], "output": ["4\n"]},
        "generated_tests": {"input": ["5\n", "7\n"], "output": ["6\n", "8\n"]},
        "source": 2,
        "difficulty": 7,
        "cf_contest_id": 1000 + number,
        "cf_index": "A",
        "cf_points": 0.0,
        "cf_rating": 800,
        "cf_tags": ["math"],
        "time_limit": {"seconds": 1, "nanos": 500_000_000},
        "memory_limit_bytes": 256_000_000,
        "input_file": "",
        "output_file": "",
    }
    return row | changes


def apps_row(number: int = 0, tests=None, **changes) -> dict:
    """`tests`: an object or the JSON text of the column input_output."""
    if tests is None:
        tests = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
    row = {
        "id": number,
        "question": words(80, f"apps {number}"),
        "solutions": "",
        "input_output": tests if isinstance(tests, str) else json.dumps(tests),
        "difficulty": "introductory",
        "url": f"https://codeforces.com/problemset/problem/{5000 + number}/B",
        "starter_code": "",
    }
    return row | changes


def livecodebench_row(number: int = 0, public=None, private=None, **changes) -> dict:
    if public is None:
        public = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    if private is None:
        private = [{"input": "3\n", "output": "4\n", "testtype": "stdin"}]
    row = {
        "question_title": f"Title {number}",
        "question_content": words(80, f"lcb {number}"),
        "platform": "atcoder",
        "question_id": f"abc{number}_a",
        "contest_id": f"abc{number}",
        "contest_date": "2024-01-04T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": packed(json.dumps(private)),
        "metadata": "{}",
    }
    return row | changes


def packed(value, protocol: int = 4) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ----------------------------------------------------------------------------------------------
# Small copies of the five corpora

SIZES = {"sft": 6, "gate": 5, "warmup": 4, "joint": 5, "dev": 2, "apps": 3, "cc": 3, "lcb": 4,
         "apps-500": 5, "lcb-500": 5, "execution": 2, "test-output": 2, "show": 2}


def write_sources(folder: Path) -> dict[str, str]:
    """Small copies of the five corpora with four planted leaks, two repeats and three rows of no
    use."""
    valid = [code_contests_row(100 + i) for i in range(5)]
    train = [code_contests_row(i) for i in range(24)]
    same_text = valid[2]["description"].replace(" ", "\n")
    train[3]["description"] = f"<p>{same_text}</p>"
    train[5].update(cf_contest_id=9000, cf_index="C")       # the official id of APPS test 2
    copied = livecodebench_row(1)["question_content"][:300]
    train[7]["description"] = f"{words(50, 'x')} {copied}"
    # a repeat
    train[9].update(cf_contest_id=1, cf_index="Z", description=train[8]["description"])
    train[11]["input_file"] = "in.txt"
    train[12]["private_tests"] = {"input": ["1"], "output": []}
    write_rows(folder / "cc" / "train-00000.jsonl", train)
    write_rows(folder / "cc" / "valid-00000.jsonl", valid)
    write_rows(folder / "cc" / "test-00000.jsonl", [code_contests_row(200 + i) for i in range(4)])

    apps_test = [apps_row(300 + i) for i in range(7)] + [apps_row(399, difficulty="interview")]
    apps_test[2]["url"] = "https://codeforces.com/contest/9000/problem/C"
    apps_train = [apps_row(i) for i in range(9)]
    apps_train[4]["question"] = apps_test[5]["question"] + "\n\n-----Examples-----\n1\n"
    apps_train[6]["input_output"] = ""
    write_rows(folder / "apps" / "train.jsonl", apps_train)
    write_rows(folder / "apps" / "test.jsonl", apps_test)

    lcb = []
    for i in range(8):
        date = f"2024-0{1 + i % 7}-0{1 + i}T00:00:00"
        lcb.append(livecodebench_row(i, contest_date=date))
    repeat = livecodebench_row(0, question_id="abc77_b")
    write_rows(folder / "lcb" / "test.jsonl", lcb[:4])
    write_rows(folder / "lcb" / "test2.jsonl", [*lcb[4:], repeat])

    write_rows(folder / "execution.jsonl", [
        {"id": f"sample_{i}", "code": f"def f{i}(): return {i}", "input": f"f{i}()",
         "output": f"{i}", "question_id": 1} for i in range(2)])
    test = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    write_rows(folder / "test_generation.jsonl", [
        {"question_id": "1", "test_id": i, "question_content": words(30, "q"), "test": test,
         "function_name": "f"} for i in range(2)])
    return {"code_contests": str(folder / "cc"), "apps": str(folder / "apps"),
            "livecodebench": str(folder / "lcb"), "execution": str(folder / "execution.jsonl"),
            "test_generation": str(folder / "test_generation.jsonl")}
