"""The ring of ended sessions, and how they are found again."""

from ipaddress import ip_network

import pytest

from pylb.core.address import Address, Listen
from pylb.core.codec import from_plain, to_plain
from pylb.core.policy import Balance, Policy
from pylb.core.recorder import (
    SCAN,
    Attempt,
    Coverage,
    FullSince,
    Query,
    RecordedSession,
    Recorder,
    SessionTrace,
    first_number,
    is_meant,
    is_meant_live,
    joined,
    parse_session_id,
    session_id,
    trace_of,
)
from pylb.core.session import Event, SessionRecord, SessionView, State
from pylb.core.table import Frontend, Server

LISTEN = Listen("tcp", "*", 443)
EVERYTHING = Query()
SERVER = Server("pod-1", Address("203.0.113.7", 30443))
WEB = Frontend("web", LISTEN, Policy(balance=Balance.FIRST), (SERVER, Server("pod-2", Address("203.0.113.8", 30443))))


def entry(
    number: int = 1, *, client: str = "192.0.2.1", code: str = "--", first: Event | None = Event.CLIENT_FIN
) -> RecordedSession:
    """It came `number` seconds after 1000, and lived for half a second."""
    times = (0, 3, 500)
    record = SessionRecord("web", "pod-1", client, 51000, 443, 1000.0 + number, *times, 10, 20, code, 0, False, 1, 1, 1)
    attempts = (Attempt("pod-2", Address("203.0.113.8", 30443), "refused", "ECONNREFUSED", 1),)
    return RecordedSession(
        record._replace(number=number), State.CLOSED, WEB, 7, SERVER.address, attempts, 0.0021, first, 0.4, b"\1\0\3", b""
    )


def found(recorder: Recorder, query: Query = EVERYTHING) -> list[str]:
    return [one.id for step in recorder.search(query) for one in step]


def filled(*sessions: RecordedSession, size: int = 1000) -> Recorder:
    recorder = Recorder(size)
    for one in sessions:
        recorder.add(one)
    return recorder


def test_the_last_ones_are_kept_and_the_newest_comes_first() -> None:
    recorder = filled(*(entry(number) for number in range(1, 6)), size=3)
    assert found(recorder) == ["0x5", "0x4", "0x3"]


def test_a_flood_of_refused_clients_pushes_no_others_out() -> None:
    recorder = filled(entry(1), entry(2), *(entry(number, code="PR") for number in range(3, 100)), entry(100), size=8)
    assert found(recorder) == ["0x64", "0x63", "0x62", "0x2", "0x1"]


def test_failures_are_pushed_out_neither_by_what_goes_well_nor_by_other_failures() -> None:
    killed = [entry(number, code="KD") for number in (1, 2, 3)]
    well = [entry(number) for number in range(10, 50)]
    resets = [entry(number, code="CD") for number in range(50, 90)]
    recorder = filled(*killed, *well, *resets, size=4)
    assert found(recorder, Query(codes=("KD",))) == ["0x3", "0x2", "0x1"]
    assert len(found(recorder)) == 3 + 4 + 4


def test_a_recorder_says_how_far_back_it_goes_for_each_ending() -> None:
    recorder = Recorder(3, now=1000.0)
    assert recorder.reach == Coverage(1000.0)
    for one in (entry(1), entry(2), entry(3, code="KD")):
        recorder.add(one)
    assert recorder.reach == Coverage(1000.0)
    for one in (entry(4), entry(5), entry(6, code="KD")):
        recorder.add(one)
    assert recorder.reach == Coverage(1000.0, (FullSince("--", 1002.5),))


def test_the_reach_of_several_is_what_all_of_them_have() -> None:
    one = Coverage(1000.0, (FullSince("--", 1500.0), FullSince("KD", 1200.0)))
    young = Coverage(1300.0, (FullSince("--", 1400.0), FullSince("SC", 1350.0)))
    assert joined([one, young]) == Coverage(1300.0, (FullSince("--", 1500.0), FullSince("SC", 1350.0)))
    assert joined([one, young], ("KD", "SC")) == Coverage(1300.0, (FullSince("SC", 1350.0),))
    assert joined([]) == Coverage(0.0)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (Query(), ["0x3", "0x2", "0x1"]),
        (Query(limit=2), ["0x3", "0x2"]),
        (Query(limit=0), []),
        (Query(client=(ip_network("192.0.2.0/24"),)), ["0x2", "0x1"]),
        (Query(client=(ip_network("192.0.2.2"), ip_network("2001:db8::/32"))), ["0x3", "0x2"]),
        (Query(client=(ip_network("198.51.100.0/24"),)), []),
        (Query(frontend="web", server="pod-1"), ["0x3", "0x2", "0x1"]),
        (Query(frontend="443", server="203.0.113.7:30443"), ["0x3", "0x2", "0x1"]),
        (Query(frontend="*:443"), ["0x3", "0x2", "0x1"]),
        (Query(frontend="44"), []),
        (Query(server="pod-2"), []),
        (Query(codes=("SC", "sC")), ["0x2"]),
        (Query(codes=("SC",), since=1002.6), []),
        (Query(since=1002.5), ["0x3", "0x2"]),
    ],
)
def test_those_are_found_that_fit_every_word_of_the_question(query: Query, ids: list[str]) -> None:
    recorder = filled(entry(1), entry(2, client="192.0.2.2", code="SC"), entry(3, client="2001:db8::1%eth0"))
    assert found(recorder, query) == ids


