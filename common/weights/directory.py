"""Weight versions as directories `term000001-step00000042/` of one shared directory.

Guarantees: a version's directory appears whole or not at all (tmp, fsync, rename) and is never changed after; `fetch` returns only what
lies inside the store and has the digests of its manifest, checked once per version and process; `gc` touches only versions of terms up
to the caller's, never the one this process put last. The manifest lies beside the weights, encoded as on the bus.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from common.codec import MAX_LIST_BYTES, decode, encode
from common.errors import StoreAway, WeightsError, WireError
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.patient_thread import PatientThread
from common.weights.tensorfile import check_tensors, write_tensors

MODEL_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.rfx"

_MOST_MANIFEST = MAX_LIST_BYTES + 4096
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link leads out of the store, a pipe would never answer."""
_VERSION = re.compile(r"term(\d{6,})-step(\d{8,})")
_LEFTOVER = re.compile(r"\.(?:tmp|gone)-term(\d{6,})-step\d{8,}-[0-9a-f]+")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def directory_of(version: Version) -> str:
    """The name of a version's directory."""
    return f"term{version.term:06d}-step{version.step:08d}"


class DirectoryStore:
    """A WeightStore on a directory that learner and producers share."""

    def __init__(self, root: Path, *, deadline_s: float = 600.0) -> None:
        self.root = root
        self._thread = PatientThread(root, deadline_s)
        self._checked: WeightManifest | None = None  # what was fetched last: asked for again, it is not read again
        self._last_put: Version | None = None

    async def put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        """Writes a version durably; the same version with the same tensors again is a no-op. Raises WeightsError."""
        return await self._thread.run(self._put, version, tensors)

    async def fetch(self, manifest: WeightManifest) -> Path:
        """The version's directory, digests verified. Raises WeightsError."""
        return await self._thread.run(self._fetch, manifest)

    async def manifest_of(self, version: Version) -> WeightManifest:
        """The manifest that `put` returned for a version of the store. Raises WeightsError."""
        return await self._thread.run(self._manifest_of, version)

    async def versions(self) -> list[Version]:
        """All versions in the store, oldest first."""
        return await self._thread.run(self._versions)

    async def gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        """Deletes versions of terms ≤ `up_to_term` but the newest `keep` of them, the pinned ones and the one put last."""
        await self._thread.run(self._gc, keep, up_to_term, pinned)

    def _put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        name = directory_of(version)
        tmp = self.root / f".tmp-{name}-{secrets.token_hex(4)}"
        try:
            tmp.mkdir(parents=True)
            file, digests = write_tensors(tmp / MODEL_FILE, tensors)
            manifest = WeightManifest(version, "full", name, (file,), digests)
            (tmp / MANIFEST_FILE).write_bytes(encode(manifest))
            for path in (tmp / MODEL_FILE, tmp / MANIFEST_FILE, tmp):  # all written before: one journal commit carries the three
                _sync(path)
            if (self.root / name).exists():
                self._must_equal(manifest)
            else:
                tmp.rename(self.root / name)
                _sync(self.root)
        except OSError as error:
            reason = error.strerror or error
            raise StoreAway(f"cannot write weights to {self.root} ({reason}): make room, or make it writable") from error
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        self._last_put = version
        return manifest

    def _must_equal(self, manifest: WeightManifest) -> None:
        if self._manifest_of(manifest.version) != manifest:
            raise WeightsError(f"{self.root / manifest.directory} holds other weights already: a version is never changed")

    def _fetch(self, manifest: WeightManifest) -> Path:
        version, directory = manifest.version, self.root / manifest.directory
        if manifest.directory != directory_of(version) or not all(_FILE.fullmatch(file.name) for file in manifest.files):
            raise WeightsError(f"the manifest of {version} names files outside {directory_of(version)}: {manifest.directory!r}")
        if manifest.kind != "full":
            raise WeightsError(f"the manifest of {version} is a {manifest.kind}: this store keeps full versions only")
        if self._checked != manifest or not directory.is_dir():
            self._check(manifest, directory)
            self._checked = manifest
        return directory

    def _check(self, manifest: WeightManifest, directory: Path) -> None:
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
        if found != dict(manifest.tensors):
            wrong = min(found.items() ^ manifest.tensors.items())[0]
            raise WeightsError(f"{directory}: tensor {wrong} does not have the digest of its manifest")

    def _manifest_of(self, version: Version) -> WeightManifest:
        path = self.root / directory_of(version) / MANIFEST_FILE
        try:
            with path.open("rb") as file:
                manifest = decode(file.read(_MOST_MANIFEST), WeightManifest)
        except OSError as error:
            raise WeightsError(f"there are no weights {version} in {self.root}: {error.strerror or error}") from error
        except WireError as error:
            raise WeightsError(f"{path} is damaged: {error}") from error
        assert isinstance(manifest, WeightManifest)
        return manifest

    def _versions(self) -> list[Version]:
        try:
            with os.scandir(self.root) as entries:
                names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreAway(f"cannot list the weights in {self.root}: {error.strerror or error}") from error
        found = [Version(int(match[1]), int(match[2])) for name in names if (match := _VERSION.fullmatch(name))]
        return sorted(version for version in set(found) if directory_of(version) in names)

    def _gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        eligible = [version for version in self._versions() if version.term <= up_to_term]
        kept = {*eligible[max(0, len(eligible) - keep) :], *pinned, self._last_put}
        for version in eligible:
            if version not in kept:
                name = directory_of(version)
                gone = self.root / f".gone-{name}-{secrets.token_hex(4)}"
                try:
                    (self.root / name).rename(gone)
                except OSError as error:
                    raise StoreAway(f"cannot delete the weights {self.root / name}: {error.strerror or error}") from error
                shutil.rmtree(gone, ignore_errors=True)
        self._sweep(up_to_term)

    def _sweep(self, up_to_term: int) -> None:
        """Removes what killed processes of lower terms left behind, and what could not be deleted while a reader had it open."""
        for path in self.root.glob(".*-term*"):
            leftover = _LEFTOVER.fullmatch(path.name)
            if leftover and int(leftover[1]) < up_to_term + path.name.startswith(".gone"):
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
