"""pylb/app/welcome.py: what the person in front reads first."""

import re
from pathlib import Path

import pytest

from pylb.app.tokens import TOKEN_FILE
from pylb.app.welcome import banner, first_steps, program
from pylb.config import Config, parse
from pylb.control.storage.places import SYSTEM_FILE

SECRET = "0123456789abcdefghijklmnopqrstuv"


def config(text: str, tmp_path: Path) -> Config:
    return parse(f"state_dir: {tmp_path}\n{text}", "pylb.yaml")


def said(config: Config, *, terminal: bool = True, secret: str | None = SECRET, restored: int = 0, option: str = "") -> str:
    file = Path("pylb.yaml") if option else None
    return banner(
        config, file=file, room=(100, 300), restored=restored, secret=secret, terminal=terminal, called=("pylb", option)
    )


# ------------------------------------------------------------ the banner


def test_the_token_is_shown_on_a_terminal_and_only_its_file_elsewhere(tmp_path: Path) -> None:
    shown, hidden = said(config("", tmp_path)), said(config("", tmp_path), terminal=False)
    assert shown.count(SECRET) == 2
    assert SECRET not in hidden
    assert hidden.count(f"$(cat {tmp_path / TOKEN_FILE})") == 2


def test_with_configured_tokens_there_is_nothing_to_try(tmp_path: Path) -> None:
    text = said(config("", tmp_path), secret=None, restored=1)
    assert text.count("\n") == 2
    assert "1 port served" in text


def test_it_says_where_the_doors_are_and_how_to_ask_this_pylb(tmp_path: Path) -> None:
    text = said(config("", tmp_path), option=" -c pylb.yaml", restored=3)
    assert "webhook on *:9000, admin on http://127.0.0.1:8404" in text
    assert "config: pylb.yaml\n3 ports served" in text
    assert "config: the embedded defaults\n" in said(config("", tmp_path))
    assert "pylb routes -c pylb.yaml\n" in text


@pytest.mark.parametrize(
    ("webhook", "curl", "pod"),
    [
        ('{listen: "*:9000", insecure: true}', "http://localhost:9000/v1/", "http://lb.example.net:9000"),
        ('{listen: "0.0.0.0:9000", insecure: true}', "http://localhost:9000/v1/", "http://lb.example.net:9000"),
        ('{listen: "[2001:db8::9]:9000", insecure: true}', "http://[2001:db8::9]:9000/v1/", "http://[2001:db8::9]:9000"),
        ('{listen: "127.0.0.1:9000"}', "http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000"),
        ('{listen: "*:9000", tls: self-signed}', "https://localhost:9000/v1/", "https://lb.example.net:9000"),
    ],
)
def test_curl_and_phone_home_get_a_url_that_leads_here(webhook: str, curl: str, pod: str, tmp_path: Path) -> None:
    text = said(config(f"advertise: lb.example.net\nwebhook: {webhook}\n", tmp_path))
    assert f"-X PUT {curl}" in text
    assert f"PYLB_URL={pod}\n" in text


def test_a_certificate_of_our_own_comes_with_the_way_to_trust_it(tmp_path: Path) -> None:
    text = said(config('webhook: {listen: "*:9000", tls: self-signed}\n', tmp_path))
    assert f"--cacert {tmp_path}/tls/cert.pem" in text
    assert f"PYLB_CA={tmp_path}/tls/cert.pem" in text


def test_a_loopback_webhook_promises_nothing_to_pods(tmp_path: Path) -> None:
    text = said(config('webhook: {listen: "[::1]:9000"}\n', tmp_path))
    assert "From this machine only" in text
    assert "From a pod" not in text


@pytest.mark.parametrize(
    ("argv0", "path", "expected"),
    [
        (".venv/bin/pylb", None, (".venv/bin/pylb", "")),
        ("/nowhere/bin/pylb", Path("my file.yaml"), ("/nowhere/bin/pylb", " -c 'my file.yaml'")),
    ],
)
def test_the_command_to_type_is_the_one_that_was_typed(
    argv0: str, path: Path | None, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [argv0])
    assert program(path) == expected


def test_a_command_on_the_path_is_named_alone_and_a_module_with_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "pylb"
    command.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [str(command)])
    assert program(None) == ("pylb", "")
    (tmp_path / "elsewhere").mkdir()
    command.rename(tmp_path / "elsewhere/pylb")
    command.symlink_to("elsewhere/pylb")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "elsewhere/pylb")])  # as the unit calls it
    assert program(SYSTEM_FILE) == ("pylb", "")
    monkeypatch.setattr("sys.argv", ["/somewhere/pylb/__main__.py"])
    assert re.fullmatch(r"python[\d.]* -m pylb", program(None)[0])


# ------------------------------------------------------------ what the status page says to paste


TOKEN = "tokens: [{name: web, secret_file: s, ports: [80, 443]"


def test_the_page_says_if_no_pod_can_reach_the_webhook(tmp_path: Path) -> None:
    steps = first_steps(config('webhook: {listen: "127.0.0.1:9000"}', tmp_path), generated=True)
    assert steps is not None
    assert steps["elsewhere"] == "Or from your cluster, once it can reach the webhook, which listens on 127.0.0.1:9000 alone:"
    steps = first_steps(config("", tmp_path), generated=True)
    assert steps is not None
    assert steps["elsewhere"] == "Or from your cluster:"


def test_the_first_steps_are_those_of_the_banner_with_the_tokens_file(tmp_path: Path) -> None:
    steps = first_steps(config("advertise: lb.example.net", tmp_path), generated=True)
    assert " ".join(steps["curl"].split()) in " ".join(said(config("", tmp_path), terminal=False).split())
    assert 'PYLB_URL, value: "https://lb.example.net:9000"' in steps["sidecar"]
    assert "PYLB_CA" in steps["sidecar"]
    assert f"--from-file=token={tmp_path / TOKEN_FILE} --from-file=ca.pem={tmp_path}/tls/cert.pem" in steps["secret"]


def test_they_ask_for_what_a_configured_token_may(tmp_path: Path) -> None:
    """It may not name loopback: the call has to come from where the app is."""
    steps = first_steps(config(f"advertise: lb.example.net\n{TOKEN}}}]", tmp_path), generated=False)
    assert "https://lb.example.net:9000/v1/registrations/web/me" in steps["curl"]
    assert '{"frontends":[{"port":80,"target_port":30000}],"ttl":null}' in steps["curl"]
    assert steps["try"] == "port 80 to whatever listens on port 30000 of the machine it is called from"
    assert 'value: "80:30000"' in steps["sidecar"]


def test_a_secret_that_stands_in_the_config_is_not_shown(tmp_path: Path) -> None:
    text = f"tokens: [{{name: web, secret: {SECRET}, ports: [443], targets: [127.0.0.0/8], target_ports: [1-65535]}}]"
    steps = first_steps(config(text, tmp_path), generated=False)
    assert "Bearer $PYLB_TOKEN" in steps["curl"]
    assert '"port":443,"target_port":8000' in steps["curl"]
    assert "--from-file=token=FILE" in steps["secret"]
    assert SECRET not in str(steps)
