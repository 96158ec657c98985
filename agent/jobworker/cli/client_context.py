"""`worker-client context`: the contexts that there are, and which of them is the current one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import replace

import click

from jobworker.cli import client_json, client_offers
from jobworker.cli.client_command import ClientCommand, as_json, complain
from jobworker.client import context as context_file
from jobworker.client.context import ContextFile
from jobworker.errors import InvalidField
from jobworker.printable import inline

# At the beginning of a line a key is one of the file's own.
_CURRENT = re.compile(rb"^current:.*$", re.MULTILINE)

_HELP = """List the contexts of your context file, or make one of them the current one.

A context says where an agent is and who you are. The current one counts where neither options nor environment say
otherwise; `--context NAME` asks for another one, for one command. The file is JOBWORKER_CONFIG, or
~/.config/jobworker/config.yaml; `doctor` tells what counts and why.

\b
worker-client context
worker-client context staging
"""


@click.command("context", cls=ClientCommand, help=_HELP)
@click.argument("name", required=False, shell_complete=client_offers.contexts)
def context(name: str | None) -> None:
    file = context_file.read(context_file.config_path(os.environ), must_exist=name is not None)
    if name is not None:
        file = _make_current(file, name)
    if as_json():
        for each in file.contexts:
            told = {"name": each, "current": each == file.current, "addr": file.contexts[each].get("addr", "")}
            click.echo(client_json.line(told))
    elif name is not None:
        click.echo(f"{inline(name)} is the current context of {inline(file.path)}")
        _tell_what_stands_above()
    else:
        click.echo(_listed(file))


def _listed(file: ContextFile) -> str:
    if not file.contexts:
        return f"there are no contexts in {inline(file.path)}"
    names = {name: inline(name) for name in file.contexts}
    width = max(map(len, names.values()))
    lines = (
        f"{'*' if name == file.current else ' '} {shown:{width}}  {inline(file.contexts[name].get('addr', ''))}"
        for name, shown in names.items()
    )
    return "\n".join(map(str.rstrip, lines))


def _tell_what_stands_above() -> None:
    above = [name for each in context_file.NAMES if os.environ.get(name := f"JOBWORKER_{each.upper()}")]
    if above:
        complain(f"your environment counts before it: {', '.join(above)}")


def _make_current(file: ContextFile, name: str) -> ContextFile:
    """Change that line of the file and nothing else: comments are its owner's.

    Raises:
        InvalidField: there is no such context, or no such line can be written.
        OSError: the file can't be.
    """
    file.context(name)
    wanted = replace(file, current=name)
    line = f"current: {json.dumps(name)}".encode()
    # Others keep the file elsewhere, with a link to it here.
    path = os.path.realpath(file.path)
    with open(path, "rb") as opened:
        before = opened.read()
    after, changed = _CURRENT.subn(lambda _: line, before, count=1)
    if not changed:
        after = line + b"\n" + before
    try:
        right = context_file.parse(file.path, after) == wanted
    except InvalidField:
        right = False
    if not right:
        raise InvalidField(file.path, "is written in a way that this program does not change", line.decode())
    _put(path, after)
    return wanted


def _put(path: str, data: bytes) -> None:
    """Replace a file by one with the same mode, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as new:
        try:
            new.write(data)
            new.flush()
            os.fchmod(new.fileno(), os.stat(path).st_mode & 0o777)
            os.replace(new.name, path)
        except OSError:
            os.unlink(new.name)
            raise
