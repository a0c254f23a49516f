"""Rampart's command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import os
import sys
from argparse import ArgumentError

from commands.interruption import Interrupted, end_children, interruptible, is_first_process, say, signals


def main(args: list[str] | None = None) -> None:
    """Run a command; an error becomes one line and exit status 1, or 2 for a wrong command line.

    A signal that ends the run becomes one line too, and exit status 128 plus its number. ``--traceback`` anywhere among
    the arguments shows the full trace instead.
    """
    arguments = sys.argv if args is None else args
    full_trace = "--traceback" in arguments
    if full_trace:
        arguments.remove("--traceback")
    with interruptible():
        try:
            _run(arguments, args)
        except Interrupted as end:
            end_children()
            if full_trace:
                raise
            if is_first_process():
                say(str(end))
            sys.exit(end.status)
        except Exception as error:
            end_children()
            if full_trace:
                raise
            say(_line(error))
            sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _run(arguments: list[str], args: list[str] | None) -> None:
    if (sys.argv[1:2] if args is None else args[:1]) == ["--version"]:
        from commands.help import version_line

        print(version_line())
        return
    # Imported only here: these take seconds, in which Ctrl-C is to end in one line too.
    from commands.any_network import any_network
    from commands.command_line import RampartCLI
    from commands.messages import keep_quiet

    keep_quiet()
    # Last, so that a user's folder adds names to import and hides none.
    sys.path += [] if os.getcwd() in sys.path else [os.getcwd()]
    arguments[:] = any_network(arguments)
    RampartCLI(args)


def _line(error: Exception) -> str:
    from commands.messages import describe, without_noise_of_peers

    if signals.received:
        return str(Interrupted(signals.received, signals.advice))
    return f"error: {without_noise_of_peers(describe(error), signals.advice)}"


if __name__ == "__main__":
    main()
