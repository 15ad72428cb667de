"""Load balancers to call; see peer.py."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.phonehome.peer import LoadBalancer


@pytest.fixture
def load_balancers() -> Iterator[Callable[..., LoadBalancer]]:
    """Starts one per call; all end with the test."""
    started: list[LoadBalancer] = []

    def start(context: ssl.SSLContext | None = None) -> LoadBalancer:
        started.append(LoadBalancer(context))
        return started[-1]

    yield start
    for load_balancer in started:
        load_balancer.close()


@pytest.fixture
def load_balancer(load_balancers: Callable[..., LoadBalancer]) -> LoadBalancer:
    return load_balancers()
