"""The paper's numbers agree with themselves: a typing error shows where it prints one twice."""

import pytest

from paper import numbers


def number(cell: str) -> float:
    """Without its spread."""
    return float(cell.split()[0])


def test_the_difference_of_joint_and_iid_inference_is_the_one_that_is_printed():
    for (row, model), cells in numbers.INFERENCE.items():
        assert cells["joint"] == numbers.MAIN[row, model]["APPS"]
        gap = number(cells["joint"]) - number(cells["iid"])
        assert cells["difference"] == f"{gap:+.3f}"


def test_the_decomposition_is_of_the_numbers_in_the_main_table():
    for (row, model), cells in numbers.DECOMPOSITION.items():
        direct = number(numbers.MAIN["Direct Solve", model]["APPS"])
        iid = number(numbers.INFERENCE[row, model]["iid"])
        joint = number(numbers.MAIN[row, model]["APPS"])
        assert cells["total gain"] == f"{joint - direct:+.3f}"
        assert cells["training share"] == f"{iid - direct:+.3f}"


def test_pass_at_4_per_10_000_tokens_follows_from_its_two_columns():
    for benchmark, rows in numbers.TOKENS.items():
        for (row, model), cells in rows.items():
            assert numbers.MAIN[row, model][benchmark].split()[0] == cells["pass@4"]
            per_10k = float(cells["pass@4"]) / float(cells["tokens"]) * 10_000
            assert per_10k == pytest.approx(float(cells["per 10k"]), abs=2e-3)


def test_the_main_table_is_complete():
    assert len(numbers.MAIN) == 39
    assert all(len(cells) >= 2 for cells in numbers.MAIN.values())
