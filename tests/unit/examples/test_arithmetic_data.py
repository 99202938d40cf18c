"""The shipped example is what its card says: right answers, no leak, one tokenizer, small models that load."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic"
MODELS = [EXAMPLE / "models" / name for name in ("teacher", "student")]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLE / name).read_text(encoding="utf-8").splitlines()]


def prompts(name: str) -> list[str]:
    return [row["prompt"] for row in rows(name)]


def result_of(prompt: str) -> int:
    return sum(int(number) for number in re.findall(r"[+-]?\d+", prompt))


def test_held_out_prompts_are_in_no_training_file() -> None:
    held_out = set(prompts("heldout.jsonl"))
    assert len(held_out) >= 1_000
    assert held_out.isdisjoint(prompts("train.jsonl"))
    assert held_out.isdisjoint(prompts("sft.jsonl"))


def test_no_training_prompt_comes_twice_and_there_are_enough_for_the_run() -> None:
    training = prompts("train.jsonl")
    assert len(training) == len(set(training)) >= 12_800
    assert set(training).isdisjoint(prompts("sft.jsonl"))


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_every_answer_is_the_sum_of_its_prompt(name: str) -> None:
    for row in rows(name):
        assert int(row["answer"]) == result_of(row["prompt"]), row


def test_every_step_of_the_students_examples_is_right() -> None:
    for row in rows("sft.jsonl"):
        scratchpad, result = row["response"].split("#")
        totals = [int(total[::-1]) for total in re.findall(r"(?:^|=)(\d{3})", scratchpad)]
        terms = [int(number) for number in re.findall(r"[+-]?\d+", row["prompt"])]
        assert totals == [sum(terms[: count + 1]) for count in range(len(terms))], row
        assert int(result) == totals[-1], row


def test_the_script_makes_the_shipped_files_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE / "make_data.py", "--out", tmp_path], check=True)
    for name in ("train.jsonl", "heldout.jsonl", "sft.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes(), name


def test_both_models_have_the_same_small_vocabulary_and_decode_to_the_same_text() -> None:
    teacher, student = (AutoTokenizer.from_pretrained(folder) for folder in MODELS)
    assert teacher.get_vocab() == student.get_vocab()
    assert len(teacher) < 64
    for row in rows("sft.jsonl")[:100]:
        text = row["prompt"] + row["response"]
        ids = student(text).input_ids
        assert len(ids) == len(text)
        assert student.decode(ids) == text
        assert student.decode([*ids, student.eos_token_id], skip_special_tokens=True) == text


def test_the_weights_together_are_at_most_three_megabytes() -> None:
    files = [file for folder in MODELS for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 3_000_000


def test_the_teacher_solves_a_problem_greedily_and_both_models_load() -> None:
    teacher, student = (AutoModelForCausalLM.from_pretrained(folder) for folder in MODELS)
    tokenizer = AutoTokenizer.from_pretrained(MODELS[0])
    assert teacher.config.vocab_size == student.config.vocab_size == len(tokenizer)
    assert teacher.config.tie_word_embeddings
    assert student.config.tie_word_embeddings
    assert teacher.generation_config.eos_token_id == tokenizer.eos_token_id
    inputs = tokenizer("47+38-12+50=", return_tensors="pt")
    with torch.no_grad():
        output = teacher.generate(**inputs, max_new_tokens=48, do_sample=False)
    answer = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer == "740+83=580-21=370+05=321#123"
