"""Weight versions under any URL that fsspec knows: s3://bucket/path, gs://…, memory://….

Guarantees besides those of store.py: the manifest is written last and deleted first, and a directory without one is no version (object
stores rename nothing); files are read in pieces, never more of them than their manifest says, and a piece that fails is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any  # Any: fsspec has no types

import fsspec

from common.errors import ConfigError, WeightsError
from common.messages import WeightFile, WeightManifest
from common.weights.chain import Link
from common.weights.directory import checked_files
from common.weights.store import MANIFEST_FILE, MOST_MANIFEST, VERSION, VersionStore

PIECE = 8 << 20
_TRIES = 3
_NOT_AGAIN = (FileNotFoundError, PermissionError)
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"})
"""fsspec's names of those that have buckets of keys and no directories."""


class RemoteStore(VersionStore):
    """A WeightStore on one of fsspec's file systems. Versions are written and kept in `cache` on this machine."""

    advice = "correct weights.url, or let this machine's credentials read and write there (docs/weights.md)"

    def __init__(self, url: str, *, deadline_s: float, full_every: int, cache: Path) -> None:
        super().__init__(url.rstrip("/"), deadline_s=deadline_s, full_every=full_every, cache=cache)
        self._fs, self._root = self._opened(url.rstrip("/"))

    def _opened(self, url: str) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return fs, root.rstrip("/")

    def _path(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _names(self) -> set[str]:
        with foreign():
            self._fs.invalidate_cache()
            return {path.split("/")[-2] for path in self._fs.glob(self._path("term*", MANIFEST_FILE))}

    def _begin(self, name: str) -> Path:  # noqa: ARG002 - nobody else looks there
        return self._workshop.begin()

    def _commit(self, begun: Path, name: str) -> bool:
        with foreign():
            if self._fs.exists(self._path(name, MANIFEST_FILE)):
                return False
            self._make_directory(self._path(name))
            files = sorted(begun.iterdir(), key=lambda path: path.name == MANIFEST_FILE)
            for path in files:
                self._fs.put_file(str(path), self._path(name, path.name))
        return True

    def _make_directory(self, path: str) -> None:
        """Not in an object store: there it would make the bucket of a misspelt URL, and fail where credentials see one prefix only."""
        names = self._fs.protocol
        if not _OBJECT_STORES.intersection((names,) if isinstance(names, str) else names):
            self._fs.makedirs(path, exist_ok=True)

    def _abandon(self, begun: Path) -> None:
        self._workshop.drop(begun)

    def _read_manifest(self, name: str) -> bytes:
        with foreign(), self._reading(self._path(name, MANIFEST_FILE), MOST_MANIFEST) as file:
            return bytes(file.read(MOST_MANIFEST))

    def _files(self, manifest: WeightManifest) -> Link:
        begun = self._workshop.begin()
        try:
            for file in manifest.files:
                with (begun / file.name).open("xb") as out:
                    self._download(self._path(manifest.directory, file.name), file, out)
            return Link(begun, checked_files(begun, manifest))
        except BaseException:
            self._workshop.drop(begun)
            raise

    def _download(self, remote: str, file: WeightFile, out: IO[bytes]) -> None:
        tries = 0
        while out.tell() < file.bytes:
            before = out.tell()
            try:
                with foreign(), self._reading(remote, file.bytes) as source:
                    source.seek(before)
                    while piece := source.read(min(PIECE, file.bytes - out.tell())):
                        out.write(piece)
                    return
            except OSError as error:
                tries = 1 if out.tell() > before else tries + 1
                if tries == _TRIES or isinstance(error, _NOT_AGAIN):
                    raise

    def _reading(self, remote: str, size: int) -> Any:  # noqa: ARG002 - where asking for the size costs a request, it is known
        return self._fs.open(remote, "rb", block_size=PIECE)

    def _remove(self, name: str) -> None:
        with foreign():
            self._fs.rm_file(self._path(name, MANIFEST_FILE))
            self._fs.rm(self._path(name), recursive=True)

    def _sweep(self, names: set[str], up_to_term: int) -> None:
        """What has no manifest and is of a lower term: its learner is dead."""
        with foreign():
            for path in self._fs.glob(self._path("term*")):
                name = path.rstrip("/").rsplit("/", 1)[-1]
                match = VERSION.fullmatch(name)
                if match and int(match[1]) < up_to_term and name not in names:
                    self._fs.rm(path, recursive=True)


@contextmanager
def foreign() -> Iterator[None]:
    """Every file system has errors of its own; here they become OSError."""
    try:
        yield
    except (OSError, WeightsError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_remote_store(url: str, *, deadline_s: float, full_every: int, cache: Path) -> RemoteStore:
    """Raises ConfigError where fsspec has no file system for the URL, or lacks its library."""
    try:
        return RemoteStore(url, deadline_s=deadline_s, full_every=full_every, cache=cache)
    except ImportError as error:
        raise ConfigError(
            f"weights.url = {url!r} needs a library that is not installed ({error}): pip install 'reflux[s3]' or [gs]"
        ) from None
    except ValueError as error:
        raise ConfigError(f"weights.url = {url!r} is no place that fsspec knows: {error}") from None
