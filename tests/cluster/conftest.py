"""One etcd for all tests that leave it as it was; each has keys of its own."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.etcd import Member, one_member
from tests.support.sharing import Pair

_numbers = count()


@pytest.fixture(scope="session")
def member() -> Iterator[Member]:
    with one_member() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    return f"/test{next(_numbers)}/"


@pytest.fixture
async def pair(member: Member, prefix: str, tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(member, prefix, tmp_path) as found:
        yield found
