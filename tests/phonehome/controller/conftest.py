"""Scripted API servers; see scripted.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.phonehome.controller.scripted import Scripted, Serve, Step


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts one per call; all end with the test."""
    started: list[Scripted] = []

    def start(*steps: Step, rest: Step | None = None) -> Scripted:
        started.append(Scripted(*steps, rest=rest))
        return started[-1]

    yield start
    for server in started:
        server.close()
