"""/openapi.json: a valid document, and what it says is what a live pylb does, for whatever it allows and does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from pylb.core.errors import Code
from pylb.web import openapi
from pylb.web.answers import STATUS
from tests.contract.instance import Pylb, call, secret
from tests.support.ports import ports_in_a_row
from tests.support.processes import Processes

# What is right in form may still be refused: by the token's scope, by whoever has the port, by the bounds of leases, as the
# same call again and again, which a fuzzer's are, and for its size: JSON Schema cannot say that of a whole body.
SEMANTIC = ["2xx", 403, 409, 413, 422, 429]
REJECTED = [400, 401, 403, 404, 405, 413, 422]  # what is too large is refused for that, before anything is read


@pytest.fixture
def ports() -> range:
    first = ports_in_a_row(50)
    return range(first, first + 50)


@pytest.fixture
def live(processes: Processes, tmp_path: Path, ports: range) -> Pylb:
    """With a token that may open 50 ports of loopback, under any name, and no limits of calls."""
    many = 1_000_000
    token = {"name": "fuzz", "secret": secret("fuzz"), "ports": [f"{ports[0]}-{ports[-1]}"], "names": ["*"]}
    scope = {"targets": ["127.0.0.0/8"], "target_ports": ["1-65535"]}
    pylb = Pylb(processes, tmp_path)
    limits = {"burst": many, "rate": many, "lockout": many}
    pylb.configure(
        webhook=[{"listen": f"127.0.0.1:{pylb.webhook}", "limits": limits}], tokens=[token | scope], log={"level": "error"}
    )
    return pylb.start()


def test_the_document_is_valid_openapi() -> None:
    validate(openapi.document())


def test_every_code_has_a_status_a_meaning_and_a_remedy() -> None:
    assert set(openapi.MEANINGS) == set(STATUS) == set(Code)
    assert all(all(texts) for texts in openapi.MEANINGS.values())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("narrowed", [False, True], ids=["as it is", "with ports of the token"])
def test_a_live_pylb_does_what_the_document_says(
    live: Pylb, ports: range, tmp_path: Path, narrowed: bool, request: pytest.FixtureRequest
) -> None:
    document = call(live.webhook, "GET", "/openapi.json").json
    if narrowed:  # so that registrations succeed: at random hardly a port is one of the token's
        properties = document["components"]["schemas"]["FrontendBody"]["properties"]
        for name in ("port", "target_port"):  # two ranges at random are never of one length
            properties[name]["anyOf"] = properties[name]["anyOf"][:1]
        properties["port"]["anyOf"][0] |= {"minimum": ports[0], "maximum": ports[-1]}
    schema, settings = tmp_path / "openapi.json", tmp_path / "schemathesis.toml"
    schema.write_text(json.dumps(document))
    settings.write_text(
        f"[checks]\npositive_data_acceptance.expected-statuses = {json.dumps(SEMANTIC)}\n"
        f"negative_data_rejection.expected-statuses = {json.dumps(REJECTED)}\n"
    )
    examples = 1000 if request.config.getoption("--long") else 50
    ended = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run", str(schema)),
            *("--url", f"http://127.0.0.1:{live.webhook}", "-H", f"Authorization: Bearer {secret('fuzz')}"),
            *("--checks", "all", "--max-examples", str(examples), "--seed", "1", "--warnings", "off", "--no-color"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "Tested: 7" in ended.stdout
    created = 'pylb_registrations_total{result="created"}'  # counted, because the last call about it may have released it
    counts = [float(line.split()[1]) for line in live.get("/metrics").text.splitlines() if line.startswith(created)]
    assert sum(counts) > 0 or not narrowed
    assert "failed" not in live.running.text()
