"""The SGLang servers that a run brings along: `[cluster.servers]`.

Guarantee: the run begins when all of them answer; one that ends before, or is silent for longer than its role would wait, is an error that
says which, why and where its log is. From then on they are kept alive like the roles.
"""

from __future__ import annotations

import http.client
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from common.config import RunConfig
from common.config.sections import ServersSection
from common.errors import ConfigError
from deploy.process import Exit
from deploy.roles import RoleSpec
from deploy.supervisor import Running

STUDENT = "student"
_SOON_S = 2.0
_LOOK_S = 0.5


def server_specs(config: RunConfig) -> list[RoleSpec]:
    """Without their addresses."""
    return [RoleSpec("server", n, 0, owner=name) for name, group in config.cluster.servers.items() for n in range(group.count)]


def placed_servers(config: RunConfig, address: Callable[[str], tuple[str, int]]) -> tuple[list[RoleSpec], RunConfig]:
    """With their commands, and the configuration with their addresses; `address` gives host and port for a name."""
    specs, urls = [], dict[str, list[str]]()
    for spec in server_specs(config):
        host, port = address(spec.name)
        command = config.cluster.servers[spec.owner].command.format(host=host, port=port, python=shlex.quote(sys.executable))
        specs.append(RoleSpec("server", spec.index, 0, owner=spec.owner, program=tuple(shlex.split(command))))
        urls.setdefault(spec.owner, []).append(f"http://{host}:{port}")
    teachers = {
        name: teacher.model_copy(update={"urls": tuple(urls[name])}) if name in urls else teacher
        for name, teacher in config.teachers.items()
    }
    producer = config.producer.model_copy(update={"urls": tuple(urls[STUDENT])}) if STUDENT in urls else config.producer
    return specs, config.model_copy(update={"teachers": teachers, "producer": producer})


def until_they_answer(config: RunConfig, running: Mapping[str, Running], urls: Mapping[str, str], say: Callable[[str], None]) -> None:
    """All servers; raises ConfigError where one ends, or is silent for longer than its role would wait."""
    began, silent, told = time.monotonic(), dict(urls), False
    while silent:
        for name, url in list(silent.items()):
            ended = running[name].poll()
            if ended is not None:
                raise _ended(config, name, ended)
            if _answers(url):
                del silent[name]
        if silent and not told and time.monotonic() - began > _SOON_S:
            say(f"waits for the servers {', '.join(silent)} to load their models")
            told = True
        for name in silent:
            owner = name.rpartition("-server-")[0]
            patience = (config.producer if owner == STUDENT else config.teachers[owner]).unreachable_s
            if time.monotonic() - began > patience:
                raise ConfigError(
                    f"{name} at {urls[name]} does not answer within {patience:g} s: see {config.directory / 'logs'}/{name}.log"
                )
        if silent:
            time.sleep(_LOOK_S)


def _ended(config: RunConfig, name: str, ended: Exit) -> ConfigError:
    owner = name.rpartition("-server-")[0]
    return ConfigError(f"{name} ended by itself ({ended.reason}): correct cluster.servers.{owner}.command; see {_log(config, name)}")


def _role_of(config: RunConfig, name: str) -> ServersSection:
    owner = name.rpartition("-server-")[0]
    return config.producer if owner == STUDENT else config.teachers[owner]


def _log(config: RunConfig, name: str) -> Path:
    return config.directory / "logs" / f"{name}.log"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/model_info", timeout=_LOOK_S) as reply:  # noqa: S310 - an address that we made
            return bool(reply.status)
    except urllib.error.HTTPError:
        return True  # it wants a key, or is older: the role says what is wrong
    except (OSError, http.client.HTTPException):
        return False
