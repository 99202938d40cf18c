"""`python -m learner --config C [--nproc N] [--take-over] [--set …]`: light until its arguments are read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from common.config import RunConfig, load_config
from common.errors import UserError
from common.service import EXIT_DONE, EXIT_USER, Worker, role_parser, run_service


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _arguments(argv)
    overrides = list(arguments.overrides) + ([] if arguments.nproc is None else [f"learner.ranks={arguments.nproc}"])
    try:
        config = load_config(arguments.config, overrides)
    except UserError as error:
        return _say(f"reflux learner: {error}", EXIT_USER)
    result = config.directory / "result.json"
    if result.exists() and not arguments.again:
        return _say(f"the run {config.run.name} is finished: {result}", EXIT_DONE)
    if int(os.environ.get("RANK", "0")):
        return _follow(config)
    return _serve(config, take_over=arguments.take_over, argv=argv)


def _follow(config: RunConfig) -> int:
    from learner.ranks import follow

    try:
        follow(config)
    except UserError as error:
        return _say(f"reflux learner, rank {os.environ['RANK']}: {error}", EXIT_USER)
    return EXIT_DONE


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = role_parser("learner")
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks on this machine (learner.ranks)")
    parser.add_argument("--take-over", action="store_true", help="start although another learner's lease lives; that one stops")
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)  # a rank of `reflux replay`: of a finished run too
    return parser.parse_args(argv)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)  # noqa: T201 - the user's sentence
    return code


def _serve(config: RunConfig, *, take_over: bool, argv: Sequence[str]) -> int:
    async def body(worker: Worker) -> None:
        from learner.ranks import ranks_beside
        from learner.service import learn

        async with ranks_beside(config.learner.ranks, argv) as watch:
            await learn(worker, take_over=take_over, beside=[watch])

    code = run_service("learner", body, lambda: config)
    sys.stdout.flush()
    if code and config.learner.ranks > 1:
        os._exit(code)  # the maths thread may wait for a rank that is no more
    return code


if __name__ == "__main__":
    sys.exit(main())
