"""Files that are whole or not there, whoever else writes or dies."""

import os
import subprocess
import sys
import time

import pytest

from lib import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_path_do_not_mix_and_the_later_one_wins(tmp_path):
    with files.writing(tmp_path / "a.json") as first:
        first.write("first")
        with files.writing(tmp_path / "a.json") as second:
            second.write("second, longer")
        assert (tmp_path / "a.json").read_text() == "second, longer"
    assert (tmp_path / "a.json").read_text() == "first"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_version_and_nothing_else(tmp_path, error):
    files.write_file(tmp_path / "a.json", "old")
    with pytest.raises(error), files.writing(tmp_path / "a.json") as file:
        file.write("new")
        raise error
    assert (tmp_path / "a.json").read_text() == "old" and names(tmp_path) == ["a.json"]


def test_what_a_killed_writer_left_goes_with_the_next_write_an_hour_later(tmp_path):
    for kept in ("[a]", "b"):       # a name in brackets is no pattern
        files.write_file(tmp_path / kept, "")
    write = ("import os, sys; sys.path.insert(0, sys.argv[2])\nfrom lib import files\n"
             "with files.writing(sys.argv[1]) as file:\n  file.write('x')\n  os._exit(1)")
    for name in ("[a]", "[a]", "b"):
        root = os.path.dirname(os.path.dirname(files.__file__))
        subprocess.run([sys.executable, "-c", write, tmp_path / name, root], check=False)
    left = sorted(tmp_path.glob("*.partial"))
    assert len(left) == 3
    long_ago = time.time() - files.ABANDONED_SECONDS - 1
    for partial in (left[0], left[2]):
        os.utime(partial, (long_ago, long_ago))
    files.write_file(tmp_path / "[a]", "")
    assert sorted(tmp_path.glob("*.partial")) == left[1:]       # a fresh one, and one of b
