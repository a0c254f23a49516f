"""Rampart's command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import os
import sys
from argparse import ArgumentError

from tqdm import tqdm

from commands.any_network import any_network
from commands.command_line import RampartCLI
from commands.help import version_line
from commands.messages import describe, keep_quiet


def main(args: list[str] | None = None) -> None:
    """Run a command; an error becomes one line and exit status 1, or 2 for a wrong command line.

    ``--traceback`` anywhere among the arguments shows the full trace instead.
    """
    arguments = sys.argv if args is None else args
    full_trace = "--traceback" in arguments
    if full_trace:
        arguments.remove("--traceback")
    if (sys.argv[1:2] if args is None else args[:1]) == ["--version"]:
        print(version_line())
        return
    keep_quiet()
    # Last, so that a user's folder adds names to import and hides none.
    sys.path += [] if os.getcwd() in sys.path else [os.getcwd()]
    try:
        arguments[:] = any_network(arguments)
        RampartCLI(args)
    except Exception as error:
        if full_trace:
            raise
        # Through tqdm, so that no half-drawn progress bar stands in the same line.
        tqdm.write(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


if __name__ == "__main__":
    main()
