"""Options, profiles and the summary of the whole suite."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import PurePath

import pytest
import pytest_asyncio
import uvloop
from hypothesis import HealthCheck, settings

from pylb.host.machine import raise_descriptor_limit
from tests.support.baseline import descriptors, freeze_what_stays
from tests.support.leftovers import Run
from tests.support.peers import need_root
from tests.support.tasks import tasks_end_well

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
# The same examples on every run and machine; whoever hunts takes --long. Wall time is bounded by pytest-timeout.
settings.register_profile(
    "default", derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile("long", database=None, deadline=None, max_examples=2000, suppress_health_check=_SLOW_IS_FINE)

MOST_DESCRIPTORS = 32  # that one test may leave open: fixtures of a module, which end later, have a browser's pipes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the full figures of the fault cases, and random examples")
    parser.addoption("--screenshots", action="store_true", help="write docs/img/status-*.png anew (tests/ui)")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_collection_finish() -> None:
    freeze_what_stays()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root"):
        need_root()


@pytest.fixture(scope="session", autouse=True)
def _as_from_a_roots_shell() -> None:
    """What the tests start inherits it: signals that `nohup` and `&` ignore, and programs a user's PATH does not lead to."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)  # ignored here all the same; exec makes it the default
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    os.environ["PYLB_CONFIG"] = ""  # no verb goes by /etc/pylb/pylb.yaml, the config of a service of this machine
    raise_descriptor_limit()  # a user's soft limit is 1,024: some tests hold more sockets in their own process


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Made before all other fixtures, and so the last to end. With xdist, of each worker on its own."""
    run = Run(tmp_path_factory.getbasetemp())
    yield
    left = run.end()
    assert not left, "the tests are over, and still there:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def _descriptors_are_given_back() -> Iterator[None]:
    """A test that fails and keeps many would take every later one with it: the one at fault is named, the others are not."""
    before = descriptors()
    yield
    assert len(descriptors()) - len(before) <= MOST_DESCRIPTORS, "descriptors that this test opened are still open"


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On uvloop, as in production: its transports are not asyncio's. A test that names the two runs on both."""
    named = item.get_closest_marker("asyncio")
    if named is not None and "loop_factories" in named.kwargs:
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _tasks_end_well(request: pytest.FixtureRequest) -> None:
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("_tasks")


@pytest.fixture
async def _tasks() -> AsyncIterator[None]:
    async with tasks_end_well():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the time went, and what was skipped for which reason: a line each."""
    seconds: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for kind, reports in terminalreporter.stats.items():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(PurePath(report.nodeid.partition("::")[0]).parts[:2])] += report.duration
                if kind == "skipped" and isinstance(report.longrepr, tuple):
                    skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if seconds:
        terminalreporter.line(
            "seconds: "
            + ", ".join(f"{folder} {spent:.0f}" for folder, spent in seconds.most_common())
            + " (added over all workers)"
        )
    for reason, count in skipped.most_common():
        terminalreporter.line(f"skipped: {count} tests: {reason}")
