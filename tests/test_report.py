"""paper/report.py: a page holds its run's numbers, stays small, and runs nothing of a model."""

import base64
import gzip
import json
import math
import re
import shutil
import time
from pathlib import Path
from random import Random

import pytest
from browser import CHROMIUM, Browser
from paper_runs import write_run

from lib.errors import UserError
from paper import report, report_data

HOSTILE = ("</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title "
           "= 'owned'\"><!-- {{PAGE}} \u202egnp.exe\u0000\u001b[31m")


def make_tuple(step: int, problem: str, number: int, **changes) -> dict:
    branches = [{"strategy": f"strategy {i}", "reply": f"```python\nprint({i})\n```", "tokens": 9,
                 "finish": "eos", "status": "accepted" if i == number else "wrong_answer",
                 "tests_passed": 10 * (i == number), "r": float(i == number), "a": i - 1.5}
                for i in range(4)]
    row = {"step": step, "problem_id": problem, "tuple": number, "plan": "A: one", "plan_tokens": 4,
           "plan_finish": "eos", "strategies": [f"strategy {i}" for i in range(4)], "error": None,
           "p_pass": 0.1 + 0.2 * number, "duplicate_literal": False, "branches": branches,
           "J": float(number > 1), "R_out": float(number < 4), "A": 0.5,
           "R_plan": float(1 < number < 4), "faults": [] if number > 1 else ["vague"]}
    return row | changes


def write_stage(stage, steps: int = 5, tuples=None) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    config = {"flags": {"model": "m", "steps": steps, "num_tuples": 4, "num_strategies": 4},
              "command": ["train_cppo.py", "--judge", "http://user:hunter2@host/v1#m"],
              "commit": "0123456789abcdef", "warnings": ["a warning"]}
    (stage / "config.json").write_text(json.dumps(config))
    metrics = [{"step": s, "R_out": s / 7, "plan/kl": 0.01 * s, "odd_metric": 1e-9 * s}
               for s in range(1, steps + 1)]
    write_lines(stage / "metrics.jsonl", metrics)
    tuples = tuples or [make_tuple(s, f"p{p}", m)
                        for s in range(1, steps + 1) for p in range(2) for m in range(4)]
    write_lines(stage / "samples.jsonl", tuples)


def write_lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    write_stage(tmp_path / "mini" / "cppo")
    return tmp_path / "mini"


def data_of(html: str, name: str) -> dict:
    opening = f'<script type="application/json" id="{name}">'
    found = re.search(f"{opening}(.*?)</script>", html, re.DOTALL)
    return json.loads(found[1])


def tuples_of(html: str, stage: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(data_of(html, "tuples")[stage])))


# ----------------------------------------------------------------------------------------------
# What stands in it

