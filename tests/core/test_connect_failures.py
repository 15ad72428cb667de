"""One list of the reasons of a failed connect, for the forwarding path and for probes."""

import ast
import errno
from pathlib import Path

import pytest

from pylb.core.connect_failures import failure_name

ROOT = Path(__file__).parents[2] / "pylb"


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ("ECONNREFUSED ECONNRESET ECONNABORTED EPIPE", "refused"),
        ("ETIMEDOUT", "timeout"),
        ("EHOSTUNREACH EHOSTDOWN ENETUNREACH ENETDOWN ENONET EACCES EPERM EINVAL EPROTO", "unreachable"),
        ("EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EMFILE ENFILE ENOBUFS ENOMEM", "resource"),
    ],
)
def test_every_errno_of_the_manuals_has_its_word(names: str, word: str) -> None:
    assert {failure_name(getattr(errno, name)) for name in names.split()} == {word}


def test_an_unknown_errno_has_the_same_word_everywhere() -> None:
    assert {failure_name(code) for code in (errno.EXDEV, errno.EIO, 12345)} == {"unreachable"}
    for path in ("forward/sockets.py", "forward/dial.py", "control/health/prober.py"):
        named = {node.attr for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Attribute)}
        assert "ECONNREFUSED" not in named, f"{path} has a list of its own again"
