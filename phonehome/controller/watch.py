"""List and watch of one kind of object, for ever: a thread that keeps a `Cache` as the API server has it.

    list    in pages; if a page's continue token has expired (410), once more in one piece, because the token in that
            answer continues an inconsistent list
    watch   from the list's version; bookmarks move the version on; after an end, an error or a silence it goes on from the
            last version, and after 410 (as an answer, or inside the stream) from a new list

`resourceVersion=0` is never asked for: it would answer from a cache of any age, and ignores the page size.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from phonehome.client import CallError, Cancel
from phonehome.controller.kube import Api, ApiError, decoded
from phonehome.controller.pace import Pace
from phonehome.schedule import Uniform

SILENCE = 75.0  # seconds: bookmarks come about once a minute
WATCH_SECONDS = 600  # after which the API server ends a watch, so that watches spread over its replicas again
MOST_RESUMES = 3  # failed watches in a row from one version; then it is listed again

Log = Callable[[str], None]


class Keyed(Protocol):
    @property
    def key(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def content(self) -> object: ...


T = TypeVar("T", bound=Keyed)


class Kind(Generic[T]):  # a NamedTuple cannot be generic before Python 3.11
    """`page`: objects of a list at once, as many as fit into memory twice."""

    def __init__(self, path: str, read: Callable[[Mapping[str, Any]], T], page: int) -> None:
        self.path, self.read, self.page = path, read, page


class Changes:
    """Counts changes, so that one that happens during a turn is not missed by who waits afterwards."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.count = 0

    def note(self) -> None:
        with self.lock:
            self.count += 1
            self.lock.notify_all()

    def wait(self, seen: int, timeout: float) -> None:
        """Until there are other changes than `seen`."""
        with self.lock:
            self.lock.wait_for(lambda: self.count != seen, timeout)


class Cache(Generic[T]):
    """All objects of a kind. Hold `changes.lock` to read them."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.objects: dict[str, T] = {}
        self.deleted: set[str] = set()  # by an event; what a new list lacks is only missing (belief.py)
        self.listed = False  # complete at least once

    def replace(self, objects: Mapping[str, T]) -> None:
        with self._changes.lock:
            self.objects = dict(objects)
            self.deleted -= objects.keys()
            self.listed = True
            self._changes.note()

    def put(self, one: T) -> None:
        """A node reports its health every few minutes. That is not a change: nothing that is read here differs."""
        with self._changes.lock:
            before = self.objects.get(one.key)
            self.objects[one.key] = one
            self.deleted.discard(one.key)
            if before is None or before.content != one.content:
                self._changes.note()

    def delete(self, key: str) -> None:
        with self._changes.lock:
            if self.objects.pop(key, None) is not None:
                self.deleted.add(key)
                self._changes.note()


class GoneError(Exception):
    """410: the version is too old; only a new list helps."""


class Watcher(threading.Thread, Generic[T]):
    def __init__(
        self, kind: Kind[T], cache: Cache[T], api: Api, log: Log, *, uniform: Uniform, silence: float = SILENCE
    ) -> None:
        super().__init__(name=kind.path.rpartition("/")[2], daemon=True)
        self._kind, self._cache, self._api, self._log = kind, cache, api, log
        self._silence = silence
        self._pace = Pace(uniform)
        self._stopping = threading.Event()
        self._cancel = Cancel()
        self._version: str | None = None  # to go on from; None: list
        self._resumes = 0
        self._said = ""

    def stop(self) -> None:
        self._stopping.set()
        self._cancel.abort()

    def run(self) -> None:
        while not self._stopping.is_set():
            wait = self._turn()
            self._stopping.wait(wait)

    def _turn(self) -> float:
        """List if necessary and watch until that ends; returns how long to wait before the next turn."""
        retry_after: float | None = None
        trouble = ""
        try:
            if self._version is None:
                self._version = self._list()
            self._watch()
        except GoneError:
            self._version = None
        except ApiError as exc:
            trouble, retry_after = f"{exc}" + (f" ({exc.hint})" if exc.hint else ""), exc.wait
            self._failed()
        except CallError as exc:
            # A watch that was silent or cut off is an ordinary day; a connection that cannot be made is not.
            trouble = str(exc) if exc.unsent or self._version is None else ""
            if not exc.unsent:
                self._failed()
        except Exception as exc:  # noqa: BLE001  the task boundary: a bug must not end the watch
            trouble = f"internal error: {type(exc).__name__}: {exc}"
            self._version = None
        if not self._stopping.is_set():
            self._say(trouble)
        return self._pace.next_wait(retry_after)

    def _failed(self) -> None:
        """A version that does not work, although it is not called too old: an API server whose etcd was restored."""
        self._resumes += 1
        if self._resumes >= MOST_RESUMES:
            self._version, self._resumes = None, 0

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._said:
            self._log(f"Kubernetes API, {self.name}: {trouble}; what is served stays as it is")
            self._said = trouble

    def _works(self) -> None:
        if self._said:
            self._log(f"Kubernetes API, {self.name}: works again")
            self._said = ""

    def _list(self) -> str:
        found, version = self._pages()
        self._cache.replace({one.key: one for one in found})
        self._works()
        return version

    def _pages(self) -> tuple[list[T], str]:
        found: list[T] = []
        token = ""
        while True:
            query = f"?limit={self._kind.page}" + (f"&continue={quote(token, safe='')}" if token else "")
            try:
                page = self._api.get(self._kind.path + query, cancel=self._cancel)
            except ApiError as exc:
                if exc.status != 410 or not token:
                    raise
                page = self._api.get(self._kind.path, cancel=self._cancel)
                found = []
            items, meta = page.get("items"), page.get("metadata")
            if not isinstance(meta, dict) or not isinstance(items or [], list):
                raise ApiError(200, "its answer is not a list of Kubernetes objects")
            found += [self._kind.read(one) for one in items or ()]
            token = str(meta.get("continue") or "")
            if not token:
                return found, str(meta.get("resourceVersion") or "")

    def _watch(self) -> None:
        """Returns when the watch ends. Raises GoneError, CallError or ApiError."""
        version = quote(self._version or "", safe="")
        query = f"?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
        try:
            with contextlib.closing(self._api.watch(self._kind.path + query, self._silence, cancel=self._cancel)) as lines:
                for line in lines:
                    self._event(line)
        except ApiError as exc:
            if exc.status == 410:
                raise GoneError from None
            raise

    def _event(self, line: bytes) -> None:
        event = decoded(line)
        found = event.get("object") if event else None
        if event is None or not isinstance(found, dict):
            raise CallError("no watch event", f"a line of {len(line)} bytes that is not one")
        kind = event.get("type")
        if kind == "ERROR":
            code = found.get("code")
            if code == 410:
                raise GoneError
            raise ApiError(code if isinstance(code, int) else 500, found.get("message"))
        one = self._kind.read(found)
        if one.version and one.version != self._version:
            self._version = one.version
            self._resumes = 0
            self._pace.progressed()
            self._works()
        if kind == "DELETED":
            self._cache.delete(one.key)
        elif kind in ("ADDED", "MODIFIED"):
            self._cache.put(one)
