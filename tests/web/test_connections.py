"""Who goes when there are too many: a flood pays for itself, whatever addresses it has."""

import random
import socket

from pylb.web.client_address import network_of
from pylb.web.connections import Connection, Connections
from pylb.web.listener import HttpLimits

LIMITS = HttpLimits(connections=64, per_address=8, patience=0.5)
HONEST = "192.0.2.7"


class Listener:
    """A listener without sockets, and a clock."""

    def __init__(self) -> None:
        self.crowd = Connections(LIMITS, random.Random(7).choice)
        self.sock = socket.socket()
        self.sock.close()
        self.now = 0.0
        self.refused = 0

    def connect(self, ip: str) -> Connection:
        source = network_of(ip)
        connection = Connection(ip, source, self.sock, self.now)
        if self.crowd.make_room(source, self.now, self.crowd.discard):
            self.crowd.add(connection)
        else:
            self.refused += 1
        return connection


def test_a_flood_from_one_64_takes_no_place_of_anybody_else() -> None:
    listener = Listener()
    honest = [listener.connect(f"192.0.2.{number}") for number in range(1, 9)]
    for number in range(10_000):
        listener.now += 0.0003
        listener.connect(f"2001:db8::{number:x}")
        assert len(listener.crowd) <= LIMITS.connections
    assert all(one in list(listener.crowd) for one in honest)


def test_a_flood_from_a_thousand_64s_beside_each_other_takes_no_place_of_anybody_else() -> None:
    listener = Listener()
    honest = listener.connect(HONEST)
    for number in range(10_000):
        listener.connect(f"2001:db8:0:{number % 1000:x}::{number:x}")
    assert honest in list(listener.crowd)


def test_a_crowd_member_that_goes_is_any_of_them() -> None:
    """The newest has the chance of the oldest: an honest client in the middle of a flood gets its moment."""
    listener = Listener()
    first = [listener.connect(f"2001:db8::{number:x}") for number in range(LIMITS.connections)]
    for number in range(LIMITS.connections // 2):
        listener.connect(f"2001:db8::1:{number:x}")
    present = [one in list(listener.crowd) for one in first]
    assert True in present[:32]
    assert False in present[32:]


def test_who_is_being_answered_is_never_cut() -> None:
    listener = Listener()
    for number in range(LIMITS.connections):
        listener.connect(f"2001:db8::{number:x}").busy = True
    listener.now += 10
    listener.connect(HONEST)
    assert (len(listener.crowd), listener.refused) == (LIMITS.connections, 1)
