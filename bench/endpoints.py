"""Clients and servers that no standard tool offers, each in its own process.

    python -m bench.endpoints source HOST:PORT                    sends for ever to whoever connects
    python -m bench.endpoints drain HOST:PORT STREAMS SECONDS     reads and drops; prints JSON
    python -m bench.endpoints pace HOST:PORT RATE SECONDS CONNS   requests at a fixed rate; prints JSON
    python -m bench.endpoints ping HOST:PORT SECONDS [ADMIN]      64-byte requests, and GET /livez there; prints JSON
    python -m bench.endpoints sip HOST:PORT READERS               reads a byte a second from each, till stdin ends
    python -m bench.endpoints knock HOST:PORT RATE                connects at a fixed rate, says nothing, till stdin ends
    python -m bench.endpoints hold SESSIONS HOST:PORT...          opens sessions, prints "ready", holds till stdin ends

They are cheap on purpose, so that the proxy is what is measured: the source sends one big buffer again and again, the
drain discards in the kernel (MSG_TRUNC on TCP frees the data without copying it, tcp(7)). Direct they move 5 GB/s where
HAProxy between them moves 1.4. Not sendfile: its 4 KiB fragments cost a proxy more per byte (HAProxy 0.75-1.0 CPU s/GB
against 0.6-0.8), and servers that speak TLS write from buffers too.
"""

import errno
import itertools
import json
import select
import socket
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from bench.figures import percentile
from bench.processes import Address

CHUNK = 1 << 20
RAMP_SECONDS = 0.5  # slow start and the proxy's switch to its bulk path happen before the clock starts
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
PING = b"GET / HTTP/1.1\r\nHost: bench\r\nPadding: ".ljust(60, b"x") + b"\r\n\r\n"  # 64 bytes
PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PROBE_SECONDS = 0.02  # between two
STAY = 1.0  # seconds, of one that says nothing


def address(text: str) -> Address:
    """`host:port` as written by str(Address)."""
    host, _, port = text.rpartition(":")
    return Address(host, int(port))


def source(listen: Address) -> None:
    """Sends zeroes to every client until it goes away. Runs until killed."""
    data = memoryview(bytes(CHUNK))
    with socket.create_server(listen, backlog=1024) as server:
        while True:
            client, _ = server.accept()
            threading.Thread(target=_send_for_ever, args=(client, data), daemon=True).start()


def _send_for_ever(client: socket.socket, data: memoryview) -> None:
    with client:
        try:
            while True:
                client.sendall(data)
        except OSError:
            pass  # the client has what it wanted: reset or broken pipe is the normal end


def drain(server: Address, streams: int, seconds: float) -> dict[str, float]:
    """Reads `streams` connections for `seconds` after the ramp.

    → bytes and seconds of that window, and total_bytes, which has those of the ramp too.
    """
    start = time.monotonic() + RAMP_SECONDS
    with ThreadPoolExecutor(streams) as pool:
        counts = list(pool.map(lambda _: _discard(server, start, start + seconds), range(streams)))
    total, window = (sum(column) for column in zip(*counts, strict=True))
    return {"bytes": window, "seconds": seconds, "total_bytes": total}


def _discard(server: Address, start: float, end: float) -> tuple[int, int]:
    """→ bytes that arrived until `end`, and how many of them after `start` (both monotonic)."""
    buffer = bytearray(CHUNK)
    total = window = 0
    with socket.create_connection(server, timeout=10) as client:
        client.settimeout(None)  # a blocking recv: the timeout's poll() per call would be work on our side
        while (now := time.monotonic()) < end:
            got = client.recv_into(buffer, CHUNK, socket.MSG_TRUNC)
            if not got:
                raise ConnectionError(f"{server} ended a stream that has no end, after {total} bytes")
            total += got
            if now >= start:
                window += got
    return total, window


def pace(server: Address, rate: float, seconds: float, connections: int) -> dict[str, float]:
    """Requests at a fixed rate, whatever the answers do: open loop, a bundle each millisecond, on kept connections.

    A latency runs from the moment the request was due, so what had to wait for a free connection or for this generator is
    counted (no coordinated omission). → p50, p99 and `late_p99` in seconds, the last being this generator's own share,
    and the numbers of answers and of requests that were due.
    """
    clients = [socket.create_connection(server, timeout=10) for _ in range(connections)]
    poll = select.epoll()
    by_fd = {client.fileno(): client for client in clients}
    for fd, client in by_fd.items():
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(fd, select.EPOLLIN)
    free, due, asked = list(by_fd), deque[float](), dict[int, float]()
    took, late = [], []
    began = time.perf_counter()
    sent = 0
    while (now := time.perf_counter() - began) < seconds or sent < rate * seconds or asked:
        if now > seconds + 5:
            break  # what is not answered by now counts as missing
        bundle = min(int(now * 1000), int(seconds * 1000))
        while sent < rate * bundle / 1000:
            due.append(int(sent * 1000 / rate) / 1000)
            sent += 1
        while due and free:
            fd = free.pop()
            asked[fd] = due.popleft()
            by_fd[fd].send(REQUEST)
            late.append(time.perf_counter() - began - asked[fd])
        for fd, _ in poll.poll(0.001, connections):
            if by_fd[fd].recv(4096).endswith(b"x"):  # the end of the origin's reply
                took.append(time.perf_counter() - began - asked.pop(fd))
                free.append(fd)
    for client in clients:
        client.close()
    return {
        "p50": percentile(took, 50),
        "p99": percentile(took, 99),
        "late_p99": percentile(late, 99),
        "answers": len(took),
        "due": sent,
    }


