"""One call over real sockets: its bounds, its words when it fails, and what it keeps."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from phonehome import client as client_module
from phonehome.client import MAX_ANSWER, CallError, Cancel, Client, trust
from phonehome.message import READY, Request, registration
from phonehome.values import Endpoint, Token, parse_url
from tests.phonehome.peer import TOKEN, Answer, LoadBalancer, accepted, settings_for
from tests.phonehome.tls import self_signed

REQUEST = Request("PUT", "/v1/registrations/a/b", b"{}")


def client_for(url: str, address: str = "source", context: ssl.SSLContext | None = None) -> Client:
    return Client(parse_url(url), address, context)


def fails(client: Client, timeout: float = 5.0, **options: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        client.call(REQUEST, Token(TOKEN), timeout, **options)
    return caught.value


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """A server that does with each connection what the test says."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(serve: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            try:
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        serve(sock)
            except OSError:
                return  # the listener was shut down, or the client left

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def test_a_call_carries_token_host_and_body(load_balancer: LoadBalancer) -> None:
    settings = settings_for(load_balancer.url)
    reply = Client(settings.endpoints[0], "source", None).call(registration(settings, READY), settings.token)
    call = load_balancer.next()

    assert reply.status == 200
    assert (call.method, call.path, call.state) == ("PUT", "/v1/registrations/mosquitto/pod-1", "ready")
    assert call.headers["authorization"] == f"Bearer {TOKEN}"
    assert call.headers["host"] == f"127.0.0.1:{load_balancer.port}"
    assert call.headers["content-type"] == "application/json"


def test_a_prefix_comes_before_the_path(load_balancer: LoadBalancer) -> None:
    client_for(f"{load_balancer.url}/pylb/").call(REQUEST, Token(TOKEN))
    assert load_balancer.next().path == "/pylb/v1/registrations/a/b"


