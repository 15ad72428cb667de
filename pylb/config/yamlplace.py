"""YAML text as plain values, with the place of each; YAML's own traps become errors that say what to write.

PyYAML's node graph is used instead of its objects: it has the positions, the duplicate keys and the text as it was written
("22:30", not 1350). Size, depth and node count are bounded before aliases are followed, so that a file of a few lines cannot
grow to gigabytes ("billion laughs").
"""

import re
from dataclasses import dataclass, field
from typing import cast

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pylb.config.problems import Position, Problem

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 16  # the deepest documented key is at 6
MAX_NODES = 100_000  # counted with aliases followed
MAX_RECOVERIES = 100  # bare asterisks that are skipped in search of further errors

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Loc = tuple[int | str, ...]

_TAG = "tag:yaml.org,2002:"
_STAR = "\ue000"  # replaces a bare * while the rest of the file is read; private use, one column wide like the original
_TRUE, _FALSE = {"yes", "true", "on"}, {"no", "false", "off"}


@dataclass(slots=True)
class Document:
    """The plain value of a file, the place of each part, and YAML's own errors."""

    filename: str
    data: Plain = None
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    _pairs: dict[int, dict[str, tuple[Node, Node]]] = field(default_factory=dict)  # by id of the mapping's node

    def report(self, place: Position, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.filename, place, message, hint))

    def node(self, loc: Loc, *, key: bool = False) -> Node | None:
        """The node at `loc`, or the nearest one around it: a missing key is reported where its mapping begins.

        `key`: the last key itself rather than its value. An index into something that is not a list means the thing itself,
        because one listener may be written where a list of them could be.
        """
        node = self.root
        for depth, step in enumerate(loc):
            if isinstance(step, int):
                if isinstance(node, SequenceNode):
                    node = cast("list[Node]", node.value)[step]
                continue
            if not isinstance(node, MappingNode):
                break
            if id(node) not in self._pairs:  # reversed: of duplicate keys the first counts
                self._pairs[id(node)] = {_key(pair[0]): pair for pair in reversed(node.value)}
            pair = self._pairs[id(node)].get(step)
            if pair is None:
                break
            node = pair[0] if key and depth == len(loc) - 1 else pair[1]
        return node

    def place(self, loc: Loc, *, key: bool = False) -> Position:
        node = self.node(loc, key=key)
        return _place(node.start_mark) if node is not None else Position()


def read(text: str, filename: str) -> Document:
    """Never raises: `problems` of the result says what is wrong."""
    document = Document(filename)
    if len(text) > MAX_CHARACTERS:
        document.report(Position(1, 1), f"the file has more than {MAX_CHARACTERS} characters")
        return document
    if filename.endswith(".json"):
        text = text.replace("\t", " ")  # JSON allows tabs between its tokens (and only there), YAML does not
    document.root = _compose(text, document)
    if document.root is not None:
        _Reader(document).read_root(document.root)
    return document


