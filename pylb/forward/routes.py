"""The routes of the ports: frontends of the table with a server name. Each has servers, balance, queue and counters of its own,
and shares the listening socket, the admission and the limits of its port."""

import errno
from collections import deque
from collections.abc import Callable

from pylb.core.address import Listen
from pylb.core.table import Frontend
from pylb.forward.listener import ListeningPorts
from pylb.forward.session import FrontendState


class Routes:
    """All routes of an engine."""

    def __init__(self, ports: ListeningPorts, random: Callable[[], float]) -> None:
        self._ports = ports
        self._random = random
        self._by_listen: dict[Listen, FrontendState] = {}
        self._retired: deque[FrontendState] = deque()  # closed ones that may still have sessions

    def find(self, listen: Listen) -> FrontendState | None:
        return self._by_listen.get(listen)

    def open(self, frontend: Frontend) -> FrontendState:
        """Serve a new route. Raises OSError: its port is not open."""
        port = self._port(frontend.listen)
        if port is None:
            raise OSError(errno.ENOTCONN, "its port is not open")
        state = self._by_listen[frontend.listen] = FrontendState(frontend, self._random)
        port.set_route(frontend.listen.server_name, state)
        return state

    def close(self, listen: Listen) -> None:
        """New clients that ask for it get another route. Its sessions live on. Idempotent."""
        state = self._by_listen.pop(listen, None)
        port = self._port(listen)
        if state is None:
            return
        if port is not None and port.routes.get(listen.server_name) is state:
            port.set_route(listen.server_name, None)
        self._retired.append(state)
        for _ in range(2):  # so that closing thousands costs as much for each, and none stays for long
            if self._retired and not self._is_over(one := self._retired.popleft()):
                self._retired.append(one)

    def _is_over(self, state: FrontendState) -> bool:
        if not state.counters.sessions:
            state.break_cycles()
        return not state.counters.sessions

    def _port(self, listen: Listen) -> FrontendState | None:
        return self._ports.frontend(listen.default)
