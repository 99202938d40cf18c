"""Judges of answers: `verifier_for(config.evaluation)` gives (response text, answer) -> bool.

The built-in ones never raise, whatever the text. `math` may take seconds for a strange answer: call it off the event loop.
"""

import re
from collections.abc import Callable

from common.config.sections import EvaluationSection
from common.errors import ConfigError
from common.extension import PREFIX, load_function

__all__ = ["Verifier", "verifier_for"]

Verifier = Callable[[str, str], bool]


def verifier_for(config: EvaluationSection) -> Verifier:
    """The verifier that `evaluation.verifier` names. Raises ConfigError. What a `python:` function raises is not caught."""
    from producers.verifiers.text import exact, last_match

    match config.verifier:
        case "exact":
            return exact
        case "regex":
            return last_match(_pattern(config.pattern))
        case "math":
            from producers.verifiers.mathematics import MathVerifier

            return MathVerifier()
        case verifier if verifier.startswith(PREFIX):
            function = load_function(verifier, "evaluation.verifier")
            return lambda response, answer: bool(function(response, answer))
    raise ConfigError(f"evaluation.verifier = {config.verifier!r} is unknown: write exact, regex, math or python:module:function")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"evaluation.pattern = {text!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise ConfigError(f"evaluation.pattern = {text!r} has no group: put the part that is the answer in parentheses")
    return pattern
