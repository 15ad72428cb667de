"""The benchmark of choosing runs and says what it says it says."""

import pytest

from bench import balance
from pylb.core.policy import Balance


@pytest.mark.parametrize("algorithm", list(Balance))
def test_each_algorithm_is_measured_and_its_busiest_server_known(algorithm: Balance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SESSIONS", 400)
    spent, made, busiest = balance.picks(algorithm, 4)
    assert spent > 0
    assert made > 0
    assert 1.0 <= busiest <= 4.0
    assert (busiest == 4.0) == (algorithm is Balance.FIRST)


def test_the_table_has_a_line_for_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "SESSIONS", 200)
    assert balance.main([]) == 0
    shown = capsys.readouterr().out
    for line in ("leastconn of 1,000", "source of 2", "first of 2", "access list of 10,000", "limits by source"):
        assert line in shown
