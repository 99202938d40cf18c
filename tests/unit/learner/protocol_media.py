"""The memory twin and a real server under control: every call at a gate and compared with the model; wiped, rolled back, leases ended.

A reply that is lost makes the real client send the same script again, as it does after a broken connection; in between anything may happen.
"""

from __future__ import annotations

import copy
import re
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count

from protocol_model import Model
from protocol_process import Process, VirtualLoop
from redis.exceptions import ResponseError

from common.bus.base import Lease
from common.bus.memory import MemoryBus
from common.bus.memory_server import FREE, MemoryServer
from common.bus.redis_bus import RedisBus
from common.bus.redis_client import RedisClient
from common.errors import Superseded

LEASE_S = 3000.0  # of real time: leases end only when the test says so
COMPARED = {"admit", "readmit", "settle", "hand_off", "retry", "bury", "revive", "reconcile"}
EPHEMERAL = {"arrivals", "clock", "max_bytes", "away", "_entries", "run_id"}

ALL_OF_IT = """local out = {}
for _, k in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do out[#out + 1] = k out[#out + 1] = redis.call('DUMP', k) end
return out"""
WIPE = "for _, k in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do redis.call('DEL', k) end"
BACK = WIPE + " for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end"
END_LEASES = """for _, topic in ipairs(redis.call('SMEMBERS', KEYS[1] .. 'topics')) do
  local pending = redis.pcall('XPENDING', KEYS[1] .. topic, 'workers', '-', '+', 1000, ARGV[1])
  for _, one in ipairs(pending.err and {} or pending) do
    redis.call('XCLAIM', KEYS[1] .. topic, 'workers', ARGV[1], 0, one[1], 'IDLE', 86400000000, 'JUSTID')
  end
end"""


@dataclass
class Operation:
    """One call that is under way; `expected` is the model's answer when it took effect last."""

    number: int
    me: str
    name: str
    arguments: tuple
    expected: object = None


OPERATION: ContextVar[Operation | None] = ContextVar("OPERATION", default=None)


class Medium:
    """What both have in common: the model beside the server."""

    def __init__(self) -> None:
        self.model = Model()
        self.lives = self.reconciled_in = 0  # of the server
        self._calls = count()

    def took_effect(self, operation: Operation) -> None:
        operation.expected = self.model.call((operation.me, operation.number), operation.me, operation.name, operation.arguments)
        if operation.name == "reconcile":
            self.reconciled_in = self.lives

    async def snapshot(self):
        return self.model.copy(), await self._save()

    async def roll_back(self, snapshot) -> None:
        model, state = snapshot
        self.model, self.lives = model.copy(), self.lives + 1
        self.model.set_back = True
        await self._load(state)

    async def wipe(self) -> None:
        self.model, self.lives = Model(), self.lives + 1
        await self._load(None)

    async def compare(self) -> None:
        """The server holds what the model holds."""
        state, live, letters = await self.reader.state(), await self.reader.live(), await self.reader.dead_letters()
        attempts, dead = {seq: one.attempt for seq, one in live.items()}, {seq: one.attempt for seq, one in letters.items()}
        model = self.model
        modelled = {seq: place.attempt for seq, place in model.live.items()}
        assert (state.term, state.cursor, state.applied) == (model.term, model.cursor, model.applied)
        assert (attempts, dead) == (modelled, model.dead)
        assert sum(state.backlog.values()) == len(live), "an entry that nobody knows of"


class Controlled:
    """A process's bus."""

    def __init__(self, medium: Medium, inner, process: Process) -> None:
        self._medium, self._inner, self._process = medium, inner, process

    def __getattr__(self, name):
        async def call(*arguments):
            if name in {"lease", "weights_after"}:  # nobody waits on the server
                arguments = (*arguments[:-1], 0)
            operation = Operation(next(self._medium._calls), self._process.name, name, arguments)
            token = OPERATION.set(operation)
            try:
                answer = await self._medium.perform(self._inner, self._process, operation)
            except Superseded:
                answer = Superseded
            finally:
                OPERATION.reset(token)
            if name in COMPARED or answer is Superseded:
                assert answer == operation.expected, f"{name} of {operation.me}"
            if answer is Superseded:
                raise Superseded("as the server said: of a higher term")
            return answer

        return call


