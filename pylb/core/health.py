"""Is a server up, and has it ever answered: two small state machines, fed with the outcomes of connects and probes.

Health belongs to a server of a frontend: `fall` failures in a row take it out, `rise` answers bring it back. Proof belongs
to an address: either it has answered once, or it is asked again. Both ask at `interval`. Only a server that says nothing at
all, a black hole, is asked less often, up to `max_interval`: one that answers, even wrongly, may be right the next time.
`jitter` is a factor of at most 1, drawn by the caller, so that many servers are not asked at the same instant.
"""

import re
from dataclasses import dataclass, replace
from math import inf

from pylb.core.address import Address
from pylb.core.policy import CONNECT, Check, CheckKind, HealthMode, HealthPolicy, Step

OURS = frozenset({"resource"})  # failures that say nothing about the server: we were out of descriptors or ports
SILENT = "timeout"
YES = "yes"
NO_OBJECTION = "unknown"  # of UDP: nobody refused an empty datagram, and a server that is well may say nothing to it
PASSED = frozenset({YES, NO_OBJECTION})


@dataclass(frozen=True, slots=True)
class Health:
    """`failures` and `answers` in a row; `probe_at` is monotonic, inf while no probe is due."""

    down: bool = False
    failures: int = 0
    answers: int = 0
    wait: float = 0.0
    probe_at: float = inf
    reason: str = ""  # of the last failure


UP = Health()


def watched(policy: HealthPolicy, now: float, jitter: float) -> Health:
    """The health of a server that nothing is known about: it is probed only in active mode."""
    if policy.mode is not HealthMode.ACTIVE:
        return UP
    return Health(wait=policy.interval, probe_at=now + policy.interval * jitter)


def unasked(policy: HealthPolicy, now: float) -> Health:
    """The health of a server that must pass before it serves: asked at once, and one passed check is enough."""
    return Health(True, 0, policy.rise - 1, policy.interval, now, "not checked yet")


def remembered(policy: HealthPolicy, now: float, jitter: float) -> Health:
    """The health of a server that was down when pylb ended: it is still down, and is asked soon."""
    return Health(True, policy.fall, 0, policy.interval, now + policy.interval * jitter, REMEMBERED)


NOT_ASKED = "not asked"  # instead of an answer: a range whose check has no port
REMEMBERED = "down since before the start"  # a reason that this process has not observed itself


def conversation(check: Check, server: Address) -> tuple[Step, ...]:
    """What is sent and what must come back, step by step; () for a mere connect. An HTTP check waits for a status line, see
    `judge`."""
    if check.kind is not CheckKind.HTTP:
        return check.steps
    host = check.host or str(server)
    # HTTP/1.0 and close: the answer is not chunked, however old the server is.
    request = f"{check.method} {check.path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: pylb-check\r\nConnection: close\r\n\r\n"
    return (Step(request.encode()),)


MOST_ANSWER = 16 * 1024  # bytes read for one step


def judge(check: Check, step: Step, answer: bytes, *, ended: bool) -> tuple[str | None, bytes]:
    """(YES, "wrong answer: …", or None: not decided by what came so far; the part of the answer that is for the next step).

    `ended`: no more will come, or will be read.
    """
    if check.kind is CheckKind.HTTP:
        verdict = _status(check, answer, ended=ended)
        return verdict, answer if verdict is None else b""
    before, found, rest = answer.partition(step.expect) if step.expect else (b"", b"", answer)
    if found or not step.expect:
        return YES, rest
    if not ended:
        return None, answer
    number = f"step {check.steps.index(step) + 1}: " if len(check.steps) > 1 else ""
    return _wrong(f"{number}{step.expect[:40]!r} is not in {before[:40]!r}"), b""


def _status(check: Check, answer: bytes, *, ended: bool) -> str | None:
    line, end, _ = answer.partition(b"\r\n")
    if not end and not ended:
        return None
    found = _STATUS.match(line)
    if found is None:
        return _wrong(f"{line[:40]!r} is not a status line" if line else "closed without an answer")
    low, high = check.status
    status = int(found[1])
    return YES if low <= status <= high else _wrong(f"HTTP status {status}")


_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |$)")


def _wrong(what: str) -> str:
    return f"{WRONG}{what}"


WRONG = "wrong answer: "  # the prefix for a check that got an answer, but a wrong one


def failed(health: Health, policy: HealthPolicy, reason: str, now: float, *, probe: bool, jitter: float) -> Health:
    """A connect failed: a client session's, or a probe's."""
    if policy.mode is HealthMode.NONE or reason in OURS:
        return health
    failures = health.failures + 1
    if health.down:
        if not probe:  # all are down and all are tried: no reason to ask later, or sooner
            return replace(health, failures=failures, answers=0, reason=reason)
        wait = _wait(health.wait, policy.interval, policy.max_interval, reason)
        return Health(True, failures, 0, wait, now + wait * jitter, reason)
    down = failures >= policy.fall
    if not probe and policy.mode is HealthMode.ACTIVE and not down:
        return replace(health, failures=failures, answers=0, reason=reason)  # the next probe keeps its time
    asks = down or policy.mode is HealthMode.ACTIVE
    return Health(down, failures, 0, policy.interval, now + policy.interval * jitter if asks else inf, reason)


