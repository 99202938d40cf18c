"""What a swap of weights does to answers in flight, step by step and without threads."""

import asyncio
import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3MoeConfig

from common.errors import WeightsError
from common.messages import Completion, Sampling, Span, Ticket, Version, WeightFile, WeightManifest
from producers.engines.torch.batch import Batch
from producers.engines.torch.forward import Forward, ModelForward
from producers.engines.torch.fused import FusedForward
from producers.engines.torch.loader import Student, load_student
from producers.engines.torch.request import Request
from producers.engines.torch.weights import swap_weights

CPU = torch.device("cpu")
OLD, NEW = Version(1, 3), Version(1, 4)
BEFORE = 7  # tokens sampled before the swap


def manifest_of(version: Version) -> WeightManifest:
    return WeightManifest(version=version, kind="full", directory="", files=(WeightFile("model.safetensors", 0, ""),), tensors={})


def request(seq: int, new: int, length: int) -> Request:
    prompt = np.random.default_rng(seq).integers(2, 61, length).astype(np.int32)
    asked = Ticket(seq, 0, str(seq), prompt, Sampling(1.0, new, ()), (), Version(0, 0))
    loop = asyncio.new_event_loop()
    try:
        return Request(asked, (), loop.create_future())
    finally:
        loop.close()


def student_at(directory: Path) -> Student:
    return load_student(directory, dtype=torch.float32, device=CPU)


def sample_across_a_swap(student: Student, forward: Forward, new_weights: Path) -> list[tuple[Request, Completion]]:
    batch = Batch(forward, slots=3, seed=1, device=CPU)
    requests = [request(seq, new=20, length=3 + 4 * seq) for seq in range(3)]
    with torch.inference_mode():
        finished = batch.join(requests, OLD)
        for _ in range(BEFORE - 1):
            finished += batch.step()
        swap_weights(student.model, manifest_of(NEW), new_weights)
        batch.swapped(NEW)
        while batch.active:
            finished += batch.step()
    return finished


def test_experts_that_files_hold_one_by_one_are_swapped(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    for name in ("old", "new"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    student, other = student_at(tmp_path / "old"), student_at(tmp_path / "new")
    swap_weights(student.model, manifest_of(NEW), tmp_path / "new")
    for (name, swapped), expected in zip(student.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(swapped, expected), name


@pytest.mark.parametrize("fused", [True, False])
def test_after_a_swap_new_weights_read_old_keys_and_values(students: dict[str, Path], other_qwen3: Path, fused: bool) -> None:
    student = student_at(students["qwen3"])
    forward = FusedForward(student, slots=3) if fused else ModelForward(student, slots=3)
    finished = sample_across_a_swap(student, forward, other_qwen3)
    assert len(finished) == 3
    for done, completion in finished:
        assert completion.versions == (Span(1, 3, BEFORE, exact=True), Span(1, 4, 20 - BEFORE, exact=True))
        expected = in_two_lives(students["qwen3"], other_qwen3, done.ticket.prompt_ids, completion.response_ids)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


@torch.inference_mode()
def in_two_lives(old: Path, new: Path, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    """What transformers itself says: the old model fills its cache up to the swap, the new one goes on with it."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager") for path in (old, new)]
    kept = DynamicCache()
    ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
    cut = len(prompt) + BEFORE - 1  # the old model has read all but the last token it sampled
    before = models[0](input_ids=ids[:, :cut], past_key_values=kept, use_cache=True).logits
    after = models[1](input_ids=ids[:, cut:-1], past_key_values=kept, use_cache=True).logits
    logp = torch.log_softmax(torch.cat((before, after), 1)[0, len(prompt) - 1 :], -1)
    return logp.gather(1, torch.from_numpy(response).long()[:, None])[:, 0].numpy()


def test_a_swap_before_the_first_token_leaves_no_empty_span() -> None:
    asked = request(1, new=4, length=3)
    asked.begins(OLD, 0)
    asked.begins(NEW, 0)
    assert asked.spans(4) == (Span(1, 4, 4, exact=True),)


def test_tied_embeddings_change_with_or_without_the_head_in_the_file(students: dict[str, Path], tmp_path: Path, other_qwen3: Path) -> None:
    tensors = load_file(other_qwen3 / "model.safetensors")
    assert "lm_head.weight" not in tensors
    for head in ({}, {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}):
        student = student_at(students["qwen3"])
        save_file({**tensors, **head}, tmp_path / "model.safetensors")
        swap_weights(student.model, manifest_of(NEW), tmp_path)
        assert torch.equal(student.model.lm_head.weight, tensors["model.embed_tokens.weight"])
        assert all(torch.equal(student.model.get_parameter(name), tensor) for name, tensor in tensors.items())


def test_wrong_files_change_nothing(students: dict[str, Path], tmp_path: Path, other_qwen3: Path) -> None:
    student = student_at(students["qwen3"])
    before = {name: parameter.clone() for name, parameter in student.model.named_parameters()}
    tensors = load_file(other_qwen3 / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = {
        "lacks model.layers.1.mlp.up_proj.weight": {key: value for key, value in tensors.items() if key != name},
        "has other.weight, which the student has not": {**tensors, "other.weight": tensors[name].clone()},
        r"has model.layers.1.mlp.up_proj.weight as \(3, 3\)": {**tensors, name: torch.zeros(3, 3)},
        "has model.layers.1.mlp.up_proj.weight in I32: known are F64": {**tensors, name: tensors[name].int()},
    }
    for sentence, content in wrong.items():
        save_file(content, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=sentence):
            swap_weights(student.model, manifest_of(NEW), tmp_path)
    for damaged in (b"no", b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"is no safetensors file|cannot be read"):
            swap_weights(student.model, manifest_of(NEW), tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.model.named_parameters())


def test_thousands_of_versions_leave_nothing_behind(students: dict[str, Path], other_qwen3: Path) -> None:
    student = student_at(students["qwen3"])

    def blocks_after(swaps: int) -> int:
        for _ in range(swaps):
            swap_weights(student.model, manifest_of(NEW), other_qwen3)
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(3)
    assert blocks_after(20) - before < 100
