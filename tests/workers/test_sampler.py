"""The one look a second at what all processes have counted."""

from collections.abc import Mapping
from functools import partial

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.table import Frontend, Server, Table, make_table
from pylb.forward.counters import FrontendCounters, ServerCounters
from pylb.workers.messages import frontend_count
from pylb.workers.sampler import FrontendSum, Moment, Sampler, ServerSum, count

A, B = Listen("tcp", "*", 443), Listen("tcp", "*", 25)


def counters(
    sessions: int = 0, total: int = 0, bytes_in: int = 0, connects: Mapping[float, int] | None = None
) -> FrontendCounters:
    found = FrontendCounters("web")
    found.sessions, found.sessions_total, found.bytes_in = sessions, total, bytes_in
    found.servers["pod"] = ServerCounters()
    found.servers["pod"].sessions, found.servers["pod"].sessions_total = sessions, total
    for seconds, times in (connects or {}).items():
        for _ in range(times):
            found.connect_seconds.add(seconds)
    return found


def test_what_an_engine_counts_and_what_workers_report_add_up() -> None:
    own = {A: counters(2, 10, 100, {0.002: 3})}
    reported = {A: frontend_count(A, counters(1, 5, 50, {0.002: 1, 0.2: 1}))}
    found = count(A, [own, reported, {}])
    assert (found.sessions, found.total, found.bytes_in) == (3, 15, 150)
    assert found.servers == {"pod": ServerSum(3, 15)}
    assert sum(found.connects) == 5
    assert count(B, [own, reported]) == FrontendSum()


def test_where_nothing_happened_the_count_is_the_same_object_and_where_anything_did_it_is_not() -> None:
    here = counters(0, 10, 100, {0.002: 3})
    known = count(A, [{A: here}])
    assert count(A, [{A: here}], known) is known
    here.denied["address"] += 1
    assert count(A, [{A: here}], known).denied == known.denied + 1
    known = count(A, [{A: here}])
    here.sessions_total += 1  # came and went between two looks
    here.bytes_in += 5
    assert count(A, [{A: here}], known)[1:3] == (11, 105)
    here.sessions = 1
    known = count(A, [{A: here}])
    here.bytes_out += 7  # of one that is there
    assert count(A, [{A: here}], known).bytes_out == known.bytes_out + 7
    here.sessions = 0  # it left: the one look at it that is still due
    assert count(A, [{A: here}], count(A, [{A: counters(1, 11, 105)}])).sessions == 0
    here.queued = 1
    assert count(A, [{A: here}], count(A, [{A: counters(0, 11)}])).queued == 1


class Witness:
    """A consumer, and what it was given."""

    def __init__(self) -> None:
        self.looks: list[dict[Listen, FrontendSum]] = []
        self.moments: list[Moment] = []
        self.ended = 0

    def begin(self, moment: Moment, table: Table) -> None:
        assert set(table.frontends) <= {A, B}
        self.moments.append(moment)
        self.looks.append({})

    def add(self, frontend: Frontend, new: FrontendSum) -> None:
        self.looks[-1][frontend.listen] = new

    def end(self) -> None:
        self.ended += 1


async def test_all_consumers_are_given_the_same_counts_and_of_a_quiet_frontend_the_same_object_again() -> None:
    here = {A: counters(0, 10), B: counters(0, 3)}
    servers = (Server("pod", Address("192.0.2.1", 30443)),)
    tables = [make_table(1, {listen: Frontend("web", listen, Policy(), servers) for listen in (A, B)})]
    changed = {**tables[0].frontends} | {B: Frontend("web", B, Policy(max_connections=7), servers)}
    first, second, over = Witness(), Witness(), list[int]()
    sampler = Sampler(lambda: tables[-1], lambda: [here], (first, second), sampled=lambda: over.append(first.ended))
    await sampler.sample()
    here[A].sessions_total += 1
    await sampler.sample()
    here[B].servers["new"] = ServerCounters()
    tables.append(make_table(2, changed))
    await sampler.sample()
    assert first.looks == second.looks
    assert over == [1, 2, 3]
    before, now, last = first.looks
    assert (now[A].total, now[B] is before[B]) == (11, True)
    assert last[A] is now[A]
    assert list(last[B].servers) == ["pod", "new"]  # a frontend that changed is looked at anew
    for one in first.looks[0]:
        assert before[one] is second.looks[0][one]


async def test_the_processor_time_of_the_processes_is_part_of_a_look() -> None:
    witness = Witness()
    pids, table, times = [1, 1 << 30], make_table(1, {}), iter((5.0, 6.0))
    clock = partial(next, times)
    sampler = Sampler(lambda: table, list, [witness], pids=lambda: pids, clock=clock, wall=lambda: 1000.0)
    await sampler.sample()
    [moment] = witness.moments
    assert moment[:2] == (5.0, 1000.0)
    assert moment.used[0] > 0
    assert moment.used[1] == 0  # nobody has that pid
