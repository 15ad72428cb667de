"""One API server for all tests here; each begins without nodes and Services of an earlier one."""

from collections.abc import Callable, Iterator

import pytest

from phonehome.controller.controller import Controller
from phonehome.controller.options import read
from phonehome.credentials import read_file
from tests.phonehome.controller.pylb import Pylb
from tests.support.kubernetes import ADMIN, ApiServer, api_server

Start = Callable[..., Controller]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("kubernetes")) as running:
        yield running


@pytest.fixture
def cluster(server: ApiServer) -> ApiServer:
    server.clear()
    return server


@pytest.fixture
def pylbs() -> Iterator[Callable[[], Pylb]]:
    """Starts one per call."""
    started: list[Pylb] = []

    def start() -> Pylb:
        started.append(Pylb())
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def pylb(pylbs: Callable[[], Pylb]) -> Pylb:
    return pylbs()


@pytest.fixture
def start(cluster: ApiServer) -> Iterator[Start]:
    """Starts controllers for these pylbs; they end with the test."""
    started: list[Controller] = []

    def begin(*pylbs: Pylb, silence: float = 75.0, **environ: str) -> Controller:
        token = cluster.token.with_name("admin.token")
        token.write_text(ADMIN)
        values = {
            "PYLB_URL": ",".join(one.url for one in pylbs),
            "PYLB_TOKEN": "a-token-that-is-long-enough",
            "PYLB_PUBLIC_ADDRESS": "198.51.100.1",
            "PYLB_DEFAULT_CLASS": "true",
            "PYLB_KUBE_API": cluster.url,
            "PYLB_KUBE_CA": str(cluster.ca),
            "PYLB_KUBE_TOKEN_FILE": str(token),
            **environ,
        }
        log: list[str] = []
        controller = Controller(read(values, read_file), None, read_file, log.append, silence=silence)
        controller.lines = log  # type: ignore[attr-defined]
        started.append(controller)
        controller.start()
        return controller

    yield begin
    for one in started:
        print("\n".join(one.lines))  # noqa: T201  # type: ignore[attr-defined]
        one.stop()
