"""What a worker survives of a server's answers, and which of its tasks looks for what a lost one held."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from common.bus.base import EVALUATED, SCORED
from common.bus.redis_bus import RedisBus
from common.bus.redis_client import RedisClient
from common.errors import BusError

FAILOVER = [
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "Error running script (call to f_1): @user_script:9: @user_script: 9: -READONLY You can't write against a read only replica.",
]


class Scripted(RedisClient):
    """A client whose server gives these answers in turn."""

    def __init__(self, *answers: object) -> None:
        super().__init__("redis://localhost", outage_timeout_s=5.0)
        self.answers_left = list(answers)
        self.asked: list[tuple[object, ...]] = []

    async def _once(self, arguments: tuple[object, ...], timeout_s: float) -> object:
        self.asked.append(arguments)
        answer = self.answers_left.pop(0) if self.answers_left else []
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("text", FAILOVER)
async def test_a_failover_is_waited_out(text: str) -> None:
    client = Scripted(ResponseError(text), b"PONG")
    assert await client.command("PING") == b"PONG"


async def test_a_refusal_is_no_failover() -> None:
    with pytest.raises(BusError, match="WRONGTYPE"):
        await Scripted(ResponseError("WRONGTYPE not a stream")).command("PING")


async def test_a_server_whose_disk_is_full_is_waited_for_beyond_the_outage_timeout() -> None:
    client = Scripted(*[ResponseError("MISCONF Errors writing to the AOF file: No space left on device")] * 3, b"PONG")
    assert await client.command("PING", outage_timeout_s=0.0) == b"PONG"


async def test_each_task_that_leases_looks_for_what_a_lost_answer_held() -> None:
    client = Scripted()
    bus = RedisBus(client, run="run", name="learner", lease_s=30.0)
    for topic in (EVALUATED, SCORED):
        await bus.lease([topic], 1, 0)
    client.losses += 1
    client.asked.clear()
    for topic in (EVALUATED, SCORED, EVALUATED, SCORED):
        await bus.lease([topic], 1, 0)
    reclaims = [(asked[11], asked[8]) for asked in client.asked]
    assert reclaims == [(EVALUATED, 1), (SCORED, 1), (EVALUATED, 0), (SCORED, 0)]
