"""Reads an haproxy.cfg into sections of words: quotes, escapes, variables, `.if`, named defaults (its manual, 2.2 to 2.4, 4).

Nothing raises: a line that is not understood becomes a note. Where it is unknown which branch of an `.if` HAProxy takes, none
of them is read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROXIES = word_set("frontend backend listen")
SECTIONS = word_set(
    """
    global defaults frontend backend listen userlist peers resolvers mailers program cache ring log-forward http-errors
    fcgi-app log-profile traces acme crt-store
    """
)
MOST_INHERITED = 4 << 20  # characters of `defaults` that all sections together may inherit, as one line may be 1 MiB
MOST_CONDITION = 1000  # characters
_PIECE = re.compile(
    r"""([ \t\r\n]+)            # between words
      | (\#)                   # the rest is a comment
      | ([^ \t\r\n#'"\\]+)
      | '([^']*)'
      | "((?:[^"\\]|\\.)*+)"
      | \\(x[0-9a-fA-F]{2}|.)
      """,
    re.VERBOSE | re.DOTALL,
)
_VARIABLE = r"\$(?:\{([A-Za-z_][A-Za-z0-9_.]*)(?:\[\*\])?(?:-([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))"
_QUOTED = re.compile(r"\\(x[0-9a-fA-F]{2}|.)|" + _VARIABLE, re.DOTALL)
_UNQUOTED = re.compile(_VARIABLE)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"} | {char: char for char in " \\#\"'$"}


@dataclass(frozen=True, slots=True)
class Note:
    """A line that was not translated exactly, and why."""

    file: str
    line: int  # 0: the whole file
    message: str
    differs: bool = False  # another server would get a connection, or another client could connect

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class Line(NamedTuple):
    file: str
    number: int
    words: list[str]

    @property
    def text(self) -> str:
        return shortened(" ".join(self.words))


@dataclass(slots=True)
class Section:
    kind: str
    name: str
    head: Line
    parent: "Section | None" = None  # the `defaults` it inherits from
    lines: list[Line] = field(default_factory=list)
    size: int = 0  # characters

    @property
    def label(self) -> str:
        return f"{self.kind} {shortened(self.name)}".rstrip()

    def inherited(self) -> Iterator["Section"]:
        """The `defaults` sections that it inherits from, nearest first."""
        one = self.parent
        while one is not None:
            yield one
            one = one.parent


class Notes:
    """All notes in the order in which they were made, each only once."""

    def __init__(self) -> None:
        self._found: dict[Note, None] = {}

    def note(self, line: Line, message: str) -> None:
        self._found[Note(line.file, line.number, message)] = None

    def differs(self, line: Line, message: str) -> None:
        self._found[Note(line.file, line.number, message, differs=True)] = None

    def __iter__(self) -> Iterator[Note]:
        return iter(self._found)


class Variables:
    """The environment as HAProxy would see it. `missing` collects the variables that were used but are not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values = dict(environ)
        self.missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def command(self, words: list[str]) -> None:
        """Carry out `setenv` and similar commands of the section `global`."""
        word, names = words[0], words[1:]
        if word in ("setenv", "presetenv") and len(names) > 1:
            if word == "setenv" or names[0] not in self._values:
                self._values[names[0]] = names[1]
        elif word in ("unsetenv", "resetenv"):
            stays = word == "resetenv"
            self._values = {key: value for key, value in self._values.items() if (key in names) == stays}

    def of(self, found: re.Match[str], first: int) -> str:
        name = found[first] or found[first + 2]
        default: str | None = found[first + 1]
        value = self._values.get(name, default)
        if value is None:
            self.missing.append(name)
        return value or ""

    def expanded(self, address: str) -> str:
        """`address` with its variables; in addresses HAProxy expands them outside quotes, too."""
        return _UNQUOTED.sub(lambda found: self.of(found, 1), address)


