"""The real phone-home, as it runs in a pod."""

from collections.abc import Mapping

from tests.support.balancer import TOKENS, WEBHOOK
from tests.support.netns import LB, Namespace
from tests.support.processes import Process, Processes, python


class Phone:
    """`python -m phonehome [verb]` in a pod; it is registered when this returns."""

    def __init__(
        self,
        processes: Processes,
        pod: Namespace,
        *verb: str,
        name: str,
        instance: str,
        frontends: str,
        env: Mapping[str, str],
    ) -> None:
        self._processes = processes
        self._pod = pod
        self._env = {
            "PYLB_URL": f"http://{LB}:{WEBHOOK}",
            "PYLB_TOKEN": TOKENS["app"],
            "PYLB_NAME": name,
            "PYLB_INSTANCE": instance,
            "PYLB_FRONTENDS": frontends,
            "PYLB_ADDRESS": "source",
            "PYLB_TTL": "10s",
        } | dict(env)
        self.process = self._start(*verb)
        self.process.has_said("registered: ")

    def _start(self, *verb: str) -> Process:
        name = "-".join(("phonehome", self._env["PYLB_INSTANCE"], *verb))
        return self._processes.start(name, python("phonehome", *verb), at=self._pod, env=self._env)

    def goodbye(self) -> None:
        """Send SIGTERM: it announces `draining` before it ends."""
        assert self.process.terminate() == 0
        assert "draining" in self.process.text()

    def drain(self) -> None:
        """Run `phonehome drain`, as preStop does: the running phone-home announces `draining` and continues."""
        assert self._start("drain").wait() == 0

    def kill(self) -> None:
        self.process.kill()
