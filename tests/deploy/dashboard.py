"""deploy/grafana/pylb.json as values."""

import json
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import DEPLOY

FILE = DEPLOY / "grafana/pylb.json"
# What Grafana puts in before it asks (its docs: "Global variables"); a variable with "All" chosen is its allValue.
_MACROS = {"$__rate_interval": "5m", "$instance": ".*", "$frontend": ".*"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def expressions(interval: str = "5m") -> Iterator[tuple[str, str]]:
    """(place, PromQL) of every panel and annotation, as Prometheus gets it."""
    found = dashboard()
    for panel in found["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", _filled(target["expr"], interval)
    for annotation in found["annotations"]["list"]:
        yield annotation["name"], _filled(annotation["expr"], interval)


def _filled(expression: str, interval: str) -> str:
    for macro, text in (_MACROS | {"$__rate_interval": interval}).items():
        expression = expression.replace(macro, text)
    return expression
