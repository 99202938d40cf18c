"""What strangers with a password may have put on the bus: an error or a dead letter, never this process's memory nor its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis
from bus_media import ROLLOUTS, Medium, start_run

from common.bus import connect_url
from common.bus.base import TICKETS, Move
from common.bus.embedded import EmbeddedServer

pytestmark = pytest.mark.redis
ROOT = Path(__file__).resolve().parents[2]
READS_A_GIGABYTE = """
import asyncio, resource, sys
from common.bus.answer_limit import AnswerTooLong
from common.bus.redis_client import RedisClient

def taken(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def main():
    client = RedisClient(sys.argv[1], outage_timeout_s=30.0, largest_answer=32 << 20)
    before = taken()
    try:
        await client.command("XREADGROUP", "GROUP", "workers", "me", "STREAMS", "tickets", ">")
    except AnswerTooLong as error:
        print(taken() - before, error)

asyncio.run(main())
"""


async def test_entries_of_another_shape_are_thrown_out(medium: Medium) -> None:
    if not medium.url:
        pytest.skip("the twin in memory has no strangers")
    bus = await medium.bus()
    await start_run(bus, 1)
    stream = f"reflux:{{{medium.run}}}:{TICKETS}"
    strange = [{"a": "b"}, {"seq": 0, "attempt": 0}, {"seq": -1, "attempt": 0, "payload": ""}, {"payload": "", "seq": 0, "attempt": 0}]
    strange += [{"seq": "9" * 5000, "attempt": 0, "payload": ""}, {"seq": 0, "attempt": 0, "payload": "", "by": "x" * 300}]
    with redis.Redis.from_url(medium.url) as client:
        for fields in strange:
            client.xadd(stream, fields)
        assert [lease.seq for lease in await bus.lease([TICKETS], 9, 0)] == [0]
        for fields in strange:
            waiting = asyncio.create_task(bus.lease([TICKETS], 9, 0.3))
            await asyncio.sleep(0.05)
            client.xadd(stream, fields)
            assert await waiting == []
    assert (await bus.state()).backlog[TICKETS] == 1


@pytest.mark.parametrize("wait_s", [0.0, 0.5])
async def test_a_payload_longer_than_any_can_be_is_a_dead_letter_without_it(server: EmbeddedServer, wait_s: float) -> None:
    """Also where the server's answer is longer than may be read: it came while the worker waited."""
    limits = {"largest_entry": 1000, "largest_answer": 20_000} if wait_s else {"largest_entry": 1000}
    options = {"run": "r", "lease_s": 30.0, "outage_timeout_s": 5.0}
    async with connect_url(server.url, name="a", **options) as producer, connect_url(server.url, name="b", **options, **limits) as scorer:
        await start_run(producer, 2)
        long, short = await producer.lease([TICKETS], 2, 0)
        waiting = asyncio.create_task(scorer.lease([ROLLOUTS], 9, wait_s))
        await asyncio.sleep(0.1 * (wait_s > 0))
        await producer.hand_off([Move(long, ROLLOUTS, bytes(100_000))])
        assert await waiting == []
        await producer.hand_off([Move(short, ROLLOUTS, bytes(1000))])
        assert [lease.seq for lease in await scorer.lease([ROLLOUTS], 9, 0.5)] == [1]
        letter = (await producer.dead_letters())[0]
        assert (letter.reason, letter.payload) == ("a payload of 100000 bytes, where 1000 are allowed", b"")
        state = await producer.state()
        assert (state.live, state.dead) == (1, 1)


async def test_the_embedded_server_takes_no_value_longer_than_an_entry(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path, run="r", largest_entry=1 << 20) as server:
        with redis.Redis.from_url(server.address.url_of("r", "producer")) as client:
            client.xadd("reflux:{r}:tickets", {"payload": bytes(1 << 20)})
            with pytest.raises(redis.RedisError):
                client.xadd("reflux:{r}:tickets", {"payload": bytes((1 << 20) + 1)})


def test_an_answer_of_a_gigabyte_costs_an_error_and_little_memory() -> None:
    ready, ports = threading.Event(), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        piece = bytes(1 << 20)
        try:
            while asked := await reader.read(1 << 16):
                if b"XREADGROUP" not in asked:
                    writer.write(b"+OK\r\n" * asked.count(b"*"))
                    continue
                writer.write(b"*1\r\n$1073741824\r\n")
                for _ in range(1024):
                    writer.write(piece)
                    await writer.drain()
        except OSError:
            writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            ports.append(listening.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.sleep(110)

    with asyncio.Runner() as runner:
        task: list[asyncio.Task[None]] = []

        async def work() -> str:
            task.append(asyncio.create_task(serve()))
            await asyncio.to_thread(ready.wait)
            command = [sys.executable, "-c", READS_A_GIGABYTE, f"redis://127.0.0.1:{ports[0]}"]
            try:
                done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
            finally:
                task[0].cancel()
            return done.stdout + done.stderr

        said = runner.run(work())
    megabytes, _, sentence = said.partition(" ")
    assert float(megabytes) < 120, said
    assert "more than 33554432 bytes" in sentence
