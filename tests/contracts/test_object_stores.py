"""What only object stores can do wrong: buckets and credentials that are not there, halves of versions, uploads in parts."""

from __future__ import annotations

import logging
import re
import secrets
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from object_stores import BUCKET, CREDENTIALS, SECRET, gs_server, s3_environment, s3_server

from common.config import load_config
from common.errors import StoreAway
from common.messages import Version
from common.weights.base import RawTensor
from common.weights.remote import RemoteStore
from deploy.preflight.services import check_store

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "arithmetic" / "run.toml"
SERVERS = {"s3": s3_server, "gs": gs_server}
TENSORS = {"norm": RawTensor("F32", (2,), np.array([1.0, 2.0], np.float32).data)}


@pytest.fixture(params=sorted(SERVERS))
def scheme(request: pytest.FixtureRequest) -> str:
    SERVERS[request.param]()
    return str(request.param)


@contextmanager
def keys_are_checked() -> Iterator[None]:
    """moto believes everybody until it is told how many requests it may still believe."""
    for believed in (b"0", b"1000000000"):
        request = urllib.request.Request(f"{s3_server()}/moto-api/reset-auth", believed, {"Content-Type": "text/plain"}, method="POST")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        if believed == b"0":
            yield


def opened(url: str, cache: Path) -> RemoteStore:
    return RemoteStore(url, deadline_s=60, full_every=1, cache=cache)


async def refusals(store: RemoteStore) -> list[str]:
    said = []
    for call in (store.versions(), store.put(Version(1, 0), TENSORS), store.gc(2, 1, frozenset())):
        with pytest.raises(StoreAway, match=r"correct weights\.url, or let this machine's credentials read and write there") as refused:
            await call
        said.append(str(refused.value))
    return said


async def test_a_bucket_that_is_not_there_is_said_so_and_never_made(scheme: str, tmp_path: Path) -> None:
    bucket = f"misspelt-{secrets.token_hex(4)}"
    for said in await refusals(opened(f"{scheme}://{bucket}/mine", tmp_path)):
        assert bucket in said
        assert "\n" not in said
    fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    assert bucket not in " ".join(fs.ls(""))


@pytest.mark.parametrize(("given", "reason"), [({}, "Unable to locate credentials"), (CREDENTIALS, "Access Key|Forbidden")])
async def test_credentials_that_are_missing_or_wrong_are_said_so_and_never_shown(
    given: dict[str, str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with keys_are_checked(), s3_environment(s3_server(), **given):
        for said in await refusals(opened(f"s3://{BUCKET}/{secrets.token_hex(4)}", tmp_path)):
            assert re.search(reason, said), said
            assert SECRET not in said
    assert SECRET not in caplog.text


async def test_an_address_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with s3_environment("nonsense", **CREDENTIALS):
        for said in await refusals(opened(f"s3://{BUCKET}/mine", tmp_path)):
            assert "Invalid endpoint: nonsense" in said


async def test_what_a_killed_writer_left_is_no_version_and_the_next_term_removes_it(scheme: str, tmp_path: Path) -> None:
    root = f"{BUCKET}/{secrets.token_hex(4)}"
    store = opened(f"{scheme}://{root}", tmp_path)
    await store.put(Version(1, 0), TENSORS)
    fs = fsspec.filesystem(scheme, use_listings_cache=False)
    fs.pipe_file(f"{root}/term000001-step00000001/model.safetensors", b"half of it")
    assert await store.versions() == [(1, 0)]
    await store.put(Version(2, 1), TENSORS)
    await store.gc(keep=8, up_to_term=2, pinned=frozenset())
    assert await store.versions() == [(1, 0), (2, 1)]
    assert len(fs.find(root)) == 4, fs.find(root)


async def test_preflight_writes_reads_and_leaves_nothing(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://{BUCKET}/{secrets.token_hex(4)}"
    (finding,) = await check_store(load_config(CONFIG, [f"weights.url={url}", f"run.dir={tmp_path}"]))
    assert finding.state == "ok"
    assert f"{url}: there and back in" in finding.says
    assert fsspec.filesystem(scheme, use_listings_cache=False).find(url) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_version_that_goes_up_in_parts_comes_back_whole(scheme: str, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 1 << 16, 60 << 20, dtype=np.uint16)
    store = opened(f"{scheme}://{BUCKET}/{secrets.token_hex(4)}", tmp_path)
    manifest = await store.put(Version(1, 0), {"large": RawTensor("BF16", large.shape, large.data)})
    assert (await store.fetch(manifest) / "model.safetensors").stat().st_size == manifest.bytes
