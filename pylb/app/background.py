"""The tasks of this process, apart from the one that starts and stops it."""

import asyncio
from collections.abc import Callable, Coroutine

from pylb.control.tasks import Part, Tasks


class Background:
    """Holds every task that it starts (the loop does not), and ends them. `boundary` catches, logs and counts failures."""

    def __init__(self, boundary: Tasks) -> None:
        self.boundary = boundary
        self._tasks: set[asyncio.Task[None]] = set()
        self._lasting: set[asyncio.Task[None]] = set()

    def once(self, part: Part, coroutine: Coroutine[object, object, None]) -> None:
        """Start a task. If it fails, that is logged and counted, and nothing else ends."""
        self.start(self.boundary.once(part, coroutine))

    def forever(self, part: Part, body: Callable[[], Coroutine[object, object, None]], *, lasting: bool = False) -> None:
        """Start a task that begins again after a failure. `lasting`: it goes on when a successor does everything else."""
        self._start(self.boundary.forever(part, body), self._lasting if lasting else self._tasks)

    def start(
        self,
        coroutine: Coroutine[object, object, None],
        ended: "Callable[[asyncio.Task[None]], None]" = lambda _task: None,
    ) -> None:
        """`ended` is called at the end, also with a failure, which is reported nowhere else."""
        self._start(coroutine, self._tasks).add_done_callback(ended)

    def _start(self, coroutine: Coroutine[object, object, None], among: "set[asyncio.Task[None]]") -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        among.add(task)
        task.add_done_callback(among.discard)
        return task

    def cancel(self) -> None:
        """Cancel all but the lasting ones."""
        for task in list(self._tasks):
            task.cancel()

    async def end(self) -> None:
        """End all of them."""
        self.cancel()
        for task in list(self._lasting):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._lasting, return_exceptions=True)
