"""ClientHellos made byte by byte, for whatever a test wants to be odd about them (RFC 8446, 4.1.2)."""

from collections.abc import Iterable, Sequence

GREASE = (0x0A0A, b"")  # RFC 8701: a value that nobody knows, to keep servers tolerant


def vector(data: bytes, width: int) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(value, 2)


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    """The extension server_name, with these names of one type."""
    return 0, vector(b"".join(bytes([kind]) + vector(name, 2) for name in names), 2)


def hello(
    *extensions: tuple[int, bytes],
    version: bytes = b"\x03\x03",
    session_id: bytes = bytes(32),
    ciphers: bytes = b"\x13\x01\x13\x02\xc0\x2f\x00\xff",
    compression: bytes = b"\x00",
    without_extensions: bool = False,
) -> bytes:
    """The handshake message, without a record around it."""
    body = version + bytes(range(32)) + vector(session_id, 1) + vector(ciphers, 2) + vector(compression, 1)
    if not without_extensions:
        body += vector(b"".join(extension(*one) for one in extensions), 2)
    return b"\x01" + vector(body, 3)


def records(message: bytes, sizes: Iterable[int] = (), version: bytes = b"\x03\x01") -> bytes:
    """The message in records of these sizes; what remains is in the last one."""
    found = b""
    for size in sizes:
        if message:
            found += b"\x16" + version + vector(message[:size], 2)
            message = message[size:]
    return found + b"\x16" + version + vector(message, 2) if message else found


def asking_for(name: bytes | str, *more: tuple[int, bytes], sizes: Sequence[int] = ()) -> bytes:
    """What a client sends first that asks for this name."""
    encoded = name.encode() if isinstance(name, str) else name
    return records(hello(server_name(encoded), *more), sizes)
