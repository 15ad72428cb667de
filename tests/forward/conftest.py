"""A driven engine, with splice and without; both come back to the base line."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylb.forward import source_share
from tests.support.baseline import Baseline, baseline
from tests.support.datagrams import DatagramDrive
from tests.support.drive import Drive
from tests.support.netns import Namespace, loopback_only
from tests.support.peers import need, need_netns

__all__ = ["baseline"]


@pytest.fixture(autouse=True)
def _back_to_the_base_line(baseline: Baseline) -> None:
    pass


@pytest.fixture
def loopback() -> Iterator[Namespace]:
    """The test's own sockets are made in a network namespace, whose loopback it may spoil."""
    need_netns()
    need("nft")
    with loopback_only() as namespace, namespace.inside():
        yield namespace


@pytest.fixture(params=[True, False], ids=["splice", "copy"])
def drive(request: pytest.FixtureRequest, _back_to_the_base_line: None) -> Iterator[Drive]:
    driven = Drive(splice=request.param)
    yield driven
    driven.finish()


@pytest.fixture
def make_drive(_back_to_the_base_line: None) -> Iterator[Callable[..., Drive]]:
    """Drives with arguments of the test's own."""
    made: list[Drive] = []

    def make(**arguments: Any) -> Drive:
        made.append(Drive(**arguments))
        return made[-1]

    yield make
    for driven in made:
        driven.finish()


@pytest.fixture
def make_udp(_back_to_the_base_line: None) -> Iterator[Callable[..., DatagramDrive]]:
    made: list[DatagramDrive] = []

    def make(**arguments: int) -> DatagramDrive:
        made.append(DatagramDrive(**arguments))
        return made[-1]

    yield make
    for driven in made:
        driven.finish()


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of this machine's loopback count as any others do."""
    monkeypatch.setattr(source_share, "LOCAL", ())
