"""Whoever asks at once gets an answer: from the moment on that the doors are open, whatever has not begun yet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylb.web.control_client import call
from tests.app.instance import Instance
from tests.app.versions import Tree
from tests.support.waiting import eventually

PAGES = (
    *("/", "/metrics", "/metrics?compat=haproxy", "/stats;csv", "/livez", "/v1/table", "/v1/registrations"),
    *("/v1/sessions", "/v1/sessions?live=1&ended=1", "/v1/events", "/v1/rejected"),
)
# What a start does from its open doors on, a line of app.py each: it is held just before.
STAGES = {
    "nothing runs": "await self._registry.webhook_is_up()",
    "no beat": "self._heartbeat.begin(self._background)",
    "no sample, no page": "self._reporting.begin(self._background)",
    "no greeting": "greet(self._settings, self._room, self._called, self._source.path, restored=self._registry.open_ports())",
}


@contextmanager
def held(pylb: Instance, folder: Path, line: str) -> Iterator[None]:
    """A pylb whose start is held before that line."""
    gate = folder / "gate"
    os.mkfifo(gate)
    wait = f"await asyncio.to_thread(open({str(gate)!r}).read)"  # until who writes closes
    tree = Tree(folder / "versions")
    tree.install("1", ("pylb/app/app.py", f"        {line}\n", f"        {wait}\n        {line}\n"))
    pylb.launch(argv=tree.command(pylb))
    with gate.open("w"):  # returns once it waits there
        yield


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("line", STAGES.values(), ids=STAGES)
def test_every_page_and_socket_answers_at_every_stage_of_a_start(
    pylb: Instance, echo_port: int, tmp_path: Path, line: str, workers: int
) -> None:
    static = {"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
    pylb.configure(workers=workers, frontends=[static])
    with held(pylb, tmp_path, line):
        answers = {path: pylb.get(path) for path in PAGES}
        assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(PAGES, 200)
        assert b'pylb_frontend_open{frontend="echo"} 1.0\n' in answers["/metrics"].body
        for verb in ("ping", "status", "routes", "rejected", "sessions", "words"):
            assert call(pylb.state_dir / "control.sock", {"verb": verb})["ok"], verb
        for command in ("show info", "show stat", "show servers state", "show sess"):
            assert "internal" not in pylb.runtime(f"{command}\n"), command
        assert "Traceback" not in pylb.running.text()
    eventually(lambda: pylb.get("/readyz").json["status"] == "ready", within=20, what="the start goes on")
    assert pylb.running.terminate() == 0
