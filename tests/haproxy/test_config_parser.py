"""Words, variables, conditionals and defaults, with the real HAProxy as the oracle: `.notice WORD` prints what it has read."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.haproxy.config_parser import Notes, Parser, Variables, holds, split_words
from tests.support.peers import need

SETTINGS = 'global\n  setenv ONE one\n  presetenv ONE two\n  setenv TWO "a b"\n  setenv GONE x\n  unsetenv GONE\n'
PIECE = re.compile(r"""(?:[^ '"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""")
LINES = r"""
x"$ONE"y "x${TWO}y" ${ONE} $ONE "${UNSET-else}" "${ONE-else}" "\$ONE" \$ONE '$ONE'
a\ b \-q \x41 "q\"w\-" a"b"'c'#d "a\'b" a\'b a\tb \\ "\\" a\#b "#" '"' "" '' "a b"\ c
"""


def read(text: str, environ: dict[str, str] | None = None) -> tuple[Parser, list[str]]:
    notes = Notes()
    parser = Parser(notes, environ or {})
    parser.read("h", text)
    return parser, list(map(str, notes))


def words(text: str) -> list[str]:
    """Of the last section."""
    return [word for line in read(text)[0].sections[-1].lines for word in line.words]


def oracle(text: str, tmp_path: Path) -> list[str]:
    """The first word of each `.notice`, as HAProxy prints it."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    ran = subprocess.run(
        [need("haproxy"), "-c", "-f", str(file)], capture_output=True, text=True, timeout=20, check=False, env={"OUT": "side"}
    )
    return re.findall(r"parsing \[[^]]*\]: '(.*)'\.$", ran.stderr, re.MULTILINE)


def test_words_are_those_that_haproxy_reads(tmp_path: Path) -> None:
    variables = Variables({"OUT": "side"})
    for command in (["setenv", "ONE", "one"], ["presetenv", "ONE", "two"], ["setenv", "TWO", "a b"]):
        variables.command(command)
    pieces = [piece for line in LINES.split("\n") for piece in PIECE.findall(line)]
    assert len(pieces) == 25
    expected = oracle(SETTINGS + "".join(f".notice {piece}\n" for piece in pieces), tmp_path)
    assert [(split_words(piece, variables) or [""])[0] for piece in pieces] == expected


CONDITIONS = [
    "",
    "1",
    "0",
    "!0",
    "defined(ONE)",
    "defined(GONE)",
    '"streq(${ONE},one)"',
    '"strneq(${ONE},one)"',
    "1 && 0 || 1",
    "1 || 0 && 0",
    "!(1 && 0)",
    "(0 || 1) && !defined(GONE)",
    "defined(OUT)",
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_branch_is_read_when_haproxy_reads_it(condition: str, tmp_path: Path) -> None:
    text = f"{SETTINGS}.if {condition}\n.notice yes\n.else\n.notice no\n.endif\n"
    parser, notes = read(text.replace(".notice", "  word"), {"OUT": "side"})
    found = [line.words[1] for line in parser.sections[-1].lines if line.words[0] == "word"]
    assert (found, notes) == (oracle(text, tmp_path), [])


def test_who_cannot_know_the_branch_reads_none_and_says_so() -> None:
    parser, notes = read("global\n.if version_atleast(2.6)\n a\n.elif 1\n b\n.else\n c\n.endif\n d\n")
    assert [line.words for line in parser.sections[0].lines] == [["d"]]
    assert notes == [
        "h:2: .if version_atleast(2.6): pylb cannot know which branch HAProxy takes, and reads none of them up to .endif"
    ]


def test_a_branch_inside_one_that_is_not_read_is_not_read() -> None:
    assert words("global\n.if 0\n a\n.if 1\n b\n.else\n c\n.endif\n.elif 1\n d\n.else\n e\n.endif\n f\n") == ["d", "f"]


def test_a_variable_that_is_not_set_is_a_difference() -> None:
    assert read('listen "$NAME"\n')[1] == []  # a name says nothing about who is served
    assert read('listen a\n bind "$HERE:80"\n')[1][0].startswith("h:2: the variable HERE is not set here")
    assert read('listen a\n bind "$HERE:80"\n', {"HERE": "192.0.2.1"})[1] == []


def test_named_defaults_are_inherited_from_each_other() -> None:
    text = "defaults base\n a\ndefaults mine from base\n b\ndefaults last\n c\nlisten one from mine\n d\nlisten two\n e\n"
    one, two = (section for section in read(text)[0].sections if section.kind == "listen")
    assert [line.words[0] for parent in one.inherited() for line in parent.lines] == ["b", "a"]
    assert [line.words[0] for parent in two.inherited() for line in parent.lines] == ["c"]
    assert "there are no defaults called none" in read("listen a from none\n")[1][0]


def test_defaults_of_a_megabyte_for_each_of_many_sections_are_refused() -> None:
    text = "defaults\n option " + "x" * (1 << 19) + "\n" + "".join(f"listen a{number}\n" for number in range(50))
    assert "all sections together inherit too much" in read(text)[1][0]


@given(st.text(alphabet="10!&|() defined,streq", max_size=40))
def test_no_condition_raises(condition: str) -> None:
    assert holds(condition, Variables({})) in (True, False, None)


def test_a_condition_of_a_megabyte_is_not_read() -> None:
    assert holds("(" * (1 << 20), Variables({})) is None


@given(st.text(alphabet="ab'\"\\# \t\r-${}x4", max_size=20))
def test_no_line_raises_more_than_a_value_error(line: str) -> None:
    try:
        split_words(line, Variables({}))
    except ValueError as error:
        assert str(error).startswith(("No closing", "No escaped"))  # noqa: PT017 - the message is what is shown
