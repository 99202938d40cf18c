"""The simulation against what arithmetic says must come out."""

import pytest
import simpy

from common.codec import encode
from common.config import RunConfig, parse_config
from common.errors import ConfigError
from deploy.plan.choose import _least, choose
from deploy.plan.lengths import draw
from deploy.plan.machine import Machine
from deploy.plan.rates import Answers, Rates
from deploy.plan.simulate import Layout, Outcome, Setting, setting_of, simulate
from deploy.plan.sizes import _scored, sizes_of
from deploy.plan.world import Sample

PROMPT, ANSWER, BATCH = 16, 48, 32
TOKENS = BATCH * (PROMPT + ANSWER)  # that a step trains


def configuration(**learner: object) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "r", "dir": "runs"},
            "model": {"student": "s"},
            "teachers": {"t": {"path": "t", "top_k": 4}},
            "data": {"prompts": "p"},
            "sampling": {"max_new_tokens": 4 * ANSWER},
            "evaluation": {"prompts": 0},
            "learner": {"batch_size": BATCH, "max_staleness": 4, "steps": 40, **learner},
            "producer": {"slots": 32},
            "scorer": {"lease_tokens": 512, "batch_tokens": 256},
        }
    )


def setting(
    config: RunConfig, *, student: float = 1e6, teacher: float = 1e6, learner: float = 1e6, spread: float = 0.0, **more: object
) -> Setting:
    """All answers are as long as the mean unless `spread` says otherwise."""
    values = {
        "student": {"tokens_per_s": student, "alone_tokens_per_s": student / 32},
        "teacher": {"tokens_per_s": teacher},
        "learner": {"tokens_per_s": learner},
        "answers": {"mean": ANSWER, "spread": spread, "prompt_tokens": PROMPT},
        "bus_s": 1e-6,
        **more,
    }
    return setting_of(config, Rates.model_validate(values), version_bytes=1000, seed=1)


def test_shared_cores_go_by_weight_and_never_more_than_one_to_a_piece_of_work() -> None:
    env = simpy.Environment()
    machine = Machine(env, cores=2)
    ends: dict[str, float] = {}
    for name, nice in (("first", 0), ("second", 0), ("third", 5)):
        machine.compute(1.0, nice).callbacks.append(lambda _, name=name: ends.update({name: env.now}))
    env.run()
    assert ends["first"] == ends["second"] < ends["third"]
    assert ends["first"] + ends["third"] == pytest.approx(3.0)  # both cores until the first two end, then one
    assert machine.spent == pytest.approx(3.0)


def test_work_alone_takes_one_core() -> None:
    env = simpy.Environment()
    env.run(Machine(env, cores=8).compute(2.0))
    assert env.now == pytest.approx(2.0)


def test_a_slow_learner_is_never_idle_and_lags_by_the_whole_window() -> None:
    out = simulate(setting(configuration(), learner=TOKENS), Layout(1, 1))  # one step a second
    assert out.step_s == pytest.approx(1.0, rel=0.02)
    assert out.learner_busy > 0.98
    assert out.staleness == {4: 1.0}


@pytest.mark.parametrize("scorers", [1, 3])
def test_a_slow_teacher_sets_the_pace_and_more_of_it_speed_it_up(scorers: int) -> None:
    out = simulate(setting(configuration(), teacher=TOKENS), Layout(1, scorers))
    assert out.step_s == pytest.approx(1.0 / scorers, rel=0.05)
    assert out.scorer_busy > 0.95


@pytest.mark.parametrize("producers", [1, 2])
def test_a_slow_student_sets_the_pace(producers: int) -> None:
    out = simulate(setting(configuration(), student=BATCH * ANSWER), Layout(producers, 1))
    assert out.step_s == pytest.approx(1.0 / producers, rel=0.1)


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_a_lease_as_large_as_the_window_starves_nobody(share: float) -> None:
    """A scorer may take all that is live at once; the learner's publications part it into several leases again."""
    config = configuration()
    scorer = config.scorer.model_copy(update={"lease_tokens": int(share * config.window * (PROMPT + ANSWER))})
    greedy = config.model_copy(update={"scorer": scorer})
    modest, large = (simulate(setting(one, teacher=4000, learner=8000, spread=0.5), Layout(1, 1)) for one in (config, greedy))
    assert large.samples_per_s > 0.95 * modest.samples_per_s


def test_without_staleness_every_stage_waits_for_the_others() -> None:
    """Sampling, scoring and training of a batch follow one another; only scoring and sampling overlap a little."""
    out = simulate(setting(configuration(max_staleness=0), student=BATCH * ANSWER, teacher=TOKENS, learner=TOKENS), Layout(1, 1))
    assert out.staleness == {0: 1.0}
    assert 2.0 < out.step_s <= 3.1


