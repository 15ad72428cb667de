"""`python -m pylb` is `pylb`."""

from pylb.cli.main import main

if __name__ == "__main__":
    main(prog_name="pylb")
