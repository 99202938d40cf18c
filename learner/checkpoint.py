"""Checkpoints: a whole learner at one (term, step), or nothing.

Guarantees: a directory checkpoints/term000001-step00000050/ is complete (temporary name, fsync, rename) and every file in it is named with
its digest in manifest.json, checked before anything is read; loading takes the highest valid (term, step) and says what it passed over, and
fails where none of those that are there is valid; a learner deletes only what its own or a lower term wrote. The model's part is the
trainer's business.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import DiskFull, UserError
from common.messages import Version
from learner.disk import digest, needs_room, sync_directory, sync_file
from learner.line import Line

_NAME = re.compile(r"term(\d+)-step(\d+)")
_LEFTOVER = re.compile(r"\.term(\d+)-step\d+\.(?:tmp|old)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified directory; `extra` is what `save` was given beside the line."""

    version: Version
    directory: Path
    line: Line
    extra: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The trainer's part."""
        return self.directory / "model"


def save(root: Path, line: Mapping[str, Any], extra: Mapping[str, Any], save_model: Callable[[Path], None]) -> Path:
    """Writes the checkpoint of `line` (as of Line.to_json); `save_model` fills the trainer's directory. Durable when it returns; DiskFull
    leaves nothing of it."""
    return begin(root, line, extra, lambda directory: partial(save_model, directory))()


def begin(
    root: Path, line: Mapping[str, Any], extra: Mapping[str, Any], begin_model: Callable[[Path], Callable[[], None]]
) -> Callable[[], Path]:
    """In two parts: `begin_model` takes the trainer's state as it is now, and what it returns ends when that lies in the trainer's
    directory. The call returned here waits for it, in any thread, and then gives the checkpoint its name; without it, it counts nowhere."""
    name = f"term{line['term']:06}-step{line['step']:08}"
    temporary = root / f".{name}.tmp"
    with _all_or_nothing(root, temporary):
        if temporary.exists():
            shutil.rmtree(temporary)
        (temporary / "model").mkdir(parents=True)
        written = begin_model(temporary / "model")
    return partial(_complete, temporary, root / name, line, extra, written)


@contextmanager
def _all_or_nothing(root: Path, temporary: Path) -> Iterator[None]:
    try:
        with needs_room(root, "a checkpoint"):
            yield
    except DiskFull:
        shutil.rmtree(temporary, ignore_errors=True)  # others need the room
        raise


def _complete(temporary: Path, final: Path, line: Mapping[str, Any], extra: Mapping[str, Any], written: Callable[[], None]) -> Path:
    with _all_or_nothing(final.parent, temporary):
        written()
        _describe(temporary, line, extra)
    before = final.with_name(f".{final.name}.old")
    if final.exists():  # the same term can come to the same step only with the same line; it may be the only one, so it goes last
        final.replace(before)
    temporary.replace(final)
    sync_directory(final.parent)
    shutil.rmtree(before, ignore_errors=True)
    return final


def _describe(temporary: Path, line: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """The line and the digests; all of it is durable then."""
    (temporary / "line.json").write_text(json.dumps({"line": line, "extra": extra}))
    files = {str(path.relative_to(temporary)): digest(path) for path in _files(temporary)}
    (temporary / "manifest.json").write_text(json.dumps(files, indent=1))
    for path in [*_files(temporary), *(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
        sync_directory(path) if path.is_dir() else sync_file(path)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def versions(root: Path) -> list[Version]:
    """Checkpoints by name, lowest first; their digests are not checked."""
    matches = (_NAME.fullmatch(path.name) for path in root.glob("term*"))
    return sorted(Version(int(match[1]), int(match[2])) for match in matches if match)


def _path(root: Path, version: Version) -> Path:
    return root / f"term{version.term:06}-step{version.step:08}"


def _manifest(directory: Path) -> dict[str, str]:
    try:
        files: dict[str, str] = json.loads((directory / "manifest.json").read_text())
    except ValueError as error:
        raise ValueError(f"{directory / 'manifest.json'} cannot be read: {error}") from error
    return files


def _line_file(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / "line.json").read_text())
    return values


def read_line(root: Path, version: Version) -> Line:
    """Without a look at the digests; raises what reading raises."""
    return Line.from_json(_line_file(_path(root, version))["line"])


def load(root: Path, version: Version) -> Checkpoint:
    """Raises ValueError where a file is missing or has another digest."""
    directory = _path(root, version)
    try:
        manifest = _manifest(directory)
        wrong = [name for name, expected in manifest.items() if digest(directory / name) != expected]
        if wrong:
            raise ValueError(f"{directory / wrong[0]} has another digest than its manifest")
        values = _line_file(directory)
    except OSError as error:
        raise ValueError(f"{directory} is incomplete: {error}") from error
    return Checkpoint(version, directory, Line.from_json(values["line"]), values["extra"])


def newest(root: Path) -> Checkpoint | None:
    """The highest valid (term, step), None where there is none at all. Raises UserError where all are damaged: a run must not begin anew
    by itself."""
    why = ""
    for version in reversed(versions(root)):
        try:
            return load(root, version)
        except ValueError as error:
            why = str(error)
            _log.warning("a checkpoint is damaged, the one before it is used", extra={"version": version, "error": why})
    if why:
        raise UserError(
            f"no checkpoint in {root} is whole ({why}): put one back from a copy, or begin anew with `reflux run CONFIG --fresh`"
        )
    return None


def put_back(root: Path) -> None:
    """What a learner had moved out of the way when it was killed, before the new one had its name, may be the only checkpoint there is.
    For who goes on from here; the learner that did it must be dead."""
    for path in root.glob(".term*.old"):
        final = root / path.name.removeprefix(".").removesuffix(".old")
        if not final.exists():
            path.replace(final)


def set_aside(root: Path, above: Version, term: int) -> None:
    """Damaged checkpoints of lower terms, which lie above the one that `term` goes on from, no longer count as kept ones."""
    for version in versions(root):
        if version > above and version.term < term:
            path = _path(root, version)
            path.replace(root / f"damaged-{path.name}-found-by-term{term:06}")


def oldest(root: Path) -> Version | None:
    """The lowest one there is."""
    return next(iter(versions(root)), None)


def delete_old(root: Path, keep: int, up_to_term: int) -> None:
    """Keeps the newest `keep` of the terms ≤ `up_to_term`; what a crash left half-written in them goes too."""
    mine = [version for version in versions(root) if version.term <= up_to_term]
    for version in mine[:-keep]:
        shutil.rmtree(_path(root, version))
    for path in root.glob(".term*"):
        if (leftover := _LEFTOVER.fullmatch(path.name)) and int(leftover[1]) <= up_to_term:
            shutil.rmtree(path, ignore_errors=True)
    sync_directory(root)
