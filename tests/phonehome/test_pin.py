"""The key that a join string pins is the key that OpenSSL shook hands with, whatever bytes the certificate is made of."""

from __future__ import annotations

import base64
import copy
import hashlib
import queue
import random
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from socket import create_server

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from phonehome.client import CallError, Client
from phonehome.message import Request
from phonehome.pin import NotDerError, key_pin, public_key
from phonehome.values import Endpoint, Token
from tests.phonehome import der, openssl
from tests.phonehome.peer import TOKEN, WAIT

ATTACKER = ec.generate_private_key(ec.SECP256R1())
KEYS: dict[str, der.Key] = {
    "ec256": ATTACKER,
    "ec521": ec.generate_private_key(ec.SECP521R1()),
    "rsa2048": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = ec.generate_private_key(ec.SECP256R1())  # whose owner is the one that is pinned
CERTIFICATES = {kind: der.made(key) for kind, key in KEYS.items()}


def pin_of(spki: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


def agrees(data: bytes) -> bool:
    """Whether a key was found in `data`; fails if OpenSSL finds another one there."""
    try:
        ours = public_key(data)
    except NotDerError:
        assert key_pin(data) == ""
        return False
    theirs = openssl.certificate_key(data)
    assert theirs is None or openssl.key(ours) == theirs
    return True


@pytest.mark.parametrize("kind", KEYS)
def test_the_key_of_every_kind_of_certificate_is_found(kind: str, tmp_path: Path) -> None:
    certificate = der.made(KEYS[kind], names=5)  # lengths of more than a byte
    assert public_key(certificate) == der.spki(KEYS[kind]) == openssl.certificate_key(certificate)
    assert key_pin(certificate) == pin_of(der.spki(KEYS[kind]))
    file = tmp_path / "certificate"
    file.write_bytes(certificate)
    command = ["openssl", "x509", "-inform", "der", "-in", str(file), "-noout", "-pubkey"]
    shown = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    loaded = serialization.load_pem_public_key(shown)
    assert loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo) == public_key(
        certificate
    )


# ------------------------------------------------------------ the attack of issue 14


@pytest.fixture
def attacker(tmp_path: Path) -> Iterator[tuple[int, queue.Queue[bytes]]]:
    """A TLS server with its own key under a certificate that holds the pinned key too: its port, and what it is sent."""
    certificate = der.with_a_key_inside_the_signature_algorithm(ATTACKER, der.spki(OTHER))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*der.written(tmp_path, certificate, ATTACKER))
    received: queue.Queue[bytes] = queue.Queue()
    listener = create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(WAIT)
            with context.wrap_socket(sock, server_side=True) as tls:
                try:
                    received.put(tls.recv(4096))
                except OSError:
                    received.put(b"")  # a caller that hangs up without a word

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], received
    thread.join(WAIT)
    listener.close()


def test_a_certificate_with_the_pinned_key_elsewhere_in_it_is_sent_not_a_byte(attacker: tuple[int, queue.Queue[bytes]]) -> None:
    port, received = attacker
    client = Client(Endpoint(True, "127.0.0.1", port, "", (pin_of(der.spki(OTHER)),)), "source", None)
    with pytest.raises(CallError) as caught:
        client.call(Request("PUT", "/v1/registrations/a/b", b"{}"), Token(TOKEN), 10)
    assert (caught.value.what, caught.value.unsent) == ("not the key of the join string", True)
    assert received.get(timeout=WAIT) == b""


def test_openssl_takes_that_certificate_with_the_attackers_key_and_its_signature() -> None:
    """Else the test above would prove nothing."""
    certificate = der.with_a_key_inside_the_signature_algorithm(ATTACKER, der.spki(OTHER))
    assert openssl.certificate_key(certificate) == der.spki(ATTACKER)
    assert openssl.signed_by_itself(certificate)
    assert key_pin(certificate) == ""


# ------------------------------------------------------------ any bytes


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_key(noise: bytes) -> None:
    assert key_pin(noise) == ""


