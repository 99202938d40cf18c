"""One layout, simulated: so many producers and scorers against one learner, to steady numbers.

Guarantee: a pure function of its arguments; the same seed gives the same outcome. The start is left out: the first 2 · (S + 1) steps fill
the window. Evaluations, checkpoints and deaths are not simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import simpy

from common.config import RunConfig
from common.errors import ConfigError
from deploy.plan.learner import Learner, Pace
from deploy.plan.lengths import Lengths, draw
from deploy.plan.machine import Machine
from deploy.plan.producer import PATIENCE, Engine, Producer
from deploy.plan.rates import Rates
from deploy.plan.scorer import Scorer, Teacher
from deploy.plan.sizes import sizes_of
from deploy.plan.world import Busy, Log, Sizes, Topic, Traffic, World

_MEASURED_SAMPLES = 2560
_LENGTHS = 4096
_STANDSTILL = 500_000
"""Events without a step: days of simulated time, or samples that are tried for ever."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Producers, and scorers for each teacher."""

    producers: int
    scorers: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What all layouts of a plan have in common."""

    config: RunConfig
    rates: Rates
    sizes: Sizes
    version_bytes: int
    lengths: Lengths
    """Of answers, by seq; they repeat."""

    @property
    def steps(self) -> int:
        """Simulated ones: those of the run, but no more than steady numbers need."""
        return min(self.config.learner.steps, self.warm_up + max(20, _MEASURED_SAMPLES // self.config.learner.batch_size))

    @property
    def warm_up(self) -> int:
        """Steps that do not count."""
        return min(2 * (self.config.learner.max_staleness + 1), self.config.learner.steps // 2)

    @property
    def now(self) -> Layout:
        """What the configuration names: servers, where servers sample or score."""
        config, teacher = self.config, next(iter(self.config.teachers.values()))
        producers = len(config.producer.urls) if config.producer.kind == "sglang" else config.producer.count
        return Layout(producers, len(teacher.urls) if teacher.kind == "sglang" else config.scorer.count)

    def slots(self, producers: int) -> int:
        """Answers in flight on one of so many; servers share what their clients have."""
        section = self.config.producer
        return section.slots if section.kind == "torch" else max(1, ceil(section.slots * section.count / producers))

    def scoring(self, name: str, scorers: int) -> tuple[int, float]:
        """Processes that score for a teacher, and tokens a second of each: where servers score, `scorers` of them work on the leases of
        scorer.count processes."""
        rate, count = self.rates.teacher.tokens_per_s, self.config.scorer.count
        return (count, rate * scorers / count) if self.config.teachers[name].kind == "sglang" else (scorers, rate)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Per second of the time that counts; shares are of 1."""

    layout: Layout
    samples_per_s: float
    tokens_per_s: float  # answer tokens
    step_s: float
    learner_busy: float
    producer_busy: float
    scorer_busy: float
    cores_busy: float  # 0 where every worker has a device
    staleness: Mapping[int, float]  # steps → share of the trained tokens
    masked: float  # share of the answer tokens
    retried: float  # share of the samples
    mixed: float  # share of the samples that several versions sampled
    bytes_mean: float  # in flight on the server
    bytes_peak: int
    bus_bytes_per_s: float  # to and from the server
    weight_bytes_per_s: float  # read from the store by all producers together
    versions_per_s: float

    @property
    def straggling(self) -> float:
        """Share of the work that is beyond S: masked tokens and samples to be sampled again."""
        return self.masked + self.retried


def setting_of(config: RunConfig, rates: Rates, version_bytes: int, seed: int) -> Setting:
    """With the message sizes of this configuration."""
    lengths = draw(rates.answers, config.sampling.max_new_tokens, _LENGTHS, seed)
    return Setting(config, rates, sizes_of(config, rates.answers.prompt_tokens), version_bytes, lengths)


def simulate(setting: Setting, layout: Layout) -> Outcome:
    """What comes out."""
    config, env = setting.config, simpy.Environment()
    machine = Machine(env, setting.rates.cores)
    topics = {name: Topic(env) for name in config.teachers}
    world = World(env, machine, Log(env), Topic(env), topics, Topic(env), setting.sizes, Traffic())
    pool: list[Producer] = []
    producers = [_producer(setting, layout, world, pool) for _ in range(layout.producers)]
    scorers = [_scorer(setting, layout, world, name) for name in config.teachers for _ in range(setting.scoring(name, layout.scorers)[0])]
    learning = Busy(env, machine, config.learner.nice, setting.rates.learner.beside)
    lengths = setting.lengths
    routes = [[name] for name in config.teachers]
    learner = Learner(world, config.learner, _pace(setting), learning, lengths=lengths, routes=routes, steps=setting.steps)
    env.process(learner.intake())
    env.process(learner.watch())
    env.process(learner.run())
    _until(setting.warm_up, env, learner, layout)
    begun, spent = env.now, machine.spent
    for busy in (learning, *producers, *scorers):
        busy.reset()
    world.traffic.reset(env.now)
    learner.trained = type(learner.trained)()
    _until(setting.steps, env, learner, layout)
    return _outcome(setting, layout, world, learner, (learning, producers, scorers), begun, spent)


