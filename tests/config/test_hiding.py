"""No message of the config shows a secret, wherever it was put by mistake."""

from pathlib import Path

import pytest

from pylb.config import ConfigErrors, load, parse

RANDOM = "hunter2-Very-Secret-AbCdEf123456"  # as `pylb token` makes them: letters of both cases and digits
HEX = "0123456789abcdef0123456789abcdef"  # openssl rand -hex 16
WEAK = "hunter2"  # of an old container

IN_TOKENS = (
    "tokens: SECRET",
    "tokens: [SECRET]",
    "tokens: {app: SECRET}",
    "tokens: [{name: app, ports: [443], SECRET: x}]",
    "tokens: [{name: app, ports: [443], password: SECRET}]",
    "tokens: [{name: app, ports: [443], password: {x: SECRET}}]",
    "tokens: [{name: 'SECRET !', ports: [443], secret: x}]",
    "tokens: [{name: app, ports: [443], names: ['SECRET !']}]",
    "tokens: [{name: app, ports: [443], allow_weak: SECRET}]",
    "tokens: [{name: app, ports: [443], legacy: [SECRET]}]",
    "tokens: [{name: app, ports: [443], secret: [SECRET]}]",
    "tokens: [{name: app, ports: [443], secret: 'SECRET '}]",
    "tokens: [{name: app, ports: [443], secret: SECRET, secret: SECRET}]",
    "tokens: [{name: app, secret: SECRET}]",
    "tokens: [{name: app, ports: [443], secret: SECRET}, {name: b, ports: [443], secret: SECRET}, {}]",
    "secret: SECRET",
    "token: SECRET",
    "webhook: {token: SECRET}",
)
BY_ITS_LOOK = (
    "tokens: [{name: app, ports: SECRET}]",
    "tokens: [{name: app, ports: [443], sources: SECRET}]",
    "tokens: [{name: app, ports: [443], targets: [SECRET]}]",
    "tokens: [{name: SECRET, ports: [443]}]",
    "webhook: SECRET",
    "webhook: {listen: '*:1', tls: SECRET}",
    "frontends: [{name: a, listen: SECRET}]",
    "log: {level: SECRET}",
    "SECRET: 1",
)


def said(text: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "pylb.yaml")
    return str(caught.value)


@pytest.mark.parametrize("secret", [RANDOM, HEX, WEAK])
@pytest.mark.parametrize("text", IN_TOKENS)
def test_a_secret_in_the_wrong_place_of_a_tokens_entry_is_not_shown(text: str, secret: str) -> None:
    assert secret not in said(text.replace("SECRET", secret))


@pytest.mark.parametrize("secret", [RANDOM, HEX])
@pytest.mark.parametrize("text", BY_ITS_LOOK)
def test_what_looks_like_a_secret_is_shown_nowhere(text: str, secret: str) -> None:
    found = said(text.replace("SECRET", secret))
    assert secret not in found
    assert secret.partition("-")[0] not in found  # a port range is quoted by its halves


@pytest.mark.parametrize("secret", [RANDOM, HEX])
def test_a_secret_where_the_name_of_its_file_belongs_is_not_shown(tmp_path: Path, secret: str) -> None:
    file = tmp_path / "pylb.yaml"
    file.write_text(f"tokens: [{{name: app, ports: [443], secret_file: {secret}}}]")
    with pytest.raises(ConfigErrors, match="cannot be read") as caught:
        load(file, {})
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tokens: [{name: a, ports: ['443,80']}]", "'443,80'"),
        ("tokens: [{name: a, ports: [443], sources: [192.0.2.1/24]}]", "'192.0.2.1/24'"),
        ("tokens: [{name: a, ports: [443], takover: true}]", "'takover' (did you mean 'takeover'?)"),
        ("log: {level: warn}", "'warn'"),
        (
            "tokens: [{name: a, ports: [443], secret: short}, {name: b, ports: [0]}]\ndefaults: {health: {interval: 1ms}}",
            "too short",
        ),
    ],
)
def test_what_is_no_secret_is_shown_as_it_was_written(text: str, shown: str) -> None:
    assert shown in said(text)
