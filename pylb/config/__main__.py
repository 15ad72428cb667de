"""`python -m pylb.config docs/config.md` writes the reference; a test compares it with the models."""

import sys
from pathlib import Path

from pylb.config.reference import reference

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
