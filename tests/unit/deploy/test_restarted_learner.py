"""A learner that is started again takes over from the one that died, and from no other."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.bus.base import BusState
from common.config import load_config
from deploy.local import _had_the_term

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "run.toml"


@pytest.mark.parametrize(
    ("terms", "at_the_server", "expected"),
    [
        ([], 4, False),  # it died before it claimed anything, while another one trains
        ([1, 2], 4, False),  # the run has gone on elsewhere
        ([1, 4], 4, True),
        ([5], 4, True),  # the last look was before its claim
        ([1], 0, True),  # the server came back empty
        ([1], None, True),
        ([], None, False),
    ],
)
def test_it_takes_over_where_the_term_is_its_own_directorys(
    terms: list[int], at_the_server: int | None, expected: bool, tmp_path: Path
) -> None:
    config = load_config(EXAMPLE, [f"run.dir={tmp_path}"])
    for term in terms:
        (config.directory / f"terms/term{term:06}").mkdir(parents=True)
    state = None if at_the_server is None else BusState("i", at_the_server, 0, 0, 0, 0, {}, {}, {}, 0)
    watch: Any = SimpleNamespace(latest=SimpleNamespace(state=state))
    assert _had_the_term(config, watch) is expected
