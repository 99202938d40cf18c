"""`reflux replay`: what came out of training the journal's steps again, as a table and one sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli_w
from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from common.errors import ConfigError
from learner.replay import Replayed, replay

_ROWS = 12


def show_replay(config: RunConfig, console: Console) -> bool:
    """Whether every recorded step came out the same, bit for bit. Raises ConfigError where nothing can be compared."""
    steps = asyncio.run(_on_all_ranks(config, console))
    compared = [one for one in steps if one.recorded is not None]
    if not compared:
        raise ConfigError(f"{config.directory}/metrics.jsonl tells of none of the {len(steps)} steps: there is nothing to compare with")
    differing = [one for one in compared if one.differs]
    console.print(_table(_chosen(compared, differing)))
    console.print(_verdict(steps, compared, differing), highlight=False, markup=False, soft_wrap=True)
    return not differing


async def _on_all_ranks(config: RunConfig, console: Console) -> list[Replayed]:
    """As many ranks as the run's learner had, in the same layout: sums over ranks have other last bits in another one."""
    from learner.ranks import build_trainer, ranks_beside

    with TemporaryDirectory() as directory:
        file = Path(directory) / "config.toml"
        file.write_text(tomli_w.dumps(config.public().model_dump(mode="json", exclude_none=True)))
        async with ranks_beside(config.learner.ranks, ["--config", str(file), "--again"]):
            return await asyncio.to_thread(lambda: list(_counted(replay(config, build_trainer), console)))


def _counted(steps: Iterator[Replayed], console: Console) -> Iterator[Replayed]:
    with console.status("trains again …") as status:
        for one in steps:
            status.update(f"trains again: step {one.version.step}")
            yield one


def _chosen(compared: list[Replayed], differing: list[Replayed]) -> list[Replayed]:
    """The first that differ; where none does, some from beginning to end."""
    if differing:
        return differing[:_ROWS]
    stride = max(1, -(-len(compared) // _ROWS))
    return [*compared[:-1:stride], compared[-1]]


def _table(steps: list[Replayed]) -> Table:
    table = Table("step", "term", "samples", "loss on record", "loss again", "gradient norm on record", "again", "")
    for one in steps:
        assert one.recorded is not None
        figures = (one.recorded.loss, one.again.loss, one.recorded.grad_norm, one.again.grad_norm)
        verdict = "DIFFERS" if one.differs else "same"
        table.add_row(str(one.version.step), str(one.version.term), str(one.samples), *map(repr, figures), verdict)
    return table


def _verdict(steps: list[Replayed], compared: list[Replayed], differing: list[Replayed]) -> str:
    silent = len(steps) - len(compared)
    trained = f"{len(steps)} steps trained again, {steps[0].version.step} to {steps[-1].version.step}"
    trained += f" ({silent} of them without a line in metrics.jsonl)" if silent else ""
    if not differing:
        return f"{trained}: every loss and gradient norm is the same, bit for bit"
    first = differing[0]
    return (
        f"{trained}: {len(differing)} differ, the first is step {first.version.step} of term {first.version.term}; "
        "another machine, thread count, library, layout of ranks or learner.micro_batch_tokens than the run's gives other last bits"
    )
