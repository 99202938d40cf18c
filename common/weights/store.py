"""What every weight store does alike: which versions are deltas, how a whole version comes of them, what may be deleted.

Guarantees: a version appears whole or not at all and is never changed after. `fetch` gives a local directory with the full version, whose
files lie inside the store and whose tensors have the digests of the manifest, checked once per version and process; what does not have them
is fetched once more, then refused. A term's first version is full, and every `full_every`th after it. `gc` touches only versions of terms
up to the caller's, never the one this process put last, nor one that a kept delta needs. The manifest lies beside the weights.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from common.codec import MAX_LIST_BYTES, decode, encode
from common.errors import StoreAway, WeightsError, WireError
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.chain import Link, Published, rebuild, write_delta
from common.weights.patient_thread import PatientThread
from common.weights.tensorfile import write_tensors
from common.weights.workshop import Workshop

MODEL_FILE = "model.safetensors"
DELTA_FILE = "delta.safetensors"
MANIFEST_FILE = "manifest.rfx"
MOST_MANIFEST = MAX_LIST_BYTES + 4096
VERSION = re.compile(r"term(\d{6,})-step(\d{8,})")

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MOST_DELTAS = 4096
_REMEMBERED = 2  # versions fetched: what is asked for again, and what the next delta is to


def directory_of(version: Version) -> str:
    """The name of a version's directory."""
    return f"term{version.term:06d}-step{version.step:08d}"


