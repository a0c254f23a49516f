"""Rampart's command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import sys

from commands.one_line_errors import one_line_errors


def main(args: list[str] | None = None) -> None:
    """Run a command; an error becomes one line and exit status 1, or 2 for a wrong command line.

    A signal that ends the run becomes one line too, with exit status 128 plus the signal's number. ``--traceback``
    anywhere among the arguments shows the full trace instead.

    Args:
        args: Command and options; ``sys.argv[1:]`` if None.
    """
    arguments = sys.argv if args is None else args
    full_trace = "--traceback" in arguments
    if full_trace:
        arguments.remove("--traceback")
    with one_line_errors(full_trace):
        command, *options = (sys.argv[1:] if args is None else args) or [""]
        if command == "--version":
            from commands.help import format_versions

            print(format_versions())
            return
        if command == "configs":
            from commands.config_listing import list_configs

            print(list_configs(options))
            return
        # Imported late, because it takes seconds: Ctrl-C then ends in one line too.
        from commands.command_line import run_command

        run_command(args)


if __name__ == "__main__":
    main()
