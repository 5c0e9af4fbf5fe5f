"""The README promises files, commands and flags; each must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def test_every_file_that_the_map_names_exists():
    table = README.split("## Map")[1].split("\n## ")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    names = [name for cell in first for name in re.findall(r"`([\w./]+)`", cell)]
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_file_of_the_street_is_on_the_map():
    table = README.split("## Map")[1].split("\n## ")[0]
    assert [p.name for p in ROOT.glob("*.py") if f"`{p.name}`" not in table] == []


def test_every_command_names_a_script_that_exists_and_flags_that_it_has():
    known = (ROOT / "lib" / "run.py").read_text()
    checked = 0
    for line in "\n".join(BLOCKS).splitlines():
        command = line.split("#")[0] if "http://" not in line else line.rsplit("    #", 1)[0]
        for part in command.split("&&"):
            m = re.search(r"(?:python|bash|torchrun(?: --\w+=\d+)*) ([\w/]+\.(?:py|sh))(.*)", part)
            if not m:
                continue
            source = (ROOT / m[1]).read_text() + known
            flags = re.findall(r"(?<!\S)--[\w-]+", m[2])
            assert [flag for flag in flags if f'"{flag}"' not in source and f"{flag})" not in source] == [], line
            checked += 1
    assert checked >= 10
