"""paper/report_sources.py: the funnel of a stage's data, as prepare/ recorded it."""

import json
from pathlib import Path

import pytest

from paper import report_data
from paper.report_sources import sources


def stage(**flags) -> report_data.Stage:
    return report_data.Stage("mini/cppo", Path("mini/cppo"), {"flags": flags}, steps=[], values={},
                             audit={}, refreshes=[], best=None, written="", finished=True)


def test_the_funnel_of_a_pool_adds_up_from_rows_to_file(built):
    [source] = sources([stage(problems=str(built / "joint.jsonl"))], [])
    rows = source["rows"]
    names = [row["what"] for row in rows]
    assert names[0] == "rows of code_contests train" and names[-1] == "in the file"
    left = next(i for i, row in enumerate(rows) if row["what"] == "left after decontamination")
    lost = sum(row["count"] for row in rows[:left] if row["lost"])
    assert lost > 0 and rows[0]["count"] - lost == rows[left]["count"]
    held_out = [row for row in rows if row["what"].startswith("held out: has")]
    manifest = json.loads((built / "manifest.json").read_text())
    removed = manifest["splits"]["code_contests/train"]["removed"]
    assert sum(row["count"] for row in held_out) == len(removed) > 0
    assert rows[-1]["count"] == manifest["pools"]["joint"]["problems"]


def test_labels_are_counted_by_kind_and_the_teachers_drops_are_named(tmp_path):
    lines = [{"problem_id": "p", "label": 1, "kind": "positive"},
             {"problem_id": "p", "label": 0, "kind": "leak"},
             {"problem_id": "q", "label": 0, "kind": "leak"}]
    (tmp_path / "labels_train.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    counts = {"candidates proposed": 9, "candidates dropped: vague": 2}
    (tmp_path / "labels.json").write_text(json.dumps({"counts": counts}))
    [source] = sources([stage(labels=str(tmp_path / "labels_train.jsonl"))], [])
    counted = {row["what"]: (row["count"], row["lost"]) for row in source["rows"]}
    assert counted == {"candidates proposed": (9, False), "candidates dropped: vague": (2, True),
                       "in the file of 2 problems": (3, False), "of these Pass": (1, False),
                       "of these Fail: leak": (2, False)}


@pytest.mark.parametrize("text", ["[]", "{", '{"pools": 7, "splits": []}',
                                  '{"pools": {"joint": {"file": "joint.jsonl", "split": 3}}}'])
def test_a_manifest_of_another_version_is_read_as_far_as_it_goes(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "joint.jsonl").write_text('{"id": ["odd"]}\n7\n')
    [source] = sources([stage(problems=str(tmp_path / "joint.jsonl"), gold=3)], [])
    assert source["rows"][-1] == {"what": "in the file", "count": 1, "lost": False}
