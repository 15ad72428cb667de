"""What pylb needs of systemd, played by hand: the notify socket, the fd store, and starting a unit with what is in it."""

import array
import os
import socket
import sys
import threading
from pathlib import Path

from tests.app.instance import Instance
from tests.support.processes import Process

# Takes the descriptors from a socket, puts them where sd_listen_fds(3) says, and becomes the program.
_LAUNCHER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    _, found, _, _ = socket.recv_fds(sock, 16, 250)
found = [os.dup(fd) if fd < 3 + len(found) else fd for fd in found]
high = [__import__("fcntl").fcntl(fd, __import__("fcntl").F_DUPFD, 300) for fd in found]
for place, fd in enumerate(high, 3):
    os.dup2(fd, place)
os.closerange(3 + len(high), 1000)
os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Systemd:
    """The other end of $NOTIFY_SOCKET. `store` holds (name, descriptor)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        self.sock.settimeout(15)
        self.store: list[tuple[str, int]] = []

    @property
    def environ(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path)}

    def close(self) -> None:
        self.sock.close()
        for _, fd in self.store:
            os.close(fd)

    def hear(self) -> dict[str, str]:
        """The next word; descriptors are kept and forgotten as it says."""
        data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(4 * 8))
        said = dict(line.split("=", 1) for line in data.decode().splitlines())
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        if "FDSTORE" in said:
            self.store += [(said["FDNAME"], fd) for fd in fds]
        elif "FDSTOREREMOVE" in said:
            for name, fd in self.store:
                if name == said["FDNAME"]:
                    os.close(fd)
            self.store = [one for one in self.store if one[0] != said["FDNAME"]]
        return said

    def silence(self) -> None:
        """Returns once nothing was said for as long as its timeout is."""
        try:
            while self.hear():
                pass
        except TimeoutError:
            return

    def until(self, key: str) -> dict[str, str]:
        while key not in (said := self.hear()):
            pass
        return said

    def start(self, pylb: Instance) -> Process:
        """With all that is in the store, as at a restart of the unit."""
        path = self._folder / f"store-{len(os.listdir(self._folder))}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def give() -> None:
            sock, _ = listener.accept()
            with sock:
                socket.send_fds(sock, [b"x"], [fd for _, fd in self.store])
            listener.close()

        thread = threading.Thread(target=give)
        thread.start()
        argv = (sys.executable, "-c", _LAUNCHER, str(path), *pylb.command("run"))
        process = pylb.launch(argv=argv, env=self.environ)
        thread.join(10)
        return process
