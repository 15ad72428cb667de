"""What only frontends of UDP have: their datagrams, and why a flow is denied."""

from collections.abc import Iterator, Mapping
from itertools import chain

from prometheus_client.metrics_core import Metric

from pylb.core.policy import Policy
from pylb.forward.counters import DROPS, FrontendCounters
from pylb.metrics.families import counter, simple


def datagram_families(frontends: Mapping[str, list[FrontendCounters]]) -> Iterator[Metric]:
    """Metrics of the frontends of UDP; a pylb without one has none of these."""
    counted = {name: [f.datagrams for f in group if f.datagrams is not None] for name, group in frontends.items()}
    counted = {name: group for name, group in counted.items() if group}
    if not counted:
        return
    yield from counter(
        "pylb_datagrams_total",
        "UDP: datagrams passed on from clients (in) and to clients (out).",
        ("frontend", "direction"),
        chain.from_iterable(
            [((name, "in"), sum(d.relayed_in for d in group)), ((name, "out"), sum(d.relayed_out for d in group))]
            for name, group in counted.items()
        ),
    )
    # All reasons from the start on: a series that begins at 1 has no increase that Prometheus could see.
    yield from counter(
        "pylb_datagrams_dropped_total",
        "UDP: datagrams that were not passed on, by reason; `kernel`: a socket's buffer was full.",
        ("frontend", "reason"),
        (((name, reason), sum(d.dropped[reason] for d in group)) for name, group in counted.items() for reason in DROPS),
    )
    yield from counter(
        "pylb_flows_rehomed_total",
        "UDP: flows that went on to another server, because theirs refused, was down or had left.",
        ("frontend",),
        simple({name: sum(d.rehomed for d in group) for name, group in counted.items()}),
    )


def denial_reasons(policy: Policy) -> list[str]:
    """The labels of all reasons for which a flow may be denied."""
    limits = policy.limits
    may = {
        "access": policy.access,
        "per_source": limits.per_source,
        "per_source_rate": limits.per_source_rate,
        "rate": limits.rate,
        "max_connections": policy.max_connections,
        "flows": True,  # the process's own limit
    }
    return [reason for reason, wanted in may.items() if wanted]
