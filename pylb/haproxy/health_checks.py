"""Translates HAProxy's health checks to pylb's: text that is sent, and text that the answer must contain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pylb.core.text import whole_number
from pylb.haproxy.config_parser import Line, Notes, Section, word_set

MOST_TEXT = 1024  # characters that a check may send, as in core.checks
MOST_STEPS = 16  # as in core.checks
_LAST_ASCII = 0x7F
_WITH_VALUE = word_set(
    """
    comment ok-status error-status tout-status on-success on-error status-code
    """
)
# What HAProxy sends and expects with these options (src/tcpcheck.c): a mail server greets with 220 and answers HELO with 250.
_REDIS = [{"send": "*1\r\n$4\r\nPING\r\n", "expect": "+PONG\r\n"}]


class Untranslatable(Exception):  # noqa: N818 - about one line, not an error of ours
    """pylb has no such check. The text says what HAProxy would do."""

    def __init__(self, line: Line, why: str) -> None:
        super().__init__(why)
        self.line = line


@dataclass(slots=True)
class CheckLines:
    """The lines of a proxy that describe its health check."""

    kind: Line | None = None  # the last `option …chk`
    rules: list[Line] = field(default_factory=list)
    rules_section: Section | None = None  # the section with the rules; those of `defaults` apply where a proxy has none
    option_section: Section | None = None  # the section with the option

    def set_option(self, kind: Line, section: Section) -> None:
        """An option of the proxy drops the rules of `defaults`, unless both say `option tcp-check`."""
        again = self.kind is not None and self.kind.words[1] == kind.words[1] == "tcp-check"
        if self.rules_section is not section and not again:
            self.rules, self.rules_section = [], section
        self.kind, self.option_section = kind, section

    def add_rule(self, line: Line, section: Section) -> None:
        if self.rules_section is not section:
            self.rules, self.rules_section = [], section
        self.rules.append(line)


def check_of(lines: CheckLines, notes: Notes) -> dict[str, Any]:
    """The settings of pylb's `check`; {}: only connect. A check that cannot be translated is noted and becomes {}."""
    if lines.kind is None:
        return {}
    try:
        return _check(lines.kind, lines.rules, inherited=lines.rules_section is not lines.option_section)
    except Untranslatable as found:
        what = f"{found}; pylb cannot, and would only connect: a server that accepts connections but does not work stays in use"
        notes.differs(found.line, f"{found.line.text}: {what}")
        return {}


def _check(kind: Line, rules: list[Line], *, inherited: bool) -> dict[str, Any]:
    match kind.words[1:]:
        case ["tcp-check"]:
            return _conversation([one for one in rules if one.words[0] == "tcp-check"])
        case ["httpchk", *request]:
            found = [one for one in rules if one.words[0] == "http-check"]
            if found and inherited and not any(one.words[1:2] == ["send"] for one in found):
                raise Untranslatable(found[0], f"HAProxy would send nothing ({kind.text} is in the defaults), so it is down")
            return _http(kind, request, found)
        case ["redis-check"]:
            return _steps(kind, _REDIS)
        case ["smtpchk", *hello]:
            greeting = " ".join(hello) if len(hello) == 2 and hello[0] in ("HELO", "EHLO") else "HELO localhost"
            talk = [{"expect": "220"}, {"send": f"{greeting}\r\n", "expect": "250"}, {"send": "QUIT\r\n", "expect": "221"}]
            return _steps(kind, talk)
        case ["pgsql-check", "user", name]:
            # A startup message (PostgreSQL, 55.7); any authentication request means that the server is well.
            body = f"\0\3\0\0user\0{name}\0\0"
            return _steps(kind, [{"send": f"\0\0\0{chr(len(body) + 4)}{body}", "expect": "R\0\0\0"}])
    raise Untranslatable(kind, "HAProxy would check servers in that protocol")


