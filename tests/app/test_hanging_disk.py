"""A disk that hangs: bytes flow, calls are judged, a reload takes effect, and pylb can be stopped."""

import signal
import socket
from pathlib import Path

from tests.app.instance import Instance, echo
from tests.support.ports import free_port
from tests.support.processes import python
from tests.support.waiting import eventually


def test_a_reload_and_moves_on_a_disk_that_hangs_hold_up_no_byte(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    hangs, waiting, web, other = tmp_path / "disk", tmp_path / "disk.waiting", free_port(), free_port()

    def frontend(name: str, port: int) -> dict[str, object]:
        return {"name": name, "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{echo_port}"]}

    pylb.configure(frontends=[frontend("web", web)])
    pylb.start(argv=python("tests.support.hanging", "run", "-c", str(pylb.file)), env={"HANGS": str(hangs)})
    assert pylb.register(pylb.port, echo_port).json["durable"]
    with socket.create_connection(("127.0.0.1", web), 5) as session:
        session.settimeout(1.0)  # the disk hangs for as long as the test likes
        hangs.touch()
        pylb.configure(frontends=[frontend("web", web), frontend("other", other)])
        pylb.running.signal(signal.SIGHUP)
        eventually(waiting.exists, what="an fsync hangs")
        for _ in range(200):
            assert echo(session) == b"ping"
        assert pylb.get("/livez").status == 200
        moved = pylb.register(pylb.port, 1)
        assert (moved.json["result"], moved.json["durable"]) == ("moved", False)
        for target in range(2, 12):
            assert not pylb.register(pylb.port, target).json["durable"]
        assert pylb.register(free_port(), echo_port, name="app-new").status in (403, 503)
        pylb.running.has_said("reloaded: opened")
        with socket.create_connection(("127.0.0.1", other), 5) as client:
            assert echo(client) == b"ping"
        assert echo(session) == b"ping"
    assert pylb.running.terminate() == 0  # within TimeoutStopSec=15s of the unit
    assert len(waiting.read_text().splitlines()) == 1  # nobody else went there to wait
