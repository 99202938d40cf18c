"""The sections of a run's configuration. A docstring under a field is its documentation (docs/configuration.md is made from it).

Each field is *identity* (what the run computes: changing it needs a new run) or *operational* (where and how fast: free to change on
resume). Operational fields are marked with `Operational`; everything else is identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

OPERATIONAL = "operational"


def operational(default: Any, **limits: Any) -> Any:
    """A field that may change on resume."""
    return Field(default, json_schema_extra={"kind": OPERATIONAL}, **limits)


class Section(BaseModel):
    """Frozen; unknown keys are errors; docstrings under fields are their descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Dtype = Literal["float32", "bfloat16"]
LoraTarget = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


class RunSection(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: its directory under `dir` and its key prefix on the bus."""
    dir: Path = operational(Path("runs"))
    """Where runs are kept; relative paths in the file are relative to the file."""
    seed: int = 1
    """Seed of the prompt order and of every draw."""
    deterministic: bool = False
    """Same seed, same losses, bit for bit (one producer, one scorer, S = 0): fixed decode width, batch sorted by seq."""


class ModelSection(Section):
    student: Path
    """Directory of the student in Hugging Face format."""
    dtype: Dtype = "float32"
    """What the learner computes in; bfloat16 keeps float32 master weights."""


class ServersSection(Section):
    kind: Literal["torch", "sglang"] = operational("torch")
    """`torch` computes in the role's own process; `sglang` asks servers (docs/engines.md)."""
    urls: tuple[str, ...] = operational(())
    """For `sglang`: the servers, `http://HOST:PORT` each; a router counts as one."""
    api_key_file: Path | None = operational(None)
    """For `sglang`: file with the servers' API key; empty = they ask for none, or api_key_env."""
    api_key_env: str = operational("")
    """For `sglang`: variable of the environment with the API key."""
    admin_key_file: Path | None = operational(None)
    """For `sglang`: file with the servers' admin key, for the change of weights; empty = the API key, or admin_key_env."""
    admin_key_env: str = operational("")
    """For `sglang`: variable of the environment with the admin key."""
    in_flight_tokens: Positive = operational(1 << 18)
    """For `sglang`: response tokens in flight on one server at most; less by itself while a server is slow or full."""
    requests_per_s: int = operational(0, ge=0)
    """For `sglang`: requests per second to all servers together; 0 = as many as come."""
    deadline_s: Seconds = operational(600.0)
    """For `sglang`: a request not answered by then is tried once more, alone, then given up."""
    unreachable_s: Seconds = operational(300.0)
    """For `sglang`: how long the role goes on without any server."""


class TeacherSection(ServersSection):
    path: Path
    """Directory of the teacher in Hugging Face format; for `sglang` its config.json and tokenizer are enough."""
    dtype: Dtype = "float32"
    """What a `torch` teacher computes in."""
    top_k: int = Field(8, ge=0, le=1024)
    """How many of the teacher's most likely ids are sent along at every position; 0 sends the sampled token's log-probability only."""
    weight: float = Field(1.0, gt=0)
    """Share in the loss of a sample that several teachers score; the weights of a sample are normalised to 1."""
    allow_inert: bool = False
    """Start although the teacher looks misloaded (uniform) or equals the student."""


class DataSection(Section):
    prompts: str
    """Training prompts: a .jsonl or .parquet file, a directory of them, or `datasets:PATH[:SPLIT]`."""
    eval_prompts: str | None = None
    """Held-out prompts, each with an `answer`."""
    samples_per_prompt: Positive = 1
    """How many answers are sampled for each prompt."""
    shuffle: bool = True
    """Shuffle every epoch by run.seed."""
    max_prompt_tokens: Positive = 4096
    """A longer prompt is an error."""


class SamplingSection(Section):
    temperature: float = Field(1.0, gt=0)
    """Of training samples. Losses are exact at 1."""
    max_new_tokens: Positive = 1024
    """Longest answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Besides the model's own end-of-sequence ids."""


class LossSection(Section):
    kind: str = "topk_reverse_kl"
    """`topk_reverse_kl`, `topk_forward_kl`, `sampled_reverse_kl` or `python:module:function`."""
    correction: Literal["icepop", "tis", "ppo"] = "icepop"
    """sampled_reverse_kl: what is done about stale samples."""
    ratio_low: float = Field(0.5, gt=0)
    """IcePop keeps ratios pi/mu from here …"""
    ratio_high: float = Field(5.0, gt=0)
    """… to here; the cap of TIS."""
    clip: float = Field(0.2, gt=0)
    """PPO's clip."""
    advantage_cap: float = Field(5.0, gt=0)
    """sampled_reverse_kl: |advantage| is cut here."""


class OptimizerSection(Section):
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up, over the run's steps."""
    warmup_steps: int = Field(0, ge=0)
    """Linear from 0."""
    min_lr: float = Field(0.0, ge=0)
    """Where linear and cosine end."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Adam's second moment."""
    eps: float = Field(1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""


class LearnerSection(Section):
    batch_size: Positive = 64
    """Samples per optimizer step."""
    steps: Positive = 300
    """Optimizer steps of the run."""
    max_staleness: int = Field(4, ge=0)
    """S: largest learner's step − step of the weights that sampled a trained token. 0 is strictly synchronous."""
    straggler: Literal["mask", "retry", "wait"] = "mask"
    """What happens to tokens beyond S: train the others, sample again, or keep strict order."""
    micro_batch_tokens: Positive = operational(8192)
    """Tokens (prompt + response) of one forward pass."""
    ranks: Positive = operational(1)
    """Processes of the learner; `ranks / (tensor_parallel * pipeline_parallel * context_parallel)` replicas share the batch out."""
    join_timeout_s: Seconds = operational(600.0)
    """How long a rank waits at the start for all others to come."""
    rank_timeout_s: Seconds = operational(600.0)
    """How long a rank waits within a step for another one, or between steps for a sign of rank 0, which then counts as dead."""
    tensor_parallel: Positive = operational(1)
    """Ranks over which every layer is divided, for a student too large for one device."""
    sequence_parallel: bool = operational(False)
    """With tensor_parallel: divide the activations between the divided parts of a layer too, over the tokens."""
    pipeline_parallel: Positive = operational(1)
    """Stages, of as many layers each as possible, that work on different micro-batches at once."""
    context_parallel: Positive = operational(1)
    """Ranks that share every sequence, for those too long for one device; a micro-batch's tokens are divided among them."""
    expert_parallel: Positive = operational(1)
    """Ranks of a stage over which the experts of each layer are divided, each of them whole on one; for a student that has experts."""
    lora_rank: int = Field(0, ge=0)
    """Train adapters of this rank on the frozen student (LoRA), merged in what is published; 0 trains every parameter."""
    lora_alpha: float = Field(32.0, gt=0)
    """Adapters count `lora_alpha / lora_rank`."""
    lora_targets: tuple[LoraTarget, ...] = Field(("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), min_length=1)
    """Linear layers with adapters, by Megatron's names: queries, keys and values; attention's output; gate and up; down."""
    recompute: bool = operational(False)
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    optimizer_offload: float = operational(0.0, ge=0, le=1)
    """Share of the optimizer's state that is kept and stepped in the host's memory instead of the GPU's."""
    checkpoint_every: Positive = operational(50)
    """Steps between checkpoints."""
    checkpoint_async: bool = operational(False)
    """Train on while a copy of the state is written, for which there must be memory; one at a time."""
    keep_checkpoints: Positive = operational(2)
    """How many checkpoints stay."""
    record: bool = operational(True)
    """Keep the whole journal (audit, replay and export need it); false deletes segments older than the oldest checkpoint."""
    wandb: str = operational("")
    """Weights & Biases project for which a finished run leaves an offline run in its directory, for `wandb sync`; empty = none."""
    max_attempts: Positive = operational(3)
    """A sample that failed so often goes to the dead letters."""
    nice: int = operational(0, ge=0, le=19)
    """Scheduling priority of the learner's processes when `reflux run` starts them."""


class EvaluationSection(Section):
    every: int = operational(0, ge=0)
    """Steps between evaluations; 0 = only before and after."""
    prompts: int = Field(1000, ge=0)
    """How many held-out prompts, the first of their file, at most; 0 switches evaluation off."""
    samples_per_prompt: Positive = 1
    """Answers per held-out prompt; pass@1 is their mean."""
    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of evaluation samples."""
    max_new_tokens: int = Field(0, ge=0)
    """0 takes sampling.max_new_tokens."""
    verifier: str = "exact"
    """`exact`, `regex`, `math` or `python:module:function` (response text, answer) -> bool."""
    pattern: str = r"(-?[\d.]+)\s*$"
    """For `regex`: its first group is compared with the answer."""
    deadline_s: Seconds = operational(600.0)
    """An evaluation not finished by then is asked again, and given up after three times."""
    keep_best: bool = operational(False)
    """`model/` is the version with the best evaluation instead of the last."""


class BusSection(Section):
    url: str = operational("")
    """redis://, rediss:// or unix:// of a server; empty starts an embedded one under the run's directory."""
    user: str = operational("{run}-{role}")
    """With password_file or password_env: the user, as `reflux acl` names it. `default` for a server that knows one password only."""
    password_file: str = operational("")
    """File with the password; `{run}` and `{role}` (learner, producer, follower, scorer, operator, observer) in it are filled in."""
    password_env: str = operational("")
    """Variable of the environment with the password; `{role}` or `{ROLE}` in it is filled in."""
    tls_ca: Path | None = operational(None)
    """For rediss://: PEM file of the authority that signed the server's certificate; empty = those of the system."""
    tls_cert: Path | None = operational(None)
    """For a server that asks for one: PEM file of this side's certificate …"""
    tls_key: Path | None = operational(None)
    """… and of its key."""
    connect_timeout_s: Seconds = operational(30.0)
    """How long a role waits for the server at its start."""
    outage_timeout_s: Seconds = operational(300.0)
    """How long a role goes on trying when the server is away in mid-run."""
    lease_s: Seconds = operational(30.0)
    """An entry not renewed for so long goes to another worker."""
    work_deadline_s: Seconds = operational(1800.0)
    """A worker abandons what it could not finish by then."""
    max_bytes: Positive = operational(2 << 30)
    """Memory the window of samples may take on the server."""


class ProducerSection(ServersSection):
    count: Positive = operational(1)
    """Producers that `reflux run` starts."""
    slots: Positive = operational(128)
    """Sequences in flight at once."""
    refill_share: float = operational(0.1, gt=0, le=1)
    """Newcomers join when so large a share of the slots is free (or nothing else runs)."""
    dtype: Dtype = operational("float32")
    """What the torch engine computes in."""
    record_top_k: int = operational(0, ge=0, le=64)
    """How many of the student's own most likely ids are recorded at every position, for the token view (torch engine only)."""
    nice: int = operational(5, ge=0, le=19)
    """Scheduling priority when `reflux run` starts it."""


class ScorerSection(Section):
    count: Positive = operational(1)
    """Scorers per teacher that `reflux run` starts."""
    batch_tokens: Positive = operational(4096)
    """Tokens of one forward pass of a torch teacher."""
    lease_tokens: Positive = operational(32768)
    """Tokens leased at once."""
    nice: int = operational(3, ge=0, le=19)
    """Scheduling priority when `reflux run` starts it."""


class ServiceSection(Section):
    drain_s: Seconds = operational(20.0)
    """After SIGTERM a role finishes what it holds for so long, then releases it."""
    heartbeat_s: Seconds = operational(1.0)
    """Between two reports of a role."""
    metrics_host: str = operational("127.0.0.1")
    """Where Prometheus endpoints listen."""
    metrics_port: int = operational(0, ge=0, le=65535)
    """0 takes a free port; the heartbeat tells which."""
    metrics_token_file: Path | None = operational(None)
    """File with a token that every scrape must bring along (`Authorization: Bearer …`); empty asks for none."""
    restart_budget: Positive = operational(5)
    """How often `reflux run` restarts a role that makes no progress in between."""
    torch_threads: Positive = operational(1)
    """Threads per process."""
