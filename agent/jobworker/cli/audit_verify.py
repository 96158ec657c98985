"""Checking an audit trail: reads its files from the oldest line to the newest, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jobworker import chain
from jobworker.chain import Head, Line

# The supervisor makes no longer ones; of what is longer only size and hash are of interest.
_MAX_LINE = 1024 * 1024
# By the supervisor, but for what the gateway had no room for. What comes from outside stands further behind.
_OF_THE_TRAIL = re.compile(
    rb'\{"seq":[0-9]+,"time":"[^"]*",(?:"by":"gateway","event":"calls_dropped"|"by":"supervisor","event":'
    rb'"(?:file_opened|files_removed|lines_lost|lines_missing|calls_dropped|unfinished_line)")'
)
_CLOSED = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        file: its name; empty if it is about the trail as a whole.
        line: the number of the line in that file, from 1 on; 0 for none.
        told: the trail itself says so: the chain holds, and lines are missing from it.
    """

    file: str
    line: int
    problem: str
    told: bool = False


@dataclass(slots=True)
class Report:
    """What is known of a trail that was read.

    Attributes:
        first: the number of the oldest line that is there.
        head: the newest line.
        lines: how many there are.
        files: how many files they are in.
        removed: up to this line they were removed as the settings say.
        stale: anchors of lines before the oldest.
        since: when the oldest one was made; empty if that is not told.
    """

    name: str
    first: int = 0
    head: Head = chain.START
    lines: int = 0
    files: int = 0
    removed: Head = chain.START
    since: str = ""
    stale: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    more: int = 0
    told: int = 0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands in a file.

    Attributes:
        data: without its newline; empty if it is longer than any line of a trail.
        size: in bytes, without the newline.
        line: its parts; None if it has not the form of a line of a trail.
        digest: the SHA-256 of all of it, if it is none.
        ended: it has a newline.
    """

    data: bytes
    size: int
    line: Line | None
    digest: str
    ended: bool


class Verifier:
    """Reads one trail.

    Args:
        directory: where the trails are.
        name: of the trail.
        anchors: heads that were seen outside.
        most: so many findings of each kind are kept, the others are counted.
    """

    def __init__(self, directory: str, name: str, anchors: tuple[Head, ...] = (), most: int = 20) -> None:
        self._directory = directory
        self._most = most
        self.report = Report(name)
        self._file = ""
        self._number = 0
        # Before the files: what it says is in them.
        self._noted = self._read_head()
        known = [*anchors, *([self._noted] if self._noted else [])]
        self._anchors = {(anchor.seq, anchor.hash) for anchor in known}
        self._seen: set[int] = set()
        # The hashes that the line before may have: the one that it says, and the one that it should have.
        self._before: tuple[str, ...] = ()
        self._fragment: tuple[int, RawLine] | None = None

    def run(self, begin: Callable[[str], None]) -> Report:
        """Read it.

        Args:
            begin: is told of each file before it is read.

        Raises:
            OSError: a file can't be read.
        """
        with contextlib.ExitStack() as files:
            opened = open_all(self._directory, self.report.name, files)
            for name, file in opened:
                self.report.files += 1
                begin(f"reading {name}, {self.report.files} of {len(opened)}")
                self._read(name, file)
        self._conclude()
        return self.report

    def _read_head(self) -> Head | None:
        name = f"{self.report.name}.head"
        try:
            with open(os.path.join(self._directory, name), encoding="ascii", errors="replace") as file:
                text = file.read(128)
        except FileNotFoundError:
            return None
        head = chain.parse_head(text.removesuffix("\n"))
        if head is None:
            self._found(f"{name} does not hold a head")
        return head

    def _found(self, problem: str, *, line: int | None = None, told: bool = False) -> None:
        report = self.report
        if told:
            report.told += 1
        else:
            report.broken += 1
        # Those that are told do not take the place of those that are not.
        if (report.told if told else report.broken) <= self._most:
            report.findings.append(Finding(self._file, self._number if line is None else line, problem, told))
        else:
            report.more += 1

    def _read(self, name: str, file: BinaryIO) -> None:
        self._file, self._number = name, 0
        for raw in _lines(file):
            self._number += 1
            if raw.line is None:
                self._settle_fragment()
                self._fragment = self._number, raw
            else:
                self._check(raw.line, raw)
        self._settle_fragment()

    def _settle_fragment(self) -> None:
        if self._fragment:
            number, raw = self._fragment
            self._fragment = None
            what = "is not a line of a trail" if raw.ended else "is a line without its end"
            self._found(f"{what} ({raw.size} bytes), and none behind it says so", line=number)

    def _check(self, line: Line, raw: RawLine) -> None:
        report = self.report
        told = _told(raw.data)
        if not report.lines:
            self._begin(line, told)
        report.lines += 1
        self._check_place(line, told)
        hashes = {before: chain.digest(before, line.content) for before in self._before}
        if line.hash not in hashes.values():
            self._found(f"line {line.seq} was changed, or is not the one that was written behind the one before")
        self._check_fragment(told)
        self._check_anchors(line)
        self._heed(told)
        own = chain.digest(self._before[0], line.content) if self._before else line.hash
        self._before = (line.hash,) if line.hash in hashes.values() else (line.hash, own)
        report.head = Head(line.seq, line.hash)

    def _begin(self, line: Line, told: dict[str, Any]) -> None:
        """The first line that is there says what it follows."""
        report = self.report
        report.first, report.since = line.seq, str(told.get("time", ""))
        prev = _head_of(told.get("prev")) if told.get("event") == "file_opened" else None
        if prev is None:
            self._found("does not begin with the line that every file begins with: what was before it is cut off")
            prev = Head(line.seq - 1, chain.GENESIS)
        if prev.seq == 0 and prev.hash != chain.GENESIS:
            self._found("line 1 does not begin a chain")
        report.head, self._before = prev, (prev.hash,)

    def _check_place(self, line: Line, told: dict[str, Any]) -> None:
        expected = self.report.head.seq + 1
        if line.seq == expected:
            return
        if line.seq > expected:
            missing = (
                f"line {expected} is" if line.seq == expected + 1 else f"lines {expected} to {line.seq - 1} are"
            )
            self._found(f"{missing} missing before line {line.seq}", told=told.get("event") == "lines_missing")
        else:
            self._found(f"line {line.seq} stands where line {expected} belongs: moved, repeated or inserted")

    def _check_fragment(self, told: dict[str, Any]) -> None:
        if told.get("event") == "unfinished_line" and "file" not in told:
            number, raw = self._fragment or (0, None)
            if raw and (raw.size, raw.digest) == (told.get("bytes"), told.get("sha256")):
                self._fragment = None
                problem = "was left unfinished by a supervisor that was killed, as the line behind it says"
                self._found(problem, line=number, told=True)
            else:
                self._found("says that an unfinished line is before it, and what is there is not that")
        self._settle_fragment()

    def _check_anchors(self, line: Line) -> None:
        for seq, digest in self._anchors:
            if seq == line.seq:
                self._seen.add(seq)
                if digest != line.hash:
                    self._found(f"line {seq} is not the one of the anchor {seq}:{digest}")

    def _heed(self, told: dict[str, Any]) -> None:
        """What a line says of others that are missing."""
        event = told.get("event")
        if event == "files_removed":
            removed = _head_of(told.get("last"))
            if removed and removed.seq > self.report.removed.seq:
                self.report.removed = removed
        elif event in ("lines_lost", "calls_dropped"):
            why = told.get("error") or "there were too many at once"
            self._found(f"{told.get('lines')} lines are missing here: {why}", told=True)
        elif event == "unfinished_line" and "file" in told:
            self._found(f"an unfinished line was left in {told['file']!r:.60}", told=True)
        elif event == "lines_missing" and told.get("problem"):
            self._found(f"a file was set aside: {told['problem']!s:.80}", told=True)

    def _conclude(self) -> None:
        report, self._file, self._number = self.report, "", 0
        if not report.lines:
            if self._noted:
                self._found(f"there is no line, and the head says that there are {self._noted.seq}")
            return
        before = report.first - 1
        if before and report.removed.seq < before:
            self._found(f"lines 1 to {before} are missing, and none says that they were removed for their age")
        for seq, digest in sorted(self._anchors):
            if seq > report.head.seq:
                problem = f"the end is cut off: the last line is {report.head.seq}, and an anchor knows line {seq}"
                self._found(problem)
            elif seq < report.first:
                report.stale.append(seq)
            elif seq not in self._seen:
                self._found(f"line {seq} of the anchor {seq}:{digest} is missing")


def _told(data: bytes) -> dict[str, Any]:
    """What a line says of the trail itself; nothing if it is one of all the others."""
    if not _OF_THE_TRAIL.match(data):
        return {}
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        # The chain holds for any bytes, and this is none of the supervisor's.
        return {}
    return told if isinstance(told, dict) else {}


def _head_of(value: Any) -> Head | None:
    if not isinstance(value, dict):
        return None
    return chain.parse_head(f"{value.get('seq')}:{value.get('hash')}")


def open_all(directory: str, name: str, files: contextlib.ExitStack) -> list[tuple[str, BinaryIO]]:
    """A trail's files, the oldest first, as they are at one moment, whatever is rotated or removed meanwhile.

    Raises:
        OSError: one can't be opened.
    """
    opened: list[tuple[str, BinaryIO]] = []
    # The open one first: what is renamed then is found again among the closed ones, and taken once.
    with contextlib.suppress(FileNotFoundError):
        opened.append((f"{name}.log", _open(files, directory, f"{name}.log")))
    known = {_identity(file) for _, file in opened}
    closed: list[tuple[str, BinaryIO]] = []
    for number in _closed(directory, name):
        with contextlib.suppress(FileNotFoundError):
            file = _open(files, directory, f"{name}.log.{number}")
            if _identity(file) not in known:
                closed.append((f"{name}.log.{number}", file))
    return [*closed, *opened]


def _closed(directory: str, name: str) -> list[int]:
    prefix = f"{name}.log."
    found = (entry.removeprefix(prefix) for entry in os.listdir(directory) if entry.startswith(prefix))
    return sorted(int(number) for number in found if _CLOSED.fullmatch(number))


def _open(files: contextlib.ExitStack, directory: str, name: str) -> BinaryIO:
    return files.enter_context(open(os.path.join(directory, name), "rb"))


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _lines(file: BinaryIO) -> Iterator[RawLine]:
    while True:
        at = file.tell()
        line = _next_line(file)
        known = 0
        while not line.ended and line.size > known:
            # The agent may be writing it, page by page: it is looked at again for as long as it grows.
            known = line.size
            file.seek(at)
            line = _next_line(file)
        if not line.size and not line.ended:
            return
        yield line


def _next_line(file: BinaryIO) -> RawLine:
    data = file.readline(_MAX_LINE)
    if len(data) < _MAX_LINE or data.endswith(b"\n"):
        text, ended = data.removesuffix(b"\n"), data.endswith(b"\n")
        line = chain.split(text) if ended else None
        digest = "" if line else hashlib.sha256(text).hexdigest()
        return RawLine(text, len(text), line, digest, ended)
    size, digester = 0, hashlib.sha256()
    while data and not data.endswith(b"\n"):
        size += len(data)
        digester.update(data)
        data = file.readline(_MAX_LINE)
    text = data.removesuffix(b"\n")
    digester.update(text)
    return RawLine(b"", size + len(text), None, digester.hexdigest(), bool(data))
