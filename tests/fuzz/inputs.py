"""Bytes for a parser: its valid examples spoilt piece by piece, words of its grammar in any order, noise; and ever longer."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st

# What stands where a value was: numbers at and behind every edge, JSON's and Python's odd ones, characters that some
# function takes for digits, blanks or letters, addresses in disguise.
ODD = (
    *(b"", b"0", b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"65536", b"443.0", b"0x1f", b"1_0", b"9" * 400, b"9" * 5000),
    *(b'"9"', b'""', b'"\\ud800"', b'"\\u0000"', b"[]", b"{}", b"[[]]", b"null", b"true", b"\x00", b"\xff", b"\x1b[2J"),
    *("²".encode(), "٣".encode(), b" ", "é".encode(), "\ue000".encode(), "\U0010ffff".encode()),
    *(b"fe80::1%eth0", b"::ffff:192.0.2.1", b"[::1]:443", b"127.1", b"*:443", b"%2f", b"..", b"--5", b"+5", b"1-65535"),
)
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.+-]+')

Edit = tuple[int, int, int, bytes]  # kind, place, length, piece


@dataclass(frozen=True)
class Parser:
    """One parser of foreign bytes."""

    name: str
    parse: Callable[[bytes], object]
    raises: tuple[type[Exception], ...] = ()  # what it may raise: the documented ones, and nothing else
    examples: tuple[bytes, ...] = ()  # valid ones
    words: tuple[bytes, ...] = ()  # of its grammar
    check: Callable[[object], object] = field(
        default=lambda _found: None
    )  # raises AssertionError: what was parsed is not right
    most: int = 1 << 20  # bytes that reach it at most
    memory: int = 100  # bytes that it may take for each byte of its input
    slow: bool = False  # it takes milliseconds for what others take microseconds

    def run(self, data: bytes) -> None:
        """Raises whatever is a defect."""
        try:
            found = self.parse(data[: self.most])
        except self.raises:
            return
        self.check(found)

    def work(self, data: bytes) -> None:
        """The parser's alone."""
        try:
            self.parse(data[: self.most])
        except self.raises:
            pass


def spoilt(data: bytes, edits: list[Edit]) -> bytes:
    """Each edit in its turn; the places are taken modulo what is there, so that a shrunk input is spoilt alike."""
    for kind, place, length, piece in edits:
        at = place % (len(data) + 1)
        if kind == 0:
            data = data[:at] + piece + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[: at + length] + data[at:]  # twice
        elif kind == 3 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << length % 8]) + data[at + 1 :]
        elif values := [found.span() for found in _VALUE.finditer(data)]:
            start, end = values[place % len(values)]
            data = data[:start] + piece + data[end:]
    return data


def inputs(parser: Parser) -> st.SearchStrategy[bytes]:
    pieces = st.one_of(st.sampled_from((*parser.words, *ODD)), st.binary(max_size=8))
    edits = st.tuples(st.integers(0, 6), st.integers(0, 1 << 16), st.integers(0, 40), pieces)
    examples = st.sampled_from(parser.examples or (b"",))
    return st.one_of(
        st.builds(spoilt, examples, st.lists(edits, max_size=6)),
        st.lists(st.one_of(examples, pieces), max_size=30).map(b"".join),
        st.lists(pieces, max_size=30).map(b" ".join),
        st.binary(max_size=300),
    )


def grown(parser: Parser) -> Iterator[Callable[[int], bytes]]:
    """Makers of an input of that many bytes: a word again and again, alone, line after line, and inside an example."""
    common = (b"[", b"{", b'"', b"\\", b"-", b":", b",", b" ", b"a", b"1", b"\n", b"\xff", b'{"a":', b"'", b"#")
    words = dict.fromkeys((*common, *parser.words, *(word for word in ODD if 1 < len(word) < 20)))
    for word in words:
        yield lambda size, word=word: _many(word, size)
        yield lambda size, word=word: _many(word + b"\n", size)
    for example in parser.examples:
        yield lambda size, example=example: _many(example, size)
        yield lambda size, example=example: _many(example + b"\n", size)
        values = [found.span() for found in _VALUE.finditer(example)]
        # In the first ones, the last ones, and some between: a long value in every kind of place.
        for start, end in dict.fromkeys([*values[:6], *values[6 : -3 : max(1, len(values) // 6)], *values[-3:]]):
            for word in (b"a", b"1", b"-", b" ", b"[", b'"', b"\\"):
                yield (
                    lambda size, start=start, end=end, word=word, example=example: (
                        example[:start] + _many(word, size - len(example)) + example[end:]
                    )
                )


def numbered(example: bytes, size: int) -> bytes:
    """An example line after line, its names and numbers all different: what a parser keeps of each must not be searched."""
    found = bytearray()
    number = 0
    while len(found) < size:
        number += 1
        found += re.sub(rb"[A-Za-z][a-z]*1\b", lambda one, number=number: one[0] + b"%d" % number, example) + b"\n"
    return bytes(found[:size])


def shapes(parser: Parser) -> list[Callable[[int], bytes]]:
    return [*grown(parser), *(lambda size, example=example: numbered(example, size) for example in parser.examples)]


def _many(word: bytes, size: int) -> bytes:
    return (word * (size // max(1, len(word)) + 1))[: max(0, size)]
