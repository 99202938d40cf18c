"""docs/configuration.md, made from the configuration's model: `python -m deploy.docs [FILE]`. The docstring under a field is its text."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config import RunConfig
from common.config.sections import OPERATIONAL

_HEAD = """# Configuration

One TOML file describes a run. Made by `make docs` from `common/config/`; do not edit.

- Any key can be given on the command line too: `reflux run run.toml --set learner.steps=100 --set optimizer.lr=1e-5`.
- Relative paths are relative to the file, those of `--set` to the working directory; without `run.dir`, runs are kept in `runs/` there.
- **identity** keys define what is computed: a run that exists refuses other values. **operational** keys may change when it is resumed.
- Unknown keys are errors.
"""


def configuration_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, info in RunConfig.model_fields.items():
        section, header = _section_of(name, info)
        parts += [f"\n## [{header}]\n", *_described(info), *_table(section)]
        for inner, more in section.model_fields.items():
            if get_origin(more.annotation) is dict:
                group, title = _section_of(f"{header}.{inner}", more)
                parts += [f"\n### [{title}]\n", *_described(more), *_table(group)]
    return "\n".join(parts) + "\n"


def _section_of(name: str, info: FieldInfo) -> tuple[type[BaseModel], str]:
    if get_origin(info.annotation) is dict:
        return get_args(info.annotation)[1], f"{name}.NAME"
    assert isinstance(info.annotation, type)
    return info.annotation, name


def _described(info: FieldInfo) -> Iterator[str]:
    if info.description:
        yield f"{_one_line(info.description)}\n"


def _table(section: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | kind | |"
    yield "|---|---|---|---|---|"
    for name, info in section.model_fields.items():
        if get_origin(info.annotation) is dict:  # a table of its own
            continue
        cells = (f"`{name}`", _type(info), _default(info), _kind(info), _one_line(info.description or ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _kind(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return OPERATIONAL if isinstance(extra, dict) and extra.get("kind") == OPERATIONAL else "identity"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return f"`{_toml(info.default)}`" if info.default is not None else "—"


def _toml(value: Any) -> str:  # whatever a default can be
    match value:
        case bool():
            return str(value).lower()
        case str() | Path():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(_toml(part) for part in value)}]"
        case float():
            return f"{value:g}" if abs(value) < 1e-3 and value else repr(value)
        case _:
            return str(value)


def _type(info: FieldInfo) -> str:
    limits = [text for text in map(_limit, info.metadata) if text]
    return " ".join([_name(info.annotation), *([f"({', '.join(limits)})"] if limits else [])])


def _limit(constraint: Any) -> str:  # annotated_types' constraints
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return "".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if getattr(constraint, name, None) is not None)


def _name(annotation: Any) -> str:  # a type expression
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(arguments[0])
    if origin is Literal:
        return " · ".join(f"`{_toml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    return {str: "text", int: "integer", float: "number", bool: "true · false", Path: "path"}.get(annotation, str(annotation))


def main(arguments: Sequence[str]) -> int:
    """Prints the page, or writes it to the file named."""
    if arguments:
        Path(arguments[0]).write_text(configuration_page())
    else:
        print(configuration_page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
