"""How `worker-client`, `worker-agent` and `worker-pki` begin and end, and what all three do alike.

Imports click and little else, because `worker-client --help` does.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import jobworker
from jobworker.printable import inline

FAILED, NOT_UNDERSTOOD = 1, 2
# A shell's exit codes for what a signal has ended.
BY_SIGNAL = 128
INTERRUPTED = BY_SIGNAL + signal.SIGINT
NOBODY_READS = BY_SIGNAL + signal.SIGPIPE

# Of the group that a program is; those below it have the options' names from it.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
version = click.version_option(jobworker.__version__, message="%(prog)s %(version)s")

# A group that was called without a command; click 8.1 shows its help by itself.
_NO_COMMAND = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main(name: str, command: click.Command) -> NoReturn:
    """Be the program of this name, from the words that it was called with to its exit code."""
    open_standard_streams()
    status = run(name, command, sys.argv[1:])
    # Memory goes with the process: to look through it for cycles as the interpreter ends is a tenth of `--help`.
    gc.freeze()
    sys.exit(status)


def open_standard_streams() -> None:
    """Put /dev/null where the caller has closed one, lest a file gets its number and then the output.

    What the locale has no characters for is written out.
    """
    names = {0: "stdin", 1: "stdout", 2: "stderr"}
    while (fd := os.open(os.devnull, os.O_RDWR)) <= max(names):
        if fd in names:
            setattr(sys, names[fd], os.fdopen(fd, "w" if fd else "r"))
    os.close(fd)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run(name: str, command: click.Command, words: Sequence[str]) -> int:
    """Run one command line and return its exit code; what goes wrong is told in a sentence."""
    try:
        with command.make_context(name, list(words) or ["--help"]) as context:
            status = command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt:
        # Behind the ^C that the terminal shows.
        click.echo(err=True)
        return INTERRUPTED
    except click.Abort:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - what is no failure of the user's or the host's is raised again
        return _failed(name, error)
    return status or 0


def _failed(name: str, error: Exception) -> int:
    from jobworker.errors import InvalidField, JobWorkerError  # noqa: PLC0415 - `--help` need not wait for it

    if isinstance(error, _NO_COMMAND):
        error.show()
        return NOT_UNDERSTOOD
    if isinstance(error, click.UsageError):
        asked = error.ctx.command_path if error.ctx else name
        # Choices come in a column.
        said = " ".join(error.format_message().rstrip(".").split())
        complain(name, f"{said}; see `{asked} --help`")
        return error.exit_code
    if isinstance(error, click.ClickException):
        complain(name, error.format_message())
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        leave_output()
        return NOBODY_READS
    if isinstance(error, OSError):
        complain(name, told(error))
        return FAILED
    if isinstance(error, JobWorkerError):
        complain(name, str(error))
        return NOT_UNDERSTOOD if isinstance(error, InvalidField) else FAILED
    raise error


def told(error: OSError) -> str:
    """What the kernel has answered, about a file or else about the output."""
    if error.filename is not None:
        return f"{error.filename}: cannot be used: {error.strerror}"
    leave_output()
    return f"the output cannot be written: {error.strerror}"


def leave_output() -> None:
    """Let go of what nobody takes, or the interpreter tries again as it ends, and has its own words for that."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def complain(name: str, sentence: str) -> None:
    """Say what is wrong. It may quote others, whose control sequences are not for this terminal."""
    shown = "\n".join(map(inline, sentence.split("\n")))
    # Where nobody takes it, the exit code has to do.
    with contextlib.suppress(OSError):
        click.echo(f"{name}: {shown}", err=True)
