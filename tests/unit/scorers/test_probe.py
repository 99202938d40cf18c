"""Inert teachers and foreign tokenizers stop the start."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TOKENS, edit_config, save_model, save_tokenizer

from common.config import RunConfig, parse_config
from common.errors import ConfigError, Rejected
from common.messages import Rollout, TeacherScore
from common.pulse import Pulse
from scorers.examination import Examination
from scorers.probe import check_teacher, check_tokenizers, open_checked, probe_sequences


class FakeTeacher:
    def __init__(self, digest: str, value: float | str) -> None:
        self.digest = digest
        self._value = value

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScore | Rejected]:
        if isinstance(self._value, str):
            return [Rejected(self._value) for _ in rollouts]
        return [TeacherScore("t", self.digest, np.full(len(r.completion.response_ids), self._value, np.float32)) for r in rollouts]

    async def part_complaint(self) -> str:
        return ""

    async def aclose(self) -> None:
        pass


def config_of(student: Path, teacher: Path, **section: object) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "r"},
            "model": {"student": str(student)},
            "teachers": {"t": {"path": str(teacher), **section}},
            "data": {"prompts": "p.jsonl"},
            "sampling": {"max_new_tokens": 16},
            "evaluation": {"prompts": 0},
        }
    )


def pair(tmp_path: Path, **teacher: object) -> tuple[Path, Path]:
    return (
        save_tokenizer(save_model(tmp_path / "student")),
        save_tokenizer(save_model(tmp_path / "teacher", **{"seed": 1, **teacher})),
    )


PLAIN = list(range(20))


async def test_a_teacher_that_differs_passes() -> None:
    await check_teacher("t", FakeTeacher("a", -1.0), FakeTeacher("b", -1.1), PLAIN)


@pytest.mark.parametrize(
    ("teacher", "student", "sentence"),
    [
        (FakeTeacher("a", -1.0), FakeTeacher("a", -2.0), "has the student's weights"),
        (FakeTeacher("a", -1.0), FakeTeacher("b", -1.0), "gives the student's own log-probabilities"),
        (FakeTeacher("a", "uniform rows"), FakeTeacher("b", -1.0), "cannot score a probe sequence (uniform rows)"),
        (FakeTeacher("a", "NaN"), None, "cannot score a probe sequence (NaN)"),
    ],
)
async def test_an_inert_teacher_is_refused(teacher: FakeTeacher, student: FakeTeacher | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        await check_teacher("t", teacher, student, PLAIN)
    assert sentence in str(raised.value)
    assert "teachers.t.allow_inert = true" in str(raised.value)


async def test_a_real_teacher_beside_a_real_student_of_its_shape_passes(tmp_path: Path) -> None:
    teacher, _ = await open_checked(config_of(*pair(tmp_path)), "t", Pulse())
    assert teacher.digest.startswith("sha256:")
    await teacher.aclose()


async def test_the_students_weights_in_other_files_are_recognised(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    student, teacher = pair(tmp_path, seed=0)
    (teacher / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(student).save_pretrained(teacher, max_shard_size="10KB")
    assert len(list(teacher.glob("*.safetensors"))) > 1
    with pytest.raises(ConfigError, match="gives the student's own log-probabilities"):
        await open_checked(config_of(student, teacher), "t", Pulse())


async def test_allow_inert_lets_the_student_be_its_own_teacher(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path, seed=0)
    with pytest.raises(ConfigError, match="has the student's weights"):
        await open_checked(config_of(student, teacher), "t", Pulse())
    opened, _ = await open_checked(config_of(student, teacher, allow_inert=True), "t", Pulse())
    await opened.aclose()


async def test_padding_rows_of_the_embedding_do_not_matter(tmp_path: Path) -> None:
    teacher, _ = await open_checked(config_of(*pair(tmp_path, vocab_size=40)), "t", Pulse())
    await teacher.aclose()


def test_the_first_differing_tokens_are_named(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path)
    save_tokenizer(teacher, (*TOKENS[:3], "4", "3", *TOKENS[5:]))
    with pytest.raises(ConfigError, match=r"differ in 2 tokens \('3' is 3 in the student's and 4 in the teacher's; '4' is 4"):
        check_tokenizers(config_of(student, teacher), "t")


def test_a_token_that_only_one_side_has_is_a_mismatch(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path)
    save_tokenizer(teacher, (*TOKENS, "!"))
    with pytest.raises(ConfigError, match="'!' is missing in the student's and 27 in the teacher's"):
        check_tokenizers(config_of(student, teacher), "t")


def test_an_end_that_does_not_stop_the_student_is_refused_until_it_does(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path)
    save_tokenizer(teacher, eos="p")
    config = config_of(student, teacher)
    with pytest.raises(ConfigError, match=r"ends its answers with 'p' \(id 25\).*add 25 to sampling.stop_token_ids"):
        check_tokenizers(config, "t")
    stopped = config.model_copy(update={"sampling": config.sampling.model_copy(update={"stop_token_ids": (25,)})})
    check_tokenizers(stopped, "t")


def test_a_student_that_stops_by_its_generation_config_is_fine(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path)
    save_tokenizer(teacher, eos="p")
    edit_config(student, eos_token_id=[26, 25])
    check_tokenizers(config_of(student, teacher), "t")


async def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    student, _ = pair(tmp_path)
    with pytest.raises(ConfigError, match="nowhere is no model directory"):
        await open_checked(config_of(student, tmp_path / "nowhere"), "t", Pulse())


@pytest.mark.parametrize(
    ("now", "complaint"),
    [
        (FakeTeacher("a", -1.0), ""),
        (FakeTeacher("a", -1.2), ""),
        (FakeTeacher("a", "teacher t gave NaN at response token 0"), "NaN"),
        (FakeTeacher("b", -1.0), "other weights"),
        (FakeTeacher("a", -7.0), "another model"),
    ],
)
async def test_a_teacher_that_turned_bad_is_found_out(now: FakeTeacher, complaint: str) -> None:
    asked = probe_sequences(PLAIN)
    found = await Examination("t", now, asked, await FakeTeacher("a", -1.0).score(asked)).complaint()
    assert complaint in found
    assert bool(found) == bool(complaint)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -3.0])
async def test_weights_that_change_in_memory_are_found_out(value: float, tmp_path: Path) -> None:
    teacher, examination = await open_checked(config_of(*pair(tmp_path)), "t", Pulse())
    assert await examination.complaint() == ""
    with torch.no_grad():
        teacher._model.head.weight[:3] = value  # type: ignore[attr-defined]
        teacher._model.head.weight[3:] *= 0 if value == 0.0 else 1  # type: ignore[attr-defined]
    assert await examination.complaint() != ""
    await teacher.aclose()
