"""How the programs of the root side are called: the keeper and the supervisor."""

from __future__ import annotations

import os
import sys

# No variable, no directory of a user's and no site-packages decides what is imported. Text is UTF-8 whatever the
# locale: what clients ask for is, and a command is executed with the bytes that they sent.
_OPTIONS = ("-I", "-S", "-E", "-X", "utf8")
_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def keeper(*arguments: str) -> list[str]:
    """The command line of the keeper's program, as it is on disk now."""
    return _command("keeper", arguments)


def supervisor(*arguments: str) -> list[str]:
    """The command line of the supervisor's program, as it is on disk now."""
    return _command("supervisor", arguments)


def _command(program: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, *_OPTIONS, os.path.join(_PACKAGE, program, "__main__.py"), *arguments]
