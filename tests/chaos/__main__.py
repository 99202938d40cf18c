"""`make chaos`: the arithmetic run under a seeded storm of faults, until there were enough of them; then the table.

Exit code 0 only where nothing was lost or applied twice, every run finished, every audit passed, every role came back in time, and the
accuracy is that of the undisturbed runs.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from chaos_record import Outcome
from chaos_storm import Storm, every_fault
from chaos_supervised import supervised
from chaos_trial import Trial, stormy, undisturbed

ROOT = Path(__file__).resolve().parents[2]
PAGE, RECORD = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"
_BEGIN, _END = "<!-- chaos -->", "<!-- end -->"
_LAST_S = 120.0
"""No fault is begun in the last of the time, so that the run under way can finish; no run in twice as much."""
_GRACE_S = 180.0
SETTINGS: dict[str, object] = {
    "bus.lease_s": 3,
    "bus.outage_timeout_s": 60,
    "learner.checkpoint_every": 5,
    "service.heartbeat_s": 0.3,
    "service.drain_s": 5,
    "evaluation.deadline_s": 60,
    "producer.slots": 64,
}


def main() -> int:
    arguments = _arguments()
    if arguments.kinds == ["?"]:
        print("\n".join(sorted({fault.kind for fault in every_fault(Random(0))})))
        return 0
    place = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = asyncio.run(_all(arguments, place))
    setting = (
        f"{dt.datetime.now(tz=dt.UTC).date()}, {os.cpu_count()} cores, seed {arguments.seed}: `{' '.join(['make chaos', *_given()])}`."
    )
    print(f"{setting}\n\n{outcome}\n")
    record = {"setting": setting, **outcome.to_json()}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.write_docs:
        _write_docs(f"{setting}\n\n{outcome}")
    for failure in outcome.failures:
        print(f"FAILED: {failure}")
    kept = f"; the runs' files are in {place}" if outcome.failures or arguments.keep else ""
    print(f"{len(outcome.injected)} faults of {arguments.faults} asked for; the record is in {arguments.out}{kept}")
    if not outcome.failures and not arguments.keep:
        shutil.rmtree(place)
    return 1 if outcome.failures else 0


def _given() -> list[str]:
    return [f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=500, help="how many to inject (500)")
    parser.add_argument("--minutes", type=float, default=44.0, help="no longer than this (44)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the runs (1)")
    parser.add_argument("--seeds", type=int, default=3, help="undisturbed runs, each of its own seed (3)")
    parser.add_argument("--steps", type=int, default=200, help="of each run (200)")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step (64)")
    parser.add_argument("--deaths", type=int, default=20, help="below one `reflux run`, part of the faults (20)")
    parser.add_argument("--gap", type=float, default=0.5, help="mean seconds between two faults (0.5)")
    parser.add_argument("--kinds", action="append", default=[], metavar="KIND", help="only these; ? lists them")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="the runs' files go there and stay")
    parser.add_argument("--out", type=Path, default=Path("runs") / "chaos.json", help="the record")
    parser.add_argument("--write-docs", action="store_true", help="the table goes into docs/reliability.md as well")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    return arguments


async def _all(arguments: argparse.Namespace, place: Path) -> Outcome:
    """Undisturbed runs first, then disturbed ones of the same seeds in turn, until there were enough faults or the time is up."""
    ends = time.monotonic() + 60 * arguments.minutes
    calm, disturbed = list[Trial](), list[Trial]()
    outcome = Outcome(calm, disturbed, float(str(SETTINGS["bus.lease_s"])))
    for number in range(arguments.seeds):
        settings = _settings(arguments, arguments.seed + number)
        calm.append(await undisturbed(place / f"undisturbed-{number}", settings, ends - time.monotonic()))
        _tell(calm[-1])
    if arguments.deaths:
        settings = _settings(arguments, arguments.seed)
        rng = Random(arguments.seed)
        disturbed.append(await supervised(place / "reflux-run", settings, ends - time.monotonic(), rng, arguments.deaths))
        _tell(disturbed[-1])
    number = -1
    while (missing := arguments.faults - len(outcome.injected)) > 0 and ends - time.monotonic() > 2 * _LAST_S:
        number += 1
        storm = Storm(Random(1000 * arguments.seed + number), missing, arguments.gap, arguments.kinds, ends - _LAST_S)
        settings = _settings(arguments, arguments.seed + number % max(1, arguments.seeds))
        disturbed.append(await stormy(place / f"disturbed-{number}", settings, ends + _GRACE_S - time.monotonic(), storm))
        _tell(disturbed[-1])
    return outcome


def _settings(arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    return {**SETTINGS, "run.seed": seed, "learner.steps": arguments.steps, "learner.batch_size": arguments.batch}


def _tell(trial: Trial) -> None:
    end = trial.samples
    accuracy = "no pass@1" if end.pass_at_1 is None else f"pass@1 {100 * end.pass_at_1:.1f} %"
    faults = f"{len(trial.injected)} faults, lost {end.lost}, applied twice {end.twice}"
    print(f"{trial.name}: {trial.seconds:.0f} s, {accuracy}, {faults}", flush=True)
    for failure in trial.failures:
        print(f"  {failure}", flush=True)


def _write_docs(text: str) -> None:
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


if __name__ == "__main__":
    sys.exit(main())
