"""Build phonehome as one file: `python3 deploy/zipapp.py [--controller] [OUT]`, by default dist/phonehome.pyz.

With --controller it is `phonehome controller` alone, by default dist/controller.pyz. They are two because a ConfigMap has
room for either, but not for both, and every namespace with a sidecar has the smaller one.

Reproducible: entries are sorted, carry one fixed date and are stored, because deflate differs between zlib versions.
So the same source is the same file, and a ConfigMap changes only when the code did.
"""

# ruff: noqa: INP001  a script that is run by its path

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
START = "import sys\n\nfrom phonehome.__main__ import main\n\nsys.exit(main())\n"
START_CONTROLLER = "import sys\n\nfrom phonehome.controller.command import main\n\nsys.exit(main(sys.argv[1:]))\n"
ONLY_SIDECAR = ("__main__.py", "drain_socket.py", "outcome_log.py", "preflight.py", "runner.py")


def build(out: Path, *, controller: bool) -> None:
    files = list((ROOT / "phonehome").glob("*.py"))
    if controller:
        files = [path for path in files if path.name not in ONLY_SIDECAR]
        files += (ROOT / "phonehome" / "controller").glob("*.py")
    entries = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    entries["__main__.py"] = (START_CONTROLLER if controller else START).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")  # zip is read from its end: a line before it does no harm
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(entries):
                info = zipfile.ZipInfo(name, DATE)
                info.create_system = 3  # unix, whatever builds it
                info.external_attr = 0o644 << 16
                archive.writestr(info, entries[name])
    out.chmod(0o755)


if __name__ == "__main__":
    args = sys.argv[1:]
    is_controller = args[:1] == ["--controller"]
    rest = args[1:] if is_controller else args
    target = Path(rest[0]) if rest else ROOT / "dist" / ("controller.pyz" if is_controller else "phonehome.pyz")
    build(target, controller=is_controller)
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes\n")