class _Loader(yaml.SafeLoader):
    """Limits the depth: PyYAML recurses once per level."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, document: Document) -> Node | None:
    """The node graph; None for an empty file and for one that cannot be read."""
    for _ in range(min(MAX_RECOVERIES, 1 + 4 * MAX_CHARACTERS // (len(text) + 1))):
        try:
            loader = _Loader(text)
            try:
                return loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.reader.ReaderError as error:
            at = int(error.position)
            place = Position(text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1)
            document.report(place, f"the character {chr(error.character)!a} is not allowed")
            return None
        except yaml.MarkedYAMLError as error:
            star = _bare_star(text, error)
            if star is None:
                _report_syntax(text, error, document)
                return None
            place = _place(star)
            document.report(place, "a bare * is YAML's sign for an alias", 'quote it, as in "*:443" or "*"')
            text = text[: star.index] + _STAR + text[star.index + 1 :]
    return None


def _bare_star(text: str, error: yaml.MarkedYAMLError) -> yaml.Mark | None:
    """Where an unquoted `*` was read as an alias; None if the error is another one."""
    if error.context == "while scanning an alias":
        mark = error.context_mark
    elif (error.problem or "").startswith("found undefined alias"):
        mark = error.problem_mark
    else:
        return None
    return mark if mark is not None and text[mark.index : mark.index + 1] == "*" else None


def _report_syntax(text: str, error: yaml.MarkedYAMLError, document: Document) -> None:
    mark = error.problem_mark or error.context_mark
    place = _place(mark) if mark is not None else Position(1, 1)
    lines = text.splitlines()
    line = lines[place.line - 1] if 0 < place.line <= len(lines) else ""
    hint = ""
    if "\\t" in (error.problem or ""):
        hint = "YAML indents with spaces, not with tabs"
    elif re.search(r"\]:\d", line):
        hint = 'quote IPv6 addresses, as in "[2001:db8::9]:443"'
    problem = re.sub(r" tag handle .*", " tag handle", error.problem or error.context or "cannot be read")
    document.report(place, f"not YAML: {problem}", hint)  # without the handle: a bare secret may begin with !


class _Reader:
    """Turns nodes into plain values and reports what YAML would silently misread."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def read_root(self, root: Node) -> None:
        try:
            self.document.data = self._value(root, "", 0)
        except OverflowError:
            self.document.report(_place(root.start_mark), f"more than {MAX_NODES} values, or an alias inside itself")

    def _value(self, node: Node, key: str, depth: int) -> Plain:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > 4 * MAX_DEPTH:
            raise OverflowError
        if isinstance(node, SequenceNode):
            return [self._value(item, key, depth + 1) for item in node.value]
        if isinstance(node, MappingNode):
            return self._mapping(node, depth)
        return self._scalar(cast("ScalarNode", node), key)

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Plain]:
        plain: dict[str, Plain] = {}
        first: dict[str, Position] = {}
        for key_node, value_node in node.value:
            key, place = _key(key_node), _place(key_node.start_mark)
            if key in first:
                before = first[key]
                where = f"{self.document.filename}:{before.line}:{before.col}"
                self.document.report(place, f"duplicate key {key!r}, first written at {where}", "remove one of them")
            value = self._value(value_node, key, depth + 1)  # read even if it is a duplicate: its mistakes are reported too
            if key not in first:
                first[key] = place
                plain[key] = value
        return plain

    def _scalar(self, node: ScalarNode, key: str) -> Plain:
        text = node.value.replace(_STAR, "*")
        kind = node.tag.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        if kind in ("int", "float"):
            return self._number(node, text, key)
        if kind not in ("str", "timestamp", "value", "merge"):
            tag = "a YAML tag" if key == "secret" else f"the YAML tag {node.tag!a}"
            self.document.report(_place(node.start_mark), f"{tag} does not belong here", "quote a text that begins with !")
        return str(text)

    def _number(self, node: ScalarNode, text: str, key: str) -> Plain:
        """A number, unless YAML 1.1 reads a different one than was meant (its types int and float, yaml.org/type)."""
        shown = "the secret" if key == "secret" else text  # a secret never appears in a message
        digits = text.replace("_", "").lstrip("+-")
        negative = text.startswith("-")
        trap = ""
        if ":" in digits:
            trap = f"{shown} is a number in base 60 for YAML" + _reading(_sexagesimal(digits), key)
        elif re.fullmatch("0[0-7]+", digits):
            trap = f"{shown} is a number in base 8 for YAML" + _reading(int(digits[:20], 8), key)
        if trap:
            hint = "quote it" if key == "secret" else f'quote it, as in "{text}", or write the number you mean'
            self.document.report(_place(node.start_mark), trap, hint)
            return text
        if len(digits) > 20:
            return text  # not a number that the config knows; Python refuses to print ones of more than 4300 digits
        try:
            if node.tag == _TAG + "int":
                number = int(digits, 0)  # also 0x1f90 and 0b11
                return -number if negative else number
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return text  # an explicit tag on something else: the key's own check reports it


def _reading(value: float | None, key: str) -> str:
    return "" if value is None or key == "secret" else f": {value:g}" if value < 1e6 else f": {value}"


def _sexagesimal(digits: str) -> float | None:
    try:
        value = 0.0
        for part in digits[:40].split(":"):
            value = value * 60 + float(part)
    except ValueError:
        return None
    return value


def _key(node: Node) -> str:
    """Keys are compared as they are written: `443:` and `yes:` are the texts "443" and "yes"."""
    return str(node.value).replace(_STAR, "*") if isinstance(node, ScalarNode) else "a list or mapping as a key"


def _place(mark: yaml.Mark) -> Position:
    return Position(mark.line + 1, mark.column + 1)
