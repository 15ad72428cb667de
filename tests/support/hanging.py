"""`pylb` on a disk that hangs on demand: `python -m tests.support.hanging run -c FILE`, with a name in $HANGS.

While there is a file of that name no fsync ends; how many wait is the number of lines in NAME.waiting.
"""

import os
import time
from pathlib import Path

from pylb.cli.main import main

HANGS = Path(os.environ["HANGS"])
_fsync = os.fsync


def fsync(fd: int) -> None:
    if HANGS.exists():
        with HANGS.with_suffix(".waiting").open("a") as file:
            file.write("fsync\n")
    while HANGS.exists():
        time.sleep(0.01)  # noqa: TID251 - this is the disk
    _fsync(fd)


if __name__ == "__main__":
    os.fsync = fsync
    main()
