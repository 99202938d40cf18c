"""Verifiers that compare text; white space around the answer does not count."""

from __future__ import annotations

import re
from collections.abc import Callable


def exact(response: str, answer: str) -> bool:
    """The whole response is the answer."""
    return response.strip() == answer.strip()


def last_match(pattern: re.Pattern[str]) -> Callable[[str, str], bool]:
    """The first group of the pattern's last match in the response is the answer."""

    def verify(response: str, answer: str) -> bool:
        found = None
        for found in pattern.finditer(response):  # noqa: B007 - the last one is wanted
            pass
        return found is not None and (found[1] or "").strip() == answer.strip()

    return verify
