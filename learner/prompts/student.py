"""What prompts need of the student's directory: token ids of text and of chats, its end-of-sequence ids, its context.

The JSON files are read as they are; transformers is loaded only when there is text to tokenise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any  # transformers' tokenizers and the model's JSON

from common.config import RunConfig
from common.errors import ConfigError


class Student:
    """A Hugging Face model directory. `who` it belongs to stands in messages about its tokenizer and template."""

    def __init__(self, directory: Path, who: str = "the student") -> None:
        self.directory = directory
        self._who = who

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json. Raises ConfigError."""
        if not self.directory.is_dir():
            raise ConfigError(f"model.student = {self.directory} is no directory: name a model in Hugging Face format")
        values = self._json("config.json")
        if values is None:
            raise ConfigError(f"model.student = {self.directory} has no config.json: name a model in Hugging Face format")
        return values

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows."""
        return self.config.get("vocab_size") or 1 << 31

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            values = json.loads((self.directory / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {self.directory / name}: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{self.directory / name} is no JSON object")
        return values

    def room(self, max_prompt_tokens: int, max_new_tokens: int, key: str) -> tuple[int, str]:
        """How long a prompt may be, and what sets that limit."""
        context = self.config.get("max_position_embeddings")
        if not isinstance(context, int):
            return max_prompt_tokens, "data.max_prompt_tokens"
        if context <= max_new_tokens:
            raise ConfigError(
                f"{key} = {max_new_tokens} leaves no room for a prompt in the student's context of {context} tokens: lower it"
            )
        return min(
            (max_prompt_tokens, "data.max_prompt_tokens"),
            (context - max_new_tokens, f"the student's context of {context} less {key} = {max_new_tokens}"),
        )

    def stop_ids(self, config: RunConfig) -> tuple[int, ...]:
        """Ids that end an answer: those of generation_config.json, config.json and the tokenizer, and sampling.stop_token_ids.

        Chat models that were tuned from a base model often carry the right one in one of these places only. Raises ConfigError.
        """
        ids = {*config.sampling.stop_token_ids}
        for values in (self._json("generation_config.json"), self.config):
            eos = (values or {}).get("eos_token_id")
            ids.update([eos] if isinstance(eos, int) else eos or ())
        if (self.directory / "tokenizer_config.json").exists() and self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        if not ids:
            raise ConfigError(f"{self.directory} names no eos_token_id: set sampling.stop_token_ids")
        return tuple(sorted(ids))

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer. Raises ConfigError."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            why = _first_line(error)
            raise ConfigError(f"model.student = {self.directory} has no usable tokenizer ({why}): complete the download") from None

    def encode(self, texts: Sequence[str], *, chats: bool) -> list[list[int]]:
        """Token ids. Plain text gets the tokenizer's own special tokens; a rendered chat brings them along."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=not chats, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def render(self, messages: Any, where: str) -> str:
        """A chat as text that ends where the student's answer begins. Raises ConfigError."""
        from jinja2 import TemplateError

        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ConfigError(f"{where} has `messages`, but {self._who}'s tokenizer has no chat template: use `prompt` instead")
        try:
            text: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{where}: {self._who}'s chat template refuses its `messages`: {_first_line(error)}") from None
        return text


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
