"""One watch: a snapshot if it was asked for, then each change, and from time to time a token to resume at."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.errors import InvalidField
from jobworker.gateway.changes import Change, Changes, Place, Watched, place
from jobworker.gateway.known import Known
from jobworker.gateway.mirror import Mirror

# So many changes that do not fit may pass before a token says so.
_MARK_EVERY = 1_000
_PAGE = 100
_MAX_TOKEN = 200
_TOKEN = re.compile(r"([0-9]{1,19}):([ -~]{0,80})")


Sees = Callable[[Known], bool]


@dataclass(frozen=True, slots=True)
class Told:
    """One answer of a watch.

    Attributes:
        token: where to resume once this has been told.
    """

    message: pb.WatchResponse
    token: str


class Watch:
    """What one watcher is told.

    Args:
        sees: whether the watcher may know of a job.
        since: the revision behind which to begin; None for now, or for a snapshot.
    """

    def __init__(self, mirror: Mirror, watched: Watched, sees: Sees, since: int | None, *, snapshot: bool) -> None:
        self._mirror = mirror
        self._changes: Changes = mirror.changes
        self._watched = watched
        self._sees = sees
        self._snapshot = snapshot
        self._resumed = since is not None
        self._epoch = mirror.changes.epoch
        # Up to here the watcher knows that it was told everything.
        self._revision = mirror.changes.newest if since is None else since
        self._place: Place = place(self._revision)
        self._passed = 0

    async def messages(self) -> AsyncGenerator[Told, None]:
        """The answers, without end.

        Raises:
            WatchExpired: what comes next is not known any more.
            AgentUnavailable: the supervisor stays away.
        """
        with self._changes.waiting(self._watched) as news:
            if self._snapshot:
                async for told in self._all():
                    yield told
            if not self._resumed:
                yield self._mark(snapshot_complete=self._snapshot)
            while True:
                news.clear()
                # While a supervisor that has just started tells of its jobs, their order is not complete.
                await self._mirror.current()
                self._changes.check(self._epoch, self._revision)
                if following := self._next():
                    yield following
                else:
                    await news.wait()

    def _next(self) -> Told | None:
        for change in self._changes.behind(self._place):
            self._place = change.place
            # Of several with the same revision, the others would be left out by whoever resumed there.
            if change.whole:
                self._revision = change.place[0]
            if message := self._message(change):
                return self._told(message)
            self._passed += 1
            if self._passed >= _MARK_EVERY and change.whole:
                return self._mark(snapshot_complete=False)
        return None

    def _message(self, change: Change) -> pb.WatchResponse | None:
        if change.gone:
            fits = self._watched.any_state().fits(change.gone) and self._sees(change.gone)
            return pb.WatchResponse(removed_job_id=change.gone.job_id) if fits else None
        job = self._mirror.get(change.place[1])
        return _response(job) if job and self._fits(job) else None

    def _fits(self, job: Known) -> bool:
        return self._watched.fits(job) and self._sees(job)

    def _told(self, message: pb.WatchResponse) -> Told:
        self._passed = 0
        message.resume_token = token(self._epoch, self._revision)
        return Told(message, message.resume_token)

    def _mark(self, *, snapshot_complete: bool) -> Told:
        return self._told(pb.WatchResponse(mark=pb.WatchMark(snapshot_complete=snapshot_complete)))

    async def _all(self) -> AsyncGenerator[Told, None]:
        if self._watched.ids:
            for job in self._by_ids():
                yield Told(_response(job), "")
            return
        before = None
        while page := self._mirror.page(self._watched.wanted, before, _PAGE, self._sees):
            before = page[-1].position
            for job in page:
                yield Told(_response(job), "")
            # Others have their turn, however fast this watcher reads.
            await asyncio.sleep(0)

    def _by_ids(self) -> Iterator[Known]:
        for job_id in sorted(self._watched.ids):
            job = self._mirror.get(job_id)
            if job and self._fits(job):
                yield job


def _response(job: Known) -> pb.WatchResponse:
    response = pb.WatchResponse()
    job.write_to(response.job)
    return response


def token(epoch: str, revision: int) -> str:
    """Where a watch is, as clients give it back."""
    return base64.urlsafe_b64encode(f"{revision}:{epoch}".encode()).decode()


def read_token(text: str) -> tuple[str, int]:
    """Epoch and revision of a token.

    Raises:
        InvalidField: it is none.
    """
    match = None
    if len(text) <= _MAX_TOKEN:
        try:
            match = _TOKEN.fullmatch(base64.b64decode(text, altchars=b"-_", validate=True).decode())
        except (binascii.Error, ValueError):
            match = None
    if match is None or token(match[2], int(match[1])) != text:
        raise InvalidField("resume_token", "is not a resume_token of this agent")
    return match[2], int(match[1])
