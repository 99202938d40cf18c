"""The one page of report and dashboard: markup, style and script as one self-contained text, and the data that it begins with.

Text of prompts and answers is data: it is embedded as JSON and shown as text, never as markup. The page draws what it is given; where
`live` is set it asks its own server for more, and nobody else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any  # JSON values

_SCRIPTS = ("elements", "format", "pipeline", "flow", "charts", "tokens", "detail", "tables", "main")


def page(data: Mapping[str, Any]) -> str:
    """HTML."""
    parts = resources.files("deploy.report").joinpath("assets")
    text = {name: parts.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "style.css", *(f"{s}.js" for s in _SCRIPTS))}
    script = "\n".join(text[f"{name}.js"] for name in _SCRIPTS)
    whole = text["page.html"].replace("/*STYLE*/", text["style.css"]).replace("/*SCRIPT*/", script)
    return whole.replace("/*DATA*/", _embedded(data))


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return as_json(data).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def as_json(data: Any) -> str:
    """As browsers read it: a number that is NaN or infinite is null, half a character is a question mark."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(errors="replace").decode()
    except ValueError:
        return as_json(_finite(data))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
