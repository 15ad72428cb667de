"""The dashboard: what it asks exists, is PromQL, and goes to the Prometheus that its reader chooses.

That each panel shows something is in tests/deploy/test_alerts.py, which has a real Prometheus.
"""

import json
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dashboard import FILE, dashboard, expressions
from tests.deploy.exported import names, used
from tests.deploy.manifests import DEPLOY
from tests.support.peers import need

CHOSEN = {"type": "prometheus", "uid": "${datasource}"}


def test_every_metric_it_names_is_exported() -> None:
    found = used(json.dumps(dashboard()))
    assert len(found) > 30
    assert found <= names()


def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(expressions())]
    assert not [rule for rule in rules if "$" in rule["expr"]]  # a macro that nobody knows
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    result = subprocess.run([need("promtool"), "check", "rules", file], capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 0, result.stderr
    assert f"{len(rules)} rules found" in result.stdout


def test_it_has_no_datasource_of_its_own() -> None:
    def datasources(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [one for item in value for one in datasources(item)]
        if not isinstance(value, dict):
            return []
        own = [value["datasource"]] if "datasource" in value else []
        return own + [one for item in value.values() for one in datasources(item)]

    found = datasources(dashboard())
    assert len(found) > 40
    assert all(one == CHOSEN for one in found)
    assert [(one["name"], one["type"]) for one in dashboard()["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("instance", "query"),
        ("frontend", "query"),
    ]


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
        assert one["x"] + one["w"] <= 24
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)


def test_the_runbook_sections_it_sends_to_exist() -> None:
    sent = {word.rstrip(".") for word in json.dumps(dashboard()).split("Runbook: ")[1:] for word in word.split('"')[0].split()}
    runbook = (DEPLOY.parent / "docs/runbook.md").read_text()
    assert len(sent) > 8
    assert [name for name in sent if f"\n## {name}\n" not in runbook] == []


def test_it_is_written_as_grafana_exports_it() -> None:
    """So that a change made in Grafana is a small diff."""
    assert FILE.read_text() == json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