def test_a_search_goes_in_steps_and_sees_what_was_there_when_it_began() -> None:
    recorder = filled(*(entry(number) for number in range(1, 3 * SCAN + 1)), size=3 * SCAN)
    search = recorder.search(Query(limit=10_000))
    steps = [next(search)]
    recorder.add(entry(9999))
    steps += search
    assert [len(step) for step in steps] == [SCAN] * 3
    assert steps[-1][-1].id == "0x1"
    rare = recorder.search(Query(server="pod-9"))
    assert [len(step) for step in rare] == [0, 0, 0]


def test_a_search_ends_with_the_step_that_has_enough() -> None:
    recorder = filled(*(entry(number) for number in range(1, 3 * SCAN)))
    assert [len(step) for step in recorder.search(Query(limit=SCAN + 1))] == [SCAN, 1]


def test_what_is_forgotten_is_not_found() -> None:
    recorder = filled(entry(1), entry(2, code="PR"))
    recorder.clear()
    assert (found(recorder), recorder.find(1), recorder.find(2)) == ([], None, None)


def test_one_is_found_by_its_number_with_the_servers_it_might_have_had() -> None:
    recorder = filled(entry(1), entry(2, code="PR"))
    one, refused = recorder.find(1), recorder.find(2)
    assert one is not None
    assert refused is not None
    assert (one.id, one.candidates, refused.record.code) == ("0x1", WEB.servers, "PR")
    assert recorder.find(3) is None


def test_a_story_is_what_was_kept_in_plain_words_and_survives_the_channel() -> None:
    told = trace_of(entry(0x1A2B), whole=True)
    assert (told.id, told.listen, told.balance, told.generation) == ("0x1a2b", LISTEN, "first", 7)
    assert (told.dial_ms, told.ended_at) == (2, 1000.5 + 0x1A2B)
    assert told.client_tcp is not None
    assert (told.client_tcp.state, told.client_tcp.retransmits, told.server_tcp) == ("ESTABLISHED", 3, None)
    assert from_plain(SessionTrace, to_plain(told)) == told
    assert trace_of(entry(1)).candidates == ()
    assert trace_of(entry(1)._replace(dial=None)).dial_ms == -1


@pytest.mark.parametrize(
    ("first", "closed"),
    [
        (Event.CLIENT_FIN, ("client", "FIN", 400)),
        (Event.SERVER_FIN, ("server", "FIN", 400)),
        (Event.CLIENT_RESET, ("client", "reset", 400)),
        (Event.SERVER_RESET, ("server", "reset", 400)),
        (Event.TIMED_OUT, ("pylb", "timed out", 400)),
        (Event.KILLED, ("pylb", "killed", 400)),
        (Event.NO_SERVER_LEFT, ("pylb", "no server left", 400)),
        (None, ("", "", -1)),
    ],
)
def test_who_closed_first_is_a_side_or_pylb_itself(first: Event | None, closed: tuple[str, str, int]) -> None:
    told = trace_of(entry(first=first))
    assert (told.closed_by, told.closed_how, told.closed_ms) == closed


@pytest.mark.parametrize(("worker", "count", "text"), [(0, 1, "0x1"), (0, 0x1A2B, "0x1a2b"), (31, 1 << 40, "0x1f010000000000")])
def test_an_id_is_read_as_it_is_written_and_no_two_workers_share_one(worker: int, count: int, text: str) -> None:
    assert session_id(first_number(worker) + count) == text
    assert parse_session_id(text) == first_number(worker) + count
    assert parse_session_id("0x" + text[2:].upper()) == first_number(worker) + count


@pytest.mark.parametrize("text", ["", "443", "0-1a2b", "0x", "0xyz", "x1", "0X1", "-0x1", "0x1 ", "0x" + "1" * 17, "0x٣"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a session id, as in 0x1a2b"):
        parse_session_id(text)


def test_live_sessions_are_found_by_the_same_words() -> None:
    view = SessionView("192.0.2.1", 51000, "web", LISTEN, "pod-1", SERVER.address, "relaying", 1.0, 1, 2, "0x1")
    assert is_meant_live(Query(client=(ip_network("192.0.2.0/24"),), frontend="443", server="pod-1"), view)
    assert not is_meant_live(Query(server="pod-2"), view)
    for text in ("192.0.2.1:51", "we", "pod-", str(SERVER.address)[3:], "relay"):
        assert is_meant_live(Query(text=text), view), text
    assert not is_meant_live(Query(text="nobody"), view)
    assert not is_meant_live(Query(text="pod", server="pod-2"), view)
    assert is_meant_live(Query(text="web"), view._replace(server="", address=None))


def test_an_ended_session_is_meant_by_its_code_and_its_end() -> None:
    assert is_meant(Query(codes=("--", "SC")), entry())
    assert not is_meant(Query(codes=("SC",)), entry())
    assert not is_meant(Query(since=2000.0), entry())
    assert is_meant(Query(text="pod"), entry())
    assert not is_meant(Query(text="nobody"), entry())