def test_every_metric_of_every_step_is_in_the_page(run):
    page = data_of(report.build([run]), "page")
    [stage] = page["stages"]
    for line in (run / "cppo" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        place = stage["steps"].index(row.pop("step"))
        for name, value in row.items():
            assert stage["values"][name][place] == pytest.approx(value, rel=1e-5)
    charts = {chart["metric"] for chart in page["charts"]}
    assert charts == {"R_out", "plan/kl", "odd_metric", "distinct_tuples"}


def test_tuples_are_grouped_by_step_and_problem_and_marked_for_the_filters(run):
    unparsed = make_tuple(1, "p0", 0, strategies=None, error="no label C", branches=[], J=0.0,
                          R_out=0.0, p_pass=None, plan_finish="length")
    twice = make_tuple(1, "p0", 2, faults=["duplicate"])
    write_stage(run / "cppo", tuples=[unparsed, twice])
    html = report.build([run])
    [group] = tuples_of(html, "mini/cppo")["groups"]
    assert group["step"] == 1 and group["problem"] == "p0"
    assert [t["marks"] for t in group["tuples"]] == [["unparsed", "cut"], ["solved", "duplicate"]]
    assert group["tuples"][0]["error"] == "no label C"
    assert group["tuples"][1]["branches"][2]["reply"] == "```python\nprint(2)\n```"


def test_a_rivals_problem_is_shown_as_its_attempts(run):
    row = {"step": 1, "problem_id": "p", "reward": [1.0, 0.0], "r_mi": None,
           "branches": make_tuple(1, "p", 0)["branches"][:2]}
    write_stage(run / "grpo", tuples=[row])
    [group] = tuples_of(report.build([run]), "mini/grpo")["groups"]
    assert [t["marks"] for t in group["tuples"]] == [["solved"], []]
    assert [t["reward"] for t in group["tuples"]] == [1.0, 0.0]


def test_the_gate_is_counted_over_all_tuples(run):
    gate = data_of(report.build([run]), "page")["stages"][0]["gate"]
    assert gate["table"]["accepted, solved"] == 0.5 and gate["table"]["tuples"] == 40
    assert gate["curves"][0]["auc"] == 1            # the judge: valid from p = 0.5 on
    assert sorted(gate["kinds"]) == [["no fault", 1, 20], ["vague", 1, 20]]


def test_tuples_of_a_problem_are_counted_by_their_different_programs(run):
    same = [make_tuple(1, "p", m) for m in range(4)]
    other = [make_tuple(2, "p", m) for m in range(3)] + [make_tuple(2, "p", 3)]
    other[0]["branches"][1]["reply"] = "another program"
    write_stage(run / "cppo", tuples=same + other)
    [stage] = data_of(report.build([run]), "page")["stages"]
    assert stage["values"]["distinct_tuples"] == [0.25, 0.5, None, None, None]


def test_an_evaluation_stands_with_its_interval_and_ceilings(run):
    write_run(run, "cppo", "tuple", world=True)
    page = data_of(report.build([run]), "page")
    [row] = page["evaluation"]["rows"]
    assert row["method"] == "CPPO" and row["low"] <= row["value"] <= row["high"]
    assert len(row["matrix"]) == len(page["evaluation"]["problems"]) == 30
    assert page["headlines"][0]["ceilings"]["coordinated"] == 1.0


def test_dev_evaluations_stand_at_their_steps_with_the_checkpoint_chosen(run):
    rows = [{"step": step, "problems": 9, "pass_at_k": 0.1 * step, "best": min(step, 3)}
            for step in (0, 3, 5)]
    write_lines(run / "cppo" / "dev.jsonl", rows)
    [stage] = data_of(report.build([run]), "page")["stages"]
    assert stage["steps"] == [0, 1, 2, 3, 4, 5] and stage["best"] == 3
    assert stage["values"]["dev/pass_at_k"] == pytest.approx([0, None, None, 0.3, None, 0.5])
    assert stage["values"]["R_out"][0] is None
    thinned = report.curves(report_data.read_stage(run / "cppo", []), most=2)
    assert thinned["steps"] == [0, 3, 5]


def test_statements_come_from_the_problem_file(run, tmp_path):
    write_lines(tmp_path / "problems.jsonl", [{"id": "p0", "statement": "Add two numbers."},
                                              {"id": "unused", "statement": "Something."}])
    html = report.build([run], str(tmp_path / "problems.jsonl"))
    assert tuples_of(html, "mini/cppo")["statements"] == {"p0": "Add two numbers."}


def test_healthy_bands_are_of_metrics_that_the_glossary_has():
    glossary = report.read_glossary()
    # `plan/ratio_max` stands in one row with others, "also `solve/`"
    assert [name for name in report.HEALTHY
            if name not in glossary and not name.startswith("solve/")] == []
    assert glossary["R_out"]["healthy"] == "rises"


# ----------------------------------------------------------------------------------------------
# What must not be in it

def test_text_of_a_model_cannot_end_the_script_that_carries_it(run):
    (run / "cppo" / "config.json").write_text(json.dumps(
        {"flags": {"model": HOSTILE}, "command": [HOSTILE], "warnings": [HOSTILE]}))
    html = report.build([run])
    assert html.count("<script") == html.count("</script>") == 3
    assert "owned'<" not in html and "onerror=" not in re.sub(r"\\u003c[^>]*", "", html)


def test_no_html_is_made_from_text():
    script = (report.HERE / "report_page.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(",
                "new Function", "fetch(", "http:", "https:"):
        assert way not in script.replace("http://www.w3.org/2000/svg", "")


def test_the_policy_lets_only_the_pages_own_script_run(run):
    html = report.build([run])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert report.digest(script) in policy


def test_passwords_in_addresses_are_left_out(run):
    assert "hunter2" not in report.build([run])


def test_secrets_of_the_environment_are_left_out_wherever_they_stand(run, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", 'swordfish "42"')
    report_data.secrets.cache_clear()
    issued = "hf_" + "Ab1" * 12
    write_stage(run / "cppo", tuples=[make_tuple(1, "p", 0, plan='swordfish "42"', strategies=None,
                                                 error=issued)])
    config = {"warnings": ["x" * 390 + f' swordfish "42" {issued}']}      # a long line is cut
    (run / "cppo" / "config.json").write_text(json.dumps(config))
    html = report.build([run])
    report_data.secrets.cache_clear()
    [group] = tuples_of(html, "mini/cppo")["groups"]
    assert group["tuples"][0]["plan"] == group["tuples"][0]["error"] == "***"
    assert data_of(html, "page")["stages"][0]["warnings"] == ["x" * 390 + " *** ***"]


def test_characters_that_hide_or_reorder_text_become_visible():
    assert report_data.clean("a\u202eb\x00\x1b\x7f") == "a⟨U+202E⟩b␀␛⟨U+007F⟩"
    assert report_data.clean("tab\tand\nline, Ümläut 漢字") == "tab\tand\nline, Ümläut 漢字"


def test_long_lines_and_texts_are_cut_with_a_note():
    assert report_data.clean("x" * 1000) == "x" * 400 + " … (600 more characters)"
    text = report_data.clean("line\n" * 10_000)
    assert len(text) < 5000 and text.endswith("… (46,000 more characters)")
    assert len(report_data.clean("x" * 10_000_000)) < 500


# ----------------------------------------------------------------------------------------------
# Size

def test_a_page_has_a_bound_and_says_how_many_steps_it_holds(run):
    random = Random(0)
    noise = [make_tuple(step, f"p{p}", m, strategies=[random.randbytes(60).hex()] * 4)
             for step in range(1, 60) for p in range(4) for m in range(4)]
    write_stage(run / "cppo", steps=60, tuples=noise)
    whole = report.build([run])
    html = report.build([run], limit=100_000)
    assert len(html.encode()) <= 100_000 < len(whole.encode())
    kept = data_of(html, "page")["stages"][0]["kept"]
    steps = [group["step"] for group in tuples_of(html, "mini/cppo")["groups"]]
    assert len(set(steps)) == kept["steps"] < kept["of"] == 59
    assert steps[0] == 1 and (steps[-1] == 59 or kept["steps"] == 1)


# ----------------------------------------------------------------------------------------------
# Bad input

def test_half_a_line_at_the_end_is_left_out_and_said(run):
    for name in ("metrics", "samples"):
        with open(run / "cppo" / f"{name}.jsonl", "a") as file:
            file.write('{"step": 6, "R_o')
    page = data_of(report.build([run]), "page")
    assert page["stages"][0]["steps"] == [1, 2, 3, 4, 5]
    assert sum("ends inside a line" in note for note in page["notes"]) == 2


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "samples.jsonl"])
def test_a_file_that_is_missing_is_named_and_the_rest_is_shown(run, name):
    (run / "cppo" / name).unlink()
    page = data_of(report.build([run]), "page")
    assert any(name in note for note in page["notes"])
    assert page["stages"][0]["name"] == "mini/cppo"


