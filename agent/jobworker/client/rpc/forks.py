"""What a fork leaves of grpc: none of its threads, and connections that the parent goes on with.

A call would wait in the child for ever, past its time-out, and closing a channel there would break the parent's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from jobworker.client.failures import ForkedClient


@dataclass(slots=True)
class _Grpc:
    """Of this process.

    Attributes:
        begun: it has made a channel, or was forked by one that had.
        lost: it was forked then.
    """

    begun: bool = False
    lost: bool = False

    def fork(self) -> None:
        self.lost = self.begun


_grpc = _Grpc()
os.register_at_fork(after_in_child=_grpc.fork)


def begin() -> None:
    """A channel is to be made.

    Raises:
        ForkedClient: none works here.
    """
    check()
    _grpc.begun = True


def check() -> None:
    """Check that channels work in this process.

    Raises:
        ForkedClient: they do not.
    """
    if _grpc.lost:
        raise ForkedClient


def are_lost() -> bool:
    """Whether the channels of this process are its parent's."""
    return _grpc.lost
