import json
from pathlib import Path

from rich.console import Console

from deploy.result import Usage, add_usage, complete_result, result_table
from learner.directory import RunDirectory

VALUES = {
    "pass_at_1": {"before": 0.505, "after": 0.951, "n": 1024},
    "samples": 12800,
    "tokens": 480000,
    "steps": 200,
    "wall_s": 1.0,
    "cpu_s": {"learner": 1.0},
    "staleness": {"histogram": {"0": 25, "1": 75}, "max": 1},
    "mixed_version_share": 0.25,
    "ledger": {"admitted": 12802, "applied": 12800, "live": 0, "dead": 2},
    "retried": {"stale": 3},
}


def text_of(directory: RunDirectory, values: dict[str, object]) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(result_table(directory, values))
    return captured.get()


def test_the_table_says_what_came_out_and_where_it_lies(tmp_path: Path) -> None:
    text = text_of(RunDirectory(tmp_path), VALUES)
    for part in ("50.5% → 95.1% on 1024", "12,800", "0: 25.0% · 1: 75.0% (at most 1 steps)", "25.0%", "stale: 3", "/model", "balanced"):
        assert part in text
    assert "NOT BALANCED" not in text


def test_a_ledger_that_does_not_balance_is_shouted(tmp_path: Path) -> None:
    assert "NOT BALANCED" in text_of(RunDirectory(tmp_path), VALUES | {"ledger": {"admitted": 5, "applied": 3, "live": 1, "dead": 0}})


def test_a_run_without_evaluation_has_no_accuracy_row(tmp_path: Path) -> None:
    assert "pass@1" not in text_of(RunDirectory(tmp_path), VALUES | {"pass_at_1": {"before": None, "after": None, "n": 0}})


def test_what_every_start_has_cost_is_added_up_and_enters_the_result(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.result.write_text(json.dumps(VALUES))
    add_usage(directory, Usage(10.0, {"learner": 7.0, "scorer": 2.0}))
    total = add_usage(directory, Usage(5.0, {"learner": 1.0, "server": 0.5}))
    assert total == Usage(15.0, {"learner": 8.0, "scorer": 2.0, "server": 0.5})
    values = complete_result(directory, total)
    assert (values["wall_s"], values["cpu_s"]["learner"]) == (15.0, 8.0)
    assert json.loads(directory.result.read_text()) == values
    assert values["pass_at_1"] == VALUES["pass_at_1"]
