"""Work beside a test: a thread that runs for as long as a `with` block."""

import threading
from abc import ABC, abstractmethod
from typing import Self


class Beside(ABC):
    """A subclass has `_run`, which runs until `_end` is set."""

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__.lower())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None: ...
