"""The pictures of the README: `make screenshots`.

Real registry, feed and page; a quarter of an hour passes in a moment, and nobody dials the addresses that stand for nodes.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pylb.control.health.prober import ProbeRequest
from pylb.core.address import Address, Listen, Ports
from pylb.core.announcement import parse_native
from pylb.core.auth import Caller, Keyring, Token
from pylb.core.errors import Refused
from pylb.core.policy import AdminState, Policy, Rules, StaticFrontend, StaticServer
from pylb.core.session import SessionView
from pylb.core.table import Server
from pylb.forward.counters import FrontendCounters
from pylb.statuspage.timeseries import POINTS
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.ui.showcase import Showcase
from tests.ui.town import AGO, Town, peers, rules
from tests.ui.watching import Watcher

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = ROOT / "docs" / "img"
MOST_BYTES = 200_000
BIND = "127.0.7.1"  # nobody else's, so that the ports of a picture may be those of real services
SERVICES = (25, 80, 443, 587, 2222, 8883)
SECRET = "a-secret-of-more-than-22-characters"
NODE_A, NODE_B = "203.0.113.7", "203.0.113.8"


def token(name: str, *ports: int) -> Token:
    return Token(name, (SECRET,), Ports(tuple((port, port) for port in ports)))


PICTURES = ("light", "dark")
OF_MANY = ("status-5.png", "status-50.png", "status-500.png", "phone-50.png")
LEFT = {(8883, "mosquitto-0"): 31, (443, "node-b"): 2}  # sessions on a server that is drained, and on one that is down


class Quarter:
    """The last fifteen minutes, and the traffic that goes on. `ports`: where each of SERVICES listens."""

    def __init__(self, ports: Mapping[int, int]) -> None:
        self.ports = ports
        self.service = {port: service for service, port in ports.items()}
        self.traefik = token("traefik", ports[80], ports[443])
        self.mosquitto = token("mosquitto", ports[8883])
        self.mail = token("mail", ports[25], ports[587])
        self.ssh = StaticFrontend("ssh", Listen("tcp", BIND, ports[2222]), (StaticServer(Address(NODE_A, 30022)),))
        self.draw = random.Random(7)
        self.at = 0

    def traffic(self, counters: Mapping[Listen, FrontendCounters]) -> None:
        self.at += 1
        wave = 1 + 0.45 * math.sin(self.at / 90) + 0.15 * math.sin(self.at / 13)
        for listen, one in counters.items():
            service = self.service[listen.port]
            level = {443: 38.0, 80: 4.0, 8883: 9.0, 25: 1.2, 587: 0.8, 2222: 0.1}[service]
            new = int(level * wave * self.draw.uniform(0.9, 1.1) + self.draw.random())
            one.sessions_total += new
            one.sessions = int(level * wave * 6 + (310 if service == 8883 else 0))
            one.bytes_in += int(new * 2_400 * self.draw.uniform(0.8, 1.2))
            one.bytes_out += int(new * 31_000 * self.draw.uniform(0.9, 1.1))
            for _ in range(new):
                slow = self.draw.random() < 0.02
                one.connect_seconds.add(self.draw.uniform(0.004, 0.03) if slow else self.draw.uniform(0.0003, 0.0011))
            rest = {label: LEFT[service, label] for label in one.servers if (service, label) in LEFT}
            serving = one.servers.keys() - rest.keys()
            for label, server in one.servers.items():
                server.sessions = rest.get(label, (one.sessions - sum(rest.values())) // max(1, len(serving)))
                server.sessions_total += 0 if label in rest else new // len(serving)

    def sessions(self) -> list[SessionView]:
        draw = random.Random(11)
        https, mqtt = (Listen("tcp", BIND, self.ports[service]) for service in (443, 8883))
        found = []
        for number in range(346):
            listen, name, server, port = (
                (mqtt, f"mosquitto-{mqtt.port}", "mosquitto-1", 30883)
                if number % 3
                else (https, f"traefik-{https.port}", "node-a", 30443)
            )
            place = Address(NODE_B if listen is mqtt else NODE_A, port)
            age, size = draw.uniform(1, 40_000), int(draw.paretovariate(0.6) * 2000)
            client = f"198.51.100.{draw.randrange(1, 255)}"
            view = SessionView(
                client,
                draw.randrange(32768, 60999),
                name,
                listen,
                server,
                place,
                "relaying",
                age,
                size // 7,
                size,
                f"{number:#x}",
            )
            found.append(view)
        return found


async def _answers(_question: ProbeRequest) -> str:
    """Whatever node is asked."""
    return "yes"


async def _announce(show: Showcase, token: Token, instance: str, ip: str, ports: dict[int, int], **more: object) -> None:
    frontends = [{"port": port, "target_port": target} for port, target in ports.items()]
    body = json.dumps({"frontends": frontends, "ttl": 60, **more}).encode()
    await show.registry.calls.announce(token.name, instance, parse_native(body), Caller(ip, token, "native"))


async def _quarter(show: Showcase, quarter: Quarter) -> None:
    ports, traefik, mosquitto, mail_pod = quarter.ports, quarter.traefik, quarter.mosquitto, quarter.mail
    web, mqtt = {ports[80]: 30080, ports[443]: 30443}, {ports[8883]: 30883}
    mail = {ports[25]: 30025, ports[587]: 30587}
    show.ago(seconds=780, clock=41)
    await show.registry.probe()
    await _announce(show, traefik, "node-a", NODE_A, web)
    await _announce(show, traefik, "node-b", NODE_B, web)
    await _announce(show, mail_pod, "mail-0", NODE_A, mail)
    show.ago(seconds=640, clock=41)
    await _announce(show, mosquitto, "mosquitto-0", NODE_A, mqtt)
    show.ago(seconds=402, clock=41)
    await _announce(show, mail_pod, "mail-0", NODE_B, mail)  # its pod is on another node now
    show.ago(seconds=333, clock=41)
    with pytest.raises(Refused, match=str(ports[443])):
        await _announce(show, mosquitto, "mosquitto-0", NODE_A, {ports[443]: 30443})
    show.ago(seconds=250, clock=38)
    await _announce(show, mosquitto, "mosquitto-1", NODE_B, mqtt)
    show.ago(seconds=236, clock=38)
    await show.registry.operator.set_admin(f"mosquitto-{ports[8883]}/mosquitto-0", AdminState.DRAIN)
    for clock, (token, instance, ip, frontends) in {
        31: (mail_pod, "mail-0", NODE_B, mail),
        17: (traefik, "node-a", NODE_A, web),
        12: (mosquitto, "mosquitto-0", NODE_A, mqtt),
        9: (traefik, "node-b", NODE_B, web),
        4: (mosquitto, "mosquitto-1", NODE_B, mqtt),
    }.items():
        show.ago(seconds=12, clock=clock)
        await _announce(show, token, instance, ip, frontends)
    lost = Listen("tcp", BIND, ports[443])
    server = next(one for one in show.registry.table.frontends[lost].servers if one.address.ip == NODE_B)
    _lose(show, lost, server)
    await asyncio.sleep(0.05)  # the table follows in a later turn of the loop
    for ago in range(POINTS, 0, -1):
        show.ago(seconds=ago, clock=ago)
        await show.sampler.sample()
    show.ago(seconds=0, clock=0)


def _save(shot: bytes, picture: Path) -> None:
    """In 256 colours: a third of the size, and nobody sees it."""
    from PIL import Image

    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
    assert picture.stat().st_size < MOST_BYTES


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [5, 50, 500])
def test_pictures_of_few_and_of_many_frontends(
    count: int, request: pytest.FixtureRequest, tmp_path: Path, browser: Browser
) -> None:
    """In the window of a desk and of a phone, light and dark; docs/status.md shows OF_MANY."""
    town = Town()
    made: dict[str, Any] = {"prepare": town.quarter, "ask": town.answers, "ago": AGO, "peers": peers if count == 50 else list}
    with Showcase(tmp_path, rules(count), town.traffic, **made) as show:
        for scheme, width, height in (("light", 1280, 900), ("dark", 390, 844)):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            watcher = Watcher(context.new_page())
            watcher.open(show.port)
            watcher.sees(watcher.page.locator("#frontends-count"), str(count))
            watcher.passes_updates(1)
            fits = "document.documentElement.scrollWidth === innerWidth"
            assert watcher.page.evaluate(fits), "something is wider than the window"
            picture = f"status-{count}.png" if width == 1280 else f"phone-{count}.png"
            wanted = request.config.getoption("--screenshots") and picture in OF_MANY
            _save(watcher.page.screenshot(animations="disabled"), (IMAGES if wanted else tmp_path) / picture)
            assert not watcher.complaints
            watcher.page.goto("about:blank")
            context.close()


def _lose(show: Showcase, listen: Listen, server: Server) -> None:
    for _ in range(3):
        show.registry.connect_ended(listen, server, "timeout")


@pytest.mark.timeout(120)
def test_the_pictures_of_the_readme(request: pytest.FixtureRequest, tmp_path: Path, browser: Browser) -> None:
    """Without --screenshots the first is made all the same, on ports anybody may open, and thrown away: so they can be made
    at any time."""
    wanted = request.config.getoption("--screenshots")
    folder = IMAGES if wanted else tmp_path
    quarter = Quarter({service: service if wanted else free_port() for service in SERVICES})
    static = Rules((quarter.ssh,), Policy(bind=BIND))
    keyring = Keyring((quarter.traefik, quarter.mosquitto, quarter.mail))

    async def prepare(show: Showcase) -> None:
        await _quarter(show, quarter)

    with Showcase(
        tmp_path, static, quarter.traffic, keyring=keyring, sessions=quarter.sessions, prepare=prepare, ask=_answers, ago=815.0
    ) as show:
        for scheme in PICTURES if wanted else PICTURES[:1]:
            context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            watcher = Watcher(context.new_page())
            watcher.open(show.port)
            watcher.sees(watcher.page.locator("#sentence"), f"traefik-{quarter.ports[443]} lost 203.0.113.8:30443")
            watcher.page.get_by_role("button", name="Show").click()
            watcher.sees(watcher.page.locator("#sessions-count"), "the first 100 of 346")
            watcher.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            shot = watcher.page.screenshot(full_page=True, animations="disabled")
            picture = folder / f"status-{scheme}.png"
            _save(shot, picture)
            watcher.page.goto("about:blank")
            context.close()
