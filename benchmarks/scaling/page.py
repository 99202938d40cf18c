"""The table and the plot of docs/scaling.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON values

from benchmarks.page import table

Found = Mapping[str, Any]


def points(found: Found) -> str:
    """One row per number of scorers."""
    head = (
        "scorers",
        "rollouts/s",
        "ideal",
        "share of ideal",
        "learner idle",
        "slowest scorer's share × n",
        "rollouts waiting",
        "scorer CPU, ms per rollout",
        "server CPU, ms per rollout",
    )
    rows = [
        [
            f"{point['change']} {point['scorers']}".strip(),
            f"{point['rate']:.1f}",
            f"{point['ideal']:.1f}",
            f"{point['share']:.2f}",
            f"{point['idle']:.0%}",
            f"{point['evenness']:.2f}",
            str(point["backlog"]),
            f"{point['scorer_ms']:.2f}",
            f"{point['server_ms']:.2f}",
        ]
        for point in found["points"]
    ]
    return table(head, rows)


def moves(found: Found) -> str:
    """What joining and leaving took."""
    rows = []
    for point in found["points"]:
        if point["joined"]:
            worst = {key: max(one[key] for one in point["joined"]) for key in ("start", "share")}
            rows.append([f"{len(point['joined'])} join → {point['scorers']}", f"{worst['start']:.1f}", f"{worst['share']:.2f}", "", "", ""])
        if point["left"]:
            worst = {key: max(one[key] for one in point["left"]) for key in ("given_back", "empty", "ended")}
            times = [f"{worst[key]:.2f}" for key in ("given_back", "empty", "ended")]
            rows.append([f"{len(point['left'])} leave → {point['scorers']}", "", "", *times])
    head = (
        "seconds, the slowest of them",
        "started → up",
        "up → its first rollouts at the learner",
        "SIGTERM → all given back that was not begun",
        "→ holds nothing",
        "→ ended",
    )
    return table(head, rows)


def setting(found: Found) -> str:
    """Where, with what, and whether anything went wrong."""
    about = found["setting"]
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores shared with other work (1-minute load {about['load'][0]:.1f} before, "
        f"{about['load'][1]:.1f} after). {about['seconds']:g} s per row. Of {about['cursor']:,} samples admitted {about['applied']:,} were "
        f"applied, {about['live']:,} were on their way at the end, {about['dead']} were given up, {about['twice']} came twice."
    )


SECTIONS = {"setting": setting, "points": points, "moves": moves}


def write(file: Path, found: Found) -> None:
    """Puts every section between its markers `<!-- NAME -->` and `<!-- end -->`."""
    text = file.read_text()
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"{file} has no place for {name}"
        body = make(found)
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    file.write_text(text)


def plot(found: Found, file: Path) -> None:
    """Throughput and the learner's idle share over the number of scorers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rising = [point for point in found["points"] if point["change"] != "−"]
    falling: Sequence[Found] = [point for point in found["points"] if point["change"] == "−"]
    counts = [point["scorers"] for point in rising]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.plot(counts, [point["ideal"] for point in rising], color="grey", linestyle="--", label="ideal")
    left.axhline(found["setting"]["learner_rate"], color="black", linewidth=0.8, linestyle=":", label="most the learner trains")
    right.set(xlabel="scorers", ylabel="learner idle", ylim=(0, 1))
    left.set(xlabel="scorers", ylabel="rollouts/s")
    for name, some, marker in (("joining", rising, "o"), ("leaving", falling, "x")):
        counts = [point["scorers"] for point in some]
        left.plot(counts, [point["rate"] for point in some], marker=marker, label=name)
        right.plot(counts, [point["idle"] for point in some], marker=marker, label=name)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({point["scorers"] for point in found["points"]}))
        axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.legend()
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
