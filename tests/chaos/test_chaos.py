"""A short storm on the example: every family of fault in one run, which finishes with every sample applied once (P1, P2, P6)."""

from pathlib import Path
from random import Random

import pytest
from chaos_line import SCRIPTS, calls
from chaos_record import Outcome
from chaos_storm import Injected, Storm, every_fault
from chaos_trial import Samples, Trial, stormy

from common.bus.redis_client import _script

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(300)]

STEPS, BATCH, FAULTS = 150, 16, 16
SETTINGS = {
    "learner.steps": STEPS,
    "learner.batch_size": BATCH,
    "learner.checkpoint_every": 5,
    "learner.checkpoint_async": True,
    "evaluation.prompts": 32,
    "evaluation.deadline_s": 60,
    "producer.slots": 32,
    "bus.lease_s": 2,
    "bus.outage_timeout_s": 60,
    "service.heartbeat_s": 0.3,
    "service.drain_s": 5,
}
SHORT = {
    "producer: killed at computed",
    "scorer: killed",
    "scorer: killed at handed_off",
    "scorer: frozen past its lease",
    "learner: killed at torn",
    "learner: killed at settled",
    "learner: killed at checkpoint_written",
    "learner: zombie",
    "server: killed",
    "server: set back in time",
    "server: empty, learner dead",
    "server: its clock leaps",
    "network: cut",
    "network: reply lost",
    "clock of a role leaps",
}


async def test_a_storm_of_every_family_of_fault_loses_and_repeats_nothing(tmp_path: Path) -> None:
    storm = Storm(Random(7), FAULTS, 0.3, SHORT)
    trial = await stormy(tmp_path / "disturbed", SETTINGS, 250.0, storm)
    assert trial.failures == []
    assert (trial.samples.applied, trial.samples.lost, trial.samples.twice) == (STEPS * BATCH, 0, 0)
    assert len(trial.injected) >= FAULTS // 2, "the run was over before the storm"


def test_the_short_storm_asks_for_faults_that_exist() -> None:
    kinds = {fault.kind for fault in every_fault(Random(0))}
    assert kinds >= SHORT


def test_the_line_recognises_every_script_by_the_digest_that_the_product_sends() -> None:
    names = {path.stem for path in SCRIPTS.glob("*.lua")} - {"prelude"}
    assert {digest: name for name in names for digest in [_script(name)[1]]} == calls()


def test_a_point_that_is_never_reached_fails_the_storm_and_is_told() -> None:
    samples = Samples(finished=True, audited=True, audit="")
    hit = [Injected("scorer: killed", 0.0, 1, survived=True)]
    tries = {"scorer: killed": 4, "learner: killed at nowhere": 2}
    trials = [Trial(name, 1.0, samples, hit, tries) for name in ("one", "two")]
    assert Outcome([], trials[:1], 3.0).failures == []
    outcome = Outcome([], trials, 3.0)
    assert outcome.failures == ["learner: killed at nowhere: tried 4 times, never hit"]
    assert "Tried, without an occasion: learner: killed at nowhere 4." in str(outcome)


def test_one_run_that_learned_less_fails_the_storm_whatever_the_mean() -> None:
    def trials(*accuracies: float) -> list[Trial]:
        told = [Samples(finished=True, audited=True, audit="", pass_at_1=accuracy) for accuracy in accuracies]
        return [Trial(f"run-{number}", 1.0, samples, [], {}) for number, samples in enumerate(told)]

    calm = trials(0.99, 0.99)
    assert Outcome(calm, trials(0.99, 0.98, 0.99), 3.0).failures == []
    assert Outcome(calm, trials(0.99, 0.99, 0.99, 0.95), 3.0).failures == ["run-3: pass@1 differs by -4.0 points"]
