"""Brings servers over to a target: pause (requests go back to the queue) → weights from disk, cache flushed → continue → read back.

One server at a time, and nothing new is sent to it meanwhile, so that the others sample on. A server that does not report the label of the
target afterwards, or not the checksums of the others, is no server of this pool until it does.
"""

from __future__ import annotations

import logging
from typing import Any  # JSON

from common.errors import WeightsError
from common.sglang.pool import ServerPool
from common.sglang.server import CallFailed, Lost, ModelInfo, Refused, Server
from producers.engines.sglang.target import Target

log = logging.getLogger(__name__)

_CONTROL_S = 60.0


async def samples_as_asked(server: Server, info: ModelInfo) -> None:
    """Raises CallFailed for a server with preferences of its own: it would cut the distribution, and no reply would show it."""
    if info.preferences:
        raise Lost(f"{server.url} adds {info.preferences[:200]} to every request: start it without --preferred-sampling-params")


class PoolWeights:
    """`labels` are those that this process has put on servers."""

    def __init__(self, *, first: Target, deadline_s: float) -> None:
        self.labels = {first.label: first.version}
        self._target = first
        self._held: dict[str, Target] = {}  # by address: what a server was last seen with
        self._sums: dict[str, str] = {}  # by label and number of ranks
        self._deadline_s = deadline_s

    @property
    def oldest(self) -> Target:
        """No server in rotation samples from anything older."""
        return min((self._target, *self._held.values()), key=lambda target: target.version)

    async def prepare(self, server: Server, info: ModelInfo) -> None:
        """For a server that comes into rotation: it may have been started anew, or hold another run's weights."""
        await samples_as_asked(server, info)
        if info.weight_version == self._target.label:
            await self._go_on(server)
            self._held[server.url] = self._target
        else:
            await self._change(server, self._target)

    async def go_over(self, pool: ServerPool, target: Target) -> None:
        """All servers in rotation, one after the other. Raises WeightsError where none could; the old target then stands."""
        before, self._target = self._target, target
        self.labels[target.label] = target.version
        await pool.look()
        for server in pool.servers:
            async with server.changing:
                if not server.up or self._held[server.url] == target:
                    continue
                async with pool.reserved(server):
                    try:
                        await self._change(server, target)
                    except CallFailed as error:
                        pool.take_out(server, f"it did not take weights {tuple(target.version)}: {error}")
        if not any(server.up for server in pool.servers):
            self._target = before
            reasons = "; ".join(server.reason for server in pool.servers)
            raise WeightsError(f"no server took weights {tuple(target.version)}: {reasons}")
        self._held = {server.url: self._held[server.url] for server in pool.servers if server.up}

    async def _change(self, server: Server, target: Target) -> None:
        """Raises CallFailed."""
        paused = await self._pause(server)
        try:
            body = {"model_path": str(target.directory), "weight_version": target.label, "flush_cache": True}
            said = await self._update(server, body)
            if not isinstance(said, dict) or said.get("success") is not True:
                raise Lost(f"{server.url} did not say that it has taken them")
        finally:
            if paused:
                await self._control(server, "/continue_generation", {})
        info = await server.info()
        if info.weight_version != target.label:
            raise Lost(f"{server.url} reports the weights {info.weight_version!r} instead of {target.label!r}")
        await self._compare(server, target)
        self._held[server.url] = target
        log.info("server has new weights", extra={"server": server.url, "label": target.label})

    async def _pause(self, server: Server) -> bool:
        """False: before 0.5.21, which is when /ready came, requests that go back to the queue may take the server down with them, and older
        ones know no such pause. They wait by themselves until nothing is in flight."""
        retracts = await server.knows("/ready")
        server.saw("pause by retraction", retracts)
        if retracts:
            await self._control(server, "/pause_generation", {"mode": "retract"})
        return retracts

    async def _go_on(self, server: Server) -> None:
        """Whoever changed its weights before may have died, or not been heard, between pause and continue; /model_info does not tell."""
        try:
            await self._control(server, "/continue_generation", {})
        except Refused as error:
            if error.status != 404:
                raise

    async def _update(self, server: Server, body: dict[str, Any]) -> Any:
        try:
            return await self._control(server, "/update_weights_from_disk", body, self._deadline_s)
        except Refused as error:
            if error.status != 404:
                raise
            raise Lost(
                f"{server.url} cannot change its weights (404): name the servers themselves in producer.urls, not their router"
            ) from None

    async def _compare(self, server: Server, target: Target) -> None:
        """With the other servers of as many ranks, where checksums are offered."""
        try:
            said = await self._control(server, "/weights_checker", {"action": "checksum"}, self._deadline_s)
        except Refused:
            said = None
        offered = isinstance(said, dict) and bool(said.get("per_engine_checksum"))
        server.saw("checksums", offered)
        if not offered:
            return
        key = f"{target.label} on {len(said.get('ranks') or [])}"
        total = str(said["per_engine_checksum"])
        if self._sums.setdefault(key, total) != total:
            raise Lost(f"{server.url} has other checksums than the other servers with {target.label}")

    async def _control(self, server: Server, path: str, body: dict[str, Any], deadline_s: float = _CONTROL_S) -> Any:
        return await server.call("POST", path, body, deadline_s=deadline_s, admin=True)
