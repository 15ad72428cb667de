"""Limits over several processes: what the others have counts here, and what is here is reported to them."""

from pylb.core.access import canonical
from pylb.core.address import Listen
from pylb.core.policy import Policy, SourceLimits
from pylb.forward.shared_limits import FrontendUse
from tests.support.drive import Drive, Peer, server_at

OTHER = 2
CLIENT = canonical(bytes((127, 0, 0, 1)))


def use(listen: Listen, sessions: int = 0, **more: object) -> FrontendUse:
    return FrontendUse(listen, sessions, 0, {}, {})._replace(**more)


def report(drive: Drive, *uses: FrontendUse) -> None:
    drive.engine.other_processes.take_report(OTHER, uses, drive.clock.now)


def follow(drive: Drive, *args: object, **more: object) -> Listen:
    listen = drive.serve(*args, **more)  # type: ignore[arg-type]
    drive.engine.other_processes.follow([listen])
    return listen


def refused(drive: Drive, listen: Listen) -> bool:
    client = drive.connect(listen)
    before = drive.engine.counters.frontends[listen].sessions_total
    drive.run_until(lambda: client.error or drive.engine.counters.frontends[listen].sessions_total > before)
    return bool(client.error)


def end(drive: Drive, client: Peer, server: Peer) -> None:
    before = len(drive.records)
    client.finish()
    server.finish()
    drive.run_until(lambda: len(drive.records) > before)


def test_a_frontends_connections_are_those_of_all_processes(drive: Drive) -> None:
    backend = drive.backend()
    listen = follow(drive, server_at(backend), policy=Policy(max_connections=3))
    report(drive, use(listen, 2))
    first = drive.connect(listen), drive.accept(backend)
    drive.connect(listen)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 1
    report(drive, use(listen, 1))
    drive.accept(backend)
    end(drive, *first)


def test_a_process_that_is_gone_has_nothing_any_more(drive: Drive) -> None:
    backend = drive.backend()
    listen = follow(drive, server_at(backend), policy=Policy(max_connections=2))
    report(drive, use(listen, 2))
    drive.connect(listen)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 0
    drive.engine.other_processes.forget(OTHER)
    drive.engine.other_processes.forget(OTHER)
    drive.accept(backend)


def test_who_waits_for_a_server_goes_on_when_another_process_has_less_of_it(drive: Drive) -> None:
    backend = drive.backend()
    server = server_at(backend, most=1)
    listen = follow(drive, server)
    report(drive, use(listen, servers={str(server.address): 1}))
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    report(drive, use(listen, servers={}))
    drive.accept(backend)
    assert drive.engine.counters.frontends[listen].queued == 0


def test_a_new_table_does_not_forget_what_the_others_have(drive: Drive) -> None:
    backend = drive.backend()
    server = server_at(backend, most=1)
    listen = follow(drive, server)
    report(drive, use(listen, servers={str(server.address): 1}))
    follow(drive, server, policy=Policy(retries=1), listen=listen)
    drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    report(drive, use(listen))
    drive.accept(backend)


def test_a_sources_connections_are_those_of_all_processes(drive: Drive) -> None:
    backend = drive.backend()
    listen = follow(drive, server_at(backend), policy=Policy(limits=SourceLimits(per_source=2)))
    drive.engine.other_processes.uses()
    report(drive, use(listen, 1, sources={CLIENT: (1, 1)}))
    first = drive.connect(listen), drive.accept(backend)
    assert refused(drive, listen)
    report(drive, use(listen, 0, sources={CLIENT: (0, 0)}))
    drive.connect(listen)
    drive.accept(backend)
    end(drive, *first)


def test_rates_are_spent_together(drive: Drive) -> None:
    backend = drive.backend()
    limits = SourceLimits(per_source_rate=2, rate=100)
    listen = follow(drive, server_at(backend), policy=Policy(limits=limits))
    drive.pass_time(0.1)  # the first tick counts as one that took its time
    report(drive, use(listen, 1, accepted=99, sources={CLIENT: (1, 1)}))
    drive.connect(listen)
    drive.accept(backend)  # the second of this second, and the hundredth of the frontend's
    report(drive, use(listen, 1, accepted=1))
    late = drive.connect(listen)
    drive.run_until_quiet()
    assert not late.error
    assert drive.engine.counters.frontends[listen].sessions_total == 1
    drive.pass_time(0.1)
    drive.run_until(lambda: late.error)  # the frontend has room again, the source has not
    assert drive.engine.counters.frontends[listen].denied == {"per_source_rate": 1}


def test_what_changed_is_told_once_and_everything_on_demand(drive: Drive) -> None:
    backend = drive.backend()
    server = server_at(backend, most=5)
    limits = SourceLimits(rate=10, per_source=5)
    listen = follow(drive, server, policy=Policy(max_connections=9, limits=limits))
    others = drive.engine.other_processes
    assert others.uses() == (FrontendUse(listen, 0, 0, {str(server.address): 0}, {}),)
    assert others.uses() == ()
    session = drive.connect(listen), drive.accept(backend)
    reported = FrontendUse(listen, 1, 1, {str(server.address): 1}, {CLIENT: (1, 1)})
    assert others.uses() == (reported,)
    assert others.uses() == ()
    assert others.uses(whole=True) == (reported._replace(accepted=0, sources={CLIENT: (1, 0)}),)
    end(drive, *session)
    assert others.uses() == (FrontendUse(listen, 0, 0, {str(server.address): 0}, {CLIENT: (0, 0)}),)


def test_a_frontend_without_limits_is_never_told_of(drive: Drive) -> None:
    backend = drive.backend()
    listen = follow(drive, server_at(backend), policy=Policy(max_connections=5))
    assert drive.engine.other_processes.uses()
    follow(drive, server_at(backend), listen=listen)
    drive.connect(listen)
    drive.accept(backend)
    assert drive.engine.other_processes.uses(whole=True) == ()
    report(drive, use(listen, 9))  # of a moment ago
    drive.remove(listen)
    drive.engine.other_processes.follow([listen])
    report(drive, use(listen, 9))
