"""The certificate of a TLS listener: the operator's files, or one that pylb makes for itself at its first start."""

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

from pylb.config.pem import MOST_BYTES
from pylb.control.storage.files import read_regular, set_aside, write_private

CERTIFICATE, KEY, NEXT_KEY = "cert.pem", "key.pem", "next-key.pem"  # in the directory of a certificate that pylb made
YEARS = 10  # clients pin its key; the alternative is a public certificate for a public name
CLOCK_SKEW = timedelta(days=1)  # a node whose clock is behind must not refuse a new certificate


class Certificate:
    """A certificate and its key, as `context` for listeners. After `reload` new handshakes use what the files contain now."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.path = certificate
        self.key = key
        self.context, self.expires_at = _load(certificate, key)  # expires_at: unix time

    def reload(self) -> None:
        """Read the files again. Raises OSError (ssl.SSLError is one) or ValueError; then the old certificate stays in use.

        Call it in a thread, as it reads files. That is safe: the context in use is replaced, never changed.
        """
        self.context, self.expires_at = _load(self.path, self.key)


def _load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, float]:
    """The context, and the unix time when the certificate expires. Raises OSError, ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    found = x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES))
    load_pair(context, certificate, key)
    return context, found.not_valid_after_utc.timestamp()


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """What `context` shows to the other side. Waits for nobody: neither for a FIFO nor for a passphrase on the terminal.

    Raises OSError (ssl.SSLError is one), ValueError.
    """
    for file in (certificate, key):
        read_regular(file, MOST_BYTES)  # refuses a FIFO, on which OpenSSL would wait for ever
    context.load_cert_chain(certificate, key, password=_encrypted)


def _encrypted() -> str:
    """Called instead of OpenSSL's prompt on the terminal."""
    raise ValueError("the key is encrypted; pylb needs it without a passphrase, readable only by its own user")


def self_signed(directory: Path, names: Iterable[str]) -> Certificate:
    """The certificate in `directory`, made for `names` (host names and IPs) if there is none yet. Raises OSError, ValueError.

    Phone-homes pin the key. So a certificate without its key is an error and no reason to make a new key, whereas a key
    without its certificate, as after a crash, gets a new certificate.
    """
    certificate, key = directory / CERTIFICATE, directory / KEY
    there = os.path.lexists(certificate)  # a dangling link means that files are lost, not that this is the first start
    if there and not os.path.lexists(key):
        raise FileNotFoundError(f"{key} is missing; without it {certificate} is useless: restore it, or remove both")
    if not there:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            found = _read_key(key)
        except (OSError, ValueError):  # there is none, or one that never worked
            found = ec.generate_private_key(ec.SECP256R1())
            write_private(key, _key_pem(found))
        write_private(certificate, _certificate_pem(found, names))
    elif pin(certificate) != _pin((found := _read_key(key)).public_key()):  # a crash interrupted a switch
        write_private(certificate, _certificate_pem(found, names))
    return Certificate(certificate, key)


def repaired(directory: Path, names: Iterable[str]) -> tuple[Certificate, str]:
    """Like `self_signed`, but unusable files are set aside and made again; also a message about it, or "".

    If the start failed instead, every port would be closed, whereas phone-homes that refuse a new key close none. The old
    key is used if it can be read, because then every pin still matches. Raises OSError or ValueError if nothing can be made.
    """
    try:
        return self_signed(directory, names), ""
    except (OSError, ValueError) as error:
        said = f"the webhook's own certificate cannot be used: {error}"
    if os.path.lexists(directory) and not directory.is_dir():
        said += set_aside(directory)
    try:
        found = _read_key(directory / KEY)
        write_private(directory / KEY, _key_pem(found))  # written again, because OpenSSL is stricter about text around the key
        ending = "a new one for the same key replaces it, and every pin still matches"
        broken = [directory / CERTIFICATE]
    except (OSError, ValueError):
        ending = "a new key replaces it; phone-homes that pin the old one need a new join string (pylb token create)"
        broken = [directory / KEY, directory / CERTIFICATE]
    said += "".join(set_aside(path) for path in broken if os.path.lexists(path))
    return self_signed(directory, names), f"{said}; {ending}"


def next_pin(directory: Path) -> str:
    """The pin of the key that `switch` will use; the key is made if there is none yet. Raises OSError, ValueError."""
    path = directory / NEXT_KEY
    with _alone(directory):
        if not path.exists():
            write_private(path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
        return _pin(_read_key(path).public_key())


def switch(directory: Path, names: Iterable[str]) -> str:
    """Put the next key in use and return its pin. Raises FileNotFoundError if there is none; OSError; ValueError.

    The key is replaced first: after a crash in between, `self_signed` makes a certificate that matches it.
    """
    with _alone(directory):
        found = _read_key(directory / NEXT_KEY)
        certificate = _certificate_pem(found, names)
        (directory / NEXT_KEY).rename(directory / KEY)
        write_private(directory / CERTIFICATE, certificate)
    return _pin(found.public_key())


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process in at a time. Otherwise one could print the pin of a next key that another one has just replaced."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def pin(certificate: Path) -> str:
    """The SHA-256 of the public key (SubjectPublicKeyInfo, as in RFC 7469), in base64url without padding.

    A renewed certificate with the same key has the same pin. Raises OSError, ValueError.
    """
    return _pin(x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES)).public_key())


def _pin(key: CertificatePublicKeyTypes) -> str:
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


def is_self_signed(certificate: Path) -> bool:
    """Whether the certificate has no other issuer than itself. Raises OSError, ValueError."""
    found = x509.load_pem_x509_certificate(read_regular(certificate, MOST_BYTES))
    return found.issuer == found.subject


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises OSError, ValueError."""
    try:
        key = serialization.load_pem_private_key(read_regular(path, MOST_BYTES), password=None)
    except TypeError:
        raise ValueError(f"{path} is encrypted") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not a key that pylb made (an elliptic curve key)")  # noqa: TRY004 - it is about a file's content
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
        # It is its own CA, so that clients that get this file as their CA accept it, even in Python 3.13's strict mode.
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
