"""docs/tutorial.md as a notebook, which is not kept: the page is its source.

    python docs/notebook.py                 # writes docs/tutorial.ipynb

Text becomes text, each Python block a cell with the output that stands below it on the page; a test
has run that block and compared. The first cell goes to the repository's root, where the paths of
the page begin.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)
START = """\
import os
import sys
from pathlib import Path

root = Path.cwd()
while not (root / "grpo.py").exists():      # the repository, wherever below it this runs
    root = root.parent
    assert root != root.parent, "start Jupyter inside the repository"
os.chdir(root)
sys.path.insert(0, str(root))
"""


def cells_of(page: str) -> list[dict]:
    """The cells of a page, in its order."""
    cells = []
    done = 0
    for block in BLOCK.finditer(page):
        cells += text_cells(page[done:block.start()])
        cells.append(code_cell(block["code"], block["output"]))
        done = block.end()
    cells += text_cells(page[done:])
    cells.insert(1, code_cell(START))
    return cells


def text_cells(text: str) -> list[dict]:
    """A cell, or none of blank text. An answer that the page folds in stands open: a fold cannot
    reach over cells."""
    text = re.sub(r"<details><summary>(.*?)</summary>", r"**\1**", text).replace("</details>", "")
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return [{"cell_type": "markdown", "metadata": {}, "source": text}] if text else []


def code_cell(code: str, output: str | None = None) -> dict:
    outputs = []
    if output:
        outputs = [{"output_type": "stream", "name": "stdout", "text": output}]
    return {"cell_type": "code", "metadata": {}, "execution_count": None,
            "source": code.removesuffix("\n"), "outputs": outputs}


def notebook(page: str) -> dict:
    """nbformat 4.5: each cell has an id."""
    cells = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells_of(page))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "cells": cells,
            "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


def main() -> None:
    page = (HERE / "tutorial.md").read_text(encoding="utf-8")
    out = HERE / "tutorial.ipynb"
    text = json.dumps(notebook(page), indent=1, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
