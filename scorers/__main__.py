"""`python -m scorers --config RUN.toml [--teacher NAME]`: one scoring worker."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.service import role_parser, run_service
from scorers.service import score


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = role_parser("scorer")
    parser.add_argument("--teacher", metavar="NAME", help="which teacher; may be left out where the run has only one")
    arguments = parser.parse_args(argv)

    def configure() -> RunConfig:
        config = load_config(arguments.config, arguments.overrides)
        teacher_of(config, arguments.teacher)
        return config

    return run_service("scorer", lambda worker: score(worker, teacher_of(worker.config, arguments.teacher)), configure)


def teacher_of(config: RunConfig, asked: str | None) -> str:
    """The teacher to serve; raises ConfigError."""
    names = ", ".join(sorted(config.teachers))
    if asked is None and len(config.teachers) == 1:
        return next(iter(config.teachers))
    if asked is None:
        raise ConfigError(f"this run has the teachers {names}: say which one with --teacher NAME")
    if asked not in config.teachers:
        raise ConfigError(f"there is no teacher {asked!r}: this run has {names}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