ODD = {"step": 1, "problem_id": 3, "branches": 7, "plan": None, "strategies": {}, "faults": 0,
       "p_pass": "x"}


@pytest.mark.parametrize("text", ["[]\n", "\x00\xff\n", '{"step": "one"}\n{"step": null}\n',
                                  "{}\n", json.dumps(ODD) + "\n", "[" * 9999])
def test_files_of_another_version_are_read_as_far_as_they_go(run, text):
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "audit.jsonl", "gate.jsonl",
                 "dev.jsonl"):
        (run / "cppo" / name).write_text(text)
    (run / "cppo" / "eval").mkdir()
    (run / "cppo" / "eval" / "heldout-tuple.jsonl").write_text(text)
    page = data_of(report.build([run]), "page")
    assert page["notes"] and page["evaluation"]["rows"] == []


def test_numbers_that_are_none_are_left_out(run):
    write_lines(run / "cppo" / "metrics.jsonl", [{"step": 1, "R_out": math.nan, "J": 10 ** 400},
                                                 {"step": 2, "R_out": 0.5, "loss": math.inf}])
    write_lines(run / "cppo" / "samples.jsonl", [make_tuple(1, "p", 0, p_pass=math.nan)])
    [stage] = data_of(report.build([run]), "page")["stages"]
    assert stage["values"] == {"R_out": [None, 0.5]}


