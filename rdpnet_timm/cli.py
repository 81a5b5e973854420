"""The command ``rdpnet``: parses, calls, prints. Each subcommand imports what it needs when it runs."""

import argparse
import sys
from typing import List, Optional

__all__ = ["main"]


def _add_subcommands(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """One ``_add_NAME`` function a subcommand, in the order of the help text."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run one subcommand; the exit status is 0 on success, 2 on wrong usage, 1 on any other error the user can mend."""
    parser = argparse.ArgumentParser(prog="rdpnet", description="RDPNet: inspect, convert, export and measure models.")
    _add_subcommands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"rdpnet {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rdpnet {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