def _steps(line: Line, steps: list[dict[str, str]]) -> dict[str, Any]:
    if any(not text.isascii() for step in steps for text in step.values()):
        raise Untranslatable(line, "HAProxy would send or expect bytes that are not ASCII")
    if any(len(text) > MOST_TEXT for step in steps for text in step.values()) or len(steps) > MOST_STEPS:
        raise Untranslatable(line, f"HAProxy would send more than {MOST_TEXT} characters, or have more than {MOST_STEPS} steps")
    if not steps:
        return {}
    return dict(steps[0]) if len(steps) == 1 else {"steps": steps}


# ---------------------------------------------------------------- tcp-check


def _conversation(rules: list[Line]) -> dict[str, Any]:
    steps: list[dict[str, str]] = []
    port: dict[str, int] = {}
    size = 0
    for number, line in enumerate(rules):
        match line.words[1:]:
            case ["connect", *options]:
                if number and (steps or any(one.words[1:2] == ["connect"] for one in rules[:number])):
                    raise Untranslatable(line, "HAProxy would open a second connection")
                port = _connect(line, options)
            case ["send" | "send-lf" | "send-binary" as how, written, *_]:
                text = _sent(line, how, written)
                size += len(text)
                if steps and "expect" not in steps[-1] and size <= MOST_TEXT * MOST_STEPS:
                    steps[-1]["send"] = steps[-1].get("send", "") + text
                else:
                    steps.append({"send": text})
            case ["expect", *words]:
                wanted = _expected(line, words)
                if rules[number - 1].words[1:2] == ["expect"] and number:
                    raise Untranslatable(line, "HAProxy would search the same answer again")
                if steps and "expect" not in steps[-1]:
                    steps[-1]["expect"] = wanted
                else:
                    steps.append({"expect": wanted})
            case ["comment", *_]:
                pass
            case _:
                raise Untranslatable(line, "HAProxy would do this in its check")
        if len(steps) > MOST_STEPS:
            raise Untranslatable(line, f"HAProxy would have more than {MOST_STEPS} steps")
    return {**_steps(rules[0], steps), **port} if rules else {}


def _connect(line: Line, options: Sequence[str]) -> dict[str, int]:
    match list(options):
        case [] | ["default"] | ["comment", _] | ["linger"]:
            return {}
        case ["port", number] if port := whole_number(number, 65535):
            return {"port": port}
    raise Untranslatable(line, "HAProxy would connect with these options for its check")


def _sent(line: Line, how: str, text: str) -> str:
    if how == "send-binary":
        return _binary(line, text)
    if how == "send-lf" and "%" in text:
        raise Untranslatable(line, "HAProxy would send the values of its variables")
    return text


def _expected(line: Line, words: Sequence[str]) -> str:
    match _pattern(line, words):
        case ["string", text, *_]:
            return text
        case ["binary", text, *_]:
            return _binary(line, text)
        case ["rstring", pattern, *_] if (literal := _literal(pattern)) is not None:
            return literal
    raise Untranslatable(line, "HAProxy would judge the answer by this rule")


def _pattern(line: Line, words: Sequence[str]) -> list[str]:
    """The words after the options that only change how a result is shown."""
    rest = list(words)
    while rest and rest[0] in _WITH_VALUE:
        if rest[1:2] == ["L7OKC"]:
            raise Untranslatable(line, "HAProxy would keep the server's sessions and send it no new ones")
        del rest[:2]
    return rest


def _literal(pattern: str) -> str | None:
    """The text that a regular expression matches, if it matches exactly one."""
    found = re.fullmatch(r"(?:[A-Za-z0-9 _:=,;<>@/\"'!~#%&\r\n-]|\\[^A-Za-z0-9])+", pattern)
    return re.sub(r"\\(.)", r"\1", pattern) if found else None


def _binary(line: Line, text: str) -> str:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        raise Untranslatable(line, "these are not hexadecimal digits") from None
    if any(byte > _LAST_ASCII for byte in found):
        raise Untranslatable(line, "HAProxy would send or expect bytes that are not ASCII")
    return found.decode("ascii")


# ---------------------------------------------------------------- http-check


