"""`python -m learner --config C [--nproc N] [--nnodes M --rdzv HOST:PORT --node-rank R] [--take-over] [--set …]`.

Light until its arguments are read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from common.config import RunConfig, load_config
from common.errors import RefluxError, UserError
from common.loading import loading
from common.service import EXIT_DONE, EXIT_FAILED, EXIT_USER, Worker, role_parser, run_service
from learner.nodes import Node, add_arguments, follow_on_node, read_node


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _arguments(argv)
    try:
        node = read_node(arguments)
        ranks = arguments.nproc if node is None else node.count * node.ranks
        config = load_config(arguments.config, [*arguments.overrides, *([] if ranks is None else [f"learner.ranks={ranks}"])])
    except UserError as error:
        return _say(f"reflux learner: {error}", EXIT_USER)
    result = config.directory / "result.json"
    if result.exists() and not arguments.again:
        return _say(f"the run {config.run.name} is finished: {result}", EXIT_DONE)
    if int(os.environ.get("RANK", "0")):
        return _follow(config)
    if node and node.index:
        return follow_on_node(node, argv)
    return _serve(config, take_over=arguments.take_over, argv=argv, node=node)


def _follow(config: RunConfig) -> int:
    from learner.ranks import follow

    try:
        follow(config)
    except RefluxError as error:
        code = EXIT_USER if isinstance(error, UserError) else EXIT_FAILED
        _say(f"reflux learner, rank {os.environ['RANK']}: {error}", code)
        sys.stderr.flush()
        os._exit(code)  # the group's threads may wait for a rank that is no more
    return EXIT_DONE


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = role_parser("learner")
    add_arguments(parser)
    parser.add_argument("--take-over", action="store_true", help="start although another learner's lease lives; that one stops")
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)  # a rank of `reflux replay`: of a finished run too
    return parser.parse_args(argv)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)  # noqa: T201 - the user's sentence
    return code


def _serve(config: RunConfig, *, take_over: bool, argv: Sequence[str], node: Node | None) -> int:
    async def body(worker: Worker) -> None:
        with loading():
            from learner.ranks import ranks_beside
            from learner.service import learn

        async with ranks_beside(config.learner.ranks, argv, node) as watch:
            await learn(worker, take_over=take_over, beside=[watch])

    code = run_service("learner", body, lambda: config)
    sys.stdout.flush()
    if code and config.learner.ranks > 1:
        os._exit(code)  # the maths thread may wait for a rank that is no more
    return code


if __name__ == "__main__":
    sys.exit(main())
