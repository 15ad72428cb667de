"""The tables of the status page: what is in a record, and what of it is told again."""

from dataclasses import replace

from pylb.control.views import STATIC, FrontendView, Holder, RegistrationView, ServerView
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, ProxyProtocol, SourceLimits
from pylb.core.registration import FrontendRequest
from pylb.core.table import Frontend
from pylb.statuspage.records import changed, frontend_record, limits, registration_key, registration_record, server_record
from pylb.statuspage.timeseries import Rate
from pylb.workers.sampler import FrontendSum

WEB = FrontendView(Frontend("web", Listen("tcp", "*", 443), Policy(), ()), ())
_POD = Address("10.0.0.7", 30443)
VIEW = ServerView("web", WEB.listen, "pod-1", _POD, 1, ProxyProtocol.NONE, 0, "up", True, "yes", "", "", ())


def person(**given: object) -> RegistrationView:
    wanted = (FrontendRequest(443, 30443),)
    view = RegistrationView("app", "web", "pod-1", "fresh", "10.0.0.7", wanted, 60.0, 41.0, 1e9, 19.0, False, 81.0, 141.0)
    return replace(view, **given)  # type: ignore[arg-type]


def test_only_the_fields_that_differ_are_told_again() -> None:
    before = frontend_record(WEB, "healthy", "", FrontendSum(1, 10), Rate())
    after = frontend_record(WEB, "healthy", "", FrontendSum(2, 11), Rate(1.0))
    assert changed(before, after) == {"sessions": 2, "total": 11, "rate": 1.0}
    assert changed(after, after) == {}
    assert changed({}, after) == after


def test_a_registration_stands_still_from_one_beat_to_the_next() -> None:
    """Its times are moments of a clock: an age would be another one in each message."""
    first, later = registration_record(person()), registration_record(person(expires_in=40.0, last_seen_ago=20.0))
    assert first == later
    assert (first["seen_at"], first["ends_at"], first["ttl"]) == (81.0, 141.0, 60.0)


def test_a_server_names_its_registrations_by_their_keys() -> None:
    native, legacy = person(), person(legacy=True, instance="")
    held_by = (Holder(native.key, "web"), Holder(legacy.key, "web"), Holder(native.key, "web", displaced=True), STATIC)
    assert server_record(replace(VIEW, held_by=held_by), 0, None, FrontendSum(), 0.0)["held_by"] == [
        [registration_key(native), ""],
        [registration_key(legacy), ""],
        ["app/web/pod-1", "until its new address has answered"],
        ["static", ""],
    ]
    assert registration_key(legacy) == "app/web (legacy) 443"


def test_only_limits_that_are_set_are_shown() -> None:
    assert limits(Policy()) == {}
    assert limits(Policy(max_connections=100, limits=SourceLimits(rate=50))) == {"connections": 100, "rate": 50}
