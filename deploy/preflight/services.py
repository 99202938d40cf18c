"""Checks on what answers: the Redis-protocol server, the weight store, the disk, and every SGLang server by one tiny request."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common import bus as buses
from common.bus.embedded import find_server
from common.config import RunConfig
from common.errors import Rejected
from common.messages import Version
from common.pulse import Pulse
from common.sglang.keys import read_keys
from common.sglang.pool import PROVED, Limits, ServerPool
from common.sglang.reply import BadReply, parse_sampled
from common.sglang.request import GenerateRequest
from common.sglang.shape import read_shape
from common.weights import RawTensor, open_store
from deploy.preflight.finding import Finding, found_by
from deploy.preflight.memory import in_adapters, parameters
from learner.megatron.architecture import read_architecture
from producers.engines.sglang.weights import samples_as_asked
from scorers.probe import check_teacher as check_scores
from scorers.probe import check_tokenizers, open_checked
from scorers.teachers import open_teacher

_PATIENCE_S = 5.0
_SKEW_S = 5.0
_CHECKPOINT = 16
"""Bytes per parameter: fp32 weight and master, Adam's two moments."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NEW_TOKENS = 4
_UNIFORM_WITHIN = 1e-4  # of −log V, in nats


async def check_bus(config: RunConfig) -> list[Finding]:
    """Version, eviction, memory and clock of the run's server."""
    if not config.bus.url:
        return [Finding("server", "ok", f"embedded: {find_server().name}")]
    before = time.time()
    facts = await buses.server_facts(config, timeout_s=min(_PATIENCE_S, config.bus.connect_timeout_s))
    here = (before + time.time()) / 2
    says = f"Redis {facts.get('redis_version', '?')}, never evicts"
    if facts.get("appendonly", facts.get("aof_enabled")) == "0":
        says += "; keeps no append-only file: after its death the learner admits what is missing again"
    skew = int(facts["server_time_usec"]) / 1e6 - here if "server_time_usec" in facts else 0.0
    if abs(skew) > _SKEW_S:
        return [Finding("server", "warning", f"{says}; its clock is {skew:+.0f} s off this one: synchronise them, ages and reports lie")]
    return [Finding("server", "ok", says)]


async def check_store(config: RunConfig) -> list[Finding]:
    """A small version goes to the weight store and comes back; one that can only be read is listed."""
    name = f".preflight-{time.time_ns():x}"
    here, url = config.weight_directory / name, config.weights.url
    if url.startswith(("http://", "https://")):
        return [Finding("weight store", "ok", f"{url} serves {len(await open_store(config).versions())} versions")]
    place = {"url": f"{url.rstrip('/')}/{name}"} if url else {"dir": here}
    weights = config.weights.model_copy(update={**place, "cache": here / "cache"})
    began = time.monotonic()
    try:
        store = open_store(config.model_copy(update={"weights": weights}))
        tensor = RawTensor("F32", (2,), np.array([1.0, 2.0], np.float32).data)
        await store.fetch(await store.put(Version(1, 0), {"probe": tensor}))
    finally:
        shutil.rmtree(here, ignore_errors=True)
        if url:
            await asyncio.to_thread(_remove, weights.url)
    return [
        Finding("weight store", "ok", f"{url or config.weight_directory}: there and back in {1000 * (time.monotonic() - began):.0f} ms")
    ]


def _remove(url: str) -> None:
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    if system.exists(path):
        system.rm(path, recursive=True)


async def check_disk(config: RunConfig) -> list[Finding]:
    """Room for the checkpoints and versions that are kept at once."""
    architecture = read_architecture(config.model.student)
    count = parameters(architecture)
    versions = (config.weights.keep + 1) * count * _BYTES.get(config.weights.dtype, 4)
    checkpoint = count * _CHECKPOINT
    if config.learner.lora_rank:
        checkpoint = count * _BYTES.get(config.model.dtype, 4) + in_adapters(config, architecture) * _CHECKPOINT
    checkpoints = (config.learner.keep_checkpoints + 1) * checkpoint
    needs = [("run.dir", config.directory, checkpoints), ("weights.dir", config.weight_directory, versions)]
    if config.weights.url:
        needs = needs[:1]
    elif _device(config.directory) == _device(config.weight_directory):
        needs = [("run.dir", config.directory, checkpoints + versions)]
    return [_room(key, place, size) for key, place, size in needs]


def _device(place: Path) -> int:
    return _existing(place).stat().st_dev


def _existing(place: Path) -> Path:
    return next(one for one in (place, *place.parents) if one.exists())


