"""What goes on across broken connections, in an event loop: output, changes of jobs, and their standard input.

How each goes on is decided in `jobworker.client.rpc`, for all clients alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Event
from jobworker.client.failures import CallFailed
from jobworker.client.output import Item
from jobworker.client.rpc import stream, watch
from jobworker.client.rpc.upload import Upload, Written
from jobworker.client.rpc.waiting import Active, Waiting, timed_out

Response = TypeVar("Response")
Open = Callable[[], AsyncGenerator[Response, None]]
OpenCall = Callable[[AsyncIterator[pb.WriteStdinRequest]], AsyncGenerator[pb.WriteStdinResponse, None]]


async def output(open_there: Open[pb.StreamResponse], resumption: stream.Resumption) -> AsyncGenerator[Item, None]:
    """The items of a stream that is opened again wherever it breaks; see `rpc.streams.output`."""
    while True:
        resumption.open()
        failure: CallFailed | None = None
        try:
            async with aclosing(open_there()) as responses:
                async for response in responses:
                    for item in resumption.items(response):
                        yield item
                    if resumption.ended:
                        return
        except CallFailed as error:
            failure = error
        await asyncio.sleep(resumption.pause(failure))


async def changes(open_there: Open[pb.WatchResponse], resumption: watch.Resumption) -> AsyncGenerator[Event, None]:
    """The events of a watch that is opened again wherever it breaks; see `rpc.streams.changes`."""
    while True:
        failure: CallFailed | None = None
        try:
            async with aclosing(open_there()) as responses:
                async for response in responses:
                    if event := resumption.event(response):
                        yield event
                    resumption.stand(response)
        except CallFailed as error:
            failure = error
        told, pause = resumption.broke(failure)
        if told:
            yield told
        await asyncio.sleep(resumption.left(pause))
        resumption.check()


async def ends(events: AsyncGenerator[Event, None], job_ids: tuple[str, ...]) -> AsyncGenerator[job_pb2.Job, None]:
    """Each of the jobs once it has ended; see `rpc.streams.ends`."""
    waiting = Waiting(job_ids)
    async with aclosing(events):
        try:
            while waiting.job_ids:
                if job := waiting.take(await anext(events)):
                    yield job
        except CallFailed as failure:
            raise timed_out(failure, waiting.job_ids) from None


async def until_idle(events: AsyncGenerator[Event, None]) -> AsyncGenerator[int, None]:
    """How many jobs are active, each time that this changes; see `rpc.streams.until_idle`."""
    active, before = Active(), None
    async with aclosing(events):
        try:
            while before != 0:
                left = active.take(await anext(events))
                if left is not None and left != before:
                    yield left
                    before = left
        except CallFailed as failure:
            raise timed_out(failure, sorted(active.job_ids)) from None


async def write(
    open_call: OpenCall,
    upload: Upload,
    pieces: Iterable[bytes] | AsyncIterable[bytes],
    *,
    end: bool,
) -> Written:
    """Write all of it, over one call after the other; comes back when it has been taken.

    Args:
        open_call: makes a call of these requests.
        upload: decides on what is sent.
        pieces: what to write.
        end: and the end behind it.
    """
    writer = _Writer(open_call, upload)
    tasks = (asyncio.create_task(writer.add(pieces, end=end)), asyncio.create_task(writer.call()))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return upload.written


class _Writer:
    """What adds to an upload, and what carries it out, beside each other."""

    def __init__(self, open_call: OpenCall, upload: Upload) -> None:
        self._open = open_call
        self._upload = upload
        self._changed = asyncio.Event()
        self._complete = False
        self._calls = 0

    def _wake(self) -> None:
        # Wakes all who wait now; who comes later looks at the state first.
        self._changed.set()
        self._changed.clear()

    async def add(self, pieces: Iterable[bytes] | AsyncIterable[bytes], *, end: bool) -> None:
        async for data in _each(pieces):
            self._upload.add(data)
            self._wake()
            while self._upload.is_full:
                await self._changed.wait()
        if end:
            self._upload.end()
        self._complete = True
        self._wake()

    async def call(self) -> None:
        while True:
            failure: CallFailed | None = None
            first = self._upload.open()
            try:
                async with aclosing(self._open(self._requests(first, self._calls))) as responses:
                    async for response in responses:
                        self._upload.answer(response)
                        self._wake()
            except CallFailed as error:
                failure = error
            finally:
                # Of a call that has failed grpc leaves the requests waiting.
                self._calls += 1
                self._wake()
            if not failure and self._is_done:
                return
            pause = self._upload.pause(failure)
            if self._is_done:
                return
            await asyncio.sleep(pause)

    @property
    def _is_done(self) -> bool:
        return self._complete and self._upload.nothing_is_due

    async def _requests(
        self, first: pb.WriteStdinRequest, call: int
    ) -> AsyncGenerator[pb.WriteStdinRequest, None]:
        yield first
        # What is due is for the present call.
        while call == self._calls:
            for message in self._upload.due():
                yield message
            if self._complete and self._upload.is_sent:
                return
            await self._changed.wait()


async def _each(pieces: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(pieces, AsyncIterable):
        async for data in pieces:
            yield data
    else:
        for data in pieces:
            yield data
