"""`worker-client top` over many hosts: one table of all their jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import click

from jobworker.cli import client_json, client_top
from jobworker.cli.client_command import as_json, complain, connect_to, request_id
from jobworker.cli.fleet import asked
from jobworker.cli.fleet.outcome import Outcome, Status, exit_code, hosts_text, of_error, summary
from jobworker.cli.fleet.targets import Target, some
from jobworker.cli.top_sample import Picture, Sampler

if TYPE_CHECKING:
    from jobworker.client.endpoint import Endpoint
    from jobworker.client.rpc.client import Client


def invoke(ctx: click.Context) -> int:
    """Show what the jobs of the hosts use; the exit code, which tells of hosts that did not answer in the end.

    Raises:
        JobWorkerError: a mistake in what was asked for.
    """
    options = ctx.params
    interval = client_top.interval_seconds(options["interval"])
    connect = partial(connect_to, named=request_id(ctx), connect_timeout=(seconds := asked.connect_timeout(ctx)))
    hosts = [Host(target, connect, options["limit"]) for target in asked.targets(ctx)]
    looks = FleetLooks(hosts, asked.forks(ctx), seconds)
    try:
        status = client_top.show(looks, interval, options["sort"], once=options["once"])
        # Before looks that are under way fail for having no connection any more.
        outcomes = looks.outcomes()
    finally:
        looks.close()
    if as_json():
        for outcome in outcomes:
            click.echo(client_json.line(outcome.plain()))
    if all(outcome.status is Status.OK for outcome in outcomes):
        return status
    for line in summary(outcomes):
        complain(line)
    return status or exit_code(outcomes, interrupted=False)


class Host:
    """One of them, over all looks.

    Args:
        target: which.
        connect: makes a client of an agent.
        most: jobs to look at.

    Attributes:
        picture: of the last look; `None` where there is none to be had.
        outcome: how that went.
        looking: the look that is under way, or the last one; done with it.
        late: in the last round it did not answer in time; `picture` and `outcome` are of an earlier look.
    """

    def __init__(self, target: Target, connect: Callable[[Endpoint], Client], most: int) -> None:
        self.target = target
        self.picture: Picture | None = None
        self.outcome = _late(target.name)
        self.looking: Future[None] | None = None
        self.late = False
        self._connect, self._most = connect, most
        self._client: Client | None = None
        self._sampler: Sampler | None = None

    def look(self) -> Future[None]:
        """Begin to look; how that went is in `picture` and `outcome` once it is done, whatever it came to."""
        self.looking = done = Future[None]()
        try:
            # A daemon: one that is stuck must not keep this process from ending.
            threading.Thread(target=self._look, args=(done,), daemon=True).start()
        except RuntimeError as error:
            # There are as many threads as there can be.
            self._fail(error)
            done.set_result(None)
        return done

    def _look(self, done: Future[None]) -> None:
        try:
            if self._sampler is None:
                self._sampler = self._reached()
            self.picture = self._sampler.sample()
            self.outcome = Outcome(self.target.name, Status.OK)
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._fail(error)
        finally:
            done.set_result(None)

    def _fail(self, error: Exception) -> None:
        self.picture, self.outcome = None, of_error(self.target.name, error)

    def _reached(self) -> Sampler:
        if self._client is None:
            self._client = self._connect(self.target.endpoint)
        self._client.reach()
        return Sampler(self._client, self._most, self.target.name)

    def close(self) -> None:
        if self._client:
            self._client.close()


class FleetLooks:
    """Looks at all hosts; one that hangs is left out until it answers, and holds up no other."""

    def __init__(self, hosts: Sequence[Host], forks: int, seconds: float) -> None:
        """Prepare the looks; no host is called before the first.

        Args:
            hosts: to look at.
            forks: so many at a time, those that are late not counted.
            seconds: after which a look is late.
        """
        self._hosts = hosts
        self._forks = forks
        self._seconds = seconds
        self._closed = False

    def sample(self) -> Picture:
        self._round()
        seen = [host.picture for host in self._hosts if not host.late and host.picture]
        missing = [host.target.name for host in self._hosts if host.late or not host.picture]
        return Picture(
            hosts_text(len(seen)) + (f", without {some(missing)}" if missing else ""),
            tuple(use for picture in seen for use in picture.uses),
            more=any(picture.more for picture in seen),
        )

    def outcomes(self) -> list[Outcome]:
        """How the last look at each host went."""
        return [_late(host.target.name) if host.late else host.outcome for host in self._hosts]

    def close(self) -> None:
        """End all connections, and with them the looks that are under way."""
        self._closed = True
        for host in self._hosts:
            host.close()

    def _round(self) -> None:
        """Look at each host that is not being looked at still, until all have answered or are late."""
        free = [host for host in self._hosts if host.looking is None or host.looking.done()]
        # Who was late may be so again, and then the others are through already.
        due = deque(sorted(free, key=attrgetter("late")))
        under_way = dict[Future[None], float]()
        while True:
            while due and len(under_way) < self._forks and not self._closed:
                under_way[due.popleft().look()] = time.monotonic() + self._seconds
            if not under_way:
                break
            wait(under_way, max(0.0, min(under_way.values()) - time.monotonic()), FIRST_COMPLETED)
            now = time.monotonic()
            under_way = {look: late for look, late in under_way.items() if late > now and not look.done()}
        for host in self._hosts:
            host.late = host.looking is None or not host.looking.done()


def _late(name: str) -> Outcome:
    return Outcome(name, Status.UNREACHABLE, detail="did not answer in time")
