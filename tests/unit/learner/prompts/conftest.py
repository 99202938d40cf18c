from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig, parse_config

CHARACTERS = "0123456789+-=abcdefghijklmnopqrstuvwxyz: \n"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the configuration and a character tokenizer of a model, without weights."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("student")
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<unk>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    config = {"model_type": "qwen3", "vocab_size": len(vocabulary), "max_position_embeddings": 64, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def configured(student: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A RunConfig with the given sections over sound ones; `prompts` are written to a JSONL file."""

    def build(prompts: list[Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
        file = tmp_path / "prompts.jsonl"
        if prompts is not None:
            file.write_text("".join(json.dumps(row) + "\n" for row in prompts))
        values: dict[str, dict[str, Any]] = {
            "run": {"name": "test", "dir": str(tmp_path)},
            "model": {"student": str(student)},
            "teachers": {"default": {"path": "/nowhere"}},
            "data": {"prompts": str(file)},
            "sampling": {"max_new_tokens": 16},
            "evaluation": {"prompts": 0},
        }
        for name, section in sections.items():
            values[name] = section if name == "teachers" else {**values.get(name, {}), **section}
        return parse_config(values)

    return build
