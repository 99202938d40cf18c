"""Megatron's own writer on a full disk: the checkpoint is DiskFull and nothing, and the same trainer saves it later."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_cases import MakeStudent, MakeTrainer

from common.errors import DiskFull
from learner import checkpoint
from learner.line import Line

sys.path.append(str(Path(__file__).parents[1]))
from disk_of_its_own import small_disk


def test_a_checkpoint_of_the_model_without_room_is_written_when_there_is_some(
    tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(make_student("qwen3"))
    with small_disk(tmp_path / "disk") as disk:

        def fill_and_save(directory: Path) -> Callable[[], None]:
            disk.fill()
            return trainer.begin_save(directory)

        with pytest.raises(DiskFull, match="cannot write a checkpoint"):
            checkpoint.begin(disk.path, Line(term=1).to_json(), {}, fill_and_save)()
        assert [path.name for path in disk.path.iterdir()] == ["ballast"]
        disk.make_room()
        checkpoint.save(disk.path, Line(term=1).to_json(), {}, trainer.save)
        found = checkpoint.newest(disk.path)
        assert found is not None
        trainer.load(found.model)
