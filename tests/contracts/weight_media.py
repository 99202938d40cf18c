"""The places where weights can lie, each as a store that can be written, read and damaged: what the contract suites run on."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import fsspec
from object_stores import BUCKET, gs_server, s3_server

from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.directory import DirectoryStore
from common.weights.http import HttpStore
from common.weights.remote import RemoteStore
from common.weights.store import VersionStore
from deploy.weights_server import listening

Medium = Callable[..., AbstractAsyncContextManager[Any]]
TOKEN = "a token"


class Shown:
    """Written to a directory by the learner, read over HTTP by everybody else."""

    def __init__(self, written: DirectoryStore, read: HttpStore) -> None:
        self.written, self.read = written, read
        self.fetch, self.versions, self.manifest_of = read.fetch, read.versions, read.manifest_of

    async def put(self, version: Version, tensors: Mapping[str, RawTensor]) -> WeightManifest:
        return await self.written.put(version, tensors)

    async def gc(self, keep: int, up_to_term: int, pinned: frozenset[Version]) -> None:
        await self.written.gc(keep, up_to_term, pinned)


@asynccontextmanager
async def directory(tmp_path: Path, full_every: int) -> AsyncIterator[DirectoryStore]:
    yield DirectoryStore(tmp_path / "weights", full_every=full_every)


@asynccontextmanager
async def memory(tmp_path: Path, full_every: int) -> AsyncIterator[RemoteStore]:
    url = f"memory://weights-{secrets.token_hex(4)}"
    yield RemoteStore(url, deadline_s=60, full_every=full_every, cache=tmp_path / "cache")


@asynccontextmanager
async def file_url(tmp_path: Path, full_every: int) -> AsyncIterator[RemoteStore]:
    yield RemoteStore(f"file://{tmp_path}/weights", deadline_s=60, full_every=full_every, cache=tmp_path / "cache")


@asynccontextmanager
async def http(tmp_path: Path, full_every: int) -> AsyncIterator[Shown]:
    written = DirectoryStore(tmp_path / "weights", full_every=full_every)
    async with listening(written.root, token=TOKEN, host="127.0.0.1", port=0) as url:
        yield Shown(written, HttpStore(url, token=TOKEN, deadline_s=60, cache=tmp_path / "cache"))


@asynccontextmanager
async def s3(tmp_path: Path, full_every: int) -> AsyncIterator[RemoteStore]:
    s3_server()
    yield RemoteStore(f"s3://{BUCKET}/{secrets.token_hex(4)}/weights", deadline_s=60, full_every=full_every, cache=tmp_path / "cache")


@asynccontextmanager
async def gs(tmp_path: Path, full_every: int) -> AsyncIterator[RemoteStore]:
    gs_server()
    yield RemoteStore(f"gs://{BUCKET}/{secrets.token_hex(4)}/weights", deadline_s=60, full_every=full_every, cache=tmp_path / "cache")


MEDIA: dict[str, Medium] = {one.__name__: one for one in (directory, memory, file_url, http, s3, gs)}


def reader_of(store: Any, cache: Path) -> VersionStore:
    """Another process's view of the same place."""
    match store:
        case Shown(read=HttpStore() as read):
            return HttpStore(str(read.place), token=TOKEN, deadline_s=60, cache=cache)
        case RemoteStore():
            return RemoteStore(str(store.place), deadline_s=60, full_every=1, cache=cache)
        case _:
            return DirectoryStore(store.root, cache=cache)


def change(store: Any, path: str, content: Callable[[bytes], bytes]) -> None:
    """Somebody damages a file of the place, or mends it."""
    if isinstance(store, RemoteStore):
        fs, root = fsspec.core.url_to_fs(store.place)
        fs.pipe_file(f"{root}/{path}", content(fs.cat_file(f"{root}/{path}")))
        return
    file = (store.written if isinstance(store, Shown) else store).root / path
    file.write_bytes(content(file.read_bytes()))
