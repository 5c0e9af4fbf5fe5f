"""prepare/sources.py and prepare/corpora.py: read local copies, build the pools."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from corpus_rows import (
    SIZES,
    apps_row,
    code_contests_row,
    livecodebench_row,
    write_rows,
    write_sources,
)
from lib.errors import UserError
from lib.problems import Problem, load_problems
from prepare import corpora, exposure, readers, sources
from prepare.decontaminate import statement_hash

ROOT = Path(__file__).resolve().parent.parent


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def built(copies, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    corpora.build(out, SIZES, local=copies, say=silent)
    return out


# ----------------------------------------------------------------------------------------------
# Reading

def test_an_unknown_corpus_split_or_file_is_reported_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match="unknown corpus 'humaneval': one of code_contests, apps"):
        sources.rows("humaneval", "test")
    with pytest.raises(UserError, match="no split 'validation': one of train, valid, test"):
        sources.rows("code_contests", "validation")
    with pytest.raises(UserError, match="there is no .*nowhere"):
        sources.rows("apps", "test", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no test\*.parquet and no test\*.jsonl"):
        sources.rows("apps", "test", tmp_path)
    write_rows(tmp_path / "test.jsonl", [[1]])
    with pytest.raises(UserError, match="test.jsonl line 1: expected a JSON object"):
        list(sources.rows("apps", "test", tmp_path))


def test_local_files_of_a_split_are_read_in_the_order_of_their_numbers(tmp_path):
    for name in ("test10", "test2", "test", "train"):
        write_rows(tmp_path / "deep" / f"{name}.jsonl", [{"file": name}])
    rows = sources.rows("livecodebench", "test", tmp_path)
    assert [row["file"] for row in rows] == ["test", "test2", "test10"]
    rows = sources.rows("livecodebench", "test", tmp_path / "deep" / "train.jsonl")
    assert [row["file"] for row in rows] == ["train"]


def test_parquet_and_json_lines_of_the_same_rows_give_the_same_problems(tmp_path):
    import datasets

    raw = [code_contests_row(1), code_contests_row(2, time_limit=None)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(raw).to_parquet(tmp_path / "valid-00000-of-00001.parquet")
    rows = list(sources.rows("code_contests", "valid", tmp_path))
    assert "cf_rating" not in rows[0]       # columns that nobody needs are not read
    assert list(map(readers.from_code_contests, rows)) == list(map(readers.from_code_contests, raw))


def test_livecodebench_rows_read_by_the_hub_reader_give_the_same_problems(tmp_path):
    raw = [livecodebench_row(i) for i in range(3)]
    path = write_rows(tmp_path / "test.jsonl", raw)
    rows = list(sources.stream([str(path)], "livecodebench"))
    assert list(map(readers.from_livecodebench, rows)) == list(map(readers.from_livecodebench, raw))
    assert readers.contest_day(rows[0]) == readers.contest_day(raw[0]) == "2024-01-04"


def test_a_local_file_that_is_no_copy_is_reported(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"name": "x"}]).to_parquet(tmp_path / "valid-0.parquet")
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 nonsense")
    message = "must be a copy of a file of deepmind/code_contests at revision 802411c"
    for split in ("valid", "test"):
        with pytest.raises(UserError, match=message):
            list(sources.rows("code_contests", split, tmp_path))


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        commit = "21e74ddf8de1a21436da12e3e653065c5213e9d1"
        url = f"hf://datasets/codeparrot/apps@{commit}/test.jsonl"
        assert kwargs["data_files"]["rows"] == [url]
        raise ConnectionError("no route\nto host")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="no route to host.*--local apps=FOLDER.*--skip apps"):
        list(sources.rows("apps", "test"))


def test_the_size_of_what_is_read_counts_the_files_of_the_split(monkeypatch):
    import huggingface_hub

    sizes = {"data/train-0.parquet": 5, "data/train-1.parquet": 7, "data/valid-0.parquet": 100}

    class Hub:
        def dataset_info(self, repo, revision, files_metadata):
            siblings = [SimpleNamespace(rfilename=name, size=n) for name, n in sizes.items()]
            return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert sources.bytes_on_the_hub("code_contests", "train") == 12


# ----------------------------------------------------------------------------------------------
# Building

def test_a_build_refuses_counts_and_removes_what_was_planted(built):
    splits = corpora.read_manifest(built)["splits"]
    cc, apps = splits["code_contests/train"], splits["apps/train"]
    assert cc["rows"] == 24 and cc["refused"] == {"file_io": ["row 11"], "one_sided": ["row 12"]}
    assert cc["repeats"] == {"cc/train/9": "cc/train/8"}
    removed = {name: (found["held_out"], found["rule"]) for name, found in cc["removed"].items()}
    assert removed == {"cc/train/3": ("cc/valid/2", "hash"), "cc/train/5": ("apps/test/302", "id"),
                       "cc/train/7": ("lcb/abc1_a", "ngram")}
    assert apps["refused"] == {"no_tests": ["row 6"]} and list(apps["removed"]) == ["apps/train/4"]
    assert splits["apps/test"]["not_introductory"] == 1
    assert splits["livecodebench/test"]["repeats"] == {"lcb/abc77_b": "lcb/abc0_a"}
    # evaluation is fixed, training is cleaned; of repeats too, which may have other official ids
    assert "removed" not in splits["code_contests/valid"]
    held_out = {p.id for p in exposure.HeldOut(built).problems}
    assert {"lcb/abc0_a", "lcb/abc77_b"} < held_out


def test_pools_have_their_sizes_and_share_nothing(built):
    manifest = corpora.read_manifest(built)
    pools = {}
    for name, entry in manifest["pools"].items():
        pools[name] = load_problems(built / entry["file"])
        assert len(pools[name]) == SIZES[name]
        assert [p.id for p in pools[name]] == entry["ids"]
        assert [statement_hash(p.statement) for p in pools[name]] == entry["hashes"]
    assert pools.keys() == SIZES.keys()
    trained = [p.id for name in ("sft", "gate", "joint", "dev", "warmup") for p in pools[name]]
    assert len(trained) == len(set(trained))
    held_out = {p.id for name in ("apps", "cc", "lcb", "apps-500", "lcb-500", "show")
                for p in pools[name]}
    assert not held_out & set(trained)
    assert all(p.tests and p.time_limit for p in pools["joint"])    # whole problems, no cards
    newest_first = ["lcb/abc6_a", "lcb/abc5_a", "lcb/abc4_a", "lcb/abc3_a"]
    assert [p.id for p in pools["lcb"]] == newest_first
    assert {p.id for p in pools["apps"]} < {p.id for p in pools["apps-500"]}


def test_a_build_is_a_function_of_its_seed(built, copies, tmp_path):
    again = corpora.build(tmp_path / "a", SIZES, local=copies, say=silent)
    assert again == corpora.read_manifest(built)
    for entry in again["pools"].values():
        assert (tmp_path / "a" / entry["file"]).read_bytes() == (built / entry["file"]).read_bytes()
    other = corpora.build(tmp_path / "b", SIZES, seed=1, local=copies, say=silent)
    assert other["pools"]["joint"]["ids"] != again["pools"]["joint"]["ids"]


def test_problems_that_go_do_not_reshuffle_the_others():
    problems = [Problem(str(i), "s") for i in range(50)]
    order = [p.id for p in corpora.draw_order(problems, 0)]
    of_the_odd = [p.id for p in corpora.draw_order(problems[::-2], 0)]
    assert of_the_odd == [name for name in order if int(name) % 2]


def test_the_same_build_again_does_nothing_and_another_one_is_refused(built, copies):
    before = (built / "joint.jsonl").stat().st_mtime_ns
    corpora.build(built, SIZES, local=copies, say=silent)
    assert (built / "joint.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another seed"):
        corpora.build(built, SIZES, seed=5, local=copies, say=silent)


def test_a_row_of_another_schema_ends_the_build_with_its_place(copies, tmp_path):
    row = apps_row(1)
    del row["question"]
    path = write_rows(tmp_path / "test.jsonl", [apps_row(0), row])
    local = copies | {"apps": str(path.parent)}
    message = "^apps test, row 1: a row of apps has another schema .no column 'question'"
    with pytest.raises(UserError, match=message):
        corpora.build(tmp_path / "out", SIZES | {"warmup": 0}, local=local, say=silent)


def test_a_pool_that_comes_out_short_is_reported_and_recorded(copies, tmp_path):
    lines = []
    manifest = corpora.build(tmp_path, SIZES | {"warmup": 1000}, local=copies, say=lines.append)
    assert "warmup: only " in "\n".join(lines)
    assert manifest["pools"]["warmup"]["wanted"] == 1000


def test_a_build_without_a_benchmark_says_that_nothing_is_cleaned_against_it(copies, tmp_path):
    lines = []
    local = {name: path for name, path in copies.items() if name != "livecodebench"}
    corpora.build(tmp_path, SIZES, local=local, skip=["livecodebench"], say=lines.append)
    assert "NOT cleaned against" in lines[0] and not (tmp_path / "lcb.jsonl").exists()


def test_published_errata_are_left_out_unless_asked_for(copies, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "LIVECODEBENCH_ERRATA", {"abc5_a", "abc0_a"})
    sizes = dict.fromkeys(SIZES, 0) | {"lcb": 3}
    lines = []
    manifest = corpora.build(tmp_path / "a", sizes, local=copies, say=lines.append)
    entry = manifest["pools"]["lcb"]
    assert entry["ids"] == ["lcb/abc6_a", "lcb/abc4_a", "lcb/abc3_a"]
    assert entry["errata"] == ["lcb/abc0_a", "lcb/abc5_a"]
    assert any("2 problems of the published errata left out" in line for line in lines)
    manifest = corpora.build(tmp_path / "b", sizes, local=copies, errata=True, say=silent)
    entry = manifest["pools"]["lcb"]
    assert entry["ids"] == ["lcb/abc6_a", "lcb/abc5_a", "lcb/abc4_a"]
    assert entry["errata"] == ["lcb/abc5_a"]


def test_private_tests_are_in_no_statement_and_public_ones_are_apart(built):
    for problem in load_problems(built / "lcb.jsonl"):
        assert problem.public_tests == problem.tests[:1]
        assert problem.tests[1]["input"] not in problem.statement


def test_the_default_pool_is_the_builds_file(built):
    assert corpora.default_pool("joint", built) == built / "joint.jsonl"
    with pytest.raises(UserError, match="without the pool 'nonsense'"):
        corpora.default_pool("nonsense", built)


@pytest.mark.parametrize("flags, message", [
    (["--local", "humaneval=x"], "unknown corpus 'humaneval'"),
    (["--local", "apps"], "write CORPUS=PATH"),
    (["--skip", "humaneval"], "unknown corpus 'humaneval'"),
    (["--local", "apps=missing"], "there is no missing: --local apps= takes"),
    (["--joint", "-1"], "--joint: must be a whole number of 0 or more"),
])
def test_a_wrong_flag_is_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        corpora.main(corpora.parse_args(["--out", str(tmp_path), *flags]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_the_command_ends_in_one_line_too():
    command = [sys.executable, "-m", "prepare.corpora", "--skip", "humaneval"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: unknown corpus 'humaneval'")
    assert ended.stderr.count("\n") == 1
