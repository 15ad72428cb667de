"""A real browser reaches two clusters behind one port, each with a certificate of its own; one of them moves."""

import shlex
import socket
import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.app.instance import Instance, token
from tests.app.test_server_names import ONE, TWO, nginx, put, register
from tests.support.hellos import asking_for
from tests.support.peers import need
from tests.support.ports import free_port
from tests.ui.conftest import ARGUMENTS
from tests.ui.test_page import taken
from tests.ui.watching import Watcher


def browse(folder: Path, host: str, port: int, certificate: Path) -> str:
    """The text of the page there, if the server has the key of this certificate: any other one is an error page."""
    made = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    trusted = b64encode(sha256(made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()).decode()
    command = (
        *(need("chromium"), "--headless", *ARGUMENTS, f"--user-data-dir={folder / host}", "--dump-dom"),
        *(f"--host-resolver-rules=MAP {host} 127.0.0.1", f"--ignore-certificate-errors-spki-list={trusted}"),
        f"https://{host}:{port}/",
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stdout


def test_a_browser_reaches_two_clusters_behind_one_port_and_one_of_them_moves(pylb: Instance, tmp_path: Path) -> None:
    here, there, other = free_port(), free_port(), free_port()
    one, two = nginx(pylb, tmp_path / "one", ONE, here, there), nginx(pylb, tmp_path / "two", TWO, other)
    pylb.configure(tokens=[token(names=["one", "two"], server_names=["**.example.net"])])
    pylb.start()
    assert register(pylb, "one", ONE, here).status == 201
    assert register(pylb, "two", TWO, other).status == 201
    assert f"{ONE} {here}" in browse(tmp_path, ONE, pylb.port, one)
    assert f"{TWO} {other}" in browse(tmp_path, TWO, pylb.port, two)
    assert f"{TWO} {other}" not in browse(tmp_path, TWO, pylb.port, one), "each has the certificate of its own"
    assert register(pylb, "one", ONE, there).json["result"] == "moved"
    assert f"{ONE} {there}" in browse(tmp_path, ONE, pylb.port, one)


def test_the_page_has_a_card_and_commands_for_each_route_and_says_what_a_client_asked_for(
    pylb: Instance, watcher: Watcher, echo_port: int
) -> None:
    pylb.configure(tokens=[token(names=["git"], server_names=["**.example.net"])])
    pylb.start()
    names = ["git.example.net", "www.example.net"]
    assert put(pylb, "git/one", {"port": pylb.port, "target_port": echo_port, "server_names": names}).status == 201
    watcher.open(pylb.admin)
    cards = {name: watcher.page.locator("article.card").filter(has_text=f"git-{pylb.port}:{name}") for name in names}
    for card in cards.values():
        card.wait_for()
    watcher.sees(watcher.page.locator("article.card"), "2 routes by server name")
    hello = asking_for("git.example.net")
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client, client.makefile("rb") as answer:
        client.sendall(hello)
        assert answer.read(len(hello)) == hello
        watcher.page.get_by_role("button", name="Show").click()
        me = "{}:{}".format(*client.getsockname())
        watcher.sees(watcher.page.locator(".sessions tbody tr"), f"{me} asks for git.example.net")
        assert watcher.violations() == []
    cards["git.example.net"].get_by_role("button", name=f"commands for git-{pylb.port}:git.example.net", exact=True).click()
    commands = watcher.page.locator("dialog .line code").all_inner_texts()
    said = [shlex.split(text)[3:] for text in commands]
    assert [words[0] for words in said] == ["explain", "history", "sessions", "release"]
    assert said[0][1:4] == said[3][1:4] == [str(pylb.port), "--name", "git.example.net"]
    for text in commands:
        taken(text)
    watcher.page.keyboard.press("Escape")
    cards["git.example.net"].wait_for(state="detached")
    assert cards["www.example.net"].is_visible()
