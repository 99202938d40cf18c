"""From a TOML file and `--set a.b=c` to a RunConfig; every mistake is one sentence that names the key and says what to write."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from common.config.run import RunConfig
from common.errors import ConfigError

MOST_BYTES = 1 << 20
_PATHS = (
    "run.dir",
    "model.student",
    "data.prompts",
    "data.eval_prompts",
    "weights.dir",
    "weights.token_file",
    "weights.cache",
    "producer.api_key_file",
    "producer.admin_key_file",
    "bus.password_file",
    "bus.tls_ca",
    "bus.tls_cert",
    "bus.tls_key",
    "service.metrics_token_file",
)


def load_config(file: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads `file`; relative paths in it are relative to it, those in `overrides` to the working directory."""
    try:
        text = _read(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {file}: give the path of a run's TOML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    _absolute(values, file.resolve().parent)
    given: dict[str, Any] = {}
    for override in overrides:
        _set(given, override)
    _absolute(given, Path.cwd())
    _merge(values, given)
    if isinstance(run := values.setdefault("run", {}), dict):
        run.setdefault("dir", str(Path.cwd() / "runs"))
    return parse_config(values)


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{file} is longer than {MOST_BYTES} bytes: give the path of a run's TOML")
    return content.decode()


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validates plain values; raises ConfigError."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(sentences(error, RunConfig)) from None


def sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """What a person should write instead; `model` is what was validated."""
    return "; ".join(_sentence(detail, model) for detail in error.errors())


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not KEY=VALUE: write for example --set learner.steps=100")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        value = text
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {section} is not a section")
    values[name] = value


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _absolute(values: dict[str, Any], base: Path) -> None:
    """Makes the paths of `values` absolute, in place."""
    for parent, name in _path_slots(values):
        text = parent[name]
        if isinstance(text, str) and text and not text.startswith("datasets:"):
            parent[name] = str(base / _expanded(name, text))


def _expanded(key: str, text: str) -> Path:
    if "\0" in text:
        raise ConfigError(f"{key} = {text!r} cannot be a path: it holds a null character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{key} = {text!r} begins with the home directory of somebody unknown: write the path out") from None


def _path_slots(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for dotted in _PATHS:
        section, name = dotted.split(".")
        parent = values.get(section)
        if isinstance(parent, dict) and name in parent:
            yield parent, name
    teachers = values.get("teachers")
    for teacher in teachers.values() if isinstance(teachers, dict) else ():
        for name in ("path", "api_key_file", "admin_key_file"):
            if isinstance(teacher, dict) and name in teacher:
                yield teacher, name


def _sentence(detail: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {key}: {_suggestion(detail['loc'], model)}"
        case "missing":
            return f"missing key {key}: add it to the configuration"
        case "value_error":
            return f"{key + ': ' if key else ''}{detail['ctx']['error']}"
        case _:
            return f"{key} = {detail['input']!r} is wrong: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _suggestion(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = _known_keys(loc[:-1], model)
    close = difflib.get_close_matches(str(loc[-1]), known, 1)
    prefix = "".join(f"{part}." for part in loc[:-1])
    return f"did you mean {prefix}{close[0]}?" if close else f"known here are {', '.join(sorted(known))}"


def _known_keys(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:  # the key of a dict, such as a teacher's name
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
