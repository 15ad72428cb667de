"""Which answers deserve a line in the log, and its words. Pure: the clock is an argument, lines are returned.

A line is logged when something changed: a heartbeat that changes nothing is silent; a repeated refusal is logged once and
then every ten minutes. One OutcomeLog per load balancer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from phonehome.message import DRAINING, READY, RELEASED, Accepted, Placed, Refused

REMIND = 600.0  # seconds between two lines about the same trouble
REMEMBERED = 32  # distinct troubles; beyond that the oldest may be logged again early

HINTS = {
    "refused": "nothing listens on that NodePort there: does the Service exist, is externalTrafficPolicy Local?",
    "timeout": "packets get lost: a firewall on 30000-32767, a NAT gateway, or externalTrafficPolicy Local?",
    "unreachable": "no route from pylb to that address: is it a private one? a node behind NAT needs a VPN",
}
WORDS = {READY: "registered", DRAINING: "draining", RELEASED: "released"}
IPV6_HINT = (
    "this phone-home called over IPv6 and pylb now sends to an IPv6 address, but NodePorts are often IPv4 only: "
    "set PYLB_ADDRESS=source4"
)


class OutcomeLog:
    def __init__(self, label: str, address: str) -> None:
        """`label` begins every line; `address` is PYLB_ADDRESS as configured."""
        self._label = label
        self._address = address
        self._last: Accepted | None = None
        self._state = ""
        self._said: dict[tuple[str, ...], float] = {}
        self._failing_since: float | None = None
        self._failed_calls = 0
        self._resolver_down = False

    def accepted(self, answer: Accepted, state: str, now: float) -> list[str]:
        lines = [*self._recovered(now), *self._noticed(answer), *self._outcome(answer, state)]
        old = {placed.text: placed for placed in self._last.frontends} if self._last else {}
        for placed in answer.frontends:
            lines.extend(self._reached(placed, old.get(placed.text)))
        if not answer.durable and (self._last is None or self._last.durable):
            lines.append("in force, but pylb cannot write its state: a restart of pylb would lose this change")
        if answer.note and (self._last is None or self._last.note != answer.note):
            lines.append(answer.note)
        self._last, self._state = answer, state
        return self._labelled(lines)

    def refused(self, answer: Refused, now: float) -> list[str]:
        text = f"refused: {answer.status} {answer.error}" + (f": {answer.detail}" if answer.detail else "")
        # A passing trouble may contain a count that differs each time: one line per kind is enough.
        key = (str(answer.status), answer.error) + (() if answer.passing else (answer.detail, answer.hint))
        return self._trouble(key, text, answer.hint, now)

    def failed(self, what: str, detail: str, hint: str, now: float) -> list[str]:
        """There was no answer: `what` is a stable kind such as "no connection", `detail` describes this occurrence."""
        return self._trouble((what,), f"{what}: {detail}" if detail else what, hint, now)

    def resolved(self, trouble: str, kept: Iterable[str]) -> list[str]:
        """After a look-up that failed (`trouble`, and the addresses still in use) or worked (empty `trouble`)."""
        if bool(trouble) == self._resolver_down:
            return []
        self._resolver_down = bool(trouble)
        if not trouble:
            return self._labelled(["DNS answers again"])
        kept = list(kept)
        return self._labelled([f"DNS failed ({trouble}); " + (f"keeping {', '.join(kept)}" if kept else "no address")])

    def _trouble(self, key: tuple[str, ...], text: str, hint: str, now: float) -> list[str]:
        self._failed_calls += 1
        if self._failing_since is None:
            self._failing_since = now
        said = self._said.get(key)
        if said is not None and now - said < REMIND:
            return []
        self._said.pop(key, None)
        if len(self._said) >= REMEMBERED:
            del self._said[next(iter(self._said))]
        self._said[key] = now
        return self._labelled([f"{text} ({hint})" if hint else text])

    def _recovered(self, now: float) -> Iterator[str]:
        if self._failing_since is not None:
            calls = "one failed call" if self._failed_calls == 1 else f"{self._failed_calls} failed calls"
            yield f"works again after {calls} in {_span(now - self._failing_since)}"
        self._said.clear()
        self._failing_since, self._failed_calls = None, 0

    def _noticed(self, answer: Accepted) -> Iterator[str]:
        """A pylb that lost its state: no harm, because this very call registered it again, but its owner wants to know."""
        if self._last is None:
            return
        if answer.result == "created":
            yield "pylb had forgotten this registration (released, or restarted without its state); it is back"
        elif answer.generation < self._last.generation:
            yield f"pylb was restarted (its generation went from {self._last.generation} to {answer.generation})"

    def _outcome(self, answer: Accepted, state: str) -> Iterator[str]:
        where = ", ".join(f"{placed.text} -> {target(placed)}" for placed in answer.frontends)
        if state != self._state:
            yield WORDS[state] + (f": {where}" if where else "")
        elif self._last is not None and _targets(answer) != _targets(self._last):
            before = ", ".join(f"{placed.text} -> {target(placed)}" for placed in self._last.frontends)
            yield f"moved: {where} (was {before})"

    def _reached(self, placed: Placed, old: Placed | None) -> Iterator[str]:
        if old is not None and (old.reachable, target(old)) == (placed.reachable, target(placed)):
            return
        if placed.reachable in HINTS:
            hint = placed.hint or HINTS[placed.reachable]
            yield f"{placed.text} -> {target(placed)} is not reachable from pylb: {placed.reachable} ({hint})"
        elif placed.reachable == "yes" and old is not None and old.reachable in HINTS:
            yield f"{placed.text} -> {target(placed)} is reachable now"
        if self._address == "source" and _is_ipv6(placed.address) and placed.reachable != "yes":
            yield f"{placed.text} -> {target(placed)}: {IPV6_HINT}"

    def _labelled(self, lines: list[str]) -> list[str]:
        return [f"{self._label}: {line}" for line in lines]


def target(placed: Placed) -> str:
    return f"[{placed.address}]:{placed.target_port}" if ":" in placed.address else f"{placed.address}:{placed.target_port}"


def _targets(answer: Accepted) -> set[tuple[str, str]]:
    return {(placed.text, target(placed)) for placed in answer.frontends}


def _is_ipv6(address: str) -> bool:
    return ":" in address and not address.lower().startswith("::ffff:")


def _span(seconds: float) -> str:
    """A duration as people write it: "15 s", "2 min 30 s", "12 h"."""
    rest = round(seconds)
    for size, unit, smaller, smaller_unit in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rest >= size:
            part = rest % size // smaller
            return f"{rest // size} {unit} {part} {smaller_unit}" if part else f"{rest // size} {unit}"
    return f"{rest} s"
