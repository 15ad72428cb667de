"""The loops against real servers. The injected randomness makes every pause 20 ms; nothing else is scaled."""

from __future__ import annotations

import queue
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phonehome.message import READY, RELEASED, registration, release
from phonehome.runner import Runner, broadcast
from phonehome.schedule import START_SPREAD
from phonehome.settings import Settings
from tests.phonehome.peer import TOKEN, WAIT, Answer, Call, LoadBalancer, accepted, refused, settings_for


class Log:
    """The lines as they come, to be waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._queue.put(line)

    def wait_for(self, text: str) -> str:
        while text not in (line := self._queue.get(timeout=WAIT)):
            pass
        return line


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def run(log: Log) -> Iterator[Callable[[Settings], Runner]]:
    """Starts runners; those that the test did not stop are stopped at its end."""
    runners: list[Runner] = []

    def start(settings: Settings) -> Runner:
        alone = settings._replace(instance=uuid.uuid4().hex)  # the doors of runners that run beside it are others
        runners.append(Runner(alone, None, log, uniform=lambda *_: 0.02, probe_every=0.02))
        runners[-1].start()
        return runners[-1]

    yield start
    for runner in runners:
        runner.stop()


Run = Callable[[Settings], Runner]


def test_it_registers_and_goes_on_beating_in_silence(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    run(settings_for(load_balancer.url))

    assert [load_balancer.next().state for _ in range(4)] == ["ready"] * 4
    assert log.lines == [f"127.0.0.1:{load_balancer.port}: registered: 443 -> 203.0.113.7:30443"]


def test_the_first_call_waits_for_its_part_of_the_spread_even_when_the_app_is_up_before(
    load_balancer: LoadBalancer, log: Log, app: tuple[str, Callable[[], socket.socket]]
) -> None:
    address, start_app = app
    drawn: queue.Queue[tuple[float, float]] = queue.Queue()

    def uniform(low: float, high: float) -> float:
        drawn.put((low, high))
        return 600.0  # as if the part of this one were ten minutes

    settings = settings_for(load_balancer.url, PYLB_WAIT=address)._replace(instance=uuid.uuid4().hex)
    runner = Runner(settings, None, log, uniform=uniform, probe_every=0.02)
    with start_app():
        runner.start()
        log.wait_for("everything in PYLB_WAIT answers")
        assert drawn.get(timeout=WAIT) == (0.0, START_SPREAD)
        runner.stop()
    assert drawn.empty()
    assert load_balancer.calls.empty()  # nobody was called, so that nobody needs a goodbye


def test_stopping_says_goodbye_to_every_load_balancer(load_balancers: Callable[..., LoadBalancer], run: Run) -> None:
    both = [load_balancers(), load_balancers()]
    runner = run(settings_for(*(one.url for one in both)))
    for one in both:
        assert one.next().state == "ready"
    runner.stop()

    for one in both:
        assert one.next_of("draining")
        assert one.calls.empty()


def test_a_load_balancer_that_hangs_does_not_delay_another(load_balancers: Callable[..., LoadBalancer], run: Run) -> None:
    stuck, healthy = load_balancers(), load_balancers()
    stuck.answer = lambda _: stuck.hold(accepted())
    run(settings_for(stuck.url, healthy.url))

    stuck.next()
    assert [healthy.next().state for _ in range(5)] == ["ready"] * 5
    assert stuck.calls.empty()


def test_a_ready_under_way_does_not_overtake_the_goodbye(load_balancer: LoadBalancer, run: Run) -> None:
    load_balancer.answer = lambda call: load_balancer.hold(accepted()) if call.state == "ready" else accepted()
    runner = run(settings_for(load_balancer.url))
    assert load_balancer.next().state == "ready"
    runner.stop()

    assert load_balancer.next().state == "draining"
    assert load_balancer.calls.empty()


def test_a_load_balancer_that_never_heard_of_us_gets_no_goodbye(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    load_balancer.answer = lambda _: refused(403, "port_denied", "443 is not yours")
    runner = run(settings_for(load_balancer.url))
    log.wait_for("port_denied")
    runner.stop()

    while not load_balancer.calls.empty():
        assert load_balancer.next().state == "ready"


def test_a_goodbye_that_fails_is_tried_again(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    goodbyes: list[Call] = []

    def answer(call: Call) -> Answer:
        if call.state == "ready":
            return accepted("created")
        goodbyes.append(call)
        return refused(503, "busy") if len(goodbyes) == 1 else accepted()

    load_balancer.answer = answer
    runner = run(settings_for(load_balancer.url))
    log.wait_for("registered")
    runner.stop()
    assert len(goodbyes) == 2


def test_a_refusal_is_said_once_while_it_keeps_trying_and_the_fix_is_noticed(
    load_balancer: LoadBalancer, run: Run, log: Log
) -> None:
    load_balancer.answer = lambda _: refused(401, "bad_token", "unknown token", "pylb token")
    run(settings_for(load_balancer.url))
    for _ in range(5):
        load_balancer.next()
    load_balancer.answer = lambda _: accepted("created")
    log.wait_for("works again")
    log.wait_for("registered")

    assert len([line for line in log.lines if "refused: 401 bad_token: unknown token (pylb token)" in line]) == 1


def test_a_restarted_pylb_is_noticed_and_told_again(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    results = iter([accepted("created", generation=8), accepted(generation=9), accepted("created", generation=1)])
    load_balancer.answer = lambda _: next(results, accepted(generation=1))
    run(settings_for(load_balancer.url))

    log.wait_for("pylb had forgotten this registration")
    assert load_balancer.next_of("ready")


def test_the_token_never_reaches_the_log_even_if_the_answer_repeats_it(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    load_balancer.answer = lambda _: refused(401, "bad_token", f"no such token: {TOKEN}")
    run(settings_for(load_balancer.url))
    assert "withheld" in log.wait_for("bad_token")
    assert TOKEN not in " ".join(log.lines)


def test_a_rotated_token_file_is_used_without_a_restart(load_balancer: LoadBalancer, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    run(settings_for(load_balancer.url)._replace(token_file=str(file)))
    assert load_balancer.next().headers["authorization"] == "Bearer first-token"

    (tmp_path / "new").write_text("second-token\n")
    (tmp_path / "new").rename(file)
    while load_balancer.next().headers["authorization"] != "Bearer second-token":
        pass
    file.unlink()
    load_balancer.calls.queue.clear()
    for _ in range(3):
        assert load_balancer.next().headers["authorization"] == "Bearer second-token"


# ------------------------------------------------------------------ drain


def test_drain_is_said_at_once_and_kept_until_the_end(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    runner = run(settings_for(load_balancer.url))
    log.wait_for("registered")

    assert runner.drain() == [f"127.0.0.1:{load_balancer.port}: draining"]
    load_balancer.next_of("draining")
    assert [load_balancer.next().state for _ in range(4)] == ["draining"] * 4
    assert runner.drain() == [f"127.0.0.1:{load_balancer.port}: draining"]


def test_drain_says_what_it_could_not_confirm_and_goes_on_trying(load_balancer: LoadBalancer, run: Run, log: Log) -> None:
    runner = run(settings_for(load_balancer.url))
    log.wait_for("registered")
    load_balancer.answer = lambda call: refused(503, "busy") if call.state == "draining" else accepted()

    assert "not confirmed yet" in runner.drain()[0]
    load_balancer.answer = lambda _: accepted()
    log.wait_for("draining")


# ------------------------------------------------------------------ PYLB_WAIT


@pytest.fixture
def app() -> Iterator[tuple[str, Callable[[], socket.socket]]]:
    """An address where nothing answers, and what makes it answer."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))  # held, so that nobody else gets the port; without listen it refuses
    address = holder.getsockname()
    started: list[socket.socket] = []

    def start() -> socket.socket:
        sock = socket.socket()
        started.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
        return sock

    yield f"{address[0]}:{address[1]}", start
    holder.close()
    for sock in started:
        sock.close()


