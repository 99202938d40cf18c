"""Functions of the user's own, named `python:module:function` in the configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any  # the user's function: its caller states the signature it needs

from common.errors import ConfigError

PREFIX = "python:"


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """The function that `reference` names; `key` is the configuration key to blame. Raises ConfigError."""
    module_name, colon, name = reference.removeprefix(PREFIX).partition(":")
    if not (colon and module_name and name):
        raise ConfigError(f"{key} = {reference!r} is incomplete: write python:module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key} = {reference!r}: there is no module {error.name}: install it or add its directory to PYTHONPATH"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{key} = {reference!r}: module {module_name} has no function {name}")
    return function  # type: ignore[no-any-return]
