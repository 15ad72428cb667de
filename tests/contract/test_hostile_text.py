"""Names, paths and headers that would drive a terminal, forge a line or hide themselves: through every face, looked for in all
that pylb shows."""

import socket
from pathlib import Path
from urllib.parse import quote

import pytest

from pylb.core.text import visible
from tests.contract.instance import Pylb, call, raw, secret, wants
from tests.support.ports import free_port
from tests.support.processes import Processes

# The first two are those that are looked for: of a caller who is refused again and again some ten lines are logged.
HOSTILE = ("a\r\n9999 info pylb: forged", "\x1b[31mred", "\x9b2Jclear", "\u202eexe.txt", "un\u200bseen", "\x07bell,;|\x7f")
VERBS = (
    ("routes",),
    ("routes", "--rejected"),
    ("status",),
    ("history",),
    ("sessions",),
    ("sessions", "--ended"),
    ("token", "list"),
    ("explain", "1"),
    *((verb, name) for verb in ("release", "history") for name in HOSTILE[:2]),
    ("ctl", "drain", HOSTILE[0]),
)


def _say(pylb: Pylb) -> None:
    """Each of the names through each face."""
    native = {"Authorization": f"Bearer {secret('app')}"}
    body = wants((free_port(), 30000))
    for text in HOSTILE:
        latin = text.encode("utf-8").decode("latin-1").replace("\r", "").replace("\n", "")
        statuses = {
            pylb.put(f"{quote(text)}/one", body).status,
            pylb.put(f"app/{quote(text)}", body).status,
            pylb.put("app/one", body | {"address": text}).status,
            pylb.put("app/one", body | {text: 1}).status,
            pylb.put("app/one", wants((free_port(), 30000), health={"http": f"/{text}"})).status,
            pylb.get(f"/v1/sessions?live=1&{quote(text)}=1").status,
            call(pylb.webhook, "PUT", f"/v1/registrations/{quote(text)}/x", b"{}", {"Authorization": "Bearer wrong"}).status,
        }
        assert all(400 <= status < 500 for status in statuses), (text, statuses)
        hook = {"dst-ip": text, "frontend-port": str(free_port()), "backend-port": "30000", "action": text, "name": text}
        assert pylb.hook(hook, secret=secret("app")).status == 422
        assert pylb.hook(hook | {"action": "add"}, secret=secret("app")).status < 500
        for port in (pylb.webhook, pylb.admin):
            line = f"PUT /v1/registrations/{latin}/x HTTP/1.1\r\nHost: {latin}\r\nUser-Agent: {latin}\r\nOrigin: {latin}\r\n"
            raw(port, f"{line}Authorization: {native['Authorization']}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        _runtime(pylb, f"set server {text.splitlines()[0]}/x state ready")


def _runtime(pylb: Pylb, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(pylb.state_dir / "haproxy.sock"))
        sock.sendall(command.encode() + b"\n")
        got = b""
        while data := sock.recv(65536):
            got += data
    return got.decode()


def _harmful(text: str) -> set[str]:
    return {char for char in text if visible(char) != char} - {"\n"}


def _shown(pylb: Pylb) -> dict[str, str]:
    found = {"metrics": pylb.get("/metrics").text, "log": pylb.running.text()}
    found |= {command: _runtime(pylb, command) for command in ("show stat", "show info", "show servers state", "show sess")}
    for path in ("/v1/table", "/v1/registrations", "/v1/events", "/v1/rejected"):
        found[path] = pylb.get(path).text
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("style", ["tcplog", "json", "logfmt"])
def test_hostile_text_reaches_no_terminal_log_metric_or_socket(style: str, processes: Processes, tmp_path: Path) -> None:
    pylb = Pylb(processes, tmp_path, log={"format": style}).start()
    _say(pylb)
    pylb.running.has_said("forged")
    shown = _shown(pylb)
    assert not [line for line in shown["log"].splitlines() if line.startswith("9999")]
    if style == "tcplog":
        for verb in VERBS:
            done = pylb.cli(*verb)
            shown[" ".join(verb) + " (stdout)"], shown[" ".join(verb) + " (stderr)"] = done.stdout, done.stderr
        assert "\\x1b[31mred" in shown["routes --rejected (stdout)"]
    assert {name: _harmful(text) for name, text in shown.items() if _harmful(text)} == {}
