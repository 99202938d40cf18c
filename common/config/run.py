"""The whole configuration of a run, its identity, and what derives from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from common.config.cluster import ClusterSection
from common.config.sections import (
    OPERATIONAL,
    BusSection,
    DataSection,
    EvaluationSection,
    LearnerSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    ProducerSection,
    RunSection,
    SamplingSection,
    ScorerSection,
    Section,
    ServiceSection,
    TeacherSection,
)
from common.config.servers import check_sampling_by_servers, check_servers
from common.config.weights import WeightsSection

_BYTES_PER_TOKEN = 12  # id, behaviour log-probability and one teacher's log-probability
_BYTES_PER_TOP = 8  # id and log-probability
_ENTRY_OVERHEAD = 2048
_ROOMY_ENTRY = 16 << 20  # prompts carry metadata of any kind


class RunConfig(Section):
    """Everything a run needs to know. Paths are absolute after loading."""

    run: RunSection
    model: ModelSection
    teachers: dict[str, TeacherSection] = Field(min_length=1)
    """Teachers by name; a prompt's `teacher` picks one (or several, as a list), a prompt without gets the only one, or `default`."""
    data: DataSection
    sampling: SamplingSection = SamplingSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    bus: BusSection = BusSection()
    producer: ProducerSection = ProducerSection()
    scorer: ScorerSection = ScorerSection()
    weights: WeightsSection = WeightsSection()
    service: ServiceSection = ServiceSection()
    cluster: ClusterSection = ClusterSection()

    @property
    def directory(self) -> Path:
        """The run's own directory."""
        return self.run.dir / self.run.name

    @property
    def weight_directory(self) -> Path:
        """The weight store's directory."""
        return self.weights.dir or self.directory / "weights"

    @property
    def window(self) -> int:
        """Most samples live at once: (S + 1) · batch."""
        return (self.learner.max_staleness + 1) * self.learner.batch_size

    @property
    def largest_sample_bytes(self) -> int:
        """Upper bound of one scored sample on the bus."""
        tops = sum(_BYTES_PER_TOP * teacher.top_k + 4 for teacher in self.teachers.values())
        tops += _BYTES_PER_TOP * self.producer.record_top_k
        return self.data.max_prompt_tokens * 4 + self.sampling.max_new_tokens * (_BYTES_PER_TOKEN + tops) + _ENTRY_OVERHEAD

    @property
    def largest_entry_bytes(self) -> int:
        """No worker takes a longer entry: nothing that this run makes comes near it."""
        return max(_ROOMY_ENTRY, 2 * self.largest_sample_bytes)

    @property
    def largest_answer_bytes(self) -> int:
        """No worker reads a longer answer: the whole window fits twice."""
        return max(4 * self.largest_entry_bytes, 2 * self.window * self.largest_sample_bytes)

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        bus, given = self.bus, [name for name in ("password_file", "password_env") if getattr(self.bus, name)]
        if without_password(bus.url) != bus.url:
            given.append("url")
        if len(given) > 1:
            raise ValueError(f"a password is named by bus.{' and by bus.'.join(given)}: leave one of them")
        if given and not bus.url:
            raise ValueError(f"bus.{given[0]} is for a server of your own: set bus.url too (the embedded server makes its own passwords)")
        if (bus.tls_ca or bus.tls_cert or bus.tls_key) and not bus.url.startswith("rediss://"):
            raise ValueError("bus.tls_ca, bus.tls_cert and bus.tls_key are for TLS: write bus.url as rediss://…")
        if bool(bus.tls_cert) != bool(bus.tls_key):
            raise ValueError("bus.tls_cert and bus.tls_key belong together: set both")
        return self

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        weights = self.weights
        if weights.url and weights.dir:
            raise ValueError("weights.dir and weights.url are two places for the weights: leave one of them")
        if weights.url and re.search(r"://[^/]*@|[?#]", weights.url):
            raise ValueError(
                "weights.url holds a login or parameters, which everything that shows or keeps it would show: leave them out, credentials "
                "come from the environment or the library's own files, a token of `reflux weights serve` from weights.token_file"
            )
        if weights.url and "://" not in weights.url:
            raise ValueError(
                f"weights.url = {weights.url!r} has no scheme: write s3://…, gs://…, http://…, or use weights.dir for a directory"
            )
        return self

    @model_validator(mode="after")
    def _servers(self) -> Self:
        placed = self.cluster.servers
        if unknown := placed.keys() - {"student", *self.teachers}:
            raise ValueError(
                f"cluster.servers.{min(unknown)} is for no teacher of this run: name one of {', '.join(self.teachers)}, or student"
            )
        check_servers("producer", self.producer, placed="student" in placed)
        for name, teacher in self.teachers.items():
            check_servers(f"teachers.{name}", teacher, placed=name in placed)
        if self.producer.kind == "sglang":
            check_sampling_by_servers(self.sampling, self.producer, deterministic=self.run.deterministic)
        return self

    @model_validator(mode="after")
    def _ranks(self) -> Self:
        learner = self.learner
        sizes = (learner.tensor_parallel, learner.pipeline_parallel, learner.context_parallel)
        if learner.ranks % math.prod(sizes):
            raise ValueError(
                f"learner.ranks = {learner.ranks} processes cannot be divided into groups of learner.tensor_parallel * pipeline_parallel * "
                f"context_parallel = {' * '.join(map(str, sizes))}: make ranks a multiple of it"
            )
        stage = learner.ranks // learner.pipeline_parallel
        if stage % learner.expert_parallel:
            raise ValueError(
                f"learner.expert_parallel = {learner.expert_parallel} cannot divide the {stage} ranks of a stage into equal groups: "
                "make learner.ranks / learner.pipeline_parallel a multiple of it"
            )
        if len(set(learner.lora_targets)) < len(learner.lora_targets):
            raise ValueError("learner.lora_targets names a layer twice: name each once")
        if learner.sequence_parallel and learner.tensor_parallel == 1:
            raise ValueError("learner.sequence_parallel = true divides what tensor-parallel ranks share: set learner.tensor_parallel too")
        return self

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        needed = self.window * self.largest_sample_bytes
        if needed > self.bus.max_bytes:
            raise ValueError(
                f"(learner.max_staleness + 1) · learner.batch_size = {self.window} of the longest samples need {needed} bytes, more than "
                f"bus.max_bytes = {self.bus.max_bytes}: raise bus.max_bytes or lower max_staleness, batch_size, max_new_tokens or top_k"
            )
        if self.evaluation.prompts and self.data.eval_prompts is None:
            raise ValueError(
                "evaluation.prompts > 0 needs data.eval_prompts: name a file of held-out prompts or set evaluation.prompts = 0"
            )
        if self.producer.record_top_k and self.producer.kind != "torch":
            raise ValueError('producer.record_top_k is recorded by the torch engine only: set it to 0, or producer.kind = "torch"')
        if self.loss.ratio_low >= self.loss.ratio_high:
            raise ValueError("loss.ratio_low must be below loss.ratio_high")
        topless = [name for name, teacher in self.teachers.items() if teacher.top_k == 0]
        if topless and self.loss.kind.startswith("topk_"):
            raise ValueError(
                f"loss.kind = {self.loss.kind!r} needs top_k > 0 of teachers.{topless[0]}: set it to 8, or use sampled_reverse_kl"
            )
        return self

    def public(self) -> Self:
        """The same without the password of bus.url, as it may be shown and kept."""
        bus = self.bus.model_copy(update={"url": without_password(self.bus.url)})
        return self.model_copy(update={"bus": bus})

    def identity(self) -> dict[str, Any]:
        """The keys that define what the run computes, as plain JSON values."""
        identity = _identity_of(self)
        if not self.learner.lora_rank:  # then the others are no part of what is computed
            identity["learner"] = {key: value for key, value in identity["learner"].items() if not key.startswith("lora_")}
        else:
            identity["learner"]["lora_targets"] = sorted(identity["learner"]["lora_targets"])  # adapters are drawn by their layer's name
        return identity

    @property
    def identity_digest(self) -> str:
        """Digest of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]


def without_password(url: str) -> str:
    """The URL as it may be shown, also where it is none: a password may hold any character, and may be a parameter."""
    before, at, rest = url.rpartition("@")
    scheme, separator, login = before.partition("://") if "://" in before else ("", "", before)
    user, colon, _ = login.partition(":")
    address, mark, parameters = rest.partition("?")
    public = "&".join(one for one in parameters.split("&") if not one.startswith("password="))
    who = scheme + separator + (user + at if user or not colon else "")
    return who + address + (mark + public if public else "")


def _identity_of(section: BaseModel) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("kind") == OPERATIONAL:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            value = _identity_of(value)
        elif isinstance(value, dict):
            value = {key: _identity_of(item) for key, item in value.items()}
        elif isinstance(value, Path):
            value = str(value)
        if value != {}:
            kept[name] = value
    return kept