@dataclass(slots=True)
class _Request:
    line: Line
    method: str = "OPTIONS"
    uri: str = "/"
    version: str = "HTTP/1.0"
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        lines = [f"{self.method} {self.uri} {self.version}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""])


def _http(kind: Line, words: Sequence[str], rules: list[Line]) -> dict[str, Any]:
    request = _Request(kind)
    match words:
        case [uri]:
            request.uri = uri
        case [method, uri, *version]:
            request.method, request.uri = method, uri
            request.version, _, more = (version[0] if version else request.version).partition("\r\n")
            _headers(request, kind, more)
    status, text, last = "200-399", "", ""
    for line in rules:
        word = " ".join(line.words[1:2])  # a mistake in the file may leave none
        if word and (word == last or (last, word) == ("expect", "send")):
            raise Untranslatable(line, "HAProxy would do both, one after the other")
        last = word if word in ("send", "expect") else last
        match line.words[1:]:
            case ["send", *options]:
                _send(request, line, options)
            case ["expect", *options]:
                status, text = _wanted(line, options)
            case ["connect"] | ["connect", "default"] | ["comment", *_] | ["send-state"]:
                pass
            case _:
                raise Untranslatable(line, "HAProxy would do this in its check")
    hosts = [value for name, value in request.headers if name.lower() == "host"]
    plain = re.fullmatch(r"[A-Z]{1,20}", request.method) is not None and len(hosts) == len(request.headers) <= 1
    if plain and not text and re.fullmatch(r"/[!-~]*", request.uri) and re.fullmatch(r"[!-~]*", "".join(hosts)):
        asked = {"http": request.uri, **({} if request.method == "GET" else {"method": request.method})}
        return {**asked, "expect": status, **({"host": hosts[0]} if hosts else {})}
    if not text:
        raise Untranslatable(request.line, f"HAProxy would send this {request.method} and judge its status, {status}")
    # HAProxy searches only the body; "OK" is in most status lines.
    return _steps(request.line, [{"send": request.text, "expect": "\r\n\r\n"}, {"expect": text}])


def _headers(request: _Request, line: Line, text: str) -> None:
    for one in filter(None, text.split("\r\n")):
        name, _, value = one.partition(":")
        request.headers.append((name.strip(), value.strip()))
    if len(request.headers) > MOST_STEPS:
        raise Untranslatable(line, f"HAProxy would send more than {MOST_STEPS} headers")


def _send(request: _Request, line: Line, options: Sequence[str]) -> None:
    request.line = line
    rest = iter(options)
    for option in rest:
        match option:
            case "meth":
                request.method = next(rest, "OPTIONS")
            case "uri":
                request.uri = next(rest, "/")
            case "ver":
                request.version = next(rest, "HTTP/1.0")
            case "hdr":
                _headers(request, line, f"{next(rest, '')}:{next(rest, '')}")
            case "comment":
                next(rest, "")
            case _:
                raise Untranslatable(line, "HAProxy would send this in its check")


# Patterns that match exactly 200 to 299 and so on: anchored, or three characters long. A mere `2` also matches 502.
_HUNDREDS = re.compile(
    r"(?P<start>\^)?(?:(?P<one>[1-5])|(?P<two>\(2\|3\)|\[23\]))"
    r"(?:(?:\[0-9\]|\\d|\.){2}\$?|(?(start)(?:\[0-9\]|\\d|\.)?|(?!)))"
)


def _wanted(line: Line, words: Sequence[str]) -> tuple[str, str]:
    """(status or range of statuses, text that the answer must contain)."""
    match _pattern(line, words):
        case ["status", status, *_] if re.fullmatch(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?", status):
            return status, ""
        case ["rstatus", pattern, *_] if found := _HUNDREDS.fullmatch(pattern):
            return ("200-399" if found["two"] else f"{found['one']}00-{found['one']}99"), ""
        case ["string", text, *_]:
            return "", text
    raise Untranslatable(line, "HAProxy would judge the answer by this rule")
