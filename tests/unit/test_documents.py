"""What the documents name exists: files, links, make targets, commands and configuration keys."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from common.config import RunConfig
from deploy.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("common", "producers", "scorers", "learner", "deploy", "tests", "benchmarks", "examples", "docs")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if "runs" not in path.parts
)


def quoted(text: str) -> Iterator[str]:
    """What stands between backticks, fenced blocks left out."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def links(text: str) -> Iterator[str]:
    yield from (target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target)


def missing_files(document: Path) -> list[str]:
    text = document.read_text()
    lost = [target for target in links(text) if not (document.parent / target.partition("#")[0]).exists()]
    named = (name for name in quoted(text) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", name) and name.split("/")[0] in FOLDERS)
    return lost + [name for name in named if "/" in name and not (ROOT / name).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_are_there(name: str) -> None:
    assert missing_files(ROOT / name) == []


def test_a_lost_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[here](page.md) [gone](gone.md) `common/codec.py` `common/gone.py`\n")
    assert missing_files(tmp_path / "page.md") == ["gone.md", "common/gone.py"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_that_a_document_names_are_there(name: str) -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    known = {found for path in files for found in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert set(re.findall(r"`(test_\w+)`", (ROOT / name).read_text())) <= known


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_that_a_document_names_are_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text()
    named = {*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_a_document_names_are_there(name: str) -> None:
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert commands is not None
    assert set(re.findall(r"`reflux ([a-z]+)", (ROOT / name).read_text())) <= set(commands)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_configuration_keys_that_a_document_names_are_there(name: str) -> None:
    for key in re.findall(r"`([a-z]+\.[a-z_]+)(?: = [^`]*)?`", (ROOT / name).read_text()):
        section, _, field = key.partition(".")
        if section in RunConfig.model_fields and field not in {"py", "md", "toml", "json"}:
            annotation = RunConfig.model_fields[section].annotation
            assert isinstance(annotation, type), key
            assert issubclass(annotation, BaseModel), key
            assert field in annotation.model_fields, key
