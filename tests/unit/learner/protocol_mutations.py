"""The product with one rule switched off, in this process only: to see the test of the rule go red."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import textwrap

from common.bus import redis_client


def without(monkeypatch, place: str, rule: str, instead: str) -> None:
    """`place`: a script ("admit.lua") or a function ("learner.line:Line.apply"); `rule` must stand there."""
    if place.endswith(".lua"):
        _change_script(monkeypatch, place.removesuffix(".lua"), rule, instead)
    else:
        _change_function(monkeypatch, place, rule, instead)


def _change_script(monkeypatch, script: str, rule: str, instead: str) -> None:
    """A rule of the prelude is off in every script."""
    whole = redis_client._script.__wrapped__

    def changed(name: str) -> tuple[str, str]:
        text, _ = whole(name)
        if script in {"prelude", name}:
            assert rule in text, f"{rule!r} does not stand in {script}.lua"
            text = text.replace(rule, instead)
        return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    changed(script if script != "prelude" else "admit")
    monkeypatch.setattr(redis_client, "_script", changed)


def _change_function(monkeypatch, place: str, rule: str, instead: str) -> None:
    module_name, _, path = place.partition(":")
    module = importlib.import_module(module_name)
    owner = module
    *owners, name = path.split(".")
    for one in owners:
        owner = getattr(owner, one)
    text = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert rule in text, f"{rule!r} does not stand in {place}"
    made: dict[str, object] = {}
    exec(compile("from __future__ import annotations\n" + text.replace(rule, instead), place, "exec"), vars(module), made)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, made[name])
    for other in list(sys.modules.values()):  # where it was imported by name
        if owner is module and hasattr(other, "__dict__") and vars(other).get(name) is original:
            monkeypatch.setattr(other, name, made[name])
