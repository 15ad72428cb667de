"""Certificates with bytes of a test's choice in them."""

from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")  # its OID, 1.2.840.10045.4.3.2


def element(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def made(key: Key, names: int = 1) -> bytes:
    """A usual certificate (DER) of a key, signed by itself."""
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)] * names)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("lb.example.net")]), critical=False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def with_a_key_inside_the_signature_algorithm(attacker: ec.EllipticCurvePrivateKey, pinned: bytes) -> bytes:
    """A certificate of the attacker's key with a good signature, and the key `pinned` in its inner AlgorithmIdentifier.

    Who takes BER's indefinite length for the length 0 finds `pinned` where the public key belongs.
    """
    algorithm = b"\x30\x80" + ECDSA_SHA256 + b"\x30\x80\x05\x00" + pinned + b"\x00\x00" + b"\x00\x00"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pylb")]).public_bytes()
    validity = element(0x30, element(0x17, b"200101000000Z"), element(0x17, b"490101000000Z"))
    signed = element(
        0x30, element(0xA0, element(0x02, b"\x02")), element(0x02, b"\x07"), algorithm, name, validity, name, spki(attacker)
    )
    signature = attacker.sign(signed, ec.ECDSA(hashes.SHA256()))
    return element(0x30, signed, algorithm, element(0x03, b"\x00", signature))


def written(folder: Path, certificate: bytes, key: Key) -> tuple[Path, Path]:
    """As PEM files that a server can load. The text is made here: cryptography would not take BER."""
    body = base64.encodebytes(certificate).decode()
    certificate_path, key_path = folder / "forged.crt", folder / "forged.key"
    certificate_path.write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path
