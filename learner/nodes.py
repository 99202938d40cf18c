"""A learner that spans several machines: `python -m learner --nnodes M --rdzv HOST:PORT --node-rank R`, the same command on each but for R.

Guarantees: node 0 serves the run and its address is where all ranks meet; any other node starts its ranks, ends when rank 0 sends them
home, and with exit code 1 and a sentence when one of them dies. A first SIGTERM or SIGINT on such a node only says who ends the run,
because rank 0 needs every rank to drain; a second one ends the node.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from common.errors import ConfigError, RefluxError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """One of `count` machines with `ranks` ranks each; rank 0 listens at `host`:`port`."""

    index: int
    count: int
    ranks: int
    host: str
    port: int

    def environment(self, local: int) -> Mapping[str, str]:
        """Of the node's rank `local`, as torchrun sets it; gloo and NCCL take the network on which rank 0 is, unless told otherwise."""
        interface = _interface_towards(self.host, self.port)
        networks = {name: os.environ.get(name, interface) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} if interface else {}
        return networks | {
            "WORLD_SIZE": str(self.count * self.ranks),
            "RANK": str(self.index * self.ranks + local),
            "LOCAL_RANK": str(local),
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four that say who is where."""
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks on this machine (learner.ranks)")
    parser.add_argument("--nnodes", type=int, default=1, metavar="M", help="machines of this learner, with --nproc ranks each")
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="which of them this is; 0 serves the run")
    parser.add_argument(
        "--rdzv", metavar="HOST:PORT", help="where the ranks of several machines meet: an address of node 0 and a free port there"
    )


def read_node(arguments: argparse.Namespace) -> Node | None:
    """None for a learner on one machine. Raises ConfigError."""
    if arguments.nnodes == 1 and not arguments.node_rank and arguments.rdzv is None:
        return None
    if not 0 <= arguments.node_rank < arguments.nnodes:
        raise ConfigError(f"--node-rank {arguments.node_rank} is none of --nnodes {arguments.nnodes}: count the machines from 0")
    host, colon, port = (arguments.rdzv or "").rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ConfigError("several machines meet at --rdzv HOST:PORT: give an address of node 0 and a free port there, the same on each")
    ranks = arguments.nproc or 0
    if ranks < 1:
        raise ConfigError("several machines need --nproc N of at least 1: the number of ranks on each")
    return Node(arguments.node_rank, arguments.nnodes, ranks, host.strip("[]"), int(port))


def _interface_towards(host: str, port: int) -> str | None:
    """The network by which this machine reaches `host`. Without it gloo takes where the machine's own name leads, often loopback."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next((name for name, found in psutil.net_if_addrs().items() if any(one.address == own for one in found)), None)


def follow_on_node(node: Node, argv: Sequence[str]) -> int:
    """The life of a node above 0; the exit code."""
    try:
        asyncio.run(_follow(node, argv))
    except RefluxError as error:
        print(f"reflux learner, node {node.index}: {error}", file=sys.stderr)  # noqa: T201 - the user's sentence
        return 1
    return 0


async def _follow(node: Node, argv: Sequence[str]) -> None:
    ranks = [
        await asyncio.create_subprocess_exec(sys.executable, "-m", "learner", *argv, env=os.environ | node.environment(local))
        for local in range(node.ranks)
    ]
    first, second = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _count, first, second)
    told = asyncio.create_task(_say_who_ends(first))
    stopped = asyncio.create_task(second.wait())
    ended = {asyncio.create_task(process.wait(), name=str(rank)) for rank, process in enumerate(ranks, node.index * node.ranks)}
    try:
        while ended and not stopped.done():
            done, _ = await asyncio.wait({*ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in done & ended:
                if task.result():
                    raise RefluxError(f"learner rank {task.get_name()} died with exit code {task.result()}: start all nodes again")
            ended -= done
        if stopped.done():
            raise RefluxError("stopped before rank 0 ended the run: start the learner on every node again, it resumes")
    finally:
        told.cancel()
        stopped.cancel()
        for process in ranks:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _count(first: asyncio.Event, second: asyncio.Event) -> None:
    (second if first.is_set() else first).set()


async def _say_who_ends(asked: asyncio.Event) -> None:
    await asked.wait()
    _log.warning("rank 0 ends the run, and this node with it: stop the learner on node 0 (a second signal ends this node at once)")
