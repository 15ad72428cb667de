"""Questions to all workers, and the wait for their answers."""

import asyncio
import logging
from collections.abc import Sequence

from pylb.core.address import Address, Listen
from pylb.core.recorder import Query
from pylb.workers.messages import Request, Response
from pylb.workers.process import WorkerProcess

log = logging.getLogger("pylb")

APPLY = 1.0  # seconds that a call waits for the workers


class ChangeSignal:
    """The event that a worker applied a table, answered, started, or ended."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def come(self) -> None:
        """Wake everybody who waits."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for the next event."""
        self._event.clear()
        await self._event.wait()


class WorkerRequests:
    """Asks all `workers`; each question has a number."""

    def __init__(self, workers: Sequence[WorkerProcess], signal: ChangeSignal) -> None:
        self._workers = workers
        self._signal = signal
        self._answers: dict[int, list[Response]] = {}
        self._last = 0

    async def ask(
        self,
        what: str,
        *,
        listen: Listen | None = None,
        address: Address | None = None,
        query: Query | None = None,
        session: int = 0,
    ) -> list[Response]:
        """The answers of serving workers, within APPLY seconds."""
        self._last = number = (self._last + 1) & 0xFFFFFFFF
        asked = [worker for worker in self._workers if worker.serves]
        answers: list[Response] = []
        self._answers[number] = answers
        try:
            for worker in asked:
                worker.say(Request(number, what, listen, address, query, session))
            async with asyncio.timeout(APPLY):
                while sum(not answer.more for answer in answers) < sum(worker.serves for worker in asked):
                    await self._signal.wait()
        except TimeoutError:
            log.error("a worker has not answered within %g s: %s", APPLY, what)
        finally:
            del self._answers[number]  # also if nobody waits for it any more
        return answers

    def answered(self, answer: Response) -> None:
        """Take a part of an answer, or its last part."""
        if answer.number in self._answers:
            self._answers[answer.number].append(answer)
        self._signal.come()
