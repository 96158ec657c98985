"""All pages: their links lead somewhere, and the commands that they name exist with their options."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterator

import click
import pytest
import yaml

from support import document
from support.manpages import PROGRAMS

PAGES = document.all_pages()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = document.ROOT / page
    for link in document.links(PAGES[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = here if not name else (here.parent / name).resolve()
        assert target.exists(), link
        assert not anchor or anchor in document.anchors(target.read_text()), link


def test_every_page_is_found() -> None:
    site = yaml.safe_load((document.ROOT / "mkdocs.yml").read_text())

    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield f"docs/{entry}"
        for below in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(below)

    assert sorted(pages(site["nav"])) == sorted(PAGES.keys() - {"README.md"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    for line in document.command_lines(PAGES[page]):
        for words in calls(line):
            assert not (problem := wrong_with(words)), f"{problem}: {line}"


UNITS = [unit.stem for unit in (document.ROOT / "systemd").glob("*.service")]


@pytest.mark.parametrize("page", PAGES)
def test_units_exist(page: str) -> None:
    """Those of help texts are on a page, which is made from them."""
    for name in document.units(PAGES[page]):
        assert fnmatch.filter(UNITS, name), name


def test_units_exist_that_the_programs_name() -> None:
    for top in ("agent", "pki"):
        for source in (document.ROOT / top).rglob("*.py"):
            for name in document.units(source.read_text()):
                assert fnmatch.filter(UNITS, name), (source, name)


def test_a_unit_that_does_not_exist_is_found() -> None:
    text = "`systemctl restart jobworker-agent`, jobworker.socket\njournalctl -o cat -u 'jobworkers*' | jq\n"
    assert document.units(text) == {"jobworker-agent", "jobworker", "jobworkers*"}


def calls(line: str) -> Iterator[list[str]]:
    """The calls of our programs in a line of shell, each up to what ends it."""
    lexer = shlex.shlex(line.replace("$(", " ( ").replace("<(", " ( "), posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    try:
        words = list(lexer)
    except ValueError:
        # A quotation that is none, or goes on.
        words = line.split()
    for i, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in PROGRAMS:
            end = next((j for j in range(i + 1, len(words)) if set(words[j]) <= set(";&|()<>#")), len(words))
            yield [name, *words[i + 1 : end]]


def wrong_with(words: list[str]) -> str:
    """What is wrong with a call; empty if all that can be looked up is right."""
    command = PROGRAMS[words[0]]
    options = takes_value(command)
    rest = iter(words[1:])
    for word in rest:
        if word == "--":
            break
        if word.startswith("-") and len(word) > 1:
            name, given, _ = word.partition("=")
            if name not in options:
                return f"{command.name} has no option {name}"
            if options[name] and not given:
                next(rest, None)
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return "" if word.isupper() or word in ("…", "...") else f"{command.name} has no command {word}"
            command = found
            options = takes_value(command)
        elif not command.allow_interspersed_args:
            break
    return ""


def takes_value(command: click.Command) -> dict[str, bool]:
    """Whether each option of a command takes a value."""
    found = {
        name: not param.is_flag and not param.count
        for param in command.params
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    return {**found, "--help": False, "-h": False}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("worker-client strat -- true", "has no command strat"),
        ("x=$(worker-client start --memry 1G -- ls --all)", "has no option --memry"),
        ("true && worker-pki issue user ann --rol WRITER", "has no option --rol"),
        ("worker-agent config chek agent.yaml | cat", "has no command chek"),
        ("worker-client start -- ls --no-option-of-ours", ""),
        ("worker-client --addr a:1 list --label a=b | worker-client-of-others --x", ""),
    ],
)
def test_what_does_not_exist_is_found(line: str, said: str) -> None:
    (words,) = calls(line)
    assert said in wrong_with(words)
    assert bool(said) == bool(wrong_with(words))
