"""The counters of several processes as one: nothing is lost when one of them is."""

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.table import Diff, Frontend, Server, Table, diff, make_table
from pylb.forward.counters import Counters, DatagramCounters, FrontendCounters, ServerCounters
from pylb.workers.channel import BadFrame
from pylb.workers.messages import FrontendCount, Report, ServerCount, add, frontend_count, report
from pylb.workers.totals import Totals

WEB, MAIL = Listen("tcp", "*", 443), Listen("tcp", "*", 25)


def table(*listens: Listen, servers: str = "ab") -> Table:
    found = tuple(Server(name, Address("192.0.2.1", 30443)) for name in servers)
    return make_table(1, {listen: Frontend("web", listen, Policy(), found) for listen in listens})


def said(sessions: int, *, ended: int, server: str = "a", listen: Listen = WEB) -> Report:
    """A worker that has `sessions`, and had `ended` more."""
    one = FrontendCounters("web")
    one.sessions, one.sessions_total = sessions, sessions + ended
    one.bytes_in, one.bytes_out, one.queued = 10 * ended, 100 * ended, sessions
    one.denied["access"] = ended
    for _ in range(ended):
        one.connect_seconds.add(0.001)
        one.session_seconds.add(1.0)
    one.servers[server] = counters = ServerCounters()
    counters.sessions, counters.sessions_total = sessions, sessions + ended
    counters.closed["--"] = ended
    counters.failures["refused"] = ended
    process = Counters(100)
    process.open_sessions, process.faults = sessions, ended
    process.accept_errors["EMFILE"] = ended
    return report(process, 0.25, (frontend_count(listen, one),))


def blank(*listens: Listen) -> Counters:
    found = Counters(200)
    found.frontends = {listen: FrontendCounters("web") for listen in listens}
    return found


async def test_workers_are_added_up() -> None:
    totals = Totals()
    totals.heard(1, said(2, ended=3))
    totals.heard(2, said(1, ended=5, server="b"))
    totals.heard(2, said(1, ended=6, server="b"))  # the last word counts
    found = await totals.added(blank(WEB))
    web = found.frontends[WEB]
    assert (web.sessions, web.sessions_total, web.bytes_in, web.bytes_out, web.queued) == (3, 12, 90, 900, 3)
    assert (web.denied["access"], sum(web.connect_seconds.counts), web.session_seconds.total) == (9, 9, 9.0)
    assert {name: one.closed["--"] for name, one in web.servers.items()} == {"a": 3, "b": 6}
    assert (found.open_sessions, found.faults, found.accept_errors["EMFILE"], found.max_connections) == (3, 9, 9, 200)
    assert (totals.open_sessions(), totals.open_sessions(1), totals.open_sessions(9)) == (3, 2, 0)
    assert (totals.lag(1), totals.lag(9)) == (0.25, 0.0)


def full(of: int) -> FrontendCounters:
    """Whatever is counted has a value of its own."""
    one, server = FrontendCounters("web"), ServerCounters()
    one.servers["a"], one.datagrams = server, DatagramCounters()
    for counters in (one, server, one.datagrams):
        for place, name in enumerate(sorted(counters.__slots__), of):
            value = getattr(counters, name)
            if isinstance(value, (int, float)):
                setattr(counters, name, type(value)(place))
            elif name in ("denied", "failures", "closed", "dropped"):
                value.update({"one": place})
    return one


@pytest.mark.parametrize("live", [True, False])
def test_every_counter_of_a_frontend_and_its_servers_adds_up(live: bool) -> None:
    into = FrontendCounters("web")
    for of in (100, 200):
        add(into, frontend_count(WEB, full(of)), live=live)
    small, large = full(100), full(200)
    servers = (into.servers["a"], small.servers["a"], large.servers["a"])
    datagrams = (into.datagrams, small.datagrams, large.datagrams)
    for whole, one, other in ((into, small, large), servers, datagrams):
        for name in set(whole.__slots__) - {"name", "servers", "datagrams", "connect_seconds", "session_seconds"}:
            first, second, found = getattr(one, name), getattr(other, name), getattr(whole, name)
            if name in ("sessions", "queued"):
                assert found == (first + second if live else 0), name
            elif name.startswith(("longest_", "last_")):
                assert found == second, name
            else:
                assert found == first + second, name