@pytest.mark.parametrize("straggler", ["mask", "retry", "wait"])
def test_no_token_is_trained_beyond_the_bound(straggler: str) -> None:
    config = configuration(max_staleness=1, straggler=straggler)
    out = simulate(setting(config, student=BATCH * ANSWER, spread=1.5), Layout(1, 1))
    assert max(out.staleness) <= 1
    assert sum(out.staleness.values()) == pytest.approx(1.0)
    assert (out.masked > 0) == (straggler == "mask")
    assert (out.retried > 0) == (straggler == "retry")


def test_what_is_held_and_moved_is_what_the_codec_makes() -> None:
    config = configuration(max_staleness=0)
    out = simulate(setting(config), Layout(1, 1))
    ticket, rollout = sizes_of(config, PROMPT).ticket, len(encode(_scored(config, PROMPT, ANSWER, "")))
    scored = len(encode(_scored(config, PROMPT, ANSWER, "t")))
    assert out.bytes_peak == pytest.approx(BATCH * scored, rel=0.02)
    assert out.bus_bytes_per_s == pytest.approx(out.samples_per_s * 2 * (ticket + rollout + scored), rel=0.05)


def test_the_line_through_two_lengths_is_the_codecs() -> None:
    config = configuration()
    sizes = sizes_of(config, PROMPT)
    for length in (10, 777, 5000):
        sample = Sample(0, length, 0, ["t"])
        assert sizes.after(sample, 1) == pytest.approx(len(encode(_scored(config, PROMPT, length, "t"))), rel=0.01, abs=24)


def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    one = setting(configuration(), student=1500, teacher=3000, learner=3000, spread=0.8)
    assert simulate(one, Layout(2, 2)) == simulate(one, Layout(2, 2))
    other = setting_of(one.config, one.rates, one.version_bytes, seed=2)
    assert simulate(other, Layout(2, 2)) != simulate(one, Layout(2, 2))


def test_the_choice_is_the_smallest_that_keeps_the_learner_busy() -> None:
    """The learner trains a step a second, a scorer scores one in 2.5 s, a producer samples one in 1.6 s: three scorers, two producers."""
    plan = choose(setting(configuration(), student=BATCH * ANSWER / 1.6, teacher=TOKENS / 2.5, learner=TOKENS))
    assert plan.reached
    assert plan.best.layout == Layout(2, 3)
    fewer: list[Outcome] = [row for row in plan.rows if row.layout in {Layout(1, 3), Layout(2, 2)}]
    assert len(fewer) == 2
    assert all(row.learner_busy < 0.95 for row in fewer)
    assert plan.now.layout == Layout(1, 1)


def test_what_is_tried_too_often_is_given_up_and_replaced() -> None:
    """The longest answers outlast S at every try; without a death they would fill the window."""
    config = configuration(max_staleness=1, straggler="retry", max_attempts=2)
    out = simulate(setting(config, student=BATCH * ANSWER / 2, spread=1.5), Layout(1, 1))
    assert out.retried > 0
    assert out.samples_per_s > 0


@pytest.mark.parametrize("enough", range(1, 10))
def test_the_search_finds_the_smallest_count(enough: int) -> None:
    assert _least(9, lambda count: count >= enough) == enough


def test_a_run_that_would_stand_still_is_said_to() -> None:
    """No weights ever reach the producers."""
    stale = setting(configuration(), weights={"fetch_s": 1e9})
    with pytest.raises(ConfigError, match=r"stands still after step 0"):
        simulate(stale, Layout(1, 1))


def test_where_no_layout_is_enough_the_plan_says_so() -> None:
    plan = choose(setting(configuration(max_staleness=0), student=BATCH * ANSWER, learner=TOKENS))
    assert not plan.reached
    assert plan.ceiling < 0.7


def test_lengths_have_the_mean_that_was_asked_for_and_never_more_than_the_longest() -> None:
    drawn = draw(Answers(mean=900, spread=1.0), 1000, 20000, seed=3)
    assert drawn.mean() == pytest.approx(900, rel=0.02)
    assert 1 <= drawn.min() <= drawn.max() == 1000


def test_lengths_have_the_percentiles_that_were_asked_for() -> None:
    drawn = sorted(draw(Answers(percentiles={"50": 100, "90": 400}), 1000, 20000, seed=3))
    assert drawn[10000] == pytest.approx(100, rel=0.05)
    assert drawn[18000] == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("percentiles", [{"50": 400, "90": 100}, {"50": 5000}, {"101": 10}, {"half": 10}])
def test_percentiles_that_cannot_be_are_an_error(percentiles: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"answers\.percentiles = .* is wrong: "):
        draw(Answers(percentiles=percentiles), 1000, 10, seed=1)


def test_a_mean_above_the_longest_answer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"answers\.mean = 2000 is more than sampling\.max_new_tokens = 1000"):
        draw(Answers(mean=2000), 1000, 10, seed=1)
