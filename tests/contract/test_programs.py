"""The three programs are alike in how they are called, and in how they end."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import jobworker
from support import certs, processes
from support.manpages import PROGRAMS

BIN = os.path.dirname(sys.executable)
# As users have it: what is written may be held back, to the interpreter's end.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [os.path.join(BIN, words[0]), *words[1:]]
    taken = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(command, text=True, env=ENVIRONMENT, check=False, timeout=60, **taken)


@pytest.fixture
def printing(tmp_path: Path) -> list[tuple[str, ...]]:
    """A command of each program that prints something, and all helps."""
    config = tmp_path / "agent.yaml"
    config.write_text("state_dir: /s\nlisten: 127.0.0.1:1\ntls: {ca: /a, cert: /b, key: /c}\n")
    certificate = certs.dev_pki().files("server").cert
    commands = [
        ("worker-client", "version"),
        ("worker-agent", "config", "show", str(config)),
        ("worker-pki", "show", certificate),
    ]
    return [*commands, *((name, "--help") for name in PROGRAMS)]


def test_output_that_cannot_be_written_is_told(printing: list[tuple[str, ...]]) -> None:
    for words in printing:
        with open("/dev/full", "wb") as full:
            done = run(*words, stdout=full)
        told = f"{words[0]}: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, told)


def test_a_reader_that_is_gone_ends_it_quietly(printing: list[tuple[str, ...]]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in printing:
        done = run(*words, stdout=writing)
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writing)


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Each command of a program, as it is called."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from commands(below, click.Context(below, info_name=name, parent=context))


ALL = [
    each
    for name, program in PROGRAMS.items()
    for each in commands(program, click.Context(program, info_name=name, **program.context_settings))
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_tells_its_version_and_without_words_its_help(name: str) -> None:
    assert run(name, "--version").stdout == f"{name} {jobworker.__version__}\n"
    told = run(name, "--help")
    for same in (run(name), run(name, "-h")):
        assert (same.returncode, same.stdout, same.stderr) == (0, told.stdout, "")
    assert "-h, --help" in told.stdout


def test_each_command_has_help_by_a_letter() -> None:
    for context in ALL:
        assert context.help_option_names == ["-h", "--help"], context.command_path


GROUPS = [context.command_path for context in ALL if isinstance(context.command, click.Group)]


@pytest.mark.parametrize("group", GROUPS)
def test_each_command_has_a_sentence_in_a_line(group: str) -> None:
    _, _, listed = run(*group.split(), "--help").stdout.partition("Commands:\n")
    lines = listed.partition("\n\n")[0].splitlines()
    assert lines
    for line in lines:
        name, sentence = line.split(maxsplit=1)
        assert sentence[0].isupper(), name
        assert sentence.endswith("."), name
        assert not sentence.endswith("..."), name


def test_what_the_agent_runs_itself_is_no_command_for_people() -> None:
    hidden = {context.command_path for context in ALL if context.command.hidden}
    assert hidden == {f"worker-agent {of} canonical" for of in ("config", "limits", "policy")}
    for name in ("config", "limits", "policy"):
        assert "canonical" not in run("worker-agent", name, "--help").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("worker-client", "query"), "Missing argument 'ID'; see `worker-client query --help`\n"),
        (("worker-agent", "policy", "chek"), "No such command 'chek'. Did you mean"),
        (("worker-agent", "dev", "--dir", "/proc/x", "--listen", "x"), "listen: 'x' is no loopback address"),
        (("worker-pki", "revoke"), "Missing argument 'CERT|SERIAL'; see `worker-pki revoke --help`\n"),
        (("worker-pki", "init", "/proc/x", "--trust-domain", "A B"), "trust-domain: 'A B' is none"),
    ],
)
def test_what_is_not_understood_is_told_in_one_line(words: tuple[str, ...], told: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{words[0]}: {told}")
    assert done.stderr.count("\n") == 1


def interrupted(words: tuple[str, ...], reach: Callable[[], Any]) -> subprocess.CompletedProcess[str]:
    """A command that Ctrl-C is pressed for once it is reached at what it waits for."""
    command, pipe = [os.path.join(BIN, words[0]), *words[1:]], subprocess.PIPE
    with processes.running(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe) as process, reach():
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())


def test_who_presses_ctrl_c_gets_130(tmp_path: Path) -> None:
    pipe, pki = str(tmp_path / "pipe"), certs.dev_pki().files("writer")
    os.mkfifo(pipe)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        addr = f"127.0.0.1:{silent.getsockname()[1]}"
        own = ("--addr", addr, "--ca", pki.ca, "--cert", pki.cert, "--key", pki.key)
        ended = [interrupted(("worker-client", *own, "list"), lambda: silent.accept()[0])]
    making = ("init", f"{tmp_path}/pki", "--trust-domain", "example.org", "--passphrase-file", pipe)
    others: list[tuple[str, ...]] = [("worker-agent", "policy", "check", pipe), ("worker-pki", *making)]
    ended += [interrupted(words, functools.partial(open, pipe, "wb")) for words in others]
    for each in ended:
        assert (each.returncode, each.stdout, each.stderr) == (130, "", "\n")
