"""Room on a Ray cluster for everything that a run needs at once, reserved as one placement group.

Guarantees: either all of it is reserved or none; who waits is told for what and for how long; a bundle stays on its node as long as the
node lives, so that a server which is started again has the address that the others know.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any  # ray has no types

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from common.config import RunConfig
from common.errors import ConfigError
from deploy.roles import RoleSpec, role_specs

_AT_ONCE_S = 2.0


class Room:
    """`bundles` by the name of the spec that they are for."""

    def __init__(self, group: Any, bundles: Mapping[str, int]) -> None:
        self._group = group
        self._bundles = bundles

    def options(self, name: str) -> dict[str, Any]:
        """For the actor of `name`; one that has no bundle is placed wherever there is room."""
        if name not in self._bundles:
            return {}
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._bundles[name])}

    def address(self, name: str) -> tuple[str, int]:
        """Of the node that `name` is on, and a port that is free there."""
        task = ray.remote(_address).options(num_cpus=0, **self.options(name))
        host, port = ray.get(task.remote())
        return str(host), int(port)


def reserve(config: RunConfig, servers: Sequence[RoleSpec], say: Callable[[str], None]) -> Room:
    """Waits cluster.patience_s; raises ConfigError."""
    needs = {spec.name: resources(config, spec) for spec in (*servers, *role_specs(config))}
    bundles = [_bundle(*need) for need in needs.values()]
    group = placement_group(bundles, strategy="PACK", name=f"reflux-{config.run.name}-{time.time_ns()}")
    if not group.wait(_AT_ONCE_S):
        patience = config.cluster.patience_s
        say(f"waits up to {patience:g} s for room: {_lack(bundles)}")
        if not group.wait(patience):
            remove_placement_group(group)
            raise ConfigError(
                f"{_lack(bundles)}; waited {patience:g} s (cluster.patience_s): add nodes, start fewer producers or scorers, or lower "
                "cluster.*_cpus and cluster.*_gpus"
            )
    return Room(group, {name: index for index, name in enumerate(needs)})


def resources(config: RunConfig, spec: RoleSpec) -> tuple[float, float]:
    """CPUs and GPUs of an actor; the learner's ranks share one node and hence one actor."""
    section = config.cluster
    if spec.role == "server":
        group = section.servers[spec.owner]
        return group.cpus, group.gpus
    count = config.learner.ranks if spec.role == "learner" else 1
    cpus: float = getattr(section, f"{spec.role}_cpus")
    gpus: float = getattr(section, f"{spec.role}_gpus")
    return count * cpus, count * gpus


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", max(cpus, 0.001)), ("GPU", gpus)) if amount}


def _lack(bundles: Sequence[Mapping[str, float]]) -> str:
    have, free = ray.cluster_resources(), ray.available_resources()
    wanted = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    short = [name for name, amount in wanted.items() if amount > have.get(name, 0.0)] or [
        name for name, amount in wanted.items() if amount > free.get(name, 0.0)
    ]
    if not short:
        largest = max(bundles, key=lambda bundle: (bundle.get("GPU", 0.0), bundle["CPU"]))
        return f"no node has room for {' and '.join(f'{amount:g} {name}' for name, amount in largest.items())} together"
    return " and ".join(
        f"the roles of this run ask for {wanted[name]:g} {name}, the Ray cluster has {have.get(name, 0.0):g} ({free.get(name, 0.0):g} free)"
        for name in short
    )


def _address() -> tuple[str, int]:
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]
