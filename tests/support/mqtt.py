"""Real mosquitto brokers, subscribers, and a publisher that repeats each message until a broker has acknowledged it."""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.balancer import NODEPORT
from tests.support.beside import Beside
from tests.support.netns import LB, Namespace, Node
from tests.support.peers import need
from tests.support.processes import Process, Processes, listens
from tests.support.waiting import eventually, pause

PORT, TOPIC = 8443, "news"
PAUSE = 0.01  # seconds between two messages
_CONFIG = "listener 1883 0.0.0.0\nallow_anonymous true\npersistence false\nlog_dest stderr\n"


class Broker:
    """mosquitto in a node's pod, behind the node's NodePort, and `witness`, a subscriber beside it that notes everything."""

    def __init__(self, processes: Processes, node: Node) -> None:
        config = processes.folder / "mosquitto.conf"
        config.write_text(_CONFIG)
        name = node.name.rpartition("-")[2]
        self.process = processes.start(f"broker-{name}", (need("mosquitto"), "-c", str(config)), at=node.pod)
        listens(("127.0.0.1", 1883), node.pod, self.process)
        node.nodeport(NODEPORT, 1883)
        self._pod = node.pod
        self.witness = Subscriber(processes, f"witness-{name}", node.pod, ("127.0.0.1", 1883))

    def publish(self, message: str) -> None:
        """Publish directly to this broker."""
        assert publish(self._pod, ("127.0.0.1", 1883), message) == 0

    def kill(self) -> None:
        self.process.kill()


class Subscriber:
    """A running mosquitto_sub; it is subscribed when this returns."""

    def __init__(self, processes: Processes, name: str, at: Namespace, address: tuple[str, int]) -> None:
        host, port = address
        argv = (need("mosquitto_sub"), "-h", host, "-p", str(port), "-t", TOPIC, "-i", name)
        self.process: Process = processes.start(name, argv, at=at)

        def subscribed() -> bool:
            hello = f"hello {time.monotonic_ns()}"
            publish(at, address, hello)
            return hello in self.process.text()

        eventually(subscribed, what=f"{name} is subscribed")

    def received(self) -> set[str]:
        return set(self.process.text().splitlines())


def publish(at: Namespace, address: tuple[str, int], message: str) -> int:
    """mosquitto_pub with QoS 1. 0: the broker has acknowledged it."""
    host, port = address
    argv = at.command(need("mosquitto_pub"), "-h", host, "-p", str(port), "-q", "1", "-t", TOPIC, "-m", message)
    return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode


@dataclass
class Failure:
    message: str
    began: float  # time.monotonic()
    ended: float


@dataclass
class Publisher(Beside):
    """Publishes message after message through pylb while the `with` block runs; each is tried until it is acknowledged."""

    at: Namespace
    acknowledged: dict[str, float] = field(default_factory=dict)  # message -> when its successful try began
    failures: list[Failure] = field(default_factory=list)

    def _run(self) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            self._until_acknowledged(f"message {number}")
            pause(PAUSE)

    def _until_acknowledged(self, message: str) -> None:
        while True:
            began = time.monotonic()
            if publish(self.at, (LB, PORT), message) == 0:
                self.acknowledged[message] = began
                return
            self.failures.append(Failure(message, began, time.monotonic()))
            if self._end.is_set():
                return
            pause(PAUSE)

    def more(self, count: int = 20) -> None:
        """Wait until so many more messages were acknowledged."""
        goal = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= goal, within=15, what=f"{count} more messages are acknowledged")

    def lost_nothing(self, *brokers: Broker) -> bool:
        """Whether each acknowledged message reached a broker's witness, within moments of its acknowledgement."""

        def all_there() -> bool:
            missing = set(self.acknowledged).difference(*(broker.witness.received() for broker in brokers))
            assert not missing, f"acknowledged and lost: {sorted(missing)}"
            return True

        return eventually(all_there, within=3)

    def sent_after(self, moment: float) -> Mapping[str, float]:
        return {message: began for message, began in list(self.acknowledged.items()) if began > moment}
