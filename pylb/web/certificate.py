"""The certificate of a TLS listener: the operator's files, or one pylb makes for itself at its first start."""

import base64
import hashlib
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEARS = 10  # its readers pin the key; a public name with a public certificate is the other way
CLOCK_SKEW = timedelta(days=1)  # a node whose clock is behind must not refuse a new certificate


class Certificate:
    """A certificate and its key, as `context` for listeners. `reload` serves what the files hold now to new handshakes."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.path = certificate
        self.key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.expires_at = 0.0  # unix time
        self.reload()

    def reload(self) -> None:
        """Raises OSError (ssl.SSLError is one) or ValueError; then what was served before goes on being served."""
        expires = x509.load_pem_x509_certificate(self.path.read_bytes()).not_valid_after_utc.timestamp()
        # A trial first: OpenSSL would keep the new certificate with the old key if the key does not match.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.path, self.key)
        self.context.load_cert_chain(self.path, self.key)
        self.expires_at = expires


def self_signed(directory: Path, names: Iterable[str]) -> Certificate:
    """The certificate in `directory`, made for `names` (host names and IPs) if there is none yet. Raises OSError.

    Half a pair is an error, not a reason to make a new one: phone-homes may have pinned the old.
    """
    certificate, key = directory / "cert.pem", directory / "key.pem"
    if certificate.exists() and not key.exists():
        raise FileNotFoundError(f"{key} is missing; without it {certificate} is useless: restore it, or remove both")
    if not certificate.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        cert_pem, key_pem = _make(list(dict.fromkeys(names)) or ["localhost"])
        # The certificate comes last: a pair cut short by a crash has no certificate, was never served and is made anew.
        write_private(key, key_pem)
        write_private(certificate, cert_pem)
    return Certificate(certificate, key)


def pin(certificate: Path) -> str:
    """SHA-256 of its public key (SubjectPublicKeyInfo, as RFC 7469 pins it), base64url without padding.

    A renewed certificate of the same key has the same one. Raises OSError, ValueError.
    """
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


def is_self_signed(certificate: Path) -> bool:
    """No authority vouches for it. Raises OSError, ValueError."""
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return found.issuer == found.subject


def _make(names: list[str]) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])  # RFC 5280: at most 64 characters
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), critical=False)
        # A CA of itself alone: clients that are given this file as their CA accept it, Python 3.13's strict mode too.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write_private(path: Path, data: bytes) -> None:
    """0600 from its first byte, whole or not there. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