async def test_of_one_that_is_gone_the_past_stays_and_the_present_does_not() -> None:
    totals = Totals()
    totals.heard(1, said(2, ended=3))
    totals.retire(1)
    totals.retire(1)
    totals.heard(2, said(1, ended=1))
    found = await totals.added(blank(WEB))
    web = found.frontends[WEB]
    assert (web.sessions, web.queued, web.sessions_total) == (1, 1, 7)
    assert (web.servers["a"].sessions, web.servers["a"].sessions_total, web.servers["a"].failures["refused"]) == (1, 7, 4)
    assert (found.open_sessions, found.faults) == (1, 4)


async def test_counters_go_with_their_frontend_and_labels_with_their_server() -> None:
    totals = Totals()
    totals.heard(1, said(0, ended=3))
    totals.heard(1, said(0, ended=2, listen=MAIL))
    totals.retire(1)
    before, after = table(WEB, MAIL), table(WEB, servers="b")
    totals.follow(after, diff(before, after))
    found = await totals.added(blank(WEB, MAIL))
    assert found.frontends[MAIL].sessions_total == 0
    web = found.frontends[WEB]
    assert (web.servers, web.forgotten, web.sessions_total) == ({}, 3, 3)


def test_a_frontend_that_a_late_report_brings_back_goes_with_the_next_table() -> None:
    before, after = table(WEB, MAIL), table(WEB)
    totals = Totals()
    totals.heard(1, said(0, ended=1))
    totals.follow(after, diff(before, after))
    totals.heard(1, said(0, ended=2, listen=MAIL))  # it had not heard yet
    totals.follow(after, Diff((), (), ()))
    assert [sorted(part) for part in totals.parts()] == [[WEB], []]


async def test_what_is_added_to_is_left_alone() -> None:
    base = blank(WEB)
    base.frontends[WEB].sessions_total = 5
    totals = Totals()
    totals.heard(1, said(1, ended=1))
    assert (await totals.added(base)).frontends[WEB].sessions_total == 7
    assert base.frontends[WEB].sessions_total == 5


def test_counts_of_another_form_are_refused() -> None:
    good = said(1, ended=1)
    [one] = good.frontends
    with pytest.raises(BadFrame):
        Totals().heard(1, good._replace(frontends=(one._replace(connect_seconds=(1, 2)),)))


async def test_sums_are_added_and_of_maxima_the_highest_stays() -> None:
    totals = Totals()
    for source, longest in ((1, 3.0), (2, 5.0)):
        report = said(1, ended=2)
        [web] = report.frontends
        [server] = web.servers.values()
        server = server._replace(
            bytes_in=10,
            bytes_out=20,
            attempts=4,
            redispatches=1,
            queue_seconds=0.5,
            connect_seconds=0.25,
            total_seconds=9.0,
            longest_queue=longest,
            longest_connect=longest,
            longest_total=longest,
            last_at=longest,
        )
        web = web._replace(servers={"a": server}, connections=7)
        totals.heard(source, report._replace(frontends=(web,), bytes_spliced=100, pipes_lent=3, runnable=1))
    totals.retire(1)
    found = await totals.added(blank(WEB))
    web_counters = found.frontends[WEB]
    one = web_counters.servers["a"]
    assert (web_counters.connections, one.bytes_in, one.bytes_out, one.attempts, one.redispatches) == (14, 20, 40, 8, 2)
    assert (one.queue_seconds, one.connect_seconds, one.total_seconds) == (1.0, 0.5, 18.0)
    assert (one.longest_queue, one.longest_connect, one.longest_total, one.last_at) == (5.0, 5.0, 5.0, 5.0)
    assert (found.bytes_spliced, found.pipes_lent, found.runnable) == (200, 3, 1)
    assert [WEB in part for part in totals.parts()] == [True, True]


def test_every_counter_of_a_process_is_in_its_reports() -> None:
    """One that is missing there would be 0 with workers, on every page."""
    assert set(FrontendCount._fields) - {"listen", "connect_total", "session_total"} == set(FrontendCounters.__slots__)
    assert set(ServerCount._fields) == set(ServerCounters.__slots__)
