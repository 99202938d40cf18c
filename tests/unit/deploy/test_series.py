"""What is exported, what is documented, what is drawn and what is watched are the same names."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common import series
from common.metrics import endpoint
from common.pulse import Pulse
from deploy.metrics_page import main, metrics_page
from learner import metrics as learner_metrics

ROOT = Path(__file__).resolve().parents[3]
DECLARED = {family.name: family for family in series.FAMILIES}
BOARD = ROOT / "deploy/docker/grafana/dashboards/reflux.json"
RULES = ROOT / "deploy/docker/rules.yml"


def calls_of_pulses(method: str) -> Iterator[str]:
    """The names that the product's code hands to `pulse.set` or `pulse.add`."""
    paths = [path for package in ("common", "producers", "scorers", "learner", "deploy") for path in (ROOT / package).rglob("*.py")]
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Call) and re.fullmatch(rf"(.*\.)?_?pulse\.{method}", ast.unparse(node.func)):
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def test_every_name_that_the_code_counts_or_sets_is_declared() -> None:
    assert set(calls_of_pulses("add")) == series.COUNTS.keys()
    found = set(calls_of_pulses("set"))
    assert {"step", "obstacle"} <= found
    assert found <= series.GAUGES.keys() | series.TEXTS
    assert series.GAUGES.keys() == found - series.TEXTS | set(learner_metrics._GAUGES) | {"staleness_mean", "staleness_max"}


def test_labelled_gauges_are_families_of_their_own_and_text_and_strangers_are_left_out() -> None:
    pulse = Pulse("learner", "learner-1")
    pulse.set(**{"kl": 0.25, "teacher_kl:math:v2": 0.5, "obstacle": "words", "stranger": 1.0, "stranger:x": 1.0})
    with endpoint(pulse, "127.0.0.1", 0), urllib.request.urlopen(str(pulse.report().gauges["metrics"]), timeout=60) as reply:
        text = reply.read().decode()
    assert 'reflux_teacher_kl_nats{role="learner",teacher="math:v2",worker="learner-1"} 0.5' in text
    assert 'reflux_gauge{role="learner",what="kl",worker="learner-1"} 0.25' in text
    assert "stranger" not in text
    assert "words" not in text
    assert {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")} <= DECLARED.keys()


def test_the_page_in_docs_is_what_the_code_declares(tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    assert main([str(page)]) == 0
    assert page.read_text() == metrics_page()
    assert (ROOT / "docs/metrics.md").read_text() == metrics_page(), "run `make docs`"


def dashboard() -> list[str]:
    board = json.loads(BOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def alerts() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expressions", [dashboard(), [rule["expr"] for rule in alerts()]], ids=["dashboard", "rules"])
def test_dashboard_and_rules_ask_only_for_what_is_declared(expressions: list[str]) -> None:
    values = {series.COUNT.name: series.COUNTS, series.GAUGE.name: series.GAUGES}
    for expression in expressions:
        asked = re.findall(r"(reflux_\w+)(?:\{([^}]*)\})?", expression)
        assert asked, expression
        for name, matchers in asked:
            family = DECLARED[name]
            labels = dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))
            assert labels.keys() <= {"role", "worker", family.label}, expression
            for value in labels.get("what", "").split("|") if "what" in labels and "*" not in labels["what"] else ():
                assert value in values[name], expression
        grouped = {label for found in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in found.split(", ")}
        assert grouped <= {"role", "worker", *(DECLARED[name].label for name, _ in asked)}, expression


def test_every_number_that_tells_of_a_run_gone_wrong_has_a_panel() -> None:
    shown = " ".join(dashboard())
    wanted = {"behaviour_kl", "truncated_share", "top_k_overlap", "student_top_mass", "entropy_gap", "published_step"}
    wanted |= {family.name for family in series.LABELLED.values()} - {"reflux_teacher_differs"}
    assert not [name for name in wanted if name not in shown]


def test_every_alert_says_what_to_do_and_where_it_is_written() -> None:
    guide = (ROOT / "docs/operate.md").read_text()
    for rule in alerts():
        assert {"summary", "action"} <= rule["annotations"].keys(), rule["alert"]
        assert f"`{rule['alert']}`" in guide, rule["alert"]


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", ROOT / "deploy/docker/prometheus.yml"), ("test", "rules", ROOT / "tests/unit/deploy/rules_test.yml")],
    ids=["config", "rules"],
)
def test_promtool_accepts_the_files_and_the_rules_fire_when_they_should(arguments: tuple[str, ...]) -> None:
    _promtool(*arguments)


def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(dashboard())]
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    _promtool("check", "rules", file)


def _promtool(*arguments: str | Path) -> None:
    if (program := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