@pytest.mark.parametrize("kind", KEYS)
def test_a_certificate_that_is_cut_or_has_a_tail_has_no_key(kind: str) -> None:
    whole = CERTIFICATES[kind]
    assert all(key_pin(whole[:size]) == "" for size in range(len(whole)))
    assert key_pin(whole + b"\x00") == key_pin(whole + whole) == ""


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_openssls_key_or_none(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(CERTIFICATES[kind])
    for place, value in changes:
        data[place % len(data)] = value
    agrees(bytes(data))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.integers(0, 2**32))
def test_a_changed_structure_gives_openssls_key_or_none(kind: str, seed: int) -> None:
    agrees(mutated(CERTIFICATES[kind], random.Random(seed)))


def test_the_changes_of_structure_reach_what_they_are_made_for() -> None:
    """Both kinds occur: certificates that OpenSSL takes and we refuse, and changed ones that both take."""
    refused = taken = 0
    for seed in range(600):
        data = mutated(CERTIFICATES["ec256"], random.Random(seed))
        if openssl.certificate_key(data) is not None:
            found = agrees(data)
            refused += not found
            taken += found and data != CERTIFICATES["ec256"]
    assert refused >= 20
    assert taken >= 20


@pytest.mark.parametrize("size", [1 << 20])
def test_a_megabyte_of_nested_or_tiny_elements_costs_one_pass(size: int) -> None:
    for data in (b"\x30\x80" * (size // 2), der.element(0x30, b"\x05\x00" * (size // 2)), b"\x30\x84\xff\xff\xff\xff" * 1000):
        assert key_pin(data) == ""


# ------------------------------------------------------------ a certificate as a tree, written anew with changes


class Node:
    """One element; `form` is how its length is written."""

    def __init__(self, tag: int, content: bytes, children: list[Node]) -> None:
        self.tag, self.content, self.children = tag, content, children
        self.form = "minimal"

    def write(self) -> bytes:
        content = b"".join(child.write() for child in self.children) if self.children else self.content
        if self.form == "indefinite":
            return bytes([self.tag, 0x80]) + content + b"\x00\x00"
        if self.form == "long":
            return bytes([self.tag, 0x84]) + len(content).to_bytes(4, "big") + content
        if self.form == "short by one":
            return der.element(self.tag, content)[:-1]
        return der.element(self.tag, content)


def tree(data: bytes) -> list[Node]:
    nodes, place = [], 0
    while place < len(data):
        tag, length, content = data[place], data[place + 1], place + 2
        if length >= 0x80:
            content += length & 0x7F
            length = int.from_bytes(data[place + 2 : content], "big")
        inside = data[content : content + length]
        nodes.append(Node(tag, inside, tree(inside) if tag & 0x20 else []))
        place = content + length
    return nodes


def all_of(nodes: list[Node]) -> list[Node]:
    return [found for node in nodes for found in (node, *all_of(node.children))]


def mutated(certificate: bytes, chance: random.Random) -> bytes:
    """One to three changes: of how a length is written, of a tag, of content, or elements inserted, removed, shuffled."""
    roots = tree(certificate)
    for _ in range(chance.randint(1, 3)):
        nodes = all_of(roots)
        node, parent = chance.choice(nodes), chance.choice([one for one in nodes if one.children])
        match chance.choice(["form", "form", "tag", "content", "insert", "remove", "shuffle", "smuggle"]):
            case "form":
                node.form = chance.choice(["indefinite", "long", "short by one"])
            case "tag":
                node.tag = chance.choice([0x02, 0x03, 0x05, 0x24, 0x30, 0x31, 0x80, 0xA0, 0xA3])
            case "content":
                node.content = chance.randbytes(len(node.content))
            case "insert":
                parent.children.insert(chance.randint(0, len(parent.children)), copy.deepcopy(node))
            case "remove":
                parent.children.pop(chance.randrange(len(parent.children)))
            case "shuffle":
                chance.shuffle(parent.children)
            case "smuggle":
                parent.form = chance.choice(["minimal", "indefinite"])
                parent.children += tree(b"\x05\x00" * chance.randint(0, 3) + der.spki(OTHER))
    return b"".join(root.write() for root in roots)