def _room(key: str, place: Path, needs: int) -> Finding:
    free = shutil.disk_usage(_existing(place)).free
    says = f"{key}: {free / 1e9:.1f} GB free, checkpoints and weights take about {needs / 1e9:.1f} GB"
    if free < needs:
        return Finding("disk", "error", f"{says}: make room, or lower learner.keep_checkpoints and weights.keep")
    return Finding("disk", "ok", says)


async def check_teacher(config: RunConfig, name: str) -> list[Finding]:
    """Probe sequences are scored, and not as the student would: by the teacher here, or by each of its servers for itself."""
    section = config.teachers[name]
    if section.kind == "torch":
        return await _scored(config, name, f"teacher {name}")
    return await _of_each(section.urls, f"teacher {name}", lambda url, subject: _scored(_alone(config, name, url), name, subject))


async def check_teacher_answers(config: RunConfig, name: str) -> list[Finding]:
    """The same of each server, without the student's scores, for which its weights would be loaded."""
    section = config.teachers[name]
    return await _of_each(section.urls, f"teacher {name}", lambda url, subject: _answered(_alone(config, name, url), name, subject))


async def _of_each(urls: Sequence[str], who: str, check: Callable[[str, str], Awaitable[list[Finding]]]) -> list[Finding]:
    """All are asked at once: together, those that are away cost one's patience."""
    asked = {f"{who} at {url}": url for url in urls}
    found = await asyncio.gather(*(found_by(subject, partial(check, url, subject)) for subject, url in asked.items()))
    return [finding for findings in found for finding in findings]


def _alone(config: RunConfig, name: str, url: str) -> RunConfig:
    section = config.teachers[name].model_copy(update={"urls": (url,), "unreachable_s": _PATIENCE_S})
    return config.model_copy(update={"teachers": {**config.teachers, name: section}})


async def _scored(config: RunConfig, name: str, subject: str) -> list[Finding]:
    teacher, _ = await open_checked(config, name, Pulse())
    await teacher.aclose()
    return [Finding(subject, "ok", "scores the probe: finite, not uniform, not the student's")]


async def _answered(config: RunConfig, name: str, subject: str) -> list[Finding]:
    plain_ids = check_tokenizers(config, name)
    teacher = open_teacher(config, name, Pulse())
    try:
        await check_scores(name, teacher, None, plain_ids)
    finally:
        await teacher.aclose()
    return [Finding(subject, "ok", "scores the probe: finite, not uniform")]


async def check_students(config: RunConfig) -> list[Finding]:
    """Each of the student's servers answers a tiny prompt; its weights stay as they are."""
    prompt = check_tokenizers(config, next(iter(config.teachers)))[:_NEW_TOKENS]
    return _idle_slots(config) + await _of_each(config.producer.urls, "student", partial(_sampled, config, prompt))


def _idle_slots(config: RunConfig) -> list[Finding]:
    """Every answer counts with the most tokens that it may get."""
    producer, longest = config.producer, config.sampling.max_new_tokens
    at_once, each = max(1, producer.in_flight_tokens // longest), -(-producer.slots // len(producer.urls))
    if at_once >= each:
        return []
    says = (
        f"producer.in_flight_tokens = {producer.in_flight_tokens} lets a server sample {at_once} answers of up to {longest:,} tokens "
        f"at once, and producer.slots = {producer.slots} are {each} on each: set it to {each * longest}, if they have memory for so many"
    )
    return [Finding("student: in flight", "warning", says)]


async def _sampled(config: RunConfig, prompt: list[int], url: str, subject: str) -> list[Finding]:
    shape = read_shape(config.model.student)
    limits = Limits(config.producer.in_flight_tokens, 0, config.producer.deadline_s, _PATIENCE_S)
    keys, who = read_keys(config.producer, "producer"), f"the student at {url}"
    pool = ServerPool(who=who, urls=[url], keys=keys, limits=limits, shape=shape, prepare=samples_as_asked)
    request = GenerateRequest(np.array(prompt, np.int32), _NEW_TOKENS)
    try:
        server, reply = await pool.ask(request)
        answer = parse_sampled(reply, request, shape.vocabulary)
        version = await server.software()
    except (BadReply, Rejected) as error:
        return [Finding(subject, "error", str(error))]
    finally:
        await pool.aclose()
    if (abs(answer.logprobs + np.log(shape.vocabulary)) < _UNIFORM_WITHIN).all():
        return [Finding(subject, "error", "all ids are alike to it: it looks misloaded, start it with the student's weights")]
    says = f"SGLang {version or '?'} answers with {len(answer.ids)} log-probabilities"
    untested = "" if version == PROVED else f"; only {PROVED} is tested"
    return [Finding(subject, "ok", says + untested)]