def split_words(line: str, variables: Variables | None = None) -> list[str]:
    """Split a line into words as HAProxy does (Configuration Manual, 2.2). Raises ValueError.

    Without `variables` a dollar sign is an ordinary character.
    """
    words: list[str] = []
    pieces: list[str] | None = None  # of the current word
    place = 0
    while place < len(line):
        found = _PIECE.match(line, place)
        if found is None:
            raise ValueError("No escaped character" if line[place] == "\\" else "No closing quotation")
        place = found.end()
        blank, comment, bare, single, double, escaped = found.groups()
        if comment:
            break
        if blank:
            if pieces is not None:
                words.append("".join(pieces))
            pieces = None
            continue
        if double is not None:
            double = _QUOTED.sub(lambda quoted: _inside(quoted, variables), double)
        if escaped is not None:
            escaped = "\\$" if escaped == "$" else _escape(escaped)
        pieces = pieces or []
        pieces.append(next(piece for piece in (bare, single, double, escaped) if piece is not None))
    return words if pieces is None else [*words, "".join(pieces)]


def _inside(found: re.Match[str], variables: Variables | None) -> str:
    if found[1] is not None:
        return _escape(found[1])
    return found[0] if variables is None else variables.of(found, 2)


def _escape(char: str) -> str:
    if len(char) == 3:
        return chr(int(char[1:], 16))
    return _ESCAPES.get(char, "\\" + char)  # any other escape stays as its two characters


