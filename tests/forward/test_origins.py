"""Where servers are dialled from."""

from collections import Counter
from collections.abc import Callable

from pylb.core.policy import Policy
from tests.support.drive import Drive, server_at
from tests.support.netns import Namespace


def test_source_addresses_take_turns(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("127.0.0.5", "::1", "127.0.0.6")))
    seen = []
    for _ in range(4):
        drive.connect(listen)
        seen.append(drive.accept(backend).sock.getpeername()[0])
    assert Counter(seen) == {"127.0.0.5": 2, "127.0.0.6": 2}
    assert seen[0] != seen[1]


def test_a_source_address_of_another_family_is_not_used(drive: Drive) -> None:
    backend = drive.backend("::1")
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("127.0.0.5",)))
    drive.connect(listen)
    assert drive.accept(backend).sock.getpeername()[0] == "::1"


def test_an_address_this_machine_does_not_have_is_passed_over_and_none_left_is_our_fault(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(source_addresses=("192.0.2.77", "127.0.0.6")))
    for _ in range(2):
        drive.connect(listen)
        assert drive.accept(backend).sock.getpeername()[0] == "127.0.0.6"
    drive.serve(server_at(backend), policy=Policy(source_addresses=("192.0.2.77",)), listen=listen)
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    assert drive.record().code == "RC"
    assert drive.witness.connects == [("a", "resource")]


def test_one_server_takes_more_connections_than_one_source_has_ports(
    loopback: Namespace, make_drive: Callable[..., Drive]
) -> None:
    """Ten ephemeral ports, two addresses: twenty connections to one NodePort."""
    loopback.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=41000 41009")
    drive = make_drive(splice=True)
    backend = drive.backend(port=30443)
    one = Policy(source_addresses=("127.0.0.5", "127.0.0.6"))
    listen = drive.serve(server_at(backend), policy=one)
    with_ports = []
    for number in range(20):
        with_ports.append(drive.connect(listen, source=f"127.0.1.{number + 1}"))
        drive.accept(backend)
    last = drive.connect(listen, source="127.0.1.30")
    drive.run_until(lambda: last.error)
    assert drive.record().code == "RC"
    assert not any(client.error for client in with_ports)
