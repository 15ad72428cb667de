"""A range of `bind` becomes one frontend, where nothing but the ports differs."""

from typing import Any

import pytest
import yaml

from pylb.config import parse
from pylb.haproxy.translate import Translation, translate


def imported(text: str) -> Translation:
    found = translate([("haproxy.cfg", text)])
    parse(found.text, "pylb.yaml")
    return found


def frontends(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(imported(text).text)["frontends"]
    return found


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("192.0.2.7:21", "192.0.2.7:21"),
        ("192.0.2.7", "192.0.2.7:20000-20099"),
        ("192.0.2.7:+10000", "192.0.2.7:30000-30099"),
        ("[2001:db8::7]:-10000", "[2001:db8::7]:10000-10099"),
        ("192.0.2.7:21 check port 2121", "192.0.2.7:21"),
    ],
)
def test_a_range_is_one_frontend_whose_servers_stay_or_follow(server: str, address: str) -> None:
    [found] = frontends(f"listen rtp\n bind 192.0.2.1:20000-20099\n server s {server}\n")
    assert (found["name"], found["listen"]) == ("rtp", "192.0.2.1:20000-20099")
    assert [one["address"] for one in found["servers"]] == [address]


def test_binds_that_follow_each_other_are_one_range_and_others_are_not() -> None:
    binds = "".join(f" bind {one}\n" for one in ("*:80", "*:81-82", "192.0.2.1:83", "*:84"))
    text = f"listen w\n{binds} server s 192.0.2.7:1\n"
    assert [(one["name"], one["listen"]) for one in frontends(text)] == [
        ("w", "0.0.0.0:80-82"),
        ("w-83", "192.0.2.1:83"),
        ("w-84", "0.0.0.0:84"),
    ]


def test_of_a_range_pylb_checks_only_a_port_that_is_named_so_the_others_stay_by_themselves() -> None:
    text = "listen w\n bind *:80-82\n server s 192.0.2.7 check\n"
    assert [one["listen"] for one in frontends(text)] == ["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82"]


def test_ports_with_clients_or_backends_of_their_own_stay_by_themselves() -> None:
    text = """
frontend w
  bind *:80-83
  acl third dst_port 82
  use_backend two if third
  default_backend one
backend one
  server s 192.0.2.7:1
backend two
  server s 192.0.2.7:1
"""
    assert [one["listen"] for one in frontends(text)] == ["0.0.0.0:80-81", "0.0.0.0:82", "0.0.0.0:83"]


def test_a_limit_counts_over_the_whole_range_as_in_haproxy() -> None:
    server = " server s 192.0.2.7:1 maxconn 9\n"
    assert not imported(f"listen w\n bind *:80-82\n maxconn 500\n{server}").differences
    assert len(imported(f"listen w\n bind *:80-82,*:90\n maxconn 500\n{server}").differences) == 2
