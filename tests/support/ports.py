"""The ports that tests listen on: outside the ephemeral range, and each worker of xdist has a part of its own.

20000 to 20099 are left out: whatever a fuzzer opens.
"""

import os

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_SHARE = 9900 // _WORKERS
PORTS = range(20100 + _SHARE * _NUMBER, 20100 + _SHARE * (_NUMBER + 1))
