"""Model directories that cannot be teachers are refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, edit_config, save_model
from transformers import BertConfig, BertForMaskedLM, GraniteConfig, GraniteForCausalLM

from common.errors import ConfigError
from scorers.teachers.torch.loading import load_causal_model


def no_weights(directory: Path) -> None:
    save_model(directory)
    (directory / "model.safetensors").unlink()


def a_missing_tensor(directory: Path) -> None:
    save_model(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})


def half_a_file(directory: Path) -> None:
    save_model(directory)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def a_masked_model(directory: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(directory)


def scaled_logits(directory: Path) -> None:
    GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)).save_pretrained(directory)


def an_unknown_type(directory: Path) -> None:
    save_model(directory)
    edit_config(directory, model_type="telepathy")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda directory: None, "is no model directory"),
        (no_weights, "has no .safetensors files"),
        (a_missing_tensor, "lacks 1 of the model's weights, model.norm.weight first"),
        (half_a_file, "cannot load the weights of"),
        (a_masked_model, "is not a causal language model"),
        (scaled_logits, "is not supported: its logits are not its head"),
        (an_unknown_type, "is not supported by the installed transformers"),
    ],
)
def test_a_directory_that_cannot_be_a_teacher_is_refused(make: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_causal_model(tmp_path, torch.float32, torch.device("cpu"))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
