"""`python -m pylb` is `pylb`."""

from pylb.cli import main

if __name__ == "__main__":
    main(prog_name="pylb")
