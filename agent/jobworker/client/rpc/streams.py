"""What goes on across broken connections, for threads: output, changes of jobs, and the ends of jobs.

How each goes on is decided in `stream`, `watch` and `waiting`, for the client in an event loop as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from jobworker.api.v1 import job_pb2
from jobworker.api.v1 import job_worker_service_pb2 as pb
from jobworker.client.changes import Event
from jobworker.client.failures import CallFailed
from jobworker.client.output import Item
from jobworker.client.rpc import stream, watch
from jobworker.client.rpc.waiting import Active, Waiting, timed_out

Response = TypeVar("Response")
Open = Callable[[], Iterable[Response]]


def output(open_there: Open[pb.StreamResponse], resumption: stream.Resumption) -> Generator[Item, None, None]:
    """The items of a stream that is opened again wherever it breaks.

    Args:
        open_there: opens it where the resumption is; what it raises as UNAVAILABLE is a break.
        resumption: decides on how it goes on.

    Raises:
        JobWorkerError: what another attempt cannot mend, or the last of too many breaks.
    """
    while True:
        resumption.open()
        failure: CallFailed | None = None
        try:
            for response in open_there():
                yield from resumption.items(response)
                if resumption.ended:
                    return
        except CallFailed as error:
            failure = error
        time.sleep(resumption.pause(failure))


def changes(open_there: Open[pb.WatchResponse], resumption: watch.Resumption) -> Generator[Event, None, None]:
    """The events of a watch that is opened again wherever it breaks.

    Args:
        open_there: opens it where the resumption is; what it raises as UNAVAILABLE is a break.
        resumption: decides on how it goes on.

    Raises:
        JobWorkerError: what another attempt cannot mend, the last of too many breaks, or that the first token is
            not good any more.
    """
    while True:
        failure: CallFailed | None = None
        try:
            for response in open_there():
                if event := resumption.event(response):
                    yield event
                resumption.stand(response)
        except CallFailed as error:
            failure = error
        told, pause = resumption.broke(failure)
        if told:
            yield told
        time.sleep(resumption.left(pause))
        resumption.check()


def ends(events: Generator[Event, None, None], job_ids: tuple[str, ...]) -> Iterator[job_pb2.Job]:
    """Each of the jobs once it has ended; closes the watch behind the last.

    Raises:
        JobNotFound: one of them is not there.
        WaitTimedOut: the watch has come to its deadline.
    """
    waiting = Waiting(job_ids)
    try:
        for event in events:
            if job := waiting.take(event):
                yield job
            if not waiting.job_ids:
                return
    except CallFailed as failure:
        raise timed_out(failure, waiting.job_ids) from None
    finally:
        events.close()


def until_idle(events: Generator[Event, None, None]) -> Iterator[int]:
    """How many jobs are active, by a watch of all with a snapshot, each time that this changes; the last is 0.

    Raises:
        WaitTimedOut: the watch has come to its deadline.
    """
    active = Active()
    try:
        before = None
        for event in events:
            left = active.take(event)
            if left is not None and left != before:
                yield left
                before = left
            if left == 0:
                return
    except CallFailed as failure:
        raise timed_out(failure, sorted(active.job_ids)) from None
    finally:
        events.close()
