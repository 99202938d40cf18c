"""Whole or not at all, the newest valid one, and nothing of a higher term is deleted."""

import pytest
from learner_fakes import FakeTrainer, record_from

from common.messages import Version
from learner import checkpoint
from learner.line import Line


def line_at(term, step):
    line = Line()
    line.begin(term)
    for number in range(1, step + 1):
        line.apply(record_from(term, number, [number]))
    return line


def saved(root, term, step):
    trainer = FakeTrainer()
    trainer.steps = step
    return checkpoint.save(root, line_at(term, step).to_json(), {"step": step}, trainer.save)


def test_what_is_saved_is_loaded(tmp_path):
    saved(tmp_path, 1, 3)
    found = checkpoint.newest(tmp_path)
    trainer = FakeTrainer()
    trainer.load(found.model)
    assert (found.version, found.extra, found.line, trainer.steps) == (Version(1, 3), {"step": 3}, line_at(1, 3), 3)


def test_the_highest_term_and_step_wins(tmp_path):
    for term, step in ((1, 9), (2, 4), (2, 5)):
        saved(tmp_path, term, step)
    assert checkpoint.newest(tmp_path).version == Version(2, 5)


@pytest.mark.parametrize("name", ["model/state.json", "line.json"])
def test_a_flipped_byte_sends_loading_to_the_one_before(tmp_path, name, caplog):
    saved(tmp_path, 1, 2)
    path = saved(tmp_path, 1, 4) / name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert checkpoint.newest(tmp_path).version == Version(1, 2)
    assert "damaged" in caplog.text


def test_a_checkpoint_without_its_manifest_is_passed_over(tmp_path):
    saved(tmp_path, 1, 2)
    (saved(tmp_path, 1, 4) / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path).version == Version(1, 2)


def test_a_save_that_fails_leaves_nothing_that_loads(tmp_path):
    saved(tmp_path, 1, 2)

    def fail(directory):
        (directory / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, line_at(1, 4).to_json(), {}, fail)
    assert checkpoint.versions(tmp_path) == [Version(1, 2)]
    saved(tmp_path, 1, 4)
    assert checkpoint.newest(tmp_path).version == Version(1, 4)


def test_deleting_keeps_the_newest_and_whatever_a_higher_term_wrote(tmp_path):
    for term, step in ((1, 2), (1, 4), (2, 3), (3, 1)):
        saved(tmp_path, term, step)
    checkpoint.delete_old(tmp_path, keep=1, up_to_term=2)
    assert checkpoint.versions(tmp_path) == [Version(2, 3), Version(3, 1)]


def test_the_same_checkpoint_again_never_deletes_the_only_one(tmp_path, monkeypatch):
    saved(tmp_path, 1, 4)
    left = []
    rmtree = checkpoint.shutil.rmtree

    def watched(path, **options):
        rmtree(path, **options)
        left.append(checkpoint.versions(tmp_path))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched)
    saved(tmp_path, 1, 4)
    assert left == [[Version(1, 4)]]
    assert [path.name for path in tmp_path.iterdir()] == ["term000001-step00000004"]


def test_the_only_checkpoint_is_found_after_a_kill_while_the_same_one_was_renamed(tmp_path, monkeypatch):
    saved(tmp_path, 1, 4)
    rename = checkpoint.Path.replace

    def killed(path, target):
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(checkpoint.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 1, 4)
    monkeypatch.undo()
    checkpoint.put_back(tmp_path)
    assert checkpoint.newest(tmp_path).version == Version(1, 4)
    checkpoint.put_back(tmp_path)


def test_what_a_crash_left_half_written_is_deleted_with_the_old_ones(tmp_path):
    saved(tmp_path, 2, 4)
    for name in (".term000001-step00000009.tmp", ".term000003-step00000001.tmp"):
        (tmp_path / name / "model").mkdir(parents=True)
    checkpoint.delete_old(tmp_path, keep=1, up_to_term=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".term000003-step00000001.tmp", "term000002-step00000004"]
