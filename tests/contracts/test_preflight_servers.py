"""What `reflux preflight` says of SGLang servers, one line for each."""

from __future__ import annotations

from pathlib import Path

from stand_in import stand_in

from common.config import load_config
from deploy.preflight.services import check_students, check_teacher

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"
NOBODY = "http://127.0.0.1:9"


async def test_each_server_of_a_teacher_is_asked_for_itself(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/teacher") as server:
        servers = [f'teachers.arithmetic.urls=["{server.url}","{NOBODY}"]', "teachers.arithmetic.kind=sglang"]
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *servers])
        well, away = await check_teacher(config, "arithmetic")
    assert (well.state, away.state) == ("ok", "error")
    assert away.subject == f"teacher arithmetic at {NOBODY}"
    assert "cannot be reached" in away.says


async def test_a_teacher_on_servers_that_holds_the_students_weights_is_an_error(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/student") as server:
        servers = [f'teachers.arithmetic.urls=["{server.url}"]', "teachers.arithmetic.kind=sglang"]
        path = f"teachers.arithmetic.path={EXAMPLE / 'models/student'}"
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", path, *servers])
        (found,) = await check_teacher(config, "arithmetic")
    assert found.state == "error"
    assert "nothing could be learned" in found.says


async def test_each_server_of_the_student_answers_and_keeps_its_weights(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/student") as server:
        servers = [f'producer.urls=["{server.url}","{NOBODY}"]', "producer.kind=sglang"]
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *servers])
        well, away = await check_students(config)
        assert server.service.weight_version == "default"
    assert (well.state, away.state) == ("ok", "error")
    assert "answers with 4 log-probabilities" in well.says
