"""What pylb exported when it wrote the text by hand (written_by_hand.txt), it exports through the library."""

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, Rules, SourceLimits, StaticFrontend, StaticServer
from pylb.metrics.exposition import OPENMETRICS, TEXT, Format
from tests.metrics.test_collector import busy_frontend, metrics_of, scraped
from tests.support.ports import free_port
from tests.web.running import running

BEFORE = Path(__file__).parent / "written_by_hand.txt"
# Of this machine and this moment: only their names and labels are compared.
MOMENTARY = {
    "pylb_check_lag_seconds",
    "pylb_cpu_seconds_total",
    "pylb_max_fds",
    "pylb_open_fds",
    "pylb_resident_memory_bytes",
    "pylb_start_time_seconds",
    "pylb_table_apply_seconds",
}
# In OpenMetrics a counter's family may not have the name of a gauge.
UNTYPED = {"pylb_frontend_sessions_total", "pylb_server_sessions_total", "pylb_registrations_total"}

Series = tuple[str, frozenset[tuple[str, str]]]


def series(families: Iterable[Metric]) -> dict[Series, tuple[str, str, float | None]]:
    """Type, text and value by name and labels; each once."""
    found: dict[Series, tuple[str, str, float | None]] = {}
    for family in families:
        for name, labels, value, *_ in family.samples:
            place = (name, frozenset((dict.fromkeys(labels, "") if name == "pylb_build_info" else labels).items()))
            assert place not in found
            kind = "counter" if name in UNTYPED and family.type == "unknown" else family.type
            found[place] = (kind, family.documentation, None if name in MOMENTARY else value)
    return found


async def exported(state_dir: Path, form: Format) -> str:
    """By a pylb with two static frontends, sessions on ports of awkward names, and two ports of one name."""

    def static(name: str, policy: Policy) -> StaticFrontend:
        return StaticFrontend(name, Listen("tcp", "127.0.0.1", free_port()), (StaticServer(Address("127.0.0.1", 1)),), policy)

    frontends = (static("web", Policy()), static("guarded", Policy(max_connections=7, limits=SourceLimits(per_source=3))))
    async with running(state_dir, Rules(frontends=frontends, defaults=Policy(bind="127.0.0.1"))) as control:
        for port, name in enumerate(("web", "web", "guarded", 'a"b\\c\nd', "ü {}100%s"), 1):
            control.engine.counters.frontends[Listen("tcp", "*", port)] = busy_frontend(name)
        control.engine.counters.frontends[Listen("tcp", "*", 1)].bytes_out = 123456789012345
        return (await scraped(metrics_of(control), form)).decode()


async def test_every_series_has_the_name_labels_type_text_and_value_it_had(tmp_path: Path) -> None:
    before = series(parser.text_string_to_metric_families(BEFORE.read_text()))
    assert len(before) > 200
    assert series(parser.text_string_to_metric_families(await exported(tmp_path, TEXT))) == before


async def test_openmetrics_says_the_same_and_its_strict_parser_finds_no_fault(tmp_path: Path) -> None:
    before = series(parser.text_string_to_metric_families(BEFORE.read_text()))
    text = await exported(tmp_path, OPENMETRICS)
    assert text.endswith("\n# EOF\n")
    assert series(openmetrics_parser.text_string_to_metric_families(text)) == before
