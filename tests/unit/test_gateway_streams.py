"""Open streams: how many there may be, and what ends them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from jobworker.errors import AgentUnavailable, JobWorkerError, Unauthenticated
from jobworker.gateway import streams as streams_module
from jobworker.gateway.certificates import Peer
from jobworker.gateway.kept import Kept
from jobworker.gateway.streams import OpenStreams
from jobworker.identity import Principal, Role
from support import certs


def peer(seconds: float = 3600) -> Peer:
    now = time.time()
    return Peer(
        Principal("spiffe://test/user/a", Role.READER, "1"),
        now - 1,
        now + seconds,
        certs.dev_pki().pair("writer").certificate,
    )


def still_valid(who: Peer) -> None:
    who.check_dates(time.time())


async def stay(streams: OpenStreams, who: Peer) -> None:
    async with streams.hold(who):
        await asyncio.Event().wait()


def outcome(scenario: Callable[[], Coroutine[Any, Any, None]]) -> JobWorkerError:
    with pytest.raises(JobWorkerError) as caught:
        asyncio.run(asyncio.wait_for(scenario(), 20))
    return caught.value


def test_a_stream_ends_with_the_certificate_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_LOOK_SECONDS", 0.01)

    async def scenario() -> None:
        streams = OpenStreams(still_valid)
        other = asyncio.create_task(stay(streams, peer()))
        try:
            await stay(streams, peer(0.05))
        finally:
            assert not other.done()
            other.cancel()

    assert isinstance(outcome(scenario), Unauthenticated)


def test_the_clock_may_be_set_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_LOOK_SECONDS", 0.01)
    later = time.time() + 10_000

    async def scenario() -> None:
        streams = OpenStreams(still_valid)
        staying = asyncio.create_task(stay(streams, peer(3600)))
        await asyncio.sleep(0)
        monkeypatch.setattr(time, "time", lambda: later)
        await staying

    assert isinstance(outcome(scenario), Unauthenticated)


def test_all_end_when_the_gateway_does_and_none_begins() -> None:
    async def scenario() -> None:
        streams = OpenStreams(still_valid)
        staying = [asyncio.create_task(stay(streams, peer())) for _ in range(3)]
        await asyncio.sleep(0)
        streams.end_all(AgentUnavailable("stopping"), patience=0)
        ended = await asyncio.gather(*staying, return_exceptions=True)
        assert [type(error) for error in ended] == [AgentUnavailable] * 3
        await stay(streams, peer())

    assert isinstance(outcome(scenario), AgentUnavailable)


async def finish(streams: OpenStreams, last: asyncio.Event) -> None:
    async with streams.hold(peer()) as held:
        held.finite = lambda: True
        await last.wait()


def test_what_is_about_to_end_by_itself_has_time_for_that_and_nothing_else_has() -> None:
    async def scenario() -> None:
        streams, sent = OpenStreams(still_valid), asyncio.Event()
        reading, staying = asyncio.create_task(finish(streams, sent)), asyncio.create_task(stay(streams, peer()))
        await asyncio.sleep(0)
        streams.end_all(AgentUnavailable("stopping"), patience=3600)
        (ended,) = await asyncio.gather(staying, return_exceptions=True)
        assert not reading.done()
        sent.set()
        await reading
        assert isinstance(ended, AgentUnavailable)
        raise ended

    assert isinstance(outcome(scenario), AgentUnavailable)


def test_what_does_not_end_in_that_time_is_ended() -> None:
    async def scenario() -> None:
        streams = OpenStreams(still_valid)
        stalled = asyncio.create_task(finish(streams, asyncio.Event()))
        await asyncio.sleep(0)
        streams.end_all(AgentUnavailable("stopping"), patience=0.05)
        await stalled

    assert isinstance(outcome(scenario), AgentUnavailable)


def test_a_time_out_of_the_work_itself_is_its_own() -> None:
    async def scenario() -> None:
        async with OpenStreams(still_valid).hold(peer()):
            raise TimeoutError("of the work")

    with pytest.raises(TimeoutError, match="of the work"):
        asyncio.run(scenario())


def test_a_client_that_leaves_is_cancelled() -> None:
    async def scenario() -> None:
        streams = OpenStreams(still_valid)
        staying = asyncio.create_task(stay(streams, peer()))
        await asyncio.sleep(0)
        staying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staying
        assert not streams._streams

    asyncio.run(scenario())


def test_a_look_that_fails_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_LOOK_SECONDS", 0.01)
    looks = []

    def check(_who: Peer) -> None:
        looks.append(1)
        if len(looks) in (2, 3):
            raise RuntimeError
        if len(looks) == 4:
            raise Unauthenticated("revoked")

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        await stay(OpenStreams(check), peer())

    assert str(outcome(scenario)) == "not authenticated: revoked"


def test_what_reading_raises_leaves_the_last_value(tmp_path: Path) -> None:
    path, fail = tmp_path / "file", [False]
    path.write_text("a")

    def read(before: str | None) -> str:
        if fail[0]:
            raise KeyError(before)
        return path.read_text()

    kept = Kept("it", (str(path),), read)
    fail[0] = True
    # Longer, since its times may be those of before: some file systems' are of the last tick.
    path.write_text("bb")
    assert (kept.get(), kept.problem) == ("a", "KeyError: 'a'")
    fail[0] = False
    path.chmod(0o600)
    assert (kept.get(), kept.problem) == ("bb", "")
    # A new file in place of the old one, as large and as old.
    status = path.stat()
    path.unlink()
    path.write_text("cc")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept.get() == "cc"
