"""What Python does for one new connection: calls and bytecodes of pylb's engine and of the floor, without a clock.

    python -m bench.calls [-v]              calls of Python and C functions, and bytecodes, per connection
    python -m bench.calls --routes 5 5000   the same on ports with so many routes by TLS server name, beside a port without

The same on every machine and on a busy one: 64 connections at a time are taken through accept, dial, a request, its answer with
the server's FIN, and the client's FIN, in lock step and in one thread. What the kernel does is not in it. On a port with routes
the request is a ClientHello that asks for one of their names, as this Python's OpenSSL writes it.
"""

import argparse
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from bench import processes
from bench.floor import Floor
from bench.tables import aligned
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.session import SessionRecord
from pylb.core.table import Frontend, Server, make_table
from pylb.forward.engine import Engine

TOGETHER, ROUNDS, WARM = 64, 5, 3
TURNS = 12  # of the engine after each step; it has nothing left to do by then
SHOWN = 0.05  # per connection; rarer ones are not worth a line
HTTP = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class _NoLog:
    wants_records = False

    def session_ended(self, record: SessionRecord) -> None: ...

    def connect_ended(self, *_: object) -> None: ...


def _fail(what: str, error: Exception) -> None:
    raise RuntimeError(what) from error


def _name_of(route: int) -> str:
    return f"host-{route}.example.net"


def _hello(name: str) -> bytes:
    """What a TLS client sends first that asks for this name."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def _pylb(port: int, server: int, routes: int = 0) -> Callable[[], None]:
    engine = Engine(observer=_NoLog(), max_connections=8000, on_fault=_fail, nofile=20_000, recorded=1000)
    listen = Listen("tcp", "127.0.0.1", port)
    places = [listen, *(listen._replace(server_name=_name_of(route)) for route in range(routes))]
    servers = (Server("origin", Address("127.0.0.1", server)),)
    table = make_table(1, {place: Frontend(f"http{place.server_name}", place, Policy(), servers) for place in places})
    if failed := engine.apply(table):
        raise failed[listen]

    def work() -> None:
        for _ in range(TURNS):
            engine.on_ready()

    return work


def _floor(port: int, server: int) -> Callable[[], None]:
    return Floor([(processes.Address("127.0.0.1", port), processes.Address("127.0.0.1", server))]).on_ready


class _Count:
    """Counts while `work` runs: calls by sys.setprofile, bytecodes by sys.settrace."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.calls: Counter[str] = Counter()
        self.bytecodes: Counter[str] = Counter()

    def count_calls(self) -> None:
        sys.setprofile(self._on_call)
        try:
            self._work()
        finally:
            sys.setprofile(None)

    def count_bytecodes(self) -> None:
        sys.settrace(self._on_bytecode)
        try:
            self._work()
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls[_name(frame)] += 1
        elif event == "c_call":
            self.calls[argument.__qualname__] += 1

    def _on_bytecode(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.bytecodes[_name(frame)] += 1
        return self._on_bytecode


def _name(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_qualname}"


def _connections(port: int, origin: socket.socket, request: bytes, work: Callable[[], None]) -> None:
    """TOGETHER of them, from connect to close."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(TOGETHER)]
    work()
    for client in clients:
        client.send(request)
    work()
    for _ in clients:
        server, _address = origin.accept()
        server.recv(4096)
        server.send(b"x" * 300)
        server.close()
    work()
    for client in clients:
        while client.recv(4096):
            pass
        client.close()
    work()


def measured(make: Callable[[int, int], Callable[[], None]], request: bytes = HTTP) -> tuple[Counter[str], Counter[str]]:
    """Calls and bytecodes of TOGETHER * ROUNDS connections, by function."""
    with socket.create_server(("127.0.0.1", 0), backlog=4 * TOGETHER) as origin:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        count = _Count(make(port, origin.getsockname()[1]))
        for _ in range(WARM):
            _connections(port, origin, request, count._work)  # noqa: SLF001 - its own module
        for _ in range(ROUNDS):
            _connections(port, origin, request, count.count_calls)
            _connections(port, origin, request, count.count_bytecodes)
    return count.calls, count.bytecodes


def _routes(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of routes: 1 or more")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser("python -m bench.calls", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-v", "--verbose", action="store_true", help="by function")
    parser.add_argument(
        "--routes", type=_routes, nargs="+", default=[], metavar="N", help="also on a port with N routes by server name"
    )
    options = parser.parse_args()
    made, rows = TOGETHER * ROUNDS, [["per connection", "calls", "bytecodes"]]
    measures = [("pylb", _pylb, HTTP), ("floor", _floor, HTTP)]
    if options.routes:
        measures.append(("pylb, the same hello without routes", _pylb, _hello(_name_of(0))))
    measures += [
        (f"pylb, {routes:,} routes", partial(_pylb, routes=routes), _hello(_name_of(routes // 2))) for routes in options.routes
    ]
    for name, make, request in measures:
        calls, bytecodes = measured(make, request)
        rows.append([name, f"{calls.total() / made:.1f}", f"{bytecodes.total() / made:.0f}"])
        if options.verbose:
            often = [function for function, count in calls.items() if count / made >= SHOWN]
            often.sort(key=lambda function: -(bytecodes[function] or calls[function]))
            rows += [[f"  {one}", f"{calls[one] / made:.2f}", f"{bytecodes[one] / made:.1f}"] for one in often]
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
