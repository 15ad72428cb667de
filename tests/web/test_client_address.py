"""Who calls: behind trusted proxies, and with which secret."""

from ipaddress import ip_network

import pytest

from pylb.core.errors import Code, Refused
from pylb.web.client_address import bearer, caller_ip

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # not a proxy of ours: it may write what it likes
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "192.0.2.66, 198.51.100.1", "198.51.100.1"),  # the left one was the client's own invention
        ("10.0.0.1", "198.51.100.1, 10.0.0.2 , 10.0.0.3", "198.51.100.1"),
        ("10.0.0.1", "not an address, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("2001:db8:1::1", "::ffff:198.51.100.1", "198.51.100.1"),
    ],
)
def test_the_rightmost_address_that_is_no_proxy_of_ours_calls(peer: str, forwarded: str, expected: str) -> None:
    assert caller_ip(peer, {"x-forwarded-for": forwarded}, TRUSTED) == expected


@pytest.mark.parametrize("forwarded", ["unknown", "198.51.100.1:443", "198.51.100.1,", "fe80::1%eth0"])
def test_an_entry_of_a_proxy_that_is_no_address_is_refused_not_skipped(forwarded: str) -> None:
    with pytest.raises(Refused) as refused:
        caller_ip("10.0.0.1", {"x-forwarded-for": forwarded}, TRUSTED)
    assert refused.value.code is Code.INVALID


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer abc-._~+/=", "abc-._~+/="),
        ("bearer p@ss!word", "p@ss!word"),
        ("", ""),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Bearer  two-spaces", ""),
        ("Bearer a b", ""),
        ("Bearer a, Bearer b", ""),  # the header twice
        ("Basic YTpi", ""),
        (" Bearer a", ""),
        ("Bearer ä", ""),
    ],
)
def test_bearer_is_parsed_strictly(header: str, secret: str) -> None:
    assert bearer({"authorization": header}) == secret
    assert bearer({}) == ""
