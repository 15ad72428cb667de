"""The names of all metrics that pylb exports, and those that a text uses."""

import functools
import re
import runpy

from tests.deploy.manifests import DEPLOY


@functools.cache
def names() -> set[str]:
    """As they stand in expressions: a histogram by its three sorts of series."""
    generate = runpy.run_path(str(DEPLOY.parent / "docs/generate.py"))
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", generate["metrics_reference"](), re.MULTILINE)
    assert len(rows) > 30
    found = set()
    for name, kind in rows:
        found |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return found


def used(text: str) -> set[str]:
    return set(re.findall(r"\bpylb_\w+", text))
