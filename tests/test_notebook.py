"""docs/notebook.py: the notebook holds the tutorial, block by block."""

import json
import os
import re
import subprocess
import sys

from readme import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import notebook  # a script, in no package

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_every_python_block_is_a_cell_with_the_output_of_the_page():
    cells = [cell for cell in notebook.notebook(PAGE)["cells"] if cell["cell_type"] == "code"]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert [cell["source"] + "\n" for cell in cells[1:]] == blocks
    printed = [output["text"] for cell in cells for output in cell["outputs"]]
    assert len(printed) >= 15 and all(f"```text\n{text}```" in PAGE for text in printed)


def test_no_line_of_the_page_is_lost():
    cells = notebook.notebook(PAGE)["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    held = "\n".join(cell["source"] for cell in cells)
    held += "".join(output["text"] for cell in cells for output in cell.get("outputs", []))
    lost = [line for line in PAGE.splitlines() if line not in held and "details>" not in line]
    assert set(lost) <= {"```python", "```text", "```"}


def test_the_first_cell_goes_to_the_root_from_any_folder_below_it():
    command = [sys.executable, "-c", notebook.START + "print(os.getcwd())"]
    run = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=True)
    assert os.path.samefile(run.stdout.strip(), ROOT)


def test_the_script_writes_json_beside_the_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "tutorial.md").write_text("# A\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n")
    monkeypatch.setattr(notebook, "HERE", tmp_path)
    notebook.main()
    made = json.loads((tmp_path / "tutorial.ipynb").read_text())
    assert [cell["cell_type"] for cell in made["cells"]] == ["markdown", "code", "code"]
    assert made["nbformat"] == 4
