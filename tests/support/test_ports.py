"""Nothing that runs beside a test may take a port that was given to it: tests/bench starts whole benchmarks."""

from bench import configs, targets
from tests.support import ports


def test_no_share_of_the_tests_has_a_port_of_the_benchmarks() -> None:
    shares = range(ports._FIRST, ports._FIRST + ports._SHARES * ports._SIZE)
    ephemeral = 32768  # where net.ipv4.ip_local_port_range begins by default
    assert shares.stop <= ports._NODE_PORTS.stop < ports._NODE_PORTS.start < ephemeral
    for those in (targets.OWN_PORTS, configs.EXTRA_PORTS, configs.REGISTERED_PORTS):
        assert those.stop <= shares.start, those


def test_a_port_is_given_once_before_any_is_given_again() -> None:
    given = ports.free_ports(len(ports.PORTS) // 2)
    assert len(set(given)) == len(given)
    assert set(given) <= set(ports.PORTS)
