"""What `reflux run --dry-run` finds on the real models of the example, and what a start warns of."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from common.config import RunConfig, load_config
from common.errors import BusUnreachable, ConfigError
from deploy.commands import run
from deploy.local import run_async
from deploy.preflight import preflight
from deploy.snapshot import Snapshot

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic"


def configured(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *overrides])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loss.kind=reverse", r"loss.kind = 'reverse' is unknown: write topk_reverse_kl"),
        ("loss.kind=python:nowhere:loss", r"loss.kind"),
        ("evaluation.verifier=guess", r"evaluation.verifier = 'guess' is unknown: write exact"),
        ("evaluation.pattern=(", r"evaluation.pattern"),
    ],
)
def test_a_dry_run_finds_what_a_role_would_refuse(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        preflight(configured(tmp_path, override), thorough=True)


def test_a_dry_run_compares_the_tokenizers(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(EXAMPLE / "models" / "teacher", teacher)
    text = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["+"], vocabulary["-"] = vocabulary["-"], vocabulary["+"]
    (teacher / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match=r"the tokenizers of model.student and teachers.arithmetic differ in 2 tokens"):
        preflight(configured(tmp_path, f"teachers.arithmetic.path={teacher}"), thorough=True)


def test_a_dry_run_says_what_would_run_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "loss.kind=sampled_reverse_kl")
    assert run(config, EXAMPLE / "run.toml", fresh=False, take_over=False, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "warning: sampled_reverse_kl with learner.max_staleness = 4 and optimizer.lr = 0.001 is likely to collapse" in said
    assert "the configuration is fine" in said


class Heard:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, before: Snapshot, after: Snapshot) -> None:
        pass

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def test_a_start_warns_of_what_is_known_to_collapse(tmp_path: Path) -> None:
    screen, nobody = Heard(), ["bus.url=redis://127.0.0.1:1", "bus.connect_timeout_s=0.1"]
    with pytest.raises(BusUnreachable):
        asyncio.run(run_async(configured(tmp_path, "loss.kind=sampled_reverse_kl", *nobody), screen=screen))
    assert ["likely to collapse" in sentence for sentence in screen.said] == [True]
