"""The KEDA example of docs/deploy.md: it is YAML, has the policy's bounds, and asks for metrics that the roles have."""

import re
from pathlib import Path

import yaml

from common.metrics import _PulseCollector
from common.pulse import Pulse

TEXT = (Path(__file__).resolve().parents[3] / "docs/deploy.md").read_text()
EXAMPLE = yaml.safe_load(next(block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "ScaledObject" in block))


def exposed() -> set[tuple[str, str, str]]:
    """Metric, role and what or cause, as a learner and a scorer would be scraped."""
    found = set()
    for role, cause in (("learner", "scored"), ("scorer", "rollouts")):
        pulse = Pulse(role, f"{role}-1")
        with pulse.waiting(cause):
            pass
        pulse.set(**({"oldest:rollouts:maths": 7.5} if role == "learner" else {}))
        for family in _PulseCollector(pulse).collect():
            found |= {(one.name, role, one.labels.get("topic") or one.labels.get("cause", "")) for one in family.samples}
    return found


def test_every_metric_of_its_query_is_exposed() -> None:
    query = EXAMPLE["spec"]["triggers"][0]["metadata"]["query"]
    asked = {
        (name, re.search(r'role="(\w+)"', labels)[1], re.search(r'(?:topic|cause)="([^"]+)"', labels)[1])  # type: ignore[index]
        for name, labels in re.findall(r"(reflux_\w+)\{([^}]*)\}", query)
    }
    assert len(asked) == 3
    assert asked <= exposed()
    assert query.count("(") == query.count(")")


def test_it_adds_no_scorer_where_the_learner_is_the_bottleneck() -> None:
    """The query's second half never exceeds the threshold, at which nothing is added."""
    metadata = EXAMPLE["spec"]["triggers"][0]["metadata"]
    fallback = metadata["query"].rpartition("or on()")[2]
    assert re.fullmatch(rf"\s*clamp_max\(.*, {metadata['threshold']}\)\s*", fallback, re.DOTALL)
