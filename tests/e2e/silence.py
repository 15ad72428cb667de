"""Two programs for a namespace: who connects and stays silent, and an honest caller far away."""

import json
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_OPEN = 800  # of the flood, the oldest go: the limit of descriptors is often 1024
AWAY = 0.3  # seconds before each thing the honest one sends, as if the network took them
WITHIN = 10.0  # seconds for a call
_pause = threading.Event()


def flood(to: str, port: int, network: str, rate: int, seconds: float) -> None:
    """`rate` connects a second, each from another address of `network` (2001:db8:66::), which is routed here."""
    opened: deque[socket.socket] = deque()
    began, number = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        while number < now * rate:
            sock = socket.socket(socket.AF_INET6)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND, linux/in6.h
            sock.bind((f"{network}{number % 65536:x}", 0))
            sock.connect_ex((to, port))
            opened.append(sock)
            if len(opened) > MOST_OPEN:
                opened.popleft().close()
            number += 1
        _pause.wait(0.001)
    sys.stdout.write(f"{json.dumps({'connects': number})}\n")


def call(to: str, port: int) -> bool:
    """One TLS call, slowly. Was it answered?"""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        with socket.create_connection((to, port), WITHIN) as sock:
            sock.settimeout(WITHIN)

            def until_done(step: Callable[[], object]) -> object:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        _send(sock, outgoing)
                        data = sock.recv(65536)
                        if not data:
                            raise ConnectionResetError from None
                        incoming.write(data)

            until_done(tls.do_handshake)
            tls.write(b"GET /v1/whoami HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n")
            answer = until_done(lambda: tls.read(65536))
            return isinstance(answer, bytes) and answer.startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def _send(sock: socket.socket, outgoing: ssl.MemoryBIO) -> None:
    if outgoing.pending:
        _pause.wait(AWAY)
        sock.sendall(outgoing.read())


def honest(to: str, port: int, count: int) -> None:
    sys.stdout.write(f"{json.dumps([call(to, port) for _ in range(count)])}\n")


if __name__ == "__main__":
    if sys.argv[1] == "flood":
        flood(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), float(sys.argv[6]))
    else:
        honest(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
