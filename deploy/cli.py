"""The commands of `reflux`: what is asked for, in words; each command's work is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

_TARGET = "the run's TOML, or its directory below runs/"


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="reflux", description="Streaming on-policy distillation of language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run, or resume, everything on this machine"))
    _add_up(commands.add_parser("up", help="the same with the roles as actors of a Ray cluster"))
    for name, text in (
        ("preflight", "ask everything that a run would need, and start nothing"),
        ("status", "what a run does now, or how it ended"),
        ("audit", "prove from the journal that every sample had its effect exactly once"),
        ("replay", "train again from the journal and compare every loss, bit for bit"),
        ("acl", "the users of the run's roles as a Redis ACL file; makes missing password files"),
        ("pause", "admit no new samples"),
        ("resume", "admit samples again"),
    ):
        _add_target(commands.add_parser(name, help=text))
    export = commands.add_parser("export", help="rollouts with text, log-probabilities and versions as Parquet")
    _add_target(export)
    export.add_argument("--out", type=Path, metavar="FILE", help="default: rollouts.parquet in the run's directory")
    report = commands.add_parser("report", help="the run as one HTML file: charts, and every token coloured by disagreement")
    _add_target(report)
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run's directory")
    trace = commands.add_parser("trace", help="samples' lives, from admission to training, as a trace for Perfetto")
    _add_target(trace)
    trace.add_argument("--seq", dest="seqs", type=int, nargs="+", default=[], metavar="N", help="numbers of samples; default: the newest")
    trace.add_argument("--out", type=Path, metavar="FILE", help="default: trace.json in the run's directory")
    _add_dashboard(commands.add_parser("dashboard", help="a run in the browser, while it lives and after"))
    _add_plan(commands.add_parser("plan", help="how many producers and scorers keep the learner busy, by simulation"))
    _add_weights(commands.add_parser("weights", help="serve the published weights to producers elsewhere"))
    runs = commands.add_parser("runs", help="the runs that share a server")
    _add_server(runs)
    purge = commands.add_parser("purge", help="remove runs from a server")
    _add_server(purge)
    purge.add_argument("names", nargs="*", metavar="RUN", help="names of runs; default: the run of CONFIG")
    purge.add_argument("--older-than", default="", metavar="AGE", help="every stopped run to which nothing was added for 30m, 12h, 7d, …")
    purge.add_argument("--force", action="store_true", help="also where somebody lives")
    _add_dead(commands.add_parser("dead", help="samples that were given up"))
    return parser


def _add_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN-or-URL", help="the run's TOML or directory, or redis://… (password: REFLUX_PASSWORD)")
    _add_set(parser)
    parser.add_argument("--run", default="", metavar="NAME", help="with an address: which run; needless where there is one")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8400, metavar="PORT", help="0 takes a free one (8400)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a token that every visitor must bring along")
    parser.add_argument("--wait", action="store_true", help="wait for the run to begin")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="the learner's weight directory over HTTP, for reading")
    serve.add_argument("directory", type=Path, metavar="DIR", help="weights.dir, or runs/NAME/weights")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8480, metavar="PORT", help="0 takes a free one (8480)")
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="a token that every reader must bring along (weights.token_file)")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.add_argument("--from-run", type=Path, metavar="RUN", help="a finished run whose measured rates count; default: CONFIG's own")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="TOML with rates (docs/plan.md)")
    parser.add_argument("--rate", dest="given", action="append", default=[], metavar="KEY=VALUE", help="one rate, over all others")
    parser.add_argument("--seed", type=int, default=1, help="of the answers' lengths")
    parser.add_argument("--json", dest="as_json", action="store_true", help="everything, for programs")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:20]} is no port: give a number from 0 to 65535")
    return int(text)


def _add_up(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.add_argument(
        "--ray", required=True, metavar="ADDRESS", help="HOST:PORT, ray://HOST:PORT, auto, or local for one on this machine"
    )
    _add_counts(parser)
    _add_start(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="begin anew; a run of the same name is moved aside")
    parser.add_argument("--take-over", action="store_true", help="start although another learner's lease lives; that one stops")
    parser.add_argument("--skip-preflight", action="store_true", help="start although the checks at the start would refuse")


def _add_counts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--producers", type=int, metavar="N", help="sampling processes (producer.count)")
    parser.add_argument("--scorers", type=int, metavar="N", help="scoring processes per teacher (scorer.count)")
    parser.add_argument("--learner-ranks", type=int, metavar="N", help="learner processes (learner.ranks)")


def _add_dead(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_target(actions.add_parser("list", help="which, and why"))
    for name, text in (
        ("show", "what they were when they died"),
        ("retry", "try them again, from a new ticket"),
        ("drop", "free the server's memory of their content; they stay given up"),
    ):
        action = actions.add_parser(name, help=text)
        _add_target(action)
        action.add_argument("seqs", type=int, nargs="*", metavar="SEQ", help="numbers of samples")
        action.add_argument("--all", action="store_true", help="all of them")
        action.add_argument("--reason", default="", metavar="TEXT", help="those whose reason contains this")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="CONFIG", help=_TARGET)
    _add_set(parser)
    _add_counts(parser)
    _add_start(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything that can be checked, start nothing")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="CONFIG-or-RUN-DIR", help=_TARGET)
    _add_set(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", metavar="URL-or-CONFIG", help="redis://… (password: REFLUX_PASSWORD), or a run's TOML or directory")
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change one key")


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """--set, and what its shorter forms mean."""
    short = {"producers": "producer.count", "scorers": "scorer.count", "learner_ranks": "learner.ranks"}
    given = {key: getattr(arguments, name, None) for name, key in short.items()}
    return [*arguments.overrides, *(f"{key}={value}" for key, value in given.items() if value is not None)]
