"""A real kube-apiserver with its etcd, on loopback: only these two, no kubelet and no controller-manager.

PYLB_KUBE_APISERVER names the binary (docs/kubernetes.md says how anybody builds it); etcd is Debian's etcd-server.
"""

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.peers import missing, need
from tests.support.ports import free_ports
from tests.support.waiting import eventually

START = 60.0  # seconds: 2.5 s on an idle machine
ADMIN, CONTROLLER = "admin-secret", "controller-secret"
HOST = "127.0.0.1"
LISTS = {"Service": "services", "Node": "nodes", "Namespace": "namespaces", "ClusterRole": "clusterroles"}


class KubernetesError(AssertionError):
    def __init__(self, status: int, document: Any) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status


class ApiServer:
    """Tokens: ADMIN may do everything, CONTROLLER (user `pylb-controller`) only what RBAC grants."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self.port, etcd, etcd_peer = free_ports(3)
        self._etcd_url = f"http://{HOST}:{etcd}"
        self._etcd_peer = f"http://{HOST}:{etcd_peer}"
        self.ca = folder / "certs" / "apiserver.crt"
        self.token = folder / "controller.token"
        self.token.write_text(CONTROLLER)
        (folder / "tokens.csv").write_text(f'{ADMIN},admin,1,"system:masters"\n{CONTROLLER},pylb-controller,2\n')
        openssl = need("openssl")
        subprocess.run([openssl, "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def start(self) -> None:
        if self._etcd is None:
            self._etcd = self._run(
                "etcd",
                *("--data-dir", str(self._folder / "etcd"), "--name", "test", "--log-level", "error"),
                *("--listen-client-urls", self._etcd_url, "--advertise-client-urls", self._etcd_url),
                *("--listen-peer-urls", self._etcd_peer, "--initial-advertise-peer-urls", self._etcd_peer),
                *("--initial-cluster", f"test={self._etcd_peer}", "--unsafe-no-fsync"),
            )
        key = str(self._folder / "sa.key")
        self._server = self._run(
            self._binary,
            *("--etcd-servers", self._etcd_url, "--bind-address", HOST, "--advertise-address", HOST),
            *("--secure-port", str(self.port), "--insecure-port", "0", "--cert-dir", str(self._folder / "certs")),
            *("--service-cluster-ip-range", "10.0.0.0/20", "--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", key, "--service-account-signing-key-file", key),
            *("--token-auth-file", str(self._folder / "tokens.csv"), "--authorization-mode", "RBAC"),
            *("--disable-admission-plugins", "ServiceAccount", "--etcd-compaction-interval", "0"),
        )
        eventually(lambda: self.call("GET", "/api/v1/namespaces/default"), within=START, what="the API server is ready")

    def _run(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{Path(program).name}.log").open("ab") as log:
            return subprocess.Popen([program, *args], stdout=log, stderr=log, cwd=self._folder, start_new_session=True)

    def kill(self) -> None:
        """Of the API server; etcd goes on."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(10)

    def freeze(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in (self._server, self._etcd):
            if process is not None:
                process.kill()
                process.wait(10)

    def compact(self) -> None:
        """Throw away the history up to now, as the API server does every five minutes."""
        etcdctl, environ = need("etcdctl"), {**os.environ, "ETCDCTL_API": "3"}
        command = [etcdctl, "--endpoints", self._etcd_url]
        found = subprocess.run([*command, "endpoint", "status", "-w", "json"], check=True, capture_output=True, env=environ)
        revision = json.loads(found.stdout)[0]["Status"]["header"]["revision"]
        subprocess.run([*command, "compact", str(revision)], check=True, capture_output=True, env=environ)

    # ------------------------------------------------------------ objects

    def call(self, method: str, path: str, document: Any = None, *, token: str = ADMIN) -> Any:
        """Raises KubernetesError, or OSError while it does not answer."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection(HOST, self.port, timeout=10, context=context)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        try:
            connection.request(method, path, None if document is None else json.dumps(document), headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()
        if answer.status >= 300:
            raise KubernetesError(answer.status, found)
        return found

    def node(self, name: str, internal: str, external: str = "", **labels: str) -> Any:
        addresses = [{"type": "InternalIP", "address": internal}]
        addresses += [{"type": "ExternalIP", "address": external}] if external else []
        self.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        return self.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses}})

    def service(self, name: str, *ports: int, namespace: str = "default", annotations: Any = None, **spec: Any) -> Any:
        listed = [{"name": f"p{port}", "port": port, "protocol": "TCP"} for port in ports]
        meta = {"name": name, "annotations": annotations or {}}
        document = {"metadata": meta, "spec": {"type": "LoadBalancer", "ports": listed, **spec}}
        return self.call("POST", f"/api/v1/namespaces/{namespace}/services", document)

    def shown(self, name: str, namespace: str = "default") -> Any:
        """`status.loadBalancer.ingress` of a Service."""
        found = self.call("GET", f"/api/v1/namespaces/{namespace}/services/{name}")
        return found["status"]["loadBalancer"].get("ingress")

    def events(self, namespace: str = "default") -> list[tuple[str, str, str]]:
        """(Service, reason, message)"""
        found = self.call("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return [(one["involvedObject"]["name"], one["reason"], one["message"]) for one in found]

    def clear(self) -> None:
        for path in ("/api/v1/nodes", "/api/v1/namespaces/default/events"):
            self.call("DELETE", path)
        for one in self.call("GET", "/api/v1/services")["items"]:
            meta = one["metadata"]
            if meta["name"] != "kubernetes":
                self.call("DELETE", f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}")


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    binary = os.environ.get("PYLB_KUBE_APISERVER", "")
    if not binary or shutil.which(binary) is None:
        missing("PYLB_KUBE_APISERVER names no kube-apiserver (docs/kubernetes.md)")
    need("etcd")
    server = ApiServer(binary, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
