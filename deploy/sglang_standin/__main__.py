"""`python -m deploy.sglang_standin --model DIR [--port N] …`: serves until it is told to stop, or is killed by a request."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_KILLED = 9


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    arguments = _parser().parse_args(argv)
    from common.errors import UserError

    try:
        asyncio.run(_serve(arguments))
    except UserError as error:
        print(f"sglang_standin: {error}", file=sys.stderr)
        return 2
    except (OSError, OverflowError) as error:
        print(f"sglang_standin: cannot serve on {arguments.host} port {arguments.port} ({error}): choose another", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.sglang_standin", description="A CPU server that speaks SGLang's protocol.")
    parser.add_argument("--model", type=Path, required=True, help="directory in Hugging Face format")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000, help="0 takes a free one; the first line printed tells which")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--weight-version", default="default")
    parser.add_argument("--max-running-requests", type=int, default=64)
    parser.add_argument("--max-queued-requests", type=int, default=0, help="beyond them 503; 0 = no limit")
    parser.add_argument("--api-key-file", type=Path)
    parser.add_argument("--admin-key-file", type=Path)
    return parser


async def _serve(arguments: argparse.Namespace) -> None:
    from deploy.sglang_standin.model import open_model
    from deploy.sglang_standin.service import Service
    from deploy.sglang_standin.web import listening

    model = await asyncio.to_thread(open_model, arguments.model, arguments.dtype, arguments.max_running_requests)
    service = Service(model=model, weight_version=arguments.weight_version, most_queued=arguments.max_queued_requests)
    keys = [path.read_text().strip() if path else "" for path in (arguments.api_key_file, arguments.admin_key_file)]
    host, port = arguments.host, arguments.port
    async with listening(service, api_key=keys[0], admin_key=keys[1], die=lambda: os._exit(_KILLED), host=host, port=port) as url:
        print(f"listening on {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
