"""`python -m pylb` is `pylb`."""

import sys


def main() -> None:
    try:
        from pylb.cli.main import main as cli  # noqa: PLC0415 - Ctrl-C while it is imported shows no traceback either

        cli(prog_name="pylb")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
