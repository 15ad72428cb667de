"""The JSON Schema of pylb.yaml: valid itself, takes what pylb takes, refuses what is misspelt or of the wrong type."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pylb.config import schema

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(schema())


def errors(text: str) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text))]


def test_it_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", ["docs/pylb.example.yaml", "deploy/systemd/pylb.yaml"])
def test_it_takes_the_files_that_pylb_takes(file: str) -> None:
    assert errors((ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        'webhook: {listen: "*:9000", tls: self-signed}',
        'webhook: [{listen: "*:9000", insecure: true, legacy: ["192.0.2.0/24"], limits: {rate: 5}}]',
        "tokens: [{name: a, secret_file: a, ports: 443, names: '*', sources: 192.0.2.0/24}]",
        'frontends: [{name: a, listen: "*:443", servers: ["192.0.2.1:30443", {address: "192.0.2.2:30443", backup: true}]}]',
        "defaults: {timeouts: {idle: 1h, half_close: 0}, health: {check: {http: /health}}, access: {allow: 192.0.2.0/24}}",
    ],
)
def test_it_takes_short_forms(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "webhok: {}",
        "webhook: {tls: self-signd, listen: '*:1'}",
        "defaults: {timeouts: {idle: 5}}",
        "defaults: {balance: best}",
        "defaults: {retries: 101}",
        "tokens: [{name: a}]",
        "frontends: [{name: a}]",
    ],
)
def test_it_refuses_what_pylb_refuses(text: str) -> None:
    assert errors(text)


def test_every_key_of_the_reference_is_in_it() -> None:
    def keys(found: Any) -> set[str]:
        if isinstance(found, dict):
            return set(found.get("properties", {})) | {key for value in found.values() for key in keys(value)}
        return {key for value in found for key in keys(value)} if isinstance(found, list) else set()

    reference = (ROOT / "docs/config.md").read_text()
    listed = {line.split("`")[1] for line in reference.splitlines() if line.startswith("| `")}
    assert listed <= keys(SCHEMA)
