"""What a configuration may say of SGLang servers: one sentence for everything that they could not do, or would do wrongly."""

from __future__ import annotations

import re

from common.config.sections import ProducerSection, SamplingSection, ServersSection

_URL = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")


def check_servers(key: str, section: ServersSection, *, placed: bool = False) -> None:
    """Addresses and keys of one role; raises ValueError. `placed`: the addresses are known when [cluster.servers] are."""
    if placed and section.kind != "sglang":
        raise ValueError(f'[cluster.servers] starts servers for {key}: write {key}.kind = "sglang" too')
    if section.kind == "torch" and section.urls:
        raise ValueError(f'{key}.urls is for servers: write {key}.kind = "sglang" too, or leave the addresses out')
    if section.kind == "sglang" and not section.urls and not placed:
        raise ValueError(f'{key}.kind = "sglang" needs {key}.urls = ["http://HOST:PORT", …]')
    for url in section.urls:
        if not _URL.fullmatch(url):
            raise ValueError(f"{key}.urls: {url.rpartition('@')[2]!r} is no http://HOST:PORT (a key belongs into {key}.api_key_file)")
    if len({url.rstrip("/") for url in section.urls}) < len(section.urls):
        raise ValueError(f"{key}.urls names a server twice: leave one of them")
    for name in ("api_key", "admin_key"):
        if getattr(section, f"{name}_file") and getattr(section, f"{name}_env"):
            raise ValueError(f"{key}.{name}_file and {key}.{name}_env name the same key: leave one of them")


def check_sampling_by_servers(sampling: SamplingSection, producer: ProducerSection, *, deterministic: bool) -> None:
    """Raises ValueError where the servers' log-probabilities would not be those of the sampling distribution."""
    if sampling.temperature != 1:
        raise ValueError(
            'producer.kind = "sglang" needs sampling.temperature = 1: at another one the log-probabilities of the servers '
            "are not those that the learner computes"
        )
    if deterministic:
        raise ValueError('run.deterministic = true needs producer.kind = "torch": a server draws as it likes')
    if producer.count > 1:
        raise ValueError('producer.kind = "sglang" needs producer.count = 1: one producer feeds all servers and changes their weights')
