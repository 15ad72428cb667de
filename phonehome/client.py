"""One HTTP request to one load balancer, bounded in time and size. The only module that touches the network.

The deadline covers the whole call: every socket operation gets the time that remains, so a peer that sends a byte a
second ends with the call. Redirects and proxy variables are ignored: there is no code for them.
Each request has its own connection: heartbeats are far apart, and only a fresh connection notices a pylb that moved.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from phonehome import __version__
from phonehome.message import Reply, Request
from phonehome.pin import key_pin
from phonehome.values import Endpoint, Token

CONNECT_TIMEOUT = 5.0  # seconds, for one address
RESOLVE_TIMEOUT = 5.0  # resolv.conf's own default for one try of one server
CALL_TIMEOUT = 15.0  # a whole heartbeat
MAX_ANSWER = 64 * 1024  # bytes: status line, headers, interim answers, body and its framing

TIMEOUTS = (TimeoutError, socket.timeout)  # two classes until Python 3.10
FAMILIES = {"source4": socket.AF_INET, "source6": socket.AF_INET6}


class CallError(Exception):
    """There was no answer. `what` is a stable kind, `detail` describes this occurrence, `hint` says what to check.

    `unsent`: certainly no byte of the request left this machine.
    """

    def __init__(self, what: str, detail: str = "", hint: str = "", *, unsent: bool = False) -> None:
        super().__init__(f"{what}: {detail}" if detail else what)
        self.what, self.detail, self.hint, self.unsent = what, detail, hint, unsent


def trust(ca: str | None) -> ssl.SSLContext:
    """One context for all load balancers. Raises ssl.SSLError or ValueError if `ca` contains no usable certificate.

    VERIFY_X509_PARTIAL_CHAIN: PYLB_CA may be pylb's own certificate instead of its issuer's.
    """
    if ca is None:
        return ssl.create_default_context()
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", ca, re.DOTALL)
    if not blocks:
        raise ValueError("no PEM certificate")
    # As DER: for PEM that claims to be encrypted, OpenSSL would open the terminal, ask, and wait.
    context = ssl.create_default_context(cadata=b"".join(ssl.PEM_cert_to_DER_cert(block) for block in blocks))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@functools.lru_cache(maxsize=1)
def pinned_trust() -> ssl.SSLContext:
    """Checks neither name nor date: the key counts (see `Client._check_pin`), and it outlives its certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Cancel:
    """Lets another thread end one call. Bound to that call, so that a late abort never hits the next one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.aborted = False

    def guard(self, end: Callable[[], None]) -> None:
        """From here on the call waits for something that `end` interrupts. Raises CallError if it was aborted before."""
        with self._lock:
            if self.aborted:
                raise CallError("given up", unsent=True)  # guards are only set before the request
            self._end = end

    def abort(self) -> None:
        with self._lock:
            self.aborted = True
            end = self._end
        if end is not None:
            end()


class Resolver:
    """Addresses of one host; the last ones found stay in use while DNS fails."""

    def __init__(self, endpoint: Endpoint, address: str) -> None:
        self._endpoint = endpoint
        self._family = FAMILIES.get(address, socket.AF_UNSPEC)
        self._changed = threading.Condition()
        self._asking = False
        self.known: list[tuple[int, Any]] = []  # (family, sockaddr)
        self.trouble = ""  # of the last look-up; empty if it worked
        try:
            ipaddress.ip_address(endpoint.host)
            self.literal = True
        except ValueError:
            self.literal = False
        if self.literal:
            self._ask()  # needs no DNS and never changes

    def refresh(self, timeout: float, cancel: Cancel) -> None:
        """Look up again, for at most `timeout` seconds; then `known` is fresh, or `trouble` says why it is not.

        getaddrinfo cannot be interrupted, hence the thread; while one hangs, no second one is started.
        """
        if self.literal:
            return
        cancel.guard(self._wake)
        with self._changed:
            if not self._asking:
                self._asking = True
                threading.Thread(target=self._ask, name="resolve", daemon=True).start()
            if not self._changed.wait_for(lambda: cancel.aborted or not self._asking, timeout):
                self.trouble = f"no answer within {timeout:.0f} s"

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _ask(self) -> None:
        known, trouble = self.known, ""
        try:
            found = socket.getaddrinfo(self._endpoint.host, self._endpoint.port, self._family, socket.SOCK_STREAM)
            known = [(family, address) for family, _, _, _, address in found]
        except (OSError, UnicodeError) as exc:  # UnicodeError: a label longer than 63 characters
            trouble = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        with self._changed:
            self.known, self.trouble, self._asking = known, trouble, False
            self._changed.notify_all()


class Client:
    """Calls one load balancer, one call at a time."""

    def __init__(self, endpoint: Endpoint, address: str, context: ssl.SSLContext | None) -> None:
        """`address` is PYLB_ADDRESS (source4 and source6 choose the family); `context` is for https without a pin."""
        self._endpoint = endpoint
        self._resolver = Resolver(endpoint, address)
        self.use(endpoint.pins, context)

    def use(self, pins: tuple[str, ...], context: ssl.SSLContext | None) -> None:
        """Set whom to trust for this load balancer, from the next call on. Pins win over `context`."""
        self._pins, self._context = pins, pinned_trust() if pins else context

    @property
    def dns_trouble(self) -> str:
        return self._resolver.trouble

    @property
    def addresses(self) -> list[str]:
        return [sockaddr[0] for _, sockaddr in self._resolver.known]

    def call(
        self,
        request: Request,
        token: Token,
        timeout: float = CALL_TIMEOUT,
        *,
        cancel: Cancel | None = None,
        ask_dns: bool = True,
        most: int = MAX_ANSWER,
    ) -> Reply:
        """Raises CallError, never OSError. Without `ask_dns` the last known addresses are used, if there are any.

        `most`: bytes of the answer.
        """
        with self.exchange(request, token, timeout, cancel=cancel, ask_dns=ask_dns, most=most) as (response, _):
            body = response.read(most)  # with a size: without one, memory for the whole Content-Length is allocated
            return Reply(response.status, lower_headers(response), body)

    @contextlib.contextmanager
    def exchange(
        self,
        request: Request,
        token: Token,
        timeout: float = CALL_TIMEOUT,
        *,
        cancel: Cancel | None = None,
        ask_dns: bool = True,
        most: int = MAX_ANSWER,
    ) -> Iterator[tuple[http.client.HTTPResponse, Bounds]]:
        """The answer, with its body still to be read within the bounds. Raises CallError, also from the `with` block."""
        deadline = time.monotonic() + timeout
        cancel = cancel or Cancel()
        if ask_dns or not self._resolver.known:
            self._resolver.refresh(min(RESOLVE_TIMEOUT, timeout / 2), cancel)
        try:
            sock = self._connect(deadline, cancel)
            try:
                if self._endpoint.secure:
                    if self._context is None:
                        raise CallError("nobody to trust", "neither a pin nor a certificate", unsent=True)
                    # The TLS socket takes the descriptor over: from here on it is the one to close.
                    sock = self._context.wrap_socket(sock, server_hostname=self._endpoint.host, do_handshake_on_connect=False)
                    cancel.guard(lambda: _shut(sock))
                    sock.settimeout(_left(deadline))
                    sock.do_handshake()
                    self._check_pin(sock)
                bounds = Bounds(deadline, most)
                with self._send(sock, request, token, bounds) as response:
                    yield response, bounds
            finally:
                sock.close()
        except TIMEOUTS:
            raise CallError("no answer in time", f"the call took longer than {timeout:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._explain(exc) from None

    def _check_pin(self, sock: ssl.SSLSocket) -> None:
        """Before the first byte is sent: the handshake proved that the peer has the key, this that it is the right one."""
        if not self._pins:
            return
        found = key_pin(sock.getpeercert(binary_form=True) or b"")
        if not any(hmac.compare_digest(found, pin) for pin in self._pins):
            hint = "another machine, or a new key: its owner makes a new join string with `pylb token rotate`"
            raise CallError("not the key of the join string", f"it has {found or 'no certificate'}", hint, unsent=True)

    def _connect(self, deadline: float, cancel: Cancel) -> socket.socket:
        known = list(self._resolver.known)
        if not known:
            raise CallError("no address", f"{self._endpoint.host}: {self._resolver.trouble or 'nothing found'}", unsent=True)
        errors: list[str] = []
        for index, (family, address) in enumerate(known):
            share = _left(deadline) / (len(known) - index)  # so that a dead IPv6 leaves time for IPv4
            try:
                return self._dial(family, address, min(CONNECT_TIMEOUT, share), cancel)
            except OSError as exc:
                errors.append(f"{address[0]}: {'timed out' if isinstance(exc, TIMEOUTS) else exc.strerror or exc}")
        raise CallError("no connection", "; ".join(errors), unsent=True)

    def _dial(self, family: int, address: Any, timeout: float, cancel: Cancel) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            cancel.guard(lambda: _shut(sock))
            sock.settimeout(timeout)
            sock.connect(address)
            cancel.guard(lambda: _shut(sock))  # a connect that was shut down can look like one that worked
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def _send(self, sock: socket.socket, request: Request, token: Token, bounds: Bounds) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port)
        connection.sock = _Bounded(sock, bounds)
        headers = {
            "Host": self._endpoint.label,
            "Authorization": f"Bearer {token}",
            "User-Agent": f"phonehome/{__version__}",
            "Accept": "application/json",
            "Connection": "close",
        }
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        headers.update(request.headers)
        connection.request(request.method, self._endpoint.prefix + request.path, request.body, headers)
        return connection.getresponse()

    def _explain(self, exc: Exception) -> CallError:
        if isinstance(exc, ssl.SSLCertVerificationError):
            hint = "put pylb's certificate or its CA into PYLB_CA, and call it by a name in the certificate"
            return CallError("certificate not trusted", exc.verify_message, hint, unsent=True)
        if isinstance(exc, ssl.SSLError):
            hint = "does this port speak plain HTTP? then PYLB_URL begins with http://" if self._endpoint.secure else ""
            return CallError("no TLS", exc.reason or str(exc), hint)
        if isinstance(exc, OSError):
            return CallError("connection broken", exc.strerror or str(exc) or type(exc).__name__)
        hint = "" if self._endpoint.secure else "does this port speak TLS? then PYLB_URL begins with https://"
        return CallError("no HTTP", type(exc).__name__, hint)


def _shut(sock: socket.socket) -> None:
    """Wakes a thread that is blocked in the socket, which close would not. Not SSLSocket's own shutdown: that one drops the
    TLS state while the reader uses it, and lets it read on in plain text."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # not connected (any more): the call is ending anyway


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def lower_headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {key.lower(): value for key, value in response.getheaders()}


class Bounds:
    """Until when an answer may take (monotonic seconds), and how many bytes more it may have."""

    def __init__(self, deadline: float, most: int) -> None:
        self.deadline, self.most, self.rest = deadline, most, most


class _Reader(io.RawIOBase):
    """The reading end of a _Bounded socket. Everything that http.client reads comes through here, so the bound is here:
    http.client's own limits are 6 MiB for headers, and none for interim answers (100 Continue) and trailers."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock, self._bounds = sock, bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._bounds.deadline))
        count = self._sock.recv_into(buffer)
        self._bounds.rest -= count
        if self._bounds.rest < 0:
            raise CallError("answer too long", f"more than {self._bounds.most} bytes", "is that the right address?")
        return count


class _Bounded:
    """The socket as http.client sees it: bounded in time, and in how much it reads."""

    def __init__(self, sock: socket.socket, bounds: Bounds) -> None:
        self._sock, self._bounds = sock, bounds

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._bounds.deadline))  # for sendall the timeout counts for all of it
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._bounds))

    def close(self) -> None:
        """Does nothing: http.client closes before the answer is read; the owner closes."""
