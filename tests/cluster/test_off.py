"""Whoever has one balancer does not pay for several."""

from tests.support.processes import run_python


def test_nothing_of_it_is_loaded_by_pylb_without_a_cluster() -> None:
    loaded = run_python(
        """
        import sys, pylb.app.app, pylb.app.run, pylb.cli.main
        print(*sorted(name for name in sys.modules if name.startswith(("pylb.cluster", "pylb.core.merge"))))
        """
    )
    assert loaded.split() == []
