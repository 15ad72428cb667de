"""What a run prints and keeps."""

import json

from bench import report
from bench.figures import WARM_UP, Sample
from bench.scenarios import QUICK


def run_of(*samples: Sample, failures: tuple[str, ...] = ()) -> report.Run:
    return report.Run(
        command="python -m bench",
        started="2026-01-02T03:04:05Z",
        rounds=2,
        targets=list(dict.fromkeys(sample.target for sample in samples)),
        effort=QUICK,
        network="loopback",
        machine=report.machine(),
        versions={},
        failures=failures,
        samples=samples,
    )


def bulk(target: str, turn: int, rate: float, errors: int = 0, **more: float) -> Sample:
    return Sample("bulk", target, turn, {"gb_per_second": rate, **more}, errors)


def row(text: str, target: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {target} ")]
    return line.split()


def test_the_table_shows_the_median_and_the_ratio_to_haproxy_with_its_spread():
    table = report.tables(
        run_of(
            bulk("haproxy", WARM_UP, 50.0),
            bulk("haproxy", 1, 1.0, cpu_s_per_gb=1.0),
            bulk("haproxy", 2, 2.0, cpu_s_per_gb=1.0),
            bulk("pylb", WARM_UP, 1.0),
            bulk("pylb", 1, 1.5, cpu_s_per_gb=0.5),
            bulk("pylb", 2, 4.0, cpu_s_per_gb=0.25),
        )
    )

    assert row(table, "pylb") == ["pylb", "2.75", "1.75", "(1.50..2.00)", "0.375", "0.38", "(0.25..0.50)"]
    assert row(table, "haproxy") == ["haproxy", "1.50", "1", "1.000", "1"]


def test_a_target_without_a_process_has_dashes_for_its_cpu():
    table = report.tables(run_of(bulk("direct", 1, 6.0), bulk("haproxy", 1, 2.0, cpu_s_per_gb=1.0)))

    assert row(table, "direct") == ["direct", "6.00", "3.00", "(3.00..3.00)", "-", "-"]


def test_without_haproxy_there_are_no_ratios():
    table = report.tables(run_of(bulk("nginx", 1, 2.0, cpu_s_per_gb=1.0)))

    assert row(table, "nginx") == ["nginx", "2.00", "1.000"]
    assert "x haproxy" not in table


def test_requests_that_failed_are_said_below_the_table():
    table = report.tables(run_of(bulk("nginx", 1, 2.0, errors=3), bulk("nginx", 2, 2.0, errors=4)))

    assert "! nginx: 7 requests failed" in table


def test_what_could_not_be_measured_is_said_at_the_end():
    table = report.tables(run_of(bulk("nginx", 1, 2.0), failures=("bulk, pylb, round 1: pylb ended with code 1",)))

    assert table.endswith("could not be measured:\n  ! bulk, pylb, round 1: pylb ended with code 1")


def test_the_json_keeps_every_sample_as_measured_with_the_machine_and_the_effort(tmp_path):
    run = run_of(bulk("haproxy", WARM_UP, 1.23456789), bulk("haproxy", 1, 2.0))

    path = report.save(run, tmp_path / "deep" / "run.json")

    kept = json.loads(path.read_text())
    assert [sample["metrics"]["gb_per_second"] for sample in kept["samples"]] == [1.23456789, 2.0]
    assert kept["machine"]["cores"] >= 1
    assert kept["effort"]["idle_sessions"] == QUICK.idle_sessions


def test_by_default_a_run_is_kept_under_its_time_among_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    assert report.save(run_of(bulk("haproxy", 1, 2.0)), None) == tmp_path / "2026-01-02T030405Z.json"
