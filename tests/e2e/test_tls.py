"""TLS passes through untouched, with nginx in Traefik's place; PROXY headers as nginx and HAProxy read them."""

import http.client
import socket
import ssl
from hashlib import sha256

import pytest

from tests.support.balancer import NODEPORT, WEBHOOK, Balancer, ask, connect
from tests.support.certificate import Certificate, self_signed
from tests.support.netns import CLIENT, CLIENT6, LB, LB6, Lab
from tests.support.peers import need
from tests.support.processes import EndedError
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

HOST = "app.example.net"
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; user root;
events {{ worker_connections 64; }}
http {{
  log_format who "$proxy_protocol_addr $proxy_protocol_port $request"; access_log {folder}/access.log who;
  client_body_temp_path {folder}/nginx; proxy_temp_path {folder}/nginx; fastcgi_temp_path {folder}/nginx;
  uwsgi_temp_path {folder}/nginx; scgi_temp_path {folder}/nginx;
  ssl_certificate {certificate}; ssl_certificate_key {key};
  server {{ listen 443 ssl; return 200 "plain $remote_addr\\n"; }}
  server {{ listen 8443 ssl proxy_protocol; return 200 "$proxy_protocol_addr $proxy_protocol_port\\n"; }}
}}
"""
# An oracle for the bytes: HAProxy's accept-proxy refuses a header that is not to the letter.
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend oracle
  bind 0.0.0.0:8000 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]"
"""


@pytest.fixture
def nginx(world: World) -> Certificate:
    """On node A: 443 behind NodePort 30443, 8443 with PROXY protocol behind 30444. Returns its certificate."""
    folder, node = world.folder, world.lab.a
    made = self_signed(folder, HOST)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, certificate=made.certificate, key=made.key))
    world.serve("nginx", (need("nginx"), "-e", "stderr", "-c", str(config)), node.pod, ("127.0.0.1", 443))
    node.nodeport(30443, 443)
    node.nodeport(30444, 8443)
    return made


def get(sock: socket.socket) -> str:
    """The body of a GET over a connection that is there already."""
    connection = http.client.HTTPConnection(HOST)
    connection.sock = sock
    connection.request("GET", "/", headers={"Connection": "close"})
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode().strip()


def over_tls(sock: socket.socket, certificate: Certificate) -> ssl.SSLSocket:
    """Verified against that one certificate and the host name."""
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    return context.wrap_socket(sock, server_hostname=HOST)


def test_the_client_sees_the_certificate_of_the_server_end_to_end(
    lab: Lab, pylb: Balancer, world: World, nginx: Certificate
) -> None:
    world.phone(lab.a, "traefik", "pod-a", "443:30443")

    with connect(lab.client, 443) as sock, over_tls(sock, nginx) as tls:
        seen = tls.getpeercert(binary_form=True)
        assert seen is not None
        assert sha256(seen).hexdigest() == nginx.fingerprint
        assert get(tls) == f"plain {LB}"


def test_a_phone_home_calls_over_tls_and_trusts_pylbs_own_certificate_only(lab: Lab, balancer: Balancer, world: World) -> None:
    balancer.configure(webhook={"listen": f"*:{WEBHOOK}", "tls": "self-signed"})
    balancer.start()
    world.app(lab.a, "app")
    secure = {"PYLB_URL": f"https://{LB}:{WEBHOOK}", "PYLB_CA": str(balancer.state_dir / "tls" / "cert.pem")}

    phone = world.phone(lab.a, "app", "pod-a", f"8443:{NODEPORT}", **secure)

    assert ask(lab.client, 8443)[0] == "app"
    assert "plain http" not in phone.process.text()
    with pytest.raises(EndedError, match="certificate not trusted"):
        world.once(lab.b, "app", "pod-b", f"8443:{NODEPORT}", **secure | {"PYLB_CA": ""})
    assert [one["instance"] for one in balancer.registrations()] == ["pod-a"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_logs_the_clients_own_address_from_the_proxy_header(
    pylb: Balancer, world: World, nginx: Certificate, version: str
) -> None:
    lab = world.lab
    world.phone(lab.a, "traefik", "pod-a", f"443:30444/proxy={version}")

    with connect(lab.client, 443) as sock:
        port = sock.getsockname()[1]
        with over_tls(sock, nginx) as tls:
            assert get(tls) == f"{CLIENT} {port}"

    line = f"{CLIENT} {port} GET / HTTP/1.1\n"
    eventually(lambda: (world.folder / "access.log").read_text() == line, what="the line in nginx's log")


@pytest.mark.parametrize(("host", "client"), [(LB, CLIENT), (LB6, CLIENT6)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_reads_both_ends_of_the_clients_connection_from_the_proxy_header(
    pylb: Balancer, world: World, version: str, host: str, client: str
) -> None:
    lab = world.lab
    oracle(world)
    frontend = {"port": 8080, "target_port": 30808, "proxy_protocol": version}
    assert pylb.call("PUT", "web/pod-a", {"frontends": [frontend]}, at=lab.a).status == 201

    with connect(lab.client, 8080, host) as sock:
        port = sock.getsockname()[1]
        assert get(sock) == f"{client} {port} {host} 8080"


def test_haproxy_as_the_oracle_refuses_a_connection_without_a_header(lab: Lab, pylb: Balancer, world: World) -> None:
    oracle(world)
    pylb.register("web/pod-a", {8080: 30808}, at=lab.a)

    with connect(lab.client, 8080) as sock, pytest.raises((http.client.HTTPException, ConnectionResetError)):
        get(sock)


def oracle(world: World) -> None:
    """HAProxy on node A, behind NodePort 30808."""
    config = world.folder / "haproxy.cfg"
    config.write_text(HAPROXY)
    node = world.lab.a
    world.serve("haproxy", (need("haproxy"), "-db", "-f", str(config)), node.pod, ("127.0.0.1", 8000))
    node.nodeport(30808, 8000)
