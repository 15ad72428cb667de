"""deploy/prometheus, judged by Prometheus' own tools; and each name in it exists in pylb, in the runbook, in the tests."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.exported import names, used
from tests.deploy.manifests import DEPLOY, parse
from tests.support.peers import need

FOLDER = DEPLOY / "prometheus"
RULES, SCRAPE, TESTS = FOLDER / "rules.yaml", FOLDER / "scrape.yaml", FOLDER / "rules.test.yaml"
RUNBOOK = DEPLOY.parent / "docs/runbook.md"


def alerts() -> list[dict[str, Any]]:
    (document,) = parse(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    program = need("promtool")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=40)

    return run


Promtool = Callable[..., subprocess.CompletedProcess[str]]


def test_prometheus_finds_no_fault_in_rules_and_config(promtool: Promtool) -> None:
    result = promtool("check", "config", SCRAPE)  # and the rules that it names
    assert result.returncode == 0, result.stderr
    assert f"{len(alerts())} rules found" in result.stdout


def test_prometheus_finds_the_fault_in_a_broken_rule(promtool: Promtool, tmp_path: Path) -> None:
    broken = tmp_path / "rules.yaml"
    broken.write_text(RULES.read_text().replace("pylb_state_durable == 0", "pylb_state_durable = 0"))
    assert promtool("check", "rules", broken).returncode != 0


def test_each_alert_fires_on_its_fault_and_on_nothing_else(promtool: Promtool) -> None:
    result = promtool("test", "rules", TESTS)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("instead", ["vector(1) > 2", "vector(1)"], ids=["never", "always"])
def test_a_rule_that_fires_never_or_always_fails_its_test(instead: str, promtool: Promtool, tmp_path: Path) -> None:
    """Each by itself, in a copy of all tests that has no other rule and no other test."""
    (rules,), (tests,) = parse(RULES.read_text()), parse(TESTS.read_text())
    files = []
    for rule in alerts():
        own = [test for test in tests["tests"] if test["name"].split()[0].rstrip(",") == rule["alert"]]
        assert own
        place = tmp_path / f"{rule['alert']}.rules.yaml"
        place.write_text(yaml.safe_dump({"groups": [rules["groups"][0] | {"rules": [rule | {"expr": instead}]}]}))
        files.append(tmp_path / f"{rule['alert']}.test.yaml")
        files[-1].write_text(yaml.safe_dump(tests | {"rule_files": [place.name], "tests": own}))
    result = promtool("test", "rules", *files)
    verdicts = result.stdout.split("Unit Testing:")[1:]
    assert [verdict.split()[0] for verdict in verdicts] == [str(file) for file in files]
    assert not [verdict for verdict in verdicts if "SUCCESS" in verdict]


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    (document,) = parse(TESTS.read_text())
    tested = {test["name"].split()[0].rstrip(",") for test in document["tests"] if _fires(test)}
    assert tested == {rule["alert"] for rule in alerts()}


def _fires(test: dict[str, Any]) -> bool:
    fired = [one for one in test["promql_expr_test"] if one["exp_samples"]]
    quiet = [one for one in test["promql_expr_test"] if not one["exp_samples"]]
    return bool(fired and quiet)


def test_every_alert_says_how_bad_it_is_after_how_long_and_what_it_is() -> None:
    for rule in alerts():
        assert re.fullmatch(r"Pylb[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"[1-9]\d*m", rule["for"]), rule["alert"]
        assert rule["labels"] in [{"severity": severity} for severity in ("critical", "warning", "info")]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]


def test_every_alert_has_its_section_of_the_runbook_and_the_runbook_no_other() -> None:
    sections = dict(_sections(RUNBOOK.read_text()))
    assert list(sections) == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"  # GitHub's anchor of a heading
        for part in ("**Means:**", "**Look:**", "**Do:**"):
            assert sections[rule["alert"]].count(part) == 1, (rule["alert"], part)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        yield title, body


def test_the_commands_of_the_runbook_exist() -> None:
    verbs = set(re.findall(r"^## `pylb ([\w -]+)`$", (RUNBOOK.parent / "cli.md").read_text(), re.MULTILINE))
    called = re.findall(r"`pylb ((?:ctl |token )?[\w-]+)", RUNBOOK.read_text())
    assert len(called) > 20
    assert set(called) <= verbs


def test_every_metric_of_rules_tests_and_runbook_is_exported() -> None:
    for file in (RULES, TESTS, RUNBOOK):
        found = used(file.read_text())
        assert found
        assert found <= names(), file


def test_the_scrape_job_asks_the_port_that_its_header_opens() -> None:
    (document,) = parse(SCRAPE.read_text())
    (job,) = document["scrape_configs"]
    assert job["job_name"] == "pylb"
    assert f'job="{job["job_name"]}"' in json.dumps([rule["expr"] for rule in alerts()]).replace('\\"', '"')
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    opened = re.search(r'metrics: \{listen: "\*:(\d+)", allow: \[', SCRAPE.read_text())
    assert opened
    assert target == f"lb.example.net:{opened[1]}"
