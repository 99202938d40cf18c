"""model/ is a Hugging Face directory like the student's, with other weights."""

import json

import pytest
import torch

from learner.export import export_model, read_tensors

transformers = pytest.importorskip("transformers")


@pytest.fixture
def student(tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    directory = tmp_path / "student"
    transformers.Qwen3ForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_loads_with_its_own_weights_and_type(student, tmp_path, dtype):
    trained = {name: torch.full_like(tensor, 0.5, dtype=getattr(torch, dtype)) for name, tensor in read_tensors(student).items()}
    export_model(student, trained, dtype, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert all(bool((parameter == 0.5).all()) for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_large_model_is_exported_as_shards_with_an_index(student, tmp_path):
    tensors = read_tensors(student)
    export_model(student, tensors, "float32", tmp_path / "large", shard_bytes=4000)
    export_model(tmp_path / "large", tensors, "float32", tmp_path / "again")  # a sharded student, exported small
    index = json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    files = {file.name for file in (tmp_path / "large").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "large")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert [file.name for file in (tmp_path / "again").glob("*safetensors*")] == ["model.safetensors"]
    assert read_tensors(tmp_path / "again").keys() == tensors.keys()


def test_an_older_export_is_replaced_whole(student, tmp_path):
    tensors = read_tensors(student)
    export_model(student, tensors, "float32", tmp_path / "model")
    (tmp_path / "model" / "left.over").write_text("x")
    export_model(student, tensors, "float32", tmp_path / "model")
    assert not (tmp_path / "model" / "left.over").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
