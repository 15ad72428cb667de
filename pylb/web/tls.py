"""The certificate of a TLS listener: the operator's files, or one pylb makes for itself at its first start."""

import base64
import fcntl
import hashlib
import os
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pylb.control.storage.files import read_regular, set_aside, write_private

CERTIFICATE, KEY, NEXT_KEY = "cert.pem", "key.pem", "next-key.pem"  # in the folder of a certificate of ours
MOST_BYTES = 1 << 20  # of a file; a chain of ten certificates is 20 KB
YEARS = 10  # its readers pin the key; a public name with a public certificate is the other way
CLOCK_SKEW = timedelta(days=1)  # a node whose clock is behind must not refuse a new certificate


class Certificate:
    """A certificate and its key, as `context` for listeners. `reload` serves what the files hold now to new handshakes."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.path = certificate
        self.key = key
        self.context, self.expires_at = _load(certificate, key)  # the end: unix time

    def reload(self) -> None:
        """Raises OSError (ssl.SSLError is one) or ValueError; then what was served before goes on being served.

        For a thread: it reads files. The context in use is never touched, another one takes its place.
        """
        self.context, self.expires_at = _load(self.path, self.key)


def _load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, float]:
    """Raises OSError, ValueError."""
    read_regular(key, MOST_BYTES)  # OpenSSL would wait for whoever writes into a FIFO
    found = x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=_encrypted)
    return context, found.not_valid_after_utc.timestamp()


def _encrypted() -> str:
    """In place of OpenSSL's question on the terminal."""
    raise ValueError("the key is encrypted: pylb needs it without a passphrase, readable for its user alone")


def self_signed(directory: Path, names: Iterable[str]) -> Certificate:
    """The certificate in `directory`, made for `names` (host names and IPs) if there is none yet. Raises OSError, ValueError.

    The key is what counts, since phone-homes pin it: without one a certificate is an error, not a reason to make a new
    one; and a key without its certificate, as a crash leaves it, is given one.
    """
    certificate, key = directory / CERTIFICATE, directory / KEY
    there = os.path.lexists(certificate)  # a link that leads nowhere is no first start: what it led to is lost
    if there and not os.path.lexists(key):
        raise FileNotFoundError(f"{key} is missing; without it {certificate} is useless: restore it, or remove both")
    if not there:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            found = _read_key(key)
        except (OSError, ValueError):  # none, or nothing that was ever served
            found = ec.generate_private_key(ec.SECP256R1())
            write_private(key, _key_pem(found))
        write_private(certificate, _certificate_pem(found, names))
    elif pin(certificate) != _pin((found := _read_key(key)).public_key()):  # a switch that a crash cut short
        write_private(certificate, _certificate_pem(found, names))
    return Certificate(certificate, key)


def repaired(directory: Path, names: Iterable[str]) -> tuple[Certificate, str]:
    """As `self_signed`, whatever is in the way: garbage is set aside and made anew. What became of what, "" if all was well.

    A start that ends over it would close every port; phone-homes that refuse a new key close none. The key is saved where
    it can be: with it every pin holds. Raises OSError, ValueError: nothing can be made there.
    """
    try:
        return self_signed(directory, names), ""
    except (OSError, ValueError) as error:
        said = f"the webhook's own certificate cannot be used: {error}"
    if os.path.lexists(directory) and not directory.is_dir():
        said += set_aside(directory)
    try:
        found = _read_key(directory / KEY)
        write_private(directory / KEY, _key_pem(found))  # OpenSSL is stricter with what stands around it
        ending = "another one for the same key takes its place, and every pin holds"
        broken = [directory / CERTIFICATE]
    except (OSError, ValueError):
        ending = "a new key takes its place: phone-homes that pin the old one need a new join string (pylb token create)"
        broken = [directory / KEY, directory / CERTIFICATE]
    said += "".join(set_aside(path) for path in broken if os.path.lexists(path))
    return self_signed(directory, names), f"{said}; {ending}"


def next_pin(directory: Path) -> str:
    """The pin of the key that `switch` will serve; it is made if there is none yet. Raises OSError, ValueError."""
    path = directory / NEXT_KEY
    with _alone(directory):
        if not path.exists():
            write_private(path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
        return _pin(_read_key(path).public_key())


def switch(directory: Path, names: Iterable[str]) -> str:
    """Serve the next key from now on; its pin. Raises FileNotFoundError if there is none, OSError, ValueError.

    The key goes first, and wins: if a crash comes between, `self_signed` makes the certificate that is missing.
    """
    with _alone(directory):
        found = _read_key(directory / NEXT_KEY)
        certificate = _certificate_pem(found, names)
        (directory / NEXT_KEY).rename(directory / KEY)
        write_private(directory / CERTIFICATE, certificate)
    return _pin(found.public_key())


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time: of two that make a next key, one would print the pin of a key that the other replaced."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def pin(certificate: Path) -> str:
    """SHA-256 of its public key (SubjectPublicKeyInfo, as RFC 7469 pins it), base64url without padding.

    A renewed certificate of the same key has the same one. Raises OSError, ValueError.
    """
    return _pin(x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES)).public_key())


def _pin(key: CertificatePublicKeyTypes) -> str:
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


def is_self_signed(certificate: Path) -> bool:
    """No authority vouches for it. Raises OSError, ValueError."""
    found = x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES))
    return found.issuer == found.subject


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises OSError, ValueError."""
    try:
        key = serialization.load_pem_private_key(read_regular(path, MOST_BYTES), password=None)
    except TypeError:
        raise ValueError(f"{path} is encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is none of pylb's keys (an elliptic curve's)")  # noqa: TRY004 - a file's content
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _certificate_pem(key: ec.EllipticCurvePrivateKey, for_names: Iterable[str]) -> bytes:
    names = list(dict.fromkeys(for_names)) or ["localhost"]
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
    return certificate.public_bytes(serialization.Encoding.PEM)


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
