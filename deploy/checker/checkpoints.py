"""What the checkpoints say that the model has in it, each believed only where every file has the digest of its manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple  # Any: JSON values

_NAME = re.compile(r"term(\d+)-step(\d+)")


class Version(NamedTuple):
    """(term, step), compared as a pair."""

    term: int
    step: int


@dataclass(frozen=True, slots=True)
class Listing:
    """One checkpoint's own list. `lineage`: the terms that made the model, each with the step it began at."""

    version: Version
    directory: Path
    cursor: int
    applied: frozenset[int]
    dead: Mapping[int, str]
    lineage: tuple[Version, ...]

    @property
    def step(self) -> int:
        """Steps that the model has done."""
        return self.version.step


def read_checkpoints(root: Path) -> tuple[list[Listing], list[str]]:
    """The valid ones, lowest version first, and what is wrong with the others."""
    listings: list[Listing] = []
    damaged: list[str] = []
    for path in sorted(root.glob("term*")):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            listings.append(_read(path, Version(int(match[1]), int(match[2]))))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            damaged.append(f"{path} ({error})")
    return sorted(listings, key=lambda one: one.version), damaged


def _read(directory: Path, version: Version) -> Listing:
    manifest: dict[str, str] = json.loads((directory / "manifest.json").read_bytes())
    for name, expected in manifest.items():
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(f"{name} has another digest than its manifest")
    values: dict[str, Any] = json.loads((directory / "line.json").read_bytes())["line"]
    if Version(values["term"], values["step"]) != version:
        raise ValueError(f"line.json is of {values['term']}:{values['step']}")
    applied: frozenset[int] = frozenset(range(values["low"])).difference(values["skipped"]).union(values["above"])
    dead = {int(seq): reason for seq, reason in values["dead"].items()}
    return Listing(version, directory, values["cursor"], applied, dead, tuple(Version(*one) for one in values["lineage"]))


def on_line(listings: Sequence[Listing], lineage: Sequence[Version]) -> list[Listing]:
    """Those that the line with this lineage went through."""
    return [one for one in listings if one.lineage == tuple(lineage[: len(one.lineage)]) and _not_beyond(one, lineage)]


def _not_beyond(one: Listing, lineage: Sequence[Version]) -> bool:
    """Whether the next term of the lineage began at this checkpoint's step or later."""
    following = lineage[len(one.lineage) :]
    return not following or one.step <= following[0].step
