"""The ends of `python -m bench udp`, each a process: `python -m bench.datagram_peers WHAT HOST:PORT …` prints one number."""

import select
import socket
import struct
import sys
import time
from itertools import count

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SIZE, TRAIN = 1200, 40  # bytes of a datagram, datagrams of a train
BUFFER = 4 << 20


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return sock


def echo(host: str, port: int) -> None:
    """Send everything back, for ever."""
    sock, buffer = _socket(), bytearray(2048)
    view = memoryview(buffer)
    sock.bind((host, port))
    print("ready", flush=True)
    while True:
        size, source = sock.recvfrom_into(buffer)
        sock.sendto(view[:size], source)


def ping(host: str, port: int, flows: int, seconds: float) -> None:
    """Round trips a second over all flows, each with one datagram of 100 bytes under way. A lost one is sent again."""
    socks, events, data, trips = {}, select.epoll(), b"x" * 100, 0
    for _ in range(flows):
        sock = _socket()
        sock.setblocking(False)
        sock.connect((host, port))
        socks[sock.fileno()] = sock
        events.register(sock.fileno(), select.EPOLLIN)
        sock.send(data)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ready = events.poll(0.2)
        for fd, _ in ready:
            socks[fd].recv(2048)
            socks[fd].send(data)
        trips += len(ready)
        if not ready:
            for sock in socks.values():
                sock.send(data)
    print(trips / seconds)


def begin(host: str, port: int, flows: int, seconds: float) -> None:
    """New flows a second: one datagram there and back, then another socket; `flows` at a time."""
    socks, events, begun = {}, select.epoll(), 0

    def another() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((host, port))
        events.register(sock.fileno(), select.EPOLLIN)
        socks[sock.fileno()] = sock
        sock.send(b"x")

    for _ in range(flows):
        another()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for fd, _ in events.poll(0.2):
            socks.pop(fd).close()
            begun += 1
            another()
    print(begun / seconds)


def idle(host: str, port: int, flows: int, seconds: float) -> None:
    """That many flows that have got an answer, and then say nothing for `seconds`."""
    socks = []
    for _ in range(flows):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(2)
        sock.connect((host, port))
        for _ in range(2):
            sock.send(b"x")
            sock.recv(10)
        socks.append(sock)
    print("ready", flush=True)
    time.sleep(seconds)  # noqa: TID251 - the other process measures meanwhile


def sink(host: str, port: int, _flows: int, seconds: float) -> None:
    """MB/s that arrive within `seconds` from the first byte on."""
    sock, buffer, total = _socket(), bytearray(1 << 16), 0
    sock.bind((host, port))
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    print("ready", flush=True)
    sock.settimeout(30)
    size = sock.recvmsg_into([buffer], 64)[0]
    end = time.monotonic() + seconds
    sock.settimeout(0.2)
    while time.monotonic() < end:
        total += size
        try:
            size = sock.recvmsg_into([buffer], 64)[0]
        except TimeoutError:
            size = 0
    print(total / seconds / 1e6)


def blast(host: str, port: int, rate: int, seconds: float) -> None:
    """Trains of 1,200-byte datagrams at `rate` MB/s for `seconds`; prints the MB/s that were sent."""
    sock, data = _socket(), bytes(SIZE * TRAIN)
    sock.connect((host, port))
    segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", SIZE))]
    begin_at = time.monotonic()
    for number in count():
        now = time.monotonic() - begin_at
        if now >= seconds:
            break
        ahead = number * len(data) / (rate * 1e6) - now
        if ahead > 0:
            time.sleep(ahead)  # noqa: TID251 - it is the pace
        sock.sendmsg([data], segment)
    print(number * len(data) / seconds / 1e6)


if __name__ == "__main__":
    what, place, *numbers = sys.argv[1:]
    host, _, port_text = place.rpartition(":")
    globals()[what](host, int(port_text), *(kind(text) for kind, text in zip((int, float), numbers, strict=False)))
