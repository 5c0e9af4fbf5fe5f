"""How the house is kept: short functions, short lines, files that copy alone as the map says."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
from readme import ROOT, copies_alone

LONGEST_FUNCTION = 60       # lines; lists of flags may be longer
WIDEST_LINE = 100           # characters
PROMISES = copies_alone()


def python_files() -> list:
    """The repository's own, as far as they are meant to be read: not the hostile corpus."""
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    files = list(ROOT.glob("*.py"))
    for folder in [*folders, ROOT / "tests", ROOT / "docs"]:
        files += folder.glob("*.py")
    return sorted(files)


def functions(file) -> list:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_flag_list(name: str) -> bool:
    return name == "parse_args" or name.endswith("_flags")


def test_no_function_is_too_long_to_be_read_at_once():
    long = []
    for file in python_files():
        for node in functions(file):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION and not is_flag_list(node.name):
                long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert long == []


def test_no_line_is_wider_than_a_hundred_characters():
    wide = []
    for file in python_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > WIDEST_LINE:
                wide.append(f"{file.relative_to(ROOT)}:{number}")
    assert wide == []


# --------------------------------------------------------------------------------------------
# Copying a file into another project

IMPORT_ALL = """
import importlib, json, sys
for file, folder in json.loads(sys.argv[1]).items():
    name = file.rpartition("/")[2].removesuffix(".py")
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"{file}: {error!r}")
    sys.path.pop(0)
    for loaded in set(sys.modules) - before:        # the next file must bring its own companions
        if (getattr(sys.modules[loaded], "__file__", None) or "").startswith(folder):
            del sys.modules[loaded]
"""


def copied(file: str, folder):
    """A folder that holds the file, what the map says it is copied with, and nothing else."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / file, folder)
    for name in PROMISES[file][0]:          # a companion in lib/ stays there: it is imported so
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def python(code: str, folder, *arguments: str) -> str:
    """-I: neither the repository nor the environment is on the path. Output and errors together."""
    command = [sys.executable, "-I", "-c", code, *arguments]
    run = subprocess.run(command, check=False, cwd=folder, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, timeout=120)
    return run.stdout


def test_each_file_of_the_map_imports_from_a_folder_with_its_companions_alone(tmp_path):
    folders = {}
    for file in PROMISES:
        folders[file] = str(copied(file, tmp_path / file.replace("/", "-")))
    assert len(folders) >= 8
    assert python(IMPORT_ALL, tmp_path, json.dumps(folders)) == ""


@pytest.mark.parametrize("file", PROMISES)
def test_a_file_needs_the_packages_that_the_map_names_and_no_others(file):
    companions, packages = PROMISES[file]
    ours = {name.partition("/")[0].removesuffix(".py") for name in companions}
    needed = set()
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for node in tree.body:                  # a function may import what it alone needs
        if isinstance(node, ast.Import):
            needed |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            needed.add(node.module.partition(".")[0])
    assert needed - ours - set(packages) - sys.stdlib_module_names == set()


USES = {
    "verifier.py": """
from verifier import Verifier
if __name__ == "__main__":
    with Verifier(workers=1) as verifier:
        tests = [{"input": "3", "output": "6"}]
        [verdict] = verifier.judge([{"code": "print(2 * int(input()))", "tests": tests}])
    print(verdict.status)
""",
    "reward.py": """
import torch
import reward
R_out = reward.outcome_reward(torch.tensor([[[0., 1.], [0., 0.]]]))
print("accepted" if reward.planner_reward(torch.ones(1, 2), R_out).tolist() == [[1, 0]] else R_out)
""",
    "grpo.py": """
import torch
import grpo
a = grpo.within_tuple_advantages(torch.tensor([1., 0., 0., 0.]))
logp = torch.zeros(4, requires_grad=True)
loss, _ = grpo.clipped_loss(logp, None, torch.zeros(4), a)
loss.sum().backward()
print("accepted" if torch.allclose(logp.grad, -a) else logp.grad)
""",
    "lib/metrics.py": """
import metrics
print("accepted" if metrics.pass_at_k(n=4, c=1, k=2) == 0.5 else "wrong")
""",
    "prompts.py": """
import prompts
strategies = prompts.parse_plan("A: Sort.\\nB: Count.", k=2)
print("accepted" if strategies == ["Sort.", "Count."] else strategies)
""",
}


@pytest.mark.parametrize("file", USES)
def test_a_copied_file_works(file, tmp_path):
    folder = copied(file, tmp_path / "elsewhere")
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{USES[file]}"
    assert python(code, folder) == "accepted\n"
