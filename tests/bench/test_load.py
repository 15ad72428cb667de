"""The load: wrk's words understood, and our own endpoints against real sockets."""

import socket
import sys
import threading

import pytest

from bench import load
from bench.endpoints import REQUEST
from bench.processes import Address, BenchError, Process

WRK = """Running 1s test @ http://127.0.0.1:21000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   822.63us  289.34us   6.89ms   88.70%
    Req/Sec    61.60k     3.24k   65.66k    80.00%
  Latency Distribution
     50%  781.00us
     75%    0.88ms
     90%    1.03ms
     99%    1.98ms
  61270 requests in 1.00s, 17.12MB read
{errors}Requests/sec:  61269.66
Transfer/sec:     17.12MB
"""


def test_the_output_of_wrk_gives_rate_count_and_latencies_in_seconds():
    result = load.parse_wrk(WRK.format(errors=""))

    assert result == load.WrkResult(61269.66, 61270, p50=pytest.approx(781e-6), p99=pytest.approx(1.98e-3), errors=0)


def test_socket_errors_timeouts_and_bad_statuses_all_count_as_errors():
    sockets = "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
    statuses = "  Non-2xx or 3xx responses: 500\n"

    assert load.parse_wrk(WRK.format(errors=sockets)).errors == 10
    assert load.parse_wrk(WRK.format(errors=statuses)).errors == 500
    assert load.parse_wrk(WRK.format(errors=sockets + statuses)).errors == 510


@pytest.mark.parametrize(("shown", "seconds"), [("781.00us", 781e-6), ("1.50s", 1.5), ("1.20m", 72.0)])
def test_every_unit_of_wrk_is_known(shown, seconds):
    assert load.parse_wrk(WRK.format(errors="").replace("1.98ms", shown)).p99 == pytest.approx(seconds)


def test_something_else_than_a_result_is_an_error_that_shows_it():
    with pytest.raises(BenchError, match="unable to connect"):
        load.parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_two_streams_drain_what_the_source_sends(wiring, tmp_path):
    argv = [sys.executable, "-m", "bench.endpoints", "source", str(wiring.origin_bulk)]
    with Process.started("source", argv, tmp_path) as source:
        source.wait_listening(wiring.origin_bulk)

        drained = load.drain(wiring.origin_bulk, streams=2, seconds=1)

    assert drained.seconds == 1
    assert 10_000_000 < drained.bytes < drained.total_bytes


def test_a_drain_of_a_server_that_is_not_there_is_an_error(wiring):
    with pytest.raises(BenchError, match="refused"):
        load.drain(wiring.origin_bulk, streams=1, seconds=1)


def test_held_sessions_are_open_after_one_answer_each_and_gone_after_the_block():
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def answer() -> None:
            for _ in range(3):
                client, _ = server.accept()
                accepted.append(client)
                assert client.recv(4096) == REQUEST
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with load.held([Address(*server.getsockname())], sessions=3):
            thread.join()
            for client in accepted:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        for client in accepted:
            client.settimeout(10)
            assert client.recv(1) == b""
            client.close()


def test_sessions_that_cannot_be_opened_are_an_error_that_says_why(wiring):
    with pytest.raises(BenchError, match=r"hold 5: could not open all(.|\n)*refused"), load.held([wiring.proxy_http], 5):
        pytest.fail("nobody listens there")


def test_silent_connects_come_at_their_rate_say_nothing_and_are_closed_after_a_second():
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        said: list[bytes] = []

        def accept() -> None:
            while True:
                client, _ = server.accept()
                with client:
                    said.append(client.recv(1))
                if len(said) == 60:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        with load.connecting_silently(Address(*server.getsockname()), rate=50) as end:
            thread.join()
            knocks = end()
    assert said == [b""] * 60
    assert knocks.failed == 0
    assert knocks.rate > 0
