"""Weight versions as directories `term000001-step00000042/` of one directory that learner and producers share.

Guarantees besides those of store.py: a version is written beside its place (tmp, fsync, rename), full versions are used where they lie, and
no link is followed out of the store.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from common.errors import WeightsError
from common.messages import WeightManifest
from common.weights.chain import Link
from common.weights.store import MANIFEST_FILE, MODEL_FILE, MOST_MANIFEST, VersionStore
from common.weights.tensorfile import check_tensors

__all__ = ["MANIFEST_FILE", "MODEL_FILE", "DirectoryStore"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link leads out of the store, a pipe would never answer."""
_LEFTOVER = re.compile(r"\.(?:tmp|gone)-term(\d{6,})-step\d{8,}-[0-9a-f]+")


class DirectoryStore(VersionStore):
    """A WeightStore on a directory. `cache`: where full versions are rebuilt from deltas; beside the store unless named."""

    def __init__(self, root: Path, *, deadline_s: float = 600.0, full_every: int = 1, cache: Path | None = None) -> None:
        super().__init__(root, deadline_s=deadline_s, full_every=full_every, cache=cache or root.with_name(f"{root.name}-cache"))
        self.root = root

    def _names(self) -> set[str]:
        try:
            with os.scandir(self.root) as entries:
                return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            return set()

    def _begin(self, name: str) -> Path:
        begun = self.root / f".tmp-{name}-{secrets.token_hex(4)}"
        begun.mkdir(parents=True)
        return begun

    def _commit(self, begun: Path, name: str) -> bool:
        for path in (*begun.iterdir(), begun):  # all written before: one journal commit carries them all
            _sync(path)
        if (self.root / name).exists():
            return False
        begun.rename(self.root / name)
        _sync(self.root)
        return True

    def _abandon(self, begun: Path) -> None:
        shutil.rmtree(begun, ignore_errors=True)

    def _read_manifest(self, name: str) -> bytes:
        with (self.root / name / MANIFEST_FILE).open("rb") as file:
            return file.read(MOST_MANIFEST)

    def _files(self, manifest: WeightManifest) -> Link:
        directory = self.root / manifest.directory
        return Link(directory, checked_files(directory, manifest))

    def _remove(self, name: str) -> None:
        gone = self.root / f".gone-{name}-{secrets.token_hex(4)}"
        (self.root / name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self, names: set[str], up_to_term: int) -> None:
        """Also what could not be deleted while a reader had it open."""
        for name in names:
            leftover = _LEFTOVER.fullmatch(name)
            if leftover and int(leftover[1]) < up_to_term + name.startswith(".gone"):
                shutil.rmtree(self.root / name, ignore_errors=True)


def checked_files(directory: Path, manifest: WeightManifest) -> dict[str, str]:
    """The digests of the tensors in the manifest's files, which have those of the manifest. Raises WeightsError."""
    found: dict[str, str] = {}
    try:
        inside = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for file in manifest.files:
                with os.fdopen(os.open(file.name, _READ, dir_fd=inside), "rb") as opened:
                    found |= check_tensors(opened, file)
        finally:
            os.close(inside)
    except WeightsError as error:
        raise WeightsError(f"{directory}: {error}") from None
    except OSError as error:
        raise WeightsError(f"cannot read weights {manifest.version} in {directory}: {error.strerror or error}") from error
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
