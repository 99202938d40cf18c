"""One SGLang server over HTTP: every call has a deadline and ends in a reply or in one of the errors below.

CallFailed
├── NotSent        nobody accepted the connection: the request did no harm and had none done to it
├── Busy           503, the queue is full; 429, somebody in between says so
├── Refused        4xx: the server looked at the request and declined
├── Unanswered     the connection broke, no reply came in time, or it was a 5xx: this request may have been the reason
└── Lost           a reply that is no JSON, or longer than a true one can be: it is not read to its end

Connections are kept for less long than the server keeps them, so that none is reused in the moment in which the server closes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON

import aiohttp

from common.errors import ConfigError, RefluxError
from common.sglang.budget import Budget
from common.sglang.keys import Keys

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 3.0  # SGLang closes after 5
INFO_DEADLINE_S = 5.0
MOST_CONTROL_BYTES = 4 << 20  # /server_info of a large server has some hundred settings
_SHOWN = 300


class CallFailed(RefluxError):
    """A call without a usable reply."""


class NotSent(CallFailed):
    """The server is not there."""


class Busy(CallFailed):
    """It has too much to do."""


class Refused(CallFailed):
    """It does not want this request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unanswered(CallFailed):
    """It fell silent over it."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(url + what)
        self.url = url


class Lost(CallFailed):
    """It answered with something else."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says of itself; empty where its version does not tell."""

    model_path: str
    weight_version: str
    preferences: str = ""  # sampling parameters that it fills in where a request leaves them out


class Server:
    """One address. What it has in flight and whether it is in rotation is the pool's to change."""

    def __init__(self, url: str, *, keys: Keys, budget: Budget) -> None:
        self.url = url.rstrip("/")
        self.budget = budget
        self.in_flight = 0  # response tokens
        self.requests = 0
        self.quiet = asyncio.Event()
        self.quiet.set()
        self.up = False
        self.reserved = 0  # by how many: a request that goes alone, a change of weights
        self.reason = "not asked yet"
        self.failures = 0  # in a row
        self.ask_again_at = 0.0
        self.changing = asyncio.Lock()  # held while it is probed or its weights change
        self.abilities: dict[str, bool] = {}
        self._keys = keys
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def enter(self, tokens: int) -> None:
        """A request is on its way."""
        self.in_flight += tokens
        self.requests += 1
        self.quiet.clear()

    def leave(self, tokens: int) -> None:
        """It is over."""
        self.in_flight -= tokens
        self.requests -= 1
        if not self.requests:
            self.quiet.set()

    async def info(self) -> ModelInfo:
        """GET /model_info: instant, also while the server is paused."""
        try:
            said = await self.call("GET", "/model_info", deadline_s=INFO_DEADLINE_S)
        except Refused as error:
            if error.status != 404:
                raise
            said = await self.call("GET", "/get_model_info", deadline_s=INFO_DEADLINE_S)  # before 0.5.3 or so
        if not isinstance(said, dict):
            raise Lost(f"{self.url}/model_info answered no object")
        preferences = str(said.get("preferred_sampling_params") or "")
        return ModelInfo(str(said.get("model_path", "")), str(said.get("weight_version") or ""), preferences)

    async def software(self) -> str:
        """SGLang's version, "" where it does not tell. Of /server_info nothing else is kept: it holds both keys in clear."""
        try:
            said = await self.call("GET", "/server_info", deadline_s=INFO_DEADLINE_S)
        except (CallFailed, ConfigError):
            return ""
        return str(said.get("version") or "") if isinstance(said, dict) else ""

    async def knows(self, path: str) -> bool:
        """Whether its version has GET `path`."""
        try:
            await self.call("GET", path, deadline_s=INFO_DEADLINE_S)
        except Busy:
            return True
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def saw(self, ability: str, there: bool) -> None:
        """Versions differ in it; the log says so once, and when it changes: the server was started anew."""
        if self.abilities.get(ability) is not there:
            self.abilities[ability] = there
            log.info("what a server can do", extra={"server": self.url, "ability": ability, "there": there})

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        deadline_s: float,
        admin: bool = False,
        most_bytes: int = MOST_CONTROL_BYTES,
    ) -> Any:
        """The reply's JSON, or its text where it is none of a control endpoint. Raises CallFailed, also where there is more of it than
        `most_bytes`, or ConfigError for a refused key."""
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._open().request(
                    method, self.url + path, json=body, headers=self._keys.header(admin=admin), allow_redirects=False
                ) as response,
            ):
                status, text = response.status, await self._text(path, response, most_bytes)
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise NotSent(f"{self.url} cannot be reached ({error})") from None
        except TimeoutError:
            raise Unanswered(self.url, f"{path} gave no answer within {deadline_s:g} s") from None
        except (aiohttp.ClientError, UnicodeDecodeError) as error:
            raise Unanswered(self.url, f"{path} broke off ({type(error).__name__})") from None
        return self._reply(path, status, text)

    async def aclose(self) -> None:
        """Calls under way are broken off, and none begins any more."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _text(self, path: str, response: aiohttp.ClientResponse, most: int) -> str:
        """No more of it is ever in memory."""
        text = bytearray()
        async for piece in response.content.iter_any():
            text += piece
            if len(text) > most:
                raise Lost(f"{self.url}{path} answered with more than {most} bytes")
        return text.decode()

    def _open(self) -> aiohttp.ClientSession:
        """On the event loop that asks, which is not the one that built this."""
        if self._closed:
            raise NotSent(f"{self.url} is not asked any more")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=INFO_DEADLINE_S)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._session

    def _reply(self, path: str, status: int, text: str) -> Any:
        if status in {401, 403}:
            raise ConfigError(
                f"{self.url}{path} refuses the key: name the file or variable with the right one (api_key_file, admin_key_file)"
            )
        if status in {429, 503}:
            raise Busy(f"{self.url} has a full queue")
        if 300 <= status < 500:
            raise Refused(status, f"{self.url}{path} answered {status}: {_message(text)}")
        if status >= 500:
            raise Unanswered(self.url, f"{path} answered {status}: {_message(text)}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            if path == "/generate":
                raise Lost(f"{self.url}{path} answered no JSON") from None
            return text


def _message(text: str) -> str:
    """`error` is a string or an object; some errors have `message` at the top."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:_SHOWN]
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message", error) if isinstance(error, dict) else error)[:_SHOWN]
