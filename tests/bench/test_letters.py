"""The same sessions through pylb and a real HAProxy: what their log lines say, and what HAProxy's own `halog` makes of both."""

import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from bench import letters
from tests.support.peers import need

pytestmark = pytest.mark.alone  # who gives up first, by timeouts of both
ANY_PORT = re.compile(r"127\.0\.0\.1:\d+")  # each proxy has servers of its own

# What is compared to the letter; the rest is milliseconds, and counts that may still have the session before in them.
SHAPE = ("frontend", "backend", "server", "code", "sc", "sq", "bq")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """{proxy: {case: its messages}}; both at the same time, for most of it is waiting."""
    need("haproxy")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        testbeds = [stack.enter_context(letters.prepared(name, tmp_path_factory.mktemp(name))) for name in letters.TARGETS]
        played = pool.map(lambda testbed: dict(letters.messages(testbed, list(letters.CASES))), testbeds)
        return dict(zip(letters.TARGETS, played, strict=True))


def fields(message: str) -> dict[str, str]:
    found = letters.MESSAGE.fullmatch(message)
    assert found is not None, message
    return found.groupdict() | {"server": ANY_PORT.sub("IP:PORT", found["server"])}


@pytest.mark.parametrize("name", letters.TARGETS)
def test_every_message_has_the_form_of_haproxys_manual(logs: dict[str, dict[str, list[str]]], name: str) -> None:
    every = [message for found in logs[name].values() for message in found if message.startswith("<134>")]
    assert len(every) >= len(letters.CASES)
    for message in every:
        assert letters.MESSAGE.fullmatch(message), message


@pytest.mark.parametrize("name", letters.TARGETS)
def test_the_two_letters_are_those_of_the_page(logs: dict[str, dict[str, list[str]]], name: str) -> None:
    found = {case: letters.letters(said[-1]) for case, said in logs[name].items()}
    assert not {case: code for case, code in found.items() if not letters.expected(name, case, code)}


def test_the_page_says_what_pylb_has_to_say() -> None:
    block = letters.PAGE.read_text().partition(letters.BEGIN)[2].partition(letters.STOP)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")]
    assert rows[0][1:3] == list(letters.TARGETS)
    assert {row[0]: row[1] for row in rows[2:]} == {case: f"`{one.pylb}`" for case, one in letters.CASES.items()}


def test_the_lines_of_both_agree_field_by_field(logs: dict[str, dict[str, list[str]]]) -> None:
    """Where the letters do: names, counts of connections, bytes, which of the times are -1."""
    for case, one in letters.CASES.items():
        if one.pylb != one.haproxy or case == "the client does not read":  # how much the kernel took is its own affair
            continue
        ours, theirs = fields(logs["pylb"][case][-1]), fields(logs["haproxy"][case][-1])
        for key in ("tw", "tc", "tt"):
            assert (ours[key] == "-1") == (theirs[key] == "-1"), (case, key, ours, theirs)
        # The one that has ended is counted at the frontend only. HAProxy may not yet have freed the session of the case before.
        assert int(ours["fc"]) - int(ours["bc"]) == 1 <= int(theirs["fc"]) - int(theirs["bc"]), (case, ours, theirs)
        same = {key: ours[key] for key in (*SHAPE, "bytes")}
        # A retry of HAProxy's goes to the same server; neither has made one here.
        assert same == {key: theirs[key] for key in same}, case


# ------------------------------------------------------------ halog


def equal_cases(logs: dict[str, dict[str, list[str]]], name: str) -> list[str]:
    """The lines of the sessions whose letters are to be the same, each as a syslog daemon writes it: host after the date."""
    lines = [found[-1] for case, found in logs[name].items() if letters.CASES[case].pylb == letters.CASES[case].haproxy]
    return [re.sub(r"^<134>(.{15}) ", r"\1 lb ", line) for line in lines]


def halog(lines: list[str], *options: str) -> str:
    argv = [need("halog"), *options]
    done = subprocess.run(argv, input="".join(lines), capture_output=True, text=True, check=True, timeout=20)
    return ANY_PORT.sub("IP:PORT", done.stdout + done.stderr)