class VersionStore(ABC):
    """A WeightStore; where the files lie is the adapter's business. `place` is named in errors, `advice` says what to do about them."""

    advice = "make room, or make it writable"

    def __init__(self, place: object, *, deadline_s: float, full_every: int, cache: Path) -> None:
        self.place = place
        self._thread = PatientThread(place, deadline_s)
        self._full_every = full_every
        self._workshop = Workshop(cache)
        self._ready: dict[Version, tuple[WeightManifest, Path]] = {}
        self._bases: dict[Version, Version | None] = {}
        self._published: Published | None = None
        self._last_put: Version | None = None

    async def put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        """Writes a version durably; the same version with the same tensors again is a no-op. The tensors must not change afterwards: the
        next delta is taken from them. Raises WeightsError."""
        return await self._thread.run(self._put, version, tensors)

    async def fetch(self, manifest: WeightManifest) -> Path:
        """A local directory with the full version, digests verified. Raises WeightsError."""
        return await self._thread.run(self._fetch, manifest)

    async def manifest_of(self, version: Version) -> WeightManifest:
        """The manifest that `put` returned for a version of the store. Raises WeightsError."""
        return await self._thread.run(self._manifest_of, version)

    async def versions(self) -> list[Version]:
        """All versions in the store, oldest first."""
        return await self._thread.run(self._versions)

    async def gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        """Deletes versions of terms ≤ `up_to_term` but the newest `keep` of them, the pinned ones, the one put last, and their bases."""
        await self._thread.run(self._gc, keep, up_to_term, pinned)

    @abstractmethod
    def _names(self) -> set[str]:
        """Of all directories that may be versions. Raises OSError."""

    @abstractmethod
    def _begin(self, name: str) -> Path:
        """A new, empty, local directory in which the version is written. Raises OSError."""

    @abstractmethod
    def _commit(self, begun: Path, name: str) -> bool:
        """Makes it appear, whole and durably; False: the version was there before. Raises OSError."""

    @abstractmethod
    def _abandon(self, begun: Path) -> None:
        """Removes what is left of it."""

    @abstractmethod
    def _read_manifest(self, name: str) -> bytes:
        """At most MOST_MANIFEST bytes. Raises OSError."""

    @abstractmethod
    def _files(self, manifest: WeightManifest) -> Link:
        """The manifest's files, locally and with its digests. Raises OSError, WeightsError."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Makes a version disappear at once. Raises OSError."""

    @abstractmethod
    def _sweep(self, names: set[str], up_to_term: int) -> None:
        """Removes what killed processes of lower terms left behind; `names` are those listed. Raises OSError."""

    def _put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        name = directory_of(version)
        base = self._base_for(version)
        try:
            begun = self._begin(name)
            try:
                manifest = self._write(begun, version, tensors, base)
                if not self._commit(begun, name):
                    manifest = self._must_equal(manifest)
            finally:
                self._abandon(begun)
        except OSError as error:
            raise StoreAway(f"cannot write weights to {self.place} ({error.strerror or error}): {self.advice}") from error
        deltas = base.deltas + 1 if base is not None and manifest.kind == "delta" else 0
        self._published = Published(version, tensors, manifest.tensors, deltas) if self._full_every > 1 else None
        self._last_put = version
        self._bases[version] = manifest.base if manifest.kind == "delta" else None
        return manifest

    def _base_for(self, version: Version) -> Published | None:
        """What the version may be a delta to."""
        base = self._published
        if base is None or base.deltas + 1 >= self._full_every or base.version.term != version.term or base.version >= version:
            return None
        return base

    def _write(self, begun: Path, version: Version, tensors: Mapping[str, RawTensor], base: Published | None) -> WeightManifest:
        made = write_delta(begun / DELTA_FILE, base, tensors) if base is not None else None
        if base is not None and made is not None:
            manifest = WeightManifest(version, "delta", directory_of(version), (made[0],), made[1], base.version)
        else:
            file, digests = write_tensors(begun / MODEL_FILE, tensors)
            manifest = WeightManifest(version, "full", directory_of(version), (file,), digests)
        (begun / MANIFEST_FILE).write_bytes(encode(manifest))
        return manifest

    def _must_equal(self, manifest: WeightManifest) -> WeightManifest:
        there = self._manifest_of(manifest.version)
        if there.tensors != manifest.tensors:
            raise WeightsError(f"{self.place}/{manifest.directory} holds other weights already: a version is never changed")
        return there

    def _fetch(self, manifest: WeightManifest) -> Path:
        _must_be_inside(manifest)
        ready = self._ready.get(manifest.version)
        if ready is not None and ready[0] == manifest and ready[1].is_dir():
            return ready[1]
        try:
            return self._obtain(manifest)
        except StoreAway:
            raise
        except WeightsError:
            self._forget()
            return self._obtain(manifest)

    def _forget(self) -> None:
        """What was fetched before may be what is damaged."""
        for _, path in self._ready.values():
            self._workshop.drop(path)
        self._ready.clear()

    def _obtain(self, manifest: WeightManifest) -> Path:
        try:
            path = self._full(manifest) if manifest.kind == "full" else self._rebuilt(manifest)
        except OSError as error:
            raise WeightsError(f"cannot read weights {manifest.version} in {self.place}: {error.strerror or error}") from error
        self._ready = dict([*self._ready.items(), (manifest.version, (manifest, path))][-_REMEMBERED:])
        return path

    def _full(self, manifest: WeightManifest) -> Path:
        link = self._files(manifest)
        if link.digests != manifest.tensors:
            self._workshop.drop(link.directory)
            wrong = min(link.digests.items() ^ manifest.tensors.items())[0]
            raise WeightsError(f"{self.place}/{manifest.directory}: tensor {wrong} does not have the digest of its manifest")
        if self._workshop.owns(link.directory):
            return self._workshop.finish(link.directory, manifest.directory)
        return link.directory

    def _rebuilt(self, manifest: WeightManifest) -> Path:
        base, deltas = self._chain(manifest)
        links: list[Link] = []
        try:
            for delta in deltas:
                links.append(self._files(delta))  # noqa: PERF401 - those before a failure are dropped, too
            begun = self._workshop.begin()
            try:
                rebuild(begun / MODEL_FILE, manifest, base, links)
            except BaseException:
                self._workshop.drop(begun)
                raise
        finally:
            for link in links:
                self._workshop.drop(link.directory)
        return self._workshop.finish(begun, manifest.directory)

    def _chain(self, manifest: WeightManifest) -> tuple[Link, list[WeightManifest]]:
        """The nearest whole version that is at hand, or else the full one in the store, and the deltas from there, oldest first."""
        deltas = [manifest]
        while len(deltas) <= _MOST_DELTAS:
            version = deltas[-1].base
            if version is None or version.term != manifest.version.term or version >= deltas[-1].version:
                raise WeightsError(f"the manifest of {deltas[-1].version} is a delta to {version}: no base of it")
            ready = self._ready.get(version)
            base = ready[0] if ready is not None and ready[1].is_dir() else self._manifest_of(version)
            if ready is not None and base is ready[0]:
                return Link(ready[1], base.tensors), deltas[::-1]
            if base.kind == "full":
                return Link(self._obtain(base), base.tensors), deltas[::-1]
            deltas.append(base)
        raise WeightsError(f"weights {manifest.version} need more than {_MOST_DELTAS} deltas: lower weights.full_every")

    def _manifest_of(self, version: Version) -> WeightManifest:
        name = directory_of(version)
        try:
            manifest = decode(self._read_manifest(name), WeightManifest)
        except OSError as error:
            raise WeightsError(f"there are no weights {version} in {self.place}: {error.strerror or error}") from error
        except WireError as error:
            raise WeightsError(f"{self.place}/{name}/{MANIFEST_FILE} is damaged: {error}") from error
        assert isinstance(manifest, WeightManifest)
        _must_be_inside(manifest)
        if manifest.version != version:
            raise WeightsError(f"{self.place}/{name}/{MANIFEST_FILE} is damaged: it is the one of {manifest.version}")
        return manifest

    def _versions(self) -> list[Version]:
        return _versions_in(self._listed())

    def _listed(self) -> set[str]:
        try:
            return self._names()
        except OSError as error:
            raise StoreAway(f"cannot list the weights in {self.place} ({error.strerror or error}): {self.advice}") from error

    def _gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        names = self._listed()
        eligible = [version for version in _versions_in(names) if version.term <= up_to_term]
        kept = {*eligible[max(0, len(eligible) - keep) :], *pinned, self._last_put}
        try:
            needed = self._with_bases(kept & set(eligible))
            for version in eligible:
                if version not in kept | needed:
                    self._ready.pop(version, None)
                    self._bases.pop(version, None)
                    self._remove(directory_of(version))
            self._sweep(names, up_to_term)
        except OSError as error:
            raise StoreAway(f"cannot delete weights in {self.place} ({error.strerror or error}): {self.advice}") from error

    def _with_bases(self, versions: set[Version | None]) -> set[Version]:
        """Raises OSError where a manifest cannot be read now: then nothing is deleted."""
        needed: set[Version] = set()
        for newest in versions:
            version = newest
            while version is not None and version not in needed:
                needed.add(version)
                version = self._base_of(version)
        return needed

    def _base_of(self, version: Version) -> Version | None:
        if version not in self._bases:
            try:
                manifest = decode(self._read_manifest(directory_of(version)), WeightManifest)
                assert isinstance(manifest, WeightManifest)
                self._bases[version] = manifest.base if manifest.kind == "delta" else None
            except (FileNotFoundError, WireError):  # nobody can fetch it: it needs nothing
                self._bases[version] = None
        return self._bases[version]


def _versions_in(names: set[str]) -> list[Version]:
    found = {Version(int(match[1]), int(match[2])) for name in names if (match := VERSION.fullmatch(name))}
    return sorted(version for version in found if directory_of(version) in names)


def _must_be_inside(manifest: WeightManifest) -> None:
    inside = directory_of(manifest.version)
    if manifest.directory != inside or not all(_FILE.fullmatch(file.name) for file in manifest.files):
        raise WeightsError(f"the manifest of {manifest.version} names files outside {inside}: {manifest.directory!r}")
