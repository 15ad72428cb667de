"""Build phonehome as one file: `python3 deploy/zipapp.py [OUT]`, by default dist/phonehome.pyz.

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


def build(out: Path) -> None:
    entries = {f"phonehome/{path.name}": path.read_bytes() for path in (ROOT / "phonehome").glob("*.py")}
    entries["__main__.py"] = START.encode()
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
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "phonehome.pyz"
    build(target)
    sys.stdout.write(f"{target}: {target.stat().st_size} bytes\n")
