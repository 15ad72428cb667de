"""HAProxy's exporter names: against the real haproxy's own, and what the public dashboards ask, by a real Prometheus."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from tests.app.conftest import echo_server
from tests.app.haproxy_queries import EMPTY, FIRING, PANELS, QUIET, VARIABLES
from tests.app.instance import Instance, echo, fetch
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

# What haproxy exports for a TCP proxy and pylb does not.
LEFT_OUT = {
    "haproxy_process_failed_resolutions_total",  # the system's resolver is asked, and keeps no count
    "haproxy_process_current_zlib_memory",  # NaN there, too
    "haproxy_process_max_zlib_memory",
    "haproxy_server_current_throttle",  # NaN where there is no slowstart
    "haproxy_server_queue_limit",  # NaN: a server's queue is the frontend's
    "haproxy_server_idle_connections_limit",  # NaN
}


def series(text: str) -> dict[str, set[tuple[tuple[str, str], ...]]]:
    """By sample name the label sets, without the values of `server` and `version`, which are each one's own."""
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: "" if name in ("server", "version") else value for name, value in sample.labels.items()}
            found.setdefault(sample.name, set()).add(tuple(sorted(labels.items())))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exporter")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Processes]:
    with Processes(folder) as found:
        yield found


@pytest.fixture(scope="module")
def dying() -> Iterator[socket.socket]:
    """The only server of a frontend; a test closes it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture(scope="module")
def pylb(running: Processes, folder: Path, dying: socket.socket) -> Iterator[Instance]:
    """With a frontend that serves and one whose server will go down; and some traffic."""
    one = Instance(running, folder)
    with echo_server() as port:
        servers = [{"address": f"127.0.0.1:{port}", "max_connections": 100}]
        web = {"name": "web", "listen": f"127.0.0.1:{one.port}", "servers": servers}
        dead = {"name": "dead", "listen": f"127.0.0.1:{free_port()}", "servers": [f"127.0.0.1:{dying.getsockname()[1]}"]}
        defaults = {"health": {"mode": "active", "interval": "200ms", "fall": 1}, "timeouts": {"shutdown": "1s"}}
        one.configure(frontends=[web, dead], defaults=defaults)
        one.start()
        eventually(lambda: one.get("/metrics?compat=haproxy").body.count(b'state="L4OK"} 1') >= 2, what="both are up")
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", one.port), timeout=10) as client:
                assert echo(client) == b"ping"
        yield one


@pytest.fixture(scope="module")
def haproxy(running: Processes, folder: Path) -> str:
    """What a real haproxy exports, of its process and a TCP proxy whose server is checked."""
    port = free_port()
    config = folder / "haproxy.cfg"
    with echo_server() as server:
        config.write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
            f"listen web\n bind 127.0.0.1:{free_port()}\n server one 127.0.0.1:{server} check inter 100ms\n"
            f"frontend stats\n mode http\n bind 127.0.0.1:{port}\n http-request use-service prometheus-exporter\n"
        )
        running.start("haproxy", [need("haproxy"), "-db", "-f", str(config)])

        def scrape() -> str:
            return fetch(("127.0.0.1", port), "GET", "/metrics").body.decode()

        eventually(lambda: 'server="one",state="L4OK"} 1' in scrape(), what="haproxy has checked its server")
        return scrape()


class Prometheus:
    """A real one that scrapes pylb."""

    def __init__(self, running: Processes, folder: Path, pylb: Instance) -> None:
        self._port = free_port()
        self.host = f"127.0.0.1:{pylb.admin}"
        scrape = {"job_name": "prometheus", "params": {"compat": ["haproxy"]}, "static_configs": [{"targets": [self.host]}]}
        config = folder / "prometheus.yml"
        timing = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
        config.write_text(json.dumps({"global": timing, "scrape_configs": [scrape]}))
        argv = [need("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        running.start("prometheus", [*argv, f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"])

    def query(self, expression: str) -> list[Any]:
        """The result's series. Raises OSError while it starts."""
        found = self._get("/api/v1/query", query=expression)
        assert found["status"] == "success", (expression, found)
        result: list[Any] = found["data"]["result"]
        return result

    def values(self, metric: str, label: str) -> list[str]:
        """As Grafana's label_values."""
        found: list[str] = self._get(f"/api/v1/label/{label}/values", **{"match[]": metric})["data"]
        return found

    def _get(self, path: str, **query: str) -> Any:
        try:
            return fetch(("127.0.0.1", self._port), "GET", f"{path}?{urlencode(query)}").json
        except (http.client.HTTPException, ValueError) as error:  # it is starting
            raise OSError(str(error)) from None


