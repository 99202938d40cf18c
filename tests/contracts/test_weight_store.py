"""What every WeightStore promises; run on each adapter."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from weight_media import MEDIA, reader_of

from common.errors import WeightsError
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor, WeightStore


def tensors(seed: int = 0) -> dict[str, RawTensor]:
    rng = np.random.default_rng(seed)
    half = rng.integers(0, 1 << 16, (3, 5), dtype=np.uint16)
    return {
        "model.norm.weight": RawTensor("F32", (7,), rng.standard_normal(7).astype(np.float32).data),
        "model.embed.weight": RawTensor("BF16", (3, 5), half.data),
        "empty": RawTensor("F32", (0, 4), memoryview(b"")),
    }


@pytest.fixture(params=sorted(MEDIA))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WeightStore]:
    async with MEDIA[request.param](tmp_path, full_every=1) as opened:
        yield opened


async def test_what_is_put_can_be_fetched_with_its_exact_bytes(store: WeightStore) -> None:
    from safetensors import deserialize

    given = tensors()
    manifest = await store.put(Version(1, 7), given)
    directory = await store.fetch(manifest)
    assert manifest.version == (1, 7)
    assert sorted(path.name for path in directory.glob("*.safetensors")) == [file.name for file in manifest.files]
    read = dict(deserialize((directory / manifest.files[0].name).read_bytes()))
    assert read.keys() == given.keys() == manifest.tensors.keys()
    for name, tensor in given.items():
        assert (read[name]["dtype"], tuple(read[name]["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(read[name]["data"]) == tensor.buffer.tobytes()


async def test_equal_tensors_have_equal_digests_and_others_do_not(store: WeightStore) -> None:
    one, same, other = [await store.put(Version(1, n), tensors(seed)) for n, seed in ((0, 3), (1, 3), (2, 4))]
    assert one.tensors == same.tensors
    assert one.tensors["model.norm.weight"] != other.tensors["model.norm.weight"]


async def test_versions_are_listed_oldest_first_by_term_and_step(store: WeightStore) -> None:
    assert await store.versions() == []
    for version in [Version(2, 5), Version(1, 100), Version(2, 40)]:
        await store.put(version, tensors())
    assert await store.versions() == [(1, 100), (2, 5), (2, 40)]


async def test_a_version_is_never_changed_but_may_be_put_again(store: WeightStore) -> None:
    first = await store.put(Version(1, 0), tensors(0))
    assert await store.put(Version(1, 0), tensors(0)) == first
    with pytest.raises(WeightsError, match="never changed"):
        await store.put(Version(1, 0), tensors(1))
    await store.fetch(first)


async def test_gc_keeps_the_newest_the_pinned_and_the_one_put_last(store: WeightStore) -> None:
    for step in range(6):
        await store.put(Version(1, step), tensors())
    await store.put(Version(1, 2), tensors())
    await store.gc(keep=1, up_to_term=1, pinned=frozenset({Version(1, 0)}))
    assert await store.versions() == [(1, 0), (1, 2), (1, 5)]


async def test_gc_leaves_higher_terms_alone(store: WeightStore) -> None:
    for version in [Version(1, 0), Version(1, 1), Version(1, 2), Version(3, 0)]:
        await store.put(version, tensors())
    await store.gc(keep=1, up_to_term=1, pinned=frozenset())
    assert await store.versions() == [(1, 2), (3, 0)]


async def test_a_version_that_is_gone_or_never_was_is_a_weights_error(store: WeightStore, tmp_path: Path) -> None:
    manifest = await store.put(Version(1, 0), tensors())
    store_of_another = reader_of(store, tmp_path / "another")
    for step in (1, 2):
        await store.put(Version(1, step), tensors())
    await store.gc(keep=1, up_to_term=1, pinned=frozenset())
    with pytest.raises(WeightsError, match="Version"):
        await store_of_another.fetch(manifest)
    with pytest.raises(WeightsError):
        await store.fetch(replace(manifest, version=Version(9, 9), directory="term000009-step00000009"))


async def test_tensors_whose_bytes_do_not_fit_their_shape_are_refused(store: WeightStore) -> None:
    with pytest.raises(WeightsError, match="norm has 8 bytes"):
        await store.put(Version(1, 0), {"norm": RawTensor("F32", (3,), memoryview(bytes(8)))})
    with pytest.raises(WeightsError, match="dtype"):
        await store.put(Version(1, 0), {"norm": RawTensor("FLOAT", (2,), memoryview(bytes(8)))})
    assert await store.versions() == []


async def test_a_reader_of_many_versions_remembers_few(store: WeightStore) -> None:
    before = manifests()
    for step in range(40):
        await store.fetch(await store.put(Version(1, step), tensors()))
    assert manifests() - before < 10


def manifests() -> int:
    gc.collect()
    return sum(type(one) is WeightManifest for one in gc.get_objects())  # isinstance would ask lazy modules for their class
