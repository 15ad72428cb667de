"""When pylb's process may stand still for a garbage collection."""

import sys
from pathlib import Path

from tests.app.instance import Instance

# `python FILE PORT run …` is pylb, which writes down what the collector does while the port is open, and while it is not.
OBSERVED = """
import atexit, gc, socket, sys

port, full = int(sys.argv.pop(1)), {True: 0, False: 0}

def is_open():
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True

def note(phase, info):
    if phase == "start" and info["generation"] == 2:
        full[is_open()] += 1

def end():
    gc.callbacks.remove(note)
    names = {type(one).__module__ for generation in range(3) for one in gc.get_objects(generation)}
    young = "everything" if "pylb.core.table" in names else "young"
    print(f"full collections: {full[False] > 0} before the port was open, {full[True]} after; {young} is collected", flush=True)

gc.callbacks.append(note)
atexit.register(end)
from pylb.cli.main import main
main(prog_name="pylb")
"""


def test_nothing_is_collected_in_one_step_once_a_port_is_open(pylb: Instance, tmp_path: Path, echo_port: int) -> None:
    """A start collects and freezes what it has made before it opens the first port, and freezes the rest without a visit."""
    static = {"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
    pylb.configure(frontends=[static])
    script = tmp_path / "observed.py"
    script.write_text(OBSERVED)
    process = pylb.start(argv=(sys.executable, "-u", str(script), str(pylb.port), *pylb.command("run")[3:]))
    assert process.terminate() == 0
    process.has_said("full collections: True before the port was open, 0 after; young is collected")
