"""A real Prometheus with pylb's rules, in a hurry: it looks twice a second, and its alerts wait a second instead of minutes."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.deploy.manifests import DEPLOY
from tests.support.processes import Process, Processes

RULES = DEPLOY / "prometheus/rules.yaml"
LOOK = "500ms"
WINDOW = "30s"  # of rates and increases: what happened stays in it for the whole test


class Prometheus:
    def __init__(self, processes: Processes, folder: Path, program: str, port: int) -> None:
        self._processes, self._folder, self._program, self._port = processes, folder, program, port
        self.process: Process | None = None

    def launch(self, targets: dict[str, int]) -> None:
        """Scrapes 127.0.0.1: `targets` are ports by instance. Does not wait."""
        job = {
            "job_name": "pylb",
            "static_configs": [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": instance}} for instance, port in targets.items()
            ],
        }
        every = {"scrape_interval": LOOK, "scrape_timeout": LOOK, "evaluation_interval": LOOK}
        config = self._folder / "prometheus.yml"
        config.write_text(json.dumps({"global": every, "rule_files": ["rules.yaml"], "scrape_configs": [job]}))
        (self._folder / "rules.yaml").write_text(hurried(RULES.read_text()))
        argv = (
            self._program,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        )
        self.process = self._processes.start("prometheus", argv)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises OSError, AssertionError with Prometheus' word."""
        answer = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        found: list[dict[str, Any]] = answer["result"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/api/v1/alerts")["alerts"]
        return found

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
                body = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None
        data: dict[str, Any] = body["data"]
        return data


def hurried(rules: str) -> str:
    """Only times differ: how long an alert waits, and how far back it looks."""
    text, waits = re.subn(r"(?m)^(\s+for:) \d+m$", r"\1 1s", rules)
    text, windows = re.subn(r"\[\d+m\]", f"[{WINDOW}]", text)
    assert (waits, windows) == (rules.count("- alert:"), rules.count("[5m]") + rules.count("[10m]") + rules.count("[15m]"))
    return text
