"""The house rules that a test can check: lengths, names, packages, suppressed checks, no machine's own paths."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("common", "producers", "scorers", "learner", "deploy", "benchmarks", "examples", "tests")
PACKAGES = ("common", "producers", "scorers", "learner", "deploy")
MOST_LINES = 300
MOST_FUNCTION_LINES = 50
MACHINE_PATHS = re.compile(r"(?<![\w.$}{~-])/(?:work|opt|home/\w+|root|Users)/[\w.-]+")
BANNED_NAMES = re.compile(r"(?:^|_)(?:manager|managers|utils?|helpers?|registry)(?:_|$)")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def tracked_text_files() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    texts = {".py", ".md", ".toml", ".txt", ".lua", ".sh", ".yml", ".yaml", ".cfg", ""}
    return [ROOT / name for name in names if name and Path(name).suffix in texts and (ROOT / name).is_file()]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


FILES = python_files(*CODE)


def test_no_source_file_is_longer_than_the_cap() -> None:
    too_long = {shown(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not too_long


def test_no_function_is_longer_than_the_cap() -> None:
    too_long = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in functions(ast.parse(path.read_text()))
        if (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert not too_long


def test_every_module_of_the_packages_says_what_it_guarantees() -> None:
    silent = [
        shown(path) for path in python_files(*PACKAGES) if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_every_directory_of_the_packages_is_a_package() -> None:
    folders = {path.parent for path in python_files(*PACKAGES)}
    assert [shown(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_module_is_named_for_being_nothing_in_particular() -> None:
    assert [shown(path) for path in python_files(*PACKAGES) if BANNED_NAMES.search(path.stem)] == []


def test_imports_are_absolute() -> None:
    relative = [
        f"{shown(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def test_only_learner_loads_what_may_run_code() -> None:
    """P10: no pickle on the bus, the weight store or HTTP."""
    allowed = "learner/megatron/"
    loading = [
        f"{shown(path)}:{node.lineno}"
        for path in python_files(*PACKAGES)
        if not shown(path).startswith(allowed)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    ]
    assert not loading


def test_below_the_configuration_nobody_reads_the_environment() -> None:
    """Rule 10, for the stages; deploy/ sets the environment of the roles, torch.distributed and mcore read their own, and
    a password never enters the configuration."""
    allowed = (
        "learner/megatron/",
        "learner/ranks.py",
        "learner/nodes.py",
        "learner/__main__.py",
        "common/bus/login.py",
        "common/sglang/keys.py",
    )
    readers = [
        shown(path)
        for path in python_files("common", "producers", "scorers", "learner")
        if not shown(path).startswith(allowed) and re.search(r"os\.(?:environ\b(?!\[)|getenv)", path.read_text())
    ]
    assert not readers


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in python_files("tests") if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_nothing_names_a_machines_own_paths() -> None:
    naming = [
        f"{shown(path)}: {match.group()}"
        for path in tracked_text_files()
        if path != Path(__file__).resolve()
        for match in MACHINE_PATHS.finditer(path.read_text(errors="replace"))
    ]
    assert not naming


@pytest.mark.parametrize("line", ["open('/work/models/x')", "see /opt/models/a", "/home/jo/runs"])
def test_a_machines_own_path_is_recognised(line: str) -> None:
    assert MACHINE_PATHS.search(line)


@pytest.mark.parametrize("line", ["https://host.example/work/x", "runs/data/x", "{run}/opt/x", "redis://127.0.0.1:6379/0"])
def test_addresses_and_relative_paths_are_not_a_machines_own(line: str) -> None:
    assert not MACHINE_PATHS.search(line)