def ping(server: Address, seconds: float) -> dict[str, float]:
    """→ percentiles in seconds: of one connection, each request when the answer to the one before is there."""
    took: list[float] = []
    with socket.create_connection(server, timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            client.sendall(PING)
            while not (data := client.recv(4096)).endswith(b"x"):  # the end of the origin's reply
                if not data:
                    raise ConnectionError(f"{server} closed the connection after {len(took)} answers")
            took.append(time.perf_counter() - began)
    return _percentiles(took, 0)


def probe(admin: Address, seconds: float) -> dict[str, float]:
    """→ percentiles in seconds from before the connect to the end of the answer, and how many were no 200."""
    took: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        answer = b""
        with socket.create_connection(admin, timeout=20) as client:
            client.sendall(PROBE)
            while data := client.recv(4096):
                answer += data
        took.append(time.perf_counter() - began)
        errors += not answer.startswith(b"HTTP/1.1 200")
        time.sleep(max(0.0, PROBE_SECONDS - took[-1]))  # noqa: TID251 - a process of its own
    return _percentiles(took, errors)


def _percentiles(took: list[float], errors: int) -> dict[str, float]:
    return {f"p{percent}": percentile(took, percent) for percent in (50, 95, 99)} | {"errors": errors}


def sip(server: Address, readers: int) -> None:
    """Readers that take a byte a second of what the source pours; prints "ready" when all are open; till stdin ends."""
    clients = []
    for _ in range(readers):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(server)
        clients.append(client)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        for client in clients:
            client.recv(1)


def knock(server: Address, rate: int) -> None:
    """Connects `rate` times a second, says nothing and closes after STAY; prints "ready" when as many stay as ever will.

    When stdin ends: JSON of connects per second since then, and how many of them had not been accepted when they were closed.
    """
    living = deque[tuple[float, socket.socket]]()
    began = time.perf_counter()
    sent = closed = failed = before = 0
    since = 0.0  # when it was ready
    while True:
        now = time.perf_counter() - began
        while sent < rate * now:
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server)
            living.append((now, client))
            sent += 1
        while living and now - living[0][0] >= STAY:
            client = living.popleft()[1]
            failed += client.connect_ex(server) not in (0, errno.EISCONN)  # 0: it was not asked since
            client.close()
            closed += 1
        if not since and now >= 2 * STAY:
            print("ready", flush=True)
            before, failed, closed, since = sent, 0, 0, now
        if select.select([sys.stdin], [], [], 0.001)[0]:
            break
    print(json.dumps({"rate": (sent - before) / (time.perf_counter() - began - since), "closed": closed, "failed": failed}))


def hold(servers: list[Address], sessions: int) -> None:
    """Opens `sessions` connections over `servers` in turn, one request and answer each; holds them till stdin ends."""
    clients = []
    for server in itertools.islice(itertools.cycle(servers), sessions):
        client = socket.create_connection(server, timeout=20)
        clients.append(client)
        client.sendall(REQUEST)
        if not client.recv(4096):
            raise ConnectionError(f"{server} closed session {len(clients)} without an answer")
    print("ready", flush=True)
    sys.stdin.read()
    for client in clients:
        client.close()


def main(argv: list[str]) -> None:
    """The command line above."""
    match argv:
        case ["source", listen]:
            source(address(listen))
        case ["drain", server, streams, seconds]:
            print(json.dumps(drain(address(server), int(streams), float(seconds))))
        case ["pace", server, rate, seconds, connections]:
            print(json.dumps(pace(address(server), float(rate), float(seconds), int(connections))))
        case ["ping", server, seconds, *admin]:
            with ThreadPoolExecutor(2) as pool:
                rounds = [
                    pool.submit(ping, address(server), float(seconds)),
                    *(pool.submit(probe, address(where), float(seconds)) for where in admin),
                ]
                print(json.dumps([found.result() for found in rounds]))
        case ["sip", server, readers]:
            sip(address(server), int(readers))
        case ["knock", server, rate]:
            knock(address(server), int(rate))
        case ["hold", sessions, *servers]:
            hold([address(server) for server in servers], int(sessions))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