def as_http(lines: list[str]) -> list[str]:
    """halog counts letters and times of HTTP lines only. What HTTP has and TCP has not is put in, as docs/logs.md does it."""
    [script] = re.findall(r"sed -E '([^']+)'", letters.PAGE.read_text())
    done = subprocess.run(["sed", "-E", script], input="".join(lines), capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.splitlines(keepends=True)


@pytest.mark.parametrize("options", [("-c",), ("-srv",), ("-e", "-c"), ("-E", "-c"), ("-H", "-c")], ids=" ".join)
def test_halog_says_the_same_of_both(logs: dict[str, dict[str, list[str]]], options: tuple[str, ...]) -> None:
    ours, theirs = (halog(equal_cases(logs, name), *options) for name in letters.TARGETS)
    assert ours == theirs
    assert ours


@pytest.mark.parametrize("options", [("-tc",), ("-tcn", "SC", "-c"), ("-TCN", "--", "-c"), ("-Q", "-c")], ids=" ".join)
def test_halog_counts_the_same_letters(logs: dict[str, dict[str, list[str]]], options: tuple[str, ...]) -> None:
    ours, theirs = (halog(as_http(equal_cases(logs, name)), *options) for name in letters.TARGETS)
    assert ours == theirs
    assert "parsing errors" not in ours or " 0 parsing errors" in ours
    assert ours.strip() != "0" or options == ("-Q", "-c")


def test_halog_counts_the_letters_that_were_played(logs: dict[str, dict[str, list[str]]]) -> None:
    found = halog(as_http(equal_cases(logs, "pylb")), "-q", "-tc").splitlines()
    played = Counter(one.pylb for one in letters.CASES.values() if one.pylb == one.haproxy)
    assert {tuple(line.split()) for line in found if len(line.split()) == 2} == {(c, str(n)) for c, n in played.items()}
    assert len(played) >= 8


def test_halog_reads_the_bare_lines_of_a_file(logs: dict[str, dict[str, list[str]]]) -> None:
    lines = as_http(equal_cases(logs, "pylb"))
    bare = [line.partition("]: ")[2] for line in lines]
    assert halog(bare, "-s", "-4", "-tc").splitlines()[-3:] == halog(lines, "-tc").splitlines()[-3:]
    assert " 0 parsing errors" in halog(bare, "-s", "-4", "-tc")


def test_halog_has_the_same_servers_and_how_many_of_their_sessions_went_well(logs: dict[str, dict[str, list[str]]]) -> None:
    ours, theirs = (
        [line.split()[:-2] for line in halog(as_http(equal_cases(logs, name)), "-q", "-srv").splitlines()]  # without times
        for name in letters.TARGETS
    )
    assert ours == theirs
    assert [row[0] for row in ours if len(row) > 1][1:], ours


@pytest.mark.parametrize("options", [("-ac", "1"), ("-ad", "1"), ("-pct",)], ids=" ".join)
def test_halog_reads_the_times_of_both(logs: dict[str, dict[str, list[str]]], options: tuple[str, ...]) -> None:
    ours, theirs = (halog(as_http(equal_cases(logs, name)), *options).partition(" lines in, ") for name in letters.TARGETS)
    assert ours[0].split()[-1] == theirs[0].split()[-1]  # lines that it could read
    for said in (ours, theirs):
        assert " 0 parsing errors" in said[2]


# ------------------------------------------------------------ dontlognull


@pytest.mark.parametrize("name", letters.TARGETS)
def test_dontlognull_means_the_same(name: str, tmp_path: Path) -> None:
    """No line for a client without a byte, whatever the server said to it. But pylb never hides a server that refuses."""
    need("haproxy")
    with letters.prepared(name, tmp_path, dontlognull=True) as testbed:
        silent = []
        for greeting in (b"", b"220 ready"):
            with closing(testbed.client("plain")) as client:
                silent.append(str(letters.name_of(client)))
                with closing(testbed.server.accept()[0]) as server:
                    server.settimeout(letters.LIMIT)
                    server.sendall(greeting)
                    assert not greeting or client.recv(100) == greeting
                    letters.reset(client)
                    letters.until_end(server)
        refused = str(letters.CASES["the only server refuses"].play(testbed))
        spoke = [str(letters.CASES[case].play(testbed)) for case in ("the client resets", "both sides finish")]
        text = ""
        while any(f" {one} " not in text for one in spoke):  # in either order; a line that never comes is a timeout
            text += testbed.log.recv(9999).decode()
        testbed.log.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                text += testbed.log.recv(9999).decode()
    assert [one for one in silent if f" {one} " in text] == []
    assert (f" {refused} " in text) is (name == "pylb")
