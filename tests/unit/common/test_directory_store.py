"""What the directory store guards against: damage, foreign paths, leftovers of killed processes."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import WeightsError
from common.messages import Version, WeightFile, WeightManifest
from common.weights.base import RawTensor
from common.weights.directory import MANIFEST_FILE, MODEL_FILE, DirectoryStore

FIRST = Version(1, 0)


def tensors(count: int = 3) -> dict[str, RawTensor]:
    return {f"layer.{n}": RawTensor("F32", (50, 10), np.full((50, 10), n, np.float32).data) for n in range(count)}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


async def _put(root: Path, version: Version = FIRST) -> WeightManifest:
    return await DirectoryStore(root).put(version, tensors())


async def test_the_file_is_one_that_transformers_accepts(root: Path) -> None:
    from safetensors import safe_open

    manifest = await _put(root)
    with safe_open(root / manifest.directory / MODEL_FILE, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert (opened.get_tensor("layer.2") == 2).all()


async def test_the_manifest_lies_beside_the_weights(root: Path) -> None:
    manifest = await _put(root)
    assert await DirectoryStore(root).manifest_of(Version(1, 0)) == manifest
    (root / manifest.directory / MANIFEST_FILE).write_bytes(b"junk")
    with pytest.raises(WeightsError, match="damaged"):
        await DirectoryStore(root).manifest_of(Version(1, 0))
    with pytest.raises(WeightsError, match="there are no weights"):
        await DirectoryStore(root).manifest_of(Version(1, 1))


async def test_a_truncated_file_is_refused(root: Path) -> None:
    manifest = await _put(root)
    path = root / manifest.directory / MODEL_FILE
    content = path.read_bytes()
    for size in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(WeightsError, match="bytes where its manifest says"):
            await DirectoryStore(root).fetch(manifest)
        lying = replace(manifest, files=(manifest.files[0]._replace(bytes=size),))
        with pytest.raises(WeightsError):
            await DirectoryStore(root).fetch(lying)


async def test_every_single_flipped_bit_is_refused(root: Path) -> None:
    manifest = await _put(root)
    path = root / manifest.directory / MODEL_FILE
    content = path.read_bytes()
    for at in [*range(320), len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(WeightsError):
            await DirectoryStore(root).fetch(manifest)


async def test_a_tensor_with_another_digest_is_refused_by_name(root: Path) -> None:
    manifest = await _put(root)
    with pytest.raises(WeightsError, match=r"tensor layer\.1 does not have the digest"):
        await DirectoryStore(root).fetch(replace(manifest, tensors={**manifest.tensors, "layer.1": "0" * 64}))
    with pytest.raises(WeightsError, match="more"):
        await DirectoryStore(root).fetch(replace(manifest, tensors={**manifest.tensors, "more": "0" * 64}))


async def test_digests_are_checked_once_per_version_and_manifest(root: Path) -> None:
    manifest = await _put(root)
    store = DirectoryStore(root)
    await store.fetch(manifest)
    (root / manifest.directory / MODEL_FILE).write_bytes(b"too late to notice")
    await store.fetch(manifest)
    with pytest.raises(WeightsError):
        await store.fetch(replace(manifest, files=(manifest.files[0]._replace(digest="0" * 64),)))


@pytest.mark.parametrize("directory", ["..", "/etc", "term000001-step00000000/../..", ".", "", "term000001-step00000001"])
async def test_a_directory_outside_the_version_is_refused(root: Path, directory: str) -> None:
    manifest = await _put(root)
    with pytest.raises(WeightsError, match="outside"):
        await DirectoryStore(root).fetch(replace(manifest, directory=directory))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", "sub/model.safetensors", ".hidden", "a\n"])
async def test_a_file_outside_the_version_is_refused(root: Path, name: str) -> None:
    manifest = await _put(root)
    with pytest.raises(WeightsError, match="outside"):
        await DirectoryStore(root).fetch(replace(manifest, files=(WeightFile(name, 3, "0" * 64),)))


async def test_links_out_of_the_store_are_refused(root: Path, tmp_path: Path) -> None:
    manifest = await _put(root)
    inside = root / manifest.directory
    (inside / MODEL_FILE).rename(tmp_path / "elsewhere")
    (inside / MODEL_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="cannot read"):
        await DirectoryStore(root).fetch(manifest)
    (inside / MODEL_FILE).unlink()
    (tmp_path / "elsewhere").rename(inside / MODEL_FILE)
    inside.rename(tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved")
    with pytest.raises(WeightsError, match="cannot read"):
        await DirectoryStore(root).fetch(manifest)
    assert await DirectoryStore(root).versions() == []


@pytest.mark.parametrize("base", [None, Version(1, 0), Version(1, 1), Version(0, 5)])
async def test_a_delta_to_nothing_older_of_its_term_is_refused(root: Path, base: Version | None) -> None:
    manifest = await _put(root)
    with pytest.raises(WeightsError, match="no base of it"):
        await DirectoryStore(root).fetch(replace(manifest, kind="delta", base=base))


async def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="make room, or make it writable"):
        await _put(tmp_path / "file" / "weights")


async def test_a_failed_put_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="No space left"):
        await _put(root)
    assert names(root) == []


async def test_gc_sweeps_what_killed_learners_of_lower_terms_left(root: Path) -> None:
    await _put(root, Version(2, 0))
    for name in (".tmp-term000001-step00000003-ab12", ".gone-term000002-step00000001-ab12", ".tmp-term000002-step00000009-ab12", ".other"):
        (root / name).mkdir()
    await DirectoryStore(root).gc(keep=2, up_to_term=2, pinned=frozenset())
    assert names(root) == [".other", ".tmp-term000002-step00000009-ab12", "term000002-step00000000"]


async def test_foreign_names_are_no_versions(root: Path) -> None:
    await _put(root)
    for name in ("term1-step2", "term0000001-step00000000", "notes", "term000001-step00000001.bak"):
        (root / name).mkdir()
    (root / "term000001-step00000005").touch()
    assert await DirectoryStore(root).versions() == [(1, 0)]


async def test_putting_does_not_block_the_event_loop(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def fsync(_: int) -> None:
        begun.set()
        assert go.wait(30), "the loop that lets it go on stands still"

    monkeypatch.setattr(os, "fsync", fsync)
    writing = asyncio.create_task(_put(root))
    while not begun.is_set():
        await asyncio.sleep(0.005)
    go.set()
    await writing


def test_the_store_needs_no_torch() -> None:
    import subprocess

    code = "import sys, common.weights, common.weights.directory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
