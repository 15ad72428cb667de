"""A worker: core and forward, the engine's own loop, and the channel to main. No asyncio, no thread, no config.

Main starts it with one end of the channel and the code that it runs (workers/archive.py). It lives until main sends `Drain`
and its sessions are over, or until main is gone and its sessions are over.
"""

import faulthandler
import resource
import select
import signal
import socket
import sys
import time
from mmap import mmap

from pylb.forward.engine import Engine
from pylb.forward.own_dials import SIZE, OwnDials
from pylb.forward.timers import TICK
from pylb.host.loop_lag import Pulse, collect_rarely
from pylb.logs.formats import LineBatch
from pylb.workers.channel import BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.main_connection import MainConnection
from pylb.workers.messages import VERSION, Hello, decoded

HELLO = 10.0  # seconds to wait for main's first message


def main(fd: int, shared: int) -> int:
    """Run the process, with descriptors of its channel and of the workers' shared memory. Returns its exit code."""
    # A terminal's Ctrl-C goes to all processes in it; main decides what a stop means for sessions.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # workers/archive.py blocks some of them until here
    faulthandler.enable()  # main sends SIGABRT to a worker that is stuck: the stacks show where
    channel = Channel(socket.socket(fileno=fd))
    try:
        hello = _hello(channel)
        _name(f"pylb-worker-{hello.worker}")
        run(channel, hello, OwnDials(hello.worker, mmap(shared, SIZE)))
    except (BadFrame, ChannelClosed) as error:
        sys.stderr.write(f"pylb worker: {error}\n")
        return 1
    return 0


def _hello(channel: Channel) -> Hello:
    """Raises BadFrame, ChannelClosed."""
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    frames: list[Frame] = []
    deadline = time.monotonic() + HELLO
    while not frames:
        if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise BadFrame("main sent nothing")
        frames = channel.receive()
    hello = decoded(frames[0])
    if not isinstance(hello, Hello) or len(frames) != 1:  # main sends nothing more before it has received Ready
        raise BadFrame("main did not send Hello first")
    if hello.version != VERSION:
        raise BadFrame(f"main is {hello.version}, this worker {VERSION}")
    return hello


def _name(text: str) -> None:
    """The name shown by ps and top (proc(5), /proc/self/comm: 15 bytes)."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(text)
    except OSError:
        pass  # only a convenience


def run(channel: Channel, hello: Hello, own_dials: OwnDials) -> None:
    """Forward until main has ended this worker or is gone, and no session is left. Raises BadFrame."""
    link = MainConnection(channel, hello, LineBatch(hello.log_format, hello.log_selection))
    engine = Engine(
        observer=link,
        max_connections=hello.max_connections,
        max_pipes=hello.max_pipes,
        max_buffered=hello.max_buffered,
        on_fault=link.fault,
        opener=link.open_listener,
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        worker=hello.worker,
        processes=hello.workers,
        own_dials=own_dials,
        recorded=hello.recorded,
    )
    link.begin(engine)
    signal.signal(signal.SIGTERM, lambda _number, _frame: link.hasten())
    collect_rarely()
    clock, on_ready = time.monotonic, engine.on_ready
    due = clock()
    pulse = Pulse(TICK, due)
    while True:
        now = clock()
        if now >= due:
            if link.is_over:
                break
            due = now + TICK
            pulse.beat(now)
            engine.tick(now)
            engine.faults.guard("a worker's tick failed", link.tick, now, pulse.lag)
        on_ready(0 if engine.busy or link.has_work else due - now)
        if link.has_work:
            link.work()
        if link.connects:
            link.tell_connects()
    pulse.stop()
    link.close()
    engine.close()
    channel.close()