def _until(step: int, env: simpy.Environment, learner: Learner, layout: Layout) -> None:
    """Raises ConfigError where it is never done."""
    done, events = learner.step, 0
    while learner.step < step:
        env.step()
        done, events = (done, events + 1) if learner.step == done else (learner.step, 0)
        if events > _STANDSTILL:
            raise ConfigError(
                f"with {layout.producers} producers and {layout.scorers} scorers the simulated run stands still after step {done}: a rate "
                "is far too low, or samples are beyond learner.max_staleness when they are scored; raise it, or learner.straggler = mask"
            )


def _outcome(
    setting: Setting,
    layout: Layout,
    world: World,
    learner: Learner,
    busy: tuple[Busy, list[Busy], list[Busy]],
    begun: float,
    spent: float,
) -> Outcome:
    now, trained, traffic = world.env.now, learner.trained, world.traffic
    elapsed = max(1e-9, now - begun)
    learning, producers, scorers = busy
    counted = max(1, sum(trained.staleness.values()))
    cores = setting.rates.cores
    return Outcome(
        layout=layout,
        samples_per_s=trained.samples / elapsed,
        tokens_per_s=trained.tokens / elapsed,
        step_s=elapsed / max(1, trained.steps),
        learner_busy=learning.seconds / elapsed,
        producer_busy=sum(one.seconds for one in producers) / elapsed / len(producers),
        scorer_busy=sum(one.seconds for one in scorers) / elapsed / len(scorers),
        cores_busy=(world.machine.spent - spent) / elapsed / cores if cores else 0.0,
        staleness={lag: count / counted for lag, count in sorted(trained.staleness.items())},
        masked=trained.masked / max(1, trained.tokens),
        retried=trained.retried / max(1, trained.samples),
        mixed=trained.mixed / max(1, trained.samples),
        bytes_mean=traffic.mean(begun, now),
        bytes_peak=traffic.peak,
        bus_bytes_per_s=traffic.moved / elapsed,
        weight_bytes_per_s=trained.publications * setting.version_bytes * layout.producers / elapsed,
        versions_per_s=trained.publications / elapsed,
    )


def _producer(setting: Setting, layout: Layout, world: World, pool: list[Producer]) -> Busy:
    rates, section, slots = setting.rates, setting.config.producer, setting.slots(layout.producers)
    fixed, each = _decode_step(setting)
    load_s, fetch_s = (_or_bytes(setting, given) for given in (rates.weights.load_s, rates.weights.fetch_s))
    engine = Engine(slots, max(1, int(section.refill_share * slots)), _jump(setting), fixed, each, fetch_s, load_s, rates.bus_s)
    busy = Busy(world.env, world.machine, section.nice, rates.student.beside)
    producer = Producer(world, engine, busy, pool)
    if section.kind == "sglang":
        pool.append(producer)
    world.env.process(producer.follow())
    world.env.process(producer.run())
    return busy


def _jump(setting: Setting) -> int:
    """Decode steps at once: those that newcomers wait for anyway, or a fiftieth of a long answer."""
    return max(PATIENCE, round(float(setting.lengths.mean()) / 50))


def _decode_step(setting: Setting) -> tuple[float, float]:
    """Seconds of a step, and for each answer in it: the line through one answer and through `at` of them."""
    rates = setting.rates.student
    at = rates.at or setting.slots(setting.now.producers)
    full = at / rates.tokens_per_s
    if rates.alone_tokens_per_s is None or at == 1:
        return full, 0.0
    alone = min(full, 1 / rates.alone_tokens_per_s)
    each = (full - alone) / (at - 1)
    return alone - each, each


def _scorer(setting: Setting, layout: Layout, world: World, name: str) -> Busy:
    rates, section = setting.rates, setting.config.scorer
    teacher = Teacher(
        name=name,
        budget=section.lease_tokens,
        enough=min(section.lease_tokens, section.batch_tokens // 2),
        prompt=rates.answers.prompt_tokens,
        seconds_each=1 / setting.scoring(name, layout.scorers)[1],
        call_s=rates.teacher.call_s,
        bus_s=rates.bus_s,
    )
    busy = Busy(world.env, world.machine, section.nice, rates.teacher.beside)
    world.env.process(Scorer(world, teacher, busy, setting.config.sampling.max_new_tokens).run())
    return busy


def _pace(setting: Setting) -> Pace:
    rates = setting.rates
    return Pace(
        seconds_each=1 / rates.learner.tokens_per_s,
        step_s=rates.learner.step_s,
        export_s=_or_bytes(setting, rates.weights.export_s),
        put_s=_or_bytes(setting, rates.weights.put_s),
        bus_s=rates.bus_s,
        server_s=rates.server_s if rates.cores else 0.0,
        prompt=rates.answers.prompt_tokens,
        publish_every=setting.config.weights.publish_every,
    )


def _or_bytes(setting: Setting, given: float | None) -> float:
    return setting.version_bytes / setting.rates.weights.bytes_per_s if given is None else given
