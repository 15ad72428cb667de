"""Checks that an asyncio test ends without running tasks and without failures that nobody awaited."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

PATIENCE = 5.0  # seconds until a task that is ending has to be over


@asynccontextmanager
async def tasks_end_well(within: float = PATIENCE) -> AsyncIterator[None]:
    """The runner would cancel the tasks, and the loop would only log the failures. A test's own handler sees them instead."""
    loop, before = asyncio.get_running_loop(), asyncio.all_tasks()
    failed: list[dict[str, Any]] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: failed.append(context))
    try:
        yield
        if running := asyncio.all_tasks() - before - {asyncio.current_task()}:
            running = (await asyncio.wait(running, timeout=within))[1]  # those that failed meanwhile are freed, and heard of
        assert not running, f"tasks that this test started are still running: {running}"
        assert not failed, f"nobody awaited what failed: {failed}"
    finally:
        loop.set_exception_handler(handler)
