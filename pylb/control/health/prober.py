"""The questions to servers, over the network: a connect, or a conversation. Everything that talks to a server is here.

The loop is given an epoll of our own, not the socket: libuv ends a watch on POLLERR, which is what a refused connect raises,
and sock_connect of uvloop may never end (MagicStack/uvloop#378, #389).
"""

import asyncio
import errno
import select
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pylb.core.address import UDP, Address
from pylb.core.connect_failures import RESOURCE, failure_name
from pylb.core.health import MOST_ANSWER, NO_OBJECTION, SILENT, YES, conversation, judge
from pylb.core.policy import CONNECT, Check, ProxyProtocol, Step
from pylb.core.proxy_protocol import local_header
from pylb.core.table import Frontend, Server

# linux/in.h, linux/in6.h; the socket module has no names for them
_IP_RECVERR, _IPV6_RECVERR = 11, 25
OBJECTION = 0.5  # seconds for an ICMP message to come back: to a server that says nothing to a datagram


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A check of one server, or of all servers of a machine. Frontends that ask the same share the answer."""

    server: Address  # where its traffic goes; of a check with a port of its own, that port
    check: Check = CONNECT
    send_proxy: ProxyProtocol = ProxyProtocol.NONE
    timeout: float = 1.0  # seconds for the whole question

    @property
    def target(self) -> Address:
        return Address(self.server.ip, self.check.port or self.server.port, self.check.protocol(self.server.protocol))

    @property
    def hello(self) -> bytes:
        """The PROXY header that tells a server, on its traffic's port, that this connection is pylb's own."""
        return b"" if self.check.port else local_header(self.send_proxy)


def probe_request(frontend: Frontend, server: Server) -> ProbeRequest:
    """The check of a frontend's server. A check with a port of its own is the same for all servers of a machine: a node is
    asked once for its health, however many frontends have a server there."""
    policy, address = frontend.health(server), server.address
    check, port = policy.check, policy.check.port
    if port:
        return ProbeRequest(Address(address.ip, port, check.protocol(address.protocol)), check, timeout=policy.timeout)
    return ProbeRequest(address, check, server.send_proxy, policy.timeout)


Ask = Callable[[ProbeRequest], Awaitable[str]]


async def ask(question: ProbeRequest) -> str:
    """ "yes", "refused", "timeout", "unreachable", "wrong answer: …", or "resource" if the fault is pylb's.

    Over UDP also "unknown": nobody refused the datagram, and no answer was asked for.
    """
    target = question.target
    if target.protocol == UDP:
        return await _ask_by_datagrams(question)
    so_far: list[str] = []
    family = socket.AF_INET6 if target.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock, select.epoll(1) as epoll:
            epoll.register(sock, 0)
            async with asyncio.timeout(question.timeout):
                code = sock.connect_ex((target.ip, target.port))
                if code == errno.EINPROGRESS:
                    await _ready(epoll, sock, select.EPOLLOUT)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return failure_name(code) if code else await _converse(epoll, sock, question, so_far)
    except TimeoutError:
        return so_far[0] if so_far else SILENT
    except OSError as error:  # no socket available: nothing is known about the target, it is asked again later
        return RESOURCE if error.errno is None else failure_name(error.errno)


async def _ask_by_datagrams(question: ProbeRequest) -> str:
    """Each step is a datagram; a mere connect sends an empty one, which only a machine without the port refuses (ICMP)."""
    target = question.target
    family, level, option = (
        (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_RECVERR)
        if target.is_ipv6
        else (socket.AF_INET, socket.IPPROTO_IP, _IP_RECVERR)
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock, select.epoll(1) as epoll:
            sock.setsockopt(level, option, 1)  # else a machine that is gone (EHOSTUNREACH) says nothing
            epoll.register(sock, 0)
            async with asyncio.timeout(question.timeout):
                sock.connect((target.ip, target.port))
                return await _converse_by_datagrams(epoll, sock, question)
    except TimeoutError:
        return SILENT
    except OSError as error:
        return RESOURCE if error.errno is None else failure_name(error.errno)


async def _converse_by_datagrams(epoll: select.epoll, sock: socket.socket, question: ProbeRequest) -> str:
    """Raises OSError: an ICMP message came back."""
    check, hello, answer, answered = question.check, question.hello, b"", False
    for step in conversation(check, question.target) or (Step(),):
        if step.send or hello or not step.expect:
            sock.send(hello + step.send)
        hello = b""
        verdict, answer = judge(check, step, answer, ended=False)
        while verdict is None:
            await _ready(epoll, sock, select.EPOLLIN)
            answer += sock.recv(MOST_ANSWER)
            answered = True
            verdict, answer = judge(check, step, answer, ended=len(answer) >= MOST_ANSWER)
        if verdict != YES:
            return verdict
    if answered:
        return YES
    try:
        async with asyncio.timeout(min(OBJECTION, question.timeout / 2)):
            await _ready(epoll, sock, select.EPOLLIN)
    except TimeoutError:
        return NO_OBJECTION
    sock.recv(MOST_ANSWER)
    return YES


def at_most(count: int) -> Ask:
    """Like `ask`, with a limit of questions at a time. A question's timeout starts when its turn comes."""
    turns = asyncio.Semaphore(count)

    async def ask_in_turn(question: ProbeRequest) -> str:
        async with turns:
            return await ask(question)

    return ask_in_turn


async def _converse(epoll: select.epoll, sock: socket.socket, question: ProbeRequest, so_far: list[str]) -> str:
    """Send and expect step by step. Bytes after a step's text belong to the next step.

    `so_far` has the verdict in case no more comes: a replica that answers and stays connected is not silent.
    """
    check, unsaid, answer, gone = question.check, question.hello, b"", False
    for step in conversation(check, question.target) or (Step(),):
        try:
            await _say(epoll, sock, unsaid + step.send)
        except (ConnectionError, BlockingIOError):  # BlockingIOError: the send buffer is full from the start
            gone = True  # what it sent before that still counts
        unsaid = b""
        verdict, answer = judge(check, step, answer, ended=gone)
        while verdict is None:
            await _ready(epoll, sock, select.EPOLLIN)
            try:
                piece = sock.recv(MOST_ANSWER)
            except ConnectionError:
                piece = b""
            gone, answer = not piece, answer + piece
            so_far[:] = [found for found in (judge(check, step, answer, ended=True)[0],) if answer and found and found != YES]
            verdict, answer = judge(check, step, answer, ended=gone or len(answer) >= MOST_ANSWER)
        so_far.clear()
        if verdict != YES:
            return verdict
    return YES


async def _say(epoll: select.epoll, sock: socket.socket, text: bytes) -> None:
    while text:
        text = text[sock.send(text) :]
        if text:
            await _ready(epoll, sock, select.EPOLLOUT)


async def _ready(epoll: select.epoll, sock: socket.socket, events: int) -> None:
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    epoll.modify(sock, events)
    loop.add_reader(epoll.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(epoll.fileno())  # before the descriptor is closed and its number reused