class InMemory(Medium):
    """The twin: its calls take effect at once, and it answers a repeated one as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryServer(clock=lambda: 0.0)
        self.server.run_id = "0"
        self.reader = MemoryBus(self.server, name="reader")

    def bus(self, process: Process) -> Controlled:
        return Controlled(self, MemoryBus(self.server, name=process.name, lease_s=LEASE_S), process)

    async def perform(self, bus, process, operation):
        lose = await process.gate(operation.name)
        try:
            answer = await getattr(bus, operation.name)(*operation.arguments)
        finally:
            self.took_effect(operation)
        if operation.name == "lease":
            self.model.leased(process.name, answer)
        if lose:
            await process.gate(f"{operation.name} again")
        return answer

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _save(self):
        return {name: copy.deepcopy(value) for name, value in vars(self.server).items() if name not in EPHEMERAL}

    async def _load(self, state) -> None:
        if state is None:
            self.server.restart()
        vars(self.server).update(copy.deepcopy(state or {}))
        self.server.run_id = str(self.lives)

    async def end_leases(self, name: str) -> None:
        for entries in self.server.topics.values():
            for entry in entries.values():
                entry.since = -1e9 if entry.owner == name != FREE else entry.since


class ControlledClient(RedisClient):
    """A client whose every command waits at its process's gate."""

    def __init__(self, url: str, process: Process, medium: OnServer) -> None:
        super().__init__(url, outage_timeout_s=30.0)
        self._process, self._medium, self._label, self._seen = process, medium, "", medium.lives

    async def script(self, name, *arguments):
        self._label = name
        reply = await super().script(name, *arguments)
        if name == "state":
            reply[5] = re.sub(rb"run_id:\w+", b"run_id:%d" % self._medium.lives, reply[5])
        return reply

    async def command(self, *arguments, **options):
        name, self._label = self._label or arguments[0], ""
        lose = await self._process.gate(name)
        self._notice_restart()
        reply = await self._send(name, arguments, options)
        if lose:
            self.losses += 1
            await self._process.gate(f"{name} again")
            self._notice_restart()
            reply = await self._send(name, arguments, options)
        return reply

    def _notice_restart(self) -> None:
        """A server that came back broke every connection."""
        self.losses += self._medium.lives != self._seen
        self._seen = self._medium.lives

    async def _send(self, name, arguments, options):
        operation, effective = OPERATION.get(), True
        self._process.loop.under_way += 1
        try:
            reply = await super().command(*arguments, **options)
        except ResponseError:  # the server does not know the script yet
            effective = False
            self._label = name
            raise
        finally:
            self._process.loop.under_way -= 1
            if effective and operation is not None and operation.name == name:
                self._medium.took_effect(operation)
        if name == "lease":
            leases = [Lease(row[0].decode(), row[1].decode(), int(row[3][1]), int(row[3][3]), row[3][5], row[2]) for row in reply]
            self._medium.model.leased(self._process.name, leases)
        return reply


class OnServer(Medium):
    """The real scripts."""

    def __init__(self, url: str, run: str, loop: VirtualLoop) -> None:
        super().__init__()
        self._url, self._run = url, run
        self._root = f"reflux:{{{run}}}:"
        self._plain = RedisClient(url, outage_timeout_s=30.0)
        self.reader = RedisBus(self._plain, run=run, name="reader", lease_s=LEASE_S)
        self._clients: list[RedisClient] = [self._plain]

    def bus(self, process: Process) -> Controlled:
        client = ControlledClient(self._url, process, self)
        self._clients.append(client)
        return Controlled(self, RedisBus(client, run=self._run, name=process.name, lease_s=LEASE_S), process)

    async def perform(self, bus, process, operation):
        if operation.name == "lease":
            bus._next_sweep.clear()  # looks for leases that ended with every call
        return await getattr(bus, operation.name)(*operation.arguments)

    async def _save(self):
        return await self._plain.command("EVAL", ALL_OF_IT, 1, self._root)

    async def _load(self, state) -> None:
        await self._plain.command("EVAL", WIPE if state is None else BACK, 1, self._root, *(state or ()))

    async def end_leases(self, name: str) -> None:
        await self._plain.command("EVAL", END_LEASES, 1, self._root, name)

    async def aclose(self) -> None:
        await self._load(None)
        for client in self._clients:
            await client.aclose()
