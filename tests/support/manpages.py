"""The manual pages of the three programs, a page for each command: `python -m support.manpages DIRECTORY`.

Made from what `--help` is made from, so that there is nothing else to be kept true.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping

import click

import jobworker
from jobworker.cli import worker_agent, worker_client
from jobworker_pki import cli as worker_pki

PROGRAMS: Mapping[str, click.Command] = {
    "worker-client": worker_client.cli,
    "worker-agent": worker_agent.cli,
    "worker-pki": worker_pki.cli,
}
# click's sign that a paragraph's lines stay as they are.
_AS_IT_IS = "\b"
_SIGNS = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def pages() -> Iterator[tuple[str, str]]:
    """Each page's name, and its text in the language of man(7)."""
    for name, program in PROGRAMS.items():
        yield from _pages(click.Context(program, info_name=name, **program.context_settings))


def _pages(context: click.Context) -> Iterator[tuple[str, str]]:
    name = _name(context)
    yield f"{name}.1", "\n".join(_page(context, name)) + "\n"
    for below in _below(context):
        yield from _pages(below)


def _page(context: click.Context, name: str) -> Iterator[str]:
    command = context.command
    yield f'.TH "{name.upper()}" 1 "" "jobworker {jobworker.__version__}" "User Commands"'
    yield f".SH NAME\n{_roff(name)} \\- {_roff(command.get_short_help_str(200))}"
    words = " ".join(command.collect_usage_pieces(context))
    yield f".SH SYNOPSIS\n.B {_roff(context.command_path)}\n{_roff(words)}"
    yield ".SH DESCRIPTION"
    yield from _prose(command.help or "")
    options = [
        record
        for param in command.get_params(context)
        if isinstance(param, click.Option) and (record := param.get_help_record(context))
    ]
    if options:
        yield ".SH OPTIONS"
        for words, meaning in options:
            yield f".TP\n.B {_roff(words)}\n{_roff(meaning) or '.br'}"
    below = [f".BR {_roff(_name(each))} (1)" for each in _below(context)]
    above = [f".BR {_roff(_name(context.parent))} (1)"] if context.parent else []
    if below or above:
        yield "\n".join([".SH SEE ALSO", *",\n".join(above + below).splitlines()])


def _below(context: click.Context) -> Iterator[click.Context]:
    if not isinstance(group := context.command, click.Group):
        return
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if command and not command.hidden:
            yield click.Context(command, info_name=word, parent=context)


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _prose(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip() == _AS_IT_IS:
            yield "\n".join([".PP\n.nf", *map(_roff, lines[1:]), ".fi"])
        else:
            yield f".PP\n{_roff(' '.join(line.strip() for line in lines))}"


def _roff(text: str) -> str:
    """Text as such, whatever roff would make of its signs."""
    text = "".join(_SIGNS.get(sign, sign) if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in text)
    return f"\\&{text}" if text.startswith(".") else text


def main(directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    for name, text in pages():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main(sys.argv[1])
