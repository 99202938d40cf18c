"""A directory belongs to one identity."""

import json

import pytest

from common.config import parse_config
from common.errors import ConfigError, IdentityError
from learner.directory import RunDirectory


def config(tmp_path, **learner):
    return parse_config(
        {
            "run": {"name": "r", "dir": str(tmp_path)},
            "model": {"student": "s"},
            "teachers": {"t": {"path": "t"}},
            "data": {"prompts": "p"},
            "evaluation": {"prompts": 0},
            "learner": learner,
        }
    )


def test_operational_keys_may_change_on_resume(tmp_path):
    directory = RunDirectory(tmp_path / "r")
    directory.open(config(tmp_path), {})
    directory.open(config(tmp_path, checkpoint_every=7), {})
    directory.keep(config(tmp_path, checkpoint_every=7))
    assert json.loads(directory.config.read_text())["learner"]["checkpoint_every"] == 7


def test_another_identity_is_refused_with_what_differs(tmp_path):
    directory = RunDirectory(tmp_path / "r")
    directory.open(config(tmp_path), {"data.prompts": "abc"})
    with pytest.raises(IdentityError, match=r"learner.batch_size was 64 and is 32"):
        directory.open(config(tmp_path, batch_size=32), {"data.prompts": "abc"})
    with pytest.raises(IdentityError, match=r"fingerprint of data.prompts was 'abc' and is 'xyz'"):
        directory.open(config(tmp_path), {"data.prompts": "xyz"})


def test_the_password_of_the_server_is_not_kept(tmp_path):
    directory = RunDirectory(tmp_path / "r")
    plain = config(tmp_path)
    secret = plain.model_copy(update={"bus": plain.bus.model_copy(update={"url": "redis://me:secret@host:1/0"})})
    directory.open(secret, {})
    directory.keep(secret)
    assert json.loads(directory.config.read_text())["bus"]["url"] == "redis://me@host:1/0"


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"set run.dir"):
        RunDirectory(tmp_path / "file" / "r").open(config(tmp_path), {})
