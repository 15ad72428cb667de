"""The real hatop on pylb's runtime socket: it is pylb's top."""

import socket
from pathlib import Path

from pylb import __version__
from tests.app.instance import Instance, echo
from tests.app.terminal import DOWN, Terminal
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.waiting import eventually


def start(pylb: Instance, echo_port: int, **sections: object) -> int:
    """Two static frontends, one of them with a server that is down. Returns the second one's port."""
    other = free_port()
    frontends = [
        {"name": "https", "listen": f"127.0.0.1:{pylb.port}", "servers": [{"address": f"127.0.0.1:{echo_port}", "weight": 20}]},
        {"name": "mqtt", "listen": f"127.0.0.1:{other}", "servers": [f"127.0.0.1:{free_port()}", f"127.0.0.1:{echo_port}"]},
    ]
    health = {"mode": "active", "interval": "200ms", "fall": 1, "rise": 1}
    pylb.configure(defaults={"health": health, "timeouts": {"shutdown": "1s"}}, frontends=frontends, **sections)
    pylb.start()
    return other


def hatop(pylb: Instance) -> Terminal:
    return Terminal(["hatop", "-s", str(pylb.state_dir / "haproxy.sock"), "-i", "1"])


def states(pylb: Instance, name: str) -> set[str]:
    """Of a frontend's servers."""
    frontends = pylb.get("/v1/table").json["frontends"]
    return {server["state"] for one in frontends if one["name"] == name for server in one["servers"]}


def below_the_first(top: Terminal, weight: str) -> int:
    """How many lines below the first one of the list the server of that weight is."""
    lines = top.text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(">>>"))
    return next(number for number, line in enumerate(lines) if line.split()[1:2] == [weight]) - first


def test_hatop_shows_proxies_servers_and_changes_them(pylb: Instance, echo_port: int) -> None:
    need("hatop")
    start(pylb, echo_port, workers=2)
    server = f"127.0.0.1:{echo_port}"
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client, hatop(pylb) as top:
        assert echo(client) == b"ping"
        eventually(lambda: top.line(f":{echo_port}", "UP", "L4OK", "20"), what=f"the server of https is up\n{top.text}")
        eventually(lambda: top.line("DOWN", "L4CON"), what="the dead server of mqtt is down")
        shown = top.text
        assert f"pylb Version: {__version__}" in shown
        assert f"PID: {pylb.running.pid} (proc 1)" in shown
        assert ">>> https" in shown
        assert ">>> mqtt" in shown
        assert top.line("FRONTEND", "OPEN", "1")  # one session
        assert "Proxies:   2" in shown
        assert "Services:    7" in shown
        assert "1/" in top.line("Connections:", "[")

        top.press("2")
        eventually(lambda: top.line("NAME", "LBTOT", "BIN", "BOUT"), what="the traffic view")
        top.press("4")
        eventually(lambda: top.line("NAME", "ECONN", "DOWN"), what="the errors view")
        top.press("1")
        eventually(lambda: top.line("NAME", "CHECK", "SCUR"), what="the status view")

        top.press(*[DOWN] * below_the_first(top, "20"), "F5")  # weight - 10
        eventually(lambda: top.line(f":{echo_port}", "UP", "10"), what=f"F5 has changed the weight\n{top.text}")
        top.press("F10")
        eventually(lambda: top.line(f":{echo_port}", "MAINT"), what="F10 has disabled it")
        assert states(pylb, "https") == {"maint"}
        assert echo(client) == b"ping"  # live sessions stay
        top.press("F9")
        eventually(lambda: top.line(f":{echo_port}", "UP", "10"), what="F9 has enabled it, and the weight is kept")

        top.press("5")
        eventually(lambda: "haproxy command line" in top.text, what="the command line")
        top.press(f"set server mqtt/{server} state drain;show version\r")
        eventually(lambda: states(pylb, "mqtt") == {"down", "drain"})
        eventually(lambda: top.line(__version__), what=f"the answer of the second command\n{top.text}")
        top.press("\x1bq")
        eventually(lambda: top.process.poll() == 0, what="hatop has left")
    assert pylb.running.alive
    assert "ERROR" not in pylb.running.text().upper().replace("WRONG ANSWER", "")


def test_hatop_filters_by_proxy_and_only_reads(pylb: Instance, echo_port: int) -> None:
    need("hatop")
    start(pylb, echo_port)
    argv = ["hatop", "-s", str(pylb.state_dir / "haproxy.sock"), "-i", "1", "-p", "mqtt", "-n"]
    with Terminal(argv) as top:
        eventually(lambda: ">>> mqtt" in top.text and "4-ERRORS" in top.text, what="the one proxy, and the line at the bottom")
        assert ">>> https" not in top.text
        assert "5-CLI" not in top.text
        top.press("q")
        eventually(lambda: top.process.poll() == 0, what="hatop has left")


def test_a_socket_of_that_name_is_where_the_config_says(pylb: Instance, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    pylb.configure(runtime_socket=str(path))
    pylb.start()
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (pylb.state_dir / "haproxy.sock").exists()
    assert pylb.running.terminate() == 0
    assert not path.exists()