def test_two_runs_of_one_name_keep_their_own_tuples(tmp_path):
    for root in ("a", "b"):
        write_stage(tmp_path / root / "mini" / "cppo", tuples=[make_tuple(1, root, 0)])
    html = report.build([tmp_path / "a" / "mini", tmp_path / "b" / "mini"])
    stages = [stage["name"] for stage in data_of(html, "page")["stages"]]
    assert [tuples_of(html, name)["groups"][0]["problem"] for name in stages] == ["a", "b"]


def test_an_archive_is_read_like_the_folder_that_it_holds(run, tmp_path):
    write_run(run, "cppo", "tuple", world=True)
    (run / "cppo" / "samples.jsonl").write_text("[")
    archive = Path(shutil.make_archive(str(tmp_path / "packed" / "mini"), "zip", run))
    pages = [data_of(report.build([place]), "page") for place in (run, archive)]
    for page in pages:
        page.pop("made")
        page["notes"] = [note.rpartition("/")[2] for note in page["notes"]]
        page["stages"][0].pop("state")          # when the file was written
    assert pages[0] == pages[1]
    archive.write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be unpacked"):
        report.build([archive])


def test_watching_waits_for_a_run_and_writes_it_again(tmp_path, monkeypatch, capsys):
    run, naps = tmp_path / "mini", []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt
        write_stage(run / "cppo", steps=len(naps))

    monkeypatch.setattr(report.time, "sleep", sleep)
    report.main(report.parse_args([str(run), "--watch", "9"]))
    assert naps == [9, 9, 9] and "waiting: " in capsys.readouterr().out
    [stage] = data_of((run / "report.html").read_text(), "page")["stages"]
    assert stage["steps"] == [1, 2] and "at step 2 of 2" in stage["state"]


def test_an_empty_folder_beside_a_run_is_named_and_the_run_is_shown(run, tmp_path):
    (tmp_path / "empty").mkdir()
    page = data_of(report.build([run, tmp_path / "empty"]), "page")
    assert any("empty holds nothing" in note for note in page["notes"])
    assert [stage["name"] for stage in page["stages"]] == ["mini/cppo"]


def test_a_folder_without_anything_is_the_users_mistake(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="give a"):
            report.build([folder])


def test_the_script_writes_into_the_first_run(run, capsys):
    report.main(report.parse_args([str(run)]))
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert "report.html" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------
# In a browser

@pytest.fixture
def browser(tmp_path):
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    with Browser(tmp_path / "profile") as opened:
        yield opened