@pytest.fixture(scope="module")
def prometheus(running: Processes, folder: Path, pylb: Instance, dying: socket.socket) -> Prometheus:
    """That has seen both servers up, and one of them go down."""
    one = Prometheus(running, folder, pylb)
    eventually(lambda: one.query("count_over_time(haproxy_process_nbproc[1m]) > 1"), within=20, what="two scrapes")
    dying.close()
    down = 'haproxy_backend_status{proxy="dead",state="DOWN"} == 1 and on(proxy) haproxy_backend_check_up_down_total == 1'
    eventually(lambda: one.query(down), what="the only server of a frontend is down")
    return one


def test_every_name_and_label_of_the_real_exporter_is_there(pylb: Instance, haproxy: str) -> None:
    theirs = {name: {labels for labels in found if ("proxy", "stats") not in labels} for name, found in series(haproxy).items()}
    ours = series(pylb.get("/metrics?compat=haproxy").body.decode())
    missing = {name for name, found in theirs.items() if found and name not in ours}
    assert missing == LEFT_OUT
    for name, found in theirs.items():
        known = {
            state
            for state in found
            if ("state", "PROCERR") not in state and not dict(state).get("state", "").startswith("PROC")
        }
        assert known <= ours.get(name, known), name


def test_the_names_are_only_there_when_they_are_asked_for(pylb: Instance) -> None:
    assert b"haproxy_" not in pylb.get("/metrics").body
    both = pylb.get("/metrics?compat=haproxy").body
    assert both.startswith(b"# HELP pylb_")
    assert pylb.get("/metrics?compat=nginx").body.count(b"haproxy_") == 0


def test_both_are_one_openmetrics_document_without_a_fault(pylb: Instance) -> None:
    headers = {"Accept": "application/openmetrics-text"}
    answer = fetch(("127.0.0.1", pylb.admin), "GET", "/metrics?compat=haproxy", headers=headers)
    families = list(openmetrics_parser.text_string_to_metric_families(answer.body.decode()))
    theirs = {sample.name for family in families for sample in family.samples}
    assert theirs == set(series(pylb.get("/metrics?compat=haproxy").body.decode()))


def test_all_that_dashboards_and_alerts_ask_is_exported(pylb: Instance) -> None:
    ours = series(pylb.get("/metrics?compat=haproxy").body.decode())
    for expression in (*PANELS, *FIRING, *QUIET):
        for name, selector in re.findall(r"(haproxy_\w+)(?:\{([^}]*)\})?", expression):
            wanted = set(re.findall(r"(\w+)[=!]~?\"", selector)) - {"instance"}
            assert any(wanted <= {label for label, _ in labels} for labels in ours[name]), (name, wanted)
    assert not [name for name in EMPTY if name in ours]


def test_a_real_prometheus_answers_what_the_dashboard_asks(prometheus: Prometheus) -> None:
    for metric, label in VARIABLES:
        assert prometheus.values(metric.replace("$host", prometheus.host), label), (metric, label)
    assert sorted(prometheus.values("haproxy_backend_status", "proxy")) == ["dead", "web"]
    variables = {
        "$frontend": "web|dead",
        "$backend": "web|dead",
        "$server": ".*",
        "$host": prometheus.host,
        "$__rate_interval": "1m",
    }
    for expression in PANELS:
        filled = expression
        for name, value in variables.items():
            filled = filled.replace(name, value)
        assert prometheus.query(filled), filled
    [up] = prometheus.query('haproxy_server_status{proxy="dead",state="DOWN"}')
    assert up["value"][1] == "1"


def test_the_alerts_say_what_is_and_nothing_else(prometheus: Prometheus) -> None:
    for expression, proxies in FIRING.items():
        found = eventually(lambda asked=expression: prometheus.query(asked), what=expression)
        assert {one["metric"].get("proxy") for one in found} == proxies, expression
    for expression in QUIET:
        assert prometheus.query(expression) == [], expression