def _wait(before: float, interval: float, most: float, found: str) -> float:
    """Seconds until the next probe: `interval` for a server that answers, longer and longer, up to `most`, for a black hole."""
    return max(interval, min(before * 2, most)) if found == SILENT else interval


def answered(health: Health, policy: HealthPolicy, now: float, *, probe: bool, jitter: float) -> Health:
    """A client session's connect, or a check, succeeded. A connect does not count where the check asks for more."""
    if not probe and policy.check != CONNECT and (health.down or policy.mode is HealthMode.ACTIVE):
        return health
    if not probe and not health.down and policy.mode is HealthMode.ACTIVE:
        return replace(health, failures=0)  # the next probe keeps its time
    answers = health.answers + 1
    if not health.down or answers >= policy.rise:
        return watched(policy, now, jitter)
    return replace(health, failures=0, answers=answers, wait=policy.interval, probe_at=now + policy.interval * jitter)


@dataclass(frozen=True, slots=True)
class HealthStats:
    """The results of a server's checks since it is known; for people and dashboards, nothing is decided by it."""

    changed_at: float = 0.0  # monotonic; when it last went down or came back, or was first known
    failures: int = 0  # checks that failed
    downs: int = 0  # times it went down
    down_seconds: float = 0.0  # in all past outages
    found: str = ""  # the result of the last check; "": there was none
    seconds: float = 0.0  # the time that check took


UNRECORDED = HealthStats()


def checked(record: HealthStats, found: str, seconds: float) -> HealthStats:
    """The record after a check."""
    failed = found not in PASSED and found not in OURS
    return replace(record, failures=record.failures + failed, found=found, seconds=seconds)


def turned(record: HealthStats, now: float, *, down: bool) -> HealthStats:
    """The record after the server went down or came back."""
    if down:
        return replace(record, downs=record.downs + 1, changed_at=now)
    return replace(record, down_seconds=record.down_seconds + now - record.changed_at, changed_at=now)


@dataclass(frozen=True, slots=True)
class Reachability:
    """The result of dialling an address: "yes", "refused", "timeout" or "unreachable".

    "resource" if pylb could not dial because it lacked something itself, "unknown" if nobody has tried, or nobody refused a
    datagram.
    """

    found: str
    wait: float = 0.0
    probe_at: float = inf

    @property
    def reachable(self) -> str:
        """For an answer: yes, refused, timeout, or unknown. Unreachable means that the network refused; the hint says so."""
        return _SAID.get(self.found, "unknown")

    @property
    def hint(self) -> str:
        return HINTS.get(self.found, "")


PROVEN = Reachability(YES)


def unproven(now: float) -> Reachability:
    """The proof of an address that was never dialled: to be dialled now."""
    return Reachability("unknown", 0.0, now)


def prove(before: Reachability | None, found: str, policy: HealthPolicy, now: float, *, jitter: float) -> Reachability:
    """The proof after a dial. An address that has answered once stays proven: from then on health takes care of it."""
    if found in PASSED or before == PROVEN:
        return PROVEN
    wait = _wait(before.wait if before else 0.0, policy.interval, policy.max_interval, found)
    return Reachability(found, wait, now + wait * jitter)


_SAID = {YES: YES, "refused": "refused", "timeout": "timeout", "unreachable": "refused"}
KUBE_PROXY_HEALTH = 10256


def check_hint(port: int, found: str) -> str:
    """What it usually means that a check at a port of its own (0: it has none) got no answer."""
    if not port or found not in ("refused", "timeout", "unreachable"):
        return ""
    if port == KUBE_PROXY_HEALTH:
        return (
            f"port {port} is kube-proxy's health: open it on the nodes to this machine. A cluster without kube-proxy needs "
            "another check, such as the annotation pylb.io/health: tcp of its Services"
        )
    return f"its check asks port {port} of the server's machine: open that to this machine, too"


HINTS = {
    "resource": "pylb could not try: it is out of file descriptors, memory or local ports",
    "refused": (
        "nothing listens there yet, or no pod is ready behind the NodePort; with externalTrafficPolicy: Local only "
        "the nodes that run the pod answer"
    ),
    "timeout": (
        "a firewall drops it (open 30000-32767 on the node to this machine), the address is a NAT gateway's and not "
        "the node's, or externalTrafficPolicy: Local on a node without the pod"
    ),
    "unreachable": "no route there, or a firewall on the way rejects it (open 30000-32767 on the node to this machine)",
}
