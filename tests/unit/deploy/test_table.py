from rich.console import Console

from common.bus.base import BusState
from common.pulse import Report
from deploy.snapshot import Snapshot
from deploy.table import ledger_line, live_view, plain_line, role_rows, student_line

STATE = BusState("i", 1, 100, 40, 58, 2, {"stale": 3}, {"tickets": 7, "rollouts:a": 4, "rollouts:b": 5, "scored": 9}, {}, 1)


def report(role: str, index: int, at: float, tokens: float, cpu: float, state: str = "works", **gauges: float | str) -> Report:
    return Report(
        role=role, name=f"{role}-{index}", at=at, started=index, state=state, process_s=cpu, counters={"tokens": tokens}, gauges=gauges
    )


def snapshot(at: float, *reports: Report) -> Snapshot:
    return Snapshot(at, {one.name: one for one in reports}, STATE)


BEFORE = snapshot(10, report("producer", 1, 10, 1000, 5), report("producer", 2, 10, 0, 5), report("learner", 1, 10, 0, 1))
AFTER = snapshot(
    12,
    report("producer", 1, 12, 3000, 6),
    report("producer", 2, 12, 500, 5.5, "waits for tickets"),
    report("scorer", 1, 12, 900, 1),
    report("learner", 1, 12, 100, 2, step=5, loss=0.25, kl=0.125, staleness_mean=1.5, staleness_max=4, accuracy=0.505, accuracy_step=0),
)


def test_workers_of_a_role_are_added_up_and_newcomers_have_no_rate_yet() -> None:
    producer, scorer, learner = role_rows(BEFORE, AFTER)
    assert (producer.workers, producer.tokens_s, producer.cpu_share) == (2, 1250.0, 0.75)
    assert producer.state == "1 × works, 1 × waits for tickets"
    assert (scorer.tokens_s, scorer.backlog) == (0.0, "9 rollouts")
    assert (learner.tokens_s, learner.backlog) == (50.0, "9 scored")


def test_a_role_without_workers_says_so() -> None:
    assert role_rows(BEFORE, BEFORE)[1].state == "not there yet"


def test_the_student_line_has_step_loss_kl_staleness_and_accuracy() -> None:
    line = student_line(AFTER, 200)
    for part in ("step 5 of 200", "loss 0.2500", "KL to teacher 0.1250", "staleness 1.50 (at most 4)", "pass@1 50.5% at step 0"):
        assert part in line


def test_a_running_evaluation_is_told() -> None:
    asking = snapshot(1, report("learner", 1, 1, 0, 0, evaluating="1:0", evaluated=32, evaluation_size=1024))
    assert "evaluating step 0: 32 of 1024 answers" in student_line(asking, 200)


def test_the_ledger_line_balances_and_names_what_was_tried_again() -> None:
    assert ledger_line(AFTER) == "admitted 100 = live 40 + applied 58 + dead 2 · retried: stale 3"
    assert "does not answer" in ledger_line(Snapshot(1.0))


def test_a_terminal_and_a_log_get_the_same_facts() -> None:
    console = Console(width=150, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(live_view("r", 200, BEFORE, AFTER))
    for text in (shown.get(), plain_line(200, BEFORE, AFTER)):
        assert "1,250" in text
        assert "admitted 100 = live 40" in text
        assert "step 5 of 200" in text


def test_a_scorer_that_has_stopped_says_why() -> None:
    sick = report("scorer", 1, 12, 900, 1, "waits for rollouts", teacher="t", complaint="teacher t gave NaN")
    after = snapshot(12, sick, report("learner", 1, 12, 100, 2, step=5))
    assert role_rows(BEFORE, after)[1].state == "stopped: teacher t gave NaN"
    assert plain_line(10, BEFORE, after).endswith("scorer-1 has stopped: teacher t gave NaN")