def test_it_registers_once_the_app_answers_and_drains_while_it_does_not(
    load_balancer: LoadBalancer, run: Run, log: Log, app: tuple[str, Callable[[], socket.socket]]
) -> None:
    address, start_app = app
    run(settings_for(load_balancer.url, PYLB_WAIT=address))
    log.wait_for(f"waiting for {address} to answer")
    assert load_balancer.calls.empty()

    running = start_app()
    assert load_balancer.next().state == "ready"

    running.close()
    log.wait_for("no longer answers")
    load_balancer.next_of("draining")

    start_app()
    load_balancer.next_of("ready")


def test_an_app_that_never_came_up_is_never_announced(
    load_balancer: LoadBalancer, run: Run, log: Log, app: tuple[str, Callable[[], socket.socket]]
) -> None:
    runner = run(settings_for(load_balancer.url, PYLB_WAIT=app[0]))
    log.wait_for("waiting for")
    assert runner.drain() == [f"127.0.0.1:{load_balancer.port}: draining"]
    runner.stop()
    assert load_balancer.calls.empty()


# ------------------------------------------------------------------ single calls


def test_a_broadcast_succeeds_only_if_every_load_balancer_accepts(
    load_balancers: Callable[..., LoadBalancer], log: Log
) -> None:
    both = [load_balancers(), load_balancers()]
    settings = settings_for(*(one.url for one in both))

    assert broadcast(settings, None, registration(settings, READY), READY, log, timeout=5)
    both[1].answer = lambda _: refused(409, "port_owned", "443 is mqtt's")
    assert not broadcast(settings, None, release(settings), RELEASED, log, timeout=5)
    assert [one.next().method for one in both] == ["PUT", "PUT"]
    assert [one.next().method for one in both] == ["DELETE", "DELETE"]
