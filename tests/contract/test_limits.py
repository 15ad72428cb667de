"""A real pylb whose descriptors are few: clients wait, nobody is dropped, the webhook answers, and nothing spins."""

from contextlib import ExitStack
from pathlib import Path

from tests.contract.instance import Pylb, banner, connect, serving, wants
from tests.support.baseline import IDLE_CPU, idle_cpu
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

DESCRIPTORS = 400
SESSIONS = (DESCRIPTORS - 192 - 2 * (DESCRIPTORS // 16) - 1) // 2  # as forward/engine.py derives it


def test_at_the_descriptor_limit_clients_wait_and_everything_else_works(processes: Processes, tmp_path: Path) -> None:
    pylb = Pylb(processes, tmp_path).start("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    port, target = free_port(), 30000 + free_port() % 2000
    with serving("app", target), ExitStack() as stack:
        assert pylb.put("app/one", wants((port, target))).status == 201
        clients = []
        for _ in range(SESSIONS):
            clients.append(stack.enter_context(connect(port)))
            assert banner(clients[-1]) == "app"
        clients += [stack.enter_context(connect(port)) for _ in range(20)]
        assert pylb.put("app/one", wants((port, target))).json["result"] == "unchanged"
        assert pylb.get("/metrics").status == 200
        assert idle_cpu(pylb.running.pid) < IDLE_CPU
        clients[0].close()
        assert banner(clients[SESSIONS]) == "app"  # the first who waited
        for client in clients:
            client.close()
    eventually(lambda: pylb.running.text().count(" app-") >= SESSIONS + 1, what="a line for each")
    assert "Traceback" not in pylb.running.text()
