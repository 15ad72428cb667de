"""The server name that a TLS client asks for: its first message, the ClientHello, read while it arrives.

The layout is that of RFC 8446 (4.1.2 the hello, 4.2 its extensions, 5.1 the records around it), which is the same in all
versions since SSL 3.0; the name is in the extension server_name (RFC 6066, 3). Nothing is verified beyond what is needed to
find the name: the server will judge the rest.
"""

from enum import Enum

MOST_HELLO = 16 * 1024  # bytes of the message; one with post-quantum keys has about 1,800
MOST_BYTES = MOST_HELLO + 4 + 64 * 5  # from the connection's first byte on: the message, its header, those of 64 records
MOST_EXTENSIONS = 256  # some sixty are registered, and none may come twice: this bounds the work
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_MAJOR = 3  # the first byte of the version, from SSL 3.0 to TLS 1.3
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_MOST_RECORD = 1 << 14
_BEFORE_SESSION_ID = 34  # version and random
_SERVER_NAME, _HOST_NAME = 0, 0


class Verdict(Enum):
    """What the bytes so far say."""

    MORE = "more"  # nothing yet: the rest of the hello may still come
    NAME = "name"
    NO_NAME = "no name"
    NOT_TLS = "not TLS"  # or a hello that is malformed: more bytes will not change that
    TOO_LONG = "too long"


class HelloReader:
    """Reads the hello of one connection. Each byte is looked at once, in however many pieces they come."""

    __slots__ = ("_message", "_record_end", "_seen", "begun", "name")

    def __init__(self) -> None:
        self.name = ""  # with Verdict.NAME: in lower case, else as it was sent, one character for each byte
        self.begun = False  # has any byte come?
        self._seen = 0  # bytes of the connection
        self._record_end = 0  # where the record that is being read ends
        self._message = bytearray()  # the handshake message so far, without the headers of records

    def feed(self, data: bytes) -> Verdict:
        """`data` has all bytes from the connection's first one on: those of earlier calls, and what came since.

        To be called until the verdict is not MORE.
        """
        self.begun = bool(data)
        while self._seen < len(data):
            if self._seen == self._record_end:
                header = data[self._seen : self._seen + _RECORD_HEADER]
                if header[0] != _HANDSHAKE or header[1:2] not in (b"", bytes([_MAJOR])):
                    return Verdict.NOT_TLS
                if len(header) < _RECORD_HEADER:
                    break
                length = int.from_bytes(header[3:], "big")
                if not 0 < length <= _MOST_RECORD:  # an empty one must not be sent (RFC 8446, 5.1), and could come for ever
                    return Verdict.NOT_TLS
                self._seen += _RECORD_HEADER
                self._record_end = self._seen + length
            else:
                piece = data[self._seen : self._record_end]
                self._seen += len(piece)
                self._message += piece
                if (verdict := self._judge()) is not Verdict.MORE:
                    return verdict
        return Verdict.MORE if len(data) < MOST_BYTES else Verdict.TOO_LONG

    def _judge(self) -> Verdict:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            return Verdict.NOT_TLS
        if len(message) < _MESSAGE_HEADER:
            return Verdict.MORE
        length = int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        if length > MOST_HELLO:
            return Verdict.TOO_LONG
        if len(message) < _MESSAGE_HEADER + length:
            return Verdict.MORE
        try:
            name = _server_name(bytes(message[_MESSAGE_HEADER : _MESSAGE_HEADER + length]))
        except _Malformed:
            return Verdict.NOT_TLS
        self.name = name.lower().decode("latin-1")  # bytes.lower changes ASCII letters only
        return Verdict.NAME if name else Verdict.NO_NAME


class _Malformed(Exception):  # noqa: N818 - the client's doing
    """A length leads out of what it is in."""


def _server_name(hello: bytes) -> bytes:
    """b"" if it has none, or an empty one."""
    place = _BEFORE_SESSION_ID
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        _, place = _vector(hello, place, width)
    if place == len(hello):
        return b""  # before TLS 1.2 a hello may end here
    extensions, end = _vector(hello, place, 2)
    if end != len(hello):
        raise _Malformed
    place = 0
    for _ in range(MOST_EXTENSIONS):
        if place == len(extensions):
            return b""
        value, end = _vector(extensions, place + 2, 2)
        if int.from_bytes(extensions[place : place + 2], "big") == _SERVER_NAME:
            return _host_name(value)
        place = end
    raise _Malformed


def _host_name(extension: bytes) -> bytes:
    """The first name of the list. A second one of its type is forbidden (RFC 6066, 3), and no other type was ever defined."""
    names, end = _vector(extension, 0, 2)
    name, _ = _vector(names, 1, 2)
    if end != len(extension) or names[0] != _HOST_NAME:
        raise _Malformed
    return name


def _vector(data: bytes, place: int, width: int) -> tuple[bytes, int]:
    """The vector at `place`, whose length is in its first `width` bytes, and where it ends. Raises _Malformed."""
    start = place + width
    end = start + int.from_bytes(data[place:start], "big")
    if start > len(data) or end > len(data):
        raise _Malformed
    return data[start:end], end
