"""What is checked before anything starts, so that a mistake costs seconds: every one is a sentence that names the key.

Cheap checks (files, JSON, directories, whose run it is, chats read by both templates) are made at every start; `thorough` adds what the
roles would find when they begin: architecture, loss, tokenised prompts, context, teacher routes, verifier, tokenizers.
Raises ConfigError, IdentityError.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError, IdentityError
from learner.directory import RunDirectory, flatten
from learner.prompts.rows import Row, read_rows

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def preflight(config: RunConfig, *, thorough: bool = False) -> None:
    """Nothing is changed but that missing directories are made."""
    _causal_language_model(config.model.student, "model.student", weights=True)
    for name, teacher in config.teachers.items():
        _causal_language_model(teacher.path, f"teachers.{name}.path", weights=teacher.kind == "torch")
        _another_model(config, name)
    rows, _ = read_rows(config.data.prompts, "data.prompts")
    if any("messages" in row.fields for row in rows):
        _templates(config, rows)
    if config.data.eval_prompts is not None and config.evaluation.prompts:
        read_rows(config.data.eval_prompts, "data.eval_prompts")
    if thorough:
        _as_the_roles_would(config)
    _same_identity(config)
    _writable(config.directory, "run.dir")
    if not config.weights.url:
        _writable(config.weight_directory, "weights.dir")


def _causal_language_model(directory: Path, key: str, *, weights: bool) -> None:
    what = f"{key} = {directory}"
    if not directory.is_dir():
        raise ConfigError(f"{what} does not exist: name a model's directory in Hugging Face format")
    try:
        values = json.loads((directory / "config.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"{what} has no config.json: name a model's directory in Hugging Face format") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: config.json cannot be read ({error})") from None
    architectures = values.get("architectures") or ["none"] if isinstance(values, dict) else ["none"]
    if not str(architectures[0]).endswith("ForCausalLM"):
        raise ConfigError(
            f"{what} holds {architectures[0]}, which is no causal language model: name one whose architecture ends in ForCausalLM"
        )
    if weights and not _has_any(directory, _WEIGHTS):
        raise ConfigError(f"{what} has no weights (*.safetensors): complete the download")
    if not _has_any(directory, _TOKENIZERS):
        raise ConfigError(f"{what} has no tokenizer (tokenizer.json): complete the download")


def _another_model(config: RunConfig, name: str) -> None:
    teacher = config.teachers[name]
    if not teacher.allow_inert and teacher.path.resolve() == config.model.student.resolve():
        raise ConfigError(
            f"teachers.{name}.path is the student's own directory, from which nothing could be learned: "
            f"name the teacher's, or set teachers.{name}.allow_inert = true"
        )


def _templates(config: RunConfig, rows: Sequence[Row]) -> None:
    from deploy.preflight.templates import read_alike

    for name in config.teachers:
        finding = read_alike(config, name, rows)
        if finding.state == "error":
            raise ConfigError(f"{finding.subject}: {finding.says}; --skip-preflight starts all the same")


def _has_any(directory: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(directory.glob(pattern), None) for pattern in patterns)


def _same_identity(config: RunConfig) -> None:
    """The learner compares the fingerprints of the data too."""
    file = RunDirectory(config.directory).identity
    if not file.exists():
        return
    before = json.loads(file.read_text())
    now = json.loads(json.dumps(flatten(config.identity())))
    changes = [f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in sorted(now) if before.get(key) != now[key]]
    if changes:
        raise IdentityError(
            f"{config.directory} belongs to another run ({', '.join(changes)}): restore these, choose another run.name, or use --fresh"
        )


def _writable(directory: Path, key: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {directory} ({error.strerror}): set {key} to a directory you can write") from None


def check_names(config: RunConfig) -> None:
    """Architecture, loss and verifier are known; raises ConfigError."""
    from learner.losses import check_loss
    from learner.megatron.architecture import read_architecture
    from producers.verifiers import verifier_for

    read_architecture(config.model.student)
    check_loss(config)
    if config.evaluation.prompts:
        verifier_for(config.evaluation)


def _as_the_roles_would(config: RunConfig) -> None:
    from learner.prompts import load_eval_prompts, load_prompts
    from scorers.probe import check_tokenizers

    check_names(config)
    load_prompts(config)
    load_eval_prompts(config)
    for name in config.teachers:
        check_tokenizers(config, name)
