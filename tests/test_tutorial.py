"""docs/tutorial.md: its blocks print what stands below them, and what it names is there."""

import contextlib
import importlib
import io
import re

import pytest
from readme import README, ROOT

import prompts
from examples import cppo_in_one_file as toy
from miniature import worked_step

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def printed_by(code: str, names: dict) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/tutorial.md", "exec"), names)     # noqa: S102 - our own page
    return out.getvalue()


def test_each_block_prints_what_stands_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(prompts, "TEMPLATES", dict(prompts.TEMPLATES))  # it loads others
    monkeypatch.setattr(toy, "obeys", toy.obeys)                        # it measures something else
    names = {"__name__": "tutorial"}
    blocks = BLOCK.findall(TEXT)
    assert len(blocks) >= 15
    for code, expected in blocks:
        assert printed_by(code, names) == expected, code


def test_the_rows_of_the_toy_are_those_that_it_prints(capsys):
    toy.main()
    lines = capsys.readouterr().out.splitlines()
    [quoted] = re.findall(r"cppo_in_one_file\.py\n```\n\n```text\n(.*?)```", TEXT, re.DOTALL)
    rows = [row for row in quoted.splitlines() if row != "..."]
    assert len(rows) >= 8 and [row for row in rows if row not in lines] == []


def test_the_last_line_of_worked_step_is_quoted_as_it_is(capsys):
    worked_step.main()
    last = capsys.readouterr().out.splitlines()[-1]
    [loss, weight] = re.findall(r"loss (\d\.\d+), weight of the advantages (\d\.\d+)", PROSE)[0]
    assert f": {loss}; " in last and f"weigh {weight} in" in last


def test_numbers_of_the_text_are_those_of_an_output_or_of_the_page_that_it_cites():
    """Four are derived: a std by hand, and what the prose says about noise or settings."""
    outputs = "".join(re.findall(r"```(?:text|python)\n(.*?)```", TEXT, re.DOTALL))
    notes = (ROOT / "docs" / "notes.md").read_text(encoding="utf-8")
    sources = outputs + README + notes
    numbers = re.findall(r"\d+\.\d{2,}", PROSE.replace("\u2212", "-"))
    derived = {"0.535", "0.368", "2.926", "0.000000"}
    assert [n for n in numbers if n not in sources and n not in derived] == []
    assert round((8 / 28) ** 0.5, 3) == 0.535       # of four ones and four zeros, unbiased
    assert round(toy.POSTERIOR.max().item(), 3) == 0.368


def named() -> list[tuple[str, str]]:
    """(file, name) of every "`file`: `name`, `name`" in the text."""
    pairs = []
    for file, names in re.findall(r"`([\w/]+\.py)`: (`[\w.]+`(?:, `[\w.]+`)*)", PROSE):
        pairs += [(file, name) for name in re.findall(r"`([\w.]+)`", names)]
    return pairs


@pytest.mark.parametrize(("file", "name"), named())
def test_every_function_is_in_the_file_beside_it(file, name):
    assert (ROOT / file).exists()
    value = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for attribute in name.split("."):
        value = getattr(value, attribute)
    assert value.__module__.replace(".", "/") + ".py" == file


def test_dotted_names_and_flags_of_the_text_exist():
    source = (ROOT / "train_cppo.py").read_text(encoding="utf-8")
    assert [flag for flag in re.findall(r"`(--[a-z-]+)", PROSE) if f'"{flag}"' not in source] == []
    dotted = re.findall(r"\b((?:prompts|reward|grpo|gate|train_cppo)\.(?!py\b)\w+)", TEXT)
    assert len(set(dotted)) >= 15
    for name in dotted:
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(module), attribute), name
