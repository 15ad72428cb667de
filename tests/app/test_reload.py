"""pylb/app/reload.py in a process: what SIGHUP changes, what it refuses, and what stays as it was."""

import socket

import pytest

from pylb.app.tokens import TOKEN_FILE
from tests.app.instance import Instance, connected, echo, token
from tests.support.ports import free_port
from tests.support.waiting import eventually


def test_a_reload_opens_and_closes_static_frontends_and_says_so(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    static = {"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
    pylb.configure(frontends=[static])
    pylb.reload(f"reloaded: opened 127.0.0.1:{pylb.port}")
    with connected(pylb) as client:
        pylb.configure()
        pylb.reload(f"reloaded: closed 127.0.0.1:{pylb.port}")
        assert echo(client) == b"ping"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", pylb.port), 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("webhook", {"listen": "127.0.0.1:29998"}),
        ("admin", {"listen": "127.0.0.1:29998"}),
        ("metrics", {"listen": "127.0.0.1:29998", "allow": ["127.0.0.1"]}),
        ("state_dir", "/var/lib/elsewhere"),
        ("log", {"format": "json"}),
    ],
)
def test_what_cannot_change_while_it_runs_is_refused_by_name(key: str, value: object, pylb: Instance, echo_port: int) -> None:
    pylb.start()
    static = {"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
    pylb.configure(frontends=[static], **{key: value})
    pylb.reload("reload refused")
    how = "restart it" if key == "state_dir" else "pylb upgrade"  # the next one finds the running one by it
    fixed = f"{key}.listen" if key == "admin" else key  # its peers may change
    assert f"{fixed} cannot change while pylb runs ({how}" in pylb.running.text()
    assert "pylb_config_last_reload_successful 0.0" in pylb.get("/metrics").body.decode()
    assert pylb.get("/v1/table").json["frontends"] == []  # all or nothing

    pylb.configure()
    pylb.reload("reloaded: nothing in the table changed")
    assert "pylb_config_last_reload_successful 1.0" in pylb.get("/metrics").body.decode()


def test_a_broken_file_changes_nothing_at_a_reload(pylb: Instance) -> None:
    pylb.start()
    pylb.file.write_text("webhok: 3")
    pylb.reload("reload refused")
    assert f"{pylb.file}:1:1: error: unknown key 'webhok'" in pylb.running.text()
    assert pylb.get("/readyz").status == 200


def test_a_changed_secret_file_counts_after_a_reload(pylb: Instance, echo_port: int) -> None:
    secret = pylb.folder / "secret"
    secret.write_text("the-first-one-of-32-characters-xx\n")
    entry = {key: value for key, value in token(secret_file=str(secret)).items() if key != "secret"}
    pylb.configure(tokens=[entry])
    pylb.start()
    assert pylb.register(pylb.port, echo_port, secret="the-first-one-of-32-characters-xx").status == 201
    secret.write_text("the-other-one-of-32-characters-xx\n")
    pylb.reload("reloaded")
    assert pylb.register(pylb.port, echo_port, secret="the-first-one-of-32-characters-xx").status == 401
    assert pylb.register(pylb.port, echo_port, secret="the-other-one-of-32-characters-xx").status == 200
    secret.unlink()
    pylb.reload("reload refused")
    assert pylb.register(pylb.port, echo_port, secret="the-other-one-of-32-characters-xx").status == 200


def test_a_reload_without_tokens_refuses_beats_and_keeps_what_is_registered(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    pylb.configure(tokens=[])
    pylb.reload("reloaded")
    assert pylb.register(pylb.port, echo_port).status == 401
    pylb.running.has_said(f"the generated one in {pylb.state_dir / TOKEN_FILE} counts")
    with connected(pylb):
        pass
    generated = (pylb.state_dir / TOKEN_FILE).read_text().strip()
    assert pylb.register(free_port(), echo_port, name="other", secret=generated).status == 201


def test_a_reload_that_needs_a_token_it_cannot_keep_is_refused(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    away = pylb.state_dir.rename(pylb.folder / "away")
    pylb.state_dir.write_text("")  # a file in its place, so that not even root can write there
    pylb.configure(tokens=[])
    pylb.reload("reload refused")
    assert "no token is configured and none can be kept" in pylb.running.text()
    pylb.state_dir.unlink()
    away.rename(pylb.state_dir)
    eventually(lambda: pylb.register(pylb.port, echo_port).status == 201, what="the retry that writes the state again")


def test_a_registered_port_that_becomes_static_adopts_a_registration_of_its_name_only(pylb: Instance, echo_port: int) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    static = {"name": "other", "listen": f"127.0.0.1:{pylb.port}", "balance": "roundrobin"}
    pylb.configure(frontends=[static])
    pylb.reload("reload refused")
    assert "port_owned: registration 'app' of token 'app'" in pylb.running.text()

    with connected(pylb) as client:
        pylb.configure(frontends=[static | {"name": "app"}])
        pylb.reload("reloaded: changed")
        assert echo(client) == b"ping"
    (row,) = pylb.routes()
    assert (row["frontend"], row["held_by"], row["state"]) == ("app", ["app/app/one"], "up")
