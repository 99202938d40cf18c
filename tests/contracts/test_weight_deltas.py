"""Deltas between versions, on every medium: what is fetched has the bytes that were put, from wherever a reader starts, or is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize
from weight_media import MEDIA, change, reader_of

from common.errors import WeightsError
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.store import DELTA_FILE, MANIFEST_FILE, MODEL_FILE

EVERY = 4
Tensors = dict[str, RawTensor]


def made(step: int) -> Tensors:
    """Version `step`: a few elements of most tensors differ from the version before; one never changes, one changes everywhere."""
    rng = np.random.default_rng(0)
    large = rng.integers(0, 1 << 16, (64, 64), dtype=np.uint16)
    head, still = rng.standard_normal(900).astype(np.float32), rng.standard_normal(500).astype(np.float32)
    for one in range(1, step + 1):
        large.reshape(-1)[[0, 7 * one, 4095]] ^= one
        head[[one, 899]] += 1
    restless = np.random.default_rng(step).bytes(200)
    return {
        "model.embed": RawTensor("BF16", (64, 64), large.data),
        "model.head": RawTensor("F32", (30, 30), head.data),
        "model.still": RawTensor("F32", (500,), still.data),
        "model.restless": RawTensor("F16", (100,), memoryview(restless)),
        "empty": RawTensor("F32", (0, 4), memoryview(b"")),
    }


SOME = [pytest.param(name, marks=pytest.mark.slow) if name == "gs" else name for name in sorted(MEDIA)]
"""The emulator takes its time; what is said of gs in particular, and the other suite, run always."""


@pytest.fixture(params=SOME)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with MEDIA[request.param](tmp_path, full_every=EVERY) as opened:
        yield opened


async def put_until(store: Any, last: int, first: int = 0, term: int = 1) -> list[WeightManifest]:
    return [await store.put(Version(term, step), made(step)) for step in range(first, last + 1)]


async def must_hold(store: Any, manifest: WeightManifest, tensors: Tensors) -> None:
    directory = await store.fetch(manifest)
    assert [path.name for path in directory.glob("*.safetensors")] == [MODEL_FILE]
    read = dict(deserialize((directory / MODEL_FILE).read_bytes()))
    assert {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in read.items()} == {
        name: (one.dtype, one.shape, one.buffer.tobytes()) for name, one in tensors.items()
    }


async def test_every_fourth_version_is_full_and_those_between_are_small(store: Any) -> None:
    manifests = await put_until(store, 8)
    assert [one.kind for one in manifests] == ["full", "delta", "delta", "delta"] * 2 + ["full"]
    assert [one.base and one.base.step for one in manifests] == [None, 0, 1, 2, None, 4, 5, 6, None]
    assert [[file.name for file in one.files] for one in manifests[:2]] == [[MODEL_FILE], [DELTA_FILE]]
    assert manifests[1].bytes < manifests[0].bytes / 4
    assert manifests[1].tensors.keys() == made(1).keys(), "a delta's manifest has the digests of the whole tensors"


async def test_a_reader_follows_version_by_version(store: Any) -> None:
    for step, manifest in enumerate(await put_until(store, 6)):
        await must_hold(store, manifest, made(step))


@pytest.mark.parametrize("last", range(6))
async def test_a_reader_that_comes_late_catches_up_from_the_full_version(store: Any, tmp_path: Path, last: int) -> None:
    newest = (await put_until(store, last))[-1]
    await must_hold(reader_of(store, tmp_path / "late"), newest, made(last))


async def test_a_reader_that_missed_some_catches_up_from_what_it_has(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 3)
    reader = reader_of(store, tmp_path / "late")
    await must_hold(reader, manifests[1], made(1))
    change(store, f"{manifests[0].directory}/{MODEL_FILE}", lambda _: b"no longer needed")
    await must_hold(reader, manifests[3], made(3))


async def test_two_readers_of_one_cache_do_not_disturb_each_other(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 3)
    one, other = (reader_of(store, tmp_path / "shared") for _ in range(2))
    await asyncio.gather(must_hold(one, manifests[3], made(3)), must_hold(other, manifests[2], made(2)))
    await must_hold(one, manifests[3], made(3))


async def test_what_a_kept_delta_needs_is_kept(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 7)
    await store.gc(keep=2, up_to_term=1, pinned=frozenset({Version(1, 1)}))
    assert await store.versions() == [(1, 0), (1, 1), (1, 4), (1, 5), (1, 6), (1, 7)]
    for step in (1, 5, 7):
        await must_hold(reader_of(store, tmp_path / f"late{step}"), manifests[step], made(step))
    await put_until(store, 9, first=8)
    await store.gc(keep=2, up_to_term=1, pinned=frozenset())
    assert await store.versions() == [(1, 8), (1, 9)]


async def test_a_new_term_and_a_new_writer_begin_with_a_full_version(store: Any, tmp_path: Path) -> None:
    await put_until(store, 1)
    manifests = await put_until(store, 3, first=2, term=2)
    assert [one.kind for one in manifests] == ["full", "delta"]
    await must_hold(reader_of(store, tmp_path / "late"), manifests[1], made(3))


async def test_a_version_that_changed_too_much_is_full_and_the_next_is_a_delta_to_it(store: Any) -> None:
    await store.put(Version(1, 0), made(0))
    other = made(1) | {"model.embed": RawTensor("BF16", (64, 64), memoryview(np.random.default_rng(9).bytes(8192)))}
    assert (await store.put(Version(1, 1), other)).kind == "full"
    next_ = await store.put(Version(1, 2), made(2) | {"model.embed": other["model.embed"]})
    assert (next_.kind, next_.base) == ("delta", Version(1, 1))
    await must_hold(store, next_, made(2) | {"model.embed": other["model.embed"]})


async def test_tensors_may_come_go_and_change_their_shape(store: Any, tmp_path: Path) -> None:
    await store.put(Version(1, 0), made(0))
    changed = made(1)
    del changed["model.still"]
    changed["model.head"] = RawTensor("F32", (900,), changed["model.head"].buffer)
    changed["model.new"] = RawTensor("U8", (3,), memoryview(b"new"))
    manifest = await store.put(Version(1, 1), changed)
    assert manifest.kind == "delta"
    await must_hold(reader_of(store, tmp_path / "late"), manifest, changed)


async def test_the_same_version_again_is_the_same_manifest(store: Any) -> None:
    manifests = await put_until(store, 2)
    assert await store.put(Version(1, 2), made(2)) == manifests[2]
    with pytest.raises(WeightsError, match="never changed"):
        await store.put(Version(1, 2), made(3))


async def test_damage_anywhere_in_the_chain_is_refused_and_forgotten_when_it_is_mended(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 3)
    whole: dict[str, bytes] = {}
    for step, damaged in enumerate([MODEL_FILE, DELTA_FILE, DELTA_FILE, DELTA_FILE]):
        path = f"{manifests[step].directory}/{damaged}"
        for number, damage in enumerate((_flipped, _cut)):
            change(store, path, lambda data, path=path: whole.setdefault(path, data))
            change(store, path, damage)
            reader = reader_of(store, tmp_path / f"late{step}{number}")
            with pytest.raises(WeightsError):
                await reader.fetch(manifests[3])
            change(store, path, lambda _, path=path: whole[path])
            await must_hold(reader, manifests[3], made(3))


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


async def test_a_file_that_is_whole_again_at_the_second_look_is_taken(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = await put_until(store, 2)
    reader = reader_of(store, tmp_path / "late")
    looks: list[Version] = []
    real = type(reader)._files

    def first_look_fails(self: Any, manifest: WeightManifest) -> Any:
        looks.append(manifest.version)
        if len(looks) == 1:
            raise WeightsError("a bit has flipped on the way")
        return real(self, manifest)

    monkeypatch.setattr(type(reader), "_files", first_look_fails)
    await must_hold(reader, manifests[2], made(2))
    assert len(looks) > 3


async def test_a_local_version_that_was_damaged_after_it_was_checked_is_fetched_again(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 3)
    reader = reader_of(store, tmp_path / "late")
    rebuilt = await reader.fetch(manifests[1]) / MODEL_FILE
    rebuilt.write_bytes(rebuilt.read_bytes()[:-5])
    await must_hold(reader, manifests[3], made(3))


async def test_a_manifest_with_other_digests_is_refused(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 3)
    for name in made(0):
        wrong = replace(manifests[3], tensors={**manifests[3].tensors, name: "0" * 64})
        with pytest.raises(WeightsError, match=name):
            await reader_of(store, tmp_path / name).fetch(wrong)
    with pytest.raises(WeightsError, match="no tensor more"):
        await reader_of(store, tmp_path / "more").fetch(replace(manifests[3], tensors={**manifests[3].tensors, "more": "0" * 64}))


async def test_a_manifest_in_the_store_that_is_anothers_or_leads_outside_is_refused(store: Any, tmp_path: Path) -> None:
    manifests = await put_until(store, 2)
    mine = f"{manifests[1].directory}/{MANIFEST_FILE}"
    others = [one async for one in _manifest_bytes(store, manifests)]
    for lie in [others[0], others[2], b"junk", _outside(manifests[1])]:
        change(store, mine, lambda _, lie=lie: lie)
        with pytest.raises(WeightsError):
            await reader_of(store, tmp_path / "late").fetch(manifests[2])
    change(store, mine, lambda _: others[1])
    await must_hold(reader_of(store, tmp_path / "late"), manifests[2], made(2))


async def _manifest_bytes(store: Any, manifests: list[WeightManifest]) -> AsyncIterator[bytes]:
    for manifest in manifests:
        seen: list[bytes] = []
        change(store, f"{manifest.directory}/{MANIFEST_FILE}", lambda data, seen=seen: seen.append(data) or data)
        yield seen[0]


def _outside(manifest: WeightManifest) -> bytes:
    from common.codec import encode

    return encode(replace(manifest, files=(manifest.files[0]._replace(name="../../etc/passwd"),)))


async def test_a_reader_keeps_the_newest_two_and_leaves_no_pieces(store: Any, tmp_path: Path) -> None:
    reader = reader_of(store, tmp_path / "late")
    for manifest in await put_until(store, 7):
        await reader.fetch(manifest)
    left = [path.name for path in (tmp_path / "late").glob("of-*/term*")]
    assert len(left) <= 2
    assert list((tmp_path / "late").glob("of-*/begun-*")) == []
