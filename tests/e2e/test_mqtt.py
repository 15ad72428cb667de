"""Real MQTT through pylb while its pod moves. A publish that a broker acknowledged must have reached a subscriber there."""

import time
from collections.abc import Callable

import pytest

from tests.support.balancer import Balancer
from tests.support.mqtt import PORT, Publisher, Subscriber
from tests.support.netns import LB, Lab
from tests.support.phone import Phone
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

FRONTENDS = f"{PORT}:30843"


@pytest.mark.parametrize("goodbye", [Phone.goodbye, Phone.drain], ids=["SIGTERM", "preStop"])
def test_no_publish_is_lost_when_the_pod_says_goodbye_and_registers_from_another_node(
    lab: Lab, pylb: Balancer, world: World, goodbye: Callable[[Phone], None]
) -> None:
    old = world.broker(lab.a)
    phone = world.phone(lab.a, "mosquitto", "pod-a", FRONTENDS)
    session = Subscriber(world.processes, "long-lived", lab.client, (LB, PORT))
    with Publisher(lab.client) as publisher:
        publisher.more()
        new = world.broker(lab.b)
        goodbye(phone)
        publisher.more()  # nobody else is there: the draining one serves on
        world.phone(lab.b, "mosquitto", "pod-b", FRONTENDS)
        moved = time.monotonic()
        publisher.more()

    assert publisher.failures == []
    assert publisher.lost_nothing(old, new)
    # More sessions than the old node has: it is not for being less busy that the new one gets them.
    came = [Subscriber(world.processes, f"came-{number}", lab.client, (LB, PORT)) for number in range(3)]
    new.publish("to those who came")
    eventually(lambda: all("to those who came" in one.received() for one in came), what="all are with the new broker")
    after = set(publisher.sent_after(moved))
    assert after
    eventually(lambda: after <= new.witness.received(), what="new connections go to the new node")
    assert not after & old.witness.received()
    old.publish("to those who stayed")
    eventually(lambda: "to those who stayed" in session.received(), what="the established session still has its broker")


def test_no_publish_is_lost_when_pod_and_phone_home_are_killed_without_a_goodbye(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    old = world.broker(lab.a)
    phone = world.phone(lab.a, "mosquitto", "pod-a", FRONTENDS)
    with Publisher(lab.client) as publisher:
        publisher.more()
        killed = time.monotonic()
        phone.kill()
        old.kill()
        new = world.broker(lab.b)
        world.phone(lab.b, "mosquitto", "pod-b", FRONTENDS)
        moved = time.monotonic()
        publisher.more(40)

    assert publisher.lost_nothing(old, new)
    # While nobody serves, a publish fails, is repeated and arrives. From the moment the new node is in force none does,
    # although the dead one's lease still runs: it is out, or the refused connect is repeated at the other server.
    assert [one for one in publisher.failures if one.ended < killed or one.began > moved] == []
    assert set(publisher.sent_after(moved)) <= new.witness.received()


@pytest.mark.workers
def test_no_publish_is_lost_while_the_address_of_the_node_changes(lab: Lab, pylb: Balancer, world: World) -> None:
    broker = world.broker(lab.a)
    world.phone(lab.a, "mosquitto", "pod-a", FRONTENDS)
    with Publisher(lab.client) as publisher:
        publisher.more()
        changed = time.monotonic()
        lab.a.change_address("203.0.113.11")
        # no help from here: the next beat comes from the new address, and that is a move
        eventually(lambda: [one["address"] for one in pylb.registrations()] == ["203.0.113.11"], what="the move")
        moved = time.monotonic()
        publisher.more(40)

    assert publisher.lost_nothing(broker)
    assert [one for one in publisher.failures if one.ended < changed or one.began > moved] == []


def test_no_publish_fails_while_the_address_of_one_of_two_nodes_changes(lab: Lab, pylb: Balancer, world: World) -> None:
    brokers = world.broker(lab.a), world.broker(lab.b)
    world.phone(lab.a, "mosquitto", "pod-a", FRONTENDS)
    world.phone(lab.b, "mosquitto", "pod-b", FRONTENDS)
    with Publisher(lab.client) as publisher:
        publisher.more()
        assert len(brokers[0].witness.received()) > 1  # more than its hello: it will be missed
        lab.a.change_address("203.0.113.11")
        eventually(lambda: {one["address"] for one in pylb.registrations()} == {"203.0.113.11", "203.0.113.20"})
        publisher.more()

    assert publisher.failures == []
    assert publisher.lost_nothing(*brokers)
