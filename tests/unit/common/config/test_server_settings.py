"""What a configuration says of SGLang servers is checked when it is read."""

from pathlib import Path
from typing import Any

import pytest

from common.config import load_config, parse_config
from common.errors import ConfigError
from common.sglang.keys import Keys, read_keys

SERVERS = {"kind": "sglang", "urls": ["http://one:30000", "http://two:30000"]}


def values(producer: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    return {
        "run": {"name": "r"},
        "model": {"student": "/s"},
        "teachers": {"t": {"path": "/t", **(teacher or {})}},
        "data": {"prompts": "/p"},
        "evaluation": {"prompts": 0},
        "producer": producer or {},
        **sections,
    }


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (values({"kind": "sglang"}), 'producer.kind = "sglang" needs producer.urls'),
        (values({"urls": ["http://one:1"]}), 'write producer.kind = "sglang" too'),
        (values(teacher={"kind": "sglang"}), 'teachers.t.kind = "sglang" needs teachers.t.urls'),
        (values({"kind": "sglang", "urls": ["one:1"]}), "'one:1' is no http://HOST:PORT"),
        (values({"kind": "sglang", "urls": ["http://one:1", "http://one:1/"]}), "names a server twice"),
        (values({**SERVERS, "api_key_file": "/k", "api_key_env": "K"}), "name the same key"),
        (values({**SERVERS, "count": 2}), "producer.count = 1"),
        (values(SERVERS, sampling={"temperature": 0.7}), "needs sampling.temperature = 1"),
        (values(SERVERS, run={"name": "r", "deterministic": True}), 'needs producer.kind = "torch"'),
    ],
)
def test_what_servers_cannot_do_is_told_in_one_sentence(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_config(said)
    assert sentence in str(told.value)


def test_a_key_in_an_address_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError) as told:
        parse_config(values({"kind": "sglang", "urls": ["http://me:secret@one:1"]}))
    assert "secret" not in str(told.value)
    assert "producer.api_key_file" in str(told.value)


def test_keys_come_from_files_relative_to_the_configuration_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "run.toml").write_text(
        '[run]\nname="r"\n[model]\nstudent="s"\n[data]\nprompts="p"\n[evaluation]\nprompts=0\n'
        '[teachers.t]\npath="t"\nkind="sglang"\nurls=["http://one:1"]\napi_key_file="key"\nadmin_key_env="ADMIN_KEY"\n'
    )
    monkeypatch.setenv("ADMIN_KEY", "from-environment")
    section = load_config(tmp_path / "run.toml").teachers["t"]
    keys = read_keys(section, "teachers.t")
    assert keys.header(admin=False) == {"Authorization": "Bearer from-file"}
    assert keys.header(admin=True) == {"Authorization": "Bearer from-environment"}
    assert "from-" not in repr(keys) + repr(section)
    monkeypatch.delenv("ADMIN_KEY")
    with pytest.raises(ConfigError, match="ADMIN_KEY"):
        read_keys(section, "teachers.t")


def test_without_keys_nothing_is_sent() -> None:
    assert Keys().header(admin=True) == {}
    assert Keys("api").header(admin=True) == {"Authorization": "Bearer api"}


@pytest.mark.parametrize("url", ["https://me:sesame@h/x", "s3://key:sesame@bucket/x", "http://h/x?token=sesame", "http://h/x#sesame"])
def test_an_address_of_weights_with_a_secret_in_it_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"weights\.url holds a login or parameters") as refused:
        parse_config(values(weights={"url": url}))
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://bucket/runs/me@home", "http://learner:8480", "file:///srv/weights"])
def test_an_address_of_weights_without_secrets_is_taken(url: str) -> None:
    assert parse_config(values(weights={"url": url})).weights.url == url
