"""README and docs promise files, functions, commands and flags; each must be there."""

import ast
import importlib
import importlib.util
import re
import shlex

import pytest
from readme import PAGES, README, ROOT, map_rows, quoted

LAUNCHERS = ("python", "torchrun", "bash")
NOT_OURS = ("pytest",)
FOLDERS = ("lib", "rivals", "prepare", "paper", ".")
MODULES = {path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
           for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}


def test_the_readme_is_one_page():
    assert len(README.split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


# --------------------------------------------------------------------------------------------
# The map

def on_the_map() -> list[str]:
    return [name for files, _, _ in map_rows() for name in quoted(files)]


def test_every_file_that_the_map_names_exists():
    assert [name for name in on_the_map() if not (ROOT / name).exists()] == []


def test_every_file_and_package_of_the_top_level_is_on_the_map():
    files = [path.name for path in ROOT.glob("*.py")]
    folders = [f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")]
    assert sorted(set(files + folders) - set(on_the_map())) == []


def test_every_name_of_the_paper_to_code_table_exists():
    page = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
    checked = 0
    for name in re.findall(r"`(\w+(?:\.\w+)+)`", page):
        module, *attributes = name.split(".")
        if attributes == ["py"]:
            assert module in MODULES, name
            continue
        value = importlib.import_module(MODULES[module])
        for attribute in attributes:
            fields = getattr(value, "__dataclass_fields__", {})
            assert hasattr(value, attribute) or attribute in fields, name
            value = getattr(value, attribute, None)
        checked += 1
    assert checked >= 20


def keys_of(module: str, *functions: str) -> set[str]:
    """The text keys of the dicts that these functions of a file build."""
    keys = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Dict):
                    keys |= {key.value for key in inner.keys if isinstance(key, ast.Constant)}
    return keys


def test_the_glossary_explains_every_metric_of_a_training_step():
    logged = keys_of("lib/diagnostics.py", "tuple_metrics", "outcome_metrics", "branch_metrics",
                     "attempt_metrics")
    logged |= keys_of("lib/rl.py", "timings") | keys_of("grpo.py", "update")
    assert len(logged) >= 25
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert sorted(name for name in logged if f"`{name}`" not in page) == []


# --------------------------------------------------------------------------------------------
# Commands

def commands(page) -> list[str]:
    """Every command line of a page: in its bash blocks, and in `python ...` within a sentence."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += re.findall(rf"`((?:{'|'.join(LAUNCHERS)}) [^`]+)`", prose)
    parts = []
    for line in lines:
        without_comment = re.sub(r"\s#\s.*", "", line)
        parts += [part.strip() for part in without_comment.split("&&")]
    return [part for part in parts if part.startswith(LAUNCHERS)]


def script_and_arguments(command: str) -> tuple[str, list[str]]:
    """("train_cppo.py", ["--model", ...]); of `python -m` the module's file. torchrun's own flags
    come before the script and are not ours."""
    words = shlex.split(command)
    for i, word in enumerate(words):
        if word == "-m":
            name = words[i + 1]
            return name if name in NOT_OURS else name.replace(".", "/") + ".py", words[i + 2:]
        if word.endswith((".py", ".sh")):
            return word, words[i + 1:]
    raise ValueError(f"no script in {command!r}")


def fault(command: str) -> str:
    """Why a command would not start; "" if it would."""
    script, arguments = script_and_arguments(command)
    if script in NOT_OURS:
        return ""
    if not (ROOT / script).exists():
        return f"{command}: no {script}"
    source = (ROOT / script).read_text(encoding="utf-8")
    if "def parse_args(" in source:
        if script == "paper/figures.py" and not importlib.util.find_spec("matplotlib"):
            return ""           # it says so and ends; nothing else needs the package
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        try:
            module.parse_args(arguments)
        except SystemExit:
            return f"{command}: refused"
        return ""
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in source]
    return f"{command}: {unknown}" if unknown else ""


def test_the_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_a_script_that_exists_and_flags_that_it_has(page):
    assert [line for line in map(fault, commands(page)) if line] == []


def test_continuous_integration_calls_exactly_the_readmes_test_command():
    [command] = [line for line in README.splitlines() if "python -m pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
