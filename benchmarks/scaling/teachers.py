"""Teachers for `make bench-scaling`: servers that speak SGLang's protocol and wait for as long as a GPU would compute.

`python -m benchmarks.scaling.teachers COUNT` listens on COUNT loopback ports, prints them as JSON, and ends with its parent. Each port is
a server of its own: up to `MOST` waiting requests make a forward pass, which takes `PASS_S` and `TOKEN_S` for each of its tokens; the
next one begins when it ends. Time is kept by a clock that a late wake-up does not push back: no GPU is slower
because this machine is busy.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from functools import cache

import numpy as np
from aiohttp import web

MOST = 8
PASS_S = 0.01
TOKEN_S = 1 / 9000
_LIKELY, _OTHER = -0.2, -6.0


def ideal_rate(tokens: int) -> float:
    """Requests of so many tokens per second of a server that is never idle."""
    return MOST / (PASS_S + MOST * tokens * TOKEN_S)


class Teacher:
    """One server."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._waiting: asyncio.Queue[tuple[int, float, asyncio.Future[None]]] = asyncio.Queue()

    async def run(self) -> None:
        """For ever."""
        free_at = 0.0
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MOST and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            cost = PASS_S + TOKEN_S * sum(tokens for tokens, _, _ in batch)
            free_at = max(free_at, batch[0][1]) + cost
            self.busy_s += cost
            await asyncio.sleep(max(0.0, free_at - time.monotonic()))
            for _, _, done in batch:
                if not done.done():
                    done.set_result(None)

    async def generate(self, request: web.Request) -> web.Response:
        """POST /generate with `logprob_start_len`."""
        asked = json.loads(await request.text())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((len(asked["input_ids"]), time.monotonic(), done))
        await done
        return web.Response(text=reply(asked["rid"], asked["input_ids"], asked["logprob_start_len"], asked["top_logprobs_num"]))

    def application(self) -> web.Application:
        """Ready to be served."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/generate", self.generate)
        app.router.add_get("/model_info", _info)
        app.router.add_get("/server_info", _software)
        return app


def reply(rid: str, ids: list[int], start: int, top: int) -> str:
    """As a 0.5.23 writes it, written by hand: it costs less than computing would have."""
    entries = ",".join(f"[{_LIKELY},{token},null]" for token in ids[start + 1 :])
    values, likely = _tops(len(ids) - start - 1, top)
    return (
        f'{{"text":"","output_ids":[],"meta_info":{{"id":"{rid}","finish_reason":{{"type":"length","length":0}},'
        f'"prompt_tokens":{len(ids)},"input_token_logprobs":[[null,{ids[start]},null],{entries}],'
        f'"input_top_logprobs_shape":[{len(ids) - start - 1},{top}],"input_top_logprobs_null_prefix":1,'
        f'"input_top_logprobs_val_flat_b64":"{values}","input_top_logprobs_val_flat_b64_dtype":"float32",'
        f'"input_top_logprobs_idx_flat_b64":"{likely}","input_top_logprobs_idx_flat_b64_dtype":"int32"}}}}'
    )


@cache
def _tops(rows: int, top: int) -> tuple[str, str]:
    values = np.full((rows, top), _OTHER, "<f4")
    values[:, 0] = _LIKELY
    ids = np.broadcast_to(np.arange(top, dtype="<i4"), (rows, top))
    return base64.b64encode(values.tobytes()).decode(), base64.b64encode(ids.tobytes()).decode()


async def _info(_: web.Request) -> web.Response:
    return web.json_response({"model_path": "waits", "weight_version": "default"})


async def _software(_: web.Request) -> web.Response:
    return web.json_response({"version": "0.5.23"})


async def serve(count: int) -> None:
    """Until the parent has gone."""
    parent, ports = os.getppid(), []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            teacher = Teacher()
            tasks.create_task(teacher.run(), name="forward passes")
            runner = web.AppRunner(teacher.application(), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            ports.append(runner.addresses[0][1])
        print(json.dumps(ports), flush=True)
        while os.getppid() == parent:  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(0.5)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
