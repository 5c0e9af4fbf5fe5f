"""bench/gpu.py without a GPU: a part that fails stops no other, what was measured is on disk."""

import json

import pytest

from bench import gpu


def test_a_part_that_fails_is_reported_and_the_others_are_on_disk_at_once(tmp_path, capsys):
    out = tmp_path / "first.json"
    report = gpu.Report(out, {"device": "a card"})

    def fails(report):
        report.add("before", 1.5, "ms")
        raise RuntimeError("out of luck\nmore")
    assert report.part("one", fails) is None
    first = json.loads(out.read_text())
    assert first["failed"] == ["one: RuntimeError: out of luck"]
    assert report.part("two", lambda report, n: n + 1, 4) == 5
    report.part("three", lambda report: report.add("nothing", float("nan"), "GiB"))
    assert json.loads(out.read_text())["device"] == "a card"
    capsys.readouterr()
    assert gpu.main(gpu.parse_args(["table", str(out)])) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| before | 1.5 ms | a card |", "| nothing | None GiB | a card |",
        "| FAILED | one: RuntimeError: out of luck | a card |"]


def test_a_step_moves_the_bytes_that_it_cannot_do_without():
    """By hand: weights once, S and the convolution's tail twice, keys and values as far as read."""
    module = gpu.random_model(gpu.SMALL, gpu.BF16, "cpu")
    weights = sum(p.nbytes for p in module.parameters())
    channels, S = 2 * 2 * 16 + 2 * 16, 4 * 2 * 16 * 16
    linear = 3 * 2 * (2 * 3 * channels + S)
    full = 2 * 2 * 2 * 16 * 64
    found = gpu.step_bytes(module, 5, 64)
    assert found == pytest.approx(weights + 5 * (linear + full), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["first", "second"])
def test_both_calls_run_through_at_toy_size(call, tmp_path):
    out = tmp_path / "out.json"
    assert gpu.main(gpu.parse_args([call, "--tiny", "--out", str(out)])) == 0
    assert json.loads(out.read_text())["failed"] == []
