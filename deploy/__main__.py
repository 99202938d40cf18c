"""`reflux`, or `python -m deploy`. A user's mistake is one sentence and exit code 2; a run that stopped by itself is exit code 1."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from deploy.cli import build_parser, overrides_of

if TYPE_CHECKING:
    from common.config import RunConfig


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    arguments = build_parser().parse_args(argv)
    from common.errors import RefluxError, UserError

    try:
        return _dispatch(arguments)
    except RefluxError as error:
        print(f"reflux: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: argparse.Namespace) -> int:
    from deploy import commands
    from deploy.target import open_target

    logging.getLogger().addHandler(logging.NullHandler())  # what a person reads is said by the commands
    _warn_of_passwords(getattr(arguments, "overrides", []))
    if arguments.command in {"runs", "purge"}:
        return _shared(arguments)
    if arguments.command == "weights":
        from deploy.weights_server import serve

        return serve(arguments.directory, token_file=arguments.token_file, host=arguments.host, port=arguments.port)
    if arguments.command == "dashboard":
        return _dashboard(arguments)
    config = open_target(arguments.target, overrides_of(arguments))
    calls: Mapping[str, Callable[[], int]] = {
        "run": lambda: _run(config, arguments),
        "up": lambda: _up(config, arguments),
        "preflight": lambda: commands.preflight(config),
        "status": lambda: commands.status(config),
        "audit": lambda: commands.audit(config),
        "replay": lambda: commands.replay(config),
        "export": lambda: commands.export(config, arguments.out),
        "report": lambda: commands.report(config, arguments.out),
        "trace": lambda: commands.trace(config, arguments.seqs, arguments.out),
        "plan": lambda: _plan(config, arguments),
        "acl": lambda: commands.acl(config),
        "dead": lambda: _dead(config, arguments),
        "pause": lambda: commands.pause(config, paused=True),
        "resume": lambda: commands.pause(config, paused=False),
    }
    return calls[arguments.command]()


def _warn_of_passwords(overrides: Sequence[str]) -> None:
    from common.config.run import without_password

    if any(without_password(one) != one for one in overrides if one.startswith("bus.url=")):
        print(
            "reflux: everybody on this machine can read the password in --set bus.url=…: put it into the TOML, bus.password_file or "
            "bus.password_env",
            file=sys.stderr,
        )


def _up(config: RunConfig, arguments: argparse.Namespace) -> int:
    from deploy import commands

    how = {name: getattr(arguments, name) for name in ("fresh", "take_over", "skip_preflight")}
    return commands.up(config, arguments.target, ray=arguments.ray, **how)


def _run(config: RunConfig, arguments: argparse.Namespace) -> int:
    from deploy import commands

    how = {name: getattr(arguments, name) for name in ("fresh", "take_over", "dry_run", "skip_preflight")}
    return commands.run(config, arguments.target, **how)


def _plan(config: RunConfig, arguments: argparse.Namespace) -> int:
    from deploy.plan.command import plan

    given = {name: getattr(arguments, name) for name in ("from_run", "rates", "given", "seed", "as_json")}
    return plan(config, **given)


def _shared(arguments: argparse.Namespace) -> int:
    from deploy import runs

    if arguments.command == "runs":
        return runs.list_runs(arguments.server, arguments.overrides)
    return runs.purge(arguments.server, arguments.overrides, arguments.names, older_than=arguments.older_than, force=arguments.force)


def _dashboard(arguments: argparse.Namespace) -> int:
    from deploy.dashboard.serve import Listening, dashboard

    listening = Listening(arguments.host, arguments.port, arguments.token_file)
    return dashboard(arguments.target, arguments.overrides, run=arguments.run, listening=listening, wait=arguments.wait)


def _dead(config: RunConfig, arguments: argparse.Namespace) -> int:
    from deploy import dead

    if arguments.action == "list":
        return dead.show_dead(config, dead.Selection(every=True), whole=False)
    chosen = dead.Selection(arguments.seqs, arguments.all, arguments.reason)
    calls: Mapping[str, Callable[[], int]] = {
        "show": lambda: dead.show_dead(config, chosen, whole=True),
        "retry": lambda: dead.retry_dead(config, chosen),
        "drop": lambda: dead.drop_dead(config, chosen),
    }
    return calls[arguments.action]()


if __name__ == "__main__":
    sys.exit(main())