def rendered(run, browser, **size) -> float:
    (run / "report.html").write_text(report.build([run]))
    return browser.open(run / "report.html", **size)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 820, 390])
def test_the_page_opens_without_errors_and_loads_nothing(run, browser, width):
    write_run(run, "cppo", "tuple", world=True)
    rendered(run, browser, width=width)
    assert browser.errors == []
    assert {url.partition(":")[0] for url in browser.requests} == {"file"}
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('.chart').length") == 4


@pytest.mark.browser
def test_filters_search_and_keys_choose_tuples(run, browser):
    write_stage(run / "cppo", tuples=[make_tuple(1, "first", 2), make_tuple(2, "second", 0),
                                      make_tuple(3, "third", 3)])
    rendered(run, browser)
    title = "document.querySelector('#tuples-read h3').textContent"
    assert "third" in browser.run(title)
    browser.key("ArrowLeft")
    assert "second" in browser.run(title)
    browser.run("document.querySelector('[data-filter=refused]').click()")
    assert browser.run("document.querySelector('[role=status]').textContent").startswith("1 tuples")
    browser.key("ArrowRight")
    assert "second" in browser.run(title)
    browser.key("1")
    browser.run("const s = document.querySelector('[type=search]'); s.value = 'FIRST';"
                "s.dispatchEvent(new Event('input'))")
    assert "first" in browser.run(title)
    assert browser.errors == []


@pytest.mark.browser
def test_the_address_leads_back_to_the_tuples_on_the_screen(run, browser):
    write_stage(run / "cppo", tuples=[make_tuple(s, f"problem {s}", 2) for s in (1, 2, 3)])
    rendered(run, browser)
    browser.key("ArrowLeft")
    browser.run("document.body.dataset.ready = 'no'")
    browser.send("Page.reload")
    browser.wait()
    assert "problem 2" in browser.run("document.querySelector('#tuples-read h3').textContent")
    assert "step=2" in browser.run("location.hash") and browser.errors == []


@pytest.mark.browser
def test_a_curve_shows_its_values_under_the_pointer(run, browser):
    rendered(run, browser)
    hover = "document.querySelector('[data-metric=R_out] .hover').textContent"
    assert browser.run(hover) == "last: 0.714"
    browser.run("{const svg = document.querySelector('[data-metric=R_out] svg');"
                "svg.dispatchEvent(new PointerEvent('pointermove', "
                "{clientX: svg.getBoundingClientRect().left}))}")
    assert browser.run(hover).strip() == "step 1: 0.143"


@pytest.mark.browser
def test_hostile_text_stays_text(run, browser):
    bad = make_tuple(1, HOSTILE, 2, strategies=[HOSTILE] * 4)
    for branch in bad["branches"]:
        branch["reply"] = branch["status"] = HOSTILE
    write_stage(run / "cppo", tuples=[bad])
    (run / "cppo" / "config.json").write_text(json.dumps(
        {"flags": {"model": HOSTILE, "num_tuples": HOSTILE}, "warnings": [HOSTILE]}))
    rendered(run, browser)
    assert browser.run("document.title") == "CPPO run report"
    assert browser.run("document.querySelectorAll('img, main script').length") == 0
    text = browser.run("document.querySelector('.strategy').textContent")
    assert "</script><script>" in text and "⟨U+202E⟩" in text
    assert browser.errors == []


@pytest.mark.browser
def test_three_hundred_steps_open_within_two_seconds(run, browser):
    tuples = (make_tuple(s, f"p{p}", m) for s in range(300) for p in range(16) for m in range(4))
    write_stage(run / "cppo", steps=300, tuples=list(tuples))
    seconds = rendered(run, browser)
    assert (run / "report.html").stat().st_size <= report.LIMIT
    assert seconds < 2
    started = time.monotonic()
    browser.run("document.querySelector('[data-filter=solved]').click()")
    assert time.monotonic() - started < 2
