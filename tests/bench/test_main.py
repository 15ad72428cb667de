"""The command as a user runs it."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import processes, targets
from bench.processes import BenchError
from bench.scenarios import DEFAULT_SCENARIOS, QUICK, SCENARIOS

ARGV = [sys.executable, "-m", "bench", "--quick", "--scenarios", "keepalive", "--targets"]


@pytest.mark.parametrize("option", ["--scenarios", "--targets"])
def test_an_unknown_name_is_refused_with_the_names_there_are(option, capsys):
    with pytest.raises(SystemExit) as end:
        command.arguments().parse_args([option, "bulk,haproxy,nonsense"])

    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert "choose from" in said


def test_the_help_explains_every_scenario_and_every_target():
    text = command.arguments().format_help()

    assert all(f"  {name} " in text for name in [*SCENARIOS, *targets.ABOUT])
    assert set(DEFAULT_SCENARIOS) <= set(SCENARIOS)


def test_missing_programs_are_named_together_with_their_debian_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BenchError, match="haproxy") as caught:
        targets.require(targets.requirements(["direct", "pylb", "haproxy", "nginx"]))

    assert "sudo apt install" in str(caught.value)
    assert all(package in str(caught.value) for package in ("nginx", "libnginx-mod-stream", "wrk", "haproxy"))


def test_only_what_the_chosen_targets_need_is_required():
    assert targets.requirements(["direct", "pylb"]).keys() - {""} == {"nginx", "wrk"}


@pytest.mark.e2e
def test_a_target_that_fails_does_not_cost_the_figures_of_the_others(wiring, monkeypatch, peer):
    peer("nginx")
    broken = replace(targets.KINDS["haproxy"], command=lambda _: [sys.executable, "-c", "exit('no luck')"])
    monkeypatch.setitem(targets.KINDS, "haproxy", broken)

    with targets.origin(wiring):
        bulk = [SCENARIOS["bulk"]]
        samples, failures = command.measure(bulk, ["haproxy", "direct"], range(1, 2), QUICK, wiring)

    assert [sample.target for sample in samples] == ["direct"]
    assert len(failures) == 1
    assert failures[0].startswith("bulk, haproxy, round 1: haproxy ended with code 1")
    assert "no luck" in failures[0]


@pytest.mark.e2e
def test_a_quick_run_measures_direct_and_haproxy_and_keeps_the_samples(tmp_path, peer):
    for program in ("haproxy", "nginx", "wrk"):
        peer(program)
    file = tmp_path / "run.json"

    done = subprocess.run([*ARGV, "direct,haproxy", "--json", file], check=False, capture_output=True, text=True, timeout=50)

    assert done.returncode == 0, done.stderr
    kept = json.loads(file.read_text())
    by_target = {sample["target"]: sample for sample in kept["samples"]}
    assert by_target["haproxy"]["metrics"]["requests_per_second"] > 0
    assert by_target["haproxy"]["metrics"]["cpu_us_per_request"] > 0
    assert "cpu_us_per_request" not in by_target["direct"]["metrics"]
    assert kept["versions"]["haproxy"].startswith("HAProxy version")
    assert "keepalive: HTTP requests" in done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_every_process_it_started(number, peer):
    for program in ("haproxy", "nginx", "wrk"):
        peer(program)
    with subprocess.Popen([*ARGV, "direct,haproxy"], stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stderr is not None
        assert "requests/s" in run.stderr.readline()  # one target is done, the other one is on its way
        family = processes.family(run.pid)
        run.send_signal(number)
        said = run.stderr.read()

    assert run.returncode == 130
    assert "interrupted" in said
    assert len(family) >= 4  # the bench, the origin with its worker, the bulk source
    left = [pid for pid in family if Path(f"/proc/{pid}").exists()]
    assert [Path(f"/proc/{pid}/cmdline").read_text() for pid in left] == []
