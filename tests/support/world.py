"""The peers of a test, started on its nodes."""

from tests.support.balancer import NODEPORT
from tests.support.mqtt import Broker
from tests.support.netns import Lab, Namespace, Node
from tests.support.phone import Phone
from tests.support.processes import Process, Processes, listens, python


class World:
    """Starts the peers of a test on its nodes."""

    def __init__(self, lab: Lab, processes: Processes) -> None:
        self.lab = lab
        self.processes = processes
        self.folder = processes.folder  # of this test

    def app(self, node: Node, name: str, *ports: str, nodeports: dict[int, int] | None = None) -> Process:
        """support/pod.py in the node's pod, by default on 1883 behind NodePort 30843. `ports` as it takes them."""
        process = self.app_at(node.pod, name, *(ports or ("1883",)))
        for nodeport, port in ({NODEPORT: 1883} if nodeports is None else nodeports).items():
            node.nodeport(nodeport, port)
        return process

    def app_at(self, at: Namespace, name: str, *ports: str) -> Process:
        """The same in any namespace."""
        process = self.processes.start(name, python("tests.support.pod", name, *ports), at=at)
        process.has_said("serving")
        return process

    def broker(self, node: Node) -> Broker:
        """mosquitto in the node's pod, behind NodePort 30843."""
        return Broker(self.processes, node)

    def phone(self, node: Node, name: str, instance: str, frontends: str, **env: str) -> Phone:
        """The real phone-home in the node's pod, registering its node."""
        return Phone(self.processes, node.pod, name=name, instance=instance, frontends=frontends, env=env)

    def once(self, node: Node, name: str, instance: str, frontends: str, **env: str) -> Phone:
        """`phonehome once`: a single call."""
        return Phone(self.processes, node.pod, "once", name=name, instance=instance, frontends=frontends, env=env)

    def serve(self, name: str, argv: tuple[str, ...], at: Namespace, address: tuple[str, int]) -> Process:
        """Any other server; returns when it listens on the address."""
        process = self.processes.start(name, argv, at=at)
        listens(address, at, process)
        return process