def test_proxy_variables_are_not_looked_at(load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert client_for(load_balancer.url).call(REQUEST, Token(TOKEN)).status == 200


def test_a_redirect_reaches_nobody_else(load_balancers: Callable[..., LoadBalancer]) -> None:
    first, second = load_balancers(), load_balancers()
    first.answer = lambda _: Answer(307, {}, (("location", second.url + "/"),))
    assert client_for(first.url).call(REQUEST, Token(TOKEN)).headers["location"] == second.url + "/"
    assert second.calls.empty()


def test_nobody_listening_is_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    error = fails(client_for(f"http://127.0.0.1:{port}"))
    assert (error.what, error.detail, error.unsent) == ("no connection", "127.0.0.1: Connection refused", True)


def test_a_server_that_never_answers_ends_with_the_deadline(load_balancer: LoadBalancer) -> None:
    load_balancer.answer = lambda _: load_balancer.hold(accepted())
    started = time.monotonic()
    assert fails(client_for(load_balancer.url), 0.3).what == "no answer in time"
    assert time.monotonic() - started < 3


def test_a_server_that_answers_drop_by_drop_ends_with_the_deadline(raw_server: Callable[..., str]) -> None:
    left = threading.Event()

    def trickle(sock: socket.socket) -> None:
        sock.recv(4096)
        try:
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000:
                sock.sendall(bytes([byte]))
                left.wait(0.02)
        except OSError:
            left.set()

    started = time.monotonic()
    assert fails(client_for(raw_server(trickle)), 0.4).what == "no answer in time"
    assert time.monotonic() - started < 3
    assert left.wait(10)


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {  # (how the answer begins, what is said again and again)
    "status line": (b"HTTP/1.1 200 ", b"x" * 1000),
    "one header": (OK + b"a: ", b"x" * 1000),
    "headers": (OK, b"a: " + b"x" * 60_000 + b"\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n"),
    "body": (OK + b"\r\n", b"x" * 1000),
    "body of a length": (OK + b"content-length: 1000000000000\r\n\r\n", b"x" * 1000),
    "chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
    "chunk extensions": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1;" + b"x" * 1000 + b"\r\nx\r\n"),
    "trailers": (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_answer_is_cut_at_its_bound(raw_server: Callable[..., str], kind: str) -> None:
    begin, again = ENDLESS[kind]
    most, hung_up = 16 * MAX_ANSWER, threading.Event()  # more than both sockets buffer, or the call would end by itself

    def flood(sock: socket.socket) -> None:
        sock.recv(4096)
        try:
            sock.sendall(begin)
            for _ in range(most // len(again)):
                sock.sendall(again)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # cut, as it should be
        hung_up.set()

    error = fails(client_for(raw_server(flood)), 30)
    assert error.what in ("answer too long", "no HTTP")  # http.client has a bound of its own for a line
    assert hung_up.wait(30)


def test_a_port_that_speaks_something_else_gets_a_hint(raw_server: Callable[..., str]) -> None:
    def alert(sock: socket.socket) -> None:
        got = b""
        while not got.endswith(REQUEST.body or b""):  # a close with unread input would reset the connection
            got += sock.recv(4096)
        sock.sendall(b"\x15\x03\x01\x00\x02\x02\x16")

    error = fails(client_for(raw_server(alert)))
    assert error.what == "no HTTP"
    assert "https://" in error.hint


def test_a_call_can_be_ended_while_it_waits_for_the_answer(load_balancer: LoadBalancer) -> None:
    load_balancer.answer = lambda _: load_balancer.hold(accepted())
    cancel, errors = Cancel(), []
    client = client_for(load_balancer.url)
    thread = threading.Thread(target=lambda: errors.append(fails(client, 30, cancel=cancel)))
    thread.start()
    load_balancer.next()
    cancel.abort()
    thread.join(10)

    assert len(errors) == 1
    assert not errors[0].unsent
    load_balancer.released.set()
    assert client.call(REQUEST, Token(TOKEN), cancel=Cancel()).status == 200


def test_a_call_that_was_ended_before_it_began_sends_nothing(load_balancer: LoadBalancer) -> None:
    cancel = Cancel()
    cancel.abort()
    assert fails(client_for(load_balancer.url), cancel=cancel).unsent
    assert load_balancer.calls.empty()


# ------------------------------------------------------------------ DNS


def resolving(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], str]) -> list[int]:
    """Let the resolver answer for lb.example.net what `answer` returns; the list collects the families asked for."""
    families: list[int] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, family: int = 0, *rest: Any, **options: Any) -> Any:
        if host != "lb.example.net":
            return real(host, port, family, *rest, **options)
        families.append(family)
        return real(answer(), port, family, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return families


def test_the_last_address_stays_in_use_while_dns_fails(load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["127.0.0.1"])

    def answer() -> str:
        try:
            return next(answers)
        except StopIteration:
            raise socket.gaierror(-3, "Temporary failure in name resolution") from None

    resolving(monkeypatch, answer)
    client = Client(Endpoint(False, "lb.example.net", load_balancer.port), "source", None)

    assert client.call(REQUEST, Token(TOKEN)).status == 200
    assert client.dns_trouble == ""
    assert client.call(REQUEST, Token(TOKEN)).status == 200
    assert (client.dns_trouble, client.addresses) == ("Temporary failure in name resolution", ["127.0.0.1"])


def test_a_resolver_that_hangs_costs_its_share_of_the_call_and_no_more(
    load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESOLVE_TIMEOUT", 0.1)
    hang, calls = threading.Event(), []

    def answer() -> str:
        calls.append(1)
        if len(calls) > 1:
            assert hang.wait(30)
        return "127.0.0.1"

    resolving(monkeypatch, answer)
    client = Client(Endpoint(False, "lb.example.net", load_balancer.port), "source", None)
    try:
        assert [client.call(REQUEST, Token(TOKEN)).status for _ in range(3)] == [200, 200, 200]
        assert client.dns_trouble == "no answer within 0 s"
        assert len(calls) == 2  # the third call did not start a second look-up beside the one that hangs
    finally:
        hang.set()


def test_a_name_that_never_resolved_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> str:
        raise socket.gaierror(-2, "Name or service not known")

    resolving(monkeypatch, answer)
    error = fails(Client(Endpoint(False, "lb.example.net", 9000), "source", None))
    assert (error.what, error.detail, error.unsent) == ("no address", "lb.example.net: Name or service not known", True)


@pytest.mark.parametrize(("address", "family"), [("source", 0), ("source4", socket.AF_INET), ("192.0.2.1", 0)])
def test_the_address_setting_chooses_the_family(
    load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch, address: str, family: int
) -> None:
    families = resolving(monkeypatch, lambda: "127.0.0.1")
    Client(Endpoint(False, "lb.example.net", load_balancer.port), address, None).call(REQUEST, Token(TOKEN))
    assert families == [family]


def test_source6_does_not_fall_back_to_ipv4(load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    families = resolving(monkeypatch, lambda: "127.0.0.1")
    assert fails(Client(Endpoint(False, "lb.example.net", load_balancer.port), "source6", None)).what == "no address"
    assert families == [socket.AF_INET6]


def test_a_dead_address_leaves_time_for_the_next(load_balancer: LoadBalancer, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [("127.0.0.2", 9), ("127.0.0.1", load_balancer.port)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    client = Client(Endpoint(False, "lb.example.net", load_balancer.port), "source", None)
    assert client.call(REQUEST, Token(TOKEN)).status == 200


# ------------------------------------------------------------------ TLS


@pytest.fixture
def tls(load_balancers: Callable[..., LoadBalancer], tmp_path: Path) -> tuple[LoadBalancer, str]:
    """A load balancer with a self-signed certificate, and that certificate."""
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    return load_balancers(server_context(certificate, key)), certificate.read_text()


def test_a_certificate_in_pylb_ca_is_trusted(tls: tuple[LoadBalancer, str]) -> None:
    load_balancer, pem = tls
    assert client_for(load_balancer.url, context=trust(pem)).call(REQUEST, Token(TOKEN)).status == 200
    assert load_balancer.next().headers["authorization"] == f"Bearer {TOKEN}"


def test_a_certificate_in_pylb_ca_is_trusted_without_its_issuer(
    load_balancers: Callable[..., LoadBalancer], tmp_path: Path
) -> None:
    issuer = ec.generate_private_key(ec.SECP256R1())
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1), issuer)
    url = load_balancers(server_context(certificate, key)).url
    assert client_for(url, context=trust(certificate.read_text())).call(REQUEST, Token(TOKEN)).status == 200


def test_an_unknown_certificate_is_refused_before_the_token_is_sent(tls: tuple[LoadBalancer, str]) -> None:
    load_balancer, _ = tls
    error = fails(client_for(load_balancer.url, context=trust(None)))
    assert error.what == "certificate not trusted"
    assert "PYLB_CA" in error.hint
    assert load_balancer.calls.empty()


def test_a_trusted_certificate_of_another_name_is_refused(
    tls: tuple[LoadBalancer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_balancer, pem = tls
    resolving(monkeypatch, lambda: "127.0.0.1")
    error = fails(Client(Endpoint(True, "lb.example.net", load_balancer.port), "source", trust(pem)))
    assert error.what == "certificate not trusted"
    assert "lb.example.net" in error.detail
    assert load_balancer.calls.empty()


def test_a_plain_port_called_with_https_gets_a_hint(load_balancer: LoadBalancer) -> None:
    error = fails(client_for(load_balancer.url.replace("http:", "https:"), context=trust(None)))
    assert error.what == "no TLS"
    assert "http://" in error.hint


def test_a_tls_handshake_that_stalls_ends_with_the_deadline_or_an_abort(raw_server: Callable[..., str]) -> None:
    begun = threading.Event()

    def stall(sock: socket.socket) -> None:
        begun.set()
        while sock.recv(4096):
            pass

    url = raw_server(stall).replace("http:", "https:")
    assert fails(client_for(url, context=trust(None)), 0.3).what == "no answer in time"

    begun.clear()
    cancel, errors = Cancel(), []
    thread = threading.Thread(target=lambda: errors.append(fails(client_for(url, context=trust(None)), 30, cancel=cancel)))
    thread.start()
    assert begun.wait(10)
    cancel.abort()
    thread.join(3)  # less than any timeout of the call itself
    assert len(errors) == 1


def test_a_file_that_holds_no_certificate_is_refused_at_the_start() -> None:
    with pytest.raises(ssl.SSLError):
        trust("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


# ------------------------------------------------------------ join strings: the key is pinned


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def der_of(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)


def pin_of(path: Path) -> str:
    key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


@pytest.mark.parametrize("lifetime", [dt.timedelta(days=1), dt.timedelta(minutes=-30)], ids=["valid", "expired"])
def test_the_pinned_key_is_trusted_whatever_its_certificate_says(
    load_balancers: Callable[..., LoadBalancer], tmp_path: Path, lifetime: dt.timedelta
) -> None:
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("192.0.2.1"), lifetime)
    load_balancer = load_balancers(server_context(certificate, key))
    endpoint = parse_url(load_balancer.url)._replace(pins=(pin_of(certificate),))
    assert Client(endpoint, "source", None).call(REQUEST, Token(TOKEN)).status == 200


def test_another_key_is_refused_before_the_token_is_sent(load_balancers: Callable[..., LoadBalancer], tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    load_balancer = load_balancers(server_context(certificate, key))
    pin = pin_of(certificate)
    endpoint = parse_url(load_balancer.url)._replace(pins=(pin[:-1] + ("A" if pin[-1] != "A" else "E"), "B" * 43))
    error = fails(Client(endpoint, "source", None))
    assert error.unsent
    assert error.what == "not the key of the join string"
    assert load_balancer.calls.empty()


@pytest.mark.parametrize("pins", [("A" * 43, ""), ("", "A" * 43)], ids=["the next key", "the present key"])
def test_either_of_two_pinned_keys_is_trusted(
    load_balancers: Callable[..., LoadBalancer], tmp_path: Path, pins: tuple[str, str]
) -> None:
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    load_balancer = load_balancers(server_context(certificate, key))
    endpoint = parse_url(load_balancer.url)._replace(pins=tuple(pin or pin_of(certificate) for pin in pins))
    assert Client(endpoint, "source", None).call(REQUEST, Token(TOKEN)).status == 200


def test_a_secure_call_with_nobody_to_trust_is_not_made_in_plain_text(load_balancer: LoadBalancer) -> None:
    endpoint = parse_url(load_balancer.url)._replace(secure=True)
    assert fails(Client(endpoint, "source", None)).unsent
    assert load_balancer.calls.empty()
