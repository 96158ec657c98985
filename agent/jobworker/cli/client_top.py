"""`worker-client top`."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import click

from jobworker import units
from jobworker.cli import client_json, top_table
from jobworker.cli.client_command import ClientCommand, as_json, connect
from jobworker.cli.top_sample import Looks, Picture, Sampler
from jobworker.cli.wakeups import Wakeups
from jobworker.errors import InvalidField, JobWorkerError
from jobworker.printable import inline
from jobworker.program import BY_SIGNAL

if TYPE_CHECKING:
    from jobworker.cli.top_screen import Screen

_HELP = """Show what the jobs of a host, or of many, use, again and again; once where the output is no terminal.

CPU is in percent of one CPU; what is read and written is from and to disks, in bytes a second. Of all active jobs
of a host the newest are looked at, each by a call of its own.

\b
worker-client top
worker-client top --sort memory --interval 5s
worker-client top --once --format json | jq -r 'select(.cpu_percent > 90) | .id'
worker-client --group web top --sort memory

\b
Keys: c, m, i, p sort by CPU, memory, disk, processes; q leaves. NO_COLOR leaves colours out.
"""

_KEYS = {b"c": "cpu", b"m": "memory", b"i": "io", b"p": "pids"}
_LEAVE = b"q"
_SHORTEST_MS = 200
_SIGNALS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM)


@click.command("top", cls=ClientCommand, help=_HELP)
@click.option("--interval", metavar="TIME", default="2s", help="Time between two looks: 2s by default.")
@click.option("--sort", type=click.Choice(list(top_table.SORTS)), default="cpu", help="What decides on the order.")
@click.option("--limit", metavar="N", type=click.IntRange(1, 2000), default=100, help="Only the newest N: 100.")
@click.option("--once", is_flag=True, help="Print one plain table, from two looks, and end.")
def top(interval: str, sort: str, limit: int, *, once: bool) -> int:
    seconds = interval_seconds(interval)
    with connect() as client:
        return show(Sampler(client, limit), seconds, sort, once=once)


def interval_seconds(text: str) -> float:
    """The time between two looks.

    Raises:
        InvalidField: the text is no time, or a short one.
    """
    millis = units.parse_duration(text, "--interval")
    if millis < _SHORTEST_MS:
        raise InvalidField("--interval", f"is shorter than {_SHORTEST_MS}ms", "2s")
    return millis / 1000


def show(looks: Looks, interval: float, sort: str, *, once: bool) -> int:
    """Show what there is to see, as the terminal and the options have it; the exit code."""
    if once or as_json() or not _on_a_terminal():
        _print(looks, interval, sort)
        return 0
    return _Live(looks, interval, sort).run()


def _on_a_terminal() -> bool:
    return os.environ.get("TERM") != "dumb" and all(os.isatty(fd) for fd in (0, 1))


def _print(looks: Looks, interval: float, sort: str) -> None:
    looks.sample()
    time.sleep(interval)
    picture = looks.sample()
    if as_json():
        for use in sorted(picture.uses, key=top_table.SORTS[sort], reverse=True):
            click.echo(client_json.line(top_table.plain(use)))
    else:
        for line in top_table.rows(picture, sort, time.time()):
            click.echo(line.rstrip())


class _Live:
    """The view that stays. Looks are made by a thread, so that keys count also while an agent does not answer.

    Raises:
        JobWorkerError: already the first look failed.
    """

    def __init__(self, looks: Looks, interval: float, sort: str) -> None:
        self._looks = looks
        self._interval = interval
        self._sort = sort
        self._picture = looks.sample()
        self._problem = ""
        self._left = threading.Event()
        self._wakeups = Wakeups()

    def run(self) -> int:
        """Until a key, or a signal, ends it; the exit code."""
        from jobworker.cli.top_screen import Screen  # noqa: PLC0415 - needs a terminal

        thread = threading.Thread(target=self._look, daemon=True)
        coloured = not os.environ.get("NO_COLOR")
        with self._wakeups.of_signals(_SIGNALS), Screen(0, 1, coloured=coloured) as screen:
            thread.start()
            try:
                while (ended := self._once(screen)) is None:
                    pass
            finally:
                self._left.set()
        return ended

    def _look(self) -> None:
        while not self._left.wait(self._interval):
            try:
                self._picture = self._looks.sample()
                self._problem = ""
            except JobWorkerError as error:
                self._problem = str(error)
            self._wakeups.wake()

    def _once(self, screen: Screen) -> int | None:
        """Draw, and wait for what happens next; the exit code if that is the end."""
        self._draw(screen)
        numbers, ready = self._wakeups.wait(0)
        for number in numbers:
            if number == signal.SIGTERM:
                return BY_SIGNAL + number
            if number == signal.SIGTSTP:
                screen.suspend()
        if ready:
            keys = os.read(0, 1024)
            if not keys or _LEAVE in keys:
                return 0
            for key in (keys[i : i + 1] for i in range(len(keys))):
                self._sort = _KEYS.get(key, self._sort)
        return None

    def _draw(self, screen: Screen) -> None:
        picture = self._picture
        screen.draw(self._top(picture), top_table.rows(picture, self._sort, time.time()))

    def _top(self, picture: Picture) -> str:
        if self._problem:
            return f"what follows is not fresh: {inline(self._problem)}"
        number = f"the newest {len(picture.uses)} jobs" if picture.more else f"{len(picture.uses)} jobs"
        return f"{inline(picture.name)}: {number}, by {self._sort}; c m i p sort, q leaves"
