"""One etcd for all tests that leave it as it was; each has keys of its own."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.etcd import Member, one_member

_numbers = count()


@pytest.fixture(scope="session")
def member() -> Iterator[Member]:
    with one_member() as found:
        yield found


@pytest.fixture
def prefix() -> str:
    return f"/test{next(_numbers)}/"
