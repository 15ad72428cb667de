"""A newcomer's and an operator's hour with the status page, in one browser against one real pylb."""

import json
import re
import shlex
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from phonehome.settings import parse as settings_of
from pylb.cli.main import main
from tests.app.instance import SECRET, Instance, echo, fetch, token
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.waiting import eventually
from tests.ui.many import busy, rules
from tests.ui.showcase import ABOUT, Showcase
from tests.ui.watching import Watcher


@contextmanager
def answering(ip: str, port: int) -> Iterator[None]:
    """An app on a node."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                while data := self.request.recv(4096):
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server((ip, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join(5)


def call(pylb: Instance, port: int, target: int, *, address: str = "127.0.0.1", instance: str = "pod-1", ttl: int = 60) -> int:
    """A beat of a phone-home."""
    body = json.dumps({"frontends": [{"port": port, "target_port": target}], "ttl": ttl, "address": address})
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    return fetch(("127.0.0.1", pylb.webhook), "PUT", f"/v1/registrations/web/{instance}", body, headers).status


def paste(text: str) -> str:
    """Into a shell of this machine; what it prints. The interpreter of the tests stands for the installed one."""
    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    done = subprocess.run(["sh", "-c", text], check=False, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout


def taken(text: str) -> str:
    """As `paste`, without another interpreter: by the CLI in this one, which asks the running pylb."""
    python, _m, module, *arguments = shlex.split(text)
    assert (python, module) == ("python", "pylb")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, (text, done.output)
    return str(done.output)


@pytest.fixture
def serving(pylb: Instance, request: pytest.FixtureRequest) -> Instance:
    """With one token, whose secret stands in a file, and quick checks; the parameter: more of the webhook."""
    secret = pylb.folder / "secret"
    secret.write_text(SECRET)
    health = {"mode": "active", "interval": "200ms", "rise": 1, "fall": 2}
    entry = {key: value for key, value in token(names=["*"]).items() if key != "secret"} | {"secret_file": str(secret)}
    defaults = {"bind": "127.0.0.1", "health": health, "timeouts": {"shutdown": "1s"}}
    webhook = {"listen": f"127.0.0.1:{pylb.webhook}", **getattr(request, "param", {})}
    pylb.configure(tokens=[entry], defaults=defaults, webhook=webhook)
    pylb.start()
    return pylb


def test_from_nothing_to_a_row_down_a_move_and_a_drain(serving: Instance, watcher: Watcher) -> None:
    pylb, page, port, target = serving, watcher.page, serving.port, free_port()
    watcher.open(pylb.admin)
    assert watcher.sentence == "no frontends yet"
    assert page.locator("#welcome-title").inner_text() == "Nothing is registered yet"
    assert not any(page.locator(part).is_visible() for part in ("#frontends", "#history", "#jump"))  # nothing is above it
    assert page.locator("#skip").get_attribute("hidden") == ""  # it would lead nowhere
    assert watcher.violations() == []

    with answering("127.0.0.1", target):
        assert call(pylb, port, target) == 201
        watcher.card(port).wait_for(timeout=1000)  # by itself, within a second
        row = watcher.row(port, "pod-1")
        watcher.sees(row.locator(".pill"), "up")
        assert not page.locator("#welcome").is_visible()
        watcher.sees(page.locator("#sentence"), "the one frontend is healthy")
        assert "from pod-1" in row.locator(".seen").inner_text()
        assert "of 60 s" in row.locator(".lease-text").inner_text()
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert echo(client) == b"ping"
            watcher.sees(watcher.card(port).locator(".numbers"), "1 session ·")
            _look_at_sessions(pylb, watcher, client)
    # The app is gone.
    watcher.sees(row.locator(".pill"), "down")
    watcher.sees(row.locator(".accepts"), "refused")
    watcher.sees(row.locator(".passes"), "refused")
    watcher.sees(page.locator("#sentence"), f"web-{port} lost 127.0.0.1:{target}")
    assert page.locator("#health").get_attribute("data-health") == "down"
    assert "lost 127.0.0.1" in page.locator("#spoken").inner_text()
    watcher.sees(page.locator("#events"), "is out after 2 failures (refused)")
    assert watcher.violations() == []

    # Its pod comes back on another node.
    with answering("127.0.0.2", target):
        assert call(pylb, port, target, address="127.0.0.2") == 200
        watcher.sees(watcher.card(port).locator("code"), f"127.0.0.2:{target}")
        watcher.sees(row.locator(".pill"), "up")
        watcher.sees(page.locator("#sentence"), "the one frontend is healthy")
        plot = page.locator(".u-over").first
        box = plot.bounding_box()
        assert box is not None
        plot.hover(position={"x": box["width"] - 3, "y": 20})  # a second is a quarter of a pixel
        watcher.sees(page.locator(".tip:visible"), "moved app/web/pod-1")
        page.mouse.move(0, 0)
        page.locator(".marks summary").click()
        watcher.sees(page.locator("#marks"), f"moved app/web/pod-1: {port} -> 127.0.0.2:{target}")
        # The operator takes it out, with what the page wrote for him.
        command = watcher.copied_by(row.get_by_role("button", name="drain"))
        assert command == f"python -m pylb ctl drain web-{port}/pod-1 -c {pylb.file}"
        assert paste(command) == f"drain: web-{port}/pod-1 (127.0.0.2:{target})\n"
        watcher.sees(row.locator(".pill"), "draining")
        watcher.sees(page.locator("#sentence"), "has no server in service")
        assert taken(watcher.copied_by(row.get_by_role("button", name="ready"))).startswith("ready: ")
        watcher.sees(row.locator(".pill"), "up")


def test_a_server_that_accepts_connections_and_does_not_pass_its_check_has_a_word_for_each(
    serving: Instance, watcher: Watcher
) -> None:
    pylb, port, target = serving, serving.port, free_port()
    with answering("127.0.0.1", target):
        wanted = {"port": port, "target_port": target, "health": {"send": "PING", "expect": "PONG"}}
        body = json.dumps({"frontends": [wanted], "address": "127.0.0.1"})
        headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
        assert fetch(("127.0.0.1", pylb.webhook), "PUT", "/v1/registrations/web/pod-1", body, headers).status == 201
        watcher.open(pylb.admin)
        row = watcher.row(port, "pod-1")
        watcher.sees(row.locator(".pill"), "down")
        watcher.sees(row.locator(".accepts"), "yes")
        watcher.sees(row.locator(".passes"), "wrong answer")
        watcher.sees(watcher.page.locator("#sentence"), "(it accepts connections and does not pass its check: wrong answer")
    assert watcher.violations() == []


def _look_at_sessions(pylb: Instance, watcher: Watcher, client: socket.socket) -> None:
    page = watcher.page
    page.get_by_role("button", name="Show").click()
    me = "{}:{}".format(*client.getsockname())
    row = page.locator(".sessions tbody tr").filter(has_text=me)
    row.wait_for()
    page.locator("#sessions-text").fill("nobody")
    row.wait_for(state="detached")
    page.locator("#sessions-text").fill(me)
    row.wait_for()
    command = watcher.copied_by(row.get_by_role("button", name="shutdown"))
    assert re.fullmatch(rf"reset: session 0x[0-9a-f]+ of {re.escape(me)}\n", taken(command))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    page.locator("#sessions-text").fill(f"{me} ")  # asks again at once
    row.wait_for(state="detached")
    page.get_by_role("button", name="Hide").click()


def test_each_command_of_a_server_and_of_a_frontend_is_one_that_the_cli_takes(
    serving: Instance, watcher: Watcher, echo_port: int
) -> None:
    call(serving, serving.port, echo_port)
    watcher.open(serving.admin, "/stats")
    row = watcher.row(serving.port, "pod-1")
    watcher.sees(row.locator(".pill"), "up")
    with socket.create_connection(("127.0.0.1", serving.port)) as client:
        assert echo(client) == b"ping"
        row.get_by_role("button", name="more").click()
        of_server = watcher.page.locator("dialog code").all_inner_texts()
        assert watcher.violations() == []
        for text in of_server[:-1]:  # the last one is the same as of the frontend
            taken(text)
    watcher.page.keyboard.press("Escape")
    watcher.card(serving.port).get_by_role("button", name=f"commands for web-{serving.port}", exact=True).click()
    of_frontend = watcher.page.locator("dialog .line code").all_inner_texts()
    for text in of_frontend:
        taken(text)
    # Where a browser lets nobody write its clipboard, the command is shown selected.
    watcher.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    watcher.page.locator("dialog .line button").first.click()
    watcher.sees(watcher.page.locator("#toast"), "Copy it from here: ")
    assert watcher.page.evaluate("getSelection().toString()") == of_frontend[0]
    verbs = [shlex.split(text)[3] for text in (*of_server, *of_frontend)]
    assert verbs == ["ctl", "ctl", "ctl", "ctl", "release", "explain", "history", "sessions", "release"]
    watcher.page.keyboard.press("Escape")
    watcher.page.locator("#welcome").wait_for()  # the last command was `release`: nothing is registered


@pytest.mark.parametrize("serving", [{"tls": "self-signed"}], indirect=True, ids=["TLS"])
def test_what_the_empty_page_says_to_paste_works_and_shows_no_secret(serving: Instance, watcher: Watcher) -> None:
    watcher.open(serving.admin)
    steps = watcher.page.locator(".step")
    curl, create, secret, sidecar = (text.strip() for text in steps.locator("pre").all_inner_texts())
    assert SECRET not in watcher.page.content()
    kept, certificate = serving.folder / "secret", serving.state_dir / "tls" / "cert.pem"
    assert secret == f"kubectl create secret generic pylb --from-file=token={kept} --from-file=ca.pem={certificate}"
    assert create.endswith(f" -c {serving.file} | kubectl apply -f -")
    _understood_by_a_phone_home(sidecar, {"token": kept, "ca.pem": certificate}, serving.webhook)
    # The curl line, as it stands. It stays in its own terminal; the page follows by itself.
    assert watcher.copied_by(steps.first.get_by_role("button", name="copy")) == curl
    answer = json.loads(paste(curl.replace("curl ", "curl -sS ", 1)))
    assert answer.get("result") == "created", answer
    watcher.page.locator("article.card").wait_for(timeout=1000)


def _understood_by_a_phone_home(sidecar: str, secrets: dict[str, Path], port: int) -> None:
    """YAML of a pod; the container's environment is valid and aims at this machine."""
    pod = yaml.safe_load(sidecar)
    [container] = pod["initContainers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}

    def mounted(path: str) -> str:
        folder, _, name = path.rpartition("/")
        assert folder == "/run/secrets/pylb"
        return secrets[name].read_text()

    environ = {one["name"]: one.get("value", "pod-1") for one in container["env"]}
    settings = settings_of(environ, hostname="pod-1", read_file=mounted)
    [endpoint] = settings.endpoints
    assert (endpoint.host, endpoint.port, settings.instance) == ("127.0.0.1", port, "pod-1")
    assert settings.token == SECRET


FOCUSED = """(() => {
  const at = document.activeElement;
  return (at.getAttribute("aria-label") || at.id || at.textContent).trim();
})()"""


def test_everything_is_reached_by_keyboard_and_the_focus_comes_back(
    serving: Instance, watcher: Watcher, echo_port: int
) -> None:
    call(serving, serving.port, echo_port)
    watcher.open(serving.admin)
    watcher.card(serving.port).wait_for()
    page = watcher.page

    def focused() -> str:
        found: str = page.evaluate(FOCUSED)
        return found

    page.keyboard.press("Tab")
    assert focused() == "skip"  # to the frontends
    page.keyboard.press("Enter")
    stops = []
    for _ in range(16):
        page.keyboard.press("Tab")
        stops.append(focused())
    where = f"web-{serving.port}"
    wanted = ["filter", "troubled", "sort", "ascending, reverse the order", "view-cards", "view-list", "Skip the frontends"]
    wanted += [f"commands for {where}", f"drain {where}/pod-1: copy the command"]
    wanted += [f"more commands for {where}/pod-1", "events-kind", "events", "sessions-toggle"]
    assert stops[: len(wanted)] == wanted
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    more = watcher.row(serving.port, "pod-1").get_by_role("button", name="more")
    more.focus()
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    watcher.sees(page.locator("#toast"), "Copied: ")
    page.keyboard.press("Escape")
    assert focused() == f"more commands for {where}/pod-1"


def test_the_page_finds_a_pylb_again_that_was_away(serving: Instance, watcher: Watcher, echo_port: int) -> None:
    call(serving, serving.port, echo_port)
    watcher.open(serving.admin)
    watcher.card(serving.port).wait_for()
    assert serving.running.terminate() == 0
    watcher.page.wait_for_selector('#link[data-state="lost"]')
    other = free_port()
    serving.start()
    call(serving, other, echo_port, instance="pod-2")
    watcher.page.wait_for_selector('#link[data-state="live"]')
    watcher.card(other).wait_for()
    watcher.card(serving.port).wait_for()
    # What the browser says of a connection that was refused is no fault of the page.
    eventually(lambda: [text for text in watcher.complaints if "ERR_" in text])
    watcher.complaints[:] = [text for text in watcher.complaints if "ERR_" not in text]


def test_it_shows_the_sum_of_all_workers_and_works_behind_a_forwarded_port(
    pylb: Instance, watcher: Watcher, echo_port: int
) -> None:
    pylb.configure(workers=2)
    pylb.start()
    pylb.register(pylb.port, echo_port)
    watcher.open(pylb.admin, host="localhost")  # as `ssh -L 8404:127.0.0.1:8404` shows it
    clients = [socket.create_connection(("127.0.0.1", pylb.port)) for _ in range(20)]
    assert all(echo(client) == b"ping" for client in clients)
    watcher.sees(watcher.card(pylb.port).locator(".numbers"), "20 sessions")
    watcher.sees(watcher.page.locator("#machine"), "2 workers")
    for client in clients:
        client.close()
    watcher.sees(watcher.card(pylb.port).locator(".numbers"), "20 in all")
    watcher.sees(watcher.card(pylb.port).locator(".numbers"), "0 sessions")


def test_a_page_of_another_version_loads_itself_anew_once(watcher: Watcher, tmp_path: Path) -> None:
    loaded: list[str] = []
    watcher.page.on("framenavigated", lambda frame: loaded.append(frame.url))
    with Showcase(tmp_path, rules(1), busy, about={**ABOUT, "page": "of-another-version"}) as showcase:
        watcher.origin = f"http://127.0.0.1:{showcase.port}"
        watcher.page.goto(watcher.origin)
        watcher.page.wait_for_selector('#link[data-state="live"]')
        watcher.page.locator("article.card").wait_for()
        assert len(loaded) == 2
        watcher.page.goto("about:blank")
