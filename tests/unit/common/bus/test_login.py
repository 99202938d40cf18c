"""Who a role is: passwords come from files or the environment, and every mistake is a sentence without the secret."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from common.bus.acl import ROLES
from common.bus.login import Login, login_of, metrics_token
from common.config import parse_config
from common.config.sections import BusSection, ServiceSection
from common.errors import ConfigError
from deploy.users import acl_file


def config(**bus: Any) -> Any:
    base = {"run": {"name": "r"}, "model": {"student": "/s"}, "teachers": {"t": {"path": "/t"}}, "data": {"prompts": "/p"}}
    return parse_config(base | {"evaluation": {"prompts": 0}, "bus": bus})


def test_each_role_reads_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "r-scorer").write_text("secret\n")
    settings = BusSection(url="redis://h", password_file=str(tmp_path / "{run}-{role}"))
    login = login_of(settings, "r", "scorer")
    assert (login.user, login.password) == ("r-scorer", "secret")
    assert login.options() == {"username": "r-scorer", "password": "secret"}
    assert "secret" not in repr(login)
    with pytest.raises(ConfigError, match=r"r-learner cannot be read .*: write the password of the learner into it"):
        login_of(settings, "r", "learner")


def test_each_role_reads_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_LEARNER_PASSWORD", "secret")
    settings = BusSection(url="redis://h", password_env="X_{ROLE}_PASSWORD", user="default")
    assert login_of(settings, "r", "learner") == Login("default", "secret")
    with pytest.raises(ConfigError, match="the environment has no X_SCORER_PASSWORD: set it to the password of the scorer"):
        login_of(settings, "r", "scorer")


def test_without_a_password_the_address_says_who_it_is() -> None:
    assert login_of(BusSection(url="redis://:pw@h"), "r", "learner").options() == {}


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "is no text"), (b"x" * 5000, "too long")]
)
def test_a_file_that_holds_no_password_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match=f"service.metrics_token_file = .*{sentence}.*: write the token into it"):
        metrics_token(ServiceSection(metrics_token_file=tmp_path / "token"))


@pytest.mark.parametrize(
    ("bus", "sentence"),
    [
        ({"url": "redis://:hidden@h", "password_file": "/f"}, "bus.password_file and by bus.url: leave one"),
        ({"url": "redis://h", "password_file": "/f", "password_env": "X"}, "bus.password_file and by bus.password_env: leave one"),
        ({"password_file": "/f"}, "set bus.url too"),
        ({"url": "redis://h", "tls_ca": "/ca"}, "write bus.url as rediss://"),
        ({"url": "rediss://h", "tls_cert": "/c"}, "bus.tls_cert and bus.tls_key belong together"),
    ],
)
def test_what_contradicts_itself_is_said_without_the_secret(bus: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        config(**bus)
    assert "hidden" not in str(caught.value)


def test_a_file_that_tls_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bus.tls_ca = .*nowhere.pem cannot be read: name a PEM file"):
        login_of(BusSection(url="rediss://h", tls_ca=tmp_path / "nowhere.pem"), "r", "learner")


def test_the_acl_file_makes_missing_passwords_once_for_their_owner_alone(tmp_path: Path) -> None:
    made_for = config(url="redis://h", password_file=str(tmp_path / "secrets" / "{role}"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "learner").write_text("mine")
    lines, made = acl_file(made_for)
    assert [path.name for path in made] == [role for role in ROLES if role != "learner"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert (tmp_path / "secrets" / "learner").read_text() == "mine"
    assert acl_file(made_for) == (lines, [])
    assert lines[0] == "user default off"
    assert [line.split()[1] for line in lines[1:]] == [f"r-{role}" for role in ROLES]
    assert not [path for path in made if path.read_text().strip() in "\n".join(lines)]


@pytest.mark.parametrize(
    ("bus", "sentence"),
    [({}, 'set bus.password_file = "secrets'), ({"url": "redis://h", "password_env": "ONE"}, "each role needs a password of its own")],
)
def test_roles_without_passwords_of_their_own_get_no_acl(bus: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        acl_file(config(**bus))
