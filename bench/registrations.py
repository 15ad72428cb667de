"""How long a native registration call takes while pylb is full: 1,000 frontends registered and 2,000 sessions live."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

from bench import configs, figures, load
from bench.processes import Address, BenchError
from bench.targets import Target

SETUP_CALLERS = 8
SWAPPED_PORT = configs.EXTRA_PORTS.stop - 1


@dataclass(frozen=True)
class Caller:
    """A phone-home as pylb sees it: a new connection for every call, a bearer token, JSON."""

    webhook: Address
    token: str
    target: Address

    def put(self, name: str, port: int) -> float:
        """Registers one frontend; → seconds from the connect to the whole answer. Raises BenchError if refused."""
        body = {"frontends": [{"port": port, "target_port": self.target.port}], "address": self.target.host, "ttl": 3600}
        return self._call("PUT", name, json.dumps(body))

    def delete(self, name: str) -> float:
        """Releases the registration; → seconds."""
        return self._call("DELETE", name, None)

    def _call(self, method: str, name: str, body: str | None) -> float:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        started = time.perf_counter()
        connection = http.client.HTTPConnection(*self.webhook, timeout=30)
        try:
            connection.request(method, f"/v1/registrations/{name}/bench", body, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{method} of registration {name} got no answer: {error!r}") from error
        finally:
            connection.close()
        took = time.perf_counter() - started
        if answer.status not in {200, 201}:
            raise BenchError(f"{method} of registration {name} was answered {answer.status}: {text.strip()}")
        return took


def caller_of(target: Target, *, other: bool = False) -> Caller:
    """A phone-home that sends to the origin, or to its other port."""
    wiring = target.wiring
    place = wiring.origin_other if other else wiring.origin_http
    return Caller(wiring.webhook, configs.token_file(wiring).read_text(), place)


def register(target: Target, have: int, count: int) -> None:
    """Register the frontends `have` to `count` of REGISTERED_PORTS."""
    caller = caller_of(target)
    with ThreadPoolExecutor(SETUP_CALLERS) as pool:
        list(pool.map(lambda port: caller.put(f"app-{port}", port), configs.REGISTERED_PORTS[have:count]))


@contextmanager
def swapping(target: Target) -> Iterator[Callable[[], int]]:
    """Move SWAPPED_PORT to and fro while the block runs. The yielded function returns how often it was answered so far."""
    callers = (caller_of(target), caller_of(target, other=True))
    callers[0].put("swapped", SWAPPED_PORT)
    stop, done = threading.Event(), 0

    def run() -> None:
        nonlocal done
        for caller in cycle(callers):
            if stop.is_set():
                return
            caller.put("swapped", SWAPPED_PORT)
            done += 1

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(run)
        try:
            yield lambda: done
        finally:
            stop.set()
        calls.result()


def measure(target: Target, frontends: int, sessions: int, calls: int) -> dict[str, float]:
    """Milliseconds of creating, repeating and releasing a registration: median and p99 over `calls` calls of each."""
    caller, ports = caller_of(target), configs.REGISTERED_PORTS[:frontends]
    register(target, 0, frontends)
    with load.held([Address(target.http.host, port) for port in ports], sessions):
        create, beat, release = [], [], []
        for extra, known in zip(islice(cycle(configs.EXTRA_PORTS), calls), islice(cycle(ports), calls), strict=True):
            create.append(caller.put(f"app-{extra}", extra))
            beat.append(caller.put(f"app-{known}", known))
            release.append(caller.delete(f"app-{extra}"))
    took = {"create": create, "beat": beat, "release": release}
    return {
        f"{call}_{figure}_ms": 1000 * figures.percentile(seconds, percent)
        for call, seconds in took.items()
        for figure, percent in (("median", 50), ("p99", 99))
    }
