"""PROXY headers that come in: from a real haproxy and a real nginx in front of pylb, through to the app and the log."""

import json
from pathlib import Path

import pytest

from tests.support.balancer import NODEPORT, Balancer, connect, echo, greeting
from tests.support.netns import CLIENT, LB, Lab
from tests.support.peers import need
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

PORT, FRONT = 8443, 7443
HAPROXY = """
global
  log stdout format raw local0
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  bind {client}:{front}
  unique-id-format %{{+X}}o%ci-%cp
  default_backend pylb
backend pylb
  server pylb {lb}:{port} {send}
"""
NGINX = """
{module}
daemon off; pid {folder}/nginx.pid; error_log stderr; user root; worker_processes 1;
events {{ worker_connections 256; }}
stream {{ server {{ listen {client}:{front}{listen}; proxy_pass {lb}:{port}; proxy_protocol on; }} }}
"""


def serve_behind(balancer: Balancer, world: World, **proxy_protocol: object) -> None:
    lab = world.lab
    world.app(lab.a, "app", "1883/proxy")
    frontend = {
        "name": "web",
        "listen": f"*:{PORT}",
        "servers": [f"{lab.a.address}:{NODEPORT}"],
        "proxy_protocol": {"send": "v1", "accept_from": [f"{CLIENT}/32"], **proxy_protocol},
    }
    balancer.configure(frontends=[frontend], log={"format": "json"})
    balancer.start()


def logged(balancer: Balancer, client_port: int) -> dict[str, object]:
    def found() -> list[dict[str, object]]:
        lines = (line for line in balancer.running.text().splitlines() if '"code"' in line)
        return [one for one in map(json.loads, lines) if one["client_port"] == client_port]

    return eventually(found, what="the session is logged")[0]


@pytest.mark.parametrize(
    "send",
    ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id,cert-cn,ssl"],
    ids=["v1", "v2", "tlvs"],
)
def test_the_client_of_a_haproxy_in_front_is_the_client_everywhere(
    lab: Lab, balancer: Balancer, world: World, tmp_path: Path, send: str
) -> None:
    serve_behind(balancer, world)
    config = tmp_path / "front.cfg"
    config.write_text(HAPROXY.format(client=CLIENT, front=FRONT, lb=LB, port=PORT, send=send))
    world.serve("haproxy", (need("haproxy"), "-db", "-f", str(config)), lab.client, (CLIENT, FRONT))
    with connect(lab.b, FRONT, CLIENT) as sock:
        ip, port = sock.getsockname()
        assert greeting(sock)[2:] == [ip, str(port)]
        assert echo(sock) == b"ping"
    record = logged(balancer, port)
    assert (record["client"], record["code"], record["bytes_in"]) == (ip, "--", 4)


def nginx_in_front(world: World, folder: Path, listen: str = "") -> None:
    """Of pylb, on the client's machine. `listen`: what stands behind its address."""
    need("nginx")
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    line = f"load_module {module};" if module.exists() else ""
    config = folder / "front.conf"
    places = {"client": CLIENT, "front": FRONT, "listen": listen, "lb": LB, "port": PORT}
    config.write_text(NGINX.format(module=line, folder=folder, **places))
    world.serve("nginx", (need("nginx"), "-e", "stderr", "-c", str(config)), world.lab.client, (CLIENT, FRONT))


def test_the_client_of_an_nginx_in_front_is_the_client_everywhere(
    lab: Lab, balancer: Balancer, world: World, tmp_path: Path
) -> None:
    serve_behind(balancer, world)
    nginx_in_front(world, tmp_path)
    with connect(lab.b, FRONT, CLIENT) as sock:
        ip, port = sock.getsockname()
        assert greeting(sock)[2:] == [ip, str(port)]
        assert echo(sock) == b"ping"
    assert logged(balancer, port)["client"] == ip


def test_an_ipv6_client_of_an_nginx_on_an_ipv4_socket_is_the_client_everywhere(
    lab: Lab, balancer: Balancer, world: World, tmp_path: Path
) -> None:
    """It has the client by another proxy's header, and where that connected to by its own socket: TCP6, and one address of
    each family."""
    serve_behind(balancer, world)
    nginx_in_front(world, tmp_path, f" proxy_protocol; set_real_ip_from {lab.b.address}")
    with connect(lab.b, FRONT, CLIENT) as sock:
        sock.sendall(b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n")
        assert greeting(sock)[2:] == ["2001:db8::1", "4711"]
        assert echo(sock) == b"ping"
    assert logged(balancer, 4711)["client"] == "2001:db8::1"


def test_who_is_not_trusted_is_who_it_is(lab: Lab, balancer: Balancer, world: World) -> None:
    serve_behind(balancer, world)
    with connect(lab.b, PORT) as sock:
        ip, port = sock.getsockname()
        sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert greeting(sock)[2:] == [ip, str(port)]


def test_a_trusted_proxy_that_sends_none_is_refused(lab: Lab, balancer: Balancer, world: World) -> None:
    serve_behind(balancer, world, accept_timeout="300ms")
    with connect(lab.client, PORT) as silent, connect(lab.client, PORT) as wrong:
        wrong.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionResetError):
            wrong.recv(1)
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
        codes = [logged(balancer, sock.getsockname()[1])["code"] for sock in (wrong, silent)]
    assert codes == ["PR", "cR"]
