"""One audit trail on disk: lines in, chained and appended to files that are rotated.

    NAME.log        the open file
    NAME.log.N      closed ones; the one with the lowest number is the oldest
    NAME.head       what the trail went up to at its last anchor

What is on disk is never changed: a line that an earlier life could not finish stays as it is, and the line behind
it says so. Nothing waits for the disk: what it does not take is kept up to a bound, then counted, and the count is
a line of its own once there is room again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable
from typing import Any

from jobworker import chain
from jobworker.chain import Head
from jobworker.kernel import beneath
from jobworker.supervisor import trail_end
from jobworker.supervisor.log import Log
from jobworker.supervisor.trail_end import End

# Lines that wait for the disk, in bytes.
_MAX_WAITING = 256 * 1024
_MODE = 0o600
# One for all: json.dumps makes another one for each call that wants it compact.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def body(by: str, event: str, **fields: Any) -> bytes:
    """The members of a line: when, who says so, what happened, and of the fields those that hold something."""
    told = {"time": chain.stamp(time.time_ns()), "by": by, "event": event}
    told.update((name, value) for name, value in fields.items() if value not in ("", None, (), {}))
    # In ASCII: no control character, line separator or lone surrogate is in the file as itself.
    return _encode(told).encode("ascii")[1:-1]


class Trail:
    """Appends to one trail; owns the descriptor of its open file.

    Args:
        directory: opens the directory that the files are in, or makes it.
        max_bytes: a file that has so many is closed.
        keep: so many closed files are kept.
        lost: lines that the program before this one, in the same process, could not write.
        to_disk: called with the name of a file that has changed.

    Attributes:
        head: of what was chained, which is in the file unless `failing`.
        rotated: a file was closed since this was set to False.
        failing: why nothing can be written at the moment, as an errno's name; empty when it can.
    """

    def __init__(
        self,
        log: Log,
        name: str,
        directory: Callable[[], int],
        max_bytes: int,
        keep: int,
        lost: int,
        to_disk: Callable[[str], None],
    ) -> None:
        self.name = name
        self._log = log
        self._open_directory = directory
        self._max_bytes = max_bytes
        self._keep = keep
        self._to_disk = to_disk
        self._directory = -1
        self._fd = -1
        self._size = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        # Chained, and not taken by the disk yet; the first of it may be the end of a line.
        self._rest = b""
        # Ends what an earlier life has left of a line.
        self._prefix = b""
        self._lost = lost
        self._doomed: list[str] = []
        self._known: Head | None = None
        self._end: End | None = None
        self.rotated = False
        self.failing = ""

    @property
    def head(self) -> Head:
        return self._known or chain.START

    @property
    def unwritten(self) -> int:
        """How many lines are not in the file."""
        return self._lost + len(self._waiting) + self._rest.count(b"\n")

    @property
    def ended(self) -> str:
        """When the last line of an earlier life was made, as the line says; empty if there is none."""
        return self._end.time if self._end else ""

    def add(self, line: bytes) -> None:
        """Take a line in, to be written with the next `flush`."""
        if self._waiting_bytes + len(line) > _MAX_WAITING and (self.failing or not self.flush()):
            self._lost += 1
        else:
            self._waiting.append(line)
            self._waiting_bytes += len(line)

    def flush(self) -> bool:
        """Write what waits; True if nothing does any more."""
        if not (self._waiting or self._rest or self._lost):
            return True
        try:
            self._write_all()
        except OSError as error:
            self._fail(error)
            return False
        if self.failing:
            self._log.warning("audit trail is written again", trail=self.name)
            self.failing = ""
        return True

    def _fail(self, error: OSError) -> None:
        if not self.failing:
            self._log.error("audit trail not written", trail=self.name, error=str(error))
        self.failing = errno.errorcode.get(error.errno or 0, "UNKNOWN")
        if error.errno == errno.ENOENT and self._directory >= 0:
            # It has been removed; there may be another one.
            os.close(self._directory)
            self._directory = -1

    def _write_all(self) -> None:
        self._have_file()
        self._write()
        self._chain()
        self._write()
        self._remove_doomed()
        if self._size >= self._max_bytes and self._closed():
            self._announce_removal()
            self._write_all()

    def _write(self) -> None:
        while self._rest:
            written = os.write(self._fd, self._rest)
            self._rest, self._size = self._rest[written:], self._size + written
            self._to_disk(f"{self.name}.log")

    def _chain(self) -> None:
        lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._lost:
            lines.append(body("supervisor", "lines_lost", lines=self._lost, error=self.failing))
            self._lost = 0
        if self._size == 0:
            head = self.head
            lines.insert(0, body("supervisor", "file_opened", prev={"seq": head.seq, "hash": head.hash}))
        sealed = []
        for line in lines:
            data, self._known = chain.seal(self.head, line)
            sealed.append(data)
        self._rest, self._prefix = self._prefix + b"".join(sealed), b""

    # Files.

    def _have_file(self) -> None:
        if self._directory < 0:
            self._directory = self._open_directory()
        if self._known is None:
            self._take_over()
        if self._fd >= 0 and not self._is_in_place():
            self._log.error("audit file is gone: going on in another one", trail=self.name)
            self._lost += self._rest.count(b"\n")
            self._rest = b""
            self._close()
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(f"{self.name}.log", flags, _MODE, dir_fd=self._directory)
            self._size = os.fstat(self._fd).st_size

    def _is_in_place(self) -> bool:
        ours = os.fstat(self._fd)
        try:
            there = os.stat(f"{self.name}.log", dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _take_over(self) -> None:
        """Go on behind the last line of an earlier life."""
        end = self._end = trail_end.find(self._directory, self.name)
        anchored, first = self._read_head(), []
        if end.broken:
            # Whatever it is, it is not ours to go on with.
            self._rename(f"{self.name}.log.{self._next_number()}")
            self._log.error("audit file set aside", trail=self.name, problem=end.broken)
        elif end.fragment:
            first.append(self._leave_unfinished(end))
        head = end.head
        if anchored.seq > head.seq or end.broken:
            # Numbers that may have been seen outside are not given to other lines.
            head = Head(max(anchored.seq, head.seq), head.hash)
            first.append(
                body(
                    "supervisor",
                    "lines_missing",
                    problem=end.broken,
                    behind={"seq": end.head.seq, "hash": end.head.hash},
                    anchor={"seq": anchored.seq, "hash": anchored.hash},
                )
            )
        self._waiting[:0] = first
        self._waiting_bytes += sum(map(len, first))
        self._known = head

    def _leave_unfinished(self, end: End) -> bytes:
        """Have the chain go on behind what is no line; what tells of that."""
        size, digest = end.fragment or (0, "")
        moved = f"{self.name}.unfinished.{end.head.seq + 1}" if end.alone else ""
        if end.alone:
            # Each file begins with the line that says what it follows.
            self._rename(moved)
        else:
            self._prefix = b"\n"
        return body("supervisor", "unfinished_line", bytes=size, sha256=digest, file=moved)

    def _closed(self) -> bool:
        """Close the open file; False if it has to be gone on with: on a full disk, say."""
        try:
            self._rename(f"{self.name}.log.{self._next_number()}")
        except OSError:
            return False
        self._close()
        self.rotated = True
        return True

    def _announce_removal(self) -> None:
        """Choose the files that are too many, and say so before they are gone: who misses them finds why."""
        closed = trail_end.closed(self._directory, self.name)
        if doomed := closed[: -self._keep]:
            self._doomed = [f"{self.name}.log.{number}" for number in doomed]
            after = trail_end.follows(self._directory, f"{self.name}.log.{closed[len(doomed)]}")
            last = {"seq": after.seq, "hash": after.hash} if after else None
            self.add(body("supervisor", "files_removed", files=self._doomed, last=last))

    def _next_number(self) -> int:
        return max(trail_end.closed(self._directory, self.name), default=0) + 1

    def _rename(self, to: str) -> None:
        os.rename(f"{self.name}.log", to, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._to_disk(to)

    def _remove_doomed(self) -> None:
        for name in self._doomed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
        self._doomed = []

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = -1, 0

    # The head, for who wants to know whether the end of the trail is missing.

    def _read_head(self) -> Head:
        try:
            text = beneath.read_regular(self._directory, f"{self.name}.head", 128).decode("ascii", "replace")
        except FileNotFoundError:
            return chain.START
        return chain.parse_head(text.rstrip("\n")) or chain.START

    def write_head(self) -> None:
        """Note what the trail goes up to. What can't be noted now is with the next anchor."""
        with contextlib.suppress(OSError):
            self._write_head()

    def _write_head(self) -> None:
        beside, name = f"{self.name}.head.new", f"{self.name}.head"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(beside, flags, _MODE, dir_fd=self._directory)
        try:
            os.write(fd, f"{self.head}\n".encode("ascii"))
        finally:
            os.close(fd)
        os.rename(beside, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._to_disk(name)
