"""PEM files that the config names, and why one cannot be used. Loaded only where there is one: the library is large."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from pylb.control.storage.files import read_regular

MOST_BYTES = 1 << 20  # of a file; a chain of ten certificates is 20 KB
_DER = b"\x30"  # how everything in DER form begins: no text does


class UnusableFile(ValueError):  # noqa: N818 - a condition
    """Its text is the end of a sentence that begins with the file."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def read_certificates(path: Path) -> list[x509.Certificate]:
    """At least one; the first is the one whose key is shown. Raises OSError, ValueError (also UnusableFile)."""
    data = _read(path, "x509")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise UnusableFile("has no certificate that can be read", _looks_like(data, b"CERTIFICATE")) from None


def read_private_key(path: Path) -> PrivateKeyTypes:
    """Raises OSError, ValueError (also UnusableFile)."""
    data = _read(path, "pkey")
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        hint = f"openssl pkey -in {path} -out FILE, readable only by pylb's user"
        raise UnusableFile("is encrypted, and nobody is there to type the passphrase", hint) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableFile("has no private key that can be read", _looks_like(data, b"PRIVATE KEY")) from None


def _read(path: Path, command: str) -> bytes:
    data = read_regular(path, MOST_BYTES)
    if data.startswith(_DER):
        raise UnusableFile("is in DER form, not in PEM form", f"openssl {command} -inform der -in {path} -out FILE")
    return data


def _looks_like(data: bytes, wanted: bytes) -> str:
    """What to do about a file without what is wanted of it."""
    line = f"-----BEGIN {wanted.decode()}-----"
    if not data.strip():
        return f"it is empty; a file in PEM form has a line {line}"
    if wanted + b"-----" in data:
        return f"what follows its line {line} is damaged: copy it again"
    return f"a file in PEM form, with a line {line}"


def belongs_to(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    return _spki(certificate.public_key()) == _spki(key.public_key())


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def outside_its_time(several: Sequence[x509.Certificate], now: datetime | None = None) -> str:
    """Why none of them is valid at this time; "" if one is."""
    now = now or datetime.now(UTC)
    if any(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in several):
        return ""
    last = max(several, key=lambda one: one.not_valid_after_utc)
    if last.not_valid_after_utc < now:
        return f"has expired on {last.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return f"is valid from {last.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, which is in the future"


def common_name(certificate: x509.Certificate) -> str:
    return next((str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")