def shortened(text: str) -> str:
    """`text` for a message: short, and with printable characters only."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(slots=True)
class _Branch:
    """An open `.if`, and whether its lines are read at present."""

    outer: bool
    reads: bool
    done: bool  # a branch was read, or it is unknown which one HAProxy reads


class Parser:
    """Reads several files as one config, as HAProxy does. `sections` are in the order of the files."""

    def __init__(self, notes: Notes, environ: Mapping[str, str]) -> None:
        self.sections: list[Section] = []
        self.variables = Variables(environ)
        self._notes = notes
        self._defaults: Section | None = None
        self._named: dict[str, Section] = {}
        self._current: Section | None = None
        self._branches: list[_Branch] = []
        self._inherited = 0

    def read(self, file: str, text: str) -> None:
        self._branches.clear()
        for number, raw in enumerate(text.split("\n"), 1):
            try:
                words = split_words(raw, self.variables)
            except ValueError as error:
                self._notes.differs(Line(file, number, []), f"not understood: {str(error).lower()}")
                continue
            if words:
                self._line(Line(file, number, words), raw)
            self.variables.missing.clear()

    def _line(self, line: Line, raw: str) -> None:
        first = line.words[0]
        if first in (".if", ".elif", ".else", ".endif"):
            self._conditional(line, raw)
        elif (self._branches and not self._branches[-1].reads) or first.startswith("."):
            return  # HAProxy does not read these lines either, or only prints them (.notice and the like)
        elif first in SECTIONS:
            self._begin(line)
        elif self._current is None:
            self._notes.differs(line, f"not understood: {shortened(raw.strip())}")
        else:
            self._say_missing(line)
            if self._current.kind == "global":
                self.variables.command(line.words)
            self._current.lines.append(line)
            self._current.size += sum(map(len, line.words))

    def _say_missing(self, line: Line) -> None:
        for name in self.variables.missing:
            what = "is not set here and counts as empty. Import with the environment that HAProxy has"
            self._notes.differs(line, f"the variable {shortened(name)} {what}")

    def address(self, line: Line, text: str) -> str:
        """`text` with its variables expanded."""
        self.variables.missing.clear()
        found = self.variables.expanded(text)
        self._say_missing(line)
        return found

    def _begin(self, line: Line) -> None:
        kind, name = line.words[0], line.words[1] if len(line.words) > 1 else ""
        made = Section(kind, "" if name == "from" else name, line)
        self._current = made
        self.sections.append(made)
        at = line.words.index("from") if "from" in line.words else 0
        named = line.words[at + 1] if at and at + 1 < len(line.words) else None
        if kind == "defaults" or kind in PROXIES:
            made.parent = self._defaults if kind != "defaults" else None
            if named is not None:
                made.parent = self._named.get(named)
                if made.parent is None:
                    self._notes.differs(line, f"{made.label}: there are no defaults called {shortened(named)}")
        if kind == "defaults":
            self._defaults = made
            self._named[made.name] = made
        for one in made.inherited() if kind in PROXIES else ():
            self._inherited += one.size + 1
            if self._inherited > MOST_INHERITED:
                self._notes.differs(line, f"{made.label}: its defaults are not read: all sections together inherit too much")
                made.parent = None
                break

    def _conditional(self, line: Line, raw: str) -> None:
        word, condition = line.words[0], " ".join(line.words[1:])
        if word == ".if":
            outer = not self._branches or self._branches[-1].reads
            self._branches.append(_Branch(outer, reads=False, done=not outer))
        elif not self._branches:
            self._notes.differs(line, f"not understood: {shortened(raw.strip())}")
            return
        branch = self._branches[-1]
        branch.reads = False
        if word == ".endif":
            self._branches.pop()
        elif not branch.done:
            truth = True if word == ".else" else holds(condition, self.variables)
            if truth is None:
                what = "pylb cannot know which branch HAProxy takes, and reads none of them up to .endif"
                self._notes.differs(line, f"{line.text}: {what}")
            branch.reads, branch.done = bool(truth), truth is not False


_TERM = re.compile(r"\s*(\|\||&&|!|\)|([a-z_]*)\(|[0-9]+)\s*")


def holds(condition: str, variables: Variables) -> bool | None:
    """Whether a condition of `.if` is true; None: only that HAProxy could say, or it is not understood."""
    if len(condition) > MOST_CONDITION:
        return None
    tokens: list[bool | str] = []
    place = 0
    while place < len(condition):
        found = _TERM.match(condition, place)
        if found is None:
            return None
        place = found.end()
        if found[2]:  # a function, up to its opening parenthesis
            end = condition.find(")", place)
            truth = _asked(found[2], condition[place:end], variables) if end >= 0 else None
            if truth is None:
                return None
            tokens.append(truth)
            place = end + 1
        elif found[1].isdigit():
            tokens.append(found[1].strip("0") != "")
        else:
            tokens.append(found[1])
    return _value(tokens)


def _asked(function: str, arguments: str, variables: Variables) -> bool | None:
    match function, [one.strip().strip("\"'") for one in arguments.split(",")]:
        case "defined", [name]:
            return name in variables
        case "streq", [one, two]:
            return one == two
        case "strneq", [one, two]:
            return one != two
        case "strstr", [one, two]:
            return two in one
    return None  # version_atleast, feature, …: they depend on that HAProxy


def _value(signs: list[bool | str]) -> bool | None:
    """The value of an expression. `!` binds tighter than `&&`, and `&&` than `||`. An empty condition is false."""
    if not signs:
        return False
    stack: list[list[bool | str]] = [[]]
    for sign in signs:
        if sign == "(":
            stack.append([])
        elif sign == ")":
            inner = _flat(stack.pop()) if len(stack) > 1 else None
            if inner is None:
                return None
            stack[-1].append(inner)
        else:
            stack[-1].append(sign)
    return _flat(stack[0]) if len(stack) == 1 else None


def _flat(signs: Iterable[bool | str]) -> bool | None:
    """The value of an expression without parentheses."""
    some, every, negated, value = False, True, False, None
    for sign in signs:
        if sign == "!":
            negated = not negated
        elif isinstance(sign, bool):
            if value is not None:
                return None
            value, negated = sign is not negated, False
        else:
            if value is None or negated:
                return None
            every, value = every and value, None
            if sign == "||":
                some, every = some or every, True
    return None if value is None or negated else some or (every and value)
