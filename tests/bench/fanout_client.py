"""`python -m bench.fanout_client ADDR METHOD CA CERT KEY REQUEST COUNT STALLED`: many followers in one process.

The output that is followed is that of `bench.ticks`. Says an empty line when each follower has one; then, for each
line of standard input, the latencies since the line before, in microseconds. STALLED more have asked for the same
and never take anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

from grpc import aio

from bench.ticks import times
from support import certs, gateway

STREAMS_EACH = 50
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Followers:
    """Latencies of all of them, in nanoseconds."""

    def __init__(self) -> None:
        self.latencies: list[int] = []

    async def follow(self, call: aio.UnaryStreamCall[bytes, bytes], first: asyncio.Event) -> None:
        async for message in call:
            now = time.monotonic_ns()
            ticks = [now - written for written in times(message)]
            # What was written before anybody followed tells nothing.
            if first.is_set():
                self.latencies += ticks
            elif ticks:
                first.set()


async def main(addr: str, method: str, ca: str, cert: str, key: str, request: str, *counts: str) -> None:
    count, stalled = map(int, counts)
    credentials = gateway.credentials(certs.Files(ca, cert, key))
    followers, firsts = Followers(), [asyncio.Event() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for begin in range(0, count + stalled, STREAMS_EACH):
            channel = aio.secure_channel(addr, credentials, _OWN_CONNECTION)
            await stack.enter_async_context(channel)
            stream: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
            calls += [stream(bytes.fromhex(request)) for _ in range(min(STREAMS_EACH, count + stalled - begin))]
        following = [
            asyncio.create_task(followers.follow(call, first)) for call, first in zip(calls, firsts, strict=False)
        ]
        for call in calls[count:]:
            await call.wait_for_connection()
        for first in firsts:
            await first.wait()
        sys.stdout.write("\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            del line
            sys.stdout.write(" ".join(str(each // 1000) for each in followers.latencies) + "\n")
            sys.stdout.flush()
            followers.latencies.clear()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
