"""`reflux report`: from a run's directory to one file. Works on a run that goes on as well as on a finished one; needs neither Redis nor a
network."""

from __future__ import annotations

from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError
from deploy.report.page import page
from deploy.report.record import Record, dead_letters, run_facts
from deploy.report.rollouts import Speller, describe
from deploy.report.shelf import Selection, Shelf
from learner.directory import RunDirectory
from learner.surviving import newest_line, surviving_records

_SELECTION = Selection()


def write_report(config: RunConfig, out: Path, selection: Selection = _SELECTION) -> int:
    """Writes `out`; returns how many rollouts it shows. ConfigError where the run has recorded nothing yet."""
    directory = RunDirectory(config.directory)
    record = Record(directory)
    record.refresh()
    if not record.last_step:
        raise ConfigError(f"{directory.root} has recorded no step yet: start it with `reflux run`, or name another run")
    shelf, speller = Shelf(selection), Speller(config)
    shelf.take(surviving_records(directory))
    rollouts = [describe(each, speller) for each in shelf]
    data = (
        run_facts(config)
        | record.document()
        | {"dead": dead_letters(newest_line(directory)), "rollouts": rollouts, "complaint": speller.complaint}
    )
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        temporary.write_text(page(data), encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): name another file with --out") from None
    return len(rollouts)
