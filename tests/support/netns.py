"""A lab of network namespaces: one load balancer, one client, nodes with a pod behind a NodePort. Needs root.

            client ── 203.0.113.100
                  \\
     switch (bridge) ── lb ── 203.0.113.1          pylb runs here
                  /
              node a ── 203.0.113.10 ── pod a ── 10.42.1.2
              node b ── 203.0.113.20 ── pod b ── 10.42.2.2

A NodePort is what kube-proxy makes of it with externalTrafficPolicy Local: nft DNAT of a node's port to its pod. What a
pod sends out is masqueraded to its node's address, as CNI plugins do it: that is why the *calling* address is the node's.
Names hold the pid of the run, so that runs do not meet and what a killed one left behind is recognised and removed.
Addresses are documentation space (RFC 5737, RFC 3849); nothing is connected to the machine's own network.
"""

import ctypes
import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

LB, CLIENT = "203.0.113.1", "203.0.113.100"
LB6, CLIENT6 = "2001:db8::1", "2001:db8::100"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_OURS = re.compile(r"pylb-(\d+)-\d+-[a-z-]+")
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def run(*argv: str, text: str | None = None) -> str:
    """The command's output. Raises AssertionError with its messages."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}\n{text or ''}"
    return done.stdout


class Namespace:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def command(self, *argv: str) -> tuple[str, ...]:
        """`argv` as it runs in here; `ip netns exec` execs, so the pid is the program's own."""
        return ("ip", "netns", "exec", self.name, *argv)

    def run(self, *argv: str) -> str:
        return run(*self.command(*argv))

    def ip(self, *lines: str) -> None:
        """Run commands of `ip` in order, up to the first that fails."""
        run("ip", "-n", self.name, "-batch", "-", text="\n".join(lines))

    def nft(self, rules: str) -> None:
        """Apply all rules or none (nft -f is a transaction)."""
        run(*self.command("nft", "-f", "-"), text=rules)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread's new sockets belong to this namespace; those it has, and other threads, stay where they are."""
        with open("/proc/thread-self/ns/net", "rb") as home, self.path.open("rb") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Node(Namespace):
    """A Kubernetes node, and the namespace of its one pod."""

    def __init__(self, name: str, address: str, pod: Namespace, pod_address: str) -> None:
        super().__init__(name)
        self.address = address
        self.pod = pod
        self.pod_address = pod_address

    def nodeport(self, port: int, pod_port: int) -> None:
        rule = f"fib daddr type local tcp dport {port} dnat to {self.pod_address}:{pod_port}"
        self.nft(f"add rule ip kube nodeports {rule}")

    def add_address(self, address: str) -> None:
        """A second address; the first stays and stays in use for what goes out."""
        self.ip(f"address add {address}/24 dev eth0")

    def change_address(self, address: str) -> None:
        """Change the address as a new DHCP lease does: the old one is gone, with all its connections."""
        self.ip(f"address add {address}/32 dev eth0", "address flush dev eth0", f"address add {address}/24 dev eth0")
        self.address = address

    def black_hole(self, address: str, port: int) -> None:
        """Drop SYNs to `address:port` silently, as a firewall does."""
        self.nft(f"add rule ip kube firewall ip daddr {address} tcp dport {port} drop")


class Lab:
    """The whole lab: `with Lab() as lab`."""

    def __init__(self) -> None:
        self._prefix = f"pylb-{os.getpid()}-{next(_serial)}"
        self._namespaces: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._remove)
            self._switch = self._namespace("switch")
            self._switch.ip("link add lan type bridge", "link set lan up")
            self.lb = self._host("lb", LB, LB6)
            self.client = self._host("client", CLIENT, CLIENT6)
            self.a = self.node("a", 1)
            self.b = self.node("b", 2)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _remove(self) -> None:
        for name in self._namespaces:
            run("ip", "netns", "delete", name)

    def _namespace(self, role: str) -> Namespace:
        name = f"{self._prefix}-{role}"
        run("ip", "netns", "add", name)
        self._namespaces.append(name)
        namespace = Namespace(name)
        namespace.ip("link set lo up")
        return namespace

    def _plug(self, namespace: Namespace, port: str) -> None:
        self._switch.ip(
            f"link add {port} type veth peer name eth0 netns {namespace.name}",
            f"link set {port} master lan",
            f"link set {port} up",
        )

    def _host(self, role: str, address: str, address6: str) -> Namespace:
        host = self._namespace(role)
        self._plug(host, role)
        # nodad: duplicate address detection would hold the address back for a second
        host.ip("link set eth0 up", f"address add {address}/24 dev eth0", f"address add {address6}/64 dev eth0 nodad")
        return host

    def host(self, role: str, number: int) -> Namespace:
        """One more machine in this network, at 203.0.113.{number}."""
        return self._host(role, f"203.0.113.{number}", f"2001:db8::{number:x}")

    def node(self, letter: str, number: int) -> Node:
        """One more node, at 203.0.113.{10 * number}."""
        address = f"203.0.113.{10 * number}"
        base = self._namespace(f"node-{letter}")
        pod = self._namespace(f"pod-{letter}")
        node = Node(base.name, address, pod, f"10.42.{number}.2")
        self._plug(node, f"node-{letter}")
        node.ip(
            "link set eth0 up",
            f"address add {address}/24 dev eth0",
            f"link add cni0 type veth peer name eth0 netns {pod.name}",
            "link set cni0 up",
            f"address add 10.42.{number}.1/24 dev cni0",
        )
        pod.ip("link set eth0 up", f"address add {node.pod_address}/24 dev eth0", f"route add default via 10.42.{number}.1")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        node.nft(_NODE)
        return node


# Prerouting before routing, the firewall at -150 (mangle) so that it sees the port a packet came to, not the pod's.
_NODE = """
table ip kube {
  chain firewall { type filter hook prerouting priority -150; }
  chain nodeports { type nat hook prerouting priority -100; }
  chain outgoing { type nat hook postrouting priority 100; ip saddr 10.42.0.0/16 oifname "eth0" masquerade; }
}
"""


@contextmanager
def loopback_only() -> Iterator[Namespace]:
    """One namespace in which a test can drop what it likes from its own loopback traffic."""
    name = f"pylb-{os.getpid()}-{next(_serial)}-loopback"
    run("ip", "netns", "add", name)
    try:
        namespace = Namespace(name)
        namespace.ip("link set lo up")
        yield namespace
    finally:
        run("ip", "netns", "delete", name)


def remove_leftovers() -> None:
    """Namespaces of runs whose process is gone, with whatever still runs in them."""
    folder = Path("/run/netns")
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        ours = _OURS.fullmatch(name)
        if ours is None or Path(f"/proc/{ours.group(1)}").exists():
            continue
        for pid in run("ip", "netns", "pids", name).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        run("ip", "netns", "delete", name)
