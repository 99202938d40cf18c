"""A whole run behind users, TLS and tokens: every role works with its own rights, no secret is shown, and nobody listens to the network."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib import error, request

import psutil
import pytest

from common.bus.acl import ROLES
from common.bus.embedded import find_server, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]


def make_authority(directory: Path) -> dict[str, Path]:
    """A certificate that signs itself, for 127.0.0.1; {} where this system has no TLS server or no openssl."""
    server, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if not server or not openssl:
        return {}
    key, certificate = directory / "tls-key.pem", directory / "tls.pem"
    made = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return {"server": Path(server), "key": key, "certificate": certificate}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def guarded_server(directory: Path, acl: str, tls: dict[str, Path]) -> Iterator[str]:
    """The address of a server with these users alone; behind TLS with client certificates where the system has that."""
    port = free_port()
    (directory / "users.acl").write_text(acl)
    settings = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--aclfile", directory / "users.acl"]
    if tls:
        both, whole = ("--tls-port", port, "--port", 0), tls["certificate"]
        settings += [
            *both,
            "--tls-cert-file",
            whole,
            "--tls-key-file",
            tls["key"],
            "--tls-ca-cert-file",
            whole,
            "--tls-auth-clients",
            "yes",
        ]
    else:
        settings += ["--port", port]
    program = [str(part) for part in (tls.get("server") or find_server(), *settings)]
    process = subprocess.Popen(program, cwd=directory, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"redis{'s' if tls else ''}://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def assert_private(processes: list[psutil.Process], hidden: list[str]) -> None:
    """They listen on loopback alone, and their arguments hold no secret."""
    for process in processes:
        command = " ".join(process.cmdline())
        assert not [secret for secret in hidden if secret in command], command
        addresses = {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
        assert addresses <= {"127.0.0.1", "::1"}, command


def assert_metrics_want(token: str, log: str) -> None:
    address = next(part.partition("=")[2] for part in log.split() if part.startswith("metrics="))
    with pytest.raises(error.HTTPError, match="401"):
        request.urlopen(address)
    with request.urlopen(request.Request(address, headers={"Authorization": f"Bearer {token}"})) as answer:
        assert b"reflux_process_cpu_seconds" in answer.read()


def test_a_run_behind_users_tls_and_a_token_shows_no_secret(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = secrets.token_hex(16)
    (tmp_path / "token").write_text(token)
    tls = make_authority(tmp_path)
    example.settings |= {
        "learner.steps": 12,
        "producer.slots": 2,  # it lasts while its processes are looked at
        "bus.password_file": str(tmp_path / "secrets" / "{run}-{role}"),
        "bus.url": "redis://127.0.0.1:1",
    }
    example.settings["service.metrics_token_file"] = str(tmp_path / "token")
    acl = example.go("acl")
    assert acl.returncode == 0, acl.stderr
    passwords = {role: (tmp_path / "secrets" / f"arithmetic-{role}").read_text().strip() for role in ROLES}
    hidden = [token, *passwords.values()]
    assert len(set(hidden)) == len(ROLES) + 1
    assert example.go("acl").stdout == acl.stdout, "passwords that exist stay"

    with guarded_server(tmp_path, acl.stdout, tls) as example.settings["bus.url"]:
        if tls:
            example.settings |= {"bus.tls_ca": tls["certificate"], "bus.tls_cert": tls["certificate"], "bus.tls_key": tls["key"]}
        dry = example.go("run", "--dry-run")
        assert dry.returncode == 0, dry.stdout + dry.stderr
        run = example.start("run")
        example.wait_for(lambda: example.step >= 1, "step 1")
        assert_private(family(run.pid), hidden)
        assert_metrics_want(token, (example.directory / "logs" / "learner-0.log").read_text())
        assert run.wait(200) == 0, example.output()
        told = [acl, dry, *(example.go(name) for name in ("audit", "status"))]
        assert [done.returncode for done in told] == [0] * len(told), [done.stderr for done in told]
    assert (example.result["steps"], example.result["ledger"]["applied"]) == (12, 192)
    said = example.output() + "".join(done.stdout + done.stderr for done in told)
    kept = [path.read_bytes().decode(errors="replace") for path in example.runs.rglob("*") if path.is_file()]
    assert (example.directory / "config.toml").exists()
    assert not [secret for secret in hidden if any(secret in text for text in (said, *kept))]
    if not tls:
        pytest.skip("all of it holds, but without TLS: that takes a redis-server and openssl")
