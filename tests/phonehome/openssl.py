"""What OpenSSL itself makes of bytes, by the very library that the TLS of this process runs on."""

from __future__ import annotations

import ctypes
import ssl  # noqa: F401  loads the library
from pathlib import Path
from typing import Any


def _library() -> Any:
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    path = next((name for name in mapped if "/libcrypto" in name), None)
    found = ctypes.CDLL(path)  # None: linked into the interpreter itself
    for name in ("d2i_X509", "X509_get0_pubkey", "d2i_PUBKEY"):
        getattr(found, name).restype = ctypes.c_void_p
    return found


_OPENSSL = _library()


def certificate_key(data: bytes) -> bytes | None:
    """The public key (DER) that OpenSSL finds in a certificate, BER and all; None: it takes no such certificate or key."""
    certificate = _read("d2i_X509", data)
    if certificate is None:
        return None
    try:
        key = _OPENSSL.X509_get0_pubkey(ctypes.c_void_p(certificate))
        return _written(key) if key else None
    finally:
        _OPENSSL.X509_free(ctypes.c_void_p(certificate))
        _OPENSSL.ERR_clear_error()


def key(data: bytes) -> bytes | None:
    """A SubjectPublicKeyInfo, written anew by OpenSSL; None: it takes no such key."""
    found = _read("d2i_PUBKEY", data)
    if found is None:
        return None
    try:
        return _written(found)
    finally:
        _OPENSSL.EVP_PKEY_free(ctypes.c_void_p(found))
        _OPENSSL.ERR_clear_error()


def signed_by_itself(data: bytes) -> bool:
    """Whether OpenSSL takes the certificate's signature, made with its own key."""
    certificate = ctypes.c_void_p(_read("d2i_X509", data))
    try:
        return bool(_OPENSSL.X509_verify(certificate, ctypes.c_void_p(_OPENSSL.X509_get0_pubkey(certificate))) == 1)
    finally:
        _OPENSSL.X509_free(certificate)


def _read(function: str, data: bytes) -> int | None:
    place = ctypes.cast(ctypes.create_string_buffer(data, len(data)), ctypes.c_void_p)
    found: int | None = getattr(_OPENSSL, function)(None, ctypes.byref(place), ctypes.c_long(len(data)))
    _OPENSSL.ERR_clear_error()
    return found


def _written(pkey: int) -> bytes | None:
    out = ctypes.c_void_p()
    size = _OPENSSL.i2d_PUBKEY(ctypes.c_void_p(pkey), ctypes.byref(out))
    if size <= 0:
        return None
    try:
        return ctypes.string_at(out, size)
    finally:
        _OPENSSL.CRYPTO_free(out, None, 0)
