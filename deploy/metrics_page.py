"""docs/metrics.md, made from common/series.py: `python -m deploy.metrics_page [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.series import COUNT, COUNTS, FAMILIES, GAUGE, GAUGES

_HEAD = """# Metrics

Every role answers `GET /metrics` in Prometheus format (`service.metrics_host`, `metrics_port`, `metrics_token_file`). Made by `make docs`
from `common/series.py`; do not edit. What a number that is bad means, and what to do: [operate.md](operate.md).

Every series has the labels `role` (producer, scorer, learner) and `worker`, besides the one in the table.
"""


def metrics_page() -> str:
    """The whole page."""
    rows = ((family.name, family.kind, family.label, family.text) for family in FAMILIES)
    parts = [_HEAD, "| name | kind | label | |", "|---|---|---|---|"]
    parts += [f"| `{name}` | {kind} | {f'`{label}`' if label else '—'} | {text} |" for name, kind, label, text in rows]
    parts += [*_values(COUNT.name, COUNTS), *_values(GAUGE.name, GAUGES)]
    return "\n".join(parts) + "\n"


def _values(name: str, texts: Mapping[str, str]) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield "| what | |"
    yield "|---|---|"
    yield from (f"| `{what}` | {text} |" for what, text in texts.items())


def main(arguments: Sequence[str]) -> int:
    """Prints the page, or writes it to the file named."""
    if arguments:
        Path(arguments[0]).write_text(metrics_page())
    else:
        print(metrics_page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
