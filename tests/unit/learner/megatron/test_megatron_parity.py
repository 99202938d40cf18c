"""The learner's student and the Hugging Face model of the same directory are one model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_cases import VOCABULARY, MakeStudent, MakeTrainer, edit_config, samples_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.errors import ConfigError
from learner.megatron.logprobs import chosen_logprobs
from learner.megatron.quiet import quiet
from learner.megatron.trainer import MegatronTrainer

VARIANTS = [(family, tied) for family in ("qwen3", "qwen3_moe", "qwen2", "llama", "mistral") for tied in (True, False)]


def all_logprobs(trainer: MegatronTrainer, samples: list) -> torch.Tensor:
    """Log-probabilities of every id at every packed token, through the trainer's own pieces."""
    batch, student = trainer._packer.pack(samples), trainer._parts.student
    batch.packed.rows_R = torch.arange(batch.input_ids_1N.numel())
    with torch.no_grad(), quiet():
        hidden = student.hidden_states(batch)
        return chosen_logprobs(hidden, student.output_weight, torch.arange(VOCABULARY).expand(len(hidden), -1))


def reference(directory: Path, samples: list) -> torch.Tensor:
    """The same through transformers, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rows = [torch.from_numpy(np.concatenate([s.prompt_ids, s.response_ids])).long()[None] for s in samples]
    with torch.no_grad():
        return torch.cat([torch.log_softmax(model(ids).logits[0], -1) for ids in rows])


@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_packed_sequences_give_the_logits_of_transformers(
    family: str, tied: bool, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student, samples = make_student(family, tied=tied), samples_of(9)
    found = all_logprobs(make_trainer(student), samples)
    torch.testing.assert_close(found, reference(student, samples), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_an_export_is_the_loaded_file_bit_for_bit(family: str, tied: bool, make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student(family, tied=tied, dtype=torch.bfloat16)
    exported = make_trainer(student).export(torch.bfloat16)
    file = load_file(student / "model.safetensors")
    assert exported.keys() == file.keys()
    assert all(torch.equal(exported[name], file[name]) for name in file)


def test_experts_in_some_layers_whose_shares_are_not_normalised(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    shape = {"mlp_only_layers": [1], "decoder_sparse_step": 1, "norm_topk_prob": False}
    student, samples = make_student("qwen3_moe", layers=3, shape=shape), samples_of(5)
    found = all_logprobs(make_trainer(student), samples)
    torch.testing.assert_close(found, reference(student, samples), atol=1e-5, rtol=0)
    edit_config(student, norm_topk_prob=True)
    assert (reference(student, samples) - found).abs().max() > 1e-3


def test_a_sharded_model_is_read_through_its_index(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student("llama", tied=False, max_shard_size="20KB")
    assert len(list(student.glob("*.safetensors"))) > 1
    samples = samples_of(3)
    torch.testing.assert_close(all_logprobs(make_trainer(student), samples), reference(student, samples), atol=1e-5, rtol=0)


SCALED = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
]


@pytest.mark.parametrize("rope", SCALED)
def test_scaled_positions_turn_as_in_transformers(rope: dict[str, object], make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student, samples = make_student("llama", rope=rope), samples_of(5)
    found = all_logprobs(make_trainer(student), samples)
    torch.testing.assert_close(found, reference(student, samples), atol=1e-5, rtol=0)
    edit_config(student, rope_parameters={"rope_type": "default", "rope_theta": 3000.0})
    assert (reference(student, samples) - found).abs().max() > 1e-3


def test_rope_theta_is_found_where_transformers_4_wrote_it(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student, samples = make_student("qwen3"), samples_of(3)
    expected = reference(student, samples)
    edit_config(student, rope_parameters=None, rope_theta=3000.0, rope_scaling=None)
    torch.testing.assert_close(all_logprobs(make_trainer(student), samples), expected, atol=1e-5, rtol=0)


def test_the_order_of_sequences_does_not_change_their_logits(make_trainer: MakeTrainer) -> None:
    trainer, samples = make_trainer(), samples_of(6)
    forwards, backwards = all_logprobs(trainer, samples), all_logprobs(trainer, samples[::-1])
    parts = torch.split(backwards, [sample.length for sample in samples[::-1]])
    torch.testing.assert_close(forwards, torch.cat(parts[::-1]), atol=2e-6, rtol=0)


def test_files_that_lack_a_tensor_are_refused(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student("qwen3")
    edit_config(student, num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.2"):
        make_trainer(student)


def test_a_file_that_was_cut_off_is_refused(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    directory = make_student("qwen3")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="copy the whole model again"):
        make_trainer(directory)


def test_files_with_an_unknown_tensor_are_refused(make_student: MakeStudent, make_trainer: MakeTrainer) -> None:
    student = make_student("qwen3")
    edit_config(student, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"unknown tensor model\.layers\.1"):
        make_trainer(student)
