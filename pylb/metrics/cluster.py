"""What a scrape exports about the balancers that share their table. Without `cluster.etcd` there are no series."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from pylb.control.sharing import ClusterView
from pylb.metrics.families import Row, gauge


def cluster_families(view: ClusterView | None) -> Iterator[Metric]:
    connected, seconds, present, heard, unwritten, unserved = _rows(view) if view is not None else ([], [], [], [], [], [])
    text = "1 if this balancer knows what the others do, and etcd takes writes."
    yield from gauge("pylb_cluster_connected", text, (), connected)
    yield from gauge("pylb_cluster_disconnected_seconds", "For how long it has not been so.", (), seconds)
    text = "1 if a balancer of the cluster is connected to etcd, as far as this one knows."
    yield from gauge("pylb_cluster_member_present", text, ("member",), present)
    yield from gauge("pylb_cluster_registrations", "Registrations by the balancer that hears them.", ("heard",), heard)
    yield from gauge("pylb_cluster_unwritten", "Changes made here that the others do not know yet.", (), unwritten)
    text = "Registrations of others that this balancer may not serve, and releases that wait for pylb cluster accept."
    yield from gauge("pylb_cluster_not_applied", text, ("reason",), unserved)


def _rows(view: ClusterView) -> tuple[list[Row], ...]:
    return (
        [((), not view.trouble)],
        [((), view.trouble_for)],
        [((member.name,), member.present) for member in view.members],
        [(("here",), view.heard_here), (("elsewhere",), view.heard_elsewhere)],
        [((), view.unwritten)],
        [(("refused",), len(view.unserved)), (("held",), len(view.held))],
    )
