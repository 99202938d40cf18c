from pathlib import Path

import pytest

from learner.__main__ import main

CONFIG = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "run.toml"


@pytest.mark.parametrize("count", ["0", "-1"])
def test_a_number_of_ranks_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(CONFIG), "--nproc", count]) == 2
    assert f"learner.ranks = {count} is wrong" in capsys.readouterr().err


def test_a_finished_run_needs_no_learner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "arithmetic").mkdir()
    (tmp_path / "arithmetic" / "result.json").write_text("{}")
    assert main(["--config", str(CONFIG), "--set", f"run.dir={tmp_path}"]) == 0
    assert "is finished" in capsys.readouterr().err
