"""Turns what the old webhook's script wrote into legacy registrations: `/etc/webhook/haproxy/*.inc`, or a whole haproxy.cfg.

The script wrote one file per port (geek-cookbook, "Load Balancer"):

    ### >> Used to run mqtt:8443
    frontend 8443_frontend
      bind *:8443
      default_backend 8443_backend
    backend 8443_backend
      server s1 203.0.113.7:30843 send-proxy

The script pasted its input without looking at it, so the files may contain anything. A stanza that is understood becomes an
item; anything else becomes a note with file and line, and nothing raises. Lines about balance, timeouts and health are skipped
without a note, because pylb's own policy applies instead.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pylb.control.storage.files import read_regular
from pylb.core.address import Address, parse_address, parse_port
from pylb.core.errors import Refused
from pylb.core.legacy import parse_legacy
from pylb.core.policy import ProxyProtocol
from pylb.haproxy.config_parser import SECTIONS, Note, shortened, split_words

MAX_BYTES = 1 << 20  # per file
MOST_NAME = 1000  # characters of a name; the legacy route takes 63, and each port of a frontend gets a copy
MAX_NOTES = 20  # per file; a page of HTML pasted into one would make hundreds

_PASSED_OVER = frozenset(
    ("balance", "stick", "stick-table", "timeout", "log", "maxconn", "description", "id", "retries", "backlog", "option")
)
_SERVER_WITH_VALUE = frozenset(
    ("inter", "fastinter", "downinter", "fall", "rise", "maxconn", "maxqueue", "slowstart", "weight", "id")
)
_SEND_PROXY = {"": ProxyProtocol.NONE, "send-proxy": ProxyProtocol.V1, "send-proxy-v2": ProxyProtocol.V2}
_KEYWORDS = {protocol: keyword for keyword, protocol in _SEND_PROXY.items()}
_USED_BY = ">> Used to run "


@dataclass(frozen=True, slots=True)
class LegacyServer:
    """One port of the old machine, and the server that it led to."""

    port: int
    address: Address
    name: str
    send_proxy: ProxyProtocol = ProxyProtocol.NONE

    def as_call(self) -> dict[str, str]:
        """The body of a legacy call that registers it."""
        return {
            "dst-ip": self.address.ip,
            "frontend-port": str(self.port),
            "backend-port": str(self.address.port),
            "action": "add",
            "name": self.name,
            "send-proxy": _KEYWORDS[self.send_proxy],
        }

    def __str__(self) -> str:
        send = f", {_KEYWORDS[self.send_proxy]}" if self.send_proxy is not ProxyProtocol.NONE else ""
        return f"{self.port} -> {self.address} ({self.name}{send})"


class ImportResult(NamedTuple):
    items: tuple[LegacyServer, ...]  # at most one per port
    notes: tuple[Note, ...]


def read_files(paths: Iterable[Path]) -> ImportResult:
    """Import files, and every *.inc of directories."""
    texts, notes = read_texts(paths)
    found = parse_haproxy(texts)
    return ImportResult(found.items, (*notes, *found.notes))


def read_texts(paths: Iterable[Path], inside: str = "*.inc") -> tuple[list[tuple[str, str]], list[Note]]:
    """(file name, text) of files, and of directories' files that match `inside`, in the order of the script's `cat`."""
    texts: list[tuple[str, str]] = []
    notes: list[Note] = []
    for path in paths:
        for file in sorted(path.glob(inside)) if path.is_dir() else [path]:
            try:
                texts.append((str(file), read_regular(file, MAX_BYTES).decode("utf-8", "replace")))
            except OSError as error:
                notes.append(Note(str(file), 0, f"cannot be read: {error.strerror or error}"))
            except ValueError as error:
                notes.append(Note(str(file), 0, f"cannot be read: {error}"))
    return texts, notes


def parse_haproxy(texts: Iterable[tuple[str, str]]) -> ImportResult:
    """Import `(file name, text)` of files that HAProxy read as one config: a frontend may use a backend of another file."""
    parser = _Parser()
    for file, text in texts:
        parser.read(file, text)
    return parser.finish()


@dataclass(slots=True)
class _Stanza:
    """A frontend, backend or listen section."""

    kind: str
    name: str
    file: str
    line: int
    binds: list[tuple[int, int]] = field(default_factory=list)  # (line, port)
    servers: list[tuple[int, Address | str, str]] = field(default_factory=list)  # (line, address or bare IP, send-proxy)
    backend: str = ""
    unfit: str = ""  # why pylb cannot take it over


class _Parser:
    """An import under way, with the stanzas read so far."""

    def __init__(self) -> None:
        self.stanzas: list[_Stanza] = []
        self.names: dict[int, str] = {}  # port -> the app that used it, from the script's comment
        self.notes: list[Note] = []
        self.file_notes: Counter[str] = Counter()

    def note(self, file: str, line: int, message: str) -> None:
        self.file_notes[file] += 1
        if self.file_notes[file] <= MAX_NOTES:
            self.notes.append(Note(file, line, message))

    def read(self, file: str, text: str) -> None:
        current: _Stanza | None = None
        for number, line in enumerate(text.split("\n"), 1):
            if (used := _used_by(line)) is not None:
                self.names[used[0]] = used[1][:MOST_NAME]
                continue
            try:
                words = split_words(line)
            except ValueError as error:
                self.note(file, number, f"not understood: {str(error).lower()}")
                continue
            if not words:
                continue
            if words[0] in SECTIONS:
                current = _Stanza(words[0], words[1] if len(words) > 1 else "", file, number)
                self.stanzas.append(current)
            elif current is None:
                self.note(file, number, f"not understood: {shortened(line)}")
            elif current.kind in ("frontend", "backend", "listen"):
                self._directive(current, number, words)

    def _directive(self, stanza: _Stanza, line: int, words: list[str]) -> None:
        match words:
            case ["bind", where, *options]:
                self._bind(stanza, line, where, options)
            case ["server", _, address, *options]:
                self._server(stanza, line, address, options)
            case ["default_backend", name]:
                stanza.backend = name
            case ["mode", mode]:
                stanza.unfit = "" if mode == "tcp" else f"mode {shortened(mode)}: pylb forwards TCP"
            case [word, *_] if word not in _PASSED_OVER:
                self.note(stanza.file, line, f"not taken over: {shortened(' '.join(words))}")

    def _bind(self, stanza: _Stanza, line: int, where: str, options: list[str]) -> None:
        if "ssl" in options:
            stanza.unfit = "bind with ssl: pylb passes TLS through to the server"
        for one in where.split(","):
            host, colon, port = one.rpartition(":")
            try:
                stanza.binds.append((line, parse_port(port)))
            except ValueError as error:
                self.note(stanza.file, line, f"bind: {shortened(str(error))}")
                continue
            if colon and host not in ("", "*", "0.0.0.0", "::", "[::]"):
                self.note(stanza.file, line, f"bind {shortened(host)}: registered ports listen on `defaults.bind`")

    def _server(self, stanza: _Stanza, line: int, text: str, options: list[str]) -> None:
        send, rest = "", iter(options)
        for option in rest:
            if option in ("send-proxy", "send-proxy-v2"):
                send = option
            elif option in _SERVER_WITH_VALUE:
                next(rest, None)
            elif option in ("ssl", "disabled", "backup"):
                self.note(stanza.file, line, f"server with {option}: not taken over")
                return
            elif option != "check":
                self.note(stanza.file, line, f"server: the option {shortened(option)} is not taken over")
        try:
            bare = text.count(":") == 0  # without a port, HAProxy uses the one that the client connected to
            stanza.servers.append((line, str(parse_address(f"{text}:1").ip) if bare else parse_address(text), send))
        except ValueError as error:
            self.note(stanza.file, line, f"server: {shortened(str(error))}")

    def finish(self) -> ImportResult:
        backends = {stanza.name: stanza for stanza in self.stanzas if stanza.kind in ("backend", "listen")}
        for one in backends.values():
            for line, address, _ in one.servers[1:]:
                self.note(one.file, line, f"only one server per port: {address} is left out")
            del one.servers[1:]
        items: dict[int, LegacyServer] = {}
        for stanza in self.stanzas:
            if stanza.kind not in ("frontend", "listen"):
                continue
            backend = stanza if stanza.kind == "listen" else backends.get(stanza.backend)
            for line, port in self._fit(stanza, backend):
                assert backend is not None  # noqa: S101 - _fit yields nothing without one
                self._item(items, stanza, backend, line, port)
        for file, count in self.file_notes.items():
            if count > MAX_NOTES:
                self.notes.append(Note(file, 0, f"and {count - MAX_NOTES} more lines that were not understood"))
        return ImportResult(tuple(items.values()), tuple(self.notes))

    def _fit(self, stanza: _Stanza, backend: _Stanza | None) -> list[tuple[int, int]]:
        """The binds that can be taken over. If there are none, the reason is noted."""
        if backend is None:
            self.note(stanza.file, stanza.line, f"{_label(stanza)} has no backend {shortened(stanza.backend)!r}".rstrip())
        elif stanza.unfit or backend.unfit:
            self.note(stanza.file, stanza.line, f"{_label(stanza)} is left out: {stanza.unfit or backend.unfit}")
        elif not backend.servers:
            self.note(backend.file, backend.line, f"{_label(backend)} has no server that could be taken over")
        elif not stanza.binds:
            self.note(stanza.file, stanza.line, f"{_label(stanza)} listens nowhere")
        else:
            return stanza.binds
        return []

    def _item(self, items: dict[int, LegacyServer], stanza: _Stanza, backend: _Stanza, line: int, port: int) -> None:
        if port in items:
            self.note(stanza.file, line, f"port {port} was already seen: the first one counts")
            return
        server_line, address, send = backend.servers[0]
        target = address if isinstance(address, Address) else Address(address, port)
        name = self.names.get(port) or re.sub(r"[-_.]?(frontend|front|fe)$", "", stanza.name[:MOST_NAME])
        item = LegacyServer(port, target, "" if name.isdigit() else name, _SEND_PROXY[send])
        try:  # through the route's own parser, so that an import yields nothing that a call could not
            items[port] = replace(item, name=parse_legacy(json.dumps(item.as_call()).encode()).name)
        except Refused as refused:
            self.note(backend.file, server_line, shortened(refused.detail))


def _used_by(line: str) -> tuple[int, str] | None:
    """(port, name) of `# … >> Used to run NAME:PORT`. If a line has these words twice, the last ones count."""
    before, found, rest = line.strip().rpartition(_USED_BY)
    name, colon, port = rest.rpartition(":")
    if not (found and colon and before.startswith("#") and re.fullmatch("[0-9]{1,5}", port)):
        return None
    return int(port), name


def _label(stanza: _Stanza) -> str:
    return f"{stanza.kind} {shortened(stanza.name)}"
