"""Which public key a certificate has, as join strings pin it. Pure.

The handshake proves that the peer has the private key of its certificate, as OpenSSL reads that certificate. So the key that
is compared here must be the one that OpenSSL finds, whatever bytes an attacker sends. OpenSSL accepts BER; this accepts only
strict DER (X.690, 10.1 and 11): each tag on the path to the key is the one that RFC 5280 names, each length is definite and
minimal, and the elements fill their container to its last byte. Then the bytes have only one possible structure.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

INTEGER, BIT_STRING, SEQUENCE = 0x02, 0x03, 0x30
VERSION = 0xA0
CERTIFICATE = [SEQUENCE, SEQUENCE, BIT_STRING]  # the signed part, the algorithm, the signature
BEFORE_KEY = [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE]  # serial number, signature, issuer, validity, subject
AFTER_KEY = [0x81, 0x82, 0xA3]  # two unique IDs and the extensions, each optional, in this order
KEY = [SEQUENCE, BIT_STRING]  # the algorithm and the key itself


class NotDerError(ValueError):
    """Not a certificate in strict DER."""


class Element(NamedTuple):
    tag: int
    start: int  # of the tag
    content: int
    end: int  # of element and content


def key_pin(certificate: bytes) -> str:
    """SHA-256 of the public key of a DER certificate (RFC 7469, 2.4), base64url without padding; "" if it is not one."""
    try:
        key = public_key(certificate)
    except NotDerError:
        return ""
    return base64.urlsafe_b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a certificate (RFC 5280, 4.1), byte for byte. Raises NotDerError."""
    [whole] = _expect(_elements(certificate, 0, len(certificate)), [SEQUENCE])
    signed, _, _ = _expect(_inside(certificate, whole), CERTIFICATE)
    fields = _inside(certificate, signed)
    if fields and fields[0].tag == VERSION:  # absent in version 1
        _expect(_inside(certificate, fields.pop(0)), [INTEGER])
    count = len(BEFORE_KEY)
    _expect(fields[: count + 1], [*BEFORE_KEY, SEQUENCE])
    after = [field.tag for field in fields[count + 1 :]]
    _expect(fields[count + 1 :], [tag for tag in AFTER_KEY if tag in after])
    key = fields[count]
    _expect(_inside(certificate, key), KEY)
    return certificate[key.start : key.end]


def _expect(found: list[Element], tags: list[int]) -> list[Element]:
    if [element.tag for element in found] != tags:
        raise NotDerError
    return found


def _inside(data: bytes, element: Element) -> list[Element]:
    return _elements(data, element.content, element.end)


def _elements(data: bytes, start: int, end: int) -> list[Element]:
    """All elements from `start`; the last one must end exactly at `end`. Raises NotDerError."""
    found: list[Element] = []
    while start < end:
        found.append(_element(data, start, end))
        start = found[-1].end
    return found


def _element(data: bytes, start: int, end: int) -> Element:
    content = start + 2
    if content > end:
        raise NotDerError
    tag, length = data[start], data[start + 1]
    if length >= 0x80:
        count = length & 0x7F  # 0 is BER's indefinite length
        content += count
        length = int.from_bytes(data[start + 2 : content], "big")
        if not 1 <= count <= 4 or content > end or length < max(0x80, 1 << 8 * (count - 1)):
            raise NotDerError
    if tag & 0x1F == 0x1F or content + length > end:  # a tag of several bytes
        raise NotDerError
    return Element(tag, start, content, content + length)
