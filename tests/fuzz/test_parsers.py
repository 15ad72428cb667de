"""Every parser of foreign bytes: a few of what `make fuzz-parsers` tries for ten minutes, and what all of them cost.

Times are not looked at here: the work is counted in events of the interpreter, which are the same on every machine. What
spends its time inside one call (a regular expression) is found by the long run, and has its own test where it was.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from tests.fuzz.inputs import Parser, inputs, shapes
from tests.fuzz.measures import events, memory, no_hang
from tests.fuzz.parsers import PARSERS

EXAMPLES = 60
SMALL = 1500  # bytes
SHAPES = 40  # of those of the long run; of a slow parser an eighth
ROOM = 3000  # events, for what costs the same whatever comes
GROWTH = 2.6  # times the work for twice the input; 4 is quadratic
each = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@each
def test_whatever_comes_is_read_or_refused(parser: Parser) -> None:
    @settings(max_examples=EXAMPLES, phases=(Phase.generate, Phase.shrink))
    @given(inputs(parser))
    def few(data: bytes) -> None:
        with no_hang():
            parser.run(data)

    few()


@each
def test_a_valid_example_is_read_and_written_again(parser: Parser) -> None:
    assert parser.examples
    for example in parser.examples:
        parser.check(parser.parse(example))


@each
def test_twice_the_input_is_twice_the_work(parser: Parser) -> None:
    for make in some(parser):
        once, twice = (events(parser.work, make(size)) for size in (SMALL, 2 * SMALL))
        assert twice <= GROWTH * once + ROOM, make(60)


@each
def test_memory_is_bounded_by_a_multiple_of_the_input(parser: Parser) -> None:
    for make in some(parser):
        data = make(2 * SMALL)
        assert memory(parser.work, data) <= (1 << 20) + parser.memory * len(data), make(60)


def some(parser: Parser) -> list[Callable[[int], bytes]]:
    """Shapes from all over the list, the last ones (lists whose entries all differ) among them."""
    found = shapes(parser)
    return found[:: -max(1, len(found) // (SHAPES // 8 if parser.slow else SHAPES))]


def test_every_module_that_parses_is_in_the_table() -> None:
    """Whoever writes another parser of foreign text finds this table."""
    root = Path(__file__).resolve().parents[2]
    called = re.compile(r"\b(json\.loads|shlex\.split|urlsplit|parse_qsl|unpack_from|yaml\.\w*load)\(")
    imported = {name for path in Path(__file__).parent.glob("*.py") for name in _imported(path)}
    for path in sorted((*(root / "pylb").rglob("*.py"), *(root / "phonehome").rglob("*.py"))):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if called.search(path.read_text()) and module not in imported:
            assert module in ELSEWHERE, f"{module} parses: which line of tests/fuzz/parsers.py is about it?"


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{one.name}" for one in node.names)


# Why the table has no line for it.
ELSEWHERE = {
    "pylb.cluster.disk": "its own file, whose content is the line `the cluster's memory`",
    "pylb.config.etcd": "endpoints, after the line `values`",
    "phonehome.drain_socket": "the other end knows the token of this phone-home",
    "pylb.cli.demo": "its own phone-homes and its own echo server",
    "pylb.forward.datagram_sockets": "what the kernel says of a datagram; tests/forward/test_any_datagrams.py",
    "pylb.forward.sockets": "what the kernel says of a socket",
    "pylb.cli.install": "what pip wrote of this very installation",
    "pylb.web.control_client": "the answer of the running pylb, on a socket that only its user and root can make",
    "pylb.web.admin": "Host and Origin, of which it takes urlsplit's host or nothing",
    "pylb.web.exchange": "the query, by parse_qsl as in the line `request`",
    "pylb.web.webhook": "whether a body is JSON at all; then the lines of the two bodies",
}
