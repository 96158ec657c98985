"""What supervisor and keeper say to each other.

A message is a byte for its kind, the job's id, and how its process ended where that is known; descriptors come
with it. It is packed by hand, because the keeper loads this and must stay small, and hardly ever changes.
"""

from __future__ import annotations

import struct

# From the supervisor: here are the read ends of a job's pipes (stdout, stderr), before the job is made.
HOLD_PIPES = 1
# From the job's process itself, before it executes anything: here is its pidfd.
HOLD_PROCESS = 2
# The job has ended: let go of it all.
RELEASE = 3
# A supervisor that has just started asks for all that is held.
HAND_BACK = 4
# It has taken everything over and serves.
READY = 5
# Execute yourself anew, from the code that is there now.
UPGRADE = 6

# From the keeper: what it holds of one job. Three descriptors, or two if the supervisor died before the job was
# made.
HELD = 7
# That was all.
HELD_ALL = 8
# The process of an adopted job has ended.
ENDED = 9

# From the supervisor, behind HOLD_PIPES: here is what an open standard input is written by, the pipe's write end
# and the file of what waits for it.
HOLD_STDIN = 10
# It has ended: the job is to find that.
LET_GO_STDIN = 11
# From the keeper, behind HELD: what it holds of the job's standard input.
HELD_STDIN = 12

# How a process ended, as waitid(2) has it: CLD_EXITED and a code, CLD_KILLED or CLD_DUMPED and a signal.
RUNNING = (0, 0)
# It is not a child of anybody here, since the keeper that was to inherit it has died.
FOREIGN = (-1, 0)

_FORMAT = struct.Struct("<B19sii")
SIZE = _FORMAT.size


def pack(kind: int, job_id: str = "", end: tuple[int, int] = RUNNING) -> bytes:
    return _FORMAT.pack(kind, job_id.encode("ascii"), *end)


def unpack(data: bytes) -> tuple[int, str, tuple[int, int]]:
    """The kind, the job's id, and how its process ended.

    Raises:
        ValueError: this is not such a message.
    """
    try:
        kind, job_id, code, status = _FORMAT.unpack(data)
    except struct.error as error:
        raise ValueError(str(error)) from None
    return kind, job_id.rstrip(b"\0").decode("ascii"), (code, status)
