"""`reflux weights serve`: only whole versions and plain files, in ranges, to whoever has the token."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from common.errors import ConfigError, WeightsError
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.directory import DirectoryStore
from common.weights.http import HttpStore, token_in
from deploy.__main__ import main
from deploy.weights_server import listening

FILE = "term000001-step00000000/model.safetensors"
SIZE = 3000


async def written(root: Path) -> WeightManifest:
    return await DirectoryStore(root).put(Version(1, 0), {"w": RawTensor("U8", (SIZE,), memoryview(bytes(range(250)) * 12))})


async def got(url: str, **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as reply:
        return reply.status, await reply.read()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


async def test_a_range_of_a_file_is_that_range(root: Path) -> None:
    await written(root)
    whole = (root / FILE).read_bytes()
    async with listening(root, token="", host="127.0.0.1", port=0) as url:
        assert await got(f"{url}/{FILE}") == (200, whole)
        assert await got(f"{url}/{FILE}", Range="bytes=100-199") == (206, whole[100:200])
        assert (await got(f"{url}/{FILE}", Range=f"bytes={len(whole)}-"))[0] == 416


async def test_without_the_token_nothing_is_read(root: Path, tmp_path: Path) -> None:
    manifest = await written(root)
    async with listening(root, token="right", host="127.0.0.1", port=0) as url:
        for path in ("versions", FILE, "nothing"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
                status, body = await got(f"{url}/{path}", **headers)
                assert (status, len(body) < 100) == (401, True)
        wrong = HttpStore(url, token="wrong", deadline_s=60, cache=tmp_path / "cache")
        with pytest.raises(WeightsError, match="401"):
            await wrong.versions()
        with pytest.raises(WeightsError):
            await wrong.fetch(manifest)


async def test_a_token_of_any_bytes_is_refused(root: Path) -> None:
    await written(root)
    async with listening(root, token="right", host="127.0.0.1", port=0) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /versions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer r\xffght\r\nConnection: close\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_nothing_but_whole_versions_and_their_plain_files_is_shown(root: Path, tmp_path: Path) -> None:
    await written(root)
    (tmp_path / "secret").write_text("secret")
    (root / ".tmp-term000001-step00000001-ab").mkdir()
    (root / ".tmp-term000001-step00000001-ab" / "manifest.rfx").touch()
    (root / "term000001-step00000009").mkdir()
    (root / "term000001-step00000000" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "term000001-step00000007").mkdir()
    (tmp_path / "term000001-step00000007" / "secret").write_text("secret")
    (root / "term000001-step00000007").symlink_to(tmp_path / "term000001-step00000007")
    async with listening(root, token="", host="127.0.0.1", port=0) as url:
        assert await got(f"{url}/versions") == (200, b'["term000001-step00000000"]')
        for path in (
            "", "..", "../secret", "%2e%2e/secret", "%2e%2e%2fsecret", "term000001-step00000000/..%2f..%2fsecret",
            "term000001-step00000000/link", "term000001-step00000007/secret", ".tmp-term000001-step00000001-ab/manifest.rfx",
            "term000001-step00000000/", "term000001-step00000000",
        ):  # fmt: skip
            status, body = await got(f"{url}/{path}")
            assert (status, b"secret" in body) == (404, False), path
        async with aiohttp.ClientSession() as session:
            for method in ("POST", "PUT", "DELETE"):
                async with session.request(method, f"{url}/{FILE}", data=b"x") as reply:
                    assert reply.status == 405


async def test_a_download_that_breaks_goes_on_where_it_broke(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.weights.remote.PIECE", 512)
    monkeypatch.setattr("common.weights.http.PIECE", 512)
    manifest = await written(root)
    whole, asked = (root / FILE).read_bytes(), []

    async def broken(request: web.Request) -> web.StreamResponse:
        begin, end = (int(number) for number in re.findall(r"\d+", request.headers["Range"]))
        asked.append(begin)
        if len(asked) in {2, 4, 5}:
            assert request.transport is not None
            request.transport.abort()
        piece = whole[begin : end + 1]
        return web.Response(status=206, body=piece, headers={"Content-Range": f"bytes {begin}-{begin + len(piece) - 1}/{len(whole)}"})

    app = web.Application()
    app.router.add_get(f"/{FILE}", broken, allow_head=False)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        store = HttpStore(f"http://127.0.0.1:{runner.addresses[0][1]}", token="", deadline_s=60, cache=tmp_path / "cache")
        assert (await store.fetch(manifest) / "model.safetensors").read_bytes() == whole
    finally:
        await runner.cleanup()
    assert asked.count(0) == 1, "it did not begin anew"


async def test_a_server_that_is_away_or_a_place_that_cannot_be_written_is_one_sentence(root: Path, tmp_path: Path) -> None:
    manifest = await written(root)
    async with listening(root, token="", host="127.0.0.1", port=0) as url:
        store = HttpStore(url, token="", deadline_s=60, cache=tmp_path / "cache")
        with pytest.raises(WeightsError, match="for reading only"):
            await store.put(Version(1, 1), {})
        with pytest.raises(WeightsError, match="for reading only"):
            await store.gc(keep=0, up_to_term=9, pinned=frozenset())
        assert await store.versions() == [(1, 0)]
    with pytest.raises(WeightsError, match="cannot list"):
        await store.versions()
    with pytest.raises(WeightsError, match="cannot read"):
        await store.fetch(manifest)


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "serve", str(tmp_path / "absent")]) == 2
    assert "name the learner's weights.dir" in capsys.readouterr().err
    (tmp_path / "token").touch()
    assert main(["weights", "serve", str(tmp_path), "--token-file", str(tmp_path / "token")]) == 2
    assert "write the token into it" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be read"):
        token_in(tmp_path / "nowhere")
    assert main(["weights", "serve", str(tmp_path), "--host", "203.0.113.7"]) == 2
    said = capsys.readouterr().err
    assert "no --token-file is given" in said
    assert "name another --host or --port" in said


@pytest.mark.parametrize("command", [["weights", "serve", "."], ["dashboard", "."]])
def test_what_is_no_port_or_no_host_is_said(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for port in ("99999", "-1", "http", "9" * 5000):
        with pytest.raises(SystemExit) as caught:
            main([*command, f"--port={port}"])
        assert caught.value.code == 2
        assert "is no port: give a number from 0 to 65535" in capsys.readouterr().err
    assert main(["weights", "serve", str(tmp_path), "--host", "a" * 70]) == 2
    assert "name another --host" in capsys.readouterr().err


async def test_the_command_serves_until_it_is_told_to_stop(root: Path, tmp_path: Path) -> None:
    manifest = await written(root)
    (tmp_path / "token").write_text("right\n")
    call = [sys.executable, "-m", "deploy", "weights", "serve", str(root), "--port", "0", "--token-file", str(tmp_path / "token")]
    process = await asyncio.to_thread(subprocess.Popen, call, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        store = HttpStore(line.split("'")[1], token="right", deadline_s=60, cache=tmp_path / "cache")
        assert (await store.fetch(manifest) / "model.safetensors").read_bytes() == (root / FILE).read_bytes()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.communicate()
