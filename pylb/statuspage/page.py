"""The status page: its files, read once at the start, and its stream.

The files are below a folder named after their content, so a browser may cache them for ever and never mixes those of two
versions. They are held in memory: replacing them on disk changes nothing until the next start.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from pylb.core.errors import Code, Refused
from pylb.web.client_address import network_of
from pylb.web.types import Answer, Call, Handler

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
INDEX = "index.html"

# Everything comes from this machine, and no frame may contain the page. Scripts set styles one property at a time, which a
# policy for inline styles does not affect (CSP3 8.3: CSSOM).
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOR_EVER = "public, max-age=31536000, immutable"


class Files:
    """The files for browsers. Raises OSError if they cannot be read: then the installation is broken."""

    def __init__(self) -> None:
        found = dict(_read(files("pylb.statuspage") / "ui", ""))
        whole = hashlib.sha256()
        for name, content in sorted(found.items()):
            whole.update(name.encode() + b"\0" + content + b"\0")
        self.version = whole.hexdigest()[:16]
        self._index = found.pop(INDEX).replace(b"{version}", self.version.encode())
        self._files = found

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._index) + sum(map(len, self._files.values()))

    def index(self, call: Call) -> Answer:
        return self._answer(call, self._index, TYPES["html"], "no-cache")

    def file(self, call: Call, version: str, name: str) -> Answer:
        """Raises Refused."""
        content = self._files.get(name)
        if content is None or version != self.version:
            raise Refused(Code.NOT_FOUND, "there is nothing at this path", "reload the page")
        return self._answer(call, content, TYPES[name.rpartition(".")[2]], FOR_EVER)

    def _answer(self, call: Call, content: bytes, kind: str, cache: str) -> Answer:
        tag = f'"{self.version}"'
        headers = SECURITY | {"ETag": tag, "Cache-Control": cache}
        known = [one.strip().removeprefix("W/") for one in call.headers.get("if-none-match", "").split(",")]
        if tag in known:
            return Answer(304, b"", kind, headers)
        return Answer(200, content, kind, headers)


def _read(folder: Traversable, below: str) -> Iterator[tuple[str, bytes]]:
    for one in folder.iterdir():
        name = f"{below}{one.name}"
        if one.is_dir():
            yield from _read(one, f"{name}/")
        elif one.name.rpartition(".")[2] in TYPES:
            yield name, one.read_bytes()


class Page:
    """`stream`: the messages for a new reader from a source; raises Refused if too many watch."""

    def __init__(self, stream: Callable[[bytes], AsyncGenerator[bytes]], found: Files | None = None) -> None:
        self._stream = stream
        self._files = found or Files()

    @property
    def version(self) -> str:
        """The version of its files: a page of another version has to be reloaded."""
        return self._files.version

    def routes(self) -> dict[str, Handler]:
        return {
            "GET /": self._index,
            "GET /ui/{}/{}": self._file,
            "GET /ui/{}/{}/{}": self._file,
            "GET /v1/stream": self._events,
        }

    async def _index(self, call: Call) -> Answer:
        return self._files.index(call)

    async def _file(self, call: Call) -> Answer:
        version, *name = call.args
        return self._files.file(call, version, "/".join(name))

    async def _events(self, call: Call) -> Answer:
        # The page's script reads it. Navigating to it would occupy a place without reading: a frame, or a window opened by a
        # page of another site (Fetch Metadata; only a browser sends the header).
        if call.headers.get("sec-fetch-dest", "empty") != "empty":
            raise Refused(Code.SOURCE_FORBIDDEN, "only the page's script may read the stream", "open / instead")
        if call.method == "HEAD":
            return Answer(200, b"", "text/event-stream")
        return Answer(200, b"", "text/event-stream", chunks=self._stream(network_of(call.peer)))
